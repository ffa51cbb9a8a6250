"""Evidence -> plain text: floors, the exchangeability test, intervals, controls."""

from __future__ import annotations

import pandas as pd

from unitroles import verdict
from unitroles.evidence import ALPHA, GOOD_COVERAGE
from unitroles.layout import aligned, count_of, names_of
from unitroles.roles import ROLE_NAMES
from unitroles.taxonomy import SPLITS, Taxonomy


def evidence(taxonomy: Taxonomy) -> str:
    """Floors, the exchangeability test and intervals, as far as they were measured."""
    data = taxonomy.data
    parts = [
        _floors(taxonomy) if "floor_share" in data else "",
        _exchangeability(taxonomy) if "resplit_share" in data else "",
        _intervals(taxonomy) if "share_replicate" in data else "",
        _controls(taxonomy) if "control_share" in data else "",
    ]
    return "\n\n".join(part for part in parts if part)


def _floors(taxonomy: Taxonomy) -> str:
    frame, size = 100 * taxonomy.floors(), taxonomy.data.floor_samples.values
    low, high = int(size.min()), int(size.max())
    each = f"{low}" if low == high else f"{low} to {high}"
    table = pd.DataFrame(
        {
            "role": frame.index,
            "train against test": [f"{value:.1f}" for value in frame.observed],
            **{
                f"inside {split}": [
                    f"{row[f'{split}_floor']:.1f} [{row[f'{split}_low']:.1f}, "
                    f"{row[f'{split}_high']:.1f}]"
                    for _, row in frame.iterrows()
                ]
                for split in SPLITS
            },
            "excess": [f"{value:+.1f}" for value in frame.excess],
        }
    )
    return (
        f"Noise floor: mean share of the units in % between sets of {each} samples per class;\n"
        f"mean [5, 95 %] of {taxonomy.data.sizes['draw']} draws; excess = over the larger floor\n"
        f"{aligned(table)}"
    )


def _exchangeability(taxonomy: Taxonomy) -> str:
    frame = taxonomy.exchangeability()
    percent = 100 * frame
    table = pd.DataFrame(
        {
            "active on one split only": frame.index,
            "observed": [f"{value:.1f}" for value in percent.observed],
            "new splits": [
                f"{row.resplit:.1f} [{row.resplit_low:.1f}, {row.resplit_high:.1f}]"
                for _, row in percent.iterrows()
            ],
            "p": [f"{value:.3f}" for value in frame.p],
        }
    )
    by_label = verdict.exchangeability_by_label(taxonomy.data)
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
    frame, asked = 100 * taxonomy.intervals(), taxonomy.provenance["options"]["evidence"]
    full = asked["confidence"] == "full"
    noise = "orders and curves anew" if full else "in the given order: rank noise not included"
    table = pd.DataFrame(
        {
            "role": frame.index,
            "share": [f"{value:.1f}" for value in frame.value],
            "interval": [f"[{row.low:.1f}, {row.high:.1f}]" for _, row in frame.iterrows()],
        }
    )
    return (
        f"{100 * taxonomy.level:g} % intervals of the mean shares in %: other samples, this network"
        f" (never another\ntraining); {taxonomy.data.sizes['replicate']} replicates, {noise}\n"
        f"{aligned(table)}" + _coverage(taxonomy)
    )


def _coverage(taxonomy: Taxonomy) -> str:
    """Where intervals hold the truth more rarely than they say."""
    if "coverage" not in taxonomy.data:
        return ""
    names = [str(name).replace("_", " ") for name in taxonomy.data.quantity.values]
    pairs = zip(names, taxonomy.data.coverage.values, strict=True)
    low = [f"{name} {held:.2f}" for name, held in pairs if held < GOOD_COVERAGE]
    if not low:
        return ""
    return (
        "\nmeasured coverage of the intervals per class (iterated bootstrap, given the order): "
        f"{', '.join(low)}: too narrow there"
    )


def _controls(taxonomy: Taxonomy) -> str:
    shares = 100 * taxonomy.data.control_share.mean("label").values
    frame = pd.DataFrame(shares, columns=pd.Index(ROLE_NAMES)).map("{:.1f}".format)
    frame.insert(0, "control", taxonomy.data.control.values)
    return f"Controls: mean share of the units in % under orders that say nothing\n{aligned(frame)}"
