"""The forecast of what comparing samples with the model takes."""

import time
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import networks
import unitroles as ur
from forcing import layer_of, quietly
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


class Slow(nn.Module):
    """Two milliseconds a sample, all of it after the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.relu, self.out = nn.ReLU(), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        z = self.relu(x)
        time.sleep(0.002 * x.shape[0] if isinstance(x.shape[0], int) else 0)
        return self.out(z)


def test_seconds_count_the_end_of_the_model_and_the_samples_alone():
    torch.manual_seed(0)
    x, y = torch.randn(40, 4), torch.arange(40) % 2
    toy = networks.Toy("slow", Slow(), "relu", 1, -1, (x, y), (x, y))
    found = plan(toy, layer="relu", compute=ur.Compute(batch_size=40, audit=20))
    # Sleep is never shorter than asked for; each alone runs clean and under a mask.
    assert found.body_seconds >= 80 * 0.002
    assert found.alone_seconds >= 20 * 2 * 0.002 * 0.9


def test_samples_that_influence_each_other_are_not_compared():
    toy = networks.toy("mlp")
    norm = nn.BatchNorm1d(toy.train[0].shape[1], track_running_stats=False)
    found = plan(replace(toy, model=nn.Sequential(norm, toy.model)), layer=f"1.{toy.layer}")
    assert (found.compared_samples, found.alone_samples, found.alone_seconds) == (0, 0, 0)
    assert "influence each other" in str(found)
