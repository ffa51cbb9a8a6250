"""The paper's signs of good and bad generalization as findings, beside what sampling gives."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float

from unitroles import roles
from unitroles.errors import InputError
from unitroles.results.dataset import SPLITS
from unitroles.results.evidence import BAND, against, half_sizes, marked, over_labels
from unitroles.roles import ROLE_NAMES
from unitroles.stats.evidence import different, interval

LOOSE = 1e-2
"""Nats; the other tolerance that a sign names."""
ABOVE, WITHIN = "above what sampling gives", "within what sampling gives"
ENOUGH = 20
"""Draws; of fewer none marks the 95 % point."""
TOO_FEW = f"fewer than {ENOUGH} floors, too few for a finding"
SIGNS = {role: f"{role} proportion" for role in ROLE_NAMES} | {
    "core_std_over_classes": "std of the core proportion over classes",
    "n0_train_minus_test": "n0/N on train beyond test",
    "regret": "regret on test",
}
"""Of bad generalization, after the paper: many units that are active on the training set
only, cores of many sizes, a longer way to the minimum on train than on test; regret is ours."""
ONE_SIDED = ("overfitted", "generalizing", "n0_train_minus_test", "regret")
"""Those that are 0 but for sampling where both splits are the same to a network."""

RANKED_BY_TEST = ("test", "pooled")
"""Orders by scores of test samples."""


def signs(data: xr.Dataset, level: float, units: str) -> pd.DataFrame:
    """The paper's signs, and regret: sign x [value, noise_floor, ..., finding, sentence].

    `units` : of losses.
    """
    drawn = _signs(data.noise_floor_proportion.values, data.noise_floor_regret.values[:, :, 1])
    columns = against(drawn)
    frame = pd.DataFrame(columns, index=pd.Index(list(SIGNS), name="sign"))
    lowest = data.loss.sel(split="test", retrieved=data.turning_point.sel(split="test"))
    regret = data.swapped_loss.sel(split="test") - lowest
    frame.insert(0, "value", _signs(roles.proportions(data.role.values), regret.values))
    frame["low"], frame["high"] = np.nan, np.nan
    if "proportion_replicate" in data:
        again = data.regret_replicate.sel(split="test").values
        found = interval(_signs(data.proportion_replicate.values, again), level)
        frame["low"], frame["high"] = found
    point = roles.turning_point(data.loss.values, LOOSE)
    other = roles.proportions(roles.roles_at(data.order.values, point))
    frame["at_tolerance_0.01"] = _signs(other, np.zeros(len(other)))
    frame.loc["regret", "at_tolerance_0.01"] = np.nan  # that of other active sets was not measured
    # Sampling makes units differ between splits; of agreement it makes less.
    above = np.where(frame.observed > frame.noise_floor_95, ABOVE, WITHIN).astype(object)
    if data.sizes["draw"] < ENOUGH:
        above[:] = TOO_FEW
    frame["finding"] = np.where(frame.index.isin(ONE_SIDED), above, "")
    frame["sentence"] = [_sentence(str(sign), row, units) for sign, row in frame.iterrows()]
    return marked(frame, data, level)


def _signs(
    share: Float[np.ndarray, "*rest label role"], regret: Float[np.ndarray, "*rest label"]
) -> Float[np.ndarray, "*rest sign"]:
    """The numbers of `SIGNS`, over the classes that have roles."""
    mean, std = over_labels(share), np.nanstd(share[..., 0], axis=-1)
    n0_difference = mean[..., 1] - mean[..., 2]
    others = np.stack([std, n0_difference, np.nanmean(regret, axis=-1)], axis=-1)
    return np.concatenate([mean, others], axis=-1)


def _sentence(sign: str, row: pd.Series, units: str) -> str:
    number, unit = (_small, units) if sign == "regret" else (_percent, "%")

    def shown(value: float, low: float = np.nan, high: float = np.nan) -> str:
        band = f" [{number(low)}, {number(high)}]" if np.isfinite(low) else ""
        return f"{number(value)} {unit}{band}"

    floors = [
        f"{shown(row[f'{split}_noise_floor'], row[f'{split}_low'], row[f'{split}_high'])} "
        f"inside {split}"
        for split in SPLITS
    ]
    other = row["at_tolerance_0.01"]
    loose = f", {shown(other)} at tolerance {LOOSE:g}" if np.isfinite(other) else ""
    text = (
        f"{SIGNS[sign]} {shown(row.value, row.low, row.high)}{loose}; at the size of the noise "
        f"floor {shown(row.observed)}, noise floor {' and '.join(floors)}"
    )
    return f"{text}: {row.finding}" if row.finding else text


def _percent(value: float) -> str:
    return f"{round(100 * value, 1) + 0.0:.1f}"  # -0 is 0


def _small(value: float) -> str:
    """Regrets may be smaller than any fixed number of decimals; -0 is 0."""
    return f"{value + 0.0:+.2g}"


def train_only_signs(data: xr.Dataset, level: float, order: str) -> pd.DataFrame:
    """Signs from the training samples alone, sign x [value, low, high, sentence].

    Raises
    ------
    InputError : test samples ranked the units, with `order` "test" or "pooled".
    """
    if order in RANKED_BY_TEST:
        raise InputError(
            f"with order {order!r} the test samples rank the units of the training set too; "
            "analyse with order='per_split' or 'train'"
        )
    units, train = data.sizes["unit"], {"split": "train"}
    value, low, high = data.turning_point.sel(train).values.mean() / units, np.nan, np.nan
    band = ""
    if "turning_point_replicate" in data:
        again = data.turning_point_replicate.sel(train).values.mean(axis=1) / units
        low, high = map(float, interval(again, level))
        band = f" [{100 * level:g} % interval {_percent(low)}, {_percent(high)}]"
    says = "of the units bring the training loss to its minimum, mean over the classes"
    rows = {"n0/N": [value, low, high, f"{_percent(value)} %{band} {says}"]}
    if "noise_floor_proportion" in data:
        inside = over_labels(data.noise_floor_proportion.sel(drawn_from="train").values)
        drawn = different(inside)[:, 2]
        value, (low, high) = drawn.mean(), map(float, interval(drawn, BAND))
        says = (
            f"{_percent(value)} % [5 to 95 % of the draws {_percent(low)}, {_percent(high)}] of "
            "the units are active on one only of two sets of training samples, of "
            f"{half_sizes(data)} per class"
        )
        rows["unstable units"] = [value, low, high, says]
    columns = pd.Index(["value", "low", "high", "sentence"])
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
    return frame.rename_axis("sign")
