"""Which axis of an output counts the units, where two axes have one size or no module tells."""

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reference
import unitroles as ur
from forcing import find, quietly
from unitroles.report.text import layer_table

pytestmark = pytest.mark.usefixtures("one_thread")


class Block(nn.Module):
    """A residual block of maps that computes with its channels last."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(units), nn.Linear(units, units)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(self.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


class Maps(nn.Module):
    """As ConvNeXt: as many units as rows and columns, for pictures of 8 x 8."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.out = nn.Conv2d(3, 8, 3, padding=1), Block(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.block(self.stem(x)).amax((2, 3)))


class LastMaps(nn.Module):
    """As MambaOut: maps with their channels last, made by modules of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.move, self.gate = nn.Conv2d(3, 7, 3, padding=1), Moved(), LastGate(7)
        self.out = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.gate(self.move(self.stem(x))).mean((1, 2)))


class Moved(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


class LastGate(nn.Module):
    def __init__(self, units: int) -> None:
        super().__init__()
        self.both = nn.Linear(units, 2 * units)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.both(x).chunk(2, dim=-1)
        return x + F.gelu(gate) * value


class Series(nn.Module):
    """Channels after a GLU, a chunk and a concatenation in a network over time."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv, self.glu = nn.Conv1d(4, 20, 3, padding=1), nn.GLU(1)
        self.drop, self.out = nn.Dropout(0.1), nn.Linear(20 if how == "cat" else 10, 3)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.how == "glu":
            x = self.glu(x)
        elif self.how == "chunk":
            first, second = x.chunk(2, dim=1)
            x = first.relu() - second
        else:
            x = torch.cat([x[:, :10].relu(), x[:, 10:].tanh()], dim=1)
        return self.out(self.drop(x).mean(2))


class Tokens(nn.Module):
    """As many tokens as units, and only texts of this length are taken: weights tell the axis."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(20, 6), nn.Parameter(torch.randn(6, 6))
        self.blocks = nn.ModuleList(TokenBlock() for _ in range(2))
        self.norm, self.out = nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.table(x) + self.places
        for block in self.blocks:
            x = block(x)
        return self.out(self.norm(x).mean(1))


class TokenBlock(nn.Module):
    """Turns its tokens at the end, so that the module before it tells nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.wide = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.wide(x).relu() + self.mix(x.transpose(1, 2)).transpose(1, 2)


PICTURES, SERIES = (3, 8, 8), (4, 17)
CASES = {
    "channels last inside, 8 x 8 x 8": (Maps, PICTURES, "block", 1, 8),
    "channels last, one's own": (LastMaps, (3, 6, 6), "gate", 3, 7),
    "channels last, 7 x 7 x 7": (LastMaps, (3, 7, 7), "gate", 3, 7),
    "moved, 7 x 7 x 7": (LastMaps, (3, 7, 7), "move", 3, 7),
    "glu": (lambda: Series("glu"), SERIES, "glu", 1, 10),
    "dropout after a glu": (lambda: Series("glu"), SERIES, "drop", 1, 10),
    "dropout after a chunk": (lambda: Series("chunk"), SERIES, "drop", 1, 10),
    "dropout after a concatenation": (lambda: Series("cat"), SERIES, "drop", 1, 20),
    "as many steps as channels": (lambda: Series("chunk"), (4, 10), "drop", 1, 10),
}


def data(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    drawn = torch.randn(9, *shape, generator=torch.Generator().manual_seed(5))
    return drawn.double(), torch.arange(9) % 3


@pytest.mark.parametrize("case", CASES)
def test_the_axis_is_found_and_the_losses_are_those_of_the_twin(case):
    make, shape, layer, axis, units = CASES[case]
    torch.manual_seed(1)
    model, split = make().double().eval(), data(shape)
    site = find(model, layer, split[0][:2])  # a guess would be a warning, hence an error
    assert (site.axis, site.units, site.guessed) == (axis, units, False)
    found = quietly(ur.analyze, model, split, split, layer=layer)
    wanted = reference.analyze(model, layer, split, split, axis=axis)
    np.testing.assert_allclose(found.data.loss, wanted.loss, rtol=0, atol=1e-10)
    np.testing.assert_allclose(found.data.score, wanted.score, rtol=1e-10)


@pytest.mark.parametrize("layer", ["blocks.0", "blocks.1"])
def test_weights_that_take_the_values_tell_the_axis(layer):
    site = find(Tokens(), layer, torch.randint(0, 20, (2, 6)))
    assert (site.axis, site.units) == (2, 6)


class Square(nn.Module):
    """Nothing tells: as many rows as units, one size only, and no weights before the end."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.turn = nn.Linear(5, 36), Turned()
        self.out = nn.Linear(36, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.turn(self.hidden(x)).flatten(1))


class Turned(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(-1, 6, 6).transpose(1, 2)


def test_an_axis_that_nothing_tells_is_said_to_be_a_guess_and_not_recommended():
    x, y = data((5,))
    model = Square().double()
    with pytest.warns(ur.PlanWarning, match="axis 2 of layer 'turn' is a guess"):
        ur.analyze(model, (x, y), (x, y), layer="turn", progress=False)
    frame = ur.layers(model, x[:2])
    notes = frame.set_index("layer").note
    assert notes["turn"] == "the axis is a guess: give Layer(path, axis=...)"
    assert notes["hidden"].startswith("recommended: the last value")
    text = layer_table(frame)
    assert "2?" in text
    assert "? = a guess" in text
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find(model, None, x[:2]).path == "hidden"
        assert find(model, ur.Layer("turn", axis=1), x[:2]).axis == 1


def test_looking_at_other_sizes_leaves_no_trace():
    class Counting(Series):
        def forward(self, x: Tensor) -> Tensor:
            self.lengths = [*getattr(self, "lengths", []), x.shape[2]]
            return super().forward(x)

    model = Counting("glu").double()
    before = torch.random.get_rng_state()
    find(model, "glu", data(SERIES)[0][:2])
    assert not hasattr(model, "lengths")
    assert torch.equal(before, torch.random.get_rng_state())


def test_what_a_model_keeps_of_another_size_is_gone_before_it_runs_again():
    """As Swin of transformers, whose windows never grow again."""

    class Shrinking(Series):
        window = 100

        def forward(self, x: Tensor) -> Tensor:
            self.window = min(self.window, x.shape[2])
            return super().forward(x[..., : self.window])

    torch.manual_seed(1)
    model, split = Shrinking("glu").double().eval(), data(SERIES)
    found = quietly(ur.analyze, model, split, split, layer="glu")
    losses = F.cross_entropy(model(split[0]), split[1], reduction="none").detach()
    own = losses.view(3, 3).mean(0)  # the samples of a class stand three apart
    np.testing.assert_allclose(found.data.loss[0, :, -1], own, rtol=0, atol=1e-10)
    assert model.window == SERIES[1]


def test_convnext_of_transformers_has_its_channels_as_units():
    transformers = pytest.importorskip("transformers")
    config = transformers.ConvNextConfig(
        hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1], num_labels=3
    )
    model = transformers.ConvNextForImageClassification(config)
    pictures = {"pixel_values": torch.randn(2, 3, 128, 128)}  # stage 1 is 16 x 16 x 16
    site = find(model, "convnext.encoder.stages.1.layers.0", pictures)
    assert site.shape == (2, 16, 16, 16)
    assert site.axis == 1
