"""How sure the numbers of a family are: what the evidence of its taxonomies says, tidy."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd

import unitroles as ur
from unitroles.paper.tables import GIVEN, OWN, Member, about, each, lead, range_of
from unitroles.zoo.settings import Settings

EVIDENCE_TABLES = ("floors", "signs", "exchangeability", "agreement", "criteria")
FALSE_DISCOVERY = 0.05
_FAMILY = ("order", "samples", "seed", "model")


def sure(members: list[Member], settings: Settings) -> dict[str, pd.DataFrame]:
    """All tables of `EVIDENCE_TABLES`, of the taxonomies where each split has its own order."""
    return {
        "floors": _stacked(members, settings, "floors", _floors),
        "signs": _stacked(members, settings, "signs", _signs),
        "exchangeability": _stacked(members, settings, "exchangeability", _exchangeability),
        "agreement": _stacked(members, settings, "agreement", _agreement),
        "criteria": criteria(members),
    }


def _stacked(
    members: list[Member],
    settings: Settings,
    needed: str,
    table: Callable[[ur.Taxonomy], pd.DataFrame],
) -> pd.DataFrame:
    """The tables of all taxonomies that hold what is needed; the others have no rows."""
    rows = [
        table(taxonomy)
        .assign(order=order, samples=samples, seed=member.seed, model=member.model)
        .assign(gap=member.trained.gap, gap_by=GIVEN, **about(taxonomy, settings))
        for member, order, samples, taxonomy in each(members)
        if order == OWN and needed in taxonomy.tables
    ]
    return _joined(rows)


def _joined(rows: list[pd.DataFrame]) -> pd.DataFrame:
    if not rows:
        return pd.DataFrame(columns=list(_FAMILY))
    return lead(pd.concat(rows, ignore_index=True), *(name for name in _FAMILY if name in rows[0]))


def _floors(taxonomy: ur.Taxonomy) -> pd.DataFrame:
    """Mean and stds of every role with their intervals, and their floors."""
    size = taxonomy.data.noise_floor_samples
    halved = size[size > 0]
    coverage = taxonomy.data.coverage.to_series()
    frame = taxonomy.intervals().rename(columns={"value": "mean"})
    return (
        frame.join(taxonomy.floors())
        .assign(
            coverage_by_class=coverage.reindex(frame.index),
            level=taxonomy.level,
            draws=taxonomy.data.sizes["draw"],
            replicates=taxonomy.data.sizes["replicate"],
            noise_floor_samples_per_class=range_of(halved),
            noise_floor_classes=len(halved),
            class_count=len(taxonomy.labels),
        )
        .reset_index()
    )


def _signs(taxonomy: ur.Taxonomy) -> pd.DataFrame:
    return taxonomy.signs().reset_index()


def _exchangeability(taxonomy: ur.Taxonomy) -> pd.DataFrame:
    frame = taxonomy.exchangeability()
    attrs = {str(name): value for name, value in frame.attrs.items()}
    return frame.assign(**attrs).rename_axis("active_on_one_split").reset_index()


def _agreement(taxonomy: ur.Taxonomy) -> pd.DataFrame:
    """Means over the classes, and of how many classes the core is no larger than by chance.

    Classes whose two splits happen to have one order are not tested.
    """
    frame = taxonomy.agreement().drop(columns="p")
    fair = frame.pop("adjusted_p").dropna()
    counts = {"classes_by_chance": int((fair > FALSE_DISCOVERY).sum()), "classes_tested": len(fair)}
    return frame.mean().to_frame().T.assign(**counts, class_count=len(frame))


def criteria(members: list[Member]) -> pd.DataFrame:
    """What goes with the gap over the models, by samples and seed: what `unitroles.relation` gives.

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
    return _joined(rows)


def _families(members: list[Member]) -> Iterator[tuple[str, int, list[Member]]]:
    """The networks by analysed samples and seed."""
    kinds = [samples for member in members for order, samples in member.taxonomies if order == OWN]
    for samples in dict.fromkeys(kinds):
        for seed in dict.fromkeys(member.seed for member in members):
            chosen = [m for m in members if m.seed == seed and (OWN, samples) in m.taxonomies]
            yield samples, seed, chosen
