"""What very many samples give: do planted roles hold where sampling plays no part?

Apart from the library on purpose: scores, orders, curves and turning points as they are defined,
from samples drawn for this alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from benchmarks.evidence.planting import SPLITS, Planted
from unitroles.roles import roles_at

_TILE = 500
_STREAM = 100
CLEAR = 4.0
"""Standard errors by which the planted minimum must stand out."""


@dataclass(frozen=True)
class Population:
    """What very many samples give.

    Parameters
    ----------
    order : units by descending score.
    loss : E(n), n = 0 ... N, in nats.
    above : E(n) minus E at the planted n0, over all classes, in standard errors.
    step : E(n) - E(n - 1), n = 1 ... N, likewise.
    """

    order: Int[np.ndarray, "split label position"]
    loss: Float[np.ndarray, "split label retrieved"]
    above: Float[np.ndarray, "split retrieved"]
    step: Float[np.ndarray, "split position"]

    @property
    def turning_point(self) -> Int[np.ndarray, "split label"]:
        return self.loss[..., 1:].argmin(axis=-1) + 1

    @property
    def role(self) -> UInt8[np.ndarray, "label unit"]:
        return roles_at(self.order, self.turning_point)


def population(planted: Planted, samples: int = 20_000) -> Population:
    """What `samples` samples of each class and split give."""
    orders, curves, above, step = [], [], [], []
    for split in range(len(SPLITS)):
        rises, steps = [], []
        for label, n0 in enumerate(planted.turning_point[split]):
            activations = list(_activations(planted, split, label, samples))
            orders.append(_order(activations))
            losses = np.concatenate([_losses(planted, a, label, orders[-1]) for a in activations])
            curves.append(losses.mean(axis=0))
            rises.append(_mean_and_error(losses - losses[:, [n0]]))
            steps.append(_mean_and_error(np.diff(losses)))
        above.append(_standing(rises))
        step.append(_standing(steps))
    shape = (len(SPLITS), planted.plan.labels, -1)
    order, loss = np.reshape(orders, shape), np.reshape(curves, shape)
    return Population(order, loss, np.array(above), np.array(step))


def curves_of(
    planted: Planted, order: Int[np.ndarray, "split label position"], samples: int
) -> Float[np.ndarray, "split label retrieved"]:
    """E(n) in given orders over `samples` new samples of each class and split, in nats."""
    found = [
        np.concatenate(
            [
                _losses(planted, activation, label, order[split, label])
                for activation in _activations(planted, split, label, samples)
            ]
        ).mean(axis=0)
        for split in range(len(SPLITS))
        for label in range(planted.plan.labels)
    ]
    return np.reshape(found, (len(SPLITS), planted.plan.labels, -1))


def check(planted: Planted, samples: int = 20_000) -> Population:
    """The population, after making sure that it has the planted roles.

    Raises
    ------
    RuntimeError : a role is another; or a curve does not stand `CLEAR` standard errors above its
        planted minimum everywhere else; or it rises somewhere before its planted n0, or falls
        somewhere after it, on average over the classes.
    """
    found = population(planted, samples)
    wrong = np.argwhere(found.role != planted.role)
    if len(wrong):
        raise RuntimeError(
            f"{len(wrong)} roles are not the planted ones, first of (label, unit) {wrong[0]}"
        )
    n0, places = planted.turning_point[:, :1], np.arange(planted.plan.units)
    least = found.above[np.arange(planted.plan.units + 1) != n0].min()
    if least < CLEAR:
        raise RuntimeError(f"a planted minimum stands out by {least:.1f} standard errors only")
    against = np.where(places < n0, found.step, -found.step).max()
    if against >= 0:
        raise RuntimeError(f"a curve takes a wrong turn, of {against:.1f} standard errors")
    return found


Moments = tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]


def _mean_and_error(value: Float[np.ndarray, "samples n"]) -> Moments:
    return value.mean(axis=0), value.std(axis=0) / np.sqrt(len(value))


def _standing(classes: list[Moments]) -> Float[np.ndarray, " n"]:
    """The sum of the means in standard errors; 0 where there is neither."""
    means, errors = np.array(classes).swapaxes(0, 1)
    error = np.sqrt((errors**2).sum(axis=0))
    return means.sum(axis=0) / np.where(error > 0, error, 1.0)


def _activations(
    planted: Planted, split: int, label: int, samples: int
) -> Iterator[Float[Tensor, "samples unit label"]]:
    rng = np.random.default_rng([planted.plan.seed, _STREAM, split, label])
    for start in range(0, samples, _TILE):
        count = min(_TILE, samples - start)
        yield planted.model[:2](planted.source.samples(rng, split, label, count))


def _order(activations: list[Float[Tensor, "samples unit label"]]) -> Int[np.ndarray, " position"]:
    """Units by descending mean L1 norm of their maps."""
    total = sum(a.abs().sum(dim=2).double().sum(dim=0).numpy() for a in activations)
    return np.argsort(-np.asarray(total), kind="stable")


def _losses(
    planted: Planted,
    activation: Float[Tensor, "samples unit label"],
    label: int,
    order: Int[np.ndarray, " position"],
) -> Float[np.ndarray, "samples retrieved"]:
    """Cross-entropy of every sample with the first n units of an order retrieved, in nats."""
    votes, rest = planted.model.state_dict()["3.weight"], planted.model[4:]
    weight = votes.view(-1, planted.plan.units, planted.plan.labels)[:, order]
    added = torch.einsum("sul,hul->suh", activation[:, order], weight)
    asleep = torch.zeros_like(added[:, :1])
    logits = rest(torch.cat([asleep, added], dim=1).cumsum(dim=1))
    odds = (logits - logits[..., label, None]).exp_()
    return odds.sum(dim=2).log_().double().numpy()
