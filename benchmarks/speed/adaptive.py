"""`resolution="adaptive"` beside exact curves: what it costs, what it misses, on which networks.

Its rule and its constants (`unitroles.stats.grid`) were tuned on the ResNet-20 alone, on other
images too; all other networks here judge it. Images and weights that are not part of the project
are read from the folder that `--shared` names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from sklearn.datasets import load_digits
from torch import nn

import unitroles as ur
from benchmarks.evidence.cifar_nets import IMAGES, RESNET, cifar, resnet20
from benchmarks.speed.cases import Data, Split
from benchmarks.table import Setting, section, spread, table
from unitroles.zoo.vgg import small_vgg

_BLOCKS = tuple(f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(3))
_TRAIN, _QUICK = 900, 100
_WORSE = 0.01


@dataclass(frozen=True)
class _Net:
    """One row or several: a network, its data, layers that are analysed in one call.

    Parameters
    ----------
    needs : files of the folder without which the network is left out.
    """

    name: str
    make: Callable[[Setting], tuple[nn.Module, Data]]
    layers: tuple[str, ...]
    needs: tuple[str, ...] = ()


def _digits(setting: Setting, flat: bool = False) -> Data:
    """The first samples for training, as many of the others at most for testing."""
    count = setting.few(_TRAIN, _QUICK)
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels, dtype=torch.int64)
    x = x if flat else x.view(-1, 1, 8, 8)
    return Data((x[:count], y[:count]), (x[count : 2 * count], y[count : 2 * count]))


def _fitted(model: nn.Module, split: Split, epochs: int) -> nn.Module:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    images, labels = split
    for _ in range(epochs):
        for part in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(images[part]), labels[part]).backward()
            optimizer.step()
    return model.eval()


def _vgg(setting: Setting) -> tuple[nn.Module, Data]:
    data = _digits(setting)
    torch.manual_seed(0)
    model = small_vgg(channels=((32, 64), (128,), (128,)))
    return _fitted(model, data.train, setting.few(20, 1)), data


def _cnn(setting: Setting) -> tuple[nn.Module, Data]:
    data = _digits(setting)
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 64, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10)),
    )
    return _fitted(model, data.train, setting.few(15, 1)), data


def _mlp(setting: Setting) -> tuple[nn.Module, Data]:
    data = _digits(setting, flat=True)
    torch.manual_seed(0)
    hidden = [(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise([64, 256, 256, 128])]
    model = nn.Sequential(*(part for pair in hidden for part in pair), nn.Linear(128, 10))
    return _fitted(model, data.train, setting.few(20, 1)), data


def _some(split: Split, each: int) -> Split:
    """The first images of every class."""
    images, labels = split
    places = torch.cat([torch.nonzero(labels == k)[:each, 0] for k in range(10)]).sort().values
    return images[places], labels[places]


def _resnet20(setting: Setting) -> tuple[nn.Module, Data]:
    folder = setting.shared / "data"
    data, each = cifar(folder), setting.few(6, 2)
    return resnet20(folder).eval(), Data(_some(data.train, each), _some(data.test, each))


def _resnet18(setting: Setting) -> tuple[nn.Module, Data]:
    """Barely trained, so that losses are high; no stride and no pooling before the first stage."""
    data, each = cifar(setting.shared / "data"), setting.few(6, 1)
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=10)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.MaxPool2d(1)
    few = _some(data.train, setting.few(40, 2))
    return (
        _fitted(model.train(), few, setting.few(4, 1)),
        Data(_some(data.train, each), _some(data.test, each)),
    )


_FILES = (IMAGES, RESNET)
_NETS = (
    _Net("ResNet-20, CIFAR-10 (tuned on)", _resnet20, _BLOCKS, _FILES),
    _Net("ResNet-18, CIFAR-10", _resnet18, ("layer4.0",), _FILES[:1]),
    _Net("VGG, digits", _vgg, ("features.1", "features.3", "features.6")),
    _Net("CNN, digits", _cnn, ("1", "3")),
    _Net("MLP, digits, 1st layer", _mlp, ("1",)),
    _Net("MLP, digits, 2nd layer", _mlp, ("3",)),
)


class _Run(NamedTuple):
    """The results of all layers, seconds of wall clock of the call and of what grows in it."""

    found: ur.TaxonomySet
    seconds: float
    growing: float


def _run(net: _Net, model: nn.Module, data: Data, resolution: str) -> _Run:
    method, start = ur.Method(resolution=resolution), perf_counter()
    found = ur.analyze_layers(model, *data, layers=net.layers, method=method, progress=False)
    seconds = perf_counter() - start
    prepare = next(iter(found.values())).provenance["stages"]["prepare"]
    return _Run(found, seconds, seconds - prepare)


class Missed(NamedTuple):
    """Curves of one layer, adaptive beside exact.

    Parameters
    ----------
    evaluated : of the exact evaluations, by sample.
    same : whether n0 is.
    worse : loss at the adaptive n0 minus loss at the exact n0, on the exact curve.
    said : what the adaptive result says that it may have missed.
    """

    evaluated: float
    same: np.ndarray
    worse: np.ndarray
    said: np.ndarray


def missed(exact: ur.Taxonomy, adaptive: ur.Taxonomy) -> Missed:
    """By curve."""
    loss, samples = exact.data["loss"].values, exact.data["samples"].values
    n0, found = (t.data["turning_point"].values.astype(int) for t in (exact, adaptive))
    at = [np.take_along_axis(loss, n[..., None], -1)[..., 0] for n in (n0, found)]
    visited = np.isfinite(adaptive.data["loss"].values).sum(-1)
    frame = adaptive.minima()
    said = frame.hidden.to_numpy() if "hidden" in frame else np.zeros(n0.size)
    share = float((visited * samples).sum() / (samples.sum() * loss.shape[-1]))
    return Missed(share, (n0 == found).ravel(), (at[1] - at[0]).ravel(), said)


def report(setting: Setting, say: Callable[[str], None]) -> str:
    """One row per network; what is left out, and why."""
    rows, absent = [], []
    for net in _NETS:
        lacking = [name for name in net.needs if not (setting.shared / "data" / name).is_file()]
        if lacking:
            absent.append(f"{net.name}: there is no {lacking[0]} in the folder of shared files.")
            continue
        say(f"adaptive resolution: {net.name}")
        rows.append(_row(net, setting))
    return section(
        "Adaptive resolution",
        table(rows),
        "All layers of a row in one call. *Evaluated*: of the evaluations of exact curves, over "
        "the layers with adaptive ones, mean and highest; the cap is .7. *Missed*: loss at the "
        "adaptive n0 minus loss at the exact n0, on the exact curve, in nats. *More than said*: "
        "curves on which more was missed than column `hidden` of `Taxonomy.minima` says.",
        *absent,
    )


def _row(net: _Net, setting: Setting) -> dict[str, object]:
    model, data = net.make(setting)
    pairs = [
        [_run(net, model, data, resolution) for resolution in ("exact", "adaptive")]
        for _ in range(setting.repeats)
    ]
    exact, adaptive = pairs[-1]
    found = [missed(exact.found[name], adaptive.found[name]) for name in exact.found]
    some = [part for part in found if part.evaluated < 1]
    shares = [part.evaluated for part in some] or [1.0]
    same, worse, said = (
        np.concatenate([getattr(part, name) for part in found]) for name in Missed._fields[1:]
    )
    sizes = sorted({taxonomy.data.sizes["unit"] for taxonomy in exact.found.values()})
    return {
        "network": net.name,
        "units": "–".join(map(str, dict.fromkeys([sizes[0], sizes[-1]]))),
        "curves": worse.size,
        "evaluated": f"{sum(shares) / len(shares):.2f}, {max(shares):.2f}",
        "growing part ÷ exact": spread(b.growing / a.growing for a, b in pairs),
        "call ÷ exact": spread(b.seconds / a.seconds for a, b in pairs),
        "missed, median": float(median(worse)),
        "missed, worst": float(worse.max()),
        f"missed > {_WORSE:g}": int((worse > _WORSE).sum()),
        "more than said": int((worse > said + 1e-6).sum()),
        "n0 equal": f"{same.mean():.0%}",
    }
