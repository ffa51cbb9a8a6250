"""Families of masks, and many orders of the same units as one tree of sets.

Orders of the same units by slightly different scores begin with the same sets most of the time; of
20 draws of halves of the digits 8 % of the sets are different ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor


@runtime_checkable
class Masks(Protocol):
    """Several masks over the units, made a few at a time."""

    def __len__(self) -> int: ...

    def retrieved_in(self, part: slice) -> Bool[Tensor, "masks samples units"]: ...


@dataclass(frozen=True)
class Prefixes:
    """The first units of an order of each sample's own.

    Parameters
    ----------
    rank : the place of every unit in the order of each sample.
    retrieved : how many units are retrieved under each mask.
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

    def retrieved_in(self, part: slice) -> Bool[Tensor, "masks samples units"]:
        return self.rank < self.retrieved[part, :, None]


@dataclass(frozen=True)
class AllButOne:
    """One unit ablated at a time.

    Parameters
    ----------
    ablated : the unit of each mask.
    units : N.
    """

    ablated: Int[Tensor, " masks"]
    samples: int
    units: int

    @staticmethod
    def of(
        samples: int, units: int, ablated: Sequence[int] | None, device: torch.device
    ) -> AllButOne:
        """Masks for the units of `ablated`; None = all, in their order."""
        chosen = torch.tensor(list(range(units) if ablated is None else ablated), device=device)
        return AllButOne(chosen, samples, units)

    def __len__(self) -> int:
        return len(self.ablated)

    def retrieved_in(self, part: slice) -> Bool[Tensor, "masks samples units"]:
        every = torch.arange(self.units, device=self.ablated.device)
        return (every != self.ablated[part, None])[:, None].expand(-1, self.samples, -1)


@dataclass(frozen=True)
class Sets:
    """Sets of units, the same for all samples."""

    sets: Bool[Tensor, "masks units"]
    samples: int

    def __len__(self) -> int:
        return len(self.sets)

    def retrieved_in(self, part: slice) -> Bool[Tensor, "masks samples units"]:
        return self.sets[part, None].expand(-1, self.samples, -1)  # see `for_all`


@dataclass(frozen=True)
class Own:
    """Any units, given for every mask and sample."""

    units: Bool[Tensor, "masks samples units"]

    def __len__(self) -> int:
        return len(self.units)

    def retrieved_in(self, part: slice) -> Bool[Tensor, "masks samples units"]:
        return self.units[part]


def for_all(retrieved: Bool[Tensor, "masks samples units"]) -> Bool[Tensor, "masks _ units"]:
    """The masks of one sample, where all share one memory as those of `Sets` do; else all.

    What is computed from them then is computed once for all samples.
    """
    return retrieved[:, :1] if retrieved.stride(1) == 0 else retrieved


@dataclass(frozen=True)
class Tree:
    """Sets of units, each made of a smaller one and one more unit.

    Parameters
    ----------
    parents : of the sets of n = 1 ... N units, the place of the smaller set among those of n - 1.
    units : the unit that each has beside it.
    """

    parents: tuple[Int[np.ndarray, " _"], ...]
    units: tuple[Int[np.ndarray, " _"], ...]

    @staticmethod
    def of(
        orders: Int[np.ndarray, "orders position"],
    ) -> tuple[Tree, Int[np.ndarray, "orders retrieved"]]:
        """The tree of some orders, and the place of the first n units of each among the sets of n.

        >>> tree, places = Tree.of(np.array([[0, 1, 2], [1, 0, 2]]))
        >>> tree.sizes, places.tolist()
        ([1, 2, 1, 1], [[0, 1, 0, 0], [0, 0, 0, 0]])
        """
        count, units = orders.shape
        # A set is known by the sums of its units' marks: of 128 bits, so that two sets that are
        # taken for one are less likely than 1 in 1e25 even where there are 1e12 pairs of them.
        marks = np.random.default_rng(0).integers(2**64, size=(2, units), dtype=np.uint64)
        keys = marks[:, orders].cumsum(axis=2)
        turn = keys[0].argsort(axis=0, kind="stable")
        first, second = np.take_along_axis(keys, turn[None], axis=1)
        new = np.ones((count, units), dtype=bool)
        new[1:] = (np.diff(first, axis=0) != 0) | (np.diff(second, axis=0) != 0)
        places = np.zeros((count, units + 1), dtype=np.int64)
        np.put_along_axis(places[:, 1:], turn, new.cumsum(axis=0) - 1, axis=0)
        n, row = np.nonzero(new.T)
        one = turn[row, n]  # of the orders that begin with the set
        ends = np.cumsum(new.sum(axis=0))[:-1]
        parents, added = (np.split(values, ends) for values in (places[one, n], orders[one, n]))
        return Tree(tuple(parents), tuple(added)), places

    @property
    def sizes(self) -> list[int]:
        """How many sets of n = 0 ... N units there are."""
        return [1, *map(len, self.units)]

    def columns(
        self, places: Int[np.ndarray, "orders retrieved"], points: Sequence[int]
    ) -> Int[np.ndarray, "orders points"]:
        """Places among the sets of all `points` one after the other."""
        sizes = np.array(self.sizes)[list(points)]
        return places[:, points] + np.cumsum(sizes) - sizes

    def sets(self, points: Sequence[int]) -> Bool[np.ndarray, "sets units"]:
        """The sets of all `points`, one after the other."""
        level, found = np.zeros((1, len(self.units)), dtype=bool), []
        wanted = set(points)
        for n in range(len(self.units) + 1):
            if n:
                level = level[self.parents[n - 1]]
                level[np.arange(len(level)), self.units[n - 1]] = True
            if n in wanted:
                found.append(level)
        return np.concatenate(found)
