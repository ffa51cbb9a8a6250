"""Traps in which other tools are silently wrong, as they stand in torchvision's ResNet-18.

Captum's LayerFeatureAblation takes the tensor that `bn2` returned after `out += identity` has
written to it, and lets batch-norm statistics drift in train mode; tools that hook a module see one
call of a ReLU that a block calls twice. Everything here is compared with the literal twin.
"""

import pickle
import warnings
from collections import OrderedDict, namedtuple
from copy import deepcopy
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import families
import networks
import reference
import unitroles as ur
from forcing import PLANS, forced, quietly

pytestmark = pytest.mark.usefixtures("one_thread")

LABELS = torch.tensor([0, 0, 1, 1, 1])
POINTS = [0, 1, 201, 401, 512]
Data = list[tuple[Tensor, Tensor]]


@cache
def resnet() -> tuple[nn.Module, Data]:
    """In float64, where a wrong number cannot hide; no test may change it."""
    splits = [families.images("resnet18", len(LABELS), seed).double() for seed in (6, 7)]
    return families.network("resnet18").double(), [(images, LABELS) for images in splits]


@cache
def residual() -> tuple[nn.Module, Data]:
    """Two of its blocks, narrow, between a stem and a classifier; no test may change it."""
    toy = networks.toy("residual", torch.float64)
    return toy.model, [toy.train, toy.test]


def analyze(model, data, layer, **options):
    return quietly(ur.analyze, model, *data, layer=layer, **options).data


@pytest.mark.parametrize(
    ("layer", "call"), [("layer4.1.bn2", -1), ("layer4.1.relu", -1), ("layer4.1.relu", 0)]
)
def test_a_layer_that_is_written_to_or_called_twice_equals_clone_and_zero(layer, call):
    model, data = resnet()
    found = analyze(model, data, ur.Layer(layer, call=call), method=ur.Method(resolution=200))
    for split, (inputs, labels) in enumerate(data):
        for label in (0, 1):
            own, curve = inputs[labels == label], found.isel(split=split, label=label)
            score = reference.score(model, layer, own, call=call)
            np.testing.assert_allclose(curve.score, score, rtol=1e-9)
            for n in POINTS:
                retrieved = curve.order.values[:n]
                loss, hits = reference.performance(model, layer, own, label, retrieved, call=call)
                np.testing.assert_allclose(curve.loss[n], loss, rtol=1e-9, atol=1e-9)
                assert curve.accuracy[n] == hits
    assert np.ptp(found.loss.values[..., POINTS], axis=2).min() > 0.05


def test_the_two_calls_of_one_relu_are_two_layers():
    model, data = residual()
    first, last = (analyze(model, data, ur.Layer("blocks.1.relu", call=call)) for call in (0, 1))
    assert np.abs(first.loss.values - last.loss.values).max() > 0.1
    assert_same(last, analyze(model, data, "blocks.1.relu"))


def assert_same(one, other):
    for name in ("score", "order", "loss", "accuracy", "turning_point", "role", "swapped_loss"):
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize(("call", "units"), [(0, 7), (1, 12), (-1, 12)])
def test_one_relu_at_two_widths_equals_the_twin(call, units, plan):
    toy = networks.toy("relu_twice", torch.float64)
    layer = ur.Layer("relu", call=call)
    with forced(plan):
        found = quietly(ur.analyze, toy.model, toy.train, toy.test, layer=layer).data
    wanted = reference.analyze(toy.model, "relu", toy.train, toy.test, call=call)
    assert (found.attrs["plan"], found.sizes["unit"]) == (plan, units)
    assert_twin(found, wanted)


def assert_twin(found, wanted):
    assert np.ptp(wanted.loss, axis=2).max() > 0.1
    for name in ("order", "turning_point", "role", "accuracy", "swapped_accuracy"):
        np.testing.assert_array_equal(found[name], getattr(wanted, name), err_msg=name)
    for name in ("score", "loss", "swapped_loss"):
        np.testing.assert_allclose(
            found[name], getattr(wanted, name), rtol=1e-9, atol=1e-9, err_msg=name
        )


class InPlace(nn.Module):
    """Every op after the layer writes to the tensor that it was given, also to the layer's own."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.conv, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.relu, self.drop = nn.ReLU(inplace=True), nn.Dropout(0.5, inplace=True)
        self.mix, self.last = nn.Conv2d(8, 8, 1), nn.ELU(inplace=True)
        self.out = nn.Linear(8, 3)
        self.norm.running_mean.uniform_(-0.3, 0.3)

    def forward(self, x: Tensor) -> Tensor:
        kept = self.conv(x)
        h = self.norm(kept)
        h += kept  # as torchvision's blocks do
        h = self.drop(self.relu(h)).mul_(1.5).add_(kept, alpha=0.5)
        h[:, :, 0] *= 2
        h = F.leaky_relu_(h, 0.1).clamp_(-4, 4)
        h = self.last(self.mix(h)).sub_(0.1)
        return self.out(h.mean((2, 3)).div_(2)).mul_(3)


@pytest.mark.parametrize("plan", ["additive", "full"])
@pytest.mark.parametrize("layer", ["conv", "norm", "relu", "drop", "mix", "last"])
def test_ops_that_write_to_the_layers_output_equal_the_twin(layer, plan):
    model = InPlace().double().eval().requires_grad_(False)
    draw = torch.Generator().manual_seed(0)
    train, test = (
        (torch.randn(9, 1, 5, 5, generator=draw).double(), torch.arange(9) % 3) for _ in range(2)
    )
    with forced(plan):
        found = quietly(ur.analyze, model, train, test, layer=layer).data
    assert (found.attrs["plan"] == "full") == (plan == "full")
    assert_twin(found, reference.analyze(model, layer, train, test))


def bits(model: nn.Module) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in model.state_dict().items()}


def hooks(model: nn.Module) -> list[object]:
    named = [name for name in vars(nn.Module()) if "hooks" in name]
    return [dict(getattr(module, name)) for module in model.modules() for name in named]


def own(model: nn.Module) -> list[object]:
    """Flags and names of everything that every module holds."""
    return [(module.training, sorted(vars(module))) for module in model.modules()]


LAYER = "blocks.1.bn2"
CALLS = {
    "analyze": lambda model, data: analyze(model, data, LAYER),
    "single_unit_ablation": lambda model, data: quietly(
        ur.single_unit_ablation, model, data[0], layer=LAYER
    ),
    "cumulative_ablation": lambda model, data: quietly(
        ur.cumulative_ablation, model, data[0], layer=LAYER, order="random"
    ),
    "plan": lambda model, data: ur.plan(model, *data, layer=LAYER),
    "layers": lambda model, data: ur.layers(model, data[0][0]),
}


def everything(model: nn.Module) -> list[object]:
    return [bits(model), hooks(model), own(model), torch.get_rng_state().tolist()]


@pytest.mark.parametrize("name", CALLS)
def test_a_model_in_train_mode_is_evaluated_and_comes_back_bit_for_bit(name):
    model, data = deepcopy(residual()[0]).train(), residual()[1]
    model.blocks[0].eval()  # a frozen part stays frozen
    before = everything(model)
    CALLS[name](model, data)
    assert everything(model) == before
    model(data[0][0])  # as a plain forward in train mode would have left it
    assert bits(model) != before[0]


def test_the_mode_of_the_model_does_not_change_the_numbers():
    model, data = residual()
    found = [analyze(deepcopy(model).train(mode), data, LAYER) for mode in (True, False)]
    assert_same(*found)


Pair = namedtuple("Pair", ["features", "logits"])


class Output(OrderedDict):
    """As a Hugging Face ModelOutput: a dictionary whose values are attributes too."""

    def __getattr__(self, name):
        return self[name]


WRAPS = {
    "dict": lambda logits, h: {"features": h, "logits": logits},
    "tuple": lambda logits, h: (logits, h),
    "list": lambda logits, h: [logits, h],
    "named tuple": lambda logits, h: Pair(features=h, logits=logits),
    "object": lambda logits, h: SimpleNamespace(features=h, logits=logits),
    "ordered dict": lambda logits, h: Output(features=h, logits=logits),
    "features before the logits": lambda logits, h: Output(a=h.sum(), logits=logits),
}


class Wrapped(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        torch.manual_seed(5)
        self.hidden, self.relu, self.out = nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3)
        self.wrap = wrap

    def forward(self, x: Tensor):
        hidden = self.relu(self.hidden(x))
        return self.wrap(self.out(hidden), hidden)


@pytest.mark.parametrize("kind", WRAPS)
def test_logits_are_found_in_every_kind_of_output(kind):
    draw = torch.Generator().manual_seed(1)
    train, test = (
        (torch.randn(9, 6, generator=draw).double(), torch.arange(9) % 3) for _ in range(2)
    )
    plain = Wrapped(lambda logits, h: logits).double().eval()
    found = quietly(ur.analyze, Wrapped(WRAPS[kind]).double(), train, test, layer="relu").data
    assert found.attrs["plan"] == "additive"
    assert_twin(found, reference.analyze(plain, "relu", train, test))


class Stop(BaseException):
    """No Exception, as a Ctrl-C is none."""


@pytest.mark.parametrize("error", [OSError, Stop])
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("after", [0, 1, 4])
def test_an_exception_half_way_gives_the_model_back(name, after, error):
    """It comes after some batch norms and before the layer, while hooks and modes are set."""
    (model, data), left = residual(), [after]
    model = deepcopy(model).train()

    def explode(module, args):
        torch.rand(3)
        left[0] -= 1
        if left[0] < 0:
            raise error("half way")

    model.blocks[1].conv1.register_forward_pre_hook(explode)
    before = everything(model)
    with pytest.raises(error, match="half way"):
        CALLS[name](model, data)
    assert everything(model) == before


def test_after_a_run_the_model_is_copied_and_pickled_like_before():
    (model, data), before = residual(), pickle.dumps(residual()[0])
    for call in CALLS.values():
        call(model, data)
    assert len(pickle.dumps(model)) == len(before)
    fresh = pickle.loads(before)
    for copy in (deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert everything(copy) == everything(fresh)
        torch.testing.assert_close(copy(data[0][0]), fresh(data[0][0]), rtol=0, atol=0)
        assert_same(analyze(copy, data, LAYER), analyze(fresh, data, LAYER))


def test_the_batch_size_does_not_change_the_numbers():
    model, data = resnet()
    whole, *others = (
        analyze(model, data, "layer4.1.bn2", compute=ur.Compute(batch_size=size))
        for size in (5, 1, 2, 16)
    )
    for found in others:
        for name in ("order", "turning_point", "role", "accuracy"):
            np.testing.assert_array_equal(found[name], whole[name], err_msg=name)
        for name in ("score", "loss", "swapped_loss"):
            np.testing.assert_allclose(found[name], whole[name], rtol=1e-9, err_msg=name)


@pytest.mark.parametrize("drop_last", [False, True])
def test_a_shuffling_loader_gives_the_numbers_of_its_data_set(drop_last):
    model, data = residual()
    sets = [TensorDataset(*split) for split in data]
    loaders = [DataLoader(s, batch_size=5, shuffle=True, drop_last=drop_last) for s in sets]
    wanted, before = analyze(model, sets, LAYER), torch.get_rng_state()
    assert_same(analyze(model, loaders, LAYER), wanted)
    assert torch.equal(torch.get_rng_state(), before)


def test_nothing_is_worked_around_with_a_warning():
    model, data = residual()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for layer in (LAYER, ur.Layer("blocks.1.relu", call=-1)):
            ur.analyze(model, *data, layer=layer, progress=False)
