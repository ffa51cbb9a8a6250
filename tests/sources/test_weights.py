"""Models, weights and data by name: what is read, what is refused, and that no pickle runs."""

import argparse
import io
import os
import pickle
import shlex
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from unitroles.errors import DataWarning, InputError
from unitroles.sources import records
from unitroles.sources.factory import Known, known_of, load_model, load_object
from unitroles.sources.records import DataOptions
from unitroles.sources.splits import load_npz, load_splits
from unitroles.sources.weights import load_weights

NETS = """
import torch
from torch import nn

def build():
    return nn.Linear(4, 2)

model = nn.Linear(3, 2)
number = 5

def broken():
    raise KeyError("no such width")

def needs(width):
    return nn.Linear(width, 2)

def weights():
    return model.state_dict()
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "weights_nets", raising=False)
    (tmp_path / "weights_nets.py").write_text(NETS)
    (tmp_path / "weights_faulty.py").write_text("import no_such_package\n")
    (tmp_path / "weights_wrong.py").write_text("1 / 0\n")
    return tmp_path


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


def same(one: nn.Module, two: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


# --- models


def test_a_factory_of_the_current_folder(here: Path) -> None:
    before = list(sys.path)
    model = load_model("weights_nets:build")
    assert isinstance(model, nn.Linear)
    assert model.in_features == 4
    assert sys.path == before


def test_a_model_itself_is_not_called(here: Path) -> None:
    assert load_model("weights_nets:model") is load_object("weights_nets:model", "MODEL")


def test_a_torchvision_name() -> None:
    model = load_model("torchvision:squeezenet1_1")
    assert type(model).__name__ == "SqueezeNet"
    transform: Any = known_of("torchvision:squeezenet1_1", model).transform
    assert transform.crop_size == [224]
    assert known_of("weights_nets:build", nn.Linear(4, 2)).transform is None


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("weights_nets", "hf:FOLDER_OR_NAME or package.module:factory, not 'weights_nets'"),
        ("no_such:build", "no module 'no_such'; run in its folder, or install it"),
        ("weights_nets.py:build", "no module 'weights_nets.py'; write weights_nets:build"),
        ("weights_nets:biuld", "no attribute of weights_nets 'biuld'; did you mean build"),
        ("weights_nets:number", "gives int, not a torch.nn.Module; name a model or a function"),
        ("weights_nets:weights", "gives OrderedDict, not a torch.nn.Module"),
        ("weights_nets:broken", r"without arguments failed: KeyError: .*weights_nets.py:12"),
        ("weights_nets:needs", "missing 1 required positional argument: 'width'"),
        ("weights_faulty:build", "importing weights_faulty failed: ModuleNotFoundError: .*:1"),
        ("weights_wrong:build", "importing weights_wrong failed: ZeroDivisionError: .*:1"),
        ("torchvision:resnet81", "no torchvision model 'resnet81'; did you mean resnet18"),
    ],
)
def test_what_is_no_model_is_refused(spec: str, message: str, here: Path) -> None:
    with pytest.raises(InputError, match=message):
        load_model(spec)


def test_without_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(InputError, match=r"pip install 'unitroles\[vision\]'"):
        load_model("torchvision:resnet18")


# --- weights


@pytest.mark.parametrize("inner", [None, "state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
def test_pytorch_checkpoints(inner: str | None, prefix: str, tmp_path: Path) -> None:
    source, target = net(), net()
    assert not same(source, target)
    state: Any = {prefix + name: value for name, value in source.state_dict().items()}
    torch.save(state if inner is None else {inner: state, "epoch": 3}, tmp_path / "w.pt")
    load_weights(target, tmp_path / "w.pt")
    assert same(source, target)


def test_safetensors_by_content(tmp_path: Path) -> None:
    source, target = net(), net()
    save_file(source.state_dict(), tmp_path / "w.bin")
    load_weights(target, tmp_path / "w.bin")
    assert same(source, target)


def test_a_name_that_all_weights_of_the_model_share_is_kept(tmp_path: Path) -> None:
    source, target = (nn.ModuleDict({"module": net()}) for _ in range(2))
    torch.save(source.state_dict(), tmp_path / "w.pt")
    load_weights(target, tmp_path / "w.pt")
    assert same(source, target)


def test_tied_weights_may_be_stored_once(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    state = {n: torch.ones_like(v) for n, v in model.state_dict().items() if n != "1.weight"}
    save_file(state, tmp_path / "w.safetensors")
    load_weights(model, tmp_path / "w.safetensors")
    assert torch.equal(model.state_dict()["1.weight"], torch.ones(3, 3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.pop("0.bias"),
            "does not fit the model: it lacks 0.bias; give weights of this",
        ),
        (lambda s: s.update(extra=torch.ones(1)), "the model has no extra; give"),
        (
            lambda s: s.update({"2.weight": torch.ones(5, 3)}),
            r"2.weight is \(5, 3\), the model's \(2, 3\); give",
        ),
        (lambda s: s.clear(), "holds no tensors by name; save"),
    ],
)
def test_weights_that_do_not_fit(change: Any, message: str, tmp_path: Path) -> None:
    state = dict(net().state_dict())
    change(state)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(InputError, match=message):
        load_weights(net(), tmp_path / "w.pt")


class Malicious:
    """Unpickling it makes a folder."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("writer", ["pickle", "torch", "legacy", "hidden"])
def test_a_pickle_is_never_run(writer: str, tmp_path: Path) -> None:
    trace, path = tmp_path / "trace", tmp_path / "w.pt"
    bad: Any = Malicious(trace)
    if writer == "pickle":
        path.write_bytes(pickle.dumps(bad))
    elif writer == "hidden":
        torch.save({"state_dict": net().state_dict(), "epoch": bad}, path)
    else:
        torch.save(bad, path, _use_new_zipfile_serialization=writer == "torch")
    with pytest.raises(InputError, match="could run code and were not loaded.*convert it"):
        load_weights(net(), path)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Malicious(trace)))  # it would have
    assert trace.exists()


@pytest.mark.parametrize(
    "content", [b"", b"weights", b"\x10" + bytes(7) + b'{"a": 1', b"\xff" * 8 + b"{" * 20]
)
def test_foreign_files_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(InputError, match="w.pt cannot be read as weights: it is damaged"):
        load_weights(net(), tmp_path / "w.pt")


def test_no_weights_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no weights file .*w.pt; give a safetensors"):
        load_weights(net(), tmp_path / "w.pt")


def test_the_conversion_command_works(tmp_path: Path) -> None:
    source, target = net(), net()
    path = tmp_path / "it's mine.pt"
    torch.save({"state_dict": source.state_dict(), "args": argparse.Namespace(lr=1)}, path)
    with pytest.raises(InputError) as caught:
        load_weights(target, path)
    _, command = str(caught.value).split("convert it once with: ")
    words = shlex.split(command)
    assert words[0] == "python"
    subprocess.run([sys.executable, *words[1:]], check=True)
    load_weights(target, path.with_suffix(".safetensors"))
    assert same(source, target)


# --- npz


def write(path: Path, **arrays: Any) -> str:
    np.savez(path, **arrays)
    return str(path)


def test_npz_forms(tmp_path: Path) -> None:
    images, labels = np.random.default_rng(0).random((5, 2)), np.arange(5, dtype=np.uint8) % 2
    whole = write(tmp_path / "a.npz", images=images, labels=labels)
    (inputs, numbers), names = load_npz(whole, "train")
    assert inputs.dtype == torch.float32
    assert torch.equal(inputs, torch.from_numpy(images.astype(np.float32)))
    assert numbers.dtype == torch.int64
    assert numbers.tolist() == labels.tolist()
    assert names is None
    parts = write(
        tmp_path / "b.npz", val_images=images, val_labels=labels, classes=np.array([b"cat", b"dog"])
    )
    assert torch.equal(load_npz(f"{parts}::val", "test")[0][0], inputs)
    assert load_npz(f"{parts}::val", "test")[1] == ["cat", "dog"]


def test_whole_numbers_stay_whole(tmp_path: Path) -> None:
    tokens = np.arange(6, dtype=">i8").reshape(2, 3)
    (inputs, _), _ = load_npz(write(tmp_path / "a.npz", images=tokens, labels=[0, 1]), "train")
    assert inputs.dtype == torch.int64
    assert inputs.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_scaled_pictures(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), dtype=np.uint8)
    spec = write(tmp_path / "a.npz", images=images, labels=[0, 1])
    plain = load_npz(spec, "train", DataOptions(scale=True))[0][0]
    expected = images.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    assert plain.is_contiguous()
    assert torch.equal(plain, torch.from_numpy(expected))
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    normal = load_npz(spec, "train", DataOptions(scale=True, mean=mean, std=std))[0][0]
    for channel in range(3):
        want = (plain[:, channel] - mean[channel]) / std[channel]
        torch.testing.assert_close(normal[:, channel], want)


def test_grey_pictures_get_a_channel(tmp_path: Path) -> None:
    grey = write(tmp_path / "a.npz", images=np.full((2, 4, 5), 51, np.uint8), labels=[0, 1])
    inputs = load_npz(grey, "train", DataOptions(scale=True, mean=(0.1,), std=(0.5,)))[0][0]
    torch.testing.assert_close(inputs, torch.full((2, 1, 4, 5), 0.2))


GOOD = {"images": np.zeros((2, 3), np.float32), "labels": np.array([0, 1])}
UINT8 = np.zeros((2, 4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    ("change", "split", "pictures", "message"),
    [
        ({"labels": None}, "", {}, "no 'labels' for the train data; it holds images; add"),
        ({}, "::val", {}, "no 'val_images' and no 'val_labels' .* it holds images, labels"),
        (
            {"images": None, "labels": None, "b_images": 1, "b_labels": 1},
            "",
            {},
            "no 'images' and no 'labels'.*; add what is missing, or give .*a.npz::b",
        ),
        ({"labels": np.array([0.0, 1.0])}, "", {}, "float64 .* expected one whole number per"),
        ({"labels": np.array([[0], [1]])}, "", {}, r"shape \(2, 1\), expected one whole number"),
        ({"labels": np.array([0, None])}, "", {}, "'labels' .*cannot be read .*not of Python"),
        ({"images": np.array([None, 1])}, "", {}, "'images' .*cannot be read .*not of Python"),
        ({"classes": np.array(["a", None])}, "", {}, "'classes' .*cannot be read"),
        ({"images": np.array([["a"], ["b"]])}, "", {}, "expected numbers of shape"),
        ({"images": UINT8}, "", {}, "uint8; give --scale to divide it by 255"),
        ({"images": UINT8}, "", {"mean": (0.0,), "std": (1.0,)}, "uint8; give --scale"),
        ({"images": UINT8[0]}, "", {"scale": True, "mean": (0.0,) * 3, "std": (1.0,)}, "1 chann"),
        ({"images": UINT8[0, 0]}, "", {"scale": True}, r"expected \(samples, height, width\)"),
        (
            {"images": UINT8.transpose(0, 3, 1, 2).repeat(2, 3)},
            "",
            {"scale": True},
            r"shape \(2, 3, 4, 8\), expected \(samples, height, width\)",
        ),
        ({}, "", {"scale": True}, "float32 and taken as it is; leave --scale"),
        ({}, "", {"mean": (0.0,), "std": (1.0,)}, "float32 and taken as it is; leave"),
    ],
)
def test_npz_that_cannot_be_used(
    change: dict[str, Any], split: str, pictures: dict[str, Any], message: str, tmp_path: Path
) -> None:
    arrays = {key: value for key, value in {**GOOD, **change}.items() if value is not None}
    spec = write(tmp_path / "a.npz", **arrays) + split
    with pytest.raises(InputError, match=message):
        load_npz(spec, "train", DataOptions(**pictures))


def test_files_that_are_no_npz(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the test data cannot be read: there is no file .*DATA"):
        load_npz(str(tmp_path / "a.npz"), "test")
    (tmp_path / "a.npz").write_bytes(pickle.dumps([1]))
    with pytest.raises(InputError, match="a.npz is no npz file; DATA is a folder"):
        load_npz(str(tmp_path / "a.npz"), "test")


def test_a_damaged_npz(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, images=np.arange(4000.0).reshape(2, -1), labels=[0, 1])
    content = bytearray(path.read_bytes())
    content[8000] ^= 255
    path.write_bytes(content)
    with pytest.raises(InputError, match="'images' .* cannot be read .*save it again"):
        load_npz(str(path), "train")


def declaring(path: Path, shape: tuple[int, ...], held: int) -> str:
    """An npz file whose images declare a shape of bytes and hold fewer."""
    header = io.BytesIO()
    described = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, described)
    labels = io.BytesIO()
    np.save(labels, np.zeros(shape[0] if shape[0] < 100 else 2, np.int64))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("images.npy", header.getvalue() + bytes(held))
        file.writestr("labels.npy", labels.getvalue())
    return str(path)


def test_an_array_that_declares_more_than_it_holds(tmp_path: Path) -> None:
    spec = declaring(tmp_path / "a.npz", (10**9, 100), 100)
    tracemalloc.start()
    try:
        with pytest.raises(
            InputError, match=r"should hold 93.1 GiB and holds 100 B\); save it aga"
        ):
            load_npz(spec, "train")
        assert tracemalloc.get_traced_memory()[1] < 10**7
    finally:
        tracemalloc.stop()


def test_an_array_that_no_memory_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = declaring(tmp_path / "a.npz", (2, 10**6), 2 * 10**6)
    monkeypatch.setattr(records, "machine_memory", lambda: 2 * 10**6 - 1)
    with pytest.raises(
        InputError, match="'images' in .* would take 1.9 MiB or more, and this mach"
    ):
        load_npz(spec, "train")
    monkeypatch.undo()
    assert records.machine_memory() > 10**6
    with pytest.raises(InputError, match="uint8; give --scale"):
        load_npz(spec, "train")


# --- folders


@pytest.fixture
def folders(tmp_path: Path) -> tuple[str, str]:
    rng = np.random.default_rng(0)
    for split, classes in {"train": "bcd", "test": "cd"}.items():
        for name in classes:
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(2):
                pixels = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{number}.png")
    (tmp_path / "train" / ".cache").mkdir()
    return str(tmp_path / "train"), str(tmp_path / "test")


def test_a_missing_class_does_not_shift_the_others(folders: tuple[str, str]) -> None:
    with pytest.warns(DataWarning, match="^the class folders .* 0 = b, 1 = c, 2 = d.*--class-nam"):
        train, test, names = load_splits(*folders, DataOptions(image_size=4))
    assert names == ["b", "c", "d"]
    assert train.targets == [0, 0, 1, 1, 2, 2]
    assert test.targets == [1, 1, 2, 2]


def test_folders_have_the_numbers_of_the_model(folders: tuple[str, str]) -> None:
    numbers = {"d": 0, "c": 1, "a": 2, "b": 3}
    named = Known(numbers=numbers)
    train, test, names = load_splits(*folders, DataOptions(image_size=4, known=named))
    assert names == ["d", "c", "a", "b"]
    assert (train.targets, test.targets) == ([3, 3, 1, 1, 0, 0], [1, 1, 0, 0])
    assert {train.classes[label] for _, label in train.samples} == {"b", "c", "d"}
    for path, label in train.samples:
        assert Path(path).parent.name == names[label]


@pytest.mark.parametrize("numbers", [{}, {"b": 0, "c": 1, "d": 2}, {"x": 0}])
def test_folders_have_the_numbers_of_the_class_names_given(
    numbers: dict[str, int], folders: tuple[str, str]
) -> None:
    """Whatever the model calls its classes."""
    order = ("d", "x", "b", "c")
    options = DataOptions(image_size=4, class_names=order, known=Known(numbers=numbers))
    train, test, names = load_splits(*folders, options)
    assert names == list(order)
    assert (train.targets, test.targets) == ([2, 2, 3, 3, 0, 0], [3, 3, 0, 0])
    for path, label in train.samples:
        assert Path(path).parent.name == order[label]


def test_class_names_that_do_not_fit(folders: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--class-names has no class 'd', which is a class folder"):
        load_splits(*folders, DataOptions(image_size=4, class_names=("c", "b")))
    named = write(tmp_path / "a.npz", **GOOD, classes=np.array(["x", "y"]))
    assert load_splits(named, named, DataOptions(class_names=("x", "y")))[2] == ["x", "y"]
    with pytest.raises(InputError, match="name their classes x, y, --class-names y, x; leave"):
        load_splits(named, named, DataOptions(class_names=("y", "x")))


def test_folders_that_the_model_does_not_name(folders: tuple[str, str]) -> None:
    named = Known(numbers={"c": 0, "b": 1})
    with pytest.warns(DataWarning, match="no class 'd': the class folders are numbered in the sor"):
        train, _, names = load_splits(*folders, DataOptions(image_size=4, known=named))
    assert (names, train.targets) == (["b", "c", "d"], [0, 0, 1, 1, 2, 2])


def test_arrays_without_names_have_those_of_the_model(tmp_path: Path) -> None:
    spec = write(tmp_path / "a.npz", **GOOD)
    named = Known(numbers={"y": 1, "x": 0})
    assert load_splits(spec, spec, DataOptions(known=named))[2] == ["x", "y"]


def test_pictures_are_resized_cropped_and_normalized(folders: tuple[str, str]) -> None:
    train, _, _ = load_splits(
        *folders, DataOptions(image_size=6, class_names="bcd", mean=(0.5,) * 3, std=(0.25,) * 3)
    )
    image, label = train[0]
    with Image.open(Path(folders[0]) / "b" / "0.png") as file:
        pixels = np.asarray(file).astype(np.float32)[:, 1:7].transpose(2, 0, 1)
    torch.testing.assert_close(image, torch.from_numpy((pixels / 255 - 0.5) / 0.25))
    assert label == 0


def test_preset_and_own_transform(folders: tuple[str, str]) -> None:
    train, _, _ = load_splits(
        *folders, DataOptions(class_names="bcd", known=Known(lambda picture: picture.size))
    )
    assert train[0][0] == (8, 6)
    own = DataOptions(
        class_names="bcd", known=Known(lambda picture: 1), transform=lambda picture: 2
    )
    assert load_splits(*folders, own)[0][0][0] == 2


def test_a_picture_that_cannot_be_read(folders: tuple[str, str]) -> None:
    path = Path(folders[0]) / "b" / "0.png"
    path.write_bytes(path.read_bytes()[:60])
    train, _, _ = load_splits(*folders, DataOptions(image_size=4, class_names="bcd"))
    with pytest.raises(InputError, match="0.png cannot be read as a picture .*repair or remove it"):
        train[0]


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        ({}, "how to read the pictures in .* is not known; give --image-size"),
        ({"known": Known(len), "mean": (0.0,), "std": (1.0,)}, "give --image-size with --mean"),
        (
            {"image_size": 4, "scale": True},
            "--scale is for uint8 images in npz files; leave it out",
        ),
        ({"mean": (0.0,)}, "--mean and --std belong together; give both or neither"),
        ({"mean": (0.0,), "std": (0.0,)}, "--std must be positive"),
        ({"image_size": 3, "transform": len}, "--transform replaces --image-size"),
    ],
)
def test_options_that_do_not_fit_folders(
    pictures: dict[str, Any], message: str, folders: tuple[str, str]
) -> None:
    with pytest.raises(InputError, match=message):
        load_splits(*folders, DataOptions(**pictures))


def test_options_that_do_not_fit_npz(tmp_path: Path) -> None:
    spec = write(tmp_path / "a.npz", **GOOD)
    for pictures in (DataOptions(image_size=4), DataOptions(transform=len)):
        with pytest.raises(InputError, match="are for folders; npz files need none"):
            load_splits(spec, spec, pictures)


def test_no_class_folders(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(InputError, match="holds no class folders; DATA is a folder of class"):
        load_splits(str(tmp_path), str(tmp_path), DataOptions(image_size=4))


def test_splits_with_other_class_names(tmp_path: Path, folders: tuple[str, str]) -> None:
    named = write(tmp_path / "a.npz", **GOOD, classes=np.array(["x", "y"]))
    with pytest.raises(InputError, match="train classes b, c, d, test classes x, y; give both"):
        load_splits(folders[0], named, DataOptions(image_size=4))
    assert load_splits(named, named, DataOptions())[2] == ["x", "y"]
