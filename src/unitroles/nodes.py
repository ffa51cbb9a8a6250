"""Read a node of an exported graph."""

from __future__ import annotations

from typing import Any

from torch import fx


def value_of(node: Any) -> Any:
    """What a node is known to hold while tracing, a tensor of shapes without numbers."""
    return node.meta.get("val") if isinstance(node, fx.Node) else node


def args_of(node: fx.Node) -> tuple[Any, ...]:
    """Its arguments; what each is follows from the op, which the types of a graph do not know."""
    return node.args
