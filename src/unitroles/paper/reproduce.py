"""The main job: train the networks, analyse them, write the paper's tables and figures."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import unitroles as ur
from unitroles import Taxonomy, plots
from unitroles.errors import unknown
from unitroles.files import require, write_whole
from unitroles.paper import tables
from unitroles.paper.evidence import evidence_tables
from unitroles.paper.folder import Job, begin, claim, write_run, write_tables
from unitroles.paper.tables import CORRECT, GIVEN, OWN, Member
from unitroles.paper.text import report
from unitroles.progress import Track, track
from unitroles.zoo.images import DATA_SETS, ImageData, load_images
from unitroles.zoo.settings import Recipe, ladder
from unitroles.zoo.training import Trained, one_thread, settings_hash, train
from unitroles.zoo.vgg import last_conv_layer

ORDERS = (OWN, "train")


EVIDENCE = ur.Evidence()


def reproduce(
    name: str,
    out: Path,
    seeds: tuple[int, ...] | None = None,
    quick: bool = False,
    ladder: str = "capacity",
    write: Callable[[str], None] = lambda text: None,
    evidence: bool = False,
) -> dict[str, pd.DataFrame]:
    """Train the models of a ladder, test their units, and write the paper's tables and figures.

    A run that was killed goes on where it was when it is started again with the same options.
    Evidence can be asked for later: the networks of the folder are then analysed again, not
    trained. Without it, taxonomies that have evidence are taken as they are, and its tables go.

    Parameters
    ----------
    name : the data set, one of `unitroles.zoo.images.DATA_SETS`.
    out : folder for all files; made if it does not exist.
    seeds : different whole numbers from 0 on; None takes those of the settings.
    quick : a smoke run of a few seconds; every file says "quick".
    ladder : "capacity" (models A to E, clean labels) or "noise" (rising label noise).
    write : takes every line that is to be shown.
    evidence : also measure floors, intervals, exchangeability and controls (`EVIDENCE`) where each
        split has its own order, and write the tables of `unitroles.paper.evidence`.

    Returns
    -------
    The tables by name; empty on all but the first of several processes.

    Raises
    ------
    unitroles.InputError : unknown names, unusable seeds, a package that is not installed, a full
        disk, or a folder that cannot be written or holds another run.
    """
    if name not in DATA_SETS:
        raise unknown("name", name, DATA_SETS)
    job = _job(name, Path(out), seeds, quick, ladder, evidence)
    require("sklearn", "accelerate")
    claim(job)
    start = time.perf_counter()
    members, spent = [], {}
    with one_thread(), track(True) as bars:
        for seed in job.settings.seeds:
            began = time.perf_counter()
            for model, recipe in job.settings.recipes.items():
                member = _member(job, seed, model, recipe, bars)
                members.extend([] if member is None else [member])
            spent[seed] = round(time.perf_counter() - began, 1)
    if not _is_main_process():
        return {}
    written = _tables(members, job)
    begin(job)
    write_tables(job, written)
    _figures(members, job)
    seconds = round(time.perf_counter() - start, 1)
    write_run(job, members, {"by_seed": spent, "all": seconds})
    report(written, job, write)
    each = ", ".join(f"seed {seed}: {value:.0f} s" for seed, value in spent.items())
    write(f"\n{seconds:.0f} s in all ({each}; one thread). Files in {job.out}")
    return written


def _is_main_process() -> bool:
    from accelerate import PartialState

    return PartialState().is_main_process


def _job(
    name: str, out: Path, seeds: tuple[int, ...] | None, quick: bool, rungs: str, evidence: bool
) -> Job:
    settings = ladder(rungs)
    if quick:
        settings = settings.quick()
    if seeds is not None:
        settings = replace(settings, seeds=_checked(seeds))
    asked = EVIDENCE if evidence else None
    return Job(name, settings, out, "quick" if quick else "full", rungs, asked)


def _checked(seeds: tuple[Any, ...]) -> tuple[int, ...]:
    whole = all(type(seed) is int and seed >= 0 for seed in seeds)
    if not whole or not seeds or len(set(seeds)) < len(seeds):
        given = ", ".join(map(str, seeds)) or "none"
        raise ur.InputError(f"seeds must be different whole numbers from 0 on, got {given}")
    return tuple(seeds)


def _member(job: Job, seed: int, model: str, recipe: Recipe, bars: Track) -> Member | None:
    """Train one network, on all processes, and take its taxonomies, on the first alone."""
    folder = job.out / f"seed{seed}"
    data = load_images(job.data_set, job.settings.data, label_noise=recipe.label_noise)
    weights = folder / f"{job.name(model)}.safetensors"
    done = bars(f"seed {seed}: train {model}", recipe.epochs)
    trained = train(recipe, data, job.settings.model, seed, weights, done)
    if not _is_main_process():
        return None
    key = f"{settings_hash(recipe, data, job.settings.model, seed)} unitroles {ur.__version__}"
    found: dict[tuple[str, str], ur.Taxonomy] = {}
    parts = _parts(data)
    done = bars(f"seed {seed}: units of {model}", len(parts) * len(ORDERS))
    for samples in parts:
        for order in ORDERS:
            file = folder / f"{job.name(model)}{_suffix(order, samples)}.nc"
            fullest = _evidence(order, data, parts[samples])
            asked = fullest if job.evidence else None
            # Where no evidence is asked for, a taxonomy that has it serves as well.
            keys = tuple(_mark(key, order, samples, e, job.kind) for e in (asked, fullest))
            options = {"method": ur.Method(order=order), "evidence": asked}
            found[order, samples] = _taxonomy(file, keys, trained, data, parts[samples], options)
            done(1)
    if job.ladder == "noise" and not recipe.label_noise:  # all labels are correct
        found |= {(order, CORRECT): found[order, GIVEN] for order in ORDERS}
    return Member(seed, model, recipe, trained, found)


def _mark(*parts: object) -> str:
    return " ".join(str(part) for part in parts if part is not None)


def _parts(data: ImageData) -> dict[str, np.ndarray]:
    """The training samples that are analysed: all, and with label noise the correct ones alone."""
    everything = np.arange(len(data.train_labels))
    parts = {GIVEN: everything}
    if data.label_noise:
        right = everything[data.train_labels == data.true_train_labels]
        if len(np.unique(data.train_labels[right])) == len(data.class_names):
            parts[CORRECT] = right
    return parts


def _suffix(order: str, samples: str) -> str:
    return ("" if order == OWN else f"-order-{order}") + ("" if samples == GIVEN else "-correct")


def _evidence(order: str, data: ImageData, rows: np.ndarray) -> ur.Evidence | None:
    """Evidence as it can be measured: no floors where no class has two samples in both splits."""
    if order != OWN:
        return None
    labels = (data.train_labels[rows], data.test_labels)
    counts = [np.bincount(split, minlength=len(data.class_names)) for split in labels]
    return EVIDENCE if np.min(counts, axis=0).max() >= 2 else replace(EVIDENCE, floors=0)


def _taxonomy(
    file: Path,
    keys: tuple[str, ...],
    trained: Trained,
    data: ImageData,
    rows: np.ndarray,
    options: dict[str, Any],
) -> ur.Taxonomy:
    """The stored taxonomy where it has one of the keys, of weights and options; else a new one."""
    stored = _stored(file)
    if stored is not None and stored.data.attrs.get("zoo_key") in keys:
        return stored
    taxonomy = ur.analyze(
        trained.model,
        (data.train_images[rows], data.train_labels[rows]),
        (data.test_images, data.test_labels),
        layer=last_conv_layer(trained.model),
        class_names=data.class_names,
        progress=False,
        **options,
    )
    marks = {"zoo_key": keys[0], "run": keys[0].rsplit(" ", 1)[-1]}
    marked = ur.Taxonomy(taxonomy.data.assign_attrs(marks))
    marked.save(file)
    return marked


def _stored(file: Path) -> ur.Taxonomy | None:
    try:
        return ur.load(file)
    except ur.InputError:  # absent or damaged: computed again
        return None


def _tables(members: list[Member], job: Job) -> dict[str, pd.DataFrame]:
    sensitive = tables.sensitivity(members, job.settings)
    if not job.evidence:  # whatever stored taxonomies have
        sensitive = sensitive[sensitive["rule"] != tables.ONE_ERROR].reset_index(drop=True)
    by_class = tables.role_table(members, job.settings, "std_over_labels")
    written = {
        "table1": tables.table1(members, job.settings),
        "table2": by_class,
        "table3": tables.role_table(members, job.settings, "std_over_units"),
        "sensitivity": sensitive,
        "regret": tables.regret(members, job.settings),
        "relations": tables.relations(sensitive, by_class),
    }
    return written | (evidence_tables(members, job.settings) if job.evidence else {})


def _figures(members: list[Member], job: Job) -> None:
    """Figures of the first seed, by given label, each split in its own order."""

    seed = job.settings.seeds[0]
    chosen = {m.model: m.taxonomies[OWN, GIVEN] for m in members if m.seed == seed}
    write_figures(chosen, job.out, job.mark(seed))


# Chosen before any role was computed; every class is in the saved taxonomies.
LABEL = 3
"""The class of the figures, by its place; the last one where there are fewer."""


def write_figures(taxonomies: Mapping[str, Taxonomy], folder: Path, mark: str) -> list[Path]:
    """Draw figures 1-4 and the distributions of the shares.

    Parameters
    ----------
    taxonomies : by model name, from the best to the worst generalizing.
    folder : where the five files go.
    mark : a line written on every figure: data, noise, seed, and "quick" for a smoke run.
    """
    first, *_, last = taxonomies
    label = taxonomies[first].labels[: LABEL + 1][-1]
    drawn = {
        "figure1.png": _figure(plots.rof_curve(taxonomies[first], label)),
        "figure2.png": plots.compare({name: taxonomies[name] for name in (first, last)}, label),
        "figure3.png": plots.compare(taxonomies, label),
        "figure4.png": _figure(plots.proportions_3d(taxonomies)),
        "shares.png": _figure(plots.shares(taxonomies)[0]),
    }
    return [_save(figure, folder / name, mark) for name, figure in drawn.items()]


def _figure(ax: Any) -> Figure:
    figure = ax.get_figure()
    if not isinstance(figure, Figure):
        raise TypeError(f"expected axes of a figure, got {type(figure).__name__}")
    return figure


def _save(figure: Figure, path: Path, mark: str) -> Path:
    figure.text(0.005, -0.01, mark, fontsize=7, color="0.35", ha="left", va="top")
    drawn = BytesIO()
    metadata = {"Comment": mark}
    figure.savefig(drawn, format="png", dpi=150, bbox_inches="tight", metadata=metadata)
    write_whole({path: drawn.getvalue()})
    return path
