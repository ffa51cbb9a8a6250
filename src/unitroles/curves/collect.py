"""One pass through the model: scores, and what the masks of every layer need of each sample."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
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
from unitroles.engine.audit import Audit, Guard, drawn, lengths
from unitroles.engine.plan import Plan, Rows, in_full
from unitroles.errors import InputError, PlanWarning
from unitroles.model.calls import Place
from unitroles.model.forward import Precision, batch_size, blamed, rows_of, tensors
from unitroles.model.hooks import SomeRows, output_of, run_body, run_through
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

    def pieces(self, size: int) -> Iterator[Tile]:
        """Its samples in pieces of some size, of which the last may be smaller."""
        if len(self.places) <= size:
            yield self
            return
        for part in slices(len(self.places), size):
            yield Tile(self.plan, self.places[part], self.rows(part))


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
    rows : how many samples have rows; those of the other batches, in their order.
    scores : the scores of every sample (samples, units), where they were asked for.
    """

    plan: Plan
    samples: Samples
    size: int
    precision: Precision
    criterion: Criterion = CROSS_ENTROPY
    store: Store | None = None
    foreign: list[int] = field(default_factory=list)
    rows: int = 0
    scores: Store | None = None

    @property
    def stores(self) -> list[Store]:
        """What is kept in memory or on the disk."""
        return [store for store in (self.store, self.scores) if store is not None]

    @property
    def places(self) -> Int[np.ndarray, " samples"]:
        """The samples that have rows."""
        some = np.ones(len(self.samples), dtype=bool)
        for start in self.foreign:
            some[start : start + self.size] = False
        return np.flatnonzero(some) if self.rows else np.arange(0)

    @property
    def in_full(self) -> int:
        """How many samples run in full, since their batches have another form."""
        return sum(min(self.size, len(self.samples) - start) for start in self.foreign)

    def find_room(self, stores: Stores) -> None:
        """Store rows that had no room in the pass, where others have left some since."""
        if self.store is not None or not self.rows:
            return
        self.store = stores.open(len(self.samples), self.plan.example)
        if self.store is not None:
            for rows in self._again(self.places):
                self.store.add(rows)

    def tiles(self) -> Iterator[Tile]:
        """All samples, some at a time; neither tiles nor bits depend on where the rows are."""
        if not self.plan.keeps_rows:
            yield from self._whole(np.arange(len(self.samples)), self.plan)
            return
        places, done = self.places, 0
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
            yield from self._whole(mine, self._full())

    def _full(self) -> Plan:
        """An export knows one length of sequence, one size of image."""
        warnings.warn(
            "batches of another shape than the first are run in full (N+1 runs of the model); pad "
            "all samples to one size (texts: padding='max_length', max_length=...)",
            PlanWarning,
            stacklevel=2,
        )
        return in_full(self.plan, self.precision)

    def _whole(self, places: np.ndarray, plan: Plan) -> Iterator[Tile]:
        """Tiles for runs of the whole model."""
        for mine, batch in self._batches(places):
            yield Tile(plan, mine, self.precision.place(batch.inputs))

    def _again(self, places: np.ndarray) -> Iterator[Rows]:
        """The rows computed again, from the same batches and in the same tiles as a store's."""
        waiting, count, pieces = [], 0, _pieces([self.plan])
        for mine, batch in self._batches(places):
            inputs = self.precision.place(batch.inputs)

            def run(part: slice, inputs: Any = inputs) -> Rows:
                ((rows,), _) = body([self.plan], rows_of(inputs, part), self.precision)
                assert rows.kept is not None  # the batch had the form of the plan before
                return rows.kept

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
    audit : how many samples are run alone too, of each split; None = samples are not compared.
    seed : of those samples and their masks.
    """

    plans: Sequence[Plan]
    precision: Precision
    size: int
    stores: Stores
    criterion: Criterion = CROSS_ENTROPY
    audit: int | None = None
    seed: int = 0

    def collect(
        self,
        samples: Samples,
        labels: Int[np.ndarray, " label"],
        score: SampleScore | None,
        done: Callable[[int], None],
        each: bool = False,
    ) -> list[Collected]:
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
        seeds = (self.seed, len(samples), *samples.name.encode())
        guards = [Guard(plan, self.precision, seeds) for plan in plans]
        chosen = _Chosen(samples.labels, self.audit or 0, self.seed)
        idle = score is None and not any(plan.keeps_rows for plan in plans)
        if idle and not self.audit:
            return [Collected(*found, Audit()) for found in zip(sums, kept, strict=True)]
        pieces = _pieces(plans)

        def add(start: int, batch: Batch) -> int:
            """Of a function's own, so that no batch is held while the next one is read."""
            inputs = self.precision.place(batch.inputs)

            def run(part: slice) -> tuple[list[Given], Any]:
                some = inputs if part == slice(0, size) else rows_of(inputs, part)
                return body(plans, some, self.precision, self.audit is not None)

            with blamed(batch.described(samples.name)):
                parts, logits = zip(*pieces.run(run, size), strict=True)
                found = [_together(layer) for layer in zip(*parts, strict=True)]
                del parts
                if self.audit is not None:
                    clean = torch.cat(logits)[: batch.count]
                    self._compare(guards, found, inputs, clean, chosen.of(start, batch))
            classes = torch.from_numpy(np.searchsorted(labels, batch.labels.numpy()))
            for layer, given in enumerate(found):
                if score is not None:
                    values = _scores(kept[layer], score, batch, inputs, given.output)
                    sums[layer] += score_sums(values, classes, len(labels))
                    if each:
                        _remember(kept[layer], values, self.stores)
                _add(kept[layer], given.kept, start, batch.count, self.stores)
            return batch.count

        for count in map(add, range(0, len(samples), size), samples.batches(size)):
            done(count)
        audits = [guard.finish() for guard in guards]
        return [Collected(*found) for found in zip(sums, kept, audits, strict=True)]

    def _compare(
        self,
        guards: Sequence[Guard],
        found: Sequence[Given],
        inputs: Any,
        clean: Tensor,
        places: Sequence[int],
    ) -> None:
        """Compare a batch with the model itself, and some of its samples with themselves alone."""
        alone = []
        for place in places:
            one = rows_of(inputs, slice(place, place + 1))
            alone.append(body(self.plans, one, self.precision, whole=True))
        for layer, (guard, given) in enumerate(zip(guards, found, strict=True)):
            if given.kept is not None:
                guard.every(tuple(value[: len(clean)] for value in given.kept), clean)
            mine = [(logits, given[layer].output) for given, logits in alone]
            guard.alone(inputs, places, clean, given.output, given.kept, mine)


@dataclass(frozen=True)
class Collected:
    """What one pass over a split gives for one layer."""

    sums: ScoreSums
    kept: Kept
    audit: Audit


@dataclass(frozen=True)
class Given:
    """What a layer gives for some samples, and what its plan keeps of it."""

    output: Tensor
    kept: Rows | None


def _together(parts: Sequence[Given]) -> Given:
    """Those of some samples and of others; nothing is kept where one part has another form."""
    (output,) = joined([(part.output,) for part in parts])
    kept = [part.kept for part in parts if part.kept is not None]
    return Given(output, joined(kept) if len(kept) == len(parts) else None)


def _pieces(plans: Sequence[Plan]) -> Pieces:
    return Pieces("the model's forward", 1 if any(plan.alone for plan in plans) else None)


class _Chosen:
    """The samples of a split that run alone: drawn ones, and those beside all lengths so far."""

    def __init__(self, labels: Int[np.ndarray, " samples"], count: int, seed: int) -> None:
        self._places = drawn(labels, count, seed) if count else np.zeros(0, dtype=np.int64)
        self._shortest, self._longest = (2**62, -1) if count else (-1, 2**62)

    def of(self, start: int, batch: Batch) -> list[int]:
        """Those of a batch, by their place in it; a length beside all so far is chosen too."""
        mine = {int(place) - start for place in self._places if 0 <= place - start < batch.count}
        found = lengths(batch.inputs)
        if found is not None:
            found = found[: batch.count]
            if found.min() < self._shortest:
                self._shortest = int(found.min())
                mine.add(int(found.argmin()))
            if found.max() > self._longest:
                self._longest = int(found.max())
                mine.add(int(found.argmax()))
        return sorted(mine)


def body(
    plans: Sequence[Plan], inputs: Any, precision: Precision, whole: bool = False
) -> tuple[list[Given], Float[Tensor, "samples labels"] | None]:
    """For every layer its output and what its plan keeps of some samples.

    Parameters
    ----------
    whole : whether the model runs on to its end; its logits are given too.

    Raises
    ------
    SomeRows : only some of several samples reach a layer; one alone that does not gives zeros.
    """
    places = list(dict.fromkeys(place for plan in plans for place in plan.places))
    model = plans[0].model
    with precision.on():
        if whole:
            values, logits = run_through(model, places, inputs)
        else:
            values, logits = dict(zip(places, run_body(model, places, inputs), strict=True)), None
    return [_given(plan, values, inputs) for plan in plans], logits


def _given(plan: Plan, values: dict[Place, Tensor], inputs: Any) -> Given:
    site, samples = plan.site, batch_size(inputs)
    output = values.get(output_of(site))
    reached = 0 if output is None else len(output)
    if output is not None and reached == samples:
        met = [values[place] for place in plan.places if place in values]
        return Given(output, plan.keep(met, inputs) if len(met) == len(plan.places) else None)
    if samples > 1:
        raise SomeRows(site, reached, samples)
    device = tensors(inputs)[0].device
    return Given(torch.zeros(1, *site.shape[1:], dtype=site.dtype, device=device), None)


def _scores(kept: Kept, score: SampleScore, batch: Batch, inputs: Any, output: Tensor) -> Tensor:
    """The scores of a batch, without its padding."""
    site, seen = kept.plan.site, output[: batch.count]
    require_finite(seen, site, kept.samples.name, batch.rows, batch.labels)
    real = attended(inputs, output.shape, site.axis)
    return sample_scores(seen, site.axis, score, None if real is None else real[: batch.count])


def _add(kept: Kept, rows: Rows | None, start: int, count: int, stores: Stores) -> None:
    """Keep the rows of a batch."""
    if not kept.plan.keeps_rows:
        return
    if rows is None:
        kept.foreign.append(start)
        return
    mine = tuple(value[:count] for value in rows)
    if not kept.rows:
        kept.store = stores.open(len(kept.samples), mine)
    kept.rows += count
    if kept.store is not None:
        kept.store.add(mine)


def _remember(kept: Kept, values: Tensor, stores: Stores) -> None:
    """Keep the scores of some samples.

    Raises
    ------
    InputError : they fit neither into memory nor on the disk.
    """
    if kept.scores is None:
        kept.scores = stores.open(len(kept.samples), [values])
    if kept.scores is None:
        needed = len(kept.samples) * values.shape[1] * values.element_size() / 2**30
        raise InputError(
            f"evidence keeps the scores of every sample, {needed:.1f} GiB for {kept.samples.name}, "
            "which fit neither into the memory_budget nor on the disk; give more of either, or "
            "fewer samples by max_per_class"
        )
    kept.scores.add((values,))
