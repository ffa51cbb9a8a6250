"""Heads drawn at random: whichever plan is chosen, additive or suffix, gives the definition."""

import re

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import heads
from unitroles.engine.additive import AdditivePlan
from unitroles.engine.choice import choose_plans
from unitroles.engine.masks import AllButOne, Prefixes, Tree
from unitroles.engine.suffix import SuffixPlan
from unitroles.model.borrow import untouched
from unitroles.model.forward import Precision
from unitroles.model.hooks import run_body, run_masked
from unitroles.model.trace import find_site, trace
from unitroles.options import Layer

pytestmark = pytest.mark.usefixtures("one_thread")
TOLERANCE = 1e-9
"""Of the largest logit, in float64."""


def place(name):
    return [op.name for op in heads.OPS].index(name)


def choice_of(net):
    """The plan of a net's layer; the third sample is none of those it was checked on."""
    x = heads.example(3)
    with untouched(net):
        seen = trace(net, x[:2])
        site = find_site(net, Layer("layer"), seen.calls, 2)
        (choice,) = choose_plans(net, [site], seen, 2**30, Precision(torch.device("cpu")))
    return choice, site, x


def literal(net, site, x, masks):
    """Logits under masks (masks, samples, units), one forward of the whole net each."""
    with untouched(net):
        return torch.stack([run_masked(net, site, x, mask) for mask in masks])


def assert_equal(found, wanted, words):
    off = (found - wanted).abs().max() / wanted.abs().max()
    assert off <= TOLERANCE, f"{words}: off by {off:.1e}"


def run(plan, kept, masks):
    return torch.cat([logits.clone() for _, logits in plan.run(kept, masks)])


def assert_right(net):
    choice, site, x = choice_of(net)
    plan = choice.plan
    words = f"{plan.name}: {' > '.join(net.names)}"
    assert not any(note.startswith("plan ") for note in choice.notes), words
    assert plan.keeps_rows, words
    units = site.units
    order = torch.stack([torch.randperm(units) for _ in x])
    rank = order.argsort(1)
    prefixes = [rank < n for n in range(units + 1)]
    single = [torch.arange(units).expand(len(x), -1) != unit for unit in range(units)]
    with untouched(net), torch.inference_mode():
        kept = plan.keep(run_body(net, plan.places, x), x)
        points = range(units + 1)
        tree, columns = Tree.of(order.numpy(), points)
        grown = run(plan, kept, tree)
        sets = tree.retrieved_in(slice(None)).expand(-1, len(x), -1)
        assert_equal(grown, literal(net, site, x, sets), f"{words}, branches")
        some = run(plan, kept, Tree.of(order.numpy(), [0, units])[0])
        assert_equal(some, grown[[0, -1]], f"{words}, some branches")
        curve = run(plan, kept, Prefixes(order, points))
        again = torch.stack([grown[columns[i], i] for i in range(len(x))], dim=1)
        assert_equal(again, curve, f"{words}, branches of each order")
        alone = run(plan, kept, AllButOne(units, range(units)))
    assert_equal(curve, literal(net, site, x, prefixes), words)
    assert_equal(alone, literal(net, site, x, single), words)
    return plan


@settings(max_examples=40)
@given(
    draws=st.lists(st.integers(0, len(heads.OPS) - 1), min_size=1, max_size=6), wide=st.booleans()
)
@example(draws=[], wide=False)
@example(draws=[], wide=True)
def test_random_heads_equal_the_definition(draws, wide):
    assert_right(heads.Net(draws, wide))


ADDITIVE = {
    "folded": ["relu", "mean over positions"],
    "folded through linear layers": ["mean over positions", "linear", "linear"],
    "positions in the sum": ["relu", "flatten", "linear", "relu"],
    "two features a unit": ["with its own sine", "mean over positions", "linear", "relu"],
    "sums at every position": ["1 x 1 convolution", "relu", "mean over positions"],
    "one norm folded": ["mean over positions", "layer norm"],
    "one norm without a mean": ["mean over positions", "linear", "rms norm", "linear"],
    "norm after a linear layer": ["mean over positions", "linear", "layer norm"],
    "units that are averaged over positions they share": ["global pool", "flatten", "linear"],
    "stem added before the sum": ["add the stem", "relu", "mean over positions", "linear"],
    "folded at a product turned round": ["mean over positions", "times a matrix turned round"],
    "folded at a product by hand": ["relu", "mean over positions", "times a matrix", "linear"],
    "folded at an einsum": ["mean over positions", "einsum", "linear"],
    "folded at an einsum turned round": ["relu", "mean over positions", "einsum turned round"],
    "sums at an einsum over channels": ["relu", "einsum over channels", "relu"],
    "mixed positions, then sums": ["tokens", "mixed positions", "relu", "linear", "relu"],
    "sums at rows of every position": ["tokens", "rows times a matrix", "relu"],
    "sums in windows": ["3 x 3 convolution", "relu"],
    "sums in windows with a stride": ["relu", "window with a stride", "relu"],
    "sums in windows of two sides": ["window of two sides", "gelu"],
    "sums in windows larger than the map": ["window larger than the map", "relu"],
    "sums beside the units themselves": ["relu", "residual block"],
    "sums beside the units in another form": ["gated convolution", "relu"],
    "the units in another form beside sums": ["convolution, then gated", "relu"],
    "two sums": ["block with a convolution beside", "residual block"],
    "sums beside two other ways": ["squeeze and excite", "3 x 3 convolution", "relu"],
    "its own depthwise convolution": ["depthwise convolution", "relu", "mean over positions"],
}
REFUSED = {
    "softmax over units": (["mean over positions", "softmax"], "not linear"),
    "two units joined": (["plus itself, flipped"], "not linear .add"),
    "a gate made of all units": (["running sum", "squeeze and excite"], "not linear .cumsum"),
    "an einsum with one number": (
        ["mean over positions", "einsum with one number for all"],
        "not linear .einsum",
    ),
    "an einsum that sums nothing": (["mean over positions", "einsum that sums nothing"], "einsum"),
    "an einsum over positions too": (["einsum over channels and positions"], "einsum"),
    "groups": (["grouped convolution"], "convolution of several groups"),
}


@pytest.mark.parametrize("name", ADDITIVE)
def test_heads_with_one_linear_mixing_op_are_additive(name):
    net = heads.Net([place(op) for op in ADDITIVE[name]], wide=True)
    assert net.names == ADDITIVE[name], "every op fits"
    plan = assert_right(net)
    assert isinstance(plan, AdditivePlan)
    assert plan.form.folded == name.startswith(
        ("folded", "one norm", "norm", "units", "stem", "its")
    )
    assert (plan.form.norm is not None) == ("norm" in name)


ALONE = [
    "only what is large",
    "or one number",
    "or zeros",
    "or twos",
    "or ones",
    "one or the other number",
    "zero or not",
    "filled",
    "filled by a tensor",
    "times a number",
    "at most a number",
]
"""Ops that act on every unit alone."""


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize("wide", [True, False])
def test_what_acts_on_every_unit_alone_comes_before_the_masks(name, wide):
    plan = assert_right(heads.Net([place(name)], wide))
    assert isinstance(plan, AdditivePlan)
    assert plan.form.folded


@pytest.mark.parametrize("name", ["a block on rows", "rows times a matrix", "distances"])
@pytest.mark.parametrize("before", [[], ["tokens"]])
def test_rows_of_all_positions_in_one_axis_equal_the_definition(name, before):
    names = [*before, name, "relu"]
    net = heads.Net([place(one) for one in names], wide=True)
    assert net.names == names
    assert_right(net)


@pytest.mark.parametrize("name", REFUSED)
def test_heads_that_are_not_additive_say_why(name):
    names, reason = REFUSED[name]
    plan = assert_right(heads.Net([place(op) for op in names], wide=True))
    assert isinstance(plan, SuffixPlan)
    assert re.search(reason, plan.reason), plan.reason
