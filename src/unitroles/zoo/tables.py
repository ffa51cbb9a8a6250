"""The paper's tables from a family of taxonomies, tidy, with the paper's rows beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from unitroles import Taxonomy
from unitroles.zoo import paper
from unitroles.zoo.settings import Recipe, Settings
from unitroles.zoo.training import Trained

DEFAULT_RULE = "tolerance 1e-06"
ABOUT = ("pixel_noise", "train_samples_per_class", "test_samples_per_class")
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


def table1(members: list[Member], settings: Settings) -> pd.DataFrame:
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
                **_about(next(iter(member.taxonomies.values())), settings),
                "train_samples": settings.data.train_samples,
                "test_samples": settings.data.test_samples,
                "train_accuracy": member.trained.train_accuracy,
                "test_accuracy": member.trained.test_accuracy,
                "gap": member.trained.gap,
                "true_label_accuracy": member.trained.true_label_accuracy,
            }
        )
    return _beside(pd.DataFrame(rows), paper.TABLE_1)


def role_table(members: list[Member], settings: Settings, std: str) -> pd.DataFrame:
    """Mean and population std of every role, over classes (table 2) or over units (table 3).

    The columns "*_unflagged" leave out the classes in which waking units never lowers the loss.

    Parameters
    ----------
    std : "std_over_labels" or "std_over_units".
    """
    rows = []
    for member, order, samples, taxonomy in _each(members):
        summary, unflagged = taxonomy.summary(), taxonomy.summary(flagged=False)["mean"]
        rows.append(
            {
                "order": order,
                "samples": samples,
                "seed": member.seed,
                "model": member.model,
                "gap": member.trained.gap,
                **_about(taxonomy, settings),
                **summary["mean"].to_dict(),
                **{f"{role}_std": value for role, value in summary[std].items()},
                "flagged_classes": len(taxonomy.flagged()),
                **{f"{role}_unflagged": value for role, value in unflagged.items()},
            }
        )
    stds = paper.STD[std].rename(columns=lambda role: f"{role}_std")
    return _beside(pd.DataFrame(rows), paper.MEAN, stds)


def sensitivity(members: list[Member], settings: Settings) -> pd.DataFrame:
    """Mean role proportions of every network under every rule for the turning point."""
    rows = [
        table.sensitivity()
        .reset_index()
        .assign(order=order, samples=samples, seed=member.seed, model=member.model)
        .assign(gap=member.trained.gap, **_about(table, settings))
        for member, order, samples, table in _each(members)
    ]
    return _lead(pd.concat(rows, ignore_index=True), "order", "samples", "seed", "model", "rule")


def regret(members: list[Member], settings: Settings) -> pd.DataFrame:
    """Regret of every class of every network, nats and accuracy."""
    rows = [
        table.regret()
        .reset_index()
        .assign(order=order, samples=samples, seed=member.seed, model=member.model)
        .assign(**_about(table, settings))
        for member, order, samples, table in _each(members)
    ]
    return _lead(pd.concat(rows, ignore_index=True), "order", "samples", "seed", "model", "label")


def relations(sensitive: pd.DataFrame) -> pd.DataFrame:
    """Correlation of every role with the gap over the models, for every rule, beside the paper's.

    Parameters
    ----------
    sensitive : what `sensitivity` returns.
    """
    found = []
    for keys, group in sensitive.groupby(["order", "samples", "seed", "rule"], sort=False):
        by_model = group.set_index("model")
        table = paper.relation(
            paper.with_active(by_model[list(paper.ROLES)]), by_model["gap"]
        ).reset_index()
        names = ("order", "samples", "seed", "rule")
        about = group[list(ABOUT)].iloc[0].to_dict()
        found.append(table.assign(**dict(zip(names, keys, strict=True)), **about))
    table = _lead(pd.concat(found, ignore_index=True), "order", "samples", "seed", "rule", "role")
    ours = paper.RELATION.add_prefix("paper_")
    return table.join(ours, on="role")


def patterns(relations: pd.DataFrame) -> list[str]:
    """One sentence for each pattern of the paper: whether every seed shows it.

    A role follows the gap here when its Spearman correlation has the paper's sign and is at
    least `CLEAR` in size; the paper reads no such relation for core units.
    """
    rule = relations["rule"] == DEFAULT_RULE
    said = []
    for (order, samples), group in relations[rule].groupby(["order", "samples"], sort=False):
        for role, rows in group.groupby("role", sort=False):
            said.append(f"{order}, {samples}: {_pattern(str(role), rows)}")
    return said


def _pattern(role: str, rows: pd.DataFrame) -> str:
    name = "n0_train / N" if role == "active_on_train" else f"{role} units"
    values = " ".join(
        "undefined" if pd.isna(value) else f"{value:+.2f}" for value in rows["spearman"]
    )
    theirs = rows["paper_pearson"].iloc[0]
    if role == "core":
        holds = bool((rows["spearman"].abs() < CLEAR).all())
        text = "no clear relation with the gap"
    else:
        holds = bool((rows["spearman"] * np.sign(theirs) >= CLEAR).all())
        text = f"{'rise' if theirs > 0 else 'fall'} with the gap"
    verdict = "appears" if holds else "does NOT appear"
    return f"{name} {text} (paper {theirs:+.2f}): {verdict} (Spearman by seed {values})"


def mean_over_seeds(table: pd.DataFrame, values: list[str]) -> pd.DataFrame:
    """Mean and population std over the seeds of some columns, by order, samples and model."""
    keys = [name for name in ("order", "samples", "model", "role") if name in table]
    grouped = table.groupby(keys, sort=False)[values]
    return grouped.mean().join(grouped.std(ddof=0).add_suffix("_seed_std"))


def _each(members: list[Member]):
    for member in members:
        for (order, samples), taxonomy in member.taxonomies.items():
            yield member, order, samples, taxonomy


def _beside(table: pd.DataFrame, *frames: pd.DataFrame) -> pd.DataFrame:
    """Join the paper's rows of the same model name, where there is one."""
    for frame in frames:
        table = table.join(frame.add_prefix("paper_"), on="model")
    return table


def _about(taxonomy: Taxonomy, settings: Settings) -> dict[str, float | str]:
    """What every table says of its data."""
    count = taxonomy.data.samples
    ranges = (_range(count.sel(split=split)) for split in ("train", "test"))
    return dict(zip(ABOUT, (settings.data.pixel_noise, *ranges), strict=True))


def _lead(table: pd.DataFrame, *first: str) -> pd.DataFrame:
    return table[[*first, *(name for name in table if name not in first)]]


def _range(count) -> str:
    low, high = int(count.min()), int(count.max())
    return str(low) if low == high else f"{low}-{high}"
