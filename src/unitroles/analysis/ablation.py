"""What becomes of every class when units are removed, one at a time or one after the other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Int
from torch import Tensor, nn

from unitroles.analysis.prepare import Ready, prepared, with_baseline
from unitroles.analysis.provenance import layer_record, name_of, record
from unitroles.analysis.request import Request
from unitroles.curves.collect import Kept
from unitroles.curves.retrieval import CurveSums, mask_sums, rof_curve
from unitroles.curves.scores import SampleScore, ScoreSums, mean_scores, sample_score
from unitroles.engine.masks import AllButOne, Prefixes
from unitroles.engine.plan import Plan
from unitroles.errors import InputError, unknown
from unitroles.model.forward import Logits
from unitroles.model.trace import Site
from unitroles.options import Compute, Layer, Method, Sample
from unitroles.roles import ranked

REMOVAL_ORDERS = ("descending", "ascending", "random")
_NATS = {"units": "nats"}
_FRACTION = {"units": "fraction"}

Score = str | Callable[[Any], Any]


def single_unit_ablation(  # noqa: PLR0913
    model: nn.Module,
    data: Any,
    layer: str | nn.Module | Layer | None = None,
    *,
    class_names: Sequence[str] | None = None,
    baseline: str = "zero",
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
    method = Method(baseline=baseline)
    request = Request(
        model, {"data": data}, [layer], class_names, method, sample, compute, progress=progress
    )
    with _running(request) as run:
        _, kept = run.collect(None)
        sums = _one_by_one(kept, run.ready.labels, run.bar())
    loss, accuracy, by_unit = sums.mean_loss, sums.accuracy, ("label", "unit")
    return run.dataset(
        {
            "loss": ("label", loss[:, 0], _NATS),
            "accuracy": ("label", accuracy[:, 0], _FRACTION),
            "loss_change": (by_unit, loss[:, 1:] - loss[:, :1], _NATS),
            "accuracy_change": (by_unit, accuracy[:, 1:] - accuracy[:, :1], _FRACTION),
            "samples": ("label", sums.count),
        },
        {"unit": np.arange(run.site.units)},
        {},
    )


def cumulative_ablation(  # noqa: PLR0913
    model: nn.Module,
    data: Any,
    layer: str | nn.Module | Layer | None = None,
    *,
    order: Any = "descending",
    score: Score = "activation_l1",
    class_names: Sequence[str] | None = None,
    baseline: str = "zero",
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

    Other parameters and errors are those of `single_unit_ablation`.

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
    if isinstance(order, str) and order not in REMOVAL_ORDERS:
        raise unknown("order", order, REMOVAL_ORDERS)
    method = Method(score=score, baseline=baseline)
    request = Request(
        model, {"data": data}, [layer], class_names, method, sample, compute, progress=progress
    )
    with _running(request) as run:
        kept, removal = _in_order(order, run)
        # Without the first k units of an order, the first N - k of its reverse are retrieved.
        sums = rof_curve(kept, run.ready.labels, removal[:, ::-1].copy(), run.bar())
    curve, units = ("label", "removed"), run.site.units
    return run.dataset(
        {
            "loss": (curve, sums.mean_loss[:, ::-1].copy(), _NATS),
            "accuracy": (curve, sums.accuracy[:, ::-1].copy(), _FRACTION),
            "order": (("label", "position"), removal.astype(np.int32)),
            "samples": ("label", sums.count),
        },
        {"removed": np.arange(units + 1), "position": np.arange(units)},
        {"order": order if isinstance(order, str) else "given", "score": name_of(score)},
    )


@dataclass
class _Run:
    """A checked model and data, and how their ablation comes about.

    Parameters
    ----------
    ready : with the plan whose ablated units give the baseline.
    provenance : filled when the run ends.
    """

    ready: Ready
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def site(self) -> Site:
        return self.ready.sites[0]

    def bar(self) -> Callable[[int], None]:
        """Told how many samples the sweep has done."""
        return self.ready.bars(f"ablation {self.site.path}", len(self.ready.splits[0]))

    def collect(self, rank_by: SampleScore | None) -> tuple[ScoreSums, Kept]:
        """Run the body once: scores by class, and what the masks need of every sample."""
        (samples,) = self.ready.splits
        done = self.ready.bars("activity", len(samples))
        (sums,), (kept,) = self.ready.collect(samples, rank_by, done)
        self.ready.clock.stop("body")
        return sums, kept

    def dataset(
        self, variables: dict[str, Any], coords: dict[str, Any], method: dict[str, Any]
    ) -> xr.Dataset:
        """The result with its axes named."""
        labels, names = self.ready.labels, self.ready.names
        choice, baseline = self.ready.choices[0], self.ready.request.method.baseline
        options = {**self.provenance["options"], "method": {**method, "baseline": baseline}}
        provenance = {
            **self.provenance,
            "options": options,
            **layer_record(choice),
            "warnings": self.ready.notes,
        }
        return xr.Dataset(
            variables,
            coords={
                "label": labels if names is None else np.array(names, dtype=object),
                "label_index": ("label", labels.astype(np.int64)),
                **coords,
            },
            attrs={
                "layer": self.site.path,
                "plan": choice.plan.name,
                "baseline": baseline,
                "provenance": json.dumps(provenance),
            },
        )


@contextmanager
def _running(request: Request) -> Iterator[_Run]:
    """Check model and data and choose the plan; the model comes back as it was."""
    with prepared(request) as ready:
        clock, run = ready.clock, _Run(with_baseline(ready))
        clock.stop("body")
        yield run
        clock.stop("sweep")
        run.provenance = record(ready.model, request)
        clock.stop("prepare")
    run.provenance.update(clock.record())


def _one_by_one(
    kept: Kept, labels: Int[np.ndarray, " label"], done: Callable[[int], None]
) -> CurveSums:
    """The intact model, then each unit removed."""
    units = kept.plan.site.units
    order = torch.arange(units, device=kept.precision.device)

    def run(plan: Plan, rows: Any, classes: Tensor) -> Iterator[tuple[slice, Logits]]:
        for _, logits in plan.run(rows, Prefixes(order.expand(len(classes), -1), [units])):
            yield slice(0, 1), logits
        for part, logits in plan.run(rows, AllButOne(units, range(units))):
            yield slice(1 + part.start, 1 + part.stop), logits

    return mask_sums(kept, labels, 1 + units, run, done)


def _in_order(order: Any, run: _Run) -> tuple[Kept, Int[np.ndarray, "label position"]]:
    """What the masks need, and for every class its units in the order in which they go."""
    labels, units, request = run.ready.labels, run.site.units, run.ready.request
    score, seed = request.method.score, request.sample.seed
    if not isinstance(order, str):
        removal = _custom_order(order, labels, run.site)
        return run.collect(None)[1], removal
    if order == "random":
        drawn = [np.random.default_rng([seed, label]).permutation(units) for label in labels]
        return run.collect(None)[1], np.stack(drawn)
    sums, kept = run.collect(sample_score(score))
    (by_class,) = mean_scores(score, [sums], run.site, run.ready.calls, seed)
    falling = ranked(by_class)
    return kept, falling if order == "descending" else falling[:, ::-1]


def _custom_order(
    order: Any, labels: Int[np.ndarray, " label"], site: Site
) -> Int[np.ndarray, "label position"]:
    """An order as the user gave it, checked."""
    units = site.units
    wanted = (
        f"give the numbers 0 to {units - 1} of the units of layer {site.path!r} once each, as "
        f"({units},) or, for {len(labels)} classes, ({len(labels)}, {units})"
    )
    try:
        table = np.asarray(order.cpu() if isinstance(order, Tensor) else order)
    except (TypeError, ValueError) as error:
        raise InputError(f"order cannot be read as numbers: {error}; {wanted}") from error
    if not np.issubdtype(table.dtype, np.integer):
        raise InputError(f"order holds {table.dtype} values, not whole numbers; {wanted}")
    if table.shape not in ((units,), (len(labels), units)):
        raise InputError(f"order has shape {table.shape}; {wanted}")
    table = np.broadcast_to(table, (len(labels), units)).astype(np.int64)
    for label, row in zip(labels, table, strict=True):
        absent = np.setdiff1d(np.arange(units), row)
        if len(absent):
            raise InputError(f"order of class {label} lacks unit {absent[0]}; {wanted}")
    return table
