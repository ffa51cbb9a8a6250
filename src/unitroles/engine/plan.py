"""The protocol of every plan, and the plan *full*: the definition itself.

*full* runs the whole model once per mask. *suffix* runs the body once and many masked copies of
what it gives through the rest. *additive* adds up what every unit gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unitroles.engine.masks import Masks, Sets
from unitroles.model.calls import Place
from unitroles.model.forward import Logits, Precision, batch_size, rows_of
from unitroles.model.hooks import output_of, run_masked
from unitroles.model.memory import slices
from unitroles.model.trace import Site

Rows = tuple[Tensor, ...]
"""Values that are kept of some samples, each with one row for each."""

# Masks of one sample whose logits are held together.
_MASKS = 512


@runtime_checkable
class Plan(Protocol):
    """A way to run the model with masks; `reason` says why it was chosen.

    A plan that keeps rows keeps some values of every sample, and everything else starts from those;
    any other starts from the inputs.
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
        """The values that ablated units give; None = zero."""
        ...

    @property
    def keeps_rows(self) -> bool:
        """Whether masks start from rows that `keep` gave, which then stand alone."""
        ...

    @property
    def whole_batches(self) -> bool:
        """Whether batches must stay as they are: samples may influence each other."""
        ...

    @property
    def alone(self) -> bool:
        """Whether every sample runs by itself, in the body too."""
        ...

    @property
    def places(self) -> tuple[Place, ...]:
        """The values that the body must give, the layer's output first."""
        ...

    @property
    def example(self) -> Rows:
        """The rows of the samples that the plan was made from."""
        ...

    @property
    def tile(self) -> int:
        """Samples that run together, each in an order of its own."""
        ...

    def rows(self, masks: Masks) -> int:
        """Samples that run together under masks that are the same for all of them."""
        ...

    def resolution(self, asked: str | int) -> str | int:
        """At which n curves are evaluated; all where leaving some out would save nothing."""
        ...

    def forwards(self, points: int) -> tuple[int, int]:
        """The runs of a curve of so many points: of the head, and its tail alone, for a sample."""
        ...

    def keep(self, found: Sequence[Tensor], inputs: Any) -> Rows | None:
        """The rows of a batch, from the values at `places`; None = it has another form."""
        ...

    def run(self, kept: Any, masks: Masks, least: int = 1) -> Iterator[tuple[slice, Logits]]:
        """Logits for every mask, some masks at a time; `least` is how many run in one call."""
        ...

    def ablated(self, baseline: Float[Tensor, " units"] | None) -> tuple[Plan, ...]:
        """The plans to try where ablated units give `baseline`, None = zero; cheapest first."""
        ...


@dataclass(frozen=True)
class FullPlan:
    """The whole model once per mask, from the inputs of a batch."""

    model: nn.Module
    site: Site
    reason: str
    baseline: Float[Tensor, " units"] | None = None
    precision: Precision = field(default_factory=lambda: Precision(torch.device("cpu")))
    name: str = "full"
    keeps_rows: bool = False
    whole_batches: bool = True
    alone: bool = False
    example: Rows = ()
    tile: int = 2**62

    @property
    def places(self) -> tuple[Place, ...]:
        return (output_of(self.site),)

    def rows(self, masks: Masks) -> int:
        return self.tile

    def resolution(self, asked: str | int) -> str | int:
        return asked

    def forwards(self, points: int) -> tuple[int, int]:
        return points, 0

    def keep(self, found: Sequence[Tensor], inputs: Any) -> None:
        return None

    def run(self, kept: Any, masks: Masks, least: int = 1) -> Iterator[tuple[slice, Logits]]:
        return one_by_one(self._run, kept, masks) if self.alone else self._run(kept, masks)

    def _run(self, kept: Any, masks: Masks) -> Iterator[tuple[slice, Logits]]:
        for k in range(len(masks)):
            (mask,) = masks.retrieved_in(slice(k, k + 1)).to(self.precision.device)
            mask = mask.expand(batch_size(kept), -1)
            with self.precision.on():
                logits = run_masked(self.model, self.site, kept, mask, self.baseline)
            yield slice(k, k + 1), logits[None]

    def ablated(self, baseline: Float[Tensor, " units"] | None) -> tuple[FullPlan, ...]:
        return (replace(self, baseline=baseline),)


def in_full(plan: Plan, precision: Precision) -> FullPlan:
    """The full plan, for batches of another form than a plan was made for."""
    return FullPlan(plan.model, plan.site, "", plan.baseline, precision, alone=plan.alone)


def one_by_one(
    run: Callable[[Any, Masks], Iterator[tuple[slice, Logits]]], kept: Any, masks: Masks
) -> Iterator[tuple[slice, Logits]]:
    """The logits of `run` for every mask, one sample in a call: whatever a batch does to them."""
    samples = [rows_of(kept, slice(i, i + 1)) for i in range(batch_size(kept))]
    for part in slices(len(masks), _MASKS):
        retrieved = masks.retrieved_in(part).expand(-1, len(samples), -1)
        found = [
            torch.cat([logits.clone() for _, logits in run(one, Sets(retrieved[:, i]))])
            for i, one in enumerate(samples)
        ]
        yield part, torch.cat(found, dim=1)
