"""A plan that runs every sample by itself, for models that treat rows of a batch differently."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unitroles.engine.additive import AdditivePlan
from unitroles.engine.masks import Masks, Sets
from unitroles.engine.plan import FullPlan, Plan, Rows
from unitroles.engine.suffix import SuffixPlan
from unitroles.model.calls import Place
from unitroles.model.forward import Logits, Precision, batch_size, rows_of
from unitroles.model.memory import slices
from unitroles.model.trace import Site

# Masks of one sample whose logits are held together.
_MASKS = 512


@dataclass(frozen=True)
class AlonePlan:
    """Another plan, one sample in a call: the definition, whatever a model does to a batch.

    Parameters
    ----------
    inner : *full*, one mask in a call; or *suffix*, copies of one sample in a call.
    reason : why samples must be alone.
    """

    inner: FullPlan | SuffixPlan
    reason: str
    alone: bool = True

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def model(self) -> nn.Module:
        return self.inner.model

    @property
    def site(self) -> Site:
        return self.inner.site

    @property
    def baseline(self) -> Tensor | None:
        return self.inner.baseline

    @property
    def keeps_rows(self) -> bool:
        return self.inner.keeps_rows

    @property
    def whole_batches(self) -> bool:
        return self.inner.whole_batches

    @property
    def places(self) -> tuple[Place, ...]:
        return self.inner.places

    @property
    def example(self) -> Rows:
        return self.inner.example

    @property
    def tile(self) -> int:
        return self.inner.tile

    def rows(self, masks: Masks) -> int:
        return self.inner.tile

    def resolution(self, asked: str | int) -> str | int:
        return asked

    def forwards(self, points: int) -> tuple[int, int]:
        return self.inner.forwards(points)

    def keep(self, found: Sequence[Tensor], inputs: Any) -> Rows | None:
        return self.inner.keep(found, inputs)

    def run(self, kept: Any, masks: Masks, least: int = 1) -> Iterator[tuple[slice, Logits]]:
        samples = batch_size(kept)
        for part in slices(len(masks), _MASKS):
            retrieved = masks.retrieved_in(part).expand(-1, samples, -1)
            found = [
                self._one(rows_of(kept, slice(i, i + 1)), Sets(retrieved[:, i]))
                for i in range(samples)
            ]
            yield part, torch.cat(found, dim=1)

    def _one(self, kept: Any, masks: Sets) -> Logits:
        return torch.cat([logits.clone() for _, logits in self.inner.run(kept, masks)])

    def ablated(self, baseline: Float[Tensor, " units"] | None) -> tuple[AlonePlan, ...]:
        (inner,) = self.inner.ablated(baseline)
        return (replace(self, inner=inner),)


def remedies(plan: Plan, precision: Precision) -> list[AlonePlan]:
    """One sample in a call: from what is kept of it, then by whole forwards."""
    suffix = plan.suffix if isinstance(plan, AdditivePlan) else plan
    kept = [AlonePlan(suffix, "")] if isinstance(suffix, SuffixPlan) else []
    return [*kept, AlonePlan(_full(plan, precision), "")]


def in_full(plan: Plan, precision: Precision) -> FullPlan | AlonePlan:
    """What runs the batches of another form than a plan was made for."""
    full = _full(plan, precision)
    return AlonePlan(full, "") if plan.alone else full


def _full(plan: Plan, precision: Precision) -> FullPlan:
    return FullPlan(plan.model, plan.site, "", plan.baseline, precision)
