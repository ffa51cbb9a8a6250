"""Samples classed by another column than their label."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from unitroles.data import Samples
from unitroles.errors import InputError

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
