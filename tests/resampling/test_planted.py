"""Networks with known roles: they hold in the population, are found in samples, and rates count."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import unitroles as ur

# Last, so that no benchmark stands before a module of the same name.
from benchmarks.evidence import planted_report
from benchmarks.evidence.planted import QUICK, analysed
from benchmarks.evidence.planting import LAYER, Plan, plant
from benchmarks.evidence.population import check, population
from benchmarks.evidence.rates import area, called, covered, enough, excess, recovered, roc, wilson
from unitroles import roles

pytestmark = pytest.mark.usefixtures("one_thread")

CORE, OVERFITTED, GENERALIZING, CONFUSING = roles.ROLES
SMALL = Plan(units=24, labels=4, strength=0.2, generalizing=0.1)
SAMPLES = 3000


@pytest.mark.parametrize("head", ["linear", "tanh"])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"strength": 0.1, "seed": 1},
        {"units": 40, "labels": 3, "overfitted": 0.3},
        {"generalizing": 0.0},
        {"overfitted": 0.0, "generalizing": 0.25, "noise": 0.1},
        {"harm": 0.0, "strength": 0.4},
    ],
)
def test_planted_roles_hold_in_the_population(head, change):
    planted = plant(replace(SMALL, head=head, **change))
    found = check(planted, SAMPLES)
    np.testing.assert_array_equal(found.turning_point, planted.turning_point)
    shares = roles.proportions(planted.role)
    assert np.ptp(shares, axis=0).max() == 0
    plan = planted.plan
    asked = plan.core, plan.overfitted, plan.generalizing
    np.testing.assert_allclose(shares[0, :3], asked, atol=0.5 / plan.units)


@pytest.mark.parametrize("head", ["linear", "tanh"])
def test_without_overfitting_the_population_has_none(head):
    planted = plant(replace(SMALL, head=head).null)
    found = check(planted, SAMPLES)
    assert set(np.unique(found.role)) == {CORE, CONFUSING}
    source = planted.source
    np.testing.assert_array_equal(source.reliability[0], source.reliability[1])
    np.testing.assert_array_equal(source.height[0], source.height[1])


@pytest.mark.parametrize("head", ["linear", "tanh"])
def test_the_library_gives_the_curves_of_the_population(head):
    """On the same samples, so that nothing but the two ways to compute them differs."""
    planted = plant(replace(SMALL, head=head))
    splits = []
    for split in range(2):
        drawn = [
            planted.source.samples(np.random.default_rng([0, 100, split, label]), split, label, 300)
            for label in range(4)
        ]
        splits.append((torch.cat(drawn), torch.arange(4).repeat_interleave(300)))
    found = ur.analyze(planted.model, *splits, layer=LAYER, progress=False).data
    expected = population(planted, 300)
    np.testing.assert_allclose(found.loss, expected.loss, atol=1e-5)
    np.testing.assert_array_equal(found.order, expected.order)


def test_a_wrong_truth_is_noticed():
    planted = plant(SMALL)
    role = planted.role.copy()
    role[0, 0] = 1 + role[0, 0] % 4
    with pytest.raises(RuntimeError, match=r"1 roles .* not the planted ones, .* \[0 0\]"):
        check(replace(planted, role=role), 500)
    with pytest.raises(RuntimeError, match="stands out by .* standard errors only"):
        check(replace(planted, turning_point=planted.turning_point + 1), SAMPLES)


def test_memorised_inputs_are_as_strong_on_fresh_samples():
    """Of an overfitted unit only the position goes with the class on train, not on test."""
    planted = plant(replace(SMALL, overfitted=0.3, generalizing=0.0, train=2000, test=2000))
    means, hits = [], []
    for inputs, labels in (planted.train, planted.test):
        activation = planted.model[:2](inputs)
        mine = torch.from_numpy(planted.role[labels] == OVERFITTED)
        means.append(float(activation.sum(dim=2)[mine].mean()))
        right = activation.argmax(dim=2) == labels[:, None]
        hits.append(float(right[mine].double().mean()))
    assert means[0] == pytest.approx(means[1], rel=0.01)
    assert hits[0] > 0.35
    assert hits[1] < 0.25


@pytest.fixture(scope="module")
def share_found():
    """The mean share of roles found, by samples and strength."""

    def share(samples, strength):
        plans = [
            replace(SMALL, train=samples, test=samples, strength=strength, seed=seed)
            for seed in range(2)
        ]
        found = []
        for planted in map(plant, plans):
            data = (planted.train, planted.test)
            taxonomy = ur.analyze(planted.model, *data, layer=LAYER, progress=False)
            found.append(recovered(taxonomy.data.role.values, planted.role))
        return np.mean(found)

    return {(n, s): share(n, s) for n in (20, 80, 320) for s in (0.1, 0.3)}


def test_more_samples_find_more_roles(share_found):
    for strength in (0.1, 0.3):
        few, some, many = (share_found[n, strength] for n in (20, 80, 320))
        assert few < some < many
    assert share_found[320, 0.3] > 0.97


def test_a_stronger_signal_finds_more_roles(share_found):
    for samples in (20, 80, 320):
        assert share_found[samples, 0.1] < share_found[samples, 0.3]


def test_the_same_seed_plants_the_same_and_another_something_else():
    first, again, other = (plant(replace(SMALL, seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(first.train[0], again.train[0])
    np.testing.assert_array_equal(first.role, again.role)
    assert not torch.equal(first.train[0], other.train[0])
    assert (first.role != other.role).any()
    assert not torch.equal(first.train[0][:40], first.test[0][:40])


def test_sizes_are_those_asked_for():
    planted = plant(replace(SMALL, train=7, test=3))
    for (inputs, labels), count in ((planted.train, 7), (planted.test, 3)):
        assert inputs.shape == (4 * count, 24, 4)
        assert torch.bincount(labels).tolist() == [count] * 4


def test_an_unknown_head_is_refused():
    with pytest.raises(ValueError, match="head must be one of .*'linear', 'tanh'.*, not 'conv'"):
        Plan(head="conv")


def test_shares_leave_room():
    with pytest.raises(ValueError, match="must leave room for confusing units"):
        Plan(core=0.5, overfitted=0.3, generalizing=0.2)


def drawn(train, test, both):
    """Shares (drawn_from, draw, label, role), all but those of overfitted units 0."""
    shares = np.zeros((3, len(train), 2, 4))
    shares[..., 1] = np.array([train, test, both])[..., None]
    return shares


def test_a_share_is_called_above_the_larger_floor_only():
    low, high = np.linspace(0, 0.1, 21), np.linspace(0, 0.2, 21)
    for floors in ((low, high), (high, low)):
        above, within = (drawn(*floors, np.full(21, share)) for share in (0.191, 0.189))
        assert called(above).tolist() == [False, True, False, False]
        assert not called(within).any()
        np.testing.assert_allclose(excess(above)[1], 0.191 - 0.1)


def test_the_call_is_the_verdict_of_the_library():
    verdicts = []
    for plan in (SMALL.null, replace(SMALL, strength=0.3, generalizing=0.25)):
        planted = plant(replace(plan, train=60, test=60))
        asked = ur.Evidence(floors=20, resplits=0, bootstrap=None, controls=False)
        data = (planted.train, planted.test)
        found = ur.analyze(planted.model, *data, layer=LAYER, progress=False, evidence=asked)
        mine, signs = called(found.data.noise_floor_proportion.values), found.signs()
        for role in (OVERFITTED, GENERALIZING):
            above = signs.finding[role.name.lower()] == "above what sampling gives"
            assert mine[role - 1] == above
            verdicts.append(bool(above))
        mine = excess(found.data.noise_floor_proportion.values)
        np.testing.assert_allclose(mine, signs.above_floor[:4], atol=1e-12)
    assert set(verdicts) == {True, False}


def test_an_interval_covers_what_lies_in_it():
    replicates = np.arange(101)[:, None].repeat(4, axis=1)
    assert covered(replicates, np.array([4, 5, 95, 96]), 0.9).tolist() == [False, True, True, False]
    assert covered(np.full((100, 1), 7), np.array([7]), 0.9).all()


def test_a_roc_curve_counts_pairs():
    rng = np.random.default_rng(0)
    null, planted = rng.integers(0, 6, 15) / 10, rng.integers(2, 9, 20) / 10
    false, true = roc(null, planted)
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    pairs = planted[:, None] - null
    assert area(false, true) == pytest.approx(((pairs > 0) + (pairs == 0) / 2).mean())


def test_power_is_enough_where_it_stays_enough():
    assert enough([0.1, 0.2, 0.3], [0.8, 0.9, 1.0]) == 0.1
    assert enough([0.1, 0.2, 0.3], [0.8, 0.7, 1.0]) == 0.3
    assert enough([0.1, 0.2], [1.0, 0.7]) is None


def test_the_interval_of_a_rate_is_that_of_the_score():
    from scipy.stats import binomtest

    for hits, count in ((0, 240), (7, 30), (30, 30)):
        expected = binomtest(hits, count).proportion_ci(0.95, method="wilson")
        assert wilson(hits, count) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_no_two_networks_of_the_study_share_a_seed():
    plans = list(QUICK.plans())
    assert len({plan.seed for plan in plans}) == len(plans) == 32
    null = [plan.null == plan for plan in plans]
    assert sum(null) == len(plans) / 2
    assert len(QUICK.populations()) == 4


@pytest.fixture(scope="module")
def rows():
    grid = replace(QUICK, sizes=((20, 20),), seeds=1)
    return pd.DataFrame([analysed(grid, plan) for plan in grid.plans()])


def test_the_study_has_one_row_per_network(rows):
    assert rows["null"].sum() == 4
    shares = rows.drop(columns=["null", "size", "head", "units", "strength"]).astype(float)
    shares = shares.drop(columns=["overfitted_excess", "generalizing_excess"])
    assert ((shares >= 0) & (shares <= 1) | shares.isna()).all(axis=None)
    redone = rows["redone_test"].notna()
    assert (redone == (rows["head"] == "linear")).all()


def test_the_tables_count_the_rows(rows):
    rows = rows.assign(overfitted_called=~rows["null"], generalizing_called=rows["null"])
    text = planted_report.document(rows, "settings")
    assert "**False calls of overfitted units**: 0.0 % (0 of 4)" in text
    assert "**False calls of generalizing units**: 100.0 % (4 of 4)" in text
    assert "at most 5% does not hold" in text
    assert "20/20: 0.1, none; all: 0.1, none" in text
    assert "20/20: none, none; all: none, none" in text
    left, right = planted_report.figure(rows).axes
    assert len(left.get_lines()) == 3
    assert [line.get_ydata().tolist() for line in right.get_lines()[:2]] == [[1, 1], [0, 0]]
