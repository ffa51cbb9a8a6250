"""Ablation: loss and accuracy of every class with units removed, one at a time or in an order."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Int
from torch import Tensor, nn

from unitroles.analysis.passes import gathered
from unitroles.analysis.prepare import Ready, prepared, with_baseline
from unitroles.analysis.provenance import layer_record, name_of
from unitroles.analysis.request import Request
from unitroles.annotations import checked
from unitroles.curves.collect import Kept
from unitroles.curves.retrieval import CurveSums, mask_sums, rof_curve
from unitroles.curves.scores import SampleScore, ScoreSums, mean_scores, sample_score
from unitroles.engine.masks import AllButOne, Prefixes
from unitroles.engine.plan import Plan
from unitroles.errors import InputError, unknown
from unitroles.model.forward import Logits
from unitroles.model.output import Output
from unitroles.model.trace import Site
from unitroles.options import Compute, Layer, Method, Sample
from unitroles.progress import Done
from unitroles.roles import ranked
from unitroles.wording import first_line

REMOVAL_ORDERS = ("descending", "ascending", "random")
_NATS = {"units": "nats"}
_FRACTION = {"units": "fraction"}

Score = str | Callable[[Any], Any]
_Found = tuple[Ready, Kept, CurveSums, dict[str, Any], dict[str, Any]]
"""With the plan that ran, what it kept of the samples, the sums of all masks, and the variables and
coordinates they give."""


@checked
def single_unit_ablation(  # noqa: PLR0913
    model: nn.Module,
    data: Any,
    layer: str | nn.Module | Layer | None = None,
    *,
    class_names: Sequence[str | int] | None = None,
    baseline: str = "zero",
    output: Output = None,
    progress: bool = True,
    sample: Sample = Sample(),
    compute: Compute = Compute(),
) -> xr.Dataset:
    """Remove each unit of a layer alone: how loss and accuracy of every class change.

    Parameters
    ----------
    model : any module that returns logits (samples, classes); it comes back as it was.
    data : samples and their labels, as for `analyze`.
    layer : module path, module or `Layer` whose output carries the units; None = recommended.
    class_names : names by class number; None takes those of the data if there are any.
    baseline : what a removed unit gives. "zero"; or "mean", its mean activation over all analysed
        samples and all positions.
    output : which of the model's outputs is the logits, see `Method`.
    progress : draw bars on the error stream of a terminal.
    sample, compute : see `Sample`, `Compute`.

    Returns
    -------
    Dataset : `loss` in nats and `accuracy` (label) of the intact model; `loss_change` and
        `accuracy_change` (label, unit), with the unit removed minus intact; `samples` (label).

    Raises
    ------
    InputError : what is wrong with the model, the data or an option, and the remedy.

    Examples
    --------
    >>> import torch, unitroles as ur
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(
    ...     torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)
    ... )
    >>> x, y = torch.randn(40, 4), torch.arange(40) % 2
    >>> ur.single_unit_ablation(model, (x, y), layer="1").loss_change.shape
    (2, 8)
    """
    method = Method(baseline=baseline, output=output)
    request = Request(
        model, {"data": data}, [layer], class_names, method, sample, compute, progress=progress
    )
    return _ablated(request, _one_by_one, {})


@checked
def cumulative_ablation(  # noqa: PLR0913
    model: nn.Module,
    data: Any,
    layer: str | nn.Module | Layer | None = None,
    *,
    order: Any = "descending",
    score: Score = "activation_l1",
    class_names: Sequence[str | int] | None = None,
    baseline: str = "zero",
    output: Output = None,
    progress: bool = True,
    sample: Sample = Sample(),
    compute: Compute = Compute(),
) -> xr.Dataset:
    """Remove the units of a layer one after the other: loss and accuracy of every class.

    Parameters
    ----------
    order : which units go first. "descending": the most active ones of the class; "ascending": the
        least active ones, which is the retrieval-of-function test read backwards; "random": drawn
        for each class from the seed of `sample`; or unit numbers, as an array (unit,) for all
        classes or (label, unit).
    score : by what "descending" and "ascending" rank the units, see `Method`.

    Other parameters are those of `single_unit_ablation`.

    Raises
    ------
    InputError : as there; and an `order` of another kind, before the model runs, or of another
        layer, before any pass.

    Returns
    -------
    Dataset : `loss` in nats and `accuracy` (label, removed), with the first 0 ... N units of the
        order removed; `order` (label, position), unit numbers; `samples` (label).

    Examples
    --------
    >>> import torch, unitroles as ur
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(
    ...     torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)
    ... )
    >>> x, y = torch.randn(40, 4), torch.arange(40) % 2
    >>> ur.cumulative_ablation(model, (x, y), layer="1").loss.shape
    (2, 9)
    """
    removal = order if isinstance(order, str) else _unit_numbers(order)
    if isinstance(removal, str) and removal not in REMOVAL_ORDERS:
        raise unknown("order", removal, REMOVAL_ORDERS)
    method = Method(score=score, baseline=baseline, output=output)
    request = Request(
        model, {"data": data}, [layer], class_names, method, sample, compute, progress=progress
    )
    named = {"order": removal if isinstance(removal, str) else "given", "score": name_of(score)}
    return _ablated(request, partial(_one_after_the_other, removal), named)


def _unit_numbers(order: Any) -> Int[np.ndarray, ...]:
    """An order as the user gave it, of a layer that is not looked at yet."""
    wanted = (
        "give the numbers of the layer's units as (units,) or (classes, units), or "
        f"{', '.join(map(repr, REMOVAL_ORDERS))}"
    )
    try:
        table = np.asarray(order.detach().cpu() if isinstance(order, Tensor) else order)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"order cannot be read as numbers: {first_line(error)}; {wanted}"
        ) from error
    if not np.issubdtype(table.dtype, np.integer):
        raise InputError(f"order holds {table.dtype} values, not whole numbers; {wanted}")
    if table.ndim not in (1, 2):
        raise InputError(f"order has shape {table.shape}; {wanted}")
    return table.astype(np.int64)


def _ablated(
    request: Request, sweep: Callable[[Ready], _Found], named: Mapping[str, str]
) -> xr.Dataset:
    """Check model and data, choose the plan, sweep; the model comes back as it was.

    Parameters
    ----------
    sweep : sets the baseline, runs the pass and the masks.
    named : options of the method, for the record.
    """
    with prepared(request) as ready:
        ready, kept, sums, variables, coords = sweep(ready)
        ready.clock.stop("sweep")
        provenance = ready.record()
    labels, names, (choice,) = ready.labels, ready.names, ready.choices
    baseline = request.method.baseline
    method = provenance["options"]["method"]
    provenance["options"]["method"] = {**named, "baseline": baseline, "output": method["output"]}
    return xr.Dataset(
        {**variables, "samples": ("label", sums.count)},
        coords={
            "label": labels if names is None else np.array(names, dtype=object),
            "label_index": ("label", labels.astype(np.int64)),
            **coords,
        },
        attrs={
            "layer": choice.plan.site.path,
            "plan": choice.plan.name,
            "baseline": baseline,
            "provenance": json.dumps({**provenance, **layer_record(choice, [kept])}),
        },
    )


def _collected(ready: Ready, rank_by: SampleScore | None) -> tuple[Ready, ScoreSums, Kept]:
    """Run the body once: scores by class, and what the masks need of every sample.

    The plan is then one whose ablated units give the baseline.
    """
    ready, (found,) = gathered(with_baseline(ready), rank_by, "activity")
    ready.clock.stop("body")
    return ready, found.sums[0], found.kept[0]


def _bar(ready: Ready) -> Done:
    """Told how many samples the sweep has done."""
    return ready.bars(f"ablation {ready.sites[0].path}", len(ready.splits[0]))


def _one_by_one(ready: Ready) -> _Found:
    """The intact model, then each unit removed."""
    ready, _, kept = _collected(ready, None)
    units = kept.plan.site.units
    order = torch.arange(units, device=kept.precision.device)

    def run(plan: Plan, rows: Any, classes: Tensor) -> Iterator[tuple[slice, Logits]]:
        for _, logits in plan.run(rows, Prefixes(order.expand(len(classes), -1), [units])):
            yield slice(0, 1), logits
        for part, logits in plan.run(rows, AllButOne(units, range(units))):
            yield slice(1 + part.start, 1 + part.stop), logits

    empty = np.array([False, *[units == 1] * units])
    sums = mask_sums(kept, ready.labels, empty, run, _bar(ready))
    loss, accuracy, by_unit = sums.mean_loss, sums.accuracy, ("label", "unit")
    variables = {
        "loss": ("label", loss[:, 0], _NATS),
        "accuracy": ("label", accuracy[:, 0], _FRACTION),
        "loss_change": (by_unit, loss[:, 1:] - loss[:, :1], _NATS),
        "accuracy_change": (by_unit, accuracy[:, 1:] - accuracy[:, :1], _FRACTION),
    }
    return ready, kept, sums, variables, {"unit": np.arange(units)}


def _one_after_the_other(order: str | Int[np.ndarray, ...], ready: Ready) -> _Found:
    """The intact model, then without more and more units of an order."""
    ready, kept, removal = _in_order(order, ready)
    # Without the first k units of an order, the first N - k of its reverse are retrieved.
    sums = rof_curve(kept, ready.labels, removal[:, ::-1].copy(), _bar(ready))
    curve, units = ("label", "removed"), kept.plan.site.units
    variables = {
        "loss": (curve, sums.mean_loss[:, ::-1].copy(), _NATS),
        "accuracy": (curve, sums.accuracy[:, ::-1].copy(), _FRACTION),
        "order": (("label", "position"), removal.astype(np.int32)),
    }
    coords = {"removed": np.arange(units + 1), "position": np.arange(units)}
    return ready, kept, sums, variables, coords


def _in_order(
    order: str | Int[np.ndarray, ...], ready: Ready
) -> tuple[Ready, Kept, Int[np.ndarray, "label position"]]:
    """All that the masks need, and for every class its units in the order in which they go."""
    labels, (site,) = ready.labels, ready.sites
    score, seed = ready.request.method.score, ready.request.sample.seed
    if not isinstance(order, str):
        removal = _custom_order(order, labels, site)
        ready, _, kept = _collected(ready, None)
        return ready, kept, removal
    if order == "random":
        drawn = [np.random.default_rng([seed, label]).permutation(site.units) for label in labels]
        ready, _, kept = _collected(ready, None)
        return ready, kept, np.stack(drawn)
    ready, sums, kept = _collected(ready, sample_score(score))
    (by_class,) = mean_scores(score, [sums], site, ready.calls, seed)
    falling = ranked(by_class)
    return ready, kept, falling if order == "descending" else falling[:, ::-1]


def _custom_order(
    table: Int[np.ndarray, ...], labels: Int[np.ndarray, " label"], site: Site
) -> Int[np.ndarray, "label position"]:
    """An order as the user gave it, checked against the layer."""
    units = site.units
    wanted = (
        f"give the numbers 0 to {units - 1} of the units of layer {site.path!r} once each, as "
        f"({units},) or, for {len(labels)} classes, ({len(labels)}, {units})"
    )
    if table.shape not in ((units,), (len(labels), units)):
        raise InputError(f"order has shape {table.shape}; {wanted}")
    table = np.broadcast_to(table, (len(labels), units)).copy()
    for label, row in zip(labels, table, strict=True):
        absent = np.setdiff1d(np.arange(units), row)
        if len(absent):
            raise InputError(f"order of class {label} lacks unit {absent[0]}; {wanted}")
    return table
