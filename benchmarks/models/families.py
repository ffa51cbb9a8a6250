"""Every family of torchvision and some of timm: which plan, and equal to clone and zero?

pip install -e '.[vision]'
python -m benchmarks.models.families --out docs/models.md

With `--rows FILE` a run can be stopped and goes on where it was, or several processes share it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import unitroles as ur
from benchmarks.models.members import MEMBERS, Member
from benchmarks.models.untouched import POINTS, Split, compare
from benchmarks.table import machine, number, section, table

_PACKAGES = ("unitroles", "torch", "torchvision", "timm", "numpy")
_QUICK = ("squeezenet1_1", "regnetx_002")
_CLASSES, _EACH, _BATCH = 2, 3, 4  # six samples a split: the last batch is padded
_ALL, _FEW = 32, 8  # all n are evaluated up to so many units of the early layer, else so many n
_TOLERANCE = 1e-4  # of the largest logit, as in the library's own check
_MOVED = 1000 * _TOLERANCE  # what the masks must do at least, as there

PLACES = ("early", "recommended")
_CUT = ("additive", "suffix")


@dataclass(frozen=True)
class Row:
    """One layer of one model.

    Parameters
    ----------
    place : "early" or "recommended".
    moved : how far the masks moved a logit, in largest logits.
    loss : largest difference of a mean loss from clone and zero, nats per largest logit.
    score : largest difference of a score, in largest scores of the class.
    error : what was raised instead.
    """

    member: Member
    place: str
    layer: str
    units: int = 0
    axis: int = 0
    plan: str = ""
    reason: str = ""
    moved: float = 0.0
    loss: float = float("inf")
    score: float = float("inf")
    error: str = ""

    @property
    def equal(self) -> bool:
        """Losses, scores and axis are those of the untouched model, and could have differed."""
        right = self.axis == self.member.axes[self.place != "early"]
        close = max(self.loss, self.score) <= _TOLERANCE
        return right and close and self.moved >= _MOVED

    @property
    def verdict(self) -> str:
        if self.error:
            return self.error
        return "yes" if self.equal else ("NO" if self.moved >= _MOVED else "masks move too little")


def early(member: Member, model: nn.Module, images: Tensor) -> tuple[str, tuple[int, ...]]:
    """The first activation function of the samples that a forward calls, and its output's shape."""
    found: list[tuple[str, tuple[int, ...]]] = []

    def note(path: str, module: nn.Module, args: object, output: Tensor) -> None:
        if len(output) == len(images) and output.ndim > 2:
            found.append((path, tuple(output.shape)))

    handles = [
        module.register_forward_hook(partial(note, path))
        for path, module in model.named_modules()
        if (path == member.first if member.first else _is_activation(type(module)))
    ]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return found[0]


def _is_activation(kind: type[nn.Module]) -> bool:
    homes = (nn.ReLU.__module__, "timm.layers.activations")
    gates = ("MultiheadAttention", "Softmax", "GLU", "Sigmoid")
    return kind.__module__.startswith(homes) and kind.__name__ not in gates


def measure(member: Member) -> list[Row]:
    """Both layers of a model."""
    model = member.model()
    untouched = deepcopy(model)
    labels = torch.arange(_CLASSES).repeat_interleave(_EACH)
    splits = tuple((member.images(len(labels), seed), labels) for seed in (2, 3))
    first, shape = early(member, untouched, splits[0][0][:2])
    units = shape[member.axes[0]]
    step = 1 if units <= _ALL else -(-units // _FEW)
    found = _analyses(model, splits, [first, None], step)
    return [
        _row(Row(member, place, first if place == "early" else "?"), one, untouched, splits)
        for place, one in zip(PLACES, found, strict=True)
    ]


def _analyses(
    model: nn.Module, splits: tuple[Split, ...], layers: list[str | None], step: int
) -> list[ur.Taxonomy | str]:
    """Of all layers at once; one by one where that fails, with what was raised."""
    method, compute = ur.Method(resolution=step), ur.Compute(batch_size=_BATCH)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ur.PlanWarning)  # the plan is in the table
            found = ur.analyze_layers(
                model, *splits, layers, progress=False, compute=compute, method=method
            )
        return list(found.values())
    except Exception as error:  # whatever it is, it is a line of the table
        if len(layers) > 1:
            return [one for layer in layers for one in _analyses(model, splits, [layer], step)]
        return [f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"]


def _row(row: Row, found: ur.Taxonomy | str, model: nn.Module, splits: tuple[Split, ...]) -> Row:
    if isinstance(found, str):
        return replace(row, error=found)
    known = found.provenance
    moved, loss, score = compare(found, model, splits)
    return replace(
        row,
        layer=known["layer"]["path"],
        units=found.data.sizes["unit"],
        axis=known["layer"]["axis"],
        plan=known["plan"]["name"],
        reason=known["plan"]["reason"],
        moved=moved,
        loss=loss,
        score=score,
    )


def document(rows: Sequence[Row], threads: int, seconds: float) -> str:
    """The whole text."""
    head = [
        "# Models",
        "Printed by `python -m benchmarks.models.families`: the smallest member of every "
        "classification family of torchvision and of some of timm, each with an early layer (the "
        "first activation function) and the recommended one. Random weights (seed 0; images seeds "
        "1 to 3), drawn so that every branch of every block counts: fresh layer scales and "
        "classifiers are so small that no mask would move a logit. Batch-norm statistics from 32 "
        "images; float32.",
        machine(threads, _PACKAGES),
        f"The models took {seconds / 60:.1f} minutes in all.",
    ]
    parts = [_summary(rows)]
    for library in dict.fromkeys(row.member.library for row in rows):
        mine = [row for row in rows if row.member.library == library]
        parts.append(section(library, table([_cells(row) for row in mine])))
    return "\n\n".join([*head, *parts, section("What the columns say", _LEGEND)]) + "\n"


_LEGEND = (
    "*Axis*: of the units in the layer's output, found without being told, and compared with what "
    "was written down by hand. *Masks move logits*: the largest change of a logit under the masks "
    "that are compared, divided by the largest logit of the intact model; below "
    f"{number(_MOVED)} equality would mean nothing. *Largest difference*: of a mean loss from "
    f"clone and zero, in nats, divided by the largest logit: {_CLASSES} classes with {_EACH} "
    f"images in both splits, up to {POINTS} numbers n of retrieved units on every curve. Clone and "
    "zero: a copy of the model that the library never touched, whose layer's output a hook clones "
    "in its last call and sets to zero for all but n units, one forward for every n. *Scores*: "
    "largest difference of a unit's score from the L1 norm of that output, divided by the largest "
    f"score of the class. *Equal*: both differences are at most {_TOLERANCE:.0e}, as in the "
    "library's own check before every run, and the axis is right."
)


def _cells(row: Row) -> dict[str, object]:
    failed = {"error": row.error} if row.error else {}
    return {
        "family": row.member.family,
        "model": f"{row.member.name} @{row.member.side}",
        "layer": f"`{row.layer}`, {row.place}",
        "units": row.units or "–",
        "axis": row.axis or "–",
        "plan": row.plan or "–",
        "masks move logits": "–" if failed else row.moved,
        "largest difference": "–" if failed else f"{row.loss:.1e}",
        "scores": "–" if failed else f"{row.score:.1e}",
        "equal": row.finding,
    }


def _summary(rows: Sequence[Row]) -> str:
    """Shares and their goals, and why rows are on plan full."""
    cut = [row for row in rows if row.plan in _CUT]
    equal = [row for row in cut if row.equal]
    wrong = [row for row in rows if row.plan and row.moved >= _MOVED and not row.equal]
    named = {(row.member.library, row.member.name) for row in rows}
    slow = {(row.member.library, row.member.name) for row in rows if row.plan not in _CUT}
    lines = [
        f"- Not on plan full: {len(cut)} of {len(rows)} rows; equal: {len(equal)} of {len(cut)}, "
        f"{_percent(len(equal), len(cut))} (goal: at least 95 %).",
        f"- Silently wrong, that is a difference no check has told: {len(wrong)} (goal: 0).",
        f"- Models with a layer on plan full or refused: {len(slow)} of {len(named)}, "
        f"{_percent(len(slow), len(named))} (goal: at most 25 %).",
        f"- Largest difference {max(row.loss for row in rows):.1e}, of scores "
        f"{max(row.score for row in rows):.1e}; the masks moved the logits by at least "
        f"{number(min(row.moved for row in rows))} of the largest.",
        *(f"- {_why(row)}" for row in rows if row.plan not in _CUT),
    ]
    return section("Summary", "\n".join(lines))


def _why(row: Row) -> str:
    where = f"{row.member.name} `{row.layer}`"
    return f"{where}: refused: {row.error}" if row.error else f"{where}: full: {row.reason}"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / max(whole, 1):.0f} %"


def stored(path: Path | None) -> dict[str, dict[str, Any]]:
    """What was measured before, by model: so a run can be stopped, or divided among processes."""
    if path is None or not path.is_file():
        return {}
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {line["name"]: line for line in lines}


def measured(member: Member, path: Path | None) -> dict[str, Any]:
    """The rows of a model and the seconds they took, added to the file if there is one."""
    start = time.perf_counter()
    rows = [{**asdict(row), "member": member.name} for row in measure(member)]
    found = {"name": member.name, "seconds": time.perf_counter() - start, "rows": rows}
    if path is not None:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")
    return found


def options() -> argparse.Namespace:
    """The command line."""
    names = [member.name for member in MEMBERS]
    parser = argparse.ArgumentParser(description="Measure everything in docs/models.md")
    parser.add_argument("--quick", action="store_true", help="two models: does everything run?")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="MODEL")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rows", type=Path, help="a file of rows measured before; more are added")
    parser.add_argument("--out", type=Path, help="write the document here too")
    return parser.parse_args()


def main() -> None:
    """Measure, print, and write the file if asked."""
    asked = options()
    torch.set_num_threads(asked.threads)
    wanted = _QUICK if asked.quick else asked.only
    known, rows, seconds = stored(asked.rows), [], 0.0
    for member in MEMBERS:
        if member.name in wanted:
            found = known.get(member.name) or measured(member, asked.rows)
            rows += [Row(**{**row, "member": member}) for row in found["rows"]]
            seconds += found["seconds"]
            said = ", ".join(f"{row.plan or 'refused'}: {row.finding}" for row in rows[-2:])
            print(f"{member.name} [{found['seconds']:.0f} s]: {said}", file=sys.stderr, flush=True)
    text = document(rows, asked.threads, seconds)
    print(text, end="")
    if asked.out is not None:
        asked.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
