"""Models inside wrappers: what is run instead, and what cannot be run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy

from unitroles.errors import InputError


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
    """What a wrapper wraps; anything else as it is."""
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
