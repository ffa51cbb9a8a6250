"""Provenance: what is written beside the numbers so that they can be traced."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from unitroles.analysis.request import Request
from unitroles.curves.collect import Kept
from unitroles.engine.choice import Choice
from unitroles.model.borrow import device_of, fingerprint


class Clock:
    """Seconds by stage, from one mark to the next."""

    def __init__(self) -> None:
        self._first = self._last = time.perf_counter()
        self._stages: dict[str, float] = {}

    def stop(self, stage: str) -> float:
        """Count the time since the last mark for this stage; returns it."""
        now = time.perf_counter()
        self._stages[stage] = self._stages.get(stage, 0.0) + now - self._last
        passed, self._last = now - self._last, now
        return passed

    @property
    def seconds(self) -> float:
        """From the beginning to the last mark."""
        return self._last - self._first

    def record(self) -> dict[str, Any]:
        """All seconds, and those of each stage."""
        stages = {stage: round(seconds, 3) for stage, seconds in self._stages.items()}
        return {"seconds": round(self.seconds, 3), "stages": stages}


def name_of(function: Any) -> str:
    """A name as it is; of a function or an object that is called, where it comes from."""
    if isinstance(function, str):
        return function
    return f"{function.__module__}.{getattr(function, '__qualname__', type(function).__qualname__)}"


def record(model: nn.Module, request: Request) -> dict[str, Any]:
    """Options, versions, machine and the model's fingerprint.

    Parameters
    ----------
    model : the one that ran, out of its wrappers.
    """
    method, sample, evidence = request.method, request.sample, request.evidence
    column = sample.group_by is None or isinstance(sample.group_by, str)  # None = the label
    return {
        "options": {
            "method": {
                **dataclasses.asdict(dataclasses.replace(method, score="", loss=None, output=None)),
                "score": name_of(method.score),
                "loss": None if method.loss is None else name_of(method.loss),
                "output": name_of(method.output) if callable(method.output) else method.output,
            },
            "sample": {
                **dataclasses.asdict(dataclasses.replace(sample, group_by=None)),
                "group_by": sample.group_by if column else "given arrays",
            },
            "compute": dataclasses.asdict(request.compute),
            "evidence": None if evidence is None else dataclasses.asdict(evidence),
        },
        "versions": {name: version(name) for name in ("unitroles", "torch", "numpy", "xarray")},
        "machine": {
            "device": str(device_of(model)),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
        },
        "model": {"class": type(model).__qualname__, "sha256": fingerprint(model)},
    }


def layer_record(choice: Choice, kept: Sequence[Kept]) -> dict[str, Any]:
    """The layer, its plan, the plan's self-check and the audit of the samples.

    Parameters
    ----------
    kept : of every split; batches of another form than the plan was made for ran in full.
    """
    site, check, audit = choice.plan.site, choice.check, choice.audit
    return {
        "layer": {"path": site.path, "axis": site.axis, "call": site.call},
        "plan": {
            "name": choice.plan.name,
            "reason": choice.plan.reason,
            "in_full": {one.samples.name: one.in_full for one in kept},
        },
        "self_check": {**dataclasses.asdict(check), "conclusive": check.conclusive},
        "audit": None if audit is None else dataclasses.asdict(audit),
    }
