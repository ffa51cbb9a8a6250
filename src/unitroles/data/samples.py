"""Samples of one split, read by number: batches of inputs, labels, targets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from unitroles.data.arrays import Arrays, as_labels, unsigned, widened
from unitroles.errors import InputError
from unitroles.model.forward import each, tensors
from unitroles.wording import first_line

LABELS = ("labels", "label")
"""The columns that hold the class, the first one that is there."""


@dataclass(frozen=True)
class Batch:
    """Some samples as the model takes them; the last `len(inputs) - count` rows are padding.

    The labels are those of the analysed classes, see `Samples`.
    """

    inputs: Any
    labels: Int[Tensor, " samples"]
    rows: Int[np.ndarray, " samples"]
    count: int

    def described(self, name: str) -> str:
        """The numbers of these samples in their split, for messages."""
        return f"a batch with {name} samples {self.rows.min()} to {self.rows.max()}"


@dataclass(frozen=True)
class Samples:
    """One split: where its samples are read from and which of them are analysed.

    Parameters
    ----------
    name : "train" or "test".
    source : map-style dataset of (input, label) or of mappings with `label` or `labels`.
    rows : numbers of the analysed samples in `source`.
    labels : their classes, or their groups where another column than the label groups them.
    targets : what the loss compares the model's output with: the labels in the data.
    collate, workers : how samples become a batch, as in the user's DataLoader.
    class_names : names by label where the data set knows them.
    fit : what is done with the inputs of a batch before the model takes them.
    starting : how its workers start: further options of `torch.utils.data.DataLoader`.
    together : how many are read at once where only labels, or another column, are wanted of them.
    """

    name: str
    source: Any
    rows: Int[np.ndarray, " samples"]
    labels: Int[np.ndarray, " samples"]
    targets: Tensor
    collate: Callable[[list[Any]], Any] = default_collate
    workers: int = 0
    class_names: tuple[str, ...] | None = None
    fit: Callable[[Any], Any] | None = None
    starting: Mapping[str, Any] = field(default_factory=dict)
    together: int = 64

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, places: Int[np.ndarray, " samples"]) -> Samples:
        """The samples at these places, in this order."""
        targets = self.targets[torch.from_numpy(places)]
        return replace(self, rows=self.rows[places], labels=self.labels[places], targets=targets)

    def sorted(self) -> Samples:
        """By label, then by number."""
        return self.take(np.lexsort((self.rows, self.labels)))

    def batches(self, size: int) -> Iterator[Batch]:
        """All samples in batches of one size; the last is padded with its first sample."""
        starts = range(0, len(self), size)
        chunks = [self.rows[start : start + size] for start in starts]
        padded = [np.append(c, np.repeat(c[:1], size - len(c))) for c in chunks]
        yield from map(self._batch, starts, chunks, self._read(padded))

    def _batch(
        self, start: int, rows: Int[np.ndarray, " samples"], read: tuple[Any, Tensor]
    ) -> Batch:
        (inputs, targets), count = read, len(rows)
        changed = differ(targets[:count], self.targets[start : start + count])
        if changed.any():
            place = int(changed.nonzero()[0])
            now, before = (v[place].tolist() for v in (targets, self.targets[start:]))
            raise InputError(
                f"the label of {self.name} sample {rows[place]} changed between two reads, "
                f"from {before} to {now}; give a data set that returns the same samples every "
                "time, as its list of labels (.targets) has them, where there is one"
            )
        labels = torch.from_numpy(self.labels[start : start + count])
        return Batch(inputs if self.fit is None else self.fit(inputs), labels, rows, count)

    def column(self, name: str) -> list[Any]:
        """A column beside the label, sample by sample, in the order of `source`.

        Raises
        ------
        InputError : the samples have no such column.
        """
        source = self.source
        if name in (getattr(source, "column_names", None) or ()):
            return list(source.with_format(None)[name])
        values = getattr(source, name, None)
        if isinstance(values, (list, tuple, np.ndarray, Tensor)) and len(values) == len(source):
            return list(values.tolist() if isinstance(values, (np.ndarray, Tensor)) else values)
        of_batch = partial(self._column_of, name=name)
        batches = self._batches(self._some_together(np.arange(len(source))))
        return list(chain.from_iterable(map(of_batch, batches)))

    def _column_of(self, batch: Any, name: str) -> list[Any]:
        if not isinstance(batch, Mapping) or name not in batch:
            has = f"columns {sorted(map(str, batch))}" if isinstance(batch, Mapping) else "none"
            raise InputError(
                f"the {self.name} samples have no column {name!r} to group by ({has}); name "
                "one that the samples or their data set have, or give the groups as arrays: "
                "Sample(group_by={'train': ..., 'test': ...})"
            )
        values = batch[name]
        return values.tolist() if isinstance(values, (np.ndarray, Tensor)) else list(values)

    def read_labels(self) -> Tensor:
        """The labels that the samples give; their inputs are let go batch by batch."""
        found = list(map(_bytes_of_labels, self._read(self._some_together(self.rows))))
        return torch.cat([_from_bytes(*own) for own in found])

    def _some_together(self, rows: Int[np.ndarray, " samples"]) -> list[np.ndarray]:
        return np.array_split(rows, -(-len(rows) // self.together))

    def _read(self, chunks: Sequence[np.ndarray]) -> Iterator[tuple[Any, Tensor]]:
        if isinstance(self.source, Arrays):
            for chunk in chunks:
                yield self.source[chunk]
            return
        yield from map(partial(_split_batch, name=self.name), self._batches(chunks))

    def _batches(self, chunks: Sequence[np.ndarray]) -> Iterator[Any]:
        """These samples as the collate function puts them into batches; none is held here.

        Raises
        ------
        InputError : one cannot be read, or they do not fit into one batch.
        """
        loader = DataLoader(
            self.source,
            batch_sampler=[chunk.tolist() for chunk in chunks],  # pyright: ignore[reportArgumentType]
            collate_fn=self.collate,
            num_workers=self.workers,
            **(self.starting if self.workers else {}),
        )
        rest = iter(chunks)
        try:
            for batch in loader:
                next(rest)
                given = [batch]
                del batch
                yield given.pop()
        except Exception as error:
            if isinstance(error, InputError) and not self.workers:
                raise  # it says already what is wrong, and a worker's is wrapped in a traceback
            raise self._unread(next(rest), error) from error

    def _unread(self, chunk: np.ndarray, error: Exception) -> InputError:
        """What to say of a batch that could not be read: which sample it is, and why."""
        said = str(error).strip().splitlines()
        reason = said[-1] if self.workers and said else first_line(error)
        if "exited unexpectedly" in str(error) or "timed out" in str(error):
            return InputError(
                f"a worker of the {self.name} DataLoader was lost while it read {_which(chunk)} "
                f"({first_line(error)}); give a DataLoader without workers, or more time or memory"
            )
        for row in chunk.tolist():
            try:
                self.source[row]
            except Exception as again:
                if type(again) is not type(error):
                    break  # in a worker something else is there than here
                why = reason if self.workers else f"{type(again).__name__}: {first_line(again)}"
                return InputError(
                    f"{self.name} sample {row} cannot be read ({why}); repair or remove it"
                )
        return InputError(
            f"the {self.name} samples cannot be put into one batch: {reason} ({_which(chunk)}); "
            "give tensors of one shape, or a DataLoader with the collate function used in training"
        )


def differ(one: Tensor, other: Tensor) -> Tensor:
    """The samples that differ, True for each; not-a-number equals itself."""
    if one.shape != other.shape:
        return torch.ones(len(other), dtype=torch.bool)
    changed = (one != other) & ~((one != one) & (other != other))
    return changed[..., None].flatten(1).any(dim=1)


def _which(rows: Int[np.ndarray, " samples"]) -> str:
    first, last = rows.min(), rows.max()
    return f"sample {first}" if first == last else f"samples {first} to {last}"


def _bytes_of_labels(read: tuple[Any, Tensor]) -> tuple[np.ndarray, torch.dtype, torch.Size]:
    """The labels alone, without the memory that they may share with the inputs.

    No tensors: many small ones would lie between inputs that come and go, whose room could then
    not be used again.
    """
    labels = read[1]
    own = labels.contiguous().flatten().view(torch.uint8).numpy().copy()
    return own, labels.dtype, labels.shape


def _from_bytes(own: np.ndarray, dtype: torch.dtype, shape: torch.Size) -> Tensor:
    labels = torch.empty(shape, dtype=dtype)
    labels.flatten().view(torch.uint8).numpy()[:] = own
    return labels


def _split_batch(batch: Any, name: str) -> tuple[Any, Tensor]:
    """Inputs and labels of a collated batch."""
    if isinstance(batch, Mapping):
        key = next((key for key in LABELS if key in batch), None)
        if key is None:
            raise InputError(
                f"the {name} samples have no 'label' or 'labels' among {sorted(batch)}; rename "
                "the column that holds the class"
            )
        inputs = {name: value for name, value in batch.items() if name != key}
        labels = batch[key]
    elif isinstance(batch, (tuple, list)) and len(batch) == 2:
        inputs, labels = batch
    else:
        raise InputError(
            f"the {name} samples must be (input, label) or mappings with 'label', not "
            f"{type(batch).__name__}; wrap the data set"
        )
    if isinstance(inputs, Tensor) and inputs.ndim >= 3 and (kind := unsigned(inputs)):
        raise InputError(
            f"the {name} images are {kind}; give the data set the transform used in training"
        )
    if any(unsigned(value) for value in tensors(inputs)):
        inputs = each(inputs, lambda value: widened(value, f"the {name} inputs"))
    return inputs, as_labels(labels, name)
