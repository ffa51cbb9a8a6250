"""Peak memory of analyses in a process of its own: `python peaks.py CASE BUDGET ...`, in MiB.

The samples are made from their number when they are read, so that they take no memory. Counted is
what the peak lies above the process that has done the same with a few samples.
"""

import gc
import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

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
    batch : samples in a forward.
    sample : bytes of a sample in the model: its input, and what all modules give.
    row : bytes of what is kept of a sample for one layer.
    """

    model: Callable[[], nn.Module]
    data: Drawn
    layers: tuple[str, ...]
    batch: int
    sample: int
    row: int
    evidence: ur.Evidence | None = None
    forecast: bool = False

    @property
    def kept(self) -> int:
        """Bytes of what is kept of all samples."""
        return 2 * self.data.count * self.row * len(self.layers)

    def most(self, budget: int) -> int:
        """The budget and the fixed part beside it: batch and tile a few times over, masked copies
        and losses of the tile, and what is small. All in bytes.
        """
        few = 4 * (self.batch * self.sample + 64 * self.row)
        return budget + few + min(48 * MIB, budget) + 32 * MIB + 8 * MIB

    def run(self, budget: int, samples: int) -> None:
        torch.manual_seed(0)
        splits = replace(self.data, count=samples), replace(self.data, count=samples)
        compute = ur.Compute(batch_size=self.batch, memory_budget=budget, audit=8)
        given = self.model(), *splits
        if self.forecast:
            ur.plan(*given, self.layers[0], compute=compute, evidence=self.evidence)
        else:
            more = {"progress": False, "compute": compute, "evidence": self.evidence}
            ur.analyze_layers(*given, self.layers, **more)


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
_IMAGES = Drawn(160, (1, 512, 512), 2)  # of 1 MiB, without a list of their labels
_FULL = ur.Evidence(floors=0, resplits=0, bootstrap="full", replicates=40, controls=False)
_FEW = ur.Evidence(floors=2, resplits=2, replicates=20)
CASES = {
    "large rows": Case(
        lambda: convolutions(1, 64, 8), Listed(400, (1, 64, 64), 2), ("1",), 8, 2**18, 2**17
    ),
    "eight layers": Case(
        lambda: convolutions(8, 32, 4), Listed(320, (1, 32, 32), 2), _EIGHT, 8, 2**18, 2**14
    ),
    "no list of labels, forecast": Case(Pooled, _IMAGES, ("act",), 4, 2**20, 32, forecast=True),
    "no list of labels": Case(Pooled, _IMAGES, ("act",), 4, 2**20, 32),
    "full bootstrap": Case(
        lambda: wide(16, 96, 2, 8), Listed(6000, (16,), 2), ("1",), 256, 1024, 384, _FULL
    ),
    "many classes": Case(
        lambda: wide(16, 64, 100), Listed(1000, (16,), 100), ("1",), 256, 1200, 256, _FEW
    ),
}


def status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def growth(case: Case, budget: int, idle: int) -> float:
    """MiB that the peak lies above the idle process."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak begins anew
    case.run(budget * MIB, case.data.count)
    return (status("VmHWM") - idle) / MIB


def main(name: str, *budgets: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    case = CASES[name]
    case.run(16 * MIB, 4 * case.data.labels)
    gc.collect()
    idle = status("VmRSS")
    print(json.dumps([growth(case, int(budget), idle) for budget in budgets]))


if __name__ == "__main__":
    main(*sys.argv[1:])
