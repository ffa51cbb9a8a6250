"""Weights from a file of tensors; no pickle is run."""

from __future__ import annotations

import os
import shlex
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unitroles.errors import InputError
from unitroles.wording import few

_PREFIXES = ("module.", "_orig_mod.")
_INNER = ("state_dict", "model_state_dict", "model")
_CONVERT = (
    "import sys, torch, safetensors.torch as s; "
    "c = torch.load(sys.argv[1], map_location='cpu', weights_only=False); "
    "d = c.state_dict() if hasattr(c, 'state_dict') else c.get('state_dict', c.get('model', c)); "
    "s.save_file({k: v.clone().contiguous() for k, v in d.items()}, sys.argv[2], {'format': 'pt'})"
)


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Fill a model from a safetensors file or from a PyTorch file that holds tensors only.

    Checkpoints keep the tensors under "state_dict", "model_state_dict" or "model"; a prefix that
    data-parallel training or `torch.compile` put before all names is taken off.

    Raises
    ------
    InputError : the file is absent, unreadable or holds Python objects, or does not fit the model.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no weights file {path}; give a safetensors or PyTorch file")
    state = _without_prefix(_tensors(_read(path), path), model)
    own = model.state_dict()
    shapes = [
        f"{name} is {tuple(value.shape)}, the model's {tuple(own[name].shape)}"
        for name, value in state.items()
        if name in own and value.shape != own[name].shape
    ]
    missing, unexpected = [], []
    if not shapes:
        missing, unexpected = model.load_state_dict(state, strict=False)
        tied = {own[name].data_ptr() for name in state if name in own}
        missing = [name for name in missing if own[name].data_ptr() not in tied]
    found = {"": shapes, "it lacks ": missing, "the model has no ": unexpected}
    said = [what + few(names) for what, names in found.items() if names]
    if said:
        remedy = "give weights of this model, or the MODEL they were saved from"
        raise InputError(f"{path} does not fit the model: {', '.join(said)}; {remedy}")


def conversion(path: Path, target: Path) -> str:
    """The way from a file of Python objects that is trusted to one of tensors."""
    files = f"{shlex.quote(str(path))} {shlex.quote(str(target))}"
    return f'if you trust it, convert it once with: python -c "{_CONVERT}" {files}'


def _read(path: Path) -> Any:
    """The content of the file, read without running anything in it."""
    with path.open("rb") as file:
        head = file.read(9)
    try:
        if head[8:] == b"{":  # eight bytes of length, then JSON: safetensors
            from safetensors.torch import load_file

            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the error says it all, and in one line
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a foreign file can make a reader raise anything
        raise InputError(
            f"{path} cannot be read as weights: it is damaged, of another format, or holds Python "
            "objects, which could run code and were not loaded; "
            + conversion(path, path.with_suffix(".safetensors"))
        ) from error


def _tensors(found: Any, path: Path) -> dict[str, Any]:
    kind = type(found).__name__
    if isinstance(found, Mapping):
        found = next((found[n] for n in _INNER if isinstance(found.get(n), Mapping)), found)
        if found and all(isinstance(value, Tensor) for value in found.values()):
            return dict(found)
        kind += f" with {few([str(name) for name in found]) or 'nothing'}"
    remedy = "save the weights with torch.save(model.state_dict(), ...) or safetensors"
    raise InputError(f"{path} holds a {kind}, not tensors by name; {remedy}")


def _without_prefix(state: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    own = model.state_dict()
    for prefix in _PREFIXES * 2:
        if all(n.startswith(prefix) for n in state) and not all(n.startswith(prefix) for n in own):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state
