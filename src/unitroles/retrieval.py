"""The retrieval-of-function test: loss and accuracy with only the first n units awake."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unitroles.data import Samples
from unitroles.errors import InputError
from unitroles.plans import Plan
from unitroles.probe import blamed, device_of, to_device
from unitroles.progress import Track
from unitroles.roles import positions


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


def sample_losses(
    logits: Float[Tensor, "masks samples labels"], labels: Int[Tensor, " samples"]
) -> tuple[Float[Tensor, "masks samples"], Bool[Tensor, "masks samples"]]:
    """Cross-entropy in the margin form, float64, and whether the answer is right.

    softplus(logsumexp of the other logits - own logit) keeps losses far below the rounding of
    the logits, which decide turning points in networks that fit their training set.
    """
    wide = (logits.cpu() if logits.device.type == "mps" else logits).to(torch.float64)
    index = labels.to(wide.device).expand(wide.shape[0], -1)[..., None]
    own = wide.gather(2, index).squeeze(2)
    rest = wide.scatter(2, index, float("-inf")).logsumexp(dim=2)
    right = logits.argmax(dim=2) == labels.to(logits.device)
    return F.softplus(rest - own, threshold=50.0).cpu(), right.cpu()


def curve_sums(
    plan: Plan,
    samples: Samples,
    labels: Int[np.ndarray, " label"],
    rank: Int[np.ndarray, "label unit"],
    retrieved: Int[np.ndarray, "label masks"],
    size: int,
    done: Callable[[int], None] = lambda count: None,
) -> CurveSums:
    """Evaluate masks on every sample, each class in its own order, and sum by class.

    Parameters
    ----------
    rank : the place of every unit in the order of each class.
    retrieved : how many units are awake under each mask, for each class.
    size : samples per batch.
    done : told how many samples each batch added.

    Raises
    ------
    InputError : a loss is not finite, or the model cannot take some samples.
    """
    device = device_of(plan.model)
    loss = torch.zeros(retrieved.shape, dtype=torch.float64)
    correct = torch.zeros(retrieved.shape, dtype=torch.int64)
    count = np.zeros(len(labels), dtype=np.int64)
    for batch in samples.batches(size):
        own = np.searchsorted(labels, batch.labels.numpy())
        padded = torch.from_numpy(np.append(own, np.repeat(own[:1], size - len(own))))
        places = torch.from_numpy(own)
        ranks = torch.from_numpy(rank)[padded].to(device)
        points = torch.from_numpy(retrieved)[padded].T.contiguous().to(device)
        with blamed(batch.described(samples.name)):
            for part, logits in plan.logits(to_device(batch.inputs, device), ranks, points):
                values, right = sample_losses(logits[:, : batch.count], batch.labels)
                if not torch.isfinite(values).all():
                    raise _not_finite(values, plan.site.path, samples, batch.rows)
                loss[:, part] = loss[:, part].index_add(0, places, values.T)
                correct[:, part] = correct[:, part].index_add(0, places, right.T.to(torch.int64))
        count += np.bincount(own, minlength=len(labels))
        done(batch.count)
    return CurveSums(loss.numpy(), correct.numpy(), count)


def _not_finite(values: Tensor, layer: str, samples: Samples, rows: np.ndarray) -> InputError:
    row = int(rows[int((~torch.isfinite(values)).any(dim=0).nonzero()[0])])
    label = int(samples.labels[np.flatnonzero(samples.rows == row)[0]])
    return InputError(
        f"the loss of {samples.name} sample {row} (label {label}) is not finite with units of "
        f"layer {layer!r} silenced or awake; check the weights and the scaling of this input"
    )


def rof_curves(
    plan: Plan,
    splits: tuple[Samples, Samples],
    labels: Int[np.ndarray, " label"],
    order: Int[np.ndarray, "split label position"],
    size: int,
    bars: Track,
) -> list[CurveSums]:
    """E(n) for n = 0 ... N on both splits, each in its own order; masks count retrieved units."""
    done = bars("retrieval", sum(map(len, splits)))
    units = order.shape[2]
    every = np.broadcast_to(np.arange(units + 1), (len(labels), units + 1)).copy()
    rank = positions(order)
    return [
        curve_sums(plan, samples, labels, rank[split], every, size, done)
        for split, samples in enumerate(splits)
    ]


def swapped_sets(
    plan: Plan,
    splits: tuple[Samples, Samples],
    labels: Int[np.ndarray, " label"],
    order: Int[np.ndarray, "split label position"],
    point: Int[np.ndarray, "split label"],
    size: int,
    bars: Track,
) -> list[CurveSums]:
    """Each split under the other split's active set; one mask."""
    done = bars("swapped sets", sum(map(len, splits)))
    rank = positions(order)
    return [
        curve_sums(plan, samples, labels, rank[1 - i], point[1 - i][:, None], size, done)
        for i, samples in enumerate(splits)
    ]
