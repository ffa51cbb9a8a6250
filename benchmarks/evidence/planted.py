"""Roles that are known beforehand: how often are they found, and what does the evidence say?

pip install -e '.[bench]'
python -m benchmarks.evidence.planted --out docs/results
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
import torch

import unitroles as ur
from benchmarks.evidence import planted_report as report
from benchmarks.evidence.planting import LAYER, SPLITS, Plan, Planted, plant
from benchmarks.evidence.population import check, curves_of
from benchmarks.evidence.rates import called, covered, excess, recovered
from unitroles.roles import proportions

_KINDS = {"overfitted": 1, "generalizing": 2}

_EVIDENCE = ur.Evidence(floors=20, resplits=20, controls=False)


@dataclass(frozen=True)
class Grid:
    """Which networks are planted: each cell with and without overfitting, in both heads.

    Parameters
    ----------
    strengths, units : of the plans.
    sizes : samples of each class in (train, test).
    share : of the units that are overfitted, and of those that are generalizing.
    seeds : networks of each cell; no two networks of the study share a seed.
    evidence : what is asked for.
    redone : replicates of intervals with scores and orders again, too, for the narrowest networks
        with a linear head.
    samples : of each class and split, for the population.
    fresh : likewise, for the losses that intervals should hold.
    """

    strengths: tuple[float, ...] = (0.05, 0.08, 0.12, 0.2, 0.3)
    sizes: tuple[tuple[int, int], ...] = ((50, 50), (100, 50), (200, 100))
    units: tuple[int, ...] = (32, 64)
    labels: int = 10
    share: float = 0.15
    seeds: int = 4
    evidence: ur.Evidence = _EVIDENCE
    redone: int = 50
    samples: int = 20_000
    fresh: int = 2_000

    def plans(self) -> Iterator[Plan]:
        """Every network, with overfitting and without."""
        cells = product(self.strengths, self.sizes, self.units, ("linear", "tanh"))
        for place, (strength, (train, test), units, head) in enumerate(cells):
            for number in range(self.seeds):
                plan = Plan(
                    units=units,
                    labels=self.labels,
                    train=train,
                    test=test,
                    strength=strength,
                    overfitted=self.share,
                    generalizing=self.share,
                    head=head,
                    seed=2 * (place * self.seeds + number),
                )
                yield plan
                yield replace(plan.null, seed=plan.seed + 1)

    def populations(self) -> list[Plan]:
        """One network of every strength, width and head."""
        found = {(p.strength, p.units, p.head): p for p in self.plans() if p.overfitted}
        return list(found.values())

    def settings(self, quick: bool, jobs: int, minutes: float) -> str:
        """How the numbers came about, for the head of the document."""
        evidence = self.evidence
        return (
            f"{len(list(self.plans()))} networks, half of them null; {self.labels} classes, "
            f"{' or '.join(map(str, self.units))} units, linear and tanh head, {self.seeds} "
            f"networks of each cell and kind, no seed twice; {evidence.floors} floors, "
            f"{evidence.resplits} new splits, {evidence.draws} weightings ({self.redone} where the "
            f"order is redone), level {evidence.level:g}. With overfitting {self.share:.0%} of "
            f"the units are overfitted and {self.share:.0%} generalizing, for every class; 30 % "
            f"are core in all. The population ({self.samples:,} samples of each class and split) "
            f"has exactly the planted roles in each of {len(self.populations())} networks: every "
            f"strength, width and head. {jobs} processes of one thread; the whole run took "
            f"{minutes:.1f} minutes."
            + (" **QUICK smoke run: the numbers mean nothing.**" if quick else "")
        )


QUICK = Grid(
    strengths=(0.1, 0.3),
    sizes=((30, 30), (40, 20)),
    units=(20,),
    labels=4,
    share=0.2,
    seeds=2,
    evidence=ur.Evidence(floors=6, resplits=6, replicates=20, controls=False),
    redone=10,
    samples=10_000,
    fresh=200,
)


def analysed(grid: Grid, plan: Plan) -> dict[str, object]:
    """What one network gives, beside the truth."""
    planted = plant(plan)
    # Weights of the samples depend on the seed alone: with one seed, chance is the same everywhere.
    asked = replace(grid.evidence, seed=plan.seed)
    found = _analyze(planted, asked)
    data, p = found.data, found.exchangeability().p
    drawn = data.noise_floor_proportion.values
    row: dict[str, object] = {
        "null": plan.overfitted == 0,
        "strength": plan.strength,
        "size": f"{plan.train}/{plan.test}",
        "units": plan.units,
        "head": plan.head,
        "recovered": recovered(data.role.values, planted.role),
        "claimed": float(data.coverage.sel(quantity="turning_point")),
    }
    for kind, column in _KINDS.items():
        row[kind] = float(found.summary()["mean"][kind])
        row[f"{kind}_called"] = bool(called(drawn)[column])
        row[f"{kind}_excess"] = float(excess(drawn)[column])
        row[f"{kind}_rejected"] = bool(p[kind] <= 0.05)
    row |= _held("covered", planted, found) | _losses_held(planted, found, grid.fresh)
    row["claimed_loss"] = float(data.coverage.sel(quantity="loss"))
    if plan.head == "linear" and plan.units == min(grid.units):
        again = replace(asked, floors=0, resplits=0, bootstrap="full", replicates=grid.redone)
        row |= _held("redone", planted, _analyze(planted, again))
    return row


def _analyze(planted: Planted, evidence: ur.Evidence) -> ur.Taxonomy:
    data = planted.train, planted.test
    return ur.analyze(planted.model, *data, layer=LAYER, progress=False, evidence=evidence)


def _held(name: str, planted: Planted, found: ur.Taxonomy) -> dict[str, object]:
    """In how many of the classes intervals hold what was planted.

    Of n0 for both splits, of the shares of the roles, and whether those of their means do.
    """
    replicates = found.data.turning_point_replicate.values
    held = covered(replicates, planted.turning_point, found.level).mean(axis=1)
    row = {f"{name}_{split}": float(share) for split, share in zip(SPLITS, held, strict=True)}
    truth, again = proportions(planted.role), found.data.proportion_replicate.values
    by_class = covered(again, truth, found.level).mean(axis=0)
    mean = covered(again.mean(axis=1), truth.mean(axis=0), found.level)
    for kind, column in _KINDS.items():
        row[f"{name}_{kind}"] = float(by_class[column])
        row[f"{name}_mean_{kind}"] = float(mean[column])
    return row


def _losses_held(planted: Planted, found: ur.Taxonomy, samples: int) -> dict[str, object]:
    """For how many n and classes the interval of E(n) holds that of new samples, in one order."""
    data = found.data
    truth = curves_of(planted, data.order.values, samples)
    held = (data.loss_low.values <= truth) & (truth <= data.loss_high.values)
    shares = zip(SPLITS, held.mean(axis=(1, 2)), strict=True)
    return {f"covered_loss_{split}": float(share) for split, share in shares}


def confirmed(samples: int, plan: Plan) -> None:
    """Plant and check the population."""
    check(plant(plan), samples)


def study(grid: Grid, jobs: int, say: Callable[[str], None]) -> pd.DataFrame:
    """One row per network, after the population of one network of each kind was checked.

    Raises
    ------
    RuntimeError : planted roles do not hold in the population.
    """
    with ProcessPoolExecutor(jobs, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        checks, plans, rows = grid.populations(), list(grid.plans()), []
        say(f"the population of {len(checks)} networks")
        list(pool.map(partial(confirmed, grid.samples), checks))
        for row in pool.map(partial(analysed, grid), plans):
            if len(rows) % (len(plans) // 8) == 0:
                say(f"{len(rows)} of {len(plans)} networks analysed")
            rows.append(row)
    return pd.DataFrame(rows)


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Are planted roles found? Is the evidence right?")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does everything run?")
    parser.add_argument("--jobs", type=int, default=2, help="processes, one thread each")
    parser.add_argument("--out", type=Path, help="folder for planted.md and planted.png")
    return parser.parse_args()


def main() -> None:
    """Plant, analyse, print, and write both files if asked."""
    asked, start = options(), time.perf_counter()

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - start:4.0f} s] {text}", file=sys.stderr, flush=True)

    grid = QUICK if asked.quick else Grid()
    rows = study(grid, asked.jobs, say)
    minutes = (time.perf_counter() - start) / 60
    text = report.document(rows, grid.settings(asked.quick, asked.jobs, minutes))
    print(text, end="")
    if asked.out is not None:
        asked.out.mkdir(parents=True, exist_ok=True)
        (asked.out / "planted.md").write_text(text, encoding="utf-8")
        report.figure(rows).savefig(asked.out / "planted.png", dpi=150)


if __name__ == "__main__":
    main()
