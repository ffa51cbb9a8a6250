"""Samples per forward: seconds of a forward pass at several sizes, and what the rule chooses.

python -m benchmarks.speed.batches --out docs/results/batches.md
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import torchvision
from torch import Tensor, nn

from benchmarks.table import machine, number, table
from unitroles.analysis.prepare import largest_value
from unitroles.model.borrow import untouched
from unitroles.model.memory import samples_per_forward
from unitroles.model.trace import trace

_SIZES = (8, 16, 32, 64, 128, 256)


class Network(NamedTuple):
    """A network with random weights, and the images it takes."""

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, int, int]
    samples: int = 256


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 10))


def _vgg(*channels: int) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        stages = []
        for before, after in zip((3, *channels), channels, strict=False):
            stages += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(after, 10))

    return make


def _named(name: str) -> Callable[[], nn.Module]:
    return lambda: torchvision.models.get_model(name, weights=None, num_classes=10)


NETWORKS = (
    Network("MLP, 1024 units", _mlp, (1, 28, 28)),
    Network("small VGG @32", _vgg(32, 64, 128), (3, 32, 32)),
    Network("narrow VGG @32", _vgg(16, 32, 64), (3, 32, 32)),
    Network("ResNet-18 @32", _named("resnet18"), (3, 32, 32)),
    Network("ResNet-18 @64", _named("resnet18"), (3, 64, 64)),
    Network("VGG16-BN @32", _named("vgg16_bn"), (3, 32, 32)),
    Network("MobileNetV3-Small @64", _named("mobilenet_v3_small"), (3, 64, 64)),
    Network("ResNet-18 @224", _named("resnet18"), (3, 224, 224), 32),
    Network("ViT-B/16 @224", _named("vit_b_16"), (3, 224, 224), 16),
)


@torch.inference_mode()
def _seconds(model: nn.Module, x: Tensor, size: int) -> float:
    started = time.perf_counter()
    for part in x.split(size):
        model(part)
    return time.perf_counter() - started


def _rows(repeats: int, threads: int) -> Iterator[dict[str, object]]:
    torch.set_num_threads(threads)
    for network in NETWORKS:
        torch.manual_seed(0)
        model, x = network.make().eval(), torch.randn(network.samples, *network.shape)
        with untouched(model):
            largest = largest_value(trace(model, x[:2]))
        sizes = [size for size in _SIZES if size <= network.samples]
        best = dict.fromkeys(sizes, float("inf"))
        for size in (one for _ in range(repeats + 1) for one in sizes):  # the first warms up
            best[size] = min(best[size], _seconds(model, x, size))
        least = min(best.values())
        chosen = samples_per_forward(largest, torch.device("cpu"))
        yield {
            "network": network.name,
            "threads": threads,
            "largest value, KiB": largest // 1024,
            **{str(size): number(best[size] / least) if size in best else "–" for size in _SIZES},
            "the rule": chosen,
        }


def main() -> None:
    """Measure and print, with one thread and with all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    many = torch.get_num_threads()
    rows = [row for threads in sorted({1, many}) for row in _rows(asked.repeats, threads)]
    text = "\n\n".join(
        [
            "# Samples per forward",
            "Printed by `python -m benchmarks.speed.batches`. Seconds of a plain pass of the whole "
            "network with so many samples per forward, as a multiple of the least in the row; the "
            f"fastest of {asked.repeats}, sizes in turns; random weights and images. The rule is "
            "`unitroles.model.memory.samples_per_forward`: it knows the largest value of one "
            "sample in a forward, and no clock, since the size decides how sums are rounded.",
            machine(many),
            table(rows),
        ]
    )
    print(text)
    if asked.out is not None:
        asked.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
