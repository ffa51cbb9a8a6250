"""Toys beside their slow literal twins, and how two results are compared."""

from functools import cache

import numpy as np
import torch

import networks
import reference
from forcing import (
    analyze_toy,
    find,
    forced,
    layer_of,
    one_copy,
    traced,
)
from unitroles.engine import check, choice
from unitroles.heads.head import head_after
from unitroles.model.borrow import untouched
from unitroles.model.forward import Precision
from unitroles.rewrite.export import export

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


PROCESSOR = Precision(torch.device("cpu"))


@cache
def twin(name, precision="float64", order="per_split", score="activation_l1"):
    dtype, scale, _ = PRECISIONS[precision]
    toy = networks.toy(name, dtype, scale)
    site = (toy.layer, toy.train, toy.test, toy.axis, toy.call)
    return reference.analyze(toy.model, *site, order_mode=order, score=SCORES[score])


def same(name, precision="float64"):
    """One copy of a toy for all tests, so that its export is remembered."""
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


def suffix_of(name, budget=2**31):
    """The suffix plan of a toy, and what it keeps of four samples."""
    toy = same(name)
    inputs = toy.train[0][:4]
    seen, site = traced(toy.model, inputs), find(toy.model, layer_of(toy), inputs)
    with untouched(toy.model):
        head = head_after(export(toy.model, [site], inputs), 0)
        plan = choice.suffix_plan(toy.model, site, head, inputs, budget, PROCESSOR)
        return plan, plan.example, check.define(toy.model, site, seen, PROCESSOR)
