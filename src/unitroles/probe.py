"""Look at the user's model while it runs, and give it back exactly as it was."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from unitroles.errors import InputError
from unitroles.memory import ran_out

FORWARD_ERRORS = (
    RuntimeError,
    TypeError,
    ValueError,
    IndexError,
    KeyError,
    AttributeError,
    AssertionError,
)


OWN = frozenset(vars(nn.Module()))
"""The attributes that every module has: its parameters, modules, hooks and flags."""


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; all that a forward may change comes back after it.

    That is training flags, parameters, buffers, other attributes of the modules and random states;
    what a forward writes into the lists and dicts of an attribute stays. The flags are set one by
    one: a model's own `train()` may do more than set them. Costs a copy of the weights.
    """
    flags = [(module, module.training) for module in model.modules()]
    tensors: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (kept, {name: (tensor, _saved(tensor)) for name, tensor in kept.items()})
        for module in model.modules()
        for kept in (module.__dict__["_parameters"], module.__dict__["_buffers"])
    ]
    others = [
        (vars(m), {k: v for k, v in vars(m).items() if k not in OWN}) for m in model.modules()
    ]
    states = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with ExitStack() as stack:
        # What a module keeps of a forward must serve in training; `analyze` may be called anywhere.
        stack.enter_context(torch.inference_mode(False))
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
            for now, before in others:
                for name in now.keys() - before.keys() - OWN:
                    del now[name]
                now.update(before)
            for now, before in tensors:
                for name in now.keys() - before.keys():
                    del now[name]
                for name, (tensor, saved) in before.items():
                    now[name] = tensor
                    if tensor is None or saved is None or torch.equal(tensor, saved):
                        continue
                    tensor.copy_(saved)


def _saved(tensor: Tensor | None) -> Tensor | None:
    """A copy of what can be compared with it later."""
    if tensor is None or tensor.layout is not torch.strided:
        return None
    return tensor.detach().clone()


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


@contextmanager
def inputs_kept(model: nn.Module, writes: bool) -> Iterator[None]:
    """Let a model that writes to its inputs write to copies, so that a batch can be run again."""
    if not writes:
        yield
        return

    def copy(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        return copied(args), copied(kwargs)

    handle = model.register_forward_pre_hook(copy, with_kwargs=True, prepend=True)
    try:
        yield
    finally:
        handle.remove()


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


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over the names and bytes of the model's state dict."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, Tensor):
            digest.update(name.encode())
            plain = tensor.detach().to_dense() if tensor.is_sparse else tensor.detach()
            flat = plain.cpu().contiguous().flatten().view(torch.uint8)
            digest.update(flat.numpy().data)
    return digest.hexdigest()


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def describe(inputs: Any) -> str:
    if isinstance(inputs, Tensor):
        return f"shape {tuple(inputs.shape)} {str(inputs.dtype).removeprefix('torch.')}"
    if isinstance(inputs, Mapping):
        return ", ".join(f"{name}: {describe(value)}" for name, value in inputs.items())
    if isinstance(inputs, (tuple, list)):
        return ", ".join(describe(value) for value in inputs)
    return type(inputs).__name__
