"""Anything a user calls data, as samples; whether they are the same at every read."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    default_collate,
)

from unitroles.data.arrays import Arrays, as_labels, is_pair, paired, plain_leaves
from unitroles.data.samples import LABELS, Batch, Samples, differ
from unitroles.errors import DataWarning, InputError
from unitroles.model.forward import leaves


def as_samples(data: Any, name: str, any_labels: bool = False, together: int = 64) -> Samples:
    """Read what a user calls a split.

    Parameters
    ----------
    data : a map-style data set, a DataLoader, or a pair (inputs, labels) of tensors, arrays (NumPy,
        pandas, xarray, h5py) or lists; arrays in files are read batch by batch.
    name : "train" or "test", for messages.
    any_labels : they need not be class numbers; the samples are then of no class yet.
    together : how many are read at once for their labels, where no list of these is there; no more
        than the DataLoader reads.

    Raises
    ------
    InputError : the data cannot be read by number, are empty, or carry no labels.
    """
    collate, workers, starting = _collate, 0, {}
    if isinstance(data, DataLoader):
        together = min(together, _read_at_once(data, name))
        starting = {option: getattr(data, option) for option in _STARTING}
        collate, workers, data = data.collate_fn, data.num_workers, data.dataset
        collate = _collate if collate is default_collate else collate
    if is_pair(data):
        data = paired(data[0], data[1], name)
    numbered = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    single = getattr(data, "shape", None) == ()  # an array of no axis has a length, but not to ask
    if isinstance(data, (IterableDataset, Mapping)) or single or not numbered:
        raise InputError(
            f"the {name} data must be a map-style data set, a DataLoader or a pair of arrays, not "
            f"{type(data).__name__}; load its samples into a list or arrays first"
        )
    if len(data) == 0:
        raise InputError(f"the {name} data are empty; give at least one sample of each class")
    rows = np.arange(len(data))
    names = _class_names(data)
    samples = Samples(
        *(name, data, rows, rows, torch.from_numpy(rows), collate, workers, names),
        starting=starting,
        together=together,
    )
    targets = _read_labels(samples)
    if len(targets) != len(data):
        raise InputError(
            f"the {name} data hold {len(data)} samples but {len(targets)} labels; give one each"
        )
    kinds = (torch.uint8, torch.int8, torch.int16, torch.int32)
    targets = targets.to(torch.int64) if targets.dtype in kinds else targets
    samples = replace(samples, targets=targets)
    return samples if any_labels else _classed(samples)


_STARTING = ("worker_init_fn", "multiprocessing_context", "timeout", "prefetch_factor")
"""Options of a DataLoader without which its workers may not read the same."""


def _collate(items: list[Any]) -> Any:
    """torch's own, but lists of numbers in a column, as of token numbers, become one tensor."""
    if items and isinstance(items[0], Mapping):
        empty = {name for item in items for name, value in item.items() if value is None}
        items = [{k: _as_row(v) for k, v in item.items() if k not in empty} for item in items]
    return default_collate([plain_leaves(item) for item in items])


def _as_row(value: Any) -> Any:
    numbers = isinstance(value, list) and value and all(isinstance(v, (int, float)) for v in value)
    return torch.tensor(value) if numbers else value


def _classed(samples: Samples) -> Samples:
    """The same samples, classed by their own labels.

    Raises
    ------
    InputError : the labels are no class numbers.
    """
    targets = samples.targets
    if targets.ndim != 1 or targets.is_floating_point() or targets.is_complex():
        raise InputError(
            f"the {samples.name} labels must be one whole number per sample, got "
            f"{str(targets.dtype).removeprefix('torch.')} of shape {tuple(targets.shape)}; give "
            "class numbers, or, for a loss of another kind, groups with Sample(group_by=...)"
        )
    targets = targets.to(torch.int64)
    return replace(samples, labels=targets.numpy(), targets=targets)


def _read_at_once(loader: DataLoader, name: str) -> int:
    """The samples in a batch of a DataLoader.

    Raises
    ------
    InputError : it does not give every sample once.
    """
    batches = loader.batch_sampler
    # A batch sampler of one's own has its sampler inside; the loader's is another, not used.
    plain = batches if type(batches) is BatchSampler else None
    sampler = None if plain is None else plain.sampler
    streams = isinstance(loader.dataset, IterableDataset)
    if plain is None or streams or not _takes_each_once(sampler, loader.dataset):
        own = batches if sampler is None else sampler
        kind = type(loader.dataset if streams or own is None else own).__name__
        raise InputError(
            f"the {name} DataLoader draws its samples in its own way ({kind}), every sample must "
            "count once; give its data set, or a DataLoader without a sampler"
        )
    return plain.batch_size


def _takes_each_once(sampler: Any, data: Any) -> bool:
    """Whether a sampler of torch gives every sample of its data set once, in whatever order."""
    if type(sampler) is RandomSampler:
        plain = not sampler.replacement and sampler.num_samples == len(data)
    else:
        plain = type(sampler) is SequentialSampler
    return plain and len(sampler.data_source) == len(data)


def _class_names(data: Any) -> tuple[str, ...] | None:
    names = getattr(data, "classes", None)
    features = getattr(data, "features", None)
    if names is None and isinstance(features, Mapping):
        key = next((key for key in LABELS if key in features), None)
        names = getattr(features.get(key), "names", None)
    if isinstance(names, (list, tuple)) and names and all(isinstance(n, str) for n in names):
        return tuple(names)
    return None


def _read_labels(samples: Samples) -> Tensor:
    """All labels; a list of them saves reading every input, and each read is checked later."""
    if isinstance(samples.source, Arrays):
        return samples.source.labels
    listed = _listed_labels(samples)
    if listed is not None:
        few = np.linspace(0, len(samples) - 1, min(_TRIED, len(samples))).astype(np.int64)
        tried = samples.take(few).read_labels()
        if not differ(tried, listed[torch.from_numpy(few)]).any():
            return listed
        warnings.warn(
            f"the list of labels of the {samples.name} data (.targets, or the column as it is "
            "stored) differs from the labels that their samples give: the latter count",
            DataWarning,
            stacklevel=4,
        )
    return samples.read_labels()


_TRIED = 4
"""So many samples are read before a list of labels is believed."""


def _listed_labels(samples: Samples) -> Tensor | None:
    """One label per sample, as the data set lists them; None where it has no such list."""
    source = samples.source
    targets = getattr(source, "targets", None)
    if getattr(source, "target_transform", None) is None and hasattr(targets, "__len__"):
        try:
            listed = as_labels(targets, samples.name)
        except InputError:  # names of files, boxes: not what the samples give
            return None
        if listed.ndim and len(listed) == len(samples):
            return listed
    key = next((k for k in LABELS if k in (getattr(source, "column_names", None) or ())), None)
    if key is None:
        return None  # else of Hugging Face: without the pictures beside them
    return as_labels(np.array(source.with_format(None)[key]), samples.name)


STABILITY_CHECK = 16


def warn_if_changing(samples: Samples) -> None:
    """Read a few samples twice; training data still being augmented differ.

    Warns
    -----
    DataWarning : two reads of one sample differ.
    """
    few = np.linspace(0, len(samples) - 1, min(STABILITY_CHECK, len(samples))).astype(np.int64)
    size = min(samples.together, len(few))
    first, second = (samples.take(few).batches(size) for _ in range(2))
    changed = torch.cat(list(map(_changed, first, second)))
    if changed.any():
        warnings.warn(
            f"{samples.name} sample {few[int(changed.nonzero()[0])]} differs between two reads: "
            "augmentation is on. Give the data as the model sees them at test time, or roles and "
            "accuracy will be those of random draws",
            DataWarning,
            stacklevel=3,
        )


def _changed(first: Batch, second: Batch) -> Tensor:
    """Which samples of a batch have other inputs when they are read again."""
    changed = torch.zeros(first.count, dtype=torch.bool)
    for (_, one), (_, two) in zip(leaves(first.inputs), leaves(second.inputs), strict=True):
        if isinstance(one, Tensor):
            changed |= differ(one, two)[: first.count].cpu()
        else:
            changed |= bool(one != two)
    return changed
