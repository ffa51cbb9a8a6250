"""Real weights and real images of the shared data: a ResNet-20, and a part of CIFAR-10."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unitroles.weights import load_weights

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


class Block(nn.Module):
    """Where it halves the image, the shortcut takes every other pixel and pads the channels."""

    def __init__(self, before: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.padding = stride, (width - before) // 2

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        x = x[:, :, :: self.stride, :: self.stride]
        return F.relu(h + F.pad(x, (0, 0, 0, 0, self.padding, self.padding)))


class ResNet20(nn.Module):
    """He et al. 2016, section 4.2, with option A: shortcuts without parameters."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(Block(before, width, stride), *(Block(width, width, 1) for _ in range(2)))
            for before, width, stride in ((16, 16, 1), (16, 32, 2), (32, 64, 2))
        )
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(h.mean((2, 3)))


def existing(folder: Path, name: str) -> Path:
    """A file of the shared data; where it is absent, the test is skipped."""
    path = folder / name
    if not path.is_file():
        pytest.skip(f"there is no {name} in the shared data")
    return path


def resnet20(folder: Path) -> ResNet20:
    """Trained on the whole official training set.

    The file's names begin with "module.", which is taken off.
    """
    model = ResNet20()
    load_weights(model, existing(folder, "resnet20-12fca82f.th"))
    return model.eval().requires_grad_(False)


def read_split(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """Part of the official training or test set as (images normalised, labels)."""
    with np.load(existing(folder, "cifar10-small.npz")) as file:
        pixels, labels = (
            torch.from_numpy(file[f"{split}_{name}"]) for name in ("images", "labels")
        )
    return (pixels.permute(0, 3, 1, 2).float() / 255 - MEAN) / STD, labels.long()


def class_names(folder: Path) -> list[str]:
    """By class number."""
    with np.load(existing(folder, "cifar10-small.npz")) as file:
        return [str(name) for name in file["classes"]]
