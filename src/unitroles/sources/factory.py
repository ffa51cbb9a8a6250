"""Models by name, as the command line gives them, and what is known of their inputs and classes."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from unitroles.errors import InputError, no_name
from unitroles.sources.huggingface import (
    USUAL_SIDE,
    hub_model,
    kind_of,
    label_numbers,
    picture_input,
    token_shape,
    tokens_at_most,
)
from unitroles.sources.vision import (
    timm_input,
    timm_model,
    torchvision_model,
    torchvision_preset,
)
from unitroles.sources.weights import load_weights
from unitroles.wording import first_line

_FORMS = "torchvision:NAME, timm:NAME, hf:FOLDER_OR_NAME or package.module:factory"


def load_model(spec: str, bare: bool = False) -> nn.Module:
    """The model that MODEL names.

    Parameters
    ----------
    spec : "torchvision:NAME" or "timm:NAME", with random weights; "hf:FOLDER_OR_NAME", a folder
        written by `save_pretrained` or a name on the Hugging Face hub, with its weights; or
        "package.module:factory", a function without arguments that returns the model, or the
        model itself, found in the current folder too.
    bare : "hf:": random weights, none are looked for.

    Raises
    ------
    InputError : no such model, module or attribute, or it gives no `torch.nn.Module`.
    """
    source, _, name = spec.partition(":")
    if source == "torchvision":
        return torchvision_model(name)
    if source == "timm":
        return timm_model(name)
    if source == "hf":
        return hub_model(name, bare)
    found = load_object(spec, f"MODEL must be {_FORMS}")
    with _running(f"calling {spec} without arguments"):
        found = found if isinstance(found, nn.Module) or not callable(found) else found()
    if not isinstance(found, nn.Module):
        raise InputError(
            f"{spec} gives {type(found).__name__}, not a torch.nn.Module; name a model or a "
            "function that returns one"
        )
    return found


def trained_model(
    model: str, weights: str | os.PathLike[str] | None = None, weights_key: str | None = None
) -> nn.Module:
    """The model that MODEL names, with its weights.

    Parameters
    ----------
    model : as `load_model` takes it.
    weights : file of weights, see `load_weights`; None where the model comes with them.
    weights_key : which weights in this file.

    Raises
    ------
    InputError : see `load_model` and `load_weights`; or the model needs a file of weights.
    """
    if weights_key is not None and weights is None:
        raise InputError("--weights-key names weights in a file; give the file with --weights")
    network = load_model(model, bare=weights is not None)
    if weights is not None:
        load_weights(network, weights, weights_key)
    elif model.startswith(("torchvision:", "timm:")):
        raise InputError(f"{model} comes without weights; give a file of them with --weights")
    return network


@dataclass(frozen=True)
class Known:
    """The inputs and classes of a model by name, as far as it knows them.

    Parameters
    ----------
    transform : makes the model's input of one PIL picture.
    tokenizer : folder or name of its tokenizer.
    tokens : how many a text may have.
    numbers : class numbers by name; empty where nobody named the classes.
    shape : channels, height and width of its pictures; of an ImageNet picture where it does not
        know.
    """

    transform: Callable[[Any], Any] | None = None
    tokenizer: str | None = None
    tokens: int | None = None
    numbers: Mapping[str, int] = field(default_factory=dict)
    shape: tuple[int, ...] = (3, USUAL_SIDE, USUAL_SIDE)


def known_of(spec: str, model: nn.Module) -> Known:
    """The inputs and classes of MODEL, as far as it knows them.

    Parameters
    ----------
    model : what `load_model` made of `spec`.
    """
    source, _, name = spec.partition(":")
    if source == "hf" and kind_of(model) == "text":
        return Known(None, name, tokens_at_most(model), label_numbers(model))
    if source == "hf":
        transform, shape = picture_input(name, model)
        return Known(transform, numbers=label_numbers(model), shape=shape)
    if source == "timm":
        transform, shape = timm_input(model)
        return Known(transform, shape=shape)
    transform = torchvision_preset(name) if source == "torchvision" else None
    usual = getattr(transform, "crop_size", [USUAL_SIDE])[0]
    side: Any = getattr(model, "image_size", usual)  # of torchvision's transformers
    return Known(transform, shape=(3, side, side))


def example_of(
    spec: str, model: nn.Module, batch: int = 2, shape: tuple[int, ...] | None = None
) -> Any:
    """Random inputs of the form that the model is made for.

    Parameters
    ----------
    batch : how many.
    shape : of one input; of a text, its number of tokens. None takes that of the model's own
        configuration, or of an ImageNet picture.

    Returns
    -------
    Pictures (batch, *shape), or a dict of `input_ids` and `attention_mask` (batch, tokens).
    """
    draw = torch.Generator().manual_seed(0)
    if spec.startswith("hf:") and kind_of(model) == "text":
        if shape is not None and len(shape) != 1:
            raise InputError(f"hf: texts have one size, their number of tokens, not {shape}")
        length, vocabulary = token_shape(model)
        size = (batch, length if shape is None else shape[0])
        tokens = torch.randint(vocabulary, size, generator=draw)
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    sizes = (batch, *(shape or known_of(spec, model).shape))
    try:
        return torch.rand(sizes, generator=draw)
    except (MemoryError, RuntimeError, TypeError) as error:  # the latter of numbers beyond 64 bits
        raise InputError(
            f"inputs of shape {sizes} do not fit into memory; give smaller sizes"
        ) from error


def load_object(spec: str, form: str) -> Any:
    """The attribute that "package.module:name" names; `form` says what was expected."""
    module_name, _, name = spec.rpartition(":")
    if not module_name or not name:
        raise InputError(f"{form}, not {spec!r}")
    with _running(f"importing {module_name}"):
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if not f"{module_name}.".startswith(f"{error.name}."):
                raise
            hint = module_name.removesuffix(".py").replace("/", ".")
            near = f"write {hint}:{name}" if hint != module_name else "run in its folder"
            raise InputError(f"there is no module {module_name!r}; {near}, or install it") from None
    if not hasattr(module, name):
        known = [known for known in dir(module) if not known.startswith("_")]
        raise no_name(f"attribute of {module_name}", name, known)
    return getattr(module, name)


@contextmanager
def _running(doing: str) -> Iterator[None]:
    """The user's code, as `python` itself runs it: imports come from the current folder first.

    Raises
    ------
    InputError : it failed; names the line of the code, as no traceback is shown.
    """
    before = list(sys.path)
    sys.path.insert(0, os.getcwd())
    try:
        yield
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise InputError(
            f"{doing} failed: {type(error).__name__}: {first_line(error)} "
            f"({frame.filename}:{frame.lineno}); it must work in Python before it can be analysed"
        ) from error
    finally:
        sys.path[:] = before
