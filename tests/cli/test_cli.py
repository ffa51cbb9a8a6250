"""The command line: what it prints and writes, and one line with the remedy for every bad input."""

import csv
import itertools
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import unitroles as ur
from unitroles import wording
from unitroles.cli.app import main
from unitroles.cli.arguments import OPTIONS, Arguments, Data, Network, Output, numbered
from unitroles.curves.scores import LAYER_SCORES, SAMPLE_SCORES
from unitroles.options import ORDERS
from unitroles.report import text
from unitroles.results.dataset import Measured, dataset
from unitroles.sources.factory import load_model, trained_model
from unitroles.sources.records import DataOptions
from unitroles.sources.splits import load_splits

NETS = """
from collections import OrderedDict
import torch
from torch import nn

class Total(nn.Module):
    def forward(self, x):
        return x.sum()

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.flat, self.hidden, self.relu = nn.Flatten(), nn.Linear(16, 6), nn.ReLU()
        self.total, self.out = Total(), nn.Linear(6, 3)

    def forward(self, x):
        hidden = self.relu(self.hidden(self.flat(x)))
        return self.out(hidden) + 0 * self.total(hidden)

def net():
    torch.manual_seed(0)
    return Net()

def steep():
    model = nn.Sequential(OrderedDict(flat=nn.Flatten(), relu=nn.ReLU(), out=nn.Linear(16, 3)))
    nn.init.constant_(model.out.weight, 3.0)
    return model

def pictures():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))

class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = net()

    def forward(self, x):
        logits = self.inner(x)
        return logits.flip(1), logits

def second(outputs):
    return outputs[1]

def still(picture):
    return torch.full((3, 4, 4), picture.size[0] / 8)

def augmented(picture):
    return torch.rand(3, 4, 4)
"""
ANALYZE = {
    "": "cli_nets:net",
    "train": "d.npz::train",
    "test": "d.npz::test",
    "layer": "relu",
    "out": "a.nc",
}


UNTRAINED = "warning: labels and outputs may be numbered differently: the intact model gets "
"""What is rightly said of the networks here."""


def arrays(seed: int = 0, count: int = 75) -> dict[str, Any]:
    """Three classes that a network can tell apart."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(3, 1, 4, 4))
    found = {}
    for split in ("train", "test"):
        labels = np.arange(count) % 3
        images = centres[labels] + rng.normal(size=(count, 1, 4, 4))
        found |= {f"{split}_images": images.astype(np.float32), f"{split}_labels": labels}
    return found


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "cli_nets", raising=False)
    (tmp_path / "cli_nets.py").write_text(NETS)
    np.savez(tmp_path / "d.npz", **arrays(), classes=np.array(["cat", "dog", "owl"]))
    return tmp_path


def words(command: Mapping[str, str | None]) -> list[str]:
    """{"": MODEL, "out": "a.nc", "force": ""} as arguments of analyze; None leaves one out."""
    found = ["analyze", command[""] or ""]
    for name, value in command.items():
        if name and value is not None:
            found += [f"--{name}", *([value] if value else [])]
    return found


def files(folder: Path) -> dict[str, bytes]:
    """Everything in a folder, so that nothing written goes unseen."""
    every = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in every}


# --- what works


def test_analyze_report_and_csv(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(ANALYZE)) == 0
    printed, errors = capsys.readouterr()
    assert [line[: len(UNTRAINED)] for line in errors.splitlines()] == [UNTRAINED]
    taxonomy = ur.load("a.nc")
    assert printed.startswith(errors)  # such a warning is the first line of the report
    assert printed.count(UNTRAINED) == 1
    assert printed == f"{text.report(taxonomy)}\n\nwrote a.nc and a.toml\n"
    assert taxonomy.layer == "relu"
    assert taxonomy.labels == ["cat", "dog", "owl"]

    assert main(["report", "a.nc", "--csv", "new/tables"]) == 0
    assert capsys.readouterr().out == f"{text.report(taxonomy)}\n"
    written = {path.name: path for path in (here / "new" / "tables").iterdir()}
    names = {"proportions", "shares", "summary", "sensitivity", "regret", "curves", "units"}
    names |= {"minima", "agreement"}
    assert set(written) == {f"{name}.csv" for name in names}
    with written["proportions.csv"].open() as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == taxonomy.labels
    assert [float(row["core"]) for row in rows] == taxonomy.proportions()["core"].tolist()
    with written["units.csv"].open() as file:
        rows = list(csv.DictReader(file))
    assert [row["role"] for row in rows] == taxonomy.to_frame().role.tolist()

    before = written["curves.csv"].read_bytes()
    written["curves.csv"].write_text("mine")
    assert main(["report", "a.nc", "--csv", "new/tables"]) == 2
    assert written["curves.csv"].read_text() == "mine"
    assert main(["report", "a.nc", "--csv", "new/tables", "--force"]) == 0
    assert written["curves.csv"].read_bytes() == before


def test_options_reach_the_analysis(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({n: v + 1 for n, v in _net().state_dict().items()}, "w.safetensors")
    options = {
        "weights": "w.safetensors",
        "score": "activation_l2",
        "order": "train",
        "tolerance": "0.01",
        "classes": "owl,0",
        "max-per-class": "21",
        "equalize": "",
        "missing": "skip",
        "seed": "5",
        "device": "cpu",
        "batch-size": "16",
        "memory-budget": "1000000",
        "quiet": "",
    }
    assert main(words({**ANALYZE, **options})) == 0
    printed, errors = capsys.readouterr()
    assert printed == ""
    assert [line[: len(UNTRAINED)] for line in errors.splitlines()] == [UNTRAINED]
    found = ur.load("a.nc")
    used = found.provenance["options"]
    assert found.labels == ["cat", "owl"]
    assert found.data.samples.values.tolist() == [[21, 21], [21, 21]]
    assert used["method"] | {"score": "activation_l2", "order": "train"} == used["method"]
    assert used["method"]["tolerance"] == 0.01
    assert used["sample"]["classes"] == ["owl", 0]
    assert used["sample"] | {"equalize": True, "missing": "skip", "seed": 5} == used["sample"]
    assert used["compute"] | {"device": "cpu", "batch_size": 16} == used["compute"]
    assert used["compute"]["memory_budget"] == 1000000
    (here / "b.nc").write_bytes(b"old")
    plain = {**ANALYZE, "out": "b.nc", "force": "", "quiet": ""}
    assert main(words(plain)) == 0
    assert ur.load("b.nc").provenance["model"] != found.provenance["model"]


def _net() -> torch.nn.Module:
    return load_model("cli_nets:net")


@pytest.fixture
def folders(here: Path) -> Path:
    sizes = itertools.count(4)
    for split, name, _ in itertools.product(("train", "test"), ("left", "right"), range(4)):
        (here / split / name).mkdir(parents=True, exist_ok=True)
        size = next(sizes)
        Image.new("RGB", (size, size), (9 * size, 5, 7)).save(here / split / name / f"{size}.png")
    return here


FOLDERS = {**ANALYZE, "": "cli_nets:pictures", "train": "train", "test": "test", "layer": None}
FOLDERS["class-names"] = "left,right"


def test_folders_and_the_recommended_layer(
    folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words({**FOLDERS, "transform": "cli_nets:still"})) == 0
    assert capsys.readouterr().err == ""
    found = ur.load("a.nc")
    assert (found.layer, found.labels) == ("1", ["left", "right"])


def test_class_folders_are_numbered_by_the_class_names(
    folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With commas, or in a file; the wrong way round both curves of a class are the other's."""
    given = {**FOLDERS, "transform": "cli_nets:still", "quiet": "", "force": ""}
    (folders / "names.txt").write_text(" right \nleft\n\n", encoding="utf-8-sig")
    found = {}
    for names in ("left,right", "right, left", "names.txt", None):
        assert main(words({**given, "class-names": names})) == 0
        found[names] = ur.load("a.nc").data
        errors = capsys.readouterr().err
        assert ("warning: the class folders are numbered in the sorted order of their names, 0 = "
                "left, 1 = right. Check" in errors) == (names is None)  # fmt: skip
        assert errors.count("warning") == (names is None)
    assert found["left,right"].label.values.tolist() == ["left", "right"]
    assert found["right, left"].label.values.tolist() == ["right", "left"]
    assert found["right, left"].equals(found["names.txt"])
    assert found["left,right"].equals(found[None])
    assert not np.array_equal(found["right, left"].loss, found[None].loss[:, ::-1])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            "left",
            "the file of class names left cannot be read: No such file or directory; give one",
        ),
        (".", "the file of class names . cannot be read: Is a directory"),
        ("d.npz", "the file of class names d.npz cannot be read: 'utf-8' codec ... in UTF-8"),
        (
            "twice.txt",
            "the file of class names twice.txt has 'left' twice; class names must differ",
        ),
        ("hole.txt", "the file of class names hole.txt has an empty name; name every class"),
        ("left,right,left", "--class-names has 'left' twice; class names must differ"),
        ("left,,right", "--class-names has an empty name; name every class"),
        ("left,wright", "--class-names has no class 'right', which is a class folder; give the na"),
    ],
)
def test_class_names_that_cannot_be_used(
    names: str, message: str, folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folders / "twice.txt").write_text("left\nright\nleft\n")
    (folders / "hole.txt").write_text("left\n\nright\n")
    assert main(words({**FOLDERS, "transform": "cli_nets:still", "class-names": names})) == 2
    refused(capsys.readouterr().err, message)


def test_augmented_training_data_are_a_warning(
    folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words({**FOLDERS, "transform": "cli_nets:augmented"})) == 0
    printed, errors = capsys.readouterr()
    lines = errors.splitlines()
    assert [line[:22] for line in lines] == ["warning: train sample ", "warning: test sample 0"]
    assert "augmentation is on" in lines[0]
    assert printed.count("augmentation is on") == 2


def test_a_class_missing_in_a_folder_is_named(
    folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (folders / "test" / "left").iterdir():
        path.unlink()
    (folders / "test" / "left").rmdir()
    assert main(words({**FOLDERS, "image-size": "4"})) == 2
    assert "class 'left' has no test samples" in capsys.readouterr().err
    assert main(words({**FOLDERS, "image-size": "4", "missing": "skip"})) == 0
    assert ur.load("a.nc").labels == ["right"]


def test_a_number_is_a_name_where_the_data_have_it() -> None:
    words = OPTIONS["classes"].value("3, cat,1")
    assert numbered(words, ["3", "cat"]) == ("3", "cat", 1)
    assert numbered(["3"], None) == (3,)
    assert OPTIONS["classes"].value(None) is None


def test_a_number_is_the_name_of_a_group_of_either_split(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kinds = np.array(["a", "b", "c"])[np.arange(75) % 3]
    found: dict[str, Any] = {"train_kind": kinds, "test_kind": np.where(kinds == "c", "1", kinds)}
    np.savez(here / "d.npz", **arrays(), **found)
    given = {**ANALYZE, "group-by": "kind", "missing": "skip"}
    assert main(words({**given, "classes": "1"})) == 2
    refused(capsys.readouterr().err, "class '1' has no train samples")
    assert main(words({**given, "classes": "1,b"})) == 0
    assert ur.load("a.nc").labels == ["b"]


def test_layers(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["layers", "cli_nets:net", "--input", "1,4,4"]) == 0
    printed = capsys.readouterr().out
    frame = ur.layers(_net(), torch.zeros(2, 1, 4, 4))
    lines = printed.partition("\n\n")[0].splitlines()[1:]
    rows = [line.split() for line in lines if not line.startswith(" ")]  # reasons are wrapped
    assert [row[0] for row in rows] == frame.layer.tolist()
    assert [row[0] for row in rows if "*" in row] == ["relu"]
    assert main(["layers", "cli_nets:net", "--input", "1,4,4", "--batch", "3", "--csv"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [row["layer"] for row in rows] == frame.layer.tolist()
    assert [row["layer"] for row in rows if row["recommended"] == "True"] == ["relu"]


@pytest.mark.parametrize(
    ("model", "shape"),
    [("cli_nets:pictures", 224), ("torchvision:inception_v3", 299), ("torchvision:vit_b_32", 224)],
)
def test_layers_without_a_shape(
    model: str, shape: int, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Seen(Exception):
        pass

    def look(
        network: torch.nn.Module, example: torch.Tensor, output: object, progress: bool
    ) -> None:
        raise Seen(tuple(example.shape))

    monkeypatch.setattr(ur, "layers", look)
    with pytest.raises(Seen) as caught:
        main(["layers", model])
    assert caught.value.args[0] == (2, 3, shape, shape)


@pytest.mark.parametrize("output", ["1", "cli_nets:second"])
def test_the_output_that_is_the_logits_is_named(
    output: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(ANALYZE)) == 0
    several = {**ANALYZE, "": "cli_nets:Twice", "layer": "inner.relu", "out": "b.nc"}
    capsys.readouterr()
    assert main(words(several)) == 2
    assert "several things that may be its logits" in capsys.readouterr().err
    assert main(words({**several, "output": output})) == 0
    one, other = ur.load("a.nc"), ur.load("b.nc")
    np.testing.assert_allclose(one.data.loss, other.data.loss, atol=1e-6)
    stored = other.provenance["options"]["method"]["output"]
    assert stored == (1 if output == "1" else "cli_nets.second")


def test_reproduce_hands_its_options_on(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unitroles.paper import reproduce as module

    seen: list[Any] = []
    monkeypatch.setattr(module, "reproduce", lambda *given: seen.append(given))
    assert main(["reproduce", "digits", "--out", "demo"]) == 0
    chosen = ["--seeds", "1,2", "--quick", "--ladder", "noise"]
    assert main(["reproduce", "digits", "--out", "demo", *chosen, "--evidence"]) == 0
    assert [given[:5] for given in seen] == [
        ("digits", Path("demo"), None, False, "capacity"),
        ("digits", Path("demo"), (1, 2), True, "noise"),
    ]
    assert callable(seen[0][5])
    assert [given[6:] for given in seen] == [(False,), (True,)]


def test_reproduce_says_what_is_not_installed(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from unitroles import files as module

    monkeypatch.setattr(module, "find_spec", lambda package: None)
    assert main(["reproduce", "digits", "--out", "demo"]) == 2
    refused(
        capsys.readouterr().err,
        "the reproduction needs sklearn: install it with pip install 'unitroles[zoo]'",
    )
    assert not (here / "demo").exists()


# --- what does not


def edit(**changes: Callable[[np.ndarray], Any]) -> Callable[[Path], None]:
    """Write d.npz again with some arrays changed; None leaves one out."""

    def write(folder: Path) -> None:
        found: dict[str, Any] = arrays(count=30)
        for name, change in changes.items():
            found[name] = change(found[name])
        kept = {name: value for name, value in found.items() if value is not None}
        np.savez(folder / "d.npz", **kept)

    return write


def at(place: Any, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[place] = value
        return array

    return change


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("ran",)


def malicious(folder: Path) -> None:
    (folder / "w.pt").write_bytes(pickle.dumps(Malicious()))


def averaged(folder: Path) -> None:
    names = {"hidden.weight": (6, 16), "hidden.bias": (6,), "out.weight": (3, 6), "out.bias": (3,)}
    kinds = {"plain": 0.0, "mean": 1.0}
    made = {k: {n: torch.full(shape, v) for n, shape in names.items()} for k, v in kinds.items()}
    torch.save(made, folder / "w.pt")


def text_file(name: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_text("old")

    return write


def locked(folder: Path) -> None:
    (folder / "locked").mkdir()
    (folder / "locked").chmod(0o500)


NEVER_WRITABLE = "/proc" if os.access("/proc", os.R_OK) else "/dev"
BAD: dict[str, tuple[Any, dict[str, str | None], str]] = {
    "unknown layer": (None, {"layer": "rellu"}, "unknown layer 'rellu'; did you mean relu"),
    "layer without units": (
        None,
        {"layer": "total"},
        "layer 'total' has no unit axis: its output is shape () ... name a layer whose output",
    ),
    "label out of range": (
        edit(train_labels=at(4, 7), test_labels=at(4, 7)),
        {},
        "label 7 of train sample 4 is out of range: the model has 3 outputs, labels go from 0 to 2",
    ),
    "class missing": (
        edit(test_labels=lambda labels: labels * 0),
        {},
        "class 1 has no test samples; class 2 has no test samples; ... (--missing skip)",
    ),
    "empty": (
        edit(train_images=lambda a: a[:0], train_labels=lambda a: a[:0]),
        {},
        "the train data are empty; give at least one sample of each class",
    ),
    "activation not finite": (
        edit(train_images=at(3, np.nan)),
        {},
        "the activation of layer 'relu' is not finite for train sample 3 (label 0); check",
    ),
    "loss not finite": (
        edit(test_images=at(4, 3e38)),
        {"": "cli_nets:steep"},
        "the loss of test sample 4 (label 1) is not finite with some units of layer 'relu' ablated",
    ),
    "input shape": (
        edit(train_images=lambda a: a[:, :, 1:], test_images=lambda a: a[:, :, 1:]),
        {},
        "the model cannot take a batch of shape (2, 1, 3, 4) ... give samples of the shape",
    ),
    "inputs without labels": (
        edit(train_labels=lambda a: None),
        {},
        "d.npz has no 'train_labels' for the train data; it holds ... add what is missing",
    ),
    "numbers differ": (
        edit(train_labels=lambda a: a[1:]),
        {},
        "the train data hold 30 inputs but 29 labels; give one each",
    ),
    "no split": (None, {"test": "d.npz"}, "no 'images' ... or give d.npz::train, or give d.npz::t"),
    "no data": (None, {"train": "e.npz"}, "the train data cannot be read: there is no file e.npz"),
    "no npz": (text_file("e.npz"), {"train": "e.npz"}, "e.npz is no npz file; DATA is a folder"),
    "uint8": (
        edit(train_images=lambda a: a.astype(np.uint8)),
        {},
        "'train_images' in d.npz is uint8; give --scale",
    ),
    "unknown class": (None, {"classes": "cat,cow"}, "class 'cow' is not in the data; it has 'cat'"),
    "malicious weights": (
        malicious,
        {"weights": "w.pt"},
        "w.pt cannot be read ... could run code and were not loaded ... convert it once with: pyth",
    ),
    "several weights": (
        averaged,
        {"weights": "w.pt"},
        "w.pt holds several weights that fit the model: 'plain', 'mean'; name ... --weights-key",
    ),
    "unknown weights": (
        averaged,
        {"weights": "w.pt", "weights-key": "men"},
        "unknown --weights-key of w.pt 'men'; did you mean mean?",
    ),
    "foreign weights": (text_file("w.pt"), {"weights": "w.pt"}, "w.pt cannot be read as weights"),
    "no weights": (None, {"weights": "w.pt"}, "there is no weights file w.pt; give a safetensors"),
    "torchvision without": (
        None,
        {"": "torchvision:resnet18"},
        "torchvision:resnet18 comes without weights; give a file of them with --weights",
    ),
    "no model": (None, {"": "cli_nets:nett"}, "no attribute of cli_nets 'nett'; did you mean net"),
    "no transform": (
        None,
        {"transform": "still"},
        "--transform must be module:function, not 'still'",
    ),
    "out exists": (text_file("a.nc"), {}, "a.nc exists; give another name, or --force to overwr"),
    "out is a folder": (None, {"out": "."}, ". is a folder; give the name of a file"),
    "no out folder": (
        None,
        {"out": "no/a.nc"},
        "cannot write in folder no: No such file ... choos",
    ),
    "out folder is a file": (
        None,
        {"out": "d.npz/a.nc"},
        "cannot write in folder d.npz: Not a dir",
    ),
    "out not writable": (
        None,
        {"out": f"{NEVER_WRITABLE}/a.nc"},
        f"cannot write in folder {NEVER_WRITABLE}: ... choose a folder that exists and is writable",
    ),
    "unknown score": (
        None,
        {"score": "activation_l3"},
        "unknown score 'activation_l3'; did you mean ... weight_l1, random",
    ),
    "unknown order": (
        None,
        {"order": "tests"},
        "unknown order 'tests'; did you mean test? known: ",
    ),
    "unknown missing": (None, {"missing": "skp"}, "unknown missing 'skp'; did you mean skip"),
    "tolerance": (None, {"tolerance": "-1"}, "tolerance must be 0 or more nats, not -1.0"),
    "budget": (None, {"memory-budget": "2 apples"}, "cannot read memory_budget '2 apples'; write"),
    "device": (None, {"device": "tpux"}, "device 'tpux' cannot be used: ... leave --device out"),
    "mean": (None, {"mean": "a"}, "--mean takes numbers with commas between, not 'a'"),
    "no option": (
        None,
        {"colour": "red"},
        "No such option: --colour ... see unitroles analyze --h",
    ),
    "an option by its name of before": (
        None,
        {"confidence": "full"},
        "error: --confidence is now --bootstrap; write that; see unitroles analyze --help",
    ),
    "a value by its name of before": (
        None,
        {"bootstrap": "given_order"},
        "bootstrap 'given_order' is now 'fixed_ranking'; write that",
    ),
    "unknown bootstrap": (
        None,
        {"evidence": "", "bootstrap": "ful"},
        "unknown bootstrap 'ful'; did you mean full? known: None, fixed_ranking, full",
    ),
    "no seed": (None, {"seed": "-1"}, "seed must be a whole number of at least 0, not -1"),
    "no evidence": (
        None,
        {"floors": "5", "bootstrap": "full"},
        "--floors, --bootstrap: of no use without --evidence; add it",
    ),
    "no controls": (
        None,
        {"bootstrap": "none", "no-controls": ""},
        "--bootstrap, --no-controls: of no use without --evidence; add it",
    ),
    "no out": (None, {"out": None}, "Missing option '--out'; see unitroles analyze --help"),
    "no number": (
        None,
        {"batch-size": "x"},
        "Invalid value for '--batch-size': ... integer",
    ),
}


def refused(errors: str, message: str) -> None:
    """One line on the error stream with the parts of the message, "..." between them, in order."""
    (line,) = errors.splitlines()
    assert line.startswith("error: ")
    for part in message.split(" ... "):
        assert part in line
        line = line[line.index(part) + len(part) :]


@pytest.mark.parametrize("case", BAD)
def test_bad_input_to_analyze(case: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare, change, message = BAD[case]
    if prepare is not None:
        prepare(here)
    before = files(here)
    assert main(words({**ANALYZE, **change})) == 2
    printed, errors = capsys.readouterr()
    assert printed == ""
    refused(errors, message)
    assert files(here) == before
    assert not (here / "ran").exists()


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    locked(here)
    assert main(words({**ANALYZE, "out": "locked/a.nc"})) == 2
    refused(capsys.readouterr().err, "cannot write in folder locked: Permission denied; choose")


def test_the_malicious_file_would_have_run(here: Path) -> None:
    malicious(here)
    pickle.loads((here / "w.pt").read_bytes())
    assert (here / "ran").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["report", "b.nc"], "there is no file b.nc; give a taxonomy written by save or analyze"),
        (["report", "d.npz"], "d.npz is not a taxonomy"),
        (["layers", "cli_nets:net", "--input", "1,x"], "--input takes whole numbers with commas"),
        (
            ["layers", "cli_nets:net", "--input", "0,4"],
            "--input takes positive sizes such as 3,224",
        ),
        (["layers", "cli_nets:net", "--input", "3"], "cannot take a batch of shape (2, 3)"),
        (
            ["layers", "cli_nets:net", "--batch", "1"],
            "Invalid value for '--batch': ... 2",
        ),
        (
            ["layers", "cli_nets"],
            "MODEL must be torchvision:NAME, timm:NAME, hf:FOLDER_OR_NAME or ... , not",
        ),
        (["reproduce", "digit", "--out", "x"], "unknown name 'digit'; did you mean digits? known"),
        (
            ["reproduce", "digits", "--out", "x", "--ladder", "nois"],
            "unknown ladder 'nois'; did you mean noise? known: capacity, noise",
        ),
        (["reproduce", "digits", "--out", "x", "--seeds", "1;2"], "--seeds takes whole numbers"),
        (
            ["reproduce", "digits", "--out", "d.npz/x"],
            "cannot make folder d.npz/x: Not a directory",
        ),
        (["analyse"], "No such command 'analyse' ... see unitroles --help"),
    ],
)
def test_bad_input_to_the_other_commands(
    given: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(here)
    assert main(given) == 2
    printed, errors = capsys.readouterr()
    assert printed == ""
    refused(errors, message)
    assert files(here) == before


def test_a_failed_write_leaves_nothing(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words({**ANALYZE, "quiet": ""})) == 0
    assert capsys.readouterr().err.startswith(UNTRAINED)
    before = files(here)

    def fail(*given: Any) -> None:
        raise OSError(28, "No space left on device", given[1])

    monkeypatch.setattr(os, "replace", fail)
    assert main(["report", "a.nc", "--csv", "tables"]) == 2
    refused(capsys.readouterr().err, "cannot write ... No space left on device; free some space")
    assert main(words({**ANALYZE, "out": "b.nc"})) == 2
    warned, error = capsys.readouterr().err.splitlines()
    assert warned.startswith(UNTRAINED)
    refused(error, "cannot write b.nc ... No space left")
    assert files(here) == before


def test_an_interrupt_is_one_line(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*given: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ur, "analyze", interrupt)
    before = files(here)
    assert main(words(ANALYZE)) == 130
    assert capsys.readouterr() == ("", "error: interrupted; what was finished is kept\n")
    assert files(here) == before


def test_a_bug_is_not_hidden(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*given: Any, **named: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(ur, "analyze", bug)
    with pytest.raises(ZeroDivisionError):
        main(words(ANALYZE))


# --- what is said


def test_help_names_every_option_of_the_groups(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "analyze" in capsys.readouterr().out
    assert main(["analyze", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for name in (*SAMPLE_SCORES, *LAYER_SCORES, *ORDERS):
        assert name in shown
    for panel in ("Model", "Data", "Method", "Sample", "Compute", "Output"):
        assert f"─ {panel} ─" in shown


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_is_explained_in_one_sentence(name: str) -> None:
    (info,) = OPTIONS[name].parameter.annotation.__metadata__
    assert info.help.endswith(".")
    assert info.help[0].isupper() or name == "model"
    assert ". " not in info.help
    assert not {"`", '"'} & set(info.help)


def test_an_option_of_two_records_has_one_type_and_default() -> None:
    """Of `seed` the command line has one, which sets both."""
    records = (ur.Method, ur.Sample, ur.Compute, ur.Evidence, Network, Arguments, Data, Output)
    found: dict[str, set[Any]] = {}
    for record in records:
        for one in fields(record):
            found.setdefault(one.name, set()).add((one.type, one.default, record))
    twice = {name: each for name, each in found.items() if len(each) > 1}
    assert set(twice) == {"seed"}
    assert {each[:2] for each in twice["seed"]} == {("int", 0)}


@pytest.mark.parametrize(
    ("record", "takers"),
    [
        (Arguments, [ur.analyze, ur.plan]),
        (Network, [trained_model]),
        (Data, [DataOptions, load_splits]),
    ],
)
def test_a_record_of_the_command_line_goes_by_name_to_what_takes_it(
    record: type, takers: list[Callable[..., Any]]
) -> None:
    """So that an option is added in its record alone."""
    names = {each.name for each in fields(record)}
    known = [set(signature(taker).parameters) for taker in takers]
    assert names <= (set.union if record is Data else set.intersection)(*known)


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"unitroles {ur.__version__}\n"


@pytest.fixture
def processes(here: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*given: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "-c",
            "import sys; from unitroles.cli.app import main; sys.exit(main())",
        ]
        return subprocess.run([*command, *given], capture_output=True, text=True, cwd=here)

    return run


def test_as_a_process(
    here: Path, processes: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """Where warnings are no errors, as for a user: still one line."""
    done = processes(*words(ANALYZE))
    assert done.returncode == 0
    assert [line[: len(UNTRAINED)] for line in done.stderr.splitlines()] == [UNTRAINED]
    assert done.stdout.endswith("\n\nwrote a.nc and a.toml\n")
    malicious(here)
    refused(
        processes(*words({**ANALYZE, "out": "b.nc", "weights": "w.pt"})).stderr,
        BAD["malicious weights"][2],
    )
    assert not (here / "ran").exists()
    again = processes(*words(ANALYZE))
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr == ("error: a.nc exists; give another name, or --force to overwrite it\n")


def test_importing_the_command_line_is_light() -> None:
    """Beside what `import unitroles` itself needs."""
    code = (
        "import sys, unitroles; before = set(sys.modules); import unitroles.cli.app; "
        "print(*{name.split('.')[0] for name in set(sys.modules) - before})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "typer" in done.stdout
    assert not {"torchvision", "matplotlib", "sklearn", "rich"} & set(done.stdout.split())


# --- texts


def taxonomy(**changes: Any) -> ur.Taxonomy:
    """Two units, two classes, by hand: the second is never below the fully ablated layer."""
    options = {"method": {"score": "activation_l1", "order": "per_split", "tolerance": 1e-6}}
    given: dict[str, Any] = {
        "labels": np.array([0, 1]),
        "names": ["cat", "dog"],
        "score": np.ones((2, 2, 2)),
        "order": np.array([[[0, 1], [0, 1]], [[0, 1], [0, 1]]]),
        "loss": np.array([[[1.0, 0.5, 0.2], [1, 2, 3]], [[1, 0.4, 0.6], [1, 2, 3]]]),
        "accuracy": np.array([[[0.0, 1, 1], [1, 0, 0]], [[0, 1, 1], [1, 0, 0]]]),
        "samples": np.array([[30, 30], [30, 30]]),
        "turning_point": np.array([[2, 1], [1, 1]]),
        "swapped_loss": np.array([[0.5, 2.0], [0.6, 2.0]]),
        "swapped_accuracy": np.array([[0.5, 0.0], [1.0, 0.0]]),
        "attrs": {"layer": "relu", "train_accuracy": 0.75, "test_accuracy": 0.5},
        "provenance": {
            "options": options,
            "plan": {"name": "suffix", "reason": "it is exact"},
            "warnings": ["stored"],
        },
    }
    given |= changes
    measured = Measured(**{field.name: given.pop(field.name) for field in fields(Measured)})
    return ur.Taxonomy(dataset(measured, **given))


def test_the_tables_in_words() -> None:
    shown = [" ".join(line.split()) for line in text.report(taxonomy()).splitlines()]
    for line in (
        "layer relu: 2 units, 2 classes",
        "plan suffix: it is exact",
        "method score activation_l1, order per_split, tolerance 1e-06 nats",
        "samples train 30 per class (60 in all), test 30 per class (60 in all)",
        "accuracy train 0.7500, test 0.5000, gap +0.2500",
        # cat: core, overfitted; dog: core, confusing
        "core 50.0 ± 0.0 50.0 ± 50.0",
        "overfitted 25.0 ± 25.0 25.0 ± 25.0",
        "confusing 25.0 ± 25.0 25.0 ± 25.0",
        "tolerance 1e-06 50.0 25.0 0.0 25.0",
        "train +0.15 +0 to +0.3 +25.00 +0.00 to +50.00",
        "test +0.1 +0 to +0.2 +0.00 +0.00 to +0.00",
    ):
        assert line in shown
    assert any("std = population std (ddof 0)" in line for line in shown)
    assert shown[-1] == "warning: stored"


def test_flagged_classes_and_the_means_without_them() -> None:
    flagged, stored = text.cautions(taxonomy())
    assert flagged.startswith("1 class flagged (dog): ")
    assert "core 50.0, overfitted 50.0, generalizing 0.0, confusing 0.0" in flagged
    assert stored == "stored"
    every = np.stack([[[1.0, 2, 3], [1, 2, 3]]] * 2)
    assert text.cautions(taxonomy(loss=every))[0].endswith("mean little; all are")


def test_numbers_of_samples() -> None:
    unequal = text.cautions(taxonomy(samples=np.array([[60, 60], [30, 30]])))[1]
    assert "(median 60 per class for train, 30 for test)" in unequal
    crossed = text.cautions(taxonomy(samples=np.array([[60, 30], [30, 60]])))
    assert any("unequal" in line for line in crossed)
    same = text.cautions(taxonomy(samples=np.array([[60, 30], [60, 30]])))
    assert not any("unequal" in line for line in same)
    few = text.cautions(taxonomy(samples=np.array([[30, 19], [30, 30]])))
    assert "1 class with fewer than 20 samples in a split (dog): too few for roles" in few
    shown = text.header(taxonomy(samples=np.array([[30, 20], [30, 30]])))
    assert "train 20 to 30 per class (50 in all)" in shown
    assert not any("too few" in line for line in text.cautions(taxonomy()))


def test_sensitivity() -> None:
    loss = np.array([[[1.0, 0.205, 0.2], [1, 0.5, 0.9]], [[1, 0.4, 0.6], [1, 0.5, 0.9]]])
    (hangs, _) = text.cautions(taxonomy(loss=loss))
    assert hangs.startswith(
        "the overfitted proportion depends on the tolerance: 25.0 % at 1e-06 nats, 0.0 %"
    )
    # From 50 to 25 %: not more than twice, but more than 5 points.
    loss[:, 1] = [[1, 0.5, 0.2], [1, 0.4, 0.6]]
    assert "50.0 % at 1e-06 nats, 25.0 % at 0.01" in text.cautions(taxonomy(loss=loss))[0]
    loss[0, 0, 1] = 0.3
    assert text.cautions(taxonomy(loss=loss)) == ["stored"]


def test_long_lists_of_names_are_cut() -> None:
    assert wording.names_of(list("abcdefg")) == "a, b, c, d, e, ..."
    assert wording.names_of(list("abcde")) == "a, b, c, d, e"


def test_defaults_are_those_of_the_library(here: Path) -> None:
    assert main(words({**ANALYZE, "quiet": ""})) == 0
    used = ur.load("a.nc").provenance["options"]
    for name, group in {"method": ur.Method, "sample": ur.Sample, "compute": ur.Compute}.items():
        assert used[name] == vars(group())
