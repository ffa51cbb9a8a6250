"""A small VGG: stacks of conv-ReLU pairs, max-pooling, a head with one hidden layer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def vgg_digits(
    channels: Sequence[Sequence[int]] = ((32, 64), (128,)),
    hidden: int = 128,
    dropout: float = 0.0,
) -> nn.Module:
    """A network for images of shape (1, 8, 8) and ten classes.

    Parameters
    ----------
    channels : output channels of the 3x3 convolutions; each inner sequence is a stack that ends
        with a 2x2 max-pool, so there are at most three.
    hidden : features of the hidden layer of the head.
    dropout : drop probability between the hidden layer and the last one.

    Returns
    -------
    A model with the parts `features` and `classifier`; it maps float tensors (samples, 1, 8, 8) to
    logits (samples, 10). Weights come from torch's RNG.

    Raises
    ------
    ValueError : there are no stacks, or more than an image of eight pixels can be halved.

    Examples
    --------
    >>> model = vgg_digits(channels=((8,), (16,)))
    >>> last_conv_layer(model)
    'features.4'
    """
    if not 1 <= len(channels) <= 3 or not all(channels):
        raise ValueError(f"channels must hold one to three non-empty stacks, got {channels!r}")
    widths = [1]
    features: list[nn.Module] = []
    for stack in channels:
        for width in stack:
            # Not in-place: the output of the convolution stays what it was for hooks.
            features += [nn.Conv2d(widths[-1], width, 3, padding=1), nn.ReLU()]
            widths.append(width)
        features.append(nn.MaxPool2d(2))
    side = 8 // 2 ** len(channels)
    model = nn.Sequential()
    model.add_module("features", nn.Sequential(*features))
    model.add_module(
        "classifier",
        nn.Sequential(
            nn.Flatten(),
            nn.Linear(widths[-1] * side * side, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, 10),
        ),
    )
    return model


def last_conv_layer(model: nn.Module) -> str:
    """The path of the ReLU after the last convolution of `model.features`.

    Raises
    ------
    ValueError : `model.features` holds no convolution that is followed by a ReLU.
    """
    features = list(model.get_submodule("features").children())
    pairs = [
        index + 1
        for index, (first, second) in enumerate(pairwise(features))
        if isinstance(first, nn.Conv2d) and isinstance(second, nn.ReLU)
    ]
    if not pairs:
        raise ValueError("model.features holds no convolution that is followed by a ReLU")
    return f"features.{pairs[-1]}"
