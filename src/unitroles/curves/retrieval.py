"""The retrieval-of-function test: loss and accuracy with only the first n units retrieved."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unitroles.curves.collect import Kept, Tile
from unitroles.curves.loss import Answers, Criterion
from unitroles.data.samples import Samples
from unitroles.engine.masks import Own, Prefixes
from unitroles.engine.plan import Plan
from unitroles.errors import InputError, PlanWarning
from unitroles.model.forward import Logits, batch_size, blamed
from unitroles.model.memory import Pieces
from unitroles.progress import Done
from unitroles.stats.grid import refinement

Run = Callable[[Plan, Any, Int[Tensor, " samples"]], Iterator[tuple[slice, Logits]]]
"""(plan, what it kept, the place of each sample's class) -> logits by mask and sample."""

Observer = Callable[[Int[np.ndarray, " samples"], Float[Tensor, "masks samples"]], None]
"""(places of some samples in their split, their losses) -> nothing."""


# Losses of one tile under all masks, and what each is made of.
_TILE_LOSSES, _LOSS_BYTES = 32 * 2**20, 24


def samples_within(masks: int) -> int:
    """The samples that run together under so many masks, of which every loss is held."""
    return max(1, _TILE_LOSSES // (_LOSS_BYTES * max(masks, 1)))


def ignore(places: Int[np.ndarray, " samples"], losses: Float[Tensor, "masks samples"]) -> None:
    """An observer that does not look."""


@dataclass(frozen=True)
class CurveSums:
    """Losses and correct answers summed over the samples of each class, for every mask.

    Those of masks that were not evaluated are not a number, nor are those of a class that has no
    loss where no unit is retrieved.
    """

    loss: Float[np.ndarray, "label masks"]
    correct: Float[np.ndarray, "label masks"]
    count: Int[np.ndarray, " label"]

    def __add__(self, other: CurveSums) -> CurveSums:
        return CurveSums(
            self.loss + other.loss, self.correct + other.correct, self.count + other.count
        )

    @property
    def mean_loss(self) -> Float[np.ndarray, "label masks"]:
        """Mean loss; cross-entropy in nats."""
        return self.loss / self.count[:, None]

    @property
    def accuracy(self) -> Float[np.ndarray, "label masks"]:
        """Share of the class's samples answered correctly; NaN where there are no answers."""
        return self.correct / self.count[:, None]


def mask_sums(
    kept: Kept,
    labels: Int[np.ndarray, " label"],
    empty: Bool[np.ndarray, " masks"],
    run: Run,
    done: Done = lambda count: None,
    observe: Observer = ignore,
    apart: bool = False,
) -> CurveSums:
    """Evaluate as many masks on every sample of a split, and sum by class.

    Parameters
    ----------
    labels : the analysed classes.
    empty : for every mask that `run` evaluates, whether it retrieves no unit; see `tile_losses`.
    run : gives the logits; classes are told by their place among `labels`.
    done : told how many samples were added; those under some of the masks count in part.
    observe : shown the losses of every sample.
    apart : whether the samples of each class run by themselves, where batches need not stay whole.

    Raises
    ------
    InputError : a loss is not finite, or the model cannot take some samples.
    """
    loss = torch.zeros(len(labels), len(empty), dtype=torch.float64)
    correct = torch.zeros(len(labels), len(empty), dtype=torch.float64)
    own = np.searchsorted(labels, kept.samples.labels)
    pieces = Pieces("the runs with masks")
    for tile in _tiles(kept, own, apart, samples_within(len(empty))):
        classes = torch.from_numpy(own[tile.places])
        told = Told(run, done, len(empty))
        values, right = tile_losses(kept, tile, classes, empty, told, pieces)
        loss.index_add_(0, classes, values.T)
        correct.index_add_(0, classes, right.T.to(torch.float64))
        observe(tile.places, values)
        done(len(classes) - told.count)
    count = np.bincount(own, minlength=len(labels))
    # What is no number is no answer either, right or wrong.
    correct[loss.isnan()] = float("nan")
    if not kept.criterion.scored:
        correct.fill_(float("nan"))
    return CurveSums(loss.numpy(), correct.numpy(), count)


@dataclass
class Told:
    """A run that tells of every part of the masks, since those of one tile can take minutes.

    Parameters
    ----------
    each : how many steps a sample under all masks is.
    count : how many it told of; also more, of padding and of what ran again.
    """

    run: Run
    done: Done
    masks: int
    each: float = 1.0
    count: float = 0.0

    def __call__(
        self, plan: Plan, rows: Any, classes: Int[Tensor, " samples"]
    ) -> Iterator[tuple[slice, Logits]]:
        for part, logits in self.run(plan, rows, classes):
            yield part, logits
            some = self.each * len(classes) * len(logits) / self.masks
            self.count += some
            self.done(some)


def _tiles(
    kept: Kept, classes: Int[np.ndarray, " samples"], apart: bool, most: int
) -> Iterator[Tile]:
    """All samples, those of each class by themselves if `apart`; some batches must stay whole."""
    for tile in kept.tiles():
        if tile.plan.whole_batches:
            yield tile
        elif not apart:
            yield from tile.pieces(most)
        else:
            mine = classes[tile.places]
            for label in np.unique(mine):
                yield from tile.some(np.flatnonzero(mine == label)).pieces(most)


def tile_losses(
    kept: Kept,
    tile: Tile,
    classes: Int[Tensor, " samples"],
    empty: Bool[np.ndarray, " masks"],
    run: Run,
    pieces: Pieces,
) -> Answers:
    """The losses of some samples under every mask, in float64, and whether the answer is right.

    Parameters
    ----------
    empty : for every mask, whether it retrieves no unit: a model that divides by the size of what
        it is given has no answer there, and the loss may be not a number.

    Raises
    ------
    InputError : another loss is not finite, or the model cannot take some samples.
    """
    filled = _filled(tile, classes)
    targets = _filled(tile, kept.samples.targets[torch.from_numpy(tile.places)])

    def evaluate(part: slice) -> Answers:
        rows = tile.kept if part == slice(0, len(filled)) else tile.rows(part)
        found = run(tile.plan, rows, filled[part])
        return _answers(kept.criterion, found, targets[part], len(empty))

    with _described(tile, kept.samples), _float32(kept):
        found = pieces.run(evaluate, len(filled))
    if len(found) == 1:  # not even for a moment twice
        ((numbers, right),) = found
    else:
        numbers, right = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
    del found
    values = kept.criterion.losses(numbers[:, : len(classes)])
    del numbers
    wrong = ~torch.isfinite(values)
    if bool(wrong.any()):
        if bool(wrong[torch.from_numpy(~empty)].any()):
            raise _not_finite(wrong, empty, kept, tile)
        values = torch.where(wrong, float("nan"), values)
    return values, right[:, : len(classes)]


def _answers(
    criterion: Criterion, found: Iterator[tuple[slice, Logits]], targets: Tensor, masks: int
) -> Answers:
    """The criterion's answer for every sample under every mask, and whether it is right."""
    number = torch.zeros(masks, len(targets), dtype=torch.float64)
    right = torch.zeros(masks, len(targets), dtype=torch.bool)
    for part, logits in found:
        number[part], right[part] = criterion.evaluate(logits, targets.to(logits.device), part)
    return number, right


def _described(tile: Tile, samples: Samples) -> AbstractContextManager[None]:
    rows = samples.rows[tile.places]
    return blamed(f"a batch with {samples.name} samples {rows.min()} to {rows.max()}")


def _float32(kept: Kept) -> AbstractContextManager[Any]:
    """Heads run in their own precision also where the model's forwards do not."""
    if kept.precision.autocast is None:
        return nullcontext()
    return torch.autocast(kept.precision.device.type, enabled=False)


def _filled(tile: Tile, values: Tensor) -> Tensor:
    """The class or the target of every row; padding takes that of the first."""
    padding = batch_size(tile.kept) - len(values)
    return torch.cat([values, values[:1].expand(padding, *values.shape[1:])])


def _not_finite(
    wrong: Bool[Tensor, "masks samples"],
    empty: Bool[np.ndarray, " masks"],
    kept: Kept,
    tile: Tile,
) -> InputError:
    column = int(wrong[torch.from_numpy(~empty)].any(dim=0).nonzero()[0])
    place, samples = tile.places[column], kept.samples
    which = (
        f"the loss of {samples.name} sample {samples.rows[place]} (label "
        f"{samples.labels[place]}) is not finite with"
    )
    layer, advice = repr(kept.plan.site.path), "the scaling of this input and a loss of your own"
    if bool(wrong[:, column].all()) or kept.plan.baseline is not None:
        return InputError(
            f"{which} units of layer {layer} ablated or retrieved; check the weights, {advice}"
        )
    return InputError(
        f"{which} some units of layer {layer} ablated, but is with others: where all that are "
        "retrieved are 0 for a sample, f / f.norm() and the like divide 0 by 0; give "
        f"Method(baseline='mean'), a layer before the activation function, or a model that adds "
        f"a small number to what it divides by; else check {advice}"
    )


def rof_curve(
    kept: Kept,
    labels: Int[np.ndarray, " label"],
    order: Int[np.ndarray, "label position"],
    done: Done = lambda count: None,
    points: Int[np.ndarray, " masks"] | None = None,
    observe: Observer = ignore,
) -> CurveSums:
    """E(n) for n = 0 ... N on one split, each class in its own order; masks count retrieved units.

    Parameters
    ----------
    order : the units of every class by descending score.
    points : the n that are evaluated, rising; None = all.
    observe : shown the losses of every sample.
    """
    table = torch.from_numpy(order.copy())
    wanted = np.arange(order.shape[1] + 1) if points is None else points

    def run(plan: Plan, rows: Any, classes: Tensor) -> Iterator[tuple[slice, Logits]]:
        order = table[classes].to(kept.precision.device)
        return plan.run(rows, Prefixes(order, wanted.tolist()))

    sums = mask_sums(kept, labels, wanted == 0, run, done, observe)
    if np.isnan(sums.loss).any():
        _say_undefined(kept.plan)
    loss, correct = (widened(s, wanted, order.shape[1]) for s in (sums.loss, sums.correct))
    return CurveSums(loss, correct, sums.count)


def _say_undefined(plan: Plan) -> None:
    remedy = (
        "Method(baseline='mean') lets ablated units give their mean instead of 0"
        if plan.baseline is None
        else "the mean activations that ablated units give do not help"
    )
    warnings.warn(
        f"with no unit of layer {plan.site.path!r} retrieved the loss is not a number (0/0, as in "
        "f / f.norm()) and is left out: turning points and roles need one unit or more and are "
        f"right, but no class can be flagged without that loss; {remedy}",
        PlanWarning,
        stacklevel=2,
    )


def widened(
    values: Float[np.ndarray, "*rest masks"], points: Int[np.ndarray, " masks"], units: int
) -> Float[np.ndarray, "*rest retrieved"]:
    """Values at the n that were evaluated as values at all n; not a number at the others."""
    whole = np.full((*values.shape[:-1], units + 1), np.nan)
    whole[..., points] = values
    return whole


def at_points(
    kept: Kept,
    labels: Int[np.ndarray, " label"],
    order: Int[np.ndarray, "label position"],
    points: Int[np.ndarray, "label masks"],
    done: Done = lambda count: None,
    observe: Observer = ignore,
) -> CurveSums:
    """E(n) at some n for each class, as many for each; `observe` as in `mask_sums`."""
    table, counts = torch.from_numpy(order.copy()), torch.from_numpy(points.copy())

    def run(plan: Plan, rows: Any, classes: Tensor) -> Iterator[tuple[slice, Logits]]:
        device = kept.precision.device
        return plan.run(rows, Own(table[classes].to(device), counts[classes].T.to(device)))

    return mask_sums(kept, labels, (points == 0).all(axis=0), run, done, observe)


def adaptive_curve(
    kept: Kept,
    labels: Int[np.ndarray, " label"],
    order: Int[np.ndarray, "label position"],
    points: Int[np.ndarray, " masks"],
    bar: Callable[[], Done],
) -> CurveSums:
    """E(n) on a coarse grid, then at the n of `refinement`: two passes over what was kept.

    Parameters
    ----------
    points : the grid.
    bar : a new progress bar for each pass.
    """
    sums = rof_curve(kept, labels, order, bar(), points)
    curves, one = sums.mean_loss, np.ones(1, dtype=np.int64)
    if kept.plan.whole_batches:  # all classes run for the masks of each
        wanted = np.concatenate([refinement(curve[None], one) for curve in curves])
    else:
        wanted = refinement(curves, sums.count)
    if not wanted.any():
        return sums
    more = [np.flatnonzero(row) for row in wanted]
    found = _by_class(kept, labels, order, more, bar())
    for place, mine in enumerate(more):
        sums.loss[place, mine] = found.loss[place, : len(mine)]
        sums.correct[place, mine] = found.correct[place, : len(mine)]
    return sums


def _by_class(
    kept: Kept,
    labels: Int[np.ndarray, " label"],
    order: Int[np.ndarray, "label position"],
    points: Sequence[Int[np.ndarray, " _"]],
    done: Done,
) -> CurveSums:
    """E(n) at other n for each class, as many as it needs; what is left over means nothing."""
    table = torch.from_numpy(order.copy())
    most = max(map(len, points))
    padded = np.ones((len(labels), most), dtype=np.int64)  # with no unit there may be no loss
    for row, mine in zip(padded, points, strict=True):
        row[: len(mine)] = mine

    def run(plan: Plan, rows: Any, classes: Tensor) -> Iterator[tuple[slice, Logits]]:
        orders, mine = table[classes].to(kept.precision.device), points[int(classes[0])]
        if plan.whole_batches:
            counts = torch.from_numpy(padded[classes].T).to(orders.device)
            yield from plan.run(rows, Own(orders, counts))
        elif len(mine):
            yield from plan.run(rows, Prefixes(orders, mine.tolist()))

    return mask_sums(kept, labels, np.zeros(most, dtype=bool), run, done, apart=True)
