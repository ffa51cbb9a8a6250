"""The cut moves past what acts on every unit alone, and never past what mixes units."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import networks
from forcing import find, layer_of, traced
from unitroles.engine import check, choice
from unitroles.heads.head import Owners, head_after
from unitroles.model.borrow import untouched
from unitroles.model.forward import Precision
from unitroles.options import Layer
from unitroles.rewrite import export as exports

PROCESSOR = Precision(torch.device("cpu"))


class Softmax(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.softmax(dim=1)


class MeanOver(nn.Module):
    def __init__(self, dims: list[int]) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=self.dims)


class Gate(nn.Module):
    """Two ways leave the layer and meet again."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.flip(1)


class Cumulate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.cumsum(dim=1)


class ChannelsLast(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


def net(*between: nn.Module, features: int = 6) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), *between, nn.Flatten(), nn.Linear(features, 4)
    ).double()
    for module in model:
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    return model


def head_and_check(model: nn.Module, layer: Layer, x: Tensor):
    """The head of a layer, and how its suffix plan compares with the definition."""
    seen, site = traced(model, x), find(model, layer, x)
    with untouched(model):
        head = head_after(exports.export(model, [site], x), 0)
        plan = choice.suffix_plan(model, site, head, x, 2**30, PROCESSOR)
        found = check.self_check(plan, check.define(model, site, seen, PROCESSOR))
    assert found.conclusive, "masks that move nothing prove nothing"
    assert found.agrees
    assert found.difference <= 1e-12
    return head


def edges(head) -> list[tuple[int, ...]]:
    """The sizes of a row of every value that the masks act on."""
    return [owners.shape for owners in head.owners]


X = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
CROSSED = {
    "relu, max-pool": (net(nn.ReLU(), nn.MaxPool2d(2), features=96), (96,)),
    "sigmoid is not 0 at 0": (net(nn.Sigmoid(), nn.AvgPool2d(4), features=24), (24,)),
    "norm, gelu": (net(nn.BatchNorm2d(6), nn.GELU(), nn.AdaptiveAvgPool2d(2), features=24), (24,)),
    "down to one value a unit": (net(nn.SiLU(), nn.AdaptiveAvgPool2d(1)), (6,)),
    "mean over positions": (net(nn.Tanh(), MeanOver([2, 3])), (6,)),
    "mean over one axis": (net(MeanOver([3]), features=48), (48,)),
    "positions leave their axis": (net(features=384), (384,)),
    "depthwise convolution": (
        net(nn.Conv2d(6, 6, 3, groups=6), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
        (6,),
    ),
    "the mean comes before a 1 x 1 convolution": (
        net(nn.Conv2d(6, 6, 1), nn.AdaptiveAvgPool2d(1)),
        (6, 1, 1),
    ),
}


@pytest.mark.parametrize("name", CROSSED)
def test_the_cut_crosses_what_acts_on_every_unit_alone(name):
    model, shape = CROSSED[name]
    head = head_and_check(model, Layer("0"), X)
    assert edges(head) == [shape]
    (owners,) = head.owners
    assert owners.axis == 1
    assert head.same_ablated
    per_unit = shape[0] // 6
    assert owners.index.tolist() == [unit for unit in range(6) for _ in range(per_unit)]


STOPPED = {
    "softmax over the units": net(Softmax(), nn.AdaptiveAvgPool2d(1)),
    "mean over the units": net(MeanOver([1]), features=64),
    "sum along the units": net(Cumulate(), nn.AdaptiveAvgPool2d(1)),
    "convolution": net(nn.Conv2d(6, 6, 3, padding=1), nn.AdaptiveAvgPool2d(1)),
    "a relu after a 1 x 1 convolution": net(nn.Conv2d(6, 6, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
    "norm over groups of units": net(nn.GroupNorm(2, 6), nn.AdaptiveAvgPool2d(1)),
}


@pytest.mark.parametrize("name", STOPPED)
def test_the_cut_stops_where_units_meet(name):
    head = head_and_check(STOPPED[name], Layer("0"), X)
    assert edges(head) == [(6, 8, 8)]


def test_units_that_leave_on_two_ways_are_masked_on_both():
    head = head_and_check(net(Gate(), nn.AdaptiveAvgPool2d(1)), Layer("0"), X)
    assert edges(head) == [(6, 8, 8), (6, 8, 8)]
    straight, flipped = (owners.index.tolist() for owners in head.owners)
    assert straight == flipped[::-1] == list(range(6))


def test_a_residual_stream_joins_before_the_cut_and_is_not_repeated():
    toy = networks.toy("residual", torch.float64)
    head = head_and_check(toy.model, layer_of(toy), toy.train[0][:4])
    assert edges(head) == [(10,)]
    assert head.repeats == ()
    assert not head.same_ablated


def test_a_stream_that_joins_after_the_cut_is_repeated_for_every_mask():
    toy = networks.toy("residual_early", torch.float64)
    head = head_and_check(toy.model, layer_of(toy), toy.train[0][:4])
    assert head.edges == 1
    assert head.repeats == (True,)


def test_tokens_keep_their_axis_and_only_the_one_that_is_read_goes_on():
    toy = networks.toy("transformer", torch.float64)
    head = head_and_check(toy.model, layer_of(toy), toy.train[0][:4])
    (owners,) = head.owners
    assert owners.shape[owners.axis - 1] == head.units == 12


def test_units_on_the_last_axis_are_found_there():
    model = net(nn.ReLU(), ChannelsLast(), nn.Linear(6, 6).double(), features=384)
    (owners,) = head_and_check(model, Layer("0"), X).owners
    assert (owners.axis, owners.shape) == (3, (8, 8, 6))


def test_a_unit_may_own_elements_on_several_axes():
    owner = torch.tensor([[0, 1], [1, 0]])
    owners = Owners.of(owner)
    assert owners.axis is None
    retrieved = torch.tensor([[True, False], [False, True]])
    assert torch.equal(owners.spread(retrieved), torch.stack([owner == 0, owner == 1]))


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_owners_that_differ_on_one_axis_broadcast_over_the_others(axis):
    line = torch.tensor([1, 0, 0]).view([-1 if place == axis else 1 for place in range(1, 4)])
    shape = [3 if place == axis else 2 for place in range(1, 4)]
    owners = Owners.of(line.expand(shape))
    assert (owners.axis, owners.index.tolist()) == (axis, [1, 0, 0])
    mask = owners.spread(torch.tensor([[True, False]]))
    assert torch.equal(mask.expand(1, *shape)[0], line.expand(shape) == 0)


def misplaced(plan):
    """The same plan with the first unit's elements given to the second."""
    wrong = [replace(o, index=torch.where(o.index == 0, 1, o.index)) for o in plan.head.owners]
    return replace(plan, head=replace(plan.head, owners=tuple(wrong)))


def not_quite_ablated(plan):
    """The same plan with zeros at the edge where an ablated layer gives something else."""
    spoiled = replace(plan)
    vars(spoiled)["_probed"] = (plan._probed[0], (torch.zeros(1, 24).double(),))
    return spoiled


@pytest.mark.parametrize("spoil", [misplaced, not_quite_ablated])
def test_a_wrong_move_would_be_caught(spoil):
    model = net(nn.Sigmoid(), nn.AvgPool2d(4), features=24)
    seen, site = traced(model, X), find(model, Layer("0"), X)
    with untouched(model):
        head = head_after(exports.export(model, [site], X), 0)
        definition = check.define(model, site, seen, PROCESSOR)
        plan = choice.suffix_plan(model, site, head, X, 2**30, PROCESSOR)
        assert check.self_check(plan, definition).agrees
        assert not check.self_check(spoil(plan), definition).agrees
