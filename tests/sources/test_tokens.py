"""Tables as data: which columns are read, how classes are numbered, what texts become."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from unitroles.errors import DataWarning, InputError
from unitroles.sources import records
from unitroles.sources.factory import Known
from unitroles.sources.records import DataOptions, Table, is_table, read_table, same_kind
from unitroles.sources.splits import load_groups, load_splits
from unitroles.sources.tokens import number_labels

NAMED = "label,text\nwho,who is the king ?\nwhere,where is the city ?\n"


def write(path: Path, content: str) -> str:
    path.write_text(content, encoding="utf-8")
    return str(path)


# --- which columns


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", NAMED),
        ("a.csv", "\ufeff" + NAMED),
        ("a.csv", 'Sentence , Labels\n"who is the king ?",who\nwhere is the city ?,where\n'),
        ("a.csv", "number,question,label\n1,who is the king ?,who\n\n2,where is the city ?,where"),
        ("a.csv", "label,review\nwho,who is the king ?\nwhere,where is the city ?\n"),
        ("a.csv", "who,who is the king ?\nwhere,where is the city ?\n"),
        ("a.TSV", "who\twho is the king ?\nwhere\twhere is the city ?\n"),
    ],
)
def test_labels_and_texts(name: str, content: str, tmp_path: Path) -> None:
    rows = read_table(write(tmp_path / name, content), "train")
    assert rows.labels == ["who", "where"]
    assert rows.texts == ["who is the king ?", "where is the city ?"]


def test_chosen_columns(tmp_path: Path) -> None:
    spec = write(tmp_path / "a.csv", "id,label,kind,text,body\n1,a,b,c,d\n")
    rows = read_table(spec, "train", DataOptions(label_column="kind", text_column="body"))
    assert (rows.labels, rows.texts) == (["b"], ["d"])
    rows = read_table(spec, "train", DataOptions(label_column="kind"))
    assert (rows.labels, rows.texts) == (["b"], ["c"])


def test_texts_stay_as_they_are(tmp_path: Path) -> None:
    lines = ['NA\tsay "cheese', "null\tNaN", "007\t 1.50 ", "a\t", "a\t'b, c'"]
    rows = read_table(write(tmp_path / "a.tsv", "\n".join(["label\ttext", *lines])), "train")
    assert rows.labels == ["NA", "null", "007", "a", "a"]
    assert rows.texts == ['say "cheese', "NaN", " 1.50 ", "", "'b, c'"]
    quoted = write(tmp_path / "a.csv", 'label,text\na,"b, ""c"""\n')
    assert read_table(quoted, "train").texts == ['b, "c"']


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        (
            "a.csv",
            None,
            DataOptions(),
            "train data cannot be read: there is no file .*a.csv; give a te",
        ),
        ("a.csv", "", DataOptions(), "train data .*a.csv are empty; give a text file"),
        (
            "a.csv",
            "label,text\n",
            DataOptions(),
            "train data in .*a.csv hold no rows; give samples",
        ),
        (
            "a.csv",
            "a,b,c\nd,e,f\n",
            DataOptions(),
            "has 3 columns and no header line with 'label' and",
        ),
        ("a.csv", "a\nb\n", DataOptions(), "has 1 columns and no header line"),
        (
            "a.csv",
            "x,text\nd,e\n",
            DataOptions(),
            "no column 'label' or 'labels' among x, text; name",
        ),
        (
            "a.csv",
            "label,x,y\nd,e,f\n",
            DataOptions(),
            "no column 'text', .* among x, y; name the one",
        ),
        (
            "a.csv",
            "label\nd\n",
            DataOptions(),
            "has no column beside 'label'; add one with the texts",
        ),
        (
            "a.csv",
            NAMED,
            DataOptions(label_column="labl"),
            "unknown column of .*a.csv 'labl'; did you mean label?",
        ),
        (
            "a.csv",
            NAMED,
            DataOptions(text_column="txt"),
            "unknown column of .*a.csv 'txt'; did you mean text",
        ),
        (
            "a.csv",
            NAMED,
            DataOptions(image_column="x"),
            "--image-column is for parquet files; leave it out",
        ),
        (
            "a.csv",
            "label,text\na,b\n,c\n",
            DataOptions(),
            "sample 1 in .*a.csv has no label; add it",
        ),
        (
            "a.csv",
            "a,b\n\nc,d,e\n",
            DataOptions(),
            "line 3 of .*a.csv has 3 columns, the first line 2",
        ),
        (
            "a.csv",
            "a,b\nc\n",
            DataOptions(),
            "line 2 of .*a.csv has 1 columns, the first line 2; give",
        ),
        ("a.csv", 'a,b\nc,"d\ne,f\n', DataOptions(), "a.csv cannot be read: .*end of data; give a"),
        (
            "a.parquet",
            None,
            DataOptions(),
            "cannot be read: there is no file .*a.parquet; give a parq",
        ),
        (
            "a.parquet",
            "x",
            DataOptions(),
            "train data .*a.parquet cannot be read: .*; give a parquet",
        ),
    ],
)
def test_tables_that_cannot_be_used(
    name: str, content: str | None, options: DataOptions, message: str, tmp_path: Path
) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("datasets", reason="datasets is not installed")
    if content is not None:
        write(tmp_path / name, content)
    with pytest.raises(InputError, match=message):
        read_table(str(tmp_path / name), "train", options)


def test_no_utf8(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"label,text\na,\xff\xfe\n")
    with pytest.raises(InputError, match="a.csv cannot be read: .*; give a text file in UTF-8"):
        read_table(str(tmp_path / "a.csv"), "train")


# --- numbers of the classes


def rows(labels: list[Any], names: tuple[str, ...] = ()) -> Table:
    return Table("a.csv", labels, names, texts=[""] * len(labels))


def numbered(
    train: list[Any], test: list[Any], numbers: dict[str, int] | None = None
) -> tuple[list[list[int]], list[str] | None]:
    found, names = number_labels([rows(train), rows(test)], numbers or {})
    return [split.tolist() for split in found], names


def test_the_names_of_the_model_give_the_numbers() -> None:
    numbers = {"who": 1, "where": 0, "what": 2}
    assert numbered(["who", "where"], ["who"], numbers) == (
        [[1, 0], [1]],
        ["where", "who", "what"],
    )
    with pytest.raises(InputError, match="no class 'why'; its classes are where, who, what; gi"):
        numbered(["who"], ["why"], numbers)


def test_whole_numbers_stay() -> None:
    assert numbered(["2", "0"], ["01"]) == ([[2, 0], [1]], None)
    assert numbered([2, 0], [1], {"who": 1, "where": 0}) == ([[2, 0], [1]], ["where", "who"])


def test_sorted_names_are_a_warning() -> None:
    with pytest.warns(DataWarning, match="sorted order of their names, 0 = a, 1 = b, 2 = c and 1"):
        assert numbered(["d", "a"], ["b", "c"]) == ([[3, 0], [1, 2]], ["a", "b", "c", "d"])


def test_names_of_a_class_column() -> None:
    pair = [rows([1, 0], ("x", "y")), rows([1], ("x", "y"))]
    found, names = number_labels(pair, {})
    assert ([split.tolist() for split in found], names) == ([[1, 0], [1]], ["x", "y"])
    found, names = number_labels(pair, {"y": 0, "x": 1})
    assert ([split.tolist() for split in found], names) == ([[0, 1], [0]], ["y", "x"])
    with pytest.raises(InputError, match="the model has no class 'x', 'y'; its classes are z"):
        number_labels(pair, {"z": 0})
    with pytest.raises(InputError, match="classes differ: a.csv x, y, a.csv y, x; give both"):
        number_labels([rows([1], ("x", "y")), rows([0], ("y", "x"))], {})


# --- tokens


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    pytest.importorskip("transformers", reason="transformers is not installed")
    tiny.save_tokenizer(tmp_path / "tokenizer")
    return str(tmp_path / "tokenizer")


def tables(tokenizer: str | None, **changes: Any) -> DataOptions:
    return DataOptions(tokenizer=tokenizer, known=Known(numbers={"who": 0, "where": 1}), **changes)


def texts(folder: Path) -> tuple[str, str]:
    train = write(folder / "train.csv", NAMED)
    test = write(folder / "test.csv", f"label,text\nwho,{'king ' * 30}\nwho,who is the dog\n")
    return train, test


def test_both_splits_have_one_length(tokenizer: str, tmp_path: Path) -> None:
    splits = texts(tmp_path)
    train, test, names = load_splits(*splits, tables(tokenizer))
    assert names == ["who", "where"]
    assert (len(train), train.targets.tolist(), test.targets.tolist()) == (2, [0, 1], [0, 0])
    first, label = train[0]
    assert label == 0
    assert {"input_ids", "attention_mask"} <= first.keys()
    assert {len(value) for value in first.values()} == {tiny.MOST}
    assert first["input_ids"].tolist()[:7] == [2, 4, 6, 7, 15, 13, 3]
    assert first["attention_mask"].tolist() == [1] * 7 + [0] * 17
    assert test[0][0]["attention_mask"].sum() == tiny.MOST
    short, long, _ = load_splits(*splits, tables(tokenizer, max_length=6))
    assert [split[0][0]["input_ids"].shape for split in (short, long)] == [(6,), (6,)]
    known = Known(None, tokenizer, 12, {"who": 0, "where": 1})
    train, _, _ = load_splits(*splits, DataOptions(known=known))
    assert train[0][0]["input_ids"].shape == (12,)


def test_a_tokenizer_without_a_limit(tmp_path: Path, tokenizer: str) -> None:
    tiny.save_tokenizer(tmp_path / "other", most=int(1e30))
    train, _, _ = load_splits(*texts(tmp_path), tables(str(tmp_path / "other")))
    assert train[0][0]["input_ids"].shape == (32,)


def test_texts_that_cannot_be_tokenised(tokenizer: str, tmp_path: Path) -> None:
    splits = texts(tmp_path)
    with pytest.raises(InputError, match="become tokens is not known; give the folder .*--tokeni"):
        load_splits(*splits, tables(None))
    with pytest.raises(InputError, match="there is no tokenizer in .*none .*; give .*--tokenizer"):
        load_splits(*splits, tables(str(tmp_path / "none")))
    with pytest.raises(InputError, match="--max-length 25 is more than the 24 tokens that the"):
        load_splits(*splits, tables(tokenizer, max_length=25))
    tiny.save_tokenizer(tmp_path / "other", padding=False)
    with pytest.raises(InputError, match="the tokenizer .*other cannot read the texts: .*padding"):
        load_splits(*splits, tables(str(tmp_path / "other")))


def without_files(kind: str, folder: Path) -> str:
    """A folder as training scripts leave it: the model and its configuration, no tokenizer."""
    import transformers

    getattr(transformers, f"{kind}Config")().save_pretrained(folder)
    return str(folder)


MISSING = ["Bert", "DistilBert", "Roberta", "XLMRoberta", "DebertaV2", "Albert", "T5", "MPNet"]


@pytest.mark.parametrize("kind", MISSING)
def test_a_folder_without_its_tokenizer(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    folder = without_files(kind, tmp_path / "model")
    with pytest.raises(InputError, match="tokenizer .*model.* the one used in training"):
        load_splits(*texts(tmp_path), tables(folder))


@pytest.mark.parametrize(("words", "known"), [("who who river", True), ("who rien du", False)])
def test_words_that_are_mostly_unknown(
    words: str, known: bool, tokenizer: str, tmp_path: Path
) -> None:
    spec = write(tmp_path / "a.csv", "label,text\n" + f"who,{words} tout\n" * 3)
    if known:
        assert len(load_splits(spec, spec, tables(tokenizer))[0]) == 3
        return
    with pytest.raises(InputError, match=r"does not know the words of the texts \(75% of the tok"):
        load_splits(spec, spec, tables(tokenizer))


def test_texts_without_words(tokenizer: str, tmp_path: Path) -> None:
    spec = write(tmp_path / "a.csv", 'label,text\nwho,""\nwho," "\n')
    with pytest.raises(InputError, match=r"does not know the words of the texts \(no token\)"):
        load_splits(spec, spec, tables(tokenizer))


def test_options_of_pictures_have_no_use_for_texts(tokenizer: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--image-size, --scale is for pictures; leave it out"):
        load_splits(*texts(tmp_path), tables(tokenizer, image_size=4, scale=True))


def test_options_of_tables_have_no_use_for_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 3)), labels=np.array([0, 1]))
    spec = str(tmp_path / "a.npz")
    with pytest.raises(InputError, match=r"--max-length is for tables \(csv, tsv, parquet\)"):
        load_splits(spec, spec, DataOptions(max_length=3))
    with pytest.raises(InputError, match="train data .*csv are a table, the test data .*npz are n"):
        load_splits(texts(tmp_path)[0], spec)


# --- parquet and saved data sets


@pytest.fixture
def datasets() -> Any:
    return pytest.importorskip("datasets", reason="datasets is not installed")


def pixels(count: int) -> list[Any]:
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 256, (6, 8, 3), dtype=np.uint8)) for _ in range(count)]


def pictured(datasets: Any, **more: list[Any]) -> Any:
    kinds = {"label": datasets.ClassLabel(names=["cat", "dog"]), "picture": datasets.Image()}
    features = datasets.Features(kinds | {name: datasets.Value("int64") for name in more})
    columns = {"label": [1, 0, 1], "picture": pixels(3), **more}
    return datasets.Dataset.from_dict(columns, features=features)


def change(picture: Any) -> torch.Tensor:
    return torch.from_numpy(np.asarray(picture).copy())


def test_pictures_in_parquet_and_on_disk(datasets: Any, tmp_path: Path) -> None:
    data = pictured(datasets)
    data.to_parquet(tmp_path / "a.parquet")
    data.save_to_disk(tmp_path / "saved")
    before = set(tmp_path.rglob("*"))
    for spec in (str(tmp_path / "a.parquet"), str(tmp_path / "saved")):
        assert is_table(spec)
        train, test, names = load_splits(spec, spec, DataOptions(transform=change))
        assert names == ["cat", "dog"]
        assert train.targets.tolist() == test.targets.tolist() == [1, 0, 1]
        picture, label = train[1]
        assert (label, picture.tolist()) == (0, np.asarray(pixels(3)[1]).tolist())
    assert set(tmp_path.rglob("*")) == before


def test_a_preset_and_sizes_for_pictures_in_tables(datasets: Any, tmp_path: Path) -> None:
    pictured(datasets).to_parquet(tmp_path / "a.parquet")
    spec = str(tmp_path / "a.parquet")
    assert load_splits(spec, spec, DataOptions(image_size=4))[0][0][0].shape == (3, 4, 4)
    assert load_splits(spec, spec, DataOptions(known=Known(lambda picture: 7)))[0][0][0] == 7
    with pytest.raises(InputError, match="how to read the pictures in .*a.parquet .*--image-size"):
        load_splits(spec, spec)
    with pytest.raises(InputError, match="--scale is for uint8 images in npz files; leave it out"):
        load_splits(spec, spec, DataOptions(scale=True))
    with pytest.raises(InputError, match="--tokenizer and --max-length are for texts; leave them"):
        load_splits(spec, spec, DataOptions(image_size=4, max_length=3))


def test_pictures_that_are_not_in_the_table(datasets: Any, tmp_path: Path) -> None:
    """A path in a table is data: it is not followed."""
    picture = datasets.Image()
    features = datasets.Features({"label": datasets.Value("int64"), "picture": picture})
    paths = [{"bytes": None, "path": "https://example.org/a.png"}, {"bytes": b"x", "path": None}]
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"label": [0, 1], "picture": paths}, schema=features.arrow_schema)
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    spec = str(tmp_path / "a.parquet")
    train, _, _ = load_splits(spec, spec, DataOptions(image_size=4))
    with pytest.raises(InputError, match="row 0 of .* holds the path of a picture, not the pictur"):
        train[0]
    with pytest.raises(InputError, match="picture in row 1 of .*cannot be read .*repair or remove"):
        train[1]


def test_texts_in_parquet(datasets: Any, tokenizer: str, tmp_path: Path) -> None:
    kinds = {
        "sentence": datasets.Value("string"),
        "kind": datasets.Value("string"),
        "number": datasets.Value("int32"),
    }
    columns = {"sentence": ["who", "where"], "kind": ["who", "where"], "number": [1, 0]}
    data = datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))
    data.to_parquet(tmp_path / "a.parquet")
    spec = str(tmp_path / "a.parquet")
    for label, expected in {"kind": [0, 1], "number": [1, 0]}.items():
        train, _, names = load_splits(spec, spec, tables(tokenizer, label_column=label))
        assert (train.targets.tolist(), names) == (expected, ["who", "where"])
        assert train[0][0]["input_ids"].tolist() == [2, 4, 3]
    with pytest.raises(InputError, match="column 'number' of .*does not hold texts; name the one"):
        read_table(spec, "train", DataOptions(label_column="kind", text_column="number"))
    with pytest.raises(InputError, match="column 'number' of .*does not hold pictures .*--image-c"):
        read_table(spec, "train", DataOptions(label_column="kind", image_column="number"))
    with pytest.raises(InputError, match="no column 'label' or 'labels' among sentence, kind, num"):
        read_table(spec, "train")
    with pytest.raises(InputError, match="unknown column of .*'nmber'; did you mean number?"):
        read_table(spec, "train", DataOptions(label_column="nmber"))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0.5, 1.5], "column 'label' of .* holds float, not one whole number or one name"),
        ([0, None], "sample 1 in .*a.parquet has no label; add it, or remove the row"),
    ],
)
def test_labels_that_are_none(labels: list[Any], message: str, datasets: Any, tmp_path: Path):
    data = datasets.Dataset.from_dict({"label": labels, "text": ["a", "b"]})
    data.to_parquet(tmp_path / "a.parquet")
    with pytest.raises(InputError, match=message):
        read_table(str(tmp_path / "a.parquet"), "train")


def test_unlabelled_rows_of_a_class_column(datasets: Any, tmp_path: Path) -> None:
    data = datasets.Dataset.from_dict(
        {"label": [0, -1], "text": ["a", "b"]},
        features=datasets.Features(
            {"label": datasets.ClassLabel(names=["x", "y"]), "text": datasets.Value("string")}
        ),
    )
    data.to_parquet(tmp_path / "a.parquet")
    with pytest.raises(InputError, match="a label in .* is -1, outside its 2 class names; remove"):
        read_table(str(tmp_path / "a.parquet"), "train")


def test_texts_against_pictures(datasets: Any, tokenizer: str, tmp_path: Path) -> None:
    pictured(datasets).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(InputError, match="one of train and test holds texts, the other pictures"):
        load_splits(texts(tmp_path)[0], str(tmp_path / "a.parquet"), tables(tokenizer))


def test_a_dictionary_of_splits_names_them(datasets: Any, tmp_path: Path) -> None:
    pair = datasets.DatasetDict(train=pictured(datasets), test=pictured(datasets))
    pair.save_to_disk(tmp_path / "saved")
    with pytest.raises(InputError, match="holds several splits; give one of them for train: .*tes"):
        read_table(str(tmp_path / "saved"), "train")
    assert read_table(str(tmp_path / "saved" / "test"), "test").labels == [1, 0, 1]


def test_a_table_that_declares_too_many_rows(
    datasets: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = str(tmp_path / "a.parquet")
    datasets.Dataset.from_dict({"label": [0] * 50, "text": ["a"] * 50}).to_parquet(spec)
    monkeypatch.setattr(records, "machine_memory", lambda: 399)
    with pytest.raises(InputError, match="train data .* 400 B or more, and this machine has 399 B"):
        read_table(spec, "train")
    monkeypatch.setattr(records, "machine_memory", lambda: 400)
    assert len(read_table(spec, "train").labels) == 50


def test_a_damaged_data_set(datasets: Any, tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": []}))
    with pytest.raises(InputError, match="train data .* cannot be read: .*; give a parquet file"):
        read_table(str(tmp_path), "train")


# --- groups


def test_groups(datasets: Any, tmp_path: Path) -> None:
    data = pictured(datasets, colour=[3, 4, 3])
    data.to_parquet(tmp_path / "a.parquet")
    parquet = str(tmp_path / "a.parquet")
    found = load_groups(parquet, parquet, "colour")
    assert {name: values.tolist() for name, values in found.items()} == {
        "train": [3, 4, 3],
        "test": [3, 4, 3],
    }
    assert load_groups(parquet, parquet, "label")["test"].tolist() == ["dog", "cat", "dog"]
    csv = write(tmp_path / "a.csv", "label,text,kind\n0,a,07\n1,b,x\n")
    other = write(tmp_path / "b.csv", "label,text,kind\n0,a,1\n")
    assert load_groups(csv, other, "kind")["test"].tolist() == ["1"]
    assert load_groups(other, other, "kind")["test"].tolist() == [1]
    np.savez(tmp_path / "a.npz", train_kind=np.array(["a", "b"]), test_kind=np.array([2, 3]))
    npz = str(tmp_path / "a.npz")
    found = load_groups(f"{npz}::train", f"{npz}::test", "kind")
    assert [values.tolist() for values in found.values()] == [["a", "b"], ["2", "3"]]
    np.savez(tmp_path / "b.npz", kind=np.array([True, False]), wide=np.zeros((2, 2)))
    spec = str(tmp_path / "b.npz")
    assert load_groups(spec, spec, "kind")["train"].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("spec", "name", "message"),
    [
        ("a.csv", "knd", "a.csv has no column 'knd' in its first line .*; name one of these, or"),
        ("b.npz", "knd", "b.npz has no 'knd' for --group-by knd; it holds kind, wide"),
        ("b.npz::a", "kind", "b.npz has no 'a_kind' for --group-by kind; it holds"),
        ("b.npz", "wide", r"'wide' in .*b.npz is float64 of shape \(2, 2\), expected one whole"),
        (".", "kind", "the class folders of .* carry no label but their name; give a table"),
        ("c.npz", "kind", "the train data cannot be read: there is no file"),
    ],
)
def test_groups_that_are_not_there(spec: str, name: str, message: str, tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "label,text,kind\n0,a,07\n1,b,x\n")
    np.savez(tmp_path / "b.npz", kind=np.array([1, 0]), wide=np.zeros((2, 2)))
    given = str(tmp_path / spec)
    with pytest.raises(InputError, match=message):
        load_groups(given, given, name)


def test_booleans_and_texts_of_numbers_as_groups(datasets: Any, tmp_path: Path) -> None:
    columns = {"flag": [True, False], "text": ["7", " 8"], "gap": ["None", "NA"]}
    datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "a.parquet")
    spec = str(tmp_path / "a.parquet")
    assert load_groups(spec, spec, "flag")["train"].tolist() == ["True", "False"]
    assert load_groups(spec, spec, "text")["train"].tolist() == [7, 8]
    assert load_groups(spec, spec, "gap")["train"].tolist() == ["None", "NA"]


@pytest.mark.parametrize("values", [[3, 4, None], [True, True, None], ["a", "b", None], [None] * 3])
def test_groups_that_are_null(values: list[Any], datasets: Any, tmp_path: Path) -> None:
    columns = {"kind": values, "other": ["a", "b", " "]}
    datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "a.parquet")
    spec = str(tmp_path / "a.parquet")
    row = values.index(None)
    message = f"sample {row} in .*a.parquet has no 'kind'; fill it in or remove the sample"
    with pytest.raises(InputError, match=message):
        load_groups(spec, spec, "kind")
    with pytest.raises(InputError, match="sample 2 in .*a.parquet has no 'other'; fill it in"):
        load_groups(spec, spec, "other")


@pytest.mark.parametrize("cell", ["", "  "])
def test_empty_cells_as_groups(cell: str, tmp_path: Path) -> None:
    full = write(tmp_path / "a.csv", "label,text,kind\n0,a,x\n")
    gap = write(tmp_path / "b.csv", f"label,text,kind\n0,a,x\n\n1,b,{cell}\n0,c,{cell}\n")
    with pytest.raises(InputError, match="sample 1 in .*b.csv has no 'kind'; fill it in or remove"):
        load_groups(full, gap, "kind")


@pytest.mark.parametrize("missing", [-1, None])
def test_unlabelled_rows_as_groups(missing: int | None, datasets: Any, tmp_path: Path) -> None:
    features = datasets.Features({"kind": datasets.ClassLabel(names=["x", "y"])})
    data = datasets.Dataset.from_dict({"kind": [0, 1, missing, -1]}, features=features)
    data.to_parquet(tmp_path / "a.parquet")
    spec = str(tmp_path / "a.parquet")
    with pytest.raises(InputError, match="sample 2 in .*a.parquet has no 'kind'; fill it in or"):
        load_groups(spec, spec, "kind")


@pytest.mark.parametrize(
    ("values", "kind"),
    [([0.5, 1.0], "float"), ([1.0, None], "float"), ([[0], [1]], "list"), ([b"a", b"b"], "bytes")],
)
def test_groups_of_another_kind(
    values: list[Any], kind: str, datasets: Any, tmp_path: Path
) -> None:
    datasets.Dataset.from_dict({"kind": values}).to_parquet(tmp_path / "a.parquet")
    spec = str(tmp_path / "a.parquet")
    message = f"column 'kind' of .*a.parquet holds {kind}, not one whole number, boolean or text"
    with pytest.raises(InputError, match=message):
        load_groups(spec, spec, "kind")


def test_numbers_too_long_to_count_are_names():
    first, second = same_kind([["1", "2"], ["99999999999999999999", "2"]])
    assert first.tolist() == ["1", "2"]
    assert second.tolist() == ["99999999999999999999", "2"]
    assert [found.tolist() for found in same_kind([["-1", 2], [" 3"]])] == [[-1, 2], [3]]
