"""Every way to run the masks gives what the slow literal twin gives."""

import warnings
from copy import deepcopy
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import networks
import reference
import unitroles as ur
from forcing import (
    NOT_ADDITIVE,
    PLANS,
    REFUSAL,
    analyze_toy,
    best,
    find,
    force,
    forced,
    layer_of,
    observe,
    one_copy,
    traced,
)
from unitroles.curves import store
from unitroles.curves.scores import layer_score
from unitroles.curves.store import Stores
from unitroles.engine import check, choice
from unitroles.engine.additive import AdditivePlan
from unitroles.engine.suffix import SuffixPlan
from unitroles.model.borrow import untouched
from unitroles.model.candidates import resolve
from unitroles.model.forward import Precision
from unitroles.model.hooks import run_masked
from unitroles.rewrite.export import Exported, export

NAMES = sorted(networks.TOYS)
PRECISIONS = {
    "float64": (torch.float64, 1.0, 1e-10),
    "float32": (torch.float32, 1.0, 1e-5),
    "float32 large logits": (torch.float32, 10.0, 1e-5),
}
SCORES = {
    "activation_l1": reference.score,
    "activation_l2": reference.score_l2,
    "activation_mean": reference.score_mean,
}
# Every toy with every plan that it can get.
CASES = [(n, p) for n in NAMES for p in PLANS if best(n, p) == p]
PROCESSOR = Precision(torch.device("cpu"))


pytestmark = pytest.mark.usefixtures("one_thread")


@cache
def twin(name, precision="float64", order="per_split", score="activation_l1"):
    dtype, scale, _ = PRECISIONS[precision]
    toy = networks.toy(name, dtype, scale)
    site = (toy.layer, toy.train, toy.test, toy.axis, toy.call)
    return reference.analyze(toy.model, *site, order_mode=order, score=SCORES[score])


def same(name, precision="float64"):
    """One copy of a toy for all tests."""
    return one_copy(name, *PRECISIONS[precision][:2])


@cache
def analysis(name, precision="float64", plan="additive"):
    with forced(plan):
        return analyze_toy(same(name, precision))


def assert_equals_twin(taxonomy, expected, atol):
    data = taxonomy.data
    assert data.label_index.values.tolist() == expected.labels
    for name in ("order", "turning_point", "role"):
        np.testing.assert_array_equal(data[name].values, getattr(expected, name), err_msg=name)
    for name in ("accuracy", "swapped_accuracy"):
        got, want = data[name].values, getattr(expected, name)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-12, err_msg=name)
    for name in ("loss", "swapped_loss"):
        got, want = data[name].values, getattr(expected, name)
        np.testing.assert_allclose(got, want, rtol=0, atol=atol, err_msg=name)
    np.testing.assert_allclose(data.score.values, expected.score, rtol=atol, atol=atol)
    np.testing.assert_allclose(taxonomy.shares(), expected.shares, rtol=0, atol=1e-12)
    np.testing.assert_allclose(taxonomy.proportions(), expected.proportions, rtol=0, atol=1e-12)
    regret = taxonomy.regret()
    assert set(regret) == set(expected.regret)
    for name, want in expected.regret.items():
        np.testing.assert_allclose(regret[name], want, rtol=0, atol=2 * atol, err_msg=name)


def assert_same_bits(one, other):
    """Every number of two results, and nothing of how they came about."""
    assert set(one.data) == set(other.data)
    for name in one.data:
        np.testing.assert_array_equal(one.data[name], other.data[name], err_msg=str(name))


@pytest.mark.parametrize("name", NAMES)
def test_no_toy_is_vacuous(name):
    expected = twin(name)
    point, units = expected.turning_point, expected.role.shape[1]
    assert len(np.unique(expected.role)) >= 3
    assert ((point > 1) & (point < units)).mean() >= 0.5
    assert networks.robust(expected.loss, expected.score)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("name", "plan"), CASES)
def test_every_plan_equals_the_twin(name, plan, precision):
    taxonomy, notes = analysis(name, precision, plan)
    assert taxonomy.data.attrs["plan"] == taxonomy.provenance["plan"]["name"] == plan
    assert taxonomy.provenance["self_check"]["conclusive"]
    said = [f"plan full (N+1 runs of the whole model): {REFUSAL}"] if plan == "full" else []
    assert notes == said
    assert_equals_twin(taxonomy, twin(name, precision), PRECISIONS[precision][2])


@pytest.mark.parametrize("name", sorted(NOT_ADDITIVE))
def test_where_there_is_no_running_sum_it_is_said_why(name):
    taxonomy, notes = analysis(name)
    assert taxonomy.data.attrs["plan"] == "suffix"
    assert "units meet in a convolution over positions" in taxonomy.provenance["plan"]["reason"]
    assert notes == []


@pytest.mark.parametrize(
    ("name", "plan", "size"),
    [(name, plan, 3) for name, plan in CASES]
    + [(name, plan, 256) for name in ("mlp", "transformer") for plan in PLANS]
    + [("mlp", "additive", 1), ("residual_early", "suffix", 1), ("transformer", "full", 1)],
)
def test_the_batch_size_does_not_matter(name, plan, size):
    expected = analysis(name, "float32", plan)[0].data
    with forced(plan):
        found, _ = analyze_toy(same(name, "float32"), compute=ur.Compute(batch_size=size))
    assert found.data.attrs["plan"] == plan
    np.testing.assert_allclose(found.data.loss, expected.loss, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(found.data.turning_point, expected.turning_point)
    np.testing.assert_array_equal(found.data.role, expected.role)


def stored(name, plan, where, **compute):
    """The taxonomy of a toy whose rows are kept in a certain place, and where they were."""
    seen = []
    place = Stores.place

    def forced_place(self, needed):
        seen.append(place(self, needed) if where is None else where)
        return seen[-1]

    with forced(plan), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stores, "place", forced_place)
        found, _ = analyze_toy(same(name), compute=ur.Compute(**compute))
    assert found.data.attrs["plan"] == plan
    return found, set(seen)


STORES = [("residual", "additive"), ("residual", "suffix"), ("transformer", "additive")]
STORES += [("mlp", "suffix"), ("conv_pool_linear", "additive")]


@pytest.mark.parametrize("batch_size", [5, 16])
@pytest.mark.parametrize(("name", "plan"), STORES)
def test_wherever_the_rows_are_kept_the_bits_are_the_same(name, plan, batch_size):
    found = {
        where: stored(name, plan, where, batch_size=batch_size)
        for where in ("memory", "disk", "recompute")
    }
    assert all(seen == {where} for where, (_, seen) in found.items())
    for where in ("disk", "recompute"):
        assert_same_bits(found["memory"][0], found[where][0])
    assert_equals_twin(found["memory"][0], twin(name), 1e-10)


@pytest.mark.parametrize(("name", "plan"), STORES)
def test_several_small_tiles_give_the_same_bits_wherever_they_come_from(name, plan, monkeypatch):
    kind = AdditivePlan if plan == "additive" else SuffixPlan
    monkeypatch.setattr(kind, "tile", 7)
    found = [stored(name, plan, where, batch_size=5)[0] for where in ("memory", "recompute")]
    monkeypatch.setattr("unitroles.curves.store.SHARD_BYTES", 1)  # a file for every tile
    found.append(stored(name, plan, "disk", batch_size=5)[0])
    assert_same_bits(found[0], found[1])
    assert_same_bits(found[0], found[2])
    assert_equals_twin(found[0], twin(name), 1e-10)


@pytest.mark.parametrize("batch_size", [1, 5])
@pytest.mark.parametrize(("name", "plan"), STORES[:3])
def test_a_tiny_memory_budget_gives_the_same(name, plan, batch_size):
    tiny, seen = stored(name, plan, None, batch_size=batch_size, memory_budget=1)
    assert seen == {"disk"}
    assert_same_bits(tiny, stored(name, plan, "memory", batch_size=batch_size, memory_budget=1)[0])
    assert_equals_twin(tiny, twin(name), 1e-10)


def test_rows_that_fit_nowhere_are_computed_again(monkeypatch):
    full = SimpleNamespace(free=0)
    monkeypatch.setattr("unitroles.store.shutil.disk_usage", lambda folder: full)
    found, seen = stored("mlp", "additive", None, memory_budget=1, batch_size=5)
    assert seen == {"recompute"}
    assert_equals_twin(found, twin("mlp"), 1e-10)


def test_the_disk_is_left_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("unitroles.curves.store.SHARD_BYTES", 1)
    written = []
    save = store.save_file
    monkeypatch.setattr(store, "save_file", lambda *a: written.append(a[1]) or save(*a))
    stored("residual", "suffix", "disk", batch_size=5)
    assert written
    assert all(tmp_path in file.parents for file in written)
    assert list(tmp_path.iterdir()) == []


def suffix_of(name, budget=2**31):
    """The suffix plan of a toy, and what it keeps of four samples."""
    toy = same(name)
    inputs = toy.train[0][:4]
    seen, site = traced(toy.model, inputs), find(toy.model, layer_of(toy), inputs)
    with untouched(toy.model):
        head = export(toy.model, [site], inputs).head(0)
        plan = choice.suffix_plan(toy.model, site, head, inputs, budget, PROCESSOR)
        return plan, plan.keep(*plan.probe), check.define(toy.model, site, seen, PROCESSOR)


@pytest.mark.parametrize("name", ["mlp", "relu_twice", "residual_early", "transformer"])
def test_the_budget_only_sets_how_many_masks_run_at_once(name):
    parts = {}
    for budget in (1, 2**30):
        plan, kept, _ = suffix_of(name, budget)
        units = plan.site.units
        order = torch.stack([torch.arange(units).roll(k) for k in range(4)])
        parts[budget] = list(plan.prefixes(kept, order))
    assert [part for part, _ in parts[1]] == [slice(k, k + 1) for k in range(units + 1)]
    assert [part for part, _ in parts[2**30]] == [slice(0, units + 1)]
    one_by_one = torch.cat([logits for _, logits in parts[1]])
    torch.testing.assert_close(one_by_one, parts[2**30][0][1], rtol=0, atol=1e-12)


LAYERS = {
    "mlp": ["0", "1", "3"],
    "residual": ["stem", "blocks.0.relu", "blocks.1.bn2"],
    "transformer": ["patches", "blocks.0.gelu", "norm"],
}


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", LAYERS)
def test_several_layers_in_one_pass_equal_one_by_one(name, plan):
    toy = same(name)
    data = toy.model, toy.train, toy.test
    with forced(plan):
        together, _ = observe(ur.analyze_layers, *data, LAYERS[name])
        assert list(together) == LAYERS[name]
        for layer, found in together.items():
            alone, _ = observe(ur.analyze, *data, layer=layer)
            assert found.data.attrs["plan"] == alone.data.attrs["plan"]
            assert_same_bits(found, alone)


@pytest.mark.parametrize("order", ["train", "test", "pooled"])
@pytest.mark.parametrize("name", ["mlp", "relu_twice", "residual"])
def test_a_shared_order_equals_the_twin(name, order):
    expected = twin(name, order=order)
    assert (expected.order[0] == expected.order[1]).all()
    taxonomy, _ = analyze_toy(same(name), method=ur.Method(order=order))
    assert_equals_twin(taxonomy, expected, 1e-10)


# After a ReLU the mean is the L1 norm but for a factor: the layers here have negative activations.
@pytest.mark.parametrize("score", ["activation_l2", "activation_mean"])
@pytest.mark.parametrize("name", ["residual", "transformer"])
def test_another_score_equals_the_twin(name, score):
    expected = twin(name, score=score)
    assert (expected.order != twin(name).order).any()
    taxonomy, _ = analyze_toy(same(name), method=ur.Method(score=score))
    assert_equals_twin(taxonomy, expected, 1e-10)


def test_a_function_may_score_the_units():
    toy = networks.toy("conv_pool_linear", torch.float64)
    taxonomy, _ = analyze_toy(toy, method=ur.Method(score=lambda units: units.amax(dim=2)))
    for split, (inputs, labels) in enumerate((toy.train, toy.test)):
        for label in range(4):
            mine = inputs[labels == label]
            largest = [
                reference.activation(toy.model, toy.layer, mine[i : i + 1])[0].amax(dim=(1, 2))
                for i in range(len(mine))
            ]
            expected = torch.stack(largest).mean(dim=0)
            np.testing.assert_allclose(taxonomy.data.score[split, label], expected, atol=1e-12)


def test_a_score_function_of_the_wrong_shape_is_refused():
    toy = networks.toy("conv_pool_linear")
    with pytest.raises(ur.InputError, match=r"must return \(samples, units\) = \(16, 8\)"):
        analyze_toy(toy, method=ur.Method(score=lambda units: units.sum(dim=1)))


def test_a_score_function_must_return_finite_values():
    toy = networks.toy("mlp")
    with pytest.raises(ur.InputError, match="the score of a unit of layer .* is not finite; fix"):
        analyze_toy(toy, method=ur.Method(score=lambda units: units.sum(dim=2) / 0))


MAKERS = {
    "mlp": "0",
    "conv_pool_linear": "conv",
    "conv_bn_gap": "1.0",
    "residual": "blocks.1.conv2",
    "residual_early": "blocks.0.conv1",
    "relu_twice": "wide",
    "depthwise": "0.0",
    "transformer": "blocks.0.fc1",
    "dropout_head": "0",
}


@pytest.mark.parametrize("name", NAMES)
def test_weight_l1_sums_the_weights_that_make_a_unit(name):
    toy = networks.toy(name, torch.float64)
    seen = traced(toy.model, toy.train[0][:2])
    site = resolve(toy.model, layer_of(toy), seen)
    score = layer_score("weight_l1", site, seen.calls, (2, 3, site.units), seed=0)
    weight = toy.model.get_submodule(MAKERS[name]).weight
    expected = [row.abs().sum().item() for row in weight]
    assert score.shape == (2, 3, site.units)
    np.testing.assert_allclose(score, np.broadcast_to(expected, score.shape), rtol=1e-12)


def test_weight_l1_ranks_by_weight_in_every_class():
    toy = networks.toy("mlp", torch.float64)
    taxonomy, _ = analyze_toy(toy, method=ur.Method(score="weight_l1"))
    strength = toy.model[0].weight.abs().sum(dim=1).detach().numpy()
    assert (taxonomy.data.order.values == np.argsort(-strength)).all()


@pytest.mark.parametrize(
    "maker",
    [
        pytest.param(nn.Identity(), id="nothing"),
        pytest.param(nn.ConvTranspose2d(1, 6, 1), id="transposed"),
        # The first convolution has as many rows, but it does not make these units.
        pytest.param(
            nn.Sequential(nn.Conv2d(1, 6, 1), nn.ConvTranspose2d(6, 6, 1)), id="further up"
        ),
    ],
)
def test_weight_l1_needs_rows_of_weights(maker):
    channels = 1 if isinstance(maker, nn.Identity) else 6
    model = nn.Sequential(maker, nn.ReLU(), nn.Flatten(), nn.Linear(channels * 4, 2))
    seen = traced(model, torch.randn(2, 1, 2, 2))
    site = resolve(model, ur.Layer("1", axis=2) if channels == 1 else "1", seen)
    with pytest.raises(ur.InputError, match="weight_l1.*one row of weights per unit"):
        layer_score("weight_l1", site, seen.calls, (2, 2, site.units), seed=0)


def test_random_scores_follow_the_seed_and_differ_everywhere():
    toy = same("mlp", "float32")
    method = ur.Method(score="random")
    orders = [
        analyze_toy(toy, method=method, sample=ur.Sample(seed=seed))[0].data.order.values
        for seed in (1, 1, 2)
    ]
    np.testing.assert_array_equal(orders[0], orders[1])
    rows = np.concatenate([*orders[0], *orders[2]])
    assert len({tuple(row) for row in rows}) == len(rows) == 16


class Sharing(nn.Module):
    """A batch norm that looks at its batch also in evaluation."""

    def __init__(self, norm: nn.Module):
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3)
        self.norm = norm
        self.relu = nn.ReLU()
        self.classifier = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        spread = self.relu(self.stem(x)).mean(dim=(2, 3))
        if isinstance(self.norm, nn.BatchNorm2d):
            return self.classifier(self.norm(spread[..., None, None])[..., 0, 0])
        return self.classifier(self.norm(spread))


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.BatchNorm2d])
def test_a_norm_over_the_batch_is_run_in_full_and_said(norm):
    torch.manual_seed(0)
    model = Sharing(norm(6, track_running_stats=False))
    toy = networks.toy("conv_bn_gap")
    taxonomy, notes = observe(ur.analyze, model, toy.train, toy.test, layer="relu")
    assert taxonomy.data.attrs["plan"] == "full"
    assert any("samples of one batch influence each other" in note for note in notes)
    assert any("results depend on batch_size" in note for note in notes)
    assert taxonomy.provenance["warnings"] == notes


class Branching(nn.Module):
    """The branch depends on the data, so no graph holds the model; the samples stay independent."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(10, 9), nn.ReLU())
        self.rest = nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x)
        if hidden.max() > 1e6:
            raise ValueError("an activation explodes")
        return self.rest(hidden)


def test_a_branch_on_the_data_is_run_in_full_and_equals_the_twin(capfd):
    torch.manual_seed(3)
    toy = networks.toy("mlp", torch.float64)
    model = Branching().double()
    taxonomy, notes = observe(ur.analyze, model, toy.train, toy.test, layer="body.1")
    (note,) = notes
    assert note.startswith("plan full")
    assert "torch.export failed" in note
    assert "\n" not in note
    assert taxonomy.data.attrs["plan"] == "full"
    expected = reference.analyze(model, "body.1", toy.train, toy.test)
    assert len(np.unique(expected.role)) >= 2
    assert_equals_twin(taxonomy, expected, 1e-10)
    assert capfd.readouterr() == ("", "")


def spoiled(head, spoil):
    """The head with `spoil` between its graph and its output."""
    after = deepcopy(head.after)
    (out,) = [node for node in after.graph.nodes if node.op == "output"]
    with after.graph.inserting_before(out):
        wrong = after.graph.call_function(spoil, (out.args[0],))
    out.args = (wrong,)
    after.recompile()
    return replace(head, after=after)


def spoil_heads(patch, spoil):
    """Every head that is cut from now on is spoiled."""
    cut = Exported.head
    patch.setattr(Exported, "head", lambda self, place: spoiled(cut(self, place), spoil))


# Two samples are compared, under several masks in one call.
SPOILS = {
    "scaled": lambda logits: logits * 1.001,
    "not a number": lambda logits: logits * float("nan"),
    "rows mixed up": lambda logits: logits.roll(1, 0),
    "mask ignored": lambda logits: logits[:2].repeat(len(logits) // 2, 1),
}
FORM_SPOILS = {
    "scaled": lambda form: replace(form, add=form.add * 1.001),
    "not a number": lambda form: replace(form, add=form.add * float("nan")),
    "rows mixed up": lambda form: replace(form, add=form.add.roll(1, 0)),
    "mask ignored": lambda form: replace(form, add=torch.zeros_like(form.add)),
    "one unit forgotten": lambda form: replace(form, add=form.add * unit_mask(form.add)),
}
WRONG = "the exported head differs from the model by"


def unit_mask(rows):
    """All units but that of the largest row."""
    size = rows.flatten(1).abs().amax(1)
    return (size < size.max()).to(rows)[:, None, None]


@pytest.mark.parametrize("spoil", SPOILS)
@pytest.mark.parametrize("name", ["mlp", "residual", "residual_early", "transformer"])
def test_a_wrong_head_is_caught(name, spoil, monkeypatch):
    spoil_heads(monkeypatch, SPOILS[spoil])
    force(monkeypatch, "suffix")
    taxonomy, notes = analyze_toy(same(name))
    assert taxonomy.data.attrs["plan"] == "full"
    (note,) = notes
    assert note.startswith(f"plan full (N+1 runs of the whole model): {WRONG}")
    assert_equals_twin(taxonomy, twin(name), 1e-10)


@pytest.mark.parametrize("spoil", FORM_SPOILS)
@pytest.mark.parametrize("name", ["mlp", "residual", "conv_pool_linear", "transformer"])
def test_a_wrong_running_sum_is_caught(name, spoil, monkeypatch):
    recognise = choice.recognise
    monkeypatch.setattr(choice, "recognise", lambda *args: FORM_SPOILS[spoil](recognise(*args)))
    taxonomy, notes = analyze_toy(same(name))
    assert taxonomy.data.attrs["plan"] == "suffix"
    (note,) = notes
    assert note.startswith(f"plan suffix, not additive: {WRONG}")
    assert taxonomy.provenance["warnings"] == notes
    assert_equals_twin(taxonomy, twin(name), 1e-10)


def test_where_running_sum_and_head_are_both_wrong_the_definition_is_left(monkeypatch):
    spoil_heads(monkeypatch, SPOILS["scaled"])
    taxonomy, notes = analyze_toy(same("mlp"))
    assert taxonomy.data.attrs["plan"] == "full"
    assert len(notes) == 1
    assert WRONG in notes[0]
    assert_equals_twin(taxonomy, twin("mlp"), 1e-10)


@pytest.mark.parametrize("plan", ["additive", "suffix"])
def test_an_honest_head_is_not_caught(plan, monkeypatch):
    force(monkeypatch, plan)
    spoil_heads(monkeypatch, lambda logits: logits + 0)
    taxonomy, notes = analyze_toy(same("mlp"))
    assert taxonomy.data.attrs["plan"] == plan
    assert notes == []


class Idle(nn.Module):
    """A layer whose output counts `weight` times beside what flows around it."""

    def __init__(self, weight: float | None):
        super().__init__()
        self.hidden = nn.Linear(10, 6)
        self.relu = nn.ReLU()
        self.rest = nn.Linear(6, 4)
        self.around = nn.Linear(10, 4)
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.rest(self.relu(self.hidden(x)))
        return self.around(x) if self.weight is None else self.around(x) + self.weight * hidden


@pytest.mark.parametrize(
    ("weight", "plan"), [(0.0, "additive"), (1e-9, "additive"), (None, "full")]
)
def test_a_layer_without_influence_is_a_finding(weight, plan):
    torch.manual_seed(0)
    toy = networks.toy("mlp")
    taxonomy, notes = observe(ur.analyze, Idle(weight), toy.train, toy.test, layer="relu")
    assert taxonomy.data.attrs["plan"] == plan
    assert sum("its roles mean nothing" in note for note in notes) == 1
    assert any(note.startswith("plan full") for note in notes) == (weight is None)


def test_a_layer_of_small_influence_is_no_finding():
    torch.manual_seed(0)
    toy = networks.toy("mlp")
    _, notes = observe(ur.analyze, Idle(1e-2), toy.train, toy.test, layer="relu")
    assert notes == []


@pytest.mark.parametrize(
    ("build", "occurring"),
    [(networks.hand_built, {1, 2, 3, 4}), (networks.hand_built_confusing, {1, 4})],
)
@pytest.mark.parametrize("plan", PLANS)
def test_hand_built_networks_have_the_roles_they_were_built_for(
    build, occurring, plan, monkeypatch
):
    toy, role = build()
    assert set(role.ravel().tolist()) == occurring
    force(monkeypatch, plan)
    taxonomy, _ = analyze_toy(toy)
    assert taxonomy.data.attrs["plan"] == plan
    np.testing.assert_array_equal(taxonomy.data.role, role)


def test_a_layer_that_only_harms_is_flagged():
    taxonomy, _ = analyze_toy(networks.hand_built_confusing()[0])
    assert taxonomy.flagged() == [0, 1, 2]
    assert analyze_toy(networks.hand_built()[0])[0].flagged() == []


class TwoInputs(nn.Module):
    """Keyword inputs, as transformers take them; the second flows around the layer."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(10, 8), nn.ReLU())
        self.rest = nn.Linear(8, 4)

    def forward(self, first: Tensor, second: Tensor) -> dict[str, Tensor]:
        return {"logits": self.rest(self.hidden(first)) * second}


def test_keyword_inputs_are_cut_in_any_order():
    torch.manual_seed(0)
    net, labels = TwoInputs(), torch.arange(24) % 4
    first, second = torch.randn(24, 10), torch.rand(24, 1) + 0.5

    def rows(*names: str) -> list[dict[str, Tensor]]:
        named = {"first": first, "second": second}
        return [{n: named[n][i] for n in names} | {"labels": labels[i]} for i in range(24)]

    found = []
    for names in (("first", "second"), ("second", "first")):
        data = rows(*names)
        taxonomy, notes = observe(ur.analyze, net, data[:12], data[12:], layer="hidden")
        assert taxonomy.data.attrs["plan"] == "additive"
        assert notes == []
        found.append(taxonomy.data.loss.values)
    np.testing.assert_array_equal(*found)
    wanted = nn.functional.cross_entropy(net(first, second)["logits"][:12:4], labels[:12:4])
    assert found[0][0, 0, -1] == pytest.approx(wanted.item(), abs=1e-5)


@pytest.mark.parametrize("error", [TypeError, KeyError, ValueError, RuntimeError])
def test_a_head_that_fails_in_any_way_leaves_the_definition(monkeypatch, error):
    def fail(*args):
        raise error("")

    monkeypatch.setattr(Exported, "head", fail)
    taxonomy, notes = analyze_toy(same("mlp"))
    assert taxonomy.data.attrs["plan"] == "full"
    assert len(notes) == 1
    np.testing.assert_allclose(taxonomy.data.loss, twin("mlp").loss, rtol=0, atol=1e-10)


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(10, 8)
        self.rest = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(nn.functional.dropout(self.hidden(x).relu(), 0.5, training=True))


def test_a_model_that_is_random_in_evaluation_mode_is_refused():
    x, labels = torch.randn(24, 10), torch.arange(24) % 4
    with pytest.raises(ur.InputError, match="other logits each time.*take the randomness out"):
        ur.analyze(Noisy(), (x[:12], labels[:12]), (x[12:], labels[12:]), layer="hidden")


class OverTime(nn.Module):
    """Sequences of any length; the sum over time depends on it."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(3, 6)
        self.relu = nn.ReLU()
        self.rest = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.relu(self.hidden(x)).sum(1) / x.shape[1])


class StepByStep(OverTime):
    """Calls its layer once per step, so the last call is another one for another length."""

    def forward(self, x: Tensor) -> Tensor:
        steps = [self.relu(self.hidden(x[:, t])) for t in range(x.shape[1])]
        return self.rest(torch.stack(steps).sum(0))


def sequences(lengths=(9, 3)):
    torch.manual_seed(0)
    rows = [(torch.randn(lengths[i % 2], 3), i % 2) for i in range(16)]
    return torch.utils.data.DataLoader(
        rows,
        collate_fn=lambda some: (
            nn.utils.rnn.pad_sequence([x for x, _ in some], batch_first=True),
            torch.tensor([label for _, label in some]),
        ),
    )


def test_batches_of_another_length_than_the_exported_are_right_and_said():
    torch.manual_seed(0)
    net, data = OverTime(), sequences()
    taxonomy, notes = observe(
        ur.analyze, net, data, data, layer="relu", compute=ur.Compute(batch_size=4)
    )
    assert any("another shape" in note for note in notes)
    for label, length in enumerate((9, 3)):
        rows = torch.stack([x for x, y in data.dataset if y == label])
        wanted = nn.functional.cross_entropy(net(rows), torch.full((8,), label)).item()
        assert rows.shape[1] == length
        found = taxonomy.data.loss.sel(split="train", label=label, retrieved=6).item()
        assert found == pytest.approx(wanted, abs=1e-5)


def test_a_number_of_calls_that_changes_is_refused():
    data, net = sequences(), StepByStep()
    with pytest.raises(ur.InputError, match="layer 'relu' was not called .* for every batch"):
        ur.analyze(net, data, data, layer="relu", compute=ur.Compute(batch_size=4))
    site = find(net, "relu", torch.randn(4, 3, 3))
    said = "called 9 times for some samples and 3 times"
    with untouched(net), pytest.raises(ur.InputError, match=said):
        run_masked(net, site, torch.randn(4, 9, 3), torch.ones(4, 6, dtype=torch.bool))


class WritesToItsInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(10, 8)
        self.relu = nn.ReLU()
        self.rest = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x -= 0.5
        x *= 2
        return self.rest(self.relu(self.hidden(x)))


def test_a_model_that_writes_to_its_input_gives_the_right_numbers():
    torch.manual_seed(0)
    net = WritesToItsInput()
    x, labels = torch.randn(24, 10), torch.arange(24) % 4
    kept = x.clone()
    chain = nn.Sequential(net.hidden, net.relu, net.rest)
    splits = (x[:12], labels[:12]), (x[12:], labels[12:])
    taxonomy, notes = observe(ur.analyze, net, *splits, layer="relu")
    pairs = [((part - 0.5) * 2, target) for part, target in splits]
    wanted = reference.analyze(chain, "1", *pairs)
    np.testing.assert_allclose(taxonomy.data.loss, wanted.loss, rtol=0, atol=1e-5)
    assert notes == []
    ur.layers(net, x[:4])
    assert torch.equal(x, kept)
    assert not net._forward_pre_hooks


def test_weights_of_another_branch_are_not_taken():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.gate, self.r = nn.Linear(10, 8), nn.Linear(10, 8), nn.ReLU()
            self.b = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            g = self.gate(x).sigmoid()
            return self.b(self.r(h) * g)

    net = Gated()
    x, labels = torch.randn(24, 10), torch.arange(24) % 4
    taxonomy, _ = observe(
        ur.analyze,
        net,
        (x[:12], labels[:12]),
        (x[12:], labels[12:]),
        layer="r",
        method=ur.Method(score="weight_l1"),
    )
    wanted = net.a.weight.detach().double().abs().sum(1).numpy()
    np.testing.assert_allclose(taxonomy.data.score[0, 0], wanted)


class Closed(nn.Module):
    """A class masked out by its bias."""

    def __init__(self, closed: float, norm: bool):
        super().__init__()
        torch.manual_seed(0)
        between = nn.LayerNorm(8) if norm else nn.Identity()
        self.net = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), between, nn.Linear(8, 5))
        self.register_buffer("closed", torch.tensor([0.0, 0, 0, 0, closed]))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + self.closed


@pytest.mark.parametrize("plan", ["additive", "suffix"])
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("closed", [float("-inf"), -1e9])
def test_logits_that_mask_a_class_out_are_checked_like_others(closed, norm, plan):
    net = Closed(closed, norm)
    x, labels = torch.randn(24, 10), torch.arange(24) % 4
    splits = (x[:12], labels[:12]), (x[12:], labels[12:])
    with forced(plan):
        taxonomy, notes = observe(ur.analyze, net, *splits, layer="net.1")
    assert (taxonomy.data.attrs["plan"], notes) == (plan, [])
    with torch.no_grad():
        for label in range(4):
            mine = labels[:12] == label
            wanted = nn.functional.cross_entropy(net(x[:12][mine]), labels[:12][mine]).item()
            found = taxonomy.data.loss.sel(split="train", label=label, retrieved=8).item()
            assert found == pytest.approx(wanted, abs=1e-5)


class PicksRows(nn.Module):
    """Reads its own rows by number, as text models do to find the last token."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1)
        self.rest = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x).relu()
        return self.rest(h[torch.arange(x.shape[0]), :, 2, 3])


@pytest.mark.parametrize("size", [1, 2, 16])
@pytest.mark.parametrize("budget", [1, 110_592, 2**31])
def test_row_numbers_count_the_rows_of_every_call(size, budget):
    torch.manual_seed(0)
    net = PicksRows().double()
    x, y = torch.randn(18, 1, 8, 8, dtype=torch.float64), torch.arange(18) % 3
    pairs = (x[:9], y[:9]), (x[9:], y[9:])
    compute = ur.Compute(batch_size=size, memory_budget=budget)
    taxonomy, notes = observe(ur.analyze, net, *pairs, layer="conv", compute=compute)
    wanted = reference.analyze(net, "conv", *pairs)
    assert (taxonomy.data.attrs["plan"], notes) == ("suffix", [])
    np.testing.assert_allclose(taxonomy.data.loss, wanted.loss, rtol=0, atol=1e-10)


def test_the_check_runs_several_masks_in_one_call(monkeypatch):
    plan, _, definition = suffix_of("mlp", budget=1)
    seen = []
    masked = SuffixPlan.masked

    def watched(*args, **options):
        for part, logits in masked(*args, **options):
            seen.append(len(logits))
            yield part, logits

    monkeypatch.setattr(SuffixPlan, "masked", watched)
    assert check.self_check(plan, definition).agrees
    assert max(seen) == 2


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.rest = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.rest(self.hidden(a).relu()) + b


def test_keywords_are_taken_by_name_whatever_their_order_in_a_batch():
    torch.manual_seed(0)
    net = Scaled().double()
    a, b = torch.randn(18, 4, dtype=torch.float64), torch.randn(18, 3, dtype=torch.float64)
    net.rest = nn.Linear(6, 3).double()
    rows = []
    for i in range(18):
        label, named = i % 3, {"a": a[i], "b": b[i]}
        order = ("a", "b") if label == 0 else ("b", "a")
        rows.append({**{name: named[name] for name in order}, "label": label})
    taxonomy, notes = observe(
        ur.analyze, net, rows, rows, layer="hidden", compute=ur.Compute(batch_size=6)
    )
    assert (taxonomy.data.attrs["plan"], notes) == ("additive", [])
    for label in range(3):
        mine = torch.arange(18) % 3 == label
        loss = nn.functional.cross_entropy(net(a[mine], b[mine]), torch.full((6,), label)).item()
        found = taxonomy.data.loss.sel(split="train", label=label, retrieved=6).item()
        assert found == pytest.approx(loss, abs=1e-10)


@pytest.mark.parametrize(
    ("net", "x", "layer"),
    [
        (nn.Sequential(nn.Embedding(8, 8), nn.Flatten(), nn.Linear(24, 3)), "tokens", "0"),
        (
            nn.Sequential(
                nn.Conv2d(1, 6, 3), nn.ChannelShuffle(3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3)
            ),
            "images",
            "2",
        ),
    ],
)
def test_weight_l1_is_refused_where_the_weights_are_not_those_of_the_units(net, x, layer):
    data = torch.randint(8, (12, 3)) if x == "tokens" else torch.randn(12, 1, 6, 6)
    pair = (data, torch.arange(12) % 3)
    method = ur.Method(score="weight_l1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ur.PlanWarning)
        with pytest.raises(ur.InputError, match="weight_l1.*choose another score"):
            ur.analyze(net, pair, pair, layer=layer, method=method, progress=False)


def test_lazy_parameters_are_refused_with_the_remedy():
    pair = (torch.randn(12, 4), torch.arange(12) % 3)
    with pytest.raises(ur.InputError, match="lazy parameters; run one batch"):
        ur.analyze(nn.Sequential(nn.LazyLinear(5), nn.ReLU(), nn.Linear(5, 3)), pair, pair)
