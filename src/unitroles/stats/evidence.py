"""Effects of sampling alone on a result: intervals, noise floors, tests. Arrays in, arrays out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8

from unitroles.roles import (
    ROLES,
    positions,
    proportions,
    turning_point,
)
from unitroles.stats.draws import weighted_again

OUTER, INNER = 20, 40
"""Replicates of the iterated bootstrap: coverage is the share of the outer ones whose interval,
from the inner ones, holds what the whole sample gives."""


ALPHA = 0.05


DIFFERENT = ("overfitted", "generalizing", "either")
"""Shares of units that are active on one split only: on train, on test, on either of them."""


Drawn = Shaped[np.ndarray, "replicate *rest"]


Points = Int[np.ndarray, "split *rest"]


# Curves, or points of them, that are worked on at a time.
_TOGETHER = 64


# Shares are multiples of 1 / (labels x units); a mean of them may end in another last bit.
TIES = 1e-12


def interval(
    values: Drawn, level: float
) -> tuple[Float[np.ndarray, "*rest"], Float[np.ndarray, "*rest"]]:
    """The percentile interval of replicates: as much below it as above."""
    tail = 50 * (1 - level)
    low, high = np.percentile(values, [tail, 100 - tail], axis=0)
    return np.asarray(low), np.asarray(high)


def different(
    share: Float[np.ndarray, "*rest role"],
) -> Float[np.ndarray, "*rest kind"]:
    """Shares of the units that are active on one split only, columns as `DIFFERENT`."""
    over, new = share[..., 1], share[..., 2]
    return np.stack([over, new, over + new], axis=-1)


def permutation_p(observed: Float[np.ndarray, "*rest"], drawn: Drawn) -> Float[np.ndarray, "*rest"]:
    """(b + 1) / (R + 1), b of the R draws being at least as large as what was observed."""
    reached = (drawn >= observed - TIES).sum(axis=0)
    return np.asarray((reached + 1) / (len(drawn) + 1))


def adjusted(p: Float[np.ndarray, " label"], draws: int) -> Float[np.ndarray, " label"] | None:
    """p of permutation tests of several classes, as in `fdr_adjusted`.

    Returns
    -------
    None where so few draws cannot reject one class alone at a rate of 0.05.
    """
    return None if len(p) / (draws + 1) > ALPHA else fdr_adjusted(p)


def fdr_adjusted(p: Float[np.ndarray, " label"]) -> Float[np.ndarray, " label"]:
    """p of several classes, adjusted so that their false discovery rate holds ([BH1995]_).

    .. [BH1995] Benjamini, Hochberg. Controlling the false discovery rate. JRSS B 57, 1995.
    """
    from scipy.stats import false_discovery_control

    return np.asarray(false_discovery_control(p))


def role_proportions(role: UInt8[np.ndarray, "*rest unit"]) -> Float[np.ndarray, "*rest role"]:
    """The share of the units that have each role; not a number where there are no roles."""
    found = proportions(role)
    return np.where(found.any(axis=-1, keepdims=True), found, np.nan)


def std_over_units(role: UInt8[np.ndarray, "*rest label unit"]) -> Float[np.ndarray, "*rest role"]:
    """The population std over the units of their shares, over the classes that have roles."""
    known = role[..., :1].any(axis=-1).sum(axis=-1)[..., None, None]
    share = (role[..., None] == np.array(ROLES)).sum(axis=-3) / np.maximum(known, 1)
    return np.where(known[..., 0] > 0, share.std(axis=-2), np.nan)


@dataclass(frozen=True)
class Weighed:
    """One curve under weights on its samples.

    Parameters
    ----------
    low, high : the interval of E(n).
    point : n0 of every replicate.
    paired_error : the standard error, over the samples, of the mean of l(n) - l(n0).
    lowest : the loss of every sample at n0.
    """

    low: Float[np.ndarray, " masks"]
    high: Float[np.ndarray, " masks"]
    point: Int[np.ndarray, " replicate"]
    paired_error: Float[np.ndarray, " masks"]
    lowest: Float[np.ndarray, " samples"]


@dataclass(frozen=True)
class Iterated:
    """The iterated bootstrap of one curve.

    Parameters
    ----------
    covered : for every outer replicate, whether the interval of n0 holds n0, and the share of n for
        which that of E(n) holds E(n).
    inner : n0 of the inner replicates.
    """

    covered: Float[np.ndarray, "outer quantity"]
    inner: Int[np.ndarray, "outer inner"]


def weigh(
    losses: Float[np.ndarray, "samples masks"],
    weights: UInt8[np.ndarray, "replicate samples"],
    points: Int[np.ndarray, " masks"],
    tolerance: float,
    level: float,
) -> Weighed:
    """Weigh the samples of one class of one split, whose losses are those with a fixed ranking.

    Parameters
    ----------
    points : the n of the masks, rising from 0 and 1.
    """
    place = int(turning_point(losses.mean(axis=0), tolerance))
    curves = _weighted(losses, weights)
    low, high = interval(curves, level)
    return Weighed(
        low=low,
        high=high,
        point=points[turning_point(curves, tolerance)],
        paired_error=_paired_error(losses, place),
        lowest=losses[:, place].copy(),
    )


def weigh_again(
    losses: Float[np.ndarray, "samples masks"],
    weights: UInt8[np.ndarray, "replicate samples"],
    points: Int[np.ndarray, " masks"],
    tolerance: float,
    level: float,
    key: tuple[int, ...],
) -> Iterated:
    """The coverage of the intervals of `weigh`: how often they hold what they should.

    Parameters
    ----------
    key : of the draws.
    """
    whole = losses.mean(axis=0)
    place = int(turning_point(whole, tolerance))
    again = np.stack(
        [_weighted(losses, many) for many in weighted_again(weights[:OUTER], INNER, key)]
    )
    inner = points[turning_point(again, tolerance)]
    # What the interval has to hold is the truth of the world that the outer weights are of.
    (bottom, top), (first, last) = (interval(np.moveaxis(x, 1, 0), level) for x in (again, inner))
    n0_held = (first <= points[place]) & (points[place] <= last)
    # With no unit retrieved a model may have no loss, which no interval can hold.
    known = ~np.isnan(whole)
    held = ((bottom <= whole) & (whole <= top))[:, known].mean(axis=1)
    return Iterated(covered=np.stack([n0_held, held], axis=1), inner=inner)


def weighed_mean(
    values: Float[np.ndarray, " samples"], weights: UInt8[np.ndarray, "replicate samples"]
) -> Float[np.ndarray, " replicate"]:
    """The mean of some numbers in every replicate."""
    return _weighted(values[:, None], weights)[:, 0]


def _weighted(
    losses: Float[np.ndarray, "samples masks"], weights: UInt8[np.ndarray, "replicate samples"]
) -> Float[np.ndarray, "replicate masks"]:
    many = weights.astype(np.float64)
    return many @ losses / many.sum(axis=1, keepdims=True)


def _paired_error(
    losses: Float[np.ndarray, "samples masks"], place: int
) -> Float[np.ndarray, " masks"]:
    if len(losses) < 2:
        return np.full(losses.shape[1], np.nan)
    own, masks = losses[:, place : place + 1], losses.shape[1]
    some = [losses[:, start : start + _TOGETHER] for start in range(0, masks, _TOGETHER)]
    spread = [(values - own).std(axis=0, ddof=1) for values in some]
    return np.concatenate(spread) / np.sqrt(len(losses))


def proportions_at(
    order: Int[np.ndarray, "split position"], point: Points
) -> Float[np.ndarray, "*rest role"]:
    """Proportions of one class at other turning points, with a fixed ranking."""
    first, second = positions(order)
    units = len(first)
    core = _both(first, second, point)
    over, new = point[0] - core, point[1] - core
    return np.stack([core, over, new, units - core - over - new], axis=-1) / units


def _both(
    first: Int[np.ndarray, " unit"], second: Int[np.ndarray, " unit"], point: Points
) -> Int[np.ndarray, "*rest"]:
    """The number of units among the first of one order and among the first of the other."""
    flat = point.reshape(2, -1)
    found = np.zeros(flat.shape[1], dtype=np.int64)
    for start in range(0, len(found), _TOGETHER):
        a, b = flat[:, start : start + _TOGETHER, None]
        found[start : start + _TOGETHER] = ((first < a) & (second < b)).sum(axis=1)
    return found.reshape(point.shape[1:])


def proportion_coverage(
    order: Int[np.ndarray, "split position"],
    point: Int[np.ndarray, " split"],
    inner: Int[np.ndarray, "split outer inner"],
    level: float,
) -> Float[np.ndarray, "outer kind"]:
    """Whether intervals of the overfitted and generalizing proportion hold the whole sample's."""
    truth = proportions_at(order, point[:, None])[0]
    low, high = interval(np.moveaxis(proportions_at(order, inner), 1, 0), level)
    held = (low <= truth + TIES) & (truth - TIES <= high)
    return held[..., 1:3].astype(np.float64)


TEMPERATURES = 2.0 ** (np.arange(-48, 49) / 8)
"""From 1/64 to 64, each 9 % above the one before."""
