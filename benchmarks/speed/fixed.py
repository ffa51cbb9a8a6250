"""Where the fixed part of a case goes: an analysis of few samples under Python's profiler."""

from __future__ import annotations

import cProfile
from copy import deepcopy
from types import CodeType

import torch
from torch import nn

from benchmarks.speed.cases import Case, Data
from benchmarks.speed.exact import analyze

# Functions of the library that no other of these calls, with what they do.
_PARTS = {
    ("borrow.py", "untouched"): "copy and comparison of the weights",
    ("trace.py", "trace"): "forwards of 2 samples, together and alone",
    ("check.py", "define"): "forwards of 4 masks",
    ("export.py", "export"): "export",
    ("choice.py", "suffix_plan"): "body of 2 samples",
    ("additive.py", "recognise"): "recognition",
    ("check.py", "self_check"): "masks by the plan",
    ("borrow.py", "fingerprint"): "fingerprint",
}


def fixed_parts(case: Case, model: nn.Module, data: Data) -> dict[str, float]:
    """Seconds of each part, from an analysis of a fresh copy of the model.

    The samples are two of one class in each split, so that next to nothing grows with them.
    """
    label = torch.zeros(2, dtype=torch.int64)
    few = Data(*((images[:2], label) for images, _ in data))
    fresh, profile = deepcopy(model), cProfile.Profile()
    found = profile.runcall(analyze, case, fresh, few)
    seconds = dict.fromkeys(_PARTS.values(), 0.0)
    for entry in profile.getstats():
        if isinstance(entry.code, CodeType):
            for (file, name), part in _PARTS.items():
                if entry.code.co_name == name and entry.code.co_filename.endswith(
                    f"unitroles/{file}"
                ):
                    seconds[part] += entry.totaltime
    whole = found.provenance["stages"]["plan"]
    return {"fixed part": whole, **seconds, "rest": whole - sum(seconds.values())}
