"""Data sets of images, with pixel noise and, for the second family, corrupted labels.

A new one is a function that reads it, and its name in `DATA_SETS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from unitroles.files import require
from unitroles.zoo.settings import DataSettings

Images = tuple[np.ndarray, np.ndarray, tuple[str, ...]]
"""Pixels in [0, 1], (samples, channels, side, side); labels from 0 on; the names of the classes."""


@dataclass(frozen=True)
class ImageData:
    """The two splits as arrays.

    Parameters
    ----------
    train_images, test_images : float32 (samples, channels, side, side); pixels in [0, 1] plus
        noise, not clipped.
    train_labels : int64; the labels given to the training, corrupted or not.
    true_train_labels, test_labels : int64; the correct labels.
    class_names : of the labels 0, 1, ...
    label_noise : fraction of `train_labels` that differ from `true_train_labels`.
    """

    train_images: np.ndarray
    test_images: np.ndarray
    train_labels: np.ndarray
    true_train_labels: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    label_noise: float


def load_images(name: str, settings: DataSettings, label_noise: float = 0.0) -> ImageData:
    """A data set in two stratified splits, with noise as part of the data.

    The noise is drawn once per image of the whole set, so an image carries the same noise in
    every call and whatever the split sizes are. The images of a smaller rate of label noise
    that are mislabelled are mislabelled, in the same way, under a larger one.

    Parameters
    ----------
    name : one of `DATA_SETS`.
    settings : split sizes, pixel noise and seeds.
    label_noise : fraction of the training labels replaced by another class, drawn uniformly.

    Raises
    ------
    InputError : scikit-learn is not installed.
    ValueError : the rate is outside [0, 1], or the splits do not fit in the data set.
    """
    if not 0 <= label_noise <= 1:
        raise ValueError(f"label_noise must be between 0 and 1, got {label_noise}")
    require("sklearn")
    images, labels, names = DATA_SETS[name]()
    train, test = _split(settings, labels, len(names))
    noise = np.random.default_rng(settings.noise_seed).standard_normal(images.shape)
    noisy = (images + settings.pixel_noise * noise).astype(np.float32)
    return ImageData(
        train_images=noisy[train],
        test_images=noisy[test],
        train_labels=_corrupt(labels[train], len(names), label_noise, settings.label_seed),
        true_train_labels=labels[train],
        test_labels=labels[test],
        class_names=names,
        label_noise=label_noise,
    )


def _digits() -> Images:
    """Scikit-learn's handwritten digits: 1,797 images of 8 x 8 pixels."""
    from sklearn import datasets

    pixels, targets = datasets.load_digits(return_X_y=True)
    names = tuple(str(digit) for digit in range(10))
    return pixels.reshape(-1, 1, 8, 8) / 16.0, np.asarray(targets, dtype=np.int64), names


DATA_SETS: dict[str, Callable[[], Images]] = {"digits": _digits}


def _split(settings: DataSettings, labels: np.ndarray, classes: int) -> list[np.ndarray]:
    from sklearn import model_selection

    sizes = (settings.train_samples, settings.test_samples)
    if min(sizes) < classes or sum(sizes) > len(labels):
        raise ValueError(
            f"splits of {sizes[0]} and {sizes[1]} samples do not fit: each needs at least "
            f"{classes}, and there are {len(labels)} images"
        )
    parts = model_selection.train_test_split(
        np.arange(len(labels)),
        train_size=sizes[0],
        test_size=sizes[1],
        stratify=labels,
        random_state=settings.split_seed,
    )
    return [np.asarray(part) for part in parts]


def _corrupt(labels: np.ndarray, classes: int, rate: float, seed: int) -> np.ndarray:
    draw = np.random.default_rng(seed)
    chosen = draw.permutation(len(labels))[: round(rate * len(labels))]
    # A step around the ring of classes, short of a whole turn, never ends at the true one.
    steps = draw.integers(1, classes, size=len(labels))
    corrupted = labels.copy()
    corrupted[chosen] = (labels + steps)[chosen] % classes
    return corrupted
