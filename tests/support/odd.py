"""Forwards that treat the rows of a batch in odd ways, each as a module with the layer `act`.

`share` of the samples, or of the (sample, mask) pairs, are touched by the oddity: the first input
number of a sample decides, uniform in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEATURES, UNITS, LABELS = 5, 6, 3


class Plain(nn.Module):
    """Two linear layers with a ReLU between them."""

    def __init__(self, share: float):
        super().__init__()
        self.share = share
        self.fc, self.act = nn.Linear(FEATURES, UNITS), nn.ReLU()
        self.mid, self.head = nn.Linear(UNITS, UNITS), nn.Linear(UNITS, LABELS)

    def touched(self, x: Tensor) -> Tensor:
        return x[:, 0] < self.share

    def body(self, x: Tensor) -> Tensor:
        return self.act(self.fc(x))

    def rest(self, z: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mid(z)))

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.body(x))


def back(order: Tensor) -> Tensor:
    return order.argsort()


class SortedBody(Plain):
    def forward(self, x):
        order = torch.where(self.touched(x), x[:, 1], -9.0).argsort(stable=True)
        return self.rest(self.body(x[order]))[back(order)]


class SortedInTheMiddle(Plain):
    """Sorted before the layer, put back right after it."""

    def forward(self, x):
        order = x[:, 1].argsort()
        return self.rest(self.body(x[order])[back(order)])


class SortedRest(Plain):
    """Sorted after the layer by what the units give, and put back."""

    def forward(self, x):
        z = self.body(x)
        order = z.sum(1).argsort()
        return self.rest(z[order])[back(order)]


class FoundOrder(Plain):
    """The order comes from the input, its inverse acts after the layer."""

    def forward(self, x):
        order = x[:, 2].argsort()
        z = self.body(x[order])
        return self.rest(z.index_select(0, back(order)))


class Flipped(Plain):
    def forward(self, x):
        return self.rest(self.body(x.flip(0))).flip(0)


class Rolled(Plain):
    def forward(self, x):
        return self.rest(self.body(x.roll(1, 0))).roll(-1, 0)


class ByGroup(Plain):
    """Rows with the oddity first, then the others: rows grouped by expert."""

    def forward(self, x):
        mine = self.touched(x)
        order = torch.cat([mine.nonzero()[:, 0], (~mine).nonzero()[:, 0]])
        return self.rest(self.body(x[order]))[back(order)]


class Unique(Plain):
    """Equal rows are computed once; unique rows come sorted."""

    def forward(self, x):
        rows, place = x.unique(dim=0, return_inverse=True)
        return self.rest(self.body(rows))[place]


class Interleaved(Plain):
    """Even rows, then odd rows."""

    def forward(self, x):
        out = self.rest(self.body(torch.cat([x[::2], x[1::2]])))
        found = torch.empty_like(out)
        half = len(x[::2])
        found[::2], found[1::2] = out[:half], out[half:]
        return found


class Chunked(Plain):
    def forward(self, x):
        return torch.cat([super(Chunked, self).forward(part) for part in x.split(4)])


class Experts(Plain):
    def __init__(self, share: float):
        super().__init__(share)
        self.router = nn.Linear(UNITS, 2)
        self.experts = nn.ModuleList(nn.Linear(UNITS, UNITS) for _ in range(2))

    def kept(self, chosen: Tensor) -> Tensor:
        """Which rows their expert has room for."""
        return torch.ones(len(chosen), dtype=torch.bool)

    def forward(self, x):
        z = self.body(x)
        weight, chosen = self.router(z).softmax(1).max(1)
        out = torch.stack([expert(z) for expert in self.experts], 1)[torch.arange(len(z)), chosen]
        room = self.kept(chosen).to(z.dtype)
        return self.rest(z + 2 * out * (weight * room)[:, None])


class FixedCapacity(Experts):
    """Room for as many rows as a batch of the data has."""

    def kept(self, chosen):
        one = F.one_hot(chosen, 2)
        return (one.cumsum(0) * one).sum(1) <= 20


class RelativeCapacity(Experts):
    """Room for nine tenths of the rows, and for all of a small batch."""

    def kept(self, chosen):
        one = F.one_hot(chosen, 2)
        return (one.cumsum(0) * one).sum(1) <= max(20, int(0.6 * len(chosen)))


class ExpertOfSome(Plain):
    """The layer is an expert that some rows reach."""

    def forward(self, x):
        rows = self.touched(x).nonzero()[:, 0]
        return self.rest(self.mid(x.new_ones(len(x), UNITS)).index_add(0, rows, self.body(x[rows])))


class ExpertByMask(Plain):
    def forward(self, x):
        z, mine = x.new_zeros(len(x), UNITS), self.touched(x)
        z[mine] = self.body(x[mine])
        z[~mine] = torch.tanh(self.fc(x[~mine]))
        return self.rest(z)


class ExpertCalledForSome(Plain):
    """Gives what `ExpertByMask` does, but calls the layer only where a sample goes there."""

    def forward(self, x):
        z, mine = torch.tanh(self.fc(x)), self.touched(x)
        if bool(mine.any()):
            z = z.index_put((mine.nonzero()[:, 0],), self.body(x[mine]))
        return self.rest(z)


class ManyReached(ExpertByMask):
    """The samples of the check before a run reach the layer, some others do not."""

    def touched(self, x):
        return x[:, 0] > self.share


class BranchOnMasked(Plain):
    """Where any row is nearly dead, as only masks make one, all rows change."""

    def forward(self, x):
        z = self.body(x) + 0.1
        if bool((z.sum(1) < 0.9).any()):
            z = z * 1.5
        return self.rest(z)


class WhereOnMasked(Plain):
    """The same without a branch in Python."""

    def forward(self, x):
        z = self.body(x) + 0.1
        return self.rest(z * torch.where((z.sum(1) < 0.9).any(), 1.5, 1.0))


class EarlyExit(Plain):
    """Where all rows are sure, the rest is left out; clean ones never all are."""

    def forward(self, x):
        z = self.body(x)
        first = self.head(z)
        return first if bool((z[:, 0] + z[:, 1] == 0).all()) else first + self.rest(z)


class Long(Plain):
    """A batch beyond the data's is treated in another way."""

    def forward(self, x):
        z = self.body(x)
        return self.rest(z * (1 + 0.5 * (len(x) > 30)))


class LongShape(Plain):
    def forward(self, x):
        z = self.body(x)
        scale = 1.5 if z.shape[0] % 7 == 0 and z.shape[0] > 30 else 1.0
        return self.rest(z * scale)


class LargestOfAll(Plain):
    """The largest number of the batch counts where it is dead."""

    def forward(self, x):
        z = self.body(x)
        lowest = z.sum(1).min()
        return self.rest(z + torch.where(lowest == 0, z.max(), torch.zeros_like(lowest)))


class DeadRowsTakeTheMean(Plain):
    def forward(self, x):
        z = self.body(x)
        dead = (z.abs().sum(1, keepdim=True) == 0).to(z.dtype)
        return self.rest(z + dead * z.mean(0, keepdim=True))


class Neighbours(Plain):
    """A dead row takes what the row before it has."""

    def forward(self, x):
        z = self.body(x)
        dead = (z.abs().sum(1, keepdim=True) == 0).to(z.dtype)
        return self.rest(z + dead * z.roll(1, 0))


class DataBranch(Plain):
    """Each sample by its own numbers: nothing odd."""

    def forward(self, x):
        z = self.body(x)
        return self.rest(torch.where(self.touched(x)[:, None], z, z.flip(1)))


class LoopOverSamples(Plain):
    def forward(self, x):
        return torch.cat([self._one(row[None]) for row in x])

    def _one(self, x):
        return self.rest(self.body(x) * 2 if float(x[0, 0]) < self.share else self.body(x))


class LoopAfter(Plain):
    """Rows go one by one after the layer, each by its own data."""

    def forward(self, x):
        z = self.body(x)
        return torch.cat(
            [
                self.rest(z[i : i + 1] * (2 if float(x[i, 0]) < self.share else 1))
                for i in range(len(x))
            ]
        )


class FirstDecides(Plain):
    """The first row decides for all: samples have no answer of their own."""

    def forward(self, x):
        z = self.body(x)
        return self.rest(z * 2 if bool(x[0, 0] < self.share) else z)


class BatchMean(Plain):
    def forward(self, x):
        z = self.body(x)
        return self.rest(z - self.share * z.mean(0))


class Stateful(Plain):
    """After some calls the model gives something else."""

    def __init__(self, share: float):
        super().__init__(share)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        z = self.body(x)
        return self.rest(z * (1 + 0.3 * (self.calls > 8)))


class RarePairs(Plain):
    """A share of the (sample, mask) pairs, and none with all units on, gets its neighbour's logits.

    Which ones depends on the masked activations as a hash would. The activation gives no zeros of
    its own, so that a zero is a unit that is off.
    """

    def __init__(self, share: float):
        super().__init__(share / 0.95 / ((UNITS - 1) / (UNITS + 1)))
        self.act = nn.Softplus()

    def forward(self, x):
        z = self.body(x)
        off = (z == 0).sum(1)
        number = (z * torch.arange(1, UNITS + 1)).sum(1) * 50
        some = (off > 0) & (off < UNITS) & (x[:, 0] < 0.95)
        mine = some & (number - number.floor() < self.share)
        logits = self.rest(z)
        return torch.where(mine[:, None], logits + 5 * logits.roll(1, 0), logits)


class Padded(nn.Module):
    """A text encoder whose fast path treats padded texts in a way of its own."""

    def __init__(self, share: float):
        super().__init__()
        self.share = share
        self.emb = nn.Embedding(20, 8, padding_idx=0)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.enc = nn.TransformerEncoder(layer, 1)
        self.act, self.head = nn.Identity(), nn.Linear(8, LABELS)

    def forward(self, x):
        ids = (x[:, 1:, None] * 7 + torch.arange(3) * 3).flatten(1).abs().long() % 19 + 1
        short = (x[:, 0] < self.share)[:, None] & (torch.arange(ids.shape[1]) > 5)
        ids = ids.masked_fill(short, 0)
        return self.head(self.enc(self.act(self.emb(ids)), src_key_padding_mask=ids == 0).mean(1))


ODD: dict[str, Callable[[float], nn.Module]] = {
    kind.__name__: kind
    for kind in (
        Plain,
        SortedBody,
        SortedInTheMiddle,
        SortedRest,
        FoundOrder,
        Flipped,
        Rolled,
        ByGroup,
        Unique,
        Interleaved,
        Chunked,
        Experts,
        FixedCapacity,
        RelativeCapacity,
        ExpertOfSome,
        ExpertByMask,
        ManyReached,
        BranchOnMasked,
        WhereOnMasked,
        EarlyExit,
        Long,
        LongShape,
        LargestOfAll,
        DeadRowsTakeTheMean,
        Neighbours,
        DataBranch,
        LoopOverSamples,
        LoopAfter,
        FirstDecides,
        BatchMean,
        Stateful,
        Padded,
    )
}


RARE: dict[str, Callable[[float], nn.Module]] = {"RarePairs": RarePairs}
"""Not to be found for sure."""


def odd(name: str, share: float, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return (ODD | RARE)[name](share).eval()


def samples(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs whose first number is uniform in [0, 1], and labels of every class."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(count, FEATURES, generator=draw)
    x[:, 0] = torch.rand(count, generator=draw)
    x[0, 0] = x[-1, 0] = 0.99  # what the check before a run sees is not touched
    return x, torch.arange(count) % LABELS
