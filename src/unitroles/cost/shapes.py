"""Batches of another shape than the plan was made for, whose masks run through the whole model."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from unitroles.analysis.prepare import Ready
from unitroles.data.arrays import Arrays
from unitroles.data.samples import Batch, Samples
from unitroles.model.forward import form_of, tensors

# Seconds for which the batches of a split are read, and how many are read however long it takes.
_LOOK, _FEWEST = 1.0, 4


@dataclass(frozen=True)
class OtherShape:
    """What comes in batches of another shape, of each split.

    Parameters
    ----------
    samples : how many, without padding; from the share among those looked at, if not all were.
    rows : the same with padding.
    looked_at : how many samples were looked at.
    example : such a batch, as large as half of them; None = there is none.
    """

    samples: tuple[int, int]
    rows: tuple[int, int]
    looked_at: tuple[int, int]
    example: Batch | None


def other_shape(ready: Ready) -> OtherShape:
    """Read batches as the analysis will, all of them or as many as a second allows of each split.

    Raises
    ------
    InputError : samples cannot be read.
    """
    first, second = ready.splits
    if not ready.choices[0].plan.keeps_rows:  # all runs in full, whatever shape it has
        return OtherShape((0, 0), (0, 0), (len(first), len(second)), None)
    form = form_of(ready.choices[0].seen.inputs)
    one, other = (_look(samples, min(ready.batch, len(samples)), form) for samples in ready.splits)
    found = sorted(one.odd + other.odd, key=lambda odd: odd.values)
    return OtherShape(
        (one.samples, other.samples),
        (one.rows, other.rows),
        (one.looked_at, other.looked_at),
        found[len(found) // 2].read() if found else None,
    )


@dataclass(frozen=True)
class _Odd:
    """A batch of another shape; it is read again where it is wanted, and not held."""

    samples: Samples
    size: int
    values: int

    def read(self) -> Batch:
        return next(self.samples.batches(self.size))


@dataclass(frozen=True)
class _Looked:
    """What was found in one split."""

    samples: int
    rows: int
    looked_at: int
    odd: list[_Odd]


def _look(samples: Samples, size: int, form: tuple[Any, ...]) -> _Looked:
    count, batches, odd, looked_at, seen = len(samples), -(-len(samples) // size), [], 0, 0
    if isinstance(samples.source, Arrays):
        return _Looked(0, 0, count, [])
    unworked = replace(samples, workers=0)  # to start them takes longer
    started = time.perf_counter()
    for place in np.random.default_rng(0).permutation(batches).tolist():
        if seen >= _FEWEST and time.perf_counter() - started > _LOOK:
            break
        part = unworked.take(np.arange(place * size, min((place + 1) * size, count)))
        inputs = next(part.batches(size)).inputs
        looked_at, seen = looked_at + len(part), seen + 1
        if form_of(inputs) != form:
            odd.append(_Odd(part, size, sum(value.numel() for value in tensors(inputs))))
    if seen == batches:
        return _Looked(sum(len(one.samples) for one in odd), len(odd) * size, count, odd)
    share = len(odd) / seen
    return _Looked(round(share * count), round(share * batches) * size, looked_at, odd)
