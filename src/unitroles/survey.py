"""Which layers of a model have units, which one to take, and what a test of each would cost."""

from __future__ import annotations

import warnings
from typing import Any

import pandas as pd
from torch import nn

from unitroles.errors import InputError, PlanWarning
from unitroles.graph import CannotCut
from unitroles.head import export
from unitroles.options import Layer
from unitroles.probe import batch_size, device_of, to_device, untouched
from unitroles.trace import Call, Site, Trace, find_site, trace

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
        paths = [path for path, module in model.named_modules() if module is layer and path]
        if not paths:
            raise InputError(
                f"the {type(layer).__name__} given as layer is no part of the model; name it"
            )
        layer = Layer(paths[0])
    elif isinstance(layer, str):
        layer = Layer(layer)
    site = find_site(model, layer, calls, batch)
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
        activations = [call for call in group if isinstance(call.module, _ACTIVATIONS)]
        others = [call for call in group if not isinstance(call.module, _PASSING)]
        chosen = activations or others
        if chosen:
            return Layer(chosen[-1].path, call=chosen[-1].index)
    raise InputError("the model has no layer with units before its output; name one with layer=")


def layers(model: nn.Module, example: Any) -> pd.DataFrame:
    """Every layer that has units, with the plan a test of it would get and its cost.

    Parameters
    ----------
    model : any module that returns logits.
    example : a batch of at least two inputs, as the model takes them.

    Returns
    -------
    One row per layer in the order of the forward: layer, kind, units, axis, plan, cost,
    recommended. The cost is in evaluation passes over the same samples, from the floating-point
    operations of matrix products and convolutions.

    Raises
    ------
    InputError : the model cannot take the example.
    """
    if batch_size(example) < 2:
        raise InputError("give an example batch of at least two inputs")
    example = to_device(example, device_of(model))
    with untouched(model):
        seen = trace(model, example)
        best = recommend(seen.calls, seen.samples).path
        found = candidates(seen.calls, seen.samples)
        sites = [find_site(model, Layer(call.path), seen.calls, seen.samples) for call in found]
        plans = _plans(model, sites, example)
        rows = [
            {
                "layer": site.path,
                "kind": type(site.module).__name__,
                "units": site.units,
                "axis": site.axis,
                "plan": plan,
                "cost": cost,
                "recommended": site.path == best,
            }
            for site, (plan, cost) in zip(sites, plans, strict=True)
        ]
    return pd.DataFrame(rows)


def _plans(model: nn.Module, sites: list[Site], example: Any) -> list[tuple[str, float]]:
    """Plan and cost of every site, from one export of the model."""
    full = [("full", 1.0 + site.units + 2) for site in sites]
    try:
        exported = export(model, sites, example)
    except CannotCut:
        return full
    shares = exported.shares_after(example)
    plans = []
    for place, site in enumerate(sites):
        try:
            exported.head(place)
        except CannotCut:
            plans.append(full[place])
        else:
            # Scores, curves and the swapped sets each read the data once.
            plans.append(("suffix", round(3 + (site.units + 2) * shares[place], 2)))
    return plans
