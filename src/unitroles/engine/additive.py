"""The plan *additive*: each unit adds its part to a running sum."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from unitroles.engine.masks import AllButOne, Masks, Prefixes, Tree
from unitroles.engine.plan import Rows
from unitroles.engine.suffix import TILE_BYTES, SuffixPlan
from unitroles.engine.sums import Sums, rows_per_tile
from unitroles.graph.flops import Operations
from unitroles.heads.additive import Additive
from unitroles.model.calls import Place
from unitroles.model.forward import Logits
from unitroles.model.trace import Site

# Sums of one level of a tree; measured, larger and smaller ones are slower.
_BRANCH_BYTES = 8 * 2**20
# The tail in steps of the sum; at 10 nothing was saved, at 130 two thirds.
_WORTH_A_WALK = 16


@dataclass(frozen=True)
class AdditivePlan:
    """The body once, then one running sum over the units; masks of other families as *suffix*."""

    suffix: SuffixPlan
    form: Additive
    labels: int
    reason: str
    name: str = "additive"
    keeps_rows: bool = True
    whole_batches: bool = False
    alone: bool = False

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
    def places(self) -> tuple[Place, ...]:
        return self.suffix.places

    @property
    def example(self) -> Rows:
        return self.suffix.example

    @property
    def tile(self) -> int:
        return min(rows_per_tile(self.form, self.labels), self.suffix.rows_within(TILE_BYTES))

    def rows(self, masks: Masks) -> int:
        if not isinstance(masks, Tree):
            return self.suffix.rows(masks)
        level = self._probed.rows_of(masks, _BRANCH_BYTES)
        return min(level, self.suffix.rows_within(TILE_BYTES))

    @cached_property
    def _probed(self) -> Sums:
        return self._sums(self.example)

    def resolution(self, asked: str | int) -> str | int:
        cheap = self.form.folded or (asked == "adaptive" and not self._tail_pays)
        return "exact" if cheap else asked

    @cached_property
    def _tail_pays(self) -> bool:
        """Whether what follows the sums takes so long that leaving some of it out is worth a walk.

        Another walk over the units for the n that are evaluated later costs as much as the first.
        """
        count, head = Operations(), self.suffix.head
        sums = sum(count.of(one.mix) for one in self.form.sums)
        step = sums / self.site.units
        return count.of(head.after) - sums >= _WORTH_A_WALK * step

    def forwards(self, points: int) -> tuple[int, int]:
        if not self.form.folded:
            return 0, points
        return 0, 1 if self.form.norm is None else 2

    def keep(self, found: Sequence[Tensor], inputs: Any) -> Rows | None:
        return self.suffix.keep(found, inputs)

    def run(self, kept: Any, masks: Masks, least: int = 1) -> Iterator[tuple[slice, Logits]]:
        match masks:
            case Prefixes() | AllButOne() | Tree():
                return self._sums(kept).run(masks)
        return self.suffix.run(kept, masks, least)

    def _sums(self, kept: Rows) -> Sums:
        masked, around = self.suffix.unpack(kept)
        return Sums.of(self.form, masked, around, self.suffix.head.repeats)

    def ablated(
        self, baseline: Float[Tensor, " units"] | None
    ) -> tuple[AdditivePlan | SuffixPlan, ...]:
        (suffix,) = self.suffix.ablated(baseline)
        return replace(self, suffix=suffix), suffix
