"""Tiny trained networks, one for each way a layer can sit in a model, and two written by hand.

Training runs in float64 so that thread counts and processors leave no trace above 1e-12, and the
weights are then rounded to float32: the float32 and the float64 net are the same function.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Toy:
    """A model, the layer under test and the data of both splits as (inputs, labels)."""

    name: str
    model: nn.Module
    layer: str
    axis: int
    call: int
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


class ConvPoolLinear(nn.Module):
    """The ReLU overwrites the convolution's output."""

    def __init__(self, units: int = 8, labels: int = 4):
        super().__init__()
        self.conv = nn.Conv2d(1, units, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2)
        self.hidden = nn.Linear(units * 9, 12)
        self.classifier = nn.Linear(12, labels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.conv(x)))
        return self.classifier(F.relu(self.hidden(torch.flatten(x, 1))))


class BasicBlock(nn.Module):
    """One in-place ReLU module called twice, and an in-place add over what `bn2` returned."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class Residual(nn.Module):
    """Stem, two basic blocks, global average pool."""

    def __init__(self, width: int = 10, labels: int = 3):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.blocks = nn.Sequential(BasicBlock(width), BasicBlock(width))
        self.classifier = nn.Linear(width, labels)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.blocks(F.relu(self.stem(x))).mean(dim=(2, 3)))


class ReluTwice(nn.Module):
    """One ReLU module, called first on 7 and then on 12 units."""

    def __init__(self, labels: int = 3):
        super().__init__()
        self.narrow = nn.Linear(10, 7)
        self.wide = nn.Linear(7, 12)
        self.relu = nn.ReLU()
        self.classifier = nn.Linear(12, labels)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.relu(self.wide(self.relu(self.narrow(x)))))


class Attention(nn.Module):
    """Self-attention over (samples, tokens, width)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        samples, tokens, width = x.shape
        qkv = self.qkv(x).reshape(samples, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).reshape(samples, tokens, width))


class EncoderBlock(nn.Module):
    """Pre-norm attention and MLP, each with a residual stream around it."""

    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.gelu = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.fc2(self.gelu(self.fc1(self.norm2(x))))


class Transformer(nn.Module):
    """Four 3x3 patches and a class token through two encoder blocks."""

    def __init__(self, width: int = 8, hidden: int = 12, labels: int = 3):
        super().__init__()
        self.patches = nn.Conv2d(1, width, 3, stride=3)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.1)
        self.position = nn.Parameter(torch.randn(1, 5, width) * 0.1)
        self.blocks = nn.Sequential(*(EncoderBlock(width, 2, hidden) for _ in range(2)))
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, labels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.position
        return self.classifier(self.norm(self.blocks(x))[:, 0])


def build_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(10, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4))


def build_conv_bn_gap() -> nn.Module:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        nn.Sequential(nn.Conv2d(8, 10, 3, padding=1), nn.BatchNorm2d(10), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(10, 3),
    )


def build_depthwise() -> nn.Module:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 10, 3, padding=1), nn.BatchNorm2d(10), nn.ReLU6()),
        nn.Sequential(nn.Conv2d(10, 10, 3, padding=1, groups=10), nn.BatchNorm2d(10), nn.ReLU6()),
        nn.Conv2d(10, 8, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


def build_dropout_head() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Flatten(),
        nn.Linear(8 * 9, 10),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(10, 3),
    )


@dataclass(frozen=True)
class Recipe:
    """How a toy comes about.

    Seed, steps and noise are chosen so that at least three roles occur and `robust` holds, for
    logit scales 1 and 10.
    """

    build: Callable[[], nn.Module]
    layer: str
    shape: tuple[int, ...]
    labels: int
    seed: int
    steps: int = 60
    noise: float = 1.0
    train: int = 8
    test: int = 8
    axis: int = 1
    call: int = -1


IMAGE = (1, 6, 6)
RECIPES = {
    "mlp": Recipe(build_mlp, "1", (10,), 4, seed=23, steps=15, noise=2.0, test=7),
    "conv_pool_linear": Recipe(
        ConvPoolLinear, "relu", IMAGE, 4, seed=40, steps=9, noise=2.5, test=10
    ),
    "conv_bn_gap": Recipe(build_conv_bn_gap, "1.2", IMAGE, 3, seed=89, steps=15, noise=2.0),
    "residual": Recipe(Residual, "blocks.1.bn2", IMAGE, 3, seed=14, steps=5, noise=2.0),
    "residual_early": Recipe(
        Residual, "blocks.0.relu", IMAGE, 3, seed=38, steps=6, noise=3.0, call=0
    ),
    "relu_twice": Recipe(
        ReluTwice, "relu", (10,), 3, seed=89, steps=15, noise=2.0, train=10, test=6
    ),
    "depthwise": Recipe(build_depthwise, "0.2", IMAGE, 3, seed=81, steps=15, noise=2.0),
    "transformer": Recipe(
        Transformer, "blocks.0.gelu", IMAGE, 3, seed=84, steps=6, noise=2.0, axis=2
    ),
    "dropout_head": Recipe(build_dropout_head, "1", IMAGE, 3, seed=23, steps=6, noise=3.0),
}


def draw(recipe: Recipe, centers: Tensor, per_label: int) -> tuple[Tensor, Tensor]:
    """Shuffled samples around the labels' centers, `per_label` of each."""
    labels = torch.arange(recipe.labels).repeat(per_label)
    labels = labels[torch.randperm(len(labels))]
    noise = torch.randn(len(labels), *recipe.shape, dtype=torch.float64)
    return (centers[labels] + recipe.noise * noise).float(), labels


def fit(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> nn.Module:
    """Full-batch Adam in float64; returned in float32 and eval mode, without gradients."""
    model.double().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with torch.enable_grad():
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(model(x.double()), y).backward()
            optimizer.step()
    optimizer.zero_grad()
    return model.float().eval()


@cache
def trained(name: str) -> Toy:
    """The toy a recipe describes; leaves the global random state as it was."""
    recipe = RECIPES[name]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.seed)
        centers = torch.randn(recipe.labels, *recipe.shape, dtype=torch.float64)
        train, test = draw(recipe, centers, recipe.train), draw(recipe, centers, recipe.test)
        model = fit(recipe.build(), *train, recipe.steps)
    return Toy(name, model, recipe.layer, recipe.axis, recipe.call, train, test)


TOYS: dict[str, Callable[[], Toy]] = {name: partial(trained, name) for name in RECIPES}


def toy(name: str, dtype: torch.dtype = torch.float32, logit_scale: float = 1.0) -> Toy:
    """A fresh copy of a trained toy, its logits times `logit_scale`."""
    kept = TOYS[name]()
    model = deepcopy(kept.model).to(dtype)
    final = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        final.weight.mul_(logit_scale)
        final.bias.mul_(logit_scale)
    train, test = ((x.to(dtype, copy=True), y.clone()) for x, y in (kept.train, kept.test))
    return replace(kept, model=model, train=train, test=test)


WIDE = {
    "wide_mlp": lambda: nn.Sequential(
        *(nn.Linear(10, 40), nn.Tanh(), nn.Linear(40, 12), nn.Tanh(), nn.Linear(12, 4))
    ),
    "wide_conv": lambda: nn.Sequential(
        *(nn.Conv2d(1, 26, 3, padding=1), nn.ReLU(), nn.Conv2d(26, 6, 3, padding=1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(6 * 36, 4)),
    ),
}
"""With enough units at "1" that adaptive curves leave some out, and a tail behind them."""


@cache
def wide(name: str, dtype: torch.dtype = torch.float64) -> Toy:
    """Random weights, with logits so large that curves go up and down; unequal classes."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(5)
        model = WIDE[name]().to(dtype).eval()
        shape = (10,) if name == "wide_mlp" else IMAGE
        splits = [
            (torch.randn(22, *shape, dtype=dtype), torch.arange(22) % 8 % 4) for _ in range(2)
        ]
    with torch.no_grad():
        model[-1].weight.mul_(3.0)
    return Toy(name, model, "1", 1, -1, *splits)


def robust(
    loss: np.ndarray, score: np.ndarray, margin: float = 1e-5, tolerance: float = 1e-6
) -> bool:
    """Whether rounding errors below `margin` can move no turning point and no rank.

    `loss` is (..., retrieved), `score` (..., unit). Exact ties are safe: they come from ablated
    units, whose mask changes nothing.
    """
    for curve in loss.reshape(-1, loss.shape[-1]):
        active = curve[1:]
        first = active[active <= active.min() + tolerance][0]
        near = active <= active.min() + tolerance + margin
        if first != active.min() or (near & (active != active.min())).any():
            return False
    for values in score.reshape(-1, score.shape[-1]):
        ranked = np.sort(values)[::-1]
        size = np.abs(ranked[:-1])
        close = ranked[:-1] - ranked[1:] < 1e-5 * size
        equal_and_not_zero = (ranked[:-1] == ranked[1:]) & (size > 0)
        if close.any() or equal_and_not_zero.any():
            return False
    return True


def voting_net(votes: list[int | None], labels: int) -> nn.Module:
    """Unit i is relu(x_i) and adds its activation to the logit of label `votes[i]`."""
    units = len(votes)
    read = nn.Linear(units, units, bias=False)
    classifier = nn.Linear(units, labels, bias=False)
    with torch.no_grad():
        read.weight.copy_(torch.eye(units))
        classifier.weight.zero_()
        for unit, label in enumerate(votes):
            if label is not None:
                classifier.weight[label, unit] = 1.0
    return nn.Sequential(read, nn.ReLU(), classifier).eval()


def scaled_samples(
    patterns: list[dict[int, float]], units: int, scales: tuple[float, ...]
) -> tuple[Tensor, Tensor]:
    """For each label its pattern {unit: activation}, once per scale."""
    x = torch.zeros(len(patterns) * len(scales), units)
    y = torch.zeros(len(x), dtype=torch.int64)
    for label, pattern in enumerate(patterns):
        for i, scale in enumerate(scales):
            row = label * len(scales) + i
            y[row] = label
            for unit, value in pattern.items():
                x[row, unit] = scale * value
    return x, y


def hand_built() -> tuple[Toy, np.ndarray]:
    """A net without training, and its role (label, unit): 1 core ... 4 confusing.

    The loss of a sample of label k is softplus(m) with m = logsumexp_{j != k} z_j - z_k. A unit
    that votes for k lowers m by its activation a, one that votes for j != k raises m, one without
    vote or with a = 0 leaves it. So n0 is the last helper before the first harmful unit, unless a
    later helper makes up for the harm. After a harmful unit a and a helper b <= a / 2 it does not:
    where m was log 2 - c before both, it is now log(1 + e^a) - b - c, and
    log(1 + e^a) - b = log(2 cosh(a / 2)) + a / 2 - b > log 2. Scaling a sample changes neither
    the order nor these comparisons.
    """
    votes = [2, 0, 1, 0, 2, 1, 1, 0, 2, None]
    train = [
        # 7 and 1 help, 2 harms: U0 = {7, 1}.
        {7: 3.0, 1: 2.0, 2: 1.0},
        # 5 and 2 help, 0 harms by 1, 6 helps by half: U0 = {5, 2}.
        {5: 3.0, 2: 2.0, 0: 1.0, 6: 0.5},
        # 9 has no vote but comes first, so it is in every prefix; 0, 4, 8 help: U0 = {9, 0, 4, 8}.
        {9: 4.0, 0: 3.0, 4: 2.0, 8: 1.0, 1: 0.5},
    ]
    test = [
        # 7 and 3 help, 4 harms: U0 = {7, 3}. So 7 core, 1 overfitted, 3 generalizing.
        {7: 3.0, 3: 2.0, 4: 1.0},
        # 6 and 5 help, 0 harms by 1, 2 helps by half: U0 = {6, 5}. 5 core, 2 over, 6 generalizing.
        {6: 3.0, 5: 2.0, 0: 1.0, 2: 0.5},
        # 0 helps, 1 harms by 2, 4 helps by half: U0 = {9, 0}. So 9 and 0 core, 4 and 8 overfitted.
        {9: 4.0, 0: 3.0, 1: 2.0, 4: 1.0},
    ]
    role = np.array(
        [
            [4, 2, 4, 3, 4, 4, 4, 1, 4, 4],
            [4, 4, 2, 4, 4, 1, 3, 4, 4, 4],
            [1, 4, 4, 4, 2, 4, 4, 4, 2, 1],
        ],
        dtype=np.uint8,
    )
    net = Toy(
        "hand_built",
        voting_net(votes, labels=3),
        layer="1",
        axis=1,
        call=-1,
        train=scaled_samples(train, len(votes), (0.75, 1.25)),
        test=scaled_samples(test, len(votes), (0.5, 1.0, 1.5)),
    )
    return net, role


def hand_built_confusing() -> tuple[Toy, np.ndarray]:
    """A net in which each label has one core unit and every other unit is confusing.

    The samples of label k drive only units that vote for other labels. Each one raises the loss,
    so E(n) never falls below E(0), and the smallest E(n) with n >= 1 is E(1): the active set of
    both splits is the strongest unit alone, for labels 0, 1, 2 the units 4, 2 and 0. The weaker
    units come in another order on test, which must not matter.
    """
    votes = [0, 0, 2, 2, 1, 1]
    train = [
        {4: 3.0, 5: 2.0, 2: 1.0, 3: 0.5},
        {2: 3.0, 3: 2.0, 0: 1.0, 1: 0.5},
        {0: 3.0, 1: 2.0, 4: 1.0, 5: 0.5},
    ]
    test = [
        {4: 2.0, 2: 1.5, 5: 1.0, 3: 0.5},
        {2: 2.0, 0: 1.5, 3: 1.0, 1: 0.5},
        {0: 2.0, 4: 1.5, 1: 1.0, 5: 0.5},
    ]
    role = np.full((3, len(votes)), 4, dtype=np.uint8)
    role[0, 4] = role[1, 2] = role[2, 0] = 1
    net = Toy(
        "hand_built_confusing",
        voting_net(votes, labels=3),
        layer="1",
        axis=1,
        call=-1,
        train=scaled_samples(train, len(votes), (0.75, 1.25)),
        test=scaled_samples(test, len(votes), (0.5, 1.0, 1.5)),
    )
    return net, role
