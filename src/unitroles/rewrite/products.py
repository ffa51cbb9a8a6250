"""Matrix products in the one form that the rest of a graph is read in: `linear` on the last axis.

GPT-2 multiplies by weights the other way round, in `addmm`; heads by hand are `x @ W.T`, an
`einsum`, or divide their weights by their size first; many models put samples and positions into
one axis before a product and take them apart after it. All that is a `linear` with fixed weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from unitroles.graph.ops import Kind, args_of, argument, op_of, value_of

_aten = torch.ops.aten
_VIEWS = (_aten.view.default, _aten.reshape.default)
_LETTERS = "abcdefghij"
_PRODUCTS = (_aten.matmul.default, _aten.mm.default)


def make_linear(module: fx.GraphModule) -> None:
    """Change a graph in place so that its products are `linear`, as far as they can be."""
    for node in list(module.graph.nodes):
        if node.op != "call_function":
            continue
        if node.target is _aten.view.default:
            # What was next to each other in memory need not be so any more.
            node.target = _aten.reshape.default
        _turn(module, node)
        _contract(module, node)
        _fix_weight(module, node)
        _take_apart(node)
        _leave_together(node)
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()


def _turn(module: fx.GraphModule, node: fx.Node) -> None:
    """A product with a fixed matrix as `linear`, whose weight is turned round."""
    value: Any
    weight: Any
    bias: Any = None
    if node.target in _PRODUCTS:
        value, weight = args_of(node)
    elif node.target is _aten.addmm.default and not node.kwargs:
        bias, value, weight = args_of(node)
    else:
        return
    if _axes(value) < 2 or _axes(weight) != 2 or (bias is not None and _axes(bias) != 1):
        return
    matrix = _fixed(module, weight)
    if matrix is not None:
        place = _constant(module, node, weight.name + "_turned", matrix.t())
        node.target, node.args = _aten.linear.default, (value, place, bias)


def _contract(module: fx.GraphModule, node: fx.Node) -> None:
    """A product over any one axis with a fixed matrix as `linear`, between two `permute`.

    Anything else that may be spelled so is left as it is: sums over more axes, axes of both that
    stay, one axis twice.
    """
    operands = _operands(node)
    if operands is None:
        return
    (rows, value), (inner, weight), made = operands
    matrix = _fixed(module, weight)
    if matrix is None:
        (inner, weight), (rows, value) = (rows, value), (inner, weight)
        matrix = _fixed(module, weight)
    kept, free = [a for a in rows if a not in inner], [a for a in inner if a not in rows]
    summed = [axis for axis in rows if axis in inner]
    order = kept + free
    if matrix is None or len(inner) != 2 or len(summed) != 1 or sorted(order) != sorted(made):
        return
    if len({*rows}) < len(rows) or inner[0] == inner[1]:
        return
    turned = matrix if inner[1] == summed[0] else matrix.t()
    there, back = [rows.index(axis) for axis in kept + summed], [order.index(one) for one in made]
    given = value_of(value).permute(there)
    if str(given.shape[-1]) != str(turned.shape[1]):  # one number for all of an axis
        return
    with node.graph.inserting_before(node):
        place = _constant(module, node, f"{weight.name}_of_{node.name}", turned.contiguous())
        last = node.graph.call_function(_aten.permute.default, (value, there))
        product = node.graph.call_function(_aten.linear.default, (last, place))
    last.meta["val"] = given
    product.meta["val"] = given.new_empty((*given.shape[:-1], len(turned)))
    node.target, node.args, node.kwargs = _aten.permute.default, (product, back), {}


_Operands = tuple[tuple[str, Any], tuple[str, Any], str]


def _operands(node: fx.Node) -> _Operands | None:
    """The two operands of a product and its result, with a letter for every axis."""
    if node.target is _aten.matmul.default:
        left, right = args_of(node)
        if _axes(left) != 2 or not 2 < _axes(right) < len(_LETTERS):
            return None
        letters = _LETTERS[: _axes(right)]
        return (f"z{letters[-2]}", left), (letters, right), f"{letters[:-2]}z{letters[-1]}"
    if node.target is not _aten.einsum.default:
        return None
    taken, arrow, made = args_of(node)[0].replace(" ", "").partition("->")
    axes, operands = taken.split(","), args_of(node)[1]
    if not arrow or len(axes) != 2 or [*map(len, axes)] != [*map(_axes, operands)]:
        return None  # all axes by "...", too: their number is not spelled out
    return (axes[0], operands[0]), (axes[1], operands[1]), made


def _axes(node: Any) -> int:
    value = value_of(node)
    return value.ndim if isinstance(value, Tensor) else 0


def _fix_weight(module: fx.GraphModule, node: fx.Node) -> None:
    """The weight of a product as a number, where it is computed from weights alone."""
    if op_of(node).kind not in (Kind.LINEAR, Kind.CONVOLUTION):
        return
    weight: Any = node.args[1]
    if isinstance(weight, fx.Node) and weight.op == "call_function":
        value = _fixed(module, weight)
        if value is not None:
            node.update_arg(1, _constant(module, node, weight.name, value))


def _fixed(module: fx.GraphModule, node: Any) -> Tensor | None:
    """The value of a node that depends on nothing but weights."""
    if not isinstance(node, fx.Node):
        return None
    if node.op == "get_attr":
        value = getattr(module, str(node.target))
        return value if isinstance(value, Tensor) else None
    target: Any = node.target
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":
        return None
    if target._schema.is_mutable or torch.Tag.nondeterministic_seeded in target.tags:
        return None
    known = {one: _fixed(module, one) for one in node.all_input_nodes}
    if not known or any(value is None for value in known.values()):
        return None
    with torch.no_grad():
        args, kwargs = map_arg((node.args, node.kwargs), known.__getitem__)
        found = target(*args, **kwargs)
    return found if isinstance(found, Tensor) else None


def _constant(module: fx.GraphModule, user: fx.Node, name: str, value: Tensor) -> fx.Node:
    name = f"parameter_{name}"  # as all that is learned
    if not hasattr(module, name):
        module.register_buffer(name, value.detach(), persistent=False)
    with user.graph.inserting_before(user):
        place = user.graph.get_attr(name)
    place.meta["val"] = value.detach().to("meta")
    return place


def _take_apart(node: fx.Node) -> None:
    """Put an op on the last axis before the view that made samples and positions one axis."""
    flat: Any = node.args[0] if node.args else None
    if not (isinstance(flat, fx.Node) and flat.target in _VIEWS and _on_last_axis(node)):
        return
    whole: Any = flat.args[0]
    if _axes(flat) != 2 or _axes(whole) < 3 or _axes(node) != 2:
        return
    sizes, result = value_of(whole).shape, value_of(node)
    if str(sizes[-1]) != str(value_of(flat).shape[-1]) or _changing(sizes[1:]):
        return
    target: Any = node.target
    with node.graph.inserting_before(node):
        apart = node.graph.call_function(target, (whole, *node.args[1:]), node.kwargs)
    apart.meta["val"] = result.reshape(*sizes[:-1], result.shape[-1])
    node.target, node.args, node.kwargs = _aten.reshape.default, (apart, [-1, result.shape[-1]]), {}


def _changing(sizes: Sequence[Any]) -> bool:
    return any(isinstance(size, torch.SymInt) for size in sizes)


def _on_last_axis(node: fx.Node) -> bool:
    """Whether every row gives the same whatever the axes before the last are."""
    kind = op_of(node).kind
    if kind is Kind.LAYER_NORM:
        return len(argument(node, "normalized_shape")) == 1
    alone = len(node.all_input_nodes) == 1
    return kind is Kind.LINEAR or (alone and kind is Kind.POINTWISE)


def _leave_together(node: fx.Node) -> None:
    """Read past a view that another one undoes."""
    inner: Any = node.args[0] if node.target in _VIEWS else None
    if not (isinstance(inner, fx.Node) and inner.target in _VIEWS):
        return
    whole = inner.args[0]
    if isinstance(value_of(whole), Tensor) and _sizes(whole) == _sizes(node):
        node.args = (whole, node.args[1])


def _sizes(node: Any) -> list[str]:
    return [str(size) for size in value_of(node).shape]
