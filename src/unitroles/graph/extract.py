"""A part of an exported graph as a module of its own."""

from __future__ import annotations

import operator
from collections.abc import Collection, Sequence

import torch
from torch import fx, nn
from torch.fx._lazy_graph_module import _LazyGraphModule
from torch.fx.node import map_arg

from unitroles.graph.ops import is_tap, value_of


class CannotCut(Exception):
    """Why the head of a model cannot stand alone."""


def extract(
    module: fx.GraphModule, inputs: Sequence[fx.Node], results: fx.Node | tuple[fx.Node, ...]
) -> fx.GraphModule:
    """The part of a graph that computes `results` from `inputs`: (*inputs) -> results.

    Sizes that count samples are counted again on the rows of the first input, whatever they were
    counted on. Taps are left out, weights stay those of `module`.

    Raises
    ------
    CannotCut : a size is no multiple of these rows.
    """
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for i, node in enumerate(inputs):
        copies[node] = graph.placeholder(f"input_{i}")
        copies[node].meta = dict(node.meta)
    rows = graph.call_function(torch.ops.aten.sym_size.int, (copies[inputs[0]], 0))
    rows.meta["val"] = value_of(inputs[0]).shape[0]
    wanted = ancestors(*([results] if isinstance(results, fx.Node) else results), stop=inputs)
    for node in module.graph.nodes:
        if node not in wanted or node in copies:
            continue
        if isinstance(value_of(node), torch.SymInt):
            copies[node] = _counted_on(rows, node)
        elif is_tap(node):
            copies[node] = copies[node.all_input_nodes[0]]
        else:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(map_arg(results, copies.__getitem__))
    if not rows.users:
        graph.erase_node(rows)  # all else is there because it is used
    return lazily(module, graph)


def lazily(holder: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    """A graph with what it reads of `holder`; its code is written when it first runs.

    Most graphs are made to be changed or cut again, and never run.
    """
    return _LazyGraphModule(holder, graph)


def copied(module: fx.GraphModule) -> fx.GraphModule:
    """The same graph, to be changed."""
    return extract(module, inputs_of(module), result_of(module))


def inputs_of(module: fx.GraphModule) -> list[fx.Node]:
    """What a graph is called with."""
    return module.graph.find_nodes(op="placeholder")


def result_of(module: fx.GraphModule) -> fx.Node:
    """The one value that a graph gives."""
    (result,) = module.graph.output_node().all_input_nodes
    return result


def input_dtypes(module: fx.GraphModule) -> list[torch.dtype]:
    """The kinds of numbers that a graph is called with."""
    return [value_of(place).dtype for place in inputs_of(module)]


def ancestors(*nodes: fx.Node, stop: Collection[fx.Node] = ()) -> set[fx.Node]:
    """The nodes, and all whose values they are computed from, not beyond `stop` or a size."""
    found, todo = set(), list(nodes)
    while todo:
        node = todo.pop()
        if node not in found:
            found.add(node)
            if node not in stop and not isinstance(value_of(node), torch.SymInt):
                todo.extend(node.all_input_nodes)
    return found


def descendants(graph: fx.Graph, nodes: Collection[fx.Node]) -> set[fx.Node]:
    """The nodes, and all that their values, not their sizes alone, are taken by."""
    found = set(nodes)
    for node in graph.nodes:
        size = isinstance(value_of(node), torch.SymInt)
        if not size and not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


def _counted_on(rows: fx.Node, node: fx.Node) -> fx.Node:
    """The same size as a multiple of a number of rows."""
    size = value_of(node).node.expr
    ratio = size / value_of(rows).node.expr
    if not (ratio.is_number and ratio.is_integer):
        raise CannotCut(f"a size after the layer is no multiple of the batch ({size})")
    if ratio == 1:
        return rows
    product = rows.graph.call_function(operator.mul, (rows, int(ratio)))
    product.meta["val"] = value_of(node)
    return product
