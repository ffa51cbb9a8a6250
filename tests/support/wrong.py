"""Calls of every public function and record with wrong values, in a process of its own.

Not under pytest: the type checker that watches over the tests would answer before the library does.
Prints one line of JSON: how many calls were made and how many refused, which of them were taken,
and the calls that ended in anything but a result or an InputError.
"""

import json
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import fields
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import unitroles as ur
from unitroles import plots
from unitroles.results.relation import criteria

torch.manual_seed(0)
MODEL = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
X = torch.randn(80, 4)
Y = MODEL(X).argmax(dim=1)
TRAIN, TEST = (X[:40], Y[:40]), (X[40:], Y[40:])


class Silent:
    """An object that cannot even be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("no words")


WRONG: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "a flag of NumPy": lambda: np.bool_(True),
    "5": lambda: 5,
    "-3": lambda: -3,
    "10**30": lambda: 10**30,
    "2.5": lambda: 2.5,
    "nan": lambda: float("nan"),
    "1j": lambda: 1j,
    "'no'": lambda: "no",
    "''": lambda: "",
    "'a\\0b'": lambda: "a\0b",
    "bytes": lambda: b"1",
    "[]": lambda: [],
    "[None]": lambda: [None],
    "[1, 'a', 2.5]": lambda: [1, "a", 2.5],
    "[[1], [2, 3]]": lambda: [[1], [2, 3]],
    "a set": lambda: {"a", "b"},
    "{}": lambda: {},
    "{'a': 1}": lambda: {"a": 1},
    "{1: 2}": lambda: {1: 2},
    "an iterator": lambda: iter([1, 2]),
    "an array": lambda: np.array([0.5, 1.5]),
    "an array of no axis": lambda: np.array(1),
    "a table": lambda: np.zeros((2, 3)),
    "a tensor": lambda: torch.zeros(2),
    "a function": lambda: lambda *given: None,
    "a type": lambda: int,
    "an object": object,
    "what cannot be shown": Silent,
}


def public() -> Iterator[tuple[str, Callable[..., Any], dict[str, Any]]]:
    """Every public function, with arguments that it takes."""
    found = ur.analyze(MODEL, TRAIN, TEST, "1", progress=False)
    three = dict.fromkeys("abc", found)
    both = {"model": MODEL, "train": TRAIN, "test": TEST}
    one = {"model": MODEL, "data": TRAIN, "layer": "1", "progress": False}
    file = found.save(Path(tempfile.mkdtemp()) / "a.nc")
    yield "analyze", ur.analyze, {**both, "layer": "1", "progress": False}
    yield "analyze_layers", ur.analyze_layers, {**both, "layers": ["1"], "progress": False}
    yield "plan", ur.plan, {**both, "layer": "1"}
    yield "layers", ur.layers, {"model": MODEL, "example": X[:2]}
    yield "single_unit_ablation", ur.single_unit_ablation, one
    yield "cumulative_ablation", ur.cumulative_ablation, one
    yield "load", ur.load, {"path": file}
    yield "relation", ur.relation, {"members": three, "gap": [0.1, 0.2, 0.4]}
    yield "criteria", criteria, {"members": three}
    yield "Taxonomy", ur.Taxonomy, {"data": found.data}
    yield "TaxonomySet", ur.TaxonomySet, {"members": three}
    yield "Taxonomy.find_label", found.find_label, {"label": 1}
    yield "Taxonomy.units", found.units, {"role": "core", "label": 1}
    yield "Taxonomy.summary", found.summary, {}
    yield "Taxonomy.minima", found.minima, {}
    yield "Taxonomy.intervals", found.intervals, {}
    yield "Taxonomy.save", found.save, {"path": file}
    yield "plots.rof_curve", plots.rof_curve, {"taxonomy": found, "label": 1}
    yield "plots.role_curves", plots.role_curves, {"taxonomy": found, "label": 1}
    yield "plots.compare", plots.compare, {"taxonomies": three, "label": 1}
    yield "plots.proportions_3d", plots.proportions_3d, {"taxonomies": three}
    yield "plots.shares", plots.shares, {"taxonomies": three}


RECORDS = {
    ur.Layer: "layer", ur.Method: "method", ur.Sample: "sample", ur.Compute: "compute",
    ur.Evidence: "evidence",
}  # fmt: skip
"""The option records, and the arguments of `analyze` that they are."""


def calls() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Every argument and every field with every wrong value."""
    for name, function, good in public():
        for argument, parameter in signature(function).parameters.items():
            assert parameter.kind is not Parameter.VAR_KEYWORD
            for said, value in WRONG.items():
                given = {**good, argument: value()}
                yield f"{name}({argument}={said})", lambda f=function, g=given: f(**g)
    for record, argument in RECORDS.items():
        for field in fields(record):
            for said, value in WRONG.items():
                given = {field.name: value()}
                yield (
                    f"{record.__name__}({field.name}={said})",
                    lambda r=record, a=argument, g=given: used(r, a, g),
                )


def used(record: type, argument: str, given: dict[str, Any]) -> Any:
    """A record that can be made must serve an analysis, or be refused by it."""
    made = record(**({"path": "1"} | given if record is ur.Layer else given))
    if made == record(*["1"] * (record is ur.Layer)):
        return made
    small = {"evidence": ur.Evidence(floors=2, resplits=0)} if record is ur.Evidence else {}
    options = {"layer": "1", **small, argument: made}
    return ur.analyze(MODEL, TRAIN, TEST, progress=False, **options)


def main() -> None:
    taken, failed, count = [], [], 0
    for name, call in calls():
        count += 1
        state = {n: t.clone() for n, t in MODEL.state_dict().items()}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                call()
            taken.append(name)
        except ur.InputError as error:
            if not str(error) or "\n" in str(error):
                failed.append(f"{name}: the message is {str(error)!r}")
        except BaseException as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            failed.append(
                f"{name}: {type(error).__name__} {error} ({place.filename}:{place.lineno})"
            )
        whole = all(torch.equal(t, state[n]) for n, t in MODEL.state_dict().items())
        if not (whole and MODEL.training):
            failed.append(f"{name}: the model changed")
    print(json.dumps({"count": count, "taken": taken, "failed": failed}))


if __name__ == "__main__":
    sys.exit(main())
