"""What must hold for every result, whatever the network: on arrays, and on analyses of toys."""

import warnings
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import networks
import unitroles as ur
from forcing import PLANS, forced, layer_of, one_copy, quietly
from unitroles import roles
from unitroles.analysis.prepare import prepared
from unitroles.analysis.request import Request
from unitroles.curves.collect import Pass
from unitroles.curves.loss import losses, margins
from unitroles.curves.retrieval import at_points, rof_curve
from unitroles.curves.scores import activation_l1, sample_scores, score_sums
from unitroles.curves.store import Stores
from unitroles.data.reading import as_samples
from unitroles.model.borrow import untouched
from unitroles.roles import order_units

CHAINS = ["conv_bn_gap", "conv_pool_linear", "depthwise", "dropout_head", "mlp", "relu_twice"]
AROUND = ["residual", "residual_early", "transformer"]
NAMES = [*CHAINS, *AROUND]
CORE, OVERFITTED, GENERALIZING, CONFUSING = range(4)


pytestmark = pytest.mark.usefixtures("one_thread")


@st.composite
def settled(draw, shared=False):
    """Orders (split, label, position) and turning points (split, label)."""
    labels, units = draw(st.integers(1, 4)), draw(st.integers(1, 8))
    permutation = st.permutations(range(units))
    splits = [[draw(permutation) for _ in range(labels)] for _ in range(1 if shared else 2)]
    point = draw(hnp.arrays(np.int64, (2, labels), elements=st.integers(1, units)))
    return np.array(splits * 2 if shared else splits), point


def counts(role):
    """How many units have each role, (label, role)."""
    return np.stack([(role == value).sum(axis=1) for value in roles.ROLES], axis=1)


# Few distinct values, so that ties and near ties occur.
LOSSES = st.one_of(
    st.floats(0, 10), st.sampled_from([0.0, 0.5, 0.5 + 1e-7, 0.5 + 1e-6, 0.5 + 2e-6, 1.0])
)
CURVES = hnp.arrays(np.float64, st.integers(2, 12), elements=LOSSES)


@given(CURVES, st.sampled_from([0.0, 1e-6, 1e-3, 0.5]))
def test_the_turning_point_is_the_smallest_n_within_the_tolerance(curve, tolerance):
    lowest = min(curve[1:])
    expected = next(n for n in range(1, len(curve)) if curve[n] <= lowest + tolerance)
    assert roles.turning_point(curve, tolerance) == expected


@given(CURVES, st.floats(0, 20))
def test_the_dead_layer_is_no_turning_point(curve, ablated):
    moved = np.concatenate([[ablated], curve[1:]])
    assert roles.turning_point(moved) == roles.turning_point(curve) >= 1


@given(CURVES)
def test_a_larger_tolerance_never_moves_the_turning_point_up(curve):
    points = [int(roles.turning_point(curve, tolerance)) for tolerance in roles.TOLERANCES]
    assert points == sorted(points, reverse=True)


@given(hnp.arrays(np.float64, st.tuples(st.integers(1, 3), st.integers(2, 6)), elements=LOSSES))
def test_turning_points_are_found_row_by_row(curves):
    expected = [int(roles.turning_point(curve)) for curve in curves]
    assert roles.turning_point(curves).tolist() == expected


@given(CURVES)
def test_the_accuracy_turning_point_is_the_first_of_the_highest(curve):
    expected = next(n for n in range(1, len(curve)) if curve[n] == max(curve[1:]))
    assert roles.accuracy_turning_point(curve) == expected


@given(settled())
def test_positions_invert_the_order(pair):
    order, _ = pair
    position = roles.positions(order)
    for place in np.ndindex(order.shape[:2]):
        for n, unit in enumerate(order[place]):
            assert position[place][unit] == n


@given(settled())
def test_the_active_set_is_the_first_units_of_the_order(pair):
    order, point = pair
    active = roles.active_set(order, point)
    for place in np.ndindex(point.shape):
        assert set(np.flatnonzero(active[place])) == set(order[place][: point[place]])


@given(settled())
def test_every_unit_has_exactly_one_role_per_class(pair):
    role = roles.roles_at(*pair)
    assert role.dtype == np.uint8
    assert set(np.unique(role)) <= set(roles.ROLES)
    assert (counts(role).sum(axis=1) == role.shape[1]).all()


@given(settled())
def test_active_sets_are_as_large_as_their_turning_points(pair):
    number = counts(roles.roles_at(*pair))
    np.testing.assert_array_equal(number[:, CORE] + number[:, OVERFITTED], pair[1][0])
    np.testing.assert_array_equal(number[:, CORE] + number[:, GENERALIZING], pair[1][1])


@given(settled(shared=True))
def test_a_shared_order_leaves_no_class_with_overfitted_and_generalizing_units(pair):
    order, point = pair
    number = counts(roles.roles_at(order, point))
    assert (number[:, OVERFITTED] * number[:, GENERALIZING] == 0).all()
    np.testing.assert_array_equal(number[:, CORE], point.min(axis=0))


@given(settled())
def test_swapping_the_splits_swaps_overfitted_and_generalizing(pair):
    order, point = pair
    role, swapped = roles.roles_at(order, point), roles.roles_at(order[::-1], point[::-1])
    expected = np.array([0, 1, 3, 2, 4])[role]
    np.testing.assert_array_equal(swapped, expected)


@given(settled())
def test_equal_splits_have_neither_overfitted_nor_generalizing_units(pair):
    order, point = (np.stack([part[0], part[0]]) for part in pair)
    assert set(np.unique(roles.roles_at(order, point))) <= {ur.Role.CORE, ur.Role.CONFUSING}


@given(settled(), st.randoms(use_true_random=False))
def test_renaming_the_units_permutes_the_roles(pair, random):
    order, point = pair
    name = np.array(random.sample(range(order.shape[2]), order.shape[2]))
    renamed = roles.roles_at(name[order], point)
    np.testing.assert_array_equal(renamed[:, name], roles.roles_at(order, point))


@given(settled())
def test_the_mean_share_is_the_mean_proportion(pair):
    role = roles.roles_at(*pair)
    labels, units = role.shape
    by_label = np.rint(roles.proportions(role) * units).astype(int)
    by_unit = np.rint(roles.shares(role) * labels).astype(int)
    np.testing.assert_allclose(by_label / units, roles.proportions(role), rtol=1e-12)
    np.testing.assert_allclose(by_unit / labels, roles.shares(role), rtol=1e-12)
    np.testing.assert_array_equal(by_label.sum(axis=0), by_unit.sum(axis=0))
    np.testing.assert_array_equal(by_label, counts(role))


@st.composite
def curves_and_orders(draw):
    order, _ = draw(settled())
    shape = (*order.shape[:2], order.shape[2] + 1)
    loss = draw(hnp.arrays(np.float64, shape, elements=LOSSES))
    accuracy = draw(hnp.arrays(np.float64, shape, elements=st.sampled_from([0.0, 0.25, 0.5, 1.0])))
    return loss, accuracy, order


@given(curves_and_orders())
def test_the_sensitivity_repeats_the_analysis_under_other_rules(drawn):
    loss, accuracy, order = drawn
    table = roles.sensitivity(loss, accuracy, order)
    assert list(table) == [
        "tolerance 0",
        "tolerance 1e-06",
        "tolerance 0.001",
        "tolerance 0.01",
        "tolerance 0.05",
        "accuracy",
    ]
    for rule, row in table.items():
        if rule == "accuracy":
            point = roles.turning_point(1 - accuracy, 0.0)
        else:
            point = roles.turning_point(loss, float(rule.split()[1]))
        expected = roles.proportions(roles.roles_at(order, point)).mean(axis=0)
        np.testing.assert_allclose(row, expected, rtol=0, atol=1e-12, err_msg=rule)


@given(CURVES)
def test_a_curve_is_flagged_where_no_unit_lowers_the_loss(curve):
    falls = any(value < curve[0] - 1e-6 for value in curve[1:])
    assert bool(roles.falls(curve)) == falls


@given(
    hnp.arrays(np.float64, (2, 2, 5), elements=st.sampled_from([0.0, 1.0, 2.0, 3.5])),
    hnp.arrays(np.int64, (2, 2), elements=st.integers(1, 9)),
)
def test_every_order_falls_and_breaks_ties_by_unit(score, samples):
    for method in ("per_split", "train", "test", "pooled"):
        order = order_units(score, samples, method)
        for split, label in np.ndindex(2, 2):
            both = np.average(score[:, label], axis=0, weights=samples[:, label])
            mine = {
                "per_split": score[split, label],
                "train": score[0, label],
                "test": score[1, label],
                "pooled": both,
            }[method]
            # The pooled mean is rounded: equal to 12 digits counts as a tie only where it is exact.
            ranks = [(-round(mine[unit], 12), unit) for unit in order[split, label]]
            if method == "pooled":
                assert [rank for rank, _ in ranks] == sorted(rank for rank, _ in ranks)
            else:
                assert ranks == sorted(ranks)


def losses_and_answers(logits, labels):
    """Cross-entropies and answers, by mask and sample; the logits stay what they are."""
    before = logits.clone()
    margin, right = margins(logits, labels)
    assert torch.equal(logits, before)
    return losses(margin), right


@given(
    hnp.arrays(np.float64, (3, 2, 4), elements=st.floats(-30, 30)),
    hnp.arrays(np.int64, 2, elements=st.integers(0, 3)),
)
def test_losses_are_cross_entropies_and_answers_the_first_maximum(logits, labels):
    loss, right = losses_and_answers(torch.from_numpy(logits), torch.from_numpy(labels))
    for mask, sample in np.ndindex(3, 2):
        z, label = logits[mask, sample], labels[sample]
        direct = np.log(np.exp(z - z.max()).sum()) + z.max() - z[label]
        assert loss[mask, sample] == pytest.approx(direct, abs=1e-12)
        assert right[mask, sample] == (z.tolist().index(z.max()) == label)


def test_a_loss_far_below_the_rounding_of_the_logits_is_seen():
    logits = torch.tensor([[[40.0, 0.0]], [[40.0, 1.0]], [[200.0, 0.0]]])
    loss, _ = losses_and_answers(logits, torch.tensor([0]))
    np.testing.assert_allclose(loss[:, 0], [np.exp(-40), np.exp(-39), np.exp(-200)], rtol=1e-12)


@given(
    hnp.arrays(np.float64, (2, 3, 4), elements=st.sampled_from([-2.0, 0.0, 1.0, 1.5])),
    hnp.arrays(np.int64, 3, elements=st.integers(0, 3)),
)
def test_the_first_of_equal_logits_is_the_answer(logits, labels):
    _, right = losses_and_answers(torch.from_numpy(logits), torch.from_numpy(labels))
    np.testing.assert_array_equal(right, logits.argmax(axis=2) == labels)


def test_one_number_in_many_places_is_read_and_not_written():
    one = torch.tensor([[[1.0, 2.0, 0.5]]])
    loss, right = losses_and_answers(one.expand(2, 3, 3), torch.tensor([1, 0, 1]))
    again, same = losses_and_answers(one.repeat(2, 3, 1), torch.tensor([1, 0, 1]))
    assert torch.equal(loss, again)
    assert torch.equal(right, same)


def test_classes_that_are_masked_out_count_for_nothing():
    closed = -float("inf")
    logits = torch.tensor([[[1.0, 3.0, closed]], [[1.0, closed, closed]], [[0.0, closed, 5.0]]])
    loss, right = losses_and_answers(logits, torch.tensor([0]))
    np.testing.assert_allclose(loss[:2, 0], [np.log1p(np.exp(2)), 0.0], rtol=1e-12)
    assert loss[2, 0] == pytest.approx(np.log1p(np.exp(5)), rel=1e-12)
    assert right[:, 0].tolist() == [False, True, False]


@cache
def analysis(name, swap=False, same=False, order="per_split", plan="additive"):
    toy = one_copy(name, torch.float64)
    train, test = (toy.test, toy.train) if swap else (toy.train, toy.test)
    with forced(plan):
        found = quietly(
            ur.analyze,
            toy.model,
            train,
            train if same else test,
            layer=layer_of(toy),
            method=ur.Method(order=order),
            compute=ur.Compute(batch_size=32),
        )
    assert found.data.attrs["plan"] == plan
    return found


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", NAMES)
def test_the_dead_layer_hides_the_split_unless_something_flows_around_it(name, plan):
    ablated = analysis(name, plan=plan).data.loss.sel(retrieved=0).values
    difference = np.abs(ablated[0] - ablated[1]).max()
    assert difference <= 1e-12 if name in CHAINS else difference > 1e-3


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", NAMES)
def test_the_whole_layer_is_the_intact_model(name, plan):
    toy, taxonomy = networks.toy(name, torch.float64), analysis(name, plan=plan)
    last = taxonomy.data.isel(retrieved=-1)
    for split, (inputs, labels) in enumerate((toy.train, toy.test)):
        with torch.no_grad():
            logits = toy.model(inputs)
        right = logits.argmax(dim=1) == labels
        for label in range(logits.shape[1]):
            mine = labels == label
            loss = torch.nn.functional.cross_entropy(logits[mine], labels[mine])
            assert float(last.loss[split, label]) == pytest.approx(float(loss), abs=1e-10)
            assert float(last.accuracy[split, label]) == float(right[mine].double().mean())
            assert int(last.samples[split, label]) == int(mine.sum())
        name = ("train_accuracy", "test_accuracy")[split]
        assert taxonomy.data.attrs[name] == pytest.approx(float(right.double().mean()))
    assert (
        taxonomy.gap == taxonomy.data.attrs["train_accuracy"] - taxonomy.data.attrs["test_accuracy"]
    )


@pytest.mark.parametrize("name", ["dropout_head", "mlp", "transformer"])
def test_training_data_as_test_data_leave_core_and_confusing(name):
    taxonomy = analysis(name, same=True)
    assert set(np.unique(taxonomy.data.role)) == {ur.Role.CORE, ur.Role.CONFUSING}
    np.testing.assert_allclose(taxonomy.regret(), 0, atol=1e-12)


@pytest.mark.parametrize("order", ["per_split", "pooled"])
@pytest.mark.parametrize("name", ["dropout_head", "mlp", "transformer"])
def test_swapping_the_data_swaps_overfitted_and_generalizing(name, order):
    taxonomy, swapped = analysis(name, order=order), analysis(name, order=order, swap=True)
    assert {2, 3} & set(np.unique(taxonomy.data.role))
    expected = np.array([0, 1, 3, 2, 4])[taxonomy.data.role]
    np.testing.assert_array_equal(swapped.data.role, expected)
    np.testing.assert_array_equal(swapped.data.turning_point, taxonomy.data.turning_point[::-1])
    np.testing.assert_allclose(swapped.data.loss, taxonomy.data.loss[::-1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("order", ["train", "test", "pooled"])
def test_a_shared_order_nests_the_active_sets_of_a_real_network(order):
    taxonomy = analysis("mlp", order=order)
    number = counts(taxonomy.data.role.values)
    assert (number[:, OVERFITTED] * number[:, GENERALIZING] == 0).all()
    np.testing.assert_array_equal(number[:, CORE], taxonomy.data.turning_point.min("split"))


def test_renaming_the_units_of_a_network_permutes_its_roles():
    toy = networks.toy("mlp", torch.float64)
    name = torch.tensor([5, 0, 7, 11, 2, 9, 1, 10, 3, 8, 6, 4])
    with torch.no_grad():
        before, after = toy.model[0], toy.model[2]
        before.weight.copy_(before.weight[name])
        before.bias.copy_(before.bias[name])
        after.weight.copy_(after.weight[:, name])
    renamed = ur.analyze(toy.model, toy.train, toy.test, layer="1", progress=False)
    np.testing.assert_array_equal(renamed.data.role, analysis("mlp").data.role[:, name.numpy()])


@cache
def ready(plan):
    """A plan, the training samples and the order (label, position) of a toy."""
    toy = one_copy("mlp", torch.float64)
    request = Request(toy.model, {"train": toy.train}, ["1"], progress=False)
    with forced(plan), warnings.catch_warnings():
        warnings.simplefilter("ignore", ur.PlanWarning)
        with prepared(request) as made:
            chosen, precision = made.choices[0].plan, made.precision
    assert chosen.name == plan
    order = analysis("mlp").data.order[0].values.astype(np.int64)
    return chosen, precision, as_samples(toy.train, "train"), order


def kept_of(plan, precision, samples):
    """What the masks need of some samples."""
    body = Pass([plan], precision, 8, Stores(2**30))
    (found,) = body.collect(samples, np.arange(4), None, lambda count: None)
    return found.kept


def parts_of(size):
    """Any way to deal `size` samples to at most four parts."""
    return st.lists(st.integers(0, 3), min_size=size, max_size=size).map(
        lambda dealt: [np.flatnonzero(np.array(dealt) == part) for part in set(dealt)]
    )


def summed(parts):
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


@pytest.mark.parametrize("name", PLANS)
@settings(max_examples=8)
@given(data=st.data())
def test_curve_sums_of_any_partition_add_up_to_the_whole(name, data):
    plan, precision, samples, order = ready(name)
    parts = data.draw(parts_of(len(samples)))
    labels = np.arange(4)

    def curve(some):
        return rof_curve(kept_of(plan, precision, some), labels, order)

    with untouched(plan.model):
        whole, each = curve(samples), [curve(samples.take(part)) for part in parts]
    total = summed(each)
    np.testing.assert_array_equal(total.count, whole.count)
    np.testing.assert_array_equal(total.correct, whole.correct)
    np.testing.assert_allclose(total.loss, whole.loss, rtol=1e-12)
    np.testing.assert_allclose(total.mean_loss, whole.mean_loss, rtol=1e-12)
    np.testing.assert_array_equal(total.accuracy, whole.accuracy)


@pytest.mark.parametrize("name", PLANS)
@settings(max_examples=8)
@given(data=st.data())
def test_some_points_of_a_curve_are_those_of_the_whole(name, data):
    plan, precision, samples, order = ready(name)
    points = data.draw(hnp.arrays(np.int64, (4, 3), elements=st.integers(0, order.shape[1])))
    labels = np.arange(4)
    with untouched(plan.model):
        kept = kept_of(plan, precision, samples)
        whole, some = rof_curve(kept, labels, order), at_points(kept, labels, order, points)
    wanted = np.take_along_axis(whole.loss, points, axis=1)
    np.testing.assert_allclose(some.loss, wanted, rtol=1e-12, atol=1e-12)
    wanted = np.take_along_axis(whole.correct, points, axis=1)
    np.testing.assert_array_equal(some.correct, wanted)
    np.testing.assert_array_equal(some.count, whole.count)


@settings(max_examples=25)
@given(
    hnp.arrays(np.float64, (6, 4, 2, 2), elements=st.floats(-9, 9)),
    hnp.arrays(np.int64, 6, elements=st.integers(0, 2)),
    parts_of(6),
)
def test_score_sums_of_any_partition_add_up_to_the_whole(activation, classes, parts):
    activation, classes = torch.from_numpy(activation), torch.from_numpy(classes)
    whole = score_sums(sample_scores(activation, 1, activation_l1), classes, 3)
    total = summed(
        [score_sums(sample_scores(activation[p], 1, activation_l1), classes[p], 3) for p in parts]
    )
    np.testing.assert_array_equal(total.count, whole.count)
    np.testing.assert_allclose(total.total, whole.total, rtol=1e-12, atol=1e-12)
    for label in range(3):
        mine = activation[classes == label]
        if len(mine):
            expected = mine.abs().sum(dim=(2, 3)).mean(dim=0)
            mean = total.total[label] / total.count[label]
            np.testing.assert_allclose(mean, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_positions_are_everything_but_samples_and_units(axis):
    activation = torch.randn(5, 2, 3, 4, generator=torch.Generator().manual_seed(0)).double()
    classes = torch.zeros(5, dtype=torch.int64)
    sums = score_sums(sample_scores(activation, axis, activation_l1), classes, 1)
    expected = [activation.select(axis, unit).abs().sum() for unit in range(activation.shape[axis])]
    np.testing.assert_allclose(sums.total[0], torch.stack(expected), rtol=1e-12)
