"""A model, its weights and its data by name, as the command line gives them; no pickle is run."""

from __future__ import annotations

import difflib
import importlib
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unitroles.errors import InputError
from unitroles.probe import first_line

_PREFIXES = ("module.", "_orig_mod.")
_INNER = ("state_dict", "model_state_dict", "model")
_CONVERT = (
    "import sys, torch, safetensors.torch as s; "
    "c = torch.load(sys.argv[1], map_location='cpu', weights_only=False); "
    "d = c.state_dict() if hasattr(c, 'state_dict') else c.get('state_dict', c.get('model', c)); "
    "s.save_file({k: v.clone().contiguous() for k, v in d.items()}, sys.argv[2])"
)


def load_model(spec: str) -> nn.Module:
    """The model that MODEL names.

    Parameters
    ----------
    spec : "torchvision:NAME", without weights, or "package.module:factory", a function without
        arguments that returns the model, or the model itself; found in the current folder too.

    Raises
    ------
    InputError : no such module or attribute, or it gives no `torch.nn.Module`.
    """
    source, _, name = spec.rpartition(":")
    if source == "torchvision":
        models = torchvision()
        if name not in (known := models.list_models(module=models)):
            raise _no_name("torchvision model", name, known)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of an initialisation soon overwritten
            return models.get_model(name, weights=None)
    with _current_folder():
        found = load_object(spec, "MODEL must be torchvision:NAME or package.module:factory")
        try:
            found = found if isinstance(found, nn.Module) or not callable(found) else found()
        except (Exception, SystemExit) as error:
            raise _failed(f"calling {spec} without arguments", error) from error
    if not isinstance(found, nn.Module):
        raise InputError(
            f"{spec} gives {type(found).__name__}, not a torch.nn.Module; name a model or a "
            "function that returns one"
        )
    return found


def load_object(spec: str, form: str) -> Any:
    """The attribute that "package.module:name" names; `form` says what was expected."""
    module_name, _, name = spec.rpartition(":")
    if not module_name or not name:
        raise InputError(f"{form}, not {spec!r}")
    with _current_folder():
        try:
            module = importlib.import_module(module_name)
        except (Exception, SystemExit) as error:
            missing = error.name if isinstance(error, ModuleNotFoundError) else None
            if missing is None or not f"{module_name}.".startswith(f"{missing}."):
                raise _failed(f"importing {module_name}", error) from error
            hint = module_name.removesuffix(".py").replace("/", ".")
            near = f"write {hint}:{name}" if hint != module_name else "run in its folder"
            raise InputError(f"there is no module {module_name!r}; {near}, or install it") from None
    if not hasattr(module, name):
        known = [known for known in dir(module) if not known.startswith("_")]
        raise _no_name(f"attribute of {module_name}", name, known)
    return getattr(module, name)


def _no_name(what: str, name: str, known: list[str]) -> InputError:
    near = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
    said = f"did you mean {', '.join(near)}?" if near else f"there are {few(known)}"
    return InputError(f"there is no {what} {name!r}; {said}")


def _failed(doing: str, error: BaseException) -> InputError:
    """Names the line of the user's code, as no traceback is shown."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return InputError(
        f"{doing} failed: {type(error).__name__}: {first_line(error)} "
        f"({frame.filename}:{frame.lineno}); it must work in Python before it can be analysed"
    )


@contextmanager
def _current_folder() -> Iterator[None]:
    """Import from the current folder first, as `python` itself does."""
    before = list(sys.path)
    sys.path.insert(0, os.getcwd())
    try:
        yield
    finally:
        sys.path[:] = before


def torchvision() -> Any:
    try:
        import torchvision.models
    except ImportError as error:
        raise InputError(
            "torchvision is not installed; install it with: pip install 'unitroles[vision]'"
        ) from error
    return torchvision.models


def preset(spec: str) -> Any:
    """The transform of the default weights of "torchvision:NAME"; None for other models."""
    source, _, name = spec.rpartition(":")
    if source != "torchvision":
        return None
    return torchvision().get_model_weights(name).DEFAULT.transforms()


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


def few(items: list[str]) -> str:
    more = f" and {len(items) - 3} more" if len(items) > 3 else ""
    return ", ".join(items[:3]) + more


def _read(path: Path) -> Any:
    """What the file holds, read without running anything in it."""
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
        target = path.with_suffix(".safetensors")
        files = f"{shlex.quote(str(path))} {shlex.quote(str(target))}"
        raise InputError(
            f"{path} cannot be read as weights: it is damaged, of another format, or holds Python "
            "objects, which could run code and were not loaded; if you trust it, convert it once "
            f'with: python -c "{_CONVERT}" {files}'
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
