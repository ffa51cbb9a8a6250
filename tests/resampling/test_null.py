"""Where training and test set are both fresh, the evidence is wrong as often as it says.

A trained network, and samples that it has not seen, dealt at random into parts B and C, which stand
in the places of train and test. *Digits*: a small network trained on part A. *CIFAR-10*: the real
weights of a ResNet-20, trained on the official training set, and 2000 images of the test set.

Given the pool of new samples the deals are independent; the seed makes them the same in every run.
With deals of another seed a right test fails a comparison of p with a uniform one (Kolmogorov and
Smirnov, of one kind of share at one size) in 1 % of the cases, a count of p <= 0.05 in at most 3 %,
a comparison of mean shares in 1 %, and a count of deals inside their floor in at most 1 %.
"""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.datasets import load_digits
from torch import Tensor, nn

import unitroles as ur
from cifar import ResNet20, read_split, resnet20
from unitroles.resampling import evidence as measured
from unitroles.resampling import recompute as resample
from unitroles.stats import draws
from unitroles.stats.evidence import permutation_p

pytestmark = [pytest.mark.usefixtures("one_thread", "uncompared"), pytest.mark.slow]

DEALS, RESPLITS, FLOORS, SEED = 60, 19, 20, 0
HALF, MOST = 0.5, 0.8
"""What B has of each class: as many as C, or four times as many."""
ALARM, RED = 0.01, 1e-3
ASKED = ur.Evidence(floors=FLOORS, resplits=RESPLITS, bootstrap=None, controls=False, seed=SEED)
KINDS = ["overfitted", "generalizing"]
# The tests of a pool share its analyses, so they run in one process.
ON_DIGITS, ON_CIFAR = (pytest.mark.xdist_group(f"null of {name}") for name in ("digits", "CIFAR"))


@dataclass(frozen=True, eq=False)
class Pool:
    """A trained network, its layer under test, and samples that it has not seen."""

    model: nn.Module
    layer: ur.Layer
    x: Tensor
    y: Tensor


class AfterLayer3(nn.Module):
    """The ResNet-20 from what `layer3` gives."""

    def __init__(self, resnet: ResNet20):
        super().__init__()
        self.layer3, self.linear = nn.Identity(), resnet.linear

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.layer3(x).mean((2, 3)))


@cache
def digits() -> Pool:
    x, y = (torch.tensor(array) for array in load_digits(return_X_y=True))
    turn = torch.from_numpy(np.random.default_rng(SEED).permutation(len(x)))
    x, y = (x[turn] / 16).float(), y[turn]
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
def cifar(folder: Path) -> Pool:
    """What `layer3` gives for each image, once for all deals."""
    resnet, (x, y) = resnet20(folder), read_split(folder, "test")
    given = []
    handle = resnet.layer3.register_forward_hook(lambda *called: given.append(called[-1]))
    for batch in x.split(250):
        resnet(batch)
    handle.remove()
    return Pool(AfterLayer3(resnet), ur.Layer("layer3", axis=1), torch.cat(given), y)


@pytest.fixture(
    scope="module",
    params=[pytest.param("digits", marks=ON_DIGITS), pytest.param("cifar", marks=ON_CIFAR)],
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
    """p of a Kolmogorov-Smirnov test.

    Spread over the gap below each value that it can take, p is uniform if its own test is right.
    """
    spread = np.array(p) - np.random.default_rng(SEED).random(DEALS) / (RESPLITS + 1)
    return float(stats.kstest(spread, "uniform").pvalue)


@cache
def floors(pool, share) -> dict[str, np.ndarray]:
    """The columns of all deals' floors, (deal, kind)."""
    frames = [analysed(pool, deal, share).floors().loc[KINDS] for deal in range(DEALS)]
    return {name: np.stack([frame[name] for frame in frames]) for name in frames[0]}


def agreement(observed, found) -> np.ndarray:
    """p of paired t tests of what is observed with the mean of both floors, (split, kind)."""
    means = (found[f"{split}_noise_floor"] for split in ("train", "test"))
    return np.array([stats.ttest_rel(observed, mean).pvalue for mean in means])


@pytest.mark.parametrize("share", [HALF, MOST])
def test_p_is_uniform_where_nothing_was_learnt_from_either_split(pool, share):
    found = [analysed(pool, deal, share).exchangeability().p for deal in range(DEALS)]
    for kind in ("overfitted", "generalizing", "either"):
        p = np.array([row[kind] for row in found])
        assert uniformity(p) > ALARM, kind
        assert (p <= 0.05).mean() <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / DEALS), kind


@pytest.mark.parametrize("share", [HALF, MOST])
def test_the_floor_is_as_large_as_what_is_observed(pool, share):
    """Halves of B, halves of C and a half of each: all are new samples of one number."""
    found = floors(pool, share)
    assert (agreement(found["observed"], found) > ALARM).all()


@pytest.mark.parametrize("share", [HALF, MOST])
def test_what_is_observed_lies_inside_the_floor(pool, share):
    """In 90 % of the deals or more inside each floor's band; above both, so called, in 5 % or less.

    By the binomial distribution that is in at least 48 and in at most 7 of 60 deals. It is inside
    in 56 and more and called in none, for the mean of 20 draws is held against a band of single
    ones. So these counts find gross errors only: beside floors of other sizes 7 and 5 deals are
    called on the digits, none on CIFAR-10. The comparison of the means finds those.
    """
    found, observed = floors(pool, share), floors(pool, share)["observed"]
    least, most = stats.binom.ppf(ALARM, DEALS, 0.9), stats.binom.ppf(1 - ALARM, DEALS, 0.05)
    assert (least, most) == (48, 7)
    for split in ("train", "test"):
        inside = (found[f"{split}_low"] <= observed) & (observed <= found[f"{split}_high"])
        assert (inside.sum(axis=0) >= least).all(), split
    assert ((observed > found["noise_floor_95"]).sum(axis=0) <= most).all()


def test_the_floor_is_not_that_of_other_sizes(pool):
    """What halves of the smaller C show, beside the floors of larger halves."""
    p = agreement(floors(pool, MOST)["observed"], floors(pool, HALF))
    assert p.min() < RED


def fewer(classes, labels, replicates, seed):
    """New splits whose parts have as many samples as those of the floor."""
    size = draws.half_size(np.stack([np.bincount(mine) for mine in classes]))
    whole = draws.resplits(classes, labels, replicates, seed)
    rng, both = np.random.default_rng(seed), np.concatenate(classes)
    kept = [np.zeros_like(weights) for weights in whole.weights]
    where = [(split, place) for split, mine in enumerate(classes) for place in range(len(mine))]
    for r, part, label in np.ndindex(replicates, 2, labels):
        there = np.concatenate([weights[r, part] for weights in whole.weights])
        for one in rng.permutation(np.flatnonzero((there > 0) & (both == label)))[: size[label]]:
            split, place = where[one]
            kept[split][r, part, place] = 1
    return draws.Draws((kept[0], kept[1]), whole.pairs)


def test_p_is_not_uniform_where_draws_have_other_sizes(pool, monkeypatch):
    """Splits of four to one as they are, beside new splits of the floor's sizes.

    It is 4e-20 on the digits and 2e-8 on CIFAR-10. With as many samples in B as in C the draws are
    nearer to what is observed: 2e-14 and 0.006.
    """
    monkeypatch.setattr(measured, "resplits", fewer)
    asked = replace(ASKED, floors=0)
    found = [analyse(pool, deal, MOST, asked).exchangeability().p for deal in range(DEALS)]
    assert uniformity([row["either"] for row in found]) < RED


def even_draws(pool) -> tuple[list[float], float]:
    """p of splits of four to one beside draws of half and half, and the ratio of their shares."""
    p, small, large = [], [], []
    for deal in range(DEALS):
        most, half = (analysed(pool, deal, share) for share in (MOST, HALF))
        small.append(shares(most.proportions()).mean())
        large.append(shares(half.proportions()).mean())
        other = half.data.resplit_proportion.mean("label").values
        p.append(float(permutation_p(np.array(small[-1]), other[:, 1] + other[:, 2])))
    return p, float(np.mean(small) / np.mean(large))


@ON_DIGITS
def test_p_is_not_uniform_where_draws_are_even_and_the_splits_are_not():
    p, times = even_draws(digits())
    assert times > 1.2
    assert uniformity(p) < RED


@ON_CIFAR
def test_on_cifar_p_does_not_tell_even_draws_from_uneven_splits(shared_data):
    """There four to one hardly changes the share, so p has nothing to see.

    Nor has it with other seeds: 0.75 here; 0.06, 0.11 and 0.25 with seeds 1 to 3.
    """
    p, times = even_draws(cifar(shared_data))
    assert 0.9 < times < 1.1
    assert uniformity(p) > ALARM


def test_p_is_not_uniform_where_the_order_is_not_redone(pool):
    """Every draw ranks the units once, by the first split, as if ranks had no noise.

    On the digits p is then far from uniform. On CIFAR-10, where such draws differ by 4.5 % of the
    units instead of 5.7 %, it is 3e-5 here; with seeds 0 to 9 it was below 0.01 in all ten cases,
    below 0.001 in seven.
    """
    found = []
    for deal in range(DEALS):
        kept = analysed(pool, deal, MOST).data.order.values[:1].repeat(2, axis=0)

        def same(setting, drawn, count, kept=kept):
            return np.broadcast_to(kept, (len(drawn), *kept.shape)).astype(np.int64)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(resample, "_orders", same)
            taxonomy = analyse(pool, deal, MOST, replace(ASKED, floors=0))
        found.append(taxonomy.exchangeability().p["either"])
    assert uniformity(found) < RED


@ON_CIFAR
def test_what_the_layer_gives_stands_for_the_images(shared_data):
    """A deal of the images, through the whole ResNet-20, gives the same evidence."""
    network = Pool(resnet20(shared_data), ur.Layer("layer3"), *read_split(shared_data, "test"))
    whole = analyse(network, 0, MOST, replace(ASKED, floors=0)).data
    kept = analysed(cifar(shared_data), 0, MOST).data
    assert whole.samples.values.tolist() == [[160] * 10, [40] * 10]
    assert whole.attrs["plan"] == kept.attrs["plan"] == "additive"
    np.testing.assert_allclose(whole.score, kept.score, rtol=1e-5)
    np.testing.assert_allclose(whole.loss, kept.loss, rtol=1e-5, atol=1e-6)
    for name in ("order", "role", "resplit_proportion"):
        np.testing.assert_array_equal(whole[name], kept[name])
