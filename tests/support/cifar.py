"""Real weights and real images of the shared data: a ResNet-20, and a part of CIFAR-10.

Where a file is absent, the test that asks for it is skipped.
"""

from functools import cache
from pathlib import Path

import pytest
from torch import Tensor

# Last, so that no benchmark stands before a module of the same name.
from benchmarks.evidence import cifar_nets
from benchmarks.evidence.cifar_nets import ResNet20

__all__ = ["ResNet20", "class_names", "read_split", "resnet20"]


def existing(folder: Path, name: str) -> None:
    """Skip the test where there is no such file."""
    if not (folder / name).is_file():
        pytest.skip(f"there is no {name} in the shared data")


def resnet20(folder: Path) -> ResNet20:
    """Trained on the whole official training set."""
    existing(folder, cifar_nets.RESNET)
    return cifar_nets.resnet20(folder)


@cache
def images(folder: Path) -> cifar_nets.Cifar:
    """Read once."""
    return cifar_nets.cifar(folder)


def read_split(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """Part of the official training or test set as (images normalised, labels)."""
    existing(folder, cifar_nets.IMAGES)
    return getattr(images(folder), split)


def class_names(folder: Path) -> list[str]:
    """By class number."""
    existing(folder, cifar_nets.IMAGES)
    return images(folder).names
