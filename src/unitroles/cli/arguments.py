"""Options of `analyze`: the records of the library, and those of the command line alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from inspect import Signature
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from unitroles.cli.config import flag, options_of, read_config
from unitroles.errors import InputError
from unitroles.options import Compute, Evidence, Method, Sample
from unitroles.wording import first_line

Record = TypeVar("Record")
Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="package.module:factory (a function without arguments, or the model itself; the "
        "current folder is searched too), torchvision:NAME, timm:NAME or hf:FOLDER_OR_NAME.",
    ),
]
Force = Annotated[
    bool, typer.Option("--force", rich_help_panel="Output", help="Overwrite what exists.")
]


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
        context.default_map = {**(context.default_map or {}), **read_config(config, LASTING)}
    return config


@dataclass(frozen=True)
class Configuration:
    """A file of options.

    Parameters
    ----------
    config : options from a TOML file, in tables named as the groups here: model, data, method, ...;
        what is given here wins.
    """

    config: Path | None = field(
        default=None,
        metadata={"metavar": "FILE.toml", "is_eager": True, "callback": take_config},
    )


@dataclass(frozen=True)
class Network:
    """The model: arguments of `sources.factory.trained_model`.

    Parameters
    ----------
    weights : safetensors file, its index, or PyTorch file of tensors (no pickle); hf: models bring
        theirs.
    weights_key : which weights of the file, where several fit, such as averaged ones.
    """

    model: Model
    weights: Path | None = None
    weights_key: str | None = None


@dataclass(frozen=True)
class Arguments:
    """Arguments of `analyze` that are in no group of `options`, by the same names.

    Parameters
    ----------
    layer : layer whose output carries the units; else recommended.
    """

    layer: str | None = None


@dataclass(frozen=True)
class Data:
    """The samples of both splits; all but these two are fields of `sources.records.DataOptions`.

    Parameters
    ----------
    train : training data: a folder of class folders; file.npz (arrays 'images', 'labels') or
        file.npz::train ('train_images', 'train_labels'): float arrays are given to the model as
        they are, float64 as float32; file.csv, file.tsv: label and text; file.parquet, or a folder
        of a Hugging Face data set: label, and picture or text.
    test : held-out data, in the same forms.
    image_size : pictures: resize the shorter side, crop the centre; else as the model's own preset.
    scale : arrays of uint8: divide by 255, channels to the front.
    mean : per channel, after scaling: .5 or .4,.5,.6.
    std : per channel, after scaling.
    transform : pictures: package.module:function of one PIL picture.
    label_column : tables: the class; else 'label'.
    text_column : tables: the text; else 'text'.
    image_column : parquet: the pictures; else the column of that type.
    tokenizer : texts: folder or name; else that of the hf: model.
    max_length : texts: tokens at most; else as many as the model can.
    class_names : names of the classes in the order of the model's outputs, with commas or in a file
        with one name per line: folders and labels with these names are numbered so; else the
        model's own names, else sorted.
    """

    train: str = field(metadata={"metavar": "DATA"})
    test: str = field(metadata={"metavar": "DATA"})
    image_size: int | None = field(default=None, metadata={"min": 1})
    scale: bool = False
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    transform: str | None = None
    label_column: str | None = None
    text_column: str | None = None
    image_column: str | None = None
    tokenizer: str | None = None
    max_length: int | None = field(default=None, metadata={"min": 1})
    class_names: tuple[str, ...] | None = field(default=None, metadata={"metavar": "NAMES"})


@dataclass(frozen=True)
class WithEvidence:
    """Whether the options of evidence count.

    Parameters
    ----------
    evidence : also measure noise floors, an exchangeability test, intervals and controls.
    """

    evidence: bool = False


@dataclass(frozen=True)
class Output:
    """The files that are written.

    Parameters
    ----------
    out : where the result goes.
    dry_run : print plan, memory and time; write nothing.
    quiet : no bars and tables; warnings stay.
    """

    out: Path | None = field(default=None, metadata={"metavar": "FILE.nc"})
    dry_run: bool = False
    force: Force = False
    quiet: bool = False


OPTIONS = options_of(
    [
        ("configuration", Configuration),
        ("model", Network),
        ("model", Arguments),
        ("data", Data),
        ("method", Method),
        ("sample", Sample),
        ("compute", Compute),
        ("evidence", WithEvidence),
        ("evidence", Evidence),
        ("output", Output),
    ]
)
LASTING = {n: option for n, option in OPTIONS.items() if n not in ("config", "force", "dry_run")}
"""Those that a configuration file may have; the others belong to one run."""


def takes_all(command: Callable[..., None]) -> Callable[..., None]:
    """Make the parser give a command all of `OPTIONS`."""
    vars(command)["__signature__"] = Signature([each.parameter for each in OPTIONS.values()])
    return command


def made(record: type[Record], given: Mapping[str, Any]) -> Record:
    """The record that has these values."""
    names = (each.name for each in fields(record))  # pyright: ignore[reportArgumentType]
    return record(**{name: OPTIONS[name].value(given[name]) for name in names})


def class_names_of(words: Sequence[str] | None) -> tuple[str, ...] | None:
    """The class names that --class-names gives: themselves, or the lines of one file.

    Raises
    ------
    InputError : there is no such file, or it cannot be read or has an empty line; a name is empty
        or stands for two classes.
    """
    if words is None:
        return None
    source, names = "--class-names", tuple(words)
    if len(names) == 1:
        path = Path(names[0])
        source, remedy = f"the file of class names {path}", "give one name per line, in UTF-8"
        try:
            lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
        except (OSError, ValueError) as error:  # no such file, or no UTF-8
            raise InputError(
                f"{source} cannot be read: {getattr(error, 'strerror', None) or first_line(error)};"
                f" {remedy}, or the names with commas between"
            ) from error
        names = tuple(line.strip() for line in lines)
    if not names or "" in names:
        raise InputError(f"{source} has an empty name; name every class")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{source} has {twice!r} twice; class names must differ")
    return names


def require_evidence(given: Mapping[str, Any]) -> None:
    """Refuse options of evidence where no evidence is asked for.

    Raises
    ------
    InputError : and which ones.
    """
    changed = [
        flag(f"no_{name}" if option.parameter.default is True else name)
        for name, option in OPTIONS.items()
        if option.table == "evidence" and given[name] != option.parameter.default
    ]
    if changed and not given["evidence"]:
        raise InputError(f"{', '.join(changed)}: of no use without --evidence; add it")


def numbered(words: Sequence[int | str], names: Collection[Any] | None) -> tuple[int | str, ...]:
    """Classes: names where the data have them, else numbers."""
    return tuple(
        int(word) if str(word).isdigit() and word not in (names or ()) else word for word in words
    )
