"""The plan *suffix*: masked copies of what the units leave behind run through the rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unitroles.engine.masks import AllButOne, Masks, Prefixes, Sets, Tree, for_all
from unitroles.engine.plan import Order, points_of
from unitroles.engine.sums import repeat
from unitroles.model.calls import Place
from unitroles.model.forward import Logits, flat, form_of
from unitroles.model.hooks import output_of
from unitroles.model.trace import Site
from unitroles.rewrite.head import Head

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
    form : names, types and shapes of the inputs the head was exported for.
    budget : bytes for masked copies.
    probe : the values at `places` for a few samples, and the inputs they came from.
    baseline : what ablated units give; None = zero.
    """

    model: nn.Module
    site: Site
    head: Head
    budget: int
    form: tuple[Any, ...]
    probe: tuple[tuple[Tensor, ...], Any]
    reason: str
    baseline: Float[Tensor, " units"] | None = None
    name: str = "suffix"
    _fixed: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def places(self) -> tuple[Place, ...]:
        met = (source for source in self.head.sources if isinstance(source, Place))
        return (output_of(self.site), *met)

    @property
    def tile(self) -> int:
        return min(_TILE, self.rows_within(TILE_BYTES))

    def rows_within(self, room: int) -> int:
        """How many rows of what is kept fit into so many bytes, at least one."""
        self._fix()
        return max(1, room // self._fixed["row_bytes"])

    def resolution(self, asked: str | int) -> str | int:
        return asked

    def takes(self, inputs: Any) -> bool:
        return form_of(inputs) == self.form

    def keep(self, found: Sequence[Tensor], inputs: Any) -> tuple[Tensor, ...]:
        """Edge values, those of the ablated layer where they differ by sample, values around."""
        self._fix()
        values, ablated = self._values(found, inputs)
        edge, around = values[: self.head.edges], values[self.head.edges :]
        rows = [v for v, per_row in zip(around, self.head.repeats, strict=True) if per_row]
        return (*edge, *ablated, *rows) if not self.head.same_ablated else (*edge, *rows)

    def _values(
        self, found: Sequence[Tensor], inputs: Any
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """What `before` gives, and what it gives of an ablated layer at the edge."""
        dtype = self.head.dtype
        met, given = iter(found[1:]), flat(inputs)
        sources = [given[s] if isinstance(s, int) else next(met) for s in self.head.sources]
        live = () if self.head.context is None else self.head.context(*_cast(sources, dtype))
        output = _cast(found[:1], dtype)[0].contiguous()
        values = self.head.before(output, *live)
        if self.head.same_ablated and "ablated" in self._fixed:
            return values, ()
        nothing = torch.zeros_like(output)
        if self.baseline is not None:
            nothing = nothing + _along(self.baseline.to(output), self.site.axis, output.ndim)
        return values, self.head.before(nothing, *live)[: self.head.edges]

    def unpack(
        self, kept: Sequence[Tensor]
    ) -> tuple[Sequence[Tensor], Sequence[Tensor], list[Tensor]]:
        """Edge values, edge values of an ablated layer, and values around."""
        edges, same = self.head.edges, self.head.same_ablated
        self._fix()
        ablated = self._fixed["ablated"] if same else kept[edges : 2 * edges]
        rows = iter(kept[edges if same else 2 * edges :])
        around = [
            next(rows) if per_row else value
            for value, per_row in zip(self._fixed["around"], self.head.repeats, strict=True)
        ]
        return kept[:edges], ablated, around

    def around(self) -> tuple[Tensor, ...]:
        """What flows around the layer for the samples of the probe."""
        self._fix()
        return self._fixed["around"]

    def _fix(self) -> None:
        """What is the same for all samples, from the probe."""
        if "around" not in self._fixed:
            values, ablated = self._values(*self.probe)
            self._fixed["ablated"] = tuple(value[:1] for value in ablated)
            self._fixed["around"] = values[self.head.edges :]
            self._fixed["row_bytes"] = sum(v[:1].numel() * v.element_size() for v in values)

    def masked(self, kept: Any, masks: Masks, least: int = 1) -> Iterator[tuple[slice, Logits]]:
        edge, ablated, around = self.unpack(kept)
        step = max(least, self._masks_per_call(edge))
        for start in range(0, len(masks), step):
            part = slice(start, min(start + step, len(masks)))
            retrieved = for_all(masks.retrieved_in(part))
            many = len(retrieved)
            copies = [
                torch.where(owners.spread(retrieved), value, off).flatten(0, 1)
                for owners, value, off in zip(self.head.owners, edge, ablated, strict=True)
            ]
            pairs = zip(around, self.head.repeats, strict=True)
            rest = [repeat(value, many) if per_row else value for value, per_row in pairs]
            yield part, self.head.after(*copies, *rest).unflatten(0, (many, -1))

    def prefixes(
        self, kept: Any, order: Order, points: Sequence[int] | None = None
    ) -> Iterator[tuple[slice, Logits]]:
        return self.masked(kept, Prefixes.of(order, points_of(order, points)))

    def branches(
        self, kept: Any, tree: Tree, points: Sequence[int]
    ) -> Iterator[tuple[slice, Logits]]:
        """Logits with the sets of `points` units of a tree retrieved, the same for all samples."""
        sets = torch.from_numpy(tree.sets(points)).to(kept[0].device)
        return self.masked(kept, Sets(sets, len(kept[0])))

    def rows_of(self, tree: Tree) -> int:
        """How many samples run together through `branches`."""
        return self.tile

    @property
    def rows_with_masks(self) -> int:
        """How many samples run together under a few masks, the same for all of them."""
        room = min(_COPIES_BYTES, self.budget // _COPIES)
        return max(self.tile, min(_MASKED_ROWS, self.rows_within(room)))

    def without_each(
        self, kept: Any, units: Sequence[int] | None = None
    ) -> Iterator[tuple[slice, Logits]]:
        return self.masked(kept, AllButOne.of(len(kept[0]), self.site.units, units, kept[0].device))

    def ablated(self, baseline: Float[Tensor, " units"] | None) -> SuffixPlan:
        return replace(self, baseline=baseline, _fixed={})

    def _masks_per_call(self, edge: Sequence[Tensor]) -> int:
        room = min(_COPIES_BYTES, self.budget // _COPIES)
        return max(1, room // sum(value.numel() * value.element_size() for value in edge))


def _cast(values: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [value.to(dtype) if value.is_floating_point() else value for value in values]


def _along(values: Float[Tensor, " units"], axis: int, ndim: int) -> Tensor:
    return values.view([-1 if place == axis else 1 for place in range(ndim)])
