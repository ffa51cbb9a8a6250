"""Words of messages: counts, lists of names, byte sizes, what a terminal may be given."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

# Controls and what starts the commands of a terminal; lone surrogates, which no terminal can be
# given; breaks of lines; what turns the direction of a text or cannot be seen.
_ESCAPED = frozenset({"Cc", "Cs", "Zl", "Zp", "Cf"})
_JOINERS = frozenset("\u200c\u200d")  # of Persian, of Indian scripts, of emoji


def printable(text: object, keep: str = "") -> str:
    r"""A text with its control, direction and other invisible characters written as escapes.

    Parameters
    ----------
    keep : characters that stay as they are, such as line breaks between the lines of a table.

    >>> print(printable("a\x1b]0;title\x07 b\u202e"))
    a\x1b]0;title\x07 b\u202e
    """
    given = str(text)
    if given.isascii() and given.isprintable():
        return given
    return "".join(
        each.encode("unicode_escape").decode()
        if unicodedata.category(each) in _ESCAPED and each not in _JOINERS and each not in keep
        else each
        for each in given
    )


def is_whole(text: object) -> bool:
    """Whether it is a text that a file gives back: no NUL, which ends it, no half characters."""
    if not isinstance(text, str) or "\0" in text:
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


NUMBERING = "labels and outputs may be numbered differently"
"""How a warning begins that makes all roles doubtful: a report has it in its first line."""

COUPLED = (
    "a sample's output depends on the others in its batch (batch norm without running "
    "statistics?): results depend on batch_size"
)
"""How a warning ends where a sample has no answer of its own; it comes first in a report too."""

LONGEST = 60
"""Letters of a value that a message repeats."""


def few(items: list[str]) -> str:
    """The first three, and how many more there are."""
    more = f" and {len(items) - 3} more" if len(items) > 3 else ""
    return ", ".join(map(printable, items[:3])) + more


def size(count: int) -> str:
    """A number of bytes for people."""
    value, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"


def range_of(numbers: Any, between: str = " to ") -> str:
    """The least and the largest of an array of whole numbers, or the one that all are."""
    low, high = int(numbers.min()), int(numbers.max())
    return str(low) if low == high else f"{low}{between}{high}"


def count_of(labels: Sequence[object]) -> str:
    """The number of these classes, in words."""
    return f"{len(labels)} class{'' if len(labels) == 1 else 'es'}"


def names_of(labels: Sequence[object]) -> str:
    """The first five names."""
    return ", ".join(map(printable, labels[:5])) + (", ..." if len(labels) > 5 else "")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def shown(value: object) -> str:
    """A value as it was given, where that is short; else what it is."""
    try:
        text = repr(value)
    except Exception:  # of an object whose own `__repr__` fails
        text = ""
    if not text or len(text) > LONGEST or "\n" in text:
        return f"a value of type {type(value).__name__}"
    return text
