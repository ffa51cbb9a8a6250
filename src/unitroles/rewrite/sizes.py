"""Exports whose number of samples stays open where a forward reads it as a plain number.

`len(x)` is a number for Python, whatever torch would write in its place. A model that uses it is
exported twice, with two numbers of samples; what differs by their ratio is that number.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from unitroles.environment import collector_resting
from unitroles.graph.extract import CannotCut
from unitroles.model.forward import repeated


class _DirectDistances(TorchFunctionMode):
    """`torch.cdist` in the one way that does not change with the number of rows."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.cdist and len(args) < 4:
            kwargs = {**(kwargs or {}), "compute_mode": "donot_use_mm_for_euclid_dist"}
        return func(*args, **(kwargs or {}))


def program(module: nn.Module, inputs: tuple[Any, ...]) -> torch.export.ExportedProgram:
    """Export a module with an open number of samples, in evaluation mode.

    Parameters
    ----------
    module : takes (*inputs).
    inputs : each with a row for every sample, at least two.

    Raises
    ------
    CannotCut : the forward depends on the number of samples in another way.
    """
    # Not when this module is imported: PyTorch then makes a folder, which an analysis takes back.
    from torch._dynamo.exc import UserError, UserErrorType

    with collector_resting(), _DirectDistances():
        try:
            return _open(module, inputs)
        except UserError as error:
            if error.error_type is not UserErrorType.CONSTRAINT_VIOLATION:
                raise
        try:
            return _open(_Sized(_of_two_sizes(module, inputs)), inputs)
        except UserError as error:
            if error.error_type is not UserErrorType.CONSTRAINT_VIOLATION:
                raise
            raise CannotCut(
                "torch.export holds the number of samples fixed (torch.vmap over them?); write it "
                "as operations on the whole batch"
            ) from error


def _open(module: nn.Module, inputs: tuple[Any, ...]) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=2, max=2**20)
    shapes = {"args": tuple({0: batch} for _ in inputs)}
    return torch.export.export(module, inputs, dynamic_shapes=shapes, strict=False)


class _Sized(nn.Module):
    """A graph with its inputs by position."""

    def __init__(self, graph: nn.Module) -> None:
        super().__init__()
        self.inner = graph  # not `graph`, which an exported module has itself

    def forward(self, *args: Any) -> Tensor:
        return self.inner(*args)


def _of_two_sizes(module: nn.Module, inputs: tuple[Any, ...]) -> fx.GraphModule:
    """The graph of a module, with the numbers of samples in it read from the first input."""
    twice = repeated(inputs, 2)
    one, other = (
        torch.export.export(module, given, strict=False).module(check_guards=False)
        for given in (inputs, twice)
    )
    assert isinstance(one, fx.GraphModule)
    assert isinstance(other, fx.GraphModule)
    pairs = list(zip(one.graph.nodes, other.graph.nodes, strict=False))
    if len(one.graph.nodes) != len(other.graph.nodes) or any(
        (first.op, first.target, first.name) != (second.op, second.target, second.name)
        for first, second in pairs
    ):
        raise CannotCut(
            "the forward runs another way for another number of samples (a loop over them?); write "
            "it as operations on the whole batch"
        )
    if any(_held(one, first) != _held(other, second) for first, second in pairs):
        raise CannotCut(
            "the forward makes tensors of its own from the number of samples; use that in shapes "
            "alone"
        )
    counts = _Counts(
        one.graph, next(len(given) for given in inputs if isinstance(given, Tensor) and given.ndim)
    )
    for first, second in pairs:
        if first.op == "call_function":
            args = counts.merged(first.args, second.args)
            first.kwargs = counts.merged(first.kwargs, second.kwargs)
            first.args = args
    one.graph.lint()
    one.recompile()
    return one


def _held(module: fx.GraphModule, node: fx.Node) -> Any:
    """A tensor that is no weight, as numbers to compare."""
    if node.op != "get_attr":
        return None
    value = operator.attrgetter(str(node.target))(module)
    weight = isinstance(value, nn.Parameter) or not isinstance(value, Tensor)
    return None if weight else (value.shape, value.tolist() if value.numel() < 2**20 else None)


class _Counts:
    """Numbers of a graph that count samples, made of the first input's."""

    def __init__(self, graph: fx.Graph, rows: int) -> None:
        self._rows = rows
        tensors = graph.find_nodes(op="placeholder")
        first = next(node for node in tensors if isinstance(node.meta.get("val"), Tensor))
        self._graph, self._last = graph, tensors[-1]
        self._known: dict[int, fx.Node] = {}
        self._known[1] = self._after(torch.ops.aten.sym_size.int, (first, 0))

    def _after(self, target: Any, args: tuple[Any, ...]) -> fx.Node:
        with self._graph.inserting_after(self._last):
            self._last = self._graph.call_function(target, args)
        return self._last

    def merged(self, one: Any, other: Any) -> Any:
        """An argument for any number of samples, from those for one number and for twice that."""
        if isinstance(one, fx.Node):
            return one
        if isinstance(one, (list, tuple)) and len(one) == len(other):
            return type(one)(self.merged(a, b) for a, b in zip(one, other, strict=True))
        if isinstance(one, dict) and one.keys() == other.keys():
            return {key: self.merged(one[key], other[key]) for key in one}
        if one == other or one != one or isinstance(one, str):  # the words of a check
            return one
        times, rest = divmod(one, self._rows) if isinstance(one, int) else (0, 1)
        if rest or other != times * 2 * self._rows:
            raise CannotCut(
                f"the forward computes with the number of samples ({one!r}); use that in shapes "
                "alone"
            )
        if times not in self._known:
            self._known[times] = self._after(operator.mul, (self._known[1], times))
        return self._known[times]
