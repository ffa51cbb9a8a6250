"""The cost of comparing samples with the model: forwards and runs of the head, counted, by layer.

pip install -e '.[bench]'
python -m benchmarks.speed.guards --out docs/results
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import unitroles as ur
from benchmarks.speed.cases import settle
from benchmarks.table import machine, ratios, section, spread, table
from unitroles.analysis.request import Request

NONE, EVERY, ALL = "none", "every sample", "every sample and some alone"
PAIRS = 7
SIDE, CLASSES = 32, 10
_LAYERS = ["relu", "layer1", "layer2", "layer3", "layer4"]


@dataclass
class Counts:
    """Counts of one analysis after its checks.

    Parameters
    ----------
    rows : samples into the model, whole or as far as the layer, and masked copies into the head.
    flops : of the products, of all of it.
    alone : samples that were run alone.
    """

    plan: str = ""
    rows: Counter[str] = field(default_factory=Counter)
    flops: int = 0
    alone: int = 0


def network() -> nn.Module:
    """ResNet-18, random weights, logits as large as those of a trained one."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=CLASSES).eval()
    settle(model, torch.randn(32, 3, SIDE, SIDE))
    return model


def perceptron() -> nn.Module:
    """One hidden layer of 128 units."""
    torch.manual_seed(0)
    sizes = 3 * SIDE * SIDE, 128, CLASSES
    return nn.Sequential(
        nn.Flatten(), nn.Linear(sizes[0], sizes[1]), nn.ReLU(), nn.Linear(sizes[1], sizes[2])
    ).eval()


def splits(samples: int) -> list[Any]:
    """Random images, every class as often as the others."""
    draw = torch.Generator().manual_seed(1)
    labels = torch.arange(samples) % CLASSES
    return [(torch.randn(samples, 3, SIDE, SIDE, generator=draw), labels) for _ in range(2)]


def run(model: nn.Module, data: list[Any], layer: str, way: str) -> ur.Taxonomy:
    """An analysis whose samples are compared in this way."""
    compute = ur.Compute(batch_size=32, audit=0 if way == EVERY else 64)
    with ExitStack() as stack, warnings.catch_warnings():
        warnings.simplefilter("ignore", ur.DataWarning)  # random weights are near chance
        if way == NONE:
            target = "unitroles.analysis.passes.samples_alone"
            stack.enter_context(mock.patch(target, return_value=None))
        return ur.analyze(model, *data, layer=layer, progress=False, compute=compute)


def counted(model: nn.Module, data: list[Any], layer: str, way: str) -> Counts:
    """Count the pass and the masks of an analysis, not its checks beforehand."""
    found = Counts()
    analysis = import_module("unitroles.analysis.analyze")
    prepared = analysis.prepared

    @contextmanager
    def watch(request: Request) -> Iterator[Any]:
        with prepared(request) as ready, ExitStack() as stack:
            plan = ready.choices[0].plan
            suffix = plan.suffix if plan.name == "additive" else plan
            for name, module in (("model", request.model), ("head", suffix.head.after)):
                hook = module.register_forward_pre_hook(_counter(found.rows, name))
                stack.callback(hook.remove)
            flops = stack.enter_context(FlopCounterMode(display=False))
            yield ready
            found.flops = flops.get_total_flops()

    with mock.patch.object(analysis, "prepared", watch):
        taxonomy = run(model, data, layer, way)
    audit = taxonomy.provenance.get("audit") or {}
    found.plan, found.alone = taxonomy.data.attrs["plan"], audit.get("alone", 0)
    return found


def _counter(rows: Counter[str], name: str) -> Callable[[nn.Module, Any], None]:
    def hook(module: nn.Module, args: Any) -> None:
        rows[name] += len(args[0])

    return hook


def forward_flops(model: nn.Module, data: list[Any], layer: str) -> tuple[int, float]:
    """Of one sample through the model, and the part of it that is spent up to the layer."""
    one = data[0][0][:1]
    seen: list[int] = []
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        hook = model.get_submodule(layer).register_forward_hook(
            lambda *given: seen.append(flops.get_total_flops())
        )
        model(one)
        hook.remove()
    whole = flops.get_total_flops()
    return whole, seen[-1] / whole


def price(model: nn.Module, title: str, layer: str, samples: int) -> dict[str, object]:
    """One row: counts with every way of comparing, for so many samples in each split."""
    data = splits(samples)
    whole, before = forward_flops(model, data, layer)
    none, every, both = (counted(model, data, layer, way) for way in (NONE, EVERY, ALL))
    runs = 2 * samples

    def alone(name: str) -> float:
        return (both.rows[name] - every.rows[name]) / both.alone

    return {
        "layer": f"{title} `{layer}`",
        "before it": f"{100 * before:.0f} %",
        "plan": both.plan,
        "forwards a sample, without": none.rows["model"] / runs,
        "forwards, compared": every.rows["model"] / runs,
        "head runs a sample, without": none.rows["head"] / runs,
        "head runs, compared": every.rows["head"] / runs,
        "more work, compared": (every.flops - none.flops) / runs / whole,
        "forwards, alone": alone("model"),
        "head runs, alone": alone("head"),
        "more work, alone": (both.flops - every.flops) / both.alone / whole,
        "work, without": none.flops / runs / whole,
    }


def timed(model: nn.Module, title: str, layer: str, samples: int) -> dict[str, object]:
    """Seconds of an analysis with and without comparison, one after the other."""
    data = splits(samples)
    seconds: dict[str, list[float]] = {NONE: [], ALL: []}
    for repeat in range(PAIRS + 1):
        ways = [NONE, ALL] if repeat % 2 else [ALL, NONE]
        for way in ways:
            start = time.perf_counter()
            run(model, data, layer, way)
            seconds[way].append(time.perf_counter() - start)
    for took in seconds.values():
        took.pop(0)  # the first pair warms up
    return {
        "case": f"{title} `{layer}`, 2 × {samples:,} samples",
        "without, s": spread(seconds[NONE]),
        "compared, s": spread(seconds[ALL]),
        "ratio": ratios(seconds[ALL], seconds[NONE]),
    }


def document(samples: int, long: int, threads: int) -> str:
    """The whole text."""
    deep, flat = network(), perceptron()
    prices = [price(deep, "ResNet-18 @32", layer, samples) for layer in _LAYERS]
    prices.append(price(flat, "MLP", "2", samples))
    times = [timed(deep, "ResNet-18 @32", "layer4", long), timed(flat, "MLP", "2", long)]
    counts = section(
        "Counted",
        f"{samples} samples in each split. *Forwards* are samples that enter the model, whether it "
        "runs to its end or stops at the layer; *head runs* are masked copies through what comes "
        "after the layer; *work* is in forwards of the whole model, by the floating-point "
        "operations of its products. *Compared*: every sample with all units retrieved, against "
        "the model's own logits. *Alone*: what each of the samples adds that also runs alone.",
        table(prices),
    )
    timing = section(
        "Timed",
        f"Whole analyses, median (lowest–highest) of {PAIRS} pairs, one after the other.",
        table(times),
    )
    head = "Printed by `python -m benchmarks.speed.guards --out docs/results`; random weights."
    return "\n\n".join(["# What the comparison costs", head, machine(threads), counts, timing, ""])


def main() -> None:
    """Count, print, and write the file if asked."""
    parser = argparse.ArgumentParser(description="What comparing samples with the model costs")
    parser.add_argument("--samples", type=int, default=16, help="in each split, to count")
    parser.add_argument("--long", type=int, default=500, help="in each split, to time")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="folder to write guards.md to")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    text = document(asked.samples, asked.long, asked.threads)
    print(text, end="")
    if asked.out is not None:
        (asked.out / "guards.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
