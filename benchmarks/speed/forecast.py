"""What `unitroles.plan` says beside what the analysis then takes."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader

import unitroles as ur
from benchmarks.evidence.cifar_nets import IMAGES, RESNET, cifar, resnet20
from benchmarks.speed.cases import settle
from benchmarks.table import Setting, number, section, table
from unitroles.cost.forecast import Forecast
from unitroles.zoo.vgg import small_vgg

_WITHIN = 2.0
_LENGTHS = (6, 60)
_WORDS = 200


@dataclass(frozen=True)
class _Job:
    """A call as users make it.

    Parameters
    ----------
    make : gives the network, and training and test data.
    options : of the call, beside the layer.
    """

    name: str
    layer: str
    make: Callable[[Setting], tuple[nn.Module, Any, Any]]
    options: Mapping[str, Any] = field(default_factory=dict)


_Split = tuple[Tensor, Tensor]


def _pair(shape: tuple[int, ...], count: int, classes: int) -> tuple[_Split, _Split]:
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % classes
    train, test = (torch.randn(count, *shape, generator=draw) for _ in range(2))
    return (train, labels), (test, labels)


def _mlp(units: int, classes: int, count: int) -> Callable[[Setting], tuple[nn.Module, Any, Any]]:
    def make(setting: Setting) -> tuple[nn.Module, Any, Any]:
        torch.manual_seed(0)
        layers = nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, units), nn.ReLU()
        model = nn.Sequential(*layers, nn.Linear(units, classes))
        few = max(classes, setting.few(count, 40))
        return model.eval(), *_pair((64,), few, classes)

    return make


def _vgg(setting: Setting) -> tuple[nn.Module, Any, Any]:
    torch.manual_seed(0)
    model = small_vgg(((32, 64), (128,), (128,)), sizes=(3, 32, 10)).eval()
    return model, *_pair((3, 32, 32), setting.few(200, 20), 10)


def _resnet18(setting: Setting) -> tuple[nn.Module, Any, Any]:
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=10).eval()
    settle(model, torch.randn(32, 3, 32, 32))
    return model, *_pair((3, 32, 32), setting.few(100, 10), 10)


def _resnet20(setting: Setting) -> tuple[nn.Module, Any, Any]:
    data, count = cifar(setting.shared / "data"), 60  # fewer lack a class
    train, test = ((images[:count], labels[:count]) for images, labels in (data.train, data.test))
    return resnet20(setting.shared / "data").eval(), train, test


class _Texts(nn.Module):
    """Words to vectors, two layers at every word, the mean over words."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(_WORDS, 64, padding_idx=0)
        self.hidden, self.act = nn.Linear(64, 128), nn.ReLU()
        self.out = nn.Linear(128, 4)

    def forward(self, words: Tensor) -> Tensor:
        return self.out(self.act(self.hidden(self.embed(words)))).mean(dim=1)


def _padded(items: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """A batch as long as its longest text."""
    texts = nn.utils.rnn.pad_sequence([text for text, _ in items], batch_first=True)
    return texts, torch.tensor([label for _, label in items])


def _texts(setting: Setting) -> tuple[nn.Module, Any, Any]:
    torch.manual_seed(0)
    model, count = _Texts().eval(), setting.few(600, 40)

    def loader() -> DataLoader:
        lengths = torch.randint(*_LENGTHS, (count,)).tolist()
        items = [(torch.randint(1, _WORDS, (n,)), i % 4) for i, n in enumerate(lengths)]
        return DataLoader(items, batch_size=32, collate_fn=_padded)  # pyright: ignore

    return model, loader(), loader()


_FLOORS = ur.Evidence(floors=20, resplits=0, bootstrap=None, controls=False)
JOBS = (
    _Job("MLP, 256 units", "3", _mlp(256, 10, 2000)),
    _Job("small VGG", "features.2", _vgg),
    _Job("ResNet-18 @32, `layer1`", "layer1", _resnet18),
    _Job("ResNet-20, `layer3.1`", "layer3.1", _resnet20),
    _Job(
        "the same, adaptive",
        "layer3.1",
        _resnet20,
        {"method": ur.Method(resolution="adaptive")},
    ),
    _Job("MLP, 20 floors", "1", _mlp(64, 10, 400), {"evidence": _FLOORS}),
    _Job("ResNet-20, `layer3.2`, 20 floors", "layer3.2", _resnet20, {"evidence": _FLOORS}),
    _Job("MLP, all evidence", "3", _mlp(64, 10, 400), {"evidence": ur.Evidence()}),
    _Job("texts of many lengths", "act", _texts, {"compute": ur.Compute(batch_size=32)}),
    _Job("3,000 classes", "3", _mlp(128, 3000, 6000)),
    _Job(
        "rows on the disk", "1", _mlp(64, 10, 2000), {"compute": ur.Compute(memory_budget="1MiB")}
    ),
)


@contextmanager
def _cpu_seconds() -> Iterator[None]:
    """All clocks count what this process spends, whoever shares the machine."""
    with patch.object(time, "perf_counter", time.process_time):
        yield


def _measured(job: _Job, setting: Setting) -> tuple[Forecast, float, float]:
    """The forecast; seconds of the analysis, and of all but its preparation."""
    options = {"layer": job.layer, **job.options}
    said = ur.plan(*job.make(setting), **options)
    given = job.make(setting)  # a network of its own, of which nothing is kept
    started = time.perf_counter()
    taxonomy = ur.analyze(*given, progress=False, **options)
    took = time.perf_counter() - started
    return said, took, took - taxonomy.provenance["stages"]["prepare"]


def _row(job: _Job, setting: Setting, say: Callable[[str], None]) -> dict[str, object]:
    found = []
    for repeat in range(setting.repeats):
        say(f"{job.name}: repetition {repeat + 1} of {setting.repeats}")
        found.append(_measured(job, setting))
    plans, took, after = zip(*found, strict=True)
    said = median(one.seconds + one.evidence_seconds for one in plans)
    beside = median(one.seconds - one.fixed_seconds + one.evidence_seconds for one in plans)
    ratio, growing = said / median(took), beside / median(after)
    inside = all(1 / _WITHIN <= value <= _WITHIN for value in (ratio, growing))
    return {
        "job": job.name,
        "plan": plans[0].plan,
        "said, s": said,
        "taken, s": median(took),
        "ratio": number(ratio),
        "without preparation: said, s": beside,
        "taken": median(after),
        "their ratio": number(growing),
        f"within {_WITHIN:g} ×": "yes" if inside else "no",
    }


def report(setting: Setting, say: Callable[[str], None]) -> str:
    """The table, and what it counts."""
    with _cpu_seconds(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ur.PlanWarning)
        warnings.simplefilter("ignore", ur.LayerHint)
        _measured(JOBS[0], replace(setting, quick=True))  # imports are in no forecast
        rows = [_row(job, setting, say) for job in JOBS if not _absent(job, setting)]
    return section(
        "Forecasts",
        "CPU seconds that `plan` says, and that `analyze` takes with another copy of the network: "
        f"medians of {setting.repeats}. Evidence is said as if draws shared nothing.",
        table(rows),
        *(
            f"Left out: {job.name}, for want of its files (--shared FOLDER)."
            for job in JOBS
            if _absent(job, setting)
        ),
    )


def _absent(job: _Job, setting: Setting) -> bool:
    """Whether the files of a job are not there."""
    files = (IMAGES, RESNET) if job.make is _resnet20 else ()
    return not all((setting.shared / "data" / name).is_file() for name in files)
