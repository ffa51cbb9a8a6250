"""`resolution="adaptive"` beside the exact curve: the same turning points, fewer evaluations?"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import unitroles as ur
from benchmarks.speed.cases import Data
from benchmarks.speed.measure import Stages, timed
from benchmarks.table import Setting, ratios, section, spread, table

_LAYERS = {"1": "first convolution", "3": "second convolution"}
_TRAIN, _QUICK = 900, 100


class Compared(NamedTuple):
    """Turning points and evaluations of one network, adaptive beside exact."""

    same: np.ndarray
    apart: np.ndarray
    worse: np.ndarray
    visited: float
    seconds: float
    exact_seconds: float


def _digits(count: int) -> Data:
    """The first samples for training, as many of the others at most for testing."""
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    y = torch.tensor(labels, dtype=torch.int64)
    return Data((x[:count], y[:count]), (x[count : 2 * count], y[count : 2 * count]))


def _trained(seed: int, data: Data, epochs: int) -> nn.Module:
    """A small network with a deep head behind both layers."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        *(nn.Conv2d(1, 64, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10)),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    images, labels = data.train
    for _ in range(epochs):
        for part in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(images[part]), labels[part]).backward()
            optimizer.step()
    return model.eval()


def _compare(model: nn.Module, data: Data, layer: str) -> Compared:
    def run(resolution: str) -> tuple[ur.Taxonomy, Stages]:
        method = ur.Method(resolution=resolution)
        return timed(lambda: ur.analyze(model, *data, layer=layer, method=method, progress=False))

    (exact, whole), (adaptive, part) = run("exact"), run("adaptive")
    loss, samples = exact.data["loss"].values, exact.data["samples"].values
    n0, found = (t.data["turning_point"].values.astype(int) for t in (exact, adaptive))
    losses = [np.take_along_axis(loss, n[..., None], -1)[..., 0] for n in (n0, found)]
    visited = np.isfinite(adaptive.data["loss"].values).sum(-1)
    return Compared(
        same=n0 == found,
        apart=abs(n0 - found),
        worse=losses[1] - losses[0],
        visited=float((visited * samples).sum() / (samples.sum() * loss.shape[-1])),
        seconds=part.growing,
        exact_seconds=whole.growing,
    )


def report(setting: Setting, say: Callable[[str], None]) -> str:
    """One row per layer, several networks each."""
    data, count = _digits(setting.few(_TRAIN, _QUICK)), setting.few(5, 1)
    say("adaptive resolution: training")
    models = [_trained(seed, data, setting.few(15, 1)) for seed in range(count)]
    rows = []
    for layer, name in _LAYERS.items():
        say(f"adaptive resolution: {name}")
        rows.append(_row(name, [_compare(model, data, layer) for model in models]))
    return section(
        "Adaptive resolution",
        table(rows),
        f"{count} networks trained on scikit-learn's digits, 64 units a layer, 20 turning points "
        "(10 classes, both splits) each. *Evaluated*: head evaluations of the adaptive run, of "
        "those of the exact one. *Costs at most*: loss at the adaptive n0 minus loss at the exact "
        "n0, on the exact curve.",
    )


def _row(layer: str, found: list[Compared]) -> dict[str, object]:
    same, apart, worse = (
        np.concatenate([getattr(c, f) for c in found]) for f in Compared._fields[:3]
    )
    return {
        "layer": layer,
        "turning points": same.size,
        "n0 equal": f"{same.mean():.1%}",
        "farthest apart, units": int(apart.max()),
        "costs at most, nats": float(worse.max()),
        "evaluated": spread(c.visited for c in found),
        "growing part ÷ exact": ratios(
            (c.seconds for c in found), (c.exact_seconds for c in found)
        ),
    }
