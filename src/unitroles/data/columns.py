"""The columns of its samples that a model takes."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, nn

from unitroles.data.samples import Samples
from unitroles.errors import DataWarning, InputError


def fitted(model: nn.Module, samples: Samples, spare: object = None) -> Samples:
    """The same samples, read as the model takes them.

    Of samples with named columns, those that the model's forward has no parameter for are left
    out; a single column of tensors under another name is given as the only input.

    Parameters
    ----------
    spare : the name of a column that serves another purpose, and is an input only where the
        model's forward has a parameter of this name.

    Raises
    ------
    InputError : the model takes none of the columns.

    Warns
    -----
    DataWarning : a column of tensors is left out.
    """
    inputs = next(samples.take(np.arange(1)).batches(1)).inputs
    if not isinstance(inputs, Mapping):
        return samples
    known = _parameters(model)
    if spare not in (known or ()):
        inputs = {name: value for name, value in inputs.items() if name != spare}
    tensors = [str(name) for name, value in inputs.items() if isinstance(value, Tensor)]
    taken = tensors if known is None else [str(name) for name in inputs if name in known]
    if not taken and len(tensors) == 1:
        (only,) = tensors
        return replace(samples, fit=partial(_column, name=only))
    if not taken:
        raise InputError(
            f"the {samples.name} samples have the columns {', '.join(map(str, inputs))}, but the "
            f"model's forward takes {', '.join(known or ()) or 'nothing'}; rename the columns, or "
            "turn texts and pictures into tensors first"
        )
    left = [name for name in tensors if name not in taken]
    if left:
        warnings.warn(
            f"the model's forward does not take {', '.join(map(repr, left))} of the "
            f"{samples.name} samples: left out",
            DataWarning,
            stacklevel=3,
        )
    return replace(samples, fit=partial(_columns, names=tuple(taken)))


def _columns(inputs: Any, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: _column(inputs, name) for name in names}


def _column(inputs: Any, name: str) -> Any:
    if name not in inputs:
        raise InputError(
            f"some samples have nothing in the column {name!r}, which the model takes; fill it in "
            "or remove them"
        )
    return inputs[name]


def _parameters(model: nn.Module) -> list[str] | None:
    """The names of what the model's forward can be given; None = anything."""
    found = inspect.signature(model.forward).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in found):
        return None
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [parameter.name for parameter in found if parameter.kind in kinds]
