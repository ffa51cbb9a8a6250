"""Masked copies through an exported head: inputs of every kind, any number at once."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import reference
import unitroles as ur
from forcing import (
    observe,
)
from twins import suffix_of
from unitroles.engine.masks import Prefixes

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", ["mlp", "relu_twice", "residual_early", "transformer"])
def test_the_budget_only_sets_how_many_masks_run_at_once(name):
    parts = {}
    for budget in (1, 2**30):
        plan, kept, _ = suffix_of(name, budget)
        units = plan.site.units
        order = torch.stack([torch.arange(units).roll(k) for k in range(4)])
        parts[budget] = list(plan.run(kept, Prefixes(order, range(units + 1))))
    assert [part for part, _ in parts[1]] == [slice(k, k + 1) for k in range(units + 1)]
    assert [part for part, _ in parts[2**30]] == [slice(0, units + 1)]
    one_by_one = torch.cat([logits for _, logits in parts[1]])
    torch.testing.assert_close(one_by_one, parts[2**30][0][1], rtol=0, atol=1e-12)


class TwoInputs(nn.Module):
    """Keyword inputs, as transformers take them; the second flows around the layer."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(10, 8), nn.ReLU())
        self.rest = nn.Linear(8, 4)

    def forward(self, first: Tensor, second: Tensor) -> dict[str, Tensor]:
        return {"logits": self.rest(self.hidden(first)) * second}


def test_keyword_inputs_are_cut_in_any_order():
    torch.manual_seed(0)
    net, labels = TwoInputs(), torch.arange(24) % 4
    first, second = torch.randn(24, 10), torch.rand(24, 1) + 0.5

    def rows(*names: str) -> list[dict[str, Tensor]]:
        named = {"first": first, "second": second}
        return [{n: named[n][i] for n in names} | {"labels": labels[i]} for i in range(24)]

    found = []
    for names in (("first", "second"), ("second", "first")):
        data = rows(*names)
        taxonomy, notes = observe(ur.analyze, net, data[:12], data[12:], layer="hidden")
        assert taxonomy.data.attrs["plan"] == "additive"
        assert notes == []
        found.append(taxonomy.data.loss.values)
    np.testing.assert_array_equal(*found)
    wanted = nn.functional.cross_entropy(net(first, second)["logits"][:12:4], labels[:12:4])
    assert found[0][0, 0, -1] == pytest.approx(wanted.item(), abs=1e-5)


class WritesToItsInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(10, 8)
        self.relu = nn.ReLU()
        self.rest = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x -= 0.5
        x *= 2
        return self.rest(self.relu(self.hidden(x)))


def test_a_model_that_writes_to_its_input_gives_the_right_numbers():
    torch.manual_seed(0)
    net = WritesToItsInput()
    x, labels = torch.randn(24, 10), torch.arange(24) % 4
    kept = x.clone()
    chain = nn.Sequential(net.hidden, net.relu, net.rest)
    splits = (x[:12], labels[:12]), (x[12:], labels[12:])
    taxonomy, notes = observe(ur.analyze, net, *splits, layer="relu")
    pairs = [((part - 0.5) * 2, target) for part, target in splits]
    wanted = reference.analyze(chain, "1", *pairs)
    np.testing.assert_allclose(taxonomy.data.loss, wanted.loss, rtol=0, atol=1e-5)
    assert notes == []
    ur.layers(net, x[:4])
    assert torch.equal(x, kept)
    assert not net._forward_pre_hooks


class PicksRows(nn.Module):
    """Reads its own rows by number, as text models do to find the last token."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1)
        self.rest = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x).relu()
        return self.rest(h[torch.arange(x.shape[0]), :, 2, 3])


@pytest.mark.parametrize("size", [1, 2, 16])
@pytest.mark.parametrize("budget", [1, 110_592, 2**31])
def test_row_numbers_count_the_rows_of_every_call(size, budget):
    torch.manual_seed(0)
    net = PicksRows().double()
    x, y = torch.randn(18, 1, 8, 8, dtype=torch.float64), torch.arange(18) % 3
    pairs = (x[:9], y[:9]), (x[9:], y[9:])
    compute = ur.Compute(batch_size=size, memory_budget=budget)
    taxonomy, notes = observe(ur.analyze, net, *pairs, layer="conv", compute=compute)
    wanted = reference.analyze(net, "conv", *pairs)
    assert (taxonomy.data.attrs["plan"], notes) == ("suffix", [])
    np.testing.assert_allclose(taxonomy.data.loss, wanted.loss, rtol=0, atol=1e-10)


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.rest = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.rest(self.hidden(a).relu()) + b


def test_keywords_are_taken_by_name_whatever_their_order_in_a_batch():
    torch.manual_seed(0)
    net = Scaled().double()
    a, b = torch.randn(18, 4, dtype=torch.float64), torch.randn(18, 3, dtype=torch.float64)
    net.rest = nn.Linear(6, 3).double()
    rows = []
    for i in range(18):
        label, named = i % 3, {"a": a[i], "b": b[i]}
        order = ("a", "b") if label == 0 else ("b", "a")
        rows.append({**{name: named[name] for name in order}, "label": label})
    taxonomy, notes = observe(
        ur.analyze, net, rows, rows, layer="hidden", compute=ur.Compute(batch_size=6)
    )
    assert (taxonomy.data.attrs["plan"], notes) == ("additive", [])
    for label in range(3):
        mine = torch.arange(18) % 3 == label
        loss = nn.functional.cross_entropy(net(a[mine], b[mine]), torch.full((6,), label)).item()
        found = taxonomy.data.loss.sel(split="train", label=label, retrieved=6).item()
        assert found == pytest.approx(loss, abs=1e-10)
