"""Everything that comes before the first pass: model, data, layers and plans, ready."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from threadpoolctl import threadpool_limits
from torch import nn

from unitroles.analysis.locks import one_at_a_time
from unitroles.analysis.provenance import Clock, record
from unitroles.analysis.request import Request
from unitroles.analysis.targets import (
    LOOKED_AT,
    MORE_SAMPLES,
    PROBE_SAMPLES,
    asked_of,
    check_names,
    classed,
    criterion_of,
    spread_over,
)
from unitroles.curves.collect import Collected, Pass
from unitroles.curves.loss import Criterion
from unitroles.curves.scores import SampleScore, activation_mean
from unitroles.curves.store import Stores
from unitroles.data.columns import fitted
from unitroles.data.reading import warn_if_changing
from unitroles.data.samples import Samples
from unitroles.data.selection import choose
from unitroles.engine.choice import Choice, choose_plans, exported_or_reason, recheck
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
    tensors,
)
from unitroles.model.hooks import SomeRows, reaches
from unitroles.model.memory import samples_per_forward
from unitroles.model.output import logits_alone
from unitroles.model.trace import Call, NotReached, Site, Trace, trace
from unitroles.options import Layer
from unitroles.progress import Track, track
from unitroles.resampling.limits import require_halves, take_memory
from unitroles.stats.grid import expected


@dataclass(frozen=True)
class Ready:
    """A model and its data, checked, inside `prepared`.

    Parameters
    ----------
    request : what was asked for.
    model : in evaluation mode, without gradients.
    splits : the analysed samples.
    labels : the analysed classes.
    names : their names, or None.
    outputs : how many logits the model has.
    criterion : what outputs are compared with labels by.
    choices : the plan of every layer.
    calls : every module call of one forward.
    precision : of the model's forwards.
    batch : samples per forward.
    stores : memory and disk for what is kept of the samples.
    bars : progress.
    notes : the texts of our warnings, filled when the block ends.
    clock : seconds by stage.
    """

    request: Request
    model: nn.Module
    splits: tuple[Samples, ...]
    labels: Int[np.ndarray, " label"]
    names: list[str] | None
    outputs: int
    criterion: Criterion
    choices: tuple[Choice, ...]
    calls: list[Call]
    precision: Precision
    batch: int
    stores: Stores
    bars: Track
    notes: list[str]
    clock: Clock

    @property
    def sites(self) -> list[Site]:
        """The layers."""
        return [choice.plan.site for choice in self.choices]

    @property
    def counts(self) -> Int[np.ndarray, "split label"]:
        """Samples by split and class."""
        places = [np.searchsorted(self.labels, split.labels) for split in self.splits]
        return np.stack([np.bincount(mine, minlength=len(self.labels)) for mine in places])

    @property
    def points(self) -> int:
        """At how many numbers of retrieved units the curves of the first layer are evaluated."""
        plan = self.choices[0].plan
        return expected(plan.site.units, plan.resolution(self.request.method.resolution))

    def collect(
        self,
        samples: Samples,
        rank_by: SampleScore | None,
        done: Callable[[int], None],
        each: bool = False,
        audit: int | None = None,
    ) -> list[Collected]:
        """The pass over a split, for every layer; see `Pass`."""
        plans = [choice.plan for choice in self.choices]
        seed = self.request.sample.seed
        body = Pass(plans, self.precision, self.batch, self.stores, self.criterion, audit, seed)
        return body.collect(samples, self.labels, rank_by, done, each)

    def record(self) -> dict[str, Any]:
        """Options, versions, machine and seconds; warnings are there when the block ends."""
        found = record(self.model, self.request)
        self.clock.stop("prepare")
        told = {"samples_per_forward": self.batch, "warnings": self.notes}
        return {**found, **self.clock.record(), **told}


@contextmanager
def prepared(request: Request) -> Iterator[Ready]:
    """Check model and data and choose the plans; the model comes back as it was.

    Another thread that asks for an analysis waits until the block ends.

    Raises
    ------
    InputError : what is wrong with the model, the data or an option, and the remedy.
    """
    clock, compute = Clock(), request.compute
    with (
        one_at_a_time(),
        own_warnings() as notes,
        # NumPy's products have threads of their own, which are not those the user set.
        threadpool_limits(torch.get_num_threads(), "blas"),
        unwrapped(request.model) as model,
        on_device(model, compute.device),
        untouched(model),
        memory_format(model, compute.channels_last),
        ExitStack() as stack,
        track(request.progress) as bars,
    ):
        planned = bars("prepare", 1)
        precision = Precision(device_of(model), compute.autocast, compute.channels_last)
        sides, names = classed(request)
        sides = [fitted(model, side, request.sample.group_by) for side in sides]
        inputs, *others = (_few(side, precision) for side in sides)
        with precision.on():
            stack.enter_context(logits_alone(model, inputs, asked_of(request, model, sides, names)))
            seen = trace(model, inputs)
        if seen.writes:
            stack.enter_context(inputs_kept(model))
        with precision.on():
            try:
                sites = [_located(model, layer, seen) for layer in request.layers]
            except NotReached as error:
                seen = trace(model, _reaching(model, error, sides[0], precision))
                sites = [_located(model, layer, seen) for layer in request.layers]
        _require_one_each(sites)
        outputs = _outputs(model, seen, sides[1:], others)
        check_names(outputs, sides, names, request)
        criterion = criterion_of(request.method.loss, seen, outputs, sides)
        splits, labels = choose(sides, request.sample, names)
        for samples in splits:
            warn_if_changing(samples)
        batch = compute.batch_size or samples_per_forward(largest_value(seen), precision.device)
        exported = exported_or_reason(model, sites, seen.inputs)
        choices = choose_plans(model, sites, seen, compute.bytes, precision, exported)
        if not all(choice.check.conclusive for choice in choices):
            more = _more(model, sides[0], seen, batch, precision)
            if more is not None:
                choices = choose_plans(model, sites, more, compute.bytes, precision, exported)
        _warn_of(choices)
        planned(1)
        ready = Ready(
            request=request,
            model=model,
            splits=tuple(splits),
            labels=labels,
            names=None if names is None else [names[label] for label in labels],
            outputs=outputs,
            criterion=criterion,
            choices=tuple(choices),
            calls=seen.calls,
            precision=precision,
            batch=batch,
            stores=stack.enter_context(Stores(compute.bytes)),
            bars=bars,
            notes=notes,
            clock=clock,
        )
        require_halves(request.evidence, ready.counts)
        plans = [choice.plan for choice in choices]
        take_memory(request.evidence, request.method, ready.counts, plans, ready.stores)
        clock.stop("prepare")
        yield ready


def largest_value(seen: Trace) -> int:
    """Bytes of the largest value of one sample that a module gives or the model takes."""
    given = [value[:1].nbytes for value in tensors(seen.inputs)]
    made = [
        math.prod(call.shape[1:]) * call.dtype.itemsize
        for call in seen.calls
        if call.shape is not None and call.dtype is not None
    ]
    return max([*given, *made], default=0)


def _require_one_each(sites: Sequence[Site]) -> None:
    """Refuse a layer that is given twice, by whatever names: results are kept by path."""
    paths = [site.path for site in sites]
    for path in paths:
        if paths.count(path) > 1:
            raise InputError(f"layer {path!r} is given twice; analyse its calls one by one")


def _located(model: nn.Module, layer: str | nn.Module | Layer | None, seen: Trace) -> Site:
    """The layer that is meant, with a warning where another one is what users mostly want."""
    site = resolve(model, layer, seen)
    if layer is not None and (better := hint(site, seen.calls)):
        warnings.warn(better, LayerHint, stacklevel=3)
    return site


def _outputs(model: nn.Module, seen: Trace, sides: Sequence[Samples], others: Sequence[Any]) -> int:
    """The number of the model's outputs; samples of another form must give logits too."""
    outputs = seen.logits.shape[1]
    for side, some in zip(sides, others, strict=True):
        if form_of(some) != form_of(seen.inputs):
            with blamed(f"the {side.name} data"):
                outputs = logits_of(forward(model, some)).shape[1]
    return outputs


def _warn_of(choices: Sequence[Choice]) -> None:
    for note in dict.fromkeys(note for choice in choices for note in choice.notes):
        warnings.warn(note, PlanWarning, stacklevel=3)


def _few(samples: Samples, precision: Precision, count: int = PROBE_SAMPLES) -> Any:
    inputs = next(samples.take(spread_over(samples, count)).batches(count)).inputs
    require_rows(inputs, count, samples.name)
    return precision.place(inputs)


def _reaching(model: nn.Module, layer: NotReached, samples: Samples, precision: Precision) -> Any:
    """Samples that reach a layer which the first ones do not all reach."""
    count, found = min(LOOKED_AT, len(samples)), []
    for place in spread_over(samples, count):
        with blamed(f"sample {place} of the {samples.name} data"):
            one = precision.place(next(samples.take(np.array([place])).batches(1)).inputs)
            if reaches(model, layer.path, layer.module, one):
                found.append(place)
        if len(found) == PROBE_SAMPLES:
            return precision.place(
                next(samples.take(np.array(found)).batches(PROBE_SAMPLES)).inputs
            )
    raise InputError(
        f"{layer}. Of {count} {samples.name} samples, run one by one, {len(found)} reach it"
    ) from layer


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


def _activations(ready: Ready, alone: bool) -> list[Collected]:
    """A pass over the first split that keeps nothing but activations, perhaps one by one."""
    plans = [FullPlan(ready.model, site, "", alone=alone) for site in ready.sites]
    choices = [replace(one, plan=plan) for one, plan in zip(ready.choices, plans, strict=True)]
    done = ready.bars("mean activation", len(ready.splits[0]))
    return replace(ready, choices=tuple(choices)).collect(ready.splits[0], activation_mean, done)


def with_baseline(ready: Ready) -> Ready:
    """The same with plans whose ablated units give the baseline that was asked for.

    That is zero; or the mean over all analysed samples of the first split and over all positions,
    one number per unit, which costs one more pass of the body. A sample that does not reach the
    layer counts with zeros.
    """
    if ready.request.method.baseline == "zero":
        return ready
    precision = ready.precision
    try:
        found = _activations(ready, alone=False)
    except SomeRows:
        found = _activations(ready, alone=True)
    choices = []
    for choice, layer in zip(ready.choices, found, strict=True):
        mean = torch.from_numpy(layer.sums.total.sum(axis=0) / layer.sums.count.sum())
        choices.append(recheck(choice, mean.to(precision.device), precision))
    _warn_of(choices)
    return replace(ready, choices=tuple(choices))
