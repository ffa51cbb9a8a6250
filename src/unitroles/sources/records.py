"""Tables of samples: text files with columns, parquet files and saved Hugging Face data sets."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from unitroles.errors import InputError, unknown
from unitroles.sources.vision import needed
from unitroles.wording import few, first_line

LABELS = ("label", "labels")
TEXTS = ("text", "sentence", "question")
SEPARATORS = {".csv": ",", ".tsv": "\t"}
SAVED = ("state.json", "dataset_dict.json")
"""A folder with one of these was written by `save_to_disk` of Hugging Face datasets."""
_ARROW = (ValueError, TypeError, NotImplementedError)
"""The kinds of all errors of pyarrow."""
_REMEDY = "give a text file in UTF-8 with a label and a text in every line"


@dataclass(frozen=True)
class Columns:
    """The columns of a table that are read; None finds them by name or type."""

    label: str | None = None
    text: str | None = None
    image: str | None = None


@dataclass(frozen=True)
class Pictured:
    """A column of encoded pictures, decoded one by one."""

    file: str
    encoded: Any
    column: str

    def __getitem__(self, row: int) -> Any:
        from PIL import Image, ImageOps

        content = self.encoded[row][self.column]["bytes"]
        if content is None:
            raise InputError(
                f"row {row} of {self.file} holds the path of a picture, not the picture; save the "
                "data set with its pictures embedded"
            )
        with (
            reading_picture(f"the picture in row {row} of {self.file} cannot be read"),
            Image.open(BytesIO(content)) as picture,
        ):
            return ImageOps.exif_transpose(picture).convert("RGB")


@contextmanager
def reading_picture(failed: str) -> Iterator[None]:
    """One sentence for all that a damaged file may raise."""
    try:
        yield
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{failed} ({first_line(error)}); repair or remove it") from error


@dataclass(frozen=True)
class Table:
    """One split of a table.

    Parameters
    ----------
    file : where it comes from, for messages.
    labels : as they stand there.
    names : the class names, where the labels are numbers of these.
    texts : one per sample; None for pictures.
    pictures : reads the picture with a number; None for texts.
    """

    file: str
    labels: list[Any]
    names: tuple[str, ...] | None = None
    texts: list[str] | None = None
    pictures: Pictured | None = None


def is_table(spec: str) -> bool:
    """Whether DATA is a table by its ending, or a folder of a saved data set."""
    path = Path(spec)
    if path.is_dir():
        return any((path / name).is_file() for name in SAVED)
    return path.suffix.lower() in (*SEPARATORS, ".parquet")


def read_table(spec: str, split: str, columns: Columns = Columns()) -> Table:
    """Labels, and texts or pictures, of one split.

    Parameters
    ----------
    spec : "file.csv" or "file.tsv" in UTF-8, with a header line that names the columns or with two
        columns, label and text; "file.parquet"; or a folder that `save_to_disk` wrote.
    split : "train" or "test", for messages.
    columns : those that hold the class and the sample.

    Raises
    ------
    InputError : the file cannot be read, or lacks a column, a label or all rows.
    """
    if Path(spec).suffix.lower() in SEPARATORS and not Path(spec).is_dir():
        if columns.image is not None:
            raise InputError("--image-column is for parquet files; leave it out for text files")
        table = _separated(spec, split, columns)
    else:
        table = _arrow(spec, split, columns)
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
    if Path(spec).suffix.lower() in SEPARATORS and not Path(spec).is_dir():
        lines = _lines(spec, split)
        header = [cell.strip() for cell in lines[0]]
        if name not in header:
            raise InputError(
                f"{spec} has no column {name!r} in its first line ({few(header)}); name one of "
                "these, or add a header line"
            )
        return _complete([cells[header.index(name)] for cells in lines[1:]], name, spec)
    data = _data_set(spec, split)
    known = getattr(data.features[_existing(name, data.column_names, spec)], "names", None)
    values = data[name][:]
    kinds = {type(value) for value in values if value is not None}
    if not any(kinds <= {kind} for kind in (int, bool, str)):
        raise InputError(
            f"column {name!r} of {spec} holds {few(sorted(k.__name__ for k in kinds))}, not one "
            "whole number, boolean or text per sample; name the one that does with --group-by"
        )
    if known is not None:
        values = [known[n] if n is not None and 0 <= n < len(known) else None for n in values]
    return _complete(values, name, spec)


def _complete(values: list[Any], name: str, spec: str) -> list[Any]:
    """The same, if all samples have one."""
    for row, value in enumerate(values):
        if value is None or (isinstance(value, str) and not value.strip()):
            raise InputError(
                f"sample {row} in {spec} has no {name!r}; fill it in or remove the sample"
            )
    return values


def _separated(spec: str, split: str, columns: Columns) -> Table:
    lines = _lines(spec, split)
    header = [cell.strip() for cell in lines[0]]
    named = {cell.lower() for cell in header} & {*LABELS, *TEXTS}
    if named or columns.label or columns.text:
        label = _label_column(columns, header, spec)
        text = _text_column(columns, header, label, spec)
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


def _arrow(spec: str, split: str, columns: Columns) -> Table:
    data = _data_set(spec, split)
    names = data.column_names
    label = _label_column(columns, names, spec)
    image = columns.image and _existing(columns.image, names, spec)
    if image is None and columns.text is None:
        kinds = {name: type(feature).__name__ for name, feature in data.features.items()}
        image = next((name for name in names if kinds[name] == "Image"), None)
    labels, known = _labels(data, label, spec)
    if image is None:
        text = _text_column(columns, names, label, spec)
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
    return Table(spec, labels, known, pictures=Pictured(spec, encoded, image))


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
        return datasets.Dataset(needed("pyarrow.parquet", "hf").read_table(spec))
    except (OSError, KeyError, *_ARROW) as error:  # damaged, or of another format
        raise InputError(
            f"the {split} data {spec} cannot be read: {first_line(error)}; give a parquet file, or "
            "a folder written by save_to_disk"
        ) from error


def _labels(data: Any, column: str, spec: str) -> tuple[list[Any], tuple[str, ...] | None]:
    labels = data[column][:]
    names = getattr(data.features[column], "names", None)
    kinds = {type(label) for label in labels if label is not None}
    if not kinds <= {int} and not kinds <= {str}:
        raise InputError(
            f"column {column!r} of {spec} holds {few(sorted(k.__name__ for k in kinds))}, not one "
            "whole number or one name per sample; name the one that does with --label-column"
        )
    outside = next((label for label in labels if names and not 0 <= (label or 0) < len(names)), 0)
    if outside:
        raise InputError(
            f"a label in {spec} is {outside}, outside its {len(names or ())} class names; remove "
            "what has no label"
        )
    return labels, tuple(names) if names else None


def _label_column(columns: Columns, names: Sequence[str], spec: str) -> str:
    if columns.label is not None:
        return _existing(columns.label, names, spec)
    found = next((name for name in names if name.lower() in LABELS), None)
    if found is None:
        raise InputError(
            f"{spec} has no column 'label' or 'labels' among {few(list(names))}; name the one that "
            "holds the class with --label-column"
        )
    return found


def _text_column(columns: Columns, names: Sequence[str], label: str, spec: str) -> str:
    if columns.text is not None:
        return _existing(columns.text, names, spec)
    others = [name for name in names if name != label]
    found = [name for name in others if name.lower() in TEXTS] or others
    if len(found) > 1 and found == others:
        raise InputError(
            f"{spec} has no column {', '.join(map(repr, TEXTS))} among {few(others)}; name the one "
            "that holds the text with --text-column"
        )
    if not found:
        raise InputError(f"{spec} has no column beside {label!r}; add one with the texts")
    return found[0]


def _existing(name: str, names: Sequence[str], spec: str) -> str:
    if name not in names:
        raise unknown(f"column of {spec}", name, names)
    return name


def same_kind(values: Sequence[Sequence[Any]]) -> list[np.ndarray]:
    """Arrays of whole numbers where all values are such, else of texts."""
    texts = [[str(value).strip() for value in split] for split in values]
    whole = all(is_whole(text) for split in texts for text in split)
    return [np.array(split, dtype=np.int64 if whole else str) for split in texts]


def is_whole(text: str) -> bool:
    """Whether a text is a whole number; longer ones are names, such as those of files."""
    return text.removeprefix("-").isdecimal() and abs(int(text)) < 2**63
