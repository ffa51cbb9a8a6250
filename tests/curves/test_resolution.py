"""Curves with some numbers of retrieved units left out: which ones, and what becomes of them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

import networks
import reference
import unitroles as ur
from forcing import PLANS, analyze_toy, forced, observe, one_copy
from unitroles import plots
from unitroles.engine import additive
from unitroles.engine.sums import Sums
from unitroles.report import text
from unitroles.roles import roles_at, turning_point
from unitroles.stats import grid as numbers
from unitroles.stats.grid import GAIN, SHARE, effective, expected, grid, hidden, most, refinement

pytestmark = pytest.mark.usefixtures("one_thread")

CURVES = hnp.arrays(
    np.float64,
    st.integers(2, 90),
    elements=st.one_of(st.floats(0, 4), st.sampled_from([0.0, 0.5, 0.5 + 5e-7, 0.5 + 2e-6])),
)
# Toys with a head that runs for every mask, under every plan that they can get.
TAILED = ["conv_pool_linear", "depthwise", "dropout_head", "mlp", "transformer"]
DEEP = [
    *((n, p, 3) for n in sorted(networks.TOYS) for p in ("suffix", "full")),
    *((n, p, "adaptive") for n in networks.WIDE for p in ("suffix", "full")),
]


def one(name: str) -> networks.Toy:
    """A toy in float64."""
    return (networks.wide if name in networks.WIDE else one_copy)(name, networks.torch.float64)


SAMPLES = st.lists(st.integers(1, 9), min_size=1, max_size=4)


def settled(curves: np.ndarray, samples) -> np.ndarray:
    """What the engine would know of the curves in the end."""
    points = grid(curves.shape[1] - 1, "adaptive")
    seen = np.full(curves.shape, np.nan)
    seen[:, points] = curves[:, points]
    wanted = refinement(seen, np.array(samples))
    assert np.isnan(seen[wanted]).all()  # nothing is evaluated twice
    seen[wanted] = curves[wanted]
    return seen


def drawn(seed: int, classes: int, units: int, rough: float) -> np.ndarray:
    """Curves that fall and rise and go up and down on the way, as random walks do."""
    draw = np.random.default_rng(seed)
    n, turn = np.arange(units + 1), draw.uniform(1, units, (classes, 1))
    walks = draw.normal(size=(classes, units + 1)).cumsum(axis=1) * rough / units**0.5
    return np.abs(n - turn) / units * draw.uniform(0.3, 3, (classes, 1)) + abs(walks)


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


@pytest.mark.parametrize("units", [1, 2, 5, 9, *range(11, 23), 60, 599])
def test_few_units_are_evaluated_exactly_and_others_within_the_share(units):
    few = units <= 12
    assert effective(units, "adaptive") == ("exact" if few else "adaptive")
    assert effective(units, 3) == 3
    assert (len(grid(units, "adaptive")) == units + 1) == few
    if not few:
        assert 2 * len(grid(units, "adaptive")) <= units + 1
        assert expected(units, "adaptive") <= most(units) <= SHARE * (units + 1)


@given(st.integers(0, 999), SAMPLES, st.integers(13, 200), st.sampled_from([0.0, 0.1, 1.0, 9.0]))
def test_refinement_knows_what_the_literal_twin_knows(seed, samples, units, rough):
    curves = drawn(seed, len(samples), units, rough)
    np.testing.assert_array_equal(settled(curves, samples), reference.adaptive(curves, samples))


@given(CURVES, SAMPLES)
def test_no_curves_take_more_than_their_share(curve, samples):
    curves = np.stack([np.roll(curve, k) for k in range(len(samples))])
    if len(curve) > 13:
        taken = np.array(samples) @ np.isfinite(settled(curves, samples)).sum(axis=1)
        assert taken <= SHARE * sum(samples) * len(curve)


@given(st.integers(0, 999), SAMPLES, st.integers(13, 200))
def test_everything_promising_is_evaluated_where_the_share_is_all(seed, samples, units):
    curves = drawn(seed, len(samples), units, 9.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numbers, "SHARE", 1.0)
        patch.setattr(numbers, "GAIN", -1.0)
        np.testing.assert_array_equal(settled(curves, samples), curves)


@given(st.integers(13, 300), st.floats(0, 1), st.floats(0.2, 3), st.floats(0.2, 3))
def test_a_curve_that_only_falls_and_then_only_rises_costs_little_where_it_turns(
    units, share, left, right
):
    n, turn = np.arange(units + 1), 1 + share * (units - 1)
    curve = np.where(n < turn, left, right) * np.abs(n - turn) / units
    seen = settled(curve[None], [1])[0]
    worse = curve[turning_point(seen)] - curve[turning_point(curve)]
    assert 0 <= worse <= hidden(seen) + 1e-6
    assert worse <= 5 * GAIN


def test_regret_of_random_walks_is_small_and_what_is_said_of_it_holds_nearly_always():
    worse, said, share = [], [], []
    for seed in range(60):
        curves = drawn(seed, 5, 64, 0.3)
        seen = settled(curves, [4, 6, 6, 6, 2])
        share.append(np.isfinite(seen).mean())
        for curve, known in zip(curves, seen, strict=True):
            worse.append(curve[turning_point(known)] - curve[1:].min())
            said.append(hidden(known))
    assert 0.2 < np.mean(share) < 0.6
    assert np.median(worse) == 0
    assert np.quantile(worse, 0.95) < 0.01
    assert np.mean(np.array(worse) > np.array(said) + 1e-6) < 0.05
    assert np.median(said) < 0.02


def test_the_worst_class_is_looked_at_first_and_the_share_is_of_all():
    """One smooth class leaves its evaluations to a rough one, which is evaluated almost whole."""
    smooth, rough = drawn(0, 1, 64, 0.0)[0], drawn(3, 1, 64, 9.0)[0] + 3
    together = np.isfinite(settled(np.stack([smooth, rough]), [1, 1])).mean(axis=1)
    alone = np.isfinite(settled(rough[None], [1])).mean()
    assert together[0] < 0.5 < alone <= SHARE < 0.85 < together[1]


def test_a_loss_that_is_none_without_units_counts_as_evaluated():
    curves = drawn(3, 2, 64, 9.0) + 3
    seen = settled(curves, [1, 2])
    assert np.isfinite(seen).mean() > SHARE - 0.05  # the share is used up
    curves[:, 0] = np.nan
    np.testing.assert_array_equal(settled(curves, [1, 2])[:, 1:], seen[:, 1:])


def test_an_interval_too_long_for_what_is_left_gets_its_middle():
    curve = drawn(3, 1, 64, 9.0) + 3
    seen = np.isfinite(settled(curve, [1]))[0]
    left = SHARE * 65 - seen.sum()
    gaps = np.diff(np.flatnonzero(seen)) - 1
    assert 0 <= left < 1
    assert (gaps > 0).any()


def test_what_may_be_hidden():
    curve = np.array([2.0, 1.0, np.nan, 0.5, 0.6, 0.5])
    flat = np.array([2.0, 1.0, np.nan, np.nan, 1.0, 1.0])
    assert hidden(np.array([np.nan, 1.0, 0.5])) == 0.0
    assert hidden(flat) == 0.0  # it goes nowhere
    assert hidden(curve - 9) > 0.2  # negative as it is, it has no floor
    assert 0 < hidden(curve) < 0.5
    assert hidden(curve - 0.499) == pytest.approx(0.001)  # below that a loss would be negative
    nothing = curve.copy()
    nothing[0] = np.nan
    assert hidden(nothing) == hidden(curve)


@pytest.mark.parametrize(("name", "plan", "resolution"), DEEP)
def test_points_of_a_curve_equal_the_exact_ones_under_every_plan(name, plan, resolution):
    toy = one(name)
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
        alone = found.data.attrs["plan"] == "full"  # a run under one mask is of all classes
        wanted = np.stack(
            [
                np.concatenate([reference.adaptive(curve[None], [1]) for curve in curves])
                if alone
                else reference.adaptive(curves, samples)
                for curves, samples in zip(whole, data.samples.values, strict=True)
            ]
        )
        assert np.isfinite(wanted).sum() > np.isfinite(wanted).all(axis=(0, 1)).sum() * 8
        taken = (np.isfinite(wanted).sum(-1) * data.samples.values).sum(-1)
        assert (taken <= SHARE * data.samples.values.sum(-1) * whole.shape[-1]).all()
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


@pytest.mark.parametrize("name", ["mlp", "conv_pool_linear"])
def test_few_units_are_exact_and_the_result_says_so(name):
    with forced("suffix"):
        found, _ = analyze_toy(one(name), method=ur.Method(resolution="adaptive"))
    assert found.data.attrs["resolution"] == "exact"
    assert np.isfinite(found.data.loss.values).all()
    assert "hidden" not in found.minima()


@pytest.mark.usefixtures("uncompared")
@pytest.mark.parametrize(
    ("name", "resolution"), [*((n, 3) for n in TAILED), ("wide_mlp", "adaptive")]
)
def test_a_running_sum_with_a_deep_tail_leaves_points_out(name, resolution, monkeypatch):
    toy, rows, tail = one(name), [], Sums._tail

    def counting(self, many, values):
        rows.append(len(values[0]))
        return tail(self, many, values)

    exact, _ = analyze_toy(toy)
    monkeypatch.setattr(additive, "_WORTH_A_WALK", 0)
    monkeypatch.setattr(Sums, "_tail", counting)
    found, _ = analyze_toy(toy, method=ur.Method(resolution=resolution))
    assert found.data.attrs["plan"] == "additive"
    check_against(found, exact, resolution)
    # Beside these, the self-check runs a few masks on a few samples.
    curves = (np.isfinite(found.data.loss).sum("retrieved") * found.data.samples).sum().item()
    assert 0 <= sum(rows) - curves <= 20


def test_nothing_is_left_out_where_a_small_tail_follows_the_sum():
    """Where products of 8 x 8 follow a sum over 64 units, another walk takes longer than these."""

    def resolution(width):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width),
            nn.ReLU(), nn.Linear(width, 4),
        )  # fmt: skip
        toy, method = networks.toy("mlp"), ur.Method(resolution="adaptive")
        found, _ = observe(ur.analyze, net, toy.train, toy.test, layer="1", method=method)
        return found.data.attrs["resolution"]

    assert resolution(8) == "exact"
    assert resolution(64) == "adaptive"


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


def test_the_report_says_how_much_was_evaluated_and_what_may_be_hidden(coarse):
    share = 100 * np.isfinite(coarse[0].data.loss.values).mean()
    deep = max(hidden(curve) for curve in coarse[0].data.loss.values.reshape(8, -1))
    assert deep > 0
    assert (
        f", resolution every 4 units ({share:.0f} % of the curves' points evaluated; at the others "
        f"a loss may lie up to about {deep:.2g} nats below the minimum)"
    ) in text.report(coarse[0])
    assert coarse[0].minima().hidden.max() == deep


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
    toy = one("wide_conv")
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
