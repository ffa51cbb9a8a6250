"""What goes with the gap over many models: against SciPy, plain loops and cases by hand."""

import math
import warnings
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import unitroles as ur
from unitroles import roles
from unitroles.results.dataset import Measured, dataset
from unitroles.results.relation import criteria, relation
from unitroles.stats.correlation import EXACT

CRITERIA = [
    "n0_train/N",
    "n0_test/N",
    "core",
    "overfitted",
    "generalizing",
    "confusing",
    "regret_train",
    "regret_test",
    "ablation_area",
    "ablation_turning_point",
]
COLUMNS = [
    "pearson",
    "pearson_p",
    "spearman",
    "spearman_p",
    "kendall",
    "kendall_p",
    "partial",
    "loo_error",
]
THREE, BASELINE = "core, overfitted, generalizing", "mean of the others"
NAN = float("nan")


def member(seed, *, labels=3, units=6, scored=True, accuracies=None, **attrs):
    """A taxonomy of random curves and orders; the resolution of its losses is a sixteenth."""
    draw = np.random.default_rng(seed)
    order = draw.permuted(np.tile(np.arange(units), (2, labels, 1)), axis=-1)
    loss = draw.integers(1, 33, (2, labels, units + 1)) / 16
    accuracy = draw.integers(0, 21, loss.shape) / 20 if scored else np.full(loss.shape, NAN)
    train, test = draw.uniform(0.5, 1, 2) if accuracies is None else accuracies
    measured = Measured(
        score=draw.uniform(size=(2, labels, units)),
        order=order,
        loss=loss,
        accuracy=accuracy,
        samples=np.full((2, labels), 20),
        turning_point=roles.turning_point(loss),
        swapped_loss=draw.integers(1, 33, (2, labels)) / 16,
        swapped_accuracy=np.full((2, labels), 0.5),
    )
    data = dataset(
        measured,
        labels=np.arange(labels),
        names=None,
        attrs={
            "layer": "1",
            "plan": "suffix",
            "train_accuracy": train if scored else NAN,
            "test_accuracy": test if scored else NAN,
            **attrs,
        },
        provenance={},
    )
    return ur.Taxonomy(data)


def models(count, seed=0, **options):
    return {f"model {i}": member((seed, i), **options) for i in range(count)}


def removed(taxonomy, seed, order="descending"):
    """What `cumulative_ablation` returns, of random curves."""
    draw, (labels, units) = np.random.default_rng(seed), taxonomy.data.role.shape
    shape, dims = (labels, units + 1), ("label", "removed")
    return xr.Dataset(
        {
            "loss": (dims, draw.integers(1, 33, shape) / 16),
            "accuracy": (dims, draw.integers(0, 21, shape) / 20),
        },
        attrs={"order": order},
    )


def holding(**columns):
    """Members whose readings of the training set are as given; the rest is random.

    `n0_train` are numbers of active units of six, the same for all three classes.
    """
    given = pd.DataFrame(columns)
    found = {}
    for row in given.itertuples():
        taxonomy = member(row.Index)
        data = taxonomy.data.copy(deep=True)
        data.turning_point.values[0] = row.n0_train
        found[f"model {row.Index}"] = ur.Taxonomy(data)
    return found


def literal_area(curve):
    total = 0.0
    for row in curve:
        for k in range(len(row)):
            low = max(j for j in range(k + 1) if not math.isnan(row[j]))
            high = min(j for j in range(k, len(row)) if not math.isnan(row[j]))
            part = 0 if low == high else (k - low) / (high - low)
            total += (1 - part) * row[low] + part * row[high]
    return total / np.size(curve)


def literal_removable(curve):
    shares = []
    for row in curve:
        last = 0
        for k, accuracy in enumerate(row):
            if math.isnan(accuracy):
                continue
            if accuracy < row[0] - 0.01 - 1e-9:
                break
            last = k
        shares.append(last / (len(row) - 1))
    return np.mean(shares)


def literal_criteria(taxonomy, curve):
    data, units = taxonomy.data, taxonomy.data.sizes["unit"]
    point, loss = data.turning_point.values, data.loss.values
    counts = {name: [] for name in ["core", "overfitted", "generalizing", "confusing"]}
    regret = [[], []]
    for label in range(data.sizes["label"]):
        for number, name in enumerate(counts, start=1):
            counts[name].append((data.role.values[label] == number).sum() / units)
        for split in range(2):
            own = loss[split, label, point[split, label]]
            regret[split].append(data.swapped_loss.values[split, label] - own)
    return {
        "n0_train/N": point[0].mean() / units,
        "n0_test/N": point[1].mean() / units,
        **{name: np.mean(values) for name, values in counts.items()},
        "regret_train": np.mean(regret[0]),
        "regret_test": np.mean(regret[1]),
        "ablation_area": literal_area(curve),
        "ablation_turning_point": literal_removable(curve),
    }


def test_the_criteria_are_those_of_the_literal_twin():
    members = models(6)
    table = criteria(members)
    assert table.columns.tolist() == CRITERIA
    assert table.index.tolist() == list(members)
    assert table.attrs == {"measure": "accuracy", "order": "ascending"}
    for name, taxonomy in members.items():
        curve = taxonomy.data.accuracy.values[0, :, ::-1]
        assert table.loc[name].to_dict() == pytest.approx(literal_criteria(taxonomy, curve))
    assert (table.nunique() > 1).all()


def test_an_ablation_takes_the_place_of_the_curves():
    members = models(4)
    given = {name: removed(taxonomy, i) for i, (name, taxonomy) in enumerate(members.items())}
    table = criteria(members, given)
    assert table.attrs == {"measure": "accuracy", "order": "descending"}
    for name, taxonomy in members.items():
        wanted = literal_criteria(taxonomy, given[name].accuracy.values)
        assert table.loc[name].to_dict() == pytest.approx(wanted)
    turned = {name: data.transpose("removed", "label") for name, data in given.items()}
    pd.testing.assert_frame_equal(criteria(members, turned), table)


def removing(*curves, measure="accuracy"):
    """Area and turning point of one model whose classes have these curves, 0 to N removed."""
    curve = np.array(curves, dtype=float)
    taxonomy = member(0, labels=len(curve), units=curve.shape[1] - 1)
    dims = ("label", "removed")
    values = {
        "loss": (dims, curve),
        "accuracy": (dims, curve if measure == "accuracy" else NAN * curve),
    }
    row = criteria({"a": taxonomy}, {"a": xr.Dataset(values, attrs={"order": "random"})}).loc["a"]
    return row["ablation_area"], row["ablation_turning_point"]


@pytest.mark.parametrize(
    ("curve", "area", "share"),
    [
        ([1, 1, 1, 1, 1], 1, 1),
        ([1, 1, 0.5, 1, 0], 0.7, 0.25),
        ([0.85, 0.84, 0.83, 0.8, 0.8], 0.824, 0.25),
        ([0.1, 0.09, 0.09, 0.05, 0.09], 0.084, 0.5),
        ([0.5, 0.75, 0.5, 0.25, 0], 0.4, 0.5),
        ([1, NAN, NAN, 1, 0], 0.8, 0.75),
        ([1, NAN, 0.5, NAN, 0], 0.5, 0),
    ],
)
def test_area_and_turning_point_of_an_ablation(curve, area, share):
    assert removing(curve) == pytest.approx((area, share))
    whole = removing(curve, [1, 1, 1, 1, 1])
    assert whole == pytest.approx(((area + 1) / 2, (share + 1) / 2))


@pytest.mark.parametrize(
    ("curve", "area", "share"),
    [
        ([1, 1, 1.01, 1.02, 2], 1.206, 0.5),
        ([10, 10, 10.1, 10.2, 20], 12.06, 0.5),
        ([1, 0.5, 1, 0.5, 0.5], 0.7, 1),
        ([1, 1, 1, 1, 1], 1, 1),
    ],
)
def test_where_accuracy_was_not_measured_the_loss_is_read(curve, area, share):
    assert removing(curve, measure="loss") == pytest.approx((area, share))


def test_one_member_without_accuracy_makes_all_be_read_from_the_loss():
    members = models(3) | {"none": member(9, scored=False)}
    table = criteria(members)
    assert table.attrs["measure"] == "loss"
    for name, taxonomy in members.items():
        wanted = literal_area(taxonomy.data.loss.values[0, :, ::-1])
        assert table.loc[name, "ablation_area"] == pytest.approx(wanted)
    found = relation(members, gap=[0.1, 0.2, 0.4, 0.3])
    assert found.partial.isna().all()
    assert found.attrs["measure"] == "loss"


def test_a_real_ablation_of_the_least_active_is_the_curve_read_backwards():
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 4, generator=draw), torch.arange(60) % 2
    x[:, 0] += y
    members, given = {}, {}
    for seed in range(3):
        torch.manual_seed(seed)
        net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        train = (x[:40], y[:40])
        members[f"seed {seed}"] = ur.analyze(net, train, (x[40:], y[40:]), "1", progress=False)
        given[f"seed {seed}"] = ur.cumulative_ablation(
            net, train, "1", order="ascending", progress=False
        )
    table = criteria(members)
    pd.testing.assert_frame_equal(criteria(members, given), table)
    assert (table[["ablation_area", "ablation_turning_point"]].nunique() > 1).all()
    found = relation(ur.TaxonomySet(members), gap=[0.1, 0.3, 0.2])
    assert found.index.tolist() == [*CRITERIA, THREE, BASELINE]


@pytest.fixture(scope="module")
def five():
    members = models(5, seed=1)
    return criteria(members), [taxonomy.gap for taxonomy in members.values()], relation(members)


def test_every_column_and_row_is_there(five):
    _, _, found = five
    assert found.columns.tolist() == COLUMNS
    assert found.index.tolist() == [*CRITERIA, THREE, BASELINE]
    assert found.index.name == "criterion"
    assert found.drop(columns="loo_error").loc[[THREE, BASELINE]].isna().all(axis=None)
    assert found.loc[CRITERIA].notna().all(axis=None)
    assert found.attrs == {
        "members": [f"model {i}" for i in range(5)],
        "exact": True,
        "permutations": 120,
        "measure": "accuracy",
        "order": "ascending",
    }


SCIPY = {"pearson": stats.pearsonr, "spearman": stats.spearmanr, "kendall": stats.kendalltau}


@pytest.mark.parametrize("name", SCIPY)
def test_correlations_are_those_of_scipy(five, name):
    table, gaps, found = five
    for criterion in CRITERIA:
        wanted = SCIPY[name](table[criterion], gaps).statistic
        assert found.loc[criterion, name] == pytest.approx(wanted)


@pytest.mark.parametrize("name", SCIPY)
def test_p_values_are_those_of_a_walk_through_all_pairings(five, name):
    table, gaps, found = five
    for criterion in CRITERIA:
        observed = found.loc[criterion, name]
        drawn = np.array(
            [SCIPY[name](table[criterion], each).statistic for each in permutations(gaps)]
        )
        below, above = (drawn <= observed + 1e-9).mean(), (drawn >= observed - 1e-9).mean()
        assert found.loc[criterion, f"{name}_p"] == pytest.approx(min(1, 2 * min(below, above)))


@pytest.mark.parametrize("name", SCIPY)
def test_p_values_are_those_of_the_permutation_test_of_scipy(five, name):
    table, gaps, found = five
    for criterion in ["core", "regret_test"]:
        wanted = stats.permutation_test(
            (table[criterion].to_numpy(),),
            lambda values: SCIPY[name](values, gaps).statistic,
            permutation_type="pairings",
            n_resamples=120,
        )
        assert found.loc[criterion, f"{name}_p"] == pytest.approx(wanted.pvalue)


def test_three_members_in_one_order_are_one_pairing_in_six():
    members = holding(n0_train=[1, 2, 6])
    row = relation(members, gap=[0.1, 0.2, 0.3]).loc["n0_train/N"]
    assert row[["spearman", "kendall"]].tolist() == pytest.approx([1, 1])
    assert row[["pearson", "spearman", "kendall"]].max() <= 1
    assert row["spearman_p"] == row["kendall_p"] == row["pearson_p"] == pytest.approx(1 / 3)
    falling = relation(members, gap=[0.3, 0.2, 0.1]).loc["n0_train/N"]
    assert falling["spearman"] == pytest.approx(-1)
    assert falling["pearson"] == pytest.approx(-row["pearson"])
    assert falling["pearson_p"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(("count", "exact", "permutations"), [(8, True, 40320), (9, False, 9999)])
def test_up_to_eight_members_every_pairing_counts(count, exact, permutations):
    assert (math.factorial(count) <= EXACT) is exact
    found = relation(models(count))
    assert (found.attrs["exact"], found.attrs["permutations"]) == (exact, permutations)
    p = found.loc[CRITERIA, ["pearson_p", "spearman_p", "kendall_p"]]
    times = (p / 2 * (permutations + (not exact))).where(p < 1).stack()
    np.testing.assert_allclose(times, times.round(), atol=1e-6)
    assert times.min() >= 1


def test_random_pairings_are_always_the_same_and_near_the_truth():
    members = models(12, seed=3)
    found = relation(members)
    pd.testing.assert_frame_equal(found, relation(members))
    table, gaps = criteria(members), [taxonomy.gap for taxonomy in members.values()]
    for criterion in CRITERIA:
        wanted = stats.pearsonr(table[criterion], gaps)
        assert found.loc[criterion, "pearson"] == pytest.approx(wanted.statistic)
        assert found.loc[criterion, "pearson_p"] == pytest.approx(wanted.pvalue, abs=0.05)
    assert found.pearson_p.nunique() > 5


def test_a_random_p_value_is_never_zero():
    found = relation(holding(n0_train=[1, 1, 1, 2, 2, 2, 5, 5, 6]), gap=[1, 1, 1, 2, 2, 2, 5, 5, 6])
    assert found.loc["n0_train/N", "pearson"] == pytest.approx(1)
    assert 2 / 10_000 <= found.loc["n0_train/N", "pearson_p"] < 0.05


@given(st.integers(0, 10_000), st.integers(4, 7))
@settings(max_examples=15)
def test_partial_correlations_are_those_of_the_three_plain_ones(seed, count):
    members = models(count, seed=seed)
    table, found = criteria(members), relation(members)
    gaps = [taxonomy.gap for taxonomy in members.values()]
    fixed = [taxonomy.data.attrs["train_accuracy"] for taxonomy in members.values()]
    for criterion in CRITERIA:
        if table[criterion].round(12).nunique() == 1:
            assert np.isnan(found.loc[criterion, "partial"])
            continue
        a, b = np.corrcoef(table[criterion], gaps)[0, 1], np.corrcoef(table[criterion], fixed)[0, 1]
        c = np.corrcoef(gaps, fixed)[0, 1]
        wanted = (a - b * c) / math.sqrt((1 - b * b) * (1 - c * c))
        assert found.loc[criterion, "partial"] == pytest.approx(wanted, abs=1e-6)


def test_a_constant_training_accuracy_leaves_nothing_to_hold_fixed():
    members = {f"{i}": member(i, accuracies=(1.0, 0.5 + 0.1 * i)) for i in range(5)}
    assert relation(members).partial.isna().all()
    assert relation(models(3)).partial.isna().all()
    assert relation(models(4)).partial.notna().any()


def test_a_gap_that_is_the_training_accuracy_leaves_nothing_to_explain():
    members = {f"{i}": member(i, accuracies=(0.9 - 0.07 * i * i, 0.2)) for i in range(4)}
    found = relation(members)
    assert found.partial.isna().all()
    assert found.loc["core", "pearson":"kendall_p"].notna().all()


def literal_left_out(predictors, gaps):
    """Normal equations, one member after the other."""
    errors = []
    for i in range(len(gaps)):
        rest = [j for j in range(len(gaps)) if j != i]
        design = np.array([[1.0, *predictors[j]] for j in rest])
        known = np.array([gaps[j] for j in rest])
        line = np.linalg.solve(design.T @ design, design.T @ known)
        errors.append(line @ [1.0, *predictors[i]] - gaps[i])
    return math.sqrt(sum(error**2 for error in errors) / len(errors))


@given(st.integers(0, 10_000))
@settings(max_examples=15)
def test_left_out_errors_are_those_of_a_loop(seed):
    members = models(7, seed=seed, units=9, labels=5)
    table, found = criteria(members), relation(members)
    gaps = [taxonomy.gap for taxonomy in members.values()]
    for criterion in ["n0_train/N", "core", "regret_test", "ablation_area"]:
        wanted = literal_left_out(table[[criterion]].to_numpy(), gaps)
        assert found.loc[criterion, "loo_error"] == pytest.approx(wanted)
    wanted = literal_left_out(table[["core", "overfitted", "generalizing"]].to_numpy(), gaps)
    assert found.loc[THREE, "loo_error"] == pytest.approx(wanted, rel=1e-6)
    assert found.loc[BASELINE, "loo_error"] == pytest.approx(literal_left_out([[]] * 7, gaps))


def test_a_criterion_on_a_line_with_the_gap_predicts_it():
    n0 = np.array([1, 2, 3, 4, 6])
    found = relation(holding(n0_train=n0), gap=0.05 + n0 / 20).loo_error
    assert found["n0_train/N"] == pytest.approx(0, abs=1e-12)
    assert found[BASELINE] > 0.05


@pytest.mark.parametrize(("count", "known"), [(5, False), (6, True)])
def test_three_roles_together_need_six_members(count, known):
    assert np.isfinite(relation(models(count)).loc[THREE, "loo_error"]) == known


# The roundings of these sums differ from one another.
@pytest.mark.parametrize("values", [[0.3, 0.1 + 0.2, 0.3, 0.3], [0.1] * 4, [0.0] * 4])
def test_what_does_not_vary_correlates_with_nothing(values):
    members = models(4)
    for taxonomy, value in zip(members.values(), values, strict=True):
        taxonomy.data.accuracy.values[0] = value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = relation(members)
    for criterion in ["ablation_area", "ablation_turning_point"]:
        assert found.loc[criterion, "pearson":"partial"].isna().all()
        assert found.loc[criterion, "loo_error"] == pytest.approx(found.loc[BASELINE, "loo_error"])
    assert found.loc["core", "pearson":"partial"].notna().all()


def test_rounding_makes_no_ranks():
    members = holding(n0_train=[1, 2, 3, 4])
    gaps = [0.3, 0.1 + 0.2, 0.5, 0.6]
    found = relation(members, gap=gaps).loc["n0_train/N"]
    assert found["kendall"] == pytest.approx(5 / math.sqrt(5 * 6))
    assert found["spearman"] == pytest.approx(stats.spearmanr([1, 2, 3, 4], [1, 1, 2, 3])[0])


def test_one_differing_model_left_out_leaves_a_constant():
    members = holding(n0_train=[2, 2, 2, 5])
    gaps = [0.1, 0.2, 0.3, 0.9]
    found = relation(members, gap=gaps).loc["n0_train/N", "loo_error"]
    # Without the fourth the others' mean is .2; the others miss what two others have between them.
    errors = [0.25 - 0.1, 0.2 - 0.2, 0.15 - 0.3, 0.2 - 0.9]
    assert found == pytest.approx(math.sqrt(np.mean(np.square(errors))))


def test_the_gap_comes_from_the_members_or_as_given():
    members = models(5)
    own = relation(members)
    gaps = {name: taxonomy.gap for name, taxonomy in members.items()}
    turned = dict(reversed(gaps.items())) | {"one more": 7.0}
    for given_gap in [gaps, turned, pd.Series(turned), list(gaps.values()), tuple(gaps.values())]:
        pd.testing.assert_frame_equal(relation(members, given_gap), own)
    pd.testing.assert_frame_equal(relation(members, np.array(list(gaps.values()))), own)
    other = relation(members, [-gap for gap in gaps.values()])
    np.testing.assert_allclose(other.pearson, -own.pearson)
    np.testing.assert_allclose(other.loo_error, own.loo_error)


@pytest.mark.parametrize(
    ("gap", "message"),
    [
        ({"model 0": 0.1, "model 2": 0.2}, "no gap for member 'model 1'; give one for every"),
        (pd.Series([0.1, 0.2, 0.3]), "no gap for member 'model 0'"),
        ([0.1, 0.2], "gap holds 2 numbers for 3 members; give one each"),
        ([0.1, NAN, 0.2], "the gap of 'model 1' is nan; give training minus test accuracy"),
        ([0.1, 0.3, math.inf], "the gap of 'model 2' is inf"),
        ([0.1, "wide", 0.2], "the gap of 'model 1' is 'wide'; give a number"),
        ([0.1, None, 0.2], "the gap of 'model 1' is None; give a number"),
        ([0.2, 0.2, 0.2], "all members have the gap 0.2; add models that generalize better"),
        ([0.3, 0.1 + 0.2, 0.3], "all members have the gap 0.3"),
        (0.1, "gap cannot be read; give numbers by name, or one for each member"),
        ("abc", "gap cannot be read"),
        (np.ones((3, 1)), "gap cannot be read"),
    ],
)
def test_gaps_that_cannot_be_used_are_refused(gap, message):
    with pytest.raises(ur.InputError, match=message):
        relation(models(3), gap)


def test_members_without_accuracy_need_a_gap():
    with pytest.raises(ur.InputError, match="the gap of 'model 0' is nan; give training minus"):
        relation(models(3, scored=False))


@pytest.mark.parametrize("count", [0, 1, 2])
def test_fewer_than_three_members_are_refused(count):
    with pytest.raises(ur.InputError, match=f"needs 3 members or more, not {count}; add models"):
        relation(models(count))


def test_members_read_by_different_rules_are_refused():
    members = models(3)
    with pytest.raises(
        ur.InputError,
        match="never compare models across tolerances: 'model 0' has 1e-06, 'x' has 0.01; analyse",
    ):
        relation(members | {"x": member(8, tolerance=0.01)})
    with pytest.raises(ur.InputError, match="their loss: 'model 0' has cross_entropy, 'x' has mse"):
        relation(members | {"x": member(8, loss="mse")})
    assert len(relation(models(3, tolerance=0.01, loss="mse"))) == 12


def test_ablations_that_do_not_fit_are_refused():
    members = models(3)
    whole = {name: removed(taxonomy, 0) for name, taxonomy in members.items()}
    assert len(relation(members, ablation=whole)) == 12
    wrong = {
        "no ablation of member 'model 1'": {k: v for k, v in whole.items() if k != "model 1"},
        "of 'model 1' is not cumulative": whole
        | {"model 1": whole["model 1"].rename(removed="unit")},
        "of 'model 1' removes 4 units of 6": whole
        | {"model 1": whole["model 1"].isel(removed=slice(5))},
        "differ in their order: 'model 0' has descending, 'model 1' has random": whole
        | {"model 1": removed(members["model 1"], 0, "random")},
    }
    for message, given_ablation in wrong.items():
        with pytest.raises(ur.InputError, match=message):
            relation(members, ablation=given_ablation)


def test_without_a_loss_of_the_ablated_layer_the_worst_one_is_the_measure_of_a_fall():
    """0/0 with no unit left; the area goes on at the last loss that is one."""
    area, share = removing([1, 1.005, 1.2, 3, NAN], measure="loss")
    assert area == pytest.approx((1 + 1.005 + 1.2 + 3 + 3) / 5)
    assert share == 0.25
