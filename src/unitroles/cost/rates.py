"""Rates: the seconds of a sample in each stage of an analysis, measured on a few."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unitroles.analysis.prepare import Ready
from unitroles.curves.scores import sample_score
from unitroles.curves.store import Stores
from unitroles.data.samples import Batch, Samples
from unitroles.engine.masks import Prefixes
from unitroles.engine.plan import Plan, Rows, in_full
from unitroles.model.forward import Logits, batch_size, blamed, forward, logits_of, rows_of
from unitroles.options import Evidence
from unitroles.stats.evidence import weigh, weigh_again
from unitroles.stats.grid import grid

# Shorter runs tell little beyond their overhead.
_LONG = 0.1
# A first run that takes so long was not slow for lack of warmth.
_VERY_LONG = 0.2
_FEW = 2
_FASTER = 8
# Samples of a class; the losses of more are not weighed to see what that takes.
_WEIGHED = 256


@dataclass(frozen=True)
class Rates:
    """Seconds per sample.

    Parameters
    ----------
    evaluation : the whole model.
    body : the model as far as the layer, with scores; and on to its end, where samples are compared
        with it.
    masks : all points of the curves, and the swapped sets.
    alone : of a sample that is also run alone, what that takes beside the body.
    full : the masks of a sample of another shape than the plan was made for, in full; 0 = of none.
    """

    evaluation: float
    body: float
    masks: float
    alone: float
    full: float


def measured_rates(ready: Ready, compared: int | None, odd: Batch | None = None) -> Rates:
    """Measure every stage of an analysis on a few samples.

    Run it where the analysis would run: inside `prepared`.

    Parameters
    ----------
    compared : see `samples_alone`.
    odd : a batch of another shape than the plan was made for.

    Raises
    ------
    SomeRows : only some of the samples reach the layer.
    InputError : the model cannot take the samples, or an activation is not finite.
    """
    samples = ready.splits[0]
    unworked = replace(samples, workers=0)  # starting them would be most of the time

    def evaluated(rows: int) -> float:
        return _second(lambda: _evaluate(ready, _read(unworked, rows)))

    rows, evaluation = _grown(evaluated, min(ready.batch, len(samples)))
    read = _second(lambda: _read(unworked, rows))
    body = _second(
        lambda: _pass(ready, unworked.take(np.arange(rows)), None if compared is None else 0)
    )
    single = _alone_seconds(ready, unworked) if compared else 0.0
    plan = ready.choices[0].plan
    if plan.keeps_rows:  # a few rows stand for a tile
        most = min(plan.tile, max(map(len, ready.splits)))
        masks = _masks(ready, plan, partial(_repeated, plan.example), most)
    else:
        masks = _masks(
            ready, plan, lambda few: ready.precision.place(_read(unworked, few).inputs), rows
        )
    full = 0.0 if odd is None else _in_full(ready, odd)
    whole, part = (_beside(t, read, samples.workers) / rows for t in (evaluation, body))
    return Rates(whole, part, masks, single, full)


def _second(work: Callable[[], object]) -> float:
    """Seconds of a second run; the first warms up."""
    seconds = 0.0
    for _ in range(2):
        started = time.perf_counter()
        work()
        seconds = time.perf_counter() - started
        if seconds > _VERY_LONG:
            break
    return seconds


def _grown(work: Callable[[int], float], most: int) -> tuple[int, float]:
    """As many rows, or masks, as take long enough to be measured, and their seconds."""
    rows = min(_FEW, most)
    seconds = work(rows)
    while rows < most and seconds < _LONG:
        times = min(_FASTER, max(2.0, _LONG / max(seconds, 1e-6)))
        rows = min(most, int(rows * times))
        seconds = work(rows)
    return rows, seconds


def _beside(seconds: float, read: float, workers: int) -> float:
    """With the reading by workers, which read while the model runs."""
    return seconds if not workers else max(seconds - read, read / workers)


def _read(samples: Samples, rows: int) -> Batch:
    return next(samples.take(np.arange(rows)).batches(rows))


def _evaluate(ready: Ready, batch: Batch) -> Tensor:
    with blamed(batch.described(ready.splits[0].name)), ready.precision.on():
        return logits_of(forward(ready.model, ready.precision.place(batch.inputs))).cpu()


def _pass(ready: Ready, samples: Samples, audit: int | None) -> None:
    """The pass of the analysis over a few samples, in one batch; so many of them also alone."""
    with Stores(ready.request.compute.bytes) as stores:
        score = sample_score(ready.request.method.score)
        replace(ready, stores=stores).collect(samples, score, lambda count: None, audit=audit)


def _alone_seconds(ready: Ready, samples: Samples) -> float:
    """Of one sample that is run alone, beside what the pass takes without it."""
    few = samples.take(np.arange(min(_FASTER, len(samples))))
    without, beside = (_second(partial(_pass, ready, few, count)) for count in (0, len(few)))
    return max(0.0, beside - without) / len(few)


def _repeated(rows: Rows, count: int) -> Rows:
    """So many rows, from a few."""
    turn = torch.arange(count) % len(rows[0])
    return tuple(value[turn.to(value.device)] for value in rows)


def _in_full(ready: Ready, odd: Batch) -> float:
    """Of one sample of a batch of another shape than the plan was made for."""
    inputs = ready.precision.place(odd.inputs)
    plan = in_full(ready.choices[0].plan, ready.precision)
    return _masks(ready, plan, lambda few: rows_of(inputs, slice(few)), batch_size(inputs))


def _masks(ready: Ready, plan: Plan, kept: Callable[[int], Any], most: int) -> float:
    """Seconds per sample of all masks, from some masks over some samples.

    Parameters
    ----------
    plan : what runs them.
    kept : gives what a plan starts from, for so many samples.
    most : samples.
    """
    units = ready.sites[0].units
    first, later = _points(ready)
    rows, one = _grown(lambda count: _curve(ready, plan, kept(count), count, first[:1]), most)
    few, half = kept(rows), Prefixes(_order(ready, rows), [-(-units // 2)]).own
    swapped = _second(lambda: _run(ready, plan.run(few, half), rows))
    found = (swapped + _curves(ready, plan, few, rows, first, one)) / rows
    if not later:
        return found
    if not plan.whole_batches:  # every class has points of its own, and runs by itself
        rows = max(1, min(rows, int(ready.counts.sum() / ready.counts.size)))
        few = kept(rows)
    one = _curve(ready, plan, few, rows, later[:1])
    return found + _curves(ready, plan, few, rows, later, one) / rows


def _points(ready: Ready) -> tuple[list[int], list[int]]:
    """The n of a curve that are evaluated in a first run, and about those of a second one."""
    plan, units = ready.choices[0].plan, ready.sites[0].units
    first = grid(units, plan.resolution(ready.request.method.resolution)).tolist()
    more = ready.points - len(first)
    start = max(1, (units - more) // 2)  # in the middle, where minima are as often as not
    return first, list(range(start, start + more))


def _curves(ready: Ready, plan: Plan, kept: Any, rows: int, points: list[int], one: float) -> float:
    """Seconds of some samples at all these n, from as many as take long enough.

    Parameters
    ----------
    one : seconds at the first alone.
    """
    if len(points) == 1:
        return one
    # Beside what a tile costs whatever the number of masks.
    taken, beyond = _grown(
        lambda count: _curve(ready, plan, kept, rows, points[:count]) - one, len(points)
    )
    return one + (len(points) - 1) * max(0.0, beyond) / (taken - 1)


def _curve(ready: Ready, plan: Plan, kept: Any, rows: int, points: list[int]) -> float:
    masks = Prefixes(_order(ready, rows), points)
    return _second(lambda: _run(ready, plan.run(kept, masks), rows))


def weighing_seconds(ready: Ready, evidence: Evidence) -> float:
    """Seconds to weigh the losses of all samples for intervals, measured on those of one class."""
    if evidence.bootstrap is None:
        return 0.0
    each = ready.counts.mean()
    rows, rng = max(2, min(_WEIGHED, round(each))), np.random.default_rng(0)
    losses = rng.exponential(size=(rows, ready.points))
    weights = rng.poisson(1.0, (evidence.draws, rows)).astype(np.uint8)
    weights[:, 0] = 1  # no replicate is without samples
    given = losses, weights, np.arange(ready.points), ready.request.method.tolerance, evidence.level

    def work() -> None:
        weigh(*given)
        if evidence.bootstrap == "fixed_ranking":
            weigh_again(*given, (0,))

    return _second(work) * ready.counts.size * max(1.0, each / rows)


def _order(ready: Ready, rows: int) -> Tensor:
    return torch.arange(ready.sites[0].units, device=ready.precision.device).repeat(rows, 1)


def _run(ready: Ready, parts: Iterator[tuple[slice, Logits]], rows: int) -> None:
    """As the sums of the curves are made, for the labels of any samples; nothing is kept."""
    given = ready.splits[0].targets
    targets = given[torch.arange(rows) % len(given)].to(ready.precision.device)
    found = [ready.criterion.evaluate(logits[:, :rows], targets)[0].cpu() for _, logits in parts]
    ready.criterion.losses(torch.cat(found)).sum(dim=1)
