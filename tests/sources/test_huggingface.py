"""Models of timm and transformers by name: what is read, what is refused, and that no code runs."""

import json
import logging
import os
import pickle
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

import tiny
import unitroles as ur
from unitroles.errors import InputError
from unitroles.sources.factory import example_of, known_of, load_model, trained_model
from unitroles.sources.huggingface import hub_model, label_numbers

timm = pytest.importorskip("timm", reason="timm is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")


def same(one: nn.Module, two: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    tiny.text_model(["who", "where"]).save_pretrained(tmp_path / "texts")
    tiny.save_tokenizer(tmp_path / "texts")
    return tmp_path / "texts"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    tiny.image_model(["cat", "dog"]).save_pretrained(tmp_path / "pictures")
    tiny.save_processor(tmp_path / "pictures")
    return tmp_path / "pictures"


# --- transformers


def test_a_text_classifier_with_its_weights(texts: Path) -> None:
    model = trained_model(f"hf:{texts}")
    assert same(model, tiny.text_model(["who", "where"]))
    known = known_of(f"hf:{texts}", model)
    assert (known.transform, known.tokenizer, known.tokens) == (None, str(texts), tiny.MOST)
    assert known.numbers == {"who": 0, "where": 1}


def test_an_image_classifier_and_its_own_preset(pictures: Path) -> None:
    model = trained_model(f"hf:{pictures}")
    assert same(model, tiny.image_model(["cat", "dog"]))
    known = known_of(f"hf:{pictures}", model)
    assert (known.tokenizer, known.numbers) == (None, {"cat": 0, "dog": 1})
    assert known.transform is not None
    pixels = np.random.default_rng(0).integers(0, 256, (tiny.SIDE, tiny.SIDE, 3), dtype=np.uint8)
    expected = (torch.from_numpy(pixels).permute(2, 0, 1) / 255 - 0.5) / 0.25
    torch.testing.assert_close(known.transform(Image.fromarray(pixels)), expected)


def test_an_image_classifier_without_a_preset(pictures: Path) -> None:
    (pictures / "preprocessor_config.json").unlink()
    assert known_of(f"hf:{pictures}", hub_model(str(pictures))).transform is None


def test_what_transformers_keeps_is_as_before(texts: Path) -> None:
    def kept() -> tuple[Any, ...]:
        own = transformers.utils.logging
        levels = [logging.getLogger(name).level for name in ("transformers", "huggingface_hub")]
        return own.get_verbosity(), own.is_progress_bar_enabled(), *levels

    before = kept()
    hub_model(str(texts))
    with pytest.raises(InputError):
        hub_model(str(texts / "no"))
    assert kept() == before


def test_what_is_tried_again_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told = []

    def fail(*given: Any, **more: Any) -> None:
        for name in ("huggingface_hub.utils._http", "transformers.models"):
            told.append(logging.getLogger(name).isEnabledFor(logging.ERROR))
        raise OSError("no network.")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", fail)
    with pytest.raises(InputError, match=r"hub did not give it: no network; .*\(HF_HUB_OFFLINE"):
        load_model("hf:some/model")
    assert told == [False, False]


def test_names_that_nobody_gave_are_no_names() -> None:
    assert label_numbers(tiny.text_model()) == {}
    assert label_numbers(nn.Linear(2, 2)) == {}


def named(**changes: Any) -> Any:
    """A model that its configuration names the classes of."""
    names = {"label2id": {"cat": 0, "dog": 1}, "id2label": {0: "cat", 1: "dog"}, "num_labels": 2}
    model = nn.Linear(2, 2)
    model.config = SimpleNamespace(**{**names, **changes})  # pyright: ignore
    return model


def test_the_numbers_of_classes() -> None:
    assert label_numbers(named()) == {"cat": 0, "dog": 1}
    assert label_numbers(named(label2id={"cat": "0", "dog": "1"})) == {"cat": 0, "dog": 1}
    assert label_numbers(named(label2id=None)) == {"cat": 0, "dog": 1}
    assert label_numbers(named(label2id={"cat": 0, "Cat": 0, "dog": 1}))["Cat"] == 0


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"cat": 10**12, "dog": 1}, "'cat' the number 1000000000000, not one of its 2 classes"),
        ({"cat": 0, "dog": 2}, "'dog' the number 2, not one of its 2 classes from 0; correct it"),
        ({"cat": 0, "dog": -1}, "'dog' the number -1, not"),
        ({"cat": 0, "dog": 1.0}, "'dog' the number 1.0, not"),
        ({"cat": 0, "dog": True}, "'dog' the number True, not"),
        ({"cat": 0, "dog": "one"}, "'dog' the number one, not"),
        ({"cat": 1, "dog": 0}, "'cat' the number 1, id2label another one; correct the one"),
    ],
)
def test_numbers_that_are_none_of_a_class(numbers: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"label2id in .* gives class {message}"):
        label_numbers(named(label2id=numbers))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (torch.int8, "I8"),
        (torch.bool, "BOOL"),
        (torch.complex64, "C64"),
        (torch.float8_e4m3fn, "F8_E4M3"),
    ],
)
def test_numbers_of_another_kind_are_not_cast(kind: torch.dtype, said: str, texts: Path) -> None:
    file = texts / "model.safetensors"
    stored = load_file(file)
    stored["classifier.weight"] = (100 * stored["classifier.weight"]).to(kind)
    save_file(stored, file, {"format": "pt"})
    with pytest.raises(InputError, match=f"classifier.weight in .* is {said}, the model's float32"):
        load_model(f"hf:{texts}")


def test_half_precision_is_analysed_in_full(texts: Path) -> None:
    tiny.text_model(["who", "where"]).half().save_pretrained(texts)
    assert {p.dtype for p in hub_model(str(texts)).parameters()} == {torch.float32}
    assert {p.dtype for p in hub_model(str(texts), bare=True).parameters()} == {torch.float32}


def test_a_folder_without_weights_needs_them_from_a_file(texts: Path) -> None:
    os.rename(texts / "model.safetensors", texts.parent / "w.safetensors")
    with pytest.raises(InputError, match="holds no weights, not model.safetensors; .* --weights"):
        trained_model(f"hf:{texts}")
    assert isinstance(load_model(f"hf:{texts}", bare=True), nn.Module)
    model = trained_model(f"hf:{texts}", texts.parent / "w.safetensors")
    assert same(model, tiny.text_model(["who", "where"]))


def test_an_encoder_is_no_classifier(texts: Path) -> None:
    tiny.text_model(head=False).save_pretrained(texts)
    with pytest.raises(InputError, match="no weights for classifier.bias, .*; train it as a class"):
        trained_model(f"hf:{texts}")


class Malicious:
    """Unpickling it makes a folder."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


def test_pickled_weights_are_refused_and_never_read(texts: Path) -> None:
    trace = texts / "trace"
    (texts / "model.safetensors").unlink()
    (texts / "pytorch_model.bin").write_bytes(pickle.dumps(Malicious(trace)))
    with pytest.raises(InputError, match=r"pickle \(pytorch_model.bin\), which could run code"):
        trained_model(f"hf:{texts}")
    load_model(f"hf:{texts}", bare=True)
    assert not trace.exists()


def test_the_conversion_of_pickled_weights_works(texts: Path) -> None:
    state = load_file(texts / "model.safetensors")
    (texts / "model.safetensors").unlink()
    torch.save(state, texts / "pytorch_model.bin")
    with pytest.raises(InputError) as caught:
        trained_model(f"hf:{texts}")
    _, command = str(caught.value).split("convert it once with: ")
    subprocess.run([sys.executable, *shlex.split(command)[1:]], check=True)
    assert same(trained_model(f"hf:{texts}"), tiny.text_model(["who", "where"]))


@pytest.mark.parametrize("name", ["tf_model.h5", "pytorch_model.bin.index.json"])
def test_weights_of_other_forms_are_refused(name: str, texts: Path) -> None:
    (texts / "model.safetensors").rename(texts / name)
    with pytest.raises(InputError, match=f"holds only {name}, not .*; save it again with save_pre"):
        trained_model(f"hf:{texts}")


def test_damaged_weights(texts: Path) -> None:
    (texts / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(InputError, match="hf:.*texts cannot be read: .*; give a folder"):
        trained_model(f"hf:{texts}")


def test_weights_of_another_size(texts: Path) -> None:
    state = load_file(texts / "model.safetensors")
    state["classifier.weight"] = torch.zeros(5, 32)
    save_file(state, texts / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="hf:.*texts cannot be read: .*; give a folder"):
        trained_model(f"hf:{texts}")


def test_code_in_the_folder_is_never_run(texts: Path) -> None:
    config = json.loads((texts / "config.json").read_text())
    names = {"AutoConfig": "own.Config", "AutoModelForSequenceClassification": "own.Model"}
    config |= {"model_type": "own", "auto_map": names}
    (texts / "config.json").write_text(json.dumps(config))
    (texts / "own.py").write_text(f"import os\nos.mkdir({str(texts / 'trace')!r})\n")
    with pytest.raises(InputError, match="needs code of its own, which is never run; give a model"):
        trained_model(f"hf:{texts}")
    assert not (texts / "trace").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no config.json; give one written by save_pretrained"),
        ("{", "cannot be read: .*; give a folder written by save_pretrained"),
        ('{"model_type": "whisper"}', "is a whisper, neither an image nor a text classifier; give"),
        ('{"model_type": "no-such"}', "cannot be read: .*no-such.*; give a folder"),
    ],
)
def test_folders_that_are_no_classifier(content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=message):
        load_model(f"hf:{tmp_path}")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def test_names_that_the_hub_does_not_give(offline: None, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder, and the hub did not .*check name and ne"):
        load_model("hf:no/such-model")
    with pytest.raises(InputError, match="there is no folder .*none; give one written by save_pre"):
        load_model(f"hf:{tmp_path}/none")
    with pytest.raises(InputError, match="there is no folder ./none; give"):
        load_model("hf:./none")


def test_without_transformers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"transformers is not .*pip install 'unitroles\[hf\]'"):
        load_model(f"hf:{tmp_path}")


# --- timm


def test_a_timm_model_and_its_own_preset() -> None:
    model = load_model("timm:test_resnet")
    assert type(model).__name__ == "ResNet"
    transform = known_of("timm:test_resnet", model).transform
    assert transform is not None
    assert transform(Image.new("RGB", (200, 190))).shape == (3, 160, 160)


def test_a_tag_chooses_the_preset() -> None:
    sides = []
    for spec in ("timm:resnet18.a1_in1k", "timm:resnet18.a3_in1k"):
        transform = known_of(spec, load_model(spec)).transform
        assert transform is not None
        sides.append(transform(Image.new("RGB", (300, 300))).shape[-1])
    assert sides == [224, 160]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet81", "there is no timm model 'resnet81'; did you mean .*resnet18"),
        ("resnet18.a1_in2k", "no timm model 'resnet18.a1_in2k'; did you mean .*resnet18.a1_in1k"),
        ("hf-hub:timm/resnet18", "there is no timm model 'hf-hub:timm/resnet18'"),
    ],
)
def test_no_timm_model(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_model(f"timm:{name}")


def test_timm_models_need_weights(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="timm:test_resnet comes without weights; give a file of"):
        trained_model("timm:test_resnet")
    source = timm.create_model("test_resnet")
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    assert same(trained_model("timm:test_resnet", tmp_path / "w.safetensors"), source)


def test_without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"timm is not .*pip install 'unitroles\[vision\]'"):
        load_model("timm:resnet18")


# --- examples


def test_examples_have_the_form_of_the_model(texts: Path, pictures: Path) -> None:
    def shape(spec: str, *given: Any) -> tuple[int, ...]:
        return tuple(example_of(spec, load_model(spec, bare=True), *given).shape)

    assert shape("timm:test_resnet") == (2, 3, 160, 160)
    assert shape("torchvision:vit_b_32") == (2, 3, 224, 224)
    assert shape(f"hf:{pictures}", 3) == (3, 3, tiny.SIDE, tiny.SIDE)
    assert shape(f"hf:{pictures}", 3, (1, 4, 4)) == (3, 1, 4, 4)
    spec = f"hf:{texts}"
    model = load_model(spec)
    example = example_of(spec, model)
    assert {name: tuple(value.shape) for name, value in example.items()} == {
        "input_ids": (2, 16),
        "attention_mask": (2, 16),
    }
    assert example_of(spec, model, 3, (5,))["input_ids"].shape == (3, 5)
    with pytest.raises(InputError, match="texts have one size, their number of tokens"):
        example_of(spec, model, 3, (5, 5))


@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        (None, (3, 224, 224)),
        ({"size": {"height": 20, "width": 30}, "do_center_crop": False}, (3, 20, 30)),
        ({"size": {"shortest_edge": 40}, "do_center_crop": False}, (3, 40, 40)),
        (
            {
                "size": {"shortest_edge": 40},
                "crop_size": {"height": 32, "width": 32},
                "do_center_crop": True,
            },
            (3, 32, 32),
        ),
    ],
)
def test_the_size_of_pictures_may_stand_in_the_processor(
    settings: dict[str, Any] | None, shape: tuple[int, ...], tmp_path: Path
) -> None:
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic"
    )
    transformers.ResNetForImageClassification(config).save_pretrained(tmp_path)
    if settings is not None:
        file = {"image_processor_type": "BitImageProcessor", **settings}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(file))
    spec = f"hf:{tmp_path}"
    assert tuple(example_of(spec, load_model(spec, bare=True)).shape) == (2, *shape)


def test_layers_of_a_text_model(texts: Path) -> None:
    spec = f"hf:{texts}"
    model = load_model(spec)
    frame = ur.layers(model, example_of(spec, model))
    units = dict(zip(frame.layer, frame.units, strict=True))
    assert units["bert.encoder.layer.1.intermediate.intermediate_act_fn"] == 48
