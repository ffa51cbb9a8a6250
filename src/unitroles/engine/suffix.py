"""The plan *suffix*: masked copies of what the units leave behind run through the rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

from unitroles.engine.masks import Masks, Tree
from unitroles.engine.plan import Rows, one_by_one
from unitroles.engine.sums import Masked, repeat
from unitroles.graph.extract import input_dtypes
from unitroles.heads.fast import laid_out
from unitroles.heads.head import Head
from unitroles.model.calls import Place
from unitroles.model.forward import Logits, flat, form_of
from unitroles.model.hooks import output_of
from unitroles.model.memory import slices
from unitroles.model.trace import Site

# Beyond this a call gains nothing from more rows but leaves the CPU's caches.
_COPIES_BYTES = 8 * 2**20


# Samples that run under a few masks together.
_MASKED_ROWS = 256


# Input, output and one intermediate of a masked copy, twice over for what the head widens.
_COPIES = 6


_TILE, TILE_BYTES = 64, 64 * 2**20


@dataclass(frozen=True)
class SuffixPlan:
    """The body once, then many masked copies of what it gives through the rest in each call.

    Parameters
    ----------
    after : what follows the masks, as in `head` or faster.
    budget : bytes for masked copies.
    probe : the values at `places` for a few samples, and the inputs they came from, whose form is
        the one that the head was exported for.
    baseline : what ablated units give; None = zero.
    """

    model: nn.Module
    site: Site
    head: Head
    after: fx.GraphModule
    budget: int
    probe: tuple[tuple[Tensor, ...], Any]
    reason: str
    baseline: Float[Tensor, " units"] | None = None
    name: str = "suffix"
    keeps_rows: bool = True
    whole_batches: bool = False
    alone: bool = False

    @property
    def places(self) -> tuple[Place, ...]:
        met = (source for source in self.head.sources if isinstance(source, Place))
        return (output_of(self.site), *met)

    @property
    def example(self) -> Rows:
        return self._rows(*self.probe)

    @property
    def tile(self) -> int:
        return min(_TILE, self.rows_within(TILE_BYTES))

    def rows(self, masks: Masks) -> int:
        if self.alone or isinstance(masks, Tree):  # more masks than samples gain from
            return self.tile
        return max(self.tile, min(_MASKED_ROWS, self.rows_within(self._copies_bytes)))

    def rows_within(self, memory: int) -> int:
        """The rows of what is kept that fit into so many bytes, at least one."""
        return max(1, memory // sum(v[:1].numel() * v.element_size() for v in self._probed[0]))

    def resolution(self, asked: str | int) -> str | int:
        return asked

    def forwards(self, points: int) -> tuple[int, int]:
        return points, 0

    def keep(self, found: Sequence[Tensor], inputs: Any) -> Rows | None:
        return self._rows(found, inputs) if form_of(inputs) == form_of(self.probe[1]) else None

    def _rows(self, found: Sequence[Tensor], inputs: Any) -> Rows:
        """Edge values, those of the ablated layer where they differ by sample, values around."""
        output, live = self._start(found, inputs)
        values = self.head.before(output, *live)
        ablated = () if self.head.same_ablated else self._ablated(output, live)
        edge, around = values[: self.head.edges], values[self.head.edges :]
        rows = [v for v, per_row in zip(around, self.head.repeats, strict=True) if per_row]
        return (*edge, *ablated, *rows)

    def _start(self, found: Sequence[Tensor], inputs: Any) -> tuple[Tensor, Sequence[Tensor]]:
        """The layer's output, and what else the head starts from."""
        met, given = iter(found[1:]), flat(inputs)
        sources = [given[s] if isinstance(s, int) else next(met) for s in self.head.sources]
        context = self.head.context
        if context is None:
            live = ()
        else:
            kinds = input_dtypes(context)
            live = context(*[_cast(*pair) for pair in zip(sources, kinds, strict=True)])
        return _cast(found[0], self.head.dtype).contiguous(), live

    def _ablated(self, output: Tensor, live: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The edge values of an ablated layer."""
        nothing = torch.zeros_like(output)
        if self.baseline is not None:
            nothing = nothing + _along(self.baseline.to(output), self.site.axis, output.ndim)
        return self.head.before(nothing, *live)[: self.head.edges]

    @cached_property
    def _probed(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Of the samples of the probe all values, and one row of an ablated layer."""
        output, live = self._start(*self.probe)
        ablated = tuple(value[:1] for value in self._ablated(output, live))
        return self.head.before(output, *live), ablated

    def unpack(self, kept: Sequence[Tensor]) -> tuple[list[Masked], list[Tensor]]:
        """The edge values with those of an ablated layer, and values around."""
        edges, same = self.head.edges, self.head.same_ablated
        ablated = self._probed[1] if same else kept[edges : 2 * edges]
        rows = iter(kept[edges if same else 2 * edges :])
        around = [
            next(rows) if per_row else value
            for value, per_row in zip(self.around(), self.head.repeats, strict=True)
        ]
        # As the ops after them like images to lie in memory: copies take over the order.
        lay = torch.Tensor.contiguous if self.head.by_place else laid_out
        edge, off = ([*map(lay, values)] for values in (kept[:edges], ablated))
        return [*map(Masked, self.head.owners, edge, off)], around

    def around(self) -> tuple[Tensor, ...]:
        """The values that flow around the layer for the samples of the probe."""
        return self._probed[0][self.head.edges :]

    def run(self, kept: Any, masks: Masks, least: int = 1) -> Iterator[tuple[slice, Logits]]:
        return one_by_one(self._run, kept, masks) if self.alone else self._run(kept, masks, least)

    def _run(self, kept: Any, masks: Masks, least: int = 1) -> Iterator[tuple[slice, Logits]]:
        masked, around = self.unpack(kept)
        bytes_each = sum(one.edge.numel() * one.edge.element_size() for one in masked)
        step = max(least, self._copies_bytes // bytes_each)
        for part in slices(len(masks), step):
            retrieved = masks.retrieved_in(part)
            copies = [one.under(retrieved) for one in masked]
            many = len(retrieved)
            pairs = zip(around, self.head.repeats, strict=True)
            rest = [repeat(value, many) if per_row else value for value, per_row in pairs]
            yield part, self.after(*copies, *rest).unflatten(0, (many, -1))

    def ablated(self, baseline: Float[Tensor, " units"] | None) -> tuple[SuffixPlan, ...]:
        return (replace(self, baseline=baseline),)

    @property
    def _copies_bytes(self) -> int:
        """Bytes for the copies of one call."""
        return min(_COPIES_BYTES, self.budget // _COPIES)


def _cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype) if value.is_floating_point() else value


def _along(values: Float[Tensor, " units"], axis: int, ndim: int) -> Tensor:
    return values.view([-1 if place == axis else 1 for place in range(ndim)])
