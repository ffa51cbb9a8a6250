"""Naming a layer before its norm and activation gives a hint with the better name."""

import warnings

import pytest
import torch
import torchvision
from torch import Tensor, nn

import unitroles as ur

pytestmark = pytest.mark.usefixtures("one_thread")


class Net(nn.Module):
    def __init__(self, inplace: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace)
        self.second = nn.Conv2d(4, 5, 3)
        self.norm = nn.BatchNorm2d(5)
        self.plain = nn.Conv2d(5, 6, 1)
        self.hidden = nn.Linear(6, 7)
        self.out = nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(self.conv(x)))
        x = torch.relu(self.norm(self.second(x)))
        x = self.plain(x).mean((2, 3))
        return self.out(self.relu(self.hidden(x)))


def hints(model: nn.Module, layer, side: int = 8) -> list[str]:
    x, y = torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(0)), [0, 1, 0, 1]
    split = x, torch.tensor(y)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore", ur.PlanWarning)
        warnings.simplefilter("always", ur.LayerHint)
        found = ur.analyze(model, split, split, layer=layer, progress=False)
    texts = [str(w.message) for w in caught if w.category is ur.LayerHint]
    assert [text for text in found.provenance["warnings"] if text in texts] == texts
    return texts


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(
    ("layer", "better"),
    [
        ("conv", "name layer unitroles.Layer('relu', call=0)"),
        ("bn", "name layer unitroles.Layer('relu', call=0)"),
        ("second", "name layer 'norm'"),
        ("hidden", "name layer 'relu'"),
        ("norm", None),
        ("plain", None),
        (ur.Layer("relu", call=-1), None),
        (None, None),
    ],
)
def test_the_better_name_is_said(layer, better, inplace):
    found = hints(Net(inplace), layer)
    assert len(found) == (better is not None)
    if better is not None:
        assert found[0].endswith(better)
        assert f"layer {layer!r} goes through" in found[0]


def test_the_better_name_has_the_units():
    model = Net(False)
    found = hints(model, "conv")
    layer = eval(found[0].rpartition("name layer ")[2], {"unitroles": ur})
    assert hints(model, layer) == []


@pytest.mark.slow
def test_torchvision_overwrites_its_convolutions():
    torch.manual_seed(0)
    model = torchvision.models.vgg11(num_classes=2)
    (found,) = hints(model, "features.18", side=32)
    assert found.endswith("name layer 'features.19'")
    assert "goes through ReLU" in found
    assert hints(model, "features.19", side=32) == []


class Skip(nn.Module):
    """The ReLU is given the sum, in place, not what the norm gave."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.relu = nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True)
        self.conv, self.bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        h = self.bn(self.conv(x))
        h += x
        return self.out(self.relu(h).mean((2, 3)))


def test_a_sum_in_place_is_not_what_the_norm_gave():
    (found,) = hints(Skip(), "conv")
    assert found.endswith("name layer 'bn'")
    assert hints(Skip(), "bn") == []
    split = torch.randn(4, 3, 8, 8), torch.arange(4) % 2
    with pytest.raises(ur.InputError, match="'weight_l1' needs a module with one row"):
        ur.analyze(Skip(), split, split, "relu", method=ur.Method(score="weight_l1"))


def test_naming_a_module_that_is_called_twice_says_which_call_was_taken():
    (found,) = hints(Net(False), "relu")
    assert found == (
        "layer 'relu' is called 2 times in one forward: its last call, 1 (7 units), is taken. The "
        "others are 0 (4 units); name one with unitroles.Layer('relu', call=...)"
    )
    model = Net(True)
    assert hints(model, model.relu) == hints(model, ur.Layer("relu")) == [found]
    assert hints(model, ur.Layer("relu", call=0)) == hints(model, ur.Layer("relu", call=1)) == []
