"""What `layers` says of plan, cost and memory, against what an analysis would do."""

from importlib import import_module

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import networks
import unitroles as ur
from forcing import traced
from unitroles.curves.store import row_bytes
from unitroles.engine import choice
from unitroles.engine.choice import choose_plans
from unitroles.graph.flops import Operations
from unitroles.graph.ops import ROWS
from unitroles.heads import additive
from unitroles.heads.head import Head
from unitroles.model.borrow import untouched
from unitroles.model.candidates import candidates
from unitroles.model.forward import Precision
from unitroles.model.trace import find_site
from unitroles.options import Layer
from unitroles.report import text
from unitroles.rewrite.export import Exported, export

NAMES = sorted(networks.TOYS)
survey = import_module("unitroles.cost.layers")

pytestmark = pytest.mark.usefixtures("one_thread")


def rows(model: nn.Module, example: Tensor) -> dict[str, pd.Series]:
    """The rows of `layers` by the name of the layer."""
    return {row.layer: row for _, row in ur.layers(model, example).iterrows()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_every_layer_is_listed_with_the_plan_and_the_bytes_of_an_analysis(name, dtype):
    toy = networks.toy(name, dtype)
    found = rows(toy.model, toy.train[0][:2])
    seen = traced(toy.model, toy.train[0][:2])
    sites = [
        find_site(toy.model, Layer(call.path), seen.calls, 2) for call in candidates(seen.calls, 2)
    ]
    with untouched(toy.model):
        choices = choose_plans(toy.model, sites, seen, 2**30, Precision(torch.device("cpu")))
        kept = [row_bytes(choice.plan.example) for choice in choices]
    assert list(found) == [site.path for site in sites]
    for row, chosen, count in zip(found.values(), choices, kept, strict=True):
        assert (row["plan"], row.reason) == (chosen.plan.name, chosen.plan.reason)
        assert row.bytes_per_sample == count


def test_all_three_plans_and_both_kinds_of_sums_occur_among_them():
    plans = [rows(networks.toy(n).model, networks.toy(n).train[0][:2]) for n in NAMES]
    found = [row for by_layer in plans for row in by_layer.values()]
    assert {row["plan"] for row in found} >= {"additive", "suffix"}
    reasons = {row.reason for row in found if row["plan"] == "additive"}
    assert len(reasons) == 3  # folded, folded with a norm, not folded


def test_the_cost_of_a_running_sum_counts_the_sum_and_what_follows():
    toy = networks.toy("mlp")
    found = rows(toy.model, toy.train[0][:2])
    first, second, third = 10 * 12, 12 * 8, 8 * 4
    whole = first + second + third
    # The pass, the sum over 12 units, the last product for every n, and the swapped sets.
    deep = 1 + (second + 13 * third + second + third) / whole
    # The pass, the sum of logits over 8 units, and the swapped sets.
    folded = 1 + (8 * 4 + third) / whole
    for layer, cost in {"0": deep, "1": deep, "2": folded, "3": folded}.items():
        assert found[layer]["plan"] == "additive"
        assert found[layer].cost == pytest.approx(cost, abs=0.006)


def convolutions() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )


def test_the_cost_of_sums_in_windows_counts_what_comes_after_the_moved_cut():
    found = rows(convolutions(), torch.randn(2, 1, 6, 6))
    first, second, third = 36 * 9 * 4, 9 * 9 * 4 * 6, 6 * 3
    whole = first + second + third
    for layer in ("0", "1", "2"):
        assert found[layer]["plan"] == "additive"
        sums = (second + 5 * third) / whole  # and the swapped sets
        assert found[layer].cost == pytest.approx(1 + sums + (second + third) / whole, abs=0.006)
        assert found[layer].bytes_per_sample == 4 * 4 * 3 * 3  # after the pool
    for layer in ("3", "4", "5", "6"):
        assert found[layer]["plan"] == "additive"
        assert found[layer].cost == pytest.approx(1, abs=0.02)
        assert found[layer].bytes_per_sample == 4 * 6


class Depthwise(nn.Module):
    """A convolution that keeps units apart, before one that mixes them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.act = nn.Conv2d(1, 5, 1), nn.ReLU()
        self.apart = nn.Conv2d(5, 5, 3, padding=1, groups=5)
        self.mixing = nn.Conv2d(5, 4, 3, padding=1)
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.mixing(self.apart(self.act(self.stem(x)))).relu().mean((2, 3)))


def test_what_keeps_units_apart_is_not_counted_for_every_mask():
    found = rows(Depthwise(), torch.randn(2, 1, 6, 6))
    stem, apart, mixing, out = 36 * 5, 36 * 9 * 5, 36 * 9 * 5 * 4, 4 * 3
    whole = stem + apart + mixing + out
    cost = 1 + (mixing + 6 * out + mixing + out) / whole
    for layer in ("stem", "act", "apart"):
        assert found[layer].cost == pytest.approx(cost, abs=0.006)


def test_the_cost_of_masked_copies_counts_all_that_follows():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.Softmax(1), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    found = rows(net, torch.randn(2, 6))
    share = (20 + 12) / (30 + 20 + 12)
    assert found["0"]["plan"] == "suffix"
    assert found["0"].cost == pytest.approx(1 + (5 + 2) * share, abs=0.006)


def test_a_silent_layer_that_differs_by_sample_is_kept_too():
    toy = networks.toy("residual")
    found = rows(toy.model, toy.train[0][:2])
    # After the addition of the shortcut an ablated layer still gives the shortcut of each sample.
    assert found["blocks.1.bn2"].bytes_per_sample == 2 * 10 * 4
    assert found["blocks.1.relu"].bytes_per_sample == 10 * 4


class Branching(nn.Module):
    """A forward that depends on the numbers in its input cannot be exported."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(4, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.hidden(x)
        return self.out(hidden if float(x.sum()) > 0 else -hidden)


def test_a_model_that_cannot_be_exported_runs_whole_for_every_mask():
    found = rows(Branching(), torch.randn(2, 4))["hidden"]
    assert (found["plan"], found.cost, found.bytes_per_sample) == ("full", 1 + (7 + 1) + 1, 0)
    assert found.reason.startswith("the forward branches on numbers")


def test_one_layer_that_cannot_be_cut_leaves_the_others_their_plans(monkeypatch):
    real = survey.head_after

    def refuse(exported: Exported, place: int) -> Head:
        if place == 0:
            raise RuntimeError("no such luck\nand more")
        return real(exported, place)

    monkeypatch.setattr(survey, "head_after", refuse)
    toy = networks.toy("mlp")
    found = rows(toy.model, toy.train[0][:2])
    assert (found["0"]["plan"], found["0"].reason) == ("full", "no such luck")
    assert {found[layer]["plan"] for layer in ("1", "2", "3")} == {"additive"}


def test_one_export_serves_all_layers_and_nothing_is_folded(monkeypatch):
    calls = []

    def count(*args):
        calls.append(args)
        return export(*args)

    def never(*args):
        raise AssertionError("folding costs a pass of the weights")

    monkeypatch.setattr(choice, "export", count)
    monkeypatch.setattr(additive, "fold", never)
    toy = networks.toy("transformer")
    found = ur.layers(toy.model, toy.train[0][:2])
    assert len(calls) == 1
    assert "one normalisation" in found.set_index("layer").loc["blocks.1.gelu", "reason"]


@pytest.mark.parametrize("batch", [2, 5])
@pytest.mark.parametrize("name", NAMES)
def test_operations_are_those_of_a_forward(name, batch):
    toy = networks.toy(name)
    example = toy.train[0][:batch]
    with untouched(toy.model):
        counted = Operations().of(export(toy.model, [], example).module)
        # The fused kernel of the processor is not counted.
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            toy.model(example[:ROWS])
    assert counted == counter.get_total_flops() > 0


# --- as text


def table(width: int, monkeypatch) -> tuple[pd.DataFrame, list[str]]:
    monkeypatch.setenv("COLUMNS", str(width))
    softmax = nn.Sequential(convolutions()[:4], nn.Softmax(1), convolutions()[4:])
    frame = ur.layers(softmax, torch.randn(2, 1, 6, 6))
    return frame, text.layer_table(frame).partition("\n\n")[0].splitlines()


@pytest.mark.parametrize("width", [20, 90, 200])
def test_the_table_is_readable_at_any_width(width, monkeypatch):
    frame, lines = table(width, monkeypatch)
    assert max(map(len, lines)) <= max(width, 100)
    assert lines[0].split() == [
        "layer",
        "kind",
        "plan",
        "units",
        "axis",
        "cost",
        "ms",
        "memory/sample",
        "why",
    ]
    named = [line.split() for line in lines[1:] if not line.startswith(" ")]
    assert [words[0] for words in named] == frame.layer.tolist()
    for words, (_, row) in zip(named, frame.iterrows(), strict=True):
        assert words[1:5] == [row.kind, row["plan"], str(row.units), str(row.axis)]
        assert float(words[5]) == pytest.approx(row.cost, abs=0.051)
        assert float(words[6].replace(",", "")) == pytest.approx(row.ms_per_sample, rel=0.051)
        assert words[7:9] == [str(row.bytes_per_sample), "B"]
        assert ("*" in words) == row.recommended
    assert (len(lines) > 1 + len(frame)) == (width < 200)  # reasons are wrapped


def test_the_time_is_the_cost_of_what_a_sample_takes(monkeypatch):
    clock = iter([1.0, 1.75, 3.0, 3.5, 7.0, 9.0])
    monkeypatch.setattr(survey.time, "perf_counter", lambda: next(clock))
    frame = ur.layers(convolutions(), torch.randn(2, 1, 6, 6))
    assert frame.ms_per_sample.tolist() == pytest.approx((250 * frame.cost).tolist(), rel=0.01)


def test_only_plans_that_are_not_the_cheapest_are_explained(monkeypatch):
    frame, lines = table(200, monkeypatch)
    for line, plan in zip(lines[1:], frame["plan"], strict=True):
        assert ("units meet in an op that is not linear (softmax)" in line) == (plan == "suffix")
        assert "running sum" not in line
        assert "masked copies" not in line


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (3 * 2**29, "1.5 GiB"),
        (2**52, "4096.0 TiB"),
    ],
)
def test_bytes_are_said_in_the_largest_unit_that_fits(count, said):
    assert text.size(count) == said
