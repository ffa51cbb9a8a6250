"""Options of a command from a TOML file, and the file of all that were used.

The tables are the panels of the command's help, the keys the names of its options.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from unitroles.errors import InputError, unknown
from unitroles.files import check_new

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LISTS = ("mean", "std", "classes")
"""Options that take several values, with commas between or as a list."""
_OF_ONE_RUN = ("config", "force", "dry_run")


@dataclass(frozen=True)
class Setting:
    """Where an option stands, and the type of its values."""

    table: str
    kind: type


def take_config(context: Any, option: Any, config: Path | None) -> Path | None:
    """Let the file give what the command line does not.

    Parameters
    ----------
    context, option : of the parser that calls this, whichever click it brings.

    Raises
    ------
    InputError : the file cannot be read, or a table, a key or a value does not fit.
    """
    if config is not None:
        known = settings(context.command.callback)
        context.default_map = {**(context.default_map or {}), **read_config(config, known)}
    return config


def settings(command: Callable[..., Any]) -> dict[str, Setting]:
    """The options of a command by name."""
    found = {}
    signature = inspect.signature(inspect.unwrap(command), eval_str=True)
    for name, parameter in signature.parameters.items():
        if get_origin(parameter.annotation) is not Annotated or name in _OF_ONE_RUN:
            continue
        kind, info = get_args(parameter.annotation)[:2]
        (kind,) = [k for k in get_args(kind) or (kind,) if k is not type(None)]
        found[name] = Setting((info.rich_help_panel or "model").lower(), kind)
    return found


def read_config(path: Path, known: Mapping[str, Setting]) -> dict[str, Any]:
    """The values of a file, by the names of the options.

    Raises
    ------
    InputError : see `take_config`.
    """
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"cannot read the configuration {path}: {error.strerror}; give a TOML file"
        ) from error
    except ValueError as error:  # no TOML, or no UTF-8
        raise InputError(
            f"the configuration {path} cannot be read: {error}; write TOML: tables such as "
            "[sample] with lines such as seed = 1"
        ) from error
    tables = list(dict.fromkeys(setting.table for setting in known.values()))
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
            found[name] = _value(name, value, known[name].kind, f"{path}: [{table}] {key}")
    return found


def _misplaced(key: str, table: str, path: Path, known: Mapping[str, Setting]) -> InputError:
    other = known.get(key.replace("-", "_"))
    if other is not None:
        return InputError(f"{path}: {key!r} stands in [{table}]; put it in [{other.table}]")
    names = [name for name, setting in known.items() if setting.table == table]
    return unknown(f"key in [{table}] of {path}", key, names)


def _value(name: str, value: Any, kind: type, where: str) -> Any:
    """As the command line would give it; numbers may stand where it takes a text."""
    plain = isinstance(value, (str, int, float)) and not isinstance(value, bool)
    fits, what = {
        bool: (isinstance(value, bool), "true or false"),
        int: (plain and isinstance(value, int), "a whole number"),
        float: (plain and not isinstance(value, str), "a number"),
    }.get(kind, (plain, "a text or a number"))
    if fits:
        return value if kind in (bool, int, float) else str(value)
    if name not in LISTS:
        raise InputError(f"{where} must be {what}, not {value!r}; change it")
    items = [str(item) for item in value] if isinstance(value, list) else [","]
    if not items or any("," in item for item in items):
        raise InputError(f"{where} must be {what}, or a list of these without commas")
    return ",".join(items)


def used_tables(
    command: Callable[..., Any], values: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """The options of one run by table; those that are None are left out, as TOML has no word."""
    tables: dict[str, dict[str, Any]] = {}
    for name, setting in settings(command).items():
        value = values[name]
        if value is not None:
            plain = value if isinstance(value, (bool, int, float)) else str(value)
            tables.setdefault(setting.table, {})[name] = plain
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
        if tomllib.loads(path.read_text(encoding="utf-8")) == tables:
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
