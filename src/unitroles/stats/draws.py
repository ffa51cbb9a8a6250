"""Samples that stand in for others: halves of a split, new splits of all samples, new weights.

NumPy only. Everything is drawn by split and class, keyed by what it is drawn for (the class by its
place among those analysed), so that no draw depends on batches or on which process makes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float, Int, UInt8

Weights = UInt8[np.ndarray, "replicate part _"]

_HALVES, _RESPLIT, _WEIGHTS, _RANDOM, _COVERAGE = range(5)
_TRIES = 1000


@cache
def _poisson_levels(mean: int) -> Float[np.ndarray, " values"]:
    """The distribution function of Poisson(mean), mean at most 32, as far as 53 bits can tell."""
    chances = np.exp(-mean) * np.cumprod([1.0, *(mean / np.arange(1, 30 + 4 * mean))])
    return np.cumsum(chances)


@dataclass(frozen=True)
class Draws:
    """The weight of each sample in each part, for some replicates.

    Parameters
    ----------
    weights : of both splits, the samples as they are analysed.
    pairs : which parts are read as training and test set, [(part, part), ...].
    """

    weights: tuple[Weights, Weights]
    pairs: tuple[tuple[int, int], ...]

    def part(self, replicates: slice) -> Draws:
        """Some of the replicates."""
        first, second = self.weights
        return Draws((first[replicates], second[replicates]), self.pairs)

    def __len__(self) -> int:
        return len(self.weights[0])


def held_bytes(samples: int, floors: int, resplits: int, replicates: int, alike: bool) -> int:
    """The most that the weights of both splits' samples take at one time.

    Those of replicates stay while the others come and go. Where a part is not read alike in every
    pair, each of the three pairs of halves gets two parts of its own beside the four of all.
    """
    return samples * (2 * replicates + max((4 if alike else 10) * floors, 2 * resplits))


def half_size(
    samples: Int[np.ndarray, "split label"],
) -> Int[np.ndarray, " label"]:
    """m: half of what the smaller split has of each class."""
    return samples.min(axis=0) // 2


def halves(
    classes: Sequence[Int[np.ndarray, " _"]], labels: int, replicates: int, seed: int
) -> Draws:
    """Two disjoint sets of m samples of each class inside both splits.

    Parts 0 and 1 lie in the training set, 2 and 3 in the test set; the pairs are train with
    train, test with test, and train with test.

    Parameters
    ----------
    classes : for both splits the place of each sample's class.
    """
    members = _members(classes, labels)
    size = half_size(np.array([[len(mine) for mine in split] for split in members]))
    weights = tuple(np.zeros((replicates, 4, len(c)), dtype=np.uint8) for c in classes)
    for r in range(replicates):
        for split, mine in enumerate(members):
            for label, places in enumerate(mine):
                rng = np.random.default_rng([seed, _HALVES, r, split, label])
                drawn = rng.permutation(places)
                m = size[label]
                weights[split][r, 2 * split, drawn[:m]] = 1
                weights[split][r, 2 * split + 1, drawn[m : 2 * m]] = 1
    return Draws((weights[0], weights[1]), ((0, 1), (2, 3), (0, 2)))


def resplits(
    classes: Sequence[Int[np.ndarray, " _"]], labels: int, replicates: int, seed: int
) -> Draws:
    """The samples of both splits dealt again into two sets, of each class as many as there were.

    Part 0 stands for the training set, part 1 for the test set.
    """
    members = _members(classes, labels)
    weights = tuple(np.zeros((replicates, 2, len(c)), dtype=np.uint8) for c in classes)
    for r in range(replicates):
        for label in range(labels):
            first, second = members[0][label], members[1][label]
            rng = np.random.default_rng([seed, _RESPLIT, r, label])
            drawn = rng.permutation(len(first) + len(second))
            to_test = np.zeros(len(drawn), dtype=np.intp)
            to_test[drawn[len(first) :]] = 1
            weights[0][r, to_test[: len(first)], first] = 1
            weights[1][r, to_test[len(first) :], second] = 1
    return Draws((weights[0], weights[1]), ((0, 1),))


def reweighted(
    classes: Sequence[Int[np.ndarray, " _"]],
    rows: Sequence[Int[np.ndarray, " _"]],
    labels: int,
    replicates: int,
    seed: int,
) -> Draws:
    """Every sample with a Poisson(1) weight, keyed by (seed, replicate, split, sample number).

    Part 0 is the training set, part 1 the test set. Where all samples of a class have weight 0 in
    one split, those are drawn again.

    Parameters
    ----------
    rows : for both splits the number of each sample in its data set.
    """
    weights = tuple(np.zeros((replicates, 2, len(c)), dtype=np.uint8) for c in classes)
    for split, (mine, numbers) in enumerate(zip(classes, rows, strict=True)):
        for r in range(replicates):
            weights[split][r, split] = _poisson((seed, r, split), mine, numbers, labels)
    return Draws((weights[0], weights[1]), ((0, 1),))


def _poisson(
    key: tuple[int, int, int],
    classes: Int[np.ndarray, " samples"],
    rows: Int[np.ndarray, " samples"],
    labels: int,
) -> UInt8[np.ndarray, " samples"]:
    weights = np.zeros(len(rows), dtype=np.uint8)
    empty = np.ones(labels, dtype=bool)
    for attempt in range(_TRIES):
        again = empty[classes]
        if not again.any():
            return weights
        # A sample's number is its place in the stream: nothing depends on who its neighbours are.
        stream = np.random.Generator(np.random.Philox(np.random.SeedSequence((*key, attempt))))
        level = stream.random(rows[again].max() + 1)[rows[again]]
        weights[again] = np.searchsorted(_poisson_levels(1), level, side="right")
        empty = np.bincount(classes, weights, minlength=labels) == 0
    return weights


def random_scores(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Scores (split, label, unit) that say nothing."""
    return np.random.default_rng([seed, _RANDOM]).random(shape)


def weighted_again(
    weights: UInt8[np.ndarray, "replicate samples"], inner: int, key: Sequence[int]
) -> Iterator[UInt8[np.ndarray, "inner samples"]]:
    """For every replicate, weights as if each copy of its samples were drawn again.

    Draws without any sample are those of the replicate itself.
    """
    rng = np.random.default_rng([*key, _COVERAGE])
    levels, first = _all_poisson_levels()
    for own in weights:
        place = own + rng.random((inner, len(own)))
        drawn = (levels.searchsorted(place, side="right") - first[own]).astype(np.uint8)
        drawn[~drawn.any(axis=1)] = own
        yield drawn


@cache
def _all_poisson_levels() -> tuple[Float[np.ndarray, " values"], Int[np.ndarray, " weights"]]:
    """Weight + distribution function of Poisson(weight), in one row, and where each one starts.

    Together they rise, as no level reaches 1, so one search finds the numbers of all weights.
    """
    by_weight = [np.zeros(0), *map(_poisson_levels, range(1, 33))]
    by_weight = [levels[levels < 1 - 2.0**-44] for levels in by_weight]
    first = np.cumsum([0, *map(len, by_weight[:-1])])
    return np.concatenate([w + levels for w, levels in enumerate(by_weight)]), first


def _members(
    classes: Sequence[Int[np.ndarray, " _"]], labels: int
) -> list[list[Int[np.ndarray, " _"]]]:
    """For both splits and every class the places of its samples."""
    found = []
    for mine in classes:
        order = np.argsort(mine, kind="stable")
        ends = np.cumsum(np.bincount(mine, minlength=labels))
        found.append(np.split(order, ends[:-1]))
    return found
