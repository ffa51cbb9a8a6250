"""Forwards that change their precision on the way: autocast and casts."""

import pytest
import torch
from torch import nn

from forcing import find, traced
from prefixes import by_plan_and_twin
from unitroles.engine.choice import choose_plans
from unitroles.model.borrow import untouched
from unitroles.model.forward import Precision
from unitroles.options import Layer

pytestmark = pytest.mark.usefixtures("one_thread")
UNITS, CLASSES, SAMPLES = 16, 3, 5
EXACT, ROUNDED = 1e-6, 2e-2
"""Off by at most so much of the largest logit: in float32; from a layer or to logits of 16 bits."""


def half(enabled=True):
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled)


class Net(nn.Module):
    def __init__(self, forward) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(4, UNITS), nn.Tanh())
        self.mid, self.norm = nn.Linear(UNITS, UNITS), nn.LayerNorm(UNITS)
        self.last, self.run = nn.Linear(UNITS, CLASSES), forward

    def forward(self, x):
        return self.run(self, x)


def everywhere(net, x):
    with half():
        return net.last(net.norm(net.mid(net.body(x))))


def body_alone(net, x):
    with half():
        f = net.body(x)
    return net.last(f.float())


def head_alone(net, x):
    with half(False):
        f = net.body(x)
    with half():
        return net.last(net.mid(f).relu())


def middle_alone(net, x):
    f = net.body(x)
    with half():
        g = net.mid(f)
    return net.last(g.float().relu())


def skip_of_16_bits(net, x):
    with half():
        skip = net.body[0](x)
    f = net.body(x)
    with half():
        return (net.last(net.mid(f) + skip)).float()


NETS = {
    "everywhere": ("additive", ROUNDED, everywhere),
    "body": ("additive", EXACT, body_alone),
    "head": ("additive", ROUNDED, head_alone),
    "middle": ("suffix", EXACT, middle_alone),
    "skip": ("suffix", EXACT, skip_of_16_bits),
    "to what it is": (
        "additive",
        EXACT,
        lambda net, x: net.last(net.body(x).float().to(x).type_as(x)).to(x.dtype),
    ),
    "wider": ("additive", EXACT, lambda net, x: net.last(net.body(x).double().float()).double()),
    "as another": (
        "additive",
        EXACT,
        lambda net, x: net.last(net.body(x).double().type_as(net.last.weight)),
    ),
    "after a norm": (
        "additive",
        EXACT,
        lambda net, x: net.last(net.norm(net.body(x)).double().float()),
    ),
    "of a condition": (
        "additive",
        EXACT,
        lambda net, x: net.last((lambda f: f * (f > 0.1).to(f.dtype))(net.body(x))),
    ),
}


HALVES = ("everywhere", "body", "head")
"""With a layer or logits of 16 bits."""


@pytest.mark.parametrize("name", NETS)
def test_a_faster_plan_equals_the_definition(name):
    wanted, allowed, forward = NETS[name]
    net = Net(forward).eval()
    x = torch.randn(SAMPLES, 4, generator=torch.Generator().manual_seed(0))
    with untouched(net):
        site, seen = find(net, Layer("body.1", call=-1), x[:2]), traced(net, x[:2])
        (choice,) = choose_plans(net, [site], seen, 2**30, Precision(torch.device("cpu")))
    assert (choice.plan.name, choice.notes) == (wanted, ())
    assert ("in float32, not in 16 bits" in choice.plan.reason) == (name in HALVES)
    found, alone = by_plan_and_twin(choice.plan, net, x, [0, 1, 7, UNITS])
    off = (found - alone).abs().max() / seen.logits.abs().max()
    assert off <= allowed


def branching(net, x):
    f = net.body(x)
    return net.last(f if bool(f.isfinite().all()) else f.clamp(-1, 1))


def sensitive(net, x):
    return net.last(torch.sin(1000 * net.mid(net.body(x))))


@pytest.mark.parametrize(("forward", "told"), [(branching, False), (sensitive, True)])
def test_float32_is_named_where_rounding_keeps_a_plan_from_agreeing(forward, told):
    net, x = Net(forward).eval().bfloat16(), torch.randn(SAMPLES, 4).bfloat16()
    with untouched(net):
        site, seen = find(net, Layer("body.1"), x[:2]), traced(net, x[:2])
        (choice,) = choose_plans(net, [site], seen, 2**30, Precision(torch.device("cpu")))
    assert choice.plan.name == "full"
    assert ("in float32 (model.float(), no autocast) it may agree" in choice.plan.reason) == told
