"""How a result came about: what is written beside the numbers so that they can be traced."""

from __future__ import annotations

import dataclasses
import time
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from unitroles.choice import Choice
from unitroles.options import Compute, Method, Sample
from unitroles.probe import device_of, fingerprint
from unitroles.trace import Site


class Clock:
    """Seconds by stage, from one mark to the next."""

    def __init__(self, started: float) -> None:
        self._first = self._last = started
        self._stages: dict[str, float] = {}

    def stop(self, stage: str) -> None:
        """Count the time since the last mark for this stage."""
        now = time.perf_counter()
        self._stages[stage] = self._stages.get(stage, 0.0) + now - self._last
        self._last = now

    def record(self) -> dict[str, Any]:
        """All seconds, and those of each stage."""
        stages = {stage: round(seconds, 3) for stage, seconds in self._stages.items()}
        return {"seconds": round(self._last - self._first, 3), "stages": stages}


def record(model: nn.Module, options: tuple[Method, Sample, Compute]) -> dict[str, Any]:
    """Options, versions, machine and the model's fingerprint."""
    method, sample, compute = options
    score = method.score
    if not isinstance(score, str):
        score = f"{score.__module__}.{getattr(score, '__qualname__', type(score).__qualname__)}"
    return {
        "options": {
            "method": dataclasses.asdict(dataclasses.replace(method, score=score)),
            "sample": dataclasses.asdict(sample),
            "compute": dataclasses.asdict(compute),
        },
        "versions": {name: version(name) for name in ("unitroles", "torch", "numpy", "xarray")},
        "machine": {
            "device": str(device_of(model)),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
        },
        "model": {"class": type(model).__qualname__, "sha256": fingerprint(model)},
    }


def layer_record(site: Site, choice: Choice) -> dict[str, Any]:
    """The layer, its plan and the plan's self-check."""
    check = choice.check
    return {
        "layer": {"path": site.path, "axis": site.axis, "call": site.call},
        "plan": {"name": choice.plan.name, "reason": choice.plan.reason},
        "self_check": {**dataclasses.asdict(check), "conclusive": check.conclusive},
    }
