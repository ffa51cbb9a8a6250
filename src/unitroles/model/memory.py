"""Go on with smaller pieces where memory runs out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch

from unitroles.errors import InputError, PlanWarning

T = TypeVar("T")

_SAID = ("out of memory", "not enough memory", "can't allocate memory")


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on whatever device."""
    said = isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _SAID)
    return said or isinstance(error, (torch.OutOfMemoryError, MemoryError))


def out_of_memory(what: str, rows: int) -> InputError:
    """The error where memory runs out and no smaller piece is left to try."""
    many = "a single sample" if rows == 1 else f"{rows} samples at once"
    return InputError(
        f"memory ran out in {what} with {many}; use a smaller model, another device or smaller "
        "inputs"
    )


@dataclass
class Pieces:
    """Cuts work on rows into pieces that fit; what once did not fit is not tried again.

    Parameters
    ----------
    what : the work, for messages.
    limit : rows of a piece; None = all at once.
    """

    what: str
    limit: int | None = None

    def run(self, work: Callable[[slice], T], rows: int) -> list[T]:
        """The results of the work on all rows, piece by piece.

        Raises
        ------
        InputError : memory runs out with a single row.
        """
        results, done = [], 0
        while done < rows:
            size = min(self.limit or rows, rows - done)
            try:
                result = work(slice(done, done + size))
            except Exception as error:
                if not ran_out(error):
                    raise
                self._halve(size, error)
            else:
                results.append(result)
                done += size
        return results

    def _halve(self, size: int, error: Exception) -> None:
        if size == 1:
            raise out_of_memory(self.what, 1) from error
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        if self.limit is None:
            warnings.warn(
                f"memory ran out in {self.what} with {size} samples at once; it goes on with fewer",
                PlanWarning,
                stacklevel=2,
            )
        self.limit = size // 2


def slices(rows: int, size: int) -> Iterator[slice]:
    """All rows in pieces of one size."""
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))
