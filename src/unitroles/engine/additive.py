"""The plan *additive*: each unit adds its part to a running sum."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from unitroles.engine.masks import Masks, Tree
from unitroles.engine.plan import Order
from unitroles.engine.suffix import TILE_BYTES, SuffixPlan
from unitroles.engine.sums import Sums, rows_per_tile
from unitroles.model.calls import Place
from unitroles.model.forward import Logits
from unitroles.model.trace import Site
from unitroles.rewrite.additive import Additive

# Sums of one level of a tree; measured, larger and smaller ones are slower.
_BRANCH_BYTES = 8 * 2**20


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
        return min(rows_per_tile(self.form, self.labels), self.suffix.rows_within(TILE_BYTES))

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
        return min(sums, self.suffix.rows_within(TILE_BYTES))

    def without_each(
        self, kept: Any, units: Sequence[int] | None = None
    ) -> Iterator[tuple[slice, Logits]]:
        return self._sums(kept).without_each(units)

    def _sums(self, kept: Sequence[Tensor]) -> Sums:
        (edge,), (ablated,), around = self.suffix.unpack(kept)
        return Sums.of(self.form, edge, ablated, around, self.suffix.head.repeats)

    def ablated(self, baseline: Float[Tensor, " units"] | None) -> AdditivePlan:
        return replace(self, suffix=self.suffix.ablated(baseline))


Cut = SuffixPlan | AdditivePlan
"""Plans that keep what they need of each sample, which then stands alone."""
