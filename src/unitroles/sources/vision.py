"""Models of torchvision and timm by name, and how they take pictures."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

from torch import nn

from unitroles.errors import InputError, no_name


def needed(module: str, extra: str) -> Any:
    """A module of a package that not every installation has.

    Raises
    ------
    InputError : the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"{module.partition('.')[0]} is not installed; install it with: "
            f"pip install 'unitroles[{extra}]'"
        ) from error


def torchvision_model(name: str) -> nn.Module:
    """A model of torchvision with random weights."""
    models = needed("torchvision.models", "vision")
    if name not in (known := models.list_models(module=models)):
        raise no_name("torchvision model", name, known)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of an initialisation soon overwritten
        return models.get_model(name, weights=None)


def torchvision_preset(name: str) -> Any:
    """The transform of the default weights of a model of torchvision."""
    return needed("torchvision.models", "vision").get_model_weights(name).DEFAULT.transforms()


def timm_model(name: str) -> nn.Module:
    """A model of timm with random weights; a tag, as in "resnet50.a1_in1k", chooses its preset."""
    timm = needed("timm", "vision")
    plain = name.partition(".")[0]
    known = (
        [plain, *timm.list_models(f"{plain}.*", pretrained=True)]
        if timm.is_model(plain)
        else timm.list_models()
    )
    if name not in known:
        raise no_name("timm model", name, known)
    return timm.create_model(name, pretrained=False)


def timm_input(model: nn.Module) -> tuple[Any, tuple[int, ...]]:
    """The transform of the weights that a model of timm is made for; shape of its pictures."""
    data = needed("timm.data", "vision")
    config = data.resolve_model_data_config(model)
    return data.create_transform(**config, is_training=False), tuple(config["input_size"])
