"""What single units add to a running sum, in any order or set by set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from unitroles.heads.additive import Sum, Window


@runtime_checkable
class Parts(Protocol):
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
    """Several features per unit at several positions: a small product for each step.

    Parameters
    ----------
    scale : (n) -> the features of the units in place n.
    """

    scale: Callable[[int], Float[Tensor, "samples positions features"]]
    rows: Float[Tensor, "units features outputs"]
    units: Int[Tensor, "units samples"]

    def add(self, total: Tensor, n: int, out: Tensor) -> None:
        torch.baddbmm(total, self.scale(n), self.rows[self.units[n]], out=out)


Add = Callable[[Int[Tensor, " sets"], Float[Tensor, "sets samples *positions outputs"]], None]
"""(a unit for each set, sums) -> nothing; adds to the sums of all samples what the units do."""
Unfolded = Float[Tensor, "units _ _"]


@runtime_checkable
class UnitAmounts(Protocol):
    """t_i(a_i) - t_i(0) of some samples, by unit; `rows` say what a unit of each feature adds."""

    @property
    def units(self) -> int: ...

    def in_order(self, rows: Unfolded, order: Int[Tensor, "samples units"]) -> Parts: ...

    def by_set(self, rows: Unfolded) -> Add: ...


@dataclass(frozen=True)
class Amounts:
    """The features of every unit, at positions that stay apart."""

    values: Float[Tensor, "samples positions units features"]

    @property
    def units(self) -> int:
        return self.values.shape[2]

    def in_order(self, rows: Unfolded, order: Int[Tensor, "samples units"]) -> Parts:
        samples, positions, _, features = self.values.shape
        turn = order.t().contiguous()
        if features > 1 and positions == 1:
            blocks = torch.bmm(self.values[:, 0].transpose(0, 1), rows).flatten(0, 1)
            return _Blocks(blocks, turn * samples + torch.arange(samples, device=order.device))
        index = order[:, None, :, None].expand(-1, positions, -1, features)
        scale = self.values.gather(2, index).permute(2, 0, 1, 3).contiguous()
        if features > 1:
            return _Products(scale.__getitem__, rows, turn)
        buffer = rows.new_empty(samples, rows.shape[2])
        return _Rows(scale if positions > 1 else scale[:, :, 0], rows[:, 0], turn, buffer)

    def by_set(self, rows: Unfolded) -> Add:
        _, positions, _, features = self.values.shape
        if features > 1:
            turned = self.values.permute(2, 0, 1, 3).flatten(1, 2)
            if positions == 1:
                blocks = torch.bmm(turned, rows)
                return _by_blocks(blocks)
            return _by_products(turned.__getitem__, rows)
        flat = positions == 1
        scale, rows = self.values[..., 0].permute(2, 0, 1), rows[:, 0]
        scale = (scale[:, :, 0] if flat else scale)[..., None].contiguous()

        def add(units: Tensor, sums: Tensor) -> None:
            row = rows.index_select(0, units)
            row = row[:, None] if flat else row[:, None, None]
            sums.addcmul_(scale.index_select(0, units), row)

        return add


@dataclass(frozen=True)
class Maps:
    """The maps of every unit, of which a window sees several positions at once."""

    values: Float[Tensor, "units samples features height width"]
    window: Window

    @staticmethod
    def of(values: Float[Tensor, "samples units features height width"], window: Window) -> Maps:
        (y, x) = window.padding
        return Maps(F.pad(values, (x, x, y, y)).transpose(0, 1).contiguous(), window)

    @property
    def units(self) -> int:
        return len(self.values)

    def in_order(self, rows: Unfolded, order: Int[Tensor, "samples units"]) -> Parts:
        turn, samples = order.t().contiguous(), self.values.shape[1]
        places, maps = (
            turn * samples + torch.arange(samples, device=order.device),
            self.values.flatten(0, 1),
        )
        return _Products(lambda n: self._seen(maps.index_select(0, places[n])), rows, turn)

    def by_set(self, rows: Unfolded) -> Add:
        return _by_products(lambda units: self._seen(self.values[units]).flatten(1, 2), rows)

    def _seen(
        self, maps: Float[Tensor, "*some features height width"]
    ) -> Float[Tensor, "*some positions seen"]:
        """What the window sees at every position: all its places of each feature."""
        kernel, stride, dilation = self.window.kernel, self.window.stride, self.window.dilation
        *some, features = maps.shape[:-2]
        sizes = [
            (size - step * (k - 1) - 1) // s + 1
            for size, k, s, step in zip(maps.shape[-2:], kernel, stride, dilation, strict=True)
        ]
        *outer, y, x = maps.stride()
        strides = (y * stride[0], x * stride[1], outer[-1], y * dilation[0], x * dilation[1])
        seen = maps.as_strided((*some, *sizes, features, *kernel), (*outer[:-1], *strides))
        return seen.flatten(-5, -4).flatten(-3)


def _by_blocks(blocks: Float[Tensor, "units samples outputs"]) -> Add:
    def add(units: Tensor, sums: Tensor) -> None:
        sums.add_(blocks.index_select(0, units))

    return add


def _by_products(
    seen: Callable[[Tensor], Float[Tensor, "sets rows features"]], rows: Unfolded
) -> Add:
    def add(units: Tensor, sums: Tensor) -> None:
        sums.add_(torch.bmm(seen(units), rows[units]).view_as(sums))

    return add


def amounts_of(one: Sum, delta: Tensor) -> UnitAmounts:
    """What every unit has in the differences from an ablated layer."""
    features = one.features.to(delta.device)
    delta = delta.movedim(one.axis, -1)
    spread = delta.flatten(1, -2) if delta.ndim > 2 else delta[:, None]
    if int(features.max()) == spread.shape[2]:
        spread = F.pad(spread, (0, 1))
    values = spread[:, :, features.flatten()].unflatten(2, features.shape)
    if one.window is None:
        return Amounts(values)
    maps = values.permute(0, 2, 3, 1).unflatten(-1, delta.shape[1:-1])
    return Maps.of(maps, one.window)
