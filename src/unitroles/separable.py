"""Move a cut past the ops that act on every unit alone, so that less is repeated for each mask.

Where t acts on every unit alone, silencing a unit before t is the same as putting t of a silent
layer in its place after t. Convolutional layers thus cross their activation function and pooling,
after which a masked copy is a fraction of its size.
"""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from unitroles.graph import Head

_aten = torch.ops.aten

_POINTWISE = {
    _aten.add.Tensor,
    _aten.clone.default,
    _aten.div.Tensor,
    _aten.dropout.default,
    _aten.elu.default,
    _aten.gelu.default,
    _aten.hardsigmoid.default,
    _aten.hardswish.default,
    _aten.hardtanh.default,
    _aten.leaky_relu.default,
    _aten.mul.Tensor,
    _aten.relu.default,
    _aten.relu6.default,
    _aten.sigmoid.default,
    _aten.silu.default,
    _aten.sub.Tensor,
    _aten.tanh.default,
}
# With the number of axes that make them pools over positions: one fewer is read as no batch.
_POOLS: dict[Any, int] = {
    _aten.adaptive_avg_pool1d.default: 3,
    _aten.adaptive_avg_pool2d.default: 4,
    _aten.adaptive_avg_pool3d.default: 5,
    _aten.avg_pool1d.default: 3,
    _aten.avg_pool2d.default: 4,
    _aten.avg_pool3d.default: 5,
    _aten.max_pool1d.default: 3,
    _aten.max_pool2d.default: 4,
    _aten.max_pool3d.default: 5,
}
_RESHAPES = {
    _aten.flatten.using_ints,
    _aten.reshape.default,
    _aten.view.default,
}


def advance(head: Head) -> Head:
    """The same head with its cut moved as far as every unit still stands alone on one axis.

    Parameters
    ----------
    head : as it was pruned, its cut at the layer's output.
    """
    graph = head.run.graph
    cut = next(iter(graph.nodes))
    dependent = _dependent(cut)
    value, axis = cut, head.axis
    while True:
        users = [user for user in value.users if user.target is not _aten.sym_size.int]
        if len(users) != 1:
            break
        normed = _after_norm(users[0], value) if axis == 1 else None
        found = axis if normed else _axis_after(users[0], value, axis, dependent)
        if found is None:
            break
        value, axis = normed or users[0], found
    if value is cut:
        return head
    run = _rest(head.run, cut, value)
    used = [bool(node.users) for node in run.graph.nodes if node.op == "placeholder"][1:]
    repeats = tuple(both and row for both, row in zip(used, head.repeats, strict=True))
    return replace(head, before=_part(head.run, value), run=run, repeats=repeats, axis=axis)


def _dependent(cut: fx.Node) -> set[fx.Node]:
    found = {cut}
    for node in cut.graph.nodes:
        if not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


def _axis_after(node: fx.Node, value: fx.Node, axis: int, dependent: set[fx.Node]) -> int | None:
    """The unit axis of an op's result, or None where units meet or leave their axis."""
    others = [n for n in node.all_input_nodes if n is not value]
    operands = [value, *others] if node.target in _POINTWISE else [node.args[0]]
    if value not in operands or node.args.count(value) != 1:
        return None
    if any(n in dependent and isinstance(n.meta.get("val"), Tensor) for n in others):
        return None
    old, new = _sizes(value), _sizes(node)
    if old is None or new is None or old[0] != new[0]:
        return None
    if node.target in _POINTWISE:
        return axis if old == new else None
    if node.target in _POOLS:
        return axis if axis == 1 and len(old) == len(new) == _POOLS[node.target] else None
    if node.target is _aten.mean.dim:
        return _axis_after_mean(node, axis, len(old))
    alone = all(size == 1 for place, size in enumerate(old[1:], 1) if place != axis)
    if node.target in _RESHAPES and alone and new[1:].count(old[axis]) == 1:
        # Nothing but the units is left, so their order cannot change.
        return 1 + new[1:].index(old[axis])
    return None


def _after_norm(node: fx.Node, value: fx.Node) -> fx.Node | None:
    """The result of a batch norm by running statistics, which gives a tuple."""
    if node.target is not _aten._native_batch_norm_legit_no_training.default:
        return None
    results = list(node.users)
    plain = len(results) == 1 and results[0].target is operator.getitem
    return results[0] if plain and results[0].args[1] == 0 and node.args[0] is value else None


def _axis_after_mean(node: fx.Node, axis: int, ndim: int) -> int | None:
    dims: Any = node.args[1]
    keep = bool(node.args[2]) if len(node.args) > 2 else bool(node.kwargs.get("keepdim", False))
    if not isinstance(dims, (list, tuple)) or not dims:
        return None
    places = {dim % ndim for dim in dims}
    if 0 in places or axis in places:
        return None
    return axis if keep else axis - sum(place < axis for place in places)


def _sizes(node: fx.Node) -> list[Any] | None:
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or not value.ndim:
        return None
    sizes = list(value.shape)
    return [str(sizes[0]), *sizes[1:]] if all(type(s) is int for s in sizes[1:]) else None


def _part(source: fx.GraphModule, value: fx.Node) -> fx.GraphModule:
    """The graph from the placeholders to `value`."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in source.graph.nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
        if node is value:
            break
    graph.output(copies[value])
    return _module(source, graph)


def _rest(source: fx.GraphModule, cut: fx.Node, value: fx.Node) -> fx.GraphModule:
    """The graph from `value`, which takes the place of the cut, to the logits."""
    graph = fx.Graph()
    copies = {value: graph.placeholder("cut")}
    copies[cut] = copies[value]  # only its number of rows is still asked for
    for node in source.graph.nodes:
        if node not in copies:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    return _module(source, graph)


def _module(source: fx.GraphModule, graph: fx.Graph) -> fx.GraphModule:
    graph.eliminate_dead_code()
    return fx.GraphModule(source, graph)
