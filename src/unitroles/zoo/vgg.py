"""A small VGG: stacks of conv-ReLU pairs, max-pooling, a head with one hidden layer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def small_vgg(
    channels: Sequence[Sequence[int]] = ((32, 64), (128,)),
    hidden: int = 128,
    dropout: float = 0.0,
    sizes: tuple[int, int, int] = (1, 8, 10),
) -> nn.Module:
    """A network for square images.

    Parameters
    ----------
    channels : output channels of the 3x3 convolutions; each inner sequence is a stack that ends
        with a 2x2 max-pool, which halves the sides of the image.
    hidden : features of the hidden layer of the head.
    dropout : drop probability between the hidden layer and the last one.
    sizes : channels and side of the images, and the number of classes.

    Returns
    -------
    A model with the parts `features` and `classifier`; it maps float tensors (samples,
    channels, side, side) to logits (samples, classes). Weights come from torch's RNG.

    Raises
    ------
    ValueError : there are no stacks, or more than the images can be halved.

    Examples
    --------
    >>> model = small_vgg(channels=((8,), (16,)))
    >>> last_conv_layer(model)
    'features.4'
    """
    image_channels, image_side, classes = sizes
    side = image_side // 2 ** len(channels)
    if not channels or not all(channels) or not side:
        raise ValueError(
            f"channels must hold non-empty stacks, at most as many as {image_side} pixels can be "
            f"halved, got {channels!r}"
        )
    widths = [image_channels]
    features: list[nn.Module] = []
    for stack in channels:
        for width in stack:
            # Not in-place: the output of the convolution stays what it was for hooks.
            features += [nn.Conv2d(widths[-1], width, 3, padding=1), nn.ReLU()]
            widths.append(width)
        features.append(nn.MaxPool2d(2))
    model = nn.Sequential()
    model.add_module("features", nn.Sequential(*features))
    model.add_module(
        "classifier",
        nn.Sequential(
            nn.Flatten(),
            nn.Linear(widths[-1] * side * side, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, classes),
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
