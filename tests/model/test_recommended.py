"""The recommended layer: the last value before the classifier on every path to the logits."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import unitroles as ur
from forcing import find
from unitroles.model.flow import Flow, Value, before_mixing, on_every_path

pytestmark = pytest.mark.usefixtures("one_thread")


class Conv(nn.Module):
    """What follows ends in 6 maps; a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.act = nn.Conv2d(3, 6, 3, padding=1), nn.ReLU()
        self.out = nn.Linear(6, 3)

    def features(self, x: Tensor) -> Tensor:
        return self.act(self.stem(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.features(x).mean((2, 3)))


class Gated(Conv):
    """Squeeze and excitation: the gate's activation ends later than that of the maps."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.Conv2d(6, 2, 1), nn.ReLU(), nn.Conv2d(2, 6, 1), nn.Sigmoid())
        self.scaled = nn.Identity()

    def features(self, x: Tensor) -> Tensor:
        x = super().features(x)
        return self.scaled(x * self.gate(x.mean((2, 3), keepdim=True)))


class Branches(Conv):
    """As Inception and SqueezeNet: the end of a branch is not all of the units."""

    def __init__(self) -> None:
        super().__init__()
        self.small, self.large = nn.Conv2d(6, 2, 1), nn.Conv2d(6, 4, 3, padding=1)
        self.first, self.second = nn.ReLU(), nn.ReLU()
        self.both = nn.Identity()

    def features(self, x: Tensor) -> Tensor:
        x = super().features(x)
        return self.both(torch.cat([self.first(self.small(x)), self.second(self.large(x))], 1))


class Written(Branches):
    """The same, each branch written to its place."""

    def features(self, x: Tensor) -> Tensor:
        x = Conv.features(self, x)
        whole = torch.zeros_like(x)
        whole[:, :2] = self.first(self.small(x))
        whole[:, 2:] = self.second(self.large(x))
        return self.both(whole)


class Dense(Conv):
    """As DenseNet: the last activation is a bottleneck's; the one after the norm a function."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.relu = nn.Conv2d(6, 4, 1), nn.ReLU()
        self.grow, self.norm = nn.Conv2d(4, 3, 3, padding=1), nn.BatchNorm2d(9)
        self.out = nn.Linear(9, 3)

    def features(self, x: Tensor) -> Tensor:
        x = super().features(x)
        x = torch.cat([x, self.grow(self.relu(self.narrow(x)))], 1)
        return F.relu(self.norm(x), inplace=True)


class Unused(Conv):
    """As SigLIP: a head that runs last and reaches no logits."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.gelu = nn.Linear(6, 9), nn.GELU()

    def features(self, x: Tensor) -> Tensor:
        x = super().features(x)
        self.gelu(self.head(x.mean((2, 3))))
        return x


class TwoHeads(Conv):
    """The classifiers are averaged: neither is on every path."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x).mean((2, 3))
        return (self.out(x) + self.other(x)) / 2


class Functional(Conv):
    """The classifier is a product, and the last module is the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x).mean((2, 3)) @ self.weight


class Hidden(Conv):
    """As VGG: hidden vectors behind the last maps."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


class FlatRows(nn.Module):
    """As OPT: the last activation has a row for every token; an activation of its own as well."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.up, self.down = nn.Embedding(20, 6), nn.Linear(6, 9), nn.Linear(9, 6)
        self.act, self.own, self.norm = nn.ReLU(), Own(), nn.LayerNorm(6)
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        found = self.table(x)
        rows = self.down(self.own(self.act(self.up(found.flatten(0, 1)))))
        found = self.norm(found + rows.view_as(found))
        last = (x != 0).sum(1) - 1  # where a text ends depends on the tokens alone
        return self.out(found)[torch.arange(len(x)), last]


class Own(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.tanh(x)


class Pooled(FlatRows):
    """As BERT: one vector after the tokens, whose activation is a function; texts are masked."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.drop = nn.Linear(6, 7), nn.Dropout(0.1)
        self.out = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        found, mask = self.norm(self.table(x)), (x != 0).float()[..., None]
        mean = (found * mask).sum(1) / mask.sum(1)
        return self.out(self.drop(torch.tanh(self.pool(mean))))


PICTURES, TEXTS = torch.randn(2, 3, 6, 6), torch.randint(1, 20, (2, 8))
CASES = {
    "plain": (Conv, PICTURES, "act", 6),
    "gate": (Gated, PICTURES, "scaled", 6),
    "branches": (Branches, PICTURES, "both", 6),
    "branches in place": (Written, PICTURES, "both", 6),
    "dense": (Dense, PICTURES, "norm", 9),
    "unused head": (Unused, PICTURES, "act", 6),
    "two heads": (TwoHeads, PICTURES, "act", 6),
    "functional classifier": (Functional, PICTURES, "act", 6),
    "hidden vectors": (Hidden, PICTURES, "act", 6),
    "rows of tokens": (FlatRows, TEXTS, "norm", 6),
    "pooled": (Pooled, TEXTS, "drop", 7),
}


@pytest.mark.parametrize("case", CASES)
def test_the_last_value_on_every_path_is_recommended_with_its_reason(case):
    make, example, layer, units = CASES[case]
    model = make().eval()
    site = find(model, None, example)
    assert (site.path, site.units) == (layer, units)
    frame = ur.layers(model, example)
    (row,) = frame[frame.recommended].itertuples()
    assert (row.layer, row.units) == (layer, units)
    said = "recommended: the last (value|feature map) that every path to the logits goes through"
    assert (
        frame.note.str.fullmatch(said + ", before the classifier.*").tolist()
        == (frame.layer == layer).tolist()
    )
    activated = case in ("plain", "unused head", "two heads", "functional classifier", "pooled")
    activated = activated or case == "hidden vectors"
    assert row.note.endswith(" and after its activation") == activated


class Watched(Conv):
    """No mode is borne while it runs: compiled parts are such."""

    def forward(self, x: Tensor) -> Tensor:
        if torch._C._len_torch_dispatch_stack():
            raise RuntimeError("not under a mode")
        return super().forward(x)


def test_where_a_forward_cannot_be_followed_the_last_activation_is_taken():
    frame = ur.layers(Watched(), PICTURES)
    (note,) = frame.note[frame.recommended]
    assert frame.layer[frame.recommended].tolist() == ["act"]
    assert note == (
        "recommended: the last activation with units; no layer is on every path to the logits"
    )


@given(st.lists(st.sets(st.integers(0, 11), max_size=3), min_size=1, max_size=12))
def test_values_on_every_path_are_those_whose_removal_cuts_it(sources):
    values = []
    for number, given_ in enumerate(sources):
        below = tuple(sorted(source for source in given_ if source < number))
        values.append(Value("add" if below else "input", below, True))
    end = len(values) - 1

    def reaches(without: int) -> bool:
        open_ = [end] if end != without else []
        while open_:
            number = open_.pop()
            if values[number].operation == "input":
                return True
            open_ += [source for source in values[number].sources if source != without]
        return False

    expected = [number for number in range(end, -1, -1) if not reaches(number)]
    assert on_every_path(values, end) == expected


def test_what_is_written_in_place_is_followed():
    x = torch.randn(2, 4)
    with torch.no_grad(), Flow() as flow:
        flow.begin([x])
        first, whole = x * 2, torch.zeros(2, 4)
        view = whole[:, 1:3]
        view.copy_(first[:, :2])
        whole.relu_()
        end = flow.value_of(whole @ torch.randn(4, 2))
    assert end is not None
    names = [flow.values[number].operation for number in on_every_path(flow.values, end)]
    assert names[:3] == ["mm", "relu", "copy"]
    assert {"mul", "input"} <= set(names)
    before = before_mixing(flow.values, end)
    assert end not in before
    assert {flow.values[number].operation for number in before} >= {"relu", "mul"}


def test_the_recommended_layer_warns_of_nothing():
    x, y = torch.randn(9, 3, 6, 6), torch.arange(9) % 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = ur.analyze(Gated(), (x, y), (x, y), progress=False)
    assert found.layer == "scaled"
