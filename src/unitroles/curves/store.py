"""Rows of every sample, kept between the one pass through the model and the sweeps."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from unitroles.engine.plan import Rows
from unitroles.errors import InputError
from unitroles.files import Scratch

SHARD_BYTES = 64 * 2**20
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
        for start in range(0, self._filled, size):
            stop = min(start + size, self._filled)
            yield tuple(block[start:stop] for block in self._blocks)

    def close(self) -> None:
        self._blocks.clear()


@dataclass
class DiskStore:
    """Rows in safetensors files in a folder of their own, which `close` removes.

    Parameters
    ----------
    tile : a file holds a multiple of so many rows, so that tiles do not depend on the files.
    """

    tile: int
    where: str = "disk"
    _folder: Scratch | None = None
    _waiting: list[Rows] = field(default_factory=list)
    _files: list[Path] = field(default_factory=list)

    def add(self, rows: Rows) -> None:
        self._waiting.append(tuple(value.cpu() for value in rows))
        waiting = sum(len(rows[0]) for rows in self._waiting)
        full = max(1, SHARD_BYTES // max(row_bytes(rows) * self.tile, 1)) * self.tile
        if waiting >= full:
            blocks = joined(self._waiting)
            for start in range(0, waiting - waiting % full, full):
                self._write(tuple(block[start : start + full] for block in blocks))
            rest = waiting - waiting % full
            self._waiting = [tuple(block[rest:].clone() for block in blocks)] * (rest < waiting)

    def _write(self, blocks: Rows) -> None:
        try:
            if self._folder is None:
                self._folder = Scratch()
            file = self._folder.path / f"{len(self._files):06d}.safetensors"
            # Copies: blocks that share memory are refused.
            copies = [block.clone(memory_format=torch.contiguous_format) for block in blocks]
            save_file({f"{i:03d}": block for i, block in enumerate(copies)}, file)
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"what is kept of the samples cannot be written to {tempfile.gettempdir()}: "
                f"{error}; free some room there, name another folder in the environment variable "
                "TMPDIR, or give a larger memory_budget"
            ) from error
        self._files.append(file)

    def tiles(self, size: int) -> Iterator[Rows]:
        if self._waiting:
            self._write(joined(self._waiting))
            self._waiting = []
        for file in self._files:
            blocks = [value for _, value in sorted(load_file(file).items())]
            for start in range(0, len(blocks[0]), size):
                yield tuple(block[start : start + size] for block in blocks)

    def close(self) -> None:
        if self._folder is not None:
            self._folder.close()
        self._waiting.clear()
        self._files.clear()


def _free_disk() -> int:
    Scratch.take_away_stale()  # of runs that were killed, which may be large
    return int(_DISK_SHARE * shutil.disk_usage(tempfile.gettempdir()).free)


@dataclass
class Stores:
    """Memory and disk still free for rows; where a store goes is decided when its size is known.

    Parameters
    ----------
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

    def place(self, needed: int) -> str:
        """Where so many bytes go; "recompute" where they fit nowhere."""
        if needed <= self.memory:
            return "memory"
        return "disk" if needed <= self.disk else "recompute"

    def open(self, samples: int, rows: Sequence[Tensor], tile: int) -> Store | None:
        """A store for so many rows of the kind of `rows`; None = they are computed again."""
        needed = samples * row_bytes(rows)
        where = self.place(needed)
        if where == "recompute":
            return None
        if where == "memory":
            self.memory -= needed
        else:
            self.disk -= needed
        store = MemoryStore(samples) if where == "memory" else DiskStore(tile)
        self.opened.append((store, needed))
        return store
