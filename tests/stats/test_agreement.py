"""How far the active sets of the two splits agree: against plain loops, chance and identities."""

from itertools import combinations
from math import comb, isnan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from unitroles import roles
from unitroles.stats import agreement
from unitroles.stats.agreement import PERSISTENCE, overlap, rank_biased_overlap, rank_correlation

FIELDS = [
    "lift",
    "jaccard",
    "p",
    "over_by_turning_points",
    "over_by_rank_swaps",
    "spearman",
    "rank_biased",
]


@st.composite
def settled(draw, shared=False):
    """Orders (split, label, position) and turning points (split, label)."""
    labels, units = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    permutation = st.permutations(range(units))
    splits = [[draw(permutation) for _ in range(labels)] for _ in range(1 if shared else 2)]
    point = draw(hnp.arrays(np.int32, (2, labels), elements=st.integers(1, units)))
    return np.array(splits * 2 if shared else splits, dtype=np.int32), point


def literal(one, other, n_train, n_test, persistence=PERSISTENCE):
    """One class by the definitions, unit by unit."""
    one, other, units = list(one), list(other), len(one)
    train, test = set(one[:n_train]), set(other[:n_test])
    core = len(train & test)
    draws = comb(units, n_test)
    tail = sum(
        comb(n_train, k) * comb(units - n_train, n_test - k)
        for k in range(core, min(n_train, n_test) + 1)
    )
    by_points = max(0, n_train - n_test) / units
    apart = sum((one.index(unit) - other.index(unit)) ** 2 for unit in range(units))
    # The series itself, long enough that the rest of it is nothing.
    weighed = 0.0
    for depth in range(1, 2000):
        first, second = set(one[:depth]), set(other[:depth])
        common = len(first & second) / min(depth, units)
        weighed += (1 - persistence) * persistence ** (depth - 1) * common
    return {
        "lift": (core / units) / ((n_train / units) * (n_test / units)),
        "jaccard": core / len(train | test),
        "p": float("nan") if one == other else tail / draws,
        "over_by_turning_points": by_points,
        "over_by_rank_swaps": len(train - test) / units - by_points,
        "spearman": 1 - 6 * apart / (units * (units**2 - 1)) if units > 1 else float("nan"),
        "rank_biased": weighed,
    }


@given(settled())
def test_every_value_is_that_of_the_literal_twin(pair):
    order, point = pair
    found = overlap(order, point)
    for label in range(point.shape[1]):
        wanted = literal(*order[:, label], *map(int, point[:, label]))
        assert list(wanted) == FIELDS
        for name, value in wanted.items():
            assert getattr(found, name)[label] == pytest.approx(value, abs=1e-9, nan_ok=True), name


@given(settled(), st.sampled_from([0.1, 0.5, 0.98]))
def test_the_persistence_is_used(pair, persistence):
    order, point = pair
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agreement, "PERSISTENCE", persistence)
        found = overlap(order, point).rank_biased
    wanted = [literal(*order[:, i], 1, 1, persistence)["rank_biased"] for i in range(len(found))]
    np.testing.assert_allclose(found, wanted, atol=1e-9)


@pytest.mark.parametrize(("n_train", "n_test"), [(1, 1), (2, 3), (4, 2), (3, 5), (5, 5)])
def test_chance_is_that_of_all_sets_of_these_sizes(n_train, n_test):
    order = np.array([[[0, 1, 2, 3, 4]], [[4, 0, 3, 2, 1]]])
    found = overlap(order, np.array([[n_train], [n_test]]))
    train, test = set(order[0, 0, :n_train].tolist()), set(order[1, 0, :n_test].tolist())
    cores = [len(train & set(drawn)) for drawn in combinations(range(5), n_test)]
    core = len(train & test)
    assert found.p[0] == pytest.approx(np.mean([c >= core for c in cores]))
    assert found.lift[0] == pytest.approx(core / np.mean(cores))


@given(settled())
def test_the_two_reasons_add_up_to_the_overfitted_share(pair):
    order, point = pair
    found = overlap(order, point)
    role = roles.roles_at(order, point)
    share = roles.proportions(role)
    total = found.over_by_turning_points + found.over_by_rank_swaps
    np.testing.assert_allclose(total, share[:, 1], atol=1e-12)
    # Every swap of ranks that makes an overfitted unit makes a generalizing one, too.
    np.testing.assert_allclose(
        found.over_by_rank_swaps, np.minimum(share[:, 1], share[:, 2]), atol=1e-12
    )


@given(settled(shared=True))
def test_one_shared_order_is_nested_and_no_matter_of_chance(pair):
    found = overlap(*pair)
    low, high = pair[1].min(axis=0), pair[1].max(axis=0)
    assert np.isnan(found.p).all()
    np.testing.assert_array_equal(found.over_by_rank_swaps, 0)
    np.testing.assert_allclose(found.lift, pair[0].shape[-1] / high)
    np.testing.assert_allclose(found.jaccard, low / high)
    np.testing.assert_allclose(found.rank_biased, 1)
    if pair[0].shape[-1] > 1:
        np.testing.assert_array_equal(found.spearman, 1)


@given(settled())
def test_swapping_the_splits_changes_only_the_reasons(pair):
    found, swapped = overlap(*pair), overlap(pair[0][::-1], pair[1][::-1])
    for name in ("lift", "jaccard", "p", "spearman", "rank_biased"):
        np.testing.assert_allclose(getattr(found, name), getattr(swapped, name), atol=1e-12)
    np.testing.assert_allclose(found.over_by_rank_swaps, swapped.over_by_rank_swaps, atol=1e-12)


def test_reversed_orders_have_the_known_correlation():
    order = np.arange(7)
    assert rank_correlation(order, order[::-1]) == -1
    assert rank_correlation(order, order) == 1


def test_early_positions_weigh_most():
    order = np.arange(8)
    early, late = order.copy(), order.copy()
    early[:2], late[-2:] = [1, 0], [7, 6]
    assert rank_correlation(order, early) == rank_correlation(order, late)
    assert rank_biased_overlap(order, early) < rank_biased_overlap(order, late) < 1


def test_a_single_unit_is_core_in_every_way():
    found = overlap(np.zeros((2, 3, 1), dtype=int), np.ones((2, 3), dtype=int))
    assert found.lift.tolist() == found.jaccard.tolist() == [1, 1, 1]
    np.testing.assert_allclose(found.rank_biased, 1)
    assert np.isnan(found.spearman).all()
    assert np.isnan(found.p).all()
    assert isnan(rank_correlation(np.array([0]), np.array([0])))


def test_many_units_do_not_overflow():
    units = 60_000
    order = np.stack([np.arange(units), np.arange(units)[::-1]])[:, None].astype(np.int32)
    point = np.full((2, 1), 50_000, dtype=np.int32)
    found = overlap(order, point)
    assert found.lift[0] == pytest.approx(40_000 * units / 50_000**2)
    assert found.spearman[0] == pytest.approx(-1)
    assert 0 <= found.rank_biased[0] < 0.01
