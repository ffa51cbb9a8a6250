"""The running sums of an additive head."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from unitroles.engine.masks import AllButOne, Prefixes, Tree
from unitroles.engine.parts import Amounts, Parts, Unfolded, UnitAmounts, amounts_of
from unitroles.heads.additive import Additive, Sum
from unitroles.heads.fast import laid_out
from unitroles.heads.head import Owners
from unitroles.model.forward import Logits
from unitroles.model.memory import slices

# Logits of several masks that stay in the CPU's caches.
_BLOCK_BYTES = 2**21
# Products need many rows, or they mostly read weights; beyond these a call gains nothing, and maps
# leave the caches.
_CALL_ROWS, _CALL_BYTES, _MAP_BYTES = 1024, 16 * 2**20, 4 * 2**20
_PARTS_BYTES = 128 * 2**20
_NUMBERS = 2**18


_Pairs = Sequence[tuple[UnitAmounts, Unfolded, Tensor]]
"""What every unit has, what that adds, and the sum it is added to."""
_Walk = Callable[[_Pairs, int], Iterator[tuple[slice, list[Tensor]]]]
"""(pairs, how many masks at a time) -> masks and their sums."""


@dataclass(frozen=True)
class Masked:
    """Values of which each mask leaves those of the retrieved units."""

    owners: Owners
    edge: Tensor
    ablated: Tensor

    def under(self, retrieved: Bool[Tensor, "masks _ units"]) -> Float[Tensor, "copies ..."]:
        """A copy of all samples for every mask, one mask after the other."""
        mask = self.owners.spread(retrieved.to(self.edge.device))
        return torch.where(mask, self.edge, self.ablated).flatten(0, 1)


@dataclass(frozen=True)
class Sums:
    """The sums of an additive head for some samples.

    Parameters
    ----------
    form : the head.
    amounts : of each sum.
    starts : h_0 of each sum, as its op gives it.
    masked : the edge values that the tail takes as they are.
    around : what flows around the layer.
    repeats : for every value around, whether it has a row for each sample.
    """

    form: Additive
    amounts: tuple[UnitAmounts, ...]
    starts: tuple[Tensor, ...]
    masked: Sequence[Masked] = ()
    around: Sequence[Tensor] = ()
    repeats: Sequence[bool] = ()

    @staticmethod
    def of(
        form: Additive,
        masked: Sequence[Masked],
        around: Sequence[Tensor],
        repeats: Sequence[bool],
    ) -> Sums:
        """From the edge values of samples and of the ablated layer."""
        amounts, starts = [], []
        for one in form.sums:
            edge = masked[one.edge].edge
            ablated = masked[one.edge].ablated.expand_as(edge).contiguous()
            amounts.append(amounts_of(one, edge - ablated))
            starts.append(one.mix(ablated))
        taken = [masked[place] for place in form.masked]
        return Sums(form, tuple(amounts), tuple(starts), taken, around, repeats)

    def run(self, masks: Prefixes | AllButOne | Tree) -> Iterator[tuple[slice, Logits]]:
        """Logits for every mask, some masks at a time."""
        match masks:
            case Prefixes(order, points):
                walk = self._in_order(order, points, running=True)
            case AllButOne(units, ablated):
                order = torch.arange(units, device=self.starts[0].device)
                order = order.expand(len(self.starts[0]), -1)
                walk = self._in_order(order, ablated, running=False)
            case Tree():
                walk = partial(self._grown, masks)
        if self.form.norm is not None:
            return self._normed(walk)
        if self.form.folded:
            return self._affine(walk)
        return self._deep(walk, masks)

    def rows_of(self, tree: Tree, memory: int) -> int:
        """The samples whose sums with the sets of a level fit into so many bytes, at least one."""
        level = max(tree.sizes)
        each = sum(level * start[0].numel() for start in self.starts)
        each += sum(level * one.edge[0].numel() for one in self.masked)
        for one in self.form.sums:
            units, features, outputs = one.add.shape
            each += units * outputs if features > 1 and one.window is None else 0
        return max(1, memory // (self.starts[0].element_size() * each))

    def _in_order(self, order: Tensor, wanted: Sequence[int], running: bool) -> _Walk:
        def walk(pairs: _Pairs, step: int) -> Iterator[tuple[slice, list[Tensor]]]:
            steps = [(mine.in_order(rows, order), start) for mine, rows, start in pairs]
            return (self._totals if running else self._all_but_one)(steps, wanted, step)

        return walk

    def _grown(self, tree: Tree, pairs: _Pairs, step: int) -> Iterator[tuple[slice, list[Tensor]]]:
        """The sums of the sets of a tree, some sets at a time.

        The next ones grow from those of the last level: who writes to them puts them back.
        """
        device, last = self.starts[0].device, max(tree.points)
        starts, adds = (
            [sums for _, _, sums in pairs],
            [mine.by_set(rows) for mine, rows, _ in pairs],
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
        self, pairs: Sequence[tuple[Parts, Tensor]], wanted: Sequence[int], step: int
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
        self, pairs: Sequence[tuple[Parts, Tensor]], wanted: Sequence[int], step: int
    ) -> Iterator[tuple[slice, list[Tensor]]]:
        """All sums but for one unit, for the units of `wanted`, which rise; in such blocks too.

        Each is added up, half by half, and none is a difference: the sum of all units less one
        leaves a rounding where nothing else is active.
        """
        step = min(step, len(wanted))
        blocks = [start.new_empty(step, *start.shape) for _, start in pairs]
        filled, units = 0, self.amounts[0].units
        sums = _without([parts for parts, _ in pairs], [s for _, s in pairs], (0, units), wanted)
        for place, found in enumerate(sums):
            for block, total in zip(blocks, found, strict=True):
                block[filled].copy_(total)
            filled += 1
            if filled == step or place + 1 == len(wanted):
                yield slice(place + 1 - filled, place + 1), [block[:filled] for block in blocks]
                filled = 0

    def _affine(self, walk: _Walk) -> Iterator[tuple[slice, Logits]]:
        start = self.form.tail(self.starts[0], *self.around)
        pairs = [(self.amounts[0], self.form.sums[0].add, start)]
        for part, (logits,) in walk(pairs, _in_cache(start)):
            yield part, logits

    def _normed(self, walk: _Walk) -> Iterator[tuple[slice, Logits]]:
        norm, amounts = self.form.norm, self.amounts[0]
        assert norm is not None
        first = norm.start(self.starts[0], *self.around)
        flat = first.flatten(1)
        if norm.centered:
            flat = flat - flat.mean(dim=1, keepdim=True)
        constant = norm.finish(torch.zeros_like(first), *self.around)
        whole = norm.finish(flat.view_as(first), *self.around)
        start = torch.where(whole == constant, 0.0, whole - constant)  # both infinite, or a number
        pairs = [(amounts, norm.add, flat), (amounts, self.form.sums[0].add, start)]
        for part, (value, sums) in walk(pairs, _in_cache(start)):
            size = torch.rsqrt(value.square().mean(dim=2, keepdim=True) + norm.eps)
            yield part, torch.addcmul(constant, sums, size)

    def _deep(
        self, walk: _Walk, masks: Prefixes | AllButOne | Tree
    ) -> Iterator[tuple[slice, Logits]]:
        pairs, shapes = [], []
        for one, amounts, start in zip(self.form.sums, self.amounts, self.starts, strict=True):
            axis = min(one.axis, start.ndim - 1)
            spread = start.movedim(axis, -1)
            flat = isinstance(amounts, Amounts) and amounts.values.shape[1] == 1
            pairs.append((amounts, one.add, spread.flatten(1) if flat else spread.flatten(1, -2)))
            shapes.append((spread.shape, axis))
        samples = len(self.starts[0])
        size = sum(start.numel() * start.element_size() for _, _, start in pairs)
        most = _MAP_BYTES if any(len(shape) > 3 for shape, _ in shapes) else _CALL_BYTES
        rows = max(_CALL_ROWS // samples, _BLOCK_BYTES // size)
        for part, totals in walk(pairs, max(1, min(rows, most // size))):
            many = part.stop - part.start
            hs = [
                total.view(-1, *shape[1:]).movedim(-1, axis)
                for total, (shape, axis) in zip(totals, shapes, strict=True)
            ]
            values = [h.contiguous() if self.form.by_place else laid_out(h) for h in hs]
            copies = [one.under(masks.retrieved_in(part)) for one in self.masked]
            yield part, self._tail(many, [*values, *copies])

    def _tail(self, many: int, values: Sequence[Tensor]) -> Logits:
        """The logits of so many masks, from values of all their copies of the samples."""
        pairs = zip(self.around, self.repeats, strict=True)
        around = [repeat(value, many) if per_row else value for value, per_row in pairs]
        return self.form.tail(*values, *around).unflatten(0, (many, -1))


def _without(
    parts: Sequence[Parts], sums: list[Tensor], units: tuple[int, int], wanted: Sequence[int]
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
    if form.folded and form.sums[0].add.shape[1] == 1:
        return max(64, min(4096, _NUMBERS // max(labels, 1)))
    return min(_rows_of_a_sum(one) for one in form.sums)


def _rows_of_a_sum(one: Sum) -> int:
    units, features, outputs = one.add.shape
    if one.window is not None:
        return 64
    return 256 if features == 1 else max(1, min(64, _PARTS_BYTES // (4 * units * outputs)))
