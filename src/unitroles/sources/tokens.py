"""Rows of tables -> samples: class numbers, tokens of texts, pictures."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import Dataset

from unitroles.errors import DataWarning, InputError
from unitroles.sources.factory import Known
from unitroles.sources.huggingface import tokenizer_of
from unitroles.sources.records import Columns, Pictured, Table, is_whole, read_table
from unitroles.wording import few, first_line

_NO_LIMIT = 10**9
"""Tokenizers without a limit of their own give a number beyond all texts."""


@dataclass(frozen=True)
class Tables:
    """Options for turning the rows of a table into the model's input.

    Parameters
    ----------
    columns : which of them are read.
    tokenizer : folder or name on the Hugging Face hub; None takes that of the model.
    max_length : at most so many tokens; None takes what model and tokenizer can.
    known : what the model says of its inputs and classes.
    """

    columns: Columns = Columns()
    tokenizer: str | None = None
    max_length: int | None = None
    known: Known = Known()

    @property
    def used(self) -> list[str]:
        """The options that were given, as on the command line."""
        given = {
            "--label-column": self.columns.label,
            "--text-column": self.columns.text,
            "--image-column": self.columns.image,
            "--tokenizer": self.tokenizer,
            "--max-length": self.max_length,
        }
        return [option for option, value in given.items() if value]


class Sentences(Dataset):
    """Tokens of texts, all padded to one length, with their labels."""

    def __init__(self, tokens: Mapping[str, Tensor], labels: Int[np.ndarray, " samples"]) -> None:
        self.tokens, self.targets = tokens, labels

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, row: int) -> dict[str, Any]:
        found = {name: values[row] for name, values in self.tokens.items()}
        return {**found, "label": int(self.targets[row])}


class Gallery(Dataset):
    """Pictures of a table with their labels."""

    def __init__(
        self,
        pictures: Pictured,
        transform: Callable[[Any], Any],
        labels: Int[np.ndarray, " samples"],
    ) -> None:
        self.pictures, self.targets, self.transform = pictures, labels, transform

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, row: int) -> tuple[Any, int]:
        return self.transform(self.pictures[row]), int(self.targets[row])


def load_tables(
    specs: Mapping[str, str],
    tables: Tables,
    picture_options: Sequence[str],
    transform: Callable[[], Callable[[Any], Any]],
) -> tuple[Any, Any, list[str] | None]:
    """Both splits as `unitroles.analyze` takes them, and the class names where they are known.

    Parameters
    ----------
    specs : DATA of "train" and "test", see `read_table`.
    picture_options : those that were given; texts have no use for them.
    transform : gives what makes the model's input of a PIL picture; asked for pictures only.

    Raises
    ------
    InputError : the data cannot be read, the splits differ in kind, or the model lacks a label.
    """
    splits = [read_table(spec, name, tables.columns) for name, spec in specs.items()]
    pictures = [table.pictures for table in splits if table.pictures is not None]
    if len(pictures) == 1:
        raise InputError(
            "one of train and test holds texts, the other pictures; choose columns of one kind "
            "with --text-column or --image-column"
        )
    if pictures:
        if tables.tokenizer or tables.max_length:
            raise InputError(
                "--tokenizer and --max-length are for texts; leave them out for pictures"
            )
        if "--scale" in picture_options:
            raise InputError("--scale is for uint8 images in npz files; leave it out for tables")
        change = transform()
        makers = [partial(Gallery, own, change) for own in pictures]
    else:
        if picture_options:
            said = ", ".join(picture_options)
            raise InputError(f"{said} is for pictures; leave it out for texts")
        tokens = tokenise([table.texts or [] for table in splits], tables)
        makers = [partial(Sentences, found) for found in tokens]
    labels, names = number_labels(splits, tables.known.numbers)
    first, second = (make(own) for make, own in zip(makers, labels, strict=True))
    return first, second, names


def number_labels(
    splits: Sequence[Table], numbers: Mapping[str, int]
) -> tuple[list[Int[np.ndarray, " samples"]], list[str] | None]:
    """Class numbers of all splits, and the class names by number.

    The model's own numbers where it has names; else those of a column that has class names; else
    whole numbers as they are; else the place of the label among all labels of both splits, sorted.

    Parameters
    ----------
    numbers : class numbers by name, of the model.

    Warns
    -----
    DataWarning : the order of the names gave the numbers.
    """
    names, others = (table.names for table in splits)
    if names != others:
        said = ", ".join(f"{t.file} {few(list(t.names or ['numbers']))}" for t in splits)
        raise InputError(f"the classes differ: {said}; give both splits the same class names")
    labels = [[names[n] if names else str(n) for n in table.labels] for table in splits]
    found = sorted({label for split in labels for label in split})
    if names and not numbers:
        numbers = {name: number for number, name in enumerate(names)}
    absent = [label for label in found if label not in numbers]
    own = by_number(numbers)
    if absent and all(map(is_whole, found)):
        numbers = {label: int(label) for label in found}
    elif absent and numbers:
        raise InputError(
            f"the model has no class {few([repr(label) for label in absent])}; its classes are "
            f"{few(own or [])}; give these names, or the numbers of the classes"
        )
    elif absent:
        numbers = {label: number for number, label in enumerate(found)}
        own = found
        warnings.warn(
            "the classes are numbered in the sorted order of their names, "
            f"{few([f'{number} = {label}' for label, number in numbers.items()])}; if the model "
            "was trained with other numbers, give these as labels",
            DataWarning,
            stacklevel=2,
        )
    return [np.array([numbers[label] for label in split], np.int64) for split in labels], own


def by_number(numbers: Mapping[str, int]) -> list[str] | None:
    """The class names in the order of their numbers; None where there are none."""
    if not numbers:
        return None
    names = {number: name for name, number in numbers.items()}
    return [names.get(number, str(number)) for number in range(max(names) + 1)]


def tokenise(splits: Sequence[Sequence[str]], tables: Tables) -> list[dict[str, Tensor]]:
    """`input_ids`, `attention_mask` and what else the tokenizer gives, (samples, tokens) each.

    All splits are padded to the longest text of all, so that every batch has the same form.

    Raises
    ------
    InputError : the tokenizer is not known, cannot be read, or cannot pad.
    """
    name = tables.tokenizer or tables.known.tokenizer
    if name is None:
        raise InputError(
            "how the texts become tokens is not known; give the folder or the name of the "
            "tokenizer used in training with --tokenizer"
        )
    tokenizer = tokenizer_of(name)
    most = min(tables.known.tokens or _NO_LIMIT, tokenizer.model_max_length)
    if tables.max_length is not None and tables.max_length > most:
        raise InputError(
            f"--max-length {tables.max_length} is more than the {most} tokens that the model "
            "takes; give a smaller number, or leave it out"
        )
    limit = tables.max_length or (most if most < _NO_LIMIT else None)
    texts = [text for split in splits for text in split]
    try:
        found = tokenizer(
            texts, padding=True, truncation=limit is not None, max_length=limit, return_tensors="pt"
        )
    except ValueError as error:
        raise InputError(
            f"the tokenizer {name} cannot read the texts: {first_line(error)}; give the one used "
            "in training, with a padding token"
        ) from error
    sizes = [len(split) for split in splits]
    parts = {key: torch.split(value, sizes) for key, value in found.items()}
    return [{key: value[i] for key, value in parts.items()} for i in range(len(sizes))]
