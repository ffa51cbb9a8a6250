"""Which unit every element of a value in a graph comes from.

The ops that move, pool or join values are run on whole numbers, the unit that owns each element,
instead of activations. Where two units would meet in one element, the value has no owners any
more: the op mixes units. Two rows with numbers of their own show that samples stay apart.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, fx
from torch.fx.node import map_arg

from unitroles.graph.ops import ROWS, plain, value_of

_aten = torch.ops.aten
NOBODY = -1
"""The owner of an element that depends on no unit."""

_MOVES = {
    _aten.alias.default,
    _aten.cat.default,
    _aten.channel_shuffle.default,
    _aten.chunk.default,
    _aten.clone.default,
    _aten.contiguous.default,
    _aten.detach.default,
    _aten.dropout.default,
    _aten.expand.default,
    _aten.flatten.using_ints,
    _aten.flip.default,
    _aten.movedim.int,
    _aten.permute.default,
    _aten.pixel_shuffle.default,
    _aten.repeat.default,
    _aten.reshape.default,
    _aten.roll.default,
    _aten.select.int,
    _aten.slice.Tensor,
    _aten.split.Tensor,
    _aten.split_with_sizes.default,
    _aten.squeeze.default,
    _aten.squeeze.dim,
    _aten.squeeze.dims,
    _aten.stack.default,
    _aten.transpose.int,
    _aten.unbind.int,
    _aten.unflatten.int,
    _aten.unsqueeze.default,
    _aten.view.default,
    operator.getitem,
}
_POINTWISE = {
    getattr(packet, name)
    for packet, names in {
        _aten.abs: ["default"],
        _aten.add: ["Tensor", "Scalar"],
        _aten.clamp: ["default", "Tensor"],
        _aten.clamp_max: ["default"],
        _aten.clamp_min: ["default"],
        _aten.div: ["Tensor", "Scalar"],
        _aten.elu: ["default"],
        _aten.erf: ["default"],
        _aten.exp: ["default"],
        _aten.gelu: ["default"],
        _aten.hardsigmoid: ["default"],
        _aten.hardswish: ["default"],
        _aten.hardtanh: ["default"],
        _aten.leaky_relu: ["default"],
        _aten.log: ["default"],
        _aten.log1p: ["default"],
        _aten.log_sigmoid: ["default"],
        _aten.maximum: ["default"],
        _aten.minimum: ["default"],
        _aten.mish: ["default"],
        _aten.mul: ["Tensor", "Scalar"],
        _aten.neg: ["default"],
        _aten.pow: ["Tensor_Scalar"],
        _aten.reciprocal: ["default"],
        _aten.relu: ["default"],
        _aten.relu6: ["default"],
        _aten.rsqrt: ["default"],
        _aten.rsub: ["Scalar", "Tensor"],
        _aten.selu: ["default"],
        _aten.sigmoid: ["default"],
        _aten.silu: ["default"],
        _aten.softplus: ["default"],
        _aten.sqrt: ["default"],
        _aten.square: ["default"],
        _aten.sub: ["Tensor", "Scalar"],
        _aten.tanh: ["default"],
        _aten.threshold: ["default"],
    }.items()
    for name in names
}
_REDUCTIONS = {_aten.mean.dim, _aten.sum.dim_IntList, _aten.amax.default, _aten.amin.default}
# As max pools, which show the largest and the smallest owner in every window, and the number of
# axes that makes them pools over positions: one fewer is read as no batch.
_POOLS: dict[Any, tuple[Any, int]] = {
    _aten.adaptive_avg_pool1d.default: (_aten.adaptive_max_pool1d.default, 3),
    _aten.adaptive_avg_pool2d.default: (_aten.adaptive_max_pool2d.default, 4),
    _aten.adaptive_avg_pool3d.default: (_aten.adaptive_max_pool3d.default, 5),
    _aten.avg_pool1d.default: (_aten.max_pool1d.default, 3),
    _aten.avg_pool2d.default: (_aten.max_pool2d.default, 4),
    _aten.avg_pool3d.default: (_aten.max_pool3d.default, 5),
    _aten.max_pool1d.default: (_aten.max_pool1d.default, 3),
    _aten.max_pool2d.default: (_aten.max_pool2d.default, 4),
    _aten.max_pool3d.default: (_aten.max_pool3d.default, 5),
}
_NORMS = {
    _aten.batch_norm.default,
    _aten._native_batch_norm_legit_no_training.default,
}


class _UnitsMeet(Exception):
    """An element would have two owners."""


def owners(module: fx.GraphModule, cut: fx.Node, axis: int) -> dict[fx.Node, Int[Tensor, "*row"]]:
    """For every value that comes from the cut unit by unit, the owner of each element of a row.

    Values in which units or samples meet are left out, and so are those that are made of them.

    Parameters
    ----------
    cut : the placeholder of the layer's output.
    axis : its unit axis.
    """
    shape = _shape(cut)
    units = shape[axis]
    start = torch.arange(units).view([-1 if place == axis else 1 for place in range(len(shape))])
    rows = units * torch.arange(ROWS).view([-1] + [1] * (len(shape) - 1))
    known: dict[fx.Node, Any] = {cut: (start + rows).expand(shape).clone()}
    mixed: set[fx.Node] = set()
    for node in module.graph.nodes:
        if node.op != "call_function" or not isinstance(value_of(node), (Tensor, list, tuple)):
            continue
        sources = set(node.all_input_nodes)
        if not mixed.isdisjoint(sources):
            mixed.add(node)
        elif not known.keys().isdisjoint(sources):
            try:
                known[node] = _follow(node, known)
            except _UnitsMeet:
                mixed.add(node)
    return {
        node: value[0]
        for node, value in known.items()
        if isinstance(value, Tensor) and _rows_apart(value, units) and _keeps_rows(node, cut)
    }


def _keeps_rows(node: fx.Node, cut: fx.Node) -> bool:
    """Whether the first axis still counts the samples, whatever their number."""
    value = value_of(node)
    symbolic = [isinstance(size, torch.SymInt) for size in value.shape]
    if not symbolic or not symbolic[0] or any(symbolic[1:]):
        return False
    return str(value.shape[0]) == str(value_of(cut).shape[0])


def _rows_apart(value: Tensor, units: int) -> bool:
    owned = value[0] >= 0
    return (
        len(value) == ROWS
        and bool((value[1] >= 0).eq(owned).all())
        and bool((value[1] - units)[owned].eq(value[0][owned]).all())
        and not bool((value[0] >= units).any())
    )


def _shape(node: Any) -> list[int]:
    """The sizes of a value for `ROWS` samples."""
    return [plain(size) for size in value_of(node).shape]


def _follow(node: fx.Node, known: dict[fx.Node, Any]) -> Any:
    """The owners of an op's result."""
    target: Any = node.target
    args = _plain(map_arg(node.args, lambda one: _argument(one, known)))
    kwargs = _plain(map_arg(node.kwargs, lambda one: _argument(one, known)))
    if target in _MOVES:
        return target(*args, **kwargs)
    if target is _aten.constant_pad_nd.default or (
        target is _aten.pad.default and (list(args[2:3]) or ["constant"]) == ["constant"]
    ):
        return _aten.constant_pad_nd.default(args[0], args[1], NOBODY)
    if target in _POINTWISE:
        parts = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        return _join(parts, _shape(node))
    if node.all_input_nodes[0] not in known or args[0] is None:
        raise _UnitsMeet
    if target in _NORMS:
        training = target is _aten.batch_norm.default and bool(args[5])
        if training or args[3] is None:
            raise _UnitsMeet
        return args[0] if target is _aten.batch_norm.default else (args[0], None, None)
    if target in _REDUCTIONS and len(args) > 1:
        return _single(args[0], lambda value: value.amax(*args[1:3], **_keepdim(kwargs)))
    if target in _POOLS:
        return _pooled(target, args, kwargs)
    if target is _aten.linear.default or (target is _aten.layer_norm.default and len(args[1]) == 1):
        # All that is summed belongs to one unit: features of a token mixer, for one.
        owner = _single(args[0], lambda value: value.amax(dim=-1, keepdim=True))
        return owner.expand(_shape(node)).clone()
    if target is _aten.conv2d.default:
        return _grouped(node, args)
    raise _UnitsMeet


def _argument(node: fx.Node, known: dict[fx.Node, Any]) -> Any:
    if node in known:
        return known[node]
    value = value_of(node)
    if isinstance(value, torch.SymInt):
        return plain(value)
    if isinstance(value, Tensor):
        return torch.full((1,), NOBODY).expand(_shape(node))  # weights may be large
    return value


def _plain(value: Any) -> Any:
    """Lists that ops take; those of a graph are of a kind of their own."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value)) if type(value) is tuple else [*map(_plain, value)]
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, dict) else value


def _keepdim(kwargs: Any) -> dict[str, bool]:
    return {"keepdim": True} if kwargs.get("keepdim") else {}


def _join(parts: list[Tensor], shape: list[int]) -> Tensor:
    owner = torch.full(shape, NOBODY)
    for part in parts:
        other = part.expand(shape)
        if bool(((owner >= 0) & (other >= 0) & (owner != other)).any()):
            raise _UnitsMeet
        owner = torch.maximum(owner, other)
    return owner


def _single(value: Tensor, largest: Any) -> Tensor:
    """The one owner of what `largest` takes together; ignore counts for nothing."""
    high = largest(value)
    low = -largest(torch.where(value < 0, torch.iinfo(value.dtype).min, -value))
    if bool(((high >= 0) & (high != low)).any()):
        raise _UnitsMeet
    return high


def _pooled(target: Any, args: Any, kwargs: Any) -> Tensor:
    pool, axes = _POOLS[target]
    if args[0].ndim != axes or kwargs:
        raise _UnitsMeet
    rest = tuple(args[1:])
    if "avg_pool" in str(target) and "adaptive" not in str(target):
        stride, padding, ceil = (*rest[1:4], *([], 0, False)[len(rest[1:4]) :])
        rest = (rest[0], stride, padding, 1, ceil)

    def largest(value: Tensor) -> Tensor:
        found = pool(value.to(torch.float64), *rest)
        found = found[0] if isinstance(found, tuple) else found
        return found.clamp(min=-1e15).to(torch.int64)

    high = largest(args[0])
    low = -largest(torch.where(args[0] < 0, torch.tensor(-(10**15)), -args[0]))
    if bool(((high >= 0) & (high != low)).any()):
        raise _UnitsMeet
    return high


def _grouped(node: fx.Node, args: Any) -> Tensor:
    """A convolution whose every group sees the channels of one unit, as a depthwise one does."""
    groups = args[6] if len(args) > 6 else 1
    value, shape = args[0], _shape(node)
    if value.ndim != 4 or node.kwargs or shape[1] % groups:
        raise _UnitsMeet
    by_group = value.unflatten(1, (groups, -1)).flatten(2)
    owner = _single(by_group, lambda grouped: grouped.amax(dim=2))
    return (
        owner.repeat_interleave(shape[1] // groups, dim=1)[:, :, None, None].expand(shape).clone()
    )
