"""Whether samples give in a run what they give alone: every sample, and some one by one.

The check before a run looks at two samples; a branch that they do not take, rows that a model sorts
and what only masks couple (experts with a capacity) show in none of its numbers. Two comparisons in
the one pass through the body do: every sample, with all units retrieved, through the plan and
through the model itself; and some samples alone, in batches of one, clean and under a mask each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from unitroles.engine.check import allowed_and_noise, differences, largest
from unitroles.engine.masks import Own, Prefixes, Sets
from unitroles.engine.plan import Plan, Rows, in_full
from unitroles.model.forward import Precision, batch_size, forward, rows_of, tensors
from unitroles.model.hooks import run_masked
from unitroles.model.memory import Pieces

GROUP = 64
"""Samples whose masks run together, as they do in a run."""
_FEW, _MANY_BYTES = 8, 8 * 2**20

RETRIEVED, CLEAN, ROW, MASKED = "all_retrieved", "clean", "row", "masked"
"""What is compared: logits with all units retrieved, of every sample, with the model's own; and of
samples alone with the same among others: the logits, the layer's row, the logits under a mask."""


@dataclass(frozen=True)
class Audit:
    """What the samples of a run gave, beside what they gave alone.

    Parameters
    ----------
    every : samples whose logits with all units retrieved were compared with the model's own.
    alone : samples that were run alone, each under a mask of its own.
    difference : largest difference of each comparison that was made.
    times_allowed : the same as a multiple of what was allowed.
    """

    every: int = 0
    alone: int = 0
    difference: dict[str, float] = field(default_factory=dict)
    times_allowed: dict[str, float] = field(default_factory=dict)

    def __add__(self, other: Audit) -> Audit:
        return Audit(
            self.every + other.every,
            self.alone + other.alone,
            _larger(self.difference, other.difference),
            _larger(self.times_allowed, other.times_allowed),
        )

    @property
    def coupled(self) -> bool:
        """Whether a sample's own logits depend on the others in its batch."""
        return self.times_allowed.get(CLEAN, 0.0) > 1

    @property
    def failed(self) -> str | None:
        """The first comparison that came out too far apart."""
        return next((name for name, times in self.times_allowed.items() if times > 1), None)


def _larger(one: dict[str, float], two: dict[str, float]) -> dict[str, float]:
    names = [name for name in (RETRIEVED, CLEAN, ROW, MASKED) if name in {**one, **two}]
    return {name: max(one.get(name, 0.0), two.get(name, 0.0)) for name in names}


class Guard:
    """Compares the samples of one layer while the pass goes through the batches.

    Parameters
    ----------
    plan : of the layer.
    precision : of the model's forwards.
    seed : of the masks; several numbers.
    """

    def __init__(self, plan: Plan, precision: Precision, seed: Sequence[int]) -> None:
        self.plan, self.precision = plan, precision
        self.found = Audit()
        self._draw = np.random.default_rng(seed)
        self._lengths: Int[np.ndarray, " _"] = np.zeros(0, dtype=np.int64)
        self._waiting: list[_Alone] = []
        self._turn = 0
        self._pieces = Pieces("the comparison of samples")

    def every(self, rows: Rows, logits: Float[Tensor, "samples labels"]) -> None:
        """Samples with all units retrieved: the plan's logits and the model's own."""
        masks = Sets(torch.ones(1, self.plan.site.units, dtype=torch.bool))

        def run(part: slice) -> Tensor:
            some = tuple(value[part] for value in rows)
            return torch.cat([found[0].clone() for _, found in self.plan.run(some, masks)])

        self._pieces.limit = min(self.plan.tile, self._pieces.limit or self.plan.tile)
        self._compare(RETRIEVED, torch.cat(self._pieces.run(run, len(logits))), logits)
        self.found += Audit(every=len(logits))

    def alone(
        self,
        inputs: Any,
        places: Sequence[int],
        clean: Float[Tensor, "samples labels"],
        output: Tensor,
        rows: Rows | None,
        given: Sequence[tuple[Float[Tensor, "1 labels"], Tensor]],
    ) -> None:
        """Some samples of a batch.

        Parameters
        ----------
        inputs : the batch.
        places : of the samples in it.
        clean, output, rows : of the whole batch: the model's logits, the layer's output, and what
            the plan keeps; None = it runs whole batches.
        given : logits and the layer's output of each of these samples alone.
        """
        site, mine = self.plan.site, []
        for place, (logits, alone) in zip(places, given, strict=True):
            self._compare(CLEAN, clean[place : place + 1], logits)
            row = output[place : place + 1]
            self._compare(ROW, row, alone if alone.shape == row.shape else torch.zeros_like(row))
            count = self._length(rows)
            order = torch.from_numpy(self._draw.permutation(site.units)).to(logits.device)
            mask = torch.zeros(1, site.units, dtype=torch.bool, device=logits.device)
            mask[0, order[:count]] = True
            one = rows_of(inputs, slice(place, place + 1))
            with self.precision.on():
                masked = run_masked(self.plan.model, site, one, mask, self.plan.baseline)
            kept = None if rows is None else tuple(v[place : place + 1].clone() for v in rows)
            mine.append(_Alone(place, kept, order, count, logits, masked))
        self.found += Audit(alone=len(mine))
        if rows is None:
            self._among_inputs(inputs, batch_size(inputs), mine)
            return
        self._waiting += mine
        while len(self._waiting) >= GROUP:
            self._among_rows(self._waiting[:GROUP])
            self._waiting = self._waiting[GROUP:]
            self._lengths = self._lengths[:0]

    def finish(self) -> Audit:
        """What all samples gave."""
        if self._waiting:
            self._among_rows(self._waiting)
            self._waiting = []
        return self.found

    def _length(self, rows: Rows | None) -> int:
        """How many units are retrieved: one of some numbers, that the samples of a group share.

        All numbers, as a call of the run has them, where the rows are small and the units few.
        """
        units = self.plan.site.units
        if not len(self._lengths):
            size = sum(v[:1].numel() * v.element_size() for v in rows or ())
            many = min(GROUP, max(_FEW, _MANY_BYTES // (GROUP * size or 1)))
            self._lengths = self._draw.permutation(units)[:many]
        self._turn += 1  # one after the other, so that none of a few is left out by chance
        return int(self._lengths[self._turn % len(self._lengths)])

    def _among_rows(self, group: list[_Alone]) -> None:
        """As the run does it: several masks and several samples in one call."""
        rows = [one.rows or () for one in group]
        kept = tuple(torch.cat(parts) for parts in zip(*rows, strict=True))
        units = self.plan.site.units
        counts = sorted({*self._lengths.tolist(), *(one.count for one in group), units})
        order = torch.stack([one.order for one in group])

        def run(part: slice) -> Tensor:
            some, masks = tuple(value[part] for value in kept), Prefixes(order[part], counts)
            return torch.cat([found.clone() for _, found in self.plan.run(some, masks)])

        logits = torch.cat(self._pieces.run(run, len(group)), dim=1)
        found = [logits[counts.index(one.count), i] for i, one in enumerate(group)]
        self._compare_masked(torch.stack(found), group)
        # The last of the masks in a call has most before it that could disturb it.
        self._compare(MASKED, logits[-1], torch.cat([one.clean for one in group]))

    def _among_inputs(self, inputs: Any, samples: int, group: list[_Alone]) -> None:
        """The whole batch, every sample under a mask of its own."""
        if not group:
            return
        units, device = self.plan.site.units, group[0].order.device
        order = torch.stack(
            [torch.from_numpy(self._draw.permutation(units)) for _ in range(samples)]
        ).to(device)
        counts = torch.from_numpy(self._draw.integers(0, units + 1, size=(1, samples))).to(device)
        for one in group:
            order[one.place], counts[0, one.place] = one.order, one.count
        plan = in_full(self.plan, self.precision) if self.plan.keeps_rows else self.plan
        ((_, (logits,)),) = plan.run(inputs, Own(order, counts))
        self._compare_masked(logits[[one.place for one in group]], group)

    def _compare_masked(self, found: Tensor, group: list[_Alone]) -> None:
        clean, masked = (
            torch.cat([getattr(one, name) for one in group]) for name in ("clean", "masked")
        )
        self._compare(MASKED, found, masked, moved=largest(differences(masked, clean)))

    def _compare(
        self, what: str, found: Tensor, wanted: Tensor, moved: float = float("inf")
    ) -> None:
        wanted = wanted.to(found.device)
        off = largest(differences(found.to(wanted), wanted))
        allowed, noise = allowed_and_noise(wanted, self.plan.site.dtype)
        if moved == moved:  # agreement must mean something where masks move little
            allowed = min(allowed, max(moved / 1000, 10 * noise))
        self.found += Audit(difference={what: off}, times_allowed={what: off / allowed})


@dataclass(frozen=True)
class _Alone:
    """A sample that was run alone: its rows among others, its mask, its logits."""

    place: int
    rows: Rows | None
    order: Int[Tensor, " units"]
    count: int
    clean: Float[Tensor, "1 labels"]
    masked: Float[Tensor, "1 labels"]


class _Reading(TorchDispatchMode):
    """Notices where Python reads a number out of a tensor: `.item()`, `bool()`, `tolist()`."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        self.seen = self.seen or name in ("aten::_local_scalar_dense", "aten::nonzero")
        return func(*args, **(kwargs or {}))


def reads_data(model: nn.Module, inputs: Any) -> bool:
    """Whether a forward decides by the numbers it meets; True where that cannot be seen."""
    try:
        with _Reading() as mode:
            forward(model, inputs)
    except Exception:  # what such a mode does to a forward of others is not known
        return True
    return mode.seen


def drawn(labels: Int[np.ndarray, " samples"], count: int, seed: int) -> Int[np.ndarray, " places"]:
    """Some samples of a split, as many of every class as of another where there are enough."""
    draw = np.random.default_rng(seed)
    turn = draw.permutation(len(labels))
    order = turn[np.argsort(labels[turn], kind="stable")]
    _, starts, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    rank = np.arange(len(order)) - np.repeat(starts, sizes)
    first = np.lexsort((draw.permutation(len(order)), rank))[:count]
    return np.sort(order[first])


def lengths(inputs: Any) -> Int[np.ndarray, " samples"] | None:
    """How much of every sample is not padding, as far as whole numbers and truths show it."""
    whole = [t for t in tensors(inputs) if t.ndim > 1 and not t.is_floating_point()]
    if not whole:
        return None
    return (whole[0] != 0).flatten(1).sum(dim=1).cpu().numpy()
