"""Evidence of a result -> tables: floors, the exchangeability test, intervals, signs."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float

from unitroles import roles
from unitroles.errors import InputError
from unitroles.evidence import DIFFERENT, adjusted, different, interval, permutation_p
from unitroles.roles import ROLE_NAMES

BAND = 0.9
"""Of the draws of a floor; 5 to 95 %."""
LOOSE = 1e-2
"""Nats; the other tolerance that a sign names."""
ABOVE, WITHIN = "above what sampling gives", "within what sampling gives"
ASKS = (
    "does this network treat its training samples like fresh ones?\nFor a trained network the "
    "answer is nearly always no: read the size of the excess, not p."
)


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


def _over_labels(share: Float[np.ndarray, "*rest label role"]) -> Float[np.ndarray, "*rest role"]:
    """Mean over the classes that have roles."""
    return np.nanmean(share, axis=-2)


def floors(data: xr.Dataset) -> pd.DataFrame:
    """Role shares from sampling alone, role x [observed, floor, excess, train_*, test_*]."""
    require(data, "floor_share", "floors=20")
    share = data.floor_share.values
    if np.isnan(share).all():
        raise InputError(
            "no class has two samples in both splits, so there are no halves to compare; analyse "
            "more samples"
        )
    columns: dict[str, np.ndarray] = {}
    draws = dict(zip(data.drawn_from.values, _over_labels(share), strict=True))
    columns["observed"] = draws["both"].mean(axis=0)
    means = np.stack([draws[name].mean(axis=0) for name in ("train", "test")])
    columns["floor"] = means.max(axis=0)
    columns["excess"] = columns["observed"] - columns["floor"]
    for name, mean in zip(("train", "test"), means, strict=True):
        low, high = interval(draws[name], BAND)
        columns |= {f"{name}_floor": mean, f"{name}_low": low, f"{name}_high": high}
    highs = np.stack([columns["train_high"], columns["test_high"]])
    columns["ceiling"] = highs.max(axis=0)
    return pd.DataFrame(columns, index=pd.Index(ROLE_NAMES, name="role"))


def exchangeability(data: xr.Dataset) -> pd.DataFrame:
    """Units active on one split only against new splits, kind x [observed, resplit, p]."""
    require(data, "resplit_share", "resplits=20")
    own = different(_over_labels(roles.proportions(data.role.values)))
    drawn = different(_over_labels(data.resplit_share.values))
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
    require(data, "resplit_share", "resplits=20")
    own = different(roles.proportions(data.role.values))[:, 2]
    p = permutation_p(own, different(data.resplit_share.values)[..., 2])
    fair = adjusted(p, data.sizes["resplit"])
    if fair is None:
        return None
    return pd.DataFrame({"p": p, "adjusted_p": fair}, index=pd.Index(data.label, name="label"))


def intervals(data: xr.Dataset, level: float) -> pd.DataFrame:
    """Intervals of the mean role shares over other samples, role x [value, low, high]."""
    require(data, "share_replicate", "confidence='given_order'")
    low, high = interval(_over_labels(data.share_replicate.values), level)
    value = roles.proportions(data.role.values).mean(axis=0)
    columns = {"value": value, "low": low, "high": high}
    return pd.DataFrame(columns, index=pd.Index(ROLE_NAMES, name="role"))


def signs(data: xr.Dataset, level: float, tolerance: float) -> pd.DataFrame:
    """The paper's signs as findings, role x [value, floor, ..., verdict, sentence]."""
    frame = floors(data)
    frame.insert(0, "value", roles.proportions(data.role.values).mean(axis=0))
    curves = data.loss.values, data.accuracy.values, data.order.values
    frame["loose"] = roles.sensitivity(*curves, tolerance)[f"tolerance {LOOSE:g}"]
    if "share_replicate" in data:
        frame[["low", "high"]] = intervals(data, level)[["low", "high"]]
    else:
        frame["low"] = frame["high"] = np.nan
    above = frame.observed > frame.ceiling
    frame["verdict"] = np.where(above, ABOVE, WITHIN)
    # Sampling makes units differ between splits; of agreement it makes less.
    frame.loc[["core", "confusing"], "verdict"] = ""
    frame["sentence"] = [_sentence(str(role), row) for role, row in frame.iterrows()]
    return frame


def _sentence(role: str, row: pd.Series) -> str:
    side = "train" if row.train_floor >= row.test_floor else "test"
    text = (
        f"{role} share {100 * row.value:.1f} %{_band(row.low, row.high)}; at the size of the floor "
        f"{100 * row.observed:.1f} %, floor {100 * row.floor:.1f} %"
        f"{_band(row[f'{side}_low'], row[f'{side}_high'])}; {100 * row.loose:.1f} % at tolerance "
        f"{LOOSE:g}"
    )
    return f"{text}: {row.verdict}" if row.verdict else text


def _band(low: float, high: float) -> str:
    """An interval in %, where there is one."""
    return f" [{100 * low:.1f}, {100 * high:.1f}]" if np.isfinite(low) else ""


def train_only_signs(data: xr.Dataset, level: float, order: str) -> pd.DataFrame:
    """What the training samples alone say, sign x [value, low, high, sentence].

    Raises
    ------
    InputError : test samples ranked the units, with `order` "test" or "pooled".
    """
    if order in ("test", "pooled"):
        raise InputError(
            f"with order {order!r} the test samples rank the units of the training set too; "
            "analyse with order='per_split' or 'train'"
        )
    units, train = data.sizes["unit"], {"split": "train"}
    point = data.turning_point.sel(train).values / units
    rows = {"n0/N": [point.mean(), np.nan, np.nan]}
    if "turning_point_replicate" in data:
        again = data.turning_point_replicate.sel(train).values.mean(axis=1) / units
        rows["n0/N"][1:] = map(float, interval(again, level))
    if "floor_share" in data:
        inside = different(_over_labels(data.floor_share.sel(drawn_from="train").values))[:, 2]
        rows["unstable units"] = [inside.mean(), *map(float, interval(inside, BAND))]
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=pd.Index(["value", "low", "high"]))
    says = {
        "n0/N": "of the units bring the training loss to its minimum, on average over the classes",
        "unstable units": "of the units are active on one half of the training samples only",
    }
    frame["sentence"] = [
        f"{100 * row.value:.1f} %{_band(row.low, row.high)} {says[str(name)]}"
        for name, row in frame.iterrows()
    ]
    return frame.rename_axis("sign")
