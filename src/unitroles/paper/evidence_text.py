"""The tables of the evidence as text: each number beside what sampling alone gives."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd

from unitroles.paper.numbers import ROLES
from unitroles.paper.tables import CORRECT, seed_mean, span
from unitroles.results.evidence import least_coverage

Write = Callable[[str], None]
_SIGNS = {
    "overfitted": "overfitted proportion",
    "generalizing": "generalizing proportion",
    "n0_train_minus_test": "n0/N, train - test",
    "regret": "regret on test",
}


def report(tables: dict[str, pd.DataFrame], write: Write) -> None:
    """Write all tables of `unitroles.paper.evidence`."""
    floors, asked = tables["floors"], tables["exchangeability"]
    write(
        "\nHow sure: each split in its own order, means over the seeds. All of it speaks of other "
        "samples of the same kind for these very networks, never of another training."
    )
    if CORRECT in set(asked["samples"]):
        write(
            "By given labels a class of corrupted training labels is a mixture, which no class of "
            "the test set is: more than sampling gives is then no sign of overfitting by itself."
        )
    _left_out(floors, asked, write)
    if len(floors):
        _beside_floors(floors, write)
        _signs(tables["signs"], write)
    _exchangeability(asked, write)
    _agreement(tables["agreement"], write)
    _criteria(tables["criteria"], asked, write)


def _left_out(floors: pd.DataFrame, asked: pd.DataFrame, write: Write) -> None:
    """The networks that have no noise floor, and those that have one of some classes only."""
    keys = ["samples", "seed", "model"]
    known = set(floors[keys].itertuples(index=False, name=None))
    every = dict.fromkeys(asked[keys].itertuples(index=False, name=None))
    without = [key for key in every if key not in known]
    if without:
        write(
            f"No noise floor and no signs for {_names(without)}: there no class has two samples "
            "in both splits, which halves take."
        )
    if floors.empty:
        return
    some = floors[floors["noise_floor_classes"] < floors["class_count"]].drop_duplicates(keys)
    if len(some):
        rows = some[[*keys, "noise_floor_classes", "class_count"]].itertuples(
            index=False, name=None
        )
        counts = [(*key, f"{few} of {count}") for *key, few, count in rows]
        write(
            f"Noise floors of the classes that have two samples in both splits: {_names(counts)}; "
            "proportions at the floor's size are of these classes too, others of all."
        )


def _names(rows: Iterable[tuple]) -> str:
    return "; ".join(
        " ".join([f"model {model}, {samples}, seed {seed}", *(f"({text})" for text in rest)])
        for samples, seed, model, *rest in rows
    )


def _beside_floors(table: pd.DataFrame, write: Write) -> None:
    first = table.iloc[0]
    write(
        "\nTables 2 and 3 beside their noise floors, %\n"
        f"proportion: mean over classes, all samples; {100 * first['level']:g} % interval from "
        f"{first['replicates']} replicates with a fixed ranking: the uncertainty of the ranking is "
        "not included\n"
        "at floor's size: the same between a half of the training and a half of the test set\n"
        "noise floor: the same between two halves of one split, which differ by sampling alone; "
        f"the larger of training and test set, {first['draws']} draws\n"
        "Sampling makes overfitted and generalizing units, and makes less of core and confusing "
        "ones: these fall below their noise floor where the splits differ."
    )
    for samples, group in table.groupby("samples", sort=False):
        about = (
            f"halves of {span(group['noise_floor_samples_per_class'])} samples per class; {samples}"
        )
        write(f"\nTable 2 beside its noise floor; {about}")
        write(_table2(group))
        write(_coverage(group))
        write(
            "\nTable 3 beside its noise floor: std over units, all samples [interval]; at the "
            f"floor's size / floor of that; {about}"
        )
        write(_table3(group))


def _table2(table: pd.DataFrame) -> str:
    percent = 100 * _means(_sided(table), "role")
    own, floor, low, high = (
        _cells(percent[name])
        for name in ("mean", "noise_floor", "noise_floor_low", "noise_floor_high")
    )
    shown = {
        "proportion": own,
        "interval": "[" + _cells(percent["low"]) + ", " + _cells(percent["high"]) + "]",
        "at floor's size": _cells(percent["observed"]),
        "noise floor": floor,
        "5-95 %": "[" + low + ", " + high + "]",
        "above the floor": _cells(percent["above_floor"], "+.1f"),
        "std over classes": _cells(percent["observed_std_over_labels"]),
        "its floor": _cells(percent["noise_floor_std_over_labels"]),
    }
    return pd.DataFrame(shown).to_string()


def _sided(table: pd.DataFrame) -> pd.DataFrame:
    """With the band of the larger noise floor."""
    train = table["train_noise_floor"] >= table["test_noise_floor"]
    bands = {
        f"noise_floor_{end}": np.where(train, table[f"train_{end}"], table[f"test_{end}"])
        for end in ("low", "high")
    }
    return table.assign(**bands)


def _coverage(table: pd.DataFrame) -> str:
    """The intervals that are not what they say."""
    good = least_coverage(table["level"].iloc[0])
    held = table.dropna(subset="coverage_by_class")
    lines = [
        "measured coverage of such intervals of single classes: "
        + ", ".join(
            f"{role} {values.min():.2f} to {values.max():.2f}"
            for role, values in held.groupby("role", sort=False)["coverage_by_class"]
        )
    ]
    narrow = held[held["coverage_by_class"] < good]
    lines += [f"  below {good:.2f}, too narrow: {_rows(narrow)}"] * bool(len(narrow))
    beyond = np.maximum(table["low"] - table["mean"], table["mean"] - table["high"])
    outside = table[beyond > 1e-9]
    if len(outside):
        lines.append(
            "proportion outside its own interval, which is then not to be trusted: "
            + _rows(outside)
        )
    return "\n".join(lines)


def _rows(table: pd.DataFrame) -> str:
    """The models and roles of some rows."""
    several = table["seed"].nunique() > 1
    names = zip(table["model"], table["role"], table["seed"], strict=True)
    return ", ".join(f"{m} {role}" + f" (seed {seed})" * several for m, role, seed in names)


def _table3(table: pd.DataFrame) -> str:
    means = 100 * _means(table, "role")
    own, low, high, observed, floor = (
        _cells(means[f"{name}std_over_units{end}"])
        for name, end in (
            ("", ""),
            ("", "_low"),
            ("", "_high"),
            ("observed_", ""),
            ("noise_floor_", ""),
        )
    )
    cells = own + " [" + low + ", " + high + "]; " + observed + " / " + floor
    return cells.unstack("role")[list(ROLES)].rename_axis(columns=None).to_string()


def _signs(table: pd.DataFrame, write: Write) -> None:
    write(
        "\nSigns of good and bad generalization, which are sampling alone where both splits are "
        "the same to a network\n"
        "above: at the floor's size beyond 95 % of the draws of either floor; within is no proof "
        "of none"
    )
    chosen = table[table["finding"].notna() & (table["finding"] != "")]
    for samples, group in chosen.groupby("samples", sort=False):
        write(f"\n{samples}")
        write(_findings(group))


def _findings(table: pd.DataFrame) -> str:
    findings = table.groupby(["model", "sign"], sort=False)["finding"].agg(_votes)
    means = _means(table, "sign")[["value", "observed", "noise_floor"]]
    in_nats = means.index.get_level_values("sign") == "regret"
    shown = {
        name: _cells(100 * means[column]).where(~in_nats, _cells(means[column], "+.4f"))
        for name, column in zip(("value", "at floor's size", "noise floor"), means, strict=True)
    }
    shown |= {"unit": np.where(in_nats, "nats", "%"), "finding": findings}
    return pd.DataFrame(shown).rename(_SIGNS, level="sign").to_string()


def _votes(findings: pd.Series) -> str:
    """The finding of one seed, or in how many seeds a sign is above its floor."""
    if len(findings) == 1:
        return str(findings.iloc[0])
    above = findings.str.startswith("above").sum()
    return f"above in {above} of {len(findings)} seeds"


def _exchangeability(table: pd.DataFrame, write: Write) -> None:
    kind, first = "active_on_one_split", table.iloc[0]
    write(
        f"\nExchangeability: {' '.join(first['asks'].split())}\n"
        f"units active on one split only, %: observed [mean of {first['resplits']} new splits of "
        f"all samples]; p by seed, never below {first['smallest_p']:.3f}"
    )
    for samples, group in table.groupby("samples", sort=False):
        means = 100 * _means(group, kind)
        p = group.groupby(["model", kind], sort=False)["p"].agg(_by_seed(".3f"))
        cells = _cells(means["observed"]) + " [" + _cells(means["resplit"]) + "] p " + p
        wide = cells.unstack(kind)[list(group[kind].unique())]
        write(f"\n{samples}")
        write(wide.rename_axis(columns=None).to_string())


def _agreement(table: pd.DataFrame, write: Write) -> None:
    write(
        "\nAgreement of train and test, mean over classes\n"
        "lift: size of the core ÷ that expected of random active sets of the same sizes; Jaccard: "
        "core over all active units; by chance: classes whose core is no\n"
        "larger than such random sets would have (adjusted p above .05), of those whose two orders "
        "differ; Spearman, rank-biased overlap: of the two orders"
    )
    for samples, group in table.groupby("samples", sort=False):
        write(f"\n{samples}")
        write(_overlaps(group))


def _overlaps(table: pd.DataFrame) -> str:
    means = _means(table)
    shown = {
        "lift": _cells(means["lift"], ".2f"),
        "Jaccard": _cells(means["jaccard"], ".2f"),
        "by chance": _cells(means["classes_by_chance"], ".3g")
        + " of "
        + _cells(means["classes_tested"], ".3g"),
        "Spearman": _cells(means["spearman"], ".2f"),
        "rank-biased overlap": _cells(means["rank_biased"], ".2f"),
    }
    return pd.DataFrame(shown).to_string()


def _criteria(table: pd.DataFrame, asked: pd.DataFrame, write: Write) -> None:
    if len(table):
        write(
            "\nWhat goes with the gap over the models, by seed\n"
            "-: does not vary, or cannot be had from so few models\n"
            "p: two-sided, over re-pairings of gaps and models; uncorrected for so many criteria\n"
            "partial: Pearson where training accuracy is held fixed; so few models leave it little "
            "freedom\n"
            "left-out error: root mean squared error of the gap of each model (a fraction) from a "
            "line through the others; it has to beat the mean of the others"
        )
    keys = ["samples", "seed"]
    found = set(table[keys].itertuples(index=False, name=None))
    wanted = dict.fromkeys(asked[keys].itertuples(index=False, name=None))
    for samples in dict.fromkeys(samples for samples, _ in wanted):
        group = table[table["samples"] == samples]
        if len(group):
            tried = "all " * bool(group["exact"].all()) + f"{group['permutations'].iloc[0]}"
            write(
                f"\n{samples}: {span(group['models'])} models, {tried} re-pairings, p never below "
                f"{group['smallest_p'].iloc[0]:.3f}"
            )
            write(_relation(group))
        absent = [
            str(seed) for kind, seed in wanted if kind == samples and (kind, seed) not in found
        ]
        if absent:
            write(
                f"\nNo relation with the gap over the models for {samples}, seed "
                f"{', '.join(absent)}: fewer than three models, or one gap for all."
            )


def _relation(table: pd.DataFrame) -> str:
    statistics = ("pearson", "spearman", "kendall")
    forms = dict.fromkeys((*statistics, "partial"), "+.2f")
    forms |= {"loo_error": ".3f", **{f"{name}_p": ".3f" for name in statistics}}
    groups = table.groupby("criterion", sort=False)
    cells = {name: groups[name].agg(_by_seed(form)) for name, form in forms.items()}
    order = [part for name in statistics for part in (name, f"{name}_p")]
    shown = pd.DataFrame(cells)[[*order, "partial", "loo_error"]].rename(
        columns=lambda name: "p" if name.endswith("_p") else name.replace("loo_", "left-out ")
    )
    return shown.rename_axis(None).to_string()


def _by_seed(form: str) -> Callable[[pd.Series], str]:
    def text(values: pd.Series) -> str:
        if values.isna().all():
            return "-"
        return " ".join("-" if pd.isna(x) else f"{x:{form}}" for x in values)

    return text


def _means(table: pd.DataFrame, *keys: str) -> pd.DataFrame:
    """Means over the seeds of all numbers, by model and keys."""
    names = ["model", *keys]
    numbers = [name for name in table.select_dtypes("number") if name not in (*names, "seed")]
    return seed_mean(table.groupby(names, sort=False)[numbers])


def _cells(values: pd.Series, form: str = ".1f") -> pd.Series:
    return values.map(f"{{:{form}}}".format)
