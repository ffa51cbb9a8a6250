"""The forecast of what comparing samples with the model takes."""

import warnings
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import networks
import odd
import unitroles as ur
from forcing import forced, layer_of, quietly
from forecasts import plan

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("audit", [0, 6, "all"])
def test_as_many_samples_are_compared_as_was_said(audit):
    toy = networks.toy("mlp")
    options = {"layer": layer_of(toy), "compute": ur.Compute(audit=audit)}
    found = plan(toy, **options)
    taxonomy = quietly(ur.analyze, toy.model, toy.train, toy.test, **options)
    done = taxonomy.provenance["audit"]
    assert (found.compared_samples, found.alone_samples) == (done["every"], done["alone"])
    assert (found.alone_seconds > 0) == (audit != 0)
    assert found.seconds == pytest.approx(
        found.fixed_seconds + found.body_seconds + found.sweep_seconds + found.alone_seconds
    )


class Counted(nn.Module):
    """Counts the samples that run to its end."""

    def __init__(self) -> None:
        super().__init__()
        self.relu, self.out = nn.ReLU(), nn.Linear(4, 2)
        self.samples = 0

    def forward(self, x: Tensor) -> Tensor:
        z = self.relu(x)
        self.samples += len(x)
        return self.out(z)


def test_seconds_count_the_end_of_the_model_and_the_samples_alone(monkeypatch):
    """Were every sample that runs to the model's end a second."""
    torch.manual_seed(0)
    x, y, model = torch.randn(40, 4), torch.arange(40) % 2, Counted()

    def seconds(work):
        before = model.samples
        work()
        return float(model.samples - before)

    monkeypatch.setattr("unitroles.cost.rates._second", seconds)
    toy = networks.Toy("counted", model, "relu", 1, -1, (x, y), (x, y))
    with forced("suffix"):
        found = plan(toy, layer="relu", compute=ur.Compute(batch_size=40, audit=20))
    assert found.body_seconds == 80
    assert found.alone_seconds == 2 * 20  # clean, and under a mask


@pytest.mark.parametrize("audit", [0, 6])
def test_plan_full_keeps_nothing_to_compare_for_every_sample(audit):
    toy = networks.toy("mlp")
    options = {"layer": layer_of(toy), "compute": ur.Compute(audit=audit)}
    with forced("full"):
        found = plan(toy, **options)
        taxonomy = quietly(ur.analyze, toy.model, toy.train, toy.test, **options)
    done = taxonomy.provenance["audit"]
    assert (found.compared_samples, found.alone_samples) == (done["every"], done["alone"])
    assert found.compared_samples == 0
    said = "6 samples, alone and among others" if audit else "none"
    assert [line for line in str(found).splitlines() if line.endswith(said)]


def test_an_expert_is_forecast_one_by_one():
    model, train, test = odd.odd("ExpertByMask", 0.5, 0), odd.samples(20, 0), odd.samples(16, 9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ur.PlanWarning)
        found = ur.plan(model, train, test, "act")
        taxonomy = ur.analyze(model, train, test, "act", progress=False)
    assert found.plan == taxonomy.provenance["plan"]["name"]
    assert found.reason == taxonomy.provenance["plan"]["reason"]
    assert "one by one" in found.reason


def test_samples_that_influence_each_other_are_not_compared():
    toy = networks.toy("mlp")
    norm = nn.BatchNorm1d(toy.train[0].shape[1], track_running_stats=False)
    found = plan(replace(toy, model=nn.Sequential(norm, toy.model)), layer=f"1.{toy.layer}")
    assert (found.compared_samples, found.alone_samples, found.alone_seconds) == (0, 0, 0)
    assert "depends on the others" in found.reason
