"""Take an exported graph apart at a layer."""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import has_side_effect


class CannotCut(Exception):
    """Why the head of a model cannot stand alone."""


@torch.library.custom_op(
    "unitroles::tap", mutates_args=(), schema="(Tensor value, int mark) -> Tensor"
)
def _tap(value: Tensor, mark: int) -> Tensor:
    return value.clone()


@torch.library.custom_op(
    "unitroles::boundary", mutates_args=(), schema="(Tensor value, int mark) -> Tensor"
)
def _boundary(value: Tensor, mark: int) -> Tensor:
    return value.clone()


@_tap.register_fake
def _(value: Tensor, mark: int) -> Tensor:
    return torch.empty_like(value)


@_boundary.register_fake
def _(value: Tensor, mark: int) -> Tensor:
    return torch.empty_like(value)


# Its result is not used: it only tells which value of a graph a module took or gave.
has_side_effect(torch.ops.unitroles.boundary.default)


def is_tap(node: fx.Node) -> bool:
    return node.target is torch.ops.unitroles.tap.default


@dataclass(frozen=True)
class Cut:
    """A model's graph taken apart at a layer.

    Parameters
    ----------
    run : (the layer's output, *live) -> logits; rows are independent.
    context : (*sources) -> live, what flows around the layer (residual streams and the like).
    sources : what `context` takes: an input of the model by its place ("input", i), or a value
        that a module took or gave ("boundary", mark).
    axis : the unit axis of the layer's output.
    """

    run: fx.GraphModule
    context: fx.GraphModule | None
    sources: tuple[tuple[str, int], ...]
    axis: int


def take_boundaries(graph: fx.Graph) -> dict[fx.Node, int]:
    """The values that modules took or gave, by node; the marks leave the graph."""
    found: dict[fx.Node, int] = {}
    for node in list(graph.nodes):
        if node.target is torch.ops.unitroles.boundary.default:
            value, mark = node.args
            found.setdefault(value, mark)
            graph.erase_node(node)
    return found


def prune(
    program: torch.export.ExportedProgram,
    tap: fx.Node,
    logits: fx.Node,
    axis: int,
    boundaries: Mapping[fx.Node, int],
) -> Cut:
    """What lies after the tap, and what must be known of the values that flow around it.

    Raises
    ------
    CannotCut : the layer does not reach the logits, or what flows around it is no batch.
    """
    graph = program.graph_module.graph
    after = _downstream(tap, logits)
    if logits not in after:
        raise CannotCut("the layer's output does not reach the logits")
    constants = constants_of(program)
    edge = [
        source
        for node in graph.nodes
        if node in after
        for source in node.all_input_nodes
        if source not in after and source is not tap
    ]
    live = [n for n in dict.fromkeys(edge) if _is_tensor(n) and _depends_on_input(n, constants)]
    for node in live:
        require_rows_first(node, tap)
    build = _Builder(program, constants)
    run = build.head(tap, live, [n for n in graph.nodes if n in after], logits)
    if not live:
        return Cut(run, None, (), axis)
    # A boundary without rows would be cut where the padding of a last batch is. What the inputs
    # alone decide is cheap, and a model may leave it out: transformers drop a mask that hides none.
    learned = _made_with(graph, program.graph_signature.inputs_to_parameters)
    usable = {n: mark for n, mark in boundaries.items() if n in learned and _rows(n, tap)}
    context, sources = build.context(live, usable)
    return Cut(run, context, sources, axis)


def _downstream(tap: fx.Node, logits: fx.Node) -> set[fx.Node]:
    """What lies on a way from the tap to the logits, without the tap."""
    needed, after = ancestors(logits), {tap}
    for node in tap.graph.nodes:
        if node in needed and not after.isdisjoint(node.all_input_nodes):
            after.add(node)
    return after - {tap}


def _made_with(graph: fx.Graph, names: Collection[str]) -> set[fx.Node]:
    """The tensors that are computed from the placeholders of these names, weights for one."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.name in names or not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return {node for node in found if _is_tensor(node)}


def ancestors(*nodes: fx.Node) -> set[fx.Node]:
    """The nodes, and all that they are computed from."""
    found, todo = set(), list(nodes)
    while todo:
        node = todo.pop()
        if node not in found:
            found.add(node)
            todo.extend(node.all_input_nodes)
    return found


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor)


def _rows(node: fx.Node, cut: fx.Node) -> bool:
    """Whether the first dimension, and no other, counts samples."""
    sizes = node.meta["val"].shape
    symbolic = [isinstance(size, torch.SymInt) for size in sizes]
    return symbolic[:1] == [True] and not any(symbolic[1:]) and str(sizes[0]) == _samples(cut)


def _samples(cut: fx.Node) -> str:
    return str(cut.meta["val"].shape[0])


def require_rows_first(node: fx.Node, cut: fx.Node) -> None:
    """A batch elsewhere, or several rows a sample, cannot be repeated for every mask."""
    first, *others = node.meta["val"].shape or (1,)
    inside = any(isinstance(size, torch.SymInt) for size in others)
    several = isinstance(first, torch.SymInt) and str(first) != _samples(cut)
    if inside or several:
        raise CannotCut(f"a value that flows around the layer has its batch inside ({node.name})")


def _depends_on_input(node: fx.Node, constants: Mapping[str, Tensor]) -> bool:
    """Whether the samples decide a value; one that knows only their number is made again.

    Row numbers, for one, must count the rows of a call with many masks, not those of the batch.
    """
    found, todo = set(), [node]
    while todo:
        one = todo.pop()
        if one.op == "placeholder" and one.name not in constants:
            return True
        if one not in found and not isinstance(one.meta.get("val"), torch.SymInt):
            found.add(one)
            todo.extend(one.all_input_nodes)
    return False


def constants_of(program: torch.export.ExportedProgram) -> dict[str, Tensor]:
    """Parameters, buffers and lifted tensors of an exported program, by placeholder name."""
    found: dict[str, Tensor] = {}
    for spec in program.graph_signature.input_specs:
        if spec.target is None:
            continue
        value = program.state_dict.get(spec.target, program.constants.get(spec.target))
        if isinstance(value, Tensor):
            found[spec.arg.name] = value.detach()
    return found


class _Builder:
    """Copies parts of an exported graph into graphs of their own."""

    def __init__(self, program: torch.export.ExportedProgram, constants: dict[str, Tensor]) -> None:
        self.source = program.graph_module
        self.constants = constants

    def head(
        self, tap: fx.Node, live: list[fx.Node], after: list[fx.Node], logits: fx.Node
    ) -> fx.GraphModule:
        graph = fx.Graph()
        copies = {tap: graph.placeholder("cut")}
        copies.update({node: graph.placeholder(f"live_{i}") for i, node in enumerate(live)})
        for node, copy in copies.items():
            copy.meta = dict(node.meta)
        rows = graph.call_function(torch.ops.aten.sym_size.int, (copies[tap], 0))
        rows.meta["val"] = tap.meta["val"].shape[0]
        self._copy(graph, copies, after, _Rebase(graph, rows, tap))
        graph.output(copies[logits])
        return self._module(graph)

    def context(
        self, live: list[fx.Node], boundaries: Mapping[fx.Node, int]
    ) -> tuple[fx.GraphModule, tuple[tuple[str, int], ...]]:
        """The graph from the nearest known values to `live`, and which values those are."""
        graph, sources = fx.Graph(), []
        inputs = [n for n in self.source.graph.nodes if n.op == "placeholder"]
        places = [n for n in inputs if n.name not in self.constants]
        needed, copies = set(), {}
        todo = list(live)
        while todo:
            node = todo.pop()
            if node in needed:
                continue
            needed.add(node)
            if node not in boundaries:
                todo.extend(node.all_input_nodes)
        for node in self.source.graph.nodes:
            if node in needed and (node in places or node in boundaries):
                copies[node] = graph.placeholder(f"source_{len(sources)}")
                copies[node].meta = dict(node.meta)
                place = node in places
                sources.append(
                    ("input", places.index(node)) if place else ("boundary", boundaries[node])
                )
        self._copy(graph, copies, [n for n in self.source.graph.nodes if n in needed], None)
        graph.output(tuple(copies[node] for node in live))
        return self._module(graph), tuple(sources)

    def _copy(
        self,
        graph: fx.Graph,
        copies: dict[fx.Node, fx.Node],
        nodes: list[fx.Node],
        rebase: _Rebase | None,
    ) -> None:
        def of(node: fx.Node) -> fx.Node:
            if node not in copies:
                if is_tap(node):
                    copies[node] = of(node.all_input_nodes[0])
                elif rebase is not None and isinstance(node.meta.get("val"), torch.SymInt):
                    copies[node] = rebase(node)
                elif node.name in self.constants:
                    copies[node] = graph.get_attr(f"constant_{node.name}")
                    copies[node].meta = dict(node.meta)
                else:
                    copies[node] = graph.node_copy(node, of)
            return copies[node]

        for node in nodes:
            of(node)

    def _module(self, graph: fx.Graph) -> fx.GraphModule:
        graph.eliminate_dead_code()
        root: dict[str, Any] = {f"constant_{n}": value for n, value in self.constants.items()}
        for node in graph.nodes:
            if node.op == "get_attr" and node.target not in root:
                root[node.target] = getattr(self.source, node.target)
        return fx.GraphModule(root, graph)


@dataclass(frozen=True)
class _Rebase:
    """Rewrites sizes that the model takes from its input's batch to sizes of the cut's rows."""

    graph: fx.Graph
    rows: fx.Node
    tap: fx.Node

    def __call__(self, node: fx.Node) -> fx.Node:
        size, cut = _expression(node.meta["val"]), _expression(self.tap.meta["val"].shape[0])
        ratio = size / cut
        if not ratio.is_number:
            raise CannotCut(f"a size after the layer is no multiple of the batch ({size})")
        if ratio == 1:
            return self.rows
        if not ratio.is_integer:
            raise CannotCut(f"a size after the layer is no multiple of the batch ({size})")
        product = self.graph.call_function(operator.mul, (self.rows, int(ratio)))
        product.meta["val"] = node.meta["val"]
        return product


def _expression(size: Any) -> Any:
    return size.node.expr
