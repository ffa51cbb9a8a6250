"""Forwards that write to their values: cut all the same, and to the numbers of the definition."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import unitroles as ur
from forcing import forced, quietly

X = torch.linspace(-2, 2, 40 * 5).reshape(40, 5).sin()
DATA = (X, torch.arange(40) % 3)


class Writing(nn.Module):
    """Two layers with something written between them; `kind` says what."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        return self.last(getattr(self, self.kind)(x, self.second(hidden).relu()))

    def fixed_written_by_samples(self, x: Tensor, value: Tensor) -> Tensor:
        scale, shift = x.new_ones(6), x.new_zeros(6)
        scale[2] = 3.0
        shift.add_(x.mean(0).sum() * 0 + 1)
        return (value + shift) * scale

    def fixed_and_under_another_name(self, x: Tensor, value: Tensor) -> Tensor:
        scale = x.new_ones(6)
        scale[2] = 3.0
        value[:, 1:3].mul_(-1.0)
        return value * scale

    def out_of_a_list(self, x: Tensor, value: Tensor) -> Tensor:
        parts = [value[:, :3] * 1, value[:, 3:] * 2]
        torch._foreach_add_(parts, 1.0)
        return torch.cat(parts, dim=1)

    def added_in_place(self, x: Tensor, value: Tensor) -> Tensor:
        value += 1
        return value.mul_(2)


KINDS = [
    "fixed_written_by_samples",
    "fixed_and_under_another_name",
    "out_of_a_list",
    "added_in_place",
]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_cut_and_equals_the_definition(kind: str) -> None:
    torch.manual_seed(0)
    model = Writing(kind)
    found = quietly(ur.analyze, model, DATA, DATA, layer="first")
    assert found.data.plan in ("additive", "suffix")
    with forced("full"):
        whole = quietly(ur.analyze, model, DATA, DATA, layer="first")
    assert whole.data.plan == "full"
    np.testing.assert_allclose(found.data.loss, whole.data.loss, rtol=0, atol=1e-5)
    assert np.ptp(found.data.loss.values, axis=-1).min() > 1e-3
