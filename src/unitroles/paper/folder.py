"""The folder of one run: what it may hold, its tables and its run.json."""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from unitroles import Evidence, InputError
from unitroles.files import make_folder, read_regular, write_whole
from unitroles.paper.evidence import EVIDENCE_TABLES
from unitroles.paper.tables import Member
from unitroles.zoo.settings import Family


@dataclass(frozen=True)
class Job:
    """One run of the main job: what is trained and measured, where it goes, how it is marked."""

    data_set: str
    settings: Family
    out: Path
    kind: str
    ladder: str
    evidence: Evidence | None = None

    def name(self, model: str) -> str:
        """The file name of a model; a smoke run shows in it."""
        return f"{model}-quick" if self.kind == "quick" else model

    def mark(self, seed: int) -> str:
        """A line for every figure."""
        noise = self.settings.data.pixel_noise
        return (
            f"{self.data_set}, {self.ladder} ladder, pixel noise {noise:g}, seed {seed}, "
            f"{self.kind} run"
        )


def claim(job: Job) -> None:
    """Make the folder and refuse one that holds results of other settings."""
    make_folder(job.out)
    key, file = _key(job), job.out / "run.json"
    found = _key_of(file)
    if found is None:
        begin(job)
    elif found != key:
        raise InputError(
            f"{job.out} holds a run with other settings (see {file}); choose another folder "
            "with --out, or delete this one if it is no longer needed"
        )


def begin(job: Job) -> None:
    """Say in run.json that what is beside it may be of several calls: this one was killed."""
    _write_json({"key": _key(job), **_choices(job), "finished": False}, job.out / "run.json")


def _key_of(file: Path) -> str | None:
    """The key of the run in the folder; None where there is none that can be read."""
    try:
        found = json.loads(read_regular(file)).get("key")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return found if isinstance(found, str) else None


def _choices(job: Job) -> dict[str, Any]:
    return {
        "run": job.kind,
        "data_set": job.data_set,
        "ladder": job.ladder,
        "settings_sha256": job.settings.sha256,
        "settings": {
            "data": asdict(job.settings.data),
            "model": asdict(job.settings.model),
            "recipes": {name: asdict(recipe) for name, recipe in job.settings.recipes.items()},
        },
    }


def _key(job: Job) -> str:
    """Hash of all that decides the networks but the seeds, which may differ from call to call.

    So may the evidence. The networks of every seed stay in the folder; tables, figures and run.json
    are written again and show only the seeds and the evidence of the last call. Where the version
    of the library changed, or there is too little evidence, weights are kept and taxonomies
    computed again.
    """
    return hashlib.sha256(json.dumps(_choices(job), sort_keys=True).encode()).hexdigest()


def write_tables(job: Job, written: dict[str, pd.DataFrame]) -> None:
    """Write tables as csv; those of evidence that an earlier call left go, if they are not new."""
    for name, frame in written.items():
        marked = frame.assign(run=job.kind)
        write_whole({job.out / f"{name}.csv": marked.to_csv(index=False)})
    for name in set(EVIDENCE_TABLES) - set(written):
        (job.out / f"{name}.csv").unlink(missing_ok=True)


def write_run(job: Job, members: list[Member], seconds: dict[str, Any]) -> None:
    packages = ("unitroles", "torch", "numpy", "scikit-learn", "accelerate")
    _write_json(
        {
            "key": _key(job),
            **_choices(job),
            "finished": True,
            "seeds": list(job.settings.seeds),
            "evidence": asdict(job.evidence) if job.evidence else None,
            "models": [
                {
                    "seed": member.seed,
                    "model": member.model,
                    "gap": member.trained.gap,
                    "training_seconds": round(member.trained.seconds, 2),
                    "analysis_seconds": {
                        f"{order}, {samples}": taxonomy.provenance["seconds"]
                        for (order, samples), taxonomy in member.taxonomies.items()
                    },
                }
                for member in members
            ],
            "seconds_of_this_call": seconds,
            "versions": {name: version(name) for name in packages},
            "python": platform.python_version(),
        },
        job.out / "run.json",
    )


def _write_json(content: dict[str, Any], path: Path) -> None:
    write_whole({path: json.dumps(content, indent=2) + "\n"})
