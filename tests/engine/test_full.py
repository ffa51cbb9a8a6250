"""Models and batches that only the definition can run, in full."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import networks
import reference
import unitroles as ur
from forcing import (
    find,
    observe,
)
from twins import assert_equals_twin
from unitroles.model.borrow import untouched
from unitroles.model.hooks import run_masked

pytestmark = pytest.mark.usefixtures("one_thread")


class Sharing(nn.Module):
    """A batch norm that looks at its batch also in evaluation."""

    def __init__(self, norm: nn.Module):
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3)
        self.norm = norm
        self.relu = nn.ReLU()
        self.classifier = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        spread = self.relu(self.stem(x)).mean(dim=(2, 3))
        if isinstance(self.norm, nn.BatchNorm2d):
            return self.classifier(self.norm(spread[..., None, None])[..., 0, 0])
        return self.classifier(self.norm(spread))


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.BatchNorm2d])
def test_a_norm_over_the_batch_is_run_in_full_and_said(norm):
    torch.manual_seed(0)
    model = Sharing(norm(6, track_running_stats=False))
    toy = networks.toy("conv_bn_gap")
    taxonomy, notes = observe(ur.analyze, model, toy.train, toy.test, layer="relu")
    assert taxonomy.data.attrs["plan"] == "full"
    assert any("a sample's output depends on the others in its batch" in note for note in notes)
    assert any("results depend on batch_size" in note for note in notes)
    assert taxonomy.provenance["warnings"] == notes


class Branching(nn.Module):
    """The branch depends on the data, so no graph holds the model; the samples stay independent."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(10, 9), nn.ReLU())
        self.rest = nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x)
        if hidden.max() > 1e6:
            raise ValueError("an activation explodes")
        return self.rest(hidden)


def test_a_branch_on_the_data_is_run_in_full_and_equals_the_twin(capfd):
    torch.manual_seed(3)
    toy = networks.toy("mlp", torch.float64)
    model = Branching().double()
    taxonomy, notes = observe(ur.analyze, model, toy.train, toy.test, layer="body.1")
    (note,) = notes
    assert note.startswith("plan full")
    assert "torch.export failed" in note
    assert "\n" not in note
    assert taxonomy.data.attrs["plan"] == "full"
    expected = reference.analyze(model, "body.1", toy.train, toy.test)
    assert len(np.unique(expected.role)) >= 2
    assert_equals_twin(taxonomy, expected, 1e-10)
    assert capfd.readouterr() == ("", "")


class OverTime(nn.Module):
    """Sequences of any length; the sum over time depends on it."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(3, 6)
        self.relu = nn.ReLU()
        self.rest = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.relu(self.hidden(x)).sum(1) / x.shape[1])


class StepByStep(OverTime):
    """Calls its layer once per step, so the last call is another one for another length."""

    def forward(self, x: Tensor) -> Tensor:
        steps = [self.relu(self.hidden(x[:, t])) for t in range(x.shape[1])]
        return self.rest(torch.stack(steps).sum(0))


def sequences(lengths=(9, 3)):
    torch.manual_seed(0)
    rows = [(torch.randn(lengths[i % 2], 3), i % 2) for i in range(16)]
    return torch.utils.data.DataLoader(
        rows,
        collate_fn=lambda some: (
            nn.utils.rnn.pad_sequence([x for x, _ in some], batch_first=True),
            torch.tensor([label for _, label in some]),
        ),
    )


def test_batches_of_another_length_than_the_exported_are_right_and_said():
    torch.manual_seed(0)
    net, data = OverTime(), sequences()
    taxonomy, notes = observe(
        ur.analyze, net, data, data, layer="relu", compute=ur.Compute(batch_size=4)
    )
    assert any("another shape" in note for note in notes)
    for label, length in enumerate((9, 3)):
        rows = torch.stack([x for x, y in data.dataset if y == label])
        wanted = nn.functional.cross_entropy(net(rows), torch.full((8,), label)).item()
        assert rows.shape[1] == length
        found = taxonomy.data.loss.sel(split="train", label=label, retrieved=6).item()
        assert found == pytest.approx(wanted, abs=1e-5)


def test_a_number_of_calls_that_changes_is_refused():
    data, net = sequences(), StepByStep()
    with pytest.raises(
        ur.InputError, match="layer 'relu' is called 3 times for some samples and 9 times"
    ):
        ur.analyze(net, data, data, layer="relu", compute=ur.Compute(batch_size=4))
    site = find(net, "relu", torch.randn(4, 3, 3))
    said = "called 9 times for some samples and 3 times"
    with untouched(net), pytest.raises(ur.InputError, match=said):
        run_masked(net, site, torch.randn(4, 9, 3), torch.ones(4, 6, dtype=torch.bool))


def test_lazy_parameters_are_refused_with_the_remedy():
    pair = (torch.randn(12, 4), torch.arange(12) % 3)
    with pytest.raises(ur.InputError, match="lazy parameters; run one batch"):
        ur.analyze(nn.Sequential(nn.LazyLinear(5), nn.ReLU(), nn.Linear(5, 3)), pair, pair)
