"""The study of planted roles as tables and as a figure."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.evidence.rates import area, enough, roc, wilson
from benchmarks.table import machine, section, table

KINDS = ("overfitted", "generalizing")
_WANTED, _FALSE = 0.8, 0.05
_COLOURS = ("#56b4e9", "#0072b2", "#009e73", "#e69f00", "#d55e00")
_MARKERS = "os^Dv"
_ALL = "all"

Cell = Callable[[pd.DataFrame], str]


def document(rows: pd.DataFrame, settings: str) -> str:
    """The whole page."""
    null, planted = rows[rows["null"]], rows[~rows["null"]]
    parts = [
        "# Planted roles: are they found, and is the evidence right?",
        "Printed by `python -m benchmarks.evidence.planted --out docs/results`. " + settings,
        machine(1, ("unitroles", "torch", "numpy")),
        "Networks and data are made so that the role of every unit is known "
        "(`benchmarks/evidence/planting.py`). *Strength*: share of the samples in which a helping "
        "unit answers at the position of the class, beyond chance. *100/50*: samples of each class "
        "in train and test. *Null*: no unit helps on one split only, so both splits are draws from "
        "one distribution. Strengths and sizes were chosen after a trial with three networks a "
        "cell; the rules are the library's and were not touched.",
        f"{_finding(null, planted)}\n{_held(rows)}",
        "![ROC of what is above the floor, and power over strength](planted.png)",
        _without(null),
        _with(planted),
        _false(null),
        _power(planted),
        _areas(null, planted),
        _coverage(rows),
        _share_coverage(rows),
        _heads(null, planted),
    ]
    return "\n\n".join(parts) + "\n"


def _finding(null: pd.DataFrame, planted: pd.DataFrame) -> str:
    """What the tables below say, by rules that stand here."""
    lines = []
    for kind in KINDS:
        hits, count = int(null[f"{kind}_called"].sum()), len(null)
        low, high = wilson(hits, count)
        good = "holds" if hits / count <= _FALSE else "does not hold"
        lines.append(
            f"- **False calls of {kind} units**: {_rate(null[f'{kind}_called'])} in null networks "
            f"(95 % interval {low:.1%} to {high:.1%}); at most {_FALSE:.0%} {good}."
        )
        lines.append(
            f"- **By new splits**, {kind} units are called in "
            f"{_rate(null[f'{kind}_rejected'])} of the null networks; p ≤ 0.05 should be found in "
            "4.8 %."
        )
    for kind in KINDS:
        parts = [*planted.groupby("size", sort=False), (_ALL, planted)]
        found = "; ".join(f"{size}: {_enough(some, kind)}" for size, some in parts)
        lines.append(
            f"- **Strength from which on {kind} units are called** (above the floor, by new "
            f"splits) in at least {_WANTED:.0%} of the networks: {found}."
        )
    return "\n".join(lines)


def _enough(planted: pd.DataFrame, kind: str) -> str:
    """The strength that is enough for the floor, and for new splits."""
    power = planted.groupby("strength")[[f"{kind}_called", f"{kind}_rejected"]].mean()
    least = [enough(power.index.tolist(), power[rule].tolist(), _WANTED) for rule in power]
    return ", ".join("none" if strength is None else f"{strength:g}" for strength in least)


def _held(rows: pd.DataFrame) -> str:
    train, test, claimed = rows[["covered_train", "covered_test", "claimed"]].mean()
    losses = rows[["covered_loss_train", "covered_loss_test", "claimed_loss"]].mean().tolist()
    return (
        f"- **Intervals of the turning point** hold the planted n0 in {train:.1%} of the classes "
        f"on train and {test:.1%} on test; the analysis itself estimates {claimed:.1%}.\n"
        f"- **Intervals of E(n)** hold the loss of new samples at {losses[0]:.1%} of all n on "
        f"train and {losses[1]:.1%} on test; the analysis estimates {losses[2]:.1%}.\n"
        "- **Intervals of a proportion** hold the planted one in "
        + "; ".join(_shares_held(rows, kind) for kind in KINDS)
        + "."
    )


def _shares_held(rows: pd.DataFrame, kind: str) -> str:
    narrow = rows[rows["redone_test"].notna()]
    given = rows[f"covered_{kind}"].mean()
    same, redone = narrow[f"covered_{kind}"].mean(), narrow[f"redone_{kind}"].mean()
    null, other = (
        rows.loc[rows["null"] == some, f"covered_mean_{kind}"].mean() for some in (True, False)
    )
    return (
        f"{given:.1%} of the classes for {kind} units (of the narrowest networks with a linear "
        f"head {same:.1%}, with orders redone {redone:.1%}), and the interval of the mean over the "
        f"classes in {null:.1%} of the null networks and {other:.1%} of those with overfitting"
    )


def _without(null: pd.DataFrame) -> str:
    return section(
        "Null: what the plain analysis reports",
        _by_strength(null, _shares),
        "Overfitted / generalizing units in percent, by sampling alone; in truth there are none. "
        "With 100 and 50 samples the project expects about 2 and 3 to 5; how noisy the generator "
        "is was chosen with that in view, so that it appears here confirms nothing.",
    )


def _with(planted: pd.DataFrame) -> str:
    return section(
        "With overfitting: what is found",
        _by_strength(planted, lambda some: f"{100 * some['recovered'].mean():.1f}"),
        "Percent of all (class, unit) with the planted role.",
        _by_strength(planted, _shares),
        "Overfitted / generalizing units in percent, as in the null.",
    )


def _false(null: pd.DataFrame) -> str:
    return section(
        "False calls in null networks",
        _calls(null),
        "*Floor*: the mean over draws of the proportion between halves of train and test lies "
        "above the "
        "95 % quantile of the draws of both floors. *New splits*: p ≤ 0.05.",
    )


def _power(planted: pd.DataFrame) -> str:
    parts = [
        f"{kind.capitalize()} units, above the floor:\n\n"
        + _by_strength(planted, lambda some, kind=kind: _rate(some[f"{kind}_called"]))
        for kind in KINDS
    ]
    return section(
        "Power in networks with overfitting", *parts, "Both rules:", _calls(planted, "strength")
    )


def _areas(null: pd.DataFrame, planted: pd.DataFrame) -> str:
    rows = []
    for strength, some in planted.groupby("strength"):
        without = null[null["strength"] == strength]
        rows.append({"strength": f"{strength:g}"} | _area(without, some))
    rows.append({"strength": _ALL} | _area(null, planted))
    return section(
        "Above the floor, as a score",
        table(rows),
        "Area under the ROC curve: the chance that a network with overfitting is further "
        "above the floor than a null network.",
    )


def _area(null: pd.DataFrame, planted: pd.DataFrame) -> dict[str, object]:
    return {
        kind: f"{area(*roc(*(some[f'{kind}_excess'].to_numpy() for some in (null, planted)))):.3f}"
        for kind in KINDS
    }


def _coverage(rows: pd.DataFrame) -> str:
    def cell(*columns: str) -> Cell:
        return lambda some: " / ".join(f"{100 * some[column].mean():.0f}" for column in columns)

    narrow = rows[rows["redone_test"].notna()]
    given = cell("covered_train", "covered_test", "claimed")
    redone = cell("covered_train", "covered_test", "redone_train", "redone_test")
    return section(
        "Intervals of the turning point",
        _by_strength(rows, given),
        "How often, in percent, the interval from weighted samples holds the planted n0: on train "
        "/ on test / what the analysis estimates its own coverage to be. Null networks and "
        "networks with overfitting together. Units keep their places in the order "
        '(`bootstrap="fixed_ranking"`), so what wrong places do to n0 is no part of the interval.',
        "The narrowest networks with a linear head, with a fixed ranking on train / on test, and "
        'with orders redone (`bootstrap="full"`) on train / on test:',
        _by_strength(narrow, redone),
    )


def _share_coverage(rows: pd.DataFrame) -> str:
    narrow = rows[rows["redone_test"].notna()]
    parts = []
    for null, some in (("null networks", True), ("networks with overfitting", False)):
        columns = {
            f"{kind}, {text}": (f"{name}_{kind}", chosen)
            for kind in KINDS
            for text, name, chosen in (
                ("class, all", "covered", rows),
                ("mean, all", "covered_mean", rows),
                ("class", "covered", narrow),
                ("redone", "redone", narrow),
                ("mean", "covered_mean", narrow),
                ("redone mean", "redone_mean", narrow),
            )
        }
        each = {
            head: 100 * chosen.loc[chosen["null"] == some].groupby("strength")[column].mean()
            for head, (column, chosen) in columns.items()
        }
        lines = pd.DataFrame(each).map("{:.0f}".format).rename_axis("strength").reset_index()
        parts += [f"{null.capitalize()}:", table(lines.astype(str).to_dict("records"))]
    return section(
        "Intervals of the proportions",
        "How often, in percent, the interval holds the planted proportion: that of a class, and "
        "that of "
        "the mean over the classes; *all* networks, and the narrowest ones with a linear head, "
        "there also with orders *redone*. "
        "What sampling adds to overfitted and generalizing units it adds to every replicate too, "
        "so these intervals speak of what is measured, not of what is there: read what is above "
        "the floor.",
        *parts,
    )


def _heads(null: pd.DataFrame, planted: pd.DataFrame) -> str:
    rows = []
    for (head, units), some in planted.groupby(["head", "units"]):
        without = null[(null["head"] == head) & (null["units"] == units)]
        rows.append(
            {
                "head": head,
                "units": units,
                "roles found, %": f"{100 * some['recovered'].mean():.1f}",
                "null, over / gen, %": _shares(without),
                "false calls": _rate(without["overfitted_called"]),
                "power": _rate(some["overfitted_called"]),
            }
        )
    return section("Heads and widths", table(rows), "Calls of overfitted units above the floor.")


def _by_strength(rows: pd.DataFrame, cell: Cell) -> str:
    """Strengths down, sizes across; the last row and column are means over all."""
    sizes = rows["size"].unique().tolist()

    def line(name: str, some: pd.DataFrame) -> dict[str, object]:
        cells = {size: cell(some[some["size"] == size]) for size in sizes}
        return {"strength": name, **cells, _ALL: cell(some)}

    each = [line(f"{strength:g}", some) for strength, some in rows.groupby("strength")]
    return table([*each, line(_ALL, rows)])


def _calls(rows: pd.DataFrame, by: str = "size") -> str:
    rules = {"noise floor": "called", "new splits": "rejected"}

    def line(name: str, some: pd.DataFrame) -> dict[str, object]:
        cells = {
            f"{kind}, {rule}": _rate(some[f"{kind}_{column}"])
            for rule, column in rules.items()
            for kind in KINDS
        }
        return {by: name, **cells}

    each = [line(str(name), some) for name, some in rows.groupby(by, sort=False)]
    return table([*each, line(_ALL, rows)])


def _shares(some: pd.DataFrame) -> str:
    return " / ".join(f"{100 * some[kind].mean():.1f}" for kind in KINDS)


def _rate(flags: pd.Series) -> str:
    return f"{100 * flags.mean():.1f} % ({int(flags.sum())} of {len(flags)})"


def figure(rows: pd.DataFrame) -> Figure:
    """The ROC of the excess of overfitted units, and power over strength beside false calls."""
    drawn = Figure(figsize=(9.6, 4.2), layout="constrained")
    left, right = drawn.subplots(1, 2)
    _draw_roc(left, rows)
    _draw_power(right, rows)
    return drawn


def _draw_roc(axes: Axes, rows: pd.DataFrame) -> None:
    for (strength, some), colour in zip(rows.groupby("strength"), _COLOURS, strict=False):
        null, planted = (some.loc[some["null"] == kind] for kind in (True, False))
        false, true = roc(*(part["overfitted_excess"].to_numpy() for part in (null, planted)))
        name = f"strength {strength:g}: {area(false, true):.2f}"
        axes.plot(false, true, color=colour, linewidth=1.8, label=name)
    axes.plot([0, 1], [0, 1], color="#9aa1a9", linewidth=0.8)
    axes.set(xlabel="null networks called", ylabel="networks with overfitting called")
    axes.set_title("Excess of overfitted units over the floor", fontsize=10)
    axes.legend(title="area under the curve", frameon=False, fontsize=8, title_fontsize=8)


def _draw_power(axes: Axes, rows: pd.DataFrame) -> None:
    groups = rows.groupby("size", sort=False)
    for (size, some), colour, marker in zip(groups, _COLOURS[1:], _MARKERS, strict=False):
        rate = some.groupby(["null", "strength"])["overfitted_called"].mean().unstack("null")
        look = {"color": colour, "marker": marker, "linewidth": 1.8, "markersize": 5}
        axes.plot(rate.index, rate[False], label=f"{size}, with overfitting", **look)
        axes.plot(rate.index, rate[True], linestyle=":", label=f"{size}, null", **look)
    axes.axhline(_WANTED, color="#9aa1a9", linewidth=0.8)
    axes.axhline(_FALSE, color="#9aa1a9", linewidth=0.8)
    axes.set(xlabel="strength", ylabel="networks called", ylim=(-0.03, 1.03))
    axes.set_xticks(sorted(rows["strength"].unique()))
    axes.set_yticks([0, _FALSE, 0.2, 0.4, 0.6, _WANTED, 1.0])
    axes.set_title("Overfitted units above the floor, by samples of a class", fontsize=10)
    axes.legend(frameon=False, fontsize=8)
