"""Measure what `Evidence` asks for, for one layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from unitroles.curves.retrieval import Observer, ignore, widened
from unitroles.options import Evidence
from unitroles.progress import Track
from unitroles.resampling.controls import Variables, other_roles, what_sets_do
from unitroles.resampling.intervals import (
    QUANTITIES,
    LossObserver,
    SwapObserver,
    regrets,
    with_fixed_ranking,
)
from unitroles.resampling.limits import DRAWN_FROM, require_losses_fit
from unitroles.resampling.recompute import LayerRun, Redone, redo, work
from unitroles.roles import ROLE_NAMES, ROLES
from unitroles.stats.draws import Draws, half_size, halves, resplits, reweighted
from unitroles.stats.evidence import interval, role_proportions, std_over_units

# The dim of the four roles; `role` itself is the variable (label, unit).
_CURVE, _BY_LABEL = ("split", "label", "retrieved"), ("label", "role_name")


_REPLICATE = ("replicate", "split", "label")


# Of what bootstrap gives.
_DIMS = {
    "loss_low": _CURVE,
    "loss_high": _CURVE,
    "paired_error": _CURVE,
    "turning_point_replicate": _REPLICATE,
    "regret_replicate": _REPLICATE,
    "proportion_replicate": ("replicate", *_BY_LABEL),
    "std_over_units_replicate": ("replicate", "role_name"),
    "role_probability": ("label", "unit", "role_name"),
    "coverage": ("quantity",),
}


Found = tuple[Variables, dict[str, np.ndarray]]
"""Variables as (dims, values), and the coordinates of the dims that are new."""


@dataclass(frozen=True)
class Measurement:
    """The evidence that is asked for about one layer.

    Parameters
    ----------
    layer_run : what all replicates share.
    evidence : what was asked for.
    bars : progress.
    observers : of the losses with the ranking as it is, for both splits; () = none.
    swapped : of the losses under the other split's active sets, likewise.
    """

    layer_run: LayerRun
    evidence: Evidence
    bars: Track
    observers: tuple[LossObserver, ...]
    swapped: tuple[SwapObserver, ...] = ()

    def observer(self, split: int) -> Observer:
        """The observer of the losses of the curves."""
        return self.observers[split] if self.observers else ignore

    def swap_observer(self, split: int) -> Observer:
        """The observer of the losses under the other split's active sets."""
        return self.swapped[split] if self.swapped else ignore


def start(layer_run: LayerRun, evidence: Evidence, bars: Track) -> Measurement:
    """Get ready to observe the curves; call before they are evaluated.

    Raises
    ------
    InputError : the losses of samples that wait for others do not fit into memory.
    """
    if evidence.bootstrap is None:
        return Measurement(layer_run, evidence, bars, ())
    for kept in layer_run.kept:
        if kept.foreign:  # they come last, when the other samples of many classes are waiting
            needed = len(kept.samples), len(layer_run.points), evidence.draws
            require_losses_fit(kept.samples.name, *needed, layer_run.memory)
    rows = [kept.samples.rows for kept in layer_run.kept]
    shape = (len(layer_run.labels), evidence.draws, evidence.seed)
    draws = reweighted(layer_run.classes, rows, *shape)
    observers = tuple(LossObserver(layer_run, split, draws, evidence) for split in (0, 1))
    swapped = tuple(SwapObserver(np.full(len(mine), np.nan)) for mine in rows)
    return Measurement(layer_run, evidence, bars, observers, swapped)


def findings(
    measurement: Measurement,
    order: Int[np.ndarray, "split label position"],
    point: Int[np.ndarray, "split label"],
    accuracy: Float[np.ndarray, "split label retrieved"],
    report: Callable[[float], None] | None = None,
) -> Found:
    """All evidence as variables (dims, values), and the coordinates of their new dims.

    Parameters
    ----------
    order, point, accuracy : of the analysis itself.
    report : told before orders are redone for a full bootstrap, how many times the samples of both
        splits are put under all masks.
    """
    evidence, layer_run = measurement.evidence, measurement.layer_run
    found: Variables = {}
    coords = {
        "role_name": np.array(ROLE_NAMES, dtype=object),
        "drawn_from": np.array(DRAWN_FROM, dtype=object),
        "quantity": np.array(QUANTITIES, dtype=object),
    }
    if measurement.observers:
        found |= _bootstrap(measurement, order, point, report)
    if evidence.floors:
        found |= _floors(measurement)
    if evidence.resplits:
        shape = (len(layer_run.labels), evidence.resplits, evidence.seed)
        blocks = _redone(measurement, "new splits", resplits(layer_run.classes, *shape))
        shares = np.concatenate([role_proportions(block.role[:, 0]) for block in blocks])
        found["resplit_proportion"] = ("resplit", *_BY_LABEL), shares
    if evidence.controls:
        of_roles, names = other_roles(
            layer_run, order, point, accuracy, evidence.seed, measurement.bars
        )
        found |= of_roles | what_sets_do(layer_run, order, point, measurement.bars)
        coords["control"] = np.array(names, dtype=object)
    dims = {dim for names, _ in found.values() for dim in names}
    return found, {name: values for name, values in coords.items() if name in dims}


def _redone(measurement: Measurement, name: str, draws: Draws) -> Iterator[Redone]:
    done = measurement.bars(name, work(measurement.layer_run, draws))
    return redo(measurement.layer_run, draws, done)


def _floors(measurement: Measurement) -> Variables:
    """Roles inside the training set, inside the test set, and of both, all at the same size."""
    layer_run, evidence = measurement.layer_run, measurement.evidence
    shape = (len(layer_run.labels), evidence.floors, evidence.seed)
    draws, found = halves(layer_run.classes, *shape), []
    for block in _redone(measurement, "noise floors", draws):  # whose curves are not kept
        found.append((role_proportions(block.role), std_over_units(block.role), block.regret))
    # The pair of parts, from which roles and regret are, comes first.
    share, spread, regret = (
        np.moveaxis(np.concatenate(values), 1, 0) for values in zip(*found, strict=True)
    )
    drawn = ("drawn_from", "draw")
    return {
        "noise_floor_proportion": ((*drawn, *_BY_LABEL), share),
        "noise_floor_std_over_units": ((*drawn, "role_name"), spread),
        "noise_floor_regret": ((*drawn, "half", "label"), regret),
        "noise_floor_samples": (("label",), half_size(layer_run.counts).astype(np.int64)),
    }


def _bootstrap(
    measurement: Measurement,
    order: Int[np.ndarray, "split label position"],
    point: Int[np.ndarray, "split label"],
    report: Callable[[float], None] | None,
) -> Variables:
    first, second = measurement.observers
    one, other = measurement.swapped
    if measurement.evidence.bootstrap == "full":
        found = _full(measurement, first.draws, report)
    else:
        found = {"regret_replicate": regrets((first, second), (one, other))}
    found |= with_fixed_ranking((first, second), order, point)
    found["turning_point_replicate"] = found["turning_point_replicate"].astype(np.int32)
    return {name: (_DIMS[name], values) for name, values in found.items()}


def _full(
    measurement: Measurement, draws: Draws, report: Callable[[float], None] | None
) -> dict[str, np.ndarray]:
    """Score, order and curve again for every replicate: P(role), and intervals with the
    uncertainty of the ranking.
    """
    layer_run, level = measurement.layer_run, measurement.evidence.level
    if report is not None:
        whole = layer_run.kept[0].plan.whole_batches
        report(len(draws) if whole else work(layer_run, draws) / layer_run.samples)
    points, units, labels = layer_run.points, layer_run.units, len(layer_run.labels)
    # Of all replicates only the curves are held, once: intervals need all of them.
    curve, done = np.empty((len(draws), 2, labels, len(points))), 0
    chance = np.zeros((labels, units, len(ROLES)))
    found = []
    for block in _redone(measurement, "bootstrap", draws):
        role = block.role[:, 0]
        curve[done : done + len(role)] = block.curve[:, 0]
        done += len(role)
        for place, value in enumerate(ROLES):
            chance[..., place] += (role == value).sum(axis=0)
        found.append(
            (block.point[:, 0], block.regret[:, 0], role_proportions(role), std_over_units(role))
        )
    point, regret, share, spread = map(np.concatenate, zip(*found, strict=True))
    bounds = np.stack([interval(curve[:, :, k], level) for k in range(labels)], axis=2)
    low, high = (widened(bound, points, units) for bound in bounds)
    return {
        "loss_low": low,
        "loss_high": high,
        "turning_point_replicate": point,
        "regret_replicate": regret,
        "proportion_replicate": share,
        "std_over_units_replicate": spread,
        "role_probability": (chance / len(draws)).astype(np.float32),
    }
