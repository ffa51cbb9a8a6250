"""The first call in a fresh process, and what all blocks of a network take before the first pass.

python -m benchmarks.speed.run --sections first

Seconds of processor time, user and system: of whole processes, run in turns, beside one that only
imports torch; and of the stage "prepare" beside an evaluation pass over the same samples.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.table import Setting, met, ratios, section, spread, table

_GOAL, _PLAN_GOAL = 2.0, 3.0
_CHILD = "benchmarks.speed.first"
_NAMES = {"mlp": "MLP, 128 units", "vgg": "small VGG @32"}
_BLOCKS = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(3)]


def _network(name: str) -> tuple[nn.Module, str, Tensor]:
    """A network, its layer and samples for both splits."""
    torch.manual_seed(0)
    if name == "mlp":
        hidden = nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU()
        return nn.Sequential(*hidden, nn.Linear(128, 10)), "3", torch.randn(400, 64)
    parts: list[nn.Module] = []
    for before, width in ((3, 16), (16, 16), (16, 32), (32, 32)):
        parts += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        parts += [nn.MaxPool2d(2)] * (before == width)
    parts += [nn.Flatten(), nn.Linear(32 * 64, 64), nn.ReLU(), nn.Linear(64, 10)]
    return nn.Sequential(*parts), "16", torch.randn(40, 3, 32, 32)


def _child(name: str, threads: int) -> None:
    """What a fresh process does; the last thing it prints is the processor time of all of it."""
    torch.set_num_threads(threads)
    if name != "torch":
        import unitroles as ur

        warnings.simplefilter("ignore")
        model, layer, x = _network(name)
        half, y = len(x) // 2, torch.arange(len(x)) % 10
        data = (x[:half], y[:half]), (x[half:], y[half:])
        ur.analyze(model, *data, layer=layer, progress=False)
    spent = os.times()
    print(spent.user + spent.system)


def _process(name: str, threads: int) -> float:
    command = [sys.executable, "-m", _CHILD, "--child", name, "--threads", str(threads)]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(run.stdout.split()[-1])


def _first_calls(setting: Setting, say: Callable[[str], None]) -> list[dict[str, object]]:
    found: dict[str, list[float]] = {name: [] for name in ("torch", *_NAMES)}
    for turn in range(setting.repeats):
        say(f"first call, fresh processes, turn {turn + 1}")
        for name, seconds in found.items():
            seconds.append(_process(name, setting.threads))
    rows = []
    for name, title in _NAMES.items():
        ratio = ratios(found[name], found["torch"])
        rows.append(
            {
                "first call of `analyze`": title,
                "`import torch`, s": spread(found["torch"]),
                "process, s": spread(found[name]),
                "ratio": ratio,
                "goal": f"{_GOAL}: {met(ratio.median, _GOAL)}",
            }
        )
    return rows


def _prepare(model: nn.Module, x: Tensor) -> float:
    """Seconds before the first pass, for all blocks."""
    from unitroles.analysis.prepare import prepared
    from unitroles.analysis.request import Request

    half, y = len(x) // 2, torch.arange(len(x)) % 10
    data = {"train": (x[:half], y[:half]), "test": (x[half:], y[half:])}
    start = time.process_time()
    with prepared(Request(model, data, _BLOCKS, progress=False)):
        return time.process_time() - start


def _evaluate(model: nn.Module, x: Tensor) -> float:
    start = time.process_time()
    with torch.no_grad():
        for part in x.chunk(2):
            model(part)
    return time.process_time() - start


def _blocks(setting: Setting, say: Callable[[str], None]) -> list[dict[str, object]]:
    from benchmarks.evidence.cifar_nets import ResNet20

    torch.manual_seed(0)
    model = ResNet20().eval()
    x = torch.randn(setting.few(120, 40), 3, 32, 32)
    passes, prepared = [], []
    _evaluate(model, x), _prepare(model, x)  # imports, and the first touch of memory
    for turn in range(setting.repeats):
        say(f"plans of nine blocks, turn {turn + 1}")
        passes.append(_evaluate(model, x))
        prepared.append(_prepare(model, x))
    ratio = ratios(prepared, passes)
    return [
        {
            "network": "nine blocks of a ResNet-20",
            "evaluation pass, s": spread(passes),
            "prepare, s": spread(prepared),
            "evaluation passes": ratio,
            "goal": f"{_PLAN_GOAL}: {met(ratio.median, _PLAN_GOAL)}",
        }
    ]


def report(setting: Setting, say: Callable[[str], None]) -> str:
    """Both tables."""
    return section(
        "First call",
        table(_first_calls(setting, say)),
        "Processor time of whole processes, each beside one that only imports torch; 200 samples a "
        "split for the MLP, 20 for the VGG.",
        table(_blocks(setting, say)),
        f"Stage *prepare* of one call of `analyze_layers` for all nine blocks, "
        f"{setting.few(120, 40)} samples in both splits together, in plain evaluation passes over "
        "them. The weights are random.",
    )


def main() -> None:
    """The process that is measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--child", choices=("torch", *_NAMES), required=True)
    asked = parser.parse_args()
    _child(asked.child, asked.threads)


if __name__ == "__main__":
    main()
