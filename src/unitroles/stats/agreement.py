"""Is a core a core: how far the active sets of the two splits agree, and why they do not.

.. [Webber2010] Webber, Moffat, Zobel. A similarity measure for indefinite rankings. ACM
   Transactions on Information Systems 28(4), 2010.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from unitroles.roles import active_set, positions

PERSISTENCE = 0.9
"""The weight of each further position of an order in the rank-biased overlap, to the one before."""


@dataclass(frozen=True)
class Overlap:
    """Agreement of the two splits for every class; none of it has a unit of measurement.

    Parameters
    ----------
    lift : the core, over the core that two active sets of these sizes have on average when their
        units are drawn at random; 1 = as by chance, at most N / max(n0).
    jaccard : core units, over the units active on at least one split.
    p : probability that such random sets share at least as many units (hypergeometric). Not a
        number for a class whose two splits have one and the same order: there the sets are nested
        whatever the network does, and chance is no yardstick. The other values then describe sets
        of which one holds the other.
    over_by_turning_points : share of the units that is overfitted because train has more active
        units than test, max(0, n0_train - n0_test) / N: so many are with one shared order, too.
    over_by_rank_swaps : the rest of the overfitted proportion: units that came early on
        train and late on test.
    spearman : rank correlation of the positions of all units; not a number for a single unit.
    rank_biased : overlap of the two orders in which early positions weigh most ([Webber2010]_, the
        extrapolated form); 1 = the same order.
    """

    lift: Float[np.ndarray, " label"]
    jaccard: Float[np.ndarray, " label"]
    p: Float[np.ndarray, " label"]
    over_by_turning_points: Float[np.ndarray, " label"]
    over_by_rank_swaps: Float[np.ndarray, " label"]
    spearman: Float[np.ndarray, " label"]
    rank_biased: Float[np.ndarray, " label"]


def overlap(
    order: Int[np.ndarray, "split=2 label position"],
    point: Int[np.ndarray, "split=2 label"],
) -> Overlap:
    """Compare the active sets and the orders of the two splits, class by class.

    Parameters
    ----------
    order : units of each (split, label), strongest first; train, then test.
    point : turning points n0, 1 ... N.

    Examples
    --------
    >>> order = np.array([[[0, 1, 2, 3]], [[1, 0, 3, 2]]])
    >>> found = overlap(order, np.array([[2], [1]]))
    >>> found.lift, found.over_by_turning_points
    (array([2.]), array([0.25]))
    """
    from scipy.stats import hypergeom

    units, point = order.shape[-1], point.astype(np.int64)  # products of int32 may overflow
    on_train, on_test = active_set(order, point)
    core, either = (on_train & on_test).sum(axis=-1), (on_train | on_test).sum(axis=-1)
    more_on_train = np.maximum(0, point[0] - point[1])
    shared = (order[0] == order[1]).all(axis=-1)
    return Overlap(
        lift=core * units / (point[0] * point[1]),
        jaccard=core / either,
        p=np.where(shared, np.nan, hypergeom.sf(core - 1, units, point[0], point[1])),
        over_by_turning_points=more_on_train / units,
        over_by_rank_swaps=(point[0] - core - more_on_train) / units,
        spearman=rank_correlation(order[0], order[1]),
        rank_biased=rank_biased_overlap(order[0], order[1]),
    )


def rank_correlation(
    one: Int[np.ndarray, "*rest position"], other: Int[np.ndarray, "*rest position"]
) -> Float[np.ndarray, "*rest"]:
    """Spearman's correlation of the positions in two orders; not a number for a single unit.

    >>> float(rank_correlation(np.array([0, 1, 2]), np.array([2, 1, 0])))
    -1.0
    """
    units = one.shape[-1]
    if units == 1:
        return np.full(one.shape[:-1], np.nan)
    apart = ((positions(one) - positions(other)) ** 2).sum(axis=-1)
    return np.asarray(1 - 6 * apart / (units * (units**2 - 1)))


def rank_biased_overlap(
    one: Int[np.ndarray, "*rest position"], other: Int[np.ndarray, "*rest position"]
) -> Float[np.ndarray, "*rest"]:
    """Mean share of common units among the first d of two orders, weighted by `PERSISTENCE`^d.

    Parameters
    ----------
    one, other : orders of the same units.

    Returns
    -------
    Fractions ([Webber2010]_, extrapolated). Two orders of all units share everything at depth N;
    deeper down, where there is no unit left, they are taken to go on like that.

    >>> round(float(rank_biased_overlap(np.array([0, 1]), np.array([1, 0]))), 3)
    0.9
    """
    units = one.shape[-1]
    depth = np.arange(1, units + 1)
    # A unit is common to the first d from the depth on at which both orders have had it.
    deeper = np.maximum(positions(one), positions(other)).reshape(-1, units)
    rows = np.arange(len(deeper))[:, None] * units
    fresh = np.bincount((deeper + rows).ravel(), minlength=deeper.size).reshape(one.shape)
    weight = PERSISTENCE**depth
    head = (fresh.cumsum(axis=-1) / depth * weight).sum(axis=-1)
    return np.asarray(weight[-1] + (1 - PERSISTENCE) / PERSISTENCE * head)
