"""Small heads made of ops drawn at random, to try the engine on what nobody thought of."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

UNITS, SIDE, LABELS = 6, 4, 3


class Apply(nn.Module):
    """Any function as a module; `skip` is what the model's stem gave, (samples, 6, 4, 4)."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.function(x, skip)


class Wrapped(nn.Module):
    """A module that takes no skip."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.module(x)


@dataclass(frozen=True)
class Op:
    """An op that can follow: `make(shape)` gives the module, or None where it does not fit."""

    name: str
    make: Callable[[tuple[int, ...]], nn.Module | None]


def _norm(kind: type[nn.Module], width: int) -> nn.Module:
    norm = kind(width)
    for tensor in norm.parameters():
        nn.init.normal_(tensor, mean=0.5)
    for name, tensor in norm.named_buffers():
        if name == "running_mean":
            tensor.normal_()
        if name == "running_var":
            tensor.uniform_(0.5, 2.0)
    return norm


def _group_norm(shape: tuple[int, ...]) -> nn.Module | None:
    return Wrapped(nn.GroupNorm(2, shape[0])) if shape[0] % 2 == 0 else None


def _always(function: Callable[[Tensor], Tensor]) -> Callable[[tuple[int, ...]], nn.Module]:
    return lambda shape: Apply(lambda x, skip: function(x))


def _maps(make: Callable[[tuple[int, ...]], nn.Module | None]):
    """Only for feature maps (channels, height, width)."""
    return lambda shape: make(shape) if len(shape) == 3 else None


def _pairs(shape: tuple[int, ...]) -> nn.Module | None:
    if shape[0] % 2:
        return None
    return Apply(lambda x, skip: torch.mul(*x.chunk(2, dim=1)))


def _with_skip(join: Callable[[Tensor, Tensor], Tensor]):
    def make(shape: tuple[int, ...]) -> nn.Module | None:
        if shape == (UNITS, SIDE, SIDE):
            return Apply(join)
        if shape == (UNITS,):
            return Apply(lambda x, skip: join(x, skip.mean((2, 3))))
        return None

    return make


def _conv(kernel: int, groups: int, stride: int = 1):
    def make(shape: tuple[int, ...]) -> nn.Module | None:
        if shape[0] % groups or min(shape[1:]) < kernel - 2 * (kernel // 2):
            return None
        width = 2 * groups
        conv = nn.Conv2d(shape[0], width, kernel, stride, kernel // 2, groups=groups)
        return Wrapped(conv)

    return _maps(make)


def _window(kernel: tuple[int, int], stride: int, padding: tuple[int, int], dilation: int):
    """A convolution of any window, with a norm after it."""

    def make(shape: tuple[int, ...]) -> nn.Module | None:
        sizes = zip(shape[1:], kernel, padding, strict=True)
        if any(size + 2 * pad < dilation * (k - 1) + 1 for size, k, pad in sizes):
            return None
        conv = nn.Conv2d(shape[0], 4, kernel, stride, padding, dilation)
        return Wrapped(nn.Sequential(conv, _norm(nn.BatchNorm2d, 4)))

    return _maps(make)


class _Block(nn.Module):
    """Two convolutions in a row, and one beside them."""

    def __init__(self, width: int, short: bool) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.norm = _norm(nn.BatchNorm2d, width)
        self.beside = nn.Identity() if short else nn.Conv2d(width, width, 1, bias=False)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        inner = torch.relu(self.norm(self.first(x)))
        return torch.relu(self.second(inner) + self.beside(x))


class _Gated(nn.Module):
    """A convolution of the units in one form times the units in another."""

    def __init__(self, width: int, last: bool) -> None:
        super().__init__()
        self.mixing, self.last = nn.Conv2d(width, width, 3, padding=1), last

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        gate = None if self.last else torch.sigmoid(x)
        mixed = torch.relu(self.mixing(torch.tanh(x)))
        return mixed * (torch.sigmoid(x) if gate is None else gate)


def _depthwise(shape: tuple[int, ...]) -> nn.Module:
    return Wrapped(nn.Conv2d(shape[0], shape[0], 3, padding=1, groups=shape[0]))


def _pool(pool: nn.Module):
    return _maps(lambda shape: Wrapped(pool) if min(shape[1:]) >= 2 else None)


def _squeeze_excite(shape: tuple[int, ...]) -> nn.Module:
    gate = nn.Conv2d(shape[0], shape[0], 1)

    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = gate

        def forward(self, x: Tensor, skip: Tensor) -> Tensor:
            return x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))

    return Gate()


def _matrix(turned: bool) -> Callable[[tuple[int, ...]], nn.Module]:
    """A product with a weight of one's own, as `x @ W` or `x @ W.T`."""

    class Times(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn((5, width) if turned else (width, 5)))

        def forward(self, x: Tensor, skip: Tensor) -> Tensor:
            return x @ (self.weight.T if turned else self.weight)

    return lambda shape: Times(shape[-1])


def _product(spelling: str, sizes: tuple[int, int]) -> Callable[[tuple[int, ...]], nn.Module]:
    """An `einsum` with a weight of one's own; a size of 0 is that of the axis it sums over."""
    axes, inner = spelling.split("->")[0].split(",")
    (axis,) = (axes.index(letter) for letter in inner if letter in axes)

    class Sum(nn.Module):
        def __init__(self, size: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn([one or size for one in sizes]))

        def forward(self, x: Tensor, skip: Tensor) -> Tensor:
            return torch.einsum(spelling, x, self.weight)

    return lambda shape: Sum(shape[axis - 1]) if len(shape) == len(axes) - 1 else None


class _Mixed(nn.Module):
    """A fixed matrix from the left: rows of positions are mixed, features stay apart."""

    def __init__(self, positions: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, positions))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.weight @ x


class _Distances(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.points = nn.Parameter(torch.randn(5, width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cdist(x, self.points)


class _Conv1D(nn.Module):
    """As GPT-2 has it: rows of all positions in one axis, times a matrix turned round."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(width, 5)), nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight)
        return flat.view(*x.shape[:-1], 5)


class _Flattened(nn.Module):
    """As OPT has it: samples and positions are one axis in a block of two layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        flat = self.norm(x.reshape(-1, x.shape[-1]))
        return self.down(torch.relu(self.up(flat))).view(*x.shape[:-1], 5)


OPS = [
    Op("relu", _always(torch.relu)),
    Op("in-place relu", lambda shape: Wrapped(nn.ReLU(inplace=True))),
    Op("gelu", _always(F.gelu)),
    Op("sigmoid", _always(torch.sigmoid)),
    Op("silu", _always(F.silu)),
    Op("hardswish", _always(F.hardswish)),
    Op("exp of minus", _always(lambda x: torch.exp(-x.abs()))),
    Op("one minus", _always(lambda x: 1 - x)),
    Op("clamp", _always(lambda x: x.clamp(-0.5, 0.7))),
    Op("dropout", lambda shape: Wrapped(nn.Dropout(0.5))),
    Op("batch norm", _maps(lambda shape: Wrapped(_norm(nn.BatchNorm2d, shape[0])))),
    Op("layer norm", lambda shape: Wrapped(_norm(nn.LayerNorm, shape[-1]))),
    Op("rms norm", lambda shape: Wrapped(_norm(nn.RMSNorm, shape[-1]))),
    Op("norm of all", lambda shape: Wrapped(nn.LayerNorm(list(shape)))),
    Op("group norm", _maps(_group_norm)),
    Op("max pool", _pool(nn.MaxPool2d(2))),
    Op("padded max pool", _pool(nn.MaxPool2d(3, 1, 1))),
    Op("average pool", _pool(nn.AvgPool2d(2))),
    Op("padded average pool", _pool(nn.AvgPool2d(3, 2, 1))),
    Op("global pool", _maps(lambda shape: Wrapped(nn.AdaptiveAvgPool2d(1)))),
    Op("global max pool", _maps(lambda shape: Wrapped(nn.AdaptiveMaxPool2d(1)))),
    Op("mean over positions", _maps(lambda shape: Apply(lambda x, skip: x.mean((2, 3))))),
    Op("mean over a side", _maps(lambda shape: Apply(lambda x, skip: x.mean(3)))),
    Op("one position", _maps(lambda shape: Apply(lambda x, skip: x[:, :, 0, -1]))),
    Op("flatten", _always(lambda x: x.flatten(1))),
    Op("tokens", _maps(lambda shape: Apply(lambda x, skip: x.flatten(2).transpose(1, 2)))),
    Op("channels last", _maps(lambda shape: Apply(lambda x, skip: x.permute(0, 2, 3, 1)))),
    Op("pad", _maps(lambda shape: Apply(lambda x, skip: F.pad(x, (1, 0, 0, 1))))),
    Op("linear", lambda shape: Wrapped(nn.Linear(shape[-1], 5))),
    Op("1 x 1 convolution", _conv(1, 1)),
    Op("3 x 3 convolution", _conv(3, 1)),
    Op("convolution with a stride", _conv(1, 1, 2)),
    Op("grouped convolution", _conv(3, 2)),
    Op("window with a stride", _window((3, 3), 2, (1, 1), 1)),
    Op("window of two sides", _window((2, 3), 1, (0, 1), 2)),
    Op("window larger than the map", _window((5, 5), 2, (2, 2), 1)),
    Op("gated convolution", _maps(lambda shape: _Gated(shape[0], False))),
    Op("convolution, then gated", _maps(lambda shape: _Gated(shape[0], True))),
    Op("residual block", _maps(lambda shape: _Block(shape[0], True))),
    Op("block with a convolution beside", _maps(lambda shape: _Block(shape[0], False))),
    Op("depthwise convolution", _maps(_depthwise)),
    Op("squeeze and excite", _maps(_squeeze_excite)),
    Op("twice", _always(lambda x: torch.cat([x, x], 1))),
    Op("with its own sine", _always(lambda x: torch.cat([x, torch.relu(x)], 1))),
    Op("half", _always(lambda x: x[:, : -(-x.shape[1] // 2)])),
    Op("halves multiplied", _pairs),
    Op("add the stem", _with_skip(lambda x, skip: x + skip)),
    Op("add in place", _with_skip(lambda x, skip: x.clone().add_(skip))),
    Op("gated by the stem", _with_skip(lambda x, skip: x * torch.sigmoid(skip))),
    Op("times itself", _always(lambda x: x * x)),
    Op("plus itself, flipped", _always(lambda x: x + x.flip(1))),
    Op("rolled", _always(lambda x: x.roll(1, 1))),
    Op("softmax", _always(lambda x: x.softmax(1))),
    Op("only what is large", _always(lambda x: torch.where(x > 0.1, x, 0.0))),
    Op("or one number", _always(lambda x: torch.where(x < 0.2, torch.tensor(0.3), x))),
    Op("or zeros", _always(lambda x: torch.where(x <= 0.1, torch.zeros_like(x), x))),
    Op("or twos", _always(lambda x: torch.where(x >= -0.1, x, torch.full_like(x, 2)))),
    Op("or ones", _always(lambda x: torch.where(x > -x, torch.ones_like(x), x))),
    Op("one or the other number", _always(lambda x: x * torch.where(x.exp() >= 1 - x, 1.5, 0.5))),
    Op("zero or not", _always(lambda x: torch.where(x.abs() <= x.square(), 0.0, x))),
    Op("filled", _always(lambda x: x.masked_fill(x < -x.sigmoid(), -0.3))),
    Op("filled by a tensor", _always(lambda x: x.masked_fill(x < 0.1, torch.tensor(0.7).double()))),
    Op("times a number", _always(lambda x: x * torch.tensor(1.5))),
    Op("at most a number", _always(lambda x: torch.minimum(x, torch.tensor(0.4).double()))),
    Op("times a matrix", _matrix(False)),
    Op("times a matrix turned round", _matrix(True)),
    Op("einsum", _product("bc,oc->bo", (5, 0))),
    Op("einsum turned round", _product("bc,co->bo", (0, 5))),
    Op("einsum over channels", _product("bchw,oc->bohw", (5, 0))),
    Op("einsum that sums nothing", _product("bc,oc->boc", (2, 0))),
    Op("einsum over channels and positions", _product("bchw,oc->bo", (5, 0))),
    Op("einsum over a side", _product("bchw,ow->bcho", (5, 0))),
    Op("einsum with one number for all", _product("bc,oc->bo", (5, 1))),
    Op("mixed positions", lambda shape: _Mixed(shape[-2]) if len(shape) > 1 else None),
    Op("rows times a matrix", lambda shape: _Conv1D(shape[-1])),
    Op("a block on rows", lambda shape: _Flattened(shape[-1])),
    Op("distances", lambda shape: Wrapped(_Distances(shape[-1]))),
    Op("running sum", _always(lambda x: x.cumsum(1))),
    Op("shifted by its mean", _always(lambda x: x - x.mean(1, keepdim=True))),
    Op("scaled by its largest", _always(lambda x: x / (1 + x.abs().amax(1, keepdim=True)))),
]  # fmt: skip


class Net(nn.Module):
    """A stem with the units, then the drawn ops, then logits.

    Parameters
    ----------
    draws : places in `OPS`; ops that do not fit are left out.
    wide : whether the units have positions.
    """

    def __init__(self, draws: list[int], wide: bool) -> None:
        super().__init__()
        torch.manual_seed(len(draws) + sum(draws))
        self.stem = nn.Conv2d(2, UNITS, 3, padding=1)
        self.layer = nn.Conv2d(UNITS, UNITS, 1) if wide else nn.Linear(UNITS, UNITS)
        self.wide = wide
        self.names: list[str] = []
        self.ops = nn.ModuleList()
        self.last: nn.Module = nn.Identity()
        self.double().eval()
        for draw in draws:
            with torch.no_grad():
                self._append(OPS[draw % len(OPS)])
        with torch.no_grad():
            features = self._body(example(2)).flatten(1).shape[1]
        self.last = nn.Linear(features, LABELS).double()

    def _append(self, op: Op) -> None:
        shape = tuple(self._body(example(2)).shape[1:])
        module = op.make(shape)
        if module is None or torch.Size(shape).numel() > 400:
            return
        self.ops.append(module.double().eval())
        self.names.append(op.name)

    def _body(self, x: Tensor) -> Tensor:
        skip = torch.tanh(self.stem(x))
        x = self.layer(skip if self.wide else skip.mean((2, 3)))
        for op in self.ops:
            x = op(x, skip)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self._body(x).flatten(1))


def example(samples: int) -> Tensor:
    """Inputs of these nets."""
    draw = torch.Generator().manual_seed(5)
    return torch.randn(samples, 2, SIDE, SIDE, dtype=torch.float64, generator=draw)
