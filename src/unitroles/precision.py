"""Where and in which precision the user's own model runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unitroles.probe import to_device


@dataclass(frozen=True)
class Precision:
    """Device, autocast and memory format of the model's forwards.

    Parameters
    ----------
    device : where the model is.
    autocast : the precision of the model's matrix products, or None for its own.
    channels_last : whether images go in with their channels last.
    """

    device: torch.device
    autocast: torch.dtype | None = None
    channels_last: bool = False

    def on(self) -> AbstractContextManager[Any]:
        """The context of the model's own forwards."""
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.autocast)

    def place(self, inputs: Any) -> Any:
        """A batch where and as the model takes it."""
        if self.device.type == "cuda":
            inputs = _each(inputs, self._send)
        inputs = to_device(inputs, self.device)
        return _each(inputs, _last) if self.channels_last else inputs

    def _send(self, value: Tensor) -> Tensor:
        pinned = value if value.is_cuda else value.pin_memory()
        return pinned.to(self.device, non_blocking=True)


def _each(inputs: Any, change: Any) -> Any:
    if isinstance(inputs, Tensor):
        return change(inputs)
    if isinstance(inputs, dict):
        return {name: _each(value, change) for name, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return tuple(_each(value, change) for value in inputs)
    return inputs


def _last(value: Tensor) -> Tensor:
    return value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value


@contextmanager
def memory_format(model: nn.Module, channels_last: bool) -> Iterator[None]:
    """Convolution weights with their channels last, for as long as the block runs."""
    if not channels_last:
        yield
        return
    given = [(tensor, tensor.data) for tensor in model.parameters() if tensor.ndim == 4]
    try:
        for tensor, data in given:
            tensor.data = _last(data)
        yield
    finally:
        for tensor, data in given:
            tensor.data = data
