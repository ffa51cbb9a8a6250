"""Where training and test set are both fresh, the exchangeability test rejects as often as it says.

A network trained on part A of the digits; parts B and C, new samples dealt at random, stand in the
places of train and test. Given the pool of new samples the p of each deal are independent.
"""

from functools import cache

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.datasets import load_digits

import unitroles as ur
from unitroles import resample
from unitroles.evidence import permutation_p

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]

DEALS, RESPLITS, SEED = 60, 19, 0
ASKED = ur.Evidence(floors=0, resplits=RESPLITS, confidence=None, controls=False)


@cache
def fresh():
    """A network that fits part A, and samples that it has not seen."""
    digits = load_digits()
    x, y = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    turn = torch.from_numpy(np.random.default_rng(SEED).permutation(len(x)))
    x, y = x[turn], y[turn]
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        model = torch.nn.Sequential(
            torch.nn.Linear(64, 48), torch.nn.ReLU(), torch.nn.Linear(48, 10)
        )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x[:600]), y[:600]).backward()
        optimizer.step()
    return model, x[600:], y[600:]


def dealt(deal, share):
    """Parts B and C, `share` of each class in B."""
    model, x, y = fresh()
    rng = np.random.default_rng([SEED, deal])
    first = np.zeros(len(y), dtype=bool)
    for label in range(10):
        mine = rng.permutation(np.flatnonzero(y.numpy() == label))
        first[mine[: round(share * len(mine))]] = True
    return model, (x[first], y[first]), (x[~first], y[~first])


def shares(frame):
    return frame.overfitted + frame.generalizing


@cache
def analysed(deal, share):
    model, b, c = dealt(deal, share)
    return ur.analyze(model, b, c, layer="1", progress=False, evidence=ASKED)


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_p_is_uniform_where_nothing_was_learnt_from_either_split(share):
    found = [analysed(deal, share).exchangeability().p for deal in range(DEALS)]
    for kind in ("overfitted", "generalizing", "either"):
        p = np.array([row[kind] for row in found])
        # Spread over the gap below each value that p can take, it is uniform if the test is right.
        spread = p - np.random.default_rng(SEED).random(DEALS) / (RESPLITS + 1)
        assert stats.kstest(spread, "uniform").pvalue > 0.01, kind
        assert (p <= 0.05).mean() <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / DEALS), kind


def test_p_is_not_uniform_where_sizes_are_not_kept():
    """Draws of half and half beside splits of four to one."""
    p = []
    for deal in range(DEALS):
        own = shares(analysed(deal, 0.8).proportions()).mean()
        other = analysed(deal, 0.5).data.resplit_share.mean("label").values
        p.append(permutation_p(np.array(own), other[:, 1] + other[:, 2]))
    assert stats.kstest(np.array(p).ravel(), "uniform").pvalue < 1e-3


def test_p_is_not_uniform_where_the_order_is_not_redone(monkeypatch):
    """Every draw ranks the units once, by the first split, as if ranks had no noise."""
    found = []
    for deal in range(DEALS):
        model, b, c = dealt(deal, 0.8)
        kept = analysed(deal, 0.8).data.order.values[:1].repeat(2, axis=0)

        def same(setting, draws, count, kept=kept):
            return np.broadcast_to(kept, (len(draws), *kept.shape)).astype(np.int64)

        with monkeypatch.context() as patch:
            patch.setattr(resample, "_orders", same)
            taxonomy = ur.analyze(model, b, c, layer="1", progress=False, evidence=ASKED)
        found.append(taxonomy.exchangeability().p["either"])
    assert stats.kstest(found, "uniform").pvalue < 1e-3
