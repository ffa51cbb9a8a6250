"""The command line from end to end with models of timm and transformers, and tables as data."""

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

import tiny
import unitroles as ur
from unitroles.cli.app import main
from unitroles.report import text
from unitroles.sources.factory import load_model

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytestmark = pytest.mark.usefixtures("one_thread")

LOSSES = """
def margin(outputs, labels):
    logits = getattr(outputs, "logits", outputs)
    return 1 - logits.softmax(1)[range(len(labels)), labels]
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "cli_losses", raising=False)
    (tmp_path / "cli_losses.py").write_text(LOSSES)
    return tmp_path


def run(model: str, **options: str) -> ur.Taxonomy:
    words = [w for name, value in options.items() for w in (f"--{name.replace('_', '-')}", value)]
    assert main(["analyze", model, *words, "--out", "a.nc", "--force"]) == 0
    return ur.load("a.nc")


@pytest.fixture
def texts(here: Path) -> Path:
    """A text model and two files of questions of two classes, with a colour each."""
    tiny.text_model(["who", "where"]).save_pretrained(here / "model")
    tiny.save_tokenizer(here / "model")
    draw = np.random.default_rng(0)
    for split in ("train", "test"):
        lines = ["label\ttext\tcolour"]
        for number in range(48):
            words = " ".join(draw.choice(tiny.WORDS, size=draw.integers(2, 7)))
            lines.append(f"{('who', 'where')[number % 2]}\t{words}\t{'rgb'[number % 3]}")
        (here / f"{split}.tsv").write_text("\n".join(lines))
    return here


TSV: dict[str, str] = {"train": "train.tsv", "test": "test.tsv"}
LAYER = "bert.encoder.layer.1.intermediate.intermediate_act_fn"


def test_a_text_model_and_its_classes(texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run("hf:model", **TSV, layer=LAYER)
    printed, errors = capsys.readouterr()
    assert printed.startswith(text.report(found))
    (line,) = errors.splitlines()  # the network is not trained
    assert line.startswith("warning: labels and outputs may be numbered differently")
    assert found.labels == ["who", "where"]
    assert found.data.sizes["unit"] == 48
    assert found.data.samples.values.tolist() == [[24, 24], [24, 24]]
    again = run("hf:model", **TSV, layer=LAYER, tokenizer="model", max_length="12")
    assert again.data.loss.shape == found.data.loss.shape


def test_groups_and_a_loss_of_ones_own(texts: Path) -> None:
    found = run(
        "hf:model", **TSV, layer=LAYER, group_by="colour", classes="r,b", loss="cli_losses:margin"
    )
    assert found.labels == ["b", "r"]
    assert found.data.samples.values.tolist() == [[16, 16], [16, 16]]
    assert found.provenance["options"]["method"]["loss"] == "cli_losses.margin"
    assert 0 <= found.data.loss.min() <= found.data.loss.max() <= 1
    assert main(["analyze", "--config", "a.toml", "--out", "b.nc"]) == 0
    again = ur.load("b.nc")
    assert again.data.drop_attrs().identical(found.data.drop_attrs())


def test_a_report_of_a_saved_coarse_curve(texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("hf:model", **TSV, layer="bert.encoder.layer.0.intermediate.dense", resolution="20")
    capsys.readouterr()
    assert main(["report", "a.nc"]) == 0
    assert "every 20 units" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["class folders", "parquet"])
def test_an_image_model_with_its_own_preset(kind: str, here: Path) -> None:
    datasets: Any = pytest.importorskip("datasets", reason="datasets is not installed")
    tiny.image_model(["cat", "dog"]).save_pretrained(here / "model")
    tiny.save_processor(here / "model")
    draw = np.random.default_rng(0)
    for split in ("train", "test"):
        pictures, labels = [], []
        for number in range(40):
            pixels = draw.integers(0, 256, (20, 24, 3), dtype=np.uint8)
            pictures.append(Image.fromarray(pixels))
            labels.append(number % 2)
            folder = here / split / ("cat", "dog")[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            pictures[-1].save(folder / f"{number}.png")
        features = datasets.Features(
            {"label": datasets.ClassLabel(names=["cat", "dog"]), "image": datasets.Image()}
        )
        columns = {"label": labels, "image": pictures}
        data = datasets.Dataset.from_dict(columns, features=features)
        data.to_parquet(here / f"{split}.parquet")
    ending = ".parquet" if kind == "parquet" else ""
    found = run("hf:model", train=f"train{ending}", test=f"test{ending}")
    assert found.labels == ["cat", "dog"]
    assert found.data.samples.values.tolist() == [[20, 20], [20, 20]]


def test_a_timm_model_with_its_own_preset(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    save_file(load_model("timm:test_resnet").state_dict(), here / "w.safetensors")
    for split, name in ((split, name) for split in ("train", "test") for name in "ab"):
        (here / split / name).mkdir(parents=True)
        for number in range(20):
            Image.new("RGB", (40 + number, 50), (9 * number, 5, 7)).save(
                here / split / name / f"{number}.png"
            )
    weights = "w.safetensors"
    found = run("timm:test_resnet", weights=weights, train="train", test="test", layer="layer4")
    assert "2 class names but the model has 1000 outputs" in capsys.readouterr().err
    assert found.labels == ["a", "b"]


@pytest.mark.parametrize(
    "model", ["hf:model", pytest.param("timm:test_vit", marks=pytest.mark.slow)]
)
def test_layers_makes_its_own_example(
    model: str, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["layers", model, "--csv"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    hidden = {"hf:model": LAYER, "timm:test_vit": "blocks.5.mlp.act"}[model]
    (row,) = [row for row in rows if row["layer"] == hidden]
    assert (row["axis"], row["plan"]) == ("2", "additive")
    assert sum(row["recommended"] == "True" for row in rows) == 1
    assert main(["layers", "hf:model", "--csv", "--input", "5"]) == 0


def test_layers_needs_no_weights(texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (texts / "model" / "model.safetensors").unlink()
    assert main(["layers", "hf:model", "--csv"]) == 0
    assert LAYER in capsys.readouterr().out
