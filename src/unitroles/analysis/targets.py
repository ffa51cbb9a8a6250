"""Targets: classes, their names and labels, and the loss, checked beforehand."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from unitroles.analysis.request import Request
from unitroles.curves.loss import CROSS_ENTROPY, Criterion, OwnLoss
from unitroles.data.reading import as_samples
from unitroles.data.samples import Samples
from unitroles.data.selection import grouped
from unitroles.errors import DataWarning, InputError
from unitroles.model.forward import (
    no_logits,
)
from unitroles.model.output import Asked, classes_of
from unitroles.model.trace import Trace
from unitroles.wording import NUMBERING, count_of, is_whole, names_of

PROBE_SAMPLES, MORE_SAMPLES, LOOKED_AT = 2, 32, 256
_LABELS_TOGETHER = 32
MISSED, FINE = 0.02, 0.5
"""Recall that is about zero, and one that is not; fractions."""
LEAST_OF_CLASS, LEAST_SAMPLES = 20, 30
"""Fewer training samples say nothing of a class, or of the model."""


def classed(request: Request) -> tuple[list[Samples], list[str] | None]:
    """All splits with the classes of their samples, and the names of the classes."""
    group_by, class_names = request.sample.group_by, request.class_names
    free = request.method.loss is not None and group_by is not None
    together = request.compute.batch_size or _LABELS_TOGETHER
    sides = [as_samples(given, name, free, together) for name, given in request.data.items()]
    _require_same_names(sides)
    if group_by is None:
        return sides, _names(sides[0].class_names if class_names is None else class_names)
    sides, names = grouped(sides, group_by)
    if names is not None and class_names is not None and list(class_names) != names:
        raise InputError(
            f"the groups have names of their own ({', '.join(names[:5])}); leave class_names out"
        )
    return sides, _names(names if class_names is None else class_names)


def asked_of(
    request: Request, model: nn.Module, sides: Sequence[Samples], names: Sequence[str] | None
) -> Asked:
    """What decides which of the model's outputs is the logits."""
    targets, grouped = sides[0].targets, request.sample.group_by is not None
    whole = targets.ndim == 1 and not targets.is_floating_point()
    classes = [
        *([len(names)] if names is not None and not grouped else []),
        *classes_of(model),
        *([1 + max(int(side.targets.max()) for side in sides)] if whole else []),
    ]
    return Asked(request.method.output, classes, strict=request.method.loss is None)


def criterion_of(
    loss: Callable[[Any, Any], Any] | None,
    seen: Trace,
    outputs: int,
    sides: Sequence[Samples],
) -> Criterion:
    """The criterion that compares the outputs with the labels.

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
    _check_loss(own, seen.logits, sides[0].targets[torch.from_numpy(spread_over(sides[0]))])
    scored = len(shape) == 1 and outputs > 1
    for side in sides:
        whole = side.targets.ndim == 1 and not side.targets.is_floating_point()
        scored = scored and whole and bool(((side.targets >= 0) & (side.targets < outputs)).all())
    return replace(own, scored=scored)


def _check_loss(loss: OwnLoss, logits: Tensor, targets: Tensor) -> None:
    """A sample's loss is its own: the same at every call, and alone as among others."""
    targets = targets.to(logits.device)
    first, again = (loss.evaluate(logits[None], targets)[0][0] for _ in range(2))
    rows = range(len(logits))
    alone = [loss.evaluate(logits[None, i : i + 1], targets[i : i + 1])[0][0, 0] for i in rows]
    for other in (again, torch.stack(alone)):
        if not torch.allclose(first, other, rtol=1e-3, atol=1e-5, equal_nan=True):
            raise InputError(
                "the loss of a sample differs between two calls, or alone and among others; give a "
                "function that looks at every sample by itself and draws nothing"
            )


def _names(names: Sequence[str | int] | None) -> list[str] | None:
    if names is None:
        return None
    found = [str(name) for name in names]
    broken = [name for name in found if not is_whole(name)]
    if broken:
        raise InputError(
            f"class name {broken[0]!r} cannot be saved: it holds NUL or bytes that are no text; "
            "give the class another name"
        )
    twice = sorted({name for name in found if found.count(name) > 1})
    if twice:
        raise InputError(f"class names must differ, {twice[0]!r} stands for two classes")
    return found


def _require_same_names(sides: Sequence[Samples]) -> None:
    first, *others = (side.class_names for side in sides)
    for second in others:
        if first is not None and second is not None and first != second:
            raise InputError(
                f"the classes of the two data sets differ: train has {', '.join(first[:5])}, test "
                f"has {', '.join(second[:5])}; class numbers would mean different classes"
            )


def spread_over(samples: Samples, count: int = PROBE_SAMPLES) -> np.ndarray:
    """Places from the first to the last sample."""
    return np.linspace(0, len(samples) - 1, count).astype(np.int64)


def check_names(
    outputs: int, splits: Sequence[Samples], names: Sequence[str] | None, request: Request
) -> None:
    """Every analysed class has a name, where there are names."""
    by_label = request.sample.group_by is None and request.method.loss is None
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


def warn_of_numbering(
    recall: Float[np.ndarray, " label"],
    count: Int[np.ndarray, " label"],
    outputs: int,
    labels: Sequence[object],
    grouped: bool,
) -> None:
    """Look whether label k can be output k, by the training samples that the intact model gets.

    Parameters
    ----------
    recall, count : of every analysed class, the share it gets right and the number of samples.
    outputs : the number of the model's outputs.
    labels : the classes, for the message.
    grouped : they are groups, which a model may well get all wrong.

    Warns
    -----
    DataWarning : the recalls are near chance, or about zero for a class and fine for the others.
    """
    chance, mean = 1 / outputs, float(recall.mean())
    remedy = (
        "Check that label k is what the model was trained to give output k for; if not, give the "
        "labels it was trained with (--class-names numbers folders and texts)"
    )
    if count.sum() >= LEAST_SAMPLES and mean <= chance + min(chance, (1 - chance) / 10):
        warnings.warn(
            f"{NUMBERING}: the intact model gets {100 * mean:.1f} % of the training samples right "
            f"(mean over the classes), chance is {100 * chance:.2g} %. {remedy}",
            DataWarning,
            stacklevel=3,
        )
        return
    missed = (recall <= MISSED) & (count >= LEAST_OF_CLASS)
    if not grouped and missed.any() and not missed.all() and recall[~missed].mean() >= FINE:
        lost = [label for label, none in zip(labels, missed, strict=True) if none]
        warnings.warn(
            f"{NUMBERING}: the intact model gets none or next to none of the training samples of "
            f"{count_of(lost)} ({names_of(lost)}) right, of the others "
            f"{100 * recall[~missed].mean():.0f} %. {remedy}",
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
