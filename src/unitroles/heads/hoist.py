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

from unitroles.graph.ops import args_of, argument, op_of, value_of

_aten = torch.ops.aten


def hoist(module: fx.GraphModule) -> None:
    """Move selections and means over positions as far towards the cut as they can go, in place."""
    graph = module.graph
    for node in list(graph.nodes):
        kept = _keeping_axes(graph, node)
        todo = [] if kept is None else [kept]
        while todo:
            todo.extend(_lift(todo.pop()))
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
            kept = bare = _call(graph, _aten.mean.dim, (node.args[0], dims, True))
            if not argument(node, "keepdim"):
                bare = _call(graph, _aten.squeeze.dims, (kept, dims))
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


def _lift(reduction: fx.Node) -> list[fx.Node]:
    """Put one reduction before the op whose result it reduces; returns the new reductions."""
    graph, node = reduction.graph, reduction.args[0]
    if not isinstance(node, fx.Node) or any(
        user is not reduction and user.target is not _aten.sym_size.int for user in node.users
    ):
        return []
    mean = reduction.target is _aten.mean.dim
    axes: Any = reduction.args[1]
    op = op_of(node)
    moved = op.axes(node, list(axes) if mean else [axes])
    if moved is None or (mean and tuple(moved) not in op.means):
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
