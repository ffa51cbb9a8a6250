"""How the cost grows with the samples and with the units, on synthetic features."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

import unitroles as ur
from benchmarks.speed.cases import Data
from benchmarks.speed.measure import timed
from benchmarks.table import Setting, number, section, spread, table

_LABELS, _WIDTH = 10, 64


def _growing(units: int, samples: int) -> float:
    """Seconds of the growing part: a ReLU over features and a small MLP behind it."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.ReLU(), nn.Linear(units, _WIDTH), nn.ReLU(), nn.Linear(_WIDTH, _LABELS)
    )
    labels = torch.arange(samples // 2) % _LABELS
    data = Data(*((torch.randn(len(labels), units), labels) for _ in range(2)))
    layer = ur.Layer("0", axis=1)
    return timed(lambda: ur.analyze(model, *data, layer=layer, progress=False))[1].growing


def report(setting: Setting, say: Callable[[str], None]) -> str:
    """Both tables."""
    units = setting.few(128, 16)
    counts = [10**power for power in range(2, setting.few(6, 4))]
    widths = [64 * 2**step for step in range(setting.few(5, 2))]
    samples = setting.few(4000, 100)
    say("growth with the samples")
    by_sample = _rows("samples", counts, lambda count: _growing(units, count), setting)
    say("growth with the units")
    by_unit = _rows("units", widths, lambda width: _growing(width, samples), setting)
    return section(
        "Growth with samples and units",
        f"A ReLU over features, then a head {_WIDTH}–{_LABELS} with a ReLU between; {_LABELS} "
        "classes, both splits together; growing part only.",
        f"{units} units; flat would be the same time per sample in every row:",
        table(by_sample),
        f"{samples} samples; linear would be the same time per unit in every row:",
        table(by_unit),
    )


def _rows(
    name: str, sizes: Sequence[int], run: Callable[[int], float], setting: Setting
) -> list[dict[str, object]]:
    """Sizes in turns, so that noise hits all of them; each compared with the largest."""
    run(sizes[0])
    took = {size: [] for size in sizes}
    for _ in range(setting.repeats):
        for size in sizes:
            took[size].append(run(size) / size)
    last = spread(took[sizes[-1]]).median
    return [
        {
            name: f"{size:,}",
            f"µs per {name.removesuffix('s')}": spread(1e6 * value for value in values),
            "÷ last row": number(spread(values).median / last),
        }
        for size, values in took.items()
    ]
