"""The user's model and the random states are the same after an analysis as before it."""

import pickle
import random
import subprocess
import sys
import warnings
from copy import deepcopy
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import networks
import unitroles as ur
from forcing import PLANS, forced
from unitroles.model.borrow import untouched

COMPUTE = ur.Compute(batch_size=16)
HOOKS = [name for name in vars(nn.Module()) if name.endswith(("hooks", "kwargs", "called"))]


class Counting(nn.Module):
    """Its forward writes to its buffers and parameters' neighbours, also in evaluation."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(10, 8)
        self.norm = nn.BatchNorm1d(8)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(0.5)
        self.rest = nn.Linear(8, 4)
        self.register_buffer("in_place", torch.zeros(()))
        self.register_buffer("assigned", torch.zeros(3))
        self.register_buffer("hidden_state", torch.full((2,), float("nan")), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.in_place += 1
        self.assigned = self.assigned + 1
        self.hidden_state.fill_(1.0)
        return self.rest(self.dropout(self.relu(self.norm(self.hidden(x)))))


class Late(nn.Module):
    """Fills an empty buffer and makes another one in its forward."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(10, 8)
        self.relu = nn.ReLU()
        self.rest = nn.Linear(8, 4)
        self.register_buffer("empty", None)

    def forward(self, x: Tensor) -> Tensor:
        self.empty = torch.ones(2)
        if "made" not in self._buffers:
            self.register_buffer("made", torch.ones(3))
        return self.rest(self.relu(self.hidden(x)))


class Breaking(nn.Module):
    """Writes to its buffers and raises once it has been called `calls` times with real data."""

    def __init__(self, calls: int):
        super().__init__()
        self.inner = Counting()
        self.told = SimpleNamespace(left=calls)  # no container, which would come back as it was

    def forward(self, x: Tensor) -> Tensor:
        if type(x) is Tensor:
            self.told.left -= 1
            if self.told.left < 0:
                self.inner.in_place += 1
                self.inner.assigned = self.inner.assigned + 1
                raise OSError("the model broke")
        return self.inner(x)


def pure_hook(module, args, output):
    return None


def gradient_hook(module, grad_input, grad_output):
    return None


def used(model: nn.Module) -> nn.Module:
    """As in the middle of a user's work: mixed modes, gradients, a frozen weight, own hooks."""
    for number, module in enumerate(model.modules()):
        module.training = number % 2 == 0
    parameters = list(model.parameters())
    for number, parameter in enumerate(parameters):
        parameter.requires_grad = number != 1
        parameter.grad = torch.full_like(parameter, 0.5) if number % 2 else None
    last = list(model.modules())[-1]
    last.register_forward_hook(pure_hook)
    last.register_forward_pre_hook(lambda module, args: None)
    last.register_full_backward_hook(gradient_hook)
    return model


def bits(tensor: Tensor | None) -> object:
    return tensor if tensor is None else (tensor.dtype, tensor.shape, tensor.numpy().tobytes())


def state(model: nn.Module) -> dict[str, object]:
    """Everything about a model that an analysis might change."""
    found: dict[str, object] = {}
    for path, module in model.named_modules():
        found[f"{path} training"] = module.training
        found[f"{path} attributes"] = sorted(vars(module))
        for name in HOOKS:
            found[f"{path} {name}"] = dict(getattr(module, name))
        for name, parameter in module._parameters.items():
            if parameter is not None:
                key = f"{path} parameter {name}"
                grad = None if parameter.grad is None else id(parameter.grad)
                found[key] = (id(parameter), parameter.requires_grad, grad, parameter.grad_fn)
                found[f"{key} values"] = bits(parameter.detach()), bits(parameter.grad)
        for name, buffer in module._buffers.items():
            found[f"{path} buffer {name}"] = id(buffer), bits(buffer)
    return found


def random_states() -> list[object]:
    """Without Python's own, which the type checks of the tests draw from; see the last test."""
    numpy = np.random.get_state()
    return [numpy[1].tolist(), numpy[2:], torch.get_rng_state().tolist()]


def data(seed: int = 0) -> tuple[Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    return torch.randn(24, 10, generator=drawn), torch.arange(24) % 4


def analyze(model, layer="relu", **options):
    """Without the plan warnings: they are not what these tests look at."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ur.PlanWarning)
        options = {"compute": COMPUTE, **options}
        return ur.analyze(model, data(0), data(1), layer=layer, progress=False, **options)


def test_the_hook_dictionaries_are_known():
    assert {"_forward_hooks", "_forward_pre_hooks", "_backward_hooks"} <= set(HOOKS)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("build", [Counting, Late])
def test_an_analysis_leaves_the_model_as_it_was(build, plan):
    model = used(build())
    before, random_before = state(model), random_states()
    with forced(plan):
        taxonomy = analyze(model)
    assert taxonomy.data.attrs["plan"] == plan
    assert state(model) == before
    assert random_states() == random_before


def test_a_plain_forward_would_change_the_model():
    model = used(Counting())
    before = state(model)
    model(data()[0])
    changed = {key for key, value in state(model).items() if value != before[key]}
    assert {" buffer in_place", " buffer assigned", " buffer hidden_state"} <= changed


@pytest.mark.parametrize("name", ["residual", "relu_twice", "transformer"])
def test_an_analysis_leaves_a_toy_as_it_was(name):
    toy = networks.toy(name)
    model = used(toy.model)
    before, random_before = state(model), random_states()
    layer = ur.Layer(toy.layer, toy.axis, toy.call)
    ur.analyze(model, toy.train, toy.test, layer=layer, progress=False, compute=COMPUTE)
    assert state(model) == before
    assert random_states() == random_before


@cache
def calls_of(plan, audit=64):
    """How often an analysis runs the model on real data, with so many samples also alone."""
    many = 10**6
    model = Breaking(many)
    with forced(plan):
        analyze(model, layer="inner.relu", compute=ur.Compute(batch_size=16, audit=audit))
    return many - model.told.left


# The first calls are the trace and the samples alone, then come the check of the plan, the one pass
# of the body and, under the full plan, all masks and the swapped sets.
@pytest.mark.parametrize("share", [0, 0.2, 0.4, 0.6, 0.8, 1])
@pytest.mark.parametrize("plan", PLANS)
def test_an_error_in_the_model_leaves_it_as_it_was(plan, share):
    model = used(Breaking(round(share * (calls_of(plan) - 1))))
    before, random_before = state(model), random_states()
    with forced(plan), pytest.raises(OSError, match="the model broke"):
        analyze(model, layer="inner.relu")
    assert state(model) == before
    assert random_states() == random_before


def test_the_masks_of_a_cut_model_run_the_model_no_more():
    assert calls_of("additive", 0) == calls_of("suffix", 0) < 15 < calls_of("full", 0)


def test_an_error_in_the_data_leaves_the_model_as_it_was():
    class Broken(torch.utils.data.Dataset):
        def __len__(self):
            return 24

        def __getitem__(self, row):
            torch.rand(1), np.random.rand(), random.random()
            if row == 20:
                raise OSError("the disk broke")
            return data()[0][row], row % 4

    model = used(Counting())
    before, random_before = state(model), random_states()
    with pytest.raises(ur.InputError, match="train sample 20 .*the disk broke"):
        ur.analyze(model, Broken(), data(1), layer="relu", progress=False)
    assert state(model) == before
    assert random_states() == random_before


def test_data_that_draw_random_numbers_leave_the_random_states_as_they_were():
    class Drawing(torch.utils.data.Dataset):
        def __len__(self):
            return 24

        def __getitem__(self, row):
            torch.rand(1), np.random.rand(), random.random()
            return data()[0][row], row % 4

    model = Counting()
    before = random_states()
    ur.analyze(model, Drawing(), data(1), layer="relu", progress=False, compute=COMPUTE)
    assert random_states() == before


def test_the_model_can_be_copied_and_pickled_afterwards():
    model = Counting()
    analyze(model)
    for copy in (deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(copy.eval()(data()[0]), deepcopy(model).eval()(data()[0]))


def test_the_model_trains_on_afterwards():
    model = Counting().train()
    analyze(model)
    model(data()[0]).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.norm.num_batches_tracked == 1


def test_hooks_of_the_user_take_part():
    """The masked layer is the one the user's hooks leave behind, and none of them is lost."""
    torch.manual_seed(0)
    plain, hooked = Counting(), None
    hooked = deepcopy(plain)
    hooked.relu.register_forward_hook(lambda module, args, output: output * 2)
    hooked.rest.register_forward_pre_hook(lambda module, args: (args[0] / 2,))
    once, twice = analyze(plain).data, analyze(hooked).data
    np.testing.assert_allclose(twice.score, 2 * once.score, rtol=1e-6)
    np.testing.assert_allclose(twice.loss, once.loss, atol=1e-6)
    assert len(hooked.relu._forward_hooks) == len(hooked.rest._forward_pre_hooks) == 1


def test_the_mode_of_the_model_does_not_matter():
    torch.manual_seed(0)
    model = Counting()
    for _ in range(3):
        model(data(5)[0])  # so that the running statistics are not those of a batch
    results = [analyze(deepcopy(model).train(mode)).data for mode in (True, False)]
    for name in ("score", "order", "loss", "accuracy", "role"):
        np.testing.assert_array_equal(results[0][name], results[1][name])


def test_an_own_train_method_is_not_called():
    class Stubborn(Counting):
        def train(self, mode=True):
            raise AssertionError("train() was called")

    analyze(Stubborn())


def test_gradients_are_not_recorded_and_may_be_switched_off():
    model = Counting()
    with torch.no_grad():
        analyze(model)
        assert not torch.is_grad_enabled()
    analyze(model)
    assert torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_listing_the_layers_leaves_the_model_as_it_was():
    model = used(Counting())
    before, random_before = state(model), random_states()
    assert "relu" in ur.layers(model, data()[0][:4]).layer.tolist()
    assert state(model) == before
    assert random_states() == random_before


def test_listing_the_layers_of_a_broken_model_leaves_it_as_it_was():
    model = used(Breaking(0))
    before = state(model)
    with pytest.raises(OSError, match="the model broke"):
        ur.layers(model, data()[0][:4])
    assert state(model) == before


def test_the_random_state_of_python_comes_back():
    before = random.getstate()
    with untouched(nn.Linear(1, 1)):
        random.random()
    assert random.getstate() == before


SCRIPT = """
import random, sys
import torch, unitroles as ur
assert "beartype" not in sys.modules, "type checks draw from the random state of Python"
class Drawing(torch.utils.data.Dataset):
    def __len__(self):
        return 12
    def __getitem__(self, row):
        random.random()
        return torch.full((3,), float(row)), row % 2
model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
before = random.getstate()
ur.analyze(model, Drawing(), Drawing(), layer="1")
assert random.getstate() == before, "analyze changed the random state of Python"
"""


def test_an_analysis_leaves_the_random_state_of_python_as_it_was():
    source = str(Path(ur.__file__).parents[1])
    script = f"import sys; sys.path.insert(0, {source!r})\n{SCRIPT}"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


class Drifting(nn.Module):
    """Writes to a parameter in its forward."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(10, 8)
        self.rest = nn.Linear(8, 4)
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.scale.mul_(0.999999)
        return self.rest(self.hidden(x).relu() * self.scale)


def test_a_parameter_that_the_forward_writes_to_comes_back():
    torch.manual_seed(0)
    model, scale = (net := Drifting()), net.scale
    x, y = torch.randn(24, 10), torch.arange(24) % 4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ur.PlanWarning)
        ur.analyze(model, (x[:12], y[:12]), (x[12:], y[12:]), layer="hidden", progress=False)
    assert model.scale is scale
    assert torch.equal(scale, torch.ones(8))
