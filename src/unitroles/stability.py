"""Whether samples are the same whenever they are read."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from unitroles.data import Batch, Samples
from unitroles.errors import DataWarning
from unitroles.probe import rows_of

STABILITY_CHECK = 16


def warn_if_changing(samples: Samples) -> None:
    """Read a few samples twice; training data still being augmented differ.

    Warns
    -----
    DataWarning : two reads of one sample differ.
    """
    few = np.linspace(0, len(samples) - 1, min(STABILITY_CHECK, len(samples))).astype(np.int64)
    first, second = (next(samples.take(few).batches(len(few))) for _ in range(2))
    if _same(first.inputs, second.inputs):
        return
    for row, one, two in _pairs(first, second):
        if not _same(one, two):
            warnings.warn(
                f"{samples.name} sample {row} differs between two reads: augmentation is on. Give "
                "the data as the model sees them at test time, or roles and accuracy will be those "
                "of random draws",
                DataWarning,
                stacklevel=3,
            )
            return


def _pairs(first: Batch, second: Batch) -> Iterator[tuple[Any, Any, Any]]:
    """Number and both reads of every sample."""
    for place, row in enumerate(first.rows):
        own = slice(place, place + 1)
        yield row, rows_of(first.inputs, own), rows_of(second.inputs, own)


def _same(one: Any, two: Any) -> bool:
    if isinstance(one, Tensor):
        if one.shape != two.shape:
            return False
        same = one == two
        return bool((same | ((one != one) & (two != two))).all())
    if isinstance(one, Mapping):
        return all(_same(value, two[name]) for name, value in one.items())
    if isinstance(one, (tuple, list)):
        return all(_same(a, b) for a, b in zip(one, two, strict=True))
    return bool(one == two)
