"""Many models: which criterion goes with the generalization gap, and how surely."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float

from unitroles.annotations import checked
from unitroles.errors import InputError
from unitroles.results.dataset import CROSS_ENTROPY, SPLITS
from unitroles.results.taxonomy import Taxonomy
from unitroles.roles import ROLE_NAMES
from unitroles.stats.correlation import (
    DRAWN,
    EXACT,
    correlations,
    left_out,
    partial,
    without_rounding,
)

FALL = 0.01
"""Accuracy that a class may lose to the removal of units before it counts as fallen."""


@checked
def criteria(
    members: Mapping[str, Taxonomy], ablation: Mapping[str, xr.Dataset] | None = None
) -> pd.DataFrame:
    """The numbers that each model is judged by, member x criterion.

    Parameters
    ----------
    members : models analysed with one tolerance and one loss.
    ablation : by name, what `cumulative_ablation` gave for the layer of each member on its training
        set. None reads the training curves backwards, which removes the units of each class from
        the least active one on.

    Returns
    -------
    DataFrame : means over the classes of `n0_train/N` and `n0_test/N`, of the share of the units
        with each role, and of `regret_train` and `regret_test` in nats or the units of the loss.
        Then two quantities of cumulative ablation that need only the training set, on which
        [Morcos2018]_ saw accuracy fall faster in networks that generalize worse:

        - `ablation_area`: mean training accuracy of the classes over 0 ... N units removed, lines
          drawn between the numbers that were evaluated;
        - `ablation_turning_point` (a definition of our own): the largest share of the units that
          can be removed before the training accuracy of a class falls for the first time by more
          than .01 below that of the intact layer, mean over the classes.

        Where accuracy was not measured for every member both are read from the loss, and a class
        has fallen when it has lost a hundredth of what it loses with all units removed.
        Attributes: `measure`, "accuracy" or "loss"; `order`, in which units were removed.

    Raises
    ------
    InputError : members that differ in tolerance or loss; an ablation that is absent, of another
        layer, or in another order than the others.
    """
    if not members:
        raise InputError("members is empty; give at least one taxonomy by name")
    _comparable(members)
    curves, attrs = _ablations(members, ablation)
    rows = {}
    for name, member in members.items():
        shares = member.data.turning_point.mean("label").values / member.data.sizes["unit"]
        roles, regret = member.summary()["mean"], member.regret()
        rows[name] = {
            **{f"n0_{split}/N": float(shares[i]) for i, split in enumerate(SPLITS)},
            **{role: float(roles[role]) for role in ROLE_NAMES},
            **{f"regret_{split}": float(regret[split].mean()) for split in SPLITS},
            "ablation_area": _area(curves[name]),
            "ablation_turning_point": _removable(curves[name], attrs["measure"]),
        }
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("name")
    table.columns.name = "criterion"
    table.attrs = attrs
    return table


def _comparable(members: Mapping[str, Taxonomy]) -> None:
    """Refuse roles that were read by different rules."""
    _one(
        {name: member.tolerance for name, member in members.items()},
        "never compare models across tolerances: {}; analyse all of them with one",
    )
    _one(
        {name: member.data.attrs.get("loss", CROSS_ENTROPY) for name, member in members.items()},
        "members differ in their loss: {}; analyse all of them with one",
    )


def _one(values: Mapping[str, Any], message: str) -> None:
    """Raise with the first two members that differ, if any do."""
    (first, value), *others = values.items()
    for name, other in others:
        if other != value:
            raise InputError(message.format(f"{first!r} has {value}, {name!r} has {other}"))


def _ablations(
    members: Mapping[str, Taxonomy], ablation: Mapping[str, xr.Dataset] | None
) -> tuple[dict[str, Float[np.ndarray, "label removed"]], dict[str, str]]:
    """The curves of all members, of one measure, from 0 to N units removed."""
    if ablation is None:
        given = {name: member.data.sel(split="train") for name, member in members.items()}
        order = "ascending"
    else:
        given = {name: _fitting(name, member, ablation) for name, member in members.items()}
        orders = {name: str(data.attrs.get("order")) for name, data in given.items()}
        _one(orders, "ablations differ in their order: {}; remove units in one order everywhere")
        order = orders[next(iter(orders))]
    scored = all(np.isfinite(data.accuracy.values).any() for data in given.values())
    measure = "accuracy" if scored else "loss"
    step = -1 if ablation is None else 1
    curves = {name: data[measure].values[:, ::step] for name, data in given.items()}
    return curves, {"measure": measure, "order": order}


def _fitting(name: str, member: Taxonomy, ablation: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """The ablation of a member, checked."""
    remedy = "give what cumulative_ablation returns for the layer of every member"
    if name not in ablation:
        raise InputError(f"there is no ablation of member {name!r}; {remedy}")
    data, units = ablation[name], member.data.sizes["unit"]
    if "removed" not in data.sizes or "accuracy" not in data:
        raise InputError(f"the ablation of {name!r} is not cumulative; {remedy}")
    if data.sizes["removed"] != units + 1:
        removed = data.sizes["removed"] - 1
        raise InputError(f"the ablation of {name!r} removes {removed} units of {units}; {remedy}")
    return data.transpose("label", ...)


def _area(curve: Float[np.ndarray, "label removed"]) -> float:
    removed = np.arange(curve.shape[1])
    known = [np.isfinite(row) for row in curve]
    rows = [np.interp(removed, removed[k], row[k]) for k, row in zip(known, curve, strict=True)]
    return float(np.mean(rows))


def _removable(curve: Float[np.ndarray, "label removed"], measure: str) -> float:
    """Share of the units that can go, mean over the classes; see `criteria`."""
    height = curve if measure == "accuracy" else -curve
    intact, removed = height[:, :1], np.arange(curve.shape[1])
    # The loss of a fully ablated layer may be not a number (0/0); then the worst that is one.
    worst = np.fmin.reduce(height, axis=1, keepdims=True)
    ablated = np.where(np.isnan(height[:, -1:]), worst, height[:, -1:])
    slack = FALL if measure == "accuracy" else FALL * np.abs(intact - ablated)
    fallen = height < intact - slack * (1 + 1e-9)  # a fall by exactly so much is none
    still = np.isfinite(curve) & ~np.logical_or.accumulate(fallen, axis=1)
    return float(np.where(still, removed, 0).max(axis=1).mean() / removed[-1])


BASELINE = "mean of the others"


TOGETHER = ("core", "overfitted", "generalizing")
"""The roles as predictors side by side; the fourth is what the three leave of 1."""


@checked
def relation(
    members: Mapping[str, Taxonomy],
    gap: Any = None,
    ablation: Mapping[str, xr.Dataset] | None = None,
) -> pd.DataFrame:
    """Correlation of every criterion with the generalization gap over the models.

    Parameters
    ----------
    members : three or more models, as a `TaxonomySet` or another mapping.
    gap : training minus test accuracy by name (a mapping or Series), or in the order of the
        members; None takes those of the analysed samples.
    ablation : see `criteria`.

    Returns
    -------
    DataFrame : one row per criterion of `criteria`. `pearson`, `spearman`, `kendall` (tau-b) with
        the p-value of each beside it; `partial`, Pearson's correlation where training accuracy is
        held fixed (from four members on); `loo_error`, root mean squared error, in the unit of the
        gap (a fraction), of predicting the gap of each member from a least-squares line through
        the others. Two rows more have that error alone: three roles together (from six members
        on), and the mean of the other members' gaps, which a criterion has to beat.

        The p-values are two-sided (twice the smaller tail) over re-pairings of gaps and members:
        all of them up to 50,000, else 9,999 random ones, always the same, and the one at hand.
        Attributes: `members`; `exact`, whether all were taken; `permutations`, how many; `measure`
        and `order` of the ablation.

        A criterion that does not vary has no correlations (NaN), and predicts the mean.

    Raises
    ------
    InputError : fewer than three members, or members that cannot be compared; a gap that is absent
        or no finite number; gaps that are all one; errors of `criteria`.
    """
    if len(members) < 3:
        raise InputError(f"a relation needs 3 members or more, not {len(members)}; add models")
    gaps = _gaps(members, gap)
    table = criteria(members, ablation)
    frame = correlated(table, gaps)
    rows = table.to_numpy().T
    exact = math.factorial(len(members)) <= EXACT
    accuracy = np.array([member.data.attrs["train_accuracy"] for member in members.values()])
    frame["partial"] = partial(
        without_rounding(rows), without_rounding(gaps), without_rounding(accuracy.astype(float))
    )
    frame["loo_error"] = [left_out(row[:, None], gaps) for row in rows]
    together = ", ".join(TOGETHER)
    frame = frame.reindex(pd.Index([*table.columns, together, BASELINE], name="criterion"))
    three = table[list(TOGETHER)].to_numpy()
    enough = len(members) > three.shape[1] + 2
    frame.loc[together, "loo_error"] = left_out(three, gaps) if enough else np.nan
    frame.loc[BASELINE, "loo_error"] = left_out(np.zeros((len(gaps), 1)), gaps)
    frame.attrs = {
        "members": list(members),
        "exact": exact,
        "permutations": math.factorial(len(members)) if exact else DRAWN,
        **table.attrs,
    }
    return frame


def correlated(table: pd.DataFrame, gaps: Float[np.ndarray, " member"]) -> pd.DataFrame:
    """The correlations of every column with the gap, as in `relation`, over any members."""
    return pd.DataFrame(correlations(table.to_numpy().T, gaps), index=table.columns)


def _gaps(members: Mapping[str, Taxonomy], gap: Any) -> Float[np.ndarray, " member"]:
    """One finite number per member, in their order."""
    given = _by_name(members, gap)
    absent = [name for name in members if name not in given]
    if absent:
        raise InputError(f"there is no gap for member {absent[0]!r}; give one for every member")
    gaps = np.array([_number(name, given[name]) for name in members])
    if np.ptp(without_rounding(gaps)) == 0:
        raise InputError(
            f"all members have the gap {gaps[0]:g}; add models that generalize better or worse"
        )
    return gaps


def _by_name(members: Mapping[str, Taxonomy], gap: Any) -> Mapping[Any, Any]:
    if gap is None:
        return {name: member.gap for name, member in members.items()}
    if isinstance(gap, Mapping | pd.Series):
        return dict(gap.items())
    plain = isinstance(gap, Sequence | np.ndarray) and not isinstance(gap, str)
    if not plain or getattr(gap, "ndim", 1) != 1:
        raise InputError("gap cannot be read; give numbers by name, or one for each member")
    if len(gap) != len(members):
        raise InputError(f"gap holds {len(gap)} numbers for {len(members)} members; give one each")
    return dict(zip(members, gap, strict=True))


def _number(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise InputError(f"the gap of {name!r} is {value!r}; give a number") from None
    if not math.isfinite(number):
        raise InputError(
            f"the gap of {name!r} is {number}; give training minus test accuracy as gap"
        )
    return number
