"""Floating-point operations of a graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg
from torch.utils.flop_counter import FlopCounterMode

from unitroles.graph.ops import ROWS, map_values, plain, value_of


class Operations:
    """Counts the operations of graphs for `ROWS` samples; equal ops are counted once."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}

    def of(self, module: fx.GraphModule) -> int:
        """Those of all matrix products and convolutions."""
        return sum(self._node(node) for node in module.graph.nodes if node.op == "call_function")

    def _node(self, node: fx.Node) -> int:
        if not isinstance(value_of(node), (Tensor, list, tuple)):
            return 0
        shapes = map_arg(
            (node.args, node.kwargs),
            lambda given: str(map_values(_value(given), lambda one: (one.shape, one.dtype))),
        )
        key = str((node.target, shapes))
        if key not in self._known:
            self._known[key] = _counted(node)
        return self._known[key]


def _value(node: fx.Node) -> Any:
    """The value of a node; rows that were put into the graph later are as many as samples."""
    counts_rows = node.target is torch.ops.aten.sym_size.int and node.args[1] == 0
    return ROWS if counts_rows else value_of(node)


def _counted(node: fx.Node) -> int:
    target: Any = node.target
    args, kwargs = map_arg((node.args, node.kwargs), lambda one: map_values(_value(one), _empty))
    with FlopCounterMode(display=False) as counter:
        try:
            target(*args, **kwargs)
        except Exception:  # an op that needs numbers is no matrix product
            return 0
    return counter.get_total_flops()


def _empty(value: Tensor) -> Tensor:
    shape = [plain(size) for size in value.shape]
    return torch.empty(shape, dtype=value.dtype, device="meta")
