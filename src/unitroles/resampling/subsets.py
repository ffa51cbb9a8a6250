"""One pass over the rows of a split for many uses of each sample, whose sets run once for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from unitroles.curves.collect import Kept, Tile
from unitroles.curves.retrieval import Told, samples_within, tile_losses
from unitroles.curves.store import joined
from unitroles.engine.masks import Masks
from unitroles.engine.plan import Plan
from unitroles.model.forward import Logits
from unitroles.model.memory import Pieces, slices
from unitroles.progress import Done

Runs = Iterator[tuple[slice, Logits]]


@dataclass(frozen=True)
class Job:
    """The sets that are evaluated on the samples of one class, whatever they are used for.

    Parameters
    ----------
    masks : the same for all of them.
    columns : which masks every use is made of.
    used : the uses in which the class has samples.
    shared : whether the masks run once for all uses; else every use runs its own.
    """

    masks: Masks
    columns: Int[np.ndarray, "uses masks"]
    used: Int[np.ndarray, " uses"]
    shared: bool = True

    def run(self, plan: Plan, rows: Any, group: Tensor) -> Runs:
        return plan.run(rows, self.masks)


@dataclass(frozen=True)
class Subsets:
    """The samples of one split, and how often each counts in every use (replicate and part).

    Parameters
    ----------
    classes : the place of every sample's class, of `labels`.
    """

    kept: Kept
    classes: Int[np.ndarray, " samples"]
    labels: int
    weights: UInt8[np.ndarray, "use samples"]

    def summed(
        self,
        empty: Bool[np.ndarray, " masks"],
        own: Callable[[Int[Tensor, " samples"]], Masks],
        job: Callable[[int, Int[np.ndarray, " uses"]], Job],
        done: Done = lambda count: None,
    ) -> Float[np.ndarray, "use label masks"]:
        """The losses under some masks, summed by use and class.

        Parameters
        ----------
        empty : whether each mask retrieves no unit; see `tile_losses`.
        own : the masks of samples of any use and class (use * labels + class).
        job : for a class, and the uses that have samples of it.
        done : told how many samples each step added.
        """
        pieces = Pieces("the runs with masks")
        total = np.zeros((len(self.weights), self.labels, len(empty)))

        def run(plan: Plan, rows: Any, group: Tensor) -> Runs:
            return plan.run(rows, own(group))

        def add(tile: Tile, use: Int[np.ndarray, " samples"]) -> None:
            """Add the losses of some samples, each in a use of it."""
            mine = self.classes[tile.places]
            group = torch.from_numpy(use * self.labels + mine)
            times = self.weights[use, tile.places].astype(np.float64)
            steps = int(np.count_nonzero(times))
            told = Told(run, done, len(empty), steps / len(times))
            losses, _ = tile_losses(self.kept, tile, group, empty, told, pieces)
            np.add.at(total, (use, mine), (losses.numpy() * times).T)
            done(steps - told.count)

        @lru_cache(maxsize=1)  # samples come class by class
        def of_class(label: int) -> Job:
            return job(label, np.flatnonzero(self.weights[:, self.classes == label].any(axis=1)))

        def rows_of(label: int) -> int:
            masks = of_class(label).masks
            return min(self.kept.plan.rows(masks), samples_within(len(masks)))

        for tile in self._by_class(rows_of):
            if tile.plan.whole_batches:
                for use in np.flatnonzero(self.weights[:, tile.places].any(axis=1)):
                    add(tile, np.full(len(tile.places), use))
                continue
            label = int(self.classes[tile.places[0]])
            mine = of_class(label)
            if not mine.shared:  # a copy of each sample for every use of it
                use, place = np.nonzero(self.weights[:, tile.places])
                for part in slices(len(use), min(tile.plan.tile, samples_within(len(empty)))):
                    add(tile.some(place[part]), use[part])
                continue
            times = self.weights[:, tile.places][mine.used].astype(np.float64)
            group = torch.zeros(len(tile.places), dtype=torch.int64)
            none = np.isin(np.arange(len(mine.masks)), mine.columns[:, empty])
            steps = int(np.count_nonzero(times))
            told = Told(mine.run, done, len(none), steps / len(tile.places))
            found = tile_losses(self.kept, tile, group, none, told, pieces)
            # By torch: the threads of NumPy's products are not those the user set.
            sums = (torch.from_numpy(times) @ found[0].T).numpy()
            total[mine.used, label] += np.take_along_axis(sums, mine.columns, axis=1)
            done(steps - told.count)
        return total

    def _by_class(self, rows_of: Callable[[int], int]) -> Iterator[Tile]:
        """The samples that are used at all, those of a class together as far as there is memory.

        Batches that must stay whole come as they are.
        """
        wanted = np.asarray(self.weights.any(axis=0))
        waiting, last = [], -1
        for tile in self.kept.tiles():
            if tile.plan.whole_batches:
                yield tile
                continue
            own = self.classes[tile.places]
            for label in np.unique(own[wanted[tile.places]]).tolist():
                if waiting and label != last:
                    yield _joined(waiting)
                    waiting = []
                waiting.append(tile.some(np.flatnonzero(wanted[tile.places] & (own == label))))
                last, size = label, rows_of(label)
                if sum(len(part.places) for part in waiting) >= size:
                    pieces = list(_joined(waiting).pieces(size))
                    waiting = [pieces.pop()] if len(pieces[-1].places) < size else []
                    yield from pieces
        if waiting:
            yield _joined(waiting)


def _joined(some: Sequence[Tile]) -> Tile:
    """Samples of one class as one tile."""
    places = np.concatenate([part.places for part in some])
    return Tile(some[0].plan, places, joined([part.kept for part in some]))
