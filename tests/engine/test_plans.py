"""Every way to run the masks gives what the slow literal twin gives."""

import numpy as np
import pytest

import networks
import unitroles as ur
from forcing import (
    PLANS,
    REFUSAL,
    analyze_toy,
    force,
    forced,
    observe,
)
from twins import NAMES, PRECISIONS, analysis, assert_equals_twin, assert_same_bits, same, twin

pytestmark = pytest.mark.usefixtures("one_thread")


CASES = [(n, p) for n in NAMES for p in PLANS]


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
