"""Look at the user's model while it runs, and give it back exactly as it was."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unitroles.errors import InputError, unknown
from unitroles.options import Layer

_CHANNELS_FIRST = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
)
_FORWARD_ERRORS = (
    RuntimeError,
    TypeError,
    ValueError,
    IndexError,
    KeyError,
    AttributeError,
    AssertionError,
)
_CHANNELS_LAST = (nn.Linear, nn.LayerNorm, nn.Embedding)


@dataclass(frozen=True)
class Call:
    """One call of one module in one forward.

    Parameters
    ----------
    path : module path; "" is the model itself.
    index : 0-based number of this call of this module.
    module : the module that was called.
    shape : shape of its output; None where that is not one floating-point tensor.
    axis : the axis that counts the units; None where there is none.
    """

    path: str
    index: int
    module: nn.Module
    shape: tuple[int, ...] | None
    axis: int | None

    @property
    def units(self) -> int:
        """How many units the output carries; 0 = none."""
        return 0 if self.shape is None or self.axis is None else self.shape[self.axis]


@dataclass(frozen=True)
class Site:
    """A layer found in a model: which call of which module, and where its units are."""

    path: str
    module: nn.Module
    call: int
    axis: int
    shape: tuple[int, ...]

    @property
    def units(self) -> int:
        """N, the number of units."""
        return self.shape[self.axis]


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; flags, buffers and random states come back after it.

    The flags are set one by one: a model's own `train()` may do more than set them.
    """
    flags = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, {n: (b, None if b is None else b.clone()) for n, b in module._buffers.items()})
        for module in model.modules()
    ]
    states = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices))
        stack.enter_context(torch.no_grad())
        try:
            for module, _ in flags:
                module.training = False
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            for module, flag in flags:
                module.training = flag
            for module, kept in buffers:
                for name in module._buffers.keys() - kept.keys():
                    del module._buffers[name]
                for name, (buffer, saved) in kept.items():
                    module._buffers[name] = buffer
                    if buffer is None or saved is None or torch.equal(buffer, saved):
                        continue
                    buffer.copy_(saved)


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter or buffer lives; the processor where it has none."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def to_device(inputs: Any, device: torch.device | str) -> Any:
    """Move a tensor, or the tensors of a sequence or mapping, to a device."""
    if isinstance(inputs, Tensor):
        return inputs.to(device)
    if isinstance(inputs, Mapping):
        return {name: to_device(value, device) for name, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return tuple(to_device(value, device) for value in inputs)
    return inputs


def forward(model: nn.Module, inputs: Any) -> Any:
    """Call the model: a mapping as keywords, a sequence as several arguments, else one."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, (tuple, list)):
        return model(*inputs)
    return model(inputs)


def logits_of(output: Any) -> Tensor:
    """The logits (samples, labels) in what a model returns.

    Raises
    ------
    InputError : the output is neither a tensor, a tuple led by one, nor something with `logits`.
    """
    if isinstance(output, Mapping):
        output = output.get("logits")
    elif not isinstance(output, Tensor) and hasattr(output, "logits"):
        output = output.logits
    elif isinstance(output, (tuple, list)) and output:
        output = output[0]
    if not isinstance(output, Tensor) or output.ndim != 2 or not output.is_floating_point():
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise InputError(
            f"the model's output must hold logits of shape (samples, classes), got {shape}; "
            "wrap the model in a module that returns them"
        )
    return output


def batch_size(inputs: Any) -> int:
    """How many samples a batch of inputs holds."""
    if isinstance(inputs, Tensor):
        return inputs.shape[0]
    values = list(inputs.values()) if isinstance(inputs, Mapping) else list(inputs)
    return batch_size(values[0])


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def trace(model: nn.Module, inputs: Any) -> list[Call]:
    """Every module call of one forward, in the order in which the calls end.

    Run it inside `untouched`.

    Raises
    ------
    InputError : the model cannot take the inputs.
    """
    calls: list[Call] = []
    keep: list[Tensor] = []
    axes: dict[int, int] = {}

    def note(path: str):
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            index = sum(call.module is module for call in calls)
            shape, axis = None, None
            if isinstance(output, Tensor) and output.is_floating_point():
                shape = tuple(output.shape)
                axis = _unit_axis(module, args, output, axes, calls)
                if axis is not None:
                    axes[id(output)] = axis
                    keep.append(output)
            calls.append(Call(path, index, module, shape, axis))

        return hook

    with ExitStack() as stack:
        for path, module in model.named_modules():
            handle = module.register_forward_hook(note(path))
            stack.callback(handle.remove)
        try:
            output = forward(model, inputs)
        except _FORWARD_ERRORS as error:
            raise InputError(
                f"the model cannot take a batch of {_describe(inputs)}: {first_line(error)}; give "
                "samples of the shape and type the model was trained with"
            ) from error
    logits_of(output)
    return calls


def _describe(inputs: Any) -> str:
    if isinstance(inputs, Tensor):
        return f"shape {tuple(inputs.shape)} {str(inputs.dtype).removeprefix('torch.')}"
    if isinstance(inputs, Mapping):
        return ", ".join(f"{name}: {_describe(value)}" for name, value in inputs.items())
    if isinstance(inputs, (tuple, list)):
        return ", ".join(_describe(value) for value in inputs)
    return type(inputs).__name__


def _unit_axis(
    module: nn.Module, args: tuple[Any, ...], output: Tensor, axes: dict[int, int], past: list[Call]
) -> int | None:
    """The unit axis from the kind of module, else from its input, else from its inside."""
    if output.ndim < 2:
        return None
    if isinstance(module, _CHANNELS_FIRST):
        return 1
    if isinstance(module, _CHANNELS_LAST) or output.ndim == 2:
        return output.ndim - 1
    if id(output) in axes:
        return axes[id(output)]
    for value in args:
        axis = axes.get(id(value))
        if (
            axis is not None
            and value.ndim == output.ndim
            and value.shape[axis] == output.shape[axis]
        ):
            return axis
    for call in reversed(past):
        if call.shape == tuple(output.shape) and call.axis is not None:
            return call.axis
    return 2 if output.ndim == 3 else 1


def find_site(model: nn.Module, layer: Layer, calls: list[Call], batch: int) -> Site:
    """The call of a module that a `Layer` names, in a trace of `batch` samples.

    Raises
    ------
    InputError : no such module, never called, no such call, or its output carries no units.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    if layer.path not in modules or not layer.path:
        raise unknown("layer", layer.path, [path for path in modules if path])
    mine = [call for call in calls if call.module is modules[layer.path]]
    if not mine:
        raise InputError(
            f"layer {layer.path!r} is not called in the model's forward; name a layer listed by "
            "unitroles.layers"
        )
    if not -len(mine) <= layer.call < len(mine):
        raise InputError(
            f"layer {layer.path!r} is called {len(mine)} time(s) in one forward, there is no call "
            f"{layer.call}"
        )
    call = mine[layer.call]
    if call.shape is None or len(call.shape) < 2 or call.shape[0] != batch:
        shape = "no single floating-point tensor" if call.shape is None else f"shape {call.shape}"
        raise InputError(
            f"layer {layer.path!r} has no unit axis: its output is {shape} for a batch of {batch}; "
            "name a layer whose output is (samples, units, ...)"
        )
    axis = call.axis if layer.axis is None else layer.axis
    if axis is None or not -len(call.shape) < axis < len(call.shape) or axis % len(call.shape) == 0:
        raise InputError(
            f"axis {layer.axis} of layer {layer.path!r} cannot count units: its output has shape "
            f"{call.shape} and axis 0 counts the samples"
        )
    axis %= len(call.shape)
    return Site(layer.path, call.module, call.index, axis, call.shape)
