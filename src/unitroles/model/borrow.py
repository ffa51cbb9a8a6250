"""Borrow the user's model and give it back exactly as it was."""

from __future__ import annotations

import copy
import hashlib
import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy

from unitroles.errors import InputError
from unitroles.model.forward import each, with_channels_last
from unitroles.wording import first_line

_CONTAINERS = (list, dict, set, OrderedDict, defaultdict, Counter, deque)


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; all that a forward may change comes back after it.

    That is training flags, parameters, buffers, modules inside, hooks of every kind, the class and
    all attributes of the modules, together: a hook is often guarded by an attribute, and one
    without the other would be put in again by every forward. So do the lists, dicts, sets and
    tensors that attributes hold, and gradients. Random states too. The flags are set one by one: a
    model's own `train()` may do more than set them. An autocast of the caller's is off inside.
    Costs a copy of the weights.
    """
    states = random.getstate(), np.random.get_state()
    modules = list(model.modules())
    kinds = [(module, type(module)) for module in modules]
    contents = _Contents(modules)
    numbers = [_Numbers.of(tensor) for tensor in contents.tensors]
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with ExitStack() as stack:
        # What a module keeps of a forward must serve in training; `analyze` may be called anywhere.
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.random.fork_rng(devices))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast(device_of(model).type, enabled=False))
        try:
            for module in modules:
                module.training = False
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            for module, kind in kinds:
                module.__class__ = kind  # a parametrization makes it another
            contents.restore()
            for one in numbers:
                one.restore()


class _Contents:
    """The attributes of modules, and what the containers among them hold, at any depth.

    Hooks, parameters, buffers and the modules inside are such containers.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self.tensors: list[Tensor] = []
        self._seen: dict[int, Any] = {}
        self._containers: list[tuple[Any, Any]] = []
        self._look(map(vars, modules))

    def _look(self, values: Iterable[Any]) -> None:
        for value in values:
            if id(value) in self._seen:
                continue
            if type(value) in _CONTAINERS:
                self._seen[id(value)] = value
                self._containers.append((value, copy.copy(value)))
                self._look(value.values() if isinstance(value, dict) else value)
            elif isinstance(value, Tensor) and value.layout is torch.strided and not value.is_meta:
                self._seen[id(value)] = value
                self.tensors.append(value)

    def restore(self) -> None:
        for now, before in self._containers:
            now.clear()
            now.extend(before) if isinstance(now, (list, deque)) else now.update(before)


@dataclass(frozen=True)
class _Numbers:
    """A tensor as it was: its numbers, what holds them, and its gradient."""

    tensor: Tensor
    data: Tensor
    copy: Tensor
    needs_grad: bool
    grad: Tensor | None
    grad_copy: Tensor | None

    @staticmethod
    def of(tensor: Tensor) -> _Numbers:
        grad = tensor.grad if tensor.is_leaf else None
        return _Numbers(
            tensor,
            tensor.data,
            tensor.detach().clone(),
            tensor.requires_grad,
            grad,
            None if grad is None else grad.detach().clone(),
        )

    def restore(self) -> None:
        tensor, data = self.tensor, self.data
        with torch.inference_mode(tensor.is_inference()), torch.no_grad():
            if (tensor.dtype, tensor.shape) != (data.dtype, data.shape):
                tensor.data = data
            if not _equal(tensor, self.copy):
                tensor.copy_(self.copy)
            if not tensor.is_leaf:
                return
            if tensor.requires_grad != self.needs_grad:
                tensor.requires_grad_(self.needs_grad)
            if tensor.grad is not self.grad:
                tensor.grad = self.grad
            if self.grad is not None and self.grad_copy is not None:
                self.grad.copy_(self.grad_copy)


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether all numbers are the same, not-a-number equal to itself."""
    if torch.equal(one, other):
        return True
    return bool(((one == other) | ((one != one) & (other != other))).all())


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter or buffer lives; the CPU where it has none."""
    homes = (tensor.device for tensor in (*model.parameters(), *model.buffers()))
    return next(homes, torch.device("cpu"))


def inputs_kept(model: nn.Module) -> AbstractContextManager[Any]:
    """Let a model that writes to its inputs write to copies, so that a batch can be run again."""

    def copy(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        return each(args, torch.clone), each(kwargs, torch.clone)

    return model.register_forward_pre_hook(copy, with_kwargs=True, prepend=True)


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


@contextmanager
def memory_format(model: nn.Module, channels_last: bool) -> Iterator[None]:
    """Convolution weights with their channels last, for as long as the block runs."""
    given = [(t, t.data) for t in model.parameters() if channels_last and t.ndim == 4]
    try:
        for tensor, data in given:
            tensor.data = with_channels_last(data)
        yield
    finally:
        for tensor, data in given:
            tensor.data = data


@contextmanager
def on_device(model: nn.Module, device: str | None) -> Iterator[None]:
    home = device_of(model)
    if device is None or device == str(home):
        yield
        return
    try:
        try:
            if torch.device(device).type == "meta":
                raise RuntimeError("it holds no numbers")
            model.to(torch.device(device))
        except (AssertionError, RuntimeError) as error:
            raise InputError(
                f"device {device!r} cannot be used: {first_line(error)}; name one that "
                "torch.device knows on this machine, or None for where the model is"
            ) from error
        yield
    finally:
        model.to(home)


@contextmanager
def unwrapped(model: nn.Module) -> Iterator[nn.Module]:
    """The model without wrappers that only run it elsewhere, in parallel or compiled.

    Those inside it are taken off too, and put back when the block ends.

    Raises
    ------
    InputError : it is no module, scripted, sharded over processes, or without numbers.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    inner = inside(model)
    _check(inner)
    with ExitStack() as stack:
        for parent in list(inner.modules()):
            for name, child in list(parent.named_children()):
                if inside(child) is not child:
                    parent._modules[name] = inside(child)
                    stack.callback(parent._modules.__setitem__, name, child)
        for module in inner.modules():
            compiled = vars(module).get("_compiled_call_impl")
            if compiled is not None:  # `module.compile()`: its hooks would not be seen
                module._compiled_call_impl = None
                stack.callback(setattr, module, "_compiled_call_impl", compiled)
        yield inner


def inside(model: nn.Module) -> nn.Module:
    """The module inside a wrapper; anything else as it is."""
    while True:
        if isinstance(model, (DataParallel, DistributedDataParallel)):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # pyright: ignore[reportAssignmentType]
        else:
            return model


def _check(model: nn.Module) -> None:
    for path, module in model.named_modules():
        name = repr(path or "itself")
        if isinstance(module, torch.jit.ScriptModule):
            raise InputError(
                f"the model is scripted (module {name}) and cannot be hooked; give the model it "
                "was scripted from"
            )
        if type(module).__module__.startswith("torch.distributed.fsdp"):
            raise _sharded(f"module {name}")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise InputError("the model has lazy parameters; run one batch through it first")
        if hasattr(tensor, "device_mesh") and hasattr(tensor, "placements"):
            raise _sharded(f"tensor {name!r}")
        if isinstance(tensor, Tensor) and tensor.is_meta:
            raise InputError(
                f"tensor {name!r} of the model is on the meta device and holds no numbers; load "
                "the weights first"
            )


def _sharded(what: str) -> InputError:
    return InputError(
        f"the model is sharded over processes ({what}); gather its full state dict and load it "
        "into the plain model"
    )
