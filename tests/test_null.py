"""Where training and test set are both fresh, the evidence is wrong as often as it says.

A trained network; samples that it has not seen, dealt at random into parts B and C, which stand in
the places of train and test. The digits: a small network trained on part A. CIFAR-10: real weights
of a ResNet-20 trained on the official training set, and 2000 images of the official test set.

Given the pool of new samples the p of each deal are independent, and the deals are always the same.
Chosen by a seed anew, a right test would fail each comparison with a uniform p (Kolmogorov-Smirnov)
in 1 % of all choices, each count of p <= 0.05 in at most 3 %, each comparison of two mean shares
in 1 %, and each count of deals against its floor in at most 1 %.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.datasets import load_digits
from torch import Tensor, nn

import unitroles as ur
from cifar import images, resnet20
from unitroles import resample
from unitroles.evidence import permutation_p

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]

DEALS, RESPLITS, FLOORS, SEED = 60, 19, 20, 0
ALARM = 0.01
ASKED = ur.Evidence(floors=FLOORS, resplits=RESPLITS, confidence=None, controls=False)
WITHOUT_FLOORS = ur.Evidence(floors=0, resplits=RESPLITS, confidence=None, controls=False)
KINDS = ["overfitted", "generalizing"]
HALF, MOST = 0.5, 0.8
"""Shares of B: as much as C, and four times as much."""


@dataclass(frozen=True, eq=False)
class Pool:
    """A trained network, its layer under test, and samples that it has not seen."""

    model: nn.Module
    layer: ur.Layer
    x: Tensor
    y: Tensor


class AfterLayer3(nn.Module):
    """The ResNet-20 from what `layer3` gives."""

    def __init__(self, resnet: nn.Module):
        super().__init__()
        self.layer3, self.linear = nn.Identity(), resnet.linear

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.layer3(x).mean((2, 3)))


@cache
def digits() -> Pool:
    data = load_digits()
    x, y = torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)
    turn = torch.from_numpy(np.random.default_rng(SEED).permutation(len(x)))
    x, y = x[turn], y[turn]
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[:600]), y[:600]).backward()
        optimizer.step()
    return Pool(model, ur.Layer("1"), x[600:], y[600:])


@cache
def photographs(folder: Path) -> Pool:
    return Pool(resnet20(folder), ur.Layer("layer3"), *images(folder, "test"))


@cache
def cifar(folder: Path) -> Pool:
    """What `layer3` gives for each image, once for all deals."""
    whole = photographs(folder)
    given = []
    handle = whole.model.layer3.register_forward_hook(lambda *called: given.append(called[-1]))
    for batch in whole.x.split(250):
        whole.model(batch)
    handle.remove()
    return Pool(AfterLayer3(whole.model), ur.Layer("layer3", axis=1), torch.cat(given), whole.y)


@pytest.fixture(
    scope="module",
    params=[
        # The tests of a pool share its analyses, so they run in one process.
        pytest.param("digits", marks=pytest.mark.xdist_group("null digits")),
        pytest.param("cifar", marks=pytest.mark.xdist_group("null cifar")),
    ],
)
def pool(request):
    if request.param == "digits":
        return digits()
    return cifar(request.getfixturevalue("shared_data"))


def dealt(pool, deal, share):
    """Parts B and C, `share` of each class in B."""
    rng = np.random.default_rng([SEED, deal])
    first = np.zeros(len(pool.y), dtype=bool)
    for label in range(10):
        mine = rng.permutation(np.flatnonzero(pool.y.numpy() == label))
        first[mine[: round(share * len(mine))]] = True
    return (pool.x[first], pool.y[first]), (pool.x[~first], pool.y[~first])


def analyse(pool, deal, share, evidence):
    b, c = dealt(pool, deal, share)
    return ur.analyze(pool.model, b, c, layer=pool.layer, progress=False, evidence=evidence)


def shares(frame):
    return frame.overfitted + frame.generalizing


@cache
def analysed(pool, deal, share):
    return analyse(pool, deal, share, ASKED)


def uniformity(p) -> float:
    """The p of a Kolmogorov-Smirnov test whether p is uniform.

    Spread over the gap below each value that it can take, p is uniform if its test is right.
    """
    spread = np.ravel(p) - np.random.default_rng(SEED).random(DEALS) / (RESPLITS + 1)
    return float(stats.kstest(spread, "uniform").pvalue)


@cache
def floors(pool, share) -> dict[str, np.ndarray]:
    """The columns of all deals' floors, (deal, kind)."""
    frames = [analysed(pool, deal, share).floors().loc[KINDS] for deal in range(DEALS)]
    return {name: np.stack([frame[name] for frame in frames]) for name in frames[0]}


@pytest.mark.parametrize("share", [HALF, MOST])
def test_p_is_uniform_where_nothing_was_learnt_from_either_split(pool, share):
    found = [analysed(pool, deal, share).exchangeability().p for deal in range(DEALS)]
    for kind in ("overfitted", "generalizing", "either"):
        p = np.array([row[kind] for row in found])
        assert uniformity(p) > ALARM, kind
        assert (p <= 0.05).mean() <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / DEALS), kind


@pytest.mark.parametrize("share", [HALF, MOST])
def test_the_floor_is_as_large_as_what_is_observed_where_nothing_was_learnt(pool, share):
    """Halves of B, halves of C, and a half of each: all are new samples of the same number."""
    found = floors(pool, share)
    for split in ("train", "test"):
        p = stats.ttest_rel(found["observed"], found[f"{split}_floor"]).pvalue
        assert (p > ALARM).all(), (split, p)


@pytest.mark.parametrize("share", [HALF, MOST])
def test_what_is_observed_lies_inside_the_floor_where_nothing_was_learnt(pool, share):
    """In 90 % of the deals inside the band of a floor; above the ceiling, so called, in 5 %.

    Of 60 deals it has to be inside in 48 and may be called in 7. Both rates are bounds: what is
    observed is a mean of 20 draws, and a band is that of single draws.
    """
    found = floors(pool, share)
    least, most = stats.binom.ppf(ALARM, DEALS, 0.9), stats.binom.ppf(1 - ALARM, DEALS, 0.05)
    assert (least, most) == (48, 7)
    for split in ("train", "test"):
        low, high = found[f"{split}_low"], found[f"{split}_high"]
        inside = (low <= found["observed"]) & (found["observed"] <= high)
        assert (inside.sum(axis=0) >= least).all(), split
    assert ((found["observed"] > found["ceiling"]).sum(axis=0) <= most).all()


def test_p_is_not_uniform_where_sizes_are_not_kept(pool):
    """Draws of half and half beside splits of four to one."""
    p = []
    for deal in range(DEALS):
        own = shares(analysed(pool, deal, MOST).proportions()).mean()
        other = analysed(pool, deal, HALF).data.resplit_share.mean("label").values
        p.append(permutation_p(np.array(own), other[:, 1] + other[:, 2]))
    assert uniformity(p) < 1e-3


def test_the_floor_is_not_that_of_other_sizes(pool):
    """What halves of the small sets show, beside the floor of halves of the large ones."""
    small, large = floors(pool, MOST)["observed"], floors(pool, HALF)
    for split in ("train", "test"):
        assert (stats.ttest_rel(small, large[f"{split}_floor"]).pvalue < 1e-3).all(), split
    called = (small > large["ceiling"]).sum(axis=0)
    assert (called > stats.binom.ppf(1 - ALARM, DEALS, 0.05)).all()


def test_p_is_not_uniform_where_the_order_is_not_redone(pool, monkeypatch):
    """Every draw ranks the units once, by the first split, as if ranks had no noise."""
    found = []
    for deal in range(DEALS):
        kept = analysed(pool, deal, MOST).data.order.values[:1].repeat(2, axis=0)

        def same(setting, draws, count, kept=kept):
            return np.broadcast_to(kept, (len(draws), *kept.shape)).astype(np.int64)

        with monkeypatch.context() as patch:
            patch.setattr(resample, "_orders", same)
            taxonomy = analyse(pool, deal, MOST, WITHOUT_FLOORS)
        found.append(taxonomy.exchangeability().p["either"])
    assert uniformity(found) < 1e-3
