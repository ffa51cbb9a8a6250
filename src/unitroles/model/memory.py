"""Go on with smaller pieces where memory runs out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch

from unitroles.errors import InputError, PlanWarning

T = TypeVar("T")

_CACHE = 6 * 2**20
_LEAST_TOGETHER, _FEW_TOGETHER, _MOST_TOGETHER = 8, 32, 256
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


def samples_per_forward(largest: int, device: torch.device) -> int:
    """As many samples as are run fastest together, by a rule that knows no clock.

    Measured on one processor (benchmarks/speed/batches.py): a forward slows down where its largest
    values leave the caches, and few samples read the weights too often.

    Parameters
    ----------
    largest : bytes of the largest value of one sample.

    >>> [samples_per_forward(size, torch.device("cpu")) for size in (4096, 2**16, 2**18, 3 * 2**20)]
    [256, 64, 32, 8]
    >>> samples_per_forward(3 * 2**20, torch.device("cuda"))
    256
    """
    if device.type != "cpu":
        return _MOST_TOGETHER
    in_cache, in_reach = (_power_of_two(room // max(largest, 1)) for room in (_CACHE, 4 * _CACHE))
    return min(max(in_cache, min(_FEW_TOGETHER, in_reach), _LEAST_TOGETHER), _MOST_TOGETHER)


def _power_of_two(most: int) -> int:
    return 1 << max(most.bit_length() - 1, 0)


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
