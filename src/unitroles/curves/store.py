"""Rows of every sample, kept between the one pass through the model and the sweeps."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from unitroles.engine.plan import Rows
from unitroles.errors import InputError
from unitroles.files import Scratch
from unitroles.model.memory import slices

# Of the free disk; the rest belongs to others.
_DISK_SHARE = 0.5


@runtime_checkable
class Store(Protocol):
    """Rows in the order in which they are added; `tiles` gives them back some at a time."""

    @property
    def where(self) -> str: ...

    def add(self, rows: Rows) -> None: ...

    def tiles(self, size: int) -> Iterator[Rows]: ...

    def close(self) -> None: ...


def row_bytes(rows: Sequence[Tensor]) -> int:
    """Bytes of one row."""
    return sum(value[:1].numel() * value.element_size() for value in rows)


def joined(parts: Sequence[Rows]) -> Rows:
    """The rows of some samples and of others, in one."""
    return parts[0] if len(parts) == 1 else tuple(map(torch.cat, zip(*parts, strict=True)))


@dataclass
class MemoryStore:
    """Rows in the memory of the CPU, in one block per value."""

    samples: int
    where: str = "memory"
    _blocks: list[Tensor] = field(default_factory=list)
    _filled: int = 0

    def add(self, rows: Rows) -> None:
        if not self._blocks:
            self._blocks = [
                torch.empty(self.samples, *value.shape[1:], dtype=value.dtype) for value in rows
            ]
        count = len(rows[0])
        for block, value in zip(self._blocks, rows, strict=True):
            block[self._filled : self._filled + count].copy_(value)
        self._filled += count

    def tiles(self, size: int) -> Iterator[Rows]:
        for part in slices(self._filled, size):
            yield tuple(block[part] for block in self._blocks)

    def close(self) -> None:
        self._blocks.clear()


@dataclass
class DiskStore:
    """Rows in one file per value, in a folder of their own, which `close` removes.

    Rows are written as they come: none waits in memory.
    """

    where: str = "disk"
    _folder: Scratch | None = None
    _form: list[tuple[torch.Size, torch.dtype]] = field(default_factory=list)
    _filled: int = 0

    def add(self, rows: Rows) -> None:
        try:
            if self._folder is None:
                self._folder = Scratch()
            for place, value in enumerate(rows):
                with self._file(place).open("ab") as file:
                    file.write(_as_bytes(value.cpu().contiguous()))
        except OSError as error:
            raise InputError(
                f"what is kept of the samples cannot be written to {tempfile.gettempdir()}: "
                f"{error}; free some room there, name another folder in the environment variable "
                "TMPDIR, or give a larger memory_budget"
            ) from error
        self._form = [(value.shape[1:], value.dtype) for value in rows]
        self._filled += len(rows[0])

    def tiles(self, size: int) -> Iterator[Rows]:
        for part in slices(self._filled, size):
            yield tuple(self._read(place, part) for place in range(len(self._form)))

    def _read(self, place: int, part: slice) -> Tensor:
        shape, dtype = self._form[place]
        rows = torch.empty(part.stop - part.start, *shape, dtype=dtype)
        content = _as_bytes(rows)
        try:
            with self._file(place).open("rb", buffering=0) as file:
                file.seek(part.start * (content.nbytes // len(rows)))
                while content.nbytes:
                    count = file.readinto(content)
                    if not count:
                        raise OSError("the file ends too early")
                    content = content[count:]
        except OSError as error:
            raise InputError(
                f"what was kept of the samples cannot be read back from {tempfile.gettempdir()}: "
                f"{error}; leave its folder unitroles-... there as it is while this runs, name "
                "another one in the environment variable TMPDIR, or give a larger memory_budget"
            ) from error
        return rows

    def _file(self, place: int) -> Path:
        assert self._folder is not None
        return self._folder.path / f"{place:03d}"

    def close(self) -> None:
        if self._folder is not None:
            self._folder.close()
        self._folder, self._filled = None, 0


def _as_bytes(value: Tensor) -> memoryview:
    """The memory of a tensor of any dtype."""
    return value.detach().flatten().view(torch.uint8).numpy().data


def _free_disk() -> int:
    Scratch.take_away_stale()  # of runs that were killed, which may be large
    return int(_DISK_SHARE * shutil.disk_usage(tempfile.gettempdir()).free)


@dataclass
class Stores:
    """The memory budget of one call, and the disk still free beside it.

    Whatever is kept for longer than a batch or a tile asks here: rows and scores by `open`, and
    what is not rows by `take`. Where a store goes is decided when its size is known.

    Parameters
    ----------
    memory, disk : bytes that nobody has taken.
    opened : the stores, with the bytes that each has taken.
    """

    memory: int
    disk: int = field(default_factory=_free_disk)
    opened: list[tuple[Store, int]] = field(default_factory=list)

    def __enter__(self) -> Stores:
        return self

    def __exit__(self, *error: object) -> None:
        self.keep([])

    def keep(self, wanted: Collection[Store]) -> None:
        """Close all others; their room is free again."""
        for place in reversed(range(len(self.opened))):
            store, taken = self.opened[place]
            if any(store is one for one in wanted):
                continue
            store.close()
            if store.where == "memory":
                self.memory += taken
            else:
                self.disk += taken
            del self.opened[place]

    def take(self, needed: int) -> None:
        """Take so many bytes of memory, of which there are enough, for as long as the call runs."""
        self.memory -= needed

    def place(self, needed: int) -> str:
        """Where so many bytes go; "recompute" where they fit nowhere."""
        if needed <= self.memory:
            return "memory"
        return "disk" if needed <= self.disk else "recompute"

    def open(self, samples: int, rows: Sequence[Tensor]) -> Store | None:
        """A store for so many rows of the kind of `rows`; None = they are computed again."""
        needed = samples * row_bytes(rows)
        where = self.place(needed)
        if where == "recompute":
            return None
        if where == "memory":
            self.memory -= needed
        else:
            self.disk -= needed
        store = MemoryStore(samples) if where == "memory" else DiskStore()
        self.opened.append((store, needed))
        return store
