"""Columns of samples, and what a model takes of them."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import unitroles as ur
from forcing import quietly

pytestmark = pytest.mark.usefixtures("one_thread")


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))

    def forward(self, pixels: Tensor, scale: Tensor | None = None) -> Tensor:
        return self.net(pixels if scale is None else pixels * scale)


class Anything(Named):
    def forward(self, **columns: Tensor) -> Tensor:
        return self.net(columns["pixels"])


def rows(**more):
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(12, 5, generator=draw)
    return [
        {"pixels": x[i], "label": i % 3, **{k: v(i) for k, v in more.items()}} for i in range(12)
    ]


def loss_of(model, data, **options):
    return quietly(ur.analyze, model, data, data, layer="net.1", **options).data.loss.values


def test_texts_beside_the_input_are_left_out():
    data = rows(name=lambda i: f"sample {i}")
    np.testing.assert_array_equal(loss_of(Named(), data), loss_of(Named(), rows()))
    np.testing.assert_array_equal(loss_of(Anything(), data), loss_of(Named(), rows()))


def test_an_optional_input_is_given():
    data = rows(scale=lambda i: torch.tensor([2.0]))
    assert not np.allclose(loss_of(Named(), data), loss_of(Named(), rows()))


def test_numbers_that_the_model_does_not_take_are_left_out_and_it_is_said():
    data = rows(scal=lambda i: torch.tensor([2.0]))
    with pytest.warns(ur.DataWarning, match="does not take 'scal' of the (train|test) samples"):
        found = ur.analyze(Named(), data, data, layer="net.1", progress=False)
    np.testing.assert_array_equal(found.data.loss, loss_of(Named(), rows()))


def test_a_single_column_is_the_input_whatever_its_name():
    data = [{"image": row["pixels"], "label": row["label"], "id": "a"} for row in rows()]
    np.testing.assert_array_equal(loss_of(Named(), data), loss_of(Named(), rows()))


def test_columns_that_the_model_does_not_know():
    data = [{"a": row["pixels"], "b": row["pixels"], "label": row["label"]} for row in rows()]
    with pytest.raises(ur.InputError, match="columns a, b, but the model's forward takes pixels"):
        ur.analyze(Named(), data, data, layer="net.1")
    texts = [{"text": "a", "label": row["label"]} for row in rows()]
    with pytest.raises(ur.InputError, match="turn texts and pictures into tensors"):
        ur.analyze(Named(), texts, texts, layer="net.1")


def test_lists_of_numbers_are_rows():
    data = [{**row, "pixels": row["pixels"].tolist()} for row in rows()]
    np.testing.assert_allclose(loss_of(Named(), data), loss_of(Named(), rows()), rtol=1e-6)


class Domain(Named):
    def forward(self, pixels: Tensor, domain: Tensor | None = None) -> Tensor:
        return self.net(pixels if domain is None else pixels * (1.0 + domain[:, None]))


def test_a_column_that_groups_is_an_input_too_where_the_model_takes_it():
    data = rows(domain=lambda i: i % 2)
    groups = {name: [row["domain"] for row in data] for name in ("train", "test")}
    by_name, by_array = (
        loss_of(Domain(), data, sample=ur.Sample(group_by=given)) for given in ("domain", groups)
    )
    np.testing.assert_array_equal(by_name, by_array)
    assert not np.allclose(by_name, loss_of(Named(), data, sample=ur.Sample(group_by="domain")))


@pytest.mark.parametrize(
    ("collate", "said"),
    [
        (lambda rows: {"pixels": ["a"] * len(rows)}, "column 'pixels' of the train samples hold"),
        (lambda rows: {"pixels": np.zeros((len(rows), 5))}, "holds ndarray values"),
        (lambda rows: {"pixels": torch.zeros(1, 5)}, "its first axis must count the samples"),
        (lambda rows: {"pixels": torch.tensor(1.0)}, "its first axis must count the samples"),
    ],
)
def test_batches_that_hold_no_rows(collate, said):
    def whole(found):
        return {**collate(found), "label": torch.tensor([row["label"] for row in found])}

    loader = torch.utils.data.DataLoader(rows(), batch_size=4, collate_fn=whole)
    with pytest.raises(ur.InputError, match=said):
        ur.analyze(Named(), loader, loader, layer="net.1")


def test_nothing_in_a_column_that_nobody_needs():
    data = rows(note=lambda i: None if i % 2 else "a")
    np.testing.assert_array_equal(loss_of(Named(), data), loss_of(Named(), rows()))
