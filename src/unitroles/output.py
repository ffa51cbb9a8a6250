"""Files that the commands write: nothing is lost, nothing is left half written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from unitroles.errors import InputError


def check_new(paths: Sequence[Path], force: bool) -> None:
    """Before anything is computed: the files can be written, and nothing is lost by it."""
    for path in paths:
        if path.is_dir():
            raise InputError(f"{path} is a folder; give the name of a file")
        if path.exists() and not force:
            raise InputError(f"{path} exists; give another name, or --force to overwrite it")
    folder = paths[0].parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"cannot write in folder {folder}: {error.strerror}; choose a folder that exists and "
            "is writable"
        ) from error


def make_folder(folder: Path) -> None:
    """With all above it, where they do not exist."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot make folder {folder}: {error.strerror}; choose another place"
        ) from error


def write_whole(files: Mapping[Path, str]) -> None:
    """All under temporary names first, so that no half file is ever left."""
    parts = {path: path.with_name(f".{path.name}.{os.getpid()}.part") for path in files}
    try:
        for path, text in files.items():
            parts[path].write_text(text, encoding="utf-8")
        for path, part in parts.items():
            os.replace(part, path)
    except OSError as error:
        raise InputError(
            f"cannot write {error.filename}: {error.strerror}; free some space"
        ) from error
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)
