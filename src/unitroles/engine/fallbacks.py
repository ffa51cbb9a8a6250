"""The plans where the chosen one cannot serve: samples one by one, batches of another form."""

from __future__ import annotations

from dataclasses import replace

from unitroles.engine.additive import AdditivePlan
from unitroles.engine.plan import FullPlan, Plan
from unitroles.engine.suffix import SuffixPlan
from unitroles.model.forward import Precision


def remedies(plan: Plan, precision: Precision) -> list[FullPlan | SuffixPlan]:
    """One sample in a call: from what is kept of it, then by whole forwards."""
    suffix = plan.suffix if isinstance(plan, AdditivePlan) else plan
    kept = [replace(suffix, alone=True)] if isinstance(suffix, SuffixPlan) else []
    return [*kept, replace(in_full(plan, precision), alone=True)]


def in_full(plan: Plan, precision: Precision) -> FullPlan:
    """The full plan, for batches of another form than a plan was made for."""
    return FullPlan(plan.model, plan.site, "", plan.baseline, precision, alone=plan.alone)
