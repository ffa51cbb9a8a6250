"""One export serves every call as long as the model stays what it was, and no longer."""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import unitroles as ur
from forcing import quietly
from unitroles.rewrite import export as exports

pytestmark = pytest.mark.usefixtures("one_thread")
SIGN = {"of": 1.0}
"""What a forward reads where nobody looks."""


class Net(nn.Module):
    """An attribute decides what comes after the units."""

    def __init__(self, slope: float = 0.1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.same, self.last = nn.Linear(4, 6), nn.Identity(), nn.Linear(6, 3)
        self.side = nn.Linear(6, 3)
        self.slope, self.steps, self.shift = slope, [nn.functional.relu], torch.tensor(0.5)

    def forward(self, x: Tensor) -> Tensor:
        units = self.first(x.flatten(1)[:, :4])
        for step in self.steps:
            units = step(units)
        after = nn.functional.leaky_relu(self.same(units) - self.shift, self.slope)
        return self.last(after) + SIGN["of"] * self.side(units)


X = torch.randn(40, 4, generator=torch.Generator().manual_seed(1))
Y = torch.arange(40) % 3


def analyzed(model: nn.Module, layer: Any = "first", x: Tensor = X, **options: Any) -> ur.Taxonomy:
    half = len(x) // 2
    data = (x[:half], Y[:half]), (x[half:], Y[half : len(x)])
    return quietly(ur.analyze, model, *data, layer=layer, **options)


def same(one: ur.Taxonomy, other: ur.Taxonomy) -> None:
    """Every number, bit for bit, and the same plan."""
    assert one.data.attrs["plan"] == other.data.attrs["plan"]
    assert one.data.equals(other.data)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """What is exported from now on."""
    found, real = [], exports.program

    def program(module: nn.Module, inputs: Any) -> Any:
        found.append(module)
        return real(module, inputs)

    monkeypatch.setattr(exports, "program", program)
    return found


def test_every_verb_and_layer_shares_one_export(made):
    model = Net()
    data = (X[:20], Y[:20]), (X[20:], Y[20:])
    quietly(ur.analyze_layers, model, *data, ["first", "same"])
    analyzed(model, "same")
    analyzed(model, "first", X[:30], compute=ur.Compute(batch_size=3))
    quietly(ur.analyze, model, *data, "first", sample=ur.Sample(seed=3))
    ur.plan(model, *data, layer="first")
    ur.layers(model, X[:5])
    assert len(made) == 1


def in_place(model: Net) -> None:
    with torch.no_grad():
        model.last.weight.mul_(-2)
        model.first.bias.data = model.first.bias + 1


def loaded(model: Net) -> None:
    model.load_state_dict({name: -value for name, value in model.state_dict().items()})


def assigned(model: Net) -> None:
    other = {name: 2 * value for name, value in model.state_dict().items()}
    model.load_state_dict(other, assign=True)


def replaced(model: Net) -> None:
    model.last.weight = nn.Parameter(-model.last.weight.detach())


@pytest.mark.parametrize("change", [in_place, loaded, assigned, replaced])
def test_other_weights_need_no_other_export(change: Callable[[Net], None], made):
    model = Net()
    first = analyzed(model)
    change(model)
    again = analyzed(model)
    assert len(made) == 1
    same(again, analyzed(copy.deepcopy(model)))
    assert len(made) == 2, "a copy is another model"
    assert not np.array_equal(again.data.loss, first.data.loss)


def tied(model: Net) -> None:
    model.side.weight = model.last.weight


def swapped(model: Net) -> None:
    model.last = nn.Linear(6, 3, bias=False)


def listed(model: Net) -> None:
    model.steps.append(torch.tanh)


def hook(model: Net) -> None:
    model.same.register_forward_hook(lambda module, given, output: 2 * output)


def patched(model: Net) -> None:
    model.side.forward = lambda x: x[:, :3]


CHANGES = {
    "an attribute": lambda model: setattr(model, "slope", 0.3),
    "an attribute of another kind": lambda model: setattr(model, "slope", True),
    "what a list holds": listed,
    "a tensor": lambda model: setattr(model, "shift", torch.tensor(0.25)),
    "a tensor in place": lambda model: model.shift.fill_(0.125),
    "a module": swapped,
    "another kind of module": lambda model: setattr(model, "same", nn.Tanh()),
    "the class": lambda model: setattr(model, "__class__", type("Other", (Net,), {})),
    "a hook": hook,
    "a forward": patched,
    "weights that are one": tied,
    "the kind of numbers": lambda model: model.half().float().requires_grad_(False),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_may_change_the_graph_makes_another(change: str, made):
    model = Net()
    analyzed(model)
    CHANGES[change](model)
    again = analyzed(model)
    assert len(made) == 2
    same(again, analyzed(copy.deepcopy(model)))


def test_other_inputs_make_another_and_the_first_is_kept(made):
    model, wide = Net(), torch.cat([X, X], dim=1)
    first = analyzed(model)
    analyzed(model, x=wide)
    assert len(made) == 2
    analyzed(model.double(), x=X.double())
    assert len(made) == 3
    same(analyzed(model.float()), first)
    analyzed(model, x=wide)
    assert len(made) == 3


@pytest.mark.parametrize("factor", [2.0, 3.0])
def test_what_a_hook_holds_counts_not_which_hook_it_is(factor: float, made):
    def scaled(by: float) -> Any:
        return lambda module, given, output: by * output

    model = Net()
    handle = model.same.register_forward_hook(scaled(2.0))
    analyzed(model)
    handle.remove()
    model.same.register_forward_hook(scaled(factor))
    analyzed(model)
    assert len(made) == (1 if factor == 2.0 else 2)


def test_the_output_that_is_asked_for_counts(made):
    class Two(Net):
        def forward(self, x: Tensor) -> Any:
            found = super().forward(x)
            return {"a": found, "b": -found}

    model = Two()
    one, other, again = (analyzed(model, method=ur.Method(output=name)) for name in "aba")
    assert len(made) == 2
    same(one, again)
    assert not np.array_equal(one.data.loss, other.data.loss)


def test_a_graph_that_is_no_more_right_is_made_anew(made, monkeypatch):
    model = Net()
    analyzed(model)
    monkeypatch.setitem(SIGN, "of", -1.0)
    again = analyzed(model)
    assert len(made) == 2
    assert again.data.attrs["plan"] != "full"
    same(again, analyzed(copy.deepcopy(model)))


class Opaque:
    __slots__ = ("__weakref__", "numbers")


@pytest.mark.parametrize("held", [Opaque(), torch.Generator(), np.zeros(10_000), {1: [Opaque()]}])
def test_what_does_not_show_its_contents_keeps_nothing(held: Any, made):
    model = Net()
    model.held = held
    analyzed(model)
    analyzed(model)
    assert len(made) == 2


def test_the_model_is_left_alone_and_goes_when_nobody_holds_it():
    model = Net()
    before, number = set(vars(model)), id(model)
    analyzed(model)
    assert set(vars(model)) == before
    assert number in exports._PROGRAMS._kept
    same(analyzed(pickle.loads(pickle.dumps(model))), analyzed(copy.deepcopy(model)))
    there = [weakref.ref(one) for one in (model, model.first, model.first.weight)]
    del model
    gc.collect()
    assert [one() for one in there] == [None] * 3
    assert number not in exports._PROGRAMS._kept


def test_only_the_last_few_graphs_of_a_model_are_kept(made):
    model = Net()
    for slope in (0.1, 0.2, 0.3, 0.4, 0.5):
        model.slope = slope
        analyzed(model)
    assert len(exports._PROGRAMS._of(model)) == 4
    model.slope = 0.5
    analyzed(model)
    assert len(made) == 5
    model.slope = 0.1
    analyzed(model)
    assert len(made) == 6


class Remembering(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.linear(x)
        return self.last


class ByAnotherName(nn.Module):
    """The head reads the layer's output as it was before any hook."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.one, self.two = Remembering(), nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(self.body(x).relu()) + self.two(self.body.last.sigmoid())


def literal(model: nn.Module, layer: str, x: Tensor, kept: Tensor) -> Tensor:
    """The logits of samples one by one with only these units, by a hook that writes zeros."""

    def mask(module: nn.Module, given: Any, output: Tensor) -> Tensor:
        return output.clone() * kept

    handle = model.get_submodule(layer).register_forward_hook(mask)
    with torch.no_grad():
        found = torch.cat([model(one[None]) for one in x])
    handle.remove()
    return found


@pytest.mark.parametrize(("make", "layer"), [(ByAnotherName, "body"), (Net, "same")])
def test_the_mark_of_an_output_is_not_that_of_what_shares_its_numbers(make: Any, layer: str):
    model = make()
    for _ in range(2):
        found = analyzed(model, layer)
        assert found.data.attrs["plan"] != "full"
        order = found.data.order.sel(split="test").values
        for label in range(3):
            mine = (X[20:])[Y[20:] == label]
            for count in (0, 2, 5):
                kept = torch.zeros(6)
                kept[order[label][:count]] = 1
                logits = literal(model, layer, mine, kept)
                loss = nn.functional.cross_entropy(logits, torch.full((len(mine),), label))
                got = float(found.data.loss.sel(split="test")[label][count])
                assert got == pytest.approx(float(loss), abs=1e-5)
