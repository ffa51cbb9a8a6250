"""analyze(): the whole pipeline, from a model and two splits to a taxonomy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from unitroles.analysis.passes import gathered
from unitroles.analysis.prepare import Ready, prepared, with_baseline
from unitroles.analysis.provenance import layer_record, name_of
from unitroles.analysis.request import Request
from unitroles.analysis.targets import warn_of_numbering
from unitroles.annotations import checked
from unitroles.curves.collect import Kept
from unitroles.curves.retrieval import CurveSums, adaptive_curve, at_points, ignore, rof_curve
from unitroles.curves.scores import mean_scores, sample_score
from unitroles.engine.choice import Choice
from unitroles.engine.plan import Plan
from unitroles.options import Compute, Evidence, Layer, Method, Sample
from unitroles.progress import Track, announce
from unitroles.resampling.evidence import Found, Measurement, findings, start
from unitroles.resampling.limits import resampling_memory
from unitroles.resampling.recompute import LayerRun
from unitroles.results.dataset import CROSS_ENTROPY, Measured, dataset
from unitroles.results.members import TaxonomySet
from unitroles.results.taxonomy import Taxonomy
from unitroles.roles import order_units, turning_point
from unitroles.stats.grid import effective, grid


@checked
def analyze(  # noqa: PLR0913
    model: nn.Module,
    train: Any,
    test: Any,
    layer: str | nn.Module | Layer | None = None,
    class_names: Sequence[str | int] | None = None,
    progress: bool = True,
    method: Method = Method(),
    sample: Sample = Sample(),
    compute: Compute = Compute(),
    evidence: Evidence | None = None,
) -> Taxonomy:
    """Run the retrieval-of-function test and name the role of every unit for every class.

    One analysis runs at a time in a process: other threads wait. None of them may run or train the
    model itself meanwhile.

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
    (taxonomy,) = analyze_layers(
        model, train, test, [layer], class_names, progress, method, sample, compute, evidence
    ).values()
    return taxonomy


@checked
def analyze_layers(  # noqa: PLR0913
    model: nn.Module,
    train: Any,
    test: Any,
    layers: Iterable[str | nn.Module | Layer | None],
    class_names: Sequence[str | int] | None = None,
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
    data = {"train": train, "test": test}
    request = Request(model, data, layers, class_names, method, sample, compute, evidence, progress)
    with prepared(request) as ready:
        ready, scores, kept = _one_pass(with_baseline(ready))
        ready.clock.stop("body")
        results = []
        for place, score in enumerate(scores):
            turn = replace(ready, bars=_numbered(ready.bars, place, len(scores)))
            results.append(_layer(turn, score, (kept[place][0], kept[place][1])))
            left = kept[place + 1 :]  # what was kept for this one is let go
            ready.stores.keep([store for both in left for one in both for store in one.stores])
        _warn_of_numbering(ready, results[0][0])
        common = ready.record()
    return TaxonomySet(
        {
            choice.plan.site.path: _taxonomy(
                ready, choice, result, {**common, **layer_record(choice, both)}
            )
            for choice, result, both in zip(ready.choices, results, kept, strict=True)
        }
    )


def _numbered(bars: Track, place: int, layers: int) -> Track:
    """Bars that tell how many layers are still to come."""
    if layers == 1:
        return bars
    return lambda stage, steps: bars(f"{place + 1}/{layers} {stage}", steps)


def _layer(
    ready: Ready, score: np.ndarray, kept: tuple[Kept, Kept]
) -> tuple[Measured, list[float], Found]:
    """Curves and evidence of one layer; all that they need beside the samples goes with them."""
    evidence = ready.request.evidence
    for one in kept:
        one.find_room(ready.stores)
    measurement = None if evidence is None else _measurement(ready, evidence, score, kept)
    measured, overall = _sweep(ready, score, kept, measurement)
    seconds = ready.clock.stop("sweep")
    if measurement is None:
        return measured, overall, ({}, {})
    report = partial(_announce, seconds) if ready.request.progress else None
    point, accuracy = measured.turning_point, measured.accuracy
    found = findings(measurement, measured.order, point, accuracy, report)
    ready.clock.stop("evidence")
    return measured, overall, found


def _warn_of_numbering(ready: Ready, measured: Measured) -> None:
    """With all units of any layer, the intact model."""
    recall = measured.accuracy[0, :, -1]
    if np.isfinite(recall).all():
        labels = ready.labels.tolist() if ready.names is None else ready.names
        grouped = ready.request.sample.group_by is not None
        warn_of_numbering(recall, ready.counts[0], ready.outputs, labels, grouped)


def _announce(seconds: float, sweeps: float) -> None:
    announce(
        f"full bootstrap does scores, orders and curves again: about {sweeps:.1f} times the curves "
        f"of the layer, which took {seconds:.1f} s"
    )


def _one_pass(ready: Ready) -> tuple[Ready, list[np.ndarray], list[list[Kept]]]:
    """The score (split, label, unit) of every layer, and what its masks need of both splits."""
    score, evidence = ready.request.method.score, ready.request.evidence
    seed = ready.request.sample.seed
    each = evidence is not None and evidence.redoes  # the scores of every sample too
    ready, found = gathered(ready, sample_score(score), "activity", each)
    scores = [
        mean_scores(score, layer.sums, site, ready.calls, seed)
        for layer, site in zip(found, ready.sites, strict=True)
    ]
    return ready, scores, [layer.kept for layer in found]


def _measurement(
    ready: Ready, evidence: Evidence, score: np.ndarray, kept: tuple[Kept, Kept]
) -> Measurement:
    method, plan = ready.request.method, kept[0].plan
    points = grid(plan.site.units, plan.resolution(method.resolution))
    fixed = score if sample_score(method.score) is None else None
    memory = resampling_memory(ready.request.compute.bytes)
    layer_run = LayerRun(kept, ready.labels, points, method.order, method.tolerance, fixed, memory)
    return start(layer_run, evidence, ready.bars)


def _sweep(
    ready: Ready, score: np.ndarray, kept: tuple[Kept, Kept], measurement: Measurement | None
) -> tuple[Measured, list[float]]:
    """Both curves of every class, their turning points, and each split under the other's set.

    With the accuracy of the intact model over all analysed samples of each split.
    """
    method, labels = ready.request.method, ready.labels
    order = order_units(score, ready.counts, method.order)
    curves = _curves(ready, order, kept, measurement)
    loss = np.stack([curve.mean_loss for curve in curves])
    point = turning_point(loss, method.tolerance)
    name = f"swapped sets {kept[0].plan.site.path}"
    done = ready.bars(name, sum(map(len, ready.splits)))
    swapped = []
    for i, mine in enumerate(kept):
        observer = ignore if measurement is None else measurement.swap_observer(i)
        swapped.append(at_points(mine, labels, order[1 - i], point[1 - i][:, None], done, observer))
    measured = Measured(
        score=score,
        order=order,
        loss=loss,
        accuracy=np.stack([curve.accuracy for curve in curves]),
        samples=ready.counts,
        turning_point=point,
        swapped_loss=np.stack([sums.mean_loss[:, 0] for sums in swapped]),
        swapped_accuracy=np.stack([sums.accuracy[:, 0] for sums in swapped]),
    )
    return measured, [float(curve.correct[:, -1].sum() / curve.count.sum()) for curve in curves]


def _curves(
    ready: Ready, order: np.ndarray, kept: tuple[Kept, Kept], measurement: Measurement | None
) -> list[CurveSums]:
    """The curves of every class on both splits, at the n that the resolution asks for."""
    method, labels, plan = ready.request.method, ready.labels, kept[0].plan
    name, resolution = f"retrieval {plan.site.path}", _resolution(plan, method)
    points = grid(plan.site.units, resolution)
    if resolution == "adaptive":

        def curve(i: int) -> CurveSums:
            bar = partial(ready.bars, name, len(ready.splits[i]))
            return adaptive_curve(kept[i], labels, order[i], points, bar)

        return [curve(i) for i in range(len(kept))]
    done, curves = ready.bars(name, sum(map(len, ready.splits))), []
    for i, mine in enumerate(kept):
        observer = ignore if measurement is None else measurement.observer(i)
        curves.append(rof_curve(mine, labels, order[i], done, points, observer))
    return curves


def _resolution(plan: Plan, method: Method) -> str | int:
    """At which n the curves of a layer are evaluated."""
    return effective(plan.site.units, plan.resolution(method.resolution))


def _taxonomy(
    ready: Ready,
    choice: Choice,
    result: tuple[Measured, list[float], Found],
    provenance: dict[str, Any],
) -> Taxonomy:
    method, plan = ready.request.method, choice.plan
    measured, overall, evidence = result
    data = dataset(
        measured,
        labels=ready.labels,
        names=ready.names,
        attrs={
            "layer": plan.site.path,
            "plan": plan.name,
            "tolerance": method.tolerance,
            "loss": CROSS_ENTROPY if method.loss is None else name_of(method.loss),
            "resolution": _resolution(plan, method),
            "train_accuracy": overall[0],
            "test_accuracy": overall[1],
        },
        provenance=provenance,
        evidence=evidence,
    )
    return Taxonomy(data)
