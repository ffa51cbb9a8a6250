"""A result -> its tables: summary, sensitivity, regret, curves, one row per unit."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float

from unitroles import roles
from unitroles.results import evidence
from unitroles.results.dataset import SPLITS
from unitroles.roles import ROLE_NAMES, Role
from unitroles.stats.evidence import interval


def by_role(table: Float[np.ndarray, "row role"], index: pd.Index) -> pd.DataFrame:
    """One column per role."""
    return pd.DataFrame(table, index=index, columns=pd.Index(ROLE_NAMES, name="role"))


def role_names(data: xr.Dataset) -> pd.DataFrame:
    """Role names, label x unit."""
    names = np.array([role.name.lower() for role in Role])
    index = pd.Index(data.label.values.tolist(), name="label")
    columns = pd.Index(data.unit.values, name="unit")
    return pd.DataFrame(names[data.role.values], index=index, columns=columns)


def summary(data: xr.Dataset, level: float, without: Collection[Any] | None) -> pd.DataFrame:
    """See `Taxonomy.summary`.

    Parameters
    ----------
    without : classes that are left out; evidence, which is of all classes, is given for None alone.
    """
    kept = [label not in (without or ()) for label in data.label.values.tolist()]
    role, index = data.role.values[kept], pd.Index(ROLE_NAMES, name="role")
    if not len(role):
        columns = ["mean", "std_over_labels", "std_over_units"]
        return pd.DataFrame(np.nan, index=index, columns=columns)
    by_label, by_unit = roles.proportions(role), roles.shares(role)
    frame = pd.DataFrame(
        {
            "mean": by_label.mean(axis=0),
            "std_over_labels": by_label.std(axis=0, ddof=0),
            "std_over_units": by_unit.std(axis=0, ddof=0),
        },
        index=index,
    )
    if without is None and "proportion_replicate" in data:
        found = evidence.intervals(data, level)
        frame[["low", "high"]] = found[["low", "high"]]
        frame.attrs = found.attrs
    if without is None and "noise_floor_proportion" in data:
        columns = ["observed", "noise_floor", "above_floor"]
        frame[columns] = evidence.floors(data)[columns]
    return frame


def sensitivity(data: xr.Dataset, tolerance: float) -> pd.DataFrame:
    """See `Taxonomy.sensitivity`."""
    curves = data.loss.values, data.accuracy.values, data.order.values
    rows = roles.sensitivity(*curves, tolerance=tolerance)
    if "paired_error" in data:
        rows["one standard error"] = evidence.at_one_error(data)
    return by_role(np.array(list(rows.values())), pd.Index(list(rows), name="rule"))


def regret(data: xr.Dataset, level: float) -> pd.DataFrame:
    """See `Taxonomy.regret`."""
    at = data.turning_point
    loss = (data.swapped_loss - data.loss.sel(retrieved=at)).values
    accuracy = (data.accuracy.sel(retrieved=at) - data.swapped_accuracy).values
    columns = dict(zip(SPLITS, loss, strict=True))
    columns |= {f"{name}_accuracy": row for name, row in zip(SPLITS, accuracy, strict=True)}
    if "regret_replicate" in data:
        low, high = interval(data.regret_replicate.values, level)
        for place, name in enumerate(SPLITS):
            columns |= {f"{name}_low": low[place], f"{name}_high": high[place]}
    frame = pd.DataFrame(columns, index=pd.Index(data.label.values.tolist(), name="label"))
    return evidence.marked(frame, data, level)


def to_frame(data: xr.Dataset) -> pd.DataFrame:
    """See `Taxonomy.to_frame`."""
    score, position = data.score.values, roles.positions(data.order.values)
    labels, units = np.array(data.label.values.tolist(), dtype=object), data.unit.values
    columns = {
        "label": pd.Index(np.repeat(labels, len(units))).infer_objects(),
        "unit": np.tile(units, len(labels)),
        "role": role_names(data).to_numpy().ravel(),
        "score_train": score[0].ravel(),
        "score_test": score[1].ravel(),
        "position_train": position[0].ravel(),
        "position_test": position[1].ravel(),
    }
    if "role_probability" in data:
        chance = data.role_probability.values
        columns |= {f"p_{name}": chance[..., i].ravel() for i, name in enumerate(ROLE_NAMES)}
    return pd.DataFrame(columns)


def curves(data: xr.Dataset, level: float) -> pd.DataFrame:
    """See `Taxonomy.curves`."""
    names = ["loss", "accuracy", *(name for name in ("loss_low", "loss_high") if name in data)]
    frame = data[names].to_dataframe().reset_index()[["split", "label", "retrieved", *names]]
    return evidence.marked(frame, data, level)
