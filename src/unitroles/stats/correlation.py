"""Exact permutation tests of correlations over a few models. Arrays in, arrays out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

EXACT = 50_000


DRAWN = 9_999


_PAIRS = 2**22


_SAME = 1e-12


def without_rounding(
    values: Float[np.ndarray, "*rest member"],
) -> Float[np.ndarray, "*rest member"]:
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


def correlations(
    rows: Float[np.ndarray, "criterion member"], gaps: Float[np.ndarray, " member"]
) -> dict[str, Float[np.ndarray, " criterion"]]:
    """Each statistic is the product of two vectors of length 1: one recipe serves all three."""
    values, gap = pd.DataFrame(without_rounding(rows)), pd.Series(without_rounding(gaps))
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
    own = 0 if math.factorial(len(gap)) <= EXACT else 1
    p = np.minimum(1, 2 * (tails.min(axis=0) + own) / (tried + own))
    return np.where(known, observed.clip(-1, 1), np.nan), np.where(known, p, np.nan)


def _orders(members: int) -> Iterator[Int[np.ndarray, "some member"]]:
    """All orders of the members, or many random ones, in pieces that fit memory."""
    if math.factorial(members) <= EXACT:
        orders = np.array(list(itertools.permutations(range(members))))
    else:
        rows = np.tile(np.arange(members), (DRAWN, 1))
        orders = np.random.default_rng(0).permuted(rows, axis=1)
    step = max(1, _PAIRS // members**2)
    for start in range(0, len(orders), step):
        yield orders[start : start + step]


def partial(
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
    """The rest of centred values without their part along a vector; 0 where it is rounding."""
    centred = _centred(values)
    left = centred - (centred * along).sum(axis=-1, keepdims=True) * along
    whole, rest = (np.abs(part).max(axis=-1, keepdims=True) for part in (centred, left))
    return np.where(rest > 1e-9 * whole, left, 0.0)


def left_out(
    predictors: Float[np.ndarray, "member predictor"], gaps: Float[np.ndarray, " member"]
) -> float:
    """Root mean squared error of the gap of each member under a fit to the others."""
    if not np.isfinite(predictors).all():
        return float("nan")
    even, errors = without_rounding(predictors.T).T, []
    for member in range(len(gaps)):
        rest = np.arange(len(gaps)) != member
        x, y = even[rest], gaps[rest]
        slope = np.linalg.lstsq(_centred(x.T).T, y - y.mean(), rcond=None)[0]
        errors.append(y.mean() + (even[member] - x.mean(axis=0)) @ slope - gaps[member])
    return float(np.sqrt(np.mean(np.square(errors))))
