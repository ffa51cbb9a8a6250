"""Which layers have units, on which axis, and which one is taken when none is named."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import networks
import reference
import unitroles as ur
from forcing import PLANS, REFUSAL, find, forced, quietly, refuse
from unitroles.cost import layers
from unitroles.engine import choice

COLUMNS = ["layer", "kind", "units", "axis", "plan", "cost", "ms_per_sample"]
COLUMNS += ["recommended", "reason", "bytes_per_sample", "note"]


pytestmark = pytest.mark.usefixtures("one_thread")


def table(model: nn.Module, example) -> dict[str, dict[str, object]]:
    """The rows of `layers` by the name of the layer."""
    frame = ur.layers(model, example)
    assert frame.columns.tolist() == COLUMNS
    assert frame.layer.is_unique
    return frame.set_index("layer").to_dict("index")


# Layer, kind, units and axis, in the order of the forward.
EXPECTED = {
    "mlp": [
        ("0", "Linear", 12, 1),
        ("1", "ReLU", 12, 1),
        ("2", "Linear", 8, 1),
        ("3", "ReLU", 8, 1),
    ],
    "conv_pool_linear": [
        ("conv", "Conv2d", 8, 1),
        ("relu", "ReLU", 8, 1),
        ("pool", "MaxPool2d", 8, 1),
        ("hidden", "Linear", 12, 1),
    ],
    "depthwise": [
        ("0.0", "Conv2d", 10, 1),
        ("0.1", "BatchNorm2d", 10, 1),
        ("0.2", "ReLU6", 10, 1),
        ("0", "Sequential", 10, 1),
        ("1.0", "Conv2d", 10, 1),
        ("1.1", "BatchNorm2d", 10, 1),
        ("1.2", "ReLU6", 10, 1),
        ("1", "Sequential", 10, 1),
        ("2", "Conv2d", 8, 1),
        ("3", "ReLU", 8, 1),
        ("4", "AdaptiveAvgPool2d", 8, 1),
        ("5", "Flatten", 8, 1),
    ],
    "relu_twice": [
        ("narrow", "Linear", 7, 1),
        ("wide", "Linear", 12, 1),
        ("relu", "ReLU", 12, 1),
    ],
    "transformer": [
        ("patches", "Conv2d", 8, 1),
        ("blocks.0.norm1", "LayerNorm", 8, 2),
        ("blocks.0.attention.qkv", "Linear", 24, 2),
        ("blocks.0.attention.out", "Linear", 8, 2),
        ("blocks.0.attention", "Attention", 8, 2),
        ("blocks.0.norm2", "LayerNorm", 8, 2),
        ("blocks.0.fc1", "Linear", 12, 2),
        ("blocks.0.gelu", "GELU", 12, 2),
        ("blocks.0.fc2", "Linear", 8, 2),
        ("blocks.0", "EncoderBlock", 8, 2),
        ("blocks.1.norm1", "LayerNorm", 8, 2),
        ("blocks.1.attention.qkv", "Linear", 24, 2),
        ("blocks.1.attention.out", "Linear", 8, 2),
        ("blocks.1.attention", "Attention", 8, 2),
        ("blocks.1.norm2", "LayerNorm", 8, 2),
        ("blocks.1.fc1", "Linear", 12, 2),
        ("blocks.1.gelu", "GELU", 12, 2),
        ("blocks.1.fc2", "Linear", 8, 2),
        ("blocks.1", "EncoderBlock", 8, 2),
        ("blocks", "Sequential", 8, 2),
        ("norm", "LayerNorm", 8, 2),
    ],
}


# Layers whose units meet in more than one op: there is no running sum.
MEET_OTHERWISE = {
    "transformer": [
        "patches",
        "blocks.0.attention.qkv",
        "blocks.0.attention.out",
        "blocks.0.attention",
        "blocks.0.fc2",
        "blocks.0",
        "blocks.1.attention.qkv",
        "blocks.1.attention.out",
        "blocks.1.attention",
    ]
}


@pytest.mark.parametrize("name", EXPECTED)
def test_every_layer_with_units_is_listed(name):
    toy = networks.toy(name)
    rows = table(toy.model, toy.train[0][:3])
    found = [(layer, row["kind"], row["units"], row["axis"]) for layer, row in rows.items()]
    assert found == EXPECTED[name]
    suffix = [layer for layer, row in rows.items() if row["plan"] == "suffix"]
    assert suffix == MEET_OTHERWISE.get(name, [])
    assert {row["plan"] for row in rows.values()} <= {"additive", "suffix"}
    assert all(row["cost"] >= 1 and row["bytes_per_sample"] > 0 for row in rows.values())


@pytest.mark.parametrize("name", sorted(networks.TOYS))
def test_the_plan_that_is_listed_is_the_one_that_is_taken(name):
    toy = networks.toy(name)
    rows = table(toy.model, toy.train[0][:2])
    found = quietly(ur.analyze_layers, toy.model, toy.train, toy.test, list(rows))
    assert len(found) == len(rows)
    for layer, taxonomy in found.items():
        assert taxonomy.data.attrs["plan"] == rows[layer]["plan"], layer
        assert taxonomy.provenance["plan"]["reason"] == rows[layer]["reason"], layer


RECOMMENDED = {
    "mlp": "3",
    "conv_pool_linear": "relu",
    "conv_bn_gap": "1.2",
    "residual": "blocks.1.relu",
    "relu_twice": "relu",
    "depthwise": "3",
    "transformer": "norm",
    "dropout_head": "1",
}


@pytest.mark.parametrize("name", RECOMMENDED)
def test_the_recommended_layer_is_the_last_activation_before_the_classifier(name):
    toy = networks.toy(name)
    site = find(toy.model, None, toy.train[0][:2])
    assert site.path == RECOMMENDED[name]


def test_exactly_one_layer_is_recommended_and_taken_by_default():
    toy = networks.toy("mlp")
    frame = ur.layers(toy.model, toy.train[0][:2])
    assert frame[frame.recommended].layer.tolist() == ["3"]
    taxonomy = ur.analyze(toy.model, toy.train, toy.test, progress=False)
    assert taxonomy.layer == "3"
    expected = reference.analyze(toy.model, "3", toy.train, toy.test)
    np.testing.assert_allclose(taxonomy.data.loss, expected.loss, rtol=0, atol=1e-5)


def test_the_cost_falls_towards_the_output_and_counts_the_masks(monkeypatch):
    monkeypatch.setattr(layers, "running_sums", refuse)
    toy = networks.toy("mlp")
    rows = table(toy.model, toy.train[0][:2])
    assert {row["plan"] for row in rows.values()} == {"suffix"}
    macs = {"0": 12 * 8 + 8 * 4, "2": 8 * 4}  # of the head; the whole net has 10 * 12 more
    for layer, head_macs in macs.items():
        masks = rows[layer]["units"] + 2
        expected = 1 + masks * head_macs / (10 * 12 + 12 * 8 + 8 * 4)
        assert rows[layer]["cost"] == pytest.approx(expected, abs=0.01)
    assert rows["1"]["cost"] > rows["3"]["cost"]


@pytest.mark.parametrize("name", ["mlp", "conv_pool_linear", "transformer"])
def test_a_running_sum_costs_less_than_masked_copies(name, monkeypatch):
    toy = networks.toy(name)
    sums = table(toy.model, toy.train[0][:2])
    monkeypatch.setattr(layers, "running_sums", refuse)
    copies = table(toy.model, toy.train[0][:2])
    assert {row["plan"] for row in copies.values()} == {"suffix"}
    additive = [layer for layer, row in sums.items() if row["plan"] == "additive"]
    assert additive
    for layer in additive:
        assert sums[layer]["cost"] < copies[layer]["cost"]


def test_a_model_that_cannot_be_cut_costs_a_run_per_mask(monkeypatch):
    monkeypatch.setattr(choice, "export", refuse)
    toy = networks.toy("mlp")
    rows = table(toy.model, toy.train[0][:2])
    assert {row["plan"] for row in rows.values()} == {"full"}
    assert {row["reason"] for row in rows.values()} == {REFUSAL}
    assert rows["1"]["cost"] == 1 + (12 + 1) + 1
    assert rows["1"]["bytes_per_sample"] == 0


def test_a_vgg_net_has_its_last_convolution_after_the_relu():
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.vgg11(num_classes=4, init_weights=False)
    assert find(model, None, torch.randn(2, 3, 32, 32)).path == "features.19"
    assert isinstance(model.features[19], nn.ReLU)
    assert not any(isinstance(module, nn.ReLU) for module in model.features[20:])


@pytest.fixture(scope="module")
def resnet():
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=4)
    return model, table(model, torch.randn(2, 3, 32, 32))


def test_every_layer_of_a_resnet_is_listed_with_its_units(resnet):
    model, rows = resnet
    assert {row["plan"] for row in rows.values()} == {"additive"}
    assert {row["axis"] for row in rows.values()} == {1}
    for layer, row in rows.items():
        stage = layer.split(".")[0]
        module = model.get_submodule(layer)
        if stage.startswith("layer"):
            assert row["units"] == 32 * 2 ** int(stage[-1])
        if isinstance(module, nn.Conv2d):
            assert row["units"] == module.out_channels
        assert row["kind"] == type(module).__name__
    assert {"conv1", "maxpool", "layer2.0.downsample.0", "layer4.1", "avgpool"} <= set(rows)
    assert "fc" not in rows


def test_the_recommended_layer_of_a_resnet_is_its_last_activation(resnet):
    model, rows = resnet
    assert [layer for layer, row in rows.items() if row["recommended"]] == ["layer4.1.relu"]
    site = find(model, None, torch.randn(2, 3, 32, 32))
    assert (site.path, site.call, site.units) == ("layer4.1.relu", 1, 512)


def test_early_layers_of_a_resnet_cost_more(resnet):
    _, rows = resnet
    assert 1 <= rows["layer4.1.relu"]["cost"] < 1.1
    assert rows["layer3.0.conv1"]["cost"] > 20 * rows["layer4.1.relu"]["cost"]


class LastChannels(nn.Module):
    """Feature maps (samples, height, width, units) between two permutations."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 5, 3, padding=1)
        self.norm = nn.LayerNorm(5)
        self.wide = nn.Linear(5, 7)
        self.act = nn.GELU()
        self.drop = nn.Dropout(0.1)
        self.classifier = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x).permute(0, 2, 3, 1))
        return self.classifier(self.drop(self.act(self.wide(x))).mean(dim=(1, 2)))


@pytest.mark.parametrize(
    ("layer", "units", "axis"),
    [("conv", 5, 1), ("norm", 5, 3), ("wide", 7, 3), ("act", 7, 3), ("drop", 7, 3)],
)
def test_the_unit_axis_follows_the_channels(layer, units, axis):
    site = find(LastChannels(), layer, torch.randn(2, 1, 6, 6))
    assert (site.units, site.axis) == (units, axis)


# As many rows and columns as units, so that the size cannot tell the axis.
@pytest.mark.parametrize(
    ("module", "shape", "axis"),
    [
        (nn.Linear(4, 4), (2, 4), 1),
        (nn.Linear(4, 4), (2, 4, 4), 2),
        (nn.Linear(4, 4), (2, 4, 4, 4), 3),
        (nn.Conv1d(4, 4, 1), (2, 4, 4), 1),
        (nn.Conv2d(4, 4, 1), (2, 4, 4, 4), 1),
        (nn.ConvTranspose2d(4, 4, 1), (2, 4, 4, 4), 1),
        (nn.BatchNorm2d(4), (2, 4, 4, 4), 1),
        (nn.GroupNorm(2, 4), (2, 4, 4, 4), 1),
        (nn.LayerNorm(4), (2, 4, 4), 2),
        (nn.LayerNorm(4), (2, 4, 4, 4), 3),
    ],
)
def test_the_kind_of_module_tells_its_unit_axis(module, shape, axis):
    model = nn.Sequential(module, nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.LazyLinear(3))
    example = torch.randn(shape)
    model(example)
    for layer in ("0", "1", "2"):
        assert find(model, layer, example).axis == axis


def test_the_axis_may_be_given():
    example = torch.randn(2, 1, 6, 6)
    for axis, units in ((1, 5), (2, 6), (-1, 6), (-3, 5)):
        site = find(LastChannels(), ur.Layer("conv", axis=axis), example)
        assert (site.units, site.axis) == (units, axis % 4)


@pytest.mark.parametrize("plan", PLANS)
def test_units_on_another_axis_equal_the_twin(plan):
    torch.manual_seed(0)
    model, labels = LastChannels().double(), torch.arange(12) % 3
    drawn = torch.randn(2, 12, 1, 6, 6, dtype=torch.float64)
    splits = (drawn[0], labels), (drawn[1], labels)
    for layer in (ur.Layer("act"), ur.Layer("conv", axis=2)):
        with forced(plan):
            taxonomy = quietly(ur.analyze, model, *splits, layer=layer)
        axis = 3 if layer.axis is None else layer.axis
        expected = reference.analyze(model, layer.path, *splits, axis=axis)
        np.testing.assert_allclose(taxonomy.data.loss, expected.loss, rtol=0, atol=1e-10)
        np.testing.assert_allclose(taxonomy.data.score, expected.score, rtol=1e-10)


def test_a_layer_may_be_given_as_a_module():
    toy = networks.toy("residual")
    example = toy.train[0][:2]
    site = find(toy.model, toy.model.blocks[1].bn2, example)
    assert site == find(toy.model, "blocks.1.bn2", example)
    with pytest.raises(ur.InputError, match="the ReLU given as layer is no part of the model"):
        find(toy.model, nn.ReLU(), example)


@pytest.mark.parametrize(("call", "units"), [(-1, 12), (-2, 7), (0, 7), (1, 12)])
def test_a_module_called_twice_has_units_for_each_call(call, units):
    toy = networks.toy("relu_twice")
    site = find(toy.model, ur.Layer("relu", call=call), toy.train[0][:2])
    assert (site.units, site.call) == (units, call % 2)


@pytest.mark.parametrize("call", [2, -3])
def test_a_call_that_does_not_happen_is_refused(call):
    toy = networks.toy("relu_twice")
    said = rf"layer 'relu' is called 2 time\(s\) in one forward, there is no call {call}"
    with pytest.raises(ur.InputError, match=said):
        find(toy.model, ur.Layer("relu", call=call), toy.train[0][:2])


def test_a_module_under_two_names_is_found_by_both():
    model = nn.Sequential(nn.Linear(10, 6), nn.ReLU(), nn.Linear(6, 3))
    model.add_module("again", nn.Identity())
    model[3] = model[1]
    example = torch.randn(2, 10)
    assert find(model, "1", example).module is find(model, "again", example).module


class Odd(nn.Module):
    """Outputs that carry no units."""

    def __init__(self):
        super().__init__()
        self.pair = Pair()
        self.flat = nn.Flatten(0)
        self.unused = nn.ReLU()
        self.classifier = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.flat(x)
        return self.classifier(self.pair(x)[0])


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (ur.Layer("pair"), "'pair' has no unit axis: its output is no single"),
        (ur.Layer("flat"), r"'flat' has no unit axis: its output is shape \(20,\)"),
        (ur.Layer("unused"), "'unused' is not called in the model's forward; name"),
        (ur.Layer("classifer"), "unknown layer 'classifer'; did you mean classifier"),
        (ur.Layer(""), "unknown layer ''; known: pair, flat"),
        (ur.Layer("classifier", axis=0), "axis 0 of layer 'classifier' cannot count units"),
        (ur.Layer("classifier", axis=2), r"axis 2 of layer 'classifier' cannot.*shape \(2, 3\)"),
        (ur.Layer("classifier", axis=-2), "axis -2 of layer 'classifier' cannot count units"),
    ],
)
def test_a_layer_that_cannot_be_taken_is_refused(layer, said):
    with pytest.raises(ur.InputError, match=said):
        find(Odd(), layer, torch.randn(2, 10))


def test_layers_without_units_are_not_listed():
    with pytest.raises(ur.InputError, match="no layer with units before its output; name one with"):
        ur.layers(Odd(), torch.randn(2, 10))


def test_an_example_of_one_input_is_refused():
    toy = networks.toy("mlp")
    with pytest.raises(ur.InputError, match="example batch of at least two inputs"):
        ur.layers(toy.model, toy.train[0][:1])


def test_an_example_of_another_shape_is_refused():
    toy = networks.toy("mlp")
    with pytest.raises(ur.InputError, match=r"cannot take a batch of shape \(2, 9\) float32"):
        ur.layers(toy.model, torch.randn(2, 9))


class FunctionalNet(nn.Module):
    """Activations are functions, not modules; the block's output is after the last of them."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(1, 6, 3), FunctionalRelu())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.drop = nn.Dropout()
        self.linear = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.drop(self.pool(self.block(x)).flatten(1)))


class FunctionalRelu(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.relu(x)


def test_without_activation_modules_the_last_layer_before_pooling_is_recommended():
    model = FunctionalNet()
    assert find(model, None, torch.randn(2, 1, 6, 6)).path == "block.1"


def test_an_axis_taken_from_the_shape_alone_is_said():
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(2, 7, 3, padding=1)
            self.pool = nn.MaxPool1d(2)
            self.own = FunctionalRelu()
            self.linear = nn.Linear(21, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(self.own(self.pool(nn.functional.relu(self.conv(x))) + 0).flatten(1))

    x, y = torch.randn(12, 2, 6), torch.arange(12) % 3
    taxonomy = ur.analyze(Mixed(), (x, y), (x, y), layer="pool", progress=False)
    assert taxonomy.data.sizes["unit"] == 7

    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own = FunctionalRelu()
            self.linear = nn.Linear(12, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(self.own(x).flatten(1))

    with pytest.warns(ur.PlanWarning, match="axis 2 of layer 'own' is a guess"):
        ur.analyze(Bare(), (x, y), (x, y), layer="own", progress=False)


def test_a_layer_whose_first_axis_is_not_the_samples_is_refused():
    class TimeFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.linear = nn.Linear(3, 5), nn.Linear(5, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(self.hidden(x.transpose(0, 1)).relu().mean(0))

    x, y = torch.randn(12, 2, 3), torch.arange(12) % 3  # as many steps as the probe has samples
    with pytest.raises(ur.InputError, match="does not count the samples"):
        ur.analyze(TimeFirst(), (x, y), (x, y), layer="hidden", progress=False)


def test_a_norm_over_channels_and_positions_keeps_the_channels_as_units():
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.LayerNorm([6, 8, 8]),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )
    frame = ur.layers(net, torch.randn(2, 2, 8, 8)).set_index("layer")
    assert frame.loc["2", "units"] == 6
    assert frame.loc["2", "axis"] == 1
