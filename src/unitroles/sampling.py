"""Which samples are analysed: the classes of both splits, limits and equal numbers."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from unitroles.data import Samples
from unitroles.errors import DataWarning, InputError
from unitroles.options import Sample

_LISTED = 5


def choose(
    splits: Sequence[Samples], sample: Sample, names: Sequence[str] | None
) -> tuple[list[Samples], np.ndarray]:
    """The analysed samples of one or more splits, sorted by label, and the classes they cover.

    Returns
    -------
    (splits, labels) with `labels` the sorted class numbers.

    Raises
    ------
    InputError : an unknown class, or a class missing in one split.

    Warns
    -----
    DataWarning : classes were skipped.
    """
    present = [np.unique(samples.labels) for samples in splits]
    wanted = _wanted(sample, names, np.unique(np.concatenate(present)))
    labels = np.array([k for k in wanted if all(k in p for p in present)], dtype=np.int64)
    absent = [k for k in wanted if k not in labels]
    if absent:
        said = _missing(absent, splits, names)
        if sample.missing == "error" or not len(labels):
            remedy = "add some, or skip such classes with missing='skip' (--missing skip)"
            raise InputError(f"{said}; {remedy}")
        warnings.warn(f"skipped: {said}", DataWarning, stacklevel=4)
    rng = np.random.default_rng(sample.seed)
    kept: list[list[np.ndarray]] = [[] for _ in splits]
    for label in labels:
        places = [np.flatnonzero(samples.labels == label) for samples in splits]
        limit = sample.max_per_class
        if sample.equalize:
            limit = min(*map(len, places), limit or len(places[0]))
        for split, place in zip(kept, places, strict=True):
            split.append(rng.permutation(place)[:limit] if limit else place)
    chosen = [s.take(np.concatenate(k)).sorted() for s, k in zip(splits, kept, strict=True)]
    return chosen, labels


def _missing(absent: list[int], splits: Sequence[Samples], names: Sequence[str] | None) -> str:
    said = []
    for label in absent[:_LISTED]:
        without = " and no ".join(s.name for s in splits if label not in s.labels)
        said.append(f"class {_name(label, names)} has no {without} samples")
    if len(absent) > _LISTED:
        said.append(f"and {len(absent) - _LISTED} more classes likewise")
    return "; ".join(said)


def _name(label: int, names: Sequence[str] | None) -> str:
    return repr(names[label]) if names is not None and label < len(names) else str(label)


def _wanted(sample: Sample, names: Sequence[str] | None, present: np.ndarray) -> list[int]:
    if sample.classes is None:
        return present.tolist()
    table = {name: number for number, name in enumerate(names or ())}
    for given in sample.classes:
        if not isinstance(given, str) and str(given) in table:
            raise InputError(
                f"class {given} may be a number or the name {str(given)!r}; give the name as a text"
            )
    numbers = [table.get(c, c) if isinstance(c, str) else c for c in sample.classes]
    for number in numbers:
        if isinstance(number, str) or number not in present:
            known = ", ".join(_name(k, names) for k in present.tolist())
            raise InputError(f"class {number!r} is not in the data; it has {known}")
    return sorted(set(map(int, numbers)))
