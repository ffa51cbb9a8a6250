"""analyze(): the whole pipeline, from a model and two splits to a taxonomy."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from unitroles.activity import layer_score, measure, order_units, sample_score
from unitroles.data import Samples, as_samples, warn_if_changing
from unitroles.errors import DataWarning, InputError, PlanWarning
from unitroles.options import Compute, Layer, Method, Sample
from unitroles.plans import choose_plan
from unitroles.probe import (
    blamed,
    device_of,
    first_line,
    forward,
    inputs_kept,
    logits_of,
    to_device,
    untouched,
)
from unitroles.progress import track
from unitroles.provenance import record
from unitroles.retrieval import CurveSums, rof_curves, swapped_sets
from unitroles.roles import turning_point
from unitroles.sampling import choose
from unitroles.survey import resolve
from unitroles.taxonomy import Taxonomy, TaxonomySet, build

_PROBE_SAMPLES = 4


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
    evidence: None = None,
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
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    if any(is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
        raise InputError("the model has lazy parameters; run one batch through it first")
    if evidence is not None:
        raise InputError("evidence must be None in this version")
    start = time.perf_counter()
    rank_by = sample_score(method.score)
    size = compute.batch_size
    with (
        _own_warnings() as notes,
        _on_device(model, compute.device),
        untouched(model),
        ExitStack() as stack,
        track(progress) as bars,
    ):
        planned = bars("plan", 1)
        sides = as_samples(train, "train"), as_samples(test, "test")
        names = _names(sides[0].class_names if class_names is None else class_names)
        _require_same_names(sides)
        inputs, others = (_few(side, device_of(model)) for side in sides)
        site, calls = resolve(model, layer, inputs)
        stack.enter_context(inputs_kept(model, inputs))
        with blamed("the test data"):
            outputs = logits_of(forward(model, others)).shape[1]
        _check_labels(outputs, sides, names)
        first, second, labels = choose(*sides, sample, names)
        splits = (first, second)
        for samples in splits:
            warn_if_changing(samples)
        plan, check, remarks = choose_plan(model, site, inputs, compute.bytes)
        for remark in remarks:
            warnings.warn(remark, PlanWarning, stacklevel=2)
        planned(1)
        if rank_by is None:
            score = layer_score(str(method.score), site, calls, len(labels), sample.seed)
        else:
            score = measure(model, site, splits, labels, rank_by, size, bars)
        samples = np.stack([np.bincount(np.searchsorted(labels, s.labels)) for s in splits])
        order = order_units(score, samples, method.order)
        curves = rof_curves(plan, splits, labels, order, size, bars)
        loss = np.stack([curve.mean_loss for curve in curves])
        point = turning_point(loss, method.tolerance)
        swapped = swapped_sets(plan, splits, labels, order, point, size, bars)
        provenance = record(model, site, plan, check, (method, sample, compute))
    return build(
        labels=labels,
        names=None if names is None else [names[label] for label in labels],
        score=score,
        order=order,
        loss=loss,
        accuracy=np.stack([curve.accuracy for curve in curves]),
        samples=samples,
        turning_point=point,
        swapped_loss=np.stack([sums.mean_loss[:, 0] for sums in swapped]),
        swapped_accuracy=np.stack([sums.accuracy[:, 0] for sums in swapped]),
        attrs={
            "layer": site.path,
            "plan": plan.name,
            "tolerance": method.tolerance,
            "train_accuracy": _overall(curves[0]),
            "test_accuracy": _overall(curves[1]),
        },
        provenance={
            **provenance,
            "warnings": notes,
            "seconds": round(time.perf_counter() - start, 3),
        },
    )


def analyze_layers(
    model: nn.Module, train: Any, test: Any, layers: Iterable[str | Layer], **options: Any
) -> TaxonomySet:
    """`analyze` for several layers of one model; the members are named by their path.

    Parameters
    ----------
    layers : module paths or `Layer` values.
    options : as for `analyze`.
    """
    if isinstance(layers, str):
        raise InputError(f"layers must be a list of paths, not {layers!r}")
    found = {}
    for layer in layers:
        name = layer if isinstance(layer, str) else layer.path
        if name in found:
            raise InputError(f"layer {name!r} is given twice; analyse its calls one by one")
        found[name] = analyze(model, train, test, layer=layer, **options)
    return TaxonomySet(found)


@contextmanager
def _own_warnings() -> Iterator[list[str]]:
    """Repeat all warnings to the caller, also after an error, and keep the texts of our own."""
    notes: list[str] = []
    caught: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield notes
    except BaseException:
        with suppress(Warning):  # where warnings are errors, the error itself matters more
            _repeat(caught)
        raise
    notes.extend(dict.fromkeys(str(w.message) for w in caught if _is_ours(w)))
    _repeat(caught)


def _is_ours(warning: warnings.WarningMessage) -> bool:
    return issubclass(warning.category, (DataWarning, PlanWarning))


def _repeat(caught: list[warnings.WarningMessage]) -> None:
    once = {(warning.category, str(warning.message)): warning for warning in reversed(caught)}
    for warning in reversed(once.values()):
        level = 5 if _is_ours(warning) else 2
        warnings.warn(warning.message, warning.category, stacklevel=level)


@contextmanager
def _on_device(model: nn.Module, device: str | None) -> Iterator[None]:
    home = device_of(model)
    if device is None or device == str(home):
        yield
        return
    try:
        try:
            if torch.device(device).type == "meta":
                raise RuntimeError("it holds no numbers")
            model.to(torch.device(device))
        except (AssertionError, RuntimeError) as error:
            raise InputError(
                f"device {device!r} cannot be used: {first_line(error)}; name one that "
                "torch.device knows on this machine, or None for where the model is"
            ) from error
        yield
    finally:
        model.to(home)


def _names(names: Sequence[str] | None) -> list[str] | None:
    if names is None:
        return None
    if isinstance(names, (str, Mapping)):
        raise InputError("class_names must be a list of names in the order of the class numbers")
    found = [str(name) for name in names]
    twice = sorted({name for name in found if found.count(name) > 1})
    if twice:
        raise InputError(f"class names must differ, {twice[0]!r} stands for two classes")
    return found


def _require_same_names(sides: tuple[Samples, Samples]) -> None:
    first, second = (side.class_names for side in sides)
    if first is not None and second is not None and first != second:
        raise InputError(
            f"the classes of the two data sets differ: train has {', '.join(first[:5])}, test has "
            f"{', '.join(second[:5])}; class numbers would mean different classes"
        )


def _few(samples: Samples, device: torch.device) -> Any:
    few = np.linspace(0, len(samples) - 1, _PROBE_SAMPLES).astype(np.int64)
    return to_device(next(samples.take(few).batches(_PROBE_SAMPLES)).inputs, device)


def _check_labels(
    outputs: int, splits: tuple[Samples, Samples], names: Sequence[str] | None
) -> None:
    if outputs < 2:
        raise InputError(
            "the model has one output; roles need a logit for every class. Wrap a binary model in "
            "a module that returns two logits, 0 and its output"
        )
    top = max(int(samples.labels.max()) for samples in splits)
    if names is not None and len(names) <= top < outputs:
        raise InputError(
            f"there are {len(names)} class names but label {top} occurs; give one name per class"
        )
    if names is not None and len(names) != outputs:
        warnings.warn(
            f"there are {len(names)} class names but the model has {outputs} outputs: label k is "
            "read as output k. Check that the labels are those the model was trained with",
            DataWarning,
            stacklevel=3,
        )
    for samples in splits:
        for label in (samples.labels.min(), samples.labels.max()):
            if not 0 <= label < outputs:
                place = int((samples.labels == label).argmax())
                raise InputError(
                    f"label {label} of {samples.name} sample {samples.rows[place]} is out of "
                    f"range: the model has {outputs} outputs, labels go from 0 to {outputs - 1}; "
                    "give the labels the model was trained with"
                )


def _overall(curve: CurveSums) -> float:
    """Accuracy of the intact model over all analysed samples of a split."""
    return float(curve.correct[:, -1].sum() / curve.count.sum())
