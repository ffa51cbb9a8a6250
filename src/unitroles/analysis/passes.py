"""The pass over all splits, and what is done where samples do not give what they give alone."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

from unitroles.analysis.prepare import Ready
from unitroles.curves.collect import Collected, Kept
from unitroles.curves.scores import SampleScore, ScoreSums
from unitroles.curves.store import Store
from unitroles.engine.alone import remedies
from unitroles.engine.audit import MASKED, RETRIEVED, ROW, Audit, reads_data
from unitroles.engine.choice import Choice
from unitroles.engine.plan import FullPlan, Plan
from unitroles.errors import InputError, PlanWarning
from unitroles.model.forward import Precision
from unitroles.model.hooks import SomeRows
from unitroles.options import Compute
from unitroles.rewrite.precision import HALF
from unitroles.wording import COUPLED

_MORE = 256
"""Samples that are run alone where the model decides by numbers that it reads out of a tensor."""
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
    turns = [_Turn(choice, ready.precision) for choice in ready.choices]
    audit = audited(ready)
    while waiting := [turn for turn in turns if turn.found is None]:
        alone = all(turn.plan.alone for turn in waiting)
        now = [turn for turn in waiting if turn.plan.alone == alone]
        some = replace(ready, choices=tuple(turn.choice for turn in now))
        done = ready.bars(stage + " one by one" * alone, sum(map(len, ready.splits)))
        try:
            parts = [some.collect(split, rank_by, done, each, audit) for split in ready.splits]
        except SomeRows as error:
            (mine,) = (turn for turn in now if turn.plan.site == error.site)
            mine.next_plan("only some of the samples reach it", error)
        else:
            for turn, found in zip(now, zip(*parts, strict=True), strict=True):
                turn.take(found)
        # What a pass kept for a plan that is given up would take the room of the next one's.
        ready.stores.keep([store for turn in turns for store in turn.stores])
    choices = tuple(turn.choice for turn in turns)
    for note in dict.fromkeys(note for turn in turns for note in turn.notes):
        warnings.warn(note, PlanWarning, stacklevel=3)
    return replace(ready, choices=choices), [turn.found for turn in turns if turn.found is not None]


def audited(ready: Ready) -> int | None:
    """How many samples of each split are run alone; None = nothing is compared."""
    if not all(choice.check.independent for choice in ready.choices):
        return None  # what a sample gives alone is not what it gives in the user's batches
    asked = ready.request.compute.audit
    if isinstance(asked, str):
        return max(map(len, ready.splits))
    if asked == Compute().audit and reads_data(ready.model, ready.choices[0].seen.inputs):
        asked = _MORE
    return -(-asked // len(ready.splits))


class _Turn:
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
        return [store for one in kept for store in (one.store, one.scores) if store is not None]

    def take(self, found: Sequence[Collected]) -> None:
        """Accept what the pass over all splits gave, or turn to the next plan."""
        audit = sum((part.audit for part in found), Audit())
        kept = [part.kept for part in found]
        if audit.coupled:
            plan = self.plan
            full = FullPlan(plan.model, plan.site, COUPLED, plan.baseline, kept[0].precision)
            kept = [replace(one, plan=full, store=None, foreign=[], places=[]) for one in kept]
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
        plan = self._left.pop(0)
        how = "copies of one in a call" if plan.keeps_rows else "one mask in a call"
        reason = f"{why}; its samples are run one by one, {how}"
        self.choice = replace(self.choice, plan=replace(plan, reason=reason))
        self.notes = [f"layer {plan.site.path!r}: {reason}"]
