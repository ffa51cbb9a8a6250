"""How a result came about: what is written beside the numbers so that they can be traced."""

from __future__ import annotations

import dataclasses
import hashlib
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from unitroles.options import Compute, Method, Sample
from unitroles.plans import Plan, SelfCheck
from unitroles.probe import device_of
from unitroles.trace import Site


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over the names and bytes of the model's state dict."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, torch.Tensor):
            digest.update(name.encode())
            flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
            digest.update(flat.numpy().tobytes())
    return digest.hexdigest()


def record(
    model: nn.Module,
    site: Site,
    plan: Plan,
    check: SelfCheck,
    options: tuple[Method, Sample, Compute],
) -> dict[str, Any]:
    """Options, plan and its self-check, versions, machine and the model's fingerprint."""
    method, sample, compute = options
    score = method.score
    if not isinstance(score, str):
        score = f"{score.__module__}.{getattr(score, '__qualname__', type(score).__qualname__)}"
    return {
        "options": {
            "layer": {"path": site.path, "axis": site.axis, "call": site.call},
            "method": dataclasses.asdict(dataclasses.replace(method, score=score)),
            "sample": dataclasses.asdict(sample),
            "compute": dataclasses.asdict(compute),
        },
        "plan": {"name": plan.name, "reason": plan.reason},
        "self_check": {**dataclasses.asdict(check), "conclusive": check.conclusive},
        "versions": {name: version(name) for name in ("unitroles", "torch", "numpy", "xarray")},
        "machine": {
            "device": str(device_of(model)),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
        },
        "model": {"class": type(model).__qualname__, "sha256": fingerprint(model)},
    }
