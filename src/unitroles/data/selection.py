"""The samples that are analysed, and their classes."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from unitroles.data.samples import Samples
from unitroles.errors import DataWarning, InputError
from unitroles.options import Sample

_KINDS = "whole numbers or texts"


def grouped(
    splits: Sequence[Samples], group_by: str | Mapping[str, Any]
) -> tuple[list[Samples], list[str] | None]:
    """The same samples, with their groups as `labels`.

    Parameters
    ----------
    group_by : a column of the samples or of their data sets; or values by the name of the split,
        one per sample, whole numbers or texts.

    Returns
    -------
    (splits, names) : texts are numbered in sorted order over all splits, and are the names; of
        whole numbers the names are those that the data set knows, or None.

    Raises
    ------
    InputError : there is no such column, or it holds something else.
    """
    values = [_values(samples, group_by) for samples in splits]
    texts = {value for found in values for value in found if isinstance(value, str)}
    if not texts:
        labels = [np.array(found, dtype=np.int64) for found in values]
        names = _known(splits, group_by)
    elif all(isinstance(value, str) for found in values for value in found):
        names = sorted(texts)
        place = {name: number for number, name in enumerate(names)}
        labels = [
            np.array([place[str(text)] for text in found], dtype=np.int64) for found in values
        ]
    else:
        raise InputError(f"the groups are texts and numbers; give one kind, {_KINDS}")
    pairs = zip(splits, labels, strict=True)
    return [replace(samples, labels=own) for samples, own in pairs], names


def _values(samples: Samples, group_by: str | Mapping[str, Any]) -> list[int | str]:
    what = f"group_by of the {samples.name} samples"
    if isinstance(group_by, str):
        given: Any = samples.column(group_by)
    elif samples.name in group_by:
        given = group_by[samples.name]
    else:
        raise InputError(
            f"group_by has no {samples.name!r} among {sorted(map(str, group_by))}; give the groups "
            "of every split"
        )
    try:
        plain = given.tolist() if isinstance(given, (np.ndarray, Tensor)) else list(given)
    except TypeError:
        raise InputError(f"{what} is {given!r}; give one value for each sample") from None
    if len(plain) != len(samples):
        raise InputError(
            f"{what} holds {len(plain)} values for {len(samples)} samples; give one for each"
        )
    return [_plain(value, what) for value in plain]


def _plain(value: Any, what: str) -> int | str:
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, (bool, np.bool_)):
        return str(bool(value))
    if isinstance(value, str):
        return value
    try:
        number = operator.index(value)
        if abs(number) < 2**63:
            return number
    except TypeError:
        pass
    raise InputError(f"{what} holds {value!r}; give {_KINDS}")


def _known(splits: Sequence[Samples], group_by: str | Mapping[str, Any]) -> list[str] | None:
    """The names that Hugging Face data sets have for the numbers of a column, the same in all."""
    found = [_names(samples, group_by) for samples in splits]
    if any(names != found[0] for names in found):
        said = "; ".join(
            f"{samples.name}: {', '.join(names or ['none'])}"
            for samples, names in zip(splits, found, strict=True)
        )
        raise InputError(
            f"the names of the groups {group_by!r} differ between the data sets ({said}); give "
            "both the same features, or the groups as texts"
        )
    return found[0]


def _names(samples: Samples, group_by: str | Mapping[str, Any]) -> list[str] | None:
    features = getattr(samples.source, "features", None)
    if not isinstance(group_by, str) or not isinstance(features, Mapping):
        return None
    names = getattr(features.get(group_by), "names", None)
    return None if names is None else [str(name) for name in names]


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
