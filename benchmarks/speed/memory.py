"""Peak memory of an analysis whose cache goes to disk, in processes of their own.

The samples are made from their number when they are read, so that they take no memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import unitroles as ur
from benchmarks.table import Setting, met, section, table

_GOAL = 1.05
_SIDE, _UNITS, _LABELS = 16, 32, 10
_SAMPLE_BYTES = _UNITS * _SIDE * _SIDE * 4  # what the head needs: a convolution comes next
_ON_DISK, _IN_MEMORY = "1MiB", "2GiB"


class Drawn(Dataset):
    """Images drawn from the number of the sample."""

    def __init__(self, count: int, seed: int) -> None:
        self.seed = seed
        self.targets = [row % _LABELS for row in range(count)]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        draw = torch.Generator().manual_seed(self.seed + row)
        return torch.randn(3, _SIDE, _SIDE, generator=draw), self.targets[row]


def network() -> nn.Module:
    """The layer's whole output is needed after it: the next layer mixes units and positions."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, _UNITS, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(_UNITS, 8, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, _LABELS),
    )


def peak() -> int:
    """Bytes; Linux lets a new process inherit the ru_maxrss of the one that started it."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    import resource  # not on Windows

    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def analyze(samples: int, budget: str, threads: int) -> dict[str, Any]:
    """Peak memory before the data grow, a small run done, and after the whole run; MiB."""
    torch.set_num_threads(threads)
    compute = ur.Compute(batch_size=32, memory_budget=budget)
    for count in (4 * _LABELS, samples):
        splits = Drawn(count // 2, 0), Drawn(count // 2, 2**31)
        before = peak()
        ur.analyze(network(), *splits, layer="1", progress=False, compute=compute)
    after = peak()
    found = ur.plan(network(), *splits, layer="1", compute=compute)
    assert found.bytes_cached == samples * _SAMPLE_BYTES
    return {"cache": found.cache, "before": before / 2**20, "peak": after / 2**20}


def report(setting: Setting, say: Callable[[str], None]) -> str:
    """Peaks for some samples and four times as many, with the cache on disk and in memory."""
    base = setting.few(4096, 80)
    rows = [_row(place, budget, base, setting, say) for place, budget in _places()]
    return section(
        "Peak memory",
        table(rows),
        f"{_UNITS} units of {_SIDE} × {_SIDE} positions before a convolution: {_SAMPLE_BYTES} "
        "bytes cached per sample. Peak resident memory of a process of its own; *idle*: its peak "
        f"after an analysis of {4 * _LABELS} samples. The row in memory shows what the measurement "
        "sees when the cache is kept there.",
    )


def _places() -> tuple[tuple[str, str], ...]:
    return (("on disk", _ON_DISK), ("in memory", _IN_MEMORY))


def _row(
    place: str, budget: str, base: int, setting: Setting, say: Callable[[str], None]
) -> dict[str, object]:
    say(f"peak memory, cache {place}")
    one, four = (_child(count, budget, setting.threads) for count in (base, 4 * base))
    assert {one["cache"], four["cache"]} == {place.split()[-1]}
    ratio = four["peak"] / one["peak"]
    return {
        "cache": f"{place} (budget {budget})",
        "idle, MiB": round(one["before"]),
        f"{base} samples, MiB": round(one["peak"]),
        f"{4 * base} samples, MiB": round(four["peak"]),
        "cache of these, MiB": round(4 * base * _SAMPLE_BYTES / 2**20),
        "ratio": f"{ratio:.3f}",
        "goal": f"{_GOAL}: {met(ratio, _GOAL)}" if place == "on disk" else "–",
    }


def _child(samples: int, budget: str, threads: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.speed.memory", str(samples), budget, str(threads)]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(run.stdout)


if __name__ == "__main__":
    print(json.dumps(analyze(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))))
