"""Options of a command from records, and from a TOML file; and the file of all that were used.

Name, type, default and text of an option stand in its record alone. The tables of a file are the
panels of the command's help, the keys the names of its options.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from inspect import Parameter, getdoc
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from unitroles.errors import InputError, unknown
from unitroles.files import check_new, read_toml

RENAMED = {"confidence": "bootstrap"}
"""Options by the names of before."""


@dataclass(frozen=True)
class Option:
    """A field of a record, as the command line and its configuration files have it.

    Parameters
    ----------
    table : of the configuration file; with a capital, the panel of the help.
    kinds : the types of the field.
    plain : the one that parser and files take: what is no number, path or truth is a text.
    items : the types of the items, where several values may be given with commas between.
    parameter : of the function that the parser calls.
    """

    table: str
    kinds: Sequence[Any]
    plain: Any
    items: Sequence[Any]
    parameter: Parameter

    def value(self, given: Any) -> Any:
        """For the record, from what the parser gives.

        Raises
        ------
        InputError : a text is empty, or must hold numbers and does not.
        """
        if not isinstance(given, str):
            return given
        if not given or "\0" in given:
            said = "is empty" if not given else "holds a character of no width, NUL"
            raise InputError(f"{flag(self.parameter.name)} {said}; give a value, or leave it out")
        if given == "none" and NoneType in self.kinds and self.parameter.default is not None:
            return None
        if float in self.items:
            return numbers(flag(self.parameter.name), given, float)
        if self.items:
            return tuple(word.strip() for word in given.split(","))
        return int(given) if int in self.kinds and given.isdigit() else given


def flag(name: str) -> str:
    """The option of a field: --max-per-class."""
    return f"--{name.replace('_', '-')}"


def numbers(option: str, text: str, kind: type[int] | type[float]) -> tuple[Any, ...]:
    """ "3,224,224" as numbers."""
    try:
        return tuple(map(kind, text.split(",")))
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise InputError(f"{option} takes {what} with commas between, not {text!r}") from None


def options_of(records: Iterable[tuple[str, type]]) -> dict[str, Option]:
    """The options of a command by name; a name that two records have is one option.

    Their help is the first sentence of the docstring's line, their settings are the field's
    `metadata`; a field that is `Annotated` has both from its annotation.

    Parameters
    ----------
    records : frozen dataclasses, each after the name of its table.
    """
    found: dict[str, Option] = {}
    for table, record in records:
        hints = get_type_hints(record, include_extras=True)
        for field in fields(record):
            name, hint, default = field.name, hints[field.name], field.default
            kind, *own = get_args(hint) if get_origin(hint) is Annotated else (hint,)
            kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
            first, *others = (kind for kind in kinds if kind is not NoneType)
            plain = first if first in (bool, int, float, Path) and not others else str
            items = get_args(first) if get_origin(first) in (tuple, Sequence) else ()
            info = (
                own[0]
                if own
                else typer.Option(
                    *[flag(name)] * (default is False),  # else there is --no- as well
                    help=_first_sentence(record, name),
                    rich_help_panel=table.capitalize(),
                    **field.metadata,
                )
            )
            parameter = Parameter(
                name,
                Parameter.KEYWORD_ONLY,
                default=Parameter.empty if default is MISSING else default,
                annotation=Annotated[plain | None if default is None else plain, info],
            )
            found.setdefault(name, Option(table, kinds, plain, items, parameter))
    return found


def _first_sentence(record: type, name: str) -> str:
    """Of the line `name : text` of a docstring, without the marks of code."""
    found = re.search(rf"^{name} : (.+(?:\n .+)*)", getdoc(record) or "", re.MULTILINE)
    text = " ".join(re.sub('[`"]', "", found[1] if found else "").split())
    first = re.split(r"(?<=\.) (?=[A-Z])", text)[0]
    return first[:1].upper() + first[1:]


def read_config(path: Path, known: Mapping[str, Option]) -> dict[str, Any]:
    """The values of a file, by the names of the options.

    Raises
    ------
    InputError : the file cannot be read, or a table, a key or a value does not fit.
    """
    try:
        given = read_toml(path)
    except OSError as error:
        raise InputError(
            f"cannot read the configuration {path}: {error.strerror}; give a TOML file"
        ) from error
    except ValueError as error:  # no TOML, or no UTF-8
        raise InputError(
            f"the configuration {path} cannot be read: {error}; write TOML: tables such as "
            "[sample] with lines such as seed = 1"
        ) from error
    tables = list(dict.fromkeys(option.table for option in known.values()))
    found = {}
    for table, entries in given.items():
        if not isinstance(entries, dict):
            name = table.replace("-", "_")
            place = f"[{known[name].table}]" if name in known else "one of its tables"
            raise InputError(f"{path}: {table!r} stands outside of all tables; put it in {place}")
        if table not in tables:
            raise unknown(f"table in {path}", table, tables)
        for key, value in entries.items():
            name = key.replace("-", "_")
            if name not in known or known[name].table != table:
                raise _misplaced(key, table, path, known)
            found[name] = _value(value, known[name], f"{path}: [{table}] {key}")
    return found


def _misplaced(key: str, table: str, path: Path, known: Mapping[str, Option]) -> InputError:
    name = key.replace("-", "_")
    if name in RENAMED:
        return InputError(f"{path}: {key!r} is now {RENAMED[name]!r}; write that")
    if name in known:
        return InputError(f"{path}: {key!r} stands in [{table}]; put it in [{known[name].table}]")
    names = [name for name, option in known.items() if option.table == table]
    return unknown(f"key in [{table}] of {path}", key, names)


def _value(value: Any, option: Option, where: str) -> Any:
    """As the command line would give it; numbers may stand where it takes a text."""
    kinds, what = {
        bool: ([bool], "true or false"),
        int: ([int], "a whole number"),
        float: ([int, float], "a number"),
    }.get(option.plain, ([str, int, float], "a text or a number"))
    if type(value) in kinds:
        return value if option.plain in (bool, int, float) else str(value)
    if not option.items:
        raise InputError(f"{where} must be {what}, not {value!r}; change it")
    items = [str(item) for item in value] if isinstance(value, list) else [","]
    if not items or any("," in item for item in items):
        raise InputError(f"{where} must be {what}, or a list of these without commas")
    return ",".join(items)


def used_tables(
    known: Mapping[str, Option], values: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """The options of one run by table; those that are None are left out, as TOML has no word."""
    tables: dict[str, dict[str, Any]] = defaultdict(dict)
    for name, option in known.items():
        value = values[name]
        if value is not None:
            tables[option.table][name] = str(value) if isinstance(value, Path) else value
    return tables


def config_beside(
    out: Path, config: Path | None, tables: Mapping[str, Any], force: bool
) -> Path | None:
    """The file for the options of a run, beside its result; None where it is there already.

    Raises
    ------
    InputError : it would overwrite the result; or, without `force`, another file or the
        configuration that the run was given.
    """
    path = out.with_suffix(".toml")
    if path == out:
        raise InputError(f"{out} is the place of the options used; end --out with .nc")
    if config is not None and path.exists() and path.samefile(config):
        if read_toml(path) == tables:
            return None
        if not force:
            raise InputError(
                f"{path} would be overwritten by all options used; give another name for --out, "
                "or --force to overwrite it"
            )
    check_new([path], force)
    return path


def config_text(tables: Mapping[str, Any], version: str) -> str:
    """The options as TOML."""
    import tomli_w

    return f"# All options of a run of unitroles {version}\n\n{tomli_w.dumps(tables)}"
