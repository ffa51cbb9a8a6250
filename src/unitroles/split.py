"""Run the user's own model up to a layer, or whole with units of the layer silenced."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor, nn

from unitroles.errors import InputError
from unitroles.probe import forward, logits_of
from unitroles.trace import Site


class _Stop(BaseException):
    """Leaves a forward at the layer; no `except Exception` of a user's model may catch it."""


@contextmanager
def hooked(
    model: nn.Module, site: Site, change: Callable[[Tensor], Tensor | None]
) -> Iterator[Callable[[], int]]:
    """Apply `change` to the output of the site's call in every forward of the model.

    Yields a function that tells how often the module was called in the last forward.
    """
    count = 0

    def restart(module: nn.Module, args: Any) -> None:
        nonlocal count
        count = 0

    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        nonlocal count
        count += 1
        return change(output) if count == site.call + 1 else None

    handles = [model.register_forward_pre_hook(restart), site.module.register_forward_hook(hook)]
    try:
        yield lambda: count
    finally:
        for handle in handles:
            handle.remove()


def run_body(model: nn.Module, site: Site, inputs: Any) -> Tensor:
    """The user's model up to the layer: inputs -> its output (samples, ..., units, ...).

    Raises
    ------
    InputError : the layer is not called for these inputs.
    """
    caught: list[Tensor] = []

    def stop(output: Tensor) -> None:
        caught.append(output)
        raise _Stop

    with hooked(model, site, stop):
        try:
            forward(model, inputs)
        except _Stop:
            return caught.pop()
    raise InputError(
        f"layer {site.path!r} was not called (call {site.call}) for every batch; name a layer "
        "that every sample passes through"
    )


def run_masked(
    model: nn.Module, site: Site, inputs: Any, mask: Bool[Tensor, "samples units"]
) -> Float[Tensor, "samples labels"]:
    """The logits of the whole model with only the units of `mask` awake: the definition.

    The mask multiplies a copy of the layer's output, so later in-place ops cannot undo it.
    """
    with hooked(model, site, lambda output: apply_mask(output, mask, site.axis)) as calls:
        logits = logits_of(forward(model, inputs))
    if calls() != site.calls:
        raise InputError(
            f"layer {site.path!r} is called {calls()} times for some samples and {site.calls} "
            "times for others; give samples of one length, or wrap the model"
        )
    return logits


def apply_mask(output: Tensor, mask: Bool[Tensor, "samples units"], axis: int) -> Tensor:
    """Multiply an output by a 0/1 mask (samples, units), out of place."""
    shape = [1] * output.ndim
    shape[0], shape[axis] = mask.shape[0], mask.shape[1]
    return output * mask.to(output.dtype).view(shape)
