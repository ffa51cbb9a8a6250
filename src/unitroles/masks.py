"""Families of masks: which units are awake, for every mask and sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@runtime_checkable
class Masks(Protocol):
    """Several masks over the units, made a few at a time."""

    def __len__(self) -> int: ...

    def awake(self, part: slice) -> Bool[Tensor, "masks samples units"]: ...


@dataclass(frozen=True)
class Prefixes:
    """The first units of an order of each sample's own.

    Parameters
    ----------
    rank : the place of every unit in the order of each sample.
    retrieved : how many units are awake under each mask.
    """

    rank: Int[Tensor, "samples units"]
    retrieved: Int[Tensor, "masks samples"]

    @staticmethod
    def of(order: Int[Tensor, "samples units"], points: Int[Tensor, " masks"]) -> Prefixes:
        """The same numbers of units for all samples."""
        rank = torch.argsort(order, dim=1)
        return Prefixes(rank, points.to(order.device)[:, None].expand(-1, len(order)))

    def __len__(self) -> int:
        return len(self.retrieved)

    def awake(self, part: slice) -> Bool[Tensor, "masks samples units"]:
        return self.rank < self.retrieved[part, :, None]


@dataclass(frozen=True)
class AllButOne:
    """One unit silent at a time.

    Parameters
    ----------
    silent : the unit of each mask.
    units : N.
    """

    silent: Int[Tensor, " masks"]
    samples: int
    units: int

    @staticmethod
    def of(
        samples: int, units: int, silent: Sequence[int] | None, device: torch.device
    ) -> AllButOne:
        """Masks for the units of `silent`; None = all, in their order."""
        chosen = torch.tensor(list(range(units) if silent is None else silent), device=device)
        return AllButOne(chosen, samples, units)

    def __len__(self) -> int:
        return len(self.silent)

    def awake(self, part: slice) -> Bool[Tensor, "masks samples units"]:
        every = torch.arange(self.units, device=self.silent.device)
        return (every != self.silent[part, None])[:, None].expand(-1, self.samples, -1)


@dataclass(frozen=True)
class Sets:
    """Sets of units, the same for all samples."""

    sets: Bool[Tensor, "masks units"]
    samples: int

    def __len__(self) -> int:
        return len(self.sets)

    def awake(self, part: slice) -> Bool[Tensor, "masks samples units"]:
        return self.sets[part, None].expand(-1, self.samples, -1)  # see `for_all`


@dataclass(frozen=True)
class Own:
    """Any units, given for every mask and sample."""

    units: Bool[Tensor, "masks samples units"]

    def __len__(self) -> int:
        return len(self.units)

    def awake(self, part: slice) -> Bool[Tensor, "masks samples units"]:
        return self.units[part]


def for_all(awake: Bool[Tensor, "masks samples units"]) -> Bool[Tensor, "masks _ units"]:
    """The masks of one sample, where all share one memory as those of `Sets` do; else all.

    What is computed from them then is computed once for all samples.
    """
    return awake[:, :1] if awake.stride(1) == 0 else awake
