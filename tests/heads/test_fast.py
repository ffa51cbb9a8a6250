"""A faster graph gives what the graph gave, whatever it is made of."""

import copy

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

import heads
from forcing import find
from unitroles.graph.constants import Constants
from unitroles.graph.extract import CannotCut
from unitroles.heads import fast as module
from unitroles.heads.fast import fast, without_norms
from unitroles.heads.head import head_after
from unitroles.model.borrow import untouched
from unitroles.rewrite.export import export

pytestmark = pytest.mark.usefixtures("one_thread")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
"""Of the largest result; what is folded and multiplied in another order is rounded otherwise."""
ROWS = 5


def graph_after(net, layer, x):
    """The graph of a head, and values for it."""
    site = find(net, layer, x)
    with untouched(net), torch.no_grad():
        head = head_after(export(net, [site], x), 0)
    places = head.after.graph.find_nodes(op="placeholder")
    values = [place.meta["val"] for place in places]
    drawn = torch.Generator().manual_seed(0)
    return head.after, [
        torch.randn(ROWS, *value.shape[1:], generator=drawn).to(value.dtype) for value in values
    ]


def assert_same(graph, values):
    """The same numbers, and what the graph was given is as it was."""
    before = [value.clone() for value in values]
    with torch.inference_mode():
        wanted = graph(*values)
        quick = fast(graph, Constants())
        for given in (values, [last(value) for value in values]):
            found = quick(*given)
            assert found.shape == wanted.shape
            off = float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30))
            assert off <= TOLERANCE[wanted.dtype], off
    for value, old in zip(values, before, strict=True):
        torch.testing.assert_close(value, old, rtol=0, atol=0)
    return quick


def last(value):
    """With its channels last, as masked copies of images are."""
    return value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value


@pytest.mark.property
@settings(max_examples=30)
@given(
    draws=st.lists(st.integers(0, len(heads.OPS) - 1), min_size=1, max_size=6),
    single=st.booleans(),
)
@example(draws=[], single=True)
def test_random_graphs_give_the_same(draws, single):
    net = heads.Net(draws, True)
    x = heads.example(3)
    if single:
        net, x = net.float(), x.float()
    try:
        graph, values = graph_after(net, "layer", x)
    except (CannotCut, RuntimeError):
        assert single  # a number in float64 beside values in float32
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_LEAST_PRODUCT", 1)
        assert_same(graph, values)


def norm(width):
    made = nn.BatchNorm2d(width)
    nn.init.normal_(made.weight)
    nn.init.normal_(made.bias)
    made.running_mean.normal_()
    made.running_var.uniform_(1e-3, 2.0)
    return made


class Net(nn.Module):
    """A layer that nothing acts on alone, and what follows."""

    def __init__(self, *rest, positions=True):
        super().__init__()
        self.layer, self.rest = nn.Conv2d(2, 6, 1), nn.Sequential(*rest)
        self.positions = positions

    def forward(self, x):
        x = self.layer(x).softmax(1)
        x = self.rest(x if self.positions else x.flatten(1))
        return x.flatten(1)[:, :5]


def calls(graph):
    return [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]


CONVOLUTIONS = {
    "one position": (nn.Conv2d(6, 8, 1), (4, 4), ["linear"]),
    "one position in two": (nn.Conv2d(6, 8, 1, stride=2, bias=False), (5, 4), ["linear"]),
    "wide": (nn.Conv2d(6, 8, 3, padding=1), (5, 6), ["conv2d"]),
    "short rows": (nn.Conv2d(6, 8, 3, padding=1, stride=2), (6, 6), ["conv2d"]),
    "map smaller than the kernel": (nn.Conv2d(6, 8, 3, padding=1), (2, 2), ["linear"]),
    "smaller, with a stride": (nn.Conv2d(6, 8, 3, 2, 1, bias=False), (2, 3), ["linear"]),
    "smaller, dilated": (nn.Conv2d(6, 8, 3, 1, 2, dilation=2), (2, 2), ["linear"]),
    "of two sides": (nn.Conv2d(6, 8, (1, 5), padding=(0, 2)), (1, 4), ["linear"]),
    "groups": (nn.Conv2d(6, 6, 3, padding=1, groups=3), (2, 2), ["conv2d"]),
}


@pytest.mark.parametrize("folded", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_in_another_form(name, dtype, folded, monkeypatch):
    monkeypatch.setattr(module, "_LEAST_PRODUCT", 1)
    convolution, size, becomes = CONVOLUTIONS[name]
    torch.manual_seed(0)
    rest = [copy.deepcopy(convolution), *([norm(convolution.out_channels)] * folded), nn.ReLU()]
    net = Net(*rest).to(dtype).eval()
    graph, values = graph_after(net, "layer", torch.randn(3, 2, *size, dtype=dtype))
    quick = assert_same(graph, values)
    names = calls(quick)
    assert ("batch_norm" in " ".join(calls(graph))) == folded
    assert "batch_norm" not in " ".join(names)
    products = [n for n in names if "linear" in n or "conv" in n]
    assert len(products) == 1
    alone = name.startswith("one position") and dtype == torch.float64  # no other library there
    assert ("conv2d" if alone else becomes[0]) in products[0]
    assert ("mkldnn" in products[0]) == (dtype == torch.float32 and "linear" in products[0])


def test_a_norm_that_others_see_the_input_of_stays():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(6, 6, 3, padding=1), norm(6)

        def forward(self, x):
            inner = self.conv(x)
            return torch.relu(self.norm(inner)) + inner

    graph, values = graph_after(Net(Both()).eval(), "layer", torch.randn(3, 2, 4, 4))
    assert_same(graph, values)
    assert any("batch_norm" in name for name in calls(without_norms(graph, Constants())))


def test_what_others_need_is_not_written_over():
    class Again(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)

        def forward(self, x):
            inner = self.one(x)
            outer = torch.relu(inner)
            return torch.relu(self.two(outer) + inner) + outer + x

    graph, values = graph_after(Net(Again()).eval(), "layer", torch.randn(3, 2, 4, 4))
    quick = assert_same(graph, values)
    assert any(name.startswith("aten.add_") for name in calls(quick))
    assert "aten.relu.default" in calls(quick)


class Between(nn.Module):
    """A function of what two convolutions give."""

    def __init__(self, function):
        super().__init__()
        self.one, self.two = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.function = function

    def forward(self, x):
        return self.function(self.one(x), self.two(x), x)


NOT_OVER = {
    "read in another order": lambda a, b, x: a.permute(0, 1, 3, 2).relu() + a.mean(),
    "both orders": lambda a, b, x: torch.relu(a.permute(0, 1, 3, 2)) - a.permute(0, 1, 3, 2),
    "second with a factor": lambda a, b, x: torch.add(x, a, alpha=2),
    "smaller than the result": lambda a, b, x: a.mean((2, 3), keepdim=True).relu() + x,
    "coarser than the result": lambda a, b, x: a + x.double(),
    "itself": lambda a, b, x: a + a,
    "its own view": lambda a, b, x: a * a.permute(0, 1, 3, 2),
}


@pytest.mark.parametrize("name", NOT_OVER)
def test_only_what_is_free_and_fits_is_written_over(name):
    torch.manual_seed(0)
    net = Net(Between(NOT_OVER[name])).eval()
    graph, values = graph_after(net, "layer", torch.randn(3, 2, 4, 4))
    assert_same(graph, values)


def test_a_sum_is_written_over_its_second_part():
    net = Net(Between(lambda a, b, x: x + a)).eval()
    graph, values = graph_after(net, "layer", torch.randn(3, 2, 4, 4))
    assert any(name.startswith("aten.add_") for name in calls(assert_same(graph, values)))


def test_a_graph_that_reads_memory_keeps_its_order():
    class Strided(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(6, 6, 3, padding=1)

        def forward(self, x):
            y = self.conv(x)
            return y.as_strided((len(y), 6, 16), (96, 16, 1)).cumsum(2)

    graph, values = graph_after(Net(Strided()).eval(), "layer", torch.randn(3, 2, 4, 4))
    with torch.inference_mode():
        torch.testing.assert_close(fast(graph, Constants())(*values), graph(*values))
    assert not any("contiguous" in name for name in calls(fast(graph, Constants())))


def test_a_build_without_onednn_has_the_same_graph(monkeypatch):
    monkeypatch.setattr(module, "_LEAST_PRODUCT", 1)
    net = Net(nn.Linear(96, 8), nn.ReLU(), nn.Linear(8, 5), positions=False).eval()
    graph, values = graph_after(net, "layer", torch.randn(3, 2, 4, 4))
    assert sum("mkldnn" in name for name in calls(assert_same(graph, values))) == 2
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not any("mkldnn" in name for name in calls(assert_same(graph, values)))


def test_layers_of_one_export_share_what_is_made_of_weights():
    layers = [nn.Conv2d(6, 6, 3, padding=1), norm(6), nn.ReLU(), nn.Conv2d(6, 6, 1), nn.ReLU()]
    net = nn.Sequential(
        nn.Conv2d(2, 6, 1), nn.ReLU(), *layers, nn.Flatten(), nn.Linear(96, 3)
    ).eval()
    x = torch.randn(3, 2, 4, 4)
    with untouched(net), torch.no_grad():
        exported = export(net, [find(net, name, x) for name in ("0", "1")], x)
        heads_of = [head_after(exported, place) for place in range(2)]
        one, other = (fast(head.after, head.made) for head in heads_of)
    made = [
        {value.data_ptr() for name, value in graph.named_buffers() if "fast" in name}
        for graph in (one, other)
    ]
    assert made[0] == made[1] != set()


def test_another_weight_in_the_same_place_is_another_constant():
    made = Constants()
    found = [
        made.of("sum", lambda weight: float(weight.sum()), torch.full((3,), float(i)))
        for i in range(20)
    ]
    assert found == [3.0 * i for i in range(20)]
