"""Every public verb gives a model back as it was: logits, hooks and attributes of fresh models.

Models of transformers put hooks in at their first forward, guarded by an attribute.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn

import unitroles as ur

SMALL = {"num_labels": 3, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 12}
TEXT = {**SMALL, "vocab_size": 20, "num_hidden_layers": 2, "max_position_embeddings": 16}


class Lazy(nn.Module):
    """The first forward doubles what the activation gives from then on."""

    def __init__(self):
        super().__init__()
        self.f, self.a, self.h = nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)

    def forward(self, x):
        if not getattr(self, "ready", False):
            self.a.register_forward_hook(lambda module, given, out: 2 * out)
            self.a.register_forward_pre_hook(lambda module, given: None)
            self.register_buffer("seen", torch.zeros(1))
            self.extra = nn.Identity()
            nn.utils.parametrizations.weight_norm(self.h)
            self.ready = True
        return self.h(self.a(self.f(x)))


class HiddenStates(nn.Module):
    """The mean over all hidden states that an encoder tells."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(8, 3)

    def forward(self, input_ids):
        states = self.encoder(input_ids, output_hidden_states=True).hidden_states
        return self.head(torch.stack(states).mean((0, 2)))


def texts():
    return {"input_ids": torch.randint(1, 20, (9, 7))}


def wave():
    return {"input_values": torch.randn(9, 400)}


def sound() -> nn.Module:
    return hf.Wav2Vec2ForSequenceClassification(
        hf.Wav2Vec2Config(
            **SMALL,
            num_hidden_layers=2,
            conv_dim=(8, 8),
            conv_stride=(5, 4),
            conv_kernel=(10, 8),
            num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2,
            use_weighted_layer_sum=True,
            classifier_proj_size=6,
        )
    )


BUILD: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any], str]] = {
    "lazy": (Lazy, lambda: torch.randn(9, 6), "a"),
    "bert": (
        lambda: hf.BertForSequenceClassification(hf.BertConfig(**TEXT)),
        texts,
        "bert.encoder.layer.1.intermediate",
    ),
    "hidden states": (
        lambda: HiddenStates(hf.BertModel(hf.BertConfig(**TEXT))),
        texts,
        "encoder.encoder.layer.1.intermediate",
    ),
    "gpt2": (
        lambda: hf.GPT2ForSequenceClassification(
            hf.GPT2Config(
                vocab_size=20, n_positions=16, n_embd=8, n_layer=2, n_head=2, num_labels=3,
                pad_token_id=0, bos_token_id=0, eos_token_id=0,
            )
        ),
        texts,
        "transformer.h.1.mlp.act",
    ),
    "vit": (
        lambda: hf.ViTForImageClassification(
            hf.ViTConfig(**SMALL, num_hidden_layers=2, image_size=8, patch_size=4)
        ),
        lambda: {"pixel_values": torch.randn(9, 3, 8, 8)},
        "vit.layernorm",
    ),
    "wav2vec2": (sound, wave, "projector"),
}  # fmt: skip
LABELS = torch.arange(9) % 3


def data(inputs: Any) -> Any:
    if isinstance(inputs, torch.Tensor):
        return inputs, LABELS
    names = list(inputs)
    return [{name: inputs[name][i] for name in names} | {"label": int(LABELS[i])} for i in range(9)]


VERBS: dict[str, Callable[..., object]] = {
    "analyze": lambda m, x, layer: ur.analyze(m, data(x), data(x), layer=layer, progress=False),
    "layers": lambda m, x, layer: ur.layers(m, x),
    "plan": lambda m, x, layer: ur.plan(m, data(x), data(x), layer=layer),
    "single": lambda m, x, layer: ur.single_unit_ablation(m, data(x), layer, progress=False),
    "cumulative": lambda m, x, layer: ur.cumulative_ablation(m, data(x), layer, progress=False),
}


def state(model: nn.Module) -> list[Any]:
    """Class, attributes, parts, flags and the number of hooks of every kind of every module."""
    return [
        (
            path,
            type(module),
            sorted(vars(module)),
            module.training,
            {name: len(held) for name, held in vars(module).items() if isinstance(held, dict)},
        )
        for path, module in model.named_modules()
    ]


def answer(model: nn.Module, inputs: Any) -> torch.Tensor:
    out = model(inputs) if isinstance(inputs, torch.Tensor) else model(**inputs)
    return getattr(out, "logits", out)


@pytest.mark.filterwarnings("ignore::unitroles.errors.PlanWarning")
@pytest.mark.filterwarnings("ignore::unitroles.errors.LayerHint")
@pytest.mark.filterwarnings("ignore::unitroles.errors.DataWarning")
@pytest.mark.parametrize(
    ("name", "verb"),
    [
        pytest.param(name, verb, marks=[pytest.mark.slow] * (name != "lazy" and verb != "analyze"))
        for name in BUILD
        for verb in VERBS
    ],
)
def test_a_fresh_model_comes_back_as_it_was(name, verb):
    torch.manual_seed(0)
    build, draw, layer = BUILD[name]
    model, inputs = build().eval(), draw()
    fresh = deepcopy(model)
    before = state(model)
    VERBS[verb](model, inputs, layer)
    assert state(model) == before
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(answer(model, inputs), answer(fresh, inputs))


@pytest.mark.filterwarnings("ignore::unitroles.errors.DataWarning")
def test_an_outer_autocast_changes_no_number():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(9, 6)
    plain = VERBS["analyze"](model, x, "1")
    with torch.autocast("cpu"):
        inside = VERBS["analyze"](model, x, "1")
    assert plain.data.loss.equals(inside.data.loss)
    assert plain.data.role.equals(inside.data.role)
