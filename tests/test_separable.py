"""The cut moves past what acts on every unit alone, and never past what mixes units."""

import pytest
import torch
from torch import Tensor, nn

import networks
from unitroles.head import export
from unitroles.options import Layer
from unitroles.plans import SuffixPlan, self_check
from unitroles.probe import form_of, untouched
from unitroles.trace import find_site, trace


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
    with untouched(model):
        site = find_site(model, layer, trace(model, x), len(x))
        head = export(model, [site], x).head(0)
        check = self_check(SuffixPlan(model, site, head, 2**30, form_of(x), ""), model, site, x)
        output = torch.zeros(site.shape, dtype=x.dtype)
        around = head.surroundings(x)
        shape = tuple(head.cut(output, around).shape[1:])
    assert check.moved > 1000 * check.tolerance, "masks that move nothing prove nothing"
    return head, check, shape


X = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
CROSSED = {
    "relu, max-pool": (net(nn.ReLU(), nn.MaxPool2d(2), features=96), (6, 4, 4)),
    "sigmoid is not 0 at 0": (net(nn.Sigmoid(), nn.AvgPool2d(4), features=24), (6, 2, 2)),
    "norm, gelu": (net(nn.BatchNorm2d(6), nn.GELU(), nn.AdaptiveAvgPool2d(2), features=24), None),
    "down to one value a unit": (net(nn.SiLU(), nn.AdaptiveAvgPool2d(1)), (6,)),
    "mean over positions": (net(nn.Tanh(), MeanOver([2, 3])), (6,)),
    "mean over one axis": (net(MeanOver([3]), features=48), (6, 8)),
}


@pytest.mark.parametrize("name", CROSSED)
def test_the_cut_crosses_what_acts_on_every_unit_alone(name):
    model, shape = CROSSED[name]
    head, check, found = head_and_check(model, Layer("0"), X)
    assert head.before is not None
    assert found == (shape or (6, 2, 2))
    assert head.axis == 1
    assert check.agrees
    assert check.difference <= 1e-12


STOPPED = {
    "softmax over the units": net(Softmax(), nn.AdaptiveAvgPool2d(1)),
    "mean over the units": net(MeanOver([1]), features=64),
    "two ways that meet": net(Gate(), nn.AdaptiveAvgPool2d(1)),
    "sum along the units": net(Cumulate(), nn.AdaptiveAvgPool2d(1)),
    "convolution": net(nn.Conv2d(6, 6, 1), nn.AdaptiveAvgPool2d(1)),
    "norm over groups of units": net(nn.GroupNorm(2, 6), nn.AdaptiveAvgPool2d(1)),
    "positions leave their axis": net(features=384),
}


@pytest.mark.parametrize("name", STOPPED)
def test_the_cut_stops_where_units_meet(name):
    head, check, shape = head_and_check(STOPPED[name], Layer("0"), X)
    assert head.before is None
    assert shape == (6, 8, 8)
    assert check.agrees


def test_a_residual_stream_joins_before_the_cut_and_is_not_repeated():
    toy = networks.toy("residual", torch.float64)
    head, check, shape = head_and_check(toy.model, Layer(toy.layer), toy.train[0][:4])
    assert head.before is not None
    assert shape == (10,)
    assert head.repeats == (False,)
    assert check.agrees


def test_tokens_keep_their_axis():
    toy = networks.toy("transformer", torch.float64)
    head, check, _ = head_and_check(toy.model, Layer(toy.layer, axis=2), toy.train[0][:4])
    assert head.axis == 2
    assert check.agrees


def test_a_wrong_move_would_be_caught(monkeypatch):
    from dataclasses import replace

    from unitroles import head as room

    moved = room.advance
    model = net(nn.Sigmoid(), nn.AvgPool2d(4), features=24)
    monkeypatch.setattr(room, "advance", lambda head: replace(moved(head), axis=2))
    with untouched(model):
        site = find_site(model, Layer("0"), trace(model, X), len(X))
        head = export(model, [site], X).head(0)
        with pytest.raises(RuntimeError):
            self_check(SuffixPlan(model, site, head, 2**30, form_of(X), ""), model, site, X)
