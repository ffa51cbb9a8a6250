"""Every public verb gives a model back as it was: logits, hooks and attributes of fresh models.

Models of transformers put hooks in at their first forward, guarded by an attribute.
"""

from collections import deque
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


class Hoards(nn.Module):
    """Keeps what it meets in containers and tensors that are no buffers, and counts."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.f, self.a, self.h = nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)
        self.mean, self.log, self.deep = [torch.zeros(5)], {}, {"in": [[1.0], {2}]}
        self.count, self.last = torch.zeros(1), deque([1], maxlen=3)
        self.register_buffer("gap", torch.tensor([float("nan"), 1.0]).expand(2, 2))

    def forward(self, x):
        z = self.a(self.f(x))
        self.mean[0] = 0.9 * self.mean[0] + 0.1 * z.mean(0)
        self.log[str(len(self.log))] = z
        self.deep["in"][0].append(len(x))
        self.deep["in"][1].add(3)
        self.last.append(z)
        self.count += 1
        return self.h(z - 1e-7 * self.mean[0])


def held(model: nn.Module) -> Any:
    numbers = [model.mean[0].tolist(), model.count.item(), list(model.last)]
    return [type(model.mean[0]), numbers, dict(model.log), deepcopy(model.deep)]


@pytest.mark.filterwarnings("ignore::unitroles.errors.PlanWarning")
@pytest.mark.filterwarnings("ignore::unitroles.errors.DataWarning")
@pytest.mark.parametrize("verb", VERBS)
def test_what_containers_and_plain_tensors_hold_comes_back(verb):
    model, inputs = Hoards().eval(), torch.randn(9, 6)
    before = held(model)
    VERBS[verb](model, inputs, "a")
    assert held(model) == before
    assert torch.isnan(model.gap).sum() == 2


class Learns(nn.Module):
    """Changes gradients, their flags and kinds of numbers in its forward."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.f, self.a, self.h = nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)

    def forward(self, x):
        self.f.requires_grad_(False)
        with torch.enable_grad():
            self.h(torch.ones(1, 5)).sum().backward()
        out = self.h(self.a(self.f(x)))
        self.h.weight.data = self.h.weight.data.double().float()
        return out


@pytest.mark.filterwarnings("ignore::unitroles.errors.PlanWarning")
@pytest.mark.filterwarnings("ignore::unitroles.errors.DataWarning")
@pytest.mark.parametrize("given", [None, 2.0])
def test_gradients_and_their_flags_come_back(given):
    model = Learns().eval()
    if given is not None:
        model.h.weight.grad = torch.full_like(model.h.weight, given)
    weights = deepcopy(model.state_dict())
    ur.single_unit_ablation(model, data(torch.randn(9, 6)), "a", progress=False)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.h.bias.grad is None
    grad = model.h.weight.grad
    assert grad is None if given is None else bool((grad == given).all())
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
