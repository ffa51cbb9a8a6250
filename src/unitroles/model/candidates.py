"""The layers that have units, the one that is recommended, and the one that a name means."""

from __future__ import annotations

import warnings
from dataclasses import replace

from torch import nn

from unitroles.errors import InputError, PlanWarning
from unitroles.model.borrow import inside
from unitroles.model.trace import Call, Site, Trace, find_site, is_foreign_activation
from unitroles.options import Layer

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
        layer = recommend(calls, batch)
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
    if site.guessed:
        warnings.warn(
            f"axis {site.axis} of layer {site.path!r} is a guess: its output {site.shape} is made "
            "by no known kind of layer. Give Layer(path, axis=...) or name a layer next to it",
            PlanWarning,
            stacklevel=3,
        )
    if _rows_of_one(site, seen) != 1:
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


def _rows_of_one(site: Site, seen: Trace) -> int:
    """The size of the first axis of a layer's output for a single sample."""
    calls = () if seen.alone is None else seen.alone.calls
    shapes = [c.shape for c in calls if c.module is site.module and c.index == site.call]
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


def recommend(calls: list[Call], batch: int) -> Layer:
    """The last layer with units after its activation function and before the classifier.

    Layers with positions (feature maps, tokens) come before vectors, as the paper's choice, the
    last convolutional layer. Where no activation function is a module, the last layer of any kind
    but pooling and the like: the activation is then inside it, or between it and the next.
    """
    found = candidates(calls, batch)
    spread = [call for call in found if call.shape is not None and len(call.shape) > 2]
    for group in (spread, found):
        activations = [call for call in group if _activates(call.module)]
        others = [call for call in group if not isinstance(call.module, _PASSING)]
        chosen = activations or others
        if chosen:
            return Layer(chosen[-1].path, call=chosen[-1].index)
    raise InputError("the model has no layer with units before its output; name one with layer=")
