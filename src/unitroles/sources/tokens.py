"""TableRows of tables -> samples: class numbers, tokens of texts, pictures."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int
from torch.utils.data import Dataset, StackDataset

from unitroles.errors import DataWarning, InputError
from unitroles.sources.huggingface import tokenizer_of
from unitroles.sources.records import DataOptions, Table, is_whole
from unitroles.wording import few, first_line

_NO_LIMIT = 10**9
"""Tokenizers without a limit of their own give a number beyond all texts."""


class TableRows(Dataset):
    """Samples of a table, texts as tokens or pictures, with their labels."""

    def __init__(self, samples: Any, labels: Int[np.ndarray, " samples"]) -> None:
        self.samples, self.targets = samples, labels

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, row: int) -> tuple[Any, int]:
        return self.samples[row], int(self.targets[row])


def number_labels(
    splits: Sequence[Table], numbers: Mapping[str, int], whose: str = "the model"
) -> tuple[list[Int[np.ndarray, " samples"]], list[str] | None]:
    """Class numbers of all splits, and the class names by number.

    The model's own numbers where it has names; else those of a column that has class names; else
    whole numbers as they are; else the place of the label among all labels of both splits, sorted.

    Parameters
    ----------
    numbers : class numbers by name, of the model or of who named them.
    whose : these are, for messages.

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
            f"{whose} has no class {few([repr(label) for label in absent])}; its classes are "
            f"{few(own or [])}; give these names, or the numbers of the classes"
        )
    elif absent:
        numbers = {label: number for number, label in enumerate(found)}
        own = found
        warnings.warn(
            "the classes are numbered in the sorted order of their names, "
            f"{few([f'{number} = {label}' for label, number in numbers.items()])}; if the model "
            "was trained with other numbers, give these as labels, or the order of its outputs "
            "with --class-names",
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


def tokenise(splits: Sequence[Sequence[str]], options: DataOptions) -> list[StackDataset]:
    """`input_ids`, `attention_mask` and what else the tokenizer gives, by sample, for both splits.

    All splits are padded to the longest text of all, so that every batch has the same form.

    Raises
    ------
    InputError : the tokenizer is not known, cannot be read, cannot pad, or knows too few of the
        words.
    """
    name = options.tokenizer or options.known.tokenizer
    if name is None:
        raise InputError(
            "how the texts become tokens is not known; give the folder or the name of the "
            "tokenizer used in training with --tokenizer"
        )
    tokenizer = tokenizer_of(name)
    most = min(options.known.tokens or _NO_LIMIT, tokenizer.model_max_length)
    if options.max_length is not None and options.max_length > most:
        raise InputError(
            f"--max-length {options.max_length} is more than the {most} tokens that the model "
            "takes; give a smaller number, or leave it out"
        )
    limit = options.max_length or (most if most < _NO_LIMIT else None)
    texts = [text for split in splits for text in split]
    try:
        found = tokenizer(
            texts, padding=True, truncation=limit is not None, max_length=limit, return_tensors="pt"
        )
    except Exception as error:  # every kind of tokenizer fails in its own way
        raise InputError(
            f"the tokenizer {name} cannot read the texts: {first_line(error)}; give the one used "
            "in training, with a padding token"
        ) from error
    _check_known(found, tokenizer, name)
    parts = slice(len(splits[0])), slice(len(splits[0]), None)
    return [StackDataset(**{key: value[part] for key, value in found.items()}) for part in parts]


def _check_known(found: Mapping[str, Any], tokenizer: Any, name: str) -> None:
    """Refuse tokens that hardly tell one text from another.

    A folder without the files of its tokenizer gives one that knows its special tokens alone.
    """
    ids, mask = found["input_ids"], found.get("attention_mask")
    there = np.asarray(ids if mask is None else ids[mask.bool()])
    kinds = ("pad", "eos", "bos", "cls", "sep", "mask")
    special = {getattr(tokenizer, f"{kind}_token_id", None) for kind in kinds}
    lost = tokenizer.unk_token_id
    unknown = 0 if lost is None or lost in special else int((there == lost).sum())
    known = int((~np.isin(there, [*tokenizer.all_special_ids])).sum())
    if unknown >= known:
        said = (
            f"{unknown / (known + unknown):.0%} of the tokens are unknown"
            if unknown
            else "no token"
        )
        raise InputError(
            f"the tokenizer {name} does not know the words of the texts ({said}): its files are "
            "missing, or it is for other texts; give the folder or the name of the one used in "
            "training with --tokenizer"
        )
