"""Run the user's own model up to a layer, or whole with units of the layer ablated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from unitroles.errors import InputError
from unitroles.model.calls import Place, watched
from unitroles.model.forward import batch_size, forward, logits_of
from unitroles.model.trace import Site, some_rows_message


class _Stop(BaseException):
    """Leaves a forward at the layer; no `except Exception` of a user's model may catch it."""


def hooked(
    model: nn.Module, site: Site, change: Callable[[Tensor], Tensor | None]
) -> AbstractContextManager[Counter[nn.Module]]:
    """Apply `change` to the output of the site's call in every forward of the model.

    The block is given the number of calls of the module in the last forward.
    """
    return watched(model, [(site.path, site.module)], partial(_changed, output_of(site), change))


def _changed(
    wanted: Place, change: Callable[[Tensor], Tensor | None], place: Place, value: Any
) -> Tensor | None:
    return change(value) if place == wanted else None


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

    def tell(place: Place, value: Any) -> None:
        if isinstance(value, Tensor) and (id(value), value._version) not in known:
            known[id(value), value._version] = value
            say(value, len(places))
            places.append(place)

    def begin() -> None:
        places.clear()
        known.clear()

    modules = [(path, module) for path, module in model.named_modules() if path]
    with watched(model, modules, tell, begin):
        yield places


class SomeRows(InputError):
    """Only some of the samples of a batch reach the layer."""

    def __init__(self, site: Site, found: int, samples: int) -> None:
        super().__init__(some_rows_message(site.path, found, samples))
        self.site = site


def run_body(model: nn.Module, places: Sequence[Place], inputs: Any) -> list[Tensor]:
    """The user's own model, as far as is needed to meet the values at all `places`.

    They are copies where the model runs on and might write to them.

    Raises
    ------
    InputError : a module is not called for these inputs.
    """
    found, _ = _caught(model, places, inputs, stop=True)
    absent = next((place for place in places if place not in found), None)
    if absent is not None:
        raise InputError(
            f"layer {absent.path!r} was not called (call {absent.call}) for every batch; name a "
            "layer that every sample passes through"
        )
    return [found[place] for place in places]


def reaches(model: nn.Module, path: str, module: nn.Module, inputs: Any) -> bool:
    """Whether a sample alone reaches a layer that others do not."""
    rows: list[int] = []

    def note(place: Place, value: Any) -> None:
        if place.argument is None and isinstance(value, Tensor) and value.ndim:
            rows.append(len(value))

    with watched(model, [(path, module)], note):
        forward(model, inputs)
    return bool(rows) and all(count == 1 for count in rows)


def run_through(
    model: nn.Module, places: Sequence[Place], inputs: Any
) -> tuple[dict[Place, Tensor], Float[Tensor, "samples labels"]]:
    """The user's own model to its end: its logits, and copies of the values at `places`."""
    found, output = _caught(model, places, inputs, stop=False)
    return found, logits_of(output, batch_size(inputs))


def _caught(
    model: nn.Module, places: Sequence[Place], inputs: Any, stop: bool
) -> tuple[dict[Place, Tensor], Any]:
    caught: dict[Place, Tensor] = {}
    modules = {place.module: (place.path, place.module) for place in places}
    with watched(model, modules.values(), partial(_catch, caught, set(places), stop)):
        try:
            return caught, forward(model, inputs)
        except _Stop:
            return caught, None


def _catch(
    caught: dict[Place, Tensor], wanted: set[Place], stop: bool, place: Place, value: Any
) -> None:
    if place in wanted and isinstance(value, Tensor):
        last = stop and len(caught) + 1 == len(wanted)
        caught[place] = value.detach() if last else value.detach().clone()
        if last:
            raise _Stop


def run_masked(
    model: nn.Module,
    site: Site,
    inputs: Any,
    mask: Bool[Tensor, "samples units"],
    baseline: Float[Tensor, " units"] | None = None,
) -> Float[Tensor, "samples labels"]:
    """The logits of the whole model with only the units of `mask` retrieved: the definition.

    The mask acts on a copy of the layer's output, so later in-place ops cannot undo it; an ablated
    unit gives its value of `baseline`, None = zero.
    """
    with hooked(model, site, partial(_masked, site, mask, baseline)) as calls:
        logits = logits_of(forward(model, inputs), len(mask))
    if calls[site.module] not in (0, site.calls):  # where it is not called, no mask acts
        raise InputError(
            f"layer {site.path!r} is called {calls[site.module]} times for some samples and "
            f"{site.calls} times for others; give samples of one length, or wrap the model"
        )
    return logits


def _masked(site: Site, mask: Tensor, baseline: Tensor | None, output: Tensor) -> Tensor:
    if len(output) == 0 and len(mask) == 1:  # the sample does not reach the layer
        return output
    if len(output) != len(mask):
        raise SomeRows(site, len(output), len(mask))
    return apply_mask(output, mask, site.axis, baseline)


def apply_mask(
    output: Tensor,
    mask: Bool[Tensor, "samples units"],
    axis: int,
    baseline: Float[Tensor, " units"] | None = None,
) -> Tensor:
    """An output with 0, or the baseline, where a mask (samples, units) is off; out of place.

    Not a product with the mask: a negative number times 0 is -0, which some functions tell from 0.
    """
    shape = [1] * output.ndim
    shape[axis] = mask.shape[1]
    ablated = output.new_zeros(()) if baseline is None else baseline.to(output).view(shape)
    shape[0] = mask.shape[0]
    return torch.where(mask.view(shape), output, ablated)
