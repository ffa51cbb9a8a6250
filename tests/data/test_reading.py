"""What counts as data, which samples are analysed, and what is refused with which words."""

import os
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)

import networks
import unitroles as ur
from unitroles.data.reading import as_samples, warn_if_changing
from unitroles.data.samples import Samples
from unitroles.data.selection import choose

# Every sample of class k has its own number in feature 0, so that a mix-up shows.
LABELS = torch.tensor([2, 0, 1, 0, 2, 2, 1, 0, 1, 0])


def inputs(labels: Tensor = LABELS) -> Tensor:
    x = torch.randn(len(labels), 10, generator=torch.Generator().manual_seed(len(labels)))
    x[:, 0] = torch.arange(len(labels))
    return x


class Pairs(Dataset):
    """A map-style data set of (input, label)."""

    def __init__(self, labels=LABELS, **attributes):
        self.labels = labels
        self.inputs = inputs(torch.as_tensor(labels))
        self.reads = 0
        vars(self).update(attributes)

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, row):
        self.reads += 1
        return self.inputs[row], int(self.labels[row])


class Rows(list):
    """Dictionaries in a list, as a Hugging Face data set hands them out."""

    def __init__(self, label: str = "label"):
        super().__init__({"x": x, label: int(y)} for x, y in zip(inputs(), LABELS, strict=True))


def model(features: int = 10) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(features, 6), nn.ReLU(), nn.Linear(6, 3))


class ByName(nn.Module):
    """Takes its input by keyword and returns a dictionary."""

    def __init__(self):
        super().__init__()
        self.inner = model()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.inner(x)}


def analyze(train, test=None, net=None, layer="1", **options):
    options.setdefault("compute", ur.Compute(batch_size=4))
    if test is None:
        test = (inputs(), LABELS)
    return ur.analyze(net or model(), train, test, layer=layer, progress=False, **options)


def numbers(samples: Samples) -> list[int]:
    """Which samples a split reads, by what the samples themselves say."""
    found = []
    for batch in samples.batches(3):
        x = batch.inputs["x"] if isinstance(batch.inputs, dict) else batch.inputs
        found += x[: batch.count, 0].int().tolist()
    return found


def reversing(batch):
    """A collate function of the user's own, which must be used: it negates the inputs."""
    x, y = default_collate(batch)
    return [-x, y]


KINDS = {
    "tensors": lambda: (inputs(), LABELS),
    "a list of two tensors": lambda: [inputs(), LABELS],
    "arrays": lambda: (inputs().numpy(), LABELS.numpy()),
    "small labels": lambda: (inputs(), LABELS.to(torch.uint8)),
    "read-only arrays": lambda: (np.frombuffer(inputs().numpy().tobytes(), np.float32)
                                 .reshape(10, 10), LABELS.numpy()),
    "a reversed array": lambda: (inputs().numpy()[::-1][::-1], LABELS.numpy()),
    "tensor data set": lambda: TensorDataset(inputs(), LABELS),
    "data set": Pairs,
    "data set with targets": lambda: Pairs(targets=LABELS.tolist()),
    "subset": lambda: Subset(Pairs(torch.cat([LABELS, LABELS])), range(10)),
    "a list of pairs": lambda: [Pairs()[i] for i in range(10)],
    "loader": lambda: DataLoader(Pairs(), batch_size=4),
    "shuffling loader": lambda: DataLoader(Pairs(), batch_size=3, shuffle=True, drop_last=True),
}  # fmt: skip


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "subset"])
def test_every_kind_of_data_gives_the_same_samples(kind):
    samples = as_samples(KINDS[kind](), "train")
    assert len(samples) == 10
    assert samples.labels.tolist() == LABELS.tolist()
    assert numbers(samples) == list(range(10))
    for batch in samples.batches(4):
        torch.testing.assert_close(batch.inputs[: batch.count], inputs()[batch.rows])


def test_a_subset_is_read_by_its_own_numbers():
    samples = as_samples(Subset(Pairs(), [7, 2, 5]), "train")
    assert samples.labels.tolist() == [0, 1, 2]
    assert numbers(samples) == [7, 2, 5]


@pytest.mark.parametrize("kind", ["arrays", "data set", "shuffling loader"])
def test_every_kind_of_data_gives_the_same_result(kind):
    expected, data = analyze(KINDS["tensors"]()).data, analyze(KINDS[kind]()).data
    for name in ("score", "order", "loss", "accuracy", "samples", "role"):
        np.testing.assert_array_equal(data[name], expected[name])


@pytest.mark.parametrize("label", ["label", "labels"])
def test_rows_of_dictionaries_are_given_to_the_model_by_name(label):
    rows = Rows(label)
    data = analyze(rows, rows, net=ByName(), layer="inner.1").data
    expected = analyze((inputs(), LABELS)).data
    np.testing.assert_allclose(data.loss, expected.loss, atol=1e-6)
    np.testing.assert_array_equal(data.role, expected.role)


def test_the_collate_function_of_a_loader_is_used():
    loader = DataLoader(Pairs(), batch_size=2, collate_fn=reversing)
    negative = (-inputs(), LABELS)
    np.testing.assert_array_equal(analyze(loader).data.loss, analyze(negative).data.loss)
    assert not analyze(loader).data.loss[0].equals(analyze((inputs(), LABELS)).data.loss[0])


def test_a_targets_list_spares_reading_every_input():
    plain, listed = Pairs(), Pairs(targets=LABELS.tolist())
    as_samples(plain, "train")
    as_samples(listed, "train")
    assert (plain.reads, listed.reads) == (10, 4)  # so many are compared with the list


class Alive(Pairs):
    """Counts how many of its inputs are held while the next one is read."""

    def __init__(self, named=False):
        super().__init__()
        self.named, self.given, self.held = named, [], 0

    def __getitem__(self, row):
        self.held = max(self.held, sum(one() is not None for one in self.given))
        x, y = self.inputs[row].clone(), int(self.labels[row])
        self.given.append(weakref.ref(x))
        return {"x": x, "label": y, "group": y % 2} if self.named else (x, y)


def handed_on(batch):
    """A collate function that gives the inputs themselves, and labels beside them in memory."""
    if isinstance(batch[0], dict):
        return {name: [one[name] for one in batch] for name in batch[0]}
    return [x for x, _ in batch], torch.tensor([y for _, y in batch])


@pytest.mark.parametrize(("of_loader", "asked"), [(None, 3), (3, 256), (8, 3), (1, 5)])
def test_labels_are_read_in_the_batches_of_the_user_and_hold_no_inputs(of_loader, asked):
    data = Alive()
    given = data if of_loader is None else DataLoader(data, of_loader, collate_fn=handed_on)
    samples = as_samples(given, "train", together=asked)
    assert samples.labels.tolist() == LABELS.tolist()
    assert data.held == min(asked, of_loader or asked) - 1


def test_a_column_is_read_in_the_batches_of_the_user_and_holds_no_inputs():
    data = Alive(named=True)
    samples = as_samples(DataLoader(data, 4), "train", together=3)
    data.held, collate = 0, replace(samples, collate=handed_on)
    assert collate.column("group") == [int(y) % 2 for y in LABELS]
    assert data.held == 2


def test_labels_do_not_keep_the_memory_of_their_batch():
    """Which they share with the inputs; NumPy's array lives as long as that."""
    memory, held = [], []

    def beside(batch):
        held.append(sum(one() is not None for one in memory))
        own = np.concatenate([*(x.numpy() for x, _ in batch), [np.float32(y) for _, y in batch]])
        memory.append(weakref.ref(own))
        flat = torch.from_numpy(own)
        return flat[: -len(batch)].view(len(batch), -1), flat[-len(batch) :]

    samples = as_samples(DataLoader(Pairs(), 2, collate_fn=beside), "train", any_labels=True)
    assert samples.targets.tolist() == LABELS.tolist()
    assert held == [0] * 5


@pytest.mark.parametrize("kind", ["bool", "uint8", "int64", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 0)])
def test_labels_of_every_kind_come_as_they_are(kind, shape):
    wanted = torch.arange(10).reshape(-1, *[1] * len(shape)).expand(10, *shape) % 2
    given = wanted.to(getattr(torch, kind))
    found = as_samples(TensorDataset(inputs(), given), "train", any_labels=True, together=4)
    kept = torch.int64 if kind == "uint8" else given.dtype
    assert found.targets.dtype == kept
    assert torch.equal(found.targets, given.to(kept))


def test_a_look_for_augmentation_reads_batches_of_the_user():
    data = Alive()
    warn_if_changing(as_samples(DataLoader(data, 2, collate_fn=handed_on), "train"))
    assert data.held == 3  # of both reads
    with pytest.warns(ur.DataWarning, match="train sample 7 differs between two reads"):
        warn_if_changing(as_samples(DataLoader(Noisy(first=7), 2), "train"))


def test_a_batch_size_reaches_the_labels(monkeypatch):
    seen, read = [], Samples.read_labels
    monkeypatch.setattr(
        Samples, "read_labels", lambda self: seen.append(self.together) or read(self)
    )
    analyze(Pairs(), Pairs(), compute=ur.Compute(batch_size=4))
    assert seen == [4, 4]


def test_targets_that_are_transformed_are_not_trusted():
    data = Pairs(targets=[9] * 10, target_transform=str)
    assert as_samples(data, "train").labels.tolist() == LABELS.tolist()


def test_targets_that_lie_are_not_believed():
    wrong = Pairs(targets=LABELS.roll(1).tolist())
    with pytest.warns(ur.DataWarning, match="the list of labels of the train data .* differs"):
        samples = as_samples(wrong, "train")
    assert samples.labels.tolist() == LABELS.tolist()


def test_targets_that_lie_in_one_place_are_found_out():
    wrong = LABELS.tolist()
    wrong[4] = 0  # of 2: not among those that are compared beforehand
    said = r"label of train sample 4 changed between two reads, from 0 to 2; .*\(.targets\)"
    with pytest.raises(ur.InputError, match=said):
        analyze(Pairs(targets=wrong))


class Method(Pairs):
    def targets(self):
        return self.labels


@pytest.mark.parametrize(
    "data",
    [Method(), Pairs(targets=["a.png"] * 10), Pairs(targets=3), Pairs(targets=[1, 2])],
    ids=["a method", "names of files", "a number", "too few"],
)
def test_targets_that_are_no_labels_are_not_read(data):
    assert as_samples(data, "train").labels.tolist() == LABELS.tolist()


def start(worker: int) -> None:
    """Opens what workers read, as those of files of HDF5 do."""
    torch.utils.data.get_worker_info().dataset.opened = True


class Opened(Pairs):
    """Readable where it was opened; `error` at sample 7."""

    def __getitem__(self, row):
        if not getattr(self, "opened", True):
            raise OSError("not open")
        if row == 7 and (error := getattr(self, "error", None)):
            raise error
        return super().__getitem__(row)


def test_workers_start_as_in_the_loader():
    loader = DataLoader(Opened(opened=False), num_workers=1, worker_init_fn=start, timeout=60)
    assert as_samples(loader, "train").labels.tolist() == LABELS.tolist()
    with pytest.raises(ur.InputError, match="train sample 0 cannot be read .OSError: not open"):
        as_samples(Opened(opened=False), "train")


class Strange(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyError("colour"), r"test sample 7 cannot be read \(KeyError: 'colour'\); repair"),
        (TypeError("no number"), r"test sample 7 cannot be read \(TypeError: no number\)"),
        (IndexError("none"), r"test sample 7 cannot be read \(IndexError: none\)"),
        (ur.InputError("row 7 is damaged"), "row 7 is damaged"),
        (
            Strange(1, 2),
            r"sample 7 cannot be read \(Strange|one batch: .*Strange: 1 and 2 \(samples 0 to 9",
        ),
    ],
)
def test_errors_of_reading_name_the_sample(error, said, workers):
    loader = DataLoader(Opened(error=error), batch_size=10, num_workers=workers)
    with pytest.raises(ur.InputError, match=said) as caught:
        as_samples(loader, "test")
    assert "worker process" not in str(caught.value)
    assert "\n" not in str(caught.value)


def lost(worker: int) -> None:
    os._exit(1)


def test_a_worker_that_is_lost_is_one_sentence():
    for size, which in ((10, "samples 0 to 9"), (1, "sample 0")):
        loader = DataLoader(Pairs(), size, num_workers=1, worker_init_fn=lost)
        said = f"a worker of the train DataLoader was lost while it read {which} "
        with pytest.raises(ur.InputError, match=said):
            as_samples(loader, "train")


@pytest.mark.parametrize("size", [1, 3, 10, 16])
def test_batches_are_of_one_size_and_padded_with_a_sample(size):
    batches = list(as_samples((inputs(), LABELS), "train").batches(size))
    assert all(len(batch.inputs) == size for batch in batches)
    assert [batch.count for batch in batches[:-1]] == [size] * (len(batches) - 1)
    assert sum(batch.count for batch in batches) == 10
    last = batches[-1]
    for padding in last.inputs[last.count :]:
        torch.testing.assert_close(padding, last.inputs[0])


class Stream(IterableDataset):
    def __iter__(self):
        yield from zip(inputs(), LABELS, strict=True)


class OwnBatches(BatchSampler):
    pass


@pytest.mark.parametrize(
    ("data", "said"),
    [
        pytest.param(Stream, "must be a map-style data set.*not Stream", id="stream"),
        pytest.param(lambda: DataLoader(Stream()), "own way \\(Stream\\)", id="stream loader"),
        pytest.param(
            lambda: DataLoader(Pairs(), sampler=WeightedRandomSampler([1.0] * 10, 10)),
            "own way \\(WeightedRandomSampler\\).*must count once; give its data set",
            id="weights",
        ),
        pytest.param(
            lambda: DataLoader(
                Pairs(), sampler=torch.utils.data.RandomSampler(Pairs(), replacement=True)
            ),
            "own way \\(RandomSampler\\)",
            id="replacement",
        ),
        pytest.param(
            lambda: DataLoader(
                Pairs(), batch_sampler=OwnBatches(SequentialSampler(Pairs()), 2, False)
            ),
            "own way \\(OwnBatches\\)",
            id="own batches",
        ),
        pytest.param(
            lambda: DataLoader(
                Pairs(), batch_sampler=BatchSampler(SubsetRandomSampler(range(5)), 2, False)
            ),
            "own way \\(SubsetRandomSampler\\)",
            id="a subset in batches",
        ),
        pytest.param(
            lambda: DataLoader(
                Pairs(), batch_sampler=BatchSampler(SequentialSampler(range(5)), 2, False)
            ),
            "own way \\(SequentialSampler\\)",
            id="the first in batches",
        ),
        pytest.param(
            lambda: DataLoader(
                Pairs(), sampler=torch.utils.data.RandomSampler(Pairs(), num_samples=5)
            ),
            "own way \\(RandomSampler\\)",
            id="some",
        ),
        pytest.param(
            lambda: DataLoader(Pairs(), batch_size=None),
            "draws its samples in its own way",
            id="no batches",
        ),
        pytest.param(
            lambda: (torch.zeros(10, 3, 4, 4, dtype=torch.uint8), LABELS),
            "train images are uint8 and no transform is known; scale them",
            id="uint8 array",
        ),
        pytest.param(
            lambda: TensorDataset(torch.zeros(10, 3, 4, 4, dtype=torch.uint8), LABELS),
            "train images are uint8; give the data set the transform",
            id="uint8 data set",
        ),
        pytest.param(
            lambda: (inputs(), LABELS.float()),
            "one whole number per sample, got float32 of shape \\(10,\\); give class numbers",
            id="float labels",
        ),
        pytest.param(
            lambda: (inputs(), nn.functional.one_hot(LABELS)),
            "one whole number per sample, got int64 of shape \\(10, 3\\)",
            id="one-hot labels",
        ),
        pytest.param(
            lambda: TensorDataset(inputs(), LABELS.float()),
            "one whole number per sample, got float32",
            id="float labels in a data set",
        ),
        pytest.param(
            lambda: (inputs(), LABELS[:-1]), "hold 10 inputs but 9 labels", id="lengths differ"
        ),
        pytest.param(
            lambda: (torch.zeros(0, 10), LABELS[:0]), "train data are empty", id="empty arrays"
        ),
        pytest.param(list, "train data are empty", id="empty list"),
        pytest.param(lambda: Rows("class"), "no 'label' or 'labels' among", id="no label"),
        pytest.param(
            lambda: TensorDataset(inputs(), LABELS, LABELS),
            "must be \\(input, label\\) or mappings",
            id="three values",
        ),
        pytest.param(lambda: 3, "must be a map-style data set.*not int", id="a number"),
    ],
)
def test_data_that_cannot_be_used_are_refused(data, said):
    with pytest.raises(ur.InputError, match=said):
        as_samples(data(), "train")


def test_the_message_names_the_split():
    with pytest.raises(ur.InputError, match="the test data are empty"):
        analyze((inputs(), LABELS), [])


class Noisy(Pairs):
    """Adds noise to the samples from `first` on."""

    first = 0

    def __getitem__(self, row):
        x, y = super().__getitem__(row)
        return (x + 1e-3 * torch.randn(10) if row >= self.first else x), y


def test_augmented_data_are_noticed():
    with pytest.warns(ur.DataWarning, match="train sample \\d differs.*augmentation is on"):
        taxonomy = analyze(Noisy())
    (note,) = taxonomy.provenance["warnings"]
    assert "augmentation is on" in note


def test_augmented_test_data_are_noticed():
    with pytest.warns(ur.DataWarning, match="test sample \\d differs between two reads"):
        analyze((inputs(), LABELS), Noisy(first=5))


def test_augmented_dictionaries_are_noticed():
    rows = [{"x": x, "label": y} for x, y in (Pairs()[i] for i in range(10))]

    def shaking(batch):
        out = default_collate(batch)
        return {**out, "x": out["x"] + torch.rand(())}

    samples = as_samples(DataLoader(rows, collate_fn=shaking), "train")
    with pytest.warns(ur.DataWarning, match="augmentation is on"):
        warn_if_changing(samples)


@pytest.mark.parametrize("kind", KINDS)
def test_steady_data_pass_without_a_warning(kind):
    data = KINDS[kind]()
    warn_if_changing(as_samples(data, "train"))  # a warning would be an error
    assert len(data) > 0


def test_missing_numbers_in_the_data_are_no_change():
    x = inputs()
    x[:, 3] = float("nan")
    warn_if_changing(as_samples((x, LABELS), "train"))
    assert torch.isnan(x).any()


def splits(train: list[int], test: list[int]) -> tuple[Samples, Samples]:
    """Two splits with these labels; their inputs are never read."""
    return tuple(
        Samples(name, None, np.arange(len(labels)), np.array(labels), torch.tensor(labels))
        for name, labels in (("train", train), ("test", test))
    )


LABELLED = st.lists(st.integers(0, 3), min_size=4, max_size=30).map(
    lambda drawn: [*range(4), *drawn]
)


@given(LABELLED, LABELLED, st.none() | st.integers(1, 6), st.booleans(), st.integers(0, 3))
def test_the_draw_keeps_to_its_limits(train, test, limit, equalize, seed):
    sample = ur.Sample(max_per_class=limit, equalize=equalize, seed=seed)
    chosen, found = choose(splits(train, test), sample, None)
    assert found.tolist() == [0, 1, 2, 3]
    for label in range(4):
        have = [given.count(label) for given in (train, test)]
        want = [min(have)] * 2 if equalize else have
        want = [min(count, limit or count) for count in want]
        assert [int((side.labels == label).sum()) for side in chosen] == want
    for side, labels in zip(chosen, (train, test), strict=True):
        assert len(set(side.rows)) == len(side)
        assert [labels[row] for row in side.rows] == side.labels.tolist()
        pairs = list(zip(side.labels, side.rows, strict=True))
        assert pairs == sorted(pairs)


def test_the_draw_follows_the_seed():
    labels = [0] * 50 + [1] * 50
    rows = [
        choose(splits(labels, labels), ur.Sample(max_per_class=10, seed=seed), None)[0][0].rows
        for seed in (1, 1, 2)
    ]
    assert rows[0].tolist() == rows[1].tolist() != rows[2].tolist()


def test_only_the_named_classes_are_kept():
    sides = splits([0, 1, 2, 2], [2, 1, 0])
    for classes in ([2, 0], ["cat", "ant"], ("ant", 2)):
        sample = ur.Sample(classes=classes)
        (train, test), labels = choose(sides, sample, ["ant", "bee", "cat"])
        assert labels.tolist() == [0, 2]
        assert train.labels.tolist() == [0, 2, 2]
        assert test.rows.tolist() == [2, 0]


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        ([7], "class 7 is not in the data; it has 'ant', 'bee', 'cat'"),
        (["dog"], "class 'dog' is not in the data; it has 'ant', 'bee', 'cat'"),
        ([-1], "class -1 is not in the data"),
    ],
)
def test_a_class_that_does_not_exist_is_refused(classes, said):
    with pytest.raises(ur.InputError, match=said):
        choose(splits([0, 1, 2], [0, 1, 2]), ur.Sample(classes=classes), ["ant", "bee", "cat"])


@pytest.mark.parametrize(
    ("train", "test", "names", "said"),
    [
        ([0, 1, 2], [0, 1], ["ant", "bee", "cat"], "class 'cat' has no test samples; add some"),
        ([0, 1], [0, 1, 3], None, "class 3 has no train samples"),
        ([0, 1], [0, 2], None, "class 1 has no test samples; class 2 has no train samples"),
    ],
)
def test_a_class_missing_in_one_split_is_named(train, test, names, said):
    with pytest.raises(ur.InputError, match=f"{said}.*missing='skip'"):
        choose(splits(train, test), ur.Sample(), names)


@pytest.mark.parametrize("equalize", [True, False])
def test_a_single_split_lacks_no_class(equalize):
    one, _ = splits([2, 0, 0, 5], [0])
    sample = ur.Sample(max_per_class=1, equalize=equalize)
    (chosen,), labels = choose([one], sample, None)
    assert labels.tolist() == chosen.labels.tolist() == [0, 2, 5]


def test_missing_classes_may_be_skipped():
    given = splits([0, 1, 2, 3], [3, 1, 1])
    with pytest.warns(ur.DataWarning, match="skipped: class 0 has no test samples; class 2"):
        (train, test), labels = choose(given, ur.Sample(missing="skip"), None)
    assert labels.tolist() == [1, 3]
    assert train.labels.tolist() == [1, 3]
    assert test.labels.tolist() == [1, 1, 3]


def test_skipping_every_class_is_refused():
    with pytest.raises(ur.InputError, match="class 0 has no test samples; class 1 has no train"):
        choose(splits([0, 0], [1, 1]), ur.Sample(missing="skip"), None)


def test_a_skipped_class_keeps_the_numbers_of_the_others():
    few = LABELS != 1
    with pytest.warns(ur.DataWarning, match="skipped: class 1 has no test samples"):
        taxonomy = analyze(
            (inputs(), LABELS), (inputs()[few], LABELS[few]), sample=ur.Sample(missing="skip")
        )
    whole = analyze((inputs(), LABELS), (inputs(), LABELS))
    assert taxonomy.labels == [0, 2]
    assert taxonomy.data.samples.values.tolist() == [[4, 3], [4, 3]]
    train = whole.data.sel(split="train", label=[0, 2])
    np.testing.assert_allclose(taxonomy.data.loss.sel(split="train"), train.loss, atol=1e-6)
    np.testing.assert_array_equal(taxonomy.data.role, whole.data.role.sel(label=[0, 2]))


def test_equal_numbers_are_drawn_for_the_analysis():
    test = (inputs()[:7], LABELS[:7])
    taxonomy = analyze((inputs(), LABELS), test, sample=ur.Sample(equalize=True))
    assert taxonomy.data.samples.values.tolist() == [[2, 2, 3], [2, 2, 3]]


def test_class_names_come_from_the_training_data():
    data = Pairs(classes=["ant", "bee", "cat"])
    assert analyze(data).labels == ["ant", "bee", "cat"]
    assert analyze(data, class_names=["x", "y", "z"]).labels == ["x", "y", "z"]
    assert analyze(data, sample=ur.Sample(classes=["cat"])).labels == ["cat"]


def test_too_few_class_names_are_refused():
    with pytest.raises(ur.InputError, match="2 class names but label 2 occurs; give one"):
        analyze((inputs(), LABELS), class_names=["ant", "bee"])


@pytest.mark.parametrize(("label", "row"), [(3, 4), (-1, 0)])
def test_a_label_the_model_cannot_answer_is_refused(label, row):
    labels = LABELS.clone()
    labels[row] = label
    data = (inputs(), labels)
    said = f"label {label} of train sample {row} is out of range: the model has 3 outputs"
    with pytest.raises(ur.InputError, match=said):
        analyze(data, data)


def test_an_activation_that_is_not_finite_is_traced_to_its_sample():
    x = inputs()
    x[5, 1] = float("nan")
    said = r"activation of layer '1' is not finite for test sample 5 \(label 2\)"
    with pytest.raises(ur.InputError, match=said):
        analyze((inputs(), LABELS), (x, LABELS))


class Exploding(nn.Module):
    """Logits that are infinite for samples whose number is 6, behind finite activations."""

    def __init__(self):
        super().__init__()
        self.inner = model()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) / (x[:, :1] != 6)


def test_a_loss_that_is_not_finite_is_traced_to_its_sample():
    said = r"loss of train sample 6 \(label 1\) is not finite"
    with pytest.raises(ur.InputError, match=said):
        analyze((inputs(), LABELS), net=Exploding(), layer="inner.1")


def test_the_samples_are_of_another_shape_than_the_model_takes():
    said = r"cannot take a batch of shape \(2, 10\) float32: .*mat1 and mat2 shapes.*; give samples"
    with pytest.raises(ur.InputError, match=said):
        analyze((inputs(), LABELS), net=model(features=7))


class Wrapped(nn.Module):
    """Gives its logits in one of the ways that models do."""

    def __init__(self, wrap):
        super().__init__()
        self.inner = model()
        self.wrap = wrap

    def forward(self, x: Tensor):
        return self.wrap(self.inner(x))


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(lambda logits: (logits, None), id="tuple"),
        pytest.param(lambda logits: {"logits": logits}, id="dictionary"),
    ],
)
def test_logits_are_found_in_what_the_model_returns(wrap):
    found = analyze((inputs(), LABELS), net=Wrapped(wrap), layer="inner.1").data.loss
    np.testing.assert_allclose(found, analyze((inputs(), LABELS)).data.loss, atol=1e-6)


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        pytest.param(lambda logits: logits.sum(dim=1), r"got \(2,\)", id="one number"),
        pytest.param(
            lambda logits: {"best": logits.argmax(dim=1)},
            "got a mapping with best",
            id="no numbers",
        ),
        pytest.param(
            lambda logits: logits.argmax(dim=1, keepdim=True), r"got \(2, 1\)", id="classes"
        ),
        pytest.param(lambda logits: "cat", "got str", id="text"),
    ],
)
def test_an_output_without_logits_is_refused(wrap, said):
    with pytest.raises(ur.InputError, match=f"must hold logits.*{said}; wrap the model"):
        analyze((inputs(), LABELS), net=Wrapped(wrap), layer="inner.1")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": ur.Method(score="activation_l")}, "unknown score.*did you mean activation_l"),
        ({"layer": "inner"}, "unknown layer 'inner'; known: 0, 1, 2"),
    ],
)
def test_an_unknown_name_lists_the_near_ones(options, said):
    with pytest.raises(ur.InputError, match=said):
        analyze((inputs(), LABELS), **options)


def test_an_unknown_layer_lists_the_near_ones():
    toy = networks.toy("residual")
    with pytest.raises(ur.InputError, match="did you mean blocks.1.bn2"):
        ur.analyze(toy.model, toy.train, toy.test, layer="block.1.bn2", progress=False)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ur.Method(order="pool"), "unknown order 'pool'; did you mean pooled"),
        (lambda: ur.Method(baseline="one"), "unknown baseline 'one'; known: zero, mean"),
        (lambda: ur.Method(tolerance=-1e-9), "tolerance must be 0 or more nats, not -1e-09"),
        (lambda: ur.Method(tolerance=float("nan")), "tolerance must be 0 or more"),
        (lambda: ur.Method(tolerance=float("inf")), "tolerance must be 0 or more"),
        (lambda: ur.Sample(missing="skp"), "unknown missing 'skp'; did you mean skip"),
        (
            lambda: ur.Sample(max_per_class=0),
            "max_per_class must be a whole number of at least 1",
        ),
        (
            lambda: ur.Sample(classes="cat"),
            "classes must be a list of whole numbers or texts, or None, not 'cat'",
        ),
        (lambda: ur.Sample(classes=()), "classes is empty; name at least one"),
        (
            lambda: ur.Compute(batch_size=0),
            "batch_size must be a whole number of at least 1",
        ),
        (lambda: ur.Compute(memory_budget=0), "memory_budget must be positive, not 0"),
        (lambda: ur.Compute(memory_budget="0 MB"), "memory_budget must be positive"),
        (lambda: ur.Compute(memory_budget="much"), "cannot read memory_budget 'much'; write"),
        (lambda: ur.Compute(memory_budget="2"), "cannot read memory_budget '2'"),
        (lambda: ur.Compute(memory_budget="-1GB"), "cannot read memory_budget"),
        (lambda: ur.Compute(memory_budget=".B"), "cannot read memory_budget"),
        (lambda: ur.Compute(memory_budget="1.2.3GB"), "cannot read memory_budget"),
        (lambda: ur.Compute(memory_budget="5iB"), "cannot read memory_budget"),
    ],
)
def test_options_refuse_what_they_do_not_know(make, said):
    with pytest.raises(ur.InputError, match=said):
        make()


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (1000, 1000),
        ("1000B", 1000),
        ("2KiB", 2048),
        ("1.5kb", 1500),
        (" 3 MB ", 3 * 10**6),
        ("0.5mib", 2**19),
        ("2GiB", 2**31),
        ("1GB", 10**9),
    ],
)
def test_a_memory_budget_is_a_number_of_bytes(budget, expected):
    assert ur.Compute(memory_budget=budget).bytes == expected


@pytest.mark.parametrize("device", ["cude", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(device):
    with pytest.raises(ur.InputError, match=f"device '{device}' cannot be used: .*; name one that"):
        analyze((inputs(), LABELS), compute=ur.Compute(device=device))


def test_the_device_of_the_model_may_be_named():
    named = analyze((inputs(), LABELS), compute=ur.Compute(device="cpu", batch_size=4)).data
    np.testing.assert_array_equal(named.loss, analyze((inputs(), LABELS)).data.loss)


def test_options_are_frozen_and_equal_by_value():
    assert ur.Sample(classes=[0, 1]) == ur.Sample(classes=(0, 1)) != ur.Sample()
    assert hash(ur.Sample(classes=[0, 1])) == hash(ur.Sample(classes=(0, 1)))
    with pytest.raises(AttributeError):
        ur.Sample().seed = 1


def pair(count: int = 12) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, 10, generator=torch.Generator().manual_seed(count))
    return x, torch.arange(count) % 3


def test_a_shape_that_only_the_test_data_have_is_one_sentence():
    x, y = pair()
    with pytest.raises(ur.InputError, match="the test data cannot be run through the model"):
        ur.analyze(model(), pair(), (x[:, :9], y), progress=False)


def test_a_sample_that_fits_in_no_batch_is_one_sentence():
    x, y = pair()
    rows = [(x[i][: 9 if i == 7 else 10], int(y[i])) for i in range(len(y))]
    with pytest.raises(ur.InputError, match="train samples cannot be put into one batch"):
        ur.analyze(model(), rows, pair(), progress=False)


@pytest.mark.parametrize("missing", ["error", "skip"])
def test_a_label_out_of_range_in_one_split_is_not_a_missing_class(missing):
    x, y = pair()
    y[4] = 9
    sample = ur.Sample(missing=missing)
    with pytest.raises(ur.InputError, match="label 9 of train sample 4 is out of range"):
        ur.analyze(model(), (x, y), pair(), sample=sample, progress=False)


def test_skipped_classes_are_said_and_stored():
    (x, y), test = pair(), pair(13)
    keep = y != 2
    with pytest.warns(ur.DataWarning, match="skipped: class 2 has no train samples"):
        taxonomy = ur.analyze(
            model(), (x[keep], y[keep]), test, sample=ur.Sample(missing="skip"), progress=False
        )
    assert any("skipped: class 2" in text for text in taxonomy.provenance["warnings"])


def test_class_names_must_differ():
    with pytest.raises(ur.InputError, match="'a' stands for two classes"):
        ur.analyze(model(), pair(), pair(13), class_names=["a", "a", "b"], progress=False)


def test_more_outputs_than_class_names_is_a_warning():
    net = nn.Sequential(nn.Linear(10, 6), nn.ReLU(), nn.Linear(6, 5))
    with pytest.warns(ur.DataWarning, match="3 class names but the model has 5 outputs"):
        ur.analyze(net, pair(), pair(13), class_names=list("abc"), progress=False)


def test_one_output_is_refused_with_the_remedy():
    net = nn.Sequential(nn.Linear(10, 6), nn.ReLU(), nn.Linear(6, 1))
    x, y = pair()
    with pytest.raises(ur.InputError, match="one output.*two logits"):
        ur.analyze(net, (x, 0 * y), (x, 0 * y), progress=False)


def test_class_names_are_a_list_and_the_same_in_both_splits():
    with pytest.raises(ur.InputError, match="class_names must be a list of texts"):
        ur.analyze(model(), pair(), pair(13), class_names="abc", progress=False)
    first, second = Pairs(classes=["x", "y", "z"]), Pairs(classes=["z", "y", "x"])
    with pytest.raises(ur.InputError, match="the classes of the two data sets differ"):
        ur.analyze(model(), first, second, progress=False)


def test_a_device_without_numbers_is_refused_and_the_weights_stay():
    net = model()
    before = net[0].weight.clone()
    with pytest.raises(ur.InputError, match="device 'meta' cannot be used"):
        ur.analyze(net, pair(), pair(13), compute=ur.Compute(device="meta"), progress=False)
    assert torch.equal(net[0].weight, before)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ur.Compute(batch_size=True), "batch_size must be a whole number"),
        (lambda: ur.Sample(seed=-1), "seed must be a whole number of at least 0"),
    ],
)
def test_numbers_of_the_wrong_kind_are_one_sentence(make, said):
    with pytest.raises(ur.InputError, match=said):
        make()
