"""Scores, orders and curves again for parts of the samples, from the rows that are kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from unitroles.curves.collect import SCORE_TILE, Kept
from unitroles.engine.masks import Masks, Own, Prefixes, Sets, Tree
from unitroles.model.memory import slices
from unitroles.progress import Done
from unitroles.resampling.limits import draw_bytes
from unitroles.resampling.subsets import Job, Subsets
from unitroles.roles import active_set, assign_roles, order_units, ranked, turning_point
from unitroles.stats.draws import Draws, Weights

_Scores = Float[np.ndarray, "replicate part label unit"]
_Orders = Int[np.ndarray, "replicate part label position"]
_Curves = Float[np.ndarray, "replicate part label masks"]
_Counts = Int[np.ndarray, "replicate part label"]


@dataclass(frozen=True)
class LayerRun:
    """All that the replicates of one layer share.

    Parameters
    ----------
    kept : what masks need of both splits.
    labels : the analysed classes.
    points : the n at which curves are evaluated, rising from 0 and 1.
    order : whose scores rank the units, see `unitroles.Method`.
    tolerance : nats, of turning points.
    fixed : a score (split, label, unit) that does not depend on the samples, or None.
    memory : bytes for scores, orders and curves of replicates.
    """

    kept: Sequence[Kept]
    labels: Int[np.ndarray, " label"]
    points: Int[np.ndarray, " masks"]
    order: str
    tolerance: float
    fixed: Float[np.ndarray, "split label unit"] | None
    memory: int

    @property
    def units(self) -> int:
        return self.kept[0].plan.site.units

    @property
    def samples(self) -> int:
        """Of both splits."""
        return sum(len(kept.samples) for kept in self.kept)

    @cached_property
    def classes(self) -> tuple[Int[np.ndarray, " _"], ...]:
        """The place of every sample's class, by split."""
        return tuple(np.searchsorted(self.labels, kept.samples.labels) for kept in self.kept)

    @property
    def counts(self) -> Int[np.ndarray, "split label"]:
        """Samples by split and class."""
        return np.stack([np.bincount(classes) for classes in self.classes])


@dataclass(frozen=True)
class Redone:
    """Some replicates; those of a class that has no samples in a part are not a number, or 0.

    Parameters
    ----------
    role : by pair of parts.
    point : n0 of both parts of every pair.
    curve : E(n) at the n of the layer_run, likewise.
    regret : what the active set of the other part of the pair costs, in nats.
    """

    role: np.ndarray  # (replicate, pair, label, unit)
    point: np.ndarray  # (replicate, pair, split, label)
    curve: np.ndarray  # (replicate, pair, split, label, masks)
    regret: np.ndarray  # (replicate, pair, split, label)


def redo(layer_run: LayerRun, draws: Draws, done: Done = lambda count: None) -> Iterator[Redone]:
    """Score, order, curve and turning point again for every part, some replicates at a time.

    Parameters
    ----------
    done : told how many samples each step added; see `work`.
    """
    draws = _by_pair(draws, layer_run)
    for block in slices(len(draws), _together(layer_run, draws)):
        yield _redone(layer_run, draws.part(block), done)


def work(layer_run: LayerRun, draws: Draws) -> int:
    """The number of samples that `redo` puts under all masks."""
    draws = _by_pair(draws, layer_run)
    return sum(int(np.count_nonzero(weights)) for weights in draws.weights)


def _by_pair(draws: Draws, layer_run: LayerRun) -> Draws:
    """Parts of their own in every pair, where orders depend on the pair or on the side in it."""
    alike = layer_run.order == "per_split" and layer_run.fixed is None
    if alike or len(draws.pairs) == 1:
        return draws
    parts = [part for pair in draws.pairs for part in pair]
    first, second = (np.ascontiguousarray(weights[:, parts]) for weights in draws.weights)
    return Draws((first, second), tuple((2 * i, 2 * i + 1) for i in range(len(draws.pairs))))


def _together(layer_run: LayerRun, draws: Draws) -> int:
    """The number of replicates that fit into the memory: scores, copies of the orders, curves."""
    parts, pairs, labels = draws.weights[0].shape[1], len(draws.pairs), len(layer_run.labels)
    each = draw_bytes(parts, pairs, layer_run.units, len(layer_run.points), labels)
    swapped = 2 * pairs * layer_run.samples  # of the weights by pair
    return max(1, layer_run.memory // (each + swapped))


def _redone(layer_run: LayerRun, draws: Draws, done: Done) -> Redone:
    count = _counts(layer_run, draws)
    order = _orders(layer_run, draws, count)
    sums = sum(_curves(layer_run, split, draws.weights[split], order, done) for split in (0, 1))
    curve = sums / np.maximum(count, 1)[..., None]
    place = turning_point(curve, layer_run.tolerance)
    lowest = np.take_along_axis(curve, place[..., None], axis=-1)[..., 0]
    point = layer_run.points[place]
    active = active_set(order, point)
    pairs = np.array(draws.pairs)
    there = count[:, pairs].min(axis=2) > 0
    role = assign_roles(active[:, pairs[:, 0]], active[:, pairs[:, 1]])
    others = sum(_swapped(layer_run, split, draws, order, point) for split in (0, 1))
    regret = others / np.maximum(count[:, pairs], 1) - lowest[:, pairs]
    return Redone(
        role=np.where(there[..., None], role, 0).astype(np.uint8),
        point=point[:, pairs],
        curve=curve[:, pairs],
        regret=np.where(there[:, :, None], regret, np.nan),
    )


def _counts(layer_run: LayerRun, draws: Draws) -> _Counts:
    """Samples by replicate, part and class, each as often as it counts."""
    labels = len(layer_run.labels)
    shape = (*draws.weights[0].shape[:2], labels)
    total = np.zeros(shape, dtype=np.int64)
    for split, weights in enumerate(draws.weights):
        classes = layer_run.classes[split]
        for label in range(labels):
            total[..., label] += weights[..., classes == label].sum(axis=2, dtype=np.int64)
    return total


def _orders(layer_run: LayerRun, draws: Draws, count: _Counts) -> _Orders:
    if layer_run.fixed is not None:
        score = np.stack([_fixed(layer_run, draws)] * len(draws))
    else:
        sums = sum(_scores(layer_run, split, draws.weights[split]) for split in (0, 1))
        score = sums / np.maximum(count, 1)[..., None]
    if layer_run.order == "per_split":
        return ranked(score)
    order = np.zeros(score.shape, dtype=np.int64)
    for r in range(len(draws)):
        for pair in draws.pairs:
            both = list(pair)
            samples = np.maximum(count[r, both], 1)
            order[r, both] = order_units(score[r, both], samples, layer_run.order)
    return order


def _fixed(layer_run: LayerRun, draws: Draws) -> Float[np.ndarray, "part label unit"]:
    """A score that depends on no sample, for every part that of the split it is read as."""
    assert layer_run.fixed is not None
    parts = draws.weights[0].shape[1]
    found = np.zeros((parts, *layer_run.fixed.shape[1:]))
    for pair in draws.pairs:
        for split, part in enumerate(pair):
            found[part] = layer_run.fixed[split]
    return found


def _scores(layer_run: LayerRun, split: int, weights: Weights) -> _Scores:
    """The scores of one split summed by replicate, part and class."""
    kept, labels = layer_run.kept[split], len(layer_run.labels)
    assert kept.scores is not None
    total = np.zeros((*weights.shape[:2], labels, layer_run.units))
    classes, start = layer_run.classes[split], 0
    for (values,) in kept.scores.tiles(SCORE_TILE):
        stop = start + len(values)
        mine, some = classes[start:stop], values.to(torch.float64).numpy()
        for label in np.unique(mine):
            chosen = weights[..., start:stop][..., mine == label]
            if chosen.any():
                total[:, :, label] += chosen.astype(np.float64) @ some[mine == label]
        start = stop
    return total


def _curves(
    layer_run: LayerRun,
    split: int,
    weights: Weights,
    order: _Orders,
    done: Done,
) -> _Curves:
    """The losses of one split summed by replicate, part and class, each part in its own order."""
    labels, units = len(layer_run.labels), order.shape[-1]
    table, points = order.reshape(-1, labels, units).astype(np.int64), layer_run.points.tolist()
    subsets, rows = _subsets(layer_run, split, weights), torch.from_numpy(table.reshape(-1, units))
    device = subsets.kept.precision.device

    def own(group: Tensor) -> Masks:
        return Prefixes(rows[group].to(device), points)

    def job(label: int, used: Int[np.ndarray, " uses"]) -> Job:
        tree, columns = Tree.of(table[used, label], points)
        # Of few uses of many samples each would run sets that it does not need.
        mine = subsets.weights[:, subsets.classes == label][used]
        shared = mine.any(axis=0).sum() * len(tree)
        return Job(tree, columns, used, bool(shared <= np.count_nonzero(mine) * len(points)))

    total = subsets.summed(layer_run.points == 0, own, job, done)
    return total.reshape(*weights.shape[:2], labels, -1)


def _swapped(
    layer_run: LayerRun,
    split: int,
    draws: Draws,
    order: _Orders,
    point: _Counts,
) -> Float[np.ndarray, "replicate pair side label"]:
    """The losses of one split summed, each part under the active set of the other of its pair."""
    pairs, labels, units = np.array(draws.pairs), len(layer_run.labels), order.shape[-1]
    subsets = _subsets(layer_run, split, draws.weights[split][:, pairs.ravel()])
    others = pairs[:, ::-1].ravel()
    orders, points = order[:, others].reshape(-1, units), point[:, others].ravel()
    active = active_set(orders, points).reshape(-1, labels, units)

    def own(group: Tensor) -> Masks:
        mine = group.numpy()
        return Own(torch.from_numpy(orders[mine]), torch.from_numpy(points[mine])[None])

    def job(label: int, used: Int[np.ndarray, " uses"]) -> Job:
        different, places = np.unique(active[used, label], axis=0, return_inverse=True)
        return Job(Sets(torch.from_numpy(different)), places.reshape(-1, 1), used)

    return subsets.summed(np.zeros(1, dtype=bool), own, job).reshape(
        len(draws), *pairs.shape, labels
    )


def _subsets(layer_run: LayerRun, split: int, weights: Weights) -> Subsets:
    flat = weights.reshape(-1, weights.shape[2])
    return Subsets(layer_run.kept[split], layer_run.classes[split], len(layer_run.labels), flat)
