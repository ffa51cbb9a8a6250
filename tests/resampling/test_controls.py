"""Controls equal the slow literal twin; each is left out where it is not defined."""

import numpy as np
import pytest
import torch

import networks
import reference
import unitroles as ur
from forcing import analyze_toy, forced, one_copy
from unitroles import roles
from unitroles.report import text
from unitroles.stats.draws import random_scores
from unitroles.stats.evidence import TEMPERATURES

pytestmark = pytest.mark.usefixtures("one_thread")

ONLY = ur.Evidence(floors=0, resplits=0, bootstrap=None, seed=4)
NAMES = sorted(networks.TOYS)


def site(toy):
    return toy.model, toy.layer


def of_class(toy, split, label):
    x, y = (toy.train, toy.test)[split]
    return x[y == label]


@pytest.mark.parametrize("name", NAMES)
def test_what_a_set_does_to_all_classes_is_that_of_the_literal_twin(name):
    toy = one_copy(name, torch.float64)
    data = analyze_toy(toy, evidence=ONLY)[0].data
    labels, where = data.label.values, {"axis": toy.axis, "call": toy.call}
    for split, (x, y) in enumerate((toy.train, toy.test)):
        for k, label in enumerate(labels):
            n0 = int(data.turning_point[split, k])
            sets = {"set": data.order[split, k].values[:n0], "intact": data.unit.values}
            for which, active in sets.items():
                losses, hits, others = [], [], []
                for s in range(len(y)):
                    logits = reference.masked_logits(*site(toy), x[s : s + 1], active, **where)
                    losses.append(reference.sample_loss(logits, int(y[s])))
                    said = reference.correct(logits, int(label))
                    (hits if y[s] == label else others).append(said)
                balanced = (np.mean(hits) + 1 - np.mean(others)) / 2
                loss = data[f"{which}_loss"].isel(split=split).values.ravel()
                np.testing.assert_allclose(loss[k % len(loss)], np.mean(losses), atol=1e-10)
                found = data[f"{which}_balanced_accuracy"][split, k]
                np.testing.assert_allclose(found, balanced, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_roles_under_other_orders_and_measures_are_those_of_the_literal_twin(name):
    toy = one_copy(name, torch.float64)
    data = analyze_toy(toy, evidence=ONLY)[0].data
    order, where = data.order.values, {"axis": toy.axis, "call": toy.call}
    scale = float(data.temperature)
    drawn = random_scores(order.shape, ONLY.seed)
    orders = {
        "random order": np.argsort(-drawn, axis=-1),
        "reversed order": order[..., ::-1],
        "scaled logits": order,
        "accuracy": order,
    }
    assert data.control.values.tolist() == list(orders)
    for control, mine in orders.items():
        point = np.zeros(mine.shape[:2], dtype=np.int64)
        for split in (0, 1):
            for k, label in enumerate(data.label.values.tolist()):
                inputs = of_class(toy, split, label)
                if control == "scaled logits":
                    curve = scaled_curve(toy, inputs, label, mine[split, k], scale)
                else:
                    both = reference.rof_curve(*site(toy), inputs, label, mine[split, k], **where)
                    curve = -both[1] if control == "accuracy" else both[0]
                slack = 0.0 if control == "accuracy" else 1e-6
                point[split, k] = reference.turning_point(curve, slack)
        role = roles.roles_at(mine, point)
        found = data.sel(control=control)
        np.testing.assert_allclose(found.control_proportion, roles.proportions(role), atol=1e-12)
        same = (role == data.role.values).mean(axis=-1)
        np.testing.assert_allclose(found.control_agreement, same, atol=1e-12)


def scaled_curve(toy, inputs, label, order, scale):
    """The mean loss of divided logits for every number of retrieved units."""
    rows = []
    for n in range(len(order) + 1):
        losses = []
        for s in range(len(inputs)):
            one = inputs[s : s + 1]
            logits = reference.masked_logits(*site(toy), one, order[:n], toy.axis, toy.call)
            losses.append(reference.sample_loss(logits / scale, label))
        rows.append(np.mean(losses))
    return np.array(rows)


def test_the_temperature_is_the_best_for_the_test_split():
    """Ten times the logits want ten times the temperature, up to a step of the grid."""
    found = []
    for factor in (1.0, 10.0):
        toy = one_copy("mlp", torch.float64, factor)
        found.append(float(analyze_toy(toy, evidence=ONLY)[0].data.temperature))
        x, y = toy.test
        with torch.no_grad():
            logits = toy.model(x)
        losses = [
            torch.nn.functional.cross_entropy(logits / scale, y).item()
            for scale in TEMPERATURES.tolist()
        ]
        assert found[-1] == TEMPERATURES[int(np.argmin(losses))]
    assert 10 / 2 ** (1 / 8) <= found[1] / found[0] <= 10 * 2 ** (1 / 8)


@pytest.mark.parametrize(("factor", "said"), [(1.0, False), (1e4, True)])
def test_a_temperature_beyond_those_that_are_tried_is_said(factor, said):
    printed = text.report(analyze_toy(one_copy("mlp", torch.float64, factor), evidence=ONLY)[0])
    assert "(scaled logits: divided by " in printed
    assert ("the end of what is tried" in printed) == said


@pytest.mark.parametrize("name", ["mlp", "conv_pool_linear"])
@pytest.mark.parametrize("plan", ["suffix", "full"])
def test_every_plan_gives_the_same_controls(name, plan):
    first = analyze_toy(one_copy(name, torch.float64), evidence=ONLY)[0].data
    with forced(plan):
        second = analyze_toy(networks.toy(name, torch.float64), evidence=ONLY)[0].data
    assert second.attrs["plan"] == plan
    measured = [n for n in first.data_vars if n.startswith(("control", "set", "intact", "temp"))]
    assert len(measured) == 7
    for name in measured:
        np.testing.assert_allclose(first[name], second[name], atol=1e-10, err_msg=name)


def test_the_tables_show_what_was_measured():
    taxonomy = analyze_toy(one_copy("mlp", torch.float64), evidence=ONLY)[0]
    data, frame = taxonomy.data, taxonomy.controls()
    assert frame.columns.tolist() == [*roles.ROLE_NAMES, "agreement"]
    np.testing.assert_allclose(frame[list(roles.ROLE_NAMES)].sum(axis=1), 1)
    np.testing.assert_allclose(frame.loc["accuracy"], taxonomy_by_accuracy(taxonomy))
    sets = taxonomy.active_sets()
    assert len(sets) == 2 * data.sizes["label"]
    for (split, label), row in sets.iterrows():
        place = data.sel(split=split, label=label)
        assert row.recall == place.accuracy.sel(retrieved=int(place.turning_point))
        assert row.intact_recall == place.accuracy[-1]
        assert row.loss == place.set_loss
        assert row.intact_loss == data.intact_loss.sel(split=split)
    weights = data.samples.values
    mean = (data.loss.values[..., -1] * weights).sum(axis=1) / weights.sum(axis=1)
    np.testing.assert_allclose(data.intact_loss, mean, rtol=1e-12)
    printed = text.report(taxonomy)
    assert "Controls: mean share" in printed
    assert "train, its active set" in printed


def taxonomy_by_accuracy(taxonomy):
    row = taxonomy.sensitivity().loc["accuracy"].to_list()
    return [*row, taxonomy.data.control_agreement.sel(control="accuracy").mean()]


def test_a_control_that_is_not_defined_is_left_out():
    toy = one_copy("mlp", torch.float64)
    groups = {
        name: torch.arange(len(split[1])) % 2
        for name, split in (("train", toy.train), ("test", toy.test))
    }
    grouped = analyze_toy(toy, evidence=ONLY, sample=ur.Sample(group_by=groups))[0].data
    assert grouped.set_balanced_accuracy.isnull().all()
    assert np.isfinite(grouped.set_loss).all()

    def squares(outputs, labels):
        return (outputs.softmax(1)[range(len(labels)), labels] - 1) ** 2

    own = analyze_toy(toy, evidence=ONLY, method=ur.Method(loss=squares))[0]
    assert own.controls().index.tolist() == ["random order", "reversed order", "accuracy"]
    assert "temperature" not in own.data
    assert "scaled logits" not in text.report(own)
    one = analyze_toy(toy, evidence=ONLY, sample=ur.Sample(classes=[1]))[0].data
    assert one.set_balanced_accuracy.isnull().all()
    assert np.isfinite(one.set_loss).all()


def test_controls_may_be_left_out():
    asked = ur.Evidence(floors=0, resplits=0, bootstrap=None, controls=False)
    plain = analyze_toy(one_copy("mlp", torch.float64), evidence=asked)[0]
    assert not [name for name in plain.data if str(name).startswith("control")]
    for call in (plain.controls, plain.active_sets):
        with pytest.raises(ur.InputError, match=r"analyse with evidence=Evidence\(controls=True\)"):
            call()
