"""Evidence -> plain text: floors, the exchangeability test, intervals, controls."""

from __future__ import annotations

import numpy as np
import pandas as pd

from unitroles.report.layout import aligned
from unitroles.results.dataset import SPLITS
from unitroles.results.evidence import (
    by_chance,
    exchangeability_by_label,
    half_sizes,
    least_coverage,
)
from unitroles.results.signs import LOOSE
from unitroles.results.taxonomy import Taxonomy
from unitroles.roles import ROLE_NAMES
from unitroles.stats.evidence import ALPHA, TEMPERATURES, TIES
from unitroles.wording import count_of, names_of, printable

_STDS = {
    "observed_std_over_labels": "over classes",
    "noise_floor_std_over_labels": "noise floor over classes",
    "observed_std_over_units": "over units",
    "noise_floor_std_over_units": "noise floor over units",
}
"""Columns of `Taxonomy.floors`, and how they are shown."""
_INTERVALS = {
    "value": ("proportion", "low", "high"),
    "std_over_labels": ("std over classes", "std_over_labels_low", "std_over_labels_high"),
    "std_over_units": ("std over units", "std_over_units_low", "std_over_units_high"),
}
"""The columns of `Taxonomy.intervals`: how they are shown, and the ends of their intervals."""


def evidence(taxonomy: Taxonomy) -> str:
    """Floors, the exchangeability test and intervals, as far as they were measured."""
    parts = {
        "floors": _floors,
        "signs": _signs,
        "train_only_signs": lambda one: (
            f"From the training samples alone\n{_sentences(one.train_only_signs())}"
        ),
        "exchangeability": _exchangeability,
        "intervals": _intervals,
        "controls": _controls,
    }
    return "\n\n".join(part(taxonomy) for name, part in parts.items() if name in taxonomy.tables)


def _floors(taxonomy: Taxonomy) -> str:
    frame, size = 100 * taxonomy.floors(), taxonomy.data.noise_floor_samples.to_series()
    without, each = size.index[size == 0].tolist(), half_sizes(taxonomy.data)
    left_out = f"\nwithout {count_of(without)} of one sample in a split: {names_of(without)}"
    table = pd.DataFrame(
        {
            "role": frame.index,
            "train against test": [f"{value:.1f}" for value in frame.observed],
            **{
                f"inside {split}": _spans(
                    frame, f"{split}_noise_floor", f"{split}_low", f"{split}_high"
                )
                for split in SPLITS
            },
            "above the floor": [f"{value:+.1f}" for value in frame.above_floor],
        }
    )
    return (
        f"Noise floor: mean share of the units in % between sets of {each} samples per class;\n"
        f"mean [5, 95 %] of {taxonomy.data.sizes['draw']} draws; above the floor = over the larger "
        "one"
        f"{left_out * bool(without)}\n"
        f"{aligned(table)}\n{_stds(frame)}"
    )


def _stds(frame: pd.DataFrame) -> str:
    """Population std over classes and over units at the size of the noise floor; `frame` in %."""
    shown = frame[list(_STDS)].rename(columns=_STDS).map("{:.1f}".format)
    return aligned(shown.rename_axis("std at that size").reset_index())


def _signs(taxonomy: Taxonomy) -> str:
    frame = taxonomy.signs()
    marks = frame.attrs
    first = f"[{100 * marks['level']:g} % interval, {marks['noise']}] of a value, " if marks else ""
    return (
        f"Signs of good and bad generalization; {first}[5, 95 % of the draws] of a noise floor\n"
        f"{_sentences(frame)}"
    )


def _sentences(frame: pd.DataFrame) -> str:
    return "\n".join(f"  {printable(text)}" for text in frame.sentence)


def _exchangeability(taxonomy: Taxonomy) -> str:
    frame = taxonomy.exchangeability()
    percent = 100 * frame
    table = pd.DataFrame(
        {
            "active on one split only": frame.index,
            "observed": [f"{value:.1f}" for value in percent.observed],
            "new splits": _spans(percent, "resplit", "resplit_low", "resplit_high"),
            "p": [f"{value:.3f}" for value in frame.p],
        }
    )
    by_label = exchangeability_by_label(taxonomy.data)
    few = f"\n{frame.attrs['resplits']} new splits are too few for a p of each class"
    return (
        f"Exchangeability: {frame.attrs['asks']}\nR = {frame.attrs['resplits']} new splits of all "
        f"samples, smallest possible p {frame.attrs['smallest_p']:.3f}\n{aligned(table)}"
        + (few if by_label is None else "\n" + _by_label(by_label))
    )


def _by_label(frame: pd.DataFrame) -> str:
    rejected = frame.index[frame.adjusted_p <= ALPHA].tolist()
    return (
        f"adjusted p (Benjamini-Hochberg) at most {ALPHA:g} in {count_of(rejected)}"
        + f" ({names_of(rejected)})" * bool(rejected)
    )


def _intervals(taxonomy: Taxonomy) -> str:
    frame = taxonomy.intervals()
    columns = {"role": list(ROLE_NAMES)}
    for name, (head, low, high) in _INTERVALS.items():
        columns[head] = _spans(100 * frame, name, low, high)
    return (
        f"{100 * taxonomy.level:g} % intervals of the mean proportions and their stds in %: other "
        "samples, this network\n(never another training); "
        f"{taxonomy.data.sizes['replicate']} replicates, {frame.attrs['noise']}\n"
        "(what sampling adds to overfitted and generalizing units it adds to every replicate: an "
        "interval\nis no noise floor)\n"
        f"{aligned(pd.DataFrame(columns))}" + _coverage(taxonomy) + _outside(frame)
    )


def _spans(frame: pd.DataFrame, value: str, low: str, high: str) -> list[str]:
    """Three columns in one: "2.5 [2.1, 3.0]"."""
    rows = zip(frame[value], frame[low], frame[high], strict=True)
    return [f"{middle:.1f} [{first:.1f}, {last:.1f}]" for middle, first, last in rows]


def _outside(frame: pd.DataFrame) -> str:
    """Those values from which the replicates are shifted away."""
    named = []
    for name, (head, low, high) in _INTERVALS.items():
        outside = (frame[name] < frame[low] - TIES) | (frame[name] > frame[high] + TIES)
        roles = frame.index[outside]
        named += [f"{head} {', '.join(roles)}"] * bool(len(roles))
    if not named:
        return ""
    return f"\noutside its own interval, which is then not to be trusted: {'; '.join(named)}"


def _coverage(taxonomy: Taxonomy) -> str:
    """The intervals that hold the truth clearly more rarely than they say."""
    if "coverage" not in taxonomy.data:
        return "\ncoverage is not measured where orders are redone"
    good, held = least_coverage(taxonomy.level), taxonomy.data.coverage.to_series()
    low = [f"{name.replace('_', ' ')} {share:.2f}" for name, share in held[held < good].items()]
    if not low:
        return ""
    return (
        "\nmeasured coverage of the intervals of single classes (iterated bootstrap, fixed "
        f"ranking): {', '.join(low)}: too narrow there"
    )


def _controls(taxonomy: Taxonomy) -> str:
    frame = (100 * taxonomy.controls()).map("{:.1f}".format).reset_index()
    frame = frame.rename(columns={"agreement": "same role"})
    scale = taxonomy.data.get("temperature")
    divided = "" if scale is None else f"\n(scaled logits: divided by {_temperature(float(scale))})"
    return (
        "Controls: mean share of the units in %, and of those whose role stays the same"
        f"{divided}\n{aligned(frame)}\n\n{_sets(taxonomy)}"
    )


def _temperature(value: float) -> str:
    at_end = value in (TEMPERATURES[0], TEMPERATURES[-1])
    return f"{value:.3g}" + ", the end of what is tried" * at_end


def _sets(taxonomy: Taxonomy) -> str:
    mean = taxonomy.active_sets().groupby(level="split", sort=False).mean()
    rows = []
    for split, row in mean.iterrows():
        for name, side in (("its active set", ""), ("the whole layer", "intact_")):
            shares = [100 * row[f"{side}recall"], 100 * row[f"{side}balanced_accuracy"]]
            shown = [f"{share:.1f}" if np.isfinite(share) else "-" for share in shares]
            rows.append([f"{split}, {name}", *shown, f"{row[f'{side}loss']:.4f}"])
    heads = ["units on", "recall", "balanced accuracy", f"loss of all ({taxonomy.loss_units})"]
    return (
        "Active sets on the samples of all classes, % and mean over the classes: a set lowers the\n"
        "loss of its own class, which any push towards that class does too\n"
        + aligned(pd.DataFrame(rows, columns=pd.Index(heads)))
    )


def agreement(taxonomy: Taxonomy) -> str:
    """Is a core a core: how far the active sets of the two splits agree, and why they do not."""
    frame = taxonomy.agreement()
    shown = {
        "size of the core ÷ that expected of random sets (lift)": (frame.lift, 1, 2),
        "core over all active units (Jaccard)": (frame.jaccard, 1, 2),
        "overfitted by the turning points (train has more active units), % of units": (
            frame.over_by_turning_points,
            100,
            1,
        ),
        "overfitted by swapped ranks (early on train, late on test), % of units": (
            frame.over_by_rank_swaps,
            100,
            1,
        ),
        "rank correlation of the two orders (Spearman)": (frame.spearman, 1, 2),
        "rank-biased overlap of the two orders": (frame.rank_biased, 1, 2),
    }
    table = pd.DataFrame(
        [
            [name, *(f"{scale * value:.{digits}f}" for value in (v.mean(), v.min(), v.max()))]
            for name, (v, scale, digits) in shown.items()
        ],
        columns=pd.Index(["Agreement of train and test", "mean", "least", "most"]),
    )
    return f"{aligned(table)}\n{_chance(frame)}"


def _chance(frame: pd.DataFrame) -> str:
    """The classes whose core random sets of these sizes would have too."""
    chance = by_chance(frame)
    if chance is None:
        return "one order for both splits: the active sets are nested whatever the network does"
    if not chance:
        return f"the core is larger than by chance (adjusted p <= {ALPHA:g}) in every class"
    return (
        f"a core no larger than by chance (adjusted p > {ALPHA:g}) in {count_of(chance)}: "
        f"{names_of(chance)}"
    )


def minima(taxonomy: Taxonomy) -> str:
    """The number of curves with a clear minimum, and how wide it is."""
    frame = taxonomy.minima(LOOSE)
    kinds = frame.status.str.split(" from | at ").str[0]
    counts = ", ".join(f"{kind} {count}" for kind, count in kinds.value_counts().items())
    widths = frame.width.groupby(level="split", sort=False).median()
    wide = ", ".join(f"{split} {width:g}" for split, width in widths.items())
    return (
        f"Minima of the {len(frame)} curves: {counts}\nnumbers of active units within {LOOSE:g} "
        f"{taxonomy.loss_units} of the minimum, median over classes: {wide}"
    )
