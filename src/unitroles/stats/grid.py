"""The numbers of retrieved units that are evaluated where every one costs a run of the head."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float, Int

# Tuned on all blocks of a ResNet-20 (CIFAR-10) alone, see benchmarks/speed/adaptive.py.
SHARE = 0.7
"""Of the evaluations of exact curves, what adaptive ones take at most, over the classes."""
GAIN = 0.002
"""Nats, or the units of a loss of one's own; an interval of which less is expected is left out."""
CHANCE = 0.05
"""That a random walk goes further down than is said, in one interval."""
_INTERVALS = 4  # that are expected to be looked at; what twelve networks had, but for small layers
_NEAR = 2  # intervals on either side from whose ends a random walk takes its steps


def effective(units: int, resolution: str | int) -> str | int:
    """The resolution that is used: exact ones where an adaptive grid holds most n already.

    >>> effective(12, "adaptive"), effective(13, "adaptive")
    ('exact', 'adaptive')
    """
    few = resolution == "adaptive" and 2 * len(_steps(units, _step(units))) > units + 1
    return "exact" if few else resolution


def grid(units: int, resolution: str | int) -> Int[np.ndarray, " points"]:
    """The numbers of retrieved units evaluated first: 0, 1, every so many after it, and all.

    Parameters
    ----------
    units : N.
    resolution : "exact"; "adaptive", a step of about the root of N / 2, which makes the grid and
        one interval on either side of a minimum equally expensive; or the step itself.

    >>> grid(10, 4).tolist()
    [0, 1, 5, 9, 10]
    """
    resolution = effective(units, resolution)
    if resolution == "exact":
        return np.arange(units + 1)
    return _steps(units, _step(units) if resolution == "adaptive" else int(resolution))


def _step(units: int) -> int:
    return max(1, round((units / 2) ** 0.5))


def _steps(units: int, step: int) -> Int[np.ndarray, " points"]:
    return np.unique([0, *range(1, units + 1, step), units])


def most(units: int) -> int:
    """The evaluations that an adaptive curve may take, in the mean over samples."""
    return int(SHARE * (units + 1))


def expected(units: int, resolution: str | int) -> int:
    """The number of evaluated points of a curve; the grid and some of its intervals if adaptive."""
    points = grid(units, resolution)
    if effective(units, resolution) != "adaptive":
        return len(points)
    return min(most(units), len(points) + _INTERVALS * (int(np.diff(points).max()) - 1))


def refinement(
    curves: Float[np.ndarray, "label retrieved"], samples: Int[np.ndarray, " label"]
) -> Bool[np.ndarray, "label retrieved"]:
    """The n to evaluate beside those of a grid: whole intervals, the most promising first.

    Between two evaluated n a curve is taken for a random walk, whose steps are as large as the
    differences in the interval and two on either side say; that gives what a curve is expected to
    fall, in an interval, below the lowest loss found. Intervals of which less than `GAIN` is
    expected are left out. Of the others the most promising of all classes come first, until all
    classes together have had `SHARE` of the evaluations of exact curves: one that does not fit any
    more gets its middle, if that does.

    Parameters
    ----------
    curves : E(n) for n = 0 ... N, not a number where it is not evaluated.
    samples : of each class, which one evaluation costs.
    """
    wanted = np.zeros(curves.shape, dtype=bool)
    seen = np.isfinite(curves)
    seen[:, 0] = True  # also where there is no loss without units
    left = SHARE * samples.sum() * curves.shape[1] - samples @ seen.sum(axis=1)
    found = [
        (-gain, label, first, last)
        for label, curve in enumerate(curves)
        for gain, first, last in zip(*_promises(curve), strict=True)
        if gain > GAIN
    ]
    for _, label, first, last in sorted(found):
        middle = (first + last) // 2
        for part in (slice(first + 1, last), slice(middle, middle + 1)):
            cost = samples[label] * (part.stop - part.start)
            if cost <= left:
                wanted[label, part] = True
                left -= cost
                break
    return wanted


def hidden(curve: Float[np.ndarray, " retrieved"]) -> float:
    """How far below the lowest loss found one may lie at an n that was left out; 0 if none was.

    It is as far as the random walk of `refinement` goes in any one interval with a probability of
    `CHANCE`: an estimate, not a bound. A loss that was never negative is taken to be none anywhere.

    Parameters
    ----------
    curve : E(n) for n = 0 ... N, not a number where it is not evaluated.

    >>> hidden(np.array([2.0, 1.0, 0.5, 0.5, 0.7]))
    0.0
    """
    _, _, a, b, variance, floor = _intervals(curve)
    low = np.nanmin(curve[1:])
    # The depth at which the reflection principle gives that probability.
    depths = (a + b - np.sqrt((a - b) ** 2 + 2 * variance * math.log(1 / CHANCE))) / 2
    return float(max(0.0, low - max(floor, depths.min(initial=low))))


_Interval = Int[np.ndarray, " interval"]
_Number = Float[np.ndarray, " interval"]


def _intervals(
    curve: Float[np.ndarray, " retrieved"],
) -> tuple[_Interval, _Interval, _Number, _Number, _Number, float]:
    """Of the intervals with n >= 1 left out: first and last n, the loss there, variance; the floor.

    The variance is that of a random walk over the whole interval, the floor what no loss is below.
    """
    n = np.flatnonzero(np.isfinite(curve[1:])) + 1
    loss, length = curve[n], np.diff(n)
    rate = np.diff(loss) ** 2 / length
    near = [rate[max(0, i - _NEAR) : i + _NEAR + 1].mean() for i in range(len(rate))]
    some = length > 1
    floor = 0.0 if loss.min() >= 0 else -np.inf
    variance = (np.array(near) * length)[some]
    return n[:-1][some], n[1:][some], loss[:-1][some], loss[1:][some], variance, floor


def _promises(curve: Float[np.ndarray, " retrieved"]) -> tuple[_Number, _Interval, _Interval]:
    """What a curve is expected to fall below its lowest loss in every interval, first and last n.

    By the reflection principle a walk from a to b goes below m with the probability
    exp(-2 (a - m) (b - m) / variance); its integral over m, from the floor to the lowest loss.
    """
    from scipy.special import erfcx  # a first call that is exact need not wait for it

    first, last, a, b, variance, floor = _intervals(curve)
    low = np.nanmin(curve[1:])
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        rate = 2 / np.maximum(variance, np.finfo(np.float64).tiny)

        def below(m: float) -> _Number:
            root = np.sqrt(rate)
            missed = erfcx(root * ((a + b) / 2 - m))
            return np.sqrt(np.pi) / 2 / root * np.exp(-rate * (a - m) * (b - m)) * missed

        found = below(low) - (below(floor) if floor > -np.inf else 0.0)
    return found, first, last
