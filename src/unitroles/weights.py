"""A model, its weights and its data by name, as the command line gives them; no pickle is run."""

from __future__ import annotations

import difflib
import importlib
import os
import shlex
import sys
import traceback
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
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
_FORMS = "DATA is a folder of class folders, file.npz or file.npz::train"


@dataclass(frozen=True)
class Pictures:
    """How pictures become the model's input.

    Parameters
    ----------
    size : folders: the shorter side after resizing, in pixels; then the centre is cropped square.
    scale : uint8 arrays: divide by 255 and put the channels first.
    mean, std : per channel, subtracted and divided by after scaling to 0 ... 1.
    transform : folders: a function of one PIL picture, in place of `size`, `mean` and `std`.
    preset : folders: the transform where none of these is given.
    """

    size: int | None = None
    scale: bool = False
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    transform: Callable[[Any], Any] | None = None
    preset: Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        if (self.mean is None) != (self.std is None):
            raise InputError("--mean and --std belong together; give both or neither")
        if self.std is not None and not all(value > 0 for value in self.std):
            raise InputError(f"--std must be positive, not {self.std}")
        if self.transform is not None and (self.size or self.mean):
            raise InputError("--transform replaces --image-size, --mean, --std; leave these out")


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
        models = _torchvision()
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
    said = f"did you mean {', '.join(near)}?" if near else f"there are {_few(known)}"
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


def _torchvision() -> Any:
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
    return _torchvision().get_model_weights(name).DEFAULT.transforms()


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
    said = [what + _few(names) for what, names in found.items() if names]
    if said:
        remedy = "give weights of this model, or the MODEL they were saved from"
        raise InputError(f"{path} does not fit the model: {', '.join(said)}; {remedy}")


def _few(items: list[str]) -> str:
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
        kind += f" with {_few([str(name) for name in found]) or 'nothing'}"
    remedy = "save the weights with torch.save(model.state_dict(), ...) or safetensors"
    raise InputError(f"{path} holds a {kind}, not tensors by name; {remedy}")


def _without_prefix(state: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    own = model.state_dict()
    for prefix in _PREFIXES * 2:
        if all(n.startswith(prefix) for n in state) and not all(n.startswith(prefix) for n in own):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def load_splits(train: str, test: str, pictures: Pictures) -> tuple[Any, Any, list[str] | None]:
    """Both splits as `unitroles.analyze` takes them, and the class names where they are known.

    The class folders of both splits together, sorted, give the class numbers, so that a class
    missing in one split does not shift the others.

    Parameters
    ----------
    train, test : a folder of class folders, "file.npz" or "file.npz::train", see `load_npz`.

    Raises
    ------
    InputError : the data cannot be read, or an option of `pictures` is needed or has no use.
    """
    specs = {"train": train, "test": test}
    folders = {name: Path(spec) for name, spec in specs.items() if Path(spec).is_dir()}
    if len(folders) == 2 and pictures.scale:
        raise InputError("--scale is for uint8 images in npz files; leave it out for folders")
    if not folders and (pictures.size or pictures.transform):
        raise InputError("--image-size and --transform are for folders; npz files need none")
    inside = [path for folder in folders.values() for path in folder.iterdir() if path.is_dir()]
    classes = sorted({path.name for path in inside if not path.name.startswith(".")})
    found, names = [], {}
    for name, spec in specs.items():
        if name in folders:
            data, names[name] = _folder(folders[name], name, classes, pictures), classes
        else:
            data, names[name] = load_npz(spec, name, pictures)
        found.append(data)
    if names["train"] and names["test"] and names["train"] != names["test"]:
        said = ", ".join(f"{name} classes {_few(names[name])}" for name in specs)
        raise InputError(f"{said}; give both splits the same class names")
    return found[0], found[1], names["train"] or names["test"]


def load_npz(
    spec: str, name: str, pictures: Pictures = Pictures()
) -> tuple[tuple[Tensor, Tensor], list[str] | None]:
    """Inputs, labels and class names of an npz file.

    "file.npz" holds `images` and `labels`, "file.npz::train" `train_images` and `train_labels`;
    `classes` is optional. uint8 images, (N, height, width) or (N, height, width, channels), need
    `pictures.scale`; other arrays are taken as they are, float64 as float32.

    Raises
    ------
    InputError : no such file or array, or an array that holds something else than numbers.
    """
    file, _, split = spec.partition("::")
    if not zipfile.is_zipfile(file):
        what = f"{file} is no npz file" if Path(file).is_file() else f"there is no file {file}"
        raise InputError(f"the {name} data cannot be read: {what}; {_FORMS}")
    keys = [f"{split}_{part}" if split else part for part in ("images", "labels")]
    with np.load(file, allow_pickle=False) as arrays:
        absent = [key for key in keys if key not in arrays.files]
        if absent:
            splits = [k.removesuffix("_images") for k in arrays.files if k.endswith("_images")]
            near = "".join(f", or give {file}::{other}" for other in splits if other != split)
            raise InputError(
                f"{file} has no {' and no '.join(map(repr, absent))} for the {name} data; it holds "
                f"{', '.join(arrays.files) or 'nothing'}; add what is missing{near}"
            )
        images, labels = (_array(arrays, key, file) for key in keys)
        classes = _array(arrays, "classes", file) if "classes" in arrays.files else None
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise _wrong(labels, f"{keys[1]!r} in {file}", "one whole number per sample, from 0")
    inputs = _scaled(images, keys[0], file, pictures)
    names = None if classes is None else classes.ravel().astype(str).tolist()
    return (inputs, torch.from_numpy(labels.astype(np.int64))), names


def _array(arrays: Any, key: str, file: str) -> np.ndarray:
    try:
        return arrays[key]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"{key!r} in {file} cannot be read ({first_line(error)}); save it again with "
            "numpy.savez as an array of numbers (classes: of texts), not of Python objects"
        ) from error


def _wrong(array: np.ndarray, what: str, expected: str) -> InputError:
    return InputError(
        f"{what} is {array.dtype} of shape {array.shape}, expected {expected}; store it so"
    )


def _scaled(images: np.ndarray, key: str, file: str, pictures: Pictures) -> Tensor:
    what = f"{key!r} in {file}"
    if images.ndim < 2 or images.dtype.kind not in "iuf":
        raise _wrong(images, what, "numbers of shape (samples, ...)")
    if images.dtype != np.uint8:
        if pictures.scale or (pictures.mean and not pictures.size):
            raise InputError(
                f"{what} is {images.dtype} and taken as it is; leave --scale, --mean, --std out"
            )
        kind = np.float32 if images.dtype == np.float64 else images.dtype.newbyteorder("=")
        return torch.from_numpy(images.astype(kind))
    if not pictures.scale:
        raise InputError(
            f"{what} is uint8; give --scale to divide it by 255 (and --mean and --std if the model "
            "was trained so), or store floats exactly as in training"
        )
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] > 4 >= images.shape[1]):
        raise _wrong(images, what, "(samples, height, width) or (..., channels) for --scale")
    channels_last = torch.from_numpy(images if images.ndim == 4 else images[..., None])
    scaled = channels_last.movedim(3, 1).to(torch.float32, memory_format=torch.contiguous_format)
    return _normalized(scaled.div_(255), pictures, what)


def _normalized(images: Tensor, pictures: Pictures, what: str) -> Tensor:
    if pictures.mean is None or pictures.std is None:
        return images
    channels = images.shape[-3]
    if {len(pictures.mean), len(pictures.std)} - {1, channels}:
        raise InputError(f"{what} have {channels} channels; give --mean and --std one value each")
    mean, std = (torch.tensor(v)[:, None, None] for v in (pictures.mean, pictures.std))
    return images.sub_(mean).div_(std)


def _folder(folder: Path, name: str, classes: list[str], pictures: Pictures) -> Any:
    _torchvision()
    from torchvision.datasets import ImageFolder
    from torchvision.datasets.folder import default_loader

    if not classes:
        raise InputError(f"the {name} folder {folder} holds no class folders; {_FORMS}")

    class ClassFolders(ImageFolder):
        def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
            return classes, {label: number for number, label in enumerate(classes)}

    def read(path: str) -> Any:
        try:
            return default_loader(path)
        except (OSError, SyntaxError, ValueError) as error:
            what = f"{path} cannot be read as a picture ({first_line(error)})"
            raise InputError(f"{what}; repair or remove it") from error

    return ClassFolders(folder, _transform(pictures, folder), loader=read, allow_empty=True)


def _transform(pictures: Pictures, folder: Path) -> Callable[[Any], Any]:
    from torchvision.transforms import v2

    if pictures.transform is not None:
        return pictures.transform
    if pictures.size is None:
        if pictures.preset is None or pictures.mean:
            raise InputError(
                f"how to read the pictures in {folder} for this model is not known; give "
                "--image-size with --mean and --std as in training, or --transform module:function"
            )
        return pictures.preset
    steps = [v2.Resize(pictures.size), v2.CenterCrop(pictures.size), v2.PILToTensor()]
    normalize = v2.Lambda(lambda image: _normalized(image, pictures, "the pictures"))
    return v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True), normalize])
