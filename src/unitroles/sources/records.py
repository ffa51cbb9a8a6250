"""Tables of samples: text files with columns, parquet files and saved Hugging Face data sets."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unitroles.errors import InputError, unknown
from unitroles.sources.factory import Known
from unitroles.sources.vision import needed
from unitroles.wording import few, first_line, size

LABELS = ("label", "labels")
TEXTS = ("text", "sentence", "question")
SEPARATORS = {".csv": ",", ".tsv": "\t"}
SAVED = ("state.json", "dataset_dict.json")
"""A folder with one of these was written by `save_to_disk` of Hugging Face datasets."""
_ARROW = (ValueError, TypeError, NotImplementedError)
"""The kinds of all errors of pyarrow."""
_REMEDY = "give a text file in UTF-8 with a label and a text in every line"


FOR_PICTURES = ("image_size", "scale", "mean", "transform")
FOR_TABLES = ("label_column", "text_column", "image_column", "tokenizer", "max_length")


@dataclass(frozen=True)
class DataOptions:
    """Options for turning data into the model's input, named as on the command line.

    Parameters
    ----------
    image_size : folders, tables: the shorter side after resizing, in pixels; then the centre is
        cropped square.
    scale : uint8 arrays: divide by 255 and put the channels first.
    mean, std : per channel, subtracted and divided by after scaling to 0 ... 1.
    transform : folders, tables: a function of one PIL picture, in place of `image_size`, `mean`,
        `std`.
    label_column, text_column, image_column : the columns of a table that are read; None finds them
        by name or type.
    tokenizer : folder or name on the Hugging Face hub; None takes that of the model.
    max_length : at most so many tokens; None takes what model and tokenizer can.
    class_names : in the order of the model's outputs; None takes those of the model.
    known : what the model says of its inputs and classes; its transform is taken where none of the
        options for pictures is given.
    """

    image_size: int | None = None
    scale: bool = False
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    transform: Callable[[Any], Any] | None = None
    label_column: str | None = None
    text_column: str | None = None
    image_column: str | None = None
    tokenizer: str | None = None
    max_length: int | None = None
    class_names: Sequence[str] | None = None
    known: Known = Known()

    def __post_init__(self) -> None:
        if (self.mean is None) != (self.std is None):
            raise InputError("--mean and --std belong together; give both or neither")
        if self.std is not None and not all(value > 0 for value in self.std):
            raise InputError(f"--std must be positive, not {self.std}")
        if self.transform is not None and (self.image_size or self.mean):
            raise InputError("--transform replaces --image-size, --mean, --std; leave these out")

    @property
    def numbers(self) -> Mapping[str, int]:
        """Class numbers by name; empty where nobody named the classes."""
        if self.class_names is None:
            return self.known.numbers
        return {name: number for number, name in enumerate(self.class_names)}

    def refuse(self, names: Sequence[str], reason: str) -> None:
        """Raise an error if one of these options was given."""
        given = [f"--{name.replace('_', '-')}" for name in names if getattr(self, name)]
        if given:
            raise InputError(f"{', '.join(given)} is for {reason}")


@dataclass(frozen=True)
class Table:
    """One split of a table.

    Parameters
    ----------
    file : where it comes from, for messages.
    labels : as they stand there.
    names : the class names, where the labels are numbers of these; else none.
    texts : one per sample; None for pictures.
    pictures : a data set of one column of encoded pictures; None for texts.
    """

    file: str
    labels: list[Any]
    names: tuple[str, ...] = ()
    texts: list[str] | None = None
    pictures: Any = None


def is_table(spec: str) -> bool:
    """Whether DATA is a table by its ending, or a folder of a saved data set."""
    path = Path(spec)
    if path.is_dir():
        return any((path / name).is_file() for name in SAVED)
    return path.suffix.lower() in (*SEPARATORS, ".parquet")


def read_table(spec: str, split: str, options: DataOptions = DataOptions()) -> Table:
    """Labels, and texts or pictures, of one split.

    Parameters
    ----------
    spec : "file.csv" or "file.tsv" in UTF-8, with a header line that names the columns or with two
        columns, label and text; "file.parquet"; or a folder that `save_to_disk` wrote.
    split : "train" or "test", for messages.
    options : name the columns that hold the class and the sample.

    Raises
    ------
    InputError : the file cannot be read, or lacks a column, a label or all rows.
    """
    read = _separated if _is_text_file(spec) else _arrow
    table = read(spec, split, options)
    if not table.labels:
        raise InputError(f"the {split} data in {spec} hold no rows; give samples of each class")
    empty = next((row for row, label in enumerate(table.labels) if label in ("", None)), None)
    if empty is not None:
        raise InputError(f"sample {empty} in {spec} has no label; add it, or remove the row")
    return table


def read_column(spec: str, split: str, name: str) -> list[Any]:
    """One column: whole numbers, booleans or texts; those of a class feature by their names.

    Raises
    ------
    InputError : there is no such column, it holds something else, or a sample has no value.
    """
    if _is_text_file(spec):
        lines = _lines(spec, split)
        header = [cell.strip() for cell in lines[0]]
        if name not in header:
            raise InputError(
                f"{spec} has no column {name!r} in its first line ({few(header)}); name one of "
                "these, or add a header line"
            )
        values = [cells[header.index(name)] for cells in lines[1:]]
    else:
        data = _data_set(spec, split)
        known = getattr(data.features[_existing(name, data.column_names, spec)], "names", None)
        wanted = "whole number, boolean or text per sample; name the one that does with --group-by"
        values = _values(data, name, spec, (int, bool, str), wanted)
        if known is not None:
            values = [known[n] if n is not None and 0 <= n < len(known) else None for n in values]
    for row, value in enumerate(values):
        if value is None or not str(value).strip():
            raise InputError(
                f"sample {row} in {spec} has no {name!r}; fill it in or remove the sample"
            )
    return values


def _is_text_file(spec: str) -> bool:
    return Path(spec).suffix.lower() in SEPARATORS and not Path(spec).is_dir()


def _separated(spec: str, split: str, options: DataOptions) -> Table:
    options.refuse(["image_column"], "parquet files; leave it out for text files")
    lines = _lines(spec, split)
    header = [cell.strip() for cell in lines[0]]
    named = {cell.lower() for cell in header} & {*LABELS, *TEXTS}
    if named or options.label_column or options.text_column:
        label = _label_column(options, header, spec)
        text = _text_column(options, header, label, spec)
        places, lines = (header.index(label), header.index(text)), lines[1:]
    elif len(header) == 2:
        places = (0, 1)
    else:
        raise InputError(
            f"{spec} has {len(header)} columns and no header line with 'label' and 'text'; add "
            "one, or give two columns, label and text"
        )
    labels, texts = ([cells[place] for cells in lines] for place in places)
    return Table(spec, [label.strip() for label in labels], texts=texts)


def _lines(spec: str, split: str) -> list[list[str]]:
    """All cells as texts: "NA", "null" and "007" are labels like others; blank lines are left out.

    Tabs separate without quotes: a quotation mark is a part of the text.
    """
    if not Path(spec).is_file():
        raise InputError(f"the {split} data cannot be read: there is no file {spec}; {_REMEDY}")
    separator = SEPARATORS[Path(spec).suffix.lower()]
    quoting = csv.QUOTE_NONE if separator == "\t" else csv.QUOTE_MINIMAL
    try:
        with open(spec, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=separator, quoting=quoting, strict=True)
            lines = [(reader.line_num, cells) for cells in reader if cells]
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise InputError(
            f"the {split} data {spec} cannot be read: {first_line(error)}; {_REMEDY}"
        ) from error
    if not lines:
        raise InputError(f"the {split} data {spec} are empty; {_REMEDY}")
    width = len(lines[0][1])
    for number, cells in lines:
        if len(cells) != width:
            raise InputError(
                f"line {number} of {spec} has {len(cells)} columns, the first line {width}; "
                f"{_REMEDY}"
            )
    return [cells for _, cells in lines]


def _arrow(spec: str, split: str, options: DataOptions) -> Table:
    data = _data_set(spec, split)
    names = data.column_names
    label = _label_column(options, names, spec)
    image = options.image_column and _existing(options.image_column, names, spec)
    if image is None and options.text_column is None:
        kinds = {name: type(feature).__name__ for name, feature in data.features.items()}
        image = next((name for name in names if kinds[name] == "Image"), None)
    wanted = "whole number or one name per sample; name the one that does with --label-column"
    labels = _values(data, label, spec, (int, str), wanted)
    known = tuple(getattr(data.features[label], "names", None) or ())
    outside = [n for n in labels if known and n is not None and not 0 <= n < len(known)]
    if outside:
        raise InputError(
            f"a label in {spec} is {outside[0]}, outside its {len(known)} class names; "
            "remove what has no label"
        )
    if image is None:
        text = _text_column(options, names, label, spec)
        texts = data[text][:]
        if not all(isinstance(value, str) for value in texts):
            raise InputError(
                f"column {text!r} of {spec} does not hold texts; name the one that does with "
                "--text-column, or the pictures with --image-column"
            )
        return Table(spec, labels, known, texts=texts)
    picture = needed("datasets", "hf").Image(decode=False)
    try:
        encoded = data.select_columns([image]).cast_column(image, picture)
    except _ARROW as error:
        raise InputError(
            f"column {image!r} of {spec} does not hold pictures ({first_line(error)}); name the "
            "one that does with --image-column"
        ) from error
    return Table(spec, labels, known, pictures=encoded)


def _data_set(spec: str, split: str) -> Any:
    """A Hugging Face data set without its cache: nothing is written anywhere."""
    datasets = needed("datasets", "hf")
    path = Path(spec)
    if (path / "dataset_dict.json").is_file():
        inside = sorted(p.name for p in path.iterdir() if (p / "state.json").is_file())
        near = ", ".join(f"{path / name}" for name in inside[:3])
        raise InputError(f"{spec} holds several splits; give one of them for {split}: {near}")
    if not path.exists():
        raise InputError(
            f"the {split} data cannot be read: there is no file {spec}; give a parquet file"
        )
    try:
        if path.is_dir():
            return datasets.load_from_disk(spec)
        parquet = needed("pyarrow.parquet", "hf")
        held = parquet.read_metadata(spec)
        refuse_huge(4 * held.num_rows * held.num_columns, f"the {split} data {spec}")
        return datasets.Dataset(parquet.read_table(spec))
    except (OSError, KeyError, *_ARROW) as error:  # damaged, or of another format
        raise InputError(
            f"the {split} data {spec} cannot be read: {first_line(error)}; give a parquet file, or "
            "a folder written by save_to_disk"
        ) from error


def _values(data: Any, column: str, spec: str, kinds: Sequence[type], wanted: str) -> list[Any]:
    """All values of a column, of one of these kinds or None."""
    values = data[column][:]
    found = {type(value) for value in values if value is not None}
    if not any(found <= {kind} for kind in kinds):
        raise InputError(
            f"column {column!r} of {spec} holds {few(sorted(k.__name__ for k in found))}, not one "
            f"{wanted}"
        )
    return values


def _column(
    chosen: str | None, usual: Sequence[str], names: Sequence[str], spec: str, what: str
) -> str:
    """The chosen column of these, or the first with a usual name."""
    if chosen is not None:
        return _existing(chosen, names, spec)
    found = next((name for name in names if name.lower() in usual), None)
    if found is None:
        *first, last = map(repr, usual)
        raise InputError(
            f"{spec} has no column {', '.join(first)} or {last} among {few(list(names))}; name the "
            f"one that holds the {what}"
        )
    return found


def _label_column(options: DataOptions, names: Sequence[str], spec: str) -> str:
    return _column(options.label_column, LABELS, names, spec, "class with --label-column")


def _text_column(options: DataOptions, names: Sequence[str], label: str, spec: str) -> str:
    others = [name for name in names if name != label]
    if not others:
        raise InputError(f"{spec} has no column beside {label!r}; add one with the texts")
    usual = TEXTS if len(others) > 1 else [others[0].lower()]
    return _column(
        options.text_column,
        usual,
        names if options.text_column else others,
        spec,
        "text with --text-column",
    )


def _existing(name: str, names: Sequence[str], spec: str) -> str:
    if name not in names:
        raise unknown(f"column of {spec}", name, names)
    return name


def refuse_huge(count: int, what: str) -> None:
    """Raise an error for what no memory of this machine holds: small files can declare it.

    Parameters
    ----------
    count : bytes, at least.
    """
    if count > (most := machine_memory()):
        raise InputError(
            f"{what} would take {size(count)} or more, and this machine has {size(most)} of "
            "memory; give fewer samples"
        )


def machine_memory() -> int:
    """Bytes of this machine, used or not; where it does not say, more than any file has."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 2**62


def same_kind(values: Sequence[Sequence[Any]]) -> list[np.ndarray]:
    """Arrays of whole numbers where all values are such, else of texts."""
    texts = [[str(value).strip() for value in split] for split in values]
    whole = all(is_whole(text) for split in texts for text in split)
    return [np.array(split, dtype=np.int64 if whole else str) for split in texts]


def is_whole(text: str) -> bool:
    """Whether a text is a whole number; longer ones are names, such as those of files."""
    return text.removeprefix("-").isdecimal() and abs(int(text)) < 2**63
