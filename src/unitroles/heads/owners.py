"""Owners: the unit that every element of a value in a graph comes from.

The ops that move, pool or join values are run on whole numbers, the unit that owns each element,
instead of activations. Where two units would meet in one element, the value has no owners any
more: the op mixes units. Two rows with numbers of their own show that samples stay apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, fx
from torch.fx.node import map_arg

from unitroles.graph.cut import keeps_rows
from unitroles.graph.ops import ROWS, Kind, argument, op_of, plain, value_of

_aten = torch.ops.aten
NO_UNIT = -1
"""The owner of an element that depends on no unit."""


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
        if isinstance(value, Tensor) and _rows_apart(value, units) and keeps_rows(node, cut)
    }


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
    args = _plain(map_arg(node.args, lambda one: _argument(one, known)))
    kwargs = _plain(map_arg(node.kwargs, lambda one: _argument(one, known)))
    kind = op_of(node).kind
    if kind in _OF_ALL:
        return _OF_ALL[kind](node, args, kwargs)
    if kind in _OF_FIRST and node.all_input_nodes[0] in known and args[0] is not None:
        return _OF_FIRST[kind](node, args, kwargs)
    raise _UnitsMeet


def _moved(node: fx.Node, args: Any, kwargs: Any) -> Any:
    target: Any = node.target
    return target(*args, **kwargs)


def _padded(node: fx.Node, args: Any, kwargs: Any) -> Tensor:
    if (list(args[2:3]) or ["constant"]) != ["constant"] and node.target is _aten.pad.default:
        raise _UnitsMeet
    return _aten.constant_pad_nd.default(args[0], args[1], NO_UNIT)


def _pointwise(node: fx.Node, args: Any, kwargs: Any) -> Tensor:
    """The owner of an element is that of all elements which it is made of."""
    owner = torch.full(_shape(node), NO_UNIT)
    for part in (*args, *kwargs.values()):
        if isinstance(part, Tensor):
            other = part.expand(owner.shape)
            if bool(((owner >= 0) & (other >= 0) & (owner != other)).any()):
                raise _UnitsMeet
            owner = torch.maximum(owner, other)
    return owner


def _cast(node: fx.Node, args: Any, kwargs: Any) -> Tensor:
    return args[0]


def _normed(node: fx.Node, args: Any, kwargs: Any) -> Any:
    training = node.target is _aten.batch_norm.default and bool(args[5])
    if training or args[3] is None:
        raise _UnitsMeet
    return args[0] if node.target is _aten.batch_norm.default else (args[0], None, None)


def _reduced(node: fx.Node, args: Any, kwargs: Any) -> Tensor:
    if len(args) < 2:
        raise _UnitsMeet
    keeps = argument(node, "keepdim")
    return _single(args[0], lambda value: value.amax(args[1], keepdim=keeps))


def _summed(node: fx.Node, args: Any, kwargs: Any) -> Tensor:
    """All that is summed belongs to one unit: features of a token mixer, for one."""
    if op_of(node).kind is Kind.LAYER_NORM and len(args[1]) != 1:
        raise _UnitsMeet
    owner = _single(args[0], lambda value: value.amax(dim=-1, keepdim=True))
    return owner.expand(_shape(node)).clone()


def _argument(node: fx.Node, known: dict[fx.Node, Any]) -> Any:
    if node in known:
        return known[node]
    value = value_of(node)
    if isinstance(value, torch.SymInt):
        return plain(value)
    if isinstance(value, Tensor):
        return torch.tensor(NO_UNIT).expand(_shape(node))  # weights may be large
    return value


def _plain(value: Any) -> Any:
    """Lists that ops take; those of a graph are of a kind of their own."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value)) if type(value) is tuple else [*map(_plain, value)]
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, dict) else value


def _single(value: Tensor, largest: Any) -> Tensor:
    """The one owner of what `largest` takes together; elements without an owner do not count."""
    high = largest(value)
    low = -largest(torch.where(value < 0, torch.iinfo(value.dtype).min, -value))
    if bool(((high >= 0) & (high != low)).any()):
        raise _UnitsMeet
    return high


def _pooled(node: fx.Node, args: Any, kwargs: Any) -> Tensor:
    """As a max pool, which shows the largest and the smallest owner in every window."""
    name = str(node.target).split(".")[1]
    pool = getattr(_aten, name.replace("avg", "max")).default
    # One axis fewer than samples, channels and positions is read as no batch.
    if args[0].ndim != int(name[-2]) + 2 or kwargs:
        raise _UnitsMeet
    rest = tuple(args[1:])
    if name.startswith("avg"):
        stride, padding, ceil = (*rest[1:4], *([], 0, False)[len(rest[1:4]) :])
        rest = (rest[0], stride, padding, 1, ceil)

    def largest(value: Tensor) -> Tensor:
        found = pool(value.to(torch.float64), *rest)
        found = found[0] if isinstance(found, tuple) else found
        return found.clamp(min=-1e15).to(torch.int64)

    return _single(args[0], largest)


def _grouped(node: fx.Node, args: Any, kwargs: Any) -> Tensor:
    """A convolution whose every group sees the channels of one unit, as a depthwise one does."""
    groups = argument(node, "groups")
    value, shape = args[0], _shape(node)
    if value.ndim != 4 or shape[1] % groups:
        raise _UnitsMeet
    by_group = value.unflatten(1, (groups, -1)).flatten(2)
    owner = _single(by_group, lambda grouped: grouped.amax(dim=2))
    return (
        owner.repeat_interleave(shape[1] // groups, dim=1)[:, :, None, None].expand(shape).clone()
    )


_Rule = Callable[[fx.Node, Any, Any], Any]
_OF_ALL: dict[Kind, _Rule] = {
    Kind.MOVE: _moved,
    Kind.PAD: _padded,
    Kind.POINTWISE: _pointwise,
}
_OF_FIRST: dict[Kind, _Rule] = {
    Kind.CAST: _cast,
    Kind.BATCH_NORM: _normed,
    Kind.REDUCTION: _reduced,
    Kind.POOL: _pooled,
    Kind.LINEAR: _summed,
    Kind.LAYER_NORM: _summed,
    Kind.CONVOLUTION: _grouped,
}
"""Ops that have owners only where those come with their first argument."""
