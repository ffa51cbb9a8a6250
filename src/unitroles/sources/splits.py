"""Training and test data by name, as the command line gives them."""

from __future__ import annotations

import math
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unitroles.errors import DataWarning, InputError
from unitroles.sources.pictures import ClassFolders, Pictured, class_folders
from unitroles.sources.records import (
    FOR_PICTURES,
    FOR_TABLES,
    DataOptions,
    is_table,
    read_column,
    read_table,
    refuse_huge,
    same_kind,
)
from unitroles.sources.tokens import TableRows, by_number, number_labels, tokenise
from unitroles.sources.vision import needed
from unitroles.wording import few, first_line, size

_FORMS = (
    "DATA is a folder of class folders, file.npz, file.npz::train, file.csv, file.tsv, "
    "file.parquet or a folder written by save_to_disk"
)


def load_splits(
    train: str, test: str, options: DataOptions = DataOptions()
) -> tuple[Any, Any, list[str] | None]:
    """Both splits as `unitroles.analyze` takes them, and the class names where they are known.

    Class folders have the numbers of `options.class_names` or of the model where it names all of
    them; else those of both splits together are sorted, with a warning, so that a class missing in
    one split does not shift the others.
    Tables: see `number_labels`.

    Parameters
    ----------
    train, test : a folder of class folders; "file.npz" or "file.npz::train", see `load_npz`; or a
        table, see `read_table`.

    Raises
    ------
    InputError : the data cannot be read, or an option is needed or has no use, the splits
        differ in kind or classes, or the model lacks a label.
    """
    specs = {"train": train, "test": test}
    kinds = {name: is_table(spec) for name, spec in specs.items()}
    if any(kinds.values()) and not all(kinds.values()):
        table, other = sorted(specs, key=lambda name: not kinds[name])
        raise InputError(
            f"the {table} data {specs[table]} are a table, the {other} data {specs[other]} are "
            "not; give both in the same form"
        )
    if not any(kinds.values()):
        options.refuse(FOR_TABLES, "tables (csv, tsv, parquet); leave it out")
        return _load_pictures(specs, options)
    return _load_tables(specs, options)


def load_groups(train: str, test: str, name: str) -> dict[str, np.ndarray]:
    """Another label of every sample, for `Sample.group_by`: the column or array with that name.

    Parameters
    ----------
    train, test : as for `load_splits`, but for class folders.
    name : of a column; of an array in "file.npz"; in "file.npz::train" without its "train_".

    Returns
    -------
    One array per split, of whole numbers or of texts.
    """
    first, second = same_kind([_group(train, "train", name), _group(test, "test", name)])
    return {"train": first, "test": second}


def _group(spec: str, split: str, name: str) -> list[Any]:
    if is_table(spec):
        return read_column(spec, split, name)
    if Path(spec).is_dir():
        raise InputError(
            f"--group-by {name}: the class folders of {spec} carry no label but their name; "
            "give a table or an npz file with a column or array for it"
        )
    ((what, values), *_) = _arrays(spec, split, [name], f"--group-by {name}").items()
    if values.ndim != 1 or values.dtype.kind not in "iubU":
        raise _wrong(values, what, "one whole number or text per sample")
    return (values.astype(np.int64) if values.dtype.kind == "b" else values).tolist()


def _load_tables(
    specs: Mapping[str, str], options: DataOptions
) -> tuple[Any, Any, list[str] | None]:
    splits = [read_table(spec, name, options) for name, spec in specs.items()]
    pictured = [table for table in splits if table.pictures is not None]
    if len(pictured) == 1:
        raise InputError(
            "one of train and test holds texts, the other pictures; choose columns of one kind "
            "with --text-column or --image-column"
        )
    if pictured:
        if options.tokenizer or options.max_length:
            raise InputError(
                "--tokenizer and --max-length are for texts; leave them out for pictures"
            )
        options.refuse(["scale"], "uint8 images in npz files; leave it out for tables")
        transform = _transform(options, specs["train"])
        samples = [Pictured(table.file, table.pictures, transform) for table in pictured]
    else:
        options.refuse(FOR_PICTURES, "pictures; leave it out for texts")
        samples = tokenise([table.texts or [] for table in splits], options)
    whose = "the model" if options.class_names is None else "--class-names"
    labels, names = number_labels(splits, options.numbers, whose)
    train, test = map(TableRows, samples, labels)
    return train, test, names


def _load_pictures(
    specs: Mapping[str, str], options: DataOptions
) -> tuple[Any, Any, list[str] | None]:
    folders = [Path(spec) for spec in specs.values() if Path(spec).is_dir()]
    if len(folders) == 2:
        options.refuse(["scale"], "uint8 images in npz files; leave it out for folders")
    if not folders and (options.image_size or options.transform):
        raise InputError("--image-size and --transform are for folders; npz files need none")
    classes = sorted({name for folder in folders for name in class_folders(folder)})
    numbers = options.numbers
    absent = [name for name in classes if name not in numbers]
    said = few([repr(name) for name in absent])
    if absent and options.class_names is not None:
        raise InputError(
            f"--class-names has no class {said}, which is a class folder; give the names of all "
            "classes in the order of the model's outputs"
        )
    if classes and not absent:
        classes = by_number(numbers) or []
    (train, names), (test, others) = (
        _folder(Path(spec), name, classes, options)
        if Path(spec).is_dir()
        else load_npz(spec, name, options)
        for name, spec in specs.items()
    )
    if names and others and names != others:
        raise InputError(
            f"train classes {few(names)}, test classes {few(others)}; give both splits the same "
            "class names"
        )
    if absent:  # last, so that an error stands alone
        classes_of_model = f"the model has no class {said}: " if numbers else ""
        order = few([f"{number} = {name}" for number, name in enumerate(classes)])
        warnings.warn(
            f"{classes_of_model}the class folders are numbered in the sorted order of their names, "
            f"{order}. Check that the model was trained so; if not, give the order of its outputs "
            "with --class-names",
            DataWarning,
            stacklevel=2,
        )
    own, given = names or others, options.class_names
    if own is not None and given is not None and own != list(given):
        raise InputError(
            f"the data name their classes {few(own)}, --class-names {few(list(given))}; leave "
            "--class-names out, or give the same names"
        )
    return train, test, own or by_number(numbers)


def load_npz(
    spec: str, name: str, options: DataOptions = DataOptions()
) -> tuple[tuple[Tensor, Tensor], list[str] | None]:
    """Inputs, labels and class names of an npz file.

    "file.npz" holds `images` and `labels`, "file.npz::train" `train_images` and `train_labels`;
    `classes` is optional. uint8 images, (N, height, width) or (N, height, width, channels), need
    `options.scale`; other arrays are taken as they are, float64 as float32.

    Raises
    ------
    InputError : no such file or array, or an array that holds something else than numbers.
    """
    found = _arrays(spec, name, ["images", "labels"], f"the {name} data")
    (what, images), (what_labels, labels), *classes = found.items()
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise _wrong(labels, what_labels, "one whole number per sample, from 0")
    names = classes[0][1].ravel().astype(str).tolist() if classes else None
    inputs = _scaled(images, what, options)
    return (inputs, torch.from_numpy(labels.astype(np.int64))), names


def _arrays(spec: str, split: str, parts: Sequence[str], purpose: str) -> dict[str, np.ndarray]:
    """Arrays of an npz file by name and file: one for each part, then `classes` if it is there.

    Parameters
    ----------
    parts : names without what "file.npz::train" puts before them.
    purpose : of the parts, for messages.
    """
    file, _, inside = spec.partition("::")
    if not zipfile.is_zipfile(file):
        what = f"{file} is no npz file" if Path(file).is_file() else f"there is no file {file}"
        raise InputError(f"the {split} data cannot be read: {what}; {_FORMS}")
    keys = [f"{inside}_{part}" if inside else part for part in parts]
    found = {}
    with np.load(file, allow_pickle=False) as arrays:
        absent = [key for key in keys if key not in arrays.files]
        if absent:
            last = f"_{parts[0]}"
            others = [key.removesuffix(last) for key in arrays.files if key.endswith(last)]
            near = "".join(f", or give {file}::{other}" for other in others if other != inside)
            raise InputError(
                f"{file} has no {' and no '.join(map(repr, absent))} for {purpose}; it holds "
                f"{', '.join(arrays.files) or 'nothing'}; add what is missing{near}"
            )
        for key in [*keys, *({"classes"} & {*arrays.files})]:
            try:
                _check_size(arrays, key, f"{key!r} in {file}")
                found[f"{key!r} in {file}"] = arrays[key]
            except InputError:
                raise
            except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
                raise InputError(
                    f"{key!r} in {file} cannot be read ({first_line(error)}); save it again with "
                    "numpy.savez as an array of numbers (classes: of texts), not of Python objects"
                ) from error
    return found


def _check_size(arrays: Any, key: str, what: str) -> None:
    """Compare what an array of an npz file declares with what is there, before memory is taken.

    Raises
    ------
    InputError : it is larger than the memory of this machine.
    ValueError : it is shorter than it says, or no array.
    """
    names = arrays.zip.namelist()
    entry = f"{key}.npy" if f"{key}.npy" in names else key
    with arrays.zip.open(entry) as file:
        old = np.lib.format.read_magic(file) == (1, 0)
        header = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
        shape, _, kind = header(file)
        held = arrays.zip.getinfo(entry).file_size - file.tell()
    declared = math.prod(shape) * kind.itemsize
    if not kind.hasobject and declared > held:
        raise ValueError(f"it should hold {size(declared)} and holds {size(held)}")
    refuse_huge(declared, what)


def _wrong(array: np.ndarray, what: str, expected: str) -> InputError:
    return InputError(
        f"{what} is {array.dtype} of shape {array.shape}, expected {expected}; store it so"
    )


def _scaled(images: np.ndarray, what: str, options: DataOptions) -> Tensor:
    if images.ndim < 2 or images.dtype.kind not in "iuf":
        raise _wrong(images, what, "numbers of shape (samples, ...)")
    if images.dtype != np.uint8:
        if options.scale or (options.mean and not options.image_size):
            raise InputError(
                f"{what} is {images.dtype} and taken as it is; leave --scale, --mean, --std out"
            )
        kind = np.float32 if images.dtype == np.float64 else images.dtype.newbyteorder("=")
        return torch.from_numpy(images.astype(kind))
    if not options.scale:
        raise InputError(
            f"{what} is uint8; give --scale to divide it by 255 (and --mean and --std if the model "
            "was trained so), or store floats exactly as in training"
        )
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] > 4 >= images.shape[1]):
        raise _wrong(images, what, "(samples, height, width) or (..., channels) for --scale")
    channels_last = torch.from_numpy(images if images.ndim == 4 else images[..., None])
    scaled = channels_last.movedim(3, 1).to(torch.float32, memory_format=torch.contiguous_format)
    return _normalized(scaled.div_(255), options, what)


def _normalized(images: Tensor, options: DataOptions, what: str) -> Tensor:
    if options.mean is None or options.std is None:
        return images
    channels = images.shape[-3]
    if {len(options.mean), len(options.std)} - {1, channels}:
        raise InputError(f"{what} have {channels} channels; give --mean and --std one value each")
    mean, std = (torch.tensor(v)[:, None, None] for v in (options.mean, options.std))
    return images.sub_(mean).div_(std)


def _folder(
    folder: Path, name: str, classes: list[str], options: DataOptions
) -> tuple[Any, list[str]]:
    if not classes:
        raise InputError(f"the {name} folder {folder} holds no class folders; {_FORMS}")
    found = ClassFolders(folder, classes, _transform(options, str(folder)))
    if not found.samples:
        raise InputError(f"the {name} folder {folder} holds no pictures; {_FORMS}")
    return found, classes


def _transform(options: DataOptions, spec: str) -> Callable[[Any], Any]:
    if options.transform is not None:
        return options.transform
    if options.image_size is None:
        if options.known.transform is None or options.mean:
            raise InputError(
                f"how to read the pictures in {spec} for this model is not known; give "
                "--image-size with --mean and --std as in training, or --transform module:function"
            )
        return options.known.transform
    v2 = needed("torchvision.transforms.v2", "vision")
    steps = [v2.Resize(options.image_size), v2.CenterCrop(options.image_size), v2.PILToTensor()]
    normalize = v2.Lambda(lambda image: _normalized(image, options, "the pictures"))
    return v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True), normalize])
