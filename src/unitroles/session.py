"""Exports remembered while their models live: within a session each is paid for once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from unitroles import head
from unitroles.head import Exported
from unitroles.probe import OWN, fingerprint, form_of
from unitroles.trace import Site

_MOST, _DEEPEST = 4, 4
_PLAIN = (bool, int, float, complex, str, bytes, type(None))


@dataclass(frozen=True)
class _Memory:
    """An export and what it was made of; `modules` live on, so that no identity is used twice.

    Where values were computed once and put into the graph, `contents` tells the weights they were
    computed from.
    """

    exported: Exported
    made_of: tuple[Any, ...]
    contents: str | None
    modules: list[nn.Module]


_memories: WeakKeyDictionary[nn.Module, _Memory] = WeakKeyDictionary()


def export(model: nn.Module, sites: Sequence[Site], inputs: Any) -> Exported:
    """As `head.export`, and remembered.

    Raises
    ------
    CannotCut : `torch.export` cannot take the model.
    """
    forget(model)
    made_of = _made_of(model, sites, inputs)
    exported = head.export(model, sites, inputs)
    contents = fingerprint(model) if exported.holds_values else None
    # The model itself is left out, or it would never be let go.
    modules = [module for module in model.modules() if module is not model]
    _memories[model] = _Memory(exported, made_of, contents, modules)
    while len(_memories) > _MOST:
        _memories.pop(next(iter(_memories)), None)
    return exported


def recall(model: nn.Module, sites: Sequence[Site], inputs: Any) -> Exported | None:
    """The last export of this model, where nothing has changed since that can be seen.

    Weights may have changed: a graph reads them where the model has them. Arrays that are no
    tensors, functions and global state are not looked into; only the self-check of a plan notices
    those.
    """
    memory = _memories.get(model)
    if memory is None or memory.made_of != _made_of(model, sites, inputs):
        return None
    if memory.contents is not None and memory.contents != fingerprint(model):
        return None
    return memory.exported


def forget(model: nn.Module) -> None:
    """Export this model anew the next time."""
    _memories.pop(model, None)


def _made_of(model: nn.Module, sites: Sequence[Site], inputs: Any) -> tuple[Any, ...]:
    """Everything that decides a graph, in values that compare."""
    layers = tuple((site.path, id(site.module), site.call, site.axis) for site in sites)
    modules = tuple(
        (path, id(module), _hooks(module), _attributes(module))
        for path, module in model.named_modules(remove_duplicate=False)
    )
    tensors = tuple((id(t), _address(t), t.device, t.dtype, t.shape) for t in _tensors(model))
    return layers, modules, tensors, form_of(inputs)


def _address(tensor: Tensor) -> int:
    return tensor.data_ptr() if tensor.layout is torch.strided else 0


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _hooks(module: nn.Module) -> tuple[int, ...]:
    """The hooks of others; ours come and go."""
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    ours = __name__.partition(".")[0]
    return tuple(id(hook) for hook in hooks if not getattr(hook, "__module__", "").startswith(ours))


def _attributes(module: nn.Module) -> tuple[Any, ...]:
    return tuple((name, _value(value)) for name, value in vars(module).items() if name not in OWN)


def _value(value: Any, depth: int = 0) -> Any:
    """What a value holds, as far as it can be looked into; beyond, which object it is."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Tensor):
        return id(value), -1 if value.is_inference() else value._version
    if depth == _DEEPEST or isinstance(value, nn.Module):
        return id(value), type(value)
    if isinstance(value, (tuple, list)):
        return tuple(_value(one, depth + 1) for one in value)
    if isinstance(value, (set, frozenset)):
        return frozenset(_value(one, depth + 1) for one in value)
    if isinstance(value, dict):
        return tuple((str(name), _value(one, depth + 1)) for name, one in value.items())
    inside = vars(value) if hasattr(value, "__dict__") and not callable(value) else {}
    return id(value), type(value), _value(dict(inside), depth + 1)
