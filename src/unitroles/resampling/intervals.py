"""Losses weighed as they come, for intervals in the fixed order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from unitroles.curves.retrieval import widened
from unitroles.options import Evidence
from unitroles.resampling.recompute import LayerRun
from unitroles.roles import roles_at
from unitroles.stats.draws import Draws
from unitroles.stats.evidence import (
    Iterated,
    Weighed,
    proportion_coverage,
    proportions_at,
    std_over_units,
    weigh,
    weigh_again,
    weighed_mean,
)

QUANTITIES = ("turning_point", "loss", "overfitted", "generalizing")
"""Whose intervals' coverage is measured."""


@dataclass
class LossObserver:
    """Sees the losses of one split's samples, and weighs those of each class when all are there.

    Losses are put together in the order of the samples, so that no number depends on the pieces in
    which they came.
    """

    layer_run: LayerRun
    split: int
    draws: Draws
    evidence: Evidence
    found: dict[int, Weighed] = field(default_factory=dict)
    iterated: dict[int, Iterated] = field(default_factory=dict)
    _waiting: dict[int, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._classes = self.layer_run.classes[self.split]
        self._missing = np.bincount(self._classes, minlength=len(self.layer_run.labels))

    def __call__(
        self, places: Int[np.ndarray, " samples"], losses: Float[Tensor, "masks samples"]
    ) -> None:
        classes, rows = self._classes[places], losses.numpy().T
        for label in np.unique(classes).tolist():
            mine = classes == label
            every = np.flatnonzero(self._classes == label)
            if label not in self._waiting:
                self._waiting[label] = np.empty((len(every), rows.shape[1]))
            self._waiting[label][np.searchsorted(every, places[mine])] = rows[mine]
            self._missing[label] -= mine.sum()
            if not self._missing[label]:
                self._weigh(label, self._waiting.pop(label), every)

    def _weigh(
        self,
        label: int,
        losses: Float[np.ndarray, "samples masks"],
        places: Int[np.ndarray, " samples"],
    ) -> None:
        given = (
            losses,
            self.draws.weights[self.split][:, self.split, places],
            self.layer_run.points,
            self.layer_run.tolerance,
            self.evidence.level,
        )
        self.found[label] = weigh(*given)
        if self.evidence.bootstrap == "fixed_ranking":  # of other orders it would say nothing
            self.iterated[label] = weigh_again(*given, (self.evidence.seed, self.split, label))


@dataclass
class SwapObserver:
    """Sees the losses of one split's samples under the other split's active sets."""

    losses: Float[np.ndarray, " samples"]

    def __call__(
        self, places: Int[np.ndarray, " samples"], losses: Float[Tensor, "masks samples"]
    ) -> None:
        (self.losses[places],) = losses.numpy()


def regrets(
    observers: tuple[LossObserver, LossObserver], swapped: tuple[SwapObserver, SwapObserver]
) -> Float[np.ndarray, "replicate split label"]:
    """The cost of the other split's active set in every replicate, both sets as given."""
    found = []
    for split, (own, other) in enumerate(zip(observers, swapped, strict=True)):
        classes = own.layer_run.classes[split]
        weights = own.draws.weights[split][:, split]
        row = []
        for label in range(len(own.layer_run.labels)):
            mine = np.flatnonzero(classes == label)
            change = other.losses[mine] - own.found[label].lowest
            row.append(weighed_mean(change, weights[:, mine]))
        found.append(row)
    return np.moveaxis(np.array(found), 2, 0)


def with_fixed_ranking(
    observers: tuple[LossObserver, LossObserver],
    order: Int[np.ndarray, "split label position"],
    point: Int[np.ndarray, "split label"],
) -> dict[str, Any]:
    """Intervals and coverage as arrays by name, as far as they are not redone by "full"."""
    layer_run = observers[0].layer_run
    labels = range(len(layer_run.labels))

    def at_all(rows: list[list[np.ndarray]]) -> Float[np.ndarray, "split label retrieved"]:
        return widened(np.array(rows), layer_run.points, layer_run.units)

    weighed = [[split.found[label] for label in labels] for split in observers]
    error = at_all([[mine.paired_error for mine in split] for split in weighed])
    if observers[0].evidence.bootstrap == "full":  # all else is redone
        return {"paired_error": error}
    points = np.array([[mine.point for mine in split] for split in weighed])
    at = np.moveaxis(points, 2, 0)
    share = np.stack([proportions_at(order[:, k], points[:, k]) for k in labels], axis=1)
    return {
        "paired_error": error,
        "loss_low": at_all([[mine.low for mine in split] for split in weighed]),
        "loss_high": at_all([[mine.high for mine in split] for split in weighed]),
        "turning_point_replicate": at,
        "proportion_replicate": share,
        "std_over_units_replicate": np.stack(
            [std_over_units(roles_at(order, mine)) for mine in at]
        ),
        "coverage": _coverage(observers, order, point),
    }


def _coverage(
    observers: tuple[LossObserver, LossObserver],
    order: Int[np.ndarray, "split label position"],
    point: Int[np.ndarray, "split label"],
) -> Float[np.ndarray, " quantity"]:
    """The rates at which intervals hold what they should, as `QUANTITIES`; means over classes."""
    labels, level = range(order.shape[1]), observers[0].evidence.level
    inner = [np.stack([split.iterated[label].inner for split in observers]) for label in labels]
    held = [
        proportion_coverage(order[:, k], point[:, k], inner[k], level).mean(axis=0) for k in labels
    ]
    covered = np.array(
        [[split.iterated[k].covered.mean(axis=0) for k in labels] for split in observers]
    )
    return np.array([*covered.mean(axis=(0, 1)), *np.mean(held, axis=0)])
