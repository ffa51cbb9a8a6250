"""Calls of every public function and record with wrong values, in a process of its own.

Not under pytest: the type checker that watches over the tests would answer before the library does.
Every n-th call is made, n being the argument. Prints one line of JSON: how many calls were made,
how many were refused, and those that ended in anything but an InputError of one line, or a result
where the value is a right one.
"""

import json
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import fields
from inspect import Parameter, signature
from itertools import islice
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
    "a long text": lambda: "x" * 300,
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


# fmt: off
RIGHT = {
    "layer": {"None"}, "layers": {"[None]"}, "class_names": {"None", "an iterator"},
    "progress": {"True", "a flag of NumPy"}, "evidence": {"None"}, "ablation": {"None"},
    "members": {"{}"}, "confidence": {"None"}, "flagged": {"True", "a flag of NumPy"},
    "delta": {"5", "10**30", "2.5"}, "path": {"'no'"}, "ax": {"None"}, "axes": {"None"},
    "axis": {"None"}, "tolerance": {"5", "10**30", "2.5"}, "loss": {"None"},
    "resolution": {"5", "10**30"}, "classes": {"None"}, "max_per_class": {"None", "5", "10**30"},
    "equalize": {"True", "a flag of NumPy"}, "group_by": {"None"}, "seed": {"5", "10**30"},
    "device": {"None"}, "batch_size": {"None", "5", "10**30"}, "memory_budget": {"5", "10**30"},
    "autocast": {"None"}, "channels_last": {"True", "a flag of NumPy"}, "floors": {"5"},
    "resplits": {"5"}, "bootstrap": {"None"}, "replicates": {"None", "5"},
    "controls": {"True", "a flag of NumPy"}, "output": {"None"}, "call": {"None"},
    "audit": {"5", "10**30"},
}
# fmt: on
"""Values of some arguments and fields that are not wrong, or may be taken."""


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


def calls() -> Iterator[tuple[str, bool, Callable[[], Any]]]:
    """Every argument and every field with every wrong value."""
    for name, function, good in public():
        for argument, parameter in signature(function).parameters.items():
            assert parameter.kind is not Parameter.VAR_KEYWORD
            for said, value in WRONG.items():
                given = {**good, argument: value()}
                right = said in RIGHT.get(argument, ())
                yield f"{name}({argument}={said})", right, lambda f=function, g=given: f(**g)
    for record, argument in RECORDS.items():
        for field in fields(record):
            for said, value in WRONG.items():
                given = {field.name: value()}
                yield (
                    f"{record.__name__}({field.name}={said})",
                    said in RIGHT.get(field.name, ()),
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


def outcome(call: Callable[[], Any], right: bool) -> str | None:
    """What is wrong with the way a call ended; None where nothing is."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call()
    except ur.InputError as error:
        good = str(error) and "\n" not in str(error)
        return None if good else f"says {str(error)!r}"
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} {error} ({place.filename}:{place.lineno})"
    return None if right else "was taken"


def main(step: int) -> None:
    os.chdir(tempfile.mkdtemp())
    before = {name: tensor.clone() for name, tensor in MODEL.state_dict().items()}
    failed, count, refused = [], 0, 0
    for name, right, call in islice(calls(), None, None, step):
        count, refused = count + 1, refused + (not right)
        said = outcome(call, right)
        same = all(torch.equal(t, before[n]) for n, t in MODEL.state_dict().items())
        if said is None and not (same and MODEL.training):
            said = "the model is not as it was"
        if said is not None:
            failed.append(f"{name}: {said}")
    print(json.dumps({"count": count, "refused": refused, "failed": failed}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
