"""A graph in another precision than the model's: its weights and the kinds of numbers it names.

Masked copies of a layer of 16 bits are run in float32, so that sums over units are not rounded. A
forward that changes its precision (autocast, a norm in float32) would change it back in the graph.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate

from unitroles.graph.ops import is_cast, value_of
from unitroles.model.forward import HALF


def compute_in(
    module: fx.GraphModule, dtype: torch.dtype, instead_of: Collection[torch.dtype] = HALF
) -> None:
    """Let a graph compute in one kind of number instead of others, in place."""

    def other(one: Any) -> Any:
        if isinstance(one, torch.dtype):
            return dtype if one in instead_of else one
        if isinstance(one, Tensor) and one.dtype in instead_of:
            return one.to(dtype)
        return one

    for name, value in list(module.named_buffers()):
        setattr(module, name, other(value))
    for node in module.graph.nodes:
        node.args = map_aggregate(node.args, other)
        node.kwargs = map_aggregate(node.kwargs, other)
        node.meta["val"] = map_aggregate(value_of(node), other)
    drop_casts(module.graph)
    module.graph.eliminate_dead_code()
    module.recompile()


def drop_casts(graph: fx.Graph) -> None:
    """Let nothing use the casts to what a value is already."""
    for node in graph.nodes:
        if is_cast(node):
            given: Any = node.args[0]
            one, two = value_of(given), value_of(node)
            if (one.dtype, one.device) == (two.dtype, two.device):
                node.replace_all_uses_with(given)
