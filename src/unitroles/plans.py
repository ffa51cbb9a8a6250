"""Ways to run a model with many masks over the units of a layer.

*full* runs the whole model once per mask: the definition. *suffix* runs the body once and many
masked copies of what it gives through the rest. *additive* adds up what every unit gives.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from unitroles.additive import Additive
from unitroles.graph import flat
from unitroles.losses import Logits
from unitroles.masks import AllButOne, Masks, Prefixes, Sets, for_all
from unitroles.precision import Precision
from unitroles.probe import batch_size, form_of
from unitroles.separable import Head
from unitroles.split import Place, output_of, run_masked
from unitroles.sweep import Sums, repeat, rows_per_tile
from unitroles.trace import Site
from unitroles.trees import Tree

# Beyond this a call gains nothing from more rows but leaves the processor's caches.
_COPIES_BYTES = 8 * 2**20
# Sums of one level of a tree; measured, larger and smaller ones are slower.
_BRANCH_BYTES = 8 * 2**20
# Samples that run under a few masks together.
_MASKED_ROWS = 256
# Input, output and one intermediate of a masked copy, twice over for what the head widens.
_COPIES = 6
_TILE, _TILE_BYTES = 64, 64 * 2**20

Order = Int[Tensor, "samples units"]


def _on_processor() -> Precision:
    return Precision(torch.device("cpu"))


@runtime_checkable
class Plan(Protocol):
    """A way to run the model with masks; `reason` says why it was chosen.

    A plan keeps some values of every sample (`keep`), and everything else starts from those.
    """

    @property
    def name(self) -> str: ...

    @property
    def reason(self) -> str: ...

    @property
    def model(self) -> nn.Module: ...

    @property
    def site(self) -> Site: ...

    @property
    def baseline(self) -> Tensor | None:
        """What silent units give; None = zero."""
        ...

    @property
    def places(self) -> tuple[Place, ...]:
        """The values that the body must give, the layer's output first."""
        ...

    @property
    def tile(self) -> int:
        """How many samples run together."""
        ...

    def resolution(self, asked: str | int) -> str | int:
        """At which n curves are evaluated; all where leaving some out would save nothing."""
        ...

    def takes(self, inputs: Any) -> bool:
        """Whether a batch has the form this plan was made for."""
        ...

    def keep(self, found: Sequence[Tensor], inputs: Any) -> Any:
        """What is kept of a batch, from the values at `places`; rows first."""
        ...

    def masked(self, kept: Any, masks: Masks, least: int = 1) -> Iterator[tuple[slice, Logits]]:
        """Logits for every mask, some masks at a time; `least` is how many run in one call."""
        ...

    def prefixes(
        self, kept: Any, order: Order, points: Sequence[int] | None = None
    ) -> Iterator[tuple[slice, Logits]]:
        """Logits with the first n units of each order awake, for all n or those of `points`."""
        ...

    def without_each(
        self, kept: Any, units: Sequence[int] | None = None
    ) -> Iterator[tuple[slice, Logits]]:
        """Logits with one unit silent and all others awake, for all units or those of `units`."""
        ...

    def silenced(self, baseline: Float[Tensor, " units"] | None) -> Plan:
        """The same plan with silent units giving `baseline`; None = zero."""
        ...


def _points(order: Order, points: Sequence[int] | None) -> Int[Tensor, " masks"]:
    return torch.tensor(range(order.shape[1] + 1) if points is None else list(points))


@dataclass(frozen=True)
class FullPlan:
    """The whole model once per mask; what it keeps of a batch are the inputs."""

    model: nn.Module
    site: Site
    reason: str
    baseline: Float[Tensor, " units"] | None = None
    precision: Precision = field(default_factory=_on_processor)
    tile: int = 2**62
    name: str = "full"

    @property
    def places(self) -> tuple[Place, ...]:
        return (output_of(self.site),)

    def resolution(self, asked: str | int) -> str | int:
        return asked

    def takes(self, inputs: Any) -> bool:
        return True

    def keep(self, found: Sequence[Tensor], inputs: Any) -> Any:
        return inputs

    def rows(self, kept: Any) -> int:
        """How many samples a batch holds, with its padding."""
        return batch_size(kept)

    def masked(self, kept: Any, masks: Masks, least: int = 1) -> Iterator[tuple[slice, Logits]]:
        for k in range(len(masks)):
            (mask,) = masks.awake(slice(k, k + 1))
            with self.precision.on():
                logits = run_masked(self.model, self.site, kept, mask, self.baseline)
            yield slice(k, k + 1), logits[None]

    def prefixes(
        self, kept: Any, order: Order, points: Sequence[int] | None = None
    ) -> Iterator[tuple[slice, Logits]]:
        return self.masked(kept, Prefixes.of(order, _points(order, points)))

    def without_each(
        self, kept: Any, units: Sequence[int] | None = None
    ) -> Iterator[tuple[slice, Logits]]:
        some = next(value for value in flat(kept) if isinstance(value, Tensor))
        masks = AllButOne.of(batch_size(kept), self.site.units, units, some.device)
        return self.masked(kept, masks)

    def silenced(self, baseline: Float[Tensor, " units"] | None) -> FullPlan:
        return replace(self, baseline=baseline)


@dataclass(frozen=True)
class SuffixPlan:
    """The body once, then many masked copies of what it gives through the rest in each call.

    Parameters
    ----------
    form : names, types and shapes of the inputs the head was exported for.
    budget : bytes for masked copies.
    probe : the values at `places` for a few samples, and the inputs they came from.
    baseline : what silent units give; None = zero.
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
        return min(_TILE, self.rows_within(_TILE_BYTES))

    def rows_within(self, room: int) -> int:
        """How many rows of what is kept fit into so many bytes, at least one."""
        self._fix()
        return max(1, room // self._fixed["row_bytes"])

    def resolution(self, asked: str | int) -> str | int:
        return asked

    def takes(self, inputs: Any) -> bool:
        return form_of(inputs) == self.form

    def keep(self, found: Sequence[Tensor], inputs: Any) -> tuple[Tensor, ...]:
        """Edge values, those of the silent layer where they differ by sample, values around."""
        self._fix()
        values, silent = self._values(found, inputs)
        edge, around = values[: self.head.edges], values[self.head.edges :]
        rows = [v for v, per_row in zip(around, self.head.repeats, strict=True) if per_row]
        return (*edge, *silent, *rows) if not self.head.same_silence else (*edge, *rows)

    def _values(
        self, found: Sequence[Tensor], inputs: Any
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """What `before` gives, and what it gives of a silent layer at the edge."""
        dtype = self.head.dtype
        met, given = iter(found[1:]), flat(inputs)
        sources = [given[s] if isinstance(s, int) else next(met) for s in self.head.sources]
        live = () if self.head.context is None else self.head.context(*_cast(sources, dtype))
        output = _cast(found[:1], dtype)[0].contiguous()
        values = self.head.before(output, *live)
        if self.head.same_silence and "silent" in self._fixed:
            return values, ()
        nothing = torch.zeros_like(output)
        if self.baseline is not None:
            nothing = nothing + _along(self.baseline.to(output), self.site.axis, output.ndim)
        return values, self.head.before(nothing, *live)[: self.head.edges]

    def unpack(
        self, kept: Sequence[Tensor]
    ) -> tuple[Sequence[Tensor], Sequence[Tensor], list[Tensor]]:
        """Edge values, edge values of a silent layer, and values around."""
        edges, same = self.head.edges, self.head.same_silence
        self._fix()
        silent = self._fixed["silent"] if same else kept[edges : 2 * edges]
        rows = iter(kept[edges if same else 2 * edges :])
        around = [
            next(rows) if per_row else value
            for value, per_row in zip(self._fixed["around"], self.head.repeats, strict=True)
        ]
        return kept[:edges], silent, around

    def around(self) -> tuple[Tensor, ...]:
        """What flows around the layer for the samples of the probe."""
        self._fix()
        return self._fixed["around"]

    def _fix(self) -> None:
        """What is the same for all samples, from the probe."""
        if "around" not in self._fixed:
            values, silent = self._values(*self.probe)
            self._fixed["silent"] = tuple(value[:1] for value in silent)
            self._fixed["around"] = values[self.head.edges :]
            self._fixed["row_bytes"] = sum(v[:1].numel() * v.element_size() for v in values)

    def masked(self, kept: Any, masks: Masks, least: int = 1) -> Iterator[tuple[slice, Logits]]:
        edge, silent, around = self.unpack(kept)
        step = max(least, self._masks_per_call(edge))
        for start in range(0, len(masks), step):
            part = slice(start, min(start + step, len(masks)))
            awake = for_all(masks.awake(part))
            many = len(awake)
            copies = [
                torch.where(owners.spread(awake), value, dead).flatten(0, 1)
                for owners, value, dead in zip(self.head.owners, edge, silent, strict=True)
            ]
            pairs = zip(around, self.head.repeats, strict=True)
            rest = [repeat(value, many) if per_row else value for value, per_row in pairs]
            yield part, self.head.after(*copies, *rest).unflatten(0, (many, -1))

    def prefixes(
        self, kept: Any, order: Order, points: Sequence[int] | None = None
    ) -> Iterator[tuple[slice, Logits]]:
        return self.masked(kept, Prefixes.of(order, _points(order, points)))

    def branches(
        self, kept: Any, tree: Tree, points: Sequence[int]
    ) -> Iterator[tuple[slice, Logits]]:
        """Logits with the sets of `points` units of a tree awake, the same for all samples."""
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

    def silenced(self, baseline: Float[Tensor, " units"] | None) -> SuffixPlan:
        return replace(self, baseline=baseline, _fixed={})

    def _masks_per_call(self, edge: Sequence[Tensor]) -> int:
        room = min(_COPIES_BYTES, self.budget // _COPIES)
        return max(1, room // sum(value.numel() * value.element_size() for value in edge))


@dataclass(frozen=True)
class AdditivePlan:
    """The body once, then one running sum over the units."""

    suffix: SuffixPlan
    form: Additive
    labels: int
    reason: str
    name: str = "additive"

    def resolution(self, asked: str | int) -> str | int:
        return "exact" if self.form.folded else asked

    @property
    def model(self) -> nn.Module:
        return self.suffix.model

    @property
    def site(self) -> Site:
        return self.suffix.site

    @property
    def baseline(self) -> Tensor | None:
        return self.suffix.baseline

    @property
    def probe(self) -> tuple[tuple[Tensor, ...], Any]:
        return self.suffix.probe

    @property
    def places(self) -> tuple[Place, ...]:
        return self.suffix.places

    @property
    def tile(self) -> int:
        return min(rows_per_tile(self.form, self.labels), self.suffix.rows_within(_TILE_BYTES))

    def takes(self, inputs: Any) -> bool:
        return self.suffix.takes(inputs)

    def keep(self, found: Sequence[Tensor], inputs: Any) -> tuple[Tensor, ...]:
        return self.suffix.keep(found, inputs)

    def masked(self, kept: Any, masks: Masks, least: int = 1) -> Iterator[tuple[slice, Logits]]:
        return self.suffix.masked(kept, masks, least)

    def prefixes(
        self, kept: Any, order: Order, points: Sequence[int] | None = None
    ) -> Iterator[tuple[slice, Logits]]:
        return self._sums(kept).prefixes(order, points)

    def branches(
        self, kept: Any, tree: Tree, points: Sequence[int]
    ) -> Iterator[tuple[slice, Logits]]:
        return self._sums(kept).branches(tree, points)

    @property
    def rows_with_masks(self) -> int:
        return self.suffix.rows_with_masks

    def rows_of(self, tree: Tree) -> int:
        sums = self._sums(self.keep(*self.probe)).rows_of(tree, _BRANCH_BYTES)
        return min(sums, self.suffix.rows_within(_TILE_BYTES))

    def without_each(
        self, kept: Any, units: Sequence[int] | None = None
    ) -> Iterator[tuple[slice, Logits]]:
        return self._sums(kept).without_each(units)

    def _sums(self, kept: Sequence[Tensor]) -> Sums:
        (edge,), (silent,), around = self.suffix.unpack(kept)
        return Sums.of(self.form, edge, silent, around, self.suffix.head.repeats)

    def silenced(self, baseline: Float[Tensor, " units"] | None) -> AdditivePlan:
        return replace(self, suffix=self.suffix.silenced(baseline))


Cut = SuffixPlan | AdditivePlan
"""Plans that keep what they need of each sample, which then stands alone."""


def _cast(values: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [value.to(dtype) if value.is_floating_point() else value for value in values]


def _along(values: Float[Tensor, " units"], axis: int, ndim: int) -> Tensor:
    return values.view([-1 if place == axis else 1 for place in range(ndim)])
