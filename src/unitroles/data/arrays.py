"""What people call arrays, as tensors: NumPy, lists, pandas, xarray, HDF5, memory maps."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unitroles.errors import DataWarning, InputError
from unitroles.wording import first_line

_WIDE = (torch.uint16, torch.uint32, torch.uint64)
"""PyTorch stores numbers of these types and computes with none of them."""


class Arrays:
    """A pair of arrays, read by whole batches.

    The inputs stay where they are: in memory, in a memory map or in a file of HDF5.

    Parameters
    ----------
    inputs : a tensor, or something of shape (samples, ...) whose rows are read by their numbers.
    labels : one per sample.
    what : the inputs, for messages.
    """

    def __init__(self, inputs: Any, labels: Tensor, what: str) -> None:
        self.inputs, self.labels, self.what = inputs, labels, what

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Any) -> tuple[Any, Tensor]:
        """The samples with these numbers, or the one with this number."""
        if isinstance(rows, int):
            inputs, labels = self[np.array([rows])]
            return inputs[0], labels[0]
        return self._inputs(np.asarray(rows)), self.labels[torch.as_tensor(rows)]

    def _inputs(self, rows: np.ndarray) -> Tensor:
        if isinstance(self.inputs, Tensor):
            return self.inputs[torch.from_numpy(rows)]
        if isinstance(self.inputs, np.ndarray):
            return as_numbers(self.inputs[rows], self.what, _REMEDY)
        once, place = np.unique(rows, return_inverse=True)  # files are read upwards
        try:
            found = self.inputs[once]
            found = np.asarray(found.toarray() if hasattr(found, "toarray") else found)  # sparse
        except Exception as error:  # every store fails in its own way
            raise InputError(
                f"{self.what} cannot be read by their numbers ({type(error).__name__}: "
                f"{first_line(error)}); give them as a NumPy array"
            ) from error
        return as_numbers(found[place], self.what, _REMEDY)


_REMEDY = "turn texts into token numbers and tables into one array of numbers"


def is_pair(data: Any) -> bool:
    """Whether data are a pair of arrays or lists, (inputs, labels), not a list of two samples."""
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        return False
    first, second = data
    if not isinstance(first, (list, tuple)):
        return isinstance(first, Tensor) or _is_array(first)
    if not isinstance(second, (list, tuple)):
        return _is_array(second) or isinstance(second, Tensor)
    # Two samples have two members each, an input and a label.
    flat = all(isinstance(label, (int, np.integer)) for label in second)
    return flat and (len(second) != 2 or isinstance(first[-1], (list, tuple, np.ndarray, Tensor)))


def _is_array(value: object) -> bool:
    return hasattr(value, "to_numpy") or (hasattr(value, "shape") and hasattr(value, "dtype"))


def paired(inputs: Any, labels: Any, name: str) -> Arrays:
    """Inputs and labels given as arrays.

    Parameters
    ----------
    name : "train" or "test", for messages.

    Raises
    ------
    InputError : they are no numbers, differ in length or order, lack values, or are pictures of
        whole numbers.

    Warns
    -----
    DataWarning : pandas knows the rows of inputs and labels by other names.
    """
    what = f"the {name} inputs"
    _require_plain(inputs, what)
    _check_order(inputs, labels, name)
    if hasattr(inputs, "to_numpy") and not hasattr(inputs, "dims"):  # pandas
        inputs = inputs.to_numpy()
    if isinstance(inputs, (list, tuple)):
        inputs = as_numbers(inputs, what, _REMEDY)
    refuse_masked(inputs, what)
    given = as_labels(labels, name)
    shapes = tuple(inputs.shape), tuple(given.shape)
    if not all(shapes):
        raise InputError(f"the {name} data are a single number; give an array of samples")
    if shapes[0][0] != shapes[1][0]:
        raise InputError(
            f"the {name} data hold {shapes[0][0]} inputs but {shapes[1][0]} labels; give one each"
        )
    kind = unsigned(inputs)
    if kind is not None and len(shapes[0]) >= 3:
        raise InputError(
            f"the {name} images are {kind} and no transform is known; scale them to floating point "
            "exactly as in training"
        )
    if isinstance(inputs, Tensor):
        inputs = widened(inputs, what)
    found = Arrays(inputs, given, what)
    if len(given):
        found[np.arange(1)]  # what is wrong with all of them is told at once
    return found


def _check_order(inputs: Any, labels: Any, name: str) -> None:
    """Rows are paired by their place: names that say otherwise are no detail."""
    first: Any = getattr(inputs, "index", None)
    second: Any = getattr(labels, "index", None)
    if hasattr(first, "equals") and hasattr(second, "equals") and not first.equals(second):
        if len(first) == len(second) and sorted(map(str, first)) == sorted(map(str, second)):
            raise InputError(
                f"the {name} inputs and labels have the same index in another order; sort them "
                "alike, or give arrays without an index (to_numpy)"
            )
        warnings.warn(
            f"the {name} inputs and labels have another index each: they are paired row by row",
            DataWarning,
            stacklevel=4,
        )
    first, second = (getattr(value, "dims", None) or (None,) for value in (inputs, labels))
    if first[0] != second[0] and second[0] in first:
        raise InputError(
            f"the {name} inputs have {first[0]!r} as first dimension, the labels {second[0]!r}; "
            f"transpose the inputs so that {second[0]!r} comes first"
        )


def _require_plain(value: Any, what: str) -> None:
    """Refuse tensors whose samples cannot be read by their numbers."""
    if not isinstance(value, Tensor):
        return
    if value.is_meta:
        raise InputError(f"{what} are on the meta device and hold no numbers; give the numbers")
    if value.is_nested or value.layout is not torch.strided or value.is_quantized:
        kind = "nested" if value.is_nested else "quantized" if value.is_quantized else "sparse"
        raise InputError(
            f"{what} are a {kind} tensor, whose samples cannot be taken one by one; give a plain "
            "one (to_dense, to_padded_tensor, dequantize), or a data set that gives each sample"
        )


def as_labels(labels: Any, name: str) -> Tensor:
    _require_plain(labels, f"the {name} labels")
    remedy = "give class numbers from 0 and the names with class_names"
    return as_numbers(labels, f"the {name} labels", remedy).cpu()


def as_numbers(value: Any, what: str, remedy: str) -> Tensor:
    """A tensor of what may be an array, a list or a number; unsigned numbers become int64.

    Raises
    ------
    InputError : it holds something else than numbers, masked values, or numbers of 2^63 and more.
    """
    try:
        if isinstance(value, (list, tuple)) and value and isinstance(value[0], np.ndarray):
            value = np.stack(value)
        elif isinstance(value, (list, tuple)) and value and isinstance(value[0], Tensor):
            value = torch.stack(tuple(value))
        elif _is_array(value) and not isinstance(value, (Tensor, np.ndarray, np.generic)):
            stored: Any = value
            value = stored.to_numpy() if hasattr(stored, "to_numpy") else stored[()]
        if isinstance(value, np.ndarray):
            value = native(value, what)
            # torch can neither wrap a read-only array without complaint nor negative strides.
            value = np.require(value, requirements=["C", "W"])
        return widened(torch.as_tensor(value), what)
    except InputError:
        raise
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(f"{what} are no numbers ({first_line(error)}); {remedy}") from error


def native(array: np.ndarray, what: str) -> np.ndarray:
    """The same numbers as this machine orders their bytes."""
    refuse_masked(array, what)
    plain = np.asarray(array)
    return plain.astype(plain.dtype.newbyteorder("="), copy=False)


def refuse_masked(array: Any, what: str) -> None:
    """Raise an error where values are masked: what lies below is no number that anybody meant."""
    if isinstance(array, np.ma.MaskedArray) and np.ma.is_masked(array):
        raise InputError(
            f"{what} have {np.ma.count_masked(array)} masked values; fill them in, or leave these "
            "samples out"
        )


def widened(values: Tensor, what: str) -> Tensor:
    """Unsigned numbers of 16 to 64 bits as int64, others as they are."""
    if values.dtype not in _WIDE:
        return values
    if values.dtype == torch.uint64 and bool((values.view(torch.int64) < 0).any()):
        raise InputError(f"{what} hold numbers of 2^63 and more; give smaller ones")
    return values.to(torch.int64)


def unsigned(values: Any) -> str | None:
    """The type of unsigned whole numbers, of which pictures are stored; None for others."""
    kind = getattr(values, "dtype", None)
    name = kind.name if isinstance(kind, np.dtype) else str(kind).removeprefix("torch.")
    return name if name.startswith("uint") else None


def plain_leaves(item: Any) -> Any:
    """A sample whose arrays torch can put into a batch."""
    if isinstance(item, np.ndarray):
        return native(item, "the samples")
    if isinstance(item, Mapping):
        return {name: plain_leaves(value) for name, value in item.items()}
    nested = (np.ndarray, Mapping, list, tuple)
    if type(item) in (list, tuple) and any(isinstance(value, nested) for value in item):
        return type(item)(plain_leaves(value) for value in item)
    return item
