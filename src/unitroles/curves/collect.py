"""One pass through the model: scores, and what the masks of every layer need of each sample."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from unitroles.curves.loss import CROSS_ENTROPY, Criterion
from unitroles.curves.scores import (
    SampleScore,
    ScoreSums,
    attended,
    require_finite,
    sample_scores,
    score_sums,
)
from unitroles.curves.store import Rows, Store, Stores
from unitroles.data.samples import Batch, Samples
from unitroles.engine.plan import FullPlan, Plan
from unitroles.errors import InputError, PlanWarning
from unitroles.model.calls import Place
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
        """What was kept of some of the samples."""
        return rows_of(self.kept, part)


@dataclass
class Kept:
    """What the masks of one layer need of every sample of a split.

    Parameters
    ----------
    model : the user's model.
    plan : how masks are run.
    samples : the split.
    size : samples per batch.
    precision : of the model's own forwards.
    store : the rows; None = they are computed again whenever they are asked for.
    criterion : what outputs are compared with labels by.
    foreign : first sample of the batches of another form, which are run in full.
    places : which samples have rows, in their order.
    decided : whether it is known where the rows go.
    scores : the scores of every sample (samples, units), where they were asked for.
    """

    model: nn.Module
    plan: Plan
    samples: Samples
    size: int
    precision: Precision
    criterion: Criterion = CROSS_ENTROPY
    store: Store | None = None
    foreign: list[int] = field(default_factory=list)
    places: list[np.ndarray] = field(default_factory=list)
    decided: bool = False
    scores: Store | None = None

    @property
    def where(self) -> str:
        """Where the rows are: "memory", "disk" or "recompute"."""
        return "recompute" if self.store is None else self.store.where

    def tiles(self) -> Iterator[Tile]:
        """All samples, some at a time; neither tiles nor bits depend on where the rows are."""
        if isinstance(self.plan, FullPlan):
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
            yield from self._whole(mine, _in_full(self))

    def _whole(self, places: np.ndarray, plan: FullPlan) -> Iterator[Tile]:
        """Tiles for runs of the whole model."""
        for mine, batch in self._batches(places):
            yield Tile(plan, mine, self.precision.place(batch.inputs))

    def _again(self, places: np.ndarray) -> Iterator[Rows]:
        """The rows computed again, from the same batches and in the same tiles as a store's."""
        waiting, count, pieces = [], 0, Pieces("the model's forward")
        for mine, batch in self._batches(places):
            inputs = self.precision.place(batch.inputs)

            def look(part: slice, inputs: Any = inputs) -> Rows:
                some = rows_of(inputs, part)
                with self.precision.on():
                    found = run_body(self.model, self.plan.places, some)
                return self.plan.keep(found, some)

            with blamed(batch.described(self.samples.name)):
                parts = pieces.run(look, batch_size(inputs))
            kept = parts[0] if len(parts) == 1 else tuple(map(torch.cat, zip(*parts, strict=True)))
            waiting.append(tuple(value[: len(mine)] for value in kept))
            count += len(mine)
            if count >= self.plan.tile:
                rows = tuple(map(torch.cat, zip(*waiting, strict=True)))
                whole = count - count % self.plan.tile
                yield from (tuple(v[part] for v in rows) for part in slices(whole, self.plan.tile))
                waiting, count = [tuple(v[whole:] for v in rows)], count - whole
        if count:
            yield tuple(map(torch.cat, zip(*waiting, strict=True)))

    def _batches(self, places: np.ndarray) -> Iterator[tuple[np.ndarray, Batch]]:
        """Some samples as they were collected, and which ones are in each batch."""
        done = 0
        for batch in self.samples.take(places).batches(self.size):
            yield places[done : done + batch.count], batch
            done += batch.count


def _in_full(kept: Kept) -> FullPlan:
    """An export knows one length of sequence, one size of image."""
    warnings.warn(
        "batches of another shape than the first are run in full (N+1 runs of the model)",
        PlanWarning,
        stacklevel=2,
    )
    full = FullPlan(kept.model, kept.plan.site, "", precision=kept.precision)
    return full.ablated(kept.plan.baseline)


def collect(
    model: nn.Module,
    plans: Sequence[Plan],
    samples: Samples,
    labels: Int[np.ndarray, " label"],
    score: SampleScore | None,
    size: int,
    precision: Precision,
    stores: Stores,
    done: Callable[[int], None],
    criterion: Criterion = CROSS_ENTROPY,
    each: bool = False,
) -> tuple[list[ScoreSums], list[Kept]]:
    """Run the model once over a split, for all layers.

    Parameters
    ----------
    score : of a sample's activations; None = none is measured.
    size : samples per forward.
    stores : memory and disk for rows.
    done : told how many samples each batch added.
    criterion : what the masks will be compared by.
    each : whether the scores of every sample are kept too.

    Raises
    ------
    InputError : an activation or a score is not finite, or the model cannot take some samples.
    """
    size = min(size, len(samples))
    kept = [Kept(model, plan, samples, size, precision, criterion) for plan in plans]
    sums = [ScoreSums.nothing(len(labels), plan.site.units) for plan in plans]
    if score is None and all(isinstance(plan, FullPlan) for plan in plans):
        return sums, kept
    places = list(dict.fromkeys(place for plan in plans for place in plan.places))
    pieces = Pieces("the model's forward")
    for start, batch in zip(range(0, len(samples), size), samples.batches(size), strict=True):
        inputs = precision.place(batch.inputs)

        def look(part: slice, inputs: Any = inputs) -> list[tuple[Tensor, Rows | None]]:
            some = inputs if part == slice(0, size) else rows_of(inputs, part)
            return _look(model, places, kept, some)

        with blamed(batch.described(samples.name)):
            found = [_joined(parts) for parts in zip(*pieces.run(look, size), strict=True)]
        classes = torch.from_numpy(np.searchsorted(labels, batch.labels.numpy()))
        for layer, (output, rows) in enumerate(found):
            site, seen = plans[layer].site, output[: batch.count]
            if score is not None:
                require_finite(seen, site, samples.name, batch.rows, batch.labels)
                real = attended(inputs, output.shape, site.axis)
                real = None if real is None else real[: batch.count]
                values = sample_scores(seen, site.axis, score, real)
                sums[layer] += score_sums(values, classes, len(labels))
                if each:
                    _remember(kept[layer], values, stores)
            _add(kept[layer], rows, start, batch.count, stores)
        done(batch.count)
    return sums, kept


def _look(
    model: nn.Module, places: list[Place], kept: list[Kept], inputs: Any
) -> list[tuple[Tensor, Rows | None]]:
    """For every layer its output, and what its plan keeps of some samples."""
    with kept[0].precision.on():
        values = dict(zip(places, run_body(model, places, inputs), strict=True))
    found = []
    for mine in kept:
        plan, rows = mine.plan, None
        if not isinstance(plan, FullPlan) and plan.takes(inputs):
            rows = plan.keep([values[place] for place in plan.places], inputs)
        found.append((values[output_of(plan.site)], rows))
    return found


def _joined(parts: Sequence[tuple[Tensor, Rows | None]]) -> tuple[Tensor, Rows | None]:
    outputs, rows = zip(*parts, strict=True)
    if len(parts) == 1:
        return outputs[0], rows[0]
    whole = None if None in rows else tuple(map(torch.cat, zip(*rows, strict=True)))
    return torch.cat(outputs), whole


def _add(kept: Kept, rows: Rows | None, start: int, count: int, stores: Stores) -> None:
    if isinstance(kept.plan, FullPlan):
        return
    if rows is None:
        kept.foreign.append(start)
        return
    mine = tuple(value[:count] for value in rows)
    if not kept.decided:
        kept.decided = True
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
