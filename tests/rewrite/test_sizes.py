"""Forwards that read the number of samples as a plain number: any number of them is right."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forcing import find, traced
from prefixes import by_plan_and_twin
from unitroles.engine.choice import choose_plans
from unitroles.model.borrow import untouched
from unitroles.model.forward import Precision
from unitroles.options import Layer

pytestmark = pytest.mark.usefixtures("one_thread")
UNITS, CLASSES, SAMPLES = 8, 3, 30
"""More samples than 25, from where on `torch.cdist` goes another way."""


class Net(nn.Module):
    def __init__(self, head) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(4, UNITS), nn.Tanh())
        self.last = nn.Linear(UNITS, CLASSES)
        self.points = nn.Parameter(torch.randn(CLASSES, UNITS))
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self, x, self.body(x.view(len(x), -1)))


def by_loop(net: Net, x: Tensor, f: Tensor) -> Tensor:
    return torch.stack([net.last(f[i]) for i in range(len(f))])


def _with_column(x):
    added = torch.zeros(len(x), CLASSES)
    added[:, 1] = x[:, 0]
    return added


HEADS = {
    "a column of a new tensor": ("additive", lambda net, x, f: net.last(f) + _with_column(x)),
    "len": ("additive", lambda net, x, f: net.last(f.view(len(f), UNITS))),
    "shape as a number": ("additive", lambda net, x, f: net.last(f.reshape(int(x.shape[0]), -1))),
    "twice the number": (
        "additive",
        lambda net, x, f: net.last(f.view(2 * len(f), -1).relu().view(len(f), -1)),
    ),
    "zeros": ("additive", lambda net, x, f: net.last(f + torch.zeros(len(x), UNITS))),
    "rows by number": ("additive", lambda net, x, f: net.last(f)[torch.arange(len(x))]),
    "distances": ("suffix", lambda net, x, f: -torch.cdist(f, net.points)),
    "distances, not squared": ("suffix", lambda net, x, f: -torch.cdist(f, net.points, p=1.0)),
    "distances after a layer": (
        "additive",
        lambda net, x, f: -torch.cdist(net.last(f), torch.eye(3)),
    ),
    "a number as a weight": ("additive", lambda net, x, f: net.last(f * net.scale)),
    "weights divided by their size": ("additive", lambda net, x, f: f @ F.normalize(net.points).T),
}
REFUSED = {
    "a loop": (by_loop, "runs another way for another number of samples"),
    "a map": (
        lambda net, x, f: torch.vmap(net.last)(f),
        "holds the number of samples fixed .torch.vmap",
    ),
    "a sum": (lambda net, x, f: net.last(f) + 0.1 * len(x), "computes with the number of samples"),
    "a table": (
        lambda net, x, f: net.last(f) + torch.tensor([[0.1 * i] for i in range(len(x))]),
        "makes tensors of its own from the number of samples",
    ),
}


def choose(net: Net):
    x = torch.randn(SAMPLES, 4, generator=torch.Generator().manual_seed(0))
    with untouched(net):
        site = find(net, Layer("body.1"), x[:2])
        return x, choose_plans(
            net, [site], traced(net, x[:2]), 2**30, Precision(torch.device("cpu"))
        )[0]


@pytest.mark.parametrize("name", HEADS)
def test_the_number_of_samples_stays_open(name):
    wanted, head = HEADS[name]
    net = Net(head).eval()
    before = {key: (value.data_ptr(), value.clone()) for key, value in net.state_dict().items()}
    x, choice = choose(net)
    assert choice.plan.name == wanted, choice.notes
    assert not choice.notes
    found, alone = by_plan_and_twin(choice.plan, net, x, [0, 1, 5, UNITS])
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)
    assert all(net.state_dict()[key].data_ptr() == place for key, (place, _) in before.items())
    assert all(torch.equal(net.state_dict()[key], value) for key, (_, value) in before.items())


@pytest.mark.parametrize("name", REFUSED)
def test_another_use_of_the_number_is_the_reason_for_the_full_plan(name):
    head, reason = REFUSED[name]
    _, choice = choose(Net(head).eval())
    assert choice.plan.name == "full"
    assert re.search(reason, choice.plan.reason)
