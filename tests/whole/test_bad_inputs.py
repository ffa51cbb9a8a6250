"""Bad input of every kind: one sentence that says what is wrong, where, and the remedy."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, WeightedRandomSampler

import bad_folder
import tiny
import unitroles as ur
from unitroles.cli.app import main
from unitroles.errors import InputError


def network(**layers: nn.Module) -> nn.Sequential:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        net = nn.Sequential()
        own = {"hidden": nn.Linear(4, 6), "relu": nn.ReLU(), "out": nn.Linear(6, 2), **layers}
        for name, module in own.items():
            net.add_module(name, module)
        return net


def pair(count: int = 24, width: int = 4) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(count)
    return torch.randn(count, width, generator=draw), torch.arange(count) % 2


def labelled(labels: Any) -> tuple[Tensor, Any]:
    return pair()[0], labels


def analyze(**changes: Any) -> Any:
    given = {"model": network(), "train": pair(), "test": pair(26), "layer": "relu", **changes}
    return ur.analyze(progress=False, **given)


class Stream(IterableDataset):
    def __iter__(self):
        return iter([])


class Stopped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("stopped half way")


def nothing(model: nn.Module) -> nn.Module:
    """Weights that are no numbers."""
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    return model


def weighted() -> DataLoader:
    return DataLoader(TensorDataset(*pair()), sampler=WeightedRandomSampler([1.0] * 24, 24))


@dataclass(frozen=True)
class Bad:
    """A call, and what its message must say: what is wrong, where, and the remedy."""

    call: Callable[[], Any]
    what: str
    where: str
    remedy: str


LIBRARY = {
    "unknown layer": Bad(
        lambda: analyze(layer="rellu"), "unknown layer", "'rellu'", "did you mean relu?"
    ),
    "a layer of another model": Bad(
        lambda: analyze(layer=nn.ReLU()), "no part of the model", "ReLU given as layer", "name it"
    ),
    "no such axis": Bad(
        lambda: analyze(layer=ur.Layer("relu", axis=3)), "axis 3", "layer 'relu'", "give the axis"
    ),
    "no such call": Bad(
        lambda: analyze(layer=ur.Layer("relu", call=4)), "no call 4", "layer 'relu'", "count from 0"
    ),
    "no such class": Bad(
        lambda: analyze(sample=ur.Sample(classes=[0, 7])), "class 7", "not in the data", "it has 0"
    ),
    "classes as a text": Bad(
        lambda: ur.Sample(classes="cat"), "must be a list", "classes", "not 'cat'"
    ),
    "no classes": Bad(
        lambda: ur.Sample(classes=[]), "is empty", "classes", "name at least one class, or None"
    ),
    "label out of range": Bad(
        lambda: analyze(train=labelled(torch.arange(24) % 3)),
        "label 2 ... out of range",
        "train sample 2",
        "labels go from 0 to 1",
    ),
    "negative label": Bad(
        lambda: analyze(train=labelled(torch.arange(24) % 2 - 1)),
        "label -1 ... out of range",
        "train sample 0",
        "labels go from 0 to 1",
    ),
    "labels that are no whole numbers": Bad(
        lambda: analyze(test=labelled(torch.rand(24))),
        "one whole number per sample, got float32",
        "the test labels",
        "give class numbers",
    ),
    "labels as texts": Bad(
        lambda: analyze(train=[(torch.zeros(4), "ab"[n % 2]) for n in range(24)]),
        "no numbers",
        "the train labels",
        "give class numbers",
    ),
    "labels in two columns": Bad(
        lambda: analyze(train=labelled(torch.zeros(24, 2, dtype=torch.int64))),
        "of shape (24, 2)",
        "the train labels",
        "give class numbers",
    ),
    "one label too few": Bad(
        lambda: analyze(train=(pair()[0], pair()[1][1:])),
        "24 inputs but 23 labels",
        "the train data",
        "give one each",
    ),
    "a class without test samples": Bad(
        lambda: analyze(test=labelled(torch.zeros(24, dtype=torch.int64))),
        "has no test samples",
        "class 1",
        "missing='skip'",
    ),
    "no samples": Bad(
        lambda: analyze(train=pair(0)), "are empty", "the train data", "give at least one sample"
    ),
    "other inputs than the model takes": Bad(
        lambda: analyze(train=pair(width=5), test=pair(width=5)),
        "cannot take a batch of shape (2, 5)",
        "the model",
        "give samples of the shape and type",
    ),
    "other inputs in one split": Bad(
        lambda: analyze(test=pair(width=5)), "cannot be run", "the test data", "give samples of"
    ),
    "uint8 images": Bad(
        lambda: analyze(train=(torch.zeros(24, 8, 8, 3, dtype=torch.uint8), pair()[1])),
        "are uint8 and no transform is known",
        "the train images",
        "scale them to floating point",
    ),
    "a stream": Bad(
        lambda: analyze(train=Stream()),
        "must be a map-style data set",
        "the train data",
        "load its samples into a list or arrays",
    ),
    "a loader of a stream": Bad(
        lambda: analyze(test=DataLoader(Stream())),
        "draws its samples in its own way (Stream)",
        "the test DataLoader",
        "give its data set",
    ),
    "a weighted sampler": Bad(
        lambda: analyze(train=weighted()),
        "its own way (WeightedRandomSampler)",
        "the train DataLoader",
        "a DataLoader without a sampler",
    ),
    "no data set": Bad(
        lambda: analyze(train=5), "not int", "the train data", "load its samples into a list"
    ),
    "samples without a label": Bad(
        lambda: analyze(train=[{"x": torch.zeros(4)}] * 4),
        "no 'label' or 'labels' among ['x']",
        "the train samples",
        "rename the column",
    ),
    "samples of three parts": Bad(
        lambda: analyze(train=[(torch.zeros(4), 1, 2)] * 4),
        "must be (input, label)",
        "the train samples",
        "wrap the data set",
    ),
    "samples of two shapes": Bad(
        lambda: analyze(train=[(torch.zeros(3 + n % 2), 0) for n in range(4)]),
        "cannot be put into one batch",
        "the train samples",
        "with the collate function used in training",
    ),
    "too few class names": Bad(
        lambda: analyze(class_names=["a"]),
        "there are 1 class names",
        "label 1 occurs",
        "give one name per class",
    ),
    "a scripted model": Bad(
        lambda: analyze(model=nn.Sequential(scripted(), nn.Linear(4, 2)), layer="1"),
        "is scripted",
        "module '0'",
        "give the model it was scripted from",
    ),
    "a model without numbers": Bad(
        lambda: analyze(model=network().to("meta")),
        "holds no numbers",
        "tensor 'hidden.weight'",
        "load the weights first",
    ),
    "a lazy model": Bad(
        lambda: analyze(model=network(hidden=nn.LazyLinear(6))),
        "lazy parameters",
        "the model has",
        "run one batch through it first",
    ),
    "a model that fails": Bad(
        lambda: analyze(model=network(relu=Stopped())),
        "stopped half way",
        "the model cannot take a batch of shape (2, 4)",
        "give samples of the shape",
    ),
    "one output": Bad(
        lambda: analyze(model=network(out=nn.Linear(6, 1))),
        "one output",
        "the model has",
        "returns two logits",
    ),
    "no logits": Bad(
        lambda: analyze(model=network(more=nn.Unflatten(1, (1, 2)))),
        "must hold logits of shape (samples, classes), got (2, 1, 2)",
        "the model's output",
        "wrap the model in a module that returns them",
    ),
    "weights that are no numbers": Bad(
        lambda: analyze(model=nothing(network())),
        "is not finite",
        "activation of layer 'relu'",
        "check",
    ),
    "inputs that are no numbers": Bad(
        lambda: analyze(train=(pair()[0] * float("inf"), pair()[1])),
        "is not finite",
        "for train sample",
        "check",
    ),
    "an unknown score": Bad(
        lambda: analyze(method=ur.Method(score="activation_l3")),
        "unknown score",
        "'activation_l3'",
        "did you mean",
    ),
    "an unknown order": Bad(
        lambda: ur.Method(order="tests"), "unknown order", "'tests'", "did you mean test?"
    ),
    "a negative tolerance": Bad(
        lambda: ur.Method(tolerance=-1.0), "-1.0", "tolerance", "must be 0 or more nats"
    ),
    "a resolution of nothing": Bad(
        lambda: ur.Method(resolution=0), "not 0", "resolution", "a whole number of at least 1"
    ),
    "no batch": Bad(
        lambda: ur.Compute(batch_size=0), "not 0", "batch_size", "a whole number of at least 1"
    ),
    "no budget": Bad(
        lambda: ur.Compute(memory_budget="2 apples"),
        "cannot read",
        "memory_budget '2 apples'",
        "something like '500MB'",
    ),
    "groups of one split": Bad(
        lambda: analyze(sample=ur.Sample(group_by={"train": [0] * 24})),
        "has no 'test'",
        "group_by",
        "give the groups of every split",
    ),
    "too few groups": Bad(
        lambda: analyze(sample=ur.Sample(group_by={"train": [0] * 23, "test": [0] * 26})),
        "23 values for 24 samples",
        "group_by of the train samples",
        "give one for each",
    ),
    "no such column": Bad(
        lambda: analyze(sample=ur.Sample(group_by="colour")),
        "no column 'colour'",
        "the train samples",
        "give the groups as arrays",
    ),
    "layers of one input": Bad(
        lambda: ur.layers(network(), torch.zeros(1, 4)), "at least two", "example batch", "give"
    ),
    "no taxonomy": Bad(
        lambda: ur.load("none.nc"), "there is no file", "none.nc", "give a taxonomy written by save"
    ),
}


def scripted() -> nn.Module:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(nn.Linear(4, 4))


def holds(message: str, case: Bad) -> None:
    """All three parts; "..." stands for anything between."""
    for part in (case.what, case.where, case.remedy):
        rest = message
        for piece in part.split(" ... "):
            assert piece in rest, f"{piece!r} is not in {message!r}"
            rest = rest[rest.index(piece) + len(piece) :]


@pytest.mark.parametrize("case", LIBRARY)
def test_bad_input_to_the_library(case: str) -> None:
    with pytest.raises(InputError) as caught:
        LIBRARY[case].call()
    holds(str(caught.value), LIBRARY[case])
    assert len(str(caught.value).splitlines()) == 1


# --- the command line


def write(folder: Path) -> None:
    """Models, data and settings, good and bad."""
    bad_folder.write(folder)
    (folder / "a.csv").write_text("label,text\nwho,who is the king\nwhere,where is the city\n")
    (folder / "other.csv").write_text("label,text\nwho,who is the king\nwhy,the dog\n")
    (folder / "wide.csv").write_text("a,b,c\n1,2,3\n")
    (folder / "empty.csv").write_text("label,text\n")
    (folder / "w.pt").write_bytes(b"weights")
    (folder / "seed.toml").write_text("[sample]\nsed = 1\n")
    (folder / "text.toml").write_text("[sample]\nseed = 'one'\n")
    (folder / "broken.toml").write_text("[sample")
    (folder / "pictures").mkdir()


def models(folder: Path) -> None:
    tiny.text_model(["who", "where"]).save_pretrained(folder / "good")
    tiny.save_tokenizer(folder / "good")
    tiny.text_model(["who", "where"]).save_pretrained(folder / "pickled")
    (folder / "pickled" / "model.safetensors").rename(folder / "pickled" / "pytorch_model.bin")
    tiny.text_model(head=False).save_pretrained(folder / "encoder")
    (folder / "speech").mkdir()
    (folder / "speech" / "config.json").write_text(json.dumps({"model_type": "whisper"}))


PLAIN = {"": "bad_nets:net", "train": "d.npz::train", "test": "d.npz::test", "out": "a.nc"}
TEXTS = {"": "hf:good", "train": "a.csv", "test": "a.csv"}


@dataclass(frozen=True)
class Wrong:
    """Options of analyze beside the good ones, and what the message must say."""

    options: dict[str, str]
    what: str
    where: str
    remedy: str

    def call(self) -> None:
        given = {**PLAIN, **self.options}
        words = [word for n, v in given.items() if n for word in (f"--{n}", v)]
        assert main(["analyze", given[""], *words]) == 2


COMMAND = {
    "no such function": Wrong(
        {"": "bad_nets:nett"}, "no attribute", "bad_nets 'nett'", "did you mean net"
    ),
    "no such module": Wrong(
        {"": "bad_netts:net"}, "no module", "'bad_netts'", "run in its folder, or install it"
    ),
    "a function that fails": Wrong(
        {"": "bad_nets:broken"},
        "RuntimeError: no such width",
        "bad_nets.py:10",
        "it must work in Python before",
    ),
    "no model": Wrong(
        {"": "bad_nets:number"}, "gives int", "bad_nets:number", "name a model or a function"
    ),
    "no torchvision model": Wrong(
        {"": "torchvision:resnet81"}, "no torchvision model", "'resnet81'", "did you mean resnet18"
    ),
    "torchvision without weights": Wrong(
        {"": "torchvision:resnet18"}, "without weights", "torchvision:resnet18", "--weights"
    ),
    "no weights": Wrong(
        {"weights": "v.pt"}, "no weights file", "v.pt", "give a safetensors or PyTorch file"
    ),
    "foreign weights": Wrong(
        {"weights": "w.pt"}, "cannot be read as weights", "w.pt", "convert it once with: python"
    ),
    "no such file": Wrong({"train": "e.npz"}, "no file e.npz", "the train data", "DATA is a f"),
    "no such split": Wrong(
        {"test": "d.npz::valid"}, "no 'valid_images'", "d.npz", "or give d.npz::train"
    ),
    "an empty folder": Wrong(
        {"train": "pictures", "test": "pictures"},
        "holds no class folders",
        "the train folder pictures",
        "DATA is a folder of class folders",
    ),
    "a table against arrays": Wrong(
        {"train": "a.csv"}, "a.csv are a table", "the test data d.npz::test", "in the same form"
    ),
    "texts without a tokenizer": Wrong(
        {"train": "a.csv", "test": "a.csv"}, "tokens is not known", "texts", "with --tokenizer"
    ),
    "no columns": Wrong(
        {"train": "wide.csv", "test": "wide.csv"}, "3 columns", "wide.csv", "add one, or give two"
    ),
    "no such column": Wrong(
        {"train": "a.csv", "test": "a.csv", "label-column": "labl"},
        "unknown column",
        "a.csv 'labl'",
        "did you mean label?",
    ),
    "no rows": Wrong(
        {"train": "empty.csv", "test": "a.csv"}, "no rows", "train data in empty.csv", "give sampl"
    ),
    "no such group": Wrong(
        {"group-by": "colour"}, "no 'train_colour'", "d.npz", "it holds train_images"
    ),
    "image size of arrays": Wrong(
        {"image-size": "4"}, "--image-size", "for folders", "npz files need none"
    ),
    "a loss without a function": Wrong(
        {"loss": "mse"}, "not 'mse'", "--loss", "must be module:function"
    ),
    "a key that is none": Wrong(
        {"config": "seed.toml"}, "unknown key", "[sample] of seed.toml 'sed'", "did you mean seed?"
    ),
    "a value of another type": Wrong(
        {"config": "text.toml"}, "not 'one'", "text.toml: [sample] seed", "must be a whole number"
    ),
    "no TOML": Wrong(
        {"config": "broken.toml"}, "cannot be read", "broken.toml", "write TOML: tables such as"
    ),
    "no configuration": Wrong(
        {"config": "none.toml"}, "No such file", "none.toml", "give a TOML file"
    ),
    "out in no folder": Wrong(
        {"out": "no/a.nc"}, "cannot write", "folder no", "choose a folder that exists"
    ),
}
HUB = {
    "pickled weights": Wrong(
        {**TEXTS, "": "hf:pickled"},
        "a pickle",
        "pickled holds ... pytorch_model.bin",
        "convert it once with: python",
    ),
    "an encoder": Wrong(
        {**TEXTS, "": "hf:encoder"}, "no weights for classifier", "hf:encoder", "train it as a cl"
    ),
    "a model of speech": Wrong(
        {**TEXTS, "": "hf:speech"},
        "neither an image nor a text classifier",
        "hf:speech",
        "give a model saved with a classification head",
    ),
    "no such folder": Wrong(
        {**TEXTS, "": "hf:./none"}, "no folder", "./none", "give one written by save_pretrained"
    ),
    "a label that the model lacks": Wrong(
        {**TEXTS, "train": "other.csv"},
        "no class 'why'",
        "its classes are who, where",
        "give these names",
    ),
    "longer than the model takes": Wrong(
        {**TEXTS, "max-length": "99"}, "99 is more", "--max-length", "give a smaller number"
    ),
    "pictures' options for texts": Wrong(
        {**TEXTS, "image-size": "4"}, "is for pictures", "--image-size", "leave it out for texts"
    ),
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "bad_nets", raising=False)
    write(tmp_path)
    return tmp_path


def refused(case: Wrong, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    case.call()
    printed, errors = capsys.readouterr()
    assert printed == ""
    (line,) = errors.splitlines()
    assert line.startswith("error: ")
    holds(line, case)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize("case", COMMAND)
def test_bad_input_to_the_command_line(
    case: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(COMMAND[case], here, capsys)


@pytest.mark.parametrize("case", HUB)
def test_bad_input_about_models_of_transformers(
    case: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    models(here)
    capsys.readouterr()
    refused(HUB[case], here, capsys)


def test_there_are_many() -> None:
    assert len(LIBRARY) + len(COMMAND) + len(HUB) >= 40
