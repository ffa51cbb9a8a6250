"""Pictures of class folders and tables, all read in one way; what is left out is told."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from unitroles.errors import DataWarning, InputError
from unitroles.sources.vision import needed
from unitroles.wording import few, first_line

_KINDS = "jpg jpeg jpe jfif png ppm pgm pbm pnm bmp dib tif tiff webp gif avif jp2 tga"  # of Pillow
ENDINGS = frozenset(f".{kind}" for kind in _KINDS.split(" "))
_LITTER = ("thumbs.db", "desktop.ini")
"""Files that systems put beside pictures; hidden files that are no pictures count likewise."""
_NO_CLASS = "__MACOSX"
"""A folder that archives made on a Mac unpack to."""
_WHITE = 2**16 - 1
"""In pictures of 16 bits."""
_ORIENTATION = 0x0112
"""The EXIF tag; 1 is upright."""


def read_picture(file: Any, what: str, turned: Callable[[str], None] = lambda what: None) -> Any:
    """A PIL picture in RGB of 8 bits, upright as its EXIF orientation says.

    Grey of 16 bits is brought to 8: 0 stays black, 65535 becomes white.

    Parameters
    ----------
    file : a path, or an open binary file.
    what : the picture, for messages.
    turned : is told of a picture that was not upright.

    Raises
    ------
    InputError : it is damaged, has more pixels than Pillow reads, or no known white.
    """
    image = needed("PIL.Image", "vision")
    with _opened(image, file, what) as picture:
        if picture.getexif().get(_ORIENTATION, 1) != 1:
            turned(what)
        upright = needed("PIL.ImageOps", "vision").exif_transpose(picture)
        if upright.mode == "F" or upright.mode.startswith("I"):
            upright = image.fromarray(_eight_bits(np.asarray(upright), what))
        return upright.convert("RGB")


@contextmanager
def _opened(image: Any, file: Any, what: str) -> Iterator[Any]:
    """One sentence for all that a damaged or a huge file may raise."""
    try:
        with image.open(file) as picture:
            yield picture
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError, MemoryError, image.DecompressionBombError) as error:
        raise InputError(
            f"{what} cannot be read as a picture ({first_line(error)}); repair or remove it"
        ) from error


def _eight_bits(grey: np.ndarray, what: str) -> np.ndarray:
    if grey.dtype.kind == "f" or grey.min() < 0 or grey.max() > _WHITE:
        raise InputError(
            f"{what} holds {grey.dtype} from {grey.min()} to {grey.max()}, and which of these is "
            "white is not known; save it with 8 or 16 bits, or give arrays (file.npz)"
        )
    return np.rint(grey.astype(np.float32) * (255 / _WHITE)).astype(np.uint8)


@dataclass
class _Turned:
    """Tells once of the first picture that its EXIF orientation turns."""

    told: bool = field(default=False, compare=False)

    def __call__(self, what: str) -> None:
        if not self.told:
            self.told = True
            warnings.warn(
                f"{what} lies on its side or head by its EXIF orientation, and is turned upright, "
                "as others like it are. If the training did not turn them (torchvision's "
                "ImageFolder does not), save them without the orientation",
                DataWarning,
                stacklevel=2,
            )


@dataclass(frozen=True)
class Pictured:
    """A column of encoded pictures, decoded and transformed one by one."""

    file: str
    encoded: Any
    transform: Callable[[Any], Any]
    turned: _Turned = field(default_factory=_Turned)

    def __getitem__(self, row: int) -> Any:
        (column,) = self.encoded.column_names
        content = self.encoded[row][column]["bytes"]
        if content is None:
            raise InputError(
                f"row {row} of {self.file} holds the path of a picture, not the picture; save the "
                "data set with its pictures embedded"
            )
        what = f"the picture in row {row} of {self.file}"
        return self.transform(read_picture(BytesIO(content), what, self.turned))


class ClassFolders(Dataset):
    """Pictures in folders that are named as their classes, in the order of their paths.

    Parameters
    ----------
    folder : holds the class folders; pictures count at any depth below these.
    classes : names by class number.
    transform : makes the model's input of one PIL picture.

    Warns
    -----
    DataWarning : files are left out: hidden ones, those in no class folder, those that are no
        pictures by their ending; how many, and which.
    """

    def __init__(
        self, folder: Path, classes: Sequence[str], transform: Callable[[Any], Any]
    ) -> None:
        self.classes, self.transform, self.turned = list(classes), transform, _Turned()
        self.samples: list[tuple[str, int]] = []
        numbers = {name: number for number, name in enumerate(self.classes)}
        left: dict[str, list[str]] = {}
        for path, *inside in _files(str(folder)):
            kind = _kind(path, inside, numbers)
            if kind is None:
                self.samples.append((path, numbers[inside[0]]))
            elif kind:
                left.setdefault(kind, []).append(os.path.join(*inside))
        self.targets = [label for _, label in self.samples]
        if left:
            said = "; ".join(f"{len(paths)} {kind} ({few(paths)})" for kind, paths in left.items())
            warnings.warn(f"files in {folder} are left out: {said}", DataWarning, stacklevel=2)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, row: int) -> tuple[Any, int]:
        path, label = self.samples[row]
        return self.transform(read_picture(path, path, self.turned)), label


def class_folders(folder: Path) -> list[str]:
    """The names of the folders in a folder that can be classes."""
    names = [entry.name for entry in _entries(str(folder)) if entry.is_dir()]
    return [name for name in names if not name.startswith(".") and name != _NO_CLASS]


def _files(folder: str, *inside: str, above: frozenset[str] = frozenset()) -> Iterator[list[str]]:
    """Path and names on the way to every file below a folder; no link back up is followed."""
    here = os.path.realpath(folder)
    if here in above:
        return
    for entry in _entries(folder):
        if entry.is_dir():
            yield from _files(entry.path, *inside, entry.name, above=above | {here})
        else:
            yield [entry.path, *inside, entry.name]


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """What is in a folder: files, then folders, by name."""
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: (entry.is_dir(), entry.name))
    except OSError as error:
        raise InputError(
            f"the folder {folder} cannot be read ({first_line(error)}); allow it, or remove it"
        ) from error


def _kind(path: str, inside: Sequence[str], classes: Collection[str]) -> str | None:
    """None for a sample; else what a file is, empty where nobody would take it for a sample."""
    picture = os.path.splitext(path)[1].lower() in ENDINGS
    if any(name.startswith(".") or name == _NO_CLASS for name in inside):
        return "hidden" * picture
    if inside[0] not in classes or len(inside) == 1:
        return "in no class folder" * picture
    if not picture:
        litter = inside[-1].lower() in _LITTER
        return "" if litter else "without the ending of a picture"
    return None if os.path.isfile(path) else "that are no files or lead nowhere"
