"""Roles under orders and measures that should not, or should, agree with the analysis."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unitroles.curves.collect import Kept
from unitroles.curves.loss import Answers, Criterion, CrossEntropy, losses, margins
from unitroles.curves.retrieval import mask_sums, rof_curve
from unitroles.engine.masks import Sets
from unitroles.engine.plan import Plan
from unitroles.model.forward import Logits
from unitroles.progress import Done, Track
from unitroles.resampling.recompute import LayerRun
from unitroles.roles import (
    accuracy_turning_point,
    active_set,
    order_units,
    roles_at,
    turning_point,
)
from unitroles.stats.draws import random_scores
from unitroles.stats.evidence import TEMPERATURES, role_proportions

Variables = dict[str, tuple[tuple[str, ...], np.ndarray]]


@dataclass(frozen=True)
class OneVsRest:
    """Losses of another criterion; an answer is right where it is the class of the mask.

    Parameters
    ----------
    criterion : of the losses.
    named : the class number of every mask.
    """

    criterion: Criterion
    named: Int[Tensor, " masks"]

    @property
    def scored(self) -> bool:
        return self.criterion.scored

    def evaluate(self, outputs: Logits, targets: Tensor, masks: slice = slice(None)) -> Answers:
        numbers, _ = self.criterion.evaluate(outputs, targets)
        named = outputs.argmax(dim=2) == self.named[masks, None].to(outputs.device)
        return numbers, named.to(numbers.device)

    def losses(self, numbers: Float[Tensor, "masks samples"]) -> Float[Tensor, "masks samples"]:
        return self.criterion.losses(numbers)


@dataclass(frozen=True)
class Scaled:
    """Cross-entropy of logits divided by a temperature, in nats."""

    temperature: float
    scored: bool = False

    def evaluate(self, outputs: Logits, targets: Tensor, masks: slice = slice(None)) -> Answers:
        return margins(outputs / self.temperature, targets)

    def losses(self, numbers: Float[Tensor, "masks samples"]) -> Float[Tensor, "masks samples"]:
        return losses(numbers)


def other_roles(
    layer_run: LayerRun,
    order: Int[np.ndarray, "split label position"],
    point: Int[np.ndarray, "split label"],
    accuracy: Float[np.ndarray, "split label retrieved"],
    seed: int,
    bars: Track,
) -> tuple[Variables, list[str]]:
    """Proportions under every control, of units whose role is the same too, and their names.

    Orders: at random, and from the weakest unit to the strongest. Measures with the ranking as it
    is: the loss of logits divided by the temperature at which the test loss of the intact network
    is lowest ([Guo2017]_), and accuracy; each only where it is defined.

    .. [Guo2017] Guo, Pleiss, Sun, Weinberger. On calibration of modern neural networks. ICML 2017.

    Parameters
    ----------
    order, point, accuracy : of the analysis itself.
    seed : of the random order.
    """
    drawn = order_units(random_scores(order.shape, seed), layer_run.counts, layer_run.order)
    own = roles_at(order, point)
    found = {}
    for name, other in (("random order", drawn), ("reversed order", order[..., ::-1])):
        found[name] = roles_at(other, _points(layer_run, other, bars, name))
    variables: Variables = {}
    if isinstance(layer_run.kept[0].criterion, CrossEntropy):
        scale = _temperature(layer_run, bars)
        at = _points(layer_run, order, bars, "scaled logits", Scaled(scale))
        found["scaled logits"] = roles_at(order, at)
        variables["temperature"] = (), np.array(scale)
    if np.isfinite(accuracy).any():
        at = accuracy_turning_point(accuracy)
        found["accuracy"] = roles_at(order, at)
    role = np.stack(list(found.values()))
    variables["control_proportion"] = ("control", "label", "role_name"), role_proportions(role)
    variables["control_agreement"] = ("control", "label"), (role == own).mean(axis=-1)
    return variables, list(found)


def _points(
    layer_run: LayerRun,
    order: Int[np.ndarray, "split label position"],
    bars: Track,
    name: str,
    criterion: Criterion | None = None,
) -> Int[np.ndarray, "split label"]:
    """Turning points of the curves in an order, by a criterion; None = that of the analysis."""
    done, found = bars(name, layer_run.samples), []
    for kept, mine in zip(layer_run.kept, order, strict=True):
        seen = kept if criterion is None else replace(kept, criterion=criterion)
        sums = rof_curve(seen, layer_run.labels, mine, done, layer_run.points)
        found.append(turning_point(sums.mean_loss, layer_run.tolerance))
    return np.stack(found)


def _temperature(layer_run: LayerRun, bars: Track) -> float:
    """The one of `TEMPERATURES` at which the test loss of the intact network is lowest."""
    kept = layer_run.kept[1]

    def run(plan: Plan, rows: Any, classes: Tensor) -> Iterator[tuple[slice, Logits]]:
        intact = torch.ones(1, layer_run.units, dtype=torch.bool)
        for _, logits in plan.run(rows, Sets(intact)):
            for place, scale in enumerate(TEMPERATURES.tolist()):
                yield slice(place, place + 1), logits / scale

    done = bars("temperature", len(kept.samples))
    sums = mask_sums(kept, layer_run.labels, np.zeros(len(TEMPERATURES), dtype=bool), run, done)
    return float(TEMPERATURES[sums.loss.sum(axis=0).argmin()])


def what_sets_do(
    layer_run: LayerRun,
    order: Int[np.ndarray, "split label position"],
    point: Int[np.ndarray, "split label"],
    bars: Track,
) -> Variables:
    """The effect of each class's active set on the samples of all classes of its split.

    `set_loss`: mean loss of all samples with that set alone retrieved; `set_balanced_accuracy`:
    half the recall of the class plus half the share of the other classes' samples that are not
    taken for it. `intact_loss` (split) and `intact_balanced_accuracy` are those of the whole layer.
    The accuracies are not a number where samples are classed by another column than their label,
    and where there is one class only.
    """
    active = active_set(order, point)
    done, found = bars("sets on all classes", layer_run.samples), []
    for kept, mine in zip(layer_run.kept, active, strict=True):
        found.append(_on_all(layer_run, kept, torch.from_numpy(mine), done))
    loss, balanced = (np.stack(values) for values in zip(*found, strict=True))
    labels = len(layer_run.labels)
    return {
        "set_loss": (("split", "label"), loss[:, :labels]),
        "set_balanced_accuracy": (("split", "label"), balanced[:, :labels]),
        "intact_loss": (("split",), loss[:, labels]),
        "intact_balanced_accuracy": (("split", "label"), balanced[:, labels:]),
    }


def _on_all(
    layer_run: LayerRun,
    kept: Kept,
    active: Bool[Tensor, "label unit"],
    done: Done,
) -> tuple[Float[np.ndarray, " mask"], Float[np.ndarray, " mask"]]:
    """Loss and balanced accuracy of one split under each set, then under the whole layer."""
    labels, whole = len(layer_run.labels), torch.ones_like(active[:1])

    def run(plan: Plan, rows: Any, classes: Tensor) -> Iterator[tuple[slice, Logits]]:
        yield from plan.run(rows, Sets(active))
        for _, logits in plan.run(rows, Sets(whole)):
            for place in range(labels, 2 * labels):
                yield slice(place, place + 1), logits

    named = torch.from_numpy(np.tile(layer_run.labels, 2))
    seen = replace(kept, criterion=OneVsRest(kept.criterion, named))
    sums = mask_sums(seen, layer_run.labels, np.zeros(2 * labels, dtype=bool), run, done)
    loss = sums.loss.sum(axis=0) / sums.count.sum()
    if not np.array_equal(kept.samples.targets.numpy(), kept.samples.labels) or labels == 1:
        return loss, np.full(2 * labels, np.nan)
    mask, own = np.arange(2 * labels), np.tile(np.arange(labels), 2)
    hits = sums.correct[own, mask]
    false = (sums.correct.sum(axis=0) - hits) / (sums.count.sum() - sums.count[own])
    return loss, (hits / sums.count[own] + 1 - false) / 2
