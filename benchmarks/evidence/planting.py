"""Networks and data in which the role of every unit for every class is known by construction.

Every unit has a map of one position per class, and the head reads position j as evidence for class
j. In each sample each unit answers at one position, and whether that is the position of the
sample's class is all that sets helpful from harmful units:

- *shared signal*: at the right position more often than by chance, on both splits: core;
- *memorised*: in training samples the unit's inputs hold the pattern that it has learnt, and it
  answers at the right position; in fresh samples they hold another pattern, as strong and as
  noisy, and it answers at the position of another class or of any: overfitted;
- the same with the splits changed over: generalizing;
- at wrong positions on both splits: confusing.

**Order.** How high a unit answers depends on its place in the order alone: heights fall along the
order of a split, in which the core units come first, then those that help on this split only, then
those that help on the other only, then confusing ones, with gaps behind the first two. Where there
are no generalizing units, the overfitted ones take the same places on both splits and answer fresh
samples as high as those that they have memorised.

**Turning point.** Every helping unit adds evidence that is independent of the others, and the head
gives it less than the log odds that it is worth, so each lowers the expected loss. Every other unit
adds noise that favours no class (then the expected loss rises by Jensen's inequality, as the loss
is strictly convex in the logits) or a wrong one. So the expected curve falls strictly up to the
planted n0 and rises strictly from there. This argument is for the linear head; that it holds for
the other, too, and that orders are as planned is what `population.check` confirms.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from unitroles.roles import assign_roles

LAYER = "1"
"""The module path of the units."""
HEADS = ("linear", "tanh")
SPLITS = ("train", "test")
_HIGH, _LOW = 1.4, 0.8
_SATURATION = 3.0
_MODEL, _ROLES, _DATA = range(3)

Data = tuple[Float[Tensor, "samples unit label"], Int[Tensor, " samples"]]


@dataclass(frozen=True)
class Plan:
    """What is planted.

    Parameters
    ----------
    units, labels : units of the layer, and classes.
    train, test : samples of each class.
    strength : share of the samples in which a helping unit answers at the position of the class,
        beyond chance.
    core, overfitted, generalizing : share of the units with this role, for every class; the rest
        is confusing. Without overfitted and generalizing units both splits are draws from one
        distribution: the null.
    harm : how often a unit that does not help answers at a wrong position beyond chance, in units
        of `strength`.
    noise : standard deviation of every position before the ReLU; a unit answers with a height of
        0.8 to 1.4 and the gaps.
    gap : by how much core units answer higher than the next, and these than the others.
    trust : weight of an answer of height 1 in the head, as a share of the log odds that it is
        worth.
    head : "linear"; or "tanh", with a hidden layer.
    seed : of the network, the roles and the data.
    """

    units: int = 64
    labels: int = 10
    train: int = 100
    test: int = 100
    strength: float = 0.15
    core: float = 0.3
    overfitted: float = 0.15
    generalizing: float = 0.0
    harm: float = 0.5
    noise: float = 0.25
    gap: float = 0.1
    trust: float = 0.3
    head: str = "linear"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.head not in HEADS:
            raise ValueError(f"head must be one of {HEADS}, not {self.head!r}")
        if self.core + self.overfitted + self.generalizing >= 1:
            raise ValueError(
                "core, overfitted and generalizing must leave room for confusing units"
            )

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many units are core, overfitted and generalizing."""
        shares = self.core, self.overfitted, self.generalizing
        core, overfitted, generalizing = (round(self.units * share) for share in shares)
        return core, overfitted, generalizing

    @property
    def null(self) -> Plan:
        """The same without overfitting: what helps on one split helps on the other."""
        return replace(self, overfitted=0.0, generalizing=0.0)


@dataclass(frozen=True)
class Source:
    """Where samples come from, as many as one likes.

    Parameters
    ----------
    mixing : a rotation; the inputs of a position are this mixture of what its units answer to.
    reliability : share of the samples in which a unit answers at the position of the class beyond
        chance; negative = at a wrong one.
    height : of the answers of a unit.
    """

    plan: Plan
    mixing: Float[np.ndarray, "unit channel"]
    reliability: Float[np.ndarray, "split label unit"]
    height: Float[np.ndarray, "split label unit"]

    def data(self, split: int, count: int) -> Data:
        """`count` samples of each class, the classes in turns."""
        labels = range(self.plan.labels)
        seeds = [[self.plan.seed, _DATA, split, label] for label in labels]
        drawn = [self.samples(np.random.default_rng(s), split, s[-1], count) for s in seeds]
        inputs = torch.stack(drawn, dim=1).flatten(0, 1)
        return inputs, torch.arange(self.plan.labels).repeat(count)

    def samples(
        self, rng: np.random.Generator, split: int, label: int, count: int
    ) -> Float[Tensor, "samples channel label"]:
        """Inputs of one class, float32."""
        answer = self._answers(rng, split, label, count)
        signal = rng.standard_normal((*answer.shape, self.plan.labels), dtype=np.float32)
        signal *= self.plan.noise
        sample, unit = np.ogrid[:count, : self.plan.units]
        signal[sample, unit, answer] += self.height[split, label]
        mixing = torch.from_numpy(self.mixing).float()
        return torch.einsum("uc,sul->scl", mixing, torch.from_numpy(signal))

    def _answers(
        self, rng: np.random.Generator, split: int, label: int, count: int
    ) -> Int[np.ndarray, "samples unit"]:
        """At which position every unit answers."""
        reliability, shape = self.reliability[split, label], (count, self.plan.units)
        wrong = (label + rng.integers(1, self.plan.labels, shape)) % self.plan.labels
        any_of_all = rng.integers(self.plan.labels, size=shape)
        aimed = rng.random(shape) < abs(reliability)
        return np.where(aimed, np.where(reliability > 0, label, wrong), any_of_all)


@dataclass(frozen=True)
class Planted:
    """A network with data and the truth about it.

    Parameters
    ----------
    model : a convolution of kernel size 1, which undoes how the inputs mix the units; the ReLU,
        whose output is the layer `LAYER`; and the head.
    train, test : (inputs, labels), as many samples of each class as planned.
    role : of every unit for every class.
    turning_point : n0 of the expected curves.
    source : of these samples and of further ones.
    """

    plan: Plan
    model: nn.Sequential
    train: Data
    test: Data
    role: UInt8[np.ndarray, "label unit"]
    turning_point: Int[np.ndarray, "split label"]
    source: Source


def plant(plan: Plan) -> Planted:
    """Draw a network, the roles of its units and its data.

    >>> planted = plant(Plan(units=10, labels=3, train=4, test=2, seed=1))
    >>> planted.train[0].shape, planted.turning_point.tolist()
    (torch.Size([12, 10, 3]), [[5, 5, 5], [3, 3, 3]])
    """
    place, turning = _places(plan), _turning(plan)
    helps = place < turning[:, None, None]
    reliability = plan.strength * np.where(helps, 1.0, -plan.harm)
    height = np.take_along_axis(_heights(plan)[:, None], place, axis=2)
    source = Source(plan, _mixing(plan), reliability, height)
    return Planted(
        plan,
        _network(plan),
        source.data(0, plan.train),
        source.data(1, plan.test),
        role=assign_roles(helps[0], helps[1]),
        turning_point=np.repeat(turning[:, None], plan.labels, axis=1),
        source=source,
    )


def _turning(plan: Plan) -> Int[np.ndarray, " split"]:
    core, overfitted, generalizing = plan.counts
    return np.array([core + overfitted, core + generalizing])


def _places(plan: Plan) -> Int[np.ndarray, "split label unit"]:
    """Where every unit stands in the order of each split: what the other split has comes later."""
    core, overfitted, generalizing = plan.counts
    on_train = np.arange(plan.units)
    first = on_train[:core]
    over, general, rest = np.split(on_train[core:], np.cumsum([overfitted, generalizing]))
    on_test = np.argsort(np.concatenate([first, general, over, rest]))
    rng = np.random.default_rng([plan.seed, _ROLES])
    who = np.stack([rng.permutation(plan.units) for _ in range(plan.labels)])
    return np.stack([on_train[who], on_test[who]])


def _heights(plan: Plan) -> Float[np.ndarray, "split position"]:
    _, overfitted, generalizing = plan.counts
    place, own = np.arange(plan.units), _turning(plan)
    if not (overfitted and generalizing):  # the one kind stands in the same places on both splits
        own = np.full(2, own.max())
    raised = (place < plan.counts[0]) + (place < own[:, None]).astype(int)
    return np.linspace(_HIGH, _LOW, plan.units) + plan.gap * raised


def _mixing(plan: Plan) -> Float[np.ndarray, "unit channel"]:
    normal = np.random.default_rng([plan.seed, _MODEL]).normal(size=(plan.units, plan.units))
    return np.linalg.qr(normal)[0]


def _network(plan: Plan) -> nn.Sequential:
    """The layer, and a head that sums what the units say for every class."""
    chance = (1 - plan.strength) / plan.labels
    weight = plan.trust * np.log1p(plan.strength / chance)
    conv = nn.Conv1d(plan.units, plan.units, 1, bias=False)
    votes = nn.Linear(plan.units * plan.labels, plan.labels, bias=False)
    layers = [conv, nn.ReLU(), nn.Flatten(), votes]
    each = torch.eye(plan.labels) * weight
    if plan.head == "tanh":
        # Without their mean: what all classes gain would drive the hidden layer to its limit.
        each = (each - each.mean(dim=0)) / _SATURATION
        last = nn.Linear(plan.labels, plan.labels, bias=False)
        last.weight.data = torch.eye(plan.labels) * _SATURATION
        layers += [nn.Tanh(), last]
    conv.weight.data = torch.from_numpy(_mixing(plan)).float()[..., None]
    votes.weight.data = each.repeat(1, plan.units)
    return nn.Sequential(*layers).requires_grad_(False).eval()
