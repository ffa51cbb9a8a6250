"""What the model's outputs are compared with the labels by: cross-entropy, or a user's own loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from unitroles.errors import InputError
from unitroles.losses import Logits, losses, margins
from unitroles.probe import first_line

_Answers = tuple[Float[Tensor, "masks samples"], Bool[Tensor, "masks samples"]]


@runtime_checkable
class Criterion(Protocol):
    """Turns outputs under masks into losses and right answers; `scored` = there are answers."""

    @property
    def scored(self) -> bool: ...

    def look(self, outputs: Logits, targets: Tensor, masks: slice = slice(None)) -> _Answers:
        """One number for every mask and sample, and whether the answer is right.

        `masks` tells which ones of all masks these are.
        """
        ...

    def losses(self, numbers: Float[Tensor, "masks samples"]) -> Float[Tensor, "masks samples"]:
        """The losses from those numbers, in float64 on the processor."""
        ...


@dataclass(frozen=True)
class CrossEntropy:
    """Of the label, in nats, in the margin form."""

    scored: bool = True

    def look(self, outputs: Logits, targets: Tensor, masks: slice = slice(None)) -> _Answers:
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

    def look(self, outputs: Logits, targets: Tensor, masks: slice = slice(None)) -> _Answers:
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
