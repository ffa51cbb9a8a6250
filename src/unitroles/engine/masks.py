"""Families of masks, and many orders of the same units as one tree of sets.

Orders of the same units by slightly different scores begin with the same sets most of the time; of
20 draws of halves of the digits 8 % of the sets are different ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor


@runtime_checkable
class Masks(Protocol):
    """Several masks over the units, made a few at a time."""

    def __len__(self) -> int: ...

    def retrieved_in(self, part: slice) -> Bool[Tensor, "masks _ units"]:
        """Some of the masks: a row for every sample, or one row where all samples have the same.

        What is computed from one row is computed once for all samples.
        """
        ...


@dataclass(frozen=True)
class Own:
    """The first units of an order of each sample's own, as many as are its own.

    Parameters
    ----------
    retrieved : how many units are retrieved under each mask.
    """

    order: Int[Tensor, "samples units"]
    retrieved: Int[Tensor, "masks samples"]

    @cached_property
    def _rank(self) -> Int[Tensor, "samples units"]:
        return torch.argsort(self.order, dim=1)

    def __len__(self) -> int:
        return len(self.retrieved)

    def retrieved_in(self, part: slice) -> Bool[Tensor, "masks _ units"]:
        return self._rank < self.retrieved[part, :, None]


@dataclass(frozen=True)
class Prefixes:
    """The first units of an order of each sample's own, as many for all samples.

    Parameters
    ----------
    points : how many units are retrieved under each mask.
    """

    order: Int[Tensor, "samples units"]
    points: Sequence[int]

    @cached_property
    def own(self) -> Own:
        """The same masks, with the number of units of every sample."""
        counts = torch.tensor(self.points, device=self.order.device)
        return Own(self.order, counts[:, None].expand(-1, len(self.order)))

    def __len__(self) -> int:
        return len(self.points)

    def retrieved_in(self, part: slice) -> Bool[Tensor, "masks _ units"]:
        return self.own.retrieved_in(part)


@dataclass(frozen=True)
class AllButOne:
    """One unit ablated at a time, the same for all samples.

    Parameters
    ----------
    units : N.
    ablated : the unit of each mask, rising.
    """

    units: int
    ablated: Sequence[int]

    def __len__(self) -> int:
        return len(self.ablated)

    def retrieved_in(self, part: slice) -> Bool[Tensor, "masks _ units"]:
        ablated = torch.tensor(self.ablated[part])
        return (torch.arange(self.units) != ablated[:, None])[:, None]


@dataclass(frozen=True)
class Sets:
    """Sets of units, the same for all samples."""

    sets: Bool[Tensor, "masks units"]

    def __len__(self) -> int:
        return len(self.sets)

    def retrieved_in(self, part: slice) -> Bool[Tensor, "masks _ units"]:
        return self.sets[part, None]


@dataclass(frozen=True)
class Tree:
    """Sets of units, each made of a smaller one and one more unit, the same for all samples.

    Parameters
    ----------
    parents : of the sets of n = 1 ... N units, the place of the smaller set among those of n - 1.
    units : the unit that each has beside it.
    points : the n whose sets are the masks, rising; those of one n come after the other.
    """

    parents: tuple[Int[np.ndarray, " _"], ...]
    units: tuple[Int[np.ndarray, " _"], ...]
    points: Sequence[int]

    @staticmethod
    def of(
        orders: Int[np.ndarray, "orders position"], points: Sequence[int]
    ) -> tuple[Tree, Int[np.ndarray, "orders points"]]:
        """The tree of some orders, and which masks the first `points` units of each order are.

        >>> tree, columns = Tree.of(np.array([[0, 1, 2], [1, 0, 2]]), [0, 1, 3])
        >>> tree.sizes, columns.tolist()
        ([1, 2, 1, 1], [[0, 2, 3], [0, 1, 3]])
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
        tree = Tree(tuple(parents), tuple(added), points)
        sizes = np.array(tree.sizes)[list(points)]
        return tree, places[:, points] + np.cumsum(sizes) - sizes

    @property
    def sizes(self) -> list[int]:
        """The number of sets of n = 0 ... N units."""
        return [1, *map(len, self.units)]

    def __len__(self) -> int:
        sizes = self.sizes
        return sum(sizes[n] for n in self.points)

    def retrieved_in(self, part: slice) -> Bool[Tensor, "masks _ units"]:
        sets = np.unpackbits(self._sets[part], axis=1, count=len(self.units))
        return torch.from_numpy(sets.view(np.bool_))[:, None]

    @cached_property
    def _sets(self) -> UInt8[np.ndarray, "masks bytes"]:
        """A bit for every unit: many orders of many units are many sets."""
        level, found = np.zeros((1, len(self.units)), dtype=bool), []
        wanted = set(self.points)
        for n in range(len(self.units) + 1):
            if n:
                level = level[self.parents[n - 1]]
                level[np.arange(len(level)), self.units[n - 1]] = True
            if n in wanted:
                found.append(np.packbits(level, axis=1))
        return np.concatenate(found)
