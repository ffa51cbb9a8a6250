"""Basins, one-error points and the words for minima: against plain loops and by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from unitroles import roles
from unitroles.stats.minima import CLEAR, NEVER_FALLS, basin, one_error_point, status

NAN = float("nan")
# Few distinct values, so that runs and ties occur; some n are not evaluated.
LOSSES = st.one_of(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0]), st.floats(0, 2), st.just(NAN))


@st.composite
def measured(draw):
    """Curves (rows, retrieved) and their turning points; the ends are always evaluated."""
    shape = draw(st.tuples(st.integers(1, 3), st.integers(2, 14)))
    curves = draw(hnp.arrays(np.float64, shape, elements=LOSSES))
    curves = np.where(
        np.isnan(curves) & np.isin(np.arange(shape[1]), [0, 1, shape[1] - 1]), 1.5, curves
    )
    return curves, roles.turning_point(curves)


def literal_basin(curve, point, delta):
    """Walk away from n0 in both directions."""
    good = [n for n in range(1, len(curve)) if curve[n] <= curve[point] + delta]
    ends = []
    for step in (-1, 1):
        end = n = point
        while 1 <= n < len(curve) and (n in good or math.isnan(curve[n])):
            end = n if n in good else end
            n += step
        ends.append(end)
    return (*ends, len(good))


@given(measured(), st.sampled_from([0.0, 1e-6, 0.1, 0.25, 5.0]))
def test_a_basin_is_what_a_walk_from_the_turning_point_finds(pair, delta):
    curves, points = pair
    found = np.stack(basin(curves, points, delta), axis=-1).tolist()
    rows = zip(curves.tolist(), points.tolist(), strict=True)
    assert found == [list(literal_basin(curve, point, delta)) for curve, point in rows]


@given(measured(), st.floats(0, 2), st.floats(0, 2))
def test_a_larger_delta_never_makes_a_basin_smaller(pair, one, other):
    small, large = (basin(*pair, delta) for delta in sorted([one, other]))
    assert (large[0] <= small[0]).all()
    assert (large[1] >= small[1]).all()
    assert (large[2] >= small[2]).all()


def test_a_delta_may_be_given_for_every_curve():
    curves = np.tile([2.0, 0.6, 0.9, 0.5, 0.6, 0.9], (2, 2, 1))
    found = basin(curves, roles.turning_point(curves), np.array([[0.0, 0.1], [0.2, 0.4]]))
    assert found[0].tolist() == [[3, 3], [3, 1]]
    assert found[1].tolist() == [[3, 4], [4, 5]]
    assert found[2].tolist() == [[1, 3], [3, 5]]


def test_what_was_not_evaluated_neither_counts_nor_interrupts():
    curve = np.array([2.0, 0.9, 0.5, NAN, NAN, 0.55, NAN, 0.9, 0.5])
    assert [int(n) for n in basin(curve, np.array(2), 0.1)] == [2, 5, 3]


def test_one_unit_is_its_own_basin():
    assert [int(n) for n in basin(np.array([2.0, 1.0]), np.array(1), 0.1)] == [1, 1, 1]


def test_a_curve_without_numbers_has_an_empty_basin_at_its_point():
    assert [int(n) for n in basin(np.full(4, NAN), np.array(2), 0.1)] == [2, 2, 0]


def literal_one_error(curve, error, samples, common, point):
    for n in range(1, len(curve)):
        spread = error[n] * math.sqrt(samples)  # of a single sample
        if n == point or curve[n] <= curve[point] + spread / math.sqrt(common):
            return n
    return None


@given(measured(), st.data())
def test_the_one_error_point_is_that_of_a_search_from_below(pair, data):
    curves, points = pair
    error = data.draw(hnp.arrays(np.float64, curves.shape, elements=LOSSES))
    samples = data.draw(hnp.arrays(np.int64, len(curves), elements=st.integers(1, 50)))
    common = data.draw(st.integers(1, 50))
    found = one_error_point(curves, error, samples, common)
    for row, point in enumerate(points.tolist()):
        arguments = curves[row], error[row], samples[row], common, point
        assert found[row] == literal_one_error(*arguments)
    assert (found <= points).all()


@given(measured(), st.floats(0.01, 1), st.floats(0.01, 1))
def test_a_larger_error_never_moves_the_point_up(pair, one, other):
    curves, count = pair[0], np.full(len(pair[0]), 9)
    small, large = (
        one_error_point(curves, np.full_like(curves, error), count, 9)
        for error in sorted([one, other])
    )
    assert (large <= small).all()


def test_both_splits_are_granted_a_tolerance_of_one_size():
    curve, spread = np.array([2.0, 0.75, 0.625, 0.5]), np.array([1.0, 1.0, 1.0, 0.0])
    samples = np.array([[400], [25]])
    error = spread / np.sqrt(samples)[..., None]  # (split, label, retrieved)
    curves = np.broadcast_to(curve, (2, 1, 4)).copy()
    for common, point in [(25, 2), (10, 1), (100, 3)]:
        assert one_error_point(curves, error, samples, common).tolist() == [[point], [point]]
    own = one_error_point(curves, error, samples, samples)
    assert own.tolist() == [[3], [2]]


def test_without_any_error_the_turning_point_stays():
    curves = np.array([[2.0, 0.5001, 0.5, 0.6], [2.0, 0.9, 0.8, 0.8]])
    found = one_error_point(curves, np.full((2, 4), NAN), np.array([1, 1]), 1)
    assert found.tolist() == [2, 2]


def test_the_point_may_be_given():
    curve, error = np.array([2.0, 0.7, 0.55, 0.5]), np.array([0.3, 0.1, 0.02, 0.0])
    assert one_error_point(curve, error, np.array(9), 9) == 3
    assert one_error_point(curve, error, np.array(9), 9, point=np.array(2)) == 2
    assert one_error_point(curve, 2 * error, np.array(9), 9, point=np.array(2)) == 1


def words(*losses, point=None):
    curve = np.array(losses)
    at = roles.turning_point(curve) if point is None else np.array(point)
    return status(curve, at).item()


def bowl(low, high, units):
    """1 at the bottom from `low` to `high`, and 5 elsewhere, but 11 with no unit."""
    curve = np.full(units + 1, 5.0)
    curve[low : high + 1] = 1.05
    curve[(low + high) // 2] = 1.0
    return [11.0, *curve[1:].tolist()]


@pytest.mark.parametrize(
    ("losses", "text"),
    [
        ([1.0, 2.0, 1.5, 1.5], "never below the fully ablated layer"),
        ([1.0, 2.0, 1.5, 1.0 - 9e-7], "never below the fully ablated layer"),
        ([1.0, 1.0, 1.0, 1.0, 1.0], "never below the fully ablated layer"),
        ([1.0, 2.0, 1.5, 1.0 - 2e-6], "still falling at 3"),
        ([2.0, 1.0], CLEAR),
        ([2.0, 1.5, 1.0], "still falling at 2"),
        ([2.0, 1.5, 1.001, 1.0005, 1.0], "still falling at 4"),
        ([2.0, 1.5, 1.0, 1.2], CLEAR),
        ([2.0, 1.5, 1.0, 1.005, 1.2], CLEAR),
        ([2.0, 1.5, 1.005, 1.0, 1.005, 1.2], "flat from n = 2 to 4"),
        ([2.0, 1.5, 1.011, 1.0, 1.005, 1.2], CLEAR),
        ([2.0, 1.5, 1.005, NAN, NAN, 1.0, NAN, 1.005, NAN, 1.2], "flat from n = 2 to 7"),
        ([2.0, 1.5, NAN, NAN, 1.0, NAN, 1.005, NAN, 1.2], CLEAR),
        (bowl(31, 74, 100), "flat from n = 31 to 74"),
        (bowl(31, 35, 100), CLEAR),
        (bowl(31, 36, 100), "flat from n = 31 to 36"),
    ],
)
def test_every_kind_of_minimum_has_its_words(losses, text):
    assert words(*losses) == text


def test_a_rise_above_one_hundredth_of_the_way_is_not_flat():
    assert words(2.0, 1.5, 1.04, 1.0, 1.04, 1.2) == CLEAR


def test_the_given_point_is_the_one_described():
    assert words(2.0, 1.0, 1.2, 1.001, point=3) == "still falling at 3"
    assert words(2.0, 1.0, 1.2, 1.001, point=1) == CLEAR


@given(measured())
def test_never_below_the_dead_layer_is_where_the_roles_say_so(pair):
    curves, points = pair
    found = status(curves, points)
    assert found.dtype == object
    assert found.shape == points.shape
    assert (found == NEVER_FALLS).tolist() == (~roles.falls(curves)).tolist()


@given(measured())
def test_flat_runs_are_basins(pair):
    curves, points = pair
    for curve, point, text in zip(curves, points, status(*pair).tolist(), strict=True):
        delta = 0.01 * (curve[0] - curve[point])
        low, high, _ = literal_basin(curve.tolist(), int(point), delta)
        assert (text == f"flat from n = {low} to {high}") == (
            text not in (CLEAR, NEVER_FALLS, f"still falling at {len(curve) - 1}")
        )
        if text == CLEAR:
            held = np.isfinite(curve[low : high + 1]).sum()
            assert high - low + 1 <= (len(curve) - 1) / 20 or held < 3


def test_without_a_loss_of_the_ablated_layer_a_rise_is_compared_with_the_highest_loss():
    """0/0 with no unit retrieved: the class is not flagged, the rest is read from n >= 1."""
    curves = np.array([[NAN, 2.0, 0.5, 0.51, 0.511, 1.0], [NAN, 0.5, 0.51, 0.511, 0.512, 0.513]])
    assert roles.falls(curves).tolist() == [True, True]
    points = roles.turning_point(curves)
    assert points.tolist() == [2, 1]
    assert status(curves, points).tolist() == ["flat from n = 2 to 4", CLEAR]
    ends = np.array([[NAN, 2.0, 1.0, 0.5]])
    assert status(ends, roles.turning_point(ends)).tolist() == ["still falling at 3"]
