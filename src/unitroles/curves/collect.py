"""One pass through the model: scores, and what the masks of every layer need of each sample."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from unitroles.curves.loss import CROSS_ENTROPY, Criterion
from unitroles.curves.scores import (
    SampleScore,
    ScoreSums,
    attended,
    require_finite,
    sample_scores,
    score_sums,
)
from unitroles.curves.store import Store, Stores, joined
from unitroles.data.samples import Batch, Samples
from unitroles.engine.plan import FullPlan, Plan, Rows
from unitroles.errors import InputError, PlanWarning
from unitroles.model.forward import Precision, batch_size, blamed, rows_of
from unitroles.model.hooks import output_of, run_body
from unitroles.model.memory import Pieces, slices

SCORE_TILE = 4096
"""Samples whose scores are read together."""


@dataclass(frozen=True)
class Tile:
    """Some samples, and what a plan kept of them; rows beyond `places` are padding."""

    plan: Plan
    places: Int[np.ndarray, " samples"]
    kept: Any

    def rows(self, part: slice) -> Any:
        """Some of the samples, as they were kept."""
        return rows_of(self.kept, part)

    def some(self, chosen: Int[np.ndarray, " samples"]) -> Tile:
        """Some of the samples, perhaps several times, of a plan that keeps rows."""
        index = torch.from_numpy(chosen)
        rows = tuple(value.index_select(0, index.to(value.device)) for value in self.kept)
        return Tile(self.plan, self.places[chosen], rows)


@dataclass
class Kept:
    """All that the masks of one layer need of every sample of a split.

    Parameters
    ----------
    plan : how masks are run.
    samples : the split.
    size : samples per batch.
    precision : of the model's own forwards.
    store : the rows; None = they are computed again whenever they are asked for.
    criterion : what outputs are compared with labels by.
    foreign : first sample of the batches of another form, which are run in full.
    places : which samples have rows, in their order.
    scores : the scores of every sample (samples, units), where they were asked for.
    """

    plan: Plan
    samples: Samples
    size: int
    precision: Precision
    criterion: Criterion = CROSS_ENTROPY
    store: Store | None = None
    foreign: list[int] = field(default_factory=list)
    places: list[np.ndarray] = field(default_factory=list)
    scores: Store | None = None

    def tiles(self) -> Iterator[Tile]:
        """All samples, some at a time; neither tiles nor bits depend on where the rows are."""
        if not self.plan.keeps_rows:
            yield from self._whole(np.arange(len(self.samples)), self.plan)
            return
        places, done = np.concatenate([np.arange(0), *self.places]), 0
        for rows in self._again(places) if self.store is None else self.store.tiles(self.plan.tile):
            count = len(rows[0])
            # Copies: the last bit of a product depends on where in memory its rows begin.
            kept = tuple(
                value.to(self.precision.device, copy=True, memory_format=torch.contiguous_format)
                for value in rows
            )
            yield Tile(self.plan, places[done : done + count], kept)
            done += count
        for start in self.foreign:
            mine = np.arange(start, min(start + self.size, len(self.samples)))
            yield from self._whole(mine, self._in_full())

    def _in_full(self) -> FullPlan:
        """An export knows one length of sequence, one size of image."""
        warnings.warn(
            "batches of another shape than the first are run in full (N+1 runs of the model)",
            PlanWarning,
            stacklevel=2,
        )
        plan = self.plan
        return FullPlan(plan.model, plan.site, "", plan.baseline, self.precision)

    def _whole(self, places: np.ndarray, plan: Plan) -> Iterator[Tile]:
        """Tiles for runs of the whole model."""
        for mine, batch in self._batches(places):
            yield Tile(plan, mine, self.precision.place(batch.inputs))

    def _again(self, places: np.ndarray) -> Iterator[Rows]:
        """The rows computed again, from the same batches and in the same tiles as a store's."""
        waiting, count, pieces = [], 0, Pieces("the model's forward")
        for mine, batch in self._batches(places):
            inputs = self.precision.place(batch.inputs)

            def run(part: slice, inputs: Any = inputs) -> Rows:
                ((_, rows),) = body([self.plan], rows_of(inputs, part), self.precision)
                assert rows is not None  # the batch had the form of the plan before
                return rows

            with blamed(batch.described(self.samples.name)):
                kept = joined(pieces.run(run, batch_size(inputs)))
            waiting.append(tuple(value[: len(mine)] for value in kept))
            count += len(mine)
            if count >= self.plan.tile:
                rows = joined(waiting)
                whole = count - count % self.plan.tile
                yield from (tuple(v[part] for v in rows) for part in slices(whole, self.plan.tile))
                waiting, count = [tuple(v[whole:] for v in rows)], count - whole
        if count:
            yield joined(waiting)

    def _batches(self, places: np.ndarray) -> Iterator[tuple[np.ndarray, Batch]]:
        """Some samples as they were collected, and which ones are in each batch."""
        done = 0
        for batch in self.samples.take(places).batches(self.size):
            yield places[done : done + batch.count], batch
            done += batch.count


@dataclass(frozen=True)
class Pass:
    """One pass through the body of a model, for several layers.

    Parameters
    ----------
    plans : of the layers.
    precision : of the model's forwards.
    size : samples per forward.
    stores : memory and disk for rows.
    criterion : what the masks will be compared by.
    """

    plans: Sequence[Plan]
    precision: Precision
    size: int
    stores: Stores
    criterion: Criterion = CROSS_ENTROPY

    def collect(
        self,
        samples: Samples,
        labels: Int[np.ndarray, " label"],
        score: SampleScore | None,
        done: Callable[[int], None],
        each: bool = False,
    ) -> tuple[list[ScoreSums], list[Kept]]:
        """Run the model once over a split, for all layers.

        Parameters
        ----------
        score : of a sample's activations; None = none is measured.
        done : told how many samples each batch added.
        each : whether the scores of every sample are kept too.

        Raises
        ------
        InputError : an activation or a score is not finite, or the model cannot take some samples.
        """
        size, plans = min(self.size, len(samples)), self.plans
        kept = [Kept(plan, samples, size, self.precision, self.criterion) for plan in plans]
        sums = [ScoreSums.nothing(len(labels), plan.site.units) for plan in plans]
        if score is None and not any(plan.keeps_rows for plan in plans):
            return sums, kept
        pieces = Pieces("the model's forward")
        for start, batch in zip(range(0, len(samples), size), samples.batches(size), strict=True):
            inputs = self.precision.place(batch.inputs)

            def run(part: slice, inputs: Any = inputs) -> list[tuple[Tensor, Rows | None]]:
                some = inputs if part == slice(0, size) else rows_of(inputs, part)
                return body(plans, some, self.precision)

            with blamed(batch.described(samples.name)):
                found = pieces.run(run, size)
            classes = torch.from_numpy(np.searchsorted(labels, batch.labels.numpy()))
            for layer, parts in enumerate(zip(*found, strict=True)):
                outputs, rows = zip(*parts, strict=True)
                if score is not None:
                    (output,) = joined([(part,) for part in outputs])
                    values = _scores(kept[layer], score, batch, inputs, output)
                    sums[layer] += score_sums(values, classes, len(labels))
                    if each:
                        _remember(kept[layer], values, self.stores)
                _add(kept[layer], rows, start, batch.count, self.stores)
            done(batch.count)
        return sums, kept


def body(
    plans: Sequence[Plan], inputs: Any, precision: Precision
) -> list[tuple[Tensor, Rows | None]]:
    """For every layer its output, and what its plan keeps of some samples."""
    places = list(dict.fromkeys(place for plan in plans for place in plan.places))
    with precision.on():
        values = dict(zip(places, run_body(plans[0].model, places, inputs), strict=True))
    return [
        (values[output_of(plan.site)], plan.keep([values[p] for p in plan.places], inputs))
        for plan in plans
    ]


def _scores(kept: Kept, score: SampleScore, batch: Batch, inputs: Any, output: Tensor) -> Tensor:
    """The scores of a batch, without its padding."""
    site, seen = kept.plan.site, output[: batch.count]
    require_finite(seen, site, kept.samples.name, batch.rows, batch.labels)
    real = attended(inputs, output.shape, site.axis)
    return sample_scores(seen, site.axis, score, None if real is None else real[: batch.count])


def _add(kept: Kept, parts: Sequence[Rows | None], start: int, count: int, stores: Stores) -> None:
    """Keep the rows of a batch."""
    if not kept.plan.keeps_rows:
        return
    found = [rows for rows in parts if rows is not None]
    if len(found) < len(parts):
        kept.foreign.append(start)
        return
    mine = tuple(value[:count] for value in joined(found))
    if not kept.places:
        kept.store = stores.open(len(kept.samples), mine, kept.plan.tile)
    kept.places.append(np.arange(start, start + count))
    if kept.store is not None:
        kept.store.add(mine)


def _remember(kept: Kept, values: Tensor, stores: Stores) -> None:
    """Keep the scores of some samples.

    Raises
    ------
    InputError : they fit neither into memory nor on the disk.
    """
    if kept.scores is None:
        kept.scores = stores.open(len(kept.samples), [values], SCORE_TILE)
    if kept.scores is None:
        needed = len(kept.samples) * values.shape[1] * values.element_size() / 2**30
        raise InputError(
            f"evidence keeps the scores of every sample, {needed:.1f} GiB for {kept.samples.name}, "
            "which fit neither into the memory_budget nor on the disk; give more of either, or "
            "fewer samples by max_per_class"
        )
    kept.scores.add((values,))
