"""How many samples run together where nobody says it."""

import pytest
import torch
from torch import nn

import unitroles as ur
from forcing import observe

pytestmark = pytest.mark.usefixtures("one_thread")

DEFAULT = ur.Compute(audit=0)


def sizes_of(model, inputs, layer, compute):
    """The numbers of samples of all forwards, and the result."""
    seen, labels = [], torch.arange(len(inputs)) % 2
    handle = model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    try:
        found, _ = observe(
            ur.analyze, model, (inputs, labels), (inputs, labels), layer=layer, compute=compute
        )
    finally:
        handle.remove()
    return seen, found


@pytest.mark.parametrize(("side", "together"), [(32, 32), (16, 64), (8, 256)])
def test_images_run_together_as_the_caches_hold_them(side, together):
    """64 channels of float32: 256 KiB, 64 KiB and 16 KiB for the largest value of a sample."""
    net = nn.Sequential(
        nn.Conv2d(1, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(64, 2),
    )  # fmt: skip
    x = torch.randn(300, 1, side, side)
    seen, found = sizes_of(net, x, "1", DEFAULT)
    assert max(seen) == together
    assert found.provenance["samples_per_forward"] == together
    assert found.provenance["options"]["compute"]["batch_size"] is None


def test_what_the_user_says_counts():
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    seen, found = sizes_of(net, torch.randn(300, 4), "1", ur.Compute(audit=0, batch_size=100))
    assert max(seen) == 100
    assert found.provenance["samples_per_forward"] == 100


def test_large_inputs_count_too():
    net = nn.Sequential(
        nn.AvgPool2d(256), nn.Flatten(), nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)
    )
    seen, _ = sizes_of(net, torch.randn(40, 3, 256, 256), "3", DEFAULT)
    assert max(seen) == 32
