"""Scores: the strength with which every unit responds to every class."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from unitroles.errors import DataWarning, InputError, unknown
from unitroles.model.forward import HALF
from unitroles.model.memory import ran_out
from unitroles.model.trace import KEEPING, Call, Site
from unitroles.wording import first_line, shown

SampleScore = Callable[[Float[Tensor, "samples units positions"]], Float[Tensor, "samples units"]]


def activation_l1(activation: Float[Tensor, "samples units positions"]) -> Tensor:
    """Sum of the absolute activation over the positions: the paper's L1 norm."""
    return activation.abs().sum(dim=2)


def activation_mean(activation: Float[Tensor, "samples units positions"]) -> Tensor:
    """Mean of the signed activation over the positions."""
    return activation.mean(dim=2)


def activation_l2(activation: Float[Tensor, "samples units positions"]) -> Tensor:
    """Euclidean norm of the activation over the positions."""
    return activation.square().sum(dim=2).sqrt()


SAMPLE_SCORES: dict[str, SampleScore] = {
    "activation_l1": activation_l1,
    "activation_mean": activation_mean,
    "activation_l2": activation_l2,
}


LAYER_SCORES = ("weight_l1", "random")


def sample_score(score: str | SampleScore) -> SampleScore | None:
    """The score as a function of activations; None for one that does not look at samples."""
    if callable(score):
        return score
    if score in LAYER_SCORES:
        return None
    if score not in SAMPLE_SCORES:
        raise unknown("score", score, [*SAMPLE_SCORES, *LAYER_SCORES])
    return SAMPLE_SCORES[score]


@dataclass(frozen=True)
class ScoreSums:
    """Scores summed over the samples of each class, and how many samples that were."""

    total: Float[np.ndarray, "label unit"]
    count: Int[np.ndarray, " label"]

    def __add__(self, other: ScoreSums) -> ScoreSums:
        return ScoreSums(self.total + other.total, self.count + other.count)

    @staticmethod
    def nothing(labels: int, units: int) -> ScoreSums:
        """The sums over no sample."""
        return ScoreSums(np.zeros((labels, units)), np.zeros(labels, dtype=np.int64))

    @property
    def mean(self) -> Float[np.ndarray, "label unit"]:
        """Score per class and unit: the mean over the samples of the class."""
        return self.total / self.count[:, None]


def by_unit(activation: Tensor, axis: int) -> Float[Tensor, "samples units positions"]:
    """A layer's output with the units on axis 1 and all positions on axis 2."""
    return activation.movedim(axis, 1).flatten(1).unflatten(1, (activation.shape[axis], -1))


def attended(
    inputs: Any, shape: Sequence[int], axis: int
) -> Bool[Tensor, "samples positions"] | None:
    """The positions of an output that are no padding, from the attention mask of the inputs.

    Parameters
    ----------
    inputs : a batch; its `attention_mask` (samples, tokens) is 1 where a token is real.
    shape, axis : of the layer's output, and its unit axis.

    Returns
    -------
    None where no such mask counts the output's positions, or no token is padding.

    Warns
    -----
    DataWarning : there is padding that cannot be left out.
    """
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    if not isinstance(mask, Tensor) or len(shape) < 3:
        return None
    if mask.ndim == 4 and mask.shape[1:3] == (1, 1):
        mask = mask[:, 0, 0]
    # A mask that is added to attention scores is 0 where a token is real, and below elsewhere.
    real = mask == 0 if bool((mask < 0).any()) else mask > 0
    if bool(real.all()):
        return None
    if len(shape) == 3 and tuple(mask.shape) == (shape[0], shape[3 - axis % 3]):
        return real
    warnings.warn(
        f"the attention mask {tuple(mask.shape[1:])} does not count the positions of the layer's "
        f"output {tuple(shape[1:])}: padding counts in its scores",
        DataWarning,
        stacklevel=2,
    )
    return None


def sample_scores(
    activation: Tensor,
    axis: int,
    score: SampleScore,
    real: Bool[Tensor, "samples positions"] | None = None,
) -> Shaped[Tensor, "samples units"]:
    """Score every sample of a batch of activations.

    Parameters
    ----------
    activation : a layer's output, samples first, units on `axis`.
    real : the positions that count, for each sample; None = all.
    """
    units = by_unit(activation, axis)
    if units.dtype in HALF:
        units = units.to(torch.float32)
    if score not in SAMPLE_SCORES.values():  # of the user, which may write to what it is given
        units = units.clone()
    values = _scored(units, score) if real is None else _of_real(units, score, real)
    return values.detach().cpu()


def score_sums(
    values: Shaped[Tensor, "samples units"], classes: Int[Tensor, " samples"], labels: int
) -> ScoreSums:
    """Sum the scores of samples by class, in float64.

    Parameters
    ----------
    classes : for each sample the place of its class among the `labels` analysed classes.
    """
    total = torch.zeros(labels, values.shape[1], dtype=torch.float64)
    total.index_add_(0, classes, values.to(torch.float64))
    return ScoreSums(total.numpy(), torch.bincount(classes, minlength=labels).numpy())


def _of_real(
    units: Float[Tensor, "samples units positions"],
    score: SampleScore,
    real: Bool[Tensor, "samples positions"],
) -> Float[Tensor, "samples units"]:
    """The scores of samples without their padding, all that have the same of it at once."""
    kinds, kind = torch.unique(real.to(units.device), dim=0, return_inverse=True)
    values = torch.zeros(units.shape[:2], dtype=torch.float64)
    for place, positions in enumerate(kinds):
        mine = kind == place
        if positions.any():
            some = units[mine][:, :, positions]
            values[mine.cpu()] = _scored(some, score).cpu().to(torch.float64)
    return values


def _scored(
    units: Float[Tensor, "samples units positions"], score: SampleScore
) -> Shaped[Tensor, "samples units"]:
    try:
        values = score(units)
    except Exception as error:  # a user's function can raise anything
        if ran_out(error):  # it is tried again with fewer samples
            raise
        raise InputError(
            f"the score function fails on a tensor (samples, units, positions) = "
            f"{tuple(units.shape)}: {first_line(error)}; give one that returns (samples, units)"
        ) from error
    if not isinstance(values, Tensor):
        raise InputError(
            f"the score function must return a tensor (samples, units) = {tuple(units.shape[:2])}, "
            f"it returned {shown(values)}"
        )
    if values.shape != units.shape[:2]:
        raise InputError(
            f"the score function must return (samples, units) = {tuple(units.shape[:2])}, it "
            f"returned {tuple(values.shape)}"
        )
    return values


def require_finite(output: Tensor, site: Site, name: str, rows: np.ndarray, labels: Tensor) -> None:
    """Refuse activations that are not finite, and say of which sample.

    Raises
    ------
    InputError : an activation is not finite.
    """
    if bool(torch.isfinite(output.sum())):
        return  # one pass; a sum may overflow where no value does, so look closer
    bad = ~torch.isfinite(output.flatten(1)).all(dim=1)
    if bad.any():
        place = int(bad.nonzero()[0])
        raise InputError(
            f"the activation of layer {site.path!r} is not finite for {name} sample {rows[place]} "
            f"(label {int(labels[place])}); check the weights and the scaling of this input"
        )


def mean_scores(
    score: str | SampleScore, sums: Sequence[ScoreSums], site: Site, calls: list[Call], seed: int
) -> Float[np.ndarray, "split label unit"]:
    """The score of every unit for every class on every split.

    Parameters
    ----------
    sums : of the splits; only their number of classes counts for a score that needs no samples.
    calls : every module call of one forward.

    Raises
    ------
    InputError : a score is not finite, or no weight makes the units.
    """
    if sample_score(score) is None:
        shape = len(sums), len(sums[0].count), site.units
        return layer_score(str(score), site, calls, shape, seed)
    found = np.stack([split.mean for split in sums])
    if not np.isfinite(found).all():
        raise InputError(
            f"the score of a unit of layer {site.path!r} is not finite; fix the score function, "
            "or choose another score"
        )
    return found


def layer_score(
    name: str, site: Site, calls: list[Call], shape: tuple[int, int, int], seed: int
) -> Float[np.ndarray, "split label unit"]:
    """A score of this shape (split, label, unit) that does not look at samples.

    "weight_l1" sums the absolute weights that make each unit: those of the layer itself, or of the
    linear layer or convolution whose output reaches it through activation functions, norms, dropout
    and pooling alone. "random" draws an order for every split and class.

    Raises
    ------
    InputError : no such weight.
    """
    if name == "random":
        return np.random.default_rng(seed).random(shape)
    weight = _unit_weight(site, calls)
    rows = weight.detach().cpu().to(torch.float64).flatten(1).abs().sum(dim=1)
    return np.broadcast_to(rows.numpy(), shape).copy()


def _unit_weight(site: Site, calls: list[Call]) -> Tensor:
    place = next(
        i for i, call in enumerate(calls) if call.module is site.module and call.index == site.call
    )
    tensor = calls[place].output
    for call in reversed(calls[: place + 1]):
        if call.output != tensor:
            continue  # another branch, whose units are not these
        if isinstance(call.module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            if call.axis != site.axis or call.units != site.units:
                break
            return call.module.weight
        if isinstance(call.module, KEEPING) and len(call.inputs) == 1:
            tensor = call.inputs[0]
        elif not any(call.module.children()):
            break  # who knows in which order it leaves the units
    raise InputError(
        f"score 'weight_l1' needs a module with one row of weights per unit, but none makes the "
        f"{site.units} units of layer {site.path!r}; choose another score"
    )
