"""The tables of a family as text, the paper's numbers beside ours."""

from __future__ import annotations

import pandas as pd

from unitroles.paper import evidence_text, numbers
from unitroles.paper.evidence_text import Write
from unitroles.paper.folder import Job
from unitroles.paper.tables import (
    ALL,
    CLEAR,
    CORRECT,
    DEFAULT_RULE,
    ONE_ERROR,
    OWN,
    UNFLAGGED,
    mean_over_seeds,
    patterns,
    seed_mean,
    span,
)

_BY_CLASS = "Table 2: role proportions, %, mean ± std over classes"
_SHOWN_RULES = (
    "tolerance 0",
    DEFAULT_RULE,
    "tolerance 0.001",
    "tolerance 0.01",
    "accuracy",
    ONE_ERROR,
)


def report(tables: dict[str, pd.DataFrame], job: Job, write: Write) -> None:
    """Write all tables, and which of the paper's patterns appear and which do not."""
    data = job.settings.data
    quick = "QUICK smoke run, its numbers mean nothing. " if job.kind == "quick" else ""
    write(
        f"{quick}{job.data_set}, {job.ladder} ladder: {data.train_samples} training and "
        f"{data.test_samples} test images, pixel noise {data.pixel_noise:g}, seeds "
        f"{', '.join(map(str, job.settings.seeds))}. Numbers are means over the seeds; ± is the "
        "population std (ddof 0); in brackets the paper's VGG16 on ImageNet."
    )
    _table1(tables["table1"], write)
    _correct_labels(tables["table2"], write)
    _roles(tables["table2"], _BY_CLASS, write)
    _roles(tables["table3"], "Table 3: role shares, %, mean ± std over units", write)
    _sensitivity(tables["sensitivity"], write)
    _regret(tables["regret"], write)
    _relations(tables["relations"], tables["table2"], write)
    if "floors" in tables:
        evidence_text.report(tables, write)


def _table1(table: pd.DataFrame, write: Write) -> None:
    shown = table.groupby("model", sort=False)[["train_accuracy", "test_accuracy", "gap"]].mean()
    gap_std = table.groupby("model", sort=False)["gap"].std(ddof=0)
    theirs = numbers.TABLE_1.reindex(shown.index)
    rows = {
        model: {
            name: f"{value:.3f}{_bracket(theirs.loc[model, name], 3)}"
            for name, value in shown.loc[model].items()
        }
        | {"gap, std over seeds": f"{gap_std[model]:.3f}"}
        for model in shown.index
    }
    write(f"\nTable 1: accuracies and generalization gap; {_data(table)}")
    write(_frame(rows))


def _correct_labels(table: pd.DataFrame, write: Write) -> None:
    rows = table[table["samples"] == CORRECT]
    if rows.empty:
        return
    absent = [name for name in table["model"].unique() if name not in set(rows["model"])]
    write(
        "\nThe tables of the correct labels are over the correctly labelled training samples "
        "alone; the gap they are held against is still that of all training samples by their "
        "given labels. At label noise 0 all labels are correct: its rows are the same in both."
    )
    if absent:
        write(
            f"No row for label noise {', '.join(absent)}: there not every class has a correctly "
            "labelled training sample (at 1.0 none has)."
        )


def _roles(table: pd.DataFrame, title: str, write: Write) -> None:
    roles = list(numbers.ROLES)
    std = {role: f"{role}_std" for role in roles}
    means = mean_over_seeds(table, [*roles, *std.values(), "flagged_classes"])
    theirs = table.drop_duplicates("model").set_index("model")
    for (order, samples), group in means.groupby(level=["order", "samples"], sort=False):
        rows = {}
        for model, row in group.droplevel(["order", "samples"]).iterrows():
            rows[model] = {
                role: f"{100 * row[role]:.1f} ± {100 * row[std[role]]:.0f}"
                + _paper_cell(theirs.loc[model], role)
                for role in roles
            }
            if len(table["seed"].unique()) > 1:
                rows[model]["std over seeds"] = " ".join(
                    f"{100 * row[f'{role}_seed_std']:.1f}" for role in roles
                )
            rows[model]["flagged"] = f"{row['flagged_classes']:.3g}"
        first = table[(table["order"] == order) & (table["samples"] == samples)]
        write(f"\n{title}; order {order}, {samples}; {_data(first)}")
        write(_frame(rows))
        if title == _BY_CLASS:
            _without_flagged(first, write)


def _without_flagged(table: pd.DataFrame, write: Write) -> None:
    flagged = table.groupby("model", sort=False)["flagged_classes"].mean()
    columns = [f"{role}_unflagged" for role in numbers.ROLES]
    means = 100 * seed_mean(table.groupby("model", sort=False)[columns])
    parts = []
    for model in flagged.index[flagged > 0]:
        values = means.loc[model]
        left = "undefined" if values.isna().any() else ", ".join(f"{x:.1f}" for x in values)
        parts.append(f"{model} {left}")
    if parts:
        write(
            "flagged: classes never below the fully ablated layer; "
            f"without them: {'; '.join(parts)}"
        )


def _sensitivity(table: pd.DataFrame, write: Write) -> None:
    part = table[(table["order"] == OWN) & table["rule"].isin(_SHOWN_RULES)]
    for samples, group in part.groupby("samples", sort=False):
        means = group.groupby(["model", "rule"], sort=False)["overfitted"].mean().unstack("rule")
        write(
            f"\nSensitivity: overfitted units, %, by rule for the turning point; {samples}; "
            f"{_data(group)}"
        )
        write((100 * means[[rule for rule in _SHOWN_RULES if rule in means]]).round(1).to_string())


def _regret(table: pd.DataFrame, write: Write) -> None:
    part = table[table["order"] == OWN]
    columns = ["train", "test", "train_accuracy", "test_accuracy"]
    for samples, group in part.groupby("samples", sort=False):
        means = group.groupby("model", sort=False)[columns].mean()
        write(
            f"\nRegret: what the other split's active set costs, nats and accuracy, mean over "
            f"classes; {samples}; {_data(group)}"
        )
        write(means.round(3).to_string())


def _relations(table: pd.DataFrame, roles: pd.DataFrame, write: Write) -> None:
    keys = ["order", "samples", "role"]
    chosen = table[table["rule"] == DEFAULT_RULE].groupby(["classes", *keys], sort=False)
    means = seed_mean(chosen[["pearson", "spearman", "paper_pearson"]])
    unflagged = means["spearman"].xs(UNFLAGGED, level="classes").rename("spearman_unflagged")
    write(
        "\nCorrelation of each role with the gap over the models, mean over seeds (NaN where a "
        "seed has none), paper beside; unflagged = without the flagged classes; "
        f"{_data(table)}"
    )
    write(means.xs(ALL, level="classes").join(unflagged).round(3).to_string())
    own = table[(table["order"] == OWN) & (table["classes"] == ALL)]
    for samples, group in own.groupby("samples", sort=False):
        by_rule = seed_mean(group.groupby(["rule", "role"], sort=False)["spearman"])
        by_rule = by_rule.unstack("role")
        write(f"\nSpearman with the gap by rule for the turning point, mean over seeds; {samples}")
        write(by_rule.round(2).to_string())
    write(f"\nThe paper's patterns (clear = Spearman of at least {CLEAR:.1f} in every seed):")
    for line in patterns(table, roles):
        write(f"  {line}")


def _paper_cell(row: pd.Series, role: str) -> str:
    mean, std = row[f"paper_{role}"], row[f"paper_{role}_std"]
    return "" if pd.isna(mean) else f" [{100 * mean:.1f} ± {100 * std:.0f}]"


def _bracket(value: float, digits: int) -> str:
    return "" if pd.isna(value) else f" [{value:.{digits}f}]"


def _data(table: pd.DataFrame) -> str:
    counts = span(table["train_samples_per_class"]), span(table["test_samples_per_class"])
    noise = table["pixel_noise"].iloc[0]
    return f"pixel noise {noise:g}; samples per class {counts[0]} training, {counts[1]} test"


def _frame(rows: dict) -> str:
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("model").to_string()
