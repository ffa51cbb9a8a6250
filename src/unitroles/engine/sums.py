"""The running sums of an additive head."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from unitroles.engine.masks import Tree
from unitroles.heads.additive import Additive
from unitroles.model.forward import Logits
from unitroles.model.memory import slices

# Logits of several masks that stay in the CPU's caches.
_BLOCK_BYTES = 2**21
# Products need many rows, or they mostly read weights; beyond these a call gains nothing.
_CALL_ROWS, _CALL_BYTES = 1024, 16 * 2**20
_PARTS_BYTES = 128 * 2**20
_NUMBERS = 2**18


@runtime_checkable
class _Parts(Protocol):
    """The parts that units add to a running sum, for some samples."""

    def add(self, total: Tensor, n: int, out: Tensor) -> None:
        """The sum with the unit in place n of each sample's order, in `out`, maybe `total`."""
        ...


@dataclass(frozen=True)
class _Rows:
    """One number per unit and sample, times a row of the unit."""

    scale: Float[Tensor, "units samples ..."]
    rows: Float[Tensor, "units outputs"]
    units: Int[Tensor, "units samples"]
    buffer: Float[Tensor, "samples outputs"]

    def add(self, total: Tensor, n: int, out: Tensor) -> None:
        torch.index_select(self.rows, 0, self.units[n], out=self.buffer)
        row = self.buffer if total.ndim == 2 else self.buffer[:, None]
        torch.addcmul(total, self.scale[n], row, out=out)


@dataclass(frozen=True)
class _Blocks:
    """The parts of units of several features, computed for all units at once."""

    blocks: Float[Tensor, "rows outputs"]
    units: Int[Tensor, "units samples"]

    def add(self, total: Tensor, n: int, out: Tensor) -> None:
        torch.add(total, self.blocks.index_select(0, self.units[n]), out=out)


@dataclass(frozen=True)
class _Products:
    """Several features per unit at several positions: a small product for each step."""

    scale: Float[Tensor, "units samples positions features"]
    rows: Float[Tensor, "units features outputs"]
    units: Int[Tensor, "units samples"]

    def add(self, total: Tensor, n: int, out: Tensor) -> None:
        torch.baddbmm(total, self.scale[n], self.rows[self.units[n]], out=out)


def _parts(
    amount: Float[Tensor, "samples positions units features"],
    rows: Float[Tensor, "units features outputs"],
    order: Int[Tensor, "samples units"],
) -> _Parts:
    samples, positions, _, features = amount.shape
    turn = order.t().contiguous()
    if features > 1 and positions == 1:
        blocks = torch.bmm(amount[:, 0].transpose(0, 1), rows).flatten(0, 1)
        return _Blocks(blocks, turn * samples + torch.arange(samples, device=order.device))
    index = order[:, None, :, None].expand(-1, positions, -1, features)
    scale = amount.gather(2, index).permute(2, 0, 1, 3).contiguous()
    if features > 1:
        return _Products(scale, rows, turn)
    buffer = rows.new_empty(samples, rows.shape[2])
    return _Rows(scale if positions > 1 else scale[:, :, 0], rows[:, 0], turn, buffer)


_Add = Callable[[Int[Tensor, " sets"], Float[Tensor, "sets samples *positions outputs"]], None]
"""(a unit for each set, sums) -> nothing; adds to the sums of all samples what the units do."""


def _adder(
    amount: Float[Tensor, "samples positions units features"],
    rows: Float[Tensor, "units features outputs"],
) -> _Add:
    if amount.shape[3] > 1:
        return _adder_of_blocks(amount, rows)
    flat = amount.shape[1] == 1
    scale, rows = amount[..., 0].permute(2, 0, 1), rows[:, 0]
    scale = (scale[:, :, 0] if flat else scale)[..., None].contiguous()

    def add(units: Tensor, sums: Tensor) -> None:
        row = rows.index_select(0, units)
        row = row[:, None] if flat else row[:, None, None]
        sums.addcmul_(scale.index_select(0, units), row)

    return add


def _adder_of_blocks(
    amount: Float[Tensor, "samples positions units features"],
    rows: Float[Tensor, "units features outputs"],
) -> _Add:
    samples, positions = amount.shape[:2]
    turned = amount.permute(2, 0, 1, 3).flatten(1, 2)
    blocks = torch.bmm(turned, rows) if positions == 1 else None

    def add(units: Tensor, sums: Tensor) -> None:
        if blocks is not None:
            sums.add_(blocks.index_select(0, units))
        else:
            block = torch.bmm(turned[units], rows[units])
            sums.add_(block.unflatten(1, (samples, positions)))

    return add


_Pairs = Sequence[tuple[Float[Tensor, "units features _"], Tensor]]
"""The part of each unit, and the sum it is added to."""
_Walk = Callable[[_Pairs, int], Iterator[tuple[slice, list[Tensor]]]]
"""(pairs, how many masks at a time) -> masks and their sums."""


@dataclass(frozen=True)
class Sums:
    """The sums of an additive head for some samples.

    Parameters
    ----------
    form : the head.
    amount : t_i(a_i) - t_i(0) by unit.
    around : what flows around the layer.
    repeats : for every value around, whether it has a row for each sample.
    start : h_0 of every sample.
    """

    form: Additive
    amount: Float[Tensor, "samples positions units features"]
    around: Sequence[Tensor]
    repeats: Sequence[bool]
    start: Tensor

    @staticmethod
    def of(
        form: Additive,
        edge: Tensor,
        ablated: Tensor,
        around: Sequence[Tensor],
        repeats: Sequence[bool],
    ) -> Sums:
        """From the edge values of samples and of the ablated layer."""
        ablated = ablated.expand_as(edge).contiguous()
        delta = (edge - ablated).movedim(form.axis, -1)
        delta = delta.flatten(1, -2) if delta.ndim > 2 else delta[:, None]
        features = form.features.to(edge.device)
        if int(features.max()) == delta.shape[2]:
            delta = F.pad(delta, (0, 1))
        amount = delta[:, :, features.flatten()].unflatten(2, features.shape)
        return Sums(form, amount, around, repeats, form.mix(ablated))

    def prefixes(
        self, order: Int[Tensor, "samples units"], points: Sequence[int]
    ) -> Iterator[tuple[slice, Logits]]:
        """Logits with the first n units of each order retrieved, for the n of `points`."""
        return self._logits(self._in_order(order, points, running=True))

    def without_each(self, units: Sequence[int]) -> Iterator[tuple[slice, Logits]]:
        """Logits with all units but one retrieved, for those of `units`."""
        count = self.amount.shape[2]
        order = torch.arange(count, device=self.amount.device).expand(len(self.amount), -1)
        return self._logits(self._in_order(order, units, running=False))

    def branches(self, tree: Tree) -> Iterator[tuple[slice, Logits]]:
        """Logits with the sets of a tree retrieved, the same for all samples."""
        return self._logits(partial(self._grown, tree))

    def rows_of(self, tree: Tree, memory: int) -> int:
        """The samples whose sums with the sets of a level fit into so many bytes, at least one."""
        units, features, outputs = self.form.add.shape
        blocks = units * outputs if features > 1 else 0
        each = max(tree.sizes) * self.start[0].numel() + blocks
        return max(1, memory // (self.start.element_size() * each))

    def _logits(self, walk: _Walk) -> Iterator[tuple[slice, Logits]]:
        if self.form.norm is not None:
            return self._normed(walk)
        if self.form.folded:
            return self._affine(walk)
        return self._deep(walk)

    def _in_order(self, order: Tensor, wanted: Sequence[int], running: bool) -> _Walk:
        def walk(pairs: _Pairs, step: int) -> Iterator[tuple[slice, list[Tensor]]]:
            steps = [(_parts(self.amount, rows, order), start) for rows, start in pairs]
            return (self._totals if running else self._all_but_one)(steps, wanted, step)

        return walk

    def _grown(self, tree: Tree, pairs: _Pairs, step: int) -> Iterator[tuple[slice, list[Tensor]]]:
        """The sums of the sets of a tree, some sets at a time.

        The next ones grow from those of the last level: who writes to them puts them back.
        """
        device, last = self.amount.device, max(tree.points)
        starts, adds = zip(
            *((sums, _adder(self.amount, rows)) for rows, sums in pairs), strict=True
        )
        parents, units = (
            [torch.from_numpy(values).to(device) for values in levels[:last]]
            for levels in (tree.parents, tree.units)
        )

        def empty(sets: int) -> list[Tensor]:
            return [start.new_empty(sets, *start.shape) for start in starts]

        wanted, sizes = set(tree.points), tree.sizes
        level = [start[None] for start in starts]
        blocks: list[Tensor] = []
        filled = done = 0
        for n in range(last + 1):
            # Room for what is missing of a block, and for the level that completes it.
            blocks = blocks or empty(min(step + max(sizes), len(tree) - done))
            here = slice(filled, filled + sizes[n])
            grown = [block[here] for block in blocks] if n in wanted else empty(sizes[n])
            for sums, add, out in zip(level, adds, grown, strict=True):
                if n == 0:
                    out.copy_(sums)
                else:
                    torch.index_select(sums, 0, parents[n - 1], out=out)
                    add(units[n - 1], out)
            level = grown
            filled += sizes[n] if n in wanted else 0
            if filled >= step or n == last:
                for some in slices(filled, step):
                    yield slice(done, done + some.stop - some.start), [b[some] for b in blocks]
                    done += some.stop - some.start
                blocks, filled = [], 0

    def _totals(
        self, pairs: Sequence[tuple[_Parts, Tensor]], wanted: Sequence[int], step: int
    ) -> Iterator[tuple[slice, list[Tensor]]]:
        """The running sums at all points of `wanted`.

        Some points at a time, in blocks (points, ...) that the next ones are written over.
        """
        step = min(step, len(wanted))
        blocks = [start.new_empty(step, *start.shape) for _, start in pairs]
        done, filled, last = 0, 0, step - 1
        for (_, start), block in zip(pairs, blocks, strict=True):
            block[-1].copy_(start)
        for place, n in enumerate(wanted):
            for (parts, _), block in zip(pairs, blocks, strict=True):
                total = block[last]
                for unit in range(done, n):
                    parts.add(total, unit, block[filled])
                    total = block[filled]
                if done == n and last != filled:
                    block[filled].copy_(total)
            done, last = n, filled
            filled += 1
            if filled == step or place + 1 == len(wanted):
                yield slice(place + 1 - filled, place + 1), [block[:filled] for block in blocks]
                filled = 0

    def _all_but_one(
        self, pairs: Sequence[tuple[_Parts, Tensor]], wanted: Sequence[int], step: int
    ) -> Iterator[tuple[slice, list[Tensor]]]:
        """All sums but for one unit, for the units of `wanted`, which rise; in such blocks too.

        Each is added up, half by half, and none is a difference: the sum of all units less one
        leaves a rounding where nothing else is active.
        """
        step = min(step, len(wanted))
        blocks = [start.new_empty(step, *start.shape) for _, start in pairs]
        filled, units = 0, self.amount.shape[2]
        sums = _without([parts for parts, _ in pairs], [s for _, s in pairs], (0, units), wanted)
        for place, found in enumerate(sums):
            for block, total in zip(blocks, found, strict=True):
                block[filled].copy_(total)
            filled += 1
            if filled == step or place + 1 == len(wanted):
                yield slice(place + 1 - filled, place + 1), [block[:filled] for block in blocks]
                filled = 0

    def _affine(self, walk: _Walk) -> Iterator[tuple[slice, Logits]]:
        start = self.form.tail(self.start, *self.around)
        for part, (logits,) in walk([(self.form.add, start)], _in_cache(start)):
            yield part, logits

    def _normed(self, walk: _Walk) -> Iterator[tuple[slice, Logits]]:
        norm = self.form.norm
        assert norm is not None
        first = norm.start(self.start, *self.around)
        flat = first.flatten(1)
        if norm.centered:
            flat = flat - flat.mean(dim=1, keepdim=True)
        constant = norm.finish(torch.zeros_like(first), *self.around)
        whole = norm.finish(flat.view_as(first), *self.around)
        start = torch.where(whole == constant, 0.0, whole - constant)  # both infinite, or a number
        pairs = [(norm.add, flat), (self.form.add, start)]
        for part, (value, sums) in walk(pairs, _in_cache(start)):
            size = torch.rsqrt(value.square().mean(dim=2, keepdim=True) + norm.eps)
            yield part, torch.addcmul(constant, sums, size)

    def _deep(self, walk: _Walk) -> Iterator[tuple[slice, Logits]]:
        axis = min(self.form.axis, self.start.ndim - 1)
        spread = self.start.movedim(axis, -1)
        start = spread.flatten(1, -2) if self.amount.shape[1] > 1 else spread.flatten(1)
        rows = max(_CALL_ROWS // len(start), _in_cache(start))
        step = max(1, min(rows, _CALL_BYTES // (start.numel() * start.element_size())))
        for part, (totals,) in walk([(self.form.add, start)], step):
            h = totals.view(-1, *spread.shape).movedim(-1, axis + 1)
            yield part, self._tail(h.contiguous())

    def _tail(self, h: Float[Tensor, "masks samples ..."]) -> Logits:
        many = len(h)
        pairs = zip(self.around, self.repeats, strict=True)
        around = [repeat(value, many) if per_row else value for value, per_row in pairs]
        return self.form.tail(h.flatten(0, 1), *around).unflatten(0, (many, -1))


def _without(
    parts: Sequence[_Parts], sums: list[Tensor], units: tuple[int, int], wanted: Sequence[int]
) -> Iterator[list[Tensor]]:
    """Sums, to which all units but some were added, and then these but for each one of `wanted`."""
    first, end = units
    if end - first == 1:
        yield sums
        return
    middle = (first + end) // 2
    for mine, others in (((first, middle), (middle, end)), ((middle, end), (first, middle))):
        here = [unit for unit in wanted if unit in range(*mine)]
        if not here:
            continue
        grown = [total.clone() for total in sums]
        for part, total in zip(parts, grown, strict=True):
            for unit in range(*others):
                part.add(total, unit, total)
        yield from _without(parts, grown, mine, here)


def _in_cache(start: Tensor) -> int:
    """The number of sums of this size that stay in the CPU's caches together."""
    return max(1, _BLOCK_BYTES // (start.numel() * start.element_size()))


def repeat(value: Tensor, times: int) -> Tensor:
    """All rows several times, one whole batch after the other."""
    return value.expand(times, *value.shape).flatten(0, 1)


def rows_per_tile(form: Additive, labels: int) -> int:
    """Samples that run together; it depends on the head alone, never on the data."""
    units, features, outputs = form.add.shape
    if features > 1:
        return max(1, min(64, _PARTS_BYTES // (4 * units * outputs)))
    return max(64, min(4096, _NUMBERS // max(labels, 1))) if form.folded else 256
