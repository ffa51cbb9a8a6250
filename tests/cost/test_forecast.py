"""What is said before an analysis is what the analysis then does."""

import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import networks
import unitroles as ur
from forcing import PLANS, forced, layer_of, quietly
from forecasts import both, layer, plan
from unitroles.cli.app import main
from unitroles.cost.forecast import Forecast
from unitroles.curves import collect
from unitroles.resampling import evidence as measured
from unitroles.resampling import intervals
from unitroles.resampling import recompute as resample
from unitroles.stats import draws
from unitroles.wording import size

pytestmark = pytest.mark.usefixtures("one_thread", "uncompared")

# The norm after the last block is folded; before the first it is not.
CASES = [("mlp", None), ("conv_bn_gap", None), ("residual_early", None), ("transformer", None)]
CASES += [("transformer", "blocks.1.gelu")]


@pytest.mark.parametrize("batch", [7, 256])
@pytest.mark.parametrize("wanted", PLANS)
@pytest.mark.parametrize(("name", "path"), CASES)
def test_the_forecast_counts_what_the_analysis_runs(name, path, wanted, batch):
    with forced(wanted):
        found, taxonomy, seen = both(networks.toy(name), path, compute=ur.Compute(batch_size=batch))
    stored = taxonomy.provenance["plan"]
    assert found.plan == stored["name"] == wanted
    assert found.reason == stored["reason"]
    assert (found.layer, found.units) == (taxonomy.layer, taxonomy.data.sizes["unit"])
    assert found.labels == taxonomy.data.sizes["label"]
    assert found.samples == tuple(taxonomy.data.samples.sum("label").values)
    if found.plan == "full":
        assert seen.rows["model"] == found.body_forwards + found.head_forwards
        assert found.head_forwards == (found.units + 2) * found.body_forwards
    else:
        assert seen.rows["model"] == found.body_forwards
        assert seen.rows["head"] == found.head_forwards
    assert seen.rows["tail"] == found.tail_forwards
    assert (found.tail_forwards > 0) == (found.plan == "additive")
    assert seen.held == found.bytes_cached
    assert list(found.caches) == (seen.where or ["none", "none"])


@pytest.mark.parametrize("wanted", PLANS)
@pytest.mark.parametrize("score", ["weight_l1", "random"])
def test_scores_that_need_no_activations_spare_the_full_plan_a_pass(score, wanted):
    with forced(wanted):
        found, _, seen = both(networks.toy("mlp"), method=ur.Method(score=score))
    full = wanted == "full"
    assert found.body_forwards == (0 if full else 64)  # two last batches are padded
    assert seen.rows["model"] == found.body_forwards + found.head_forwards * full


@pytest.mark.parametrize("wanted", ["additive", "suffix"])
@pytest.mark.parametrize("room", ["both", "train", "neither", "no disk", "train and no disk"])
def test_rows_go_where_the_analysis_puts_them(room, wanted, monkeypatch):
    toy = networks.toy("conv_bn_gap")
    toy = replace(toy, test=tuple(torch.cat([values, values]) for values in toy.test))
    with forced(wanted):
        whole = plan(toy, layer=layer_of(toy)).bytes_cached
        train = whole * len(toy.train[0]) // (len(toy.train[0]) + len(toy.test[0]))
        budget = {"both": whole, "train": train, "train and no disk": whole - 1}.get(room, 1)
        if "no disk" in room:
            monkeypatch.setattr("unitroles.curves.store._DISK_SHARE", 0)
        compute = ur.Compute(batch_size=5, memory_budget=budget)
        found, _, seen = both(toy, compute=compute)
    caches = {
        "both": ("memory", "memory"),
        "train": ("memory", "disk"),
        "neither": ("disk", "disk"),
        "no disk": ("recompute", "recompute"),
        "train and no disk": ("memory", "recompute"),
    }
    assert found.caches == caches[room]
    assert found.cache == caches[room][1]
    assert seen.where == [where for where in found.caches if where != "recompute"]
    assert seen.held == found.bytes_cached
    assert seen.rows["model"] == found.body_forwards
    assert seen.rows["head"] == found.head_forwards
    assert seen.rows["tail"] == found.tail_forwards


def test_the_samples_are_those_of_the_options():
    toy = networks.toy("mlp")
    sample = ur.Sample(classes=[0, 2], max_per_class=3)
    found, taxonomy, seen = both(toy, sample=sample, class_names=["a", "b", "c", "d"])
    assert (found.samples, found.labels) == ((6, 6), 2)
    assert taxonomy.labels == ["a", "c"]
    assert seen.rows["model"] == found.body_forwards == 12
    assert plan(toy).layer == "3"  # the recommended one


class Sleepy(nn.Module):
    """A millisecond for every sample, all of it before the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.relu, self.out = nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(0.001 * x.shape[0] if isinstance(x.shape[0], int) else 0)
        return self.out(self.relu(self.hidden(x)))


@pytest.mark.parametrize("wanted", PLANS)
def test_seconds_are_those_of_the_passes_and_the_masks(wanted):
    torch.manual_seed(0)
    x, y = torch.randn(160, 4), torch.arange(160) % 2
    toy = networks.Toy("sleepy", Sleepy(), "relu", 1, -1, (x[:96], y[:96]), (x[96:], y[96:]))
    with forced(wanted):
        found = plan(toy, layer="relu", compute=ur.Compute(batch_size=32))
    # Sleep is never shorter than asked for; the upper bounds leave room for a busy machine.
    assert 0.160 <= found.evaluation_seconds < 8
    assert 0.160 <= found.body_seconds < 8
    if wanted == "full":
        assert 8 * 0.160 <= found.sweep_seconds < 8 * 0.8
    else:
        assert 0 < found.sweep_seconds < 0.160
    assert found.fixed_seconds > 0
    assert (found.compared_samples, found.alone_samples, found.alone_seconds) == (0, 0, 0)
    assert found.seconds == pytest.approx(
        found.fixed_seconds + found.body_seconds + found.sweep_seconds
    )


def test_rows_that_are_not_kept_cost_two_more_passes(monkeypatch):
    monkeypatch.setattr("unitroles.curves.store._DISK_SHARE", 0)
    x, y = torch.randn(80, 4), torch.arange(80) % 2
    toy = networks.Toy("sleepy", Sleepy(), "relu", 1, -1, (x, y), (x, y))
    found = plan(toy, layer="relu", compute=ur.Compute(batch_size=80, memory_budget=1))
    assert found.cache == "recompute"
    assert found.body_forwards == 3 * 160
    assert found.body_seconds >= 3 * 0.160


def state(model: nn.Module) -> list[Any]:
    hooks = [name for name in vars(model) if name.endswith("hooks")]
    return [
        [(name, value.clone(), value._version) for name, value in model.state_dict().items()],
        [
            (module.training, [len(vars(module)[name]) for name in hooks])
            for module in model.modules()
        ],
        [torch.get_rng_state(), torch.from_numpy(np.random.get_state()[1].astype(np.int64))],
    ]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.mark.parametrize("wanted", PLANS)
@pytest.mark.parametrize("budget", ["2GiB", 1])
def test_nothing_is_kept_and_the_model_is_as_it_was(wanted, budget, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    toy = networks.toy("residual")
    toy.model.train()
    before = state(toy.model)
    with forced(wanted):
        plan(toy, layer=layer_of(toy), compute=ur.Compute(memory_budget=budget))
    assert same(state(toy.model), before)
    assert list(tmp_path.iterdir()) == []
    next(toy.model.parameters()).data.add_(1)
    assert not same(state(toy.model), before)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layer": "rellu"}, "unknown layer 'rellu'"),
        ({"class_names": ["a"]}, "there are 1 class names but label 3 occurs"),
        ({"method": ur.Method(score="l3")}, "unknown score 'l3'"),
        ({"sample": ur.Sample(classes=[9])}, "class 9 is not in the data"),
    ],
)
def test_what_an_analysis_refuses_is_refused_here(options, said):
    toy = networks.toy("mlp")
    with pytest.raises(ur.InputError, match=said):
        plan(toy, **options)


def made(**changes: Any) -> Forecast:
    """Numbers that could be those of a plan."""
    given: dict[str, Any] = {
        "layer": "features.29",
        "units": 512,
        "plan": "suffix",
        "reason": "units meet",
        "samples": (5000, 1000),
        "labels": 10,
        "body_forwards": 6144,
        "head_forwards": 3084000,
        "tail_forwards": 0,
        "compared_samples": 6000,
        "alone_samples": 64,
        "bytes_cached": 3 * 2**20,
        "caches": ("memory", "memory"),
        "evaluation_seconds": 62.0,
        "fixed_seconds": 1.25,
        "body_seconds": 63.0,
        "sweep_seconds": 7300.0,
        "alone_seconds": 4.0,
    }
    return Forecast(**{**given, **changes})


def lines(forecast: Forecast | str) -> dict[str, str]:
    return {line[:14].rstrip(): line[15:] for line in str(forecast).splitlines()}


def test_a_forecast_in_words():
    assert lines(made()) == {
        "layer": "features.29: 512 units, 10 classes",
        "plan": "suffix: units meet",
        "samples": "train 5,000, test 1,000",
        "body": "6,144 samples through the model as far as the layer, or to its end to compare "
        "them",
        "ablation runs": "3,084,000 masked copies through what comes after the layer",
        "comparison": "6,000 samples with the model's own logits, 64 of them also alone",
        "sample storage": "3.0 MiB (memory)",
        "time": "about 2.0 h: 1.2 s to prepare (now spent), 63 s body, 4.0 s samples alone, 2.0 h "
        "ablation runs",
        "evaluate": "62 s for one plain pass over both splits",
    }


@pytest.mark.parametrize(
    ("changes", "row", "said"),
    [
        ({"caches": ("memory", "disk")}, "sample storage", "3.0 MiB (train: memory, test: disk)"),
        ({"caches": ("none", "none"), "bytes_cached": 0}, "sample storage", "nothing"),
        (
            {"caches": ("recompute", "recompute"), "bytes_cached": 0},
            "sample storage",
            "nothing, neither memory nor disk has room: the body runs for every pass",
        ),
        ({"plan": "full"}, "ablation runs", "3,084,000 masked copies through the whole model"),
        (
            {"plan": "additive", "head_forwards": 6000, "tail_forwards": 12000},
            "ablation runs",
            "6,000 masked copies through what comes after the layer; 12,000 rows through what "
            "follows the sum",
        ),
        (
            {"fixed_seconds": 0.02, "body_seconds": 300.0, "sweep_seconds": 4.04},
            "time",
            "about 5 min: 20 ms to prepare (now spent), 5 min body, 4.0 s samples alone, 4.0 s "
            "ablation runs",
        ),
        (
            {"compared_samples": 0, "alone_samples": 0},
            "comparison",
            "none",
        ),
    ],
)
def test_what_differs_between_forecasts_is_said(changes, row, said):
    assert lines(made(**changes))[row] == said


def test_evidence_is_counted():
    """As many samples under all masks as the draws hold, sets that they share not taken off."""
    toy = networks.toy("mlp")
    given = toy.model, toy.train, toy.test, layer_of(toy)
    without = ur.plan(*given)
    assert (without.evidence_sweeps, without.evidence_seconds) == (0, 0)
    assert "evidence" not in lines(without)
    counts = np.stack([np.bincount(split[1]) for split in (toy.train, toy.test)])
    halves = 4 * (counts.min(axis=0) // 2).sum() / counts.sum()
    for asked, sweeps in (
        (ur.Evidence(floors=7, resplits=0, controls=False), 7 * halves),
        (ur.Evidence(floors=0, resplits=5, controls=False), 5),
        (ur.Evidence(floors=0, resplits=0), 3),
        (
            ur.Evidence(floors=0, resplits=0, bootstrap="full", replicates=10, controls=False),
            10 * (1 - np.exp(-1)),
        ),
    ):
        found = ur.plan(*given, evidence=asked)
        assert found.evidence_sweeps == pytest.approx(sweeps)
        assert found.evidence_seconds > 0
        assert lines(found)["evidence"].startswith(f"about {sweeps:.0f} times the ablation runs, ")
    asked = ur.Evidence(floors=4, resplits=3, bootstrap="full", replicates=5, controls=False)
    with forced("full"), warnings.catch_warnings():
        warnings.simplefilter("ignore", ur.PlanWarning)
        whole = ur.plan(networks.toy("mlp").model, *given[1:], evidence=asked)
    assert whole.plan == "full"
    assert whole.evidence_sweeps == 2 * (4 + 3) + 5  # its batches are never cut
    with pytest.raises(ur.InputError, match="evidence compares curves at the same n"):
        ur.plan(*given, method=ur.Method(resolution="adaptive"), evidence=ur.Evidence())
    with pytest.raises(ur.InputError, match="no class has two samples in both splits"):
        ur.plan(*given, sample=ur.Sample(max_per_class=1), evidence=ur.Evidence())


# --- the command line

NETS = """
import torch

def net():
    torch.manual_seed(0)
    layers = torch.nn.Flatten(), torch.nn.Linear(16, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3)
    return torch.nn.Sequential(*layers)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "forecast_nets", raising=False)
    (tmp_path / "forecast_nets.py").write_text(NETS)
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        images = rng.normal(size=(30, 1, 4, 4)).astype(np.float32)
        np.savez(tmp_path / f"{split}.npz", images=images, labels=np.arange(30) % 3)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


ANALYZE = ["analyze", "forecast_nets:net", "--train", "train.npz", "--test", "test.npz"]


@pytest.mark.parametrize("out", [[], ["--out", "old.nc"], ["--out", "nowhere/a.nc"], ["--quiet"]])
def test_a_dry_run_prints_the_forecast_and_writes_nothing(out, here, capsys):
    (here / "old.nc").write_text("mine")
    before = contents(here)
    assert main([*ANALYZE, "--layer", "2", "--dry-run", *out]) == 0
    printed, errors = capsys.readouterr()
    assert errors == ""
    rows = lines(printed)
    assert list(rows) == list(lines(made()))
    assert rows["layer"] == "2: 6 units, 3 classes"
    assert rows["plan"] == "additive: the logits are a running sum over the units"
    assert rows["samples"] == "train 30, test 30"
    assert rows["time"].startswith("about ")
    assert contents(here) == before


@pytest.mark.parametrize(
    "asked",
    [
        ur.Evidence(floors=3, resplits=4, replicates=5, controls=False),
        ur.Evidence(floors=3, resplits=8, bootstrap="full", replicates=2, controls=False),
        ur.Evidence(floors=0, resplits=0, replicates=5, controls=False),
        ur.Evidence(floors=2, resplits=0, bootstrap=None),
        ur.Evidence(floors=0, resplits=0, bootstrap=None),
    ],
)
@pytest.mark.parametrize("order", ["per_split", "train"])
def test_what_evidence_holds_is_counted(asked, order, monkeypatch):
    """Weights as they are drawn, the losses of the largest class, scores of all samples, curves."""
    toy, drawn = networks.toy("mlp"), {}
    for name in ("halves", "resplits", "reweighted"):

        def kept(*given, name=name):
            found = getattr(draws, name)(*given)
            drawn[name] = sum(weights.nbytes for weights in found.weights)
            return found

        monkeypatch.setattr(measured, name, kept)
    by_pair, scores = resample._by_pair, []

    def apart(whole, setting):
        found = by_pair(whole, setting)
        if found is not whole and setting is not None:
            drawn["apart"] = sum(weights.nbytes for weights in found.weights)
        return found

    def weighed(self, label, losses, places):
        weights = 8 * len(losses) * asked.draws
        drawn["losses"] = max(drawn.get("losses", 0), losses.nbytes + weights)
        return weigh(self, label, losses, places)

    weigh = intervals.LossObserver._weigh

    def blocks(measurement, name, draws):
        for block in redone(measurement, name, draws):
            if name == "bootstrap":
                drawn["curves"] = drawn.get("curves", 0) + block.curve.nbytes
            yield block

    redone = measured._redone
    monkeypatch.setattr(measured, "_redone", blocks)
    monkeypatch.setattr(resample, "_by_pair", apart)
    monkeypatch.setattr(intervals.LossObserver, "_weigh", weighed)
    remember = collect._remember

    def remembered(kept, values, stores):
        scores.append(values.nbytes)
        remember(kept, values, stores)

    monkeypatch.setattr(collect, "_remember", remembered)
    method = ur.Method(order=order)
    given = toy.model, toy.train, toy.test, layer(toy, None)
    found = ur.plan(*given, method=method, evidence=asked)
    quietly(ur.analyze, *given, method=method, evidence=asked)
    halves = drawn.get("halves", 0) + drawn.get("apart", 0)
    weights = drawn.get("reweighted", 0) + max(halves, drawn.get("resplits", 0))
    stays = weights + drawn.get("curves", 0)
    assert found.evidence_bytes == stays + drawn.get("losses", 0) + sum(scores)
    said = lines(found)["evidence"]
    assert said.endswith(f"holds {size(found.evidence_bytes)}") == bool(found.evidence_bytes)
    assert said.startswith("from the same ablation runs; ") == (not found.evidence_sweeps)


def test_scores_that_evidence_keeps_take_room_before_the_rows():
    """Rows alone would fit into the budget; with the scores before them they go to the disk."""
    toy = networks.toy("mlp")
    asked = ur.Evidence(floors=1, resplits=0, bootstrap=None, controls=False)
    where = layer(toy, None)
    room = ur.Compute(memory_budget=plan(toy, layer=where).bytes_cached)
    assert plan(toy, layer=where, compute=room).caches == ("memory", "memory")
    found, _, seen = both(toy, compute=room, evidence=asked)
    assert "disk" in found.caches
    # Scores and rows of train, then those of test.
    assert found.caches == tuple(seen.where[1::2])


def test_a_dry_run_counts_the_evidence(here, capsys):
    words = [*ANALYZE, "--layer", "2", "--dry-run", "--evidence", "--floors", "0"]
    for more, times in (([], 23), (["--no-controls"], 20)):
        assert main([*words, *more]) == 0
        assert f"about {times} times the ablation runs" in capsys.readouterr().out


def test_without_a_dry_run_the_output_file_is_asked_for(here, capsys):
    before = contents(here)
    assert main(ANALYZE) == 2
    printed, errors = capsys.readouterr()
    assert printed == ""
    assert errors == "error: Missing option '--out'; see unitroles analyze --help\n"
    assert contents(here) == before


def test_a_dry_run_refuses_what_an_analysis_refuses(here, capsys):
    assert main([*ANALYZE, "--dry-run", "--layer", "9"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown layer '9'")
    assert main([*ANALYZE, "--dry-run", "--classes", "7"]) == 2
    assert capsys.readouterr().err.startswith("error: class 7 is not in the data")
