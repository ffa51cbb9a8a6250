"""Sharpness of the minimum of a curve: basins around turning points, and their kinds in words.

Curves are E(n) for n = 0 ... N on the last axis, in nats; n at which one is not a number were not
evaluated, and neither count nor interrupt.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

from unitroles import roles

CLEAR = "clear minimum"
NEVER_FALLS = "never below the fully ablated layer"
FLAT = 0.01
"""Share of the way from the fully ablated layer to the minimum; a smaller rise is none. Where that
layer has no loss (0/0), of the way from the highest loss of n >= 1."""
_WIDE = 1 / 20
_POINTS = 3


def basin(
    curve: Float[np.ndarray, "*rest retrieved"],
    point: Int[np.ndarray, "*rest"],
    delta: float | Float[np.ndarray, "*#rest"],
) -> tuple[Int[np.ndarray, "*rest"], Int[np.ndarray, "*rest"], Int[np.ndarray, "*rest"]]:
    """The n around the turning point at which the loss is as good as there.

    Parameters
    ----------
    curve : see the module.
    point : n0.
    delta : nats above E(n0) that still count, at least 0.

    Returns
    -------
    low, high : the first and the last n >= 1, both evaluated, of the run around n0 in which every
        evaluated n has E(n) <= E(n0) + delta.
    width : how many evaluated n >= 1 have that, in the run or elsewhere.

    Examples
    --------
    >>> curve = np.array([2.0, 0.6, 0.9, 0.5, 0.6, 0.9])
    >>> [int(n) for n in basin(curve, np.array(3), 0.2)]
    [3, 4, 3]
    """
    run, within = _run(curve, point, delta)
    last = curve.shape[-1] - 1
    low, high = run.argmax(axis=-1) + 1, last - run[..., ::-1].argmax(axis=-1)
    return np.asarray(low), np.asarray(high), np.asarray(within.sum(axis=-1))


def _run(
    curve: Float[np.ndarray, "*rest retrieved"],
    point: Int[np.ndarray, "*rest"],
    delta: float | Float[np.ndarray, "*#rest"],
) -> tuple[Bool[np.ndarray, "*rest n"], Bool[np.ndarray, "*rest n"]]:
    """For n = 1 ... N: does it belong to the run around n0, and is it within `delta` of n0?"""
    retrieved, n, at = curve[..., 1:], np.arange(1, curve.shape[-1]), point[..., None]
    within = retrieved <= _at(curve, point) + np.asarray(delta)[..., None]
    bars = np.isfinite(retrieved) & ~within
    below = np.where(bars & (n < at), n, 0).max(axis=-1, keepdims=True)
    above = np.where(bars & (n > at), n, curve.shape[-1]).min(axis=-1, keepdims=True)
    # n0 itself stands even where its loss is no number, so that no run is empty.
    return (within & (n > below) & (n < above)) | (n == at), within


def _at(
    curve: Float[np.ndarray, "*rest retrieved"], point: Int[np.ndarray, "*rest"]
) -> Float[np.ndarray, "*rest 1"]:
    return np.take_along_axis(curve, point[..., None], axis=-1)


def one_error_point(
    curve: Float[np.ndarray, "*rest retrieved"],
    paired_error: Float[np.ndarray, "*rest retrieved"],
    samples: Int[np.ndarray, "*#rest"],
    common: int | Int[np.ndarray, "*#rest"],
    point: Int[np.ndarray, "*rest"] | None = None,
) -> Int[np.ndarray, "*rest"]:
    """The smallest n >= 1 whose loss exceeds that of the turning point by one standard error only.

    The error is that which a mean over `common` samples would have, whatever the number of samples
    of the split, or the split with fewer of them would be granted the larger tolerance, and fewer
    active units for that alone.

    Parameters
    ----------
    curve : see the module.
    paired_error : standard error, over the samples of the split, of the mean change of a sample's
        loss from n0 to n, in nats.
    samples : how many samples `curve` and `paired_error` stand for.
    common : how many to grant the error of: the smaller number of the two splits.
    point : n0, from which the changes of `paired_error` are counted; None = `roles.turning_point`
        at the default tolerance.

    Returns
    -------
    Int array of the leading shape, at most n0; n0 where no error is known.

    Examples
    --------
    >>> curve, error = np.array([2.0, 0.7, 0.55, 0.5]), np.array([0.3, 0.1, 0.06, 0.0])
    >>> int(one_error_point(curve, error, np.array(50), 50))
    2
    >>> int(one_error_point(curve, error, np.array(200), 50))
    1
    """
    at = roles.turning_point(curve) if point is None else point
    grown = np.sqrt(np.asarray(samples) / np.asarray(common))[..., None]
    near = curve <= _at(curve, at) + paired_error * grown
    first = near[..., 1:].argmax(axis=-1) + 1
    return np.where(near[..., 1:].any(axis=-1), np.minimum(first, at), at)


def status(
    loss: Float[np.ndarray, "*rest retrieved"], point: Int[np.ndarray, "*rest"]
) -> np.ndarray:
    """The kind of minimum that each turning point is, in plain words.

    Parameters
    ----------
    loss : the curves, see the module.
    point : n0.

    Returns
    -------
    Object array of texts, of the leading shape; the first that holds of

    - "never below the fully ablated layer": see `roles.falls`; not where that layer has no loss;
    - "still falling at 64": n0 is N, the whole layer, and N > 1;
    - "flat from n = 31 to 74": the run around n0 (see `basin`), in which the loss rises at most by
      `FLAT`, spans more than a twentieth of the units and holds at least three evaluated n, so n0
      could as well be any of them;
    - "clear minimum".

    Examples
    --------
    >>> curves = np.array([[2.0, 0.5, 1.0, 1.5], [2.0, 0.5, 0.501, 0.502], [2.0, 1.0, 0.9, 0.8]])
    >>> status(curves, np.array([1, 1, 3])).tolist()
    ['clear minimum', 'flat from n = 1 to 3', 'still falling at 3']
    """
    units = loss.shape[-1] - 1
    never = ~roles.falls(loss)
    ablated, highest = loss[..., 0], np.fmax.reduce(loss[..., 1:], axis=-1)
    start = np.where(np.isnan(ablated), highest, ablated)
    delta = np.where(never, 0.0, FLAT * (start - _at(loss, point)[..., 0]))
    low, high, _ = basin(loss, point, delta)
    wide = (high - low + 1 > _WIDE * units) & (_run(loss, point, delta)[0].sum(-1) >= _POINTS)
    texts = np.full(loss.shape[:-1], CLEAR, dtype=object)
    for place in np.ndindex(texts.shape):
        if never[place]:
            texts[place] = NEVER_FALLS
        elif units > 1 and point[place] == units:
            texts[place] = f"still falling at {units}"
        elif wide[place]:
            texts[place] = f"flat from n = {low[place]} to {high[place]}"
    return texts
