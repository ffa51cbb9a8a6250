"""What evidence costs beside the analysis alone, in time and in memory.

pip install -e '.[bench]'
python -m benchmarks.evidence.cost --data FOLDER --out docs/results

FOLDER holds cifar10-small.npz and resnet20-12fca82f.th; without it only the digits are measured.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import unitroles as ur
from benchmarks.evidence.cifar_nets import cifar, resnet20
from benchmarks.speed.memory import peak
from benchmarks.table import machine, met, ratios, section, spread, table
from unitroles.zoo.vgg import last_conv_layer, small_vgg

NAME = "evidence-cost.md"
GOAL = 3.0
"""Times the analysis alone, for floors and 100 replicates with a fixed ranking."""
KINDS: dict[str, ur.Evidence | None] = {
    "alone": None,
    "floors and bootstrap": ur.Evidence(resplits=0, controls=False),
    "everything": ur.Evidence(),
}
STEPS = 200
PACKAGES = ("unitroles", "torch", "numpy", "scipy")


@dataclass(frozen=True)
class Case:
    """A trained network with its data."""

    name: str
    model: nn.Module
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    layer: str

    def analyze(self, model: nn.Module, evidence: ur.Evidence | None) -> ur.Taxonomy:
        return ur.analyze(
            model, self.train, self.test, layer=self.layer, progress=False, evidence=evidence
        )


def digits_mlp() -> Case:
    """One hidden layer: the body costs nothing, the logits are one running sum."""
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    return _fitted("digits, one hidden layer of 128", model, "1", (64,))


def digits_vgg() -> Case:
    """The last convolution of a network as in `unitroles reproduce digits`."""
    model = small_vgg(channels=((16, 32), (128,)), hidden=128)
    return _fitted("digits, small VGG", model, last_conv_layer(model), (1, 8, 8))


def _fitted(name: str, model: nn.Module, layer: str, shape: tuple[int, ...]) -> Case:
    digits = load_digits()
    x = torch.tensor(digits.data / 16, dtype=torch.float32).view(-1, *shape)
    y = torch.tensor(digits.target)
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.reset_parameters()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(STEPS):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[:1078]), y[:1078]).backward()
        optimizer.step()
    model.eval().requires_grad_(False)
    return Case(name, model, (x[:1078], y[:1078]), (x[1078:], y[1078:]), layer)


def cifar_resnet(folder: Path | None) -> Case:
    """The last stage of a ResNet-20."""
    assert folder is not None
    data = cifar(folder)
    return Case("CIFAR-10, ResNet-20", resnet20(folder), data.train, data.test, "layer3")


CASES: dict[str, Callable[[Path | None], Case]] = {
    "mlp": lambda folder: digits_mlp(),
    "vgg": lambda folder: digits_vgg(),
    "resnet": cifar_resnet,
}
NEEDS_DATA = ("resnet",)


Row = dict[str, object]


def timed(case: Case, repeats: int) -> tuple[dict[str, list[float]], ur.Taxonomy]:
    """Seconds by kind of evidence; all kinds in turns, so that a busy machine slows all of them."""
    found, taxonomy = {kind: [] for kind in KINDS}, case.analyze(case.model, None)
    for _ in range(repeats):
        for kind, evidence in KINDS.items():
            start = time.perf_counter()
            taxonomy = case.analyze(case.model, evidence)
            found[kind].append(time.perf_counter() - start)
    return found, taxonomy


def times(case: Case, repeats: int) -> Row:
    """A row of the analyses of one process, the first of them left out."""
    seconds, taxonomy = timed(case, repeats)
    units, samples = taxonomy.data.sizes["unit"], taxonomy.data.samples.values.sum(axis=1)
    plan = taxonomy.data.attrs["plan"]
    name = f"{case.name} ({plan}, {units} units, {samples[0]} + {samples[1]} samples)"
    return row(name, "later of a process", seconds)


def row(name: str, kind: str, seconds: dict[str, list[float]]) -> Row:
    """Seconds of the analysis alone, and evidence as multiples of it."""
    few, everything = (ratios(seconds[asked], seconds["alone"]) for asked in list(KINDS)[1:])
    return {
        "network": name,
        "analysis": kind,
        "alone, s": str(spread(seconds["alone"])),
        "floors and bootstrap, ×": str(few),
        f"within {GOAL:g} ×": met(few.median, GOAL),
        "everything, ×": str(everything),
    }


def alone(name: str, case: Case, repeats: int, arguments: Sequence[str]) -> tuple[Row, Row]:
    """Processes that do nothing but one analysis: how long it takes, and their peak memory."""
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for _ in range(repeats):
        for kind, runs in found.items():
            command = [
                sys.executable,
                "-m",
                "benchmarks.evidence.cost",
                *arguments,
                "--child",
                name,
                kind,
            ]
            run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            runs.append(json.loads(run.stdout))
    seconds = {kind: [run["seconds"] for run in runs] for kind, runs in found.items()}
    peaks = {
        f"peak {kind}, MiB": str(spread(run["peak"] for run in runs))
        for kind, runs in found.items()
    }
    before = str(spread(run["before"] for runs in found.values() for run in runs))
    time_row = row(case.name, "first of a process", seconds)
    return time_row, {"network": case.name, "before, MiB": before, **peaks}


def child(name: str, kind: str, folder: Path | None) -> dict[str, float]:
    """Seconds of one analysis, and peak memory before and after it; MiB."""
    case = CASES[name](folder)
    before, start = peak(), time.perf_counter()
    case.analyze(case.model, KINDS[kind])
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "before": before / 2**20, "peak": peak() / 2**20}


def page(names: Sequence[str], folder: Path | None, asked: argparse.Namespace) -> str:
    """The whole page."""
    given = [] if folder is None else ["--data", str(folder)]
    given += ["--threads", str(asked.threads)]
    cases = {name: CASES[name](folder) for name in names}
    rows, peaks = [], []
    for name, case in cases.items():
        print(case.name, file=sys.stderr)
        rows.append(times(case, asked.repeats))
        time_row, memory_row = alone(name, case, asked.repeats, given)
        rows.append(time_row)
        peaks.append(memory_row)
    intro = (
        f"Written by `python -m benchmarks.evidence.cost --data FOLDER --repeats {asked.repeats} "
        f"--threads {asked.threads} --out docs/results`. Wall-clock time of `analyze` with "
        "evidence as a multiple of the analysis alone, run in turns: median (least–most). *Floors "
        "and bootstrap*: 20 draws of halves and 100 replicates with a fixed ranking; *everything*: "
        "also 20 new splits and all controls, the defaults. *Later of a process*: others went "
        "before; *first of a process*: as a script or the command line runs it, with all that "
        "torch loads for its first export."
    )
    return "\n\n".join(
        [
            "# What evidence costs",
            intro,
            machine(asked.threads, PACKAGES),
            section("Time", table(rows)),
            section(
                "Memory",
                table(peaks),
                "Peak resident memory of the processes of their own; *before*: model and data are "
                "there.",
            ),
        ]
    )


def main() -> int:
    """Measure and write the page, or print what a process of its own has measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder with CIFAR-10 and the weights")
    parser.add_argument("--out", type=Path, help="folder for the page; else it is printed")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.child:
        print(json.dumps(child(*asked.child, asked.data)))
        return 0
    names = [name for name in CASES if asked.data is not None or name not in NEEDS_DATA]
    try:
        text = page(names, asked.data, asked) + "\n"
    except ur.InputError as error:
        print(error, file=sys.stderr)
        return 2
    if asked.out is None:
        print(text)
        return 0
    (asked.out / NAME).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
