"""What a forecast measures is what runs."""

from functools import partial

import numpy as np
import pytest

import networks
import unitroles as ur
from forcing import forced, layer_of
from forecasts import plan
from unitroles.cost import rates
from unitroles.stats.grid import expected, grid

pytestmark = pytest.mark.usefixtures("one_thread", "uncompared")


def a_second(work):
    work()
    return 1.0


@pytest.mark.parametrize("resolution", ["exact", 5, "adaptive"])
@pytest.mark.parametrize("wanted", ["suffix", "full"])
def test_the_n_that_are_measured_are_those_that_are_evaluated(wanted, resolution, monkeypatch):
    """Running sums walk over all units between them; classes with n of their own run apart."""
    toy, seen = networks.wide("wide_conv"), []
    curve = rates._curve

    def watched(ready, chosen, kept, rows, points):
        seen.append((rows, list(points)))
        return curve(ready, chosen, kept, rows, points)

    monkeypatch.setattr(rates, "_curve", watched)
    monkeypatch.setattr(rates, "_second", a_second)
    monkeypatch.setattr(rates, "_FEW", 32)
    sample = ur.Sample(max_per_class=3)
    with forced(wanted):
        found = plan(
            toy, layer=layer_of(toy), method=ur.Method(resolution=resolution), sample=sample
        )
    points = grid(found.units, resolution).tolist()
    first = [(rows, mine) for rows, mine in seen if mine[0] == 0]
    assert all(mine == points[: len(mine)] for _, mine in first)
    assert len(first[-1][1]) > 1
    later = [(rows, mine) for rows, mine in seen if mine[0] > 0]
    assert bool(later) == (resolution == "adaptive")
    more = expected(found.units, resolution) - len(points)
    if later:
        assert all(len(mine) <= more for _, mine in later)
        assert {rows for rows, _ in later} == ({3} if wanted == "suffix" else {first[-1][0]})


@pytest.mark.parametrize("bootstrap", ["fixed_ranking", "full", None])
def test_weighing_losses_is_in_the_seconds_of_evidence(bootstrap, monkeypatch):
    toy, weighed = networks.toy("mlp"), []

    def watched(name, own, losses, weights, points, *given):
        weighed.append((name, losses.shape, weights.shape, len(points)))
        return own(losses, weights, points, *given)

    for name in ("weigh", "weigh_again"):
        monkeypatch.setattr(rates, name, partial(watched, name, getattr(rates, name)))
    monkeypatch.setattr(rates, "_second", a_second)
    asked = ur.Evidence(
        floors=0, resplits=0, bootstrap=bootstrap, replicates=bootstrap and 7, controls=False
    )
    found = plan(toy, layer=layer_of(toy), evidence=asked)
    if bootstrap is None:
        assert weighed == []
        assert found.evidence_seconds == 0
        return
    each = sum(found.samples) / 2 / found.labels
    shapes = (round(each), found.units + 1), (7, round(each)), found.units + 1
    names = ["weigh", "weigh_again"][: 1 + (bootstrap == "fixed_ranking")]
    assert weighed == [(name, *shapes) for name in names]
    of_classes = 2 * found.labels * max(1.0, each / round(each))
    sweeps = found.evidence_sweeps * found.sweep_seconds
    assert found.evidence_seconds == pytest.approx(of_classes + sweeps)
    if bootstrap == "fixed_ranking":
        assert sweeps == 0
        assert "more to weigh their losses; holds" in str(found)
    assert np.isfinite(found.evidence_seconds)
