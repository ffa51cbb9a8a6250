"""What evidence holds is taken out of the budget before the rows of samples are placed."""

from dataclasses import dataclass

import numpy as np
import pytest

import networks
import unitroles as ur
from forcing import forced, layer_of, quietly
from unitroles.curves import retrieval
from unitroles.curves.store import Stores
from unitroles.resampling import evidence as measured
from unitroles.resampling import recompute, subsets
from unitroles.resampling.limits import draw_bytes

pytestmark = pytest.mark.usefixtures("one_thread")

ASKED = {
    "nothing": ur.Evidence(floors=0, resplits=0, bootstrap=None),
    "floors": ur.Evidence(floors=4, resplits=0, bootstrap=None, controls=False),
    "fixed ranking": ur.Evidence(floors=0, resplits=0, controls=False),
    "full": ur.Evidence(floors=4, resplits=4, bootstrap="full", replicates=6, controls=False),
}
BUDGET = 200_000
SAMPLES, LABELS, UNITS = 60, 4, 12
CURVES = 8 * 2 * LABELS * (UNITS + 1)
"""Bytes of the curves of one replicate."""


def analyzed(asked, budget=BUDGET, **options):
    toy = networks.toy("mlp")
    given = toy.model, toy.train, toy.test, layer_of(toy)
    compute = ur.Compute(batch_size=16, memory_budget=budget)
    return quietly(ur.analyze, *given, progress=False, compute=compute, evidence=asked, **options)


@pytest.mark.parametrize("kind", ASKED)
def test_rows_get_what_evidence_leaves(kind, monkeypatch):
    """All of it where nothing is held; never less than half."""
    free, opened = [], Stores.open

    def watched(self, samples, rows):
        free.append(self.memory)
        return opened(self, samples, rows)

    monkeypatch.setattr(Stores, "open", watched)
    analyzed(ASKED[kind])
    weights = {
        "nothing": 0,
        "floors": 4 * 4 * SAMPLES,
        "fixed ranking": 2 * 100 * SAMPLES,
        "full": (2 * 6 + 4 * 4) * SAMPLES,
    }[kind]
    curves = 6 * CURVES * (kind == "full")
    assert free[0] == BUDGET - weights - curves - (kind != "nothing") * (BUDGET // 4)
    assert free[0] >= BUDGET // 2


@pytest.mark.parametrize("kind", ASKED)
def test_rows_beside_evidence_go_to_the_disk_where_both_do_not_fit(kind):
    whole = analyzed(ASKED[kind])
    tight = analyzed(ASKED[kind], 60_000)
    for name, values in whole.data.items():
        if values.dtype.kind in "fiu":
            np.testing.assert_allclose(tight.data[name], values, atol=1e-6, err_msg=name)


def test_curves_of_a_full_bootstrap_are_held_once_and_counted(monkeypatch):
    held, empty = [], np.empty

    def watched(shape, *rest, **more):
        found = empty(shape, *rest, **more)
        held.append(found.nbytes)
        return found

    monkeypatch.setattr(measured.np, "empty", watched)
    taken, take = [], Stores.take
    monkeypatch.setattr(Stores, "take", lambda self, n: taken.append(n) or take(self, n))
    asked = ur.Evidence(floors=0, resplits=0, bootstrap="full", replicates=6, controls=False)
    analyzed(asked)
    assert held.count(6 * CURVES) == 1
    assert taken == [6 * CURVES + 2 * 6 * SAMPLES + BUDGET // 4]


def test_curves_of_more_replicates_than_there_is_memory_for_are_refused():
    asked = ur.Evidence(floors=0, resplits=0, bootstrap="full", replicates=30, controls=False)
    said = "bootstrap 'full' holds the curves of 4 classes in 30 replicates, 24.4 KiB, .* quarter"
    with pytest.raises(ur.InputError, match=said):
        analyzed(asked, 40_000)


def test_replicates_together_take_what_is_said(monkeypatch):
    """As many as fit into their quarter, and one where none does."""
    seen, redone = [], recompute._redone
    monkeypatch.setattr(
        recompute,
        "_redone",
        lambda run, draws, done: seen.append(len(draws)) or redone(run, draws, done),
    )
    asked = ur.Evidence(floors=8, resplits=0, bootstrap=None, controls=False)
    each = draw_bytes(4, 3, UNITS, UNITS + 1, LABELS) + 2 * 3 * SAMPLES
    for many in (8, 3, 1):
        seen.clear()
        analyzed(asked, 4 * each * many)
        assert max(seen) == many
    seen.clear()
    analyzed(asked, 2 * each)
    assert max(seen) == 1


@dataclass(frozen=True)
class Apart(subsets.Job):
    """Every use runs its own masks, whatever that costs."""

    def __post_init__(self):
        object.__setattr__(self, "shared", False)


@pytest.mark.parametrize("plan", ["additive", "suffix"])
@pytest.mark.parametrize("kind", [None, "full", "full, no sets shared"])
def test_a_tile_has_no_more_losses_than_are_said(plan, kind, monkeypatch):
    """Of curves, adaptive ones too, and of draws that share their sets or do not."""
    asked = None if kind is None else ASKED["full"]
    if kind == "full, no sets shared":
        monkeypatch.setattr(recompute, "Job", Apart)
    method = ur.Method(resolution="adaptive" if kind is None else "exact")
    most, held, losses = 5 * (UNITS + 1), [], retrieval.tile_losses

    def watched(kept, tile, classes, empty, run, pieces):
        held.append((len(tile.places), len(empty)))
        return losses(kept, tile, classes, empty, run, pieces)

    monkeypatch.setattr(retrieval, "tile_losses", watched)
    monkeypatch.setattr(subsets, "tile_losses", watched)
    with forced(plan):
        whole = analyzed(asked, method=method).data
        assert max(samples * masks for samples, masks in held) > most
        held.clear()
        monkeypatch.setattr(retrieval, "_TILE_LOSSES", most * retrieval._LOSS_BYTES)
        pieces = analyzed(asked, method=method).data
    assert all(samples == 1 or samples * masks <= most for samples, masks in held)
    for name, values in whole.items():
        if values.dtype.kind in "fiu":
            np.testing.assert_allclose(pieces[name], values, atol=1e-6, err_msg=name)
