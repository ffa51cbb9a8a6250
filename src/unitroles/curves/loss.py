"""Losses that compare outputs with labels: cross-entropy, or a user's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unitroles.errors import InputError
from unitroles.model.forward import HALF, Logits
from unitroles.wording import first_line

_FEW = 20
"""Classes; measured, up to ten times as fast as the fused kernel from 2 on, and slower at 32."""


_Terms = tuple[Float[Tensor, "masks samples"], ...]
"""The own logit, the largest of the others, and their logsumexp."""


def margins(
    logits: Logits, labels: Int[Tensor, " samples"]
) -> tuple[Float[Tensor, "masks samples"], Bool[Tensor, "masks samples"]]:
    """The logsumexp of the other logits minus the own logit, and whether the answer is right.

    The answer is the largest logit, the first one of several. `logits` is written to, and is
    afterwards what it was.
    """
    if logits.dtype in HALF:
        logits = logits.to(torch.float32)
    terms = _by_class if logits.shape[2] <= _FEW else _by_row
    own, top, total = terms(logits, labels)
    right = own > top
    tied = own == top
    if bool(tied.any()):
        right = right | (tied & (logits.argmax(dim=2) == labels))
    alone = top == float("-inf")  # every other class is masked out
    rest = torch.where(alone, top, total)
    wide = torch.float64 if logits.device.type != "mps" else torch.float32
    return rest.to(wide) - own.to(wide), right


def _by_row(logits: Logits, labels: Int[Tensor, " samples"]) -> _Terms:
    if 0 in logits.stride():
        logits = logits.clone()  # one number in many places cannot be written to
    index = labels.expand(logits.shape[0], -1)[..., None]
    own = logits.gather(2, index)
    logits.scatter_(2, index, float("-inf"))
    top = logits.amax(dim=2)
    # The fused kernel is several times faster than logsumexp; at the largest logit it is exact.
    total = top - torch.log_softmax(logits, dim=2).amax(dim=2)
    logits.scatter_(2, index, own)
    return own.squeeze(2), top, total


def _by_class(logits: Logits, labels: Int[Tensor, " samples"]) -> _Terms:
    """Rows of so few numbers are slow one by one: class by class they run in step."""
    columns = logits.new_empty(logits.shape[2], *logits.shape[:2])
    columns.copy_(logits.movedim(2, 0))
    index = labels.expand(1, logits.shape[0], -1)
    own = columns.gather(0, index)
    columns.scatter_(0, index, float("-inf"))
    top = columns.amax(dim=0)
    parts = columns.sub_(top).exp_()
    total = parts[0].clone()
    for part in parts[1:]:  # in this order whatever the number of rows
        total += part
    return own[0], top, total.log_().add_(top)


def losses(margin: Float[Tensor, "*rest"]) -> Float[Tensor, "*rest"]:
    """Cross-entropy in nats from margins, softplus(margin), in float64 on the CPU.

    It keeps losses far below the rounding of the logits, which decide turning points in networks
    that fit their training set.
    """
    return F.softplus(margin.cpu().to(torch.float64), threshold=50.0)


Answers = tuple[Float[Tensor, "masks samples"], Bool[Tensor, "masks samples"]]
"""A number for every mask and sample, and whether the answer is right."""


@runtime_checkable
class Criterion(Protocol):
    """Turns outputs under masks into losses and right answers; `scored` = there are answers."""

    @property
    def scored(self) -> bool: ...

    def evaluate(self, outputs: Logits, targets: Tensor, masks: slice = slice(None)) -> Answers:
        """One number for every mask and sample, and whether the answer is right.

        `masks` tells which ones of all masks these are.
        """
        ...

    def losses(self, numbers: Float[Tensor, "masks samples"]) -> Float[Tensor, "masks samples"]:
        """The losses from those numbers, in float64 on the CPU."""
        ...


@dataclass(frozen=True)
class CrossEntropy:
    """Of the label, in nats, in the margin form."""

    scored: bool = True

    def evaluate(self, outputs: Logits, targets: Tensor, masks: slice = slice(None)) -> Answers:
        return margins(outputs, targets)

    def losses(self, numbers: Float[Tensor, "masks samples"]) -> Float[Tensor, "masks samples"]:
        return losses(numbers)


CROSS_ENTROPY = CrossEntropy()


@dataclass(frozen=True)
class OwnLoss:
    """A function of outputs and targets that returns one loss per sample.

    Parameters
    ----------
    function : takes (samples, *shape) and the targets (samples, ...).
    shape : of the model's output for one sample.
    scored : whether targets are class numbers of the output.
    """

    function: Callable[[Any, Any], Any]
    shape: tuple[int, ...]
    scored: bool

    def evaluate(self, outputs: Logits, targets: Tensor, masks: slice = slice(None)) -> Answers:
        many, samples = outputs.shape[:2]
        # A copy: the function may write to it, and the running sums go on from here.
        rows = outputs.flatten(0, 1).clone().unflatten(1, self.shape or (1,))
        rows = rows if self.shape else rows[:, 0]
        found = self._losses(rows, targets.repeat(many, *[1] * (targets.ndim - 1)))
        right = torch.zeros(many, samples, dtype=torch.bool, device=outputs.device)
        if self.scored:
            right = outputs.argmax(dim=2) == targets
        return found.view(many, samples), right

    def losses(self, numbers: Float[Tensor, "masks samples"]) -> Float[Tensor, "masks samples"]:
        return numbers

    def _losses(self, rows: Tensor, targets: Tensor) -> Tensor:
        try:
            found = torch.as_tensor(self.function(rows, targets))
        except Exception as error:  # a user's function can raise anything
            raise InputError(
                f"the loss cannot be computed for outputs {tuple(rows.shape)} and labels "
                f"{tuple(targets.shape)} {str(targets.dtype).removeprefix('torch.')}: "
                f"{first_line(error)}; give a function of (outputs, labels)"
            ) from error
        if found.shape != (len(rows),) or found.is_complex():
            raise InputError(
                f"the loss must be one number per sample, ({len(rows)},), not "
                f"{tuple(found.shape)}; torch's own losses need reduction='none', and numbers per "
                "position their mean"
            )
        return found.detach().cpu().to(torch.float64)
