"""What our run is compared with: plain forwards, loops over masks, bare matrix products."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.speed.cases import Data, Parts, Split

ROWS = (32, 128, 512, 1024)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def fastest(work: Callable[[int], object], rows: Iterable[int]) -> int:
    """The number of rows a call with which `work` takes least time; each is tried twice."""
    choice = set(rows)
    if len(choice) == 1:
        return choice.pop()
    took = {count: min(seconds(lambda c=count: work(c)) for _ in range(2)) for count in choice}
    return min(took, key=lambda count: took[count])


@torch.inference_mode()
def evaluation_pass(model: nn.Module, data: Data, batch: int) -> None:
    """Plain `model(x)` over the samples of both splits."""
    for images, _ in data:
        for part in images.split(batch):
            model(part)


@torch.inference_mode()
def cut_of(parts: Parts, data: Data) -> Tensor:
    """The layer's output for all samples of both splits, where nothing flows around it."""
    return torch.cat([parts.body(part)[0] for images, _ in data for part in images.split(256)])


@torch.inference_mode()
def head_pass(parts: Parts, cut: Tensor, rows: int) -> None:
    """Everything after the layer once for all samples."""
    for part in cut.split(rows):
        parts.head(part)


@torch.inference_mode()
def products(layers: Sequence[nn.Linear], count: int, rows: int) -> None:
    """The bare matrix products of linear layers for `count` rows: no bias, no activation."""
    for layer in layers:
        value = torch.ones(rows, layer.in_features)
        out = torch.empty(rows, layer.out_features)
        for _ in range(count // rows):
            torch.mm(value, layer.weight.T, out=out)
        if count % rows:
            torch.mm(value[: count % rows], layer.weight.T)


@contextmanager
def replaced(model: nn.Module, layer: str, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """The layer's output goes through `change`, which must not write to it."""

    def hook(module: nn.Module, args: object, output: Tensor) -> Tensor:
        return change(output)

    handle = model.get_submodule(layer).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@torch.inference_mode()
def without(model: nn.Module, layer: str, axis: int, images: Tensor, ablated: Tensor) -> Tensor:
    """Clone and zero, literally: logits with the units `ablated` of the layer set to zero."""
    with replaced(model, layer, lambda output: output.clone().index_fill_(axis, ablated, 0.0)):
        return model(images)


def losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of every sample in nats, in the margin form, float64."""
    wide, own = logits.double(), labels[:, None]
    rest = wide.scatter(1, own, float("-inf")).logsumexp(1)
    return F.softplus(rest - wide.gather(1, own)[:, 0], threshold=50.0)


def _along(mask: Tensor, output: Tensor, axis: int) -> Tensor:
    """A mask (samples, units) in the shape of the layer's output."""
    shape = [len(mask), *(1 for _ in output.shape[1:])]
    shape[axis] = mask.shape[1]
    return mask.view(shape)


@torch.inference_mode()
def hook_loop(model: nn.Module, layer: str, axis: int, split: Split, masks: list[Tensor]) -> None:
    """One whole forward and one loss for every mask (samples, units)."""
    images, labels = split
    for mask in masks:
        with replaced(model, layer, lambda output, m=mask: output * _along(m, output, axis)):
            F.cross_entropy(model(images), labels, reduction="none")


@torch.inference_mode()
def cached_loop(
    parts: Parts, axis: int, images: Tensor, label: int, masks: list[Tensor]
) -> tuple[float, float]:
    """The images of one class: body once, then head and loss for every mask (1, units).

    Returns the seconds of the body and of all masks.
    """
    start = time.perf_counter()
    output, *rest = parts.body(images)
    labels = torch.full((len(images),), label)
    cached = time.perf_counter()
    for mask in masks:
        logits = parts.head(output * _along(mask, output, axis), *rest)
        F.cross_entropy(logits, labels, reduction="none")
    return cached - start, time.perf_counter() - cached
