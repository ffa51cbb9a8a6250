"""Removed units: every plan gives what the slow literal twin gives."""

import warnings
from functools import cache

import numpy as np
import pytest
import torch

import networks
import reference
import unitroles as ur
from unitroles import choice
from unitroles.graph import CannotCut

NAMES = sorted(networks.TOYS)
PLANS = ["additive", "suffix", "full"]
BASELINES = ["zero", "mean"]
PRECISIONS = {"float64": (torch.float64, 1e-10), "float32": (torch.float32, 1e-5)}
BATCH = ur.Compute(batch_size=16)
ALONE = ["loss", "accuracy", "loss_change", "accuracy_change"]

pytestmark = pytest.mark.usefixtures("one_thread")


def refuse(*args):
    raise CannotCut("refused by the test")


def force(patch, plan):
    """Let no better plan than this be chosen."""
    if plan == "suffix":
        patch.setattr(choice, "recognise", refuse)
    if plan == "full":
        patch.setattr(choice, "export", refuse)


def quietly(ablation, *args, **options):
    """The result without bars; only plan warnings are let pass."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ur.PlanWarning)
        return ablation(*args, **{"progress": False, "compute": BATCH, **options})


def site(toy):
    return ur.Layer(toy.layer, toy.axis, toy.call)


def shuffled(name):
    """A removal order for every class of a toy."""
    toy = networks.toy(name)
    units = reference.activation(toy.model, toy.layer, toy.train[0][:1], toy.call).shape[toy.axis]
    draw = np.random.default_rng(7)
    return np.stack([draw.permutation(units) for _ in range(networks.RECIPES[name].labels)])


@cache
def twins(name, precision="float64", baseline="zero"):
    """The literal single-unit and cumulative ablation of the training data of a toy."""
    toy = networks.toy(name, PRECISIONS[precision][0])
    where = {"baseline": baseline, "axis": toy.axis, "call": toy.call}
    alone = reference.single_unit_ablation(toy.model, toy.layer, toy.train, **where)
    orders = shuffled(name)
    return alone, reference.cumulative_ablation(toy.model, toy.layer, toy.train, orders, **where)


@cache
def both(name, precision="float64", plan="additive", baseline="zero"):
    """Single-unit and cumulative ablation of the training data of a toy."""
    toy = networks.toy(name, PRECISIONS[precision][0])
    with pytest.MonkeyPatch.context() as patch:
        force(patch, plan)
        options = {"layer": site(toy), "baseline": baseline}
        alone = quietly(ur.single_unit_ablation, toy.model, toy.train, **options)
        options["order"] = shuffled(name)
        return alone, quietly(ur.cumulative_ablation, toy.model, toy.train, **options)


def plan_of(name, plan):
    """Units of this layer meet in a convolution over positions: no running sum."""
    return "suffix" if (name, plan) == ("residual_early", "additive") else plan


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", NAMES)
def test_every_plan_equals_the_literal_twin(name, plan, baseline):
    for found, wanted in zip(
        both(name, "float64", plan, baseline), twins(name, "float64", baseline), strict=True
    ):
        assert found.attrs["plan"] == plan_of(name, plan)
        assert found.attrs["baseline"] == baseline
        for variable, values in wanted.items():
            np.testing.assert_allclose(found[variable], values, rtol=0, atol=1e-10)
