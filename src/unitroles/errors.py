"""What the library says when it cannot go on, and when the user should look twice."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LISTED = 20
"""How many names an error lists at most."""


class InputError(ValueError):
    """Something the user gave cannot be used; the message says what, where and the remedy."""


class DataWarning(UserWarning):
    """The data are usable but probably not what the user meant."""


class PlanWarning(UserWarning):
    """The analysis went on in another way than planned, or the layer hardly matters."""


class LayerHint(UserWarning):
    """The layer can be analysed, but another one is more likely what the user meant."""


def unknown(what: str, given: object, known: Iterable[str]) -> InputError:
    """An error for a name that does not exist, with the nearest that do and the first of all."""
    names = list(known)
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


def few(items: list[str]) -> str:
    """The first three, and how many more there are."""
    more = f" and {len(items) - 3} more" if len(items) > 3 else ""
    return ", ".join(items[:3]) + more
