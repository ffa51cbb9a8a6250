"""Arrays as people have them give the same samples, stay where they are, and hide nothing."""

import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
import xarray as xr
from torch.utils.data import DataLoader, Dataset

import unitroles as ur
from unitroles.data.reading import as_samples

X = np.random.default_rng(0).standard_normal((12, 4)).astype(np.float32)
Y = np.arange(12) % 3


def stored(folder: Path) -> tuple[h5py.Dataset, h5py.Dataset]:
    file = h5py.File(folder / "a.h5", "w")
    file["x"], file["y"] = X, Y.astype("uint8")
    return file["x"], file["y"]


def mapped(folder: Path) -> np.ndarray:
    np.save(folder / "x.npy", X)
    return np.load(folder / "x.npy", mmap_mode="r")


class Items(Dataset):
    """A data set of single samples."""

    def __init__(self, inputs=X, labels=Y):
        self.inputs, self.labels = inputs, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, row):
        return self.inputs[row], self.labels[row]


def frame(values: np.ndarray, **options) -> pd.DataFrame:
    return pd.DataFrame(values, **options)


KINDS = {
    "uint16 labels": lambda _: (X, Y.astype("uint16")),
    "uint32 labels": lambda _: (X, Y.astype("uint32")),
    "uint64 labels": lambda _: (X, Y.astype("uint64")),
    "unsigned labels in a tensor": lambda _: (X, torch.from_numpy(Y.astype("uint16"))),
    "labels in a list": lambda _: (X, Y.tolist()),
    "labels as a list of tensors": lambda _: (X, list(torch.from_numpy(Y))),
    "labels as a list of NumPy numbers": lambda _: (X, list(Y.astype("uint16"))),
    "other order of bytes": lambda _: (X.astype(">f4"), Y.astype(">i8")),
    "turned round twice": lambda _: (X[::-1].copy()[::-1], Y),
    "lists": lambda _: (X.tolist(), Y.tolist()),
    "a list of lists": lambda _: [X.tolist(), Y.tolist()],
    "a list of arrays": lambda _: (list(X), list(Y)),
    "a list of tensors": lambda _: (list(torch.from_numpy(X)), Y.tolist()),
    "pandas": lambda _: (frame(X), pd.Series(Y)),
    "pandas with an index": lambda _: (frame(X, index=Y + 5), pd.Series(Y, index=Y + 5)),
    "pandas with gaps, none here": lambda _: (frame(X), pd.Series(Y, dtype="Int64")),
    "pandas, numbered categories": lambda _: (X, pd.Series(Y).astype("category")),
    "xarray": lambda _: (xr.DataArray(X), xr.DataArray(Y)),
    "h5py": stored,
    "read-only memory map": lambda folder: (mapped(folder), Y),
    "nothing masked": lambda _: (np.ma.masked_array(X), np.ma.masked_array(Y)),
    "sparse": lambda _: (scipy.sparse.csr_matrix(X), Y),
    "items with unsigned labels": lambda _: Items(labels=Y.astype("uint16")),
    "items of other bytes": lambda _: Items(X.astype(">f4"), Y.astype(">i8")),
    "items of a loader": lambda _: DataLoader(Items(X.astype(">f4")), num_workers=1),
}


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_of_every_kind_give_the_same_samples(kind, tmp_path):
    samples = as_samples(KINDS[kind](tmp_path), "train")
    assert samples.labels.tolist() == Y.tolist()
    assert samples.targets.dtype == torch.int64
    places = np.array([7, 0, 11, 0, 3])  # in no order, one of them twice
    (batch,) = samples.take(places).batches(5)
    assert batch.inputs.dtype == torch.float32
    assert np.array_equal(batch.inputs.numpy(), X[places])
    assert batch.labels.tolist() == Y[places].tolist()


@pytest.mark.parametrize("wide", ["uint16", "uint32", "uint64"])
@pytest.mark.parametrize("pair", [True, False])
def test_unsigned_numbers_that_are_no_pictures_stay_whole(wide, pair):
    tokens = np.array([[1, 65535], [0, 3]], dtype=wide)
    data = (tokens, [0, 1]) if pair else Items(tokens, [0, 1])
    (batch,) = as_samples(data, "train").batches(2)
    assert batch.inputs.dtype == torch.int64
    assert batch.inputs.tolist() == [[1, 65535], [0, 3]]


def test_a_list_of_two_samples_is_no_pair():
    data = [(torch.ones(3), 1), (torch.zeros(3), 0)]
    assert as_samples(data, "train").labels.tolist() == [1, 0]
    assert as_samples([[1.0, 1], [0.0, 0]], "train").labels.tolist() == [1, 0]
    (batch,) = as_samples(([[1.0, 2.0], [3.0, 4.0]], [1, 0]), "train").batches(2)
    assert batch.inputs.tolist() == [[1.0, 2.0], [3.0, 4.0]]


MASKED = np.ma.masked_array(X, mask=np.arange(48).reshape(12, 4) == 30)
BIG = Y.astype("uint64") + np.uint64(2**63)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            lambda: (torch.tensor(X).to_sparse(), Y),
            "the train inputs are a sparse tensor.*to_dense",
        ),
        (lambda: (torch.tensor(X, device="meta"), Y), "the train inputs are on the meta device"),
        (
            lambda: (torch.nested.nested_tensor(list(torch.tensor(X)), layout=torch.jagged), Y),
            "are a nested tensor",
        ),
        (lambda: (X, torch.tensor(Y).to_sparse()), "the train labels are a sparse tensor"),
        (lambda: (MASKED, Y), "the train inputs have 1 masked values; fill them in, or leave"),
        (lambda: (X, np.ma.masked_equal(Y, 1)), "the train labels have 4 masked values"),
        (lambda: Items(MASKED), "the samples have 1 masked values"),
        (lambda: (X, BIG), "the train labels hold numbers of 2.63 and more; give smaller ones"),
        (lambda: (X, np.array(3)), "train data are a single number; give an array of samples"),
        (lambda: (X.astype(str), Y), "the train inputs are no numbers .*; turn texts into"),
        (lambda: (X.astype(object), Y), "the train inputs are no numbers"),
        (lambda: (X, list("abc" * 4)), "the train labels are no numbers .*; give class numbers"),
        (lambda: (X, pd.Series(list("abc" * 4), dtype="category")), "labels are no numbers"),
        (lambda: (X, pd.Series([1, None] * 6, dtype="Int64")), "labels are no numbers|got float"),
        (lambda: (X, pd.Series(Y[:-1])), "hold 12 inputs but 11 labels; give one each"),
        (
            lambda: (frame(X), pd.Series(Y)[::-1]),
            "train inputs and labels have the same index in another order; sort them alike",
        ),
        (
            lambda: (xr.DataArray(X.T, dims=["t", "row"]), xr.DataArray(Y, dims="row")),
            "inputs have 't' as first dimension, the labels 'row'; transpose the inputs so that",
        ),
        (
            lambda: (np.zeros((12, 3, 4, 4), "uint16"), Y),
            "train images are uint16 and no transform is known; scale them",
        ),
        (
            lambda: Items(np.zeros((12, 3, 4, 4), "uint16")),
            "train images are uint16; give the data set the transform",
        ),
        (lambda: {"x": X, "y": Y}, "map-style data set, a DataLoader or a pair .* not dict"),
    ],
)
def test_arrays_that_would_give_other_numbers_are_refused(data, said):
    with pytest.raises(ur.InputError, match=said):
        list(as_samples(data(), "train").batches(12))


def test_another_index_is_told():
    with pytest.warns(ur.DataWarning, match="another index each: they are paired row by row"):
        samples = as_samples((frame(X), pd.Series(Y, index=Y + 50)), "train")
    assert samples.labels.tolist() == Y.tolist()


@pytest.mark.parametrize("kind", ["map", "h5py"])
def test_a_file_is_read_batch_by_batch(kind, tmp_path):
    whole = np.zeros((2000, 1000), np.float32)
    if kind == "map":
        np.save(tmp_path / "x.npy", whole)
        inputs = np.load(tmp_path / "x.npy", mmap_mode="r")
    else:
        file = h5py.File(tmp_path / "x.h5", "w")
        inputs = file.create_dataset("x", data=whole)
    tracemalloc.start()
    try:
        samples = as_samples((inputs, np.arange(2000) % 2), "train")
        assert sum(batch.count for batch in samples.sorted().batches(50)) == 2000
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < whole.nbytes / 4


def test_a_file_that_fails_is_one_sentence(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = X
        samples = as_samples((file["x"], Y), "train")
    with pytest.raises(ur.InputError, match="the train inputs cannot be read by their numbers"):
        list(samples.batches(4))
