"""A result -> tables of its evidence: noise floors, intervals, flat minima, agreement, controls."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float, Int

from unitroles import roles
from unitroles.errors import InputError
from unitroles.results.dataset import SPLITS
from unitroles.roles import ROLE_NAMES
from unitroles.stats.agreement import overlap
from unitroles.stats.evidence import (
    ALPHA,
    DIFFERENT,
    adjusted,
    different,
    fdr_adjusted,
    interval,
    permutation_p,
)
from unitroles.stats.grid import hidden
from unitroles.stats.minima import basin, one_error_point
from unitroles.wording import range_of

BAND = 0.9
"""Of the draws of a noise floor; 5 to 95 %."""
ASKS = (
    "does this network treat its training samples like fresh ones?\nFor a trained network and "
    "enough samples the answer is mostly no: read the size of the difference, not p."
)
GOOD_COVERAGE = 0.85
"""Of intervals of 90 %."""
WITH_RANKS = "the uncertainty of the ranking included"
WITHOUT_RANKS = "the uncertainty of the ranking not included"


def require(data: xr.Dataset, name: str, option: str) -> None:
    """Refuse a result without this evidence.

    Raises
    ------
    InputError : and how to get it.
    """
    if name not in data:
        raise InputError(
            f"this result has no such evidence; analyse with evidence=Evidence({option})"
        )


def least_coverage(level: float) -> float:
    """Intervals of this level that are measured to cover less are too narrow."""
    return level - (0.9 - GOOD_COVERAGE)


def over_labels(share: Float[np.ndarray, "*rest label role"]) -> Float[np.ndarray, "*rest role"]:
    """Mean over the classes that have roles."""
    return np.nanmean(share, axis=-2)


def floors(data: xr.Dataset) -> pd.DataFrame:
    """Proportions from sampling alone, role x [observed, noise_floor, above_floor, ...]."""
    share = data.noise_floor_proportion.values
    columns = against(over_labels(share))
    stds = {
        "std_over_labels": np.nanstd(share, axis=-2),
        "std_over_units": data.noise_floor_std_over_units.values,
    }
    for name, std in stds.items():
        found = against(std)
        columns |= {f"{part}_{name}": found[part] for part in ("observed", "noise_floor")}
    return pd.DataFrame(columns, index=pd.Index(ROLE_NAMES, name="role"))


def half_sizes(data: xr.Dataset) -> str:
    """The samples of a class in the sets of the noise floor, in words."""
    size = data.noise_floor_samples.values
    return range_of(size[size > 0])


def against(draws: Float[np.ndarray, "drawn_from=3 draw value"]) -> dict[str, np.ndarray]:
    """Between halves of both splits, and of either one; drawn from train, test, and both."""
    train, test, both = draws.mean(axis=1)
    floor = np.maximum(train, test)
    columns = {"observed": both, "noise_floor": floor, "above_floor": both - floor}
    for name, mean, drawn in zip(SPLITS, (train, test), draws[:2], strict=True):
        low, high = interval(drawn, BAND)
        columns |= {f"{name}_noise_floor": mean, f"{name}_low": low, f"{name}_high": high}
    columns["noise_floor_95"] = np.maximum(columns["train_high"], columns["test_high"])
    return columns


def exchangeability(data: xr.Dataset) -> pd.DataFrame:
    """Units active on one split only against new splits, kind x [observed, resplit, p]."""
    own = different(over_labels(roles.proportions(data.role.values)))
    drawn = different(over_labels(data.resplit_proportion.values))
    low, high = interval(drawn, BAND)
    frame = pd.DataFrame(
        {
            "observed": own,
            "resplit": drawn.mean(axis=0),
            "resplit_low": low,
            "resplit_high": high,
            "p": permutation_p(own, drawn),
        },
        index=pd.Index(DIFFERENT, name="active on one split"),
    )
    frame.attrs = {"resplits": len(drawn), "smallest_p": 1 / (len(drawn) + 1), "asks": ASKS}
    return frame


def exchangeability_by_label(data: xr.Dataset) -> pd.DataFrame | None:
    """p of each class for units active on either split only, with its adjusted value.

    None where the resplits are too few to reject one class alone.
    """
    own = different(roles.proportions(data.role.values))[:, 2]
    p = permutation_p(own, different(data.resplit_proportion.values)[..., 2])
    found = adjusted(p, data.sizes["resplit"])
    if found is None:
        return None
    return pd.DataFrame({"p": p, "adjusted_p": found}, index=pd.Index(data.label, name="label"))


def marked(frame: pd.DataFrame, data: xr.Dataset, level: float) -> pd.DataFrame:
    """A table with intervals, where there are any, says their level and what is in them."""
    if "proportion_replicate" in data:
        noise = WITH_RANKS if "role_probability" in data else WITHOUT_RANKS
        frame.attrs = {"level": level, "noise": noise}
    return frame


def intervals(data: xr.Dataset, level: float) -> pd.DataFrame:
    """Mean proportions and their std over other samples, role x [value, low, high, ...]."""
    again, share = data.proportion_replicate.values, roles.proportions(data.role.values)
    values = {
        "": (share.mean(axis=0), over_labels(again)),
        "std_over_labels": (share.std(axis=0), np.nanstd(again, axis=-2)),
        "std_over_units": (
            roles.shares(data.role.values).std(axis=0),
            data.std_over_units_replicate.values,
        ),
    }
    columns: dict[str, np.ndarray] = {}
    for name, (value, replicates) in values.items():
        low, high = interval(replicates, level)
        before = f"{name}_" * bool(name)
        columns |= {name or "value": value, f"{before}low": low, f"{before}high": high}
    return marked(pd.DataFrame(columns, index=pd.Index(ROLE_NAMES, name="role")), data, level)


def intervals_by_label(data: xr.Dataset, level: float) -> pd.DataFrame:
    """Proportions of every class over other samples, (label, role) x [value, low, high]."""
    low, high = interval(data.proportion_replicate.values, level)
    value, names = roles.proportions(data.role.values), [data.label.values, list(ROLE_NAMES)]
    index = pd.MultiIndex.from_product(names, names=["label", "role"])
    columns = {"value": value.ravel(), "low": low.ravel(), "high": high.ravel()}
    return marked(pd.DataFrame(columns, index=index), data, level)


def agreement(data: xr.Dataset) -> pd.DataFrame:
    """Agreement of the two splits in active sets and orders, label x field of `Overlap`."""
    found = overlap(data.order.values, data.turning_point.values)
    frame = pd.DataFrame(asdict(found), index=pd.Index(data.label.values, name="label"))
    known = frame.p.dropna()
    p = pd.Series(fdr_adjusted(known.to_numpy()), known.index) if len(known) else known
    frame.insert(list(frame).index("p") + 1, "adjusted_p", p)
    return frame


def by_chance(agreement: pd.DataFrame) -> list[Any] | None:
    """Classes whose core random sets of the same sizes would have too, at a false discovery of 5 %.

    None where both splits have one order, which makes a core of nested sets.
    """
    known = agreement.adjusted_p.dropna()
    return None if known.empty else known.index[known > ALPHA].tolist()


def minima(data: xr.Dataset, delta: float, level: float) -> pd.DataFrame:
    """The basin of every turning point, (split, label) x [turning_point, low, high, width, ...]."""
    point = data.turning_point.values
    low, high, width = basin(data.loss.values, point, delta)
    columns = {"turning_point": point, "low": low, "high": high, "width": width}
    if np.isnan(data.loss.values[..., 1:]).any():
        columns["hidden"] = np.apply_along_axis(hidden, -1, data.loss.values)
    if "paired_error" in data:
        columns["one_error"] = _one_error(data)
    if "turning_point_replicate" in data:
        first, last = interval(data.turning_point_replicate.values, level)
        columns |= {"turning_point_low": first, "turning_point_high": last}
    columns["status"] = data.status.values
    return marked(_by_split(data, columns), data, level)


def _one_error(data: xr.Dataset) -> Int[np.ndarray, "split label"]:
    samples = data.samples.values
    return one_error_point(
        data.loss.values,
        data.paired_error.values,
        samples,
        samples.min(axis=0),
        data.turning_point.values,
    )


def at_one_error(data: xr.Dataset) -> Float[np.ndarray, " role"]:
    """Mean proportions where a turning point is the first n within one standard error."""
    return roles.proportions(roles.roles_at(data.order.values, _one_error(data))).mean(axis=0)


def controls(data: xr.Dataset) -> pd.DataFrame:
    """Mean proportions under every control, control x [*roles, agreement]."""
    frame = pd.DataFrame(
        data.control_proportion.values.mean(axis=1),
        index=pd.Index(data.control.values, name="control"),
        columns=pd.Index(ROLE_NAMES),
    )
    return frame.assign(agreement=data.control_agreement.values.mean(axis=1))


def active_sets(data: xr.Dataset) -> pd.DataFrame:
    """Active sets against the whole layer, (split, label) x [recall, intact_recall, ...]."""
    at = data.accuracy.sel(retrieved=data.turning_point).values
    columns = {
        "recall": at,
        "intact_recall": data.accuracy.values[..., -1],
        "balanced_accuracy": data.set_balanced_accuracy.values,
        "intact_balanced_accuracy": data.intact_balanced_accuracy.values,
        "loss": data.set_loss.values,
        "intact_loss": np.broadcast_to(data.intact_loss.values[:, None], at.shape),
    }
    return _by_split(data, columns)


def _by_split(data: xr.Dataset, columns: dict[str, np.ndarray]) -> pd.DataFrame:
    """Values (split, label), one row each."""
    names = ["split", "label"]
    index = pd.MultiIndex.from_product([data[name].values for name in names], names=names)
    return pd.DataFrame({name: values.ravel() for name, values in columns.items()}, index=index)
