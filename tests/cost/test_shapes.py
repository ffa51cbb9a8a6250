"""Batches of another shape than the plan was made for are foreseen, and what they take."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import forecasts
import networks
import unitroles as ur
from forcing import forced
from forecasts import Seen
from unitroles.cost import shapes
from unitroles.cost.forecast import Forecast

pytestmark = pytest.mark.usefixtures("one_thread", "uncompared")


class Words(nn.Module):
    """Words to a class by the mean over them; it counts the samples that run through it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.hidden, self.relu = nn.Embedding(9, 4), nn.Linear(4, 6), nn.ReLU()
        self.out = nn.Linear(6, 2)
        self.samples = 0

    def forward(self, words: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            self.samples += len(words)
        return self.out(self.relu(self.hidden(self.embed(words))).mean(dim=1))


def padded(items: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    found = nn.utils.rnn.pad_sequence([text for text, _ in items], batch_first=True)
    return found, torch.tensor([label for _, label in items])


def loader(lengths: list[int]) -> DataLoader:
    """Texts of these lengths, all of one class but for the last half."""
    torch.manual_seed(len(lengths))
    texts = [torch.randint(1, 9, (length,)) for length in lengths]
    half = len(texts) // 2
    items = [(text, int(place >= half)) for place, text in enumerate(texts)]
    return DataLoader(items, batch_size=4, collate_fn=padded)  # pyright: ignore[reportArgumentType]


# In batches of four; of every probe the longest text has five words.
MIXED = loader([5, 5, 5, 5, 3, 3, 3, 3, 5, 4, 2, 1, 7, 7, 7, 7, 5, 5])
ALIKE, SHORT = loader([5] * 10), loader([3] * 6)


def both(train: Any, test: Any) -> tuple[Forecast, ur.Taxonomy, Seen]:
    """The forecast, and the analysis with what it did."""
    toy = networks.Toy("words", Words(), "relu", 2, -1, train, test)
    return forecasts.both(toy, layer="relu", compute=ur.Compute(batch_size=4))


@pytest.mark.parametrize("wanted", ["additive", "suffix"])
@pytest.mark.parametrize("test", [ALIKE, SHORT], ids=["alike", "short"])
def test_what_runs_in_full_is_said_before(test, wanted):
    with forced(wanted):
        found, taxonomy, seen = both(MIXED, test)
    told = taxonomy.provenance["plan"]
    assert found.plan == told["name"] == wanted
    assert dict(zip(("train", "test"), found.other_shape, strict=True)) == told["in_full"]
    assert found.other_shape[0] == 8
    assert found.other_shape[1] == (6 if test is SHORT else 0)
    assert found.looked_at == found.samples
    assert seen.rows["model"] == found.body_forwards + found.full_forwards
    assert found.full_seconds > 0
    assert seen.rows["head"] == found.head_forwards
    assert seen.rows["tail"] == found.tail_forwards
    assert seen.held == found.bytes_cached
    assert (found.caches[1] == "none") == (test is SHORT)
    (line,) = (line for line in str(found).splitlines() if line.startswith("other shapes"))
    train, other = found.other_shape
    assert f"{train} of 18 train and {other} of {found.samples[1]} test samples run in full" in line
    assert "pad all samples to one size" in line
    assert "about" not in line
    assert " in full" in next(line for line in str(found).splitlines() if line.startswith("time"))


def test_nothing_is_said_where_all_shapes_are_one():
    found, taxonomy, seen = both(ALIKE, ALIKE)
    assert (found.other_shape, found.full_forwards, found.full_seconds) == ((0, 0), 0, 0)
    assert taxonomy.provenance["plan"]["in_full"] == {"train": 0, "test": 0}
    assert seen.rows["model"] == found.body_forwards
    assert "full" not in str(found)
    assert "other shapes" not in str(found)


def test_plan_full_has_no_other_shapes():
    with forced("full"):
        found, _, seen = both(MIXED, SHORT)
    assert found.plan == "full"
    assert found.other_shape == (0, 0)
    assert seen.rows["model"] == found.body_forwards + found.head_forwards
    assert "other shapes" not in str(found)


@pytest.mark.parametrize("odd", [True, False])
def test_it_says_when_it_looked_at_a_part(odd, monkeypatch):
    """Of 30 batches of each split at least four."""
    monkeypatch.setattr(shapes, "_LOOK", 0.0)
    data = loader([5] * 60 + [3 if odd else 5] * 60)
    found, _, _ = both(data, data)
    assert found.looked_at == (16, 16)
    said = str(found)
    assert said.endswith("(looked at 16 train and 16 test samples)")
    if not odd:
        assert found.other_shape == (0, 0)
        assert "other shapes   none (looked at" in said
        return
    assert 0 < found.other_shape[0] < 120
    assert f"about {found.other_shape[0]} of 120 train" in said


def test_seconds_are_those_of_whole_runs(monkeypatch):
    """Were every sample that runs through the whole model a second."""
    model = Words()

    def seconds(work):
        before = model.samples
        work()
        return float(model.samples - before)

    monkeypatch.setattr("unitroles.cost.rates._second", seconds)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ur.PlanWarning)
        found = ur.plan(model, MIXED, ALIKE, "relu", compute=ur.Compute(batch_size=4))
    assert found.full_seconds == found.full_forwards == 8 * (found.units + 2)
    assert found.sweep_seconds == 0
    asked = ur.Evidence(floors=0, resplits=3, bootstrap=None, controls=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ur.PlanWarning)
        more = ur.plan(
            model, MIXED, ALIKE, "relu", compute=ur.Compute(batch_size=4), evidence=asked
        )
    # Batches that stay whole run for both parts of every new split.
    assert more.evidence_seconds == 3 * 2 * found.full_seconds
