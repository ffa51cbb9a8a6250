"""Run the user's model: what it takes, what it answers, in which precision."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unitroles.errors import InputError
from unitroles.model.memory import ran_out
from unitroles.wording import first_line

FORWARD_ERRORS = (
    RuntimeError,
    TypeError,
    ValueError,
    IndexError,
    KeyError,
    AttributeError,
    AssertionError,
)


def to_device(inputs: Any, device: torch.device | str) -> Any:
    """Move a tensor, or the tensors of a sequence or mapping, to a device."""
    if isinstance(inputs, Tensor):
        return inputs.to(device)
    if isinstance(inputs, Mapping):
        # One order of the names for all batches: a graph takes its inputs by position.
        return {name: to_device(inputs[name], device) for name in sorted(inputs, key=str)}
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


def answer_of(output: Any) -> Tensor:
    """What counts in what a model returns: its logits, or what it returns first.

    Raises
    ------
    InputError : the output is neither a tensor, a tuple led by one, nor something with `logits`.
    """
    if isinstance(output, Mapping):
        if "logits" not in output:
            raise no_logits(f"a mapping with {', '.join(map(str, output)) or 'nothing'}")
        output = output["logits"]
    elif not isinstance(output, Tensor) and hasattr(output, "logits"):
        output = output.logits
    elif isinstance(output, (tuple, list)) and output:
        output = output[0]
    if not isinstance(output, Tensor) or output.ndim == 0 or not output.is_floating_point():
        raise no_logits(
            tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        )
    return output


def logits_of(output: Any) -> Float[Tensor, "samples labels"]:
    """The same with all numbers of a sample in one row."""
    answer = answer_of(output)
    if answer.ndim == 2:
        return answer
    return answer[:, None] if answer.ndim == 1 else answer.flatten(1)


def no_logits(found: object) -> InputError:
    """What is said of an output that holds no logits."""
    return InputError(
        f"the model's output must hold logits of shape (samples, classes), got {found}; wrap the "
        "model in a module that returns them"
    )


@contextmanager
def blamed(what: str) -> Iterator[None]:
    """Turn what a model or a collate function raises on some samples into one clear sentence."""
    try:
        yield
    except InputError:
        raise
    except FORWARD_ERRORS as error:
        if ran_out(error):
            raise InputError(
                f"memory ran out with {what}; give a smaller batch_size, or use another device"
            ) from error
        raise InputError(
            f"{what} cannot be run through the model: {first_line(error)}; give samples of the "
            "shape and type the model was trained with"
        ) from error


def copied(inputs: Any) -> Any:
    """The same batch in tensors of its own."""
    if isinstance(inputs, Tensor):
        return inputs.clone()
    if isinstance(inputs, Mapping):
        return {name: copied(value) for name, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return tuple(copied(value) for value in inputs)
    return inputs


def versions(inputs: Any) -> list[int]:
    """How often each tensor of a batch was written to."""
    return [-1 if tensor.is_inference() else tensor._version for tensor in _tensors(inputs)]


def _tensors(inputs: Any) -> list[Tensor]:
    if isinstance(inputs, Tensor):
        return [inputs]
    if isinstance(inputs, Mapping):
        inputs = tuple(inputs.values())
    return [t for value in inputs for t in _tensors(value)] if isinstance(inputs, tuple) else []


def rows_of(inputs: Any, rows: slice) -> Any:
    """Some samples of a batch; what is no tensor stays."""
    if isinstance(inputs, Mapping):
        return {name: rows_of(value, rows) for name, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return tuple(rows_of(value, rows) for value in inputs)
    return inputs[rows] if isinstance(inputs, Tensor) else inputs


def form_of(inputs: Any) -> tuple[Any, ...]:
    """Names, types and shapes of a batch's inputs but for the first axis, the samples."""
    names = tuple(map(str, inputs)) if isinstance(inputs, Mapping) else ()
    tensors = _tensors(inputs)
    return names, tuple((str(tensor.dtype), *tensor.shape[1:]) for tensor in tensors)


def batch_size(inputs: Any) -> int:
    """How many samples a batch of inputs holds."""
    return next(tensor.shape[0] for tensor in _tensors(inputs) if tensor.ndim)


def describe(inputs: Any) -> str:
    if isinstance(inputs, Tensor):
        return f"shape {tuple(inputs.shape)} {str(inputs.dtype).removeprefix('torch.')}"
    if isinstance(inputs, Mapping):
        return ", ".join(f"{name}: {describe(value)}" for name, value in inputs.items())
    if isinstance(inputs, (tuple, list)):
        return ", ".join(describe(value) for value in inputs)
    return type(inputs).__name__


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
        return _each(inputs, with_channels_last) if self.channels_last else inputs

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


def with_channels_last(value: Tensor) -> Tensor:
    return value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value


def repeated(inputs: Any, times: int) -> Any:
    """All samples several times, one whole batch after the other; what is no tensor stays."""
    if isinstance(inputs, Tensor):
        return inputs.repeat(times, *(1 for _ in inputs.shape[1:]))
    if isinstance(inputs, dict):
        return {name: repeated(value, times) for name, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return tuple(repeated(value, times) for value in inputs)
    return inputs


def same_tensors(one: Any, two: Any) -> bool:
    if isinstance(one, Tensor):
        if one.shape != two.shape:
            return False
        same = one == two
        return bool((same | ((one != one) & (two != two))).all())
    if isinstance(one, Mapping):
        return all(same_tensors(value, two[name]) for name, value in one.items())
    if isinstance(one, (tuple, list)):
        return all(same_tensors(a, b) for a, b in zip(one, two, strict=True))
    return bool(one == two)


def flat(inputs: Any) -> tuple[Any, ...]:
    """The leaves of a batch of inputs, in the order in which an exported graph takes them."""
    if isinstance(inputs, Mapping):
        return tuple(inputs.values())
    return tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)


def require_rows(inputs: Any, count: int, name: str, where: str = "inputs") -> None:
    """Refuse a batch of inputs whose tensors do not hold one row for every sample.

    Raises
    ------
    InputError : a value that is no tensor, or one with another number of rows.
    """
    if isinstance(inputs, Mapping):
        for key, value in inputs.items():
            require_rows(value, count, name, f"column {key!r}")
    elif isinstance(inputs, (tuple, list)):
        for value in inputs:
            require_rows(value, count, name, where)
    elif isinstance(inputs, Tensor):
        if inputs.ndim == 0 or len(inputs) != count:
            raise InputError(
                f"the {where} of {count} {name} samples is a tensor of shape "
                f"{tuple(inputs.shape)}; its first axis must count the samples: fix the collate "
                "function"
            )
    elif inputs is not None and not isinstance(inputs, (bool, int, float)):
        raise InputError(
            f"the {where} of the {name} samples holds {type(inputs).__name__} values, which no "
            "model takes; turn them into tensors in the data set or in its collate function"
        )


Logits = Float[Tensor, "masks samples labels"]
