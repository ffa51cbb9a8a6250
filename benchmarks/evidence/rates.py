"""How often evidence is right, where the truth is known: arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

QUANTILE = 0.95
"""Of a floor's draws; what lies above is called more than sampling gives."""

_Replicates = Int[np.ndarray, "replicate *rest"]
_Draws = Float[np.ndarray, "drawn_from draw label role"]


def recovered(
    found: UInt8[np.ndarray, "label unit"], truth: UInt8[np.ndarray, "label unit"]
) -> float:
    """The share of all (label, unit) whose role was found.

    >>> recovered(np.array([[1, 4]], dtype=np.uint8), np.array([[1, 2]], dtype=np.uint8))
    0.5
    """
    return float((found == truth).mean())


def called(drawn: _Draws) -> Bool[np.ndarray, " role"]:
    """Whether the mean observed share lies above both floors' `QUANTILE`.

    Parameters
    ----------
    drawn : role shares inside train, inside test, and of both at the same size, in this order.
    """
    train, test, both = drawn.mean(axis=2)
    ceiling = np.maximum(np.quantile(train, QUANTILE, axis=0), np.quantile(test, QUANTILE, axis=0))
    return np.asarray(both.mean(axis=0) > ceiling)


def excess(drawn: _Draws) -> Float[np.ndarray, " role"]:
    """The mean observed share minus the larger of the two mean floors; `drawn` as in `called`."""
    train, test, both = drawn.mean(axis=(1, 2))
    return np.asarray(both - np.maximum(train, test))


def covered(
    replicates: _Replicates, truth: Int[np.ndarray, "*rest"], level: float
) -> Bool[np.ndarray, "*rest"]:
    """Whether the percentile interval of the replicates holds the truth."""
    tail = (1 - level) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail], axis=0)
    return np.asarray((low <= truth) & (truth <= high))


def roc(
    null: Float[np.ndarray, " null"], planted: Float[np.ndarray, " planted"]
) -> tuple[Float[np.ndarray, " threshold"], Float[np.ndarray, " threshold"]]:
    """False and true rates of calling whatever reaches a threshold, from none called to all.

    >>> false, true = roc(np.array([0.0, 0.1]), np.array([0.1, 0.2]))
    >>> false.tolist(), true.tolist()
    ([0.0, 0.0, 0.5, 1.0], [0.0, 0.5, 1.0, 1.0])
    """
    thresholds = np.concatenate([[np.inf], np.unique(np.concatenate([null, planted]))[::-1]])
    false, true = ((values >= thresholds[:, None]).mean(axis=1) for values in (null, planted))
    return false, true


def area(false: Float[np.ndarray, " threshold"], true: Float[np.ndarray, " threshold"]) -> float:
    """The area under a ROC curve: the chance that a planted network exceeds a null one.

    >>> area(*roc(np.array([0.0, 0.1]), np.array([0.1, 0.2])))
    0.875
    """
    return float((np.diff(false) * (true[1:] + true[:-1]) / 2).sum())


def enough(strengths: Sequence[float], power: Sequence[float], wanted: float = 0.8) -> float | None:
    """The least strength from which on the power is always as wanted; None if there is none.

    >>> enough([0.1, 0.2, 0.3, 0.4], [0.9, 0.7, 0.8, 1.0])
    0.3
    """
    found = None
    for strength, rate in sorted(zip(strengths, power, strict=True), reverse=True):
        if rate < wanted:
            break
        found = strength
    return found


def wilson(hits: int, count: int) -> tuple[float, float]:
    """The 95 % score interval of a rate."""
    z = 1.959964
    rate, spread = hits / count, z**2 / count
    middle = (rate + spread / 2) / (1 + spread)
    half = z * np.sqrt(rate * (1 - rate) / count + spread / count / 4) / (1 + spread)
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))
