"""Put plain ops in the place of the in-place ones of an exported graph.

Parts of a graph that writes to its values are silently wrong. `run_decompositions` removes the
writing too, but traces the whole model again, which costs one to three times the export itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from unitroles.graph.ops import Kind, args_of, argument, op_of

_aten = torch.ops.aten


def make_functional(module: fx.GraphModule, constants: Mapping[fx.Node, Tensor]) -> bool:
    """Take the writing out of a graph in place; False where a value has another name.

    The graph may be changed in part then, and is still right.

    Parameters
    ----------
    constants : tensors that are neither parameters nor buffers, by their placeholders: the numbers
        in a forward, for one.
    """
    graph = module.graph
    if any(isinstance(node.target, torch._ops.HigherOrderOperator) for node in graph.nodes):
        return False  # a sub-graph (of autocast, of a gradient mode) may write to what it likes
    _compute_fixed(module, constants)
    place = {node: i for i, node in enumerate(graph.nodes)}
    functional = True
    for node in filter(_writes, list(graph.nodes)):
        value: Any = node.args[0]
        if op_of(node).kind is Kind.DROPOUT and not argument(node, "train"):
            node.replace_all_uses_with(value)
            graph.erase_node(node)
            continue
        plain = _plain(node)
        # Nor where it may have another name already: the value itself, or what was made of it.
        if plain is None or any(
            map(_renames, (value, *(user for user in value.users if place[user] < place[node])))
        ):
            functional = False
            break
        later = {user for user in value.users if place[user] > place[node]}
        value.replace_all_uses_with(node, delete_user_cb=later.__contains__)
        node.target = plain
    graph.lint()
    module.recompile()
    return functional


def _writes(node: fx.Node) -> bool:
    """Whether an op writes to one of its arguments."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _renames(node: fx.Node) -> bool:
    """Whether a value is, or may be, another name of what its op was given."""
    schema = getattr(node.target, "_schema", None)
    if node.op != "call_function" or schema is None or op_of(node).renames:
        return True
    return any(one.alias_info is not None for one in schema.arguments)


def _plain(node: fx.Node) -> Any:
    """The op of the same name without the underscore, where it writes to its first argument."""
    target: Any = node.target
    namespace, _, name = target._schema.name.partition("::")
    others = target._schema.arguments[1:]
    aliased = any(one.alias_info is not None for one in others)
    single = isinstance(node.args[0], fx.Node)  # not a list, nor a keyword
    if namespace != "aten" or not name.endswith("_") or aliased or not single:
        return None
    return getattr(getattr(_aten, name[:-1], None), target._overloadname, None)


def _compute_fixed(module: fx.GraphModule, constants: Mapping[fx.Node, Tensor]) -> None:
    """Compute once what is made of sizes alone and written to: a window transformer's masks."""
    values: dict[fx.Node, Any] = {node: value.clone() for node, value in constants.items()}
    written, read = False, set()
    for node in module.graph.nodes:
        if node.op != "call_function":
            continue
        if not _is_fixed(node, values):
            # A value that samples decide goes into a fixed one, which is none from here on.
            if _writes(node) and any(one in values for one in node.all_input_nodes):
                return
            read |= {_storage(values[one]) for one in node.all_input_nodes if one in values}
            continue
        if _writes(node):
            written = True
            if _storage(values[args_of(node)[0]]) in read:
                return
        values[node] = _run(node, values)
    if written:
        _put_in(module, values)


def _is_fixed(node: fx.Node, values: Mapping[fx.Node, Any]) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    if op_of(node).kind is Kind.NEW:
        return not any(isinstance(size, fx.Node) for size in args_of(node)[1])
    sources = node.all_input_nodes
    return bool(sources) and all(source in values for source in sources)


def _storage(value: Any) -> int:
    return value.untyped_storage().data_ptr() if isinstance(value, Tensor) else 0


def _run(node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
    target: Any = node.target
    args, kwargs = map_arg((node.args, node.kwargs), values.get)
    if op_of(node).kind is Kind.NEW:
        like = node.meta["val"]
        args = (torch.empty(0, dtype=like.dtype, device=like.device), *args[1:])
    return target(*args, **kwargs)


def _put_in(module: fx.GraphModule, values: Mapping[fx.Node, Any]) -> None:
    """Constants in the place of what was computed, where a sample's values meet it."""
    computed = [node for node in values if node.op == "call_function"]
    for node in computed:
        if any(user not in values for user in node.users):
            name = f"fixed_{node.name}"
            module.register_buffer(name, values[node], persistent=False)
            with module.graph.inserting_before(node):
                constant = module.graph.get_attr(name)
            constant.meta = dict(node.meta)
            node.replace_all_uses_with(constant, delete_user_cb=lambda user: user not in values)
    for node in reversed(computed):
        if not node.users:
            module.graph.erase_node(node)
