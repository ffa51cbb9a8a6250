"""A plan that does not equal the definition is caught before the run."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import networks
import unitroles as ur
from forcing import (
    analyze_toy,
    force,
    forced,
    observe,
)
from twins import assert_equals_twin, same, suffix_of, twin
from unitroles.engine import check, choice
from unitroles.engine.suffix import SuffixPlan

pytestmark = pytest.mark.usefixtures("one_thread")


def spoiled(graph, spoil):
    """A graph with `spoil` before its output."""
    wrong = deepcopy(graph)
    (out,) = [node for node in wrong.graph.nodes if node.op == "output"]
    with wrong.graph.inserting_before(out):
        out.args = (wrong.graph.call_function(spoil, (out.args[0],)),)
    wrong.recompile()
    return wrong


def spoil_heads(patch, spoil):
    """Every head that is cut from now on is spoiled."""
    cut = choice.head_after

    def wrong(*args):
        head = cut(*args)
        return replace(head, after=spoiled(head.after, spoil))

    patch.setattr(choice, "head_after", wrong)


# Two samples are compared, under several masks in one call.
SPOILS = {
    "scaled": lambda logits: logits * 1.001,
    "not a number": lambda logits: logits * float("nan"),
    "rows mixed up": lambda logits: logits.roll(1, 0),
    "mask ignored": lambda logits: logits[:2].repeat(len(logits) // 2, 1),
}


ROW_SPOILS = {
    "scaled": lambda rows: rows * 1.001,
    "not a number": lambda rows: rows * float("nan"),
    "rows mixed up": lambda rows: rows.roll(1, 0),
    "mask ignored": torch.zeros_like,
    "one unit forgotten": lambda rows: rows * unit_mask(rows),
}


WRONG = "the exported head differs from the model by"


def unit_mask(rows):
    """All units but that of the largest row."""
    size = rows.flatten(1).abs().amax(1)
    return (size < size.max()).to(rows)[:, None, None]


@pytest.mark.parametrize("spoil", SPOILS)
@pytest.mark.parametrize("name", ["mlp", "residual", "residual_early", "transformer"])
def test_a_wrong_head_is_caught(name, spoil, monkeypatch):
    spoil_heads(monkeypatch, SPOILS[spoil])
    force(monkeypatch, "suffix")
    taxonomy, notes = analyze_toy(same(name))
    assert taxonomy.data.attrs["plan"] == "full"
    (note,) = notes
    assert note.startswith(f"plan full (N+1 runs of the whole model): {WRONG}")
    assert_equals_twin(taxonomy, twin(name), 1e-10)


@pytest.mark.parametrize("spoil", ROW_SPOILS)
@pytest.mark.parametrize("name", ["mlp", "residual", "conv_pool_linear", "transformer"])
def test_a_wrong_running_sum_is_caught(name, spoil, monkeypatch):
    recognise = choice.recognise

    def wrong(*args):
        form = recognise(*args)
        first, *others = form.sums
        return replace(form, sums=(replace(first, add=ROW_SPOILS[spoil](first.add)), *others))

    monkeypatch.setattr(choice, "recognise", wrong)
    taxonomy, notes = analyze_toy(same(name))
    assert taxonomy.data.attrs["plan"] == "suffix"
    (note,) = notes
    assert note.startswith(f"plan suffix, not additive: {WRONG}")
    assert taxonomy.provenance["warnings"] == notes
    assert_equals_twin(taxonomy, twin(name), 1e-10)


def test_where_running_sum_and_head_are_both_wrong_the_definition_is_left(monkeypatch):
    spoil_heads(monkeypatch, SPOILS["scaled"])
    taxonomy, notes = analyze_toy(same("mlp"))
    assert taxonomy.data.attrs["plan"] == "full"
    assert len(notes) == 1
    assert WRONG in notes[0]
    assert_equals_twin(taxonomy, twin("mlp"), 1e-10)


@pytest.mark.parametrize("name", ["mlp", "residual"])
def test_where_a_faster_head_differs_the_plain_one_runs(name, monkeypatch):
    force(monkeypatch, "suffix")
    monkeypatch.setattr(choice, "fast", lambda graph, made: spoiled(graph, SPOILS["scaled"]))
    taxonomy, notes = analyze_toy(same(name))
    assert taxonomy.data.attrs["plan"] == "suffix"
    assert notes == []
    assert_equals_twin(taxonomy, twin(name), 1e-10)


@pytest.mark.parametrize("plan", ["additive", "suffix"])
def test_an_honest_head_is_not_caught(plan, monkeypatch):
    force(monkeypatch, plan)
    spoil_heads(monkeypatch, lambda logits: logits + 0)
    taxonomy, notes = analyze_toy(same("mlp"))
    assert taxonomy.data.attrs["plan"] == plan
    assert notes == []


class Idle(nn.Module):
    """A layer whose output counts `weight` times beside what flows around it."""

    def __init__(self, weight: float | None):
        super().__init__()
        self.hidden = nn.Linear(10, 6)
        self.relu = nn.ReLU()
        self.rest = nn.Linear(6, 4)
        self.around = nn.Linear(10, 4)
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.rest(self.relu(self.hidden(x)))
        return self.around(x) if self.weight is None else self.around(x) + self.weight * hidden


@pytest.mark.parametrize(
    ("weight", "plan"), [(0.0, "additive"), (1e-9, "additive"), (None, "full")]
)
def test_a_layer_without_influence_is_a_finding(weight, plan):
    torch.manual_seed(0)
    toy = networks.toy("mlp")
    taxonomy, notes = observe(ur.analyze, Idle(weight), toy.train, toy.test, layer="relu")
    assert taxonomy.data.attrs["plan"] == plan
    assert sum("its roles mean nothing" in note for note in notes) == 1
    assert any(note.startswith("plan full") for note in notes) == (weight is None)


def test_a_layer_of_small_influence_is_no_finding():
    torch.manual_seed(0)
    toy = networks.toy("mlp")
    _, notes = observe(ur.analyze, Idle(1e-2), toy.train, toy.test, layer="relu")
    assert notes == []


@pytest.mark.parametrize("error", [TypeError, KeyError, ValueError, RuntimeError])
def test_a_head_that_fails_in_any_way_leaves_the_definition(monkeypatch, error):
    def fail(*args):
        raise error("")

    monkeypatch.setattr(choice, "head_after", fail)
    taxonomy, notes = analyze_toy(same("mlp"))
    assert taxonomy.data.attrs["plan"] == "full"
    assert len(notes) == 1
    np.testing.assert_allclose(taxonomy.data.loss, twin("mlp").loss, rtol=0, atol=1e-10)


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(10, 8)
        self.rest = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(nn.functional.dropout(self.hidden(x).relu(), 0.5, training=True))


def test_a_model_that_is_random_in_evaluation_mode_is_refused():
    x, labels = torch.randn(24, 10), torch.arange(24) % 4
    with pytest.raises(ur.InputError, match="other logits each time.*take the randomness out"):
        ur.analyze(Noisy(), (x[:12], labels[:12]), (x[12:], labels[12:]), layer="hidden")


class Closed(nn.Module):
    """A class masked out by its bias."""

    def __init__(self, closed: float, norm: bool):
        super().__init__()
        torch.manual_seed(0)
        between = nn.LayerNorm(8) if norm else nn.Identity()
        self.net = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), between, nn.Linear(8, 5))
        self.register_buffer("closed", torch.tensor([0.0, 0, 0, 0, closed]))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + self.closed


@pytest.mark.parametrize("plan", ["additive", "suffix"])
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("closed", [float("-inf"), -1e9])
def test_logits_that_mask_a_class_out_are_checked_like_others(closed, norm, plan):
    net = Closed(closed, norm)
    x, labels = torch.randn(24, 10), torch.arange(24) % 4
    splits = (x[:12], labels[:12]), (x[12:], labels[12:])
    with forced(plan):
        taxonomy, notes = observe(ur.analyze, net, *splits, layer="net.1")
    assert (taxonomy.data.attrs["plan"], notes) == (plan, [])
    with torch.no_grad():
        for label in range(4):
            mine = labels[:12] == label
            wanted = nn.functional.cross_entropy(net(x[:12][mine]), labels[:12][mine]).item()
            found = taxonomy.data.loss.sel(split="train", label=label, retrieved=8).item()
            assert found == pytest.approx(wanted, abs=1e-5)


def test_the_check_runs_several_masks_in_one_call(monkeypatch):
    plan, _, definition = suffix_of("mlp", budget=1)
    seen = []
    run = SuffixPlan.run

    def watched(*args, **options):
        for part, logits in run(*args, **options):
            seen.append(len(logits))
            yield part, logits

    monkeypatch.setattr(SuffixPlan, "run", watched)
    assert check.self_check(plan, definition).agrees
    assert max(seen) == 2
