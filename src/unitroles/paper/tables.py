"""The paper's tables from a family of taxonomies, tidy, with the paper's rows beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from unitroles import Taxonomy
from unitroles.paper import numbers
from unitroles.wording import range_of
from unitroles.zoo.settings import Family, Recipe
from unitroles.zoo.training import Trained

DEFAULT_RULE = "tolerance 1e-06"
ONE_ERROR = "one standard error"
"""The rule that needs evidence."""
OWN = "per_split"
"""The order whose taxonomies carry evidence."""
# Which training samples were analysed, and which classes the means are over.
GIVEN, CORRECT = "given labels", "correct labels"
ALL, UNFLAGGED = "all", "unflagged"
ABOUT = ("pixel_noise", "train_samples_per_class", "test_samples_per_class")
_FAMILY = ("order", "samples", "seed", "model")
LEVERS = ("dropout", "weight_decay", "augment_noise", "augment_shift", "epochs", "learning_rate")
# Five points can be in any order by chance; only a nearly perfect one is called the pattern:
# at most one neighbouring pair swapped (0.9), with room for rounding.
CLEAR = 0.9 - 1e-9


@dataclass(frozen=True)
class Member:
    """One trained network of a family and its taxonomies.

    Parameters
    ----------
    taxonomies : by (order, samples): "per_split" or "train", "given labels" or "correct labels".
    """

    seed: int
    model: str
    recipe: Recipe
    trained: Trained
    taxonomies: Mapping[tuple[str, str], Taxonomy]


def table1(members: list[Member], settings: Family) -> pd.DataFrame:
    """Levers, accuracies and gap of every network (the paper's table 1)."""
    rows = []
    for member in members:
        recipe = asdict(member.recipe)
        rows.append(
            {
                "seed": member.seed,
                "model": member.model,
                **{lever: recipe[lever] for lever in LEVERS},
                "label_noise": member.recipe.label_noise,
                **about(next(iter(member.taxonomies.values())), settings),
                "train_samples": settings.data.train_samples,
                "test_samples": settings.data.test_samples,
                "train_accuracy": member.trained.train_accuracy,
                "test_accuracy": member.trained.test_accuracy,
                "gap": member.trained.gap,
                "true_label_accuracy": member.trained.true_label_accuracy,
            }
        )
    return _beside(pd.DataFrame(rows), numbers.TABLE_1)


def role_table(members: list[Member], settings: Family, std: str) -> pd.DataFrame:
    """Mean and population std of every role, over classes (table 2) or over units (table 3).

    The columns "*_unflagged" leave out the classes never below the fully ablated layer;
    NaN where none is left. The gap is always that of all training samples by their given labels.

    Parameters
    ----------
    std : "std_over_labels" or "std_over_units".
    """
    rows = []
    for member, order, samples, taxonomy in each(members):
        summary, unflagged = taxonomy.summary(), taxonomy.summary(flagged=False)["mean"]
        rows.append(
            {
                "order": order,
                "samples": samples,
                "seed": member.seed,
                "model": member.model,
                "gap": member.trained.gap,
                "gap_by": GIVEN,
                **about(taxonomy, settings),
                **summary["mean"].to_dict(),
                **{f"{role}_std": value for role, value in summary[std].items()},
                "flagged_classes": len(taxonomy.flagged()),
                "class_count": len(taxonomy.labels),
                **{f"{role}_unflagged": value for role, value in unflagged.items()},
            }
        )
    stds = numbers.STD[std].rename(columns=lambda role: f"{role}_std")
    return _beside(pd.DataFrame(rows), numbers.MEAN, stds)


def sensitivity(members: list[Member], settings: Family) -> pd.DataFrame:
    """Mean role proportions of every network under every rule for the turning point."""
    rows = placed(each(members), settings, lambda found: found.sensitivity().reset_index())
    return joined(rows, "rule")


def regret(members: list[Member], settings: Family) -> pd.DataFrame:
    """Regret of every class of every network, nats and accuracy."""
    columns = ["train", "test", "train_accuracy", "test_accuracy"]  # intervals are evidence
    rows = placed(each(members), settings, lambda found: found.regret()[columns].reset_index())
    return joined(rows, "label").drop(columns=["gap", "gap_by"])


def relations(sensitive: pd.DataFrame, roles: pd.DataFrame) -> pd.DataFrame:
    """Correlation of every role with the gap over the models, for every rule, beside the paper's.

    For the default rule also without the flagged classes (column `classes`: "all" or
    "unflagged"); NaN where a model has no class left.

    Parameters
    ----------
    sensitive : what `sensitivity` returns.
    roles : what `role_table` returns.
    """
    left = roles.assign(
        rule=DEFAULT_RULE,
        classes=UNFLAGGED,
        **{role: roles[f"{role}_unflagged"] for role in numbers.ROLES},
    )
    family = ["order", "samples", "seed", "rule", "classes"]
    columns = [*family, "model", *numbers.ROLES, "gap", "gap_by", *ABOUT]
    both = pd.concat([sensitive.assign(classes=ALL)[columns], left[columns]], ignore_index=True)
    found = []
    for keys, group in both.groupby(family, sort=False):
        by_model = group.set_index("model")
        table = numbers.relation(
            numbers.with_active(by_model[list(numbers.ROLES)]), by_model["gap"]
        ).reset_index()
        of_data = group[["gap_by", *ABOUT]].iloc[0].to_dict()
        of_data |= {name: span(group[name]) for name in ABOUT[1:]}
        found.append(table.assign(**dict(zip(family, keys, strict=True)), **of_data))
    table = lead(pd.concat(found, ignore_index=True), *family, "role")
    return table.join(numbers.RELATION.add_prefix("paper_"), on="role")


def patterns(relations: pd.DataFrame, roles: pd.DataFrame) -> list[str]:
    """One sentence for each pattern of the paper: whether every seed shows it.

    A role follows the gap here when its Spearman correlation has the paper's sign and is at
    least `CLEAR` in size. Of core units the paper reads no such relation, which five models in
    any order would hardly ever contradict: their range is said, without a finding. Every sentence
    counts the flagged classes and says the same without them.

    Parameters
    ----------
    relations : what `relations` returns.
    roles : what `role_table` returns.
    """
    said = []
    chosen = relations[relations["rule"] == DEFAULT_RULE]
    for (order, samples), group in chosen.groupby(["order", "samples"], sort=False):
        own = roles[(roles["order"] == order) & (roles["samples"] == samples)]
        for role, rows in group.groupby("role", sort=False):
            text = _core(rows, own) if role == "core" else _pattern(str(role), rows, own)
            said.append(f"{order}, {samples}: {text}")
    return said


def _core(rows: pd.DataFrame, roles: pd.DataFrame) -> str:
    theirs = _percent_range(numbers.MEAN["core"])
    ours, left = (
        _percent_range(seed_mean(roles.groupby("model", sort=False)[column]))
        for column in ("core", "core_unflagged")
    )
    without = f", without them {left}" if roles["flagged_classes"].any() else ""
    spearman = _by_seed(rows[rows["classes"] == ALL])
    return (
        f"core units (paper {theirs}): ours {ours} (Spearman by seed {spearman}); "
        f"{_flagged(roles)}{without}"
    )


def _pattern(role: str, rows: pd.DataFrame, roles: pd.DataFrame) -> str:
    name = "n0_train / N" if role == "active_on_train" else f"{role} units"
    theirs = rows["paper_pearson"].iloc[0]
    move = "rise" if theirs > 0 else "fall"
    whole, left = (rows[rows["classes"] == classes] for classes in (ALL, UNFLAGGED))
    without = ""
    if roles["core_unflagged"].isna().any():
        without = ", without them undefined: a model has no class left"
    elif roles["flagged_classes"].any():
        without = f", without them: {_finding(left)} ({_by_seed(left)})"
    return (
        f"{name} {move} with the gap (paper {theirs:+.2f}): {_finding(whole)} "
        f"(Spearman by seed {_by_seed(whole)}); {_flagged(roles)}{without}"
    )


def _finding(rows: pd.DataFrame) -> str:
    holds = (rows["spearman"] * np.sign(rows["paper_pearson"]) >= CLEAR).all()
    return "appears" if holds else "does NOT appear"


def _by_seed(rows: pd.DataFrame) -> str:
    return " ".join("undefined" if pd.isna(x) else f"{x:+.2f}" for x in rows["spearman"])


def _flagged(roles: pd.DataFrame) -> str:
    return f"{roles['flagged_classes'].sum()} of {roles['class_count'].sum()} classes flagged"


def _percent_range(values: pd.Series) -> str:
    if values.isna().any():
        return "undefined"
    return f"{100 * values.min():.0f}-{100 * values.max():.0f} %"


def seed_mean(grouped: Any) -> Any:
    """Mean of every group; NaN where one of its values is, so that no seed is lost silently."""
    return grouped.agg(lambda values: values.mean(skipna=False))


def mean_over_seeds(table: pd.DataFrame, values: list[str]) -> pd.DataFrame:
    """Mean and population std over the seeds of some columns, by order, samples and model."""
    keys = [name for name in ("order", "samples", "model", "role") if name in table]
    grouped = table.groupby(keys, sort=False)[values]
    return seed_mean(grouped).join(grouped.std(ddof=0).add_suffix("_seed_std"))


def span(ranges: pd.Series) -> str:
    """The range that holds all ranges, such as "9-20"."""
    return range_of(np.array([int(part) for r in ranges for part in str(r).split("-")]), "-")


def each(members: list[Member]) -> Iterator[tuple[Member, str, str, Taxonomy]]:
    """Every taxonomy of every network, with its order and its samples."""
    for member in members:
        for (order, samples), taxonomy in member.taxonomies.items():
            yield member, order, samples, taxonomy


def placed(
    found: Iterable[tuple[Member, str, str, Taxonomy]],
    settings: Family,
    table: Callable[[Taxonomy], pd.DataFrame],
) -> list[pd.DataFrame]:
    """A table of each taxonomy, with the columns that say whose it is."""
    return [
        table(taxonomy)
        .assign(order=order, samples=samples, seed=member.seed, model=member.model)
        .assign(gap=member.trained.gap, gap_by=GIVEN, **about(taxonomy, settings))
        for member, order, samples, taxonomy in found
    ]


def joined(rows: list[pd.DataFrame], *last: str) -> pd.DataFrame:
    """Tables one under the other; in front the columns that say whose they are, and `last`."""
    if not rows:
        return pd.DataFrame(columns=list(_FAMILY))
    first = [name for name in (*_FAMILY, *last) if name in rows[0]]
    return lead(pd.concat(rows, ignore_index=True), *first)


def _beside(table: pd.DataFrame, *frames: pd.DataFrame) -> pd.DataFrame:
    """Join the paper's rows of the same model name, where there is one."""
    for frame in frames:
        table = table.join(frame.add_prefix("paper_"), on="model")
    return table


def about(taxonomy: Taxonomy, settings: Family) -> dict[str, float | str]:
    """The columns of every table that tell its data."""
    ranges = (range_of(count, "-") for count in taxonomy.data.samples.values)
    return dict(zip(ABOUT, (settings.data.pixel_noise, *ranges), strict=True))


def lead(table: pd.DataFrame, *first: str) -> pd.DataFrame:
    """With these columns before the others."""
    return table[[*first, *(name for name in table if name not in first)]]
