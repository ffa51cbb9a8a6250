"""The layers that have units, and what a test of each would cost."""

from __future__ import annotations

import math
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from unitroles.analysis.locks import one_at_a_time
from unitroles.annotations import checked
from unitroles.engine.choice import additive_reason, exported_or_reason, suffix_reason
from unitroles.errors import InputError
from unitroles.graph.extract import CannotCut
from unitroles.graph.flops import Operations
from unitroles.graph.ops import ROWS, is_norm, value_of
from unitroles.heads.additive import can_fold, running_sums
from unitroles.heads.head import Head, head_after
from unitroles.model.borrow import device_of, untouched, unwrapped
from unitroles.model.candidates import Recommended, candidates, recommend
from unitroles.model.forward import Precision, batch_size, each, forward, logits_of
from unitroles.model.output import Asked, Output, classes_of, logits_alone
from unitroles.model.trace import Site, Trace, find_site, trace
from unitroles.options import Layer, Method
from unitroles.progress import track
from unitroles.wording import first_line

_FORWARDS = 3


@checked
def layers(
    model: nn.Module, example: Any, output: Output = None, progress: bool = False
) -> pd.DataFrame:
    """Every layer that has units, with the plan a test of it would get and its cost.

    Parameters
    ----------
    model : any module that returns logits.
    example : a batch of at least two inputs, as the model takes them.
    output : which of the model's outputs is the logits, see `Method`.
    progress : tell on the error stream of a terminal that it goes on.

    Returns
    -------
    One row per layer in the order of the forward: layer, kind, units, axis, plan, cost,
    ms_per_sample, recommended, reason, bytes_per_sample, note. The cost is in evaluation passes
    over the same samples, from the floating-point operations of matrix products and convolutions;
    the time, in milliseconds of a test per sample of both splits, is the cost times what one sample
    of the example takes here; the bytes are what is kept of every sample between the pass and the
    masks. The note says why a layer is recommended, and where an axis is a guess. No plan is tried:
    one that fails its check before a run is replaced by a more expensive one.
    `plan` measures every stage on the data.

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
        raise InputError(
            "give an example batch of at least two inputs: a tensor, or tensors by name"
        )
    asked = Asked(Method(output=output).output, classes_of(model), strict=False)
    with one_at_a_time(), unwrapped(model) as model, untouched(model), ExitStack() as stack:
        done = stack.enter_context(track(progress))("layers", 1)
        example = Precision(device_of(model)).place(example)
        stack.enter_context(logits_alone(model, example, asked))
        seen = trace(model, example)
        best = recommend(model, seen)
        found = {call.path: Layer(call.path) for call in candidates(seen.calls, seen.samples)}
        found[best.layer.path] = best.layer
        sites = [find_site(model, layer, seen.calls, seen.samples) for layer in found.values()]
        costs = _costs(model, sites, seen)
        each = 1000 * _seconds(model, example) / seen.samples
        done(1)
    rows = [
        {
            "layer": site.path,
            "kind": type(site.module).__name__,
            "units": site.units,
            "axis": site.axis,
            "plan": outlook.plan,
            "cost": round(outlook.cost, 2),
            "ms_per_sample": float(f"{outlook.cost * each:.3g}"),
            "recommended": site.path == best.layer.path,
            "reason": outlook.reason,
            "bytes_per_sample": outlook.kept,
            "note": _note(site, best),
        }
        for site, outlook in zip(sites, costs, strict=True)
    ]
    return pd.DataFrame(rows)


def _note(site: Site, best: Recommended) -> str:
    """Why a layer is recommended; or that its axis is a guess, as no recommended one is."""
    if site.path == best.layer.path:
        call = f" (call {site.call} of {site.calls})" if site.calls > 1 else ""
        return f"recommended{call}: {best.reason}"
    return "the axis is a guess: give Layer(path, axis=...)" if site.guessed else ""


def _seconds(model: nn.Module, example: Any) -> float:
    """Of the fastest of some forwards of the example: others share the machine."""
    found = []
    for _ in range(_FORWARDS):
        given = each(example, torch.clone)
        started = time.perf_counter()
        logits_of(forward(model, given)).cpu()
        found.append(time.perf_counter() - started)
    return min(found)


@dataclass(frozen=True)
class _Cost:
    """The cost of a test of a layer.

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


def _costs(model: nn.Module, sites: list[Site], seen: Trace) -> list[_Cost]:
    """The outlook of every site, from one export of the model."""
    exported = exported_or_reason(model, sites, seen.inputs)
    if isinstance(exported, str):
        return [_full(site, exported) for site in sites]
    count = Operations()
    whole = max(count.of(exported.module), 1)
    found = []
    for place, site in enumerate(sites):
        try:
            found.append(_cost(head_after(exported, place), seen.logits.shape[1], count, whole))
        except Exception as error:  # as when a plan is chosen: the definition always runs
            found.append(_full(site, first_line(error)))
    return found


def _full(site: Site, reason: str) -> _Cost:
    """The scores, every number of retrieved units, and the swapped sets."""
    return _Cost("full", reason, 1.0 + (site.units + 1) + 1, 0)


def _cost(head: Head, labels: int, count: Operations, whole: int) -> _Cost:
    after, kept = count.of(head.after) / whole, _kept(head)
    try:
        form = running_sums(head)
    except CannotCut as error:
        return _Cost("suffix", suffix_reason(str(error)), 1 + (head.units + 1 + 1) * after, kept)
    units, features, width = form.sums[0].add.shape
    tail, folded = count.of(form.tail) / whole, can_fold(form)
    normed = folded and any(map(is_norm, form.tail.graph.nodes))
    if folded:
        # Two operations for every multiply-add, and for as many samples as are counted.
        steps = 2 * ROWS * units * features * (labels + width * normed) / whole
        curves = steps + tail  # where the sum starts from
    else:
        # The running sum takes the operations of the one op that it stands for.
        curves = (after - tail) + (head.units + 1) * tail
    # The model's own passes, the curves, and the swapped sets.
    return _Cost("additive", additive_reason(folded, normed), 1 + curves + after, kept)


def _kept(head: Head) -> int:
    """Bytes of a sample: edge values, those of the ablated layer, and what flows around."""
    (output,) = (node for node in head.before.graph.nodes if node.op == "output")
    values = [value_of(node) for node in output.args[0]]
    edge, around = values[: head.edges], values[head.edges :]
    rows = [value for value, per_row in zip(around, head.repeats, strict=True) if per_row]
    ablated = [] if head.same_ablated else edge
    return sum(_row_bytes(value) for value in (*edge, *ablated, *rows))


def _row_bytes(value: Tensor) -> int:
    return math.prod(value.shape[1:]) * value.element_size()
