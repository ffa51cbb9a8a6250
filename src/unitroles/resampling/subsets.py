"""One pass over the rows of a split for many uses of each sample, whose sets run once for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8

from unitroles.curves.collect import Kept, Tile
from unitroles.curves.retrieval import Run, tile_losses
from unitroles.engine.additive import Cut
from unitroles.engine.masks import Tree
from unitroles.engine.plan import FullPlan, Plan
from unitroles.model.memory import Pieces, slices
from unitroles.stats.draws import Weights


@dataclass(frozen=True)
class Job:
    """What is evaluated on the samples of one class, whatever they are used for.

    Parameters
    ----------
    run : evaluates some masks.
    columns : which of them every use is made of.
    used : the uses in which the class has samples.
    tree : whose sets the masks are; None = of no tree.
    shared : whether the sets run once for all uses; else every use runs its own masks.
    """

    run: Run
    columns: Int[np.ndarray, "uses masks"]
    used: Int[np.ndarray, " uses"]
    tree: Tree | None = None
    shared: bool = True

    def rows_of(self, plan: Plan) -> int:
        """How many samples run together."""
        if isinstance(plan, FullPlan):
            return plan.tile
        assert isinstance(plan, Cut)
        return plan.rows_with_masks if self.tree is None else plan.rows_of(self.tree)


def summed(
    kept: Kept,
    classes: Int[np.ndarray, " samples"],
    labels: int,
    weights: Weights,
    masks: int,
    run: Run,
    job: Callable[[int, Int[np.ndarray, " uses"]], Job],
    done: Callable[[int], None] = lambda count: None,
) -> Float[np.ndarray, "use label masks"]:
    """The losses of one split under some masks, summed by use (replicate and part) and class.

    Parameters
    ----------
    classes : the place of every sample's class, of `labels`.
    weights : how often each sample counts in each use.
    run : evaluates the masks of each sample's own use and class, for whole batches.
    job : for a class, and the uses that have samples of it.
    """
    flat, pieces = weights.reshape(-1, weights.shape[2]), Pieces("the runs with masks")
    total = np.zeros((len(flat), labels, masks))

    @lru_cache(maxsize=2)  # samples come class by class
    def of_class(label: int) -> tuple[Job, int]:
        found = job(label, np.flatnonzero(flat[:, classes == label].any(axis=1)))
        return found, found.rows_of(kept.plan)

    for tile in _by_class(kept, classes, flat, lambda label: of_class(label)[1]):
        if isinstance(tile.plan, FullPlan):  # its batches stay whole: samples may hang together
            for use in np.flatnonzero(flat[:, tile.places].any(axis=1)):
                mine = classes[tile.places]
                group = torch.from_numpy(use * labels + mine)
                losses, _ = tile_losses(kept, tile, group, masks, run, pieces)
                times = flat[use, tile.places].astype(np.float64)
                np.add.at(total[use], mine, (losses.numpy() * times).T)
                done(int(np.count_nonzero(times)))
            continue
        label = int(classes[tile.places[0]])
        mine, _ = of_class(label)
        if not mine.shared:
            _one_by_one(kept, tile, flat, total[:, label], run, (label, labels), pieces, done)
            continue
        times = flat[:, tile.places][mine.used].astype(np.float64)
        group = torch.zeros(len(tile.places), dtype=torch.int64)
        losses, _ = tile_losses(kept, tile, group, int(mine.columns.max()) + 1, mine.run, pieces)
        # By torch: the threads of NumPy's products are not those the user set.
        sums = (torch.from_numpy(times) @ losses.T).numpy()
        total[mine.used, label] += np.take_along_axis(sums, mine.columns, axis=1)
        done(int(np.count_nonzero(times)))
    return total


def _one_by_one(
    kept: Kept,
    tile: Tile,
    weights: UInt8[np.ndarray, "use samples"],
    total: Float[np.ndarray, "use masks"],
    run: Run,
    places: tuple[int, int],
    pieces: Pieces,
    done: Callable[[int], None],
) -> None:
    """Add the losses of some samples of one class, a copy of each for every use of it.

    Parameters
    ----------
    total : of the class.
    places : of the class, and how many there are.
    """
    label, labels = places
    use, place = np.nonzero(weights[:, tile.places])
    for part in slices(len(use), tile.plan.tile):
        which, index = use[part], torch.from_numpy(place[part])
        rows = tuple(value.index_select(0, index.to(value.device)) for value in tile.kept)
        some = Tile(tile.plan, tile.places[place[part]], rows)
        group = torch.from_numpy(which * labels + label)
        losses, _ = tile_losses(kept, some, group, total.shape[1], run, pieces)
        times = weights[which, some.places].astype(np.float64)
        np.add.at(total, which, (losses.numpy() * times).T)
        done(len(which))


def _by_class(
    kept: Kept,
    classes: Int[np.ndarray, " samples"],
    weights: UInt8[np.ndarray, "use samples"],
    rows_of: Callable[[int], int],
) -> Iterator[Tile]:
    """The samples that are used at all, those of a class together as far as there is memory.

    Batches that are run in full come as they are.
    """
    wanted = np.asarray(weights.any(axis=0))
    waiting, last = [], -1
    for tile in kept.tiles():
        if isinstance(tile.plan, FullPlan):
            yield tile
            continue
        own = classes[tile.places]
        for label in np.unique(own[wanted[tile.places]]).tolist():
            if waiting and label != last:
                yield _joined(waiting)
                waiting = []
            mine = np.flatnonzero(wanted[tile.places] & (own == label))
            index = torch.from_numpy(mine)
            rows = tuple(value.index_select(0, index.to(value.device)) for value in tile.kept)
            waiting.append(Tile(tile.plan, tile.places[mine], rows))
            last, size = label, rows_of(label)
            if sum(len(part.places) for part in waiting) >= size:
                pieces = _cut(_joined(waiting), size)
                waiting = [pieces.pop()] if len(pieces[-1].places) < size else []
                yield from pieces
    if waiting:
        yield _joined(waiting)


def _joined(some: Sequence[Tile]) -> Tile:
    """Samples of one class as one tile."""
    places = np.concatenate([part.places for part in some])
    rows = tuple(map(torch.cat, zip(*(part.kept for part in some), strict=True)))
    return Tile(some[0].plan, places, rows)


def _cut(tile: Tile, size: int) -> list[Tile]:
    """Its samples in pieces of some size, of which the last may be smaller."""
    return [
        Tile(tile.plan, tile.places[part], tuple(value[part] for value in tile.kept))
        for part in slices(len(tile.places), size)
    ]
