"""Batches as trees of tensors, and what modules take and give in a forward."""

from collections import OrderedDict, UserDict, namedtuple

import pytest
import torch
from torch import nn

from unitroles.errors import InputError
from unitroles.model.calls import Place, watched
from unitroles.model.forward import (
    Precision,
    batch_size,
    each,
    form_of,
    leaves,
    repeated,
    require_rows,
    rows_of,
    tensors,
)

Pair = namedtuple("Pair", "a b")
X, Y = torch.arange(6.0).reshape(3, 2), torch.arange(3)


@pytest.mark.parametrize("kind", [dict, OrderedDict, UserDict])
def test_a_mapping_becomes_a_dict_in_the_order_of_its_names(kind):
    placed = Precision(torch.device("cpu")).place(kind(y=Y, flag=True, x=[X, None], a=Pair(Y, 2)))
    assert type(placed) is dict
    assert list(placed) == ["a", "flag", "x", "y"]
    assert type(placed["x"]) is type(placed["a"]) is tuple
    assert placed["flag"] is True
    assert placed["x"][0] is X
    assert placed["x"][1] is None
    assert [name for name, _ in leaves(placed)] == ["a", "a", "flag", "x", "x", "y"]
    assert [id(tensor) for tensor in tensors(placed)] == [id(Y), id(X), id(Y)]
    assert batch_size(placed) == 3
    assert form_of(placed) == form_of(rows_of(placed, slice(2)))
    assert form_of(placed) != form_of(placed | {"y": Y.float()})


def test_rows_are_taken_and_repeated_and_all_else_stays():
    some = rows_of({"x": X, "y": [Y, "text", 2]}, slice(1, 3))
    assert some["x"].tolist() == [[2, 3], [4, 5]]
    assert some["y"][0].tolist() == [1, 2]
    assert some["y"][1:] == ("text", 2)
    assert repeated((X, 2), 2)[0].tolist() == X.tolist() * 2
    copy = each(X, torch.clone)
    assert copy is not X
    assert torch.equal(copy, X)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (X[:2], r"the inputs of 3 own samples is a tensor of shape \(2, 2\)"),
        ((X, torch.tensor(1)), r"the inputs of 3 own samples is a tensor of shape \(\)"),
        ({"x": X, "z": [Y[:1]]}, r"the column 'z' of 3 own samples is a tensor of shape \(1,\)"),
        ({"x": "text"}, "the column 'x' of the own samples holds str values"),
    ],
)
def test_what_has_no_row_for_every_sample_is_refused(inputs, said):
    require_rows({"x": [X, Y], "n": None, "k": 1.5}, 3, "own")
    with pytest.raises(InputError, match=said):
        require_rows(inputs, 3, "own")


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.add, self.other = nn.Identity(), nn.Identity()

    def forward(self, x):
        return self.other(self.add(self.add(x) + 1) * 2)


def test_calls_are_counted_from_zero_in_every_forward():
    model, met, begun = Twice(), [], []

    def tell(place, value):
        met.append((place.path, place.call, place.argument, value.item()))
        return value * 10 if place == Place("", model.add, 1) else None

    one = torch.ones(())
    with watched(model, [("add", model.add)], tell, lambda: begun.append(len(met))) as calls:
        answers = [model(one * 3).item(), model(one).item()]
        assert calls == {model.add: 2}
    assert answers == [80, 40]
    assert begun == [0, 4]
    assert met == [
        *(("add", 0, 0, 3), ("add", 0, None, 3), ("add", 1, 0, 4), ("add", 1, None, 4)),
        *(("add", 0, 0, 1), ("add", 0, None, 1), ("add", 1, 0, 2), ("add", 1, None, 2)),
    ]
    model(one)
    assert len(met) == 8
