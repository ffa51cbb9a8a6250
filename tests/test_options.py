"""Option groups: what they take and how it comes out; what they refuse, in what words."""

from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch

import unitroles as ur


def made(record: type, **given: Any) -> Any:
    """Past the types that are checked in the tests alone."""
    found = record(*["1"] * (record is ur.Layer))
    for name, value in given.items():
        object.__setattr__(found, name, value)
    found.__post_init__()
    return found


@pytest.mark.parametrize(
    ("record", "given", "said"),
    [
        (ur.Sample, {"equalize": "no"}, "Sample: equalize must be True or False, not 'no'"),
        (ur.Sample, {"max_per_class": "3"}, "Sample: max_per_class must be a whole number or None"),
        (ur.Sample, {"classes": {"a"}}, "Sample: classes must be a list of whole numbers or texts"),
        (
            ur.Sample,
            {"classes": ["a", None]},
            "Sample: classes[1] must be a whole number or a text",
        ),
        (ur.Compute, {"memory_budget": 1e9}, "Compute: memory_budget must be a whole number or a"),
        (ur.Compute, {"device": 0}, "Compute: device must be a text or None, not 0"),
        (ur.Layer, {"path": 3}, "Layer: path must be a text, not 3"),
        (ur.Layer, {"axis": "1"}, "Layer: axis must be a whole number or None, not '1'"),
        (ur.Method, {"tolerance": True}, "Method: tolerance must be a number, not True"),
        (ur.Method, {"order": None}, "Method: order must be a text, not None"),
        (ur.Evidence, {"controls": 1}, "Evidence: controls must be True or False, not 1"),
        (ur.Evidence, {"level": "0.9"}, "Evidence: level must be a number, not '0.9'"),
    ],
)
def test_option_groups_refuse_other_kinds(record: type, given: dict[str, Any], said: str) -> None:
    with pytest.raises(ur.InputError) as error:
        made(record, **given)
    assert str(error.value).startswith(said)


def test_numbers_of_numpy_in_option_groups_are_plain() -> None:
    """A saved result holds them as JSON."""
    sample = made(ur.Sample, classes=np.arange(2), max_per_class=np.int16(3), seed=np.uint8(1))
    device = torch.device("cpu")
    compute = made(ur.Compute, device=device, batch_size=np.int64(4), memory_budget=np.int64(1000))
    assert asdict(sample) | {"classes": (0, 1), "max_per_class": 3, "seed": 1} == asdict(sample)
    assert (compute.device, compute.batch_size, compute.bytes) == ("cpu", 4, 1000)
    assert type(compute.batch_size) is type(compute.memory_budget) is int
