"""What every plan can do, and the plan *full*: the definition itself.

*full* runs the whole model once per mask. *suffix* runs the body once and many masked copies of
what it gives through the rest. *additive* adds up what every unit gives.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from unitroles.engine.masks import AllButOne, Masks, Prefixes
from unitroles.model.calls import Place
from unitroles.model.forward import Logits, Precision, batch_size, flat
from unitroles.model.hooks import output_of, run_masked
from unitroles.model.trace import Site

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
        """What ablated units give; None = zero."""
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
        """Logits with the first n units of each order retrieved, for all n or those of `points`."""
        ...

    def without_each(
        self, kept: Any, units: Sequence[int] | None = None
    ) -> Iterator[tuple[slice, Logits]]:
        """Logits with all units but one retrieved, for all units or those of `units`."""
        ...

    def ablated(self, baseline: Float[Tensor, " units"] | None) -> Plan:
        """The same plan with ablated units giving `baseline`; None = zero."""
        ...


def points_of(order: Order, points: Sequence[int] | None) -> Int[Tensor, " masks"]:
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
            (mask,) = masks.retrieved_in(slice(k, k + 1))
            with self.precision.on():
                logits = run_masked(self.model, self.site, kept, mask, self.baseline)
            yield slice(k, k + 1), logits[None]

    def prefixes(
        self, kept: Any, order: Order, points: Sequence[int] | None = None
    ) -> Iterator[tuple[slice, Logits]]:
        return self.masked(kept, Prefixes.of(order, points_of(order, points)))

    def without_each(
        self, kept: Any, units: Sequence[int] | None = None
    ) -> Iterator[tuple[slice, Logits]]:
        some = next(value for value in flat(kept) if isinstance(value, Tensor))
        masks = AllButOne.of(batch_size(kept), self.site.units, units, some.device)
        return self.masked(kept, masks)

    def ablated(self, baseline: Float[Tensor, " units"] | None) -> FullPlan:
        return replace(self, baseline=baseline)
