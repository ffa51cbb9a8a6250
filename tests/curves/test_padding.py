"""Padding tokens do not count in scores."""

import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import unitroles as ur
from forcing import BATCH, quietly
from unitroles.analysis.targets import PROBE_SAMPLES
from unitroles.curves.scores import SAMPLE_SCORES, attended, sample_scores, score_sums
from unitroles.report.text import report

pytestmark = pytest.mark.usefixtures("one_thread")


class Tagger(nn.Module):
    """Tokens to a class; padding does not reach the logits."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(11, 6)
        self.hidden = nn.Linear(6, 8)
        self.relu = nn.ReLU()
        self.out = nn.Linear(8, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        tokens = self.relu(self.hidden(self.embed(input_ids))) * attention_mask[..., None]
        mean = tokens.sum(dim=1) / attention_mask.sum(dim=1, keepdim=True)
        return {"logits": self.out(mean)}


def texts(count: int = 18) -> list[Tensor]:
    draw = torch.Generator().manual_seed(2)
    lengths = torch.randint(1, 7, (count,), generator=draw).tolist()
    return [torch.randint(1, 11, (length,), generator=draw) for length in lengths]


def padded(tokens: list[Tensor], length: int) -> list[dict[str, Tensor | int]]:
    rows = []
    for place, text in enumerate(tokens):
        ids, mask = torch.zeros(length, dtype=torch.int64), torch.zeros(length, dtype=torch.int64)
        ids[: len(text)], mask[: len(text)] = text, 1
        rows.append({"input_ids": ids, "attention_mask": mask, "label": place % 3})
    return rows


@pytest.mark.parametrize("score", SAMPLE_SCORES)
def test_scores_are_those_of_the_texts_alone(score):
    model, tokens = Tagger(), texts()
    data = padded(tokens, 8)
    found = quietly(ur.analyze, model, data, data, layer="relu", method=ur.Method(score=score))
    with torch.no_grad():
        alone = [model.relu(model.hidden(model.embed(text))) for text in tokens]
    of_text = {
        "activation_l1": lambda a: a.abs().sum(dim=0),
        "activation_mean": lambda a: a.mean(dim=0),
        "activation_l2": lambda a: a.square().sum(dim=0).sqrt(),
    }[score]
    wanted = [torch.stack([of_text(a) for a in alone[k::3]]).mean(dim=0) for k in range(3)]
    np.testing.assert_allclose(found.data.score[0], torch.stack(wanted), rtol=1e-5)


def test_more_padding_changes_nothing():
    model, tokens = Tagger(), texts()
    short, long = (
        quietly(ur.analyze, model, padded(tokens, n), padded(tokens, n), layer="relu")
        for n in (7, 12)
    )
    for name in ("score", "loss"):
        np.testing.assert_allclose(short.data[name], long.data[name], rtol=1e-5)
    np.testing.assert_array_equal(short.data.role, long.data.role)


def test_the_mean_activation_of_silent_units_is_that_of_real_tokens():
    model, tokens = Tagger(), texts()
    method = ur.Method(baseline="mean")
    short, long = (
        quietly(ur.analyze, model, padded(tokens, n), padded(tokens, n), "relu", method=method)
        for n in (7, 12)
    )
    np.testing.assert_allclose(short.data.loss, long.data.loss, rtol=1e-5)


def test_a_layer_without_tokens_is_not_masked():
    model, data = Tagger(), padded(texts(), 8)
    seen = quietly(ur.analyze, model, data, data, layer="relu")
    everything = [{**row, "attention_mask": torch.ones(8, dtype=torch.int64)} for row in data]
    without = quietly(ur.analyze, model, everything, everything, layer="relu")
    assert not np.allclose(seen.data.score, without.data.score)


@pytest.mark.parametrize(
    ("mask", "shape", "axis", "counts"),
    [
        (torch.tensor([[1, 1, 0], [1, 0, 0]]), (2, 3, 5), 2, True),
        (torch.tensor([[1, 1, 0], [1, 0, 0]]), (2, 5, 3), 1, True),
        (torch.tensor([[True, False, False], [True, True, True]]), (2, 3, 5), 2, True),
        (torch.tensor([[1, 1, 1], [1, 1, 1]]), (2, 3, 5), 2, False),  # nothing to leave out
        (torch.tensor([[1, 1, 0], [1, 0, 0]]), (2, 5), 1, False),
        (torch.tensor([[1, 2, 0], [1, 0, 0]]), (2, 3, 5), 2, True),  # segments
        (torch.tensor([[0.0, -1e9, -1e9], [0.0, 0.0, -1e9]]), (2, 3, 5), 2, True),  # added
        (torch.tensor([[1, 1, 0], [1, 0, 0]])[:, None, None], (2, 3, 5), 2, True),
        (torch.ones(2, 1, 3, 3), (2, 3, 5), 2, False),
        (None, (2, 3, 5), 2, False),
    ],
)
def test_which_masks_count_positions(mask, shape, axis, counts):
    found = attended({"input_ids": torch.zeros(2, 3), "attention_mask": mask}, shape, axis)
    assert (found is not None) == counts
    if counts:
        added = bool((mask < 0).any())
        assert torch.equal(found, (mask == 0 if added else mask > 0).reshape(2, 3))
    assert attended(torch.zeros(shape), shape, axis) is None


def test_a_sample_of_padding_alone_has_no_score():
    activation = torch.ones(2, 3, 4)
    real = torch.tensor([[True, True, False], [False, False, False]])
    values = sample_scores(activation, 2, SAMPLE_SCORES["activation_mean"], real)
    sums = score_sums(values, torch.tensor([0, 1]), 2)
    np.testing.assert_array_equal(sums.total, [[1.0] * 4, [0.0] * 4])


def as_long_as_the_longest(rows):
    """The usual collate function of texts."""
    longest = max(int(row["attention_mask"].sum()) for row in rows)
    cut = [
        {**row, **{k: row[k][:longest] for k in ("input_ids", "attention_mask")}} for row in rows
    ]
    return torch.utils.data.default_collate(cut)


def test_batches_of_other_lengths_run_in_full():
    model, tokens = Tagger(), texts()
    data = padded(tokens, 7)
    loader = torch.utils.data.DataLoader(data, batch_size=2, collate_fn=as_long_as_the_longest)
    found = quietly(
        ur.analyze, model, loader, loader, layer="relu", compute=ur.Compute(batch_size=3)
    )
    whole = quietly(ur.analyze, model, data, data, layer="relu", compute=BATCH)
    for name in ("score", "loss"):
        np.testing.assert_allclose(found.data[name], whole.data[name], rtol=1e-5)


def test_a_result_says_how_many_samples_ran_in_full():
    """Of 17 samples by class those in batches of three as long as the first ones do not."""
    model, data = Tagger(), padded(texts(17), 7)
    long = [int(row["attention_mask"].sum()) for k in range(3) for row in data[k::3]]
    probe = np.linspace(0, 16, PROBE_SAMPLES).astype(int)
    first = max(int(data[place]["attention_mask"].sum()) for place in probe)
    parts = [long[start : start + 3] for start in range(0, 17, 3)]
    wanted = sum(len(part) for part in parts if max(part) != first)
    assert 0 < wanted < 17
    assert max(parts[-1]) != first  # the last batch is padded, and its padding is no sample
    loader = torch.utils.data.DataLoader(data, batch_size=2, collate_fn=as_long_as_the_longest)
    short = [text[:first] for text in texts(17)]
    compute = ur.Compute(batch_size=3)
    with pytest.warns(ur.PlanWarning, match="another shape.*; pad all samples to one size"):
        found = ur.analyze(
            model, loader, padded(short, first), "relu", progress=False, compute=compute
        )
    assert found.data.attrs["plan"] == found.provenance["plan"]["name"] != "full"
    assert found.provenance["plan"]["in_full"] == {"train": wanted, "test": 0}
    (line,) = (line for line in report(found).splitlines() if line.startswith("in full"))
    assert line == (
        f"in full   {wanted} of 17 train and 0 of 17 test samples (N+1 runs of the model): their "
        "batches have another shape than the first"
    )
    alone = quietly(ur.single_unit_ablation, model, loader, "relu", compute=compute)
    assert json.loads(alone.attrs["provenance"])["plan"]["in_full"] == {"data": wanted}
    same = quietly(ur.analyze, model, data, data, layer="relu", compute=compute)
    assert same.provenance["plan"]["in_full"] == {"train": 0, "test": 0}
    assert "in full" not in report(same)


@pytest.mark.parametrize(
    ("mask", "shape"),
    [
        (torch.tensor([[1, 1, 0], [1, 0, 0]]), (2, 4, 5)),
        (torch.tensor([[1, 1, 0], [1, 0, 0]]), (2, 3, 4, 5)),
        (torch.tensor([[1, 1, 0], [1, 0, 0]])[:, None].expand(2, 3, 3), (2, 3, 5)),
    ],
)
def test_padding_that_cannot_be_left_out_is_said(mask, shape):
    with pytest.warns(ur.DataWarning, match="padding counts in its scores"):
        assert attended({"attention_mask": mask}, shape, 2) is None


@pytest.mark.parametrize("cast", [torch.int64, torch.float64])
def test_a_score_of_another_type_leaves_padding_out(cast):
    def count(activation: Tensor) -> Tensor:
        return (activation > 0).sum(dim=2).to(cast)

    model, tokens = Tagger(), texts()
    data = padded(tokens, 8)
    found = quietly(ur.analyze, model, data, data, layer="relu", method=ur.Method(score=count))
    with torch.no_grad():
        alone = [(model.relu(model.hidden(model.embed(t))) > 0).sum(dim=0) for t in tokens]
    wanted = [torch.stack(alone[k::3]).double().mean(dim=0) for k in range(3)]
    np.testing.assert_allclose(found.data.score[0], torch.stack(wanted))


def test_a_score_of_another_shape_is_refused_with_padding_too():
    data = padded(texts(), 8)
    method = ur.Method(score=lambda activation: activation.abs().sum(dim=(0, 2)))
    with pytest.raises(ur.InputError, match="the score function must return"):
        quietly(ur.analyze, Tagger(), data, data, layer="relu", method=method)
