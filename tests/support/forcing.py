"""Let the engine take a certain plan, and hear what it says on the way."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

import networks
import unitroles as ur
from unitroles.engine import choice
from unitroles.graph.extract import CannotCut
from unitroles.model.borrow import untouched
from unitroles.model.candidates import resolve
from unitroles.model.forward import form_of
from unitroles.model.trace import Site, Trace, trace
from unitroles.wording import NUMBERING

PLANS = ("additive", "suffix", "full")
REFUSAL = "refused by the test"
BATCH = ur.Compute(batch_size=16)


def refuse(*args: Any, **options: Any) -> Any:
    raise CannotCut(REFUSAL)


def force(patch: pytest.MonkeyPatch, plan: str) -> None:
    """Let no better plan than this be chosen."""
    if plan == "suffix":
        patch.setattr(choice, "recognise", refuse)
    if plan == "full":
        patch.setattr(choice, "export", refuse)


@contextmanager
def forced(plan: str) -> Iterator[None]:
    """As `force`, for as long as the block runs."""
    with pytest.MonkeyPatch.context() as patch:
        force(patch, plan)
        yield


def observe(function: Callable[..., Any], *args: Any, **options: Any) -> tuple[Any, list[str]]:
    """The result without bars, and the texts of the plan warnings on the way."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ur.LayerHint)
        warnings.filterwarnings("ignore", NUMBERING)  # of untrained networks
        warnings.simplefilter("always", ur.PlanWarning)
        found = function(*args, **{"progress": False, "compute": BATCH, **options})
    return found, [str(warning.message) for warning in caught]


def quietly(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """The result without bars; only plan warnings are let pass."""
    return observe(function, *args, **options)[0]


@cache
def one_copy(name: str, dtype: torch.dtype, logit_scale: float = 1.0) -> networks.Toy:
    """A toy that several tests share, none of which may change it: each layer is exported once."""
    toy = networks.toy(name, dtype, logit_scale)
    SHARED.add(toy.model)
    return toy


SHARED: set[nn.Module] = set()


def once_for_shared(export: Callable[..., Any]) -> Callable[..., Any]:
    """An `export` that keeps what it made of shared toys, while they are the same tensors."""
    kept: dict[Any, Any] = {}

    def remembered(model: nn.Module, sites: Sequence[Site], inputs: Any) -> Any:
        if model not in SHARED:
            return export(model, sites, inputs)
        tensors = [*model.parameters(), *model.buffers()]
        made_of = tuple((id(t), t.data_ptr(), t.dtype) for t in tensors)
        layers = tuple((site.path, site.call, site.axis) for site in sites)
        key = (model, made_of, layers, str(form_of(inputs)))
        if key not in kept:
            kept[key] = export(model, sites, inputs)
        return kept[key]

    return remembered


def layer_of(toy: networks.Toy) -> ur.Layer:
    """The layer under test of a toy."""
    return ur.Layer(toy.layer, toy.axis, toy.call)


def analyze_toy(toy: networks.Toy, **options: Any) -> tuple[ur.Taxonomy, list[str]]:
    """The taxonomy of a toy's layer, and the texts of the plan warnings on the way."""
    options = {"layer": layer_of(toy), **options}
    return observe(ur.analyze, toy.model, toy.train, toy.test, **options)


def traced(model: nn.Module, example: Any) -> Trace:
    """A forward of a model that comes back as it was."""
    with untouched(model):
        return trace(model, example)


def find(model: nn.Module, layer: Any, example: Any) -> Site:
    """The layer that a user means."""
    with untouched(model):
        return resolve(model, layer, trace(model, example))
