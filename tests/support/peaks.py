"""Peak memory of an analysis in a process of its own: `python peaks.py CASE BUDGET ...`.

The samples are made from their number when they are read, so that they take no memory; what a case
grows by is counted from a process that has done the same with a few samples.
"""

import gc
import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import unitroles as ur

MIB = 2**20


@dataclass(frozen=True)
class Drawn(Dataset):
    """Samples drawn from their number, with or without a list of their labels."""

    count: int
    shape: tuple[int, ...]
    labels: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        draw = torch.Generator().manual_seed(row)
        label = row % self.labels
        return torch.randn(self.shape, generator=draw) + 0.1 * label, label


class Listed(Drawn):
    @property
    def targets(self) -> list[int]:
        return [row % self.labels for row in range(self.count)]


@dataclass(frozen=True)
class Case:
    """One analysis, or its forecast.

    Parameters
    ----------
    kept : bytes of what is kept of the samples, all layers and both splits.
    fixed : MiB beside the budget: what one batch gives in all layers, and one tile under masks.
    """

    model: Callable[[], nn.Module]
    data: Drawn
    layers: tuple[str, ...]
    kept: int
    fixed: int
    batch: int = 16
    evidence: ur.Evidence | None = None
    forecast: bool = False

    def run(self, budget: int, samples: int) -> Any:
        torch.manual_seed(0)
        splits = replace(self.data, count=samples), replace(self.data, count=samples)
        compute = ur.Compute(batch_size=self.batch, memory_budget=budget, audit=8)
        given = self.model(), *splits
        if self.forecast:
            return ur.plan(*given, self.layers[0], compute=compute, evidence=self.evidence)
        return ur.analyze_layers(
            *given, self.layers, progress=False, compute=compute, evidence=self.evidence
        )


def convolutions(depth: int, side: int, width: int, labels: int = 2) -> nn.Module:
    """Every layer is needed whole: a convolution comes next."""
    parts: list[nn.Module] = []
    channels = 1
    for _ in range(depth):
        parts += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
        channels = width
    parts += [nn.Conv2d(width, 2, 3, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*parts, nn.Linear(2, labels))


def wide(inputs: int, units: int, labels: int, after: int = 0) -> nn.Module:
    """Linear layers; with something after the units that is no running sum of logits."""
    parts: list[nn.Module] = [nn.Linear(inputs, units), nn.ReLU()]
    if after:
        parts += [nn.Linear(units, after), nn.ReLU()]
    return nn.Sequential(*parts, nn.Linear(after or units, labels))


class Pooled(nn.Module):
    """Large images, few numbers after the first step."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.hidden, self.act = nn.AvgPool2d(64), nn.Linear(64, 8), nn.ReLU()
        self.out = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.act(self.hidden(self.pool(x).flatten(1))))


_EIGHT = tuple(str(2 * place + 1) for place in range(8))
_ALL = ur.Evidence(floors=20, resplits=20, bootstrap="full", replicates=25)
CASES = {
    "large rows": Case(
        lambda: convolutions(1, 64, 8), Listed(600, (1, 64, 64), 2), ("1",), 150 * MIB, 60, 8
    ),
    "eight layers": Case(
        lambda: convolutions(8, 32, 4), Listed(800, (1, 32, 32), 2), _EIGHT, 200 * MIB, 60, 8
    ),
    "forecast": Case(Pooled, Drawn(260, (1, 512, 512), 2), ("act",), 0, 40, 4, forecast=True),
    "no list of labels": Case(Pooled, Drawn(260, (1, 512, 512), 2), ("act",), 0, 40, 4),
    "full bootstrap": Case(
        lambda: wide(16, 96, 4, 8), Listed(6000, (16,), 4), ("1",), 0, 120, 256, _ALL
    ),
    "many classes": Case(
        lambda: wide(16, 64, 300),
        Listed(6000, (16,), 300),
        ("1",),
        0,
        120,
        256,
        ur.Evidence(floors=5, resplits=5),
    ),
}


def status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def growth(case: Case, budget: int, idle: int) -> dict[str, float]:
    """MiB that the peak lies above the idle process."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak begins anew
    case.run(budget, case.data.count)
    return {"budget": budget / MIB, "growth": (status("VmHWM") - idle) / MIB}


def main(name: str, *budgets: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    case = CASES[name]
    case.run(16 * MIB, 4 * case.data.labels)
    gc.collect()
    idle = status("VmRSS")
    print(json.dumps([growth(case, int(float(budget) * MIB), idle) for budget in budgets]))


if __name__ == "__main__":
    main(*sys.argv[1:])
