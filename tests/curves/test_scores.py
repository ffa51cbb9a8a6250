"""Every score of the units, and the orders it gives, are those of the slow literal twin."""

import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import networks
import reference
import unitroles as ur
from forcing import PLANS, analyze_toy, forced, layer_of, observe, quietly, traced
from twins import NAMES, assert_equals_twin, same, twin
from unitroles.curves.scores import layer_score
from unitroles.model.candidates import resolve

pytestmark = pytest.mark.usefixtures("one_thread")


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


@pytest.mark.parametrize("plan", PLANS)
def test_a_score_function_may_write_to_what_it_is_given(plan):
    toy = networks.toy("mlp")
    given = toy.model, toy.train, toy.test
    with forced(plan):
        writes, reads = (
            quietly(ur.analyze, *given, layer=layer_of(toy), method=ur.Method(score=score))
            for score in (lambda a: a.sub_(5).sum(2), lambda a: (a - 5).sum(2))
        )
    np.testing.assert_array_equal(writes.data.score, reads.data.score)
    np.testing.assert_array_equal(writes.data.loss, reads.data.loss)


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
