"""Many models: which criterion goes with the generalization gap, and how surely."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float, Int

from unitroles.criteria import criteria
from unitroles.errors import InputError
from unitroles.taxonomy import Taxonomy

BASELINE = "mean of the others"
TOGETHER = ("core", "overfitted", "generalizing")
"""The roles as predictors side by side; the fourth is what the three leave of 1."""
_EXACT = 50_000
_DRAWN = 9_999
_PAIRS = 2**22
_SAME = 1e-12


def relation(
    members: Mapping[str, Taxonomy],
    gap: Any = None,
    ablation: Mapping[str, xr.Dataset] | None = None,
) -> pd.DataFrame:
    """How every criterion goes with the generalization gap over the models.

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
    rows = table.to_numpy().T
    found = _correlations(rows, gaps)
    exact = math.factorial(len(members)) <= _EXACT
    accuracy = np.array([member.data.attrs["train_accuracy"] for member in members.values()])
    found["partial"] = _partial(_even(rows), _even(gaps), _even(accuracy.astype(float)))
    found["loo_error"] = np.array([_left_out(row[:, None], gaps) for row in rows])
    together = ", ".join(TOGETHER)
    frame = pd.DataFrame(found, index=table.columns)
    frame = frame.reindex(pd.Index([*table.columns, together, BASELINE], name="criterion"))
    three = table[list(TOGETHER)].to_numpy()
    enough = len(members) > three.shape[1] + 2
    frame.loc[together, "loo_error"] = _left_out(three, gaps) if enough else np.nan
    frame.loc[BASELINE, "loo_error"] = _left_out(np.zeros((len(gaps), 1)), gaps)
    frame.attrs = {
        "members": list(members),
        "exact": exact,
        "permutations": math.factorial(len(members)) if exact else _DRAWN,
        **table.attrs,
    }
    return frame


def _gaps(members: Mapping[str, Taxonomy], gap: Any) -> Float[np.ndarray, " member"]:
    """One finite number per member, in their order."""
    given = _by_name(members, gap)
    absent = [name for name in members if name not in given]
    if absent:
        raise InputError(f"there is no gap for member {absent[0]!r}; give one for every member")
    gaps = np.array([_number(name, given[name]) for name in members])
    if np.ptp(_even(gaps)) == 0:
        raise InputError(
            f"all members have the gap {gaps[0]:g}; add models that generalize better or worse"
        )
    return gaps


def _by_name(members: Mapping[str, Taxonomy], gap: Any) -> Mapping[Any, Any]:
    if gap is None:
        return {name: member.gap for name, member in members.items()}
    if isinstance(gap, Mapping | pd.Series):
        return dict(gap.items())
    if not isinstance(gap, Sequence | np.ndarray) or isinstance(gap, str) or np.ndim(gap) != 1:
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


def _even(values: Float[np.ndarray, "*rest member"]) -> Float[np.ndarray, "*rest member"]:
    """Scaled to 1 and rounded, or numbers that differ by rounding alone would rank and vary."""
    scale = np.abs(values).max(axis=-1, keepdims=True)
    return np.round(values / np.where(scale > 0, scale, 1), 12)


def _centred(values: Float[np.ndarray, "*rest member"]) -> Float[np.ndarray, "*rest member"]:
    """Minus the mean; exactly 0 where nothing varies."""
    varies = np.ptp(values, axis=-1, keepdims=True) != 0
    return np.where(varies, values - values.mean(axis=-1, keepdims=True), 0.0)


def _signs(values: Float[np.ndarray, "*rest member"]) -> Float[np.ndarray, "*rest pair"]:
    one, other = np.triu_indices(values.shape[-1], 1)
    return np.sign(values[..., one] - values[..., other])


def _unit(values: Float[np.ndarray, "*rest part"]) -> Float[np.ndarray, "*rest part"]:
    """Scaled to length 1; not a number where the length is 0."""
    length = np.sqrt((values**2).sum(axis=-1, keepdims=True))
    return values / np.where(length > 0, length, np.nan)


def _correlations(
    rows: Float[np.ndarray, "criterion member"], gaps: Float[np.ndarray, " member"]
) -> dict[str, Float[np.ndarray, " criterion"]]:
    """Each statistic is the product of two vectors of length 1: one recipe serves all three."""
    values, gap = pd.DataFrame(_even(rows)), pd.Series(_even(gaps))
    ranks, gap_rank = values.rank(axis=1).to_numpy(), gap.rank().to_numpy()
    parts = {
        "pearson": (values.to_numpy(), gap.to_numpy(), _centred),
        "spearman": (ranks, gap_rank, _centred),
        "kendall": (values.to_numpy(), gap.to_numpy(), _signs),
    }
    found = {}
    for name, part in parts.items():
        found[name], found[f"{name}_p"] = _tested(*part)
    return found


def _tested(
    rows: Float[np.ndarray, "criterion member"],
    gap: Float[np.ndarray, " member"],
    parts: Callable[[np.ndarray], np.ndarray],
) -> tuple[Float[np.ndarray, " criterion"], Float[np.ndarray, " criterion"]]:
    """A statistic and its two-sided p-value over re-pairings."""
    left = _unit(parts(rows))
    known = np.asarray(np.isfinite(left).all(axis=1))
    left = np.where(known[:, None], left, 0.0)
    observed = left @ _unit(parts(gap))
    tails, tried = np.zeros((2, len(rows))), 0
    for orders in _orders(len(gap)):
        drawn = left @ _unit(parts(gap[orders])).T
        tails += [
            (drawn <= observed[:, None] + _SAME).sum(1),
            (drawn >= observed[:, None] - _SAME).sum(1),
        ]
        tried += len(orders)
    own = 0 if math.factorial(len(gap)) <= _EXACT else 1
    p = np.minimum(1, 2 * (tails.min(axis=0) + own) / (tried + own))
    return np.where(known, observed.clip(-1, 1), np.nan), np.where(known, p, np.nan)


def _orders(members: int) -> Iterator[Int[np.ndarray, "some member"]]:
    """All orders of the members, or many random ones, in pieces that fit memory."""
    if math.factorial(members) <= _EXACT:
        orders = np.array(list(itertools.permutations(range(members))))
    else:
        rows = np.tile(np.arange(members), (_DRAWN, 1))
        orders = np.random.default_rng(0).permuted(rows, axis=1)
    step = max(1, _PAIRS // members**2)
    for start in range(0, len(orders), step):
        yield orders[start : start + step]


def _partial(
    rows: Float[np.ndarray, "criterion member"],
    gap: Float[np.ndarray, " member"],
    fixed: Float[np.ndarray, " member"],
) -> Float[np.ndarray, " criterion"]:
    """Pearson's correlation of what `fixed` does not explain; NaN where that is nothing."""
    along = _unit(_centred(fixed))
    if len(gap) < 4 or not np.isfinite(along).all():
        return np.full(len(rows), np.nan)
    return (_unit(_beside(rows, along)) * _unit(_beside(gap, along))).sum(axis=-1).clip(-1, 1)


def _beside(
    values: Float[np.ndarray, "*rest member"], along: Float[np.ndarray, " member"]
) -> Float[np.ndarray, "*rest member"]:
    """What is left of centred values without their part along a vector; 0 where it is rounding."""
    centred = _centred(values)
    left = centred - (centred * along).sum(axis=-1, keepdims=True) * along
    whole, rest = (np.abs(part).max(axis=-1, keepdims=True) for part in (centred, left))
    return np.where(rest > 1e-9 * whole, left, 0.0)


def _left_out(
    predictors: Float[np.ndarray, "member predictor"], gaps: Float[np.ndarray, " member"]
) -> float:
    """Root mean squared error of the gap of each member under a fit to the others."""
    if not np.isfinite(predictors).all():
        return float("nan")
    even, errors = _even(predictors.T).T, []
    for member in range(len(gaps)):
        rest = np.arange(len(gaps)) != member
        x, y = even[rest], gaps[rest]
        slope = np.linalg.lstsq(_centred(x.T).T, y - y.mean(), rcond=None)[0]
        errors.append(y.mean() + (even[member] - x.mean(axis=0)) @ slope - gaps[member])
    return float(np.sqrt(np.mean(np.square(errors))))
