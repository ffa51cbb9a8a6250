"""A part of CIFAR-10, a ResNet-20 with weights from a file, a small VGG trained here to fit."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from unitroles import InputError
from unitroles.files import write_whole
from unitroles.sources.weights import load_weights

IMAGES, RESNET = "cifar10-small.npz", "resnet20-12fca82f.th"
VGG = "vgg.safetensors"
_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
_STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


@dataclass(frozen=True)
class Cifar:
    """Both splits as (images normalised, labels), and the classes by number."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    names: list[str]


@dataclass(frozen=True)
class Recipe:
    """Adam on one cycle of learning rates; no augmentation, no weight decay, no dropout.

    Parameters
    ----------
    channels : of the convolutions; a ReLU and a 2x2 max-pool follow each.
    hidden : features of the hidden layer of the head.
    learning_rate : the highest of the cycle.
    seed : of weights and of the order of the images.
    """

    channels: tuple[int, ...] = (16, 32, 64, 128)
    hidden: int = 128
    epochs: int = 24
    batch_size: int = 64
    learning_rate: float = 2e-3
    seed: int = 0

    @property
    def layer(self) -> str:
        """The ReLU after the last convolution."""
        return f"features.{3 * len(self.channels) - 2}"

    def __str__(self) -> str:
        widths = ", ".join(map(str, self.channels))
        return (
            f"convolutions of {widths} channels, each with a ReLU and a 2x2 max-pool, a hidden "
            f"layer of {self.hidden}; Adam, {self.epochs} epochs, batches of {self.batch_size}, "
            f"one cycle up to a learning rate of {self.learning_rate:g}, seed {self.seed}"
        )


class Block(nn.Module):
    """Where it halves the image, the shortcut takes every other pixel and pads the channels."""

    def __init__(self, before: int, width: int, stride: int) -> None:
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

    def __init__(self) -> None:
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


def cifar(folder: Path) -> Cifar:
    """The images of a folder.

    Raises
    ------
    InputError : the file is absent, damaged or holds something else.
    """
    path = _existing(folder, IMAGES)
    try:
        with path.open("rb") as raw, np.load(raw) as file:
            names = [str(name) for name in file["classes"]]
            train, test = (_split(file, name) for name in ("train", "test"))
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise InputError(
            f"{path} cannot be read: {' '.join(str(error).split())}; it has to hold train_images, "
            "train_labels, test_images, test_labels and classes"
        ) from error
    return Cifar(train, test, names)


def _existing(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise InputError(
            f"there is no file {path}; --data has to name a folder that holds {IMAGES} and {RESNET}"
        )
    return path


def _split(file: np.lib.npyio.NpzFile, name: str) -> tuple[Tensor, Tensor]:
    pixels, labels = (torch.from_numpy(file[f"{name}_{part}"]) for part in ("images", "labels"))
    if pixels.ndim != 4 or pixels.shape[3] != 3 or pixels.dtype != torch.uint8:
        raise ValueError(f"{name}_images are no uint8 of (images, height, width, 3)")
    return (pixels.permute(0, 3, 1, 2).float() / 255 - _MEAN) / _STD, labels.long()


def resnet20(folder: Path) -> ResNet20:
    """Trained on the whole official training set."""
    model = ResNet20()
    load_weights(model, _existing(folder, RESNET))
    return model.eval().requires_grad_(False)


@dataclass(frozen=True)
class Trained:
    """The small VGG, how long its training took, and whether that was in this run."""

    model: nn.Module
    seconds: float
    reused: bool


def trained_vgg(
    recipe: Recipe, data: Cifar, work: Path, say: Callable[[str], None] = lambda text: None
) -> Trained:
    """Train on the training images alone, or load the weights of the same recipe and images.

    Raises
    ------
    InputError : the weights cannot be written.
    """
    path, fingerprint = work / VGG, _fingerprint(recipe, data)
    stored = _stored(path, fingerprint)
    with torch.random.fork_rng([]):
        torch.manual_seed(recipe.seed)
        model = _vgg(recipe, data)
        if stored is not None:
            model.load_state_dict(stored[0])
            return Trained(model.eval().requires_grad_(False), stored[1], True)
        start = time.perf_counter()
        model = _train(model, recipe, data, say)
        seconds = time.perf_counter() - start
    about = {"recipe": fingerprint, "seconds": json.dumps(seconds)}
    write_whole({path: save(model.state_dict(), metadata=about)})
    return Trained(model, seconds, False)


def _vgg(recipe: Recipe, data: Cifar) -> nn.Module:
    before, features = 3, nn.Sequential()
    for width in recipe.channels:
        features.extend([nn.Conv2d(before, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)])
        before = width
    side = data.train[0].shape[-1] // 2 ** len(recipe.channels)
    head = (nn.Flatten(), nn.Linear(before * side * side, recipe.hidden), nn.ReLU())
    model = nn.Sequential()
    model.add_module("features", features)
    classes = nn.Linear(recipe.hidden, len(data.names))
    model.add_module("classifier", nn.Sequential(*head, classes))
    return model


def _train(model: nn.Module, recipe: Recipe, data: Cifar, say: Callable[[str], None]) -> nn.Module:
    # The layout of memory in which small convolutions are fastest on a CPU.
    model = model.to(memory_format=torch.channels_last)
    images, labels = data.train[0].to(memory_format=torch.channels_last), data.train[1]
    optimizer = torch.optim.Adam(model.parameters(), recipe.learning_rate)
    steps = recipe.epochs * -(-len(labels) // recipe.batch_size)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=steps)
    for epoch in range(recipe.epochs):
        for batch in torch.randperm(len(labels)).split(recipe.batch_size):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
            cycle.step()
        say(f"VGG, epoch {epoch + 1} of {recipe.epochs}")
    return model.to(memory_format=torch.contiguous_format).eval().requires_grad_(False)


def _fingerprint(recipe: Recipe, data: Cifar) -> str:
    digest = hashlib.sha256(json.dumps(asdict(recipe), sort_keys=True).encode())
    for part in data.train:
        digest.update(part.numpy().tobytes())
    return digest.hexdigest()


def _stored(path: Path, fingerprint: str) -> tuple[dict[str, Tensor], float] | None:
    """Weights of this recipe and the seconds they took; None = none, others or damaged ones."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
        if about.get("recipe") != fingerprint:
            return None
        return load_file(path), float(about["seconds"])
    except SafetensorError:
        return None
