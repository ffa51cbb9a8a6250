"""Models that fooled an earlier version: each must equal the literal twin, or be refused."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import reference
import unitroles as ur
from forcing import observe

pytestmark = pytest.mark.usefixtures("one_thread")

LABELS = 3


def data(count=24, width=5, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=draw).double(), torch.arange(count) % LABELS


def assert_right(model, layer, plan=None, splits=None, **options):
    """Curves, roles and single-unit ablation equal the twin; returns what was said."""
    train, test = splits or (data(), data(seed=1))
    model = model.double().eval().requires_grad_(False)
    found, notes = observe(ur.analyze, model, train, test, layer=layer, **options)
    wanted = reference.analyze(model, layer, train, test)
    assert np.ptp(wanted.loss, axis=2).min() > 1e-3
    np.testing.assert_allclose(found.data.loss, wanted.loss, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(found.data.accuracy, wanted.accuracy)
    alone, _ = observe(ur.single_unit_ablation, model, train, layer=layer)
    change = reference.single_unit_ablation(model, layer, train)["loss_change"]
    np.testing.assert_allclose(alone.loss_change, change, rtol=1e-9, atol=1e-9)
    if plan is not None:
        assert found.data.attrs["plan"] == plan
    return notes


class Masked(nn.Module):
    """Some samples may not answer some classes; the mask of the first sample hides class 2."""

    def __init__(self, fill, norm):
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.relu, self.fill = nn.Linear(5, 8), nn.ReLU(), fill
        self.head = nn.Sequential(nn.LayerNorm(8) if norm else nn.Identity(), nn.Linear(8, LABELS))

    def forward(self, x):
        closed = torch.zeros_like(x[:, :LABELS])
        closed[:, 2] = torch.where(x[:, 0] > 0, self.fill, 0.0)
        return self.head(self.relu(self.hidden(x))) + closed


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("fill", [float("-inf"), -1e30, -1e9])
def test_a_class_that_is_masked_out_for_some_samples(fill, norm):
    splits = []
    for seed in (0, 1):
        x, y = data(seed=seed)
        x[:, 0] = torch.where(y == 2, -x[:, 0].abs(), x[:, 0].abs())
        splits.append((x, y))
    for ends in (slice(None), slice(1, -1)):  # the probe sees the mask, or does not
        some = [(x[ends], y[ends]) for x, y in splits]
        # A finite mask costs the running sum digits, and the self-check may prefer the suffix.
        assert_right(Masked(fill, norm), "relu", "additive" if fill < -1e20 else None, some)


class Squared(nn.Module):
    """The units meet, and their sum is multiplied with itself."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.hidden, self.relu = nn.Linear(5, 8), nn.ReLU()
        self.mix, self.out = nn.Linear(8, 6), nn.Linear(6, LABELS)

    def forward(self, x):
        h = self.mix(self.relu(self.hidden(x)))
        return self.out(h * h)


def test_a_square_is_not_affine():
    x, y = data()
    x[0] = x[-1] = -100 * torch.ones(5).double()
    model = Squared()
    model.hidden.weight.data.abs_()  # the probe's samples activate no unit
    assert_right(model, "relu", "additive", [(x, y), data(seed=1)])


class Limited(nn.Module):
    def __init__(self, limit):
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.relu = nn.Linear(5, 8), nn.ReLU()
        self.out, self.limits = nn.Linear(8, LABELS), limit

    def forward(self, x):
        top = self.limits.top if hasattr(self.limits, "top") else max(self.limits)
        return self.out(self.relu(self.hidden(x)).clamp(max=top))


@pytest.mark.parametrize(
    ("limits", "change"),
    [
        (SimpleNamespace(top=0.05), lambda found: setattr(found, "top", 5.0)),
        ({0.01, 0.05}, lambda found: found.add(5.0)),
    ],
)
def test_an_object_that_changed_between_two_runs_is_seen(limits, change):
    x, y = data()
    x[0] = x[-1] = 0.01  # what the probe sees stays below both limits
    model = Limited(limits)
    model.hidden.bias.data.zero_()
    assert_right(model, "relu", splits=[(x, y), data(seed=1)])
    change(limits)
    assert_right(model, "relu", splits=[(x, y), data(seed=1)])


class Global(nn.Module):
    """Its limit stands where no attribute of a module shows it."""

    limit, found = 0.05, {"top": 0.05}

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.relu = nn.Linear(5, 8), nn.ReLU()
        self.out, self.kind = nn.Linear(8, LABELS), kind
        self.array = np.array([0.05])

    def forward(self, x):
        top = {
            "class attribute": lambda: self.limit,
            "global dictionary": lambda: self.found["top"],
            "array": lambda: float(self.array[0]),
        }[self.kind]()
        return self.out(self.relu(self.hidden(x)).clamp(max=top))


GLOBAL_CHANGES = {
    "class attribute": lambda patch, model: patch.setattr(Global, "limit", 5.0),
    "global dictionary": lambda patch, model: patch.setitem(Global.found, "top", 5.0),
    "array": lambda patch, model: model.array.fill(5.0),
}


@pytest.mark.parametrize("kind", GLOBAL_CHANGES)
def test_state_outside_the_modules_that_changed_between_two_runs_is_seen(kind, monkeypatch):
    x, y = data()
    x[0] = x[-1] = 0.01  # what the probe sees stays below both limits
    model = Global(kind)
    model.hidden.bias.data.zero_()
    assert_right(model, "relu", splits=[(x, y), data(seed=1)])
    GLOBAL_CHANGES[kind](monkeypatch, model)
    assert_right(model, "relu", splits=[(x, y), data(seed=1)])


class Patched(nn.Module):
    """A table of weights that is changed in place before it is used."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.relu, self.out = nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, LABELS)
        self.table = nn.Embedding(6, LABELS)

    def forward(self, x):
        table = self.table.weight.clone()
        table[0] = 0
        return self.out(self.relu(self.hidden(x))) + table[(x[:, 0] > 0.3).long() * 5]


def test_weights_that_were_written_behind_the_versions_are_seen():
    x, y = data()
    x[0, 0] = x[-1, 0] = -1
    model, splits = Patched().double(), [(x, y), data(seed=1)]
    assert_right(model, "relu", splits=splits)
    model.table.weight.data[5] += 3
    assert_right(model, "relu", splits=splits)


class InABlock(nn.Module):
    """Writes to values inside a block that changes how torch computes."""

    def __init__(self, block):
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.relu = nn.Linear(5, 8), nn.ReLU()
        self.deep, self.out, self.block = nn.Linear(8, 8), nn.Linear(8, LABELS), block

    def forward(self, x):
        h = self.relu(self.hidden(x)) * 2
        with self.block():
            h.mul_(3.0).add_(1.0)
        return self.out(self.deep(h).relu())


BLOCKS = {
    "no gradients": torch.no_grad,
    "gradients": torch.enable_grad,
    "autocast": lambda: torch.autocast("cpu", enabled=False),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_a_forward_that_changes_modes_inside(name):
    assert assert_right(InABlock(BLOCKS[name]), "relu", plan="additive") == []


class Written(nn.Module):
    """A value is written to under two names, after a write that is plain."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.relu = nn.Linear(5, 8), nn.ReLU()
        self.out, self.drop = nn.Linear(8, LABELS), nn.Dropout(inplace=True)

    def forward(self, x):
        table = torch.zeros(8, dtype=x.dtype)
        table[:4] += 0.5  # made of numbers alone
        h = self.relu(self.hidden(x)).mul_(2.0).add_(table)
        h[:, 1:3].mul_(-1.0)
        return self.drop(self.out(h).add_(1.0))


def test_writing_to_a_part_of_a_value():
    assert assert_right(Written(), "relu") == []


class Leaning(nn.Module):
    """Every sample looks at one of its batch."""

    def __init__(self, at):
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.relu, self.out = nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, LABELS)
        self.at = at

    def forward(self, x):
        return self.out(self.relu(self.hidden(x)) + x[self.at].sum())


@pytest.mark.parametrize("at", [0, -1])
def test_samples_that_influence_each_other_are_told(at):
    found, notes = observe(ur.analyze, Leaning(at).double(), *[data()] * 2, layer="hidden")
    assert found.data.attrs["plan"] == "full"
    assert any("depends on the others in its batch" in note for note in notes)


class Folded(nn.Module):
    """Attention over what flows around the layer, its heads folded into the batch."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.relu = nn.Linear(4, 8), nn.ReLU()
        self.attend = nn.MultiheadAttention(8, 2, kdim=4, vdim=4, batch_first=True)
        self.out = nn.Linear(8, LABELS)

    def forward(self, x):
        tokens = x.unflatten(1, (5, 4))
        found, _ = self.attend(self.relu(self.hidden(tokens)), tokens, tokens, need_weights=False)
        return self.out(found.mean(1))


def test_several_rows_a_sample_around_the_layer():
    splits = [data(width=20), data(width=20, seed=1)]
    model = Folded().double().eval().requires_grad_(False)
    train, test = splits
    layer = ur.Layer("relu", axis=2)
    found, _ = observe(ur.analyze, model, train, test, layer=layer)
    wanted = reference.analyze(model, "relu", train, test, axis=2)
    np.testing.assert_allclose(found.data.loss, wanted.loss, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("order", ["descending", "ascending", "random", [0]])
def test_a_layer_with_one_unit(order):
    net = nn.Sequential(nn.Linear(5, 1), nn.ReLU(), nn.Linear(1, LABELS)).double()
    found, _ = observe(ur.cumulative_ablation, net, data(), layer=ur.Layer("1"), order=order)
    assert found.loss.shape == (LABELS, 2)


class Remembering(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.relu, self.out = nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, LABELS)
        self.last, self.calls = None, 0

    def forward(self, x):
        self.calls += 1
        self.last = self.hidden(x).mean(0)
        self.extra = 1
        return self.out(self.relu(self.hidden(x))) + 0 * self.last.sum()


def test_attributes_come_back_as_they_were_and_serve_in_training():
    model = Remembering().double()
    model(data()[0])
    kept, calls = model.last, model.calls
    del model.extra
    observe(ur.analyze, model, *[data()] * 2, layer="relu")
    assert model.last is kept
    assert not model.last.is_inference()
    assert (model.calls, hasattr(model, "extra")) == (calls, False)
    model(data()[0]).sum().backward()


def test_an_analysis_inside_inference_mode():
    net = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, LABELS)).double()
    outside, _ = observe(ur.analyze, net, *[data()] * 2, layer="1")
    with torch.inference_mode():
        inside, _ = observe(ur.analyze, net, *[data()] * 2, layer="1")
        assert torch.is_inference_mode_enabled()
    np.testing.assert_array_equal(inside.data.loss, outside.data.loss)
    assert inside.data.attrs["plan"] == "additive"


def test_a_sparse_buffer_is_left_alone():
    net = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, LABELS)).double()
    net.register_buffer("graph", torch.eye(4).double().to_sparse())
    before = net.graph
    assert_right(net, "1", "additive")
    assert net.graph is before


def test_a_scripted_module_is_refused_with_the_remedy():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(nn.Linear(5, 6))
    net = nn.Sequential(scripted, nn.ReLU(), nn.Linear(6, LABELS))
    said = r"scripted \(module '0'\) and cannot be hooked; give the model it was scripted from"
    with pytest.raises(ur.InputError, match=said):
        ur.analyze(net, data(), data(), layer="1")


class Wide(nn.Module):
    """Computes in one precision and gives its logits in a wider one."""

    def __init__(self, inside, outside):
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.relu, self.out = nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, LABELS)
        self.to(inside)
        self.outside = outside

    def forward(self, x):
        hidden = self.relu(self.hidden(x.to(self.hidden.weight.dtype)))
        return self.out(hidden).to(self.outside)


@pytest.mark.parametrize(
    ("inside", "outside"),
    [(torch.float32, torch.float64), (torch.bfloat16, torch.float32)],
)
def test_logits_wider_than_what_they_were_computed_in_keep_their_plan(inside, outside):
    found, notes = observe(ur.analyze, Wide(inside, outside), *[data()] * 2, layer="relu")
    assert (found.data.attrs["plan"], notes) == ("additive", [])


def test_layers_that_the_first_samples_do_not_feel_are_checked_on_more():
    x, y = data()
    x[0] = x[-1] = -100 * torch.ones(5).double()
    net = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, LABELS)).double()
    net[0].weight.data.abs_()
    found, notes = observe(ur.analyze, net, (x, y), (x, y), layer="1")
    assert found.provenance["self_check"]["conclusive"]
    assert notes == []


class OfSign(nn.Module):
    """Tells 0 from -0, which a negative unit times 0 would give."""

    def __init__(self, read):
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.act, self.head = nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, LABELS)
        self.read = read

    def forward(self, x):
        return self.head(self.read(self.act(self.fc(x))))


@pytest.mark.parametrize(
    "read",
    [
        lambda z: torch.atan2(z, -torch.ones_like(z)),
        lambda z: torch.copysign(torch.ones_like(z), z),
        lambda z: torch.tanh(1 / z),
    ],
)
def test_an_ablated_unit_is_zero_and_not_minus_zero(read):
    assert_right(OfSign(read), "act")


class Squeezed(nn.Module):
    """One sample alone loses its axis too."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.act, self.head = nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, LABELS)

    def forward(self, x):
        return self.head(self.act(self.fc(x))[:, :, None, None].squeeze())


class Kept(Squeezed):
    """The same, as it is meant."""

    def forward(self, x):
        return self.head(self.act(self.fc(x)))


@pytest.mark.parametrize("count", [24, 3])
def test_a_squeeze_that_takes_the_axis_of_one_sample(count):
    train, test = data(count), data(count, seed=1)
    options = {"layer": "act", "progress": False}
    found, wanted = (ur.analyze(m().double(), train, test, **options) for m in (Squeezed, Kept))
    np.testing.assert_allclose(found.data.loss, wanted.data.loss, rtol=1e-12)
    one, other = (ur.single_unit_ablation(m().double(), train, **options) for m in (Squeezed, Kept))
    np.testing.assert_allclose(one.loss_change, other.loss_change, atol=1e-12)


class GradientsOn(Squeezed):
    def forward(self, x):
        torch.set_grad_enabled(True)
        return self.head(self.act(self.fc(x)))


def test_a_forward_that_switches_gradients_on():
    x, y = data()
    found = ur.analyze(GradientsOn().double(), (x, y), data(seed=1), layer="act", progress=False)
    wanted = reference.analyze(Kept().double(), "act", (x, y), data(seed=1))
    np.testing.assert_allclose(found.data.loss, wanted.loss, rtol=1e-9)


class OneUnitApart(Kept):
    """A single unit leaves the others: a gate, a product of two, a condition."""

    def forward(self, x):
        z = self.act(self.fc(x))
        pair = torch.stack([z[:, 1] * z[:, 2], (z[:, 3] > 0.5).to(z)], 1)
        return self.head(torch.cat([z[:, :4].tanh(), pair], 1)) * z[:, 0].sigmoid()[:, None]


def test_a_single_unit_that_leaves_the_others_keeps_the_faster_plan():
    assert_right(OneUnitApart(), "act", "suffix")


def test_a_sum_that_stumbles_costs_no_more_than_the_sum(monkeypatch):
    def stumble(*given):
        raise ZeroDivisionError("a stumble")

    monkeypatch.setattr("unitroles.engine.choice.recognise", stumble)
    assert_right(Kept(), "act", "suffix")


class ReadByAnotherName(Kept):
    """What the layer gives is its input too, written over; one sample of many reads that."""

    def __init__(self):
        super().__init__()
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        inner = self.fc(x)
        z = self.act(inner)
        return self.head(z) + torch.where(x[:, :1] > 2.5, 3 * inner[:, :1], 0.0)


def test_an_output_that_few_samples_read_by_another_name_is_ablated_where_its_layer_gives_it():
    (x, y), test = data(), data(seed=1)
    x = x.clamp(max=2.0)
    x[7, 0] = 3.0
    net = ReadByAnotherName().double()
    found = ur.analyze(net, (x, y), test, layer="act", progress=False)
    wanted = reference.analyze(net, "act", (x, y), test)
    np.testing.assert_allclose(found.data.loss, wanted.loss, rtol=1e-9)
