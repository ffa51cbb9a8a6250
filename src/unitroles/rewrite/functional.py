"""Rewrite the in-place ops of an exported graph, so that every value stays what it was.

Parts of a graph that writes to its values are silently wrong. `run_decompositions` removes the
writing too, but traces the whole model again, which often costs more than the export itself.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from unitroles.graph.ops import args_of

_aten = torch.ops.aten

# May give back the very tensor they were given, which their schemas do not say.
_SOMETIMES_ALIAS = {
    _aten.dropout.default,
    _aten.feature_dropout.default,
    _aten.alpha_dropout.default,
    _aten.type_as.default,
    operator.getitem,
}
# Take only the kind and place of numbers from their first argument.
_MAKERS = {_aten.new_zeros.default, _aten.new_ones.default, _aten.new_full.default}
_ON_NUMBERS = {
    operator.getitem, operator.mul, operator.add, operator.sub, operator.floordiv, operator.mod,
    operator.eq, operator.ne, operator.le, operator.lt, operator.ge, operator.gt, operator.neg,
    operator.truediv, torch.sym_max, torch.sym_min, torch.sym_float, torch.sym_int, torch.sym_not,
}  # fmt: skip


def writes(node: fx.Node) -> bool:
    """Whether an op writes to one of its arguments."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def make_functional(module: fx.GraphModule, constants: Mapping[str, Tensor]) -> bool:
    """Take the writing out of a graph in place; False, and nothing done, where that is not safe.

    All that depends on weights and sizes alone (the attention masks of a window transformer) is
    computed once; other in-place ops become the plain ones, which is safe where the value that is
    written to has no other name that is used later.

    Parameters
    ----------
    constants : parameters and buffers by the name of their placeholder.
    """
    if not all(map(_known, module.graph.nodes)):
        return False
    fixed = _fixed_values(module, constants)
    renamed = fixed is not None and _renamings(module.graph, fixed)
    if fixed is None or renamed is None or renamed is False:
        return False
    for node in module.graph.nodes:
        if node in renamed:
            plain, names = renamed[node]
            node.args = map_arg(node.args, lambda one, names=names: names.get(one, one))
            node.kwargs = map_arg(node.kwargs, lambda one, names=names: names.get(one, one))
            node.target = plain
    _put_in(module, fixed)
    module.graph.lint()
    module.recompile()
    return True


def _known(node: fx.Node) -> bool:
    """Sub-graphs (of autocast, of gradient modes, of control flow) may write to what they like."""
    return (
        node.op != "call_function"
        or isinstance(node.target, torch._ops.OpOverload)
        or node.target in _ON_NUMBERS
    )


def _fixed_values(
    module: fx.GraphModule, constants: Mapping[str, Tensor]
) -> dict[fx.Node, Any] | None:
    """Values that depend on no sample, where something is written to one of them; None = unsafe."""
    values: dict[fx.Node, Any] = {}
    kept = {tensor.untyped_storage().data_ptr() for tensor in constants.values()}
    started = False
    for node in module.graph.nodes:
        if node.op == "placeholder" and node.name in constants:
            values[node] = constants[node.name]
        elif node.op == "get_attr" and isinstance(getattr(module, str(node.target), None), Tensor):
            values[node] = getattr(module, str(node.target)).clone()
        elif node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
            if not _is_fixed(node, values):
                continue
            written = values[args_of(node)[0]] if writes(node) else None
            if written is not None:
                started = True
                if written.untyped_storage().data_ptr() in kept or _read_before(node, values):
                    return None
            values[node] = _run(node, values)
    return values if started else {}


def _is_fixed(node: fx.Node, values: dict[fx.Node, Any]) -> bool:
    if node.target in _MAKERS:
        return not any(isinstance(size, fx.Node) for size in args_of(node)[1])
    sources = node.all_input_nodes
    return bool(sources) and all(source in values for source in sources)


def _run(node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    target: Any = node.target
    if target in _MAKERS:
        like = node.meta["val"]
        base = torch.empty(0, dtype=like.dtype, device=like.device)
        return target(base, *node.args[1:], **node.kwargs)
    args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
    return target(*args, **kwargs)


def _read_before(node: fx.Node, values: dict[fx.Node, Any]) -> bool:
    """Whether something that depends on samples reads a value before it is written to."""
    storage = values[args_of(node)[0]].untyped_storage().data_ptr()
    past = set()
    for other in node.graph.nodes:
        if other is node:
            break
        past.add(other)
    return any(
        user in past and user not in values
        for one, value in values.items()
        if isinstance(value, Tensor) and value.untyped_storage().data_ptr() == storage
        for user in one.users
    )


def _renamings(
    graph: fx.Graph, fixed: dict[fx.Node, Any]
) -> dict[fx.Node, tuple[Any, dict[fx.Node, fx.Node]]] | None:
    """For every op its plain form and the newer names of what it takes; None = unsafe."""
    place = {node: i for i, node in enumerate(graph.nodes)}
    newest: dict[fx.Node, fx.Node] = {}
    roots: dict[fx.Node, fx.Node] = {}
    names: dict[fx.Node, set[fx.Node]] = {}
    found = {}
    for node in graph.nodes:
        mine = {one: _last(one, newest) for one in node.all_input_nodes}
        mine = {one: last for one, last in mine.items() if last is not one}
        root, target = node, node.target
        first = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        if first is not None and _aliases(node):
            last: Any = mine.get(first, first)
            root = roots[last]
        elif writes(node) and node not in fixed:
            target = _plain(node)
            value = None if first is None else mine.get(first, first)
            if target is None or value is None or value.op != "call_function" or value in fixed:
                return None
            others = names[roots[value]] - {value}
            if roots[value] is not value or any(
                place[user] > place[node] for other in others for user in other.users
            ):
                return None
            newest[value] = node
        if mine or target is not node.target:
            found[node] = target, mine
        roots[node] = root
        names.setdefault(root, set()).add(node)
    return found


def _last(node: fx.Node, newest: dict[fx.Node, fx.Node]) -> fx.Node:
    while node in newest:
        node = newest[node]
    return node


def _aliases(node: fx.Node) -> bool:
    if node.target in _SOMETIMES_ALIAS:
        return True
    schema = getattr(node.target, "_schema", None)
    if schema is None or writes(node):
        return False
    return any(argument.alias_info is not None for argument in schema.arguments)


def _plain(node: fx.Node) -> Any:
    """The op of the same name without the underscore, where it writes to its first argument."""
    target: Any = node.target
    written = [a.alias_info is not None and a.alias_info.is_write for a in target._schema.arguments]
    namespace, _, name = target._schema.name.partition("::")
    first_only = written == [True] + [False] * (len(written) - 1)
    if namespace != "aten" or not name.endswith("_") or not first_only:
        return None
    packet = getattr(_aten, name[:-1], None)
    return getattr(packet, target._overloadname, None)


def _put_in(module: fx.GraphModule, fixed: dict[fx.Node, Any]) -> None:
    """Constants in the place of what was computed, where a sample's values meet it."""
    computed = [node for node in fixed if node.op == "call_function"]
    for node in computed:
        if any(user not in fixed for user in node.users):
            name = f"fixed_{node.name}"
            module.register_buffer(name, fixed[node], persistent=False)
            with module.graph.inserting_before(node):
                constant = module.graph.get_attr(name)
            constant.meta = dict(node.meta)
            node.replace_all_uses_with(constant, delete_user_cb=lambda user: user not in fixed)
    for node in reversed(computed):
        if not node.users:
            module.graph.erase_node(node)
