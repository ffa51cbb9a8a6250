"""Which layers of a model have units, which one to take, and what a test of each would cost."""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from unitroles.errors import InputError
from unitroles.head import CannotCut, Head, export_head
from unitroles.options import Layer
from unitroles.probe import (
    Call,
    Site,
    batch_size,
    device_of,
    find_site,
    forward,
    to_device,
    trace,
    untouched,
)
from unitroles.split import run_body

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
_MAKERS = (nn.Linear, nn.modules.conv._ConvNd)


def resolve(
    model: nn.Module, layer: str | nn.Module | Layer | None, inputs: Any
) -> tuple[Site, list[Call]]:
    """The site a user means and the trace it was found in.

    Parameters
    ----------
    layer : a path, a module of the model, a `Layer`, or None for the recommended one.
    inputs : a few samples.
    """
    calls = trace(model, inputs)
    if layer is None:
        layer = recommend(calls, batch_size(inputs))
    elif isinstance(layer, nn.Module):
        paths = [path for path, module in model.named_modules() if module is layer and path]
        if not paths:
            raise InputError(
                f"the {type(layer).__name__} given as layer is no part of the model; name it"
            )
        layer = Layer(paths[0])
    elif isinstance(layer, str):
        layer = Layer(layer)
    return find_site(model, layer, calls, batch_size(inputs)), calls


def candidates(calls: list[Call], batch: int) -> list[Call]:
    """The last call of every module whose output carries units: samples first, two or more units.

    The model itself and the module that makes the logits are no candidates.
    """
    last = {call.path: call for call in calls if call.path}
    logits = max(
        (i for i, call in enumerate(calls) if isinstance(call.module, _MAKERS)), default=-1
    )
    makes_logits = {calls[logits].path} if logits >= 0 else set()
    return [
        call
        for call in calls
        if call is last.get(call.path)
        and call.path not in makes_logits
        and call.units > 1
        and call.shape is not None
        and call.shape[0] == batch
    ]


def recommend(calls: list[Call], batch: int) -> Layer:
    """The last layer with units after its activation function and before the classifier.

    Layers with positions (feature maps, tokens) come before vectors, as the paper's choice, the
    last convolutional layer; without an activation module, the last layer that makes units.
    """
    found = candidates(calls, batch)
    spread = [call for call in found if call.shape is not None and len(call.shape) > 2]
    for group in (spread, found):
        for kinds in (_ACTIVATIONS, _MAKERS):
            chosen = [call for call in group if isinstance(call.module, kinds)]
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
        calls = trace(model, example)
        batch = batch_size(example)
        best = recommend(calls, batch).path
        whole = _flops(lambda: forward(model, example))
        rows = []
        for call in candidates(calls, batch):
            site = find_site(model, Layer(call.path), calls, batch)
            plan, cost = _plan_and_cost(model, site, example, whole)
            rows.append(
                {
                    "layer": call.path,
                    "kind": type(call.module).__name__,
                    "units": site.units,
                    "axis": site.axis,
                    "plan": plan,
                    "cost": cost,
                    "recommended": call.path == best,
                }
            )
    return pd.DataFrame(rows)


def _plan_and_cost(model: nn.Module, site: Site, example: Any, whole: int) -> tuple[str, float]:
    masks = site.units + 2
    try:
        head = export_head(model, site, example)
        part = _head_flops(head, run_body(model, site, example), example)
    except (CannotCut, RuntimeError):
        return "full", 1.0 + masks
    # Scores, curves and the swapped sets each read the data once.
    return "suffix", round(3 + masks * part / max(whole, 1), 2)


def _head_flops(head: Head, cut: torch.Tensor, example: Any) -> int:
    around = head.surroundings(example)
    return _flops(lambda: head.run(cut, *around))


def _flops(run: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()
