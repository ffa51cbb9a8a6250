"""Removed units: every plan gives what the slow literal twin gives."""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import networks
import reference
import unitroles as ur
from forcing import BATCH, PLANS, forced, layer_of, observe, one_copy, quietly
from unitroles.curves.collect import Pass
from unitroles.engine import choice

NAMES = sorted(networks.TOYS)
BASELINES = ["zero", "mean"]
PRECISIONS = {"float64": (torch.float64, 1e-10), "float32": (torch.float32, 1e-5)}
ABLATIONS = [ur.single_unit_ablation, ur.cumulative_ablation]
CASES = [(n, p) for n in NAMES for p in PLANS]

pytestmark = pytest.mark.usefixtures("one_thread")


def same(name, precision="float64"):
    """One copy of a toy for all tests."""
    return one_copy(name, PRECISIONS[precision][0])


def units_of(name):
    toy = same(name)
    shape = reference.activation(toy.model, toy.layer, toy.train[0][:1], toy.call).shape
    return shape[toy.axis]


def shuffled(name, seed=7):
    """A removal order for every class of a toy."""
    draw, units = np.random.default_rng(seed), units_of(name)
    return np.stack([draw.permutation(units) for _ in range(networks.RECIPES[name].labels)])


@cache
def twins(name, baseline="zero"):
    """The literal single-unit and cumulative ablation of the training data of a toy."""
    toy = same(name)
    where = {"baseline": baseline, "axis": toy.axis, "call": toy.call}
    alone = reference.single_unit_ablation(toy.model, toy.layer, toy.train, **where)
    orders = shuffled(name)
    return alone, reference.cumulative_ablation(toy.model, toy.layer, toy.train, orders, **where)


def ablate(function, name, precision="float64", **options):
    """The ablation of the training data of a toy."""
    toy = same(name, precision)
    return quietly(function, toy.model, toy.train, **{"layer": layer_of(toy), **options})


@cache
def both(name, precision="float64", plan="additive", baseline="zero"):
    """Single-unit and cumulative ablation of the training data of a toy."""
    with forced(plan):
        alone = ablate(ur.single_unit_ablation, name, precision, baseline=baseline)
        orders = {"baseline": baseline, "order": shuffled(name)}
        return alone, ablate(ur.cumulative_ablation, name, precision, **orders)


# The float32 and the float64 net are the same function: one twin stands for both.
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize(("name", "plan"), CASES)
def test_every_plan_equals_the_literal_twin(name, plan, baseline, precision):
    results = both(name, precision, plan, baseline)
    for found, wanted in zip(results, twins(name, baseline), strict=True):
        assert found.attrs["plan"] == plan
        assert found.attrs["baseline"] == baseline
        assert set(wanted) <= set(found)
        for variable, values in wanted.items():
            atol = PRECISIONS[precision][1] if "loss" in variable else 1e-12
            np.testing.assert_allclose(found[variable], values, rtol=0, atol=atol)


@pytest.mark.parametrize("name", NAMES)
def test_no_comparison_with_a_twin_is_vacuous(name):
    for zero, mean in zip(twins(name, "zero"), twins(name, "mean"), strict=True):
        for change in (zero["loss"], zero["loss"] - mean["loss"]):
            assert change.ndim == 1 or np.abs(change).max() > 1e-3
    zero, mean = (twins(name, baseline)[0]["loss_change"] for baseline in BASELINES)
    assert np.abs(zero).max() > 1e-3
    assert np.abs(zero - mean).max() > 1e-3


@pytest.mark.parametrize("name", ["mlp", "residual"])
def test_the_mean_is_that_over_the_samples_also_where_classes_differ_in_size(name):
    toy = same(name)
    inputs, labels = toy.train
    few = (labels != 0) | (torch.arange(len(labels)) == int((labels == 0).nonzero()[0]))
    data, where = (inputs[few], labels[few]), {"axis": toy.axis, "call": toy.call}
    wanted = reference.single_unit_ablation(toy.model, toy.layer, data, "mean", **where)
    options = {"layer": layer_of(toy), "baseline": "mean"}
    found = quietly(ur.single_unit_ablation, toy.model, data, **options)
    for variable, values in wanted.items():
        np.testing.assert_allclose(found[variable], values, rtol=0, atol=1e-10)


@pytest.mark.parametrize("size", [1, 5, 256])
@pytest.mark.parametrize("baseline", BASELINES)
def test_the_batch_size_does_not_matter(size, baseline):
    alone, turn = both("transformer", "float32", "additive", baseline)
    options = {"baseline": baseline, "compute": ur.Compute(batch_size=size)}
    found = ablate(ur.single_unit_ablation, "transformer", "float32", **options)
    xr.testing.assert_allclose(found.loss_change, alone.loss_change, rtol=0, atol=1e-5)
    options["order"] = shuffled("transformer")
    found = ablate(ur.cumulative_ablation, "transformer", "float32", **options)
    xr.testing.assert_allclose(found.loss, turn.loss, rtol=0, atol=1e-5)


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("name", ["mlp", "residual", "residual_early"])
def test_a_tiny_memory_budget_gives_the_same(name, baseline):
    tiny = {"baseline": baseline, "compute": ur.Compute(batch_size=5, memory_budget=1)}
    for function, wanted in zip(ABLATIONS, twins(name, baseline), strict=True):
        order = {"order": shuffled(name)} if function is ur.cumulative_ablation else {}
        found = ablate(function, name, **tiny, **order)
        for variable, values in wanted.items():
            np.testing.assert_allclose(found[variable], values, rtol=0, atol=1e-10)


@cache
def analysis(name, score="activation_l1"):
    """Training data on both sides, so that the first split is what an ablation sees."""
    toy = same(name)
    options = {"layer": layer_of(toy), "method": ur.Method(score=score)}
    return quietly(ur.analyze, toy.model, toy.train, toy.train, **options).data.sel(split="train")


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", ["mlp", "relu_twice", "residual", "transformer"])
def test_ascending_removal_is_the_retrieval_curve_read_backwards(name, plan):
    curve = analysis(name)
    with forced(plan):
        found = ablate(ur.cumulative_ablation, name, order="ascending")
    np.testing.assert_array_equal(found.order, curve.order[:, ::-1])
    np.testing.assert_allclose(found.loss, curve.loss[:, ::-1], rtol=0, atol=1e-12)
    np.testing.assert_array_equal(found.accuracy, curve.accuracy[:, ::-1])


@pytest.mark.parametrize("score", ["activation_l1", "activation_mean", "weight_l1", "random"])
def test_descending_removal_follows_the_score_of_the_analysis(score):
    curve = analysis("residual", score)
    found = ablate(ur.cumulative_ablation, "residual", order="descending", score=score)
    np.testing.assert_array_equal(found.order, curve.order)
    assert json.loads(found.attrs["provenance"])["options"]["method"]["score"] == score
    again = ablate(ur.cumulative_ablation, "residual", order=curve.order.values)
    np.testing.assert_array_equal(found.loss, again.loss)


def test_descending_is_the_default_and_a_function_may_rank():
    def weakest(units):
        return -units.abs().sum(dim=2)

    down = ablate(ur.cumulative_ablation, "mlp")
    assert json.loads(down.attrs["provenance"])["options"]["method"]["order"] == "descending"
    up = ablate(ur.cumulative_ablation, "mlp", order="ascending", score=weakest)
    live = same("mlp").model[:2](same("mlp").train[0]).amax(0) > 0  # ties turn round in `up`
    assert live.all()
    np.testing.assert_array_equal(up.order, down.order)
    np.testing.assert_array_equal(up.loss, down.loss)


def test_an_order_may_be_given_in_any_form():
    table = shuffled("mlp")
    wanted = both("mlp")[1]
    forms = [table.tolist(), torch.from_numpy(table), table.astype(np.uint8), tuple(table)]
    for form in forms:
        xr.testing.assert_identical(bare(ablate(ur.cumulative_ablation, "mlp", order=form)), wanted)


def bare(found):
    """Without what differs between two runs: times."""
    wanted = both("mlp")[1]
    return found.assign_attrs(provenance=wanted.attrs["provenance"])


def test_one_order_for_all_classes_is_the_same_for_each():
    row = shuffled("mlp")[0]
    table = np.tile(row, (4, 1))
    forms = [row, row.tolist(), torch.from_numpy(row), torch.from_numpy(table)]
    results = [ablate(ur.cumulative_ablation, "mlp", order=form) for form in forms]
    for found in results:
        np.testing.assert_array_equal(found.order, table)
        np.testing.assert_array_equal(found.loss, results[0].loss)


@pytest.mark.parametrize("name", ["mlp", "residual_early", "transformer"])
def test_the_first_of_a_cumulative_ablation_is_a_single_unit_removed(name):
    alone, turn = both(name)
    for label, first in enumerate(turn.order[:, 0].values):
        change = turn.loss[label, 1] - turn.loss[label, 0]
        np.testing.assert_allclose(change, alone.loss_change[label, first], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["mlp", "residual", "residual_early", "transformer"])
def test_the_intact_model_does_not_hang_on_the_baseline(name):
    for zero, mean in zip(both(name), both(name, baseline="mean"), strict=True):
        loss = [found.loss.values.reshape(len(found.label), -1)[:, 0] for found in (zero, mean)]
        np.testing.assert_allclose(*loss, rtol=0, atol=1e-10)


def test_a_random_order_hangs_on_the_seed_and_the_class_alone():
    def orders(**options):
        found = ablate(ur.cumulative_ablation, "mlp", order="random", **options)
        return {int(row.label): tuple(row.values.tolist()) for row in found.order}

    first = orders()
    assert first == orders(compute=ur.Compute(batch_size=3), baseline="mean")
    assert len(set(first.values())) == 4
    some = orders(sample=ur.Sample(classes=[3, 1], max_per_class=2))
    assert some == {label: first[label] for label in (1, 3)}
    others = orders(sample=ur.Sample(seed=1))
    assert len({*first.values(), *others.values()}) == 8
    assert all(sorted(row) == list(range(12)) for row in first.values())


def test_a_random_order_leaves_the_random_states_alone():
    torch.manual_seed(5)
    np.random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    ablate(ur.cumulative_ablation, "mlp", order="random")
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])


ROW = list(range(12))
WANTED = r"; give the numbers 0 to 11 of the units of layer '1' once each, as \(12,\) or, for 4 "
NUMBERS = r"; give the numbers of the layer's units as \(units,\) or \(classes, units\), or 'desc"
NO_NUMBERS = [
    pytest.param("upward", "unknown order 'upward'; known: descending, asc", id="unknown"),
    pytest.param("descend", "did you mean descending", id="near"),
    pytest.param([ROW, ROW[:3]], "order cannot be read as numbers: .*" + NUMBERS, id="ragged"),
    pytest.param([0.5] * 12, "order holds float64 values, not whole numbers" + NUMBERS, id="float"),
    pytest.param([True] * 12, "order holds bool values, not whole", id="truth"),
    pytest.param(None, "order holds object values, not whole", id="nothing"),
    pytest.param({1, 0}, "order holds object values, not whole", id="set"),
    pytest.param(["0", "1"], "order holds <U1 values, not whole", id="texts"),
    pytest.param([], "order holds float64 values, not whole", id="empty"),
    pytest.param(5, r"order has shape \(\)" + NUMBERS, id="number"),
    pytest.param([[ROW]], r"order has shape \(1, 1, 12\)" + NUMBERS, id="three axes"),
    pytest.param(torch.ones(12, requires_grad=True), "order holds float32 values", id="gradient"),
    pytest.param(
        torch.ones(12, dtype=torch.bfloat16), "order cannot be read as numbers", id="bfloat16"
    ),
    pytest.param(
        torch.eye(12, dtype=torch.int64).to_sparse(),
        "order cannot be read as numbers",
        id="sparse",
    ),
]
OTHER_NUMBERS = [
    pytest.param(ROW[:11], r"order has shape \(11,\)" + WANTED, id="short"),
    pytest.param([ROW] * 3, r"order has shape \(3, 12\)" + WANTED, id="rows"),
    pytest.param([*ROW[:11], 3], "order of class 0 lacks unit 11" + WANTED, id="twice"),
    pytest.param([*ROW[:11], 12], "order of class 0 lacks unit 11", id="too large"),
    pytest.param([-1, *ROW[1:]], "order of class 0 lacks unit 0", id="negative"),
    pytest.param([ROW, ROW, [*ROW[1:], 1], ROW], "order of class 2 lacks unit 0", id="class"),
]


def never(*given):
    raise AssertionError("the model was run")


@pytest.mark.parametrize(("order", "said"), NO_NUMBERS)
def test_an_order_that_is_none_is_refused_before_anything_is_done(order, said, monkeypatch):
    same("mlp")
    monkeypatch.setattr(nn.Module, "__call__", never)
    with pytest.raises(ur.InputError, match=said) as caught:
        ablate(ur.cumulative_ablation, "mlp", order=order)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("order", "said"), OTHER_NUMBERS)
def test_an_order_of_another_layer_is_refused_before_any_pass(order, said, monkeypatch):
    same("mlp")
    monkeypatch.setattr(Pass, "collect", never)
    with pytest.raises(ur.InputError, match=said) as caught:
        ablate(ur.cumulative_ablation, "mlp", order=order, baseline="mean")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("function", ABLATIONS)
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"baseline": "meen"}, "unknown baseline 'meen'; did you mean mean.*known: zero, mean"),
        ({"layer": "9"}, "unknown layer '9'; known: 0, 1, 2, 3"),
        ({"class_names": ["a", "b", "c"]}, "there are 3 class names but label 3 occurs"),
        ({"sample": ur.Sample(classes=[7])}, "class 7 is not in the data; it has 0, 1, 2, 3"),
        ({"compute": ur.Compute(device="nowhere")}, "device 'nowhere' cannot be used"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_sentence(function, options, said):
    with pytest.raises(ur.InputError, match=said) as caught:
        ablate(function, "mlp", **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("function", ABLATIONS)
def test_data_and_models_that_cannot_be_used_are_refused(function):
    model, (x, y) = same("mlp").model, same("mlp").train
    for bad, said in [
        ((x, y[:-1]), "data"),
        ((x, y + 9), "label .* of data sample .* is out of range"),
        ((x[:, :9], y), "cannot take a batch of shape"),
        (3, "data"),
    ]:
        with pytest.raises(ur.InputError, match=said) as caught:
            quietly(function, model, bad, layer="1")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("function", ABLATIONS)
def test_a_layer_that_makes_the_logits_is_run_in_full_and_said(function):
    toy = same("mlp")
    found, (note,) = observe(function, toy.model, toy.train, layer="4")
    assert found.attrs["plan"] == "full"
    assert note.startswith("plan full")
    assert "the layer makes the logits" in note


@pytest.mark.parametrize("score", ["activation_l", "l1"])
def test_an_unknown_score_is_refused(score):
    with pytest.raises(ur.InputError, match=f"unknown score {score!r};.*known: activation_l1"):
        ablate(ur.cumulative_ablation, "mlp", score=score)


@pytest.mark.parametrize("order", ["descending", "ascending"])
def test_a_score_function_must_return_finite_values(order):
    with pytest.raises(ur.InputError, match="the score of a unit of layer .* is not finite; fix"):
        ablate(ur.cumulative_ablation, "mlp", order=order, score=lambda units: units.sum(2) / 0)


COORDS = {"label", "label_index"}
FOUND = {
    ur.single_unit_ablation: (
        {
            "loss": ("label",),
            "accuracy": ("label",),
            "loss_change": ("label", "unit"),
            "accuracy_change": ("label", "unit"),
            "samples": ("label",),
        },
        COORDS | {"unit"},
    ),
    ur.cumulative_ablation: (
        {
            "loss": ("label", "removed"),
            "accuracy": ("label", "removed"),
            "order": ("label", "position"),
            "samples": ("label",),
        },
        COORDS | {"removed", "position"},
    ),
}
WHOLE = {"order": np.int32, "samples": np.int64}
COUNTED = {"unit": 12, "removed": 13, "position": 12}


@pytest.mark.parametrize("names", [None, ["ant", "bee", "cat", "dog"]])
@pytest.mark.parametrize("function", ABLATIONS)
def test_the_result_is_labelled_and_survives_a_file(function, names, tmp_path):
    found = ablate(function, "mlp", class_names=names, baseline="mean")
    variables, coords = FOUND[function]
    assert {name: value.dims for name, value in found.items()} == variables
    assert set(found.coords) == coords
    for name, value in found.items():
        assert value.dtype == WHOLE.get(name, np.float64)
        unit = "nats" if "loss" in name else "fraction" if "accuracy" in name else None
        assert value.attrs.get("units") == unit
    assert found.label.values.tolist() == (names or [0, 1, 2, 3])
    assert found.label_index.values.tolist() == [0, 1, 2, 3]
    for name in coords & set(COUNTED):
        assert found[name].values.tolist() == list(range(COUNTED[name]))
    assert found.samples.values.tolist() == torch.bincount(same("mlp").train[1]).tolist()
    assert set(found.attrs) == {"layer", "plan", "baseline", "provenance"}
    assert all(type(value) is str for value in found.attrs.values())
    found.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "a.nc", engine="h5netcdf") as back:
        xr.testing.assert_identical(back.load(), found)


@pytest.mark.parametrize("function", ABLATIONS)
def test_the_provenance_says_how_the_result_came_about(function):
    sample = ur.Sample(classes=[0, 2], max_per_class=3, seed=4)
    found = ablate(function, "mlp", baseline="mean", sample=sample)
    record = json.loads(found.attrs["provenance"])
    method = record["options"]["method"]
    assert method["baseline"] == "mean"
    if function is ur.cumulative_ablation:
        assert method == {
            "order": "descending",
            "score": "activation_l1",
            "baseline": "mean",
            "output": None,
        }
    assert record["options"]["sample"]["seed"] == 4
    assert record["options"]["compute"]["batch_size"] == BATCH.batch_size
    assert record["layer"] == {"path": "1", "axis": 1, "call": 0}
    assert record["plan"]["name"] == found.attrs["plan"] == "additive"
    assert record["self_check"]["difference"] <= record["self_check"]["tolerance"]
    assert record["self_check"]["conclusive"]
    assert record["warnings"] == []
    assert set(record["stages"]) == {"prepare", "body", "sweep"}
    assert record["versions"]["unitroles"] == ur.__version__
    assert found.label.values.tolist() == [0, 2]
    assert found.samples.values.tolist() == [3, 3]


def test_a_given_order_is_recorded_as_given():
    record = json.loads(both("mlp")[1].attrs["provenance"])
    assert record["options"]["method"]["order"] == "given"


@pytest.mark.parametrize("function", ABLATIONS)
def test_a_wrong_running_sum_is_caught(function, monkeypatch):
    recognise = choice.recognise

    def wrong(*args):
        form = recognise(*args)
        (one,) = form.sums
        return replace(form, sums=(replace(one, add=one.add * 1.01),))

    monkeypatch.setattr(choice, "recognise", wrong)
    toy = same("mlp")
    found, notes = observe(function, toy.model, toy.train, layer="1", baseline="mean")
    assert found.attrs["plan"] == "suffix"
    assert len(notes) == 1
    assert json.loads(found.attrs["provenance"])["warnings"] == notes


class Changing(nn.Module):
    """Its forward writes to a parameter, and to its running statistics while it trains."""

    def __init__(self):
        super().__init__()
        self.hidden, self.relu, self.rest = nn.Linear(10, 12), nn.ReLU(), nn.Linear(12, 4)
        self.norm = nn.BatchNorm1d(10)
        self.calls = nn.Parameter(torch.zeros(()), requires_grad=False)

    def forward(self, x):
        self.calls += 1
        return self.rest(self.relu(self.hidden(self.norm(x))))


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("function", ABLATIONS)
def test_the_model_comes_back_as_it_was(function, plan, baseline):
    torch.manual_seed(0)
    model = Changing()
    model.train()
    model.relu.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    tensors = [id(value) for value in (*model.parameters(), *model.buffers())]
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    with forced(plan):
        found = quietly(function, model, networks.toy("mlp").train, layer="relu", baseline=baseline)
    assert found.attrs["plan"] == plan
    assert [module.training for module in model.modules()] == modes
    assert [id(value) for value in (*model.parameters(), *model.buffers())] == tensors
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert torch.equal(torch.get_rng_state(), states[0])
    np.testing.assert_array_equal(np.random.get_state()[1], states[1])


@pytest.mark.parametrize("function", ABLATIONS)
def test_the_recommended_layer_is_taken_where_none_is_named(function):
    found = ablate(function, "mlp", layer=None)
    assert found.attrs["layer"] == "3"
    named = ablate(function, "mlp", layer="3")
    xr.testing.assert_equal(found, named)


class Bare(nn.Module):
    """A head without a bias, or after a norm: without its only active unit nothing is left."""

    def __init__(self, norm: nn.Module, scale: float = 1.0):
        super().__init__()
        torch.manual_seed(0)
        self.act, self.norm, self.head = nn.ReLU(), norm, nn.Linear(30, 3, bias=False)
        self.scale = scale

    def forward(self, x):
        return self.head(self.norm(self.scale * self.act(x)))


@pytest.mark.parametrize(
    "model", [Bare(nn.Identity()), Bare(nn.LayerNorm(30), 1e4), Bare(nn.RMSNorm(30), 1e4)]
)
def test_no_rounding_is_left_where_the_only_active_unit_is_removed(model):
    draw = torch.Generator().manual_seed(0)
    x = torch.where(torch.rand(40, 30, generator=draw) < 0.05, 1.0, -1.0)
    x = x * torch.rand(40, 30, generator=draw)
    y = torch.arange(40) % 3
    found = quietly(ur.single_unit_ablation, model, (x, y), layer="act")
    assert found.attrs["plan"] == "additive"
    wanted = reference.single_unit_ablation(model, "act", (x, y))
    np.testing.assert_allclose(found.loss_change, wanted["loss_change"], atol=1e-5)
    np.testing.assert_array_equal(found.accuracy_change, wanted["accuracy_change"])
