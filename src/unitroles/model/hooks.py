"""Run the user's own model up to a layer, or whole with units of the layer ablated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from unitroles.errors import InputError
from unitroles.model.forward import forward, logits_of
from unitroles.model.trace import Site


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


@dataclass(frozen=True)
class Place:
    """A value that a module takes or gives.

    Parameters
    ----------
    path, module : the module.
    call : 0-based number of its call within one forward.
    argument : which positional argument; None = its output.
    """

    path: str = field(compare=False)
    module: nn.Module
    call: int
    argument: int | None = None


def output_of(site: Site) -> Place:
    """Where a layer's output is met."""
    return Place(site.path, site.module, site.call)


@contextmanager
def listening(model: nn.Module, say: Callable[[Tensor, int], object]) -> Iterator[list[Place]]:
    """Tell `say` every tensor that a module takes or gives in a forward, and its number.

    Yields the list of the places, filled while the model runs; a tensor is told once.
    """
    places: list[Place] = []
    known: dict[tuple[int, int], Tensor] = {}  # an identity means something while its tensor lives
    calls: Counter[nn.Module] = Counter()

    def tell(value: Any, place: Place) -> None:
        if isinstance(value, Tensor) and (id(value), value._version) not in known:
            known[id(value), value._version] = value
            say(value, len(places))
            places.append(place)

    def restart(module: nn.Module, args: Any) -> None:
        places.clear()
        known.clear()
        calls.clear()

    # The module that a hook is given may be a copy that an export made of it.
    def before(path: str, mine: nn.Module, module: nn.Module, args: tuple[Any, ...]) -> None:
        for i, value in enumerate(args):
            tell(value, Place(path, mine, calls[mine], i))

    def after(
        path: str, mine: nn.Module, module: nn.Module, args: tuple[Any, ...], output: Any
    ) -> None:
        tell(output, Place(path, mine, calls[mine]))
        calls[mine] += 1

    with ExitStack() as stack:
        stack.callback(model.register_forward_pre_hook(restart, prepend=True).remove)
        for path, module in model.named_modules():
            if path:
                hooks = partial(before, path, module), partial(after, path, module)
                stack.callback(module.register_forward_pre_hook(hooks[0]).remove)
                stack.callback(module.register_forward_hook(hooks[1]).remove)
        yield places


def run_body(model: nn.Module, places: Sequence[Place], inputs: Any) -> list[Tensor]:
    """The user's own model, as far as is needed to meet the values at all `places`.

    They are copies where the model runs on and might write to them.

    Raises
    ------
    InputError : a module is not called for these inputs.
    """
    caught: dict[Place, Tensor] = {}
    wanted = set(places)
    calls: Counter[nn.Module] = Counter()

    def catch(place: Place, value: Any) -> None:
        if place in wanted and isinstance(value, Tensor):
            last = len(caught) + 1 == len(wanted)
            caught[place] = value if last else value.clone()
            if last:
                raise _Stop

    def restart(module: nn.Module, args: Any) -> None:
        calls.clear()
        caught.clear()

    def before(path: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        for i, value in enumerate(args):
            catch(Place(path, module, calls[module], i), value)

    def after(path: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        call = calls[module]
        calls[module] += 1
        catch(Place(path, module, call), output)

    with ExitStack() as stack:
        stack.callback(model.register_forward_pre_hook(restart, prepend=True).remove)
        for module, path in {place.module: place.path for place in places}.items():
            stack.callback(module.register_forward_pre_hook(partial(before, path)).remove)
            stack.callback(module.register_forward_hook(partial(after, path)).remove)
        try:
            forward(model, inputs)
        except _Stop:
            return [caught[place] for place in places]
    absent = next(place for place in places if place not in caught)
    raise InputError(
        f"layer {absent.path!r} was not called (call {absent.call}) for every batch; name a layer "
        "that every sample passes through"
    )


def run_masked(
    model: nn.Module,
    site: Site,
    inputs: Any,
    mask: Bool[Tensor, "samples units"],
    baseline: Float[Tensor, " units"] | None = None,
) -> Float[Tensor, "samples labels"]:
    """The logits of the whole model with only the units of `mask` retrieved: the definition.

    The mask multiplies a copy of the layer's output, so later in-place ops cannot undo it; an
    ablated unit gives its value of `baseline`, None = zero.
    """
    with hooked(model, site, lambda output: apply_mask(output, mask, site.axis, baseline)) as calls:
        logits = logits_of(forward(model, inputs))
    if calls() != site.calls:
        raise InputError(
            f"layer {site.path!r} is called {calls()} times for some samples and {site.calls} "
            "times for others; give samples of one length, or wrap the model"
        )
    return logits


def apply_mask(
    output: Tensor,
    mask: Bool[Tensor, "samples units"],
    axis: int,
    baseline: Float[Tensor, " units"] | None = None,
) -> Tensor:
    """Multiply an output by a 0/1 mask (samples, units), out of place."""
    shape = [1] * output.ndim
    shape[0], shape[axis] = mask.shape[0], mask.shape[1]
    masked = output * mask.to(output.dtype).view(shape)
    if baseline is None:
        return masked
    ablated = torch.where(mask, 0, baseline.to(output))
    return masked + ablated.to(output.dtype).view(shape)
