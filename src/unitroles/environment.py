"""The process: environment and temporary folder, left as they were; the garbage collector."""

from __future__ import annotations

import gc
import getpass
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_CACHE, _NAME = "TORCHINDUCTOR_CACHE_DIR", "torchinductor_"


@contextmanager
def no_compiler_cache() -> Iterator[None]:
    """Take back the folder that PyTorch makes for what it compiles, and what names it.

    It makes the folder and writes its name into the environment when its exporter is first
    imported, though nothing is compiled, and again when it needs them. What somebody else writes
    there stays, also if another thread does so meanwhile; so does a folder that is not empty. An
    empty one goes also if a process that was killed left it.
    """
    named = _CACHE in os.environ
    try:
        yield
    finally:
        folder = os.environ.get(_CACHE)
        if not named and (folder is None or _is_pytorchs(folder)):
            os.environ.pop(_CACHE, None)
            with suppress(OSError, KeyError):  # the latter: a user without a name
                os.rmdir(folder or os.path.join(tempfile.gettempdir(), _NAME + getpass.getuser()))


def _is_pytorchs(folder: str) -> bool:
    place, name = os.path.split(folder)
    return place == os.path.abspath(tempfile.gettempdir()) and name.startswith(_NAME)


@contextmanager
def collector_resting() -> Iterator[None]:
    """No pass of the garbage collector while modules are imported or a model is exported.

    PyTorch's exporter is a million objects that stay; the collector would go through all of them
    again and again as they are made, which costs as much time as their import. They are old when
    the block ends, as they would be after those passes.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():  # what somebody froze stays frozen
            gc.freeze()
            gc.unfreeze()
        gc.enable()
