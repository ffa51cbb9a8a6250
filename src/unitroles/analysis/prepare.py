"""Everything that comes before the first pass: model, data, layers and plans, ready."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import nn

from unitroles.analysis.targets import (
    MORE_SAMPLES,
    PROBE_SAMPLES,
    check_names,
    classed,
    criterion_of,
    spread_over,
)
from unitroles.curves.collect import collect
from unitroles.curves.loss import Criterion
from unitroles.curves.scores import activation_mean
from unitroles.curves.store import Stores
from unitroles.data.columns import fitted
from unitroles.data.reading import warn_if_changing
from unitroles.data.samples import Samples
from unitroles.data.selection import choose
from unitroles.engine.choice import Choice, choose_plans, exported, recheck
from unitroles.engine.plan import FullPlan
from unitroles.errors import InputError, LayerHint, PlanWarning, own_warnings
from unitroles.model.borrow import (
    device_of,
    inputs_kept,
    memory_format,
    on_device,
    untouched,
    unwrapped,
)
from unitroles.model.candidates import hint, resolve
from unitroles.model.forward import (
    Precision,
    blamed,
    form_of,
    forward,
    logits_of,
    require_rows,
)
from unitroles.model.trace import Call, Site, Trace, trace
from unitroles.options import Compute, Layer, Sample
from unitroles.progress import Track, track


@dataclass(frozen=True)
class Ready:
    """A model and its data, checked.

    Parameters
    ----------
    model : in evaluation mode, without gradients.
    splits : the analysed samples.
    labels : the analysed classes.
    names : their names, or None.
    criterion : what outputs are compared with labels by.
    sites : the layers.
    choices : the plan of every layer.
    calls : every module call of one forward.
    precision : of the model's forwards.
    bars : progress.
    seed : of draws.
    notes : the texts of our warnings, filled when the block ends.
    started : when it began, by `time.perf_counter`.
    """

    model: nn.Module
    splits: tuple[Samples, ...]
    labels: Int[np.ndarray, " label"]
    names: list[str] | None
    criterion: Criterion
    sites: tuple[Site, ...]
    choices: tuple[Choice, ...]
    calls: list[Call]
    precision: Precision
    bars: Track
    seed: int
    notes: list[str]
    started: float

    @property
    def counts(self) -> Int[np.ndarray, "split label"]:
        """Samples by split and class."""
        places = [np.searchsorted(self.labels, split.labels) for split in self.splits]
        return np.stack([np.bincount(mine, minlength=len(self.labels)) for mine in places])


@contextmanager
def prepared(
    model: nn.Module,
    data: Mapping[str, Any],
    layers: Sequence[str | nn.Module | Layer | None],
    class_names: Sequence[str] | None,
    sample: Sample,
    compute: Compute,
    progress: bool,
    loss: Callable[[Any, Any], Any] | None = None,
) -> Iterator[Ready]:
    """Check model and data and choose the plans; the model comes back as it was.

    Parameters
    ----------
    data : splits by name, the first one being what class names and the probe are taken from.
    loss : as in `Method`.

    Raises
    ------
    InputError : what is wrong with the model, the data or an option, and the remedy.
    """
    started = time.perf_counter()
    with (
        own_warnings() as notes,
        unwrapped(model) as model,
        on_device(model, compute.device),
        untouched(model),
        memory_format(model, compute.channels_last),
        ExitStack() as stack,
        track(progress) as bars,
    ):
        planned = bars("plan", 1)
        precision = Precision(device_of(model), compute.half, compute.channels_last)
        sides, names = classed(data, sample.group_by, class_names, loss is not None)
        sides = [fitted(model, side, sample.group_by) for side in sides]
        inputs, *others = (_few(side, precision) for side in sides)
        with precision.on():
            seen = trace(model, inputs)
        stack.enter_context(inputs_kept(model, seen.writes))
        sites = [resolve(model, layer, seen) for layer in layers]
        for layer, site in zip(layers, sites, strict=True):
            if layer is not None and (better := hint(site, seen.calls)):
                warnings.warn(better, LayerHint, stacklevel=3)
        outputs = seen.logits.shape[1]
        for side, some in zip(sides[1:], others, strict=True):
            if form_of(some) != form_of(inputs):
                with blamed(f"the {side.name} data"):
                    outputs = logits_of(forward(model, some)).shape[1]
        check_names(outputs, sides, names, sample.group_by is None and loss is None)
        criterion = criterion_of(loss, seen, outputs, sides)
        splits, labels = choose(sides, sample, names)
        for samples in splits:
            warn_if_changing(samples)
        graph = exported(model, sites, seen.inputs)
        choices = choose_plans(model, sites, seen, compute.bytes, precision, graph)
        if not all(choice.check.conclusive for choice in choices):
            more = _more(model, sides[0], seen, compute.batch_size, precision)
            if more is not None:
                choices = choose_plans(model, sites, more, compute.bytes, precision, graph)
        for note in dict.fromkeys(note for choice in choices for note in choice.notes):
            warnings.warn(note, PlanWarning, stacklevel=3)
        planned(1)
        yield Ready(
            model,
            tuple(splits),
            labels,
            None if names is None else [names[label] for label in labels],
            criterion,
            tuple(sites),
            tuple(choices),
            seen.calls,
            precision,
            bars,
            sample.seed,
            notes,
            started,
        )


def _few(samples: Samples, precision: Precision, count: int = PROBE_SAMPLES) -> Any:
    inputs = next(samples.take(spread_over(samples, count)).batches(count)).inputs
    require_rows(inputs, count, samples.name)
    return precision.place(inputs)


def _more(
    model: nn.Module, samples: Samples, seen: Trace, batch: int, precision: Precision
) -> Trace | None:
    """A forward of more samples, for layers that the first ones hardly feel; None = no such."""
    count = min(MORE_SAMPLES, len(samples), batch // 4)  # the check runs a few masks at once
    if count <= seen.samples:
        return None
    with suppress(InputError), precision.on():  # samples of different lengths may form no batch
        inputs = _few(samples, precision, count)
        return trace(model, inputs) if form_of(inputs) == form_of(seen.inputs) else None
    return None


def with_baseline(ready: Ready, baseline: str, size: int) -> Ready:
    """The same with plans whose ablated units give `baseline`.

    Parameters
    ----------
    baseline : "zero", or "mean": the mean over all analysed samples of the first split and over
        all positions, one number per unit. It costs one more pass of the body.
    size : samples per forward.
    """
    if baseline == "zero":
        return ready
    plans = [FullPlan(ready.model, site, "") for site in ready.sites]
    samples = ready.splits[0]
    done = ready.bars("mean activation", len(samples))
    sums, _ = collect(
        ready.model,
        plans,
        samples,
        ready.labels,
        activation_mean,
        size,
        ready.precision,
        Stores(0),
        done,
    )
    choices = []
    for choice, total in zip(ready.choices, sums, strict=True):
        mean = torch.from_numpy(total.total.sum(axis=0) / total.count.sum())
        choices.append(recheck(choice, mean.to(ready.precision.device), ready.precision))
    for note in dict.fromkeys(note for choice in choices for note in choice.notes):
        warnings.warn(note, PlanWarning, stacklevel=2)
    return replace(ready, choices=tuple(choices))
