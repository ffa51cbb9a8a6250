"""The retrieval-of-function test: loss and accuracy with only the first n units awake."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from unitroles.collect import Kept, Tile
from unitroles.data import Samples
from unitroles.errors import InputError
from unitroles.masks import Prefixes
from unitroles.plans import FullPlan, Plan
from unitroles.probe import blamed
from unitroles.roles import positions
from unitroles.sweep import Logits, losses, margins

Run = Callable[[Plan, Any, Int[Tensor, " samples"]], Iterator[tuple[slice, Logits]]]
"""(plan, what it kept, the place of each sample's class) -> logits by mask and sample."""


@dataclass(frozen=True)
class CurveSums:
    """Losses and correct answers summed over the samples of each class, for every mask."""

    loss: Float[np.ndarray, "label masks"]
    correct: Int[np.ndarray, "label masks"]
    count: Int[np.ndarray, " label"]

    def __add__(self, other: CurveSums) -> CurveSums:
        return CurveSums(
            self.loss + other.loss, self.correct + other.correct, self.count + other.count
        )

    @property
    def mean_loss(self) -> Float[np.ndarray, "label masks"]:
        """Mean cross-entropy in nats."""
        return self.loss / self.count[:, None]

    @property
    def accuracy(self) -> Float[np.ndarray, "label masks"]:
        """Share of the class's samples answered correctly."""
        return self.correct / self.count[:, None]


def mask_sums(
    kept: Kept,
    labels: Int[np.ndarray, " label"],
    masks: int,
    run: Run,
    done: Callable[[int], None] = lambda count: None,
) -> CurveSums:
    """Evaluate as many masks on every sample of a split, and sum by class.

    Parameters
    ----------
    labels : the analysed classes.
    masks : how many masks `run` evaluates.
    run : gives the logits; classes are told by their place among `labels`.
    done : told how many samples each tile added.

    Raises
    ------
    InputError : a loss is not finite, or the model cannot take some samples.
    """
    loss = torch.zeros(len(labels), masks, dtype=torch.float64)
    correct = torch.zeros(len(labels), masks, dtype=torch.int64)
    own = np.searchsorted(labels, kept.samples.labels)
    for tile in kept.tiles():
        classes = torch.from_numpy(own[tile.places])
        margin = torch.empty(masks, len(classes), dtype=torch.float64)
        right = torch.empty(masks, len(classes), dtype=torch.bool)
        with _described(tile, kept.samples), _float32(tile.plan, kept):
            for part, logits in run(tile.plan, tile.kept, _filled(tile, classes)):
                seen = logits[:, : len(classes)]
                answers = torch.from_numpy(labels)[classes].to(logits.device)
                margin[part], right[part] = margins(seen, answers)
        values = losses(margin)
        if not bool(torch.isfinite(values).all()):
            raise _not_finite(values, kept, tile)
        loss.index_add_(0, classes, values.T)
        correct.index_add_(0, classes, right.T.to(torch.int64))
        done(len(classes))
    count = np.bincount(own, minlength=len(labels))
    return CurveSums(loss.numpy(), correct.numpy(), count)


def _described(tile: Tile, samples: Samples) -> AbstractContextManager[None]:
    rows = samples.rows[tile.places]
    return blamed(f"a batch with {samples.name} samples {rows.min()} to {rows.max()}")


def _float32(plan: Plan, kept: Kept) -> AbstractContextManager[Any]:
    """Heads run in their own precision also where the model's forwards do not."""
    if kept.precision.autocast is None or isinstance(plan, FullPlan):
        return nullcontext()
    return torch.autocast(kept.precision.device.type, enabled=False)


def _filled(tile: Tile, classes: Int[Tensor, " samples"]) -> Int[Tensor, " rows"]:
    """The class of every row; padding takes that of the first."""
    if not isinstance(tile.plan, FullPlan):
        return classes
    rows = tile.plan.rows(tile.kept)
    return torch.cat([classes, classes[:1].expand(rows - len(classes))])


def _not_finite(values: Float[Tensor, "masks samples"], kept: Kept, tile: Tile) -> InputError:
    place = tile.places[int((~torch.isfinite(values)).any(dim=0).nonzero()[0])]
    samples = kept.samples
    return InputError(
        f"the loss of {samples.name} sample {samples.rows[place]} (label "
        f"{samples.labels[place]}) is not finite with units of layer {kept.plan.site.path!r} "
        "silenced or awake; check the weights and the scaling of this input"
    )


def rof_curve(
    kept: Kept,
    labels: Int[np.ndarray, " label"],
    order: Int[np.ndarray, "label position"],
    done: Callable[[int], None] = lambda count: None,
) -> CurveSums:
    """E(n) for n = 0 ... N on one split, each class in its own order; masks count retrieved units.

    Parameters
    ----------
    order : the units of every class by descending score.
    """
    table = torch.from_numpy(np.ascontiguousarray(order))

    def run(plan: Plan, rows: Any, classes: Tensor) -> Iterator[tuple[slice, Logits]]:
        return plan.prefixes(rows, table[classes].to(kept.precision.device))

    return mask_sums(kept, labels, order.shape[1] + 1, run, done)


def at_points(
    kept: Kept,
    labels: Int[np.ndarray, " label"],
    order: Int[np.ndarray, "label position"],
    points: Int[np.ndarray, "label masks"],
    done: Callable[[int], None] = lambda count: None,
) -> CurveSums:
    """E(n) at some n for each class."""
    rank = torch.from_numpy(positions(order))
    table = torch.from_numpy(np.ascontiguousarray(points))

    def run(plan: Plan, rows: Any, classes: Tensor) -> Iterator[tuple[slice, Logits]]:
        device = kept.precision.device
        masks = Prefixes(rank[classes].to(device), table[classes].T.contiguous().to(device))
        return plan.masked(rows, masks)

    return mask_sums(kept, labels, points.shape[1], run, done)
