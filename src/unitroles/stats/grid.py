"""The numbers of retrieved units that are evaluated where every one costs a run of the head."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float, Int

from unitroles.roles import turning_point


def grid(units: int, resolution: str | int) -> Int[np.ndarray, " points"]:
    """The numbers of retrieved units evaluated first: 0, 1, every so many after it, and all.

    Parameters
    ----------
    units : N.
    resolution : "exact"; "adaptive", a step of about the root of N / 2, which makes the grid and
        one refinement around the minimum equally expensive; or the step itself.

    >>> grid(10, 4).tolist()
    [0, 1, 5, 9, 10]
    """
    if resolution == "exact":
        return np.arange(units + 1)
    step = max(1, round((units / 2) ** 0.5)) if resolution == "adaptive" else int(resolution)
    return np.unique([0, *range(1, units + 1, step), units])


def expected(units: int, resolution: str | int) -> int:
    """The number of evaluated points of a curve; the grid and one refinement where it adapts."""
    points = grid(units, resolution)
    if resolution != "adaptive":
        return len(points)
    return min(units + 1, len(points) + 2 * (int(np.diff(points).max()) - 1))


def refinement(
    curve: Float[np.ndarray, " retrieved"], points: Int[np.ndarray, " points"], tolerance: float
) -> Bool[np.ndarray, " retrieved"]:
    """The n to evaluate next; none where the turning point is settled.

    That are all n in the intervals of the grid that end at the turning point or hold it, and in
    those that would move it if the curve fell as far below their lower end as it has been seen to
    fall, in any interval, below the higher one.

    Parameters
    ----------
    curve : E(n) for n = 0 ... N in nats, not a number where it is not evaluated.
    points : the grid that was evaluated first.
    tolerance : see `roles.turning_point`.
    """
    point = int(turning_point(curve, tolerance))
    low = np.fmin.reduce(curve[1:])
    spans = [(a, b) for a, b in pairwise(points.tolist()) if a > 0 and b - a > 1]
    inside = {span: curve[span[0] + 1 : span[1]] for span in spans}
    falls = [max(curve[a], curve[b]) - inside[a, b].min() for a, b in spans]
    fall = np.fmax.reduce([0.0, *falls])
    wanted = np.zeros(len(curve), dtype=bool)
    for a, b in spans:
        deepest = min(curve[a], curve[b]) - fall
        earlier = b <= point and deepest <= low + tolerance
        lower = deepest < curve[point] - tolerance
        if a <= point <= b or earlier or lower:
            wanted[a + 1 : b] = np.isnan(inside[a, b])
    return wanted
