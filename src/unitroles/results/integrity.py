"""Whether the numbers of a result can be those of one: no file is believed without."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import xarray as xr

from unitroles import roles
from unitroles.errors import InputError
from unitroles.results.dataset import (
    BASIC,
    CROSS_ENTROPY,
    OWN_UNITS,
    SPLITS,
    VARIABLES,
)
from unitroles.roles import ROLE_NAMES
from unitroles.stats.minima import NEVER_FALLS

_DEEPEST = 20
"""Levels of the provenance; it has five."""
_ROUNDING = 1e-6
_NUMBER = (int, float)
_TYPES: dict[tuple[str, ...], tuple[type, ...]] = {
    ("options",): (dict,),
    ("options", "method"): (dict,),
    ("options", "method", "score"): (str,),
    ("options", "method", "order"): (str,),
    ("options", "method", "tolerance"): _NUMBER,
    ("options", "method", "baseline"): (str,),
    ("options", "sample"): (dict,),
    ("options", "sample", "group_by"): (str, type(None)),
    ("options", "evidence"): (dict, type(None)),
    ("options", "evidence", "level"): _NUMBER,
    ("plan",): (dict,),
    ("plan", "name"): (str,),
    ("plan", "reason"): (str,),
    ("warnings",): (list,),
}
"""Of the parts of the provenance that tables and reports read, where they are there."""
_ATTRS: dict[str, tuple[type, ...]] = {
    "layer": (str,),
    "plan": (str,),
    "tolerance": _NUMBER,
    "train_accuracy": _NUMBER,
    "test_accuracy": _NUMBER,
    "provenance": (str,),
}


def checked_provenance(attrs: dict[str, Any]) -> None:
    """Refuse attributes that are not those of a result.

    Raises
    ------
    InputError : which one, and why.
    """
    for name, types in _ATTRS.items():
        if not isinstance(attrs.get(name), types):
            raise InputError(f"its attribute {name!r} is {attrs.get(name)!r}"[:200])
    if not 0 <= attrs["tolerance"] < float("inf"):
        raise InputError(f"its tolerance is {attrs['tolerance']!r}")
    if not isinstance(attrs.get("loss", ""), str):
        raise InputError(f"its loss is {attrs['loss']!r}")
    resolution = attrs.get("resolution", "exact")
    if resolution not in ("exact", "adaptive") and not (
        isinstance(resolution, int) and resolution >= 1
    ):
        raise InputError(f"its resolution is {resolution!r}"[:200])
    for split in SPLITS:
        _require(_fraction(attrs[f"{split}_accuracy"]), f"its {split}_accuracy is no fraction")
    try:
        provenance = json.loads(attrs["provenance"])
    except (ValueError, RecursionError) as error:
        raise InputError("its provenance is no JSON") from error
    _require(isinstance(provenance, dict), "its provenance is no JSON of names and values")
    _require(_shallow(provenance), f"its provenance has more than {_DEEPEST} levels")
    for path, types in _TYPES.items():
        _check_part(provenance, path, types)
    _require(
        all(isinstance(text, str) for text in provenance.get("warnings", [])),
        "the warnings of its provenance are no texts",
    )


def _check_part(provenance: Any, path: tuple[str, ...], types: tuple[type, ...]) -> None:
    value = provenance
    for name in path:
        if not isinstance(value, dict) or name not in value:
            return
        value = value[name]
    good = isinstance(value, types) and not isinstance(value, bool)
    if good and types == _NUMBER:
        good = bool(np.isfinite(float(value))) and (path[-1] != "level" or 0 < value < 1)
    _require(good, f"{'.'.join(path)} of its provenance is of another kind than that of a result")


def _shallow(value: Any) -> bool:
    level = [value]
    for _ in range(_DEEPEST):
        inner = (list(each.values()) if isinstance(each, dict) else each for each in level)
        level = [one for each in inner for one in each if isinstance(one, dict | list)]
        if not level:
            return True
    return False


def check(data: xr.Dataset) -> None:
    """Refuse numbers that no analysis gives, or that do not agree with each other.

    Raises
    ------
    InputError : which ones.
    """
    _check_coordinates(data)
    units = data.sizes["unit"]
    for name in data.data_vars:
        _check_values(data[name].values, str(name), VARIABLES[str(name)][1], units)
    order, point = data.order.values, data.turning_point.values
    permuted = (np.sort(order, axis=-1) == np.arange(units)).all()
    _require(permuted, "an order of the units is no permutation")
    _require((data.samples.values > 0).all(), "a class has no samples")
    _check_curves(data)
    same = np.array_equal(roles.roles_at(order, point), data.role.values)
    _require(same, "its roles are not those of its orders and turning points")
    given = data.attrs.get("loss", CROSS_ENTROPY)
    wanted = "nats" if given == CROSS_ENTROPY else OWN_UNITS
    _require(data.loss.attrs.get("units", "nats") == wanted, f"its losses are not in {wanted}")


def _check_coordinates(data: xr.Dataset) -> None:
    for name in BASIC:
        _require(bool(data[name].size), f"its {name} is empty")
    _require(data.split.values.tolist() == list(SPLITS), f"its splits are not {SPLITS}")
    units = data.sizes["unit"]
    sizes = {"unit": units, "position": units, "retrieved": units + 1}
    for name, size in sizes.items():
        counted = np.array_equal(data[name].values, np.arange(size))
        _require(counted, f"its {name} does not count from 0 to {size - 1}")
    for name in ("label", "label_index"):
        values = data[name].values.tolist()
        _require(len(set(values)) == len(values), f"its {name} has one class twice")
    if data.label.dtype.kind != "O":
        same = np.array_equal(data.label.values, data.label_index.values)
        _require(same, "the numbers of its classes are not those of its labels")
    if "role_name" in data.coords:
        named = data.role_name.values.tolist() == list(ROLE_NAMES)
        _require(named, f"its role_name is not {ROLE_NAMES}")
    for name, size in (("drawn_from", 3), ("half", 2)):
        _require(data.sizes.get(name, size) == size, f"its {name} has not {size} values")


def _check_values(values: np.ndarray, name: str, kind: str, units: int) -> None:
    if kind == "fraction":
        _require(_fraction(values), f"{name} holds something else than fractions")
    elif kind == "number":
        _require(not np.isinf(values).any(), f"{name} holds an infinite number")
    elif kind == "count":
        _require((values >= 0).all(), f"{name} holds a number below 0")
    elif kind == "place":
        inside = ((values >= 0) & (values <= units)).all()
        _require(inside, f"{name} holds something else than numbers from 0 to {units}")


def _fraction(values: Any) -> bool:
    given = np.asarray(values, dtype=float)
    inside = (given >= -_ROUNDING) & (given <= 1 + _ROUNDING)
    return bool((np.isnan(given) | inside).all())


def _check_curves(data: xr.Dataset) -> None:
    """Losses are there where a resolution has them, and turning points are those of the curves."""
    loss, accuracy = data.loss.values[..., 1:], data.accuracy.values[..., 1:]
    measured = np.isfinite(loss)
    exact = data.attrs.get("resolution", "exact") == "exact"
    there = measured.all() if exact else measured[..., -1].all()
    _require(there, "a loss is not a number where it was measured")
    _require(np.isfinite(data.score.values).all(), "a score is not a number")
    _require(np.isfinite(data.swapped_loss.values).all(), "a swapped_loss is not a number")
    scored = np.isfinite(accuracy)
    agrees = not scored.any() or np.array_equal(scored, measured)
    _require(agrees, "an accuracy is not a number where it was measured")
    point = roles.turning_point(data.loss.values, float(data.attrs["tolerance"]))
    same = np.array_equal(point, data.turning_point.values)
    _require(same, "its turning points are not those of its curves at its tolerance")
    # E(0) need not be a number: what follows may have no answer where no unit is retrieved.
    known = np.isfinite(data.loss.values[..., 0])
    never = data.status.values == NEVER_FALLS
    same = np.array_equal(never[known], ~roles.falls(data.loss.values)[known])
    _require(same, "its status is not that of its curves")


def _require(holds: Any, otherwise: str) -> None:
    if not holds:
        raise InputError(otherwise)
