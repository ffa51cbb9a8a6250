"""The layers that have units, the one that is recommended, and the one that a name means."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from unitroles.errors import InputError, LayerHint, PlanWarning
from unitroles.model.borrow import inside
from unitroles.model.calls import Place, watched
from unitroles.model.flow import (
    ACTIVATING,
    LAYOUT,
    PASSING,
    Flow,
    Value,
    before_mixing,
    on_every_path,
)
from unitroles.model.forward import answer_of, each, tensors
from unitroles.model.trace import Call, Site, Trace, attempted, find_site, is_foreign_activation
from unitroles.options import Layer
from unitroles.wording import few

_ACTIVATIONS = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.RReLU,
    nn.ELU,
    nn.SELU,
    nn.CELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Hardswish,
    nn.Hardtanh,
    nn.Sigmoid,
    nn.Tanh,
    nn.Softplus,
)


_PASSING = (
    *(getattr(nn, name) for name in nn.modules.pooling.__all__),
    nn.modules.dropout._DropoutNd,
    nn.Flatten,
    nn.Identity,
)


_MAKERS = (nn.Linear, nn.modules.conv._ConvNd)


_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm)


def resolve(model: nn.Module, layer: str | nn.Module | Layer | None, seen: Trace) -> Site:
    """The site that a user means.

    Parameters
    ----------
    layer : a path, a module of the model, a `Layer`, or None for the recommended one.
    seen : a forward of a few samples.
    """
    calls, batch = seen.calls, seen.samples
    if layer is None:
        layer = recommend(model, seen).layer
    elif isinstance(layer, nn.Module):
        inner = inside(layer)
        paths = [path for path, module in model.named_modules() if module is inner and path]
        if not paths:
            raise InputError(
                f"the {type(layer).__name__} given as layer is no part of the model; name it"
            )
        layer = Layer(paths[0])
    elif isinstance(layer, str):
        layer = Layer(layer)
    site = find_site(model, replace(layer, path=_plain(layer.path, model)), calls, batch)
    if layer.call is None and site.calls > 1:
        warnings.warn(_which_call(site, calls), LayerHint, stacklevel=3)
    if site.guessed:
        warnings.warn(
            f"axis {site.axis} of layer {site.path!r} is a guess: its output {site.shape} is made "
            "by no known kind of layer. Give Layer(path, axis=...) or name a layer next to it",
            PlanWarning,
            stacklevel=3,
        )
    if _rows_of_one(site.module, site.call, seen) != 1:
        raise InputError(
            f"layer {site.path!r} has no unit axis: the first axis of its output {site.shape} does "
            "not count the samples; name a layer whose output is (samples, units, ...)"
        )
    return site


def _plain(path: str, model: nn.Module) -> str:
    """A path without what wrappers put into it."""
    for wrappers in ((), ("_orig_mod",), ("_orig_mod", "module")):
        plain = ".".join(part for part in path.split(".") if part not in wrappers)
        if plain in dict(model.named_modules()):
            return plain
    return path


def hint(site: Site, calls: list[Call]) -> str | None:
    """Where the units of a convolution or linear layer are met after norm and activation."""
    if not isinstance(site.module, (*_MAKERS, *_NORMS)):
        return None
    place = next(i for i, c in enumerate(calls) if (c.module, c.index) == (site.module, site.call))
    passed = [calls[place]]
    for call in calls[place + 1 :]:
        if passed[-1].output in call.inputs and not any(call.module.children()):
            same = (call.shape, call.axis) == (site.shape, site.axis)
            if not same or (not isinstance(call.module, _NORMS) and not _activates(call.module)):
                break
            passed.append(call)
            if _activates(call.module):
                break
    last = passed[-1]
    norms = isinstance(site.module, _NORMS) and not _activates(last.module)
    if len(passed) == 1 or norms:
        return None
    kinds = " and ".join(type(call.module).__name__ for call in passed[1:])
    name = repr(last.path)
    if last.index + 1 < sum(call.module is last.module for call in calls):
        name = f"unitroles.Layer({last.path!r}, call={last.index})"
    return (
        f"the output of layer {site.path!r} goes through {kinds}; to rank and ablate units after "
        f"that, name layer {name}"
    )


def _activates(module: nn.Module) -> bool:
    return isinstance(module, _ACTIVATIONS) or is_foreign_activation(module)


def _rows_of_one(module: nn.Module, index: int, seen: Trace) -> int:
    """The size of the first axis of a layer's output for a single sample."""
    calls = () if seen.alone is None else seen.alone.calls
    shapes = [c.shape for c in calls if c.module is module and c.index == index]
    return shapes[0][0] if shapes and shapes[0] else 1


def candidates(calls: list[Call], batch: int) -> list[Call]:
    """The last call of every module whose output carries units: samples first, two or more units.

    The module that makes the logits, and what holds or follows it, are no candidates.
    """
    last = {call.path: call for call in calls if call.path}
    makers = [i for i, call in enumerate(calls) if isinstance(call.module, _MAKERS)]
    return [
        call
        for call in calls[: makers[-1] if makers else len(calls)]
        if call is last.get(call.path)
        and call.units > 1
        and call.shape is not None
        and call.shape[0] == batch
    ]


@dataclass(frozen=True)
class Recommended:
    """The layer that is taken where none is named, and why."""

    layer: Layer
    reason: str


def recommend(model: nn.Module, seen: Trace) -> Recommended:
    """The last value before the classifier that every path to the logits goes through.

    With all its units, after its activation function. Where feature maps are the last values with
    positions, it is the last of them, as in the paper: vectors behind them are not looked at. What
    only moves, chooses or pools numbers is passed over, and so is a layer whose unit axis is a
    guess. Where a forward cannot be followed, it is the last activation, or layer, of all.

    Run it inside `untouched`.
    """
    able = [
        call
        for call in seen.calls
        if call.path
        and call.units > 1
        and not call.guessed
        and call.shape is not None
        and call.shape[0] == seen.samples
        and _rows_of_one(call.module, call.index, seen) == 1
    ]
    values, numbers, end = _followed(model, seen)
    named: dict[int, Call] = {}
    for call in able:
        number = numbers.get((call.module, call.index))
        if number is not None:
            named.setdefault(number, call)
    chain = [] if end is None else on_every_path(values, end)
    before = before_mixing(values, end) if chain and end is not None else set()
    found: list[tuple[int, Call]] = []
    moved: Call | None = None  # by operations that keep the units on one axis
    for number in (number for number in chain if number in before):
        operation = values[number].operation
        if operation in PASSING:
            moved = (named.get(number) or moved) if operation in LAYOUT else None
            continue
        call = named.get(number) or moved
        moved = None
        if call is not None and operation != "input":
            found.append((number, call))
    if not found:
        return _last_of_all(seen)
    spread = next((pair for pair in found if _has_positions(pair[1])), None)
    maps = spread is not None and not _is_of_tokens(spread[1])
    number, call = spread if maps and spread is not None else found[0]
    kind = "feature map" if maps else "value"
    after = " and after its activation" * (values[number].operation in ACTIVATING)
    return Recommended(
        Layer(call.path, call=call.index),
        f"the last {kind} that every path to the logits goes through, before the classifier{after}",
    )


def _has_positions(call: Call) -> bool:
    return call.shape is not None and len(call.shape) > 2


def _is_of_tokens(call: Call) -> bool:
    """Whether its positions are one row, with the units last."""
    return call.shape is not None and len(call.shape) == 3 and call.axis == 2


def _followed(
    model: nn.Module, seen: Trace
) -> tuple[list[Value], dict[tuple[nn.Module, int], int], int | None]:
    """The values of a forward, what every module call gave of them, and the logits."""
    flow, numbers = Flow(), dict[tuple[nn.Module, int], int]()

    def note(place: Place, value: Any) -> None:
        number = flow.value_of(value) if place.argument is None else None
        if number is not None:
            numbers[place.module, place.call] = number

    try:
        with flow, watched(model, model.named_modules(), note):
            given = each(seen.inputs, torch.clone)
            flow.begin(tensors(given))
            end = flow.value_of(answer_of(attempted(model, given)))
    except InputError:  # some forwards bear no one watching: compiled parts, for example
        return [], {}, None
    return flow.values, numbers, end


def _last_of_all(seen: Trace) -> Recommended:
    found = [call for call in candidates(seen.calls, seen.samples) if not call.guessed]
    for group in ([call for call in found if _has_positions(call)], found):
        activations = [call for call in group if _activates(call.module)]
        others = [call for call in group if not isinstance(call.module, _PASSING)]
        for kind, chosen in (("activation", activations), ("layer", others)):
            if chosen:
                where = Layer(chosen[-1].path, call=chosen[-1].index)
                reason = f"the last {kind} with units; no layer is on every path to the logits"
                return Recommended(where, reason)
    raise InputError("the model has no layer with units before its output; name one with layer=")


def _which_call(site: Site, calls: list[Call]) -> str:
    """Of a module that is called several times in one forward."""
    mine = [call for call in calls if call.module is site.module]
    others = [f"{c.index} ({c.units or 'no'} units)" for c in mine if c.index != site.call]
    return (
        f"layer {site.path!r} is called {site.calls} times in one forward: its last call, "
        f"{site.call} ({site.units} units), is taken. The others are {few(others)}; name one "
        f"with unitroles.Layer({site.path!r}, call=...)"
    )
