"""Random variations of training images, as tensor operations on a whole epoch at once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unitroles.zoo.settings import Recipe


def augment(images: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Return shifted and noisier copies of images.

    Parameters
    ----------
    images : Tensor
        float32, shape (samples, 1, height, width), on the CPU.
    recipe : Recipe
        Gives the largest shift in pixels and the standard deviation of the noise.
    generator : torch.Generator
        The only source of randomness.

    Returns
    -------
    Tensor
        Of the same shape; pixels shifted in from outside are 0 before the noise.
    """
    if recipe.augment_shift:
        images = _shift(images, recipe.augment_shift, generator)
    if recipe.augment_noise:
        noise = torch.randn(images.shape, generator=generator)
        images = images + recipe.augment_noise * noise
    return images


def _shift(images: Tensor, most: int, generator: torch.Generator) -> Tensor:
    samples, _, height, width = images.shape
    offsets = torch.randint(0, 2 * most + 1, (2, samples, 1), generator=generator)
    rows = (torch.arange(height) + offsets[0])[:, :, None]
    columns = (torch.arange(width) + offsets[1])[:, None, :]
    padded = nn.functional.pad(images, (most, most, most, most))
    return padded[torch.arange(samples)[:, None, None], 0, rows, columns][:, None]
