"""The five cases: what a whole test costs beside looking at the data once, and the other ways."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

import unitroles as ur
from benchmarks.speed.baselines import seconds
from benchmarks.speed.cases import CASES
from benchmarks.speed.measure import (
    CACHED_CLASSES,
    CACHED_MASKS,
    HEAD_PASSES,
    HOOK_SAMPLES,
    Measured,
    measure,
)
from benchmarks.table import Setting, met, number, ratios, section, spread, table

HEAVY_REPEATS = 3
_HOOK_GOAL = 200.0
_COST = (
    "*Evaluation pass*: plain `model(x)` over the same samples (both splits), inference mode, eval "
    "mode, float32, contiguous, as many threads as ours, 32 samples a call, as in ours. "
    "*Growing part*: wall clock around `analyze`, reading the data included, less the fixed part. "
    "*Fixed part*: export, choice of the plan, self-check, fingerprint "
    "(`provenance['stages']['prepare']`) of the first analysis; the later ones of this process, "
    "each of a fresh copy of the model, in brackets; its goal is 3 s up to 200 operations of the "
    "exported graph, 8 s beyond. "
    "One evaluation pass stands right before and one right after every run, of the same object, "
    "and each ratio is to the mean of these two; median (lowest–highest)."
)
_AGAIN = (
    "*g*: the head's matrix products that must run for every mask (all linear layers but the first "
    "after the units), alone, without bias and activation, for all samples × (N+1) masks ÷ "
    "evaluation pass; goal 1.15 × (1 + g). *N+1 head passes*: all that comes after the layer, as "
    "plain modules, over the layer's output of all samples, × (N+1) ÷ evaluation pass; goal 1 + "
    "1.15 × that, the 1 being the pass of the body; the mean of "
    f"{HEAD_PASSES} passes is taken. Both at the fastest of 32, 128, 512 and 1024 rows a call."
)


def report(setting: Setting, say: Callable[[str], None]) -> str:
    """All sections about the five cases."""
    cold = seconds(_toy)
    found = []
    for case in CASES:
        if case.key in setting.cases:
            repeats = min(setting.repeats, HEAVY_REPEATS) if case.heavy else setting.repeats
            found.append(measure(case.small() if setting.quick else case, repeats, say))
    parts = [_cost(found, cold), _profile(found), _fixed(found), _equal(found), _loops(found)]
    return "\n\n".join(parts)


def _toy() -> None:
    """The first analysis of a process, which imports what `torch.export` needs."""
    net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    split = torch.randn(8, 1, 2, 2), torch.arange(8) % 2
    ur.analyze(net, split, split, layer="1", progress=False)


def _cost(found: Sequence[Measured], cold: float) -> str:
    rows = [_cost_row(one) for one in found]
    worst = max(one.ratio.median / one.goal for one in found)
    count = sum(one.ratio.median <= one.goal for one in found)
    missed = [_missed(one) for one in found if one.ratio.median > one.goal]
    return section(
        "The price of a whole test",
        table(rows),
        f"Growing part: goal met in {count} of {len(found)} cases; the farthest stands at "
        f"{number(worst)} × its goal (at least four of five should be met, none missed by more "
        "than 1.3 ×).",
        *missed,
        _COST,
        _AGAIN,
        f"Before the first case a toy network was analysed once ({number(cold)} s), so that no "
        "fixed part holds the imports of `torch.export`.",
    )


def _cost_row(one: Measured) -> dict[str, object]:
    first, *others = one.seconds("prepare").values
    later = spread(others) if others else "–"
    again = f"{one.again_ratio} at {one.rows} rows" if one.again_ratio else "–"
    return {
        "case": one.case.title,
        "plan": one.plan,
        "units": one.units,
        "samples": f"{one.case.samples} of {one.case.classes} classes",
        "operations": one.operations,
        "fixed part, s": f"{number(first)} [{later}]",
        "goal, s": f"{one.fixed_goal:.0f}: {met(first, one.fixed_goal)}",
        "evaluation pass, s": f"{spread(one.passes)} at batch {one.batch}",
        "growing part ÷ evaluation pass": one.ratio,
        "g, or N+1 head passes": again,
        "goal": f"{number(one.goal)}: {met(one.ratio.median, one.goal)}",
    }


def _missed(one: Measured) -> str:
    """Where the time of a case goes that misses its goal."""
    parts = ", ".join(
        f"{name} {number(one.seconds(name).median)} s" for name in ("body", "sweep", "rest")
    )
    again = f"; what must run again {number(spread(one.again).median)} s" if one.again else ""
    return (
        f"Missed: {one.case.title}: {number(one.ratio.median)} against {number(one.goal)}. Where "
        f"the time goes: {parts}{again}; evaluation pass {number(spread(one.passes).median)} s."
    )


def _profile(found: Sequence[Measured]) -> str:
    rows = [
        {
            "case": one.case.title,
            **{f"{name}, s": one.seconds(name) for name in ("prepare", "body", "sweep", "rest")},
            "body ÷ evaluation pass": ratios((run.body for run in one.runs), one.passes),
            "sweep ÷ evaluation pass": ratios((run.sweep for run in one.runs), one.passes),
        }
        for one in found
    ]
    return section(
        "Where the time goes", table(rows), "Median (lowest–highest) over the repetitions."
    )


def _fixed(found: Sequence[Measured]) -> str:
    rows = [
        {"case": one.case.title, **{f"{name}, s": took for name, took in one.fixed.items()}}
        for one in found
    ]
    return section(
        "Where the fixed part goes",
        table(rows),
        "One analysis of two samples a split, of a fresh copy of the model, under Python's "
        "profiler, which slows what is mostly Python (export, recognition, rest) down. The four "
        "masks run through the whole model for two samples each, so a network whose single forward "
        "is slow has a long fixed part.",
    )


def _equal(found: Sequence[Measured]) -> str:
    rows = [
        {
            "case": one.case.title,
            "mean losses compared": one.agreement.points,
            "they range over, nats": (
                f"{number(one.agreement.lowest)}–{number(one.agreement.highest)}"
            ),
            "largest difference, nats": one.agreement.difference,
            "equal": "yes" if one.agreement.equal else "NO",
        }
        for one in found
        if one.agreement
    ]
    return section(
        "Equal to clone and zero",
        table(rows),
        "The same network, two classes with two samples each in both splits. Clone and zero: a "
        "hook clones the layer's output and sets the ablated units to zero, one forward per "
        "mask. Equal: a difference of at most 1e-5 of the largest loss, or of 1 nat where that "
        "is smaller than 1.",
    )


def _loops(found: Sequence[Measured]) -> str:
    rows = []
    for one in found:
        total, growing = ([getattr(r, name) for r in one.runs] for name in ("total", "growing"))
        hook = ratios(one.hook, total)
        first = one.case.key == CASES[0].key
        rows.append(
            {
                "case": one.case.title,
                "ours, s": spread(total),
                "hook loop, s": spread(one.hook),
                "hook loop ÷ ours": hook,
                "÷ our growing part": ratios(one.hook, growing),
                "goal": f"{_HOOK_GOAL:.0f}: {_reached(hook.median)}" if first else "–",
                "cached loop, s": spread(one.cached),
                "cached loop ÷ ours": ratios(one.cached, total),
            }
        )
    masks = ", ".join(str(one.case.hook_masks) for one in found)
    return section(
        "Against loops over masks",
        table(rows),
        "Ours: all of `analyze`, the fixed part included. *Hook loop*: N+1 whole forwards of every "
        f"sample with a mask hook. Extrapolated: {masks} masks, case by case, on {HOOK_SAMPLES} "
        "samples were timed in every repetition. "
        "*Cached loop*, as the paper's authors would write it: for every class the body once, "
        "then the rest of the network for every mask on the samples of that class. Extrapolated: "
        f"{CACHED_MASKS} masks on the training samples of {CACHED_CLASSES} classes were timed. "
        "Both compute losses only: no scores, no second split's set, no checks.",
    )


def _reached(value: float) -> str:
    return "yes" if value >= _HOOK_GOAL else f"no, {_HOOK_GOAL / value:.2f} ×"
