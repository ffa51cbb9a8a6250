"""Which layers of a model have units, which one to take, and what a test of each would cost."""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from unitroles.additive import is_norm, recognise
from unitroles.choice import additive_reason, suffix_reason
from unitroles.errors import InputError, PlanWarning
from unitroles.graph import CannotCut
from unitroles.head import export
from unitroles.nodes import value_of
from unitroles.operations import ROWS, Operations
from unitroles.options import Layer
from unitroles.probe import (
    batch_size,
    copied,
    device_of,
    first_line,
    forward,
    logits_of,
    to_device,
    untouched,
)
from unitroles.separable import Head
from unitroles.trace import Call, Site, Trace, find_site, is_foreign_activation, trace
from unitroles.wrappers import inside, unwrapped

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
_FORWARDS = 3
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
    if path in dict(model.named_modules()):
        return path
    for wrappers in (("_orig_mod",), ("_orig_mod", "module")):
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
        takes = passed[-1].output in call.inputs
        if takes and not any(call.module.children()):
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
    calls_of = sum(call.module is last.module for call in calls)
    name = repr(last.path)
    if last.index + 1 < calls_of:
        name = f"unitroles.Layer({last.path!r}, call={last.index})"
    return (
        f"the output of layer {site.path!r} goes through {kinds}; to rank and silence units after "
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


def layers(model: nn.Module, example: Any) -> pd.DataFrame:
    """Every layer that has units, with the plan a test of it would get and its cost.

    Parameters
    ----------
    model : any module that returns logits.
    example : a batch of at least two inputs, as the model takes them.

    Returns
    -------
    One row per layer in the order of the forward: layer, kind, units, axis, plan, cost,
    ms_per_sample, recommended, reason, bytes_per_sample. The cost is in evaluation passes over the
    same samples, from the floating-point operations of matrix products and convolutions; the time,
    in milliseconds of a test per sample of both splits, is the cost times what one sample of the
    example takes here; the bytes are what is kept of every sample between the pass and the masks.
    No plan is tried: one that fails its check before a run is replaced by a dearer one. `plan`
    measures every stage on the data.

    Raises
    ------
    InputError : the model cannot take the example.

    Examples
    --------
    >>> import torch, unitroles as ur
    >>> model = torch.nn.Sequential(
    ...     torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)
    ... )
    >>> ur.layers(model, torch.randn(2, 4))[["layer", "units", "plan", "bytes_per_sample"]]
      layer  units      plan  bytes_per_sample
    0     0      8  additive                32
    1     1      8  additive                32
    """
    if batch_size(example) < 2:
        raise InputError("give an example batch of at least two inputs")
    with unwrapped(model) as model, untouched(model):
        example = to_device(example, device_of(model))
        seen = trace(model, example)
        best = recommend(seen.calls, seen.samples).path
        found = candidates(seen.calls, seen.samples)
        sites = [find_site(model, Layer(call.path), seen.calls, seen.samples) for call in found]
        outlooks = _outlooks(model, sites, seen)
        each = 1000 * _seconds(model, example) / seen.samples
    rows = [
        {
            "layer": site.path,
            "kind": type(site.module).__name__,
            "units": site.units,
            "axis": site.axis,
            "plan": outlook.plan,
            "cost": round(outlook.cost, 2),
            "ms_per_sample": float(f"{outlook.cost * each:.3g}"),
            "recommended": site.path == best,
            "reason": outlook.reason,
            "bytes_per_sample": outlook.kept,
        }
        for site, outlook in zip(sites, outlooks, strict=True)
    ]
    return pd.DataFrame(rows)


def _seconds(model: nn.Module, example: Any) -> float:
    """Of the fastest of some forwards of the example: others share the machine."""
    found = []
    for _ in range(_FORWARDS):
        given = copied(example)
        started = time.perf_counter()
        logits_of(forward(model, given)).cpu()
        found.append(time.perf_counter() - started)
    return min(found)


@dataclass(frozen=True)
class _Outlook:
    """What a test of a layer would be.

    Parameters
    ----------
    plan, reason : as in `Plan`.
    cost : evaluation passes.
    kept : bytes of every sample.
    """

    plan: str
    reason: str
    cost: float
    kept: int


def _outlooks(model: nn.Module, sites: list[Site], seen: Trace) -> list[_Outlook]:
    """The outlook of every site, from one export of the model."""
    try:
        exported = export(model, sites, seen.inputs)
    except CannotCut as error:
        return [_full(site, str(error)) for site in sites]
    count = Operations()
    whole = max(count.of(exported.program.graph_module), 1)
    found = []
    for place, site in enumerate(sites):
        try:
            found.append(_outlook(exported.head(place), seen.logits.shape[1], count, whole))
        except Exception as error:  # as when a plan is chosen: the definition always runs
            found.append(_full(site, first_line(error)))
    return found


def _full(site: Site, reason: str) -> _Outlook:
    """The scores, every number of retrieved units, and the swapped sets."""
    return _Outlook("full", reason, 1.0 + (site.units + 1) + 1, 0)


def _outlook(head: Head, labels: int, count: Operations, whole: int) -> _Outlook:
    after = count.of(head.after) / whole
    try:
        form = recognise(head, (), fold=False)
    except CannotCut as error:
        cost = 1 + (head.units + 1 + 1) * after
        return _Outlook("suffix", suffix_reason(error), cost, _kept(head))
    units, features, width = form.add.shape
    tail = count.of(form.tail) / whole
    if form.folded:
        normed = any(map(is_norm, form.tail.graph.nodes))
        # Two operations for every multiply-add, and for as many samples as are counted.
        steps = 2 * ROWS * units * features * (labels + width * normed) / whole
        # The model's own passes, the sum and where it starts from, and the swapped sets.
        cost = 1 + steps + tail + after
        return _Outlook("additive", additive_reason(True, normed), cost, _kept(head))
    # The running sum takes the operations of the one op that it stands for.
    cost = 1 + (after - tail) + (head.units + 1) * tail + after
    return _Outlook("additive", additive_reason(False, False), cost, _kept(head))


def _kept(head: Head) -> int:
    """Bytes of a sample: edge values, those of the silent layer, and what flows around."""
    (output,) = (node for node in head.before.graph.nodes if node.op == "output")
    values = [value_of(node) for node in output.args[0]]
    edge, around = values[: head.edges], values[head.edges :]
    rows = [value for value, per_row in zip(around, head.repeats, strict=True) if per_row]
    silent = [] if head.same_silence else edge
    return sum(_row_bytes(value, head.dtype) for value in (*edge, *silent, *rows))


def _row_bytes(value: Tensor, dtype: torch.dtype) -> int:
    half = value.is_floating_point() and dtype in (torch.float16, torch.bfloat16)
    return math.prod(value.shape[1:]) * (4 if half else value.element_size())
