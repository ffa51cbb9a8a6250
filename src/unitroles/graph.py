"""Take an exported graph apart at a marked value: what lies after it, and what flows around it."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils.flop_counter import FlopCounterMode


class CannotCut(Exception):
    """Why the head of a model cannot stand alone."""


@torch.library.custom_op(
    "unitroles::tap", mutates_args=(), schema="(Tensor value, int mark) -> Tensor"
)
def _tap(value: Tensor, mark: int) -> Tensor:
    return value.clone()


@_tap.register_fake
def _(value: Tensor, mark: int) -> Tensor:
    return torch.empty_like(value)


def is_tap(node: fx.Node) -> bool:
    return node.target is torch.ops.unitroles.tap.default


@dataclass(frozen=True)
class Head:
    """Everything after a layer, as a graph of its own.

    Parameters
    ----------
    run : (cut, *context) -> logits; rows are independent.
    context : inputs -> what flows around the layer (residual streams and the like).
    repeats : for each context value, whether `run` needs it once per row.
    axis : the unit axis of the cut.
    before : (the layer's output, *context) -> the cut, unit by unit; None where they are the same.
    """

    run: fx.GraphModule
    context: fx.GraphModule | None
    repeats: tuple[bool, ...]
    axis: int
    before: fx.GraphModule | None = None

    def surroundings(self, inputs: Any) -> tuple[Tensor, ...]:
        """The context values for a batch, computed once for all its masks."""
        return () if self.context is None else self.context(*flat(inputs))

    def cut(self, output: Tensor, around: Sequence[Tensor]) -> Tensor:
        """The value at the cut, from the layer's output."""
        return output if self.before is None else self.before(output, *around)


def flat(inputs: Any) -> tuple[Any, ...]:
    """The leaves of a batch of inputs, in the order in which an exported graph takes them."""
    if isinstance(inputs, Mapping):
        return tuple(inputs.values())
    return tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)


class CountOperations(fx.Interpreter):
    """Runs a graph and counts the floating-point operations of every node."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.operations: dict[fx.Node, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        with FlopCounterMode(display=False) as counter:
            value = super().run_node(n)
        self.operations[n] = counter.get_total_flops()
        return value


def prune(program: torch.export.ExportedProgram, tap: fx.Node, logits: fx.Node, axis: int) -> Head:
    graph = program.graph_module.graph
    after = downstream(tap, logits)
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
    build = _Builder(program, constants)
    run = build.head(tap, live, [n for n in graph.nodes if n in after], logits)
    return Head(run, build.context(live) if live else None, tuple(map(_has_batch, live)), axis)


def downstream(tap: fx.Node, logits: fx.Node) -> set[fx.Node]:
    """What lies on a way from the tap to the logits, without the tap."""
    needed, after = _ancestors([logits]), {tap}
    for node in tap.graph.nodes:
        if node in needed and not after.isdisjoint(node.all_input_nodes):
            after.add(node)
    return after - {tap}


def _ancestors(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    found, todo = set(), list(nodes)
    while todo:
        node = todo.pop()
        if node not in found:
            found.add(node)
            todo.extend(node.all_input_nodes)
    return found


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor)


def _has_batch(node: fx.Node) -> bool:
    """Whether the first dimension counts samples; a batch elsewhere cannot be repeated."""
    symbolic = [isinstance(size, torch.SymInt) for size in node.meta["val"].shape]
    if any(symbolic[1:]):
        raise CannotCut(f"a value that flows around the layer has its batch inside ({node.name})")
    return bool(symbolic) and symbolic[0]


def _depends_on_input(node: fx.Node, constants: Mapping[str, Tensor]) -> bool:
    """Whether the samples decide a value; one that knows only their number is made anew.

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
        self._copy(graph, copies, after, _Rebase(graph, rows, tap))
        graph.output(copies[logits])
        return self._module(graph)

    def context(self, live: list[fx.Node]) -> fx.GraphModule:
        graph = fx.Graph()
        inputs = [n for n in self.source.graph.nodes if n.op == "placeholder"]
        copies = {n: graph.placeholder(n.name) for n in inputs if n.name not in self.constants}
        needed = _ancestors(live)
        self._copy(graph, copies, [n for n in self.source.graph.nodes if n in needed], None)
        graph.output(tuple(copies[node] for node in live))
        return self._module(graph)

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
        return self.graph.call_function(operator.mul, (self.rows, int(ratio)))


def _expression(size: Any) -> Any:
    return size.node.expr
