"""The pass over all splits, and what is done where samples do not give what they give alone."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

from unitroles.analysis.prepare import Ready
from unitroles.curves.collect import Collected, Kept
from unitroles.curves.scores import SampleScore, ScoreSums
from unitroles.curves.store import Store
from unitroles.engine.audit import MASKED, RETRIEVED, ROW, Audit, reads_data
from unitroles.engine.choice import Choice, remedies
from unitroles.engine.plan import FullPlan, Plan
from unitroles.engine.suffix import SuffixPlan
from unitroles.errors import InputError, PlanWarning
from unitroles.model.forward import HALF, Precision
from unitroles.model.hooks import SomeRows
from unitroles.options import Compute
from unitroles.wording import COUPLED

_MORE = 256
"""Samples that are run alone where the model decides by numbers that it reads out of a tensor."""
_ONLY_SOME = "only some of the samples reach it"
_WHY = {
    RETRIEVED: "with all units retrieved, a sample's logits are not the model's own",
    ROW: "the layer's rows depend on, or stand in another order than, the samples of a batch",
    MASKED: "a sample's logits under a mask depend on the other samples and masks in the call",
}


@dataclass(frozen=True)
class Gathered:
    """What the pass gave for one layer: scores by split, and what its masks need of the samples."""

    sums: list[ScoreSums]
    kept: list[Kept]


def gathered(
    ready: Ready, rank_by: SampleScore | None, stage: str, each: bool = False
) -> tuple[Ready, list[Gathered]]:
    """Run the model once over all splits, for all layers, and compare samples with the model.

    A layer whose samples do not give what they give alone is run again sample by sample; the
    choices of the result say so.

    Parameters
    ----------
    stage : of the progress bar.
    each : whether the scores of every sample are kept too.
    """
    attempts = [_Attempts(choice, ready.precision) for choice in ready.choices]
    audit = samples_alone(ready)
    while waiting := [one for one in attempts if one.found is None]:
        alone = all(one.plan.alone for one in waiting)
        now = [one for one in waiting if one.plan.alone == alone]
        some = replace(ready, choices=tuple(one.choice for one in now))
        done = ready.bars(stage + " one by one" * alone, sum(map(len, ready.splits)))
        try:
            parts = [some.collect(split, rank_by, done, each, audit) for split in ready.splits]
        except SomeRows as error:
            (mine,) = (one for one in now if one.plan.site == error.site)
            mine.next_plan(_ONLY_SOME, error)
        else:
            for one, found in zip(now, zip(*parts, strict=True), strict=True):
                one.take(found)
        # What a pass kept for a plan that is given up would take the room of the next one's.
        ready.stores.keep([store for one in attempts for store in one.stores])
    choices = tuple(one.choice for one in attempts)
    for note in dict.fromkeys(note for one in attempts for note in one.notes):
        warnings.warn(note, PlanWarning, stacklevel=3)
    return replace(ready, choices=choices), [one.found for one in attempts if one.found is not None]


def samples_alone(ready: Ready) -> int | None:
    """The number of samples of each split that also run alone; None = nothing is compared."""
    if not all(choice.check.independent for choice in ready.choices):
        return None  # what a sample gives alone is not what it gives in the user's batches
    asked = ready.request.compute.audit
    if isinstance(asked, str):
        return max(map(len, ready.splits))
    if asked == Compute().audit and reads_data(ready.model, ready.choices[0].seen.inputs):
        asked = _MORE
    return -(-asked // len(ready.splits))


class _Attempts:
    """A layer, the plans that are left for it, and what the pass gave."""

    def __init__(self, choice: Choice, precision: Precision) -> None:
        self.choice, self.notes = choice, list[str]()
        self.found: Gathered | None = None
        self._left = remedies(choice.plan, precision)

    @property
    def plan(self) -> Plan:
        return self.choice.plan

    @property
    def stores(self) -> list[Store]:
        """What the accepted pass keeps of the samples."""
        kept = [] if self.found is None else self.found.kept
        return [store for one in kept for store in one.stores]

    def take(self, found: Sequence[Collected]) -> None:
        """Accept what the pass over all splits gave, or turn to the next plan."""
        audit = sum((part.audit for part in found), Audit())
        kept = [part.kept for part in found]
        if audit.coupled:
            plan = self.plan
            full = FullPlan(plan.model, plan.site, COUPLED, plan.baseline, kept[0].precision)
            kept = [replace(one, plan=full, store=None, foreign=[], rows=0) for one in kept]
            self.choice = replace(self.choice, plan=full)
            self.notes.append(f"plan full (N+1 runs of the whole model): {COUPLED}")
        elif audit.failed is not None:
            off = f"difference {audit.difference[audit.failed]:.1e}"
            if self.plan.site.dtype in HALF:
                off += "; with 16 bits that may be rounding: run it in float32 to see"
            self.next_plan(f"{_WHY[audit.failed]} ({off})")
            return
        self.choice = replace(self.choice, audit=audit)
        self.found = Gathered([part.sums for part in found], kept)

    def next_plan(self, why: str, error: Exception | None = None) -> None:
        """Run the samples one by one from now on."""
        if not self._left:
            raise error or InputError(
                f"layer {self.plan.site.path!r}: {why}, even one by one; take out of the model's "
                "forward what it keeps or draws from one call to the next"
            )
        plan = _reasoned(self._left.pop(0), why)
        self.choice = replace(self.choice, plan=plan)
        self.notes = [f"layer {plan.site.path!r}: {plan.reason}"]


def one_by_one(ready: Ready) -> Ready:
    """The same for layers that only some of the samples reach: every sample by itself."""
    plans = [remedies(choice.plan, ready.precision)[0] for choice in ready.choices]
    choices = [
        replace(choice, plan=_reasoned(plan, _ONLY_SOME))
        for choice, plan in zip(ready.choices, plans, strict=True)
    ]
    return replace(ready, choices=tuple(choices))


def _reasoned(plan: FullPlan | SuffixPlan, why: str) -> FullPlan | SuffixPlan:
    how = "copies of one in a call" if plan.keeps_rows else "one mask in a call"
    return replace(plan, reason=f"{why}; its samples are run one by one, {how}")
