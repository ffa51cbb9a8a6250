"""Draws, intervals and tests keep what they promise; the tables of a result say what was drawn."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
import unitroles as ur
from forcing import analyze_toy, one_copy, quietly
from unitroles import roles
from unitroles.report import text
from unitroles.results import evidence
from unitroles.results.signs import ABOVE, TOO_FEW, WITHIN
from unitroles.stats import draws
from unitroles.stats.agreement import overlap
from unitroles.stats.evidence import (
    adjusted,
    different,
    fdr_adjusted,
    interval,
    permutation_p,
    proportions_at,
    weigh,
    weigh_again,
)
from unitroles.stats.minima import basin, one_error_point, status

seeds = st.integers(0, 2**20)


@st.composite
def splits(draw):
    """The classes of the samples of both splits, in no order; each class in both."""
    found = []
    for _ in range(2):
        counts = draw(st.lists(st.integers(1, 9), min_size=3, max_size=3))
        found.append(draw(st.permutations(np.repeat(range(3), counts).tolist())))
    return [np.array(classes) for classes in found]


@settings(max_examples=30, deadline=None)
@given(splits(), seeds)
def test_halves_are_disjoint_and_of_one_size(classes, seed):
    found = draws.halves(classes, 3, 4, seed)
    samples = np.stack([np.bincount(mine, minlength=3) for mine in classes])
    for split, mine in enumerate(classes):
        weights = found.weights[split]
        own, others = (
            weights[:, 2 * split : 2 * split + 2],
            weights[:, [2, 3] if not split else [0, 1]],
        )
        assert not others.any()
        assert own.sum(axis=1).max(initial=0) <= 1
        for label in range(3):
            assert (own[..., mine == label].sum(axis=2) == samples[:, label].min() // 2).all()


@settings(max_examples=30, deadline=None)
@given(splits(), seeds)
def test_new_splits_use_every_sample_once_and_keep_the_sizes(classes, seed):
    found = draws.resplits(classes, 3, 4, seed)
    for weights in found.weights:
        np.testing.assert_array_equal(weights.sum(axis=1), 1)
    for label in range(3):
        for part in (0, 1):
            size = sum(
                weights[:, part][:, mine == label].sum(axis=1, dtype=int)
                for weights, mine in zip(found.weights, classes, strict=True)
            )
            assert (size == (classes[part] == label).sum()).all()


def test_draws_differ_by_replicate_and_by_seed():
    classes = [np.zeros(40, dtype=int)] * 2
    for deal in (draws.halves, draws.resplits):
        first, again, other = (deal(classes, 1, 2, seed).weights[0] for seed in (0, 0, 1))
        np.testing.assert_array_equal(first, again)
        assert (first != other).any()
        assert (first[0] != first[1]).any()


def test_weights_are_keyed_by_sample_and_are_poisson():
    rows = np.arange(3000)
    classes = np.zeros(3000, dtype=int)
    whole = draws.reweighted([classes] * 2, [rows] * 2, 1, 3, 0).weights[0][:, 0]
    some = rows[::7][::-1].copy()
    found = draws.reweighted([classes[: len(some)]] * 2, [some] * 2, 1, 3, 0).weights[0][:, 0]
    np.testing.assert_array_equal(found, whole[:, some])
    counts = np.bincount(whole.ravel(), minlength=4)[:4] / whole.size
    np.testing.assert_allclose(counts, np.exp(-1) / np.array([1, 1, 2, 6]), atol=0.015)


def test_a_class_never_weighs_nothing():
    classes = np.repeat(np.arange(50), 1)
    found = draws.reweighted([classes] * 2, [np.arange(50)] * 2, 50, 20, 0)
    for split in (0, 1):
        assert (found.weights[split][:, split] > 0).all()


@settings(max_examples=50, deadline=None)
@given(seeds, st.integers(1, 8))
def test_shares_at_turning_points_are_those_of_the_active_sets(seed, units):
    rng = np.random.default_rng(seed)
    order = np.stack([rng.permutation(units) for _ in range(2)])
    point = rng.integers(1, units + 1, (2, 5))
    for column, share in zip(point.T, proportions_at(order, point), strict=True):
        sets = [order[i][: column[i]] for i in range(2)]
        role = reference.roles(*sets, units)[None]
        np.testing.assert_allclose(share, reference.proportions(role)[0], atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(seeds, st.floats(0.05, 0.95))
def test_bounds_are_ordered_and_lie_among_the_replicates(seed, level):
    values = np.random.default_rng(seed).random((30, 4))
    low, high = interval(values, level)
    assert (values.min(axis=0) <= low).all()
    assert (low <= high).all()
    assert (high <= values.max(axis=0)).all()
    wider_low, wider_high = interval(values, (1 + level) / 2)
    assert (wider_low <= low).all()
    assert (high <= wider_high).all()


@pytest.mark.parametrize("seed", range(6))
def test_more_samples_narrow_the_interval(seed):
    """That of E(n) to half for four times the samples; that of n0, too."""
    rng = np.random.default_rng(seed)
    losses = rng.random((1600, 5)) + np.array([2.0, 0.54, 0.5, 0.52, 0.56])
    widths, spreads = [], []
    for size in (25, 100, 400, 1600):
        drawn = draws.reweighted([np.zeros(size, int)] * 2, [np.arange(size)] * 2, 1, 200, seed)
        found = weigh(losses[:size], drawn.weights[0][:, 0], np.arange(5), 1e-6, 0.9)
        widths.append((found.high - found.low).mean())
        spreads.append(np.ptp(interval(found.point, 0.9)))
    ratios = np.array(widths[:-1]) / widths[1:]
    assert (np.abs(ratios - 2) < 0.5).all()
    assert spreads[0] > spreads[-1]


def test_many_points_and_masks_are_worked_on_some_at_a_time():
    """As many as come in three pieces, against all at once."""
    rng = np.random.default_rng(0)
    order = np.stack([rng.permutation(5), rng.permutation(5)])
    point = rng.integers(0, 6, (2, 10, 15))
    found = proportions_at(order, point)
    for place in np.ndindex(10, 15):
        first, second = (set(o[: p[place]]) for o, p in zip(order, point, strict=True))
        wanted = [len(first & second), len(first - second), len(second - first)]
        np.testing.assert_allclose(found[place][:3], np.array(wanted) / 5)
    losses = rng.random((9, 150))
    error = weigh(losses, np.ones((2, 9), dtype=np.uint8), np.arange(150), 1e-6, 0.9).paired_error
    lowest = losses[:, losses.mean(axis=0)[1:].argmin() + 1]
    wanted = [np.std(column - lowest, ddof=1) / 3 for column in losses.T]
    np.testing.assert_allclose(error, wanted, atol=1e-12)


def test_p_counts_the_draws_that_reach_what_was_observed():
    drawn = np.array([[0.1], [0.2], [0.2], [0.3]])
    assert permutation_p(np.array([0.2]), drawn) == pytest.approx(4 / 5)
    assert permutation_p(np.array([0.31]), drawn) == pytest.approx(1 / 5)


def test_p_is_exact_where_all_splits_are_drawn():
    """Over all splits of a few numbers, at most a share a has p of at most a."""
    numbers = np.array([1.0, 2.5, 3.0, 4.7, 9.0, 2.2])
    found = [numbers[list(some)].mean() for some in combinations(range(6), 3)]
    p = [(np.sum(np.array(found) >= value)) / len(found) for value in found]
    ours = [permutation_p(np.array(v), np.delete(found, i)) for i, v in enumerate(found)]
    np.testing.assert_allclose(ours, p)


def test_classes_are_adjusted_only_where_one_alone_can_be_rejected():
    p = np.array([0.005, 0.9, 0.8, 0.7])
    assert adjusted(p, 19) is None
    found = adjusted(p, 199)
    assert found is not None
    np.testing.assert_allclose(found, [0.02, 0.9, 0.9, 0.9])


ASKED = ur.Evidence(floors=20, resplits=6, bootstrap="full", replicates=6, seed=1)


@pytest.fixture(scope="module")
def taxonomy():
    return analyze_toy(one_copy("mlp", torch.float64), evidence=ASKED)[0]


def test_the_tables_are_means_of_what_was_drawn(taxonomy):
    data, frame = taxonomy.data, taxonomy.floors()
    both = data.noise_floor_proportion.sel(drawn_from="both").values.mean(axis=(0, 1))
    train, test = (data.noise_floor_proportion.sel(drawn_from=s).values for s in ("train", "test"))
    np.testing.assert_allclose(frame.observed, both)
    larger = np.maximum(train.mean(axis=(0, 1)), test.mean(axis=(0, 1)))
    np.testing.assert_allclose(frame.noise_floor, larger)
    np.testing.assert_allclose(frame.above_floor, both - larger)
    for name, share in (("train", train), ("test", test)):
        low, high = np.percentile(share.mean(axis=1), [5, 95], axis=0)
        np.testing.assert_allclose(frame[f"{name}_low"], low)
        np.testing.assert_allclose(frame[f"{name}_high"], high)
    summary = taxonomy.summary()
    np.testing.assert_allclose(
        summary[["observed", "noise_floor"]], frame[["observed", "noise_floor"]]
    )
    assert (summary.low <= summary.high).all()
    assert summary.low.min() >= 0
    assert summary.high.max() <= 1
    tested = taxonomy.exchangeability()
    own = different(roles.proportions(data.role.values).mean(axis=0))
    np.testing.assert_allclose(tested.observed, own)
    assert tested.attrs["smallest_p"] == pytest.approx(1 / 7)
    assert tested.p.between(1 / 7, 1).all()


def test_signs_are_measured_by_one_rule_on_the_result_and_on_its_draws(taxonomy):
    data, signs = taxonomy.data, taxonomy.signs()
    share = roles.proportions(data.role.values)
    n0 = data.turning_point.values / data.sizes["unit"]
    value = [*share.mean(axis=0), share[:, 0].std(), (n0[0] - n0[1]).mean()]
    np.testing.assert_allclose(signs.value, [*value, taxonomy.regret().test.mean()])
    floors = taxonomy.floors()
    for name in ("observed", "noise_floor", "above_floor", "noise_floor_95"):
        np.testing.assert_allclose(signs[name][:4], floors[name])
    cost = data.noise_floor_regret.sel(drawn_from=["train", "test", "both"])[:, :, 1].mean("label")
    observed = cost.sel(drawn_from="both").mean()
    larger = max(cost.sel(drawn_from=name).mean() for name in ("train", "test"))
    found = signs.loc["regret", ["observed", "noise_floor"]].to_list()
    np.testing.assert_allclose(found, [observed, larger])
    again = np.percentile(data.regret_replicate.sel(split="test").mean("label"), [5, 95])
    np.testing.assert_allclose(signs.loc["regret", ["low", "high"]].to_list(), again)
    loose = taxonomy.sensitivity().loc["tolerance 0.01"]
    np.testing.assert_allclose(signs["at_tolerance_0.01"][:4], loose)
    above = signs.observed > signs.noise_floor_95
    for sign in ("overfitted", "generalizing", "n0_train_minus_test", "regret"):
        assert signs.finding[sign] == (ABOVE if above[sign] else WITHIN)
    assert (signs.finding[["core", "confusing", "core_std_over_classes"]] == "").all()
    np.testing.assert_allclose(
        floors.noise_floor_std_over_labels,
        np.max(
            [np.std(data.noise_floor_proportion[i], axis=1).mean(axis=0) for i in (0, 1)], axis=0
        ),
    )


def test_flat_minima_and_the_rule_of_one_error_are_tables(taxonomy):
    data, frame = taxonomy.data, taxonomy.minima(0.05)
    loss, point = data.loss.values, data.turning_point.values
    for name, values in zip(("low", "high", "width"), basin(loss, point, 0.05), strict=True):
        np.testing.assert_array_equal(frame[name], values.ravel())
    assert (frame.status == data.status.values.ravel()).all()
    assert (frame.status == status(loss, point).ravel()).all()
    common = data.samples.values.min(axis=0)
    one = one_error_point(loss, data.paired_error.values, data.samples.values, common, point)
    np.testing.assert_array_equal(frame.one_error, one.ravel())
    assert (frame.one_error <= frame.turning_point).all()
    assert (frame.one_error < frame.turning_point).any()
    role = roles.roles_at(data.order.values, one)
    row = taxonomy.sensitivity().loc["one standard error"]
    np.testing.assert_allclose(row, roles.proportions(role).mean(axis=0))
    assert "one standard error" in text.report(taxonomy)
    plain = analyze_toy(one_copy("mlp", torch.float64))[0]
    assert "one_error" not in plain.minima()
    assert "one standard error" not in plain.sensitivity().index
    with pytest.raises(ur.InputError, match=r"delta must be 0 or more nats, not -1\.0"):
        plain.minima(-1.0)


def test_one_error_is_that_of_the_smaller_split(taxonomy):
    data = taxonomy.data
    more = data.assign(samples=data.samples * np.array([[9], [1]]))
    given = data.loss.values, data.paired_error.values, more.samples.values
    point, fewer = data.turning_point.values, more.samples.values.min(axis=0)
    found = evidence.minima(more, 0.01, 0.9).one_error.to_numpy().reshape(point.shape)
    np.testing.assert_array_equal(found, one_error_point(*given, fewer, point))
    larger = one_error_point(*given, more.samples.values.max(axis=0), point)
    assert (found < larger).any()


def test_agreement_is_a_table_and_is_printed(taxonomy):
    data, frame = taxonomy.data, taxonomy.agreement()
    found = overlap(data.order.values, data.turning_point.values)
    for name in frame.columns.drop("adjusted_p"):
        np.testing.assert_array_equal(frame[name], getattr(found, str(name)))
    np.testing.assert_array_equal(frame.adjusted_p, fdr_adjusted(found.p))
    assert evidence.by_chance(frame) == frame.index[frame.adjusted_p > 0.05].tolist()
    assert "Agreement of train and test" in text.report(taxonomy)
    shared = analyze_toy(one_copy("mlp", torch.float64), method=ur.Method(order="train"))[0]
    assert evidence.by_chance(shared.agreement()) is None
    assert "one order for both splits" in text.report(shared)


def test_a_core_as_large_as_chance_makes_it_is_named():
    p = [0.001, 0.06, 0.9, np.nan]
    frame = pd.DataFrame({"adjusted_p": p}, index=["ant", "bee", "cat", "dog"])
    assert evidence.by_chance(frame) == ["bee", "cat"]


def test_units_of_a_role_with_confidence(taxonomy):
    chance = taxonomy.data.role_probability.values
    np.testing.assert_allclose(chance.sum(axis=-1), 1, atol=1e-6)
    for k, label in enumerate(taxonomy.labels):
        undecided = set(taxonomy.units(0, label, confidence=0.9).tolist())
        decided = set()
        for role in (1, 2, 3, 4):
            sure = set(taxonomy.units(role, label, confidence=0.9).tolist())
            assert sure == set(np.flatnonzero(chance[k, :, role - 1] >= 0.9).tolist())
            decided |= sure
        assert undecided == set(range(chance.shape[1])) - decided
    assert any(len(taxonomy.units(0, label, confidence=0.9)) for label in taxonomy.labels)
    with pytest.raises(ur.InputError, match="confidence must be above 0.5 and at most 1, not 0.3"):
        taxonomy.units("core", taxonomy.labels[0], confidence=0.3)


def test_evidence_survives_a_file_and_is_printed(taxonomy, tmp_path):
    again = ur.load(taxonomy.save(tmp_path / "a.nc"))
    assert again.data.equals(taxonomy.data)
    printed = text.report(again)
    for part in ("Noise floor", "Exchangeability", evidence.ASKS, "90 % intervals", "Controls"):
        assert part in printed
    signs = again.signs()
    assert signs.sentence["overfitted"].startswith("overfitted proportion ")
    assert all(sentence in printed for sentence in signs.sentence)
    assert set(signs.finding) <= {ABOVE, WITHIN, ""}
    training = again.train_only_signs()
    assert list(training.index) == ["n0/N", "unstable units"]
    assert (training.dtypes[["value", "low", "high"]] == np.float64).all()


def test_what_was_not_measured_is_refused():
    plain = analyze_toy(one_copy("mlp", torch.float64))[0]
    asked = [
        plain.floors,
        plain.exchangeability,
        plain.intervals,
        plain.signs,
        lambda: plain.units("core", plain.labels[0], confidence=0.9),
    ]
    for call in asked:
        with pytest.raises(ur.InputError, match="no such evidence; analyse with evidence=Evid"):
            call()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"floors": -1}, "floors must be a whole number of at least 0, not -1"),
        ({"resplits": -2}, "resplits must be a whole number of at least 0, not -2"),
        ({"bootstrap": "some"}, "unknown bootstrap 'some'"),
        ({"replicates": 1}, "replicates must be a whole number of at least 2, not 1"),
        ({"level": 1.0}, "level must lie between 0 and 1, not 1.0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ur.InputError, match=message):
        ur.Evidence(**options)


def test_evidence_that_cannot_be_is_refused():
    toy = one_copy("mlp", torch.float32)
    given = toy.model, toy.train, toy.test, toy.layer
    adaptive = ur.Method(resolution="adaptive")
    with pytest.raises(ur.InputError, match="resolution 'adaptive' does not give; take 'exact'"):
        quietly(ur.analyze, *given, evidence=ur.Evidence(), method=adaptive)
    single = ur.Sample(max_per_class=1)
    with pytest.raises(ur.InputError, match="no class has two samples in both splits"):
        quietly(ur.analyze, *given, evidence=ur.Evidence(), sample=single)
    without = ur.Evidence(floors=0, replicates=2, resplits=2)
    assert text.report(quietly(ur.analyze, *given, evidence=without, sample=single))
    small = ur.Compute(batch_size=16, memory_budget=2000)
    with pytest.raises(ur.InputError, match="how often each of 60 samples counts in every draw"):
        quietly(ur.analyze, *given, evidence=ur.Evidence(), compute=small)
    few = ur.Evidence(floors=0, resplits=0, replicates=2, controls=False)
    with pytest.raises(ur.InputError, match="bootstrap holds the losses of a class's samples"):
        quietly(ur.analyze, *given, evidence=few, compute=small)


def test_training_signs_refuse_orders_that_test_samples_made():
    toy = one_copy("mlp", torch.float64)
    for order in ("train", "test", "pooled"):
        found = analyze_toy(toy, method=ur.Method(order=order))[0]
        if order == "train":
            (sentence,) = found.train_only_signs().sentence
            assert "nan" not in sentence
        else:
            with pytest.raises(ur.InputError, match="test samples rank the units of the training"):
                found.train_only_signs()


def test_training_signs_do_not_change_with_the_test_samples():
    toy = one_copy("mlp", torch.float64)
    x, y = toy.test
    first, second = (
        quietly(ur.analyze, toy.model, toy.train, (inputs, y), toy.layer, evidence=ASKED)
        for inputs in (x, x.flip(0) * 2)
    )
    assert not first.data.order.equals(second.data.order)
    assert first.train_only_signs().equals(second.train_only_signs())


def test_copies_of_a_sample_are_drawn_again_as_often_as_it_counts():
    weights = np.array([[3, 0, 1], [0, 0, 1]], dtype=np.uint8)
    first, second = draws.weighted_again(weights, 4000, (0,))
    np.testing.assert_allclose(first.mean(axis=0), [3, 0, 1], atol=0.1)
    np.testing.assert_allclose(first.var(axis=0), [3, 0, 1], atol=0.25)
    assert (second.sum(axis=1) > 0).all()  # a draw of nothing is the replicate itself


def test_a_class_of_one_sample_has_no_floor():
    toy = one_copy("mlp", torch.float32)
    x, y = toy.test
    keep = torch.cat([torch.nonzero(y != 0)[:, 0], torch.nonzero(y == 0)[:1, 0]])
    asked = ur.Evidence(floors=3, resplits=0, controls=False)
    found = quietly(ur.analyze, toy.model, toy.train, (x[keep], y[keep]), toy.layer, evidence=asked)
    assert found.data.noise_floor_samples[0] == 0
    assert np.isnan(found.data.noise_floor_proportion[:, :, 0]).all()
    assert np.isfinite(found.floors().to_numpy()).all()
    printed = text.report(found)
    assert "between sets of 0" not in printed
    assert "without 1 class of one sample in a split: 0" in printed
    of_one_sided = found.signs().finding[
        ["overfitted", "generalizing", "n0_train_minus_test", "regret"]
    ]
    assert (of_one_sided == TOO_FEW).all()  # 3 draws have no 95 % point


def test_losses_say_what_they_are_measured_in(taxonomy):
    data = taxonomy.data
    names = ["loss_low", "loss_high", "paired_error", "noise_floor_regret", "regret_replicate"]
    for name in [*names, "set_loss", "intact_loss"]:
        assert data[name].attrs["units"] == data.loss.attrs["units"] == "nats"


def test_a_loss_that_is_none_with_no_unit_retrieved_does_not_count_as_missed():
    draw = np.random.default_rng(0)
    losses = draw.gamma(2.0, size=(40, 6)) + np.array([2.0, 1.0, 0.5, 0.1, 0.2, 0.3])
    losses[:, 0] = np.nan
    weights = draw.poisson(1.0, size=(40, 40)).astype(np.uint8)
    found = weigh_again(losses, weights, np.arange(6), 1e-6, 0.9, (0,))
    share = found.covered[:, 1] * 5  # of the five n that have a loss
    np.testing.assert_allclose(share, share.round())
    assert share.max() == 5
