"""The evidence of a family of taxonomies as tidy tables."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

import unitroles as ur
from unitroles.paper.tables import GIVEN, OWN, Member, each, joined, placed
from unitroles.results.evidence import by_chance
from unitroles.wording import range_of
from unitroles.zoo.settings import Family


def evidence_tables(members: list[Member], settings: Family) -> dict[str, pd.DataFrame]:
    """All tables of `EVIDENCE_TABLES`, of the taxonomies where each split has its own order.

    A taxonomy that does not hold what a table needs has no rows in it.
    """
    own = [found for found in each(members) if found[1] == OWN]
    tables = {
        name: joined(placed([f for f in own if name in f[-1].tables], settings, table))
        for name, table in _TABLES.items()
    }
    return tables | {"criteria": criteria(members)}


def _floors(taxonomy: ur.Taxonomy) -> pd.DataFrame:
    """Mean and stds of every role with their intervals, and their floors."""
    size = taxonomy.data.noise_floor_samples
    halved = size.values[size.values > 0]
    coverage = taxonomy.data.coverage.to_series()
    frame = taxonomy.intervals().rename(columns={"value": "mean"})
    return (
        frame.join(taxonomy.floors())
        .assign(
            coverage_by_class=coverage.reindex(frame.index),
            level=taxonomy.level,
            draws=taxonomy.data.sizes["draw"],
            replicates=taxonomy.data.sizes["replicate"],
            noise_floor_samples_per_class=range_of(halved, "-"),
            noise_floor_classes=len(halved),
            class_count=len(taxonomy.labels),
        )
        .reset_index()
    )


def _exchangeability(taxonomy: ur.Taxonomy) -> pd.DataFrame:
    frame = taxonomy.exchangeability()
    attrs = {str(name): value for name, value in frame.attrs.items()}
    return frame.assign(**attrs).rename_axis("active_on_one_split").reset_index()


def _agreement(taxonomy: ur.Taxonomy) -> pd.DataFrame:
    """Means over the classes, and of how many classes the core is no larger than by chance.

    Classes whose two splits happen to have one order are not tested.
    """
    frame = taxonomy.agreement()
    counts = {
        "classes_by_chance": len(by_chance(frame) or []),
        "classes_tested": frame.adjusted_p.count(),
        "class_count": len(frame),
    }
    return frame.drop(columns=["p", "adjusted_p"]).mean().to_frame().T.assign(**counts)


_TABLES = {
    "floors": _floors,
    "signs": lambda taxonomy: taxonomy.signs().reset_index(),
    "exchangeability": _exchangeability,
    "agreement": _agreement,
}
EVIDENCE_TABLES = (*_TABLES, "criteria")


def criteria(members: list[Member]) -> pd.DataFrame:
    """`unitroles.relation` of the models to the gap, by samples and seed.

    The gap is that of all training samples by their given labels, whatever was analysed. There
    are no rows where fewer than three models are left, or all have one gap.
    """
    rows = []
    for samples, seed, chosen in _families(members):
        gaps = pd.Series({member.model: member.trained.gap for member in chosen})
        if len(chosen) < 3 or np.ptp(gaps) < 1e-9:
            continue
        named = {member.model: member.taxonomies[OWN, samples] for member in chosen}
        frame = ur.relation(ur.TaxonomySet(named), gaps)
        tried, exact = frame.attrs["permutations"], frame.attrs["exact"]
        found = {"order": OWN, "samples": samples, "seed": seed, "gap_by": GIVEN}
        counts = {"models": len(chosen), "permutations": tried, "exact": exact}
        # Two-sided: the smaller tail, which holds at least the pairing at hand, twice.
        smallest = 2 / (tried if exact else tried + 1)
        rows.append(frame.reset_index().assign(**found, **counts, smallest_p=smallest))
    return joined(rows)


def _families(members: list[Member]) -> Iterator[tuple[str, int, list[Member]]]:
    """The networks by analysed samples and seed."""
    kinds = [samples for member in members for order, samples in member.taxonomies if order == OWN]
    for samples in dict.fromkeys(kinds):
        for seed in dict.fromkeys(member.seed for member in members):
            chosen = [m for m in members if m.seed == seed and (OWN, samples) in m.taxonomies]
            yield samples, seed, chosen
