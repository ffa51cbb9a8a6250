"""What the evidence of two networks says, sentence by sentence, by rules that stand here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

import unitroles as ur
from unitroles.paper.numbers import MEAN, STD
from unitroles.results import signs
from unitroles.results.evidence import by_chance, least_coverage
from unitroles.stats.evidence import ALPHA
from unitroles.wording import range_of

LOOSE = f"tolerance {signs.LOOSE:g}"
_GOOD, _BAD = "A", "E"  # the paper's networks of the smallest and the largest gap
ROLES = tuple(MEAN)
_STDS = {"std_over_labels": "std of core over classes", "std_over_units": "std of core over units"}


@dataclass(frozen=True)
class Case:
    """One network, analysed on all images and on equal numbers of both splits.

    Parameters
    ----------
    about : what it is and how it was trained, a sentence.
    every, equal : the two results.
    peaks : MiB, the peak memory of the process after each of the two.
    """

    name: str
    about: str
    every: ur.Taxonomy
    equal: ur.Taxonomy
    peaks: tuple[float, float]

    @property
    def results(self) -> dict[str, ur.Taxonomy]:
        return {"all": self.every, "equal numbers": self.equal}


def floor_size(found: ur.Taxonomy) -> str:
    """Images of each class in the halves."""
    return range_of(found.data.noise_floor_samples.values)


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def reading(cases: list[Case]) -> str:
    """One list of sentences for each network."""
    return "\n\n".join(
        f"**{case.name}**, gap {case.every.gap:+.3f}:\n\n{_of(case)}" for case in cases
    )


def _of(case: Case) -> str:
    found = case.every
    lines = [_signs(found), _new_splits(found), _measure(found), _order(found), _core(found)]
    lines += [_losses(found), _sets(found), _coverage(found), _equal(case)]
    return "\n".join(f"- {line}" for line in lines)


def judged(found: ur.Taxonomy) -> pd.DataFrame:
    """The signs that are 0 but for sampling where both splits are the same to a network."""
    frame = found.signs()
    return frame[frame.finding != ""]


def _signs(found: ur.Taxonomy) -> str:
    frame = judged(found)
    above = frame.finding.str.startswith("above")
    named = {
        side: "; ".join(_beside(str(name), row) for name, row in frame[rows].iterrows()) or "none"
        for side, rows in (("above", above), ("within", ~above))
    }
    text = (
        f"**Signs**, between {floor_size(found)} images of a class from train and as many from "
        f"test. Above what sampling gives: {named['above']}. Within it: {named['within']}."
    )
    if not above.any():
        text += " The roles of this network do not show its gap; within is no proof of none."
    return text


def _beside(name: str, row: pd.Series) -> str:
    if name == "regret":
        return f"{signs.SIGNS[name]} ({row.observed:+.3g} nats, noise floor {row.noise_floor:+.3g})"
    return f"{signs.SIGNS[name]} ({percent(row.observed)}, noise floor {percent(row.noise_floor)})"


def _new_splits(found: ur.Taxonomy) -> str:
    frame = found.exchangeability()
    row, least = frame.loc["either"], frame.attrs["smallest_p"]
    smallest = ", the smallest that there can be" if np.isclose(row.p, least) else ""
    says = (
        "training images are not like fresh ones to it."
        if row.p <= ALPHA
        else "by its roles, training images cannot be told from fresh ones."
    )
    return (
        f"**New splits** (R = {frame.attrs['resplits']}): {percent(row.observed)} of the units are "
        f"active on one split only, {percent(row.resplit)} in new splits; p = {row.p:.3f}{smallest}"
        f": {says}"
    )


def _measure(found: ur.Taxonomy) -> str:
    share, controls = found.sensitivity()["overfitted"], found.controls()
    used = f"tolerance {found.tolerance:g}"
    scaled, by_accuracy = controls.loc["scaled logits"], controls.loc["accuracy"]
    return (
        f"**How the minimum is read.** Overfitted units: {percent(share[used])} at {used}, "
        f"{percent(share[LOOSE])} at {LOOSE} nats, {percent(by_accuracy.overfitted)} by accuracy, "
        f"{percent(scaled.overfitted)} with logits divided by "
        f"{float(found.data.temperature):.3g}. The role stays the same for "
        f"{percent(scaled.agreement)} of the units with scaled logits, for "
        f"{percent(by_accuracy.agreement)} by accuracy."
    )


def _order(found: ur.Taxonomy) -> str:
    drawn, frame = found.controls().loc["random order"], found.agreement()
    n0_difference = judged(found).loc["n0_train_minus_test"]
    other = drawn.overfitted - drawn.generalizing
    counts, swaps = frame.over_by_turning_points.mean(), frame.over_by_rank_swaps.mean()
    text = (
        f"**Order.** Of the overfitted proportion of {percent(counts + swaps)}, {percent(counts)} "
        "come "
        f"from more units on train than on test, {percent(swaps)} from other units. n0/N on train "
        f"beyond test is {percent(n0_difference.value)}, in random orders {percent(other)}"
    )
    if n0_difference.finding.startswith("above") and other >= n0_difference.value:
        return f"{text}: it does not take an order by activity to find it."
    return f"{text}."


def _losses(found: ur.Taxonomy) -> str:
    lowest, whole, ablated = test_losses(found)
    text = (
        f"**Loss** of a class on test, mean: {lowest:.4f} nats at n0, {whole:.4f} with all units "
        f"retrieved, {ablated:.4f} with none"
    )
    return f"{text}: the whole layer is worse than none." if whole > ablated else f"{text}."


def test_losses(found: ur.Taxonomy) -> tuple[float, float, float]:
    """Of a class's test images under its active set, the whole layer, the fully ablated layer."""
    loss = found.data.loss.sel(split="test")
    lowest = loss.sel(retrieved=found.data.turning_point.sel(split="test"))
    return float(lowest.mean()), float(loss[:, -1].mean()), float(loss[:, 0].mean())


def _core(found: ur.Taxonomy) -> str:
    frame = found.agreement()
    chance = list(map(str, by_chance(frame) or ()))
    tail = f" ({', '.join(chance)})" if chance else ""
    return (
        f"**Core.** {frame.lift.mean():.2f} times that of random sets of these sizes, "
        f"{percent(frame.jaccard.mean())} of all active units; no larger than by chance in "
        f"{len(chance)} of {len(frame)} classes{tail}."
    )


def _sets(found: ur.Taxonomy) -> str:
    row = found.active_sets().loc["test"].mean()
    change = (
        f"**What an active set does**, on test, mean over the classes, from the whole layer to the "
        f"set: recall of its class {percent(row.intact_recall)} to {percent(row.recall)}, balanced "
        f"accuracy {percent(row.intact_balanced_accuracy)} to {percent(row.balanced_accuracy)}, "
        f"loss of the images of all classes {row.intact_loss:.3f} to {row.loss:.3f} nats"
    )
    better, worse = row.recall > row.intact_recall, row.loss > row.intact_loss
    says = {
        (
            True,
            True,
        ): "better for the class and worse for all of them, as a push towards the class is",
        (True, False): "better for the class and no worse for all of them",
        (False, True): "no better for the class and worse for all of them",
        (False, False): "no better for the class and no worse for all of them",
    }
    return f"{change}: {says[bool(better), bool(worse)]}."


def _coverage(found: ur.Taxonomy) -> str:
    held = found.data.coverage.to_series()
    good = least_coverage(found.level)
    narrow = held[held < good]
    low = [f"{str(name).replace('_', ' ')} {value:.2f}" for name, value in narrow.items()]
    outside = [
        str(role)
        for role, row in found.intervals().iterrows()
        if not row.low - 1e-9 <= row.value <= row.high + 1e-9
    ]
    return (
        f"**Intervals** of level {found.level:g}: measured coverage by class below "
        f"{good:g} for {', '.join(low) or 'nothing'}; proportions outside their own interval: "
        f"{', '.join(outside) or 'none'}."
    )


def _equal(case: Case) -> str:
    every, equal = (found.summary()["mean"] for found in case.results.values())
    loose = [found.sensitivity()["overfitted"] for found in case.results.values()]
    first, second = (judged(found).finding for found in case.results.values())
    changed = [signs.SIGNS[str(name)] for name in first.index if first[name] != second[name]]
    pairs = {role: (every[role], equal[role]) for role in ROLES}
    for rule in (LOOSE, "accuracy"):
        pairs[f"overfitted, {rule}"] = loose[0][rule], loose[1][rule]
    shares = [f"{name}: {_arrow(pair)}" for name, pair in pairs.items()]
    count = case.equal.data.samples.values.min()
    return (
        f"**Equal numbers**, {count} images of each class in both splits, proportion in % with all "
        f"images → with equal numbers. {'; '.join(shares)}. Findings that change: "
        f"{', '.join(changed) or 'none'}."
    )


def within_both(cases: list[Case]) -> list[str]:
    """The signs that no network shows above what sampling gives."""
    frames = [judged(case.every).finding.str.startswith("within") for case in cases]
    return [signs.SIGNS[name] for name in frames[0].index if all(frame[name] for frame in frames)]


def beside_paper(cases: list[Case]) -> list[dict[str, object]]:
    """From the smaller gap to the larger: does each share move as between the paper's A and E?"""
    good, bad = sorted((case.every for case in cases), key=lambda found: found.gap)
    rows = [_share_row(role, good, bad) for role in ROLES]
    return rows + [_std_row(name, good, bad) for name in _STDS]


def _share_row(role: str, good: ur.Taxonomy, bad: ur.Taxonomy) -> dict[str, object]:
    paper = MEAN.loc[_GOOD, role], MEAN.loc[_BAD, role]
    own, size = (
        tuple(float(table[role]) for table in tables)
        for tables in (
            (good.summary()["mean"], bad.summary()["mean"]),
            (good.floors().observed, bad.floors().observed),
        )
    )
    rules = [found.sensitivity()[role] for found in (good, bad)]
    like = [_same(paper, pair) for pair in zip(*rules, strict=True)]
    return _row(f"{role} proportion", paper, own, size) | {"rules": f"{sum(like)} of {len(like)}"}


def _std_row(name: str, good: ur.Taxonomy, bad: ur.Taxonomy) -> dict[str, object]:
    paper = STD[name].loc[_GOOD, "core"], STD[name].loc[_BAD, "core"]
    own = tuple(float(found.summary()[name]["core"]) for found in (good, bad))
    size = tuple(float(found.floors()[f"observed_{name}"]["core"]) for found in (good, bad))
    return _row(_STDS[name], paper, own, size) | {"rules": "–"}


Pair = tuple[float, float]


def _same(one: Pair, other: Pair) -> bool:
    """Whether both go up, or both down."""
    return bool((one[1] - one[0]) * (other[1] - other[0]) > 0)


def _arrow(pair: Pair) -> str:
    """In %."""
    return " → ".join(f"{100 * value:.1f}" for value in pair)


def _row(name: str, paper: Pair, own: Pair, size: Pair) -> dict[str, object]:
    said = [_arrow(pair) for pair in (paper, own, size)]
    like = ["yes" if _same(paper, pair) else "no" for pair in (own, size)]
    return {
        "%": name,
        f"paper, {_GOOD} → {_BAD}": said[0],
        "here": said[1],
        "same direction": like[0],
        "at the floor's size": said[2],
        "same direction there": like[1],
    }
