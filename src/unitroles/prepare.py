"""Everything that comes before the first pass: model, data, layers and plans, checked and ready."""

from __future__ import annotations

import contextlib
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from unitroles.choice import Choice, choose_plans
from unitroles.columns import fitted, require_rows
from unitroles.criterion import CROSS_ENTROPY, Criterion, OwnLoss
from unitroles.data import Samples, as_samples
from unitroles.errors import DataWarning, InputError, LayerHint, PlanWarning
from unitroles.groups import grouped
from unitroles.options import Compute, Layer, Sample
from unitroles.precision import Precision, memory_format
from unitroles.probe import (
    blamed,
    device_of,
    first_line,
    form_of,
    forward,
    inputs_kept,
    logits_of,
    no_logits,
    untouched,
)
from unitroles.progress import Track, track
from unitroles.sampling import choose
from unitroles.stability import warn_if_changing
from unitroles.survey import hint, resolve
from unitroles.trace import Call, Site, Trace, trace
from unitroles.wrappers import unwrapped

_PROBE_SAMPLES, _MORE_SAMPLES = 2, 32


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
        _own_warnings() as notes,
        unwrapped(model) as model,
        _on_device(model, compute.device),
        untouched(model),
        memory_format(model, compute.channels_last),
        ExitStack() as stack,
        track(progress) as bars,
    ):
        planned = bars("plan", 1)
        precision = Precision(device_of(model), compute.half, compute.channels_last)
        sides, names = _classed(data, sample.group_by, class_names, loss is not None)
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
        _check_names(outputs, sides, names, sample.group_by is None and loss is None)
        criterion = _criterion(loss, seen, outputs, sides)
        splits, labels = choose(sides, sample, names)
        for samples in splits:
            warn_if_changing(samples)
        choices = choose_plans(model, sites, seen, compute.bytes, precision)
        if not all(choice.check.conclusive for choice in choices):
            more = _more(model, sides[0], seen, compute.batch_size, precision)
            if more is not None:
                choices = choose_plans(model, sites, more, compute.bytes, precision)
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


def _classed(
    data: Mapping[str, Any],
    group_by: str | Mapping[str, Any] | None,
    class_names: Sequence[str] | None,
    own_loss: bool,
) -> tuple[list[Samples], list[str] | None]:
    """All splits with the classes of their samples, and the names of the classes."""
    free = own_loss and group_by is not None
    sides = [as_samples(given, name, free) for name, given in data.items()]
    _require_same_names(sides)
    if group_by is None:
        return sides, _names(sides[0].class_names if class_names is None else class_names)
    sides, names = grouped(sides, group_by)
    if names is not None and class_names is not None and list(class_names) != names:
        raise InputError(
            f"the groups have names of their own ({', '.join(names[:5])}); leave class_names out"
        )
    return sides, _names(names if class_names is None else class_names)


def _criterion(
    loss: Callable[[Any, Any], Any] | None,
    seen: Trace,
    outputs: int,
    sides: Sequence[Samples],
) -> Criterion:
    """What the outputs are compared with the labels by.

    Raises
    ------
    InputError : for cross-entropy the output holds no logits, or a label is none of them.
    """
    shape = seen.shape
    if loss is None:
        if len(shape) != 1:
            raise no_logits((seen.samples, *shape))
        _check_labels(outputs, sides)
        return CROSS_ENTROPY
    own = OwnLoss(loss, shape, False)
    _check_loss(own, seen.logits, sides[0].targets[torch.from_numpy(_spread(sides[0]))])
    scored = len(shape) == 1 and outputs > 1
    for side in sides:
        whole = side.targets.ndim == 1 and not side.targets.is_floating_point()
        scored = scored and whole and bool(((side.targets >= 0) & (side.targets < outputs)).all())
    return replace(own, scored=scored)


def _check_loss(loss: OwnLoss, logits: Tensor, targets: Tensor) -> None:
    """A sample's loss is its own: the same at every call, and alone as among others."""
    targets = targets.to(logits.device)
    first, again = (loss.look(logits[None], targets)[0][0] for _ in range(2))
    rows = range(len(logits))
    alone = [loss.look(logits[None, i : i + 1], targets[i : i + 1])[0][0, 0] for i in rows]
    for other in (again, torch.stack(alone)):
        if not torch.allclose(first, other, rtol=1e-3, atol=1e-5, equal_nan=True):
            raise InputError(
                "the loss of a sample differs between two calls, or alone and among others; give a "
                "function that looks at every sample by itself and draws nothing"
            )


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
    return issubclass(warning.category, (DataWarning, PlanWarning, LayerHint))


def _repeat(caught: list[warnings.WarningMessage]) -> None:
    once = {(warning.category, str(warning.message)): warning for warning in reversed(caught)}
    level = _callers_level()
    for warning in reversed(once.values()):
        warnings.warn(warning.message, warning.category, stacklevel=level)


def _callers_level() -> int:
    """How many frames lie between `_repeat` and the line that called the library."""
    inside = (str(Path(__file__).parent), contextlib.__file__)
    frame: FrameType | None = sys._getframe(1)
    level = 1
    while frame is not None and frame.f_code.co_filename.startswith(inside):
        frame, level = frame.f_back, level + 1
    return level


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


def _require_same_names(sides: Sequence[Samples]) -> None:
    if len(sides) < 2:
        return
    first, second = (side.class_names for side in sides)
    if first is not None and second is not None and first != second:
        raise InputError(
            f"the classes of the two data sets differ: train has {', '.join(first[:5])}, test has "
            f"{', '.join(second[:5])}; class numbers would mean different classes"
        )


def _spread(samples: Samples, count: int = _PROBE_SAMPLES) -> np.ndarray:
    """Places from the first to the last sample."""
    return np.linspace(0, len(samples) - 1, count).astype(np.int64)


def _few(samples: Samples, precision: Precision, count: int = _PROBE_SAMPLES) -> Any:
    inputs = next(samples.take(_spread(samples, count)).batches(count)).inputs
    require_rows(inputs, count, samples.name)
    return precision.place(inputs)


def _more(
    model: nn.Module, samples: Samples, seen: Trace, batch: int, precision: Precision
) -> Trace | None:
    """A forward of more samples, for layers that the first ones hardly feel; None = no such."""
    count = min(_MORE_SAMPLES, len(samples), batch // 4)  # the check runs a few masks at once
    if count <= seen.samples:
        return None
    with suppress(InputError), precision.on():  # samples of different lengths may form no batch
        inputs = _few(samples, precision, count)
        return trace(model, inputs) if form_of(inputs) == form_of(seen.inputs) else None
    return None


def _check_names(
    outputs: int, splits: Sequence[Samples], names: Sequence[str] | None, by_label: bool
) -> None:
    """Every analysed class has a name, where there are names."""
    top = max(int(samples.labels.max()) for samples in splits)
    low = min(int(samples.labels.min()) for samples in splits)
    if names is not None and low < 0:
        raise InputError(
            f"label {low} occurs and has no name: names count from 0; leave such samples out, or "
            "number the classes from 0"
        )
    if names is not None and len(names) <= top and (top < outputs or not by_label):
        raise InputError(
            f"there are {len(names)} class names but label {top} occurs; give one name per class"
        )
    if by_label and names is not None and len(names) != outputs:
        warnings.warn(
            f"there are {len(names)} class names but the model has {outputs} outputs: label k is "
            "read as output k. Check that the labels are those the model was trained with",
            DataWarning,
            stacklevel=3,
        )


def _check_labels(outputs: int, splits: Sequence[Samples]) -> None:
    if outputs < 2:
        raise InputError(
            "the model has one output; roles need a logit for every class. Wrap a binary model in "
            "a module that returns two logits, 0 and its output"
        )
    for samples in splits:
        for label in (int(samples.targets.min()), int(samples.targets.max())):
            if not 0 <= label < outputs:
                place = int((samples.targets == label).nonzero()[0])
                raise InputError(
                    f"label {label} of {samples.name} sample {samples.rows[place]} is out of "
                    f"range: the model has {outputs} outputs, labels go from 0 to {outputs - 1}; "
                    "give the labels the model was trained with"
                )
