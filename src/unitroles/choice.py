"""The cheapest plan for a layer that equals the definition, and the check that it does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from unitroles.additive import recognise
from unitroles.errors import InputError
from unitroles.graph import CannotCut
from unitroles.head import Exported
from unitroles.masks import Prefixes
from unitroles.plans import AdditivePlan, FullPlan, Plan, SuffixPlan
from unitroles.precision import Precision
from unitroles.probe import first_line, form_of, forward, logits_of
from unitroles.separable import Head
from unitroles.session import export, recall
from unitroles.split import run_body, run_masked
from unitroles.trace import Site, Trace

_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}
_NOISE = {torch.float64: 1e-14, torch.float32: 1e-6}
_COARSE = 3e-2
"""Of the largest logit: what half precision may differ by."""


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


@dataclass(frozen=True)
class Definition:
    """Logits of a few samples under some prefixes, from runs of the whole model.

    Parameters
    ----------
    seen : the samples and their logits without a mask.
    order : an order of the units for every sample.
    points : how many units were awake in each row of `masked`.
    masked : logits by point and sample.
    """

    seen: Trace
    order: Int[Tensor, "samples units"]
    points: tuple[int, ...]
    masked: Float[Tensor, "masks samples labels"]

    @property
    def moved(self) -> float:
        """How far the masks moved a logit."""
        return _largest(_differences(self.masked, self.seen.logits))

    @property
    def alone(self) -> float:
        """Largest difference between a sample's logits alone and among others."""
        if self.seen.alone is None:
            return float("inf")
        return _largest(_differences(self.seen.alone.logits, self.seen.logits[:1]))


def define(
    model: nn.Module,
    site: Site,
    seen: Trace,
    precision: Precision,
    baseline: Float[Tensor, " units"] | None = None,
) -> Definition:
    """Run the model with no unit, half and all units awake, all masks in one batch.

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
    awake = Prefixes.of(order, torch.tensor(points)).awake(slice(None))
    everything = _repeated(seen.inputs, len(points))
    with precision.on():
        many = run_masked(model, site, everything, awake.flatten(0, 1), baseline)
    found = Definition(seen, order, points, many.unflatten(0, (-1, rows)))
    off = _largest(_differences(found.masked[-1], clean))
    if off > _allowed(clean):
        with precision.on():
            _require_repeatable(model, seen)
    return found


def _repeated(inputs: Any, times: int) -> Any:
    """All samples several times, one whole batch after the other; what is no tensor stays."""
    if isinstance(inputs, Tensor):
        return inputs.repeat(times, *(1 for _ in inputs.shape[1:]))
    if isinstance(inputs, dict):
        return {name: _repeated(value, times) for name, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return tuple(_repeated(value, times) for value in inputs)
    return inputs


def self_check(plan: Plan, definition: Definition) -> SelfCheck:
    """Compare a plan with the definition on all that the plan may be asked for.

    The tolerance shrinks with the effect of the masks, so that agreement means something also
    where the layer moves the logits little.
    """
    clean, moved = definition.seen.logits, definition.moved
    got = []
    if isinstance(plan, (SuffixPlan, AdditivePlan)):
        kept = plan.keep(*plan.probe)
        masks = Prefixes.of(definition.order, torch.tensor(definition.points))
        # Several masks in one call, as the run may have them, however large these samples are.
        got = [
            _gather(plan.masked(kept, masks, least=2)),
            _gather(plan.prefixes(kept, definition.order, definition.points)),
        ]
    noise = _NOISE.get(clean.dtype, 1e-3) * max(_size(clean), 1e-30)
    compared = [_largest(_differences(logits.to(clean), definition.masked)) for logits in got]
    compared += [_largest(_differences(definition.masked[-1], clean))]
    return SelfCheck(
        difference=max(compared),
        tolerance=min(_allowed(clean), max(moved / 1000, 10 * noise)),
        moved=moved,
        noise=10 * noise,
        alone=definition.alone,
    )


def _gather(parts: Iterator[tuple[slice, Tensor]]) -> Tensor:
    return torch.cat([logits.clone() for _, logits in parts])


def _allowed(logits: Tensor) -> float:
    return _TOLERANCE.get(logits.dtype, _COARSE) * _size(logits)


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


def _require_repeatable(model: nn.Module, seen: Trace) -> None:
    again, clean = logits_of(forward(model, seen.inputs)), seen.logits
    if _largest(_differences(again, clean)) > _allowed(clean) and not torch.isnan(again).any():
        raise InputError(
            "the model gives other logits each time for the same samples, although it is in "
            "evaluation mode; take the randomness out of its forward"
        )


@dataclass(frozen=True)
class Choice:
    """The plan of a layer, how it compared, and what the user should know.

    Parameters
    ----------
    seen : the samples it was compared on.
    at_once : whether the first plan that could be made equalled the definition.
    """

    plan: Plan
    check: SelfCheck
    notes: tuple[str, ...]
    seen: Trace
    at_once: bool = True


def choose_plans(
    model: nn.Module, sites: list[Site], seen: Trace, budget: int, precision: Precision
) -> list[Choice]:
    """The cheapest plan for every layer that equals the definition, from one export.

    Parameters
    ----------
    seen : a forward of a few samples, at least two.
    budget : bytes for masked copies.
    precision : of the model's own forwards.

    Raises
    ------
    InputError : the model gives other logits each time for the same samples.
    """
    definitions = [define(model, site, seen, precision) for site in sites]
    remembered = recall(model, sites, seen.inputs)
    if remembered is not None:
        chosen = _chosen(model, sites, remembered, definitions, budget, precision)
        if all(choice.at_once for choice in chosen):
            return chosen
    try:
        exported = export(model, sites, seen.inputs)
    except CannotCut as error:
        reason = str(error)
        return [
            _full(model, d, s, reason, precision) for s, d in zip(sites, definitions, strict=True)
        ]
    return _chosen(model, sites, exported, definitions, budget, precision)


def _chosen(
    model: nn.Module,
    sites: list[Site],
    exported: Exported,
    definitions: list[Definition],
    budget: int,
    precision: Precision,
) -> list[Choice]:
    chosen = []
    for place, (site, definition) in enumerate(zip(sites, definitions, strict=True)):
        try:
            found = _cheapest(model, site, exported.head(place), definition, budget, precision)
        except Exception as error:  # whatever a graph stumbles over, the definition still runs
            found = first_line(error)
        if isinstance(found, str):
            found = _full(model, definition, site, found, precision)
        chosen.append(found)
    return chosen


def _cheapest(
    model: nn.Module,
    site: Site,
    head: Head,
    definition: Definition,
    budget: int,
    precision: Precision,
) -> Choice | str:
    """Additive or suffix with its check, or why neither may be used."""
    suffix = suffix_plan(model, site, head, definition.seen.inputs, budget, precision)
    plans: list[Plan] = []
    try:
        plans.append(additive_plan(suffix, definition.seen.logits.shape[1]))
    except CannotCut as error:
        suffix = replace(suffix, reason=suffix_reason(error))
    failed: list[str] = []
    for plan in (*plans, suffix):
        check = self_check(plan, definition)
        if not check.independent:
            return "samples of one batch influence each other"
        if check.agrees:
            notes = [f"plan {plan.name}, not {text}" for text in failed]
            found = (*notes, *_effect(site, check))
            return Choice(plan, check, found, definition.seen, not failed)
        failed.append(
            f"{plan.name}: the exported head differs from the model by {check.difference:.1e}"
        )
    return failed[-1].partition(": ")[2]


def suffix_plan(
    model: nn.Module, site: Site, head: Head, inputs: Any, budget: int, precision: Precision
) -> SuffixPlan:
    """The suffix plan of a head, with what a few samples give."""
    if head.dtype in (torch.float16, torch.bfloat16):
        head = head.to(torch.float32)
    reason = "masked copies run through what comes after the layer"
    plan = SuffixPlan(model, site, head, budget, form_of(inputs), ((), inputs), reason)
    with precision.on():
        found = tuple(value.clone() for value in run_body(model, plan.places, inputs))
    return replace(plan, probe=(found, inputs))


def additive_plan(suffix: SuffixPlan, labels: int) -> AdditivePlan:
    """The additive plan of the same head.

    Raises
    ------
    CannotCut : the head has no additive form, and why.
    """
    form = recognise(suffix.head, suffix.around())
    reason = additive_reason(form.folded, form.norm is not None)
    return AdditivePlan(suffix, form, labels, reason)


def additive_reason(folded: bool, normed: bool) -> str:
    """What adds up, and what is left to run."""
    if not folded:
        return "what the units meet in is a running sum; the rest runs for every n"
    return "the logits are a running sum over the units" + " before one normalisation" * normed


def suffix_reason(error: CannotCut) -> str:
    """Why nothing adds up, and what runs instead."""
    return f"{error}; masked copies run through the rest"


def _full(
    model: nn.Module, definition: Definition, site: Site, reason: str, precision: Precision
) -> Choice:
    notes = [f"plan full (N+1 runs of the whole model): {reason}"]
    plan = FullPlan(model, site, reason, precision=precision)
    check = self_check(plan, definition)
    if not check.independent:
        notes.append(
            "a sample's output depends on the others in its batch (batch norm without running "
            "statistics?): results depend on batch_size"
        )
    return Choice(plan, check, (*notes, *_effect(site, check)), definition.seen, False)


def recheck(choice: Choice, baseline: Float[Tensor, " units"], precision: Precision) -> Choice:
    """The same plan with silent units giving `baseline`, compared with the definition again."""
    plan = choice.plan.silenced(baseline)
    definition = define(plan.model, plan.site, choice.seen, precision, baseline)
    check = self_check(plan, definition)
    if check.agrees:
        return replace(choice, plan=plan, check=check)
    reason = f"with mean activations {plan.name} differs from the model by {check.difference:.1e}"
    full = FullPlan(plan.model, plan.site, reason, baseline, precision)
    return Choice(full, self_check(full, definition), choice.notes, choice.seen)


def _effect(site: Site, check: SelfCheck) -> list[str]:
    if check.moved > check.noise or check.moved != check.moved:
        return []  # what is not a number is reported with its sample, when the losses are summed
    return [
        f"silencing layer {site.path!r} moves no logit by more than numerical noise "
        f"({check.moved:.1e}): its roles mean nothing"
    ]
