"""Two CIFAR-10 networks, one of a large generalization gap: how sure are their roles?

pip install -e '.[bench]'
python -m benchmarks.evidence.cifar --data FOLDER --out docs/results

FOLDER holds cifar10-small.npz and resnet20-12fca82f.th. The weights of the network that is trained
here are kept in the folder of --work, so that a second call does not train again.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import unitroles as ur
from benchmarks.evidence.cifar_nets import Cifar, Recipe, Trained, cifar, resnet20, trained_vgg
from benchmarks.evidence.cifar_page import document
from benchmarks.evidence.cifar_reading import Case
from benchmarks.speed.memory import peak
from benchmarks.table import machine
from unitroles.files import check_new, make_folder, write_whole

PAGE = "evidence.md"
LAYER = "layer3"
THREADS = 1  # the same weights at every call; small convolutions gain nothing from more
SAMPLES = {"all": ur.Sample(), "equal numbers": ur.Sample(equalize=True)}
_MIB = 2**20
_FIXED = (
    "Layers, samples, evidence and every seed were fixed before a role was looked at. How the VGG "
    "is trained was chosen on training and test accuracy alone, and they are those of the images "
    "reported here."
)
_RESNET = (
    "He et al. 2016, three blocks a stage, with weights from a file, trained on the whole official "
    f"training set, of which the training images here are a part; layer `{LAYER}`, after the ReLU "
    "of the last block."
)

Say = Callable[[str], None]


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="How sure are the roles of two networks?")
    parser.add_argument("--data", type=Path, required=True, help="folder of images and weights")
    parser.add_argument("--out", type=Path, help=f"folder for {PAGE}")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("build/evidence"),
        help="folder for trained weights, read there if they exist (default: %(default)s)",
    )
    return parser.parse_args(arguments)


@dataclass(frozen=True)
class Network:
    """What is analysed, and what is said of it."""

    name: str
    about: str
    model: nn.Module
    layer: str


def studied(network: Network, data: Cifar, evidence: ur.Evidence, say: Say) -> Case:
    """One network on all images, and on equal numbers of both splits."""
    results, peaks = [], []
    for images, sample in SAMPLES.items():
        say(f"{network.name}, {images}")
        found = ur.analyze(
            network.model,
            data.train,
            data.test,
            layer=network.layer,
            class_names=data.names,
            progress=False,
            sample=sample,
            evidence=evidence,
        )
        results.append(found)
        peaks.append(peak() / _MIB)
    return Case(network.name, network.about, results[0], results[1], (peaks[0], peaks[1]))


def study(asked: argparse.Namespace, recipe: Recipe, evidence: ur.Evidence, say: Say) -> str:
    """Get the networks, analyse them, and give the page as a text."""
    start = time.perf_counter()
    data, resnet = cifar(asked.data), resnet20(asked.data)
    make_folder(asked.work)
    if asked.out is not None:
        make_folder(asked.out)
        check_new([asked.out / PAGE], force=True)
    vgg = trained_vgg(recipe, data, asked.work, say)
    ready = peak() / _MIB
    about = (
        f"{recipe}; trained on the training images here without augmentation, weight decay or "
        f"dropout; layer `{recipe.layer}`, the ReLU after the last convolution."
    )
    networks = (
        Network("ResNet-20", _RESNET, resnet, LAYER),
        Network("VGG", about, vgg.model, recipe.layer),
    )
    cases = [studied(network, data, evidence, say) for network in networks]
    return document(
        cases,
        _settings(data, evidence),
        machine(torch.get_num_threads(), ("unitroles", "torch", "numpy", "xarray")),
        _costs(vgg, ready, (time.perf_counter() - start) / 60),
    )


def _settings(data: Cifar, evidence: ur.Evidence) -> str:
    train, test = len(data.train[1]), len(data.test[1])
    controls = "controls" if evidence.controls else "no controls"
    return (
        f"{train:,} training and {test:,} test images of CIFAR-10, {len(data.names)} classes. "
        f"Evidence: {evidence.floors} floors, {evidence.resplits} new splits, {evidence.draws} "
        f"weightings ({evidence.bootstrap}), level {evidence.level:g}, {controls}, seed "
        f"{evidence.seed}; everything else as the library has it. {_FIXED}"
    )


def _costs(vgg: Trained, ready: float, minutes: float) -> str:
    when = "in an earlier call, whose weights were read" if vgg.reused else "in this call"
    return (
        f"Seconds by stage as the results store them; peak resident memory of the one process that "
        f"does all, which had reached {ready:.0f} MiB with the images read and the networks ready. "
        f"The VGG was trained {when}, in {vgg.seconds:.0f} s. The whole call took {minutes:.1f} "
        "minutes."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Train or read, analyse, print, and write the page if asked; returns the exit code."""
    asked, start = options(arguments), time.perf_counter()

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - start:4.0f} s] {text}", file=sys.stderr, flush=True)

    torch.set_num_threads(THREADS)
    try:
        text = study(asked, Recipe(), ur.Evidence(), say)
        print(text, end="")
        if asked.out is not None:
            write_whole({asked.out / PAGE: text})
    except ur.InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
