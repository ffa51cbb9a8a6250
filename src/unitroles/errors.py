"""Errors and warnings the library raises, and how warnings reach the line that called it."""

from __future__ import annotations

import contextlib
import difflib
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from traceback import walk_stack

from unitroles.wording import few, printable

LISTED = 20
"""The most names that an error lists."""


class _Shown:
    """What holds names from anywhere and is shown on terminals, which take commands from texts."""

    def __str__(self) -> str:
        return printable(super().__str__(), keep="\n\t")


class InputError(_Shown, ValueError):
    """Something the user gave cannot be used; the message says what, where and the remedy."""


class DataWarning(_Shown, UserWarning):
    """The data are usable but probably not what the user meant."""


class PlanWarning(_Shown, UserWarning):
    """The analysis went on in another way than planned, or the layer hardly matters."""


class LayerHint(_Shown, UserWarning):
    """The layer can be analysed, but another one is more likely what the user meant."""


OWN_WARNINGS = (DataWarning, PlanWarning, LayerHint)
"""Those of the library itself, beside what others raise while it runs."""


def unknown(what: str, given: object, known: Iterable[str]) -> InputError:
    """An error for a name that does not exist, with the nearest that do and the first of all."""
    names = list(map(printable, known))
    near = difflib.get_close_matches(str(given), names, n=3)
    hint = f"did you mean {', '.join(near)}? " if near else ""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    listed = ", ".join(names[:LISTED])
    return InputError(f"unknown {what} {given!r}; {hint}known: {listed}{more}")


def no_name(what: str, name: str, known: list[str]) -> InputError:
    """An error for a name among many, with the nearest that exist or the first few."""
    near = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
    said = f"did you mean {', '.join(near)}?" if near else f"there are {few(known)}"
    return InputError(f"there is no {what} {name!r}; {said}")


@contextmanager
def own_warnings() -> Iterator[list[str]]:
    """Repeat all warnings to the caller, also after an error, and keep the texts of our own."""
    notes: list[str] = []
    caught: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield notes
    except BaseException:
        with suppress(Warning):  # where warnings are errors, the error itself matters more
            _repeat(caught)
        raise
    own = (str(w.message) for w in caught if issubclass(w.category, OWN_WARNINGS))
    notes.extend(dict.fromkeys(own))
    _repeat(caught)


def _repeat(caught: list[warnings.WarningMessage]) -> None:
    """Once each, as if from the line that called the library."""
    inside = (str(Path(__file__).parent), contextlib.__file__)
    files = (frame.f_code.co_filename for frame, _ in walk_stack(sys._getframe()))
    level = 1 + len(list(takewhile(lambda file: file.startswith(inside), files)))
    once = {(warning.category, str(warning.message)): warning for warning in reversed(caught)}
    for warning in reversed(once.values()):
        warnings.warn(warning.message, warning.category, stacklevel=level)
