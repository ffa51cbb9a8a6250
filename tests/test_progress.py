"""Bars: which ones are drawn, what they say, and that they move."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module

import pytest
import torch

import networks
import unitroles as ur
from forcing import forced, layer_of, quietly
from unitroles import progress
from unitroles.analysis import prepare
from unitroles.progress import track


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error stream is taken for a terminal, and little counts as short."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(progress, "_SHORT", 0.25)
    monkeypatch.setattr(progress, "_OFTEN", 0.01)
    monkeypatch.setattr(progress, "_clock", lambda seconds: f"{seconds:.2f}")


def shown(capsys: pytest.CaptureFixture[str]) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err)


@pytest.mark.usefixtures("terminal")
def test_a_short_stage_has_no_bar_and_a_finished_one_none_any_more(capsys):
    with track(True) as bars:
        short = bars("short one", 4)
        for _ in range(4):
            short(1)
        time.sleep(0.4)
        nothing = shown(capsys)
        long = bars("long one", 4)
        time.sleep(0.5)
        long(1)
        time.sleep(0.2)
        drawn = shown(capsys)
        long(3)
        time.sleep(0.3)
        shown(capsys)
        time.sleep(0.3)
        after = shown(capsys)
    assert "short one" not in nothing + drawn
    assert "long one" in drawn
    assert "long one" not in after


@pytest.mark.usefixtures("terminal")
def test_what_is_left_follows_from_the_mean_pace(capsys):
    """Half of the steps in .6 s, then parts of a step: what is left goes down meanwhile."""
    with track(True) as bars:
        done = bars("stage", 10)
        time.sleep(0.4)
        assert "so far" in shown(capsys)  # no pace is known
        time.sleep(0.2)
        done(4.5)
        done(0.5)
        time.sleep(0.3)
        left = [float(found) for found in re.findall(r"(-?[\d.]+) left", shown(capsys))]
    assert left
    assert max(left) <= 0.6 + 0.5  # a busy machine sleeps longer
    assert left[-1] < left[0] or len(left) == 1


@pytest.mark.usefixtures("terminal")
def test_a_single_step_has_no_pace(capsys):
    with track(True) as bars:
        done = bars("prepare", 1)
        time.sleep(0.6)
        drawn = shown(capsys)
        done(1)
    assert "prepare" in drawn
    assert "so far" in drawn
    assert "left" not in drawn


def test_a_clock_counts_minutes_and_hours():
    assert [progress._clock(s) for s in (-1, 0.6, 59.6, 3725)] == [
        "0:00:00",
        "0:00:01",
        "0:01:00",
        "1:02:05",
    ]


Told = dict[str, tuple[int, list[float]]]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    """The steps of every bar, and what it was told."""
    found: Told = {}

    @contextmanager
    def fake(show: bool) -> Iterator[Callable[[str, int], Callable[[float], None]]]:
        def bar(stage: str, steps: int) -> Callable[[float], None]:
            found[stage] = (steps, [])
            return found[stage][1].append

        yield bar

    monkeypatch.setattr(prepare, "track", fake)
    monkeypatch.setattr(import_module("unitroles.cost.layers"), "track", fake)
    return found


@pytest.mark.parametrize("wanted", ["suffix", "full"])
def test_bars_move_within_a_batch_and_reach_their_end(wanted, told):
    """Of samples that run together, which may take minutes, and with padding and without."""
    toy = networks.wide("wide_conv")
    asked = ur.Evidence(floors=1, resplits=1, bootstrap="full", replicates=2, controls=False)
    with forced(wanted):
        quietly(
            ur.analyze, toy.model, toy.train, toy.test, layer_of(toy), evidence=asked,
            compute=ur.Compute(batch_size=7), sample=ur.Sample(max_per_class=3),
        )  # fmt: skip
    for stage, (steps, done) in told.items():
        assert sum(done) == pytest.approx(steps), stage
    name = f"retrieval {toy.layer}"
    assert {name, "prepare", "activity", "noise floors", "new splits", "bootstrap"} <= set(told)
    if wanted == "full":  # every mask is a call
        assert len(told[name][1]) > len(toy.train[0])
        assert max(told[name][1]) < 1


def test_adaptive_curves_reach_the_end_of_their_bars(told):
    toy = networks.wide("wide_conv")
    with forced("suffix"):
        method = ur.Method(resolution="adaptive")
        quietly(ur.analyze, toy.model, toy.train, toy.test, layer_of(toy), method=method)
    for stage, (steps, done) in told.items():
        assert sum(done) == pytest.approx(steps), stage


def test_bars_of_several_layers_are_numbered(told):
    model = torch.nn.Sequential(
        *(torch.nn.Linear(4, 4), torch.nn.ReLU()) * 2, torch.nn.Linear(4, 2)
    )
    data = torch.randn(12, 4), torch.arange(12) % 2
    quietly(ur.analyze_layers, model, data, data, ["1", "3"])
    assert {"1/2 retrieval 1", "2/2 retrieval 3", "2/2 swapped sets 3", "activity"} <= set(told)
    told.clear()
    quietly(ur.analyze_layers, model, data, data, ["3"])
    assert "retrieval 3" in told


def test_plan_and_layers_tell_that_they_go_on(told):
    toy = networks.toy("mlp")
    ur.plan(toy.model, toy.train, toy.test, "3", progress=True)
    assert told == {"prepare": (1, [1]), "measure": (1, [1])}
    told.clear()
    ur.layers(toy.model, toy.train[0][:2], progress=True)
    assert told == {"layers": (1, [1])}
