"""What a silenced unit gives: nothing, or its mean activation."""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch

from unitroles.activity import activation_mean
from unitroles.choice import recheck
from unitroles.collect import collect
from unitroles.errors import PlanWarning
from unitroles.plans import FullPlan
from unitroles.prepare import Ready
from unitroles.store import Ledger


def with_baseline(ready: Ready, baseline: str, size: int) -> Ready:
    """The same with plans whose silent units give `baseline`.

    Parameters
    ----------
    baseline : "zero", or "mean": the mean over all analysed samples of the first split and over
        all positions, one number per unit. It costs one more pass of the body.
    size : samples per forward.
    """
    if baseline == "zero":
        return ready
    plans = [FullPlan(ready.model, site, "") for site in ready.sites]
    samples = ready.splits[0]
    done = ready.bars("mean activation", len(samples))
    sums, _ = collect(
        ready.model,
        plans,
        samples,
        ready.labels,
        activation_mean,
        size,
        ready.precision,
        Ledger(0),
        done,
    )
    choices = []
    for choice, total in zip(ready.choices, sums, strict=True):
        mean = torch.from_numpy(total.total.sum(axis=0) / total.count.sum())
        choices.append(recheck(choice, mean.to(ready.precision.device), ready.precision))
    for note in dict.fromkeys(note for choice in choices for note in choice.notes):
        warnings.warn(note, PlanWarning, stacklevel=2)
    return replace(ready, choices=tuple(choices))
