"""The same graph, faster on many rows: what comes after a layer runs once for every mask.

Norms are folded into the convolutions before them. A convolution over a map that is smaller than
its kernel multiplies mostly padding, and becomes one linear layer. On processors images have their
channels last, and products in float32 go to oneDNN, which takes half as long as MKL on some.
Results are written over intermediate values that nothing else reads.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, fx

from unitroles.graph.constants import Constants
from unitroles.graph.extract import copied
from unitroles.graph.ops import Kind, args_of, argument, fixed_weights, op_of, value_of

_aten = torch.ops.aten

# Smaller products take longer to hand over than to compute.
_LEAST_PRODUCT = 2**14
# A larger matrix would take more memory than it saves time.
_LARGEST_MATRIX = 2**24
# A kernel with channels last leaves its vectors mostly empty where rows are shorter.
_SHORT_ROW = 4
# What these give depends on where numbers are in memory, not on which they are.
_BY_PLACE = {_aten.as_strided.default, _aten.view.dtype}


def without_norms(module: fx.GraphModule, made: Constants) -> fx.GraphModule:
    """A copy in which the norms right after convolutions are part of these."""
    copy = copied(module)
    for node in list(copy.graph.nodes):
        if op_of(node).kind is Kind.BATCH_NORM and _follows_a_convolution(node):
            _fold(copy, node, made)
    return _finished(copy)


def fast(module: fx.GraphModule, made: Constants) -> fx.GraphModule:
    """A copy that gives the same but for rounding, faster on many rows.

    Parameters
    ----------
    made : of the weights, by graphs of the same export.
    """
    copy = without_norms(module, made)
    free = not by_place(copy)
    for node in list(copy.graph.nodes):
        if node.target is _aten.view.default:
            node.target = _aten.reshape.default  # also of channels that are last
        if op_of(node).kind is Kind.CONVOLUTION and fixed_weights(node):
            _faster_convolution(copy, node, made, free)
    for node in list(copy.graph.nodes):
        if op_of(node).kind is Kind.LINEAR and fixed_weights(node):
            _by_onednn(copy, node, made)
    for node in copy.graph.nodes:
        _write_over(node)
    return _finished(copy)


def by_place(module: fx.GraphModule) -> bool:
    """Whether a graph gives something else where the same numbers lie in another order."""
    return any(node.target in _BY_PLACE for node in module.graph.nodes)


def on_processor(value: Tensor) -> bool:
    """Whether the library that works on such values is oneDNN."""
    return value.device.type == "cpu" and value.dtype == torch.float32


def laid_out(value: Tensor) -> Tensor:
    """A value in the order in memory in which a fast graph reads it."""
    images = value.ndim == 4 and on_processor(value)
    return value.contiguous(
        memory_format=torch.channels_last if images else torch.contiguous_format
    )


def _onednn() -> Any:
    """The product of oneDNN, which is no public name; None where this build has none."""
    if not torch.backends.mkldnn.is_available():
        return None
    return getattr(getattr(torch.ops.mkldnn, "_linear_pointwise", None), "default", None)


def _finished(module: fx.GraphModule) -> fx.GraphModule:
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()
    return module


def _number(module: fx.GraphModule, given: Any) -> Any:
    return getattr(module, str(given.target)) if isinstance(given, fx.Node) else given


def _put(module: fx.GraphModule, user: fx.Node, name: str, value: Tensor) -> fx.Node:
    """A constant of the graph, made for one of its nodes."""
    name = f"fast_{name}_of_{user.name}"
    module.register_buffer(name, value, persistent=False)
    with module.graph.inserting_before(user):
        place = module.graph.get_attr(name)
    place.meta["val"] = value if value.is_mkldnn else value.to("meta")
    return place


def _follows_a_convolution(norm: fx.Node) -> bool:
    before: Any = norm.args[0]
    return (
        op_of(norm).affine(norm)
        and op_of(before).kind is Kind.CONVOLUTION
        and len(before.users) == 1
        and fixed_weights(before)
        and fixed_weights(norm)
    )


def _fold(module: fx.GraphModule, norm: fx.Node, made: Constants) -> None:
    """Put the factors and constants of a norm into the convolution before it."""
    before: Any = norm.args[0]
    names = ("weight", "bias", "running_mean", "running_var")
    of_norm = [_number(module, argument(norm, name)) for name in names]
    weight, bias = (_number(module, argument(before, name)) for name in ("weight", "bias"))
    folded = made.of("folded", _folded, weight, bias, *of_norm, argument(norm, "eps"))
    _convolve(module, before, *folded)
    norm.replace_all_uses_with(before)
    module.graph.erase_node(norm)


def _folded(
    weight: Tensor,
    bias: Tensor | None,
    gain: Any,
    shift: Any,
    mean: Tensor,
    var: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    factor = (var.to(torch.float64) + eps).rsqrt()
    factor = factor if gain is None else factor * gain
    constant = ((0.0 if bias is None else bias) - mean.to(torch.float64)) * factor
    constant = constant if shift is None else constant + shift
    folded = weight * factor.view(-1, *[1] * (weight.ndim - 1))
    return folded.to(weight.dtype), constant.to(weight.dtype)


def _convolve(module: fx.GraphModule, node: fx.Node, weight: Tensor, bias: Tensor | None) -> None:
    """Give a convolution another weight and another bias."""
    rest = [argument(node, name) for name in ("stride", "padding", "dilation", "groups")]
    places = [
        None if value is None else _put(module, node, name, value)
        for name, value in (("weight", weight), ("bias", bias))
    ]
    node.args, node.kwargs = (node.args[0], *places, *rest), {}


def _faster_convolution(module: fx.GraphModule, node: fx.Node, made: Constants, free: bool) -> None:
    """Another form of a convolution, where one is faster.

    Parameters
    ----------
    free : whether nothing in the graph depends on the order of numbers in memory.
    """
    value = value_of(node.args[0])
    sizes = [*value.shape[2:], *value_of(node).shape[2:]]
    if value.ndim != 4 or not all(isinstance(size, int) for size in sizes):
        return
    if _as_matrix(module, node, made, sizes) or not (free and on_processor(value)):
        return
    weight, bias = (_number(module, argument(node, name)) for name in ("weight", "bias"))
    one = set(weight.shape[2:]) == {1} and not any(argument(node, "padding"))
    if one and argument(node, "groups") == 1:
        _over_features(module, node, weight.flatten(1), bias)
        return
    narrow = sizes[-1] < _SHORT_ROW or argument(node, "groups") > 1
    order = torch.contiguous_format if narrow else torch.channels_last
    with module.graph.inserting_before(node):
        laid = module.graph.call_function(
            _aten.contiguous.default, (node.args[0],), {"memory_format": order}
        )
    laid.meta["val"] = value
    node.update_arg(0, laid)
    arranged = made.of(str(order), lambda w: w.contiguous(memory_format=order), weight)
    _convolve(module, node, arranged, bias)


def _as_matrix(module: fx.GraphModule, node: fx.Node, made: Constants, sizes: list[int]) -> bool:
    """Make one linear layer of a convolution over a map that is smaller than its kernel."""
    weight, bias = (_number(module, argument(node, name)) for name in ("weight", "bias"))
    value, result = value_of(node.args[0]), value_of(node)
    inputs, outputs = value.shape[1] * math.prod(sizes[:2]), len(weight) * math.prod(sizes[2:])
    few = math.prod(sizes[:2]) < math.prod(weight.shape[2:])
    if not few or argument(node, "groups") > 1 or inputs * outputs > _LARGEST_MATRIX:
        return False
    rest = [tuple(argument(node, name)) for name in ("stride", "padding", "dilation")]
    matrix = made.of("matrix", _placed, weight, tuple(sizes), *rest)
    place, constant = _put(module, node, "matrix", matrix), None
    if bias is not None:
        constant = _put(module, node, "bias", bias.repeat_interleave(math.prod(sizes[2:])))
    graph = module.graph
    with graph.inserting_before(node):
        flat = graph.call_function(_aten.reshape.default, (node.args[0], [-1, inputs]))
        mixed = graph.call_function(_aten.linear.default, (flat, place, constant))
        back = graph.call_function(_aten.reshape.default, (mixed, [-1, *result.shape[1:]]))
    flat.meta["val"] = value.new_empty((value.shape[0], inputs))
    mixed.meta["val"] = value.new_empty((value.shape[0], outputs))
    back.meta["val"] = result
    node.replace_all_uses_with(back)
    graph.erase_node(node)
    return True


def _placed(
    weight: Float[Tensor, "outputs inputs _ _"],
    sizes: Sequence[int],
    strides: Sequence[int],
    paddings: Sequence[int],
    steps: Sequence[int],
) -> Float[Tensor, "results places"]:
    """The weights of a convolution from every place of its map to every place of its result."""
    height, width, rows, columns = sizes
    found = weight.new_zeros(len(weight), rows, columns, weight.shape[1], height, width)
    for place in product(range(rows), range(columns), *map(range, weight.shape[2:])):
        to, tap = place[:2], place[2:]
        y, x = (
            t * stride + k * step - padding
            for t, k, stride, step, padding in zip(to, tap, strides, steps, paddings, strict=True)
        )
        if 0 <= y < height and 0 <= x < width:
            found[:, to[0], to[1], :, y, x] = weight[:, :, tap[0], tap[1]]
    return found.flatten(3).flatten(0, 2)


def _over_features(
    module: fx.GraphModule, node: fx.Node, weight: Tensor, bias: Tensor | None
) -> None:
    """Make a linear layer over the channels of a convolution that sees one position at a time."""
    matrix = _put(module, node, "matrix", weight.contiguous())
    constant = None if bias is None else _put(module, node, "bias", bias)
    graph, value, result = module.graph, node.args[0], value_of(node)

    def call(target: Any, *args: Any) -> fx.Node:
        with graph.inserting_before(node):
            found = graph.call_function(target, args)
        found.meta["val"] = target(*map(value_of, args))
        return found

    for axis, stride in enumerate(argument(node, "stride"), 2):
        if stride > 1:
            value = call(_aten.slice.Tensor, value, axis, 0, sys.maxsize, stride)
    last = call(_aten.permute.default, value, [0, 2, 3, 1])
    with graph.inserting_before(node):
        mixed = graph.call_function(_aten.linear.default, (last, matrix, constant))
    mixed.meta["val"] = result.permute(0, 2, 3, 1)
    node.replace_all_uses_with(call(_aten.permute.default, mixed, [0, 3, 1, 2]))
    graph.erase_node(node)


def _by_onednn(module: fx.GraphModule, node: fx.Node, made: Constants) -> None:
    """Let oneDNN compute a product."""
    target = _onednn()
    if target is None or not on_processor(value_of(node.args[0])):
        return
    weight, bias = (_number(module, argument(node, name)) for name in ("weight", "bias"))
    if weight.numel() < _LEAST_PRODUCT or weight.dtype != torch.float32:
        return
    packed = made.of("packed", lambda matrix: matrix.contiguous().to_mkldnn(), weight)
    place = _put(module, node, "packed", packed)
    constant = None if bias is None else argument(node, "bias")
    node.target = target
    node.args, node.kwargs = (node.args[0], place, constant, "none", [], ""), {}


_OVER: dict[Any, Any] = {
    _aten.relu.default: _aten.relu_.default,
    _aten.gelu.default: _aten.gelu_.default,
    _aten.silu.default: _aten.silu_.default,
    _aten.tanh.default: _aten.tanh_.default,
    _aten.add.Tensor: _aten.add_.Tensor,
    _aten.mul.Tensor: _aten.mul_.Tensor,
}
_SAME_NUMBERS = {
    _aten.permute.default,
    _aten.transpose.int,
    _aten.reshape.default,
    _aten.flatten.using_ints,
    _aten.squeeze.dim,
    _aten.squeeze.dims,
    _aten.unsqueeze.default,
    _aten.contiguous.default,
    _aten.clone.default,
}
_MAKES_NEW = {Kind.CONVOLUTION, Kind.LINEAR, Kind.BATCH_NORM, Kind.LAYER_NORM}


def _write_over(node: fx.Node) -> None:
    """Write a result over a value that nothing else needs: new memory costs more than the numbers.

    Only over what an op of the graph has made: what it is given is not its own.
    """
    if node.target not in _OVER:
        return
    value, *rest = args_of(node)
    if rest and not _may_be_written(value) and not node.kwargs and isinstance(rest[0], fx.Node):
        value, rest = rest[0], [value]
    if not _may_be_written(value):
        return
    one, two = value_of(value), value_of(node)
    same = (one.dtype, [*map(str, one.shape)]) == (two.dtype, [*map(str, two.shape)])
    if same and value not in rest:
        node.target, node.args = _OVER[node.target], (value, *rest)


def _may_be_written(node: Any) -> bool:
    """Whether a value is of the graph's own making, and has one user."""
    while isinstance(node, fx.Node) and node.target in _SAME_NUMBERS and len(node.users) == 1:
        node = node.args[0]
    if not isinstance(node, fx.Node) or len(node.users) != 1:
        return False
    return op_of(node).kind in _MAKES_NEW or node.target in (_onednn(), *_OVER, *_OVER.values())
