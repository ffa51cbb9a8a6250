"""One analysis at a time in a process, which is left as it was; others wait for their turn."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from unitroles.environment import collector_resting, no_compiler_cache

_turn = threading.RLock()


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Wait until no other thread is inside, and keep the others out while the block runs.

    One lock for all models and not one for each: two models may share modules, and the export of a
    model, the filters of warnings, the random states and the number of BLAS threads, all of which
    an analysis sets and puts back, belong to the process. A thread may enter again what it holds.
    What PyTorch's exporter leaves in the environment is taken back.
    """
    with _turn, no_compiler_cache():
        with collector_resting():
            # The first operation that is watched would import it.
            import torch._dynamo  # noqa: F401
        yield


def _forget() -> None:
    """In a forked process, where the thread that held the lock may not be."""
    global _turn
    _turn = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
