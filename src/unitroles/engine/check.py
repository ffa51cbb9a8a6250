"""Whether a plan equals the definition, on some samples and masks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from unitroles.engine.masks import AllButOne, Masks, Prefixes
from unitroles.engine.plan import Plan
from unitroles.errors import InputError
from unitroles.model.forward import Precision, forward, logits_of, repeated, rows_of
from unitroles.model.hooks import run_masked
from unitroles.model.memory import Pieces
from unitroles.model.trace import Site, Trace

# What a logit may be off, and what is numerical noise, as shares of the largest logit.
_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}


_NOISE = {torch.float64: 1e-14, torch.float32: 1e-6}


_HALF_TOLERANCE, _HALF_NOISE = 3e-2, 1e-3


@dataclass(frozen=True)
class SelfCheck:
    """A plan compared with the definition on a few samples and masks before the run.

    Parameters
    ----------
    difference : largest difference of a logit between the plan and the definition.
    tolerance : the largest difference that was allowed.
    moved : how far the masks moved a logit; below `noise` the layer hardly matters.
    alone : largest difference between a sample's logits alone and among others.
    """

    difference: float
    tolerance: float
    moved: float
    noise: float
    alone: float

    @property
    def agrees(self) -> bool:
        """Whether the plan may be used."""
        return self.difference <= self.tolerance

    @property
    def conclusive(self) -> bool:
        """Whether the masks moved the logits far enough for agreement to mean something."""
        return self.moved >= 1000 * self.tolerance

    @property
    def independent(self) -> bool:
        """Whether a sample gives alone what it gives among others."""
        return self.alone <= self.tolerance


@dataclass(frozen=True)
class Definition:
    """Logits of a few samples under some prefixes, from runs of the whole model.

    Parameters
    ----------
    precision : of the model's forwards.
    baseline : what ablated units give; None = zero.
    seen : the samples and their logits without a mask.
    order : an order of the units for every sample.
    points : how many units were retrieved in each row of `masked`.
    masked : logits by point and sample.
    removed : a unit that was ablated alone.
    without : logits without it, by sample.
    allowed, noise : how far a logit may be off, and what means nothing, from the coarser kind of
        numbers of the layer and the logits.
    """

    model: nn.Module
    site: Site
    precision: Precision
    baseline: Float[Tensor, " units"] | None
    seen: Trace
    order: Int[Tensor, "samples units"]
    points: tuple[int, ...]
    masked: Float[Tensor, "masks samples labels"]
    removed: int
    without: Float[Tensor, "samples labels"]
    allowed: float
    noise: float

    @property
    def moved(self) -> float:
        """The farthest that the masks moved a logit, where they left a number (not 0/0)."""
        moved = differences(self.masked, self.seen.logits)
        return largest(torch.where(self.masked.isnan(), 0.0, moved))

    @property
    def alone(self) -> float:
        """Largest difference between a sample's logits alone and among others."""
        if self.seen.apart is None:
            return float("inf")
        return largest(differences(self.seen.apart, self.seen.logits[[0, -1]]))


def define(
    model: nn.Module,
    site: Site,
    seen: Trace,
    precision: Precision,
    baseline: Float[Tensor, " units"] | None = None,
) -> Definition:
    """Run the model with no unit, half, all and all but one unit retrieved, all masks in one batch.

    Parameters
    ----------
    seen : a forward of a few samples without masks.

    Raises
    ------
    InputError : the model gives other logits each time for the same samples.
    """
    rows, units, clean = seen.samples, site.units, seen.logits
    shuffle = torch.Generator().manual_seed(0)
    order = torch.stack([torch.randperm(units, generator=shuffle) for _ in range(rows)])
    order = order.to(clean.device)
    points = tuple(sorted({0, -(-units // 2), units}))
    removed = int(order[0, 0])
    retrieved = Prefixes(order, points).retrieved_in(slice(None))
    but_one = AllButOne(units, [removed]).retrieved_in(slice(None)).to(order.device)
    masks = torch.cat([retrieved, but_one.expand(-1, rows, -1)])
    everything = repeated(seen.inputs, len(masks))

    def run(part: slice) -> Tensor:
        some = masks.flatten(0, 1)[part]
        return run_masked(model, site, rows_of(everything, part), some, baseline)

    with precision.on():
        many = torch.cat(Pieces("the check of the plan").run(run, len(masks) * rows))
    *masked, without = many.unflatten(0, (-1, rows))
    allowed, noise = allowed_and_noise(clean, site.dtype)
    given = model, site, precision, baseline, seen
    found = Definition(*given, order, points, torch.stack(masked), removed, without, allowed, noise)
    off = largest(differences(found.masked[-1], clean))
    if off > allowed:
        with precision.on():
            _require_repeatable(model, seen, allowed)
    return found


def self_check(plan: Plan, definition: Definition) -> SelfCheck:
    """Compare a plan with the definition on all that the plan may be asked for.

    The tolerance shrinks with the effect of the masks, so that agreement means something also
    where the layer moves the logits little.
    """
    clean, moved = definition.seen.logits, definition.moved
    pairs = [(definition.masked[-1], clean)]
    if plan.keeps_rows:
        masks = Prefixes(definition.order, definition.points)
        one = AllButOne(plan.site.units, [definition.removed])
        pairs += [
            (_logits(plan, masks.own), definition.masked),
            (_logits(plan, masks), definition.masked),
            (_logits(plan, one)[0], definition.without),
        ]
    noise = definition.noise
    compared = [largest(differences(got.to(clean), wanted)) for got, wanted in pairs]
    return SelfCheck(
        difference=max(compared),
        tolerance=min(definition.allowed, max(moved / 1000, 10 * noise)),
        moved=moved,
        noise=10 * noise,
        alone=definition.alone,
    )


def _logits(plan: Plan, masks: Masks) -> Tensor:
    # Several masks in one call, as the run may have them, however large these samples are.
    parts = plan.run(plan.example, masks, least=2)
    return torch.cat([logits.clone() for _, logits in parts])


def allowed_and_noise(values: Tensor, dtype: torch.dtype | None) -> tuple[float, float]:
    """How far values may be off, and what means nothing.

    Parameters
    ----------
    dtype : of the layer; the coarser of both kinds of numbers counts.
    """
    kinds = (values.dtype, dtype or values.dtype)
    size = max(_size(values), 1e-30)
    shares = [
        max(table.get(kind, half) for kind in kinds)
        for table, half in ((_TOLERANCE, _HALF_TOLERANCE), (_NOISE, _HALF_NOISE))
    ]
    return shares[0] * size, shares[1] * size


def _size(logits: Tensor) -> float:
    """The scale of the logits: their largest value, but for a few that mask a class out."""
    values = logits[torch.isfinite(logits)].abs().to(torch.float64)
    if not len(values):
        return 1.0
    return min(float(values.max()), 100 * float(values.median()) or float("inf"))


def differences(one: Tensor, other: Tensor) -> Tensor:
    """One minus the other; 0 where they are equal, also where both are infinite or not a number.

    With no unit left a model may divide by zero, in the definition as in every plan.
    """
    equal = (one == other) | (one.isnan() & other.isnan())
    return torch.where(equal, 0.0, one - other)


def largest(difference: Tensor) -> float:
    """The largest absolute value; not-a-number counts as infinite, so that no check passes it."""
    value = float(difference.abs().max())
    return float("inf") if value != value else value


def _require_repeatable(model: nn.Module, seen: Trace, allowed: float) -> None:
    again, clean = logits_of(forward(model, seen.inputs)), seen.logits
    if largest(differences(again, clean)) > allowed and not torch.isnan(again).any():
        raise InputError(
            "the model gives other logits each time for the same samples, although it is in "
            "evaluation mode; take the randomness out of its forward"
        )
