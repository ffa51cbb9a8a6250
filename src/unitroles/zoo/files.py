"""Files written whole or not at all, and what has to be installed: one sentence when it fails."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from unitroles import InputError

# What pandas, matplotlib and json; torch; and safetensors raise on a full disk.
_FAILURES = (OSError, RuntimeError, SafetensorError)


def write_whole(write: Callable[[Path], Any], path: Path) -> Path:
    """Write under a temporary name, then rename; a failure leaves nothing behind.

    Parameters
    ----------
    write : takes the temporary path and writes there.
    path : what the file is called in the end.

    Raises
    ------
    unitroles.InputError : the disk is full or the folder not writable.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(temporary)
        os.replace(temporary, path)
    except _FAILURES as error:
        raise _cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return path


def make_folder(folder: Path) -> Path:
    """Make a folder that can be written to, or say in one sentence why that is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{os.getpid()}.part"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise _cannot_write(folder, error) from error
    return folder


def require(*packages: str) -> None:
    """Refuse to go on without the packages of the extra "zoo"."""
    for package in packages:
        if find_spec(package) is None:
            raise InputError(
                f"the reproduction needs {package}: install it with pip install 'unitroles[zoo]'"
            )


def _cannot_write(path: Path, error: Exception) -> InputError:
    why = " ".join((getattr(error, "strerror", None) or str(error)).split())
    return InputError(
        f"cannot write to {path}: {why}; free some space or choose another folder with --out"
    )
