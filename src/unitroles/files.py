"""Files written whole or not at all, and folders that can be written to."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

from safetensors import SafetensorError

from unitroles.errors import InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


_REMEDIES = {errno.ENOSPC: "free some space", errno.EEXIST: "choose another name"}


def check_new(paths: Sequence[Path], force: bool) -> None:
    """Before anything is computed: the files can be written, and nothing is lost by it."""
    for path in paths:
        if path.is_dir():
            raise InputError(f"{path} is a folder; give the name of a file")
        if path.exists() and not force:
            raise InputError(f"{path} exists; give another name, or --force to overwrite it")
    folder = paths[0].parent
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(
            f"cannot write in folder {folder}: {error.strerror}; choose a folder that exists and "
            "is writable"
        ) from error


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file; a `ValueError` where it is no TOML, or no UTF-8."""
    return tomllib.loads(path.read_text(encoding="utf-8"))


def make_folder(folder: Path) -> None:
    """Make a folder, with all above it, that can be written to.

    Raises
    ------
    InputError : in one sentence, why that is not possible.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(
            f"cannot make folder {folder}: {error.strerror}; choose another place"
        ) from error


def write_whole(files: Mapping[Path, str | Callable[[Path], Any]]) -> None:
    """Write files, all under temporary names first: a failure leaves nothing half written.

    Parameters
    ----------
    files : by their final names, a text, or a function that takes a path and writes there. A name
        that is a link stays one.

    Raises
    ------
    InputError : the disk is full, or a folder not writable.
    """
    parts: dict[Path, Path] = {}
    path = None
    try:
        for path, content in files.items():
            target = path.resolve()
            if target.exists() and not target.is_file():
                raise FileExistsError(errno.EEXIST, "it is no file")
            parts[path] = target.with_name(f".{uuid4().hex}.part")
            if isinstance(content, str):
                parts[path].write_text(content, encoding="utf-8")
            else:
                content(parts[path])
        for path, part in parts.items():
            os.replace(part, path.resolve())
    # The file system; torch on a full disk; a writer that refuses what it was given.
    except (OSError, RuntimeError, SafetensorError, ValueError) as error:
        why = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise InputError(f"cannot write {path}: {why}; {_remedy(error)}") from error
    finally:
        for part in parts.values():
            with suppress(OSError):
                part.unlink(missing_ok=True)


def require(*packages: str) -> None:
    """Refuse to go on without the packages of the extra "zoo"."""
    for package in packages:
        if find_spec(package) is None:
            raise InputError(
                f"the reproduction needs {package}: install it with pip install 'unitroles[zoo]'"
            )


def _remedy(error: Exception) -> str:
    number = getattr(error, "errno", None)
    if number is None:
        return "free some space or choose another folder"
    return _REMEDIES.get(number, "choose a folder that exists and is writable")
