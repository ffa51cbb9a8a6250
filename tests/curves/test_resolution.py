"""Curves with some numbers of retrieved units left out: which ones, and what becomes of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import networks
import reference
import unitroles as ur
from forcing import PLANS, analyze_toy, forced, observe, one_copy
from unitroles import plots
from unitroles.engine.sums import Sums
from unitroles.report import text
from unitroles.roles import roles_at, turning_point
from unitroles.stats.grid import expected, grid, refinement

pytestmark = pytest.mark.usefixtures("one_thread")

CURVES = hnp.arrays(
    np.float64,
    st.integers(2, 90),
    elements=st.one_of(st.floats(0, 4), st.sampled_from([0.0, 0.5, 0.5 + 5e-7, 0.5 + 2e-6])),
)
# Toys with a head that runs for every mask, under every plan that they can get.
TAILED = ["conv_pool_linear", "depthwise", "dropout_head", "mlp", "transformer"]
DEEP = [(n, p) for n in sorted(networks.TOYS) for p in ("suffix", "full")]


def settled(curve: np.ndarray, tolerance: float) -> np.ndarray:
    """What the engine would know of a curve in the end."""
    points = grid(len(curve) - 1, "adaptive")
    seen = np.full(len(curve), np.nan)
    wanted = np.isin(np.arange(len(curve)), points)
    while wanted.any():
        seen[wanted] = curve[wanted]
        wanted = refinement(seen, points, tolerance)
        assert np.isnan(seen[wanted]).all()  # nothing is evaluated twice
    return seen


@given(st.integers(1, 600), st.one_of(st.just("adaptive"), st.integers(1, 700)))
def test_a_grid_holds_both_ends_and_steps_evenly_from_one(units, resolution):
    points = grid(units, resolution)
    assert points[:2].tolist() == [0, 1]
    assert points[-1] == units
    steps = np.diff(points[1:])
    assert (steps > 0).all()
    assert len(set(steps[:-1])) <= 1
    assert all(steps[-1:] <= steps[:1])
    if resolution != "adaptive":
        assert set(steps[:-1]) <= {resolution}
    assert len(points) <= expected(units, resolution) <= units + 1


@given(st.integers(1, 600))
def test_the_exact_grid_leaves_nothing_out(units):
    assert grid(units, "exact").tolist() == list(range(units + 1))
    assert expected(units, "exact") == units + 1


@given(CURVES, st.sampled_from([0.0, 1e-6, 0.1]))
def test_refinement_knows_what_the_literal_twin_knows(curve, tolerance):
    seen, wanted = settled(curve, tolerance), reference.adaptive(curve, tolerance)
    np.testing.assert_array_equal(seen, wanted)


@given(CURVES, st.sampled_from([0.0, 1e-6, 0.1]))
def test_a_turning_point_is_certain_within_the_neighbouring_points_of_the_grid(curve, tolerance):
    seen, points = settled(curve, tolerance), grid(len(curve) - 1, "adaptive")
    n0 = int(turning_point(seen, tolerance))
    low, high = points[points < n0].max(), points[points > n0].min(initial=len(curve) - 1)
    assert np.isfinite(seen[low : high + 1]).all()
    near = curve[max(low, 1) : high + 1]
    assert curve[n0] <= near.min() + tolerance
    assert (curve[max(low, 1) : n0] > np.nanmin(seen[1:]) + tolerance).all()


@given(st.integers(3, 300), st.floats(0, 1), st.floats(0.2, 3), st.floats(0.2, 3))
def test_a_curve_that_only_falls_and_then_only_rises_turns_where_the_exact_one_does(
    units, share, left, right
):
    n, turn = np.arange(units + 1), 1 + share * (units - 1)
    curve = np.where(n < turn, left, right) * np.abs(n - turn) / units
    seen = settled(curve, 1e-6)
    assert turning_point(seen) == turning_point(curve)
    if units >= 100 and max(left, right) <= 6 * min(left, right):  # flatter sides need more points
        assert np.isfinite(seen).mean() < 0.7


def test_a_dip_as_deep_as_one_that_was_seen_is_looked_for():
    """The grid sees a shallow bowl; between its points lie dips as deep as the one around n0."""
    curve = np.linspace(1.0, 0.9, 99)
    curve[[40, 90]] = 0.5, 0.4
    grid_only = grid(98, "adaptive")
    assert not np.isin([40, 90], grid_only).any()
    curve[grid_only[grid_only < 40].max()] = 0.8  # the lowest point of the grid
    assert turning_point(curve[:80]) == 40
    assert turning_point(settled(curve, 1e-6)) == turning_point(curve) == 90


@pytest.mark.parametrize("resolution", ["adaptive", 3])
@pytest.mark.parametrize(("name", "plan"), DEEP)
def test_points_of_a_curve_equal_the_exact_ones_under_every_plan(name, plan, resolution):
    toy = one_copy(name, networks.torch.float64)
    with forced(plan):
        exact, _ = analyze_toy(toy)
        found, _ = analyze_toy(toy, method=ur.Method(resolution=resolution))
    assert found.data.attrs["plan"] == plan
    assert found.data.attrs["resolution"] == resolution
    assert exact.data.attrs["resolution"] == "exact"
    assert found.provenance["options"]["method"]["resolution"] == resolution
    check_against(found, exact, resolution)


def check_against(found, exact, resolution):
    data, whole = found.data, exact.data.loss.values
    if resolution == "adaptive":
        wanted = np.apply_along_axis(reference.adaptive, -1, whole)
    else:
        wanted = np.full_like(whole, np.nan)
        points = grid(whole.shape[-1] - 1, resolution)
        wanted[..., points] = whole[..., points]
    np.testing.assert_allclose(data.loss.values, wanted, rtol=0, atol=1e-10)
    seen = np.isfinite(wanted)
    assert not seen.all()
    np.testing.assert_array_equal(np.isfinite(data.accuracy.values), seen)
    accuracy = exact.data.accuracy.values
    np.testing.assert_array_equal(data.accuracy.values[seen], accuracy[seen])
    np.testing.assert_array_equal(data.turning_point.values, turning_point(wanted))
    role = roles_at(data.order.values, data.turning_point.values)
    np.testing.assert_array_equal(data.role.values, role)
    assert np.isfinite(data.swapped_loss.values).all()
    assert np.isfinite(found.regret().values).all()
    assert np.isfinite(found.sensitivity().values).all()
    for name in ("score", "order", "samples"):
        np.testing.assert_array_equal(data[name], exact.data[name])
    for name in ("train_accuracy", "test_accuracy"):
        assert data.attrs[name] == exact.data.attrs[name]


@pytest.mark.usefixtures("uncompared")
@pytest.mark.parametrize("resolution", ["adaptive", 3])
@pytest.mark.parametrize("name", TAILED)
def test_a_running_sum_with_a_deep_tail_leaves_points_out(name, resolution, monkeypatch):
    toy, rows, tail = one_copy(name, networks.torch.float64), [], Sums._tail

    def counting(self, many, values):
        rows.append(len(values[0]))
        return tail(self, many, values)

    exact, _ = analyze_toy(toy)
    monkeypatch.setattr(Sums, "_tail", counting)
    found, _ = analyze_toy(toy, method=ur.Method(resolution=resolution))
    assert found.data.attrs["plan"] == "additive"
    check_against(found, exact, resolution)
    # Beside these, the self-check runs a few masks on a few samples.
    curves = (np.isfinite(found.data.loss).sum("retrieved") * found.data.samples).sum().item()
    assert 0 <= sum(rows) - curves <= 20


@pytest.mark.parametrize("resolution", ["adaptive", 3])
def test_nothing_is_left_out_where_the_curve_is_one_running_sum(resolution):
    toy = one_copy("conv_bn_gap", networks.torch.float64)
    exact, _ = analyze_toy(toy)
    found, _ = analyze_toy(toy, method=ur.Method(resolution=resolution))
    assert found.data.attrs["plan"] == "additive"
    assert found.data.attrs["resolution"] == "exact"
    np.testing.assert_array_equal(found.data.loss, exact.data.loss)


@pytest.mark.parametrize("plan", PLANS)
def test_curves_of_means_equal_the_literal_twin(plan):
    toy = one_copy("conv_bn_gap", networks.torch.float64)
    with forced(plan):
        found, _ = analyze_toy(toy, method=ur.Method(baseline="mean"))
    site = (toy.layer, toy.train, toy.test, toy.axis, toy.call)
    wanted = reference.analyze(toy.model, *site, baseline="mean")
    zero = reference.analyze(toy.model, *site)
    assert abs(wanted.loss - zero.loss).max() > 0.01
    assert found.data.attrs["plan"] == plan
    for name in ("order", "turning_point", "role", "accuracy", "swapped_accuracy"):
        np.testing.assert_array_equal(found.data[name], getattr(wanted, name), err_msg=name)
    for name in ("loss", "swapped_loss"):
        np.testing.assert_allclose(found.data[name], getattr(wanted, name), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"resolution": "fine"}, "unknown resolution 'fine'; known: exact, adaptive, a whole"),
        ({"resolution": "adaptiv"}, "did you mean adaptive"),
        ({"resolution": 0}, "resolution must be a whole number of at least 1, not 0"),
        ({"resolution": True}, "resolution must be a text or a whole number, not True"),
        ({"baseline": "median"}, "unknown baseline 'median'; did you mean mean"),
    ],
)
def test_what_cannot_be_meant_is_refused(options, said):
    with pytest.raises(ur.InputError, match=said):
        ur.Method(**options)


@pytest.fixture(scope="module")
def coarse():
    with forced("suffix"):
        return analyze_toy(one_copy("mlp", networks.torch.float32), method=ur.Method(resolution=4))


def test_what_was_left_out_stays_so_in_a_file(coarse, tmp_path):
    again = ur.load(coarse[0].save(tmp_path / "a.nc"))
    np.testing.assert_array_equal(again.data.loss, coarse[0].data.loss)
    assert again.data.attrs["resolution"] == 4
    assert again.curves().loss.isna().any()


def test_the_report_says_how_much_was_evaluated(coarse):
    share = 100 * np.isfinite(coarse[0].data.loss.values).mean()
    assert f", resolution every 4 units ({share:.0f} % of the curves' points" in text.report(
        coarse[0]
    )


def test_figures_join_the_points_that_were_evaluated(coarse):
    loss = coarse[0].data.loss.values[0, 0]
    there = np.flatnonzero(np.isfinite(loss))
    (line,) = (x for x in plots.rof_curve(coarse[0], 0).lines if x.get_gid() == "curve")
    np.testing.assert_array_equal(line.get_xdata(), there)
    np.testing.assert_array_equal(line.get_ydata(), loss[there])
    assert line.get_marker() == "o"
    curves, _ = plots.role_curves(coarse[0], 0)
    (line,) = (x for x in curves.lines if x.get_gid() == "train curve")
    np.testing.assert_array_equal(line.get_xdata(), there)
    figure = plots.compare({"a": coarse[0]}, 0)
    assert any(x.get_gid() == "train curve" for ax in figure.axes for x in ax.lines)
    figure.canvas.draw()


@pytest.mark.parametrize("plan", ["suffix", "full"])
@pytest.mark.parametrize("resolution", ["adaptive", 5])
def test_a_forecast_counts_the_points(plan, resolution):
    toy = one_copy("conv_bn_gap", networks.torch.float32)
    method = ur.Method(resolution=resolution)
    with forced(plan):
        found, _ = observe_plan(toy, method)
    points = expected(found.units, resolution)
    assert points < found.units + 1
    assert found.head_forwards == sum(found.samples) * (points + 1)


def observe_plan(toy, method):
    layer = ur.Layer(toy.layer, toy.axis, toy.call)
    return observe(
        lambda *args, progress, compute, **options: ur.plan(*args, **options),
        *(toy.model, toy.train, toy.test),
        layer=layer,
        method=method,
    )
