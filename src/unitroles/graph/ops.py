"""What ATen operations are, and how the arguments of a node are read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

_aten = torch.ops.aten


def value_of(node: Any) -> Any:
    """What a node is known to hold while tracing, a tensor of shapes without numbers."""
    return node.meta.get("val") if isinstance(node, fx.Node) else node


def args_of(node: fx.Node) -> tuple[Any, ...]:
    """Its arguments; what each is follows from the op, which the types of a graph do not know."""
    return node.args


def is_pointwise_convolution(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a convolution sees one position at a time: 1 x 1, stride 1, no padding, no groups."""
    weight = node.args[1]
    if not isinstance(weight, fx.Node) or weight.op != "get_attr" or node.kwargs:
        return False
    defaults: tuple[Any, ...] = (None, None, None, [1], [0], [1], 1)
    stride, padding, _, groups = (*args_of(node), *defaults[len(node.args) :])[3:]
    kernel = getattr(module, str(weight.target)).shape[2:]
    plain = set(kernel) == {1} and set(stride) == {1} and set(padding) == {0}
    return plain and bool(groups == 1)


def is_norm(node: fx.Node) -> bool:
    """Whether an op is a layer norm or an RMS norm."""
    return node.target is _aten.layer_norm.default or node.target is _aten.rms_norm.default


ROWS = 2
"""The samples that operations are counted for."""


def map_values(value: Any, change: Any) -> Any:
    """Change the tensors of a value, and make the sizes in it those of `ROWS` samples."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (list, tuple)):
        return [map_values(one, change) for one in value]
    return plain(value)


def plain(size: Any) -> Any:
    """A size as a number, that of the samples' axis as `ROWS`; what is no size stays."""
    if not isinstance(size, torch.SymInt):
        return size
    expression: Any = size.node.expr
    return int(expression.subs(dict.fromkeys(expression.free_symbols, ROWS)))
