"""Ways to run a model with many masks, and the check that a way equals the definition.

*full* runs the whole model once per mask: the definition. *suffix* runs the body once and many
masked copies of its output, moved past what acts on every unit alone, through the head.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unitroles.errors import InputError, PlanWarning
from unitroles.graph import Head
from unitroles.head import export_head
from unitroles.probe import batch_size, first_line, form_of, forward, logits_of, rows_of
from unitroles.split import run_body, run_masked
from unitroles.trace import Site

# Beyond this a call gains nothing from more rows but leaves the processor's caches.
_CALL_BYTES = 16 * 2**20
# Input, output and one intermediate of a masked copy, twice over for what the head widens.
_COPIES = 6
_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}
_NOISE = {torch.float64: 1e-14, torch.float32: 1e-6}

Rank = Int[Tensor, "samples units"]
Retrieved = Int[Tensor, "masks samples"]


@runtime_checkable
class Plan(Protocol):
    """A way to run the model with masks; `reason` says why it was chosen."""

    @property
    def name(self) -> str: ...

    @property
    def reason(self) -> str: ...

    @property
    def model(self) -> nn.Module: ...

    @property
    def site(self) -> Site: ...

    def logits(
        self, inputs: Any, rank: Rank, retrieved: Retrieved, least: int = 1
    ) -> Iterator[tuple[slice, Float[Tensor, "masks samples labels"]]]:
        """Logits for every mask, some masks at a time.

        Unit u of sample b is awake under mask k where rank[b, u] < retrieved[k, b]; `least` is the
        least number of masks that run in one call where the plan can run several.
        """
        ...


@dataclass(frozen=True)
class FullPlan:
    """The whole model once per mask."""

    model: nn.Module
    site: Site
    reason: str
    name: str = "full"

    def logits(
        self, inputs: Any, rank: Rank, retrieved: Retrieved, least: int = 1
    ) -> Iterator[tuple[slice, Float[Tensor, "masks samples labels"]]]:
        for k, points in enumerate(retrieved):
            mask = rank < points[:, None]
            yield slice(k, k + 1), run_masked(self.model, self.site, inputs, mask)[None]


@dataclass(frozen=True)
class SuffixPlan:
    """The body once, then many masked copies of its output through the head in each call.

    Parameters
    ----------
    form : names, types and shapes of the inputs the head was exported for; others run in full.
    budget : bytes for masked copies.
    """

    model: nn.Module
    site: Site
    head: Head
    budget: int
    form: tuple[Any, ...]
    reason: str
    name: str = "suffix"

    def logits(
        self, inputs: Any, rank: Rank, retrieved: Retrieved, least: int = 1
    ) -> Iterator[tuple[slice, Float[Tensor, "masks samples labels"]]]:
        if form_of(inputs) != self.form:
            # An export knows one length of sequence, one size of image.
            warnings.warn(
                "batches of another shape than the first are run in full (N+1 runs of the model)",
                PlanWarning,
                stacklevel=2,
            )
            yield from FullPlan(self.model, self.site, "").logits(inputs, rank, retrieved)
            return
        output = run_body(self.model, self.site, inputs)
        around = self.head.surroundings(inputs)
        cut = self.head.cut(output, around)
        silent = self.head.cut(torch.zeros_like(output), around)
        step = max(least, self._masks_per_call(cut))
        for start in range(0, len(retrieved), step):
            part = slice(start, min(start + step, len(retrieved)))
            awake = rank < retrieved[part, :, None]
            many = len(awake)
            copies = torch.where(self._along_units(awake, cut), cut, silent).flatten(0, 1)
            pairs = zip(around, self.head.repeats, strict=True)
            rest = [_repeat(value, many) if per_row else value for value, per_row in pairs]
            yield part, self.head.run(copies, *rest).unflatten(0, (many, -1))

    def _along_units(
        self, awake: Bool[Tensor, "masks samples units"], cut: Tensor
    ) -> Bool[Tensor, "masks samples ..."]:
        shape = [*awake.shape[:2], *(1 for _ in cut.shape[1:])]
        shape[self.head.axis + 1] = awake.shape[2]
        return awake.view(shape)

    def _masks_per_call(self, cut: Tensor) -> int:
        room = min(_CALL_BYTES, self.budget // _COPIES)
        return max(1, room // (cut.numel() * cut.element_size()))


def _repeat(value: Tensor, times: int) -> Tensor:
    return value.expand(times, *value.shape).flatten(0, 1)


@dataclass(frozen=True)
class SelfCheck:
    """How a plan compared with the definition on a few samples and masks before the run.

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


def self_check(plan: Plan, model: nn.Module, site: Site, inputs: Any) -> SelfCheck:
    """Compare a plan with the definition: no unit, one, half, all but one and all of them.

    The tolerance shrinks with the effect of the masks, so that agreement means something also
    where the layer moves the logits little.
    """
    rows, units = batch_size(inputs), site.units
    clean = logits_of(forward(model, inputs))
    shuffle = torch.Generator().manual_seed(0)
    rank = torch.stack([torch.randperm(units, generator=shuffle) for _ in range(rows)])
    steps = sorted({0, 1, units // 2, max(units - 1, 0), units})
    retrieved = torch.tensor(steps)[:, None].expand(-1, rows)
    rank, retrieved = rank.to(clean.device), retrieved.to(clean.device)
    # Several masks in one call, as the run may have them, however large these samples are.
    got = torch.cat([logits for _, logits in plan.logits(inputs, rank, retrieved, least=2)])
    masks = [rank < points[:, None] for points in retrieved]
    want = torch.stack([run_masked(model, site, inputs, mask) for mask in masks])
    size = _size(clean)
    moved = _largest(_differences(want, clean))
    noise = _NOISE.get(clean.dtype, 1e-3) * max(size, 1e-30)
    allowed = _TOLERANCE.get(clean.dtype, 1e-2) * size
    return SelfCheck(
        difference=max(_largest(_differences(got, want)), _largest(_differences(got[-1], clean))),
        tolerance=min(allowed, max(moved / 1000, 10 * noise)),
        moved=moved,
        noise=10 * noise,
        alone=_alone(model, inputs, clean),
    )


def _alone(model: nn.Module, inputs: Any, clean: Tensor) -> float:
    """How far a sample's logits alone are from its logits among others."""
    try:
        single = [
            logits_of(forward(model, rows_of(inputs, slice(row, row + 1))))
            for row in range(len(clean))
        ]
    except (RuntimeError, ValueError):  # a norm over the batch refuses a batch of one
        return float("inf")
    return _largest(_differences(torch.cat(single), clean))


def _size(logits: Tensor) -> float:
    """The scale of the logits: their largest value, but for a few that mask a class out."""
    values = logits[torch.isfinite(logits)].abs().to(torch.float64)
    if not len(values):
        return 1.0
    return min(float(values.max()), 100 * float(values.median()) or float("inf"))


def _differences(one: Tensor, other: Tensor) -> Tensor:
    """One minus the other; 0 where they are equal, also where both are infinite."""
    return torch.where(one == other, 0.0, one - other)


def _largest(difference: Tensor) -> float:
    """The largest absolute value; not-a-number counts as infinite, so that no check passes it."""
    value = float(difference.abs().max())
    return float("inf") if value != value else value


def choose_plan(
    model: nn.Module, site: Site, inputs: Any, budget: int
) -> tuple[Plan, SelfCheck, list[str]]:
    """The cheapest plan that equals the definition, its check, and what the user should know.

    Parameters
    ----------
    inputs : a few samples, at least two.
    budget : bytes for masked copies.

    Raises
    ------
    InputError : the model gives other logits each time for the same samples.
    """
    _require_repeatable(model, inputs)
    notes: list[str] = []
    try:
        head = export_head(model, site, inputs)
        plan: Plan = SuffixPlan(
            model,
            site,
            head,
            budget,
            form_of(inputs),
            "the head was exported and equals the model; batches of another shape run in full",
        )
        check = self_check(plan, model, site, inputs)
        if check.independent and check.agrees:
            return plan, check, notes + _effect(site, check)
        reason = (
            "samples of one batch influence each other"
            if not check.independent
            else f"the exported head differs from the model by {check.difference:.1e}"
        )
    except InputError:
        raise
    except Exception as error:  # whatever a graph stumbles over, the definition still runs
        reason = first_line(error)
    notes.append(f"plan full (N+1 runs of the whole model): {reason}")
    plan = FullPlan(model, site, reason)
    check = self_check(plan, model, site, inputs)
    if not check.independent:
        notes.append(
            "a sample's output depends on the others in its batch (batch norm without running "
            "statistics?): results depend on batch_size"
        )
    return plan, check, notes + _effect(site, check)


def _require_repeatable(model: nn.Module, inputs: Any) -> None:
    first, second = (logits_of(forward(model, inputs)) for _ in range(2))
    allowed = _TOLERANCE.get(first.dtype, 1e-2) * _size(first)
    if _largest(_differences(first, second)) > allowed and not torch.isnan(first).any():
        raise InputError(
            "the model gives other logits each time for the same samples, although it is in "
            "evaluation mode; take the randomness out of its forward"
        )


def _effect(site: Site, check: SelfCheck) -> list[str]:
    if check.moved > check.noise or check.moved != check.moved:
        return []  # what is not a number is reported with its sample, when the losses are summed
    return [
        f"silencing layer {site.path!r} moves no logit by more than numerical noise "
        f"({check.moved:.1e}): its roles mean nothing"
    ]
