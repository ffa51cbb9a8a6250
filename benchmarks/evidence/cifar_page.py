"""The evidence of two CIFAR-10 networks as a page."""

from __future__ import annotations

import numpy as np
import pandas as pd

import unitroles as ur
from benchmarks.evidence.cifar_reading import (
    LOOSE,
    ROLES,
    Case,
    beside_paper,
    floor_size,
    judged,
    percent,
    reading,
    test_losses,
    within_both,
)
from benchmarks.table import section, table
from unitroles.report.text import report
from unitroles.results.signs import SIGNS

_STAGES = ("prepare", "body", "sweep", "evidence")
Row = dict[str, object]


def document(cases: list[Case], settings: str, machine: str, costs: str) -> str:
    """The whole page.

    Parameters
    ----------
    settings : what was fixed beforehand.
    machine : what it ran on.
    costs : seconds and memory of what is no part of a result.
    """
    first = cases[0].every
    parts = [
        "# CIFAR-10: how sure are the roles of two networks?",
        "Printed by `python -m benchmarks.evidence.cifar --data FOLDER --out docs/results`. "
        + settings,
        machine,
        "\n".join(f"- **{case.name}**: {case.about}" for case in cases),
        "*All*: the images as they are; *equal numbers*: `Sample(equalize=True)`. Unequal numbers "
        "make roles by sampling alone that differ by split, so every proportion stands beside its "
        "noise floor:"
        f" the same between two halves of one split, {floor_size(first)} images of a class each. "
        "Means over the classes; a role in percent is the share of the units. All of it speaks of "
        "other images of the same kind for these two networks, never of another training.",
        section(
            "What the numbers say",
            "Every sentence is made from the numbers by a rule in "
            "`benchmarks/evidence/cifar_reading.py`; the rules were worded with the numbers known.",
            reading(cases),
        ),
        _paper(cases),
        section("The networks side by side", table(_side_by_side(cases))),
        _tables(cases),
        *(_whole(case) for case in cases),
        section("Time and memory", table([row for case in cases for row in _costs(case)]), costs),
    ]
    return "\n\n".join(parts) + "\n"


def _paper(cases: list[Case]) -> str:
    good, bad = sorted(cases, key=lambda case: case.every.gap)
    return section(
        f"From {good.name} to {bad.name}, beside the paper",
        table(beside_paper(cases)),
        f"All images; gap {good.every.gap:+.3f} to {bad.every.gap:+.3f}. *Rules*: under how many "
        "of the rules for the turning point (the sensitivity tables below) the proportion moves as "
        "in "
        f"the paper, whose A and E are two VGG16 on ImageNet. {_within(cases)} The two networks "
        "differ in more than the gap: architecture, width of the layer, how they were trained and "
        "on how many images. Two networks are no relation.",
    )


def _within(cases: list[Case]) -> str:
    names = within_both(cases)
    if not names:
        return "No sign lies within what sampling gives in both networks."
    return f"Within what sampling gives in both networks, so no finding: {', '.join(names)}."


def _side_by_side(cases: list[Case]) -> list[Row]:
    """One column for each network and choice of images."""
    columns = {
        f"{case.name}, {name}": _facts(found)
        for case in cases
        for name, found in case.results.items()
    }
    names = next(iter(columns.values()))
    return [{"": row} | {name: facts[row] for name, facts in columns.items()} for row in names]


def _facts(found: ur.Taxonomy) -> dict[str, str]:
    data, percents = found.data, 100 * found.summary()
    table2 = [f"{percents['mean'][r]:.1f} ± {percents['std_over_labels'][r]:.1f}" for r in ROLES]
    points = data.turning_point.mean("label").values / data.sizes["unit"]
    train, test = data.samples.values.min(axis=1)
    rows = {
        "layer, units, plan": f"{found.layer}, {data.sizes['unit']}, {data.attrs['plan']}",
        "images of a class, train / test": f"{train} / {test}",
        "accuracy, train / test": " / ".join(
            f"{data.attrs[f'{split}_accuracy']:.4f}" for split in ("train", "test")
        ),
        "gap": f"{found.gap:+.4f}",
        "n0/N in %, train / test": " / ".join(f"{100 * point:.1f}" for point in points),
        "test loss of a class at n0 / N / 0, nats": " / ".join(
            f"{loss:.4f}" for loss in test_losses(found)
        ),
        **{f"{role}, %": shown for role, shown in zip(ROLES, table2, strict=True)},
        f"overfitted at {LOOSE} nats": percent(found.sensitivity().loc[LOOSE, "overfitted"]),
        "overfitted by accuracy": percent(found.sensitivity().loc["accuracy", "overfitted"]),
    }
    return rows | _beside_chance(found) | _checks(found)


def _beside_chance(found: ur.Taxonomy) -> dict[str, str]:
    excess, p = 100 * found.floors().above_floor, found.exchangeability()
    cost = found.signs().loc["regret"]
    either, frame = p.loc["either"], judged(found)
    above = [SIGNS[str(name)] for name in frame.index[frame.finding.str.startswith("above")]]
    return {
        "above the floor, overfitted / generalizing, points": (
            f"{excess.overfitted:+.1f} / {excess.generalizing:+.1f}"
        ),
        "regret on test, nats": f"{cost.value:+.3g} [{cost.low:+.3g}, {cost.high:+.3g}]",
        "regret at the floor's size / noise floor, nats": (
            f"{cost.observed:+.3g} / {cost.noise_floor:+.3g}"
        ),
        "above what sampling gives": ", ".join(above) or "none",
        "active on one split only, observed / new splits": (
            f"{percent(either.observed)} / {percent(either.resplit)}"
        ),
        f"p (smallest {p.attrs['smallest_p']:.3f}), overfitted / generalizing / either": " / ".join(
            f"{value:.3f}" for value in p.p
        ),
    }


def _checks(found: ur.Taxonomy) -> dict[str, str]:
    """Agreement and controls."""
    frame, controls = found.agreement(), found.controls()
    row = found.active_sets().loc["test"].mean()
    same = {name: f"{100 * value:.1f}" for name, value in controls.agreement.items()}
    return {
        "lift / Jaccard of the core": f"{frame.lift.mean():.2f} / {frame.jaccard.mean():.2f}",
        f"same role in %: {' / '.join(same)}": " / ".join(same.values()),
        "test, active set / whole layer: recall": _against(row, "recall"),
        "balanced accuracy, likewise": _against(row, "balanced_accuracy"),
        "loss of all images, likewise, nats": f"{row.loss:.4f} / {row.intact_loss:.4f}",
    }


def _against(row: pd.Series, name: str) -> str:
    return f"{percent(row[name])} / {percent(row[f'intact_{name}'])}"


def _tables(cases: list[Case]) -> str:
    """The paper's tables 2 and 3 beside their floors."""
    found, parts = cases[0].every, []
    for case in cases:
        rows = [
            {"images": name, "role": role} | _beside(result, role)
            for name, result in case.results.items()
            for role in ROLES
        ]
        parts += [f"{case.name}, %:", table(rows)]
    return section(
        "Tables 2 and 3 beside their noise floors",
        *parts,
        "*Proportion*: mean over the classes, population std over classes (table 2) and over "
        "units "
        f"(table 3), each with its {100 * found.level:g} % interval (replicates with a fixed "
        "ranking: the uncertainty of the ranking is not included). *At m*: between "
        f"{floor_size(found)} images of a "
        "class from train and as many from test; *inside train*, *inside test*: the noise floors, "
        "between as many and as many of one split [5, 95 % of the draws]; *above the floor*: at m "
        "beyond "
        "the larger noise floor; stds at m beside the larger noise floor of them. Sampling makes "
        "overfitted "
        "and generalizing units. Of core and confusing ones the floors differ where the turning "
        "points of the splits do; what is above the larger one says little there.",
    )


def _beside(found: ur.Taxonomy, role: str) -> Row:
    own, floor = 100 * found.intervals().loc[role], 100 * found.floors().loc[role]
    inside = {
        f"inside {split}": f"{floor[f'{split}_noise_floor']:.1f} [{floor[f'{split}_low']:.1f}, "
        f"{floor[f'{split}_high']:.1f}]"
        for split in ("train", "test")
    }
    stds = {
        f"std over {shown} at m / floor": f"{floor[f'observed_std_over_{name}']:.1f} / "
        f"{floor[f'noise_floor_std_over_{name}']:.1f}"
        for name, shown in (("labels", "classes"), ("units", "units"))
    }
    return {
        "proportion": f"{own.value:.1f} [{own.low:.1f}, {own.high:.1f}]",
        **{
            f"std over {shown}": f"{own[name]:.1f} [{own[f'{name}_low']:.1f}, "
            f"{own[f'{name}_high']:.1f}]"
            for name, shown in (("std_over_labels", "classes"), ("std_over_units", "units"))
        },
        "at m": f"{floor.observed:.1f}",
        **inside,
        "above the floor": f"{floor.above_floor:+.1f}",
        **stds,
    }


def _whole(case: Case) -> str:
    return section(f"{case.name}: everything, all images", f"```text\n{report(case.every)}\n```")


def _costs(case: Case) -> list[Row]:
    rows = []
    for (name, found), peak in zip(case.results.items(), case.peaks, strict=True):
        provenance = found.provenance
        stages = {f"{stage}, s": f"{provenance['stages'].get(stage, 0):.1f}" for stage in _STAGES}
        whole = {"all, s": f"{provenance['seconds']:.1f}", "peak so far, MiB": f"{peak:.0f}"}
        images = int(np.sum(found.data.samples.values))
        rows.append({"network": f"{case.name}, {name}", "images": f"{images:,}"} | stages | whole)
    return rows
