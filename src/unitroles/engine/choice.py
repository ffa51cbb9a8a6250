"""The cheapest plan for a layer that equals the definition."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from unitroles.engine.additive import AdditivePlan
from unitroles.engine.audit import Audit
from unitroles.engine.check import Definition, SelfCheck, define, self_check
from unitroles.engine.plan import FullPlan, Plan, in_full
from unitroles.engine.suffix import SuffixPlan
from unitroles.graph.extract import CannotCut
from unitroles.heads.additive import recognise
from unitroles.heads.fast import fast
from unitroles.heads.head import Head, head_after
from unitroles.model.forward import HALF, Precision
from unitroles.model.hooks import run_body
from unitroles.model.trace import Site, Trace
from unitroles.rewrite.export import Exported, export
from unitroles.wording import COUPLED, first_line


@dataclass(frozen=True)
class Choice:
    """The plan of a layer, how it compared, and what the user should know.

    Parameters
    ----------
    seen : the samples it was compared on.
    audit : what the samples of the run gave, beside what they give alone; None = not compared.
    """

    plan: Plan
    check: SelfCheck
    notes: tuple[str, ...]
    seen: Trace
    audit: Audit | None = None


def exported_or_reason(model: nn.Module, sites: list[Site], inputs: Any) -> Exported | str:
    """The model exported with its layers marked, or why it cannot be."""
    try:
        return export(model, sites, inputs)
    except CannotCut as error:
        return str(error)


_IN_FLOAT32 = "; from the layer on in float32, not in 16 bits"


def choose_plans(
    model: nn.Module,
    sites: list[Site],
    seen: Trace,
    budget: int,
    precision: Precision,
    exported: Exported | str | None = None,
) -> list[Choice]:
    """The cheapest plan for every layer that equals the definition, from one export.

    Parameters
    ----------
    seen : a forward of a few samples, at least two.
    budget : bytes for masked copies.
    precision : of the model's own forwards.
    exported : of these layers, with samples of this form; None = made here.

    Raises
    ------
    InputError : the model gives other logits each time for the same samples.
    """
    definitions = [define(model, site, seen, precision) for site in sites]
    if exported is None:
        exported = exported_or_reason(model, sites, seen.inputs)
    if isinstance(exported, str):
        return [_full(definition, exported) for definition in definitions]
    chosen = []
    for place, definition in enumerate(definitions):
        try:
            found = _cheapest(head_after(exported, place), definition, budget)
        except Exception as error:  # whatever a graph stumbles over, the definition still runs
            found = first_line(error)
        chosen.append(_full(definition, found) if isinstance(found, str) else found)
    return chosen


def _cheapest(head: Head, definition: Definition, budget: int) -> Choice | str:
    """Additive or suffix with its check, or why neither may be used."""
    model, site, inputs = definition.model, definition.site, definition.seen.inputs
    suffix = suffix_plan(model, site, head, inputs, budget, definition.precision)
    rounds = _IN_FLOAT32 * bool(HALF & {site.dtype, definition.seen.logits.dtype})

    def plans() -> Iterator[Plan]:
        why = ""
        try:
            found = additive_plan(suffix, definition.seen.logits.shape[1])
        except CannotCut as error:
            why = str(error)
        except Exception as error:  # whatever else the sum stumbles over, masked copies still run
            why = first_line(error)
        else:
            yield replace(found, reason=found.reason + rounds)
        plain = replace(suffix, reason=(suffix_reason(why) if why else suffix.reason) + rounds)
        yield replace(plain, after=fast(head.after, head.made))
        yield plain  # rounds as the model does, where a network is all rounding

    return _first_that_agrees(plans(), definition)


def _first_that_agrees(plans: Iterable[Plan], definition: Definition) -> Choice | str:
    """The first plan that equals the definition, or why there is none."""
    failed: list[str] = []
    for plan in plans:
        check = self_check(plan, definition)
        if not check.independent:
            return COUPLED
        if check.agrees:
            others = [text for text in failed if not text.startswith(f"{plan.name}: ")]
            notes = [f"plan {plan.name}, not {text}" for text in others]
            found = (*notes, *_effect(plan.site, check))
            return Choice(plan, check, found, definition.seen)
        failed.append(
            f"{plan.name}: the exported head differs from the model by {check.difference:.1e}"
        )
    remedy = "; in float32 (model.float(), no autocast) it may agree"
    return failed[-1].partition(": ")[2] + remedy * (definition.site.dtype in HALF)


def suffix_plan(
    model: nn.Module, site: Site, head: Head, inputs: Any, budget: int, precision: Precision
) -> SuffixPlan:
    """The suffix plan of a head, with what a few samples give."""
    reason = "masked copies run through what comes after the layer"
    plan = SuffixPlan(model, site, head, head.after, budget, ((), inputs), reason)
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
    """The reason of an additive plan: what adds up, and what is left to run."""
    if not folded:
        return "what the units meet in is a running sum; the rest runs for every n"
    return "the logits are a running sum over the units" + " before one normalisation" * normed


def suffix_reason(why: str) -> str:
    """Why nothing adds up, and what runs instead."""
    return f"{why}; masked copies run through the rest"


def _full(definition: Definition, reason: str) -> Choice:
    notes = [f"plan full (N+1 runs of the whole model): {reason}"]
    site, baseline = definition.site, definition.baseline
    plan = FullPlan(definition.model, site, reason, baseline, definition.precision)
    check = self_check(plan, definition)
    if not check.independent and reason != COUPLED:
        notes.append(COUPLED)
    return Choice(plan, check, (*notes, *_effect(site, check)), definition.seen)


def recheck(choice: Choice, baseline: Float[Tensor, " units"], precision: Precision) -> Choice:
    """The cheapest plan that equals the definition where ablated units give `baseline`.

    Its notes are those that the baseline adds.
    """
    given, seen = choice.plan, choice.seen
    definition = define(given.model, given.site, seen, precision, baseline)
    plans = given.ablated(baseline)
    if not given.keeps_rows:  # the definition itself
        check = self_check(plans[0], definition)
        return Choice(plans[0], check, tuple(_effect(given.site, check)), seen)
    found = _first_that_agrees(plans, definition)
    if isinstance(found, str):
        return _full(definition, f"with mean activations {found}")
    return found


def remedies(plan: Plan, precision: Precision) -> list[FullPlan | SuffixPlan]:
    """One sample in a call: from what is kept of it, then by whole forwards."""
    suffix = plan.suffix if isinstance(plan, AdditivePlan) else plan
    kept = [replace(suffix, alone=True)] if isinstance(suffix, SuffixPlan) else []
    return [*kept, replace(in_full(plan, precision), alone=True)]


def _effect(site: Site, check: SelfCheck) -> list[str]:
    if check.moved > check.noise or check.moved != check.moved:
        return []  # what is not a number is reported with its sample, when the losses are summed
    return [
        f"ablating layer {site.path!r} moves no logit by more than numerical noise "
        f"({check.moved:.1e}): its roles mean nothing"
    ]
