"""Samples classed by another column than their label."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

import networks
import reference
import unitroles as ur
from forcing import layer_of, one_copy, quietly

pytestmark = pytest.mark.usefixtures("one_thread")


class Rows(Dataset):
    """Samples as mappings, with a column beside the label."""

    def __init__(self, split, column, values) -> None:
        self.split, self.column, self.values = split, column, values

    def __len__(self) -> int:
        return len(self.split[0])

    def __getitem__(self, row):
        x, y = self.split
        return {"x": x[row], "label": y[row], self.column: self.values[row]}


class Attribute(Dataset):
    """Samples as pairs; the true labels are an attribute of the data set."""

    def __init__(self, split, values) -> None:
        self.split, self.true_labels = split, values

    def __len__(self) -> int:
        return len(self.split[0])

    def __getitem__(self, row):
        return self.split[0][row], self.split[1][row]


def corrupted(toy: networks.Toy) -> tuple[torch.Tensor, torch.Tensor]:
    """The labels of the training set with a third of them moved on, and the true ones."""
    true = toy.train[1]
    wrong = torch.where(torch.arange(len(true)) % 3 == 0, (true + 1) % (true.max() + 1), true)
    return wrong, true


def analyze(toy, train, test, **options):
    return quietly(ur.analyze, toy.model, train, test, layer=layer_of(toy), **options)


@pytest.mark.parametrize("form", ["arrays", "column", "texts", "attribute"])
def test_groups_equal_the_twin(form):
    toy = one_copy("conv_pool_linear", torch.float64)
    given, true = corrupted(toy)
    (x, _), (u, v) = toy.train, toy.test
    pairs = [((x, given), true), ((u, v), v)]
    column: object = "true"
    if form == "arrays":
        train, test = (split for split, _ in pairs)
        column = {"train": true.numpy(), "test": v}
    elif form == "attribute":
        train, test = (Attribute(split, groups.tolist()) for split, groups in pairs)
        column = "true_labels"
    else:
        named = form == "texts"
        train, test = (
            Rows(split, "true", [f"kind {g}" for g in groups] if named else groups)
            for split, groups in pairs
        )
    found = analyze(toy, train, test, sample=ur.Sample(group_by=column))
    twin = reference.analyze(
        toy.model,
        toy.layer,
        (x, given),
        (u, v),
        toy.axis,
        toy.call,
        groups=(true, v),
    )
    for name in ("loss", "accuracy", "score", "swapped_loss"):
        np.testing.assert_allclose(found.data[name], getattr(twin, name), atol=1e-10)
    np.testing.assert_array_equal(found.data.role, twin.role)
    if form == "texts":
        assert found.labels == [f"kind {g}" for g in sorted(set(v.tolist()))]
    assert found.provenance["options"]["sample"]["group_by"] == (
        "given arrays" if form == "arrays" else column
    )


def test_by_label_and_by_true_label_differ():
    toy = one_copy("conv_pool_linear", torch.float64)
    given, true = corrupted(toy)
    train, groups = (toy.train[0], given), {"train": true, "test": toy.test[1]}
    by_label = analyze(toy, train, toy.test)
    by_truth = analyze(toy, train, toy.test, sample=ur.Sample(group_by=groups))
    assert by_label.data.attrs["train_accuracy"] == by_truth.data.attrs["train_accuracy"]
    assert not np.allclose(by_label.data.loss[0], by_truth.data.loss[0])
    np.testing.assert_array_equal(by_label.data.loss[1], by_truth.data.loss[1])


def test_draws_are_made_within_groups():
    toy = one_copy("conv_pool_linear", torch.float32)
    groups = {name: np.arange(len(split[0])) % 5 for name, split in both(toy).items()}
    sample = ur.Sample(group_by=groups, max_per_class=3, classes=[4, 1], seed=3)
    found = analyze(toy, toy.train, toy.test, sample=sample)
    assert found.labels == [1, 4]
    assert (found.data.samples.values == 3).all()


def both(toy: networks.Toy):
    return {"train": toy.train, "test": toy.test}


def test_names_of_groups_are_given_or_unknown():
    toy = one_copy("conv_pool_linear", torch.float32)
    groups = {name: np.arange(len(split[0])) % 2 for name, split in both(toy).items()}
    sample = ur.Sample(group_by=groups)
    assert analyze(toy, *both(toy).values(), sample=sample).labels == [0, 1]
    named = analyze(toy, *both(toy).values(), sample=sample, class_names=["even", "odd"])
    assert named.labels == ["even", "odd"]
    with pytest.raises(ur.InputError, match="there are 1 class names but label 1 occurs"):
        analyze(toy, *both(toy).values(), sample=sample, class_names=["even"])


@pytest.mark.parametrize(
    ("group_by", "said"),
    [
        ({"train": [0, 1]}, "holds 2 values for"),
        ({"test": [0, 1]}, "group_by has no 'train' among"),
        ("colour", "have no column 'colour' to group by"),
        ({"train": None}, "group_by"),
    ],
)
def test_groups_that_cannot_be_used(group_by, said):
    toy = one_copy("conv_pool_linear", torch.float32)
    if isinstance(group_by, dict) and group_by.get("train", 0) is None:
        group_by = {name: np.zeros(len(s[0]) or 1) + 0.5 for name, s in both(toy).items()}
    with pytest.raises(ur.InputError, match=said):
        analyze(toy, toy.train, toy.test, sample=ur.Sample(group_by=group_by))


def test_texts_and_numbers_do_not_mix():
    toy = one_copy("conv_pool_linear", torch.float32)
    groups = {name: [0, "a"] * (len(split[0]) // 2) for name, split in both(toy).items()}
    with pytest.raises(ur.InputError, match="texts and numbers"):
        analyze(toy, toy.train, toy.test, sample=ur.Sample(group_by=groups))


def test_group_by_is_a_name_or_arrays():
    sample = ur.Sample()
    object.__setattr__(sample, "group_by", [1, 2])  # past the checked types of the tests
    with pytest.raises(ur.InputError, match="Sample: group_by must be a text, a mapping or None"):
        sample.__post_init__()


def test_ablation_by_group():
    toy = one_copy("conv_pool_linear", torch.float32)
    groups = {"data": np.arange(len(toy.train[0])) % 3}
    found = quietly(
        ur.single_unit_ablation,
        toy.model,
        toy.train,
        layer=layer_of(toy),
        sample=ur.Sample(group_by=groups),
    )
    assert found.sizes["label"] == 3


def test_a_data_set_of_hugging_face_is_read_as_it_is():
    datasets = pytest.importorskip("datasets", reason="needs Hugging Face datasets")
    draw = np.random.default_rng(0)
    found = datasets.Dataset.from_dict(
        {
            "row": draw.normal(size=(30, 5)).astype("float32").tolist(),
            "label": [i % 3 for i in range(30)],
            "colour": [("red", "blue")[i % 2] for i in range(30)],
        },
        features=datasets.Features(
            {
                "row": datasets.Sequence(datasets.Value("float32")),
                "label": datasets.ClassLabel(names=["cat", "dog", "owl"]),
                "colour": datasets.Value("string"),
            }
        ),
    )
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    x, y = torch.tensor(found["row"][:]), torch.tensor(found["label"][:])
    wanted = quietly(ur.analyze, net, (x, y), (x, y), layer="1")
    for data in (found, found.with_format("torch")):
        named = quietly(ur.analyze, net, data, data, layer="1")
        assert named.labels == ["cat", "dog", "owl"]
        np.testing.assert_array_equal(named.data.loss, wanted.data.loss)
        sample = ur.Sample(group_by="colour")
        grouped = quietly(ur.analyze, net, data, data, layer="1", sample=sample)
        assert grouped.labels == ["blue", "red"]
        assert (grouped.data.samples.values == 15).all()


def test_names_of_groups_are_not_replaced():
    toy = one_copy("conv_pool_linear", torch.float32)
    groups = {name: ["sun", "rain"] * (len(split[0]) // 2) for name, split in both(toy).items()}
    with pytest.raises(ur.InputError, match="the groups have names of their own .rain, sun"):
        analyze(
            toy,
            toy.train,
            toy.test,
            sample=ur.Sample(group_by=groups),
            class_names=["cat", "dog"],
        )


def test_a_number_below_zero_has_no_name():
    toy = one_copy("conv_pool_linear", torch.float32)
    groups = {name: [-1, 0] * (len(split[0]) // 2) for name, split in both(toy).items()}
    sample = ur.Sample(group_by=groups)
    assert analyze(toy, toy.train, toy.test, sample=sample).labels == [-1, 0]
    with pytest.raises(ur.InputError, match="label -1 occurs and has no name"):
        analyze(toy, toy.train, toy.test, sample=sample, class_names=["a", "b"])


def test_a_number_that_is_also_a_name_is_asked_about():
    toy = one_copy("conv_pool_linear", torch.float32)
    groups = {name: ["1", "2"] * (len(split[0]) // 2) for name, split in both(toy).items()}
    named = ur.Sample(group_by=groups, classes=["1"])
    assert analyze(toy, toy.train, toy.test, sample=named).labels == ["1"]
    with pytest.raises(ur.InputError, match="may be a number or the name '1'"):
        analyze(toy, toy.train, toy.test, sample=ur.Sample(group_by=groups, classes=[1]))


@pytest.mark.parametrize("values", [5, [2**70]])
def test_groups_that_are_no_numbers_of_samples(values):
    toy = one_copy("conv_pool_linear", torch.float32)
    groups = {n: values if values == 5 else values * len(s[0]) for n, s in both(toy).items()}
    with pytest.raises(ur.InputError, match="group_by of the train samples"):
        analyze(toy, toy.train, toy.test, sample=ur.Sample(group_by=groups))


class Featured(Rows):
    """With the features of a Hugging Face data set."""

    def __init__(self, split, values, **names) -> None:
        super().__init__(split, "weather", values)
        self.features = {name: SimpleNamespace(names=known) for name, known in names.items()}


def test_names_that_differ_between_the_data_sets_are_refused():
    toy = one_copy("conv_pool_linear", torch.float32)
    by_label = [str(k) for k in range(int(toy.train[1].max()) + 1)]

    def pair(*names, labels=(by_label, by_label)):
        return [
            Featured(split, torch.arange(len(split[0])) % 2, weather=known, label=given)
            for split, known, given in zip(both(toy).values(), names, labels, strict=True)
        ]

    sample, weather = ur.Sample(group_by="weather"), ["rain", "sun"]
    assert analyze(toy, *pair(weather, weather), sample=sample).labels == weather
    with pytest.raises(ur.InputError, match="names of the groups 'weather' differ"):
        analyze(toy, *pair(weather, weather[::-1]), sample=sample)
    with pytest.raises(ur.InputError, match="the classes of the two data sets differ"):
        analyze(toy, *pair(weather, weather, labels=(by_label, by_label[::-1])), sample=sample)
