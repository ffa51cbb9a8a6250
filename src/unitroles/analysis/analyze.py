"""analyze(): the whole pipeline, from a model and two splits to a taxonomy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import NoneType
from typing import Any

import numpy as np
import torch
from torch import nn

from unitroles.analysis.prepare import Ready, prepared, with_baseline
from unitroles.analysis.provenance import Clock, layer_record, name_of, record
from unitroles.curves.collect import Kept, collect
from unitroles.curves.retrieval import CurveSums, adaptive_curve, at_points, ignore, rof_curve
from unitroles.curves.scores import mean_scores, sample_score
from unitroles.curves.store import Stores
from unitroles.errors import InputError
from unitroles.options import Compute, Evidence, Layer, Method, Sample
from unitroles.progress import announce
from unitroles.resampling.evidence import Found, Measurement, findings, start
from unitroles.resampling.limits import (
    require_halves,
    require_memory,
    require_points,
    resampling_memory,
)
from unitroles.resampling.recompute import LayerRun
from unitroles.results.dataset import CROSS_ENTROPY, Measured, dataset
from unitroles.results.members import TaxonomySet
from unitroles.results.taxonomy import Taxonomy
from unitroles.roles import order_units, turning_point
from unitroles.stats.grid import grid


def analyze(
    model: nn.Module,
    train: Any,
    test: Any,
    layer: str | nn.Module | Layer | None = None,
    class_names: Sequence[str] | None = None,
    progress: bool = True,
    method: Method = Method(),
    sample: Sample = Sample(),
    compute: Compute = Compute(),
    evidence: Evidence | None = None,
) -> Taxonomy:
    """Run the retrieval-of-function test and name the role of every unit for every class.

    Parameters
    ----------
    model : any module that returns logits (samples, classes); it comes back as it was.
    train, test : the training set, without augmentation, and a held-out set: map-style data sets,
        DataLoaders, or pairs of arrays (inputs, labels).
    layer : module path, module or `Layer` whose output carries the units; None = recommended.
    class_names : names by class number; None takes those of the training set if it has any.
    progress : draw bars on the error stream of a terminal.
    method, sample, compute : see `Method`, `Sample`, `Compute`.
    evidence : which noise floors, tests and intervals are measured too, see `Evidence`; None =
        none.

    Returns
    -------
    Taxonomy : losses in nats, accuracies and proportions as fractions.

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
    >>> taxonomy = ur.analyze(model, (x[:20], y[:20]), (x[20:], y[20:]), layer="1")
    >>> taxonomy.roles().shape
    (2, 8)
    """
    found = analyze_layers(
        model,
        train,
        test,
        [layer],
        class_names=class_names,
        progress=progress,
        method=method,
        sample=sample,
        compute=compute,
        evidence=evidence,
    )
    (taxonomy,) = found.values()
    return taxonomy


def analyze_layers(
    model: nn.Module,
    train: Any,
    test: Any,
    layers: Iterable[str | nn.Module | Layer | None],
    class_names: Sequence[str] | None = None,
    progress: bool = True,
    method: Method = Method(),
    sample: Sample = Sample(),
    compute: Compute = Compute(),
    evidence: Evidence | None = None,
) -> TaxonomySet:
    """`analyze` for several layers of one model, which runs once over the data for all of them.

    Parameters
    ----------
    layers : module paths, modules or `Layer` values; the members are named by their path.

    Other parameters, errors and results are those of `analyze`.
    """
    wanted = _listed(layers)
    if not isinstance(evidence, (Evidence, NoneType)):
        raise InputError(f"evidence must be an Evidence or None, not {evidence!r}")
    require_points(evidence, method.resolution)
    sample_score(method.score)
    data = {"train": train, "test": test}
    with (
        prepared(model, data, wanted, class_names, sample, compute, progress, method.loss) as ready,
        Stores(compute.bytes) as stores,
        torch.inference_mode(),
    ):
        clock = Clock(ready.started)
        require_halves(evidence, ready.counts)
        plans = [choice.plan for choice in ready.choices]
        require_memory(evidence, method, ready.counts, plans, compute.bytes)
        clock.stop("plan")
        ready = with_baseline(ready, method.baseline, compute.batch_size)
        each = evidence is not None and evidence.redoes
        scores, kept = _one_pass(ready, method, compute, stores, each)
        clock.stop("body")
        layer_results = []
        for place in range(len(wanted)):
            mine = (kept[0][place], kept[1][place])
            measurement = _measurement(ready, method, compute, evidence, scores[place], mine)
            swept = _sweep(ready, method, scores[place], mine, measurement)
            seconds = clock.stop("sweep")
            if measurement is not None:
                say = partial(_cost, seconds) if progress else None
                found = findings(measurement, swept.order, swept.point, swept.accuracy, say)
                swept = replace(swept, evidence=found)
                clock.stop("evidence")
            layer_results.append(swept)
        common = record(ready.model, (method, sample, compute, evidence))
        clock.stop("plan")
    return TaxonomySet(
        {
            site.path: _taxonomy(ready, method, place, result, {**common, **clock.record()})
            for place, (site, result) in enumerate(zip(ready.sites, layer_results, strict=True))
        }
    )


def _cost(seconds: float, sweeps: float) -> None:
    announce(
        f"full bootstrap does scores, orders and curves again: about {sweeps:.1f} times the curves "
        f"of the layer, which took {seconds:.1f} s"
    )


def _listed(
    layers: Iterable[str | nn.Module | Layer | None],
) -> list[str | nn.Module | Layer | None]:
    if isinstance(layers, str):
        raise InputError(f"layers must be a list of paths, not {layers!r}")
    wanted = list(layers)
    paths = [layer.path if isinstance(layer, Layer) else layer for layer in wanted]
    for path in paths:
        if paths.count(path) > 1:
            raise InputError(f"layer {path!r} is given twice; analyse its calls one by one")
    if not wanted:
        raise InputError("layers is empty; name at least one, or None for the recommended one")
    return wanted


def _one_pass(
    ready: Ready, method: Method, compute: Compute, stores: Stores, each: bool
) -> tuple[list[np.ndarray], list[list[Kept]]]:
    """The score (split, label, unit) of every layer, and what its masks need of both splits.

    `each` keeps the scores of every sample too.
    """
    rank_by = sample_score(method.score)
    done = ready.bars("activity", sum(map(len, ready.splits)))
    plans = [choice.plan for choice in ready.choices]
    sums, kept = [], []
    for samples in ready.splits:
        found = collect(
            ready.model,
            plans,
            samples,
            ready.labels,
            rank_by,
            compute.batch_size,
            ready.precision,
            stores,
            done,
            ready.criterion,
            each,
        )
        sums.append(found[0])
        kept.append(found[1])
    scores = [
        mean_scores(method.score, [split[place] for split in sums], site, ready.calls, ready.seed)
        for place, site in enumerate(ready.sites)
    ]
    return scores, kept


@dataclass(frozen=True)
class _Swept:
    """Everything measured about one layer, by split and class."""

    score: np.ndarray
    order: np.ndarray
    point: np.ndarray
    curves: list[CurveSums]
    swapped: list[CurveSums]
    evidence: Found = ({}, {})

    @property
    def accuracy(self) -> np.ndarray:
        return np.stack([curve.accuracy for curve in self.curves])


def _measurement(
    ready: Ready,
    method: Method,
    compute: Compute,
    evidence: Evidence | None,
    score: np.ndarray,
    kept: tuple[Kept, Kept],
) -> Measurement | None:
    if evidence is None:
        return None
    plan = kept[0].plan
    points = grid(plan.site.units, plan.resolution(method.resolution))
    fixed = score if sample_score(method.score) is None else None
    room = resampling_memory(compute.bytes)
    layer_run = LayerRun(kept, ready.labels, points, method.order, method.tolerance, fixed, room)
    return start(layer_run, evidence, ready.bars)


def _sweep(
    ready: Ready,
    method: Method,
    score: np.ndarray,
    kept: tuple[Kept, Kept],
    measurement: Measurement | None,
) -> _Swept:
    """Both curves of every class, their turning points, and each split under the other's set."""
    labels, total = ready.labels, sum(map(len, ready.splits))
    order = order_units(score, ready.counts, method.order)
    name = kept[0].plan.site.path
    curves = _curves(ready, method, order, kept, measurement)
    point = turning_point(np.stack([curve.mean_loss for curve in curves]), method.tolerance)
    done = ready.bars(f"swapped sets {name}", total)
    watch = [
        ignore if measurement is None else measurement.swap_observer(i) for i in range(len(kept))
    ]
    swapped = [
        at_points(mine, labels, order[1 - i], point[1 - i][:, None], done, watch[i])
        for i, mine in enumerate(kept)
    ]
    return _Swept(score, order, point, curves, swapped)


def _curves(
    ready: Ready,
    method: Method,
    order: np.ndarray,
    kept: tuple[Kept, Kept],
    measurement: Measurement | None,
) -> list[CurveSums]:
    """The curves of every class on both splits, at the n that the resolution asks for."""
    labels, plan = ready.labels, kept[0].plan
    name, resolution = f"retrieval {plan.site.path}", plan.resolution(method.resolution)
    points = grid(plan.site.units, resolution)
    if resolution == "adaptive":

        def curve(i: int) -> CurveSums:
            bar = partial(ready.bars, name, len(ready.splits[i]))
            return adaptive_curve(kept[i], labels, order[i], points, method.tolerance, bar)

        return [curve(i) for i in range(len(kept))]
    done = ready.bars(name, sum(map(len, ready.splits)))
    watch = [ignore if measurement is None else measurement.observer(i) for i in range(len(kept))]
    return [
        rof_curve(mine, labels, order[i], done, points, watch[i]) for i, mine in enumerate(kept)
    ]


def _taxonomy(
    ready: Ready, method: Method, place: int, found: _Swept, provenance: dict[str, Any]
) -> Taxonomy:
    choice = ready.choices[place]
    measured = Measured(
        score=found.score,
        order=found.order,
        loss=np.stack([curve.mean_loss for curve in found.curves]),
        accuracy=found.accuracy,
        samples=ready.counts,
        turning_point=found.point,
        swapped_loss=np.stack([sums.mean_loss[:, 0] for sums in found.swapped]),
        swapped_accuracy=np.stack([sums.accuracy[:, 0] for sums in found.swapped]),
    )
    data = dataset(
        measured,
        labels=ready.labels,
        names=ready.names,
        attrs={
            "layer": ready.sites[place].path,
            "plan": choice.plan.name,
            "tolerance": method.tolerance,
            "loss": CROSS_ENTROPY if method.loss is None else name_of(method.loss),
            "resolution": choice.plan.resolution(method.resolution),
            "train_accuracy": _overall(found.curves[0]),
            "test_accuracy": _overall(found.curves[1]),
        },
        provenance={
            **provenance,
            **layer_record(ready.sites[place], choice),
            "warnings": ready.notes,
        },
        evidence=found.evidence,
    )
    return Taxonomy(data)


def _overall(curve: CurveSums) -> float:
    """Accuracy of the intact model over all analysed samples of a split."""
    return float(curve.correct[:, -1].sum() / curve.count.sum())
