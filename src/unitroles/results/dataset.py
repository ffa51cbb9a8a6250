"""Everything measured about one layer as an `xarray.Dataset`: names, units and the roles."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from unitroles import roles
from unitroles.errors import InputError
from unitroles.roles import Role
from unitroles.stats.minima import NEVER_FALLS, status

FORMAT = "unitroles taxonomy 3"
"""Of the root group of a file; other groups, and the attribute `digest`, are for later versions."""
_FORMAT_2 = "unitroles taxonomy 2"
_RENAMED = {
    "floor_share": "noise_floor_proportion",
    "floor_unit_std": "noise_floor_std_over_units",
    "floor_regret": "noise_floor_regret",
    "floor_samples": "noise_floor_samples",
    "resplit_share": "resplit_proportion",
    "share_replicate": "proportion_replicate",
    "unit_std_replicate": "std_over_units_replicate",
    "control_share": "control_proportion",
}
"""Variables of format 2, and what format 3 calls them."""
SPLITS = ("train", "test")
_BY_LABEL, _CURVE = ("split", "label"), ("split", "label", "retrieved")
_ROLES = ("label", "role_name")
_DRAWN, _REPLICATE = ("drawn_from", "draw"), ("replicate", "split", "label")
# fmt: off
VARIABLES: dict[str, tuple[tuple[str, ...], str]] = {
    "score": (("split", "label", "unit"), "number"),
    "order": (("split", "label", "position"), "count"),
    "loss": (_CURVE, "number"),
    "accuracy": (_CURVE, "fraction"),
    "samples": (_BY_LABEL, "count"),
    "turning_point": (_BY_LABEL, "place"),
    "swapped_loss": (_BY_LABEL, "number"),
    "swapped_accuracy": (_BY_LABEL, "fraction"),
    "role": (("label", "unit"), "count"),
    "status": (_BY_LABEL, "text"),
    "loss_low": (_CURVE, "number"),
    "loss_high": (_CURVE, "number"),
    "paired_error": (_CURVE, "number"),
    "turning_point_replicate": (_REPLICATE, "place"),
    "regret_replicate": (_REPLICATE, "number"),
    "proportion_replicate": (("replicate", *_ROLES), "fraction"),
    "std_over_units_replicate": (("replicate", "role_name"), "fraction"),
    "role_probability": (("label", "unit", "role_name"), "fraction"),
    "coverage": (("quantity",), "fraction"),
    "noise_floor_proportion": ((*_DRAWN, *_ROLES), "fraction"),
    "noise_floor_std_over_units": ((*_DRAWN, "role_name"), "fraction"),
    "noise_floor_regret": ((*_DRAWN, "half", "label"), "number"),
    "noise_floor_samples": (("label",), "count"),
    "resplit_proportion": (("resplit", *_ROLES), "fraction"),
    "temperature": ((), "number"),
    "control_proportion": (("control", *_ROLES), "fraction"),
    "control_agreement": (("control", "label"), "fraction"),
    "set_loss": (_BY_LABEL, "number"),
    "set_balanced_accuracy": (_BY_LABEL, "fraction"),
    "intact_loss": (("split",), "number"),
    "intact_balanced_accuracy": (_BY_LABEL, "fraction"),
}
# fmt: on
"""All that a result can hold, by name: dims, and what the values are: a number or not a number; a
fraction, from 0 to 1 or not a number; a count; a place, from 0 to the number of units; a text."""
BASIC = tuple(VARIABLES)[:10]
"""Those that every result has."""
COORDINATES = {
    "split": "text",
    "label": "name",
    "label_index": "integer",
    "unit": "count",
    "position": "count",
    "retrieved": "count",
    "role_name": "text",
    "drawn_from": "text",
    "quantity": "text",
    "control": "text",
}
"""By name what the values are: as of `VARIABLES`, an integer, or a name, which is a text or one."""
CROSS_ENTROPY = "cross_entropy"
OWN_UNITS = "units of the loss"
"""The unit of a loss other than cross-entropy."""
# fmt: off
_LOSSES = {
    "loss_low", "loss_high", "paired_error", "noise_floor_regret", "regret_replicate", "set_loss",
    "intact_loss",
}
# fmt: on


@dataclass(frozen=True)
class Measured:
    """One layer on both splits: every array begins with the axes split, label.

    Parameters
    ----------
    score, order : of the units; by unit, and by position.
    loss, accuracy : the curves, by units retrieved.
    samples, turning_point : whole numbers.
    swapped_loss, swapped_accuracy : under the active set of the other split.
    """

    score: np.ndarray
    order: np.ndarray
    loss: np.ndarray
    accuracy: np.ndarray
    samples: np.ndarray
    turning_point: np.ndarray
    swapped_loss: np.ndarray
    swapped_accuracy: np.ndarray


def dataset(
    measured: Measured,
    *,
    labels: np.ndarray,
    names: list[str] | None,
    attrs: dict[str, Any],
    provenance: dict[str, Any],
    evidence: tuple[Mapping[str, Any], Mapping[str, np.ndarray]] = ({}, {}),
) -> xr.Dataset:
    """Name every axis, and read the roles off the active sets.

    `attrs` needs the layer, the plan and both accuracies; the tolerance, in nats, has a default.
    `evidence` are further variables as (dims, values), and the coordinates of their own dims.
    """
    role = roles.roles_at(measured.order, measured.turning_point)
    flags = {
        "flag_values": np.array(list(Role), dtype=np.uint8),
        "flag_meanings": " ".join(one.name.lower() for one in Role),
    }
    by_label, curve = ("split", "label"), ("split", "label", "retrieved")
    nats = "nats" if attrs.get("loss", CROSS_ENTROPY) == CROSS_ENTROPY else OWN_UNITS
    return xr.Dataset(
        {
            "score": (("split", "label", "unit"), measured.score),
            "order": (("split", "label", "position"), measured.order.astype(np.int32)),
            "loss": (curve, measured.loss, {"units": nats}),
            "accuracy": (curve, measured.accuracy, {"units": "fraction"}),
            "samples": (by_label, measured.samples.astype(np.int64)),
            "turning_point": (by_label, measured.turning_point.astype(np.int32)),
            "swapped_loss": (by_label, measured.swapped_loss, {"units": nats}),
            "swapped_accuracy": (by_label, measured.swapped_accuracy, {"units": "fraction"}),
            "role": (("label", "unit"), role, flags),
            "status": (by_label, status(measured.loss, measured.turning_point)),
            **{
                name: (*given, {"units": nats}) if name in _LOSSES else given
                for name, given in evidence[0].items()
            },
        },
        coords={
            "split": list(SPLITS),
            "label": labels if names is None else np.array(names, dtype=object),
            "label_index": ("label", labels.astype(np.int64)),
            "unit": np.arange(measured.score.shape[2]),
            "position": np.arange(measured.score.shape[2]),
            "retrieved": np.arange(measured.loss.shape[2]),
            **evidence[1],
        },
        attrs={
            "tolerance": roles.RESOLUTION,
            "resolution": "exact",
            **attrs,
            "format": FORMAT,
            "provenance": json.dumps(provenance),
        },
    )


def known_names(found: object) -> dict[str, str]:
    """The variables of a format as they are named there, and how `FORMAT` names them.

    Raises
    ------
    InputError : it is neither this format nor the one before.
    """
    if found == FORMAT:
        return {name: name for name in VARIABLES}
    if found != _FORMAT_2:
        raise InputError(
            f"its format is {found!r}, this version reads {_FORMAT_2!r} and {FORMAT!r}"
        )
    old = {new: old for old, new in _RENAMED.items()}
    return {old.get(name, name): name for name in VARIABLES}


def upgraded(data: xr.Dataset) -> xr.Dataset:
    """A data set read from a file, with the words of `FORMAT`; its variables have their names."""
    if data.attrs["format"] == FORMAT:
        return data
    status = np.where(data.status == "never below the dead layer", NEVER_FALLS, data.status)
    data["status"] = (data.status.dims, status)
    provenance = json.loads(data.attrs["provenance"])
    asked = provenance["options"].get("evidence")
    if asked is not None:
        given = asked.pop("confidence", None)
        asked["bootstrap"] = "fixed_ranking" if given == "given_order" else given
    return data.assign_attrs(format=FORMAT, provenance=json.dumps(provenance))
