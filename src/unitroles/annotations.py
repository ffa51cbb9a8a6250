"""Values against annotations: the arguments of public functions, the fields of option groups.

What kind of value an argument or a field takes is its annotation; `plain` holds a value against
that, `checked` and `check_fields` call it for all of them.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import cache, wraps
from inspect import signature
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from unitroles.errors import InputError
from unitroles.wording import shown

P = ParamSpec("P")
T = TypeVar("T")
_LISTS = (Sequence, Collection, Iterable, list, tuple)
_WORDS: dict[Any, tuple[str, str]] = {
    str: ("a text", "texts"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    bool: ("True or False", "True or False"),
    NoneType: ("None", "None"),
    Any: ("anything", "anything"),
    Callable: ("a function", "functions"),
    os.PathLike: ("a path", "paths"),
}
"""Kinds of values, one and several."""


class _Misfit(Exception):
    """A value, or the item at `where` of it, that is not of this kind."""

    def __init__(self, value: Any, hint: Any, where: str = "") -> None:
        super().__init__(value, hint, where)
        self.value, self.hint, self.where = value, hint, where


def checked(function: Callable[P, T]) -> Callable[P, T]:
    """The same function, for arguments of the kinds that its annotations say.

    Raises
    ------
    InputError : an argument of another kind, with its name and what it must be.
    """
    known = signature(function)

    @wraps(function)
    def call(*args: P.args, **given: P.kwargs) -> T:
        try:
            bound = known.bind(*args, **given)
        except TypeError:  # too many or too few: Python says it best
            return function(*args, **given)
        hints = _hints(function)
        for name, value in bound.arguments.items():
            if name in hints:
                where = f"{function.__qualname__.removesuffix('.__init__')}: {name}"
                bound.arguments[name] = plain(value, hints[name], where)
        return function(*bound.args, **bound.kwargs)

    return call


def check_fields(record: Any) -> None:
    """Hold every field of a frozen record against its annotation; numbers become plain ones."""
    hints = _hints(type(record))
    for field in fields(record):
        where = f"{type(record).__name__}: {field.name}"
        value = plain(getattr(record, field.name), hints[field.name], where)
        object.__setattr__(record, field.name, value)


@cache
def _hints(given: Any) -> dict[str, Any]:
    return get_type_hints(given)


def plain(value: Any, hint: Any, what: str) -> Any:
    """A value as its annotation says: numbers of NumPy as Python's, lists and arrays as tuples.

    A number is no flag and a flag no number; a text, a mapping and a set are no list.

    Parameters
    ----------
    hint : the annotation.
    what : the name of the value, for the message.

    Raises
    ------
    InputError : the value is of another kind.
    """
    try:
        return _fitted(value, hint)
    except _Misfit as found:
        raise InputError(
            f"{what}{found.where} must be {_kind(found.hint)}, not {shown(found.value)}"
        ) from None


def _fitted(value: Any, hint: Any) -> Any:
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        return _one_fitted(value, hint)
    if kind in _LISTS:
        return _items(value, hint, inner[0])
    if kind is Mapping:
        return _named(value, hint, inner)
    if kind is Any or (kind is Callable and callable(value)):
        return value
    if kind is bool and _is_flag(value):
        return bool(value)
    if kind is int and isinstance(value, Integral) and not _is_flag(value):
        return operator.index(value)
    if kind is float and isinstance(value, Real) and not _is_flag(value):
        return value if isinstance(value, int) else float(value)
    if kind is str and isinstance(value, str):
        return str(value)
    if kind not in (Callable, bool, int, float, str) and isinstance(value, kind):
        return value
    raise _Misfit(value, hint)


def _is_flag(value: Any) -> bool:
    """Python's or NumPy's, which is no bool."""
    return isinstance(value, bool) or type(value).__name__ in ("bool_", "bool")


def _one_fitted(value: Any, hint: Any) -> Any:
    misfits = []
    for one in get_args(hint):
        try:
            return _fitted(value, one)
        except _Misfit as found:
            misfits.append(found)
    deepest = max(misfits, key=lambda found: len(found.where))
    raise deepest if deepest.where else _Misfit(value, hint)


def _items(value: Any, hint: Any, inner: Any) -> tuple[Any, ...]:
    ordered = get_origin(hint) is not Sequence or not isinstance(value, (set, frozenset))
    listed = getattr(value, "tolist", None)  # of an array, a tensor, a column
    items = listed() if callable(listed) else value
    if isinstance(items, (str, bytes, Mapping)) or not isinstance(items, Iterable) or not ordered:
        raise _Misfit(value, hint)
    return tuple(_inside(item, inner, f"[{place}]") for place, item in enumerate(items))


def _named(value: Any, hint: Any, inner: tuple[Any, ...]) -> Any:
    if not isinstance(value, Mapping):
        raise _Misfit(value, hint)
    for name, item in value.items():
        _inside(name, inner[0], ": every name")
        _inside(item, inner[1], f"[{shown(name)}]")
    return value


def _inside(item: Any, hint: Any, where: str) -> Any:
    try:
        return _fitted(item, hint)
    except _Misfit as found:
        raise _Misfit(found.value, found.hint, where + found.where) from None


def _kind(hint: Any, several: bool = False) -> str:
    """What a value must be, in words: "a list of texts, or None"."""
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        *others, last = dict.fromkeys(_kind(one, several) for one in inner)
        between = ", or " if any(" of " in other for other in others) else " or "
        return f"{', '.join(others)}{between}{last}" if others else last
    if kind in _LISTS:
        return f"{'lists' if several else 'a list'} of {_kind(inner[0], True)}"
    if kind is Mapping:
        of = "" if inner[1] is Any else f" of names to {_kind(inner[1], True)}"
        return f"{'mappings' if several else 'a mapping'}{of}"
    if kind in _WORDS:
        return _WORDS[kind][several]
    name = kind.__name__
    return f"{name}s" if several else f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"
