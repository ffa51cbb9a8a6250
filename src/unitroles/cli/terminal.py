"""What a terminal is shown, the signals that come from it, and the process as it was before."""

from __future__ import annotations

import _thread
import errno
import getpass
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import typer

from unitroles.errors import InputError
from unitroles.wording import printable

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
_REPLACED = (signal.SIG_DFL, signal.default_int_handler)
"""What the caller of `main`, or who started the process, set otherwise is left: nohup."""
_CACHE = "TORCHINDUCTOR_CACHE_DIR"
_GRACE = 1.0
"""Seconds in which a further signal does not disturb the cleaning up after the first."""


def say(text: str, err: bool = False) -> None:
    """Print lines, without what could command the terminal.

    Raises
    ------
    InputError : the output is a file on a full disk.
    """
    shown = printable(text, keep="\n\t")
    try:
        try:
            typer.echo(shown, err=err)
        except UnicodeEncodeError:
            typer.echo(shown.encode("ascii", "backslashreplace").decode(), err=err)
    except OSError as error:
        if error.errno == errno.EPIPE:  # the reader has seen enough
            raise
        raise InputError(
            f"cannot print: {error.strerror}; give the output another place"
        ) from error


@contextmanager
def stopped_by_signals(came: list[int]) -> Iterator[None]:
    """SIGTERM and SIGHUP end the block as SIGINT does: by an exception that cleans up on its way.

    Parameters
    ----------
    came : gets the numbers of the signals, also where somebody swallows the exception.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    process, last = os.getpid(), [float("-inf")]

    def stop(number: int, frame: Any) -> None:
        if os.getpid() != process:  # a worker that was forked: as if nothing had been set
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        came.append(number)
        now = time.monotonic()
        if now - last[0] >= _GRACE:
            last[0] = now
            raise KeyboardInterrupt

    def again(unraisable: Any) -> None:
        """An exception in a finalizer is ignored by Python: let the signal come once more."""
        if came and unraisable.exc_type is KeyboardInterrupt:
            last[0] = float("-inf")
            timer = threading.Timer(0.05, _thread.interrupt_main, [came[-1]])
            timer.daemon = True
            timer.start()
        else:
            hook(unraisable)

    hook, handlers = sys.unraisablehook, {}
    try:
        for name in _SIGNALS:
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            if number is not None and signal.getsignal(number) in _REPLACED:
                handlers[number] = signal.getsignal(number)
                signal.signal(number, stop)
        sys.unraisablehook = again
        yield
    finally:
        last[0] = float("inf")  # whoever comes now is counted, and disturbs no more
        sys.unraisablehook = hook
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def same_environment() -> Iterator[None]:
    """Take back what libraries write into the environment while they are used.

    PyTorch names a folder for what it compiles there, and makes it in the temporary folder, though
    nothing is compiled: that goes too where it is empty, also if a process that was killed left it.
    What threadpoolctl sets is left; without it a second OpenMP, which may be loaded later, ends the
    process.
    """
    before = dict(os.environ)
    try:
        yield
    finally:
        if _CACHE not in before:
            with suppress(OSError, KeyError):  # the latter: a user without a name
                os.rmdir(os.environ.get(_CACHE) or _cache_folder())
        for name in {*os.environ, *before}:
            if name in before:
                os.environ[name] = before[name]
            elif not name.startswith("KMP_"):
                del os.environ[name]


def _cache_folder() -> Path:
    """The folder that PyTorch would name."""
    return Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}"
