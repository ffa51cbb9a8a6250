"""Models of timm and transformers: random weights from their own configs, nothing downloaded."""

from functools import cache, partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import families
import reference
import unitroles as ur
from forcing import quietly

timm = pytest.importorskip("timm", reason="timm is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

pytestmark = pytest.mark.usefixtures("one_thread")

LABELS = torch.tensor([0, 0, 1, 1, 2, 2])
SIDE = 32


class Plain(nn.Module):
    """A model of transformers as the literal twin takes them: one tensor in, logits out."""

    def __init__(self, inner: nn.Module, *names: str):
        super().__init__()
        self.inner, self.names = inner, names

    def forward(self, x: Tensor) -> Tensor:
        values = x.unbind(1) if len(self.names) > 1 else [x]
        return self.inner(**dict(zip(self.names, values, strict=True))).logits


def matter(net: nn.Module, batch: Tensor | None = None) -> nn.Module:
    """In float64, with weights under which every layer moves the logits."""
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        net = net.double().eval().requires_grad_(False)
        families.draw(net)
    if batch is not None:
        families.take_statistics(net, batch)
    return net


def images(seed: int, side: int = SIDE) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(len(LABELS), 3, side, side, generator=draw).double(), LABELS


def rows(split: tuple[Tensor, Tensor], *names: str) -> list[dict]:
    """As a data set of Hugging Face hands them out."""
    inputs, labels = split
    values = [x.unbind(0) if len(names) > 1 else [x] for x in inputs]
    return [
        {**dict(zip(names, value, strict=True)), "labels": int(label)}
        for value, label in zip(values, labels, strict=True)
    ]


def assert_clone_and_zero(found, model, layer, splits, axis, score=reference.score):
    """Scores, and some points of every curve."""
    units = found.sizes["unit"]
    for split, (inputs, labels) in enumerate(splits):
        for place, label in enumerate(found.label_index.values.tolist()):
            own, curve = inputs[labels == label], found.isel(split=split, label=place)
            np.testing.assert_allclose(curve.score, score(model, layer, own, axis), rtol=1e-9)
            for n in (0, 1, units // 2, units - 1, units):
                retrieved = curve.order.values[:n]
                loss, hits = reference.performance(model, layer, own, label, retrieved, axis)
                np.testing.assert_allclose(curve.loss[n], loss, rtol=1e-9, atol=1e-9)
                assert curve.accuracy[n] == hits
    assert np.ptp(found.loss.values, axis=2).min() > 1e-3


@cache
def timm_model(name: str, **options) -> nn.Module:
    with torch.random.fork_rng([]):
        net = timm.create_model(name, num_classes=3, **options)
    return matter(net, images(0)[0])


TIMM = {
    "test_resnet": {"layer1.0.act1": 1, "layer4.0.act2": 1},
    "test_convnext": {"stages.0.blocks.0.mlp.act": 3, "head.norm": 1},
    "test_efficientnet": {"blocks.1.0.bn2.act": 1, "blocks.3.0.se.gate": 1, "bn2.act": 1},
    "test_vit": {"blocks.0.mlp.act": 2, "blocks.5.mlp.act": 2, "norm": 2},
}


@pytest.mark.parametrize(
    ("name", "layer", "axis"),
    [
        pytest.param(
            name,
            layer,
            axis,
            marks=[pytest.mark.xdist_group(name), *[pytest.mark.slow] * (layer != [*layers][-1])],
        )
        for name, layers in TIMM.items()
        for layer, axis in layers.items()
    ],
)
def test_models_of_timm_equal_clone_and_zero(name, layer, axis):
    model = timm_model(name, **({"img_size": SIDE} if name == "test_vit" else {}))
    splits = images(1), images(2)
    found = quietly(ur.analyze, model, *splits, layer=layer)
    assert found.provenance["layer"]["axis"] == axis
    assert found.data.attrs["plan"] != "full"
    assert_clone_and_zero(found.data, model, layer, splits, axis)


@cache
def hub_model(kind: str) -> nn.Module:
    common = {"num_labels": 3, "image_size": SIDE, "hidden_act": "gelu"}
    configs = {
        "vit": partial(
            transformers.ViTConfig,
            hidden_size=24,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=40,
            patch_size=8,
            **common,
        ),
        "convnext": partial(
            transformers.ConvNextConfig,
            num_stages=2,
            hidden_sizes=[12, 20],
            depths=[1, 2],
            **common,
        ),
    }
    with torch.random.fork_rng([]):
        return matter(transformers.AutoModelForImageClassification.from_config(configs[kind]()))


def hidden_layers(model: nn.Module, example: dict[str, Tensor]) -> list[str]:
    """The activation functions of the model, by the names that this version gives them."""
    listed = ur.layers(model, example)
    return listed.layer[listed.kind.str.contains("GELU")].tolist()


@cache
def image_layers(kind: str) -> list[str]:
    return hidden_layers(hub_model(kind), {"pixel_values": images(1)[0][:2]})


@pytest.mark.parametrize("place", [pytest.param(0, marks=pytest.mark.slow), -1])
@pytest.mark.parametrize(
    ("kind", "blocks"),
    [pytest.param(kind, 3, marks=pytest.mark.xdist_group(kind)) for kind in ("vit", "convnext")],
)
def test_image_models_of_transformers_equal_clone_and_zero(kind, blocks, place):
    """Rows with `pixel_values` in, a ModelOutput out."""
    model, splits = hub_model(kind), (images(1), images(2))
    layers = image_layers(kind)
    assert len(layers) == blocks
    given = [rows(split, "pixel_values") for split in splits]
    found = quietly(ur.analyze, model, *given, layer=layers[place])
    axis = found.provenance["layer"]["axis"]
    assert axis == {"vit": 2, "convnext": 3}[kind]
    assert found.data.attrs["plan"] == "additive"
    plain = Plain(model, "pixel_values")
    assert_clone_and_zero(found.data, plain, f"inner.{layers[place]}", splits, axis)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vit", "convnext"])
def test_the_last_value_before_the_classifier_is_recommended(kind):
    given = [rows(images(seed), "pixel_values") for seed in (1, 2)]
    found = quietly(ur.analyze, hub_model(kind), *given)
    assert (
        found.layer
        == {"vit": "vit.layernorm", "convnext": "convnext.encoder.stages.1.layers.1"}[kind]
    )


@cache
def text_model() -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=16,
        num_labels=3,
    )
    with torch.random.fork_rng([]):
        return matter(transformers.AutoModelForSequenceClassification.from_config(config))


TEXT = ("input_ids", "attention_mask")


def texts(seed: int, padded: bool) -> tuple[Tensor, Tensor]:
    """Word numbers and attention masks (samples, 2, words); texts of 3 to 8 words if padded."""
    draw = torch.Generator().manual_seed(seed)
    words = torch.randint(1, 40, (len(LABELS), 8), generator=draw)
    mask = torch.ones_like(words)
    if padded:
        length = torch.randint(3, 9, (len(LABELS), 1), generator=draw)
        mask = (torch.arange(8) < length).long()
    return torch.stack([words * mask, mask], dim=1), LABELS


def score_of_words(model: nn.Module, layer: str, inputs: Tensor, axis: int) -> np.ndarray:
    """L1 norm over the words, without the padding."""
    found = []
    for x in inputs:
        (output,) = reference.activation(model, layer, x[None])
        found.append(sum(word.abs() for word, real in zip(output, x[1], strict=True) if real))
    return torch.stack(found).mean(0).numpy()


@cache
def text_layers() -> list[str]:
    inputs = texts(1, padded=True)[0][:2]
    return hidden_layers(text_model(), dict(zip(TEXT, inputs.unbind(1), strict=True)))


@pytest.mark.slow
@pytest.mark.xdist_group("bert")
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("place", [0, 1])
def test_a_text_model_equals_clone_and_zero(place, padded):
    """Hidden units of the first and the last block; padding counts for nothing in the scores."""
    model, splits = text_model(), (texts(1, padded), texts(2, padded))
    layer = text_layers()[place]
    found = quietly(ur.analyze, model, *(rows(split, *TEXT) for split in splits), layer=layer)
    assert found.provenance["layer"]["axis"] == 2
    assert found.data.attrs["plan"] != "full"
    plain = Plain(model, *TEXT)
    assert_clone_and_zero(found.data, plain, f"inner.{layer}", splits, 2, score_of_words)


@pytest.mark.slow
@pytest.mark.xdist_group("bert")
def test_a_batch_without_padding_among_padded_ones():
    """Transformers leave a mask out that hides nothing; what the first batch had is then absent."""
    words, labels = texts(1, padded=True)
    words[2:4] = texts(1, padded=False)[0][2:4]
    given = rows((words, labels), *TEXT)
    pairs, whole = (
        quietly(
            ur.analyze,
            text_model(),
            given,
            given,
            layer=text_layers()[0],
            compute=ur.Compute(batch_size=size),
        ).data
        for size in (2, 6)
    )
    assert pairs.attrs["plan"] == "additive"
    np.testing.assert_allclose(pairs.loss, whole.loss, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(pairs.role, whole.role)
