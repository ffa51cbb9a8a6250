"""Move selections and means of a graph before the operations that can follow them.

A transformer's classifier reads one token, a convolutional one the mean over positions. Selecting
before the last linear layers instead of after them leaves the logits as they are, and most of a
masked copy need not be computed at all.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, fx

from unitroles.graph.ops import args_of, is_pointwise_convolution, value_of

_aten = torch.ops.aten

_SAME = {
    _aten.alias.default,
    _aten.clone.default,
    _aten.contiguous.default,
    _aten.dropout.default,
    _aten.neg.default,
}


_ELEMENTWISE = {
    _aten.abs.default,
    _aten.elu.default,
    _aten.gelu.default,
    _aten.hardsigmoid.default,
    _aten.hardswish.default,
    _aten.hardtanh.default,
    _aten.leaky_relu.default,
    _aten.mish.default,
    _aten.relu.default,
    _aten.relu6.default,
    _aten.sigmoid.default,
    _aten.silu.default,
    _aten.softplus.default,
    _aten.tanh.default,
}


_SUMS = {_aten.add.Tensor, _aten.sub.Tensor}


_PRODUCTS = {_aten.mul.Tensor, _aten.div.Tensor}


def hoist(module: fx.GraphModule) -> None:
    """Move selections and means over positions as far towards the cut as they can go, in place."""
    graph = module.graph
    for node in list(graph.nodes):
        kept = _keeping_axes(graph, node)
        todo = [] if kept is None else [kept]
        while todo:
            todo.extend(_lift(module, todo.pop()))
    graph.eliminate_dead_code()
    module.recompile()


def _keeping_axes(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """Split a selection or mean into one that keeps the axis and the removal of the axis."""
    value = value_of(node.args[0]) if node.args else None
    if not isinstance(value, Tensor):
        return None
    if node.target is _aten.select.int:
        dim, index = args_of(node)[1] % value.ndim, args_of(node)[2]
        if dim == 0 or not isinstance(index, int):
            return None
        end = sys.maxsize if index == -1 else index + 1
        with graph.inserting_before(node):
            kept = _call(graph, _aten.slice.Tensor, (node.args[0], dim, index, end))
            bare = _call(graph, _aten.squeeze.dim, (kept, dim))
    elif node.target is _aten.mean.dim and isinstance(node.args[1], (list, tuple)):
        dims = [dim % value.ndim for dim in args_of(node)[1]]
        if not dims or 0 in dims:
            return None
        with graph.inserting_before(node):
            kept = _call(graph, _aten.mean.dim, (node.args[0], dims, True))
            keeps = (len(node.args) > 2 and node.args[2]) or node.kwargs.get("keepdim", False)
            bare = kept if keeps else _call(graph, _aten.squeeze.dims, (kept, dims))
    elif node.target is _aten.adaptive_avg_pool2d.default and value.ndim == 4:
        if list(args_of(node)[1]) != [1, 1]:
            return None
        with graph.inserting_before(node):
            kept = bare = _call(graph, _aten.mean.dim, (node.args[0], [2, 3], True))
    else:
        return None
    node.replace_all_uses_with(bare)
    graph.erase_node(node)
    return kept


def _call(graph: fx.Graph, target: Any, args: tuple[Any, ...]) -> fx.Node:
    node = graph.call_function(target, args)
    node.meta["val"] = target(*(value_of(value) for value in args))
    return node


def _lift(module: fx.GraphModule, reduction: fx.Node) -> list[fx.Node]:
    """Put one reduction before the op whose result it reduces; returns the new reductions."""
    graph, node = module.graph, reduction.args[0]
    if not isinstance(node, fx.Node) or any(
        user is not reduction and user.target is not _aten.sym_size.int for user in node.users
    ):
        return []
    mean = reduction.target is _aten.mean.dim
    axes: Any = reduction.args[1]
    dims: list[int] = list(axes) if mean else [axes]
    moved = _operands(module, node, dims, mean)
    if moved is None:
        return []
    added, args = [], list(node.args)
    with graph.inserting_before(reduction):
        for place, axes in moved.items():
            rest = (axes, True) if mean else (axes[0], *reduction.args[2:])
            args[place] = _call(graph, reduction.target, (node.args[place], *rest))
            added.append(args[place])
        target: Any = node.target
        new = graph.call_function(target, tuple(args), node.kwargs)
        new.meta["val"] = value_of(reduction)
    reduction.replace_all_uses_with(new)
    graph.erase_node(reduction)
    if not node.users:
        graph.erase_node(node)
    return added


def _operands(
    module: fx.GraphModule, node: fx.Node, dims: list[int], mean: bool
) -> dict[int, list[int]] | None:
    """Which arguments of an op must be reduced instead of its result, on which axes; None = no."""
    first, ndim = value_of(node.args[0]) if node.args else None, value_of(node).ndim
    if node.target in _SAME or (node.target in _ELEMENTWISE and not mean):
        return {0: dims}
    if node.target in _SUMS or node.target in _PRODUCTS:
        return _joined(node, dims, ndim, mean)
    if not isinstance(first, Tensor):
        return None
    if node.target is _aten.linear.default:
        return {0: dims} if max(dims) < ndim - 1 else None
    if node.target is _aten.layer_norm.default and not mean:
        return {0: dims} if max(dims) < ndim - len(args_of(node)[1]) else None
    if node.target is _aten.permute.default:
        order = [axis % ndim for axis in args_of(node)[1]]
        return {0: [order[dim] for dim in dims]} if order[0] == 0 else None
    if node.target is _aten.transpose.int:
        one, two = (axis % ndim for axis in args_of(node)[1:3])
        swap = {one: two, two: one}
        return {0: [swap.get(dim, dim) for dim in dims]} if 0 not in (one, two) else None
    if node.target is _aten.conv2d.default and set(dims) <= {2, 3} and first.ndim == 4:
        return {0: dims} if is_pointwise_convolution(module, node) else None
    return None


def _joined(node: fx.Node, dims: list[int], ndim: int, mean: bool) -> dict[int, list[int]] | None:
    """The operands of a sum or product that have the reduced axes; the others stay as they are."""
    if node.kwargs and set(node.kwargs) != {"alpha"}:
        return None
    moved: dict[int, list[int]] = {}
    for place, operand in enumerate(node.args[:2]):
        if isinstance(operand, (int, float)):
            continue
        value = value_of(operand)
        if not isinstance(value, Tensor):
            return None
        shift = ndim - value.ndim
        sizes = [value.shape[dim - shift] if dim >= shift else 1 for dim in dims]
        if all(size == 1 for size in sizes):
            continue
        if any(size == 1 for size in sizes):
            return None
        moved[place] = [dim - shift for dim in dims]
    if mean and node.target in _PRODUCTS:
        # The mean of a product of two values is no product of means, and a divisor must stay.
        one_factor = list(moved) == [0] or (list(moved) == [1] and node.target is _aten.mul.Tensor)
        return moved if one_factor else None
    return moved or None
