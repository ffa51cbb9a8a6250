"""Files written whole or not at all and their digests, folders to write in."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

from unitroles.errors import InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

try:
    import fcntl
except ImportError:  # Windows: temporary files of a killed process stay
    fcntl = None


_NAME = "choose another name"
_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EEXIST: _NAME,
    errno.ELOOP: _NAME,
    errno.ENAMETOOLONG: _NAME,
}
_PART = re.compile(r"\.[0-9a-f]{32}\.part")
_SCRATCH = re.compile(r"unitroles-[0-9a-f]{32}")
_SEAL = b"\nunitroles sha256 "


def check_new(
    paths: Sequence[Path], force: bool, inputs: Mapping[str, str | os.PathLike[str]] | None = None
) -> None:
    """Before anything is computed: the files can be written, and nothing is lost by it.

    Parameters
    ----------
    force : what exists may be overwritten.
    inputs : what is read, by the name of its option, and may not be overwritten at all.

    Raises
    ------
    InputError : in one sentence, why not.
    """
    for path in paths:
        mode = _mode(path)
        if mode is None:
            continue
        if stat.S_ISDIR(mode):
            raise InputError(f"{path} is a folder; give the name of a file")
        if not stat.S_ISREG(mode):
            raise InputError(f"{path} is no file that can be replaced; give another name")
        for option, given in (inputs or {}).items():
            if _holds(Path(given), path):
                raise InputError(
                    f"{path} is read as {option} and would be overwritten; give another name"
                )
        if not force:
            raise InputError(f"{path} exists; give another name, or --force to overwrite it")
    folder = paths[0].parent
    try:
        tempfile.TemporaryFile(dir=Path(os.path.realpath(paths[0])).parent).close()
    except OSError as error:
        raise InputError(
            f"cannot write in folder {folder}: {error.strerror}; choose a folder that exists and "
            "is writable"
        ) from error


def _mode(path: Path) -> int | None:
    """What is at a path, links followed; None where nothing is, or not even a folder for it."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:  # the latter: a NUL in the name
        raise _unwritable(path, error) from error


def _holds(given: Path, path: Path) -> bool:
    """Whether a file that exists is what was given, or in the folder that was given."""
    try:
        if given.is_dir():
            return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(given))
        return path.samefile(given)
    except (OSError, ValueError):  # no such input, which its reader says better
        return False


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file; a `ValueError` where it is no TOML, or no UTF-8."""
    return tomllib.loads(path.read_text(encoding="utf-8"))


def read_regular(path: Path) -> bytes:
    """The bytes of a file that is a regular one: a pipe would wait, a device never end.

    Raises
    ------
    OSError : it is none, cannot be read, or is larger than the memory of the machine.
    """
    # The mode is asked for first, because opening a device can act on it.
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")
    number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(number, "rb") as stream:
        found = os.fstat(number)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        if found.st_size > _memory():
            raise OSError(errno.EFBIG, "it is larger than the memory of this machine")
        return stream.read()


def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return sys.maxsize


def sealed(content: bytes) -> bytes:
    """Bytes with their SHA-256 behind them, which formats that know their own length ignore."""
    return content + _seal(content)


def unsealed(content: bytes) -> tuple[bytes, bool]:
    """The bytes without their seal, and whether they had one.

    Raises
    ------
    ValueError : they are not those that were sealed.
    """
    length = len(_seal(b""))
    body, seal = content[:-length], content[-length:]
    if not seal.startswith(_SEAL):
        return content, False
    if seal != _seal(body):
        raise ValueError("it was changed after it was written: its SHA-256 is another")
    return body, True


def _seal(content: bytes) -> bytes:
    return _SEAL + hashlib.sha256(content).hexdigest().encode() + b"\n"


def make_folder(folder: Path) -> None:
    """Make a folder, with all above it, that can be written to.

    Raises
    ------
    InputError : in one sentence, why that is not possible.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot make folder {folder}: {why}; choose another place") from error


def write_whole(files: Mapping[Path, str | bytes]) -> None:
    """Write files, all under temporary names first: a failure leaves nothing half written.

    Each is on the disk before it gets its name. Temporary files of a process that was killed are
    taken away from the folders.

    Parameters
    ----------
    files : by their final names, a text or bytes. A name that is a link stays one.

    Raises
    ------
    InputError : the disk is full, a folder not writable, or a name not that of a file.
    """
    parts: dict[Path, Path] = {}
    numbers: list[int] = []
    path = None
    try:
        for path, content in files.items():
            mode = _mode(path)
            if mode is not None and not stat.S_ISREG(mode):
                raise FileExistsError(errno.EEXIST, "it is no file")
            target = Path(os.path.realpath(path))
            if target.parent not in {part.parent for part in parts.values()}:
                _take_away_stale(target.parent, _PART)
            while True:
                parts[path] = target.with_name(f".{uuid4().hex}.part")
                numbers.append(os.open(parts[path], os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
                if _held(numbers[-1], parts[path]):
                    break
            _fill(numbers[-1], content.encode() if isinstance(content, str) else content)
            if fcntl is None:
                os.close(numbers.pop())  # Windows renames no open file
        for path, part in parts.items():
            os.replace(part, os.path.realpath(path))
        for folder in {part.parent for part in parts.values()}:
            _keep_names(folder)
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise _unwritable(path, error) from error
    finally:
        for number in numbers:
            with suppress(OSError):
                os.close(number)
        for part in parts.values():
            with suppress(OSError):
                part.unlink(missing_ok=True)


def _held(number: int, path: Path) -> bool:
    """Lock what was just made; False where another process took it for a stale one before that."""
    if fcntl is None:
        return True
    with suppress(OSError):  # a file system without locks: nobody takes it away
        fcntl.flock(number, fcntl.LOCK_EX)
    return path.exists()


def _fill(number: int, content: bytes) -> None:
    """Bring all bytes to the disk."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(number, rest) :]
    os.fsync(number)


def _keep_names(folder: Path) -> None:
    """Bring the names in a folder to the disk, where folders can be synced."""
    with suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _take_away_stale(folder: Path, names: re.Pattern[str]) -> None:
    """Delete files or folders with such names that no process holds any more."""
    with suppress(OSError):
        for path in [each for each in folder.iterdir() if names.fullmatch(each.name)]:
            with suppress(OSError), _unheld(path):
                if names is _PART:
                    path.unlink()
                else:
                    shutil.rmtree(path)


@contextmanager
def _unheld(path: Path) -> Iterator[None]:
    """Hold a file or folder; an `OSError` where another process does, or that is not possible."""
    mode = path.lstat().st_mode
    if fcntl is None or not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "it cannot be held")
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(number)


class Scratch:
    """A new folder for temporary files, in that of the system (TMPDIR), until `close`.

    The process holds a lock on it: what has this kind of name and no lock was left by a process
    that was killed.

    Raises
    ------
    OSError : it cannot be made.
    """

    def __init__(self) -> None:
        self._number = None
        while self._number is None:
            self.path = Path(tempfile.gettempdir()) / f"unitroles-{uuid4().hex}"
            self.path.mkdir(0o700)
            if fcntl is None:
                break
            with suppress(FileNotFoundError):  # taken for a stale one before it was locked
                number = os.open(self.path, os.O_RDONLY)
                if _held(number, self.path):
                    self._number = number
                else:
                    os.close(number)

    def close(self) -> None:
        """Delete the folder with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._number is not None:
            os.close(self._number)
            self._number = None

    @staticmethod
    def take_away_stale() -> None:
        """Delete the folders that processes left when they were killed."""
        _take_away_stale(Path(tempfile.gettempdir()), _SCRATCH)


def require(*packages: str) -> None:
    """Refuse to go on without the packages of the extra "zoo"."""
    for package in packages:
        if find_spec(package) is None:
            raise InputError(
                f"the reproduction needs {package}: install it with pip install 'unitroles[zoo]'"
            )


def _unwritable(path: Path | None, error: Exception) -> InputError:
    number = getattr(error, "errno", None)
    why = getattr(error, "strerror", None) or " ".join(str(error).split())
    remedy = _NAME if number is None else _REMEDIES.get(number)
    return InputError(
        f"cannot write {path}: {why}; {remedy or 'choose a folder that exists and is writable'}"
    )
