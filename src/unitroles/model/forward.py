"""Run the user's model: its inputs, its answer, its precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unitroles.errors import InputError
from unitroles.model.memory import ran_out
from unitroles.wording import first_line

HALF = frozenset((torch.float16, torch.bfloat16))
"""Kinds of numbers of 16 bits: what is summed of them is summed in float32."""
FORWARD_ERRORS = (
    RuntimeError,
    TypeError,
    ValueError,
    IndexError,
    KeyError,
    AttributeError,
    AssertionError,
)


def each(inputs: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same batch with every tensor changed: mappings become dicts, sequences tuples."""
    if isinstance(inputs, Mapping):
        # One order of the names for all batches: a graph takes its inputs by position.
        return {name: each(inputs[name], change) for name in sorted(inputs, key=str)}
    if isinstance(inputs, (tuple, list)):
        return tuple(each(value, change) for value in inputs)
    return change(inputs) if isinstance(inputs, Tensor) else inputs


def leaves(inputs: Any, name: Any = None) -> Iterator[tuple[Any, Any]]:
    """Every value of a batch, in the order of `each`, with the name of its column or None."""
    if isinstance(inputs, Mapping):
        for key in sorted(inputs, key=str):
            yield from leaves(inputs[key], key)
    elif isinstance(inputs, (tuple, list)):
        for value in inputs:
            yield from leaves(value, name)
    else:
        yield name, inputs


def tensors(inputs: Any) -> list[Tensor]:
    """The tensors of a batch."""
    return [value for _, value in leaves(inputs) if isinstance(value, Tensor)]


def forward(model: nn.Module, inputs: Any) -> Any:
    """Call the model: a mapping as keywords, a sequence as several arguments, else one."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, (tuple, list)):
        return model(*inputs)
    return model(inputs)


def parts_of(output: Any) -> dict[Any, Any]:
    """What a model returns by name, or by number where it has no names; a tensor has no parts."""
    if isinstance(output, Tensor) or output is None:
        return {}
    if isinstance(output, Mapping):
        found = dict(output)
    elif isinstance(output, (tuple, list)):
        found = dict(zip(getattr(output, "_fields", range(len(output))), output, strict=True))
    else:
        found = dict(getattr(output, "__dict__", {}))
    return {name: part for name, part in found.items() if part is not None}


def answer_of(output: Any) -> Tensor:
    """The logits in what a model returns: itself, its `logits`, or the one tensor that may be.

    Raises
    ------
    InputError : the output is neither a tensor nor holds `logits` or one tensor of numbers.
    """
    parts = parts_of(output)
    if "logits" in parts:
        output = parts["logits"]
    elif parts:
        able = [v for v in parts.values() if isinstance(v, Tensor) and v.is_floating_point()]
        output = next((value for value in able if value.ndim), output)
    if not isinstance(output, Tensor) or output.ndim == 0 or not output.is_floating_point():
        names = ", ".join(map(str, parts)) or "nothing"
        kind = f"a mapping with {names}" if isinstance(output, Mapping) else type(output).__name__
        raise no_logits(tuple(output.shape) if isinstance(output, Tensor) else kind)
    return output


def logits_of(output: Any, samples: int | None = None) -> Float[Tensor, "samples labels"]:
    """The same with all numbers of a sample in one row.

    Parameters
    ----------
    samples : in the batch, where it may be one: a `squeeze()` in the model takes its axis away.
    """
    answer = answer_of(output)
    if answer.requires_grad:  # a forward may switch gradients on
        answer = answer.detach()
    if answer.ndim == 1 and samples == 1:
        return answer[None]
    if answer.ndim == 2:
        return answer
    return answer[:, None] if answer.ndim == 1 else answer.flatten(1)


def no_logits(found: object) -> InputError:
    """The error of an output that holds no logits."""
    return InputError(
        f"the model's output must hold logits of shape (samples, classes), got {found}; wrap the "
        "model in a module that returns them, or say what they are with Method(output=...)"
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


def rows_of(inputs: Any, rows: slice) -> Any:
    """Some samples of a batch."""
    return each(inputs, lambda value: value[rows])


def repeated(inputs: Any, times: int) -> Any:
    """All samples several times, one whole batch after the other."""
    return each(inputs, lambda value: value.repeat(times, *(1 for _ in value.shape[1:])))


def form_of(inputs: Any) -> tuple[Any, ...]:
    """Names, types and shapes of a batch's inputs but for the first axis, the samples."""
    names = tuple(str(name) for name, _ in leaves(inputs))
    return names, tuple((str(tensor.dtype), *tensor.shape[1:]) for tensor in tensors(inputs))


def batch_size(inputs: Any) -> int:
    """The number of samples in a batch of inputs; 0 where it holds no tensor with such an axis."""
    return next((tensor.shape[0] for tensor in tensors(inputs) if tensor.ndim), 0)


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
    autocast : the precision of the model's matrix products by name, or None for its own.
    channels_last : whether images go in with their channels last.
    """

    device: torch.device
    autocast: str | None = None
    channels_last: bool = False

    def on(self) -> AbstractContextManager[Any]:
        """The context of the model's own forwards."""
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.device.type, getattr(torch, self.autocast))

    def place(self, inputs: Any) -> Any:
        """A batch where and as the model takes it."""
        return each(inputs, self._place)

    def _place(self, value: Tensor) -> Tensor:
        on_gpu = self.device.type == "cuda"
        if on_gpu and not value.is_cuda:
            value = value.pin_memory()
        value = value.to(self.device, non_blocking=on_gpu)
        return with_channels_last(value) if self.channels_last else value


def with_channels_last(value: Tensor) -> Tensor:
    return value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value


def flat(inputs: Any) -> tuple[Any, ...]:
    """The leaves of a batch of inputs, in the order in which an exported graph takes them."""
    if isinstance(inputs, Mapping):
        return tuple(inputs.values())
    return tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)


def require_rows(inputs: Any, count: int, name: str) -> None:
    """Refuse a batch of inputs whose tensors do not hold one row for every sample.

    Raises
    ------
    InputError : a value that is no tensor, or one with another number of rows.
    """
    for column, value in leaves(inputs):
        where = "inputs" if column is None else f"column {column!r}"
        if isinstance(value, Tensor):
            if value.ndim == 0 or len(value) != count:
                raise InputError(
                    f"the {where} of {count} {name} samples is a tensor of shape "
                    f"{tuple(value.shape)}; its first axis must count the samples: fix the collate "
                    "function"
                )
        elif value is not None and not isinstance(value, (bool, int, float)):
            raise InputError(
                f"the {where} of the {name} samples holds {type(value).__name__} values, which no "
                "model takes; turn them into tensors in the data set or in its collate function"
            )


Logits = Float[Tensor, "masks samples labels"]
