"""The zoo: data, settings, the network, and trainings that survive a kill."""

from __future__ import annotations

import io
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn", reason="needs scikit-learn: pip install 'unitroles[zoo]'")
pytest.importorskip("accelerate", reason="needs accelerate: pip install 'unitroles[zoo]'")

from safetensors import safe_open

from unitroles import InputError
from unitroles.files import sealed, unsealed
from unitroles.zoo import training
from unitroles.zoo.images import load_images
from unitroles.zoo.settings import DataSettings, ModelSettings, Recipe, ladder, read_settings
from unitroles.zoo.training import augment, train
from unitroles.zoo.vgg import last_conv_layer, small_vgg

DATA = DataSettings(train_samples=200, test_samples=100, pixel_noise=0.3)
MODEL = ModelSettings(channels=((4,), (8,)), hidden=8)
RECIPE = Recipe(
    dropout=0.3,
    weight_decay=0.1,
    epochs=4,
    learning_rate=0.01,
    batch_size=32,
    augment_noise=0.2,
    augment_shift=1,
)
TOML = """
seeds = [1, 2]
[data]
train_samples = 200
test_samples = 100
pixel_noise = 0.3
[model]
channels = [[4], [8]]
hidden = 8
[defaults]
dropout = 0
weight_decay = 0.1
learning_rate = 0.01
batch_size = 32
[recipes.A]
epochs = 4
[recipes.B]
epochs = 30
dropout = 0.5
"""


class Killed(Exception):
    """Stands for the end of the process."""


def kill_after(epoch):
    done = []

    def on_epochs(more):
        done.append(more)
        if sum(done) == epoch:
            raise Killed

    return on_epochs


def same_weights(first, second):
    first, second = first.model.state_dict(), second.model.state_dict()
    return list(first) == list(second) and all(torch.equal(first[k], second[k]) for k in first)


def images_without_noise():
    return load_images("digits", replace(DATA, pixel_noise=0.0))


# Data


def test_shapes_types_and_range():
    data = images_without_noise()
    assert data.train_images.shape == (200, 1, 8, 8)
    assert data.test_images.shape == (100, 1, 8, 8)
    assert data.train_images.dtype == data.test_images.dtype == np.float32
    assert data.train_labels.dtype == data.true_train_labels.dtype == np.int64
    assert data.test_labels.dtype == np.int64
    assert data.train_images.min() == 0
    assert data.train_images.max() == 1
    assert data.class_names == tuple("0123456789")


def test_split_is_stratified():
    data = load_images("digits", DATA)
    assert np.ptp(np.bincount(data.train_labels, minlength=10)) <= 2
    assert np.ptp(np.bincount(data.test_labels, minlength=10)) <= 2


def test_split_is_disjoint_and_takes_every_image_once():
    from sklearn.datasets import load_digits as originals

    data = load_images(
        "digits", DataSettings(train_samples=1000, test_samples=797, pixel_noise=0.0)
    )
    images = np.concatenate([data.train_images, data.test_images]).reshape(-1, 64)
    expected = (originals().data / 16).astype(np.float32)
    assert sorted(map(bytes, images)) == sorted(map(bytes, expected))


def test_labels_belong_to_their_images():
    from sklearn.datasets import load_digits as originals

    known = {
        bytes(row): label
        for row, label in zip(
            (originals().data / 16).astype(np.float32), originals().target, strict=True
        )
    }
    data = images_without_noise()
    assert [known[bytes(image)] for image in data.train_images] == data.train_labels.tolist()
    assert [known[bytes(image)] for image in data.test_images] == data.test_labels.tolist()


def test_noise_is_the_same_in_every_call():
    first, second = load_images("digits", DATA), load_images("digits", DATA)
    assert np.array_equal(first.train_images, second.train_images)
    assert np.array_equal(first.test_images, second.test_images)


def test_noise_has_the_deviation_asked_for_and_differs_between_images():
    noise = load_images("digits", DATA).train_images - images_without_noise().train_images
    assert noise.std() == pytest.approx(0.3, rel=0.03)
    assert abs(noise.mean()) < 0.02
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.5


def test_other_noise_seed_gives_other_noise_in_the_same_split():
    first, second = load_images("digits", DATA), load_images("digits", replace(DATA, noise_seed=1))
    assert not np.array_equal(first.train_images, second.train_images)
    assert np.array_equal(first.train_labels, second.train_labels)


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.6, 1.0])
def test_label_noise_has_its_rate_and_never_the_true_label(rate):
    data = load_images("digits", DATA, label_noise=rate)
    wrong = data.train_labels != data.true_train_labels
    assert wrong.sum() == round(rate * 200)
    assert data.train_labels.min() >= 0
    assert data.train_labels.max() <= 9
    assert np.array_equal(data.true_train_labels, load_images("digits", DATA).train_labels)
    assert np.array_equal(data.test_labels, load_images("digits", DATA).test_labels)


def test_corrupted_labels_are_uniform_over_the_other_classes():
    settings = DataSettings(train_samples=1600, test_samples=100, pixel_noise=0.0)
    data = load_images("digits", settings, label_noise=1.0)
    steps = np.bincount((data.train_labels - data.true_train_labels) % 10, minlength=10)
    assert steps[0] == 0
    assert steps[1:].min() > 1600 / 9 * 0.7
    assert steps[1:].max() < 1600 / 9 * 1.3


def test_label_noise_is_deterministic_and_nested():
    little, much = (
        load_images("digits", DATA, label_noise=0.2),
        load_images("digits", DATA, label_noise=0.6),
    )
    assert np.array_equal(
        little.train_labels, load_images("digits", DATA, label_noise=0.2).train_labels
    )
    wrong = little.train_labels != little.true_train_labels
    assert np.array_equal(little.train_labels[wrong], much.train_labels[wrong])


def test_bad_rate_and_bad_sizes():
    with pytest.raises(ValueError, match="label_noise must be between 0 and 1, got 1.5"):
        load_images("digits", DATA, label_noise=1.5)
    with pytest.raises(ValueError, match="1700 and 100 samples do not fit.*1797"):
        load_images("digits", replace(DATA, train_samples=1700))


def test_missing_packages_name_the_remedy(monkeypatch, tmp_path):
    data = load_images("digits", DATA)
    remedy = r"needs {}: install it with pip install 'unitroles\[zoo\]'"
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(InputError, match=remedy.format("sklearn")):
        load_images("digits", DATA)
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(InputError, match=remedy.format("accelerate")):
        train(RECIPE, data, MODEL, 1, tmp_path / "A.safetensors")


# Files


def test_a_folder_that_is_a_file_is_told(data, tmp_path):
    (tmp_path / "seed1").write_text("")
    with pytest.raises(InputError, match="cannot make folder .*seed1: File exists; choose another"):
        train(RECIPE, data, MODEL, 1, tmp_path / "seed1" / "A.safetensors")


@pytest.mark.parametrize("checkpoint_seconds", [0.0, 1e9])
def test_a_training_that_cannot_be_stored_is_told(data, tmp_path, monkeypatch, checkpoint_seconds):
    def full(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("unitroles.files.os.fsync", full)
    recipe, file = replace(RECIPE, epochs=1), tmp_path / "A.safetensors"
    with pytest.raises(InputError, match="cannot write .*No space left on device"):
        train(recipe, data, MODEL, 1, file, checkpoint_seconds=checkpoint_seconds)
    assert list(tmp_path.iterdir()) == []


# Settings


def write(folder, text):
    path = folder / "settings.toml"
    path.write_text(text)
    return path


def test_settings_are_read_with_defaults(tmp_path):
    settings = read_settings(write(tmp_path, TOML))
    assert settings.seeds == (1, 2)
    assert settings.data == DATA
    assert settings.model == MODEL
    assert list(settings.recipes) == ["A", "B"]
    assert settings.recipes["A"] == Recipe(
        dropout=0.0, weight_decay=0.1, epochs=4, learning_rate=0.01, batch_size=32
    )
    assert settings.recipes["B"].dropout == 0.5


def test_sha256_is_the_digest_of_the_file(tmp_path):
    import hashlib

    path = write(tmp_path, TOML)
    assert read_settings(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    changed = read_settings(write(tmp_path, TOML + "\n# a comment"))
    assert changed.sha256 != hashlib.sha256(TOML.encode()).hexdigest()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[recipes.B]", "[recipes.B]\ndropuot = 1", r"unknown keys in recipes\.B: dropuot"),
        ("hidden = 8", "hidden = 8\ndepth = 2", "unknown keys in model: depth"),
        ("pixel_noise", "noise", "unknown keys in data: noise"),
        ("seeds", "seed", "unknown keys in the top level: seed;"),
        ("seeds = [1, 2]", "", "missing keys in the top level: seeds"),
        ("hidden = 8", "", "missing keys in model: hidden"),
        ("epochs = 4", "epochs = 4.5", r"recipes\.A\.epochs must be a non-negative int, got 4.5"),
        ("dropout = 0.5", "dropout = 'a'", r"recipes\.B\.dropout must be a non-negative float"),
        ("[[4], [8]]", "[4, 8]", r"model\.channels must be a list of lists"),
        ("[1, 2]", "[]", "seeds must be a list of whole numbers"),
        ("[model]", "[model", "not a TOML file"),
    ],
)
def test_errors_in_the_file_are_named(tmp_path, old, new, message):
    assert old in TOML
    path = write(tmp_path, TOML.replace(old, new))
    with pytest.raises(ValueError, match=message) as caught:
        read_settings(path)
    assert str(path) in str(caught.value)


def test_ladder_of_models_uses_hyper_parameters_only():
    settings = ladder("capacity")
    assert list(settings.recipes) == list("ABCDE")
    assert settings.seeds == (1, 2, 3)
    assert settings.data.pixel_noise > 0
    assert all(recipe.label_noise == 0 for recipe in settings.recipes.values())


def test_ladder_of_noise_has_clean_pixels_and_rising_rates():
    settings = ladder("noise")
    rates = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert list(settings.recipes) == [str(rate) for rate in rates]
    assert [recipe.label_noise for recipe in settings.recipes.values()] == rates
    assert settings.data.pixel_noise == 0
    assert len({replace(r, label_noise=0.0) for r in settings.recipes.values()}) == 1


def test_unknown_ladder():
    with pytest.raises(
        InputError, match="unknown ladder 'nose'; did you mean noise. known: capacity, noise"
    ):
        ladder("nose")


@pytest.mark.parametrize("name", ["capacity", "noise"])
def test_quick_is_smaller_and_otherwise_the_same(name):
    full = ladder(name)
    quick = full.quick()
    assert quick.seeds == full.seeds[:1]
    assert quick.data.train_samples <= 300
    assert quick.data.test_samples <= 300
    assert quick.model == full.model
    assert list(quick.recipes) == list(full.recipes)
    for key, recipe in full.recipes.items():
        assert quick.recipes[key] == replace(recipe, epochs=quick.recipes[key].epochs)
        assert 1 <= quick.recipes[key].epochs <= max(2, recipe.epochs // 4)
    assert full == ladder(name)


# Network


def test_vgg_ends_with_conv_relu_pool_at_the_named_layer():
    model = small_vgg()
    path = last_conv_layer(model)
    index = int(path.removeprefix("features."))
    conv, relu, pool = list(model.get_submodule("features"))[index - 1 :]
    assert isinstance(conv, torch.nn.Conv2d)
    assert conv.out_channels == 128
    assert isinstance(relu, torch.nn.ReLU)
    assert not relu.inplace
    assert isinstance(pool, torch.nn.MaxPool2d)
    names = [type(layer).__name__ for layer in model.get_submodule("classifier")]
    assert names == ["Flatten", "Linear", "ReLU", "Dropout", "Linear"]


@pytest.mark.parametrize("name", ["capacity", "noise"])
def test_ladder_models_have_128_units_in_the_last_convolution(name):
    settings = ladder(name)
    model = small_vgg(settings.model.channels, settings.model.hidden)
    outputs = []
    model.get_submodule(last_conv_layer(model)).register_forward_hook(
        lambda module, args, output: outputs.append(output.shape)
    )
    assert model(torch.zeros(3, 1, 8, 8)).shape == (3, 10)
    assert outputs[0][:2] == (3, 128)


def test_vgg_exports_with_a_dynamic_batch():
    torch.manual_seed(0)
    model = small_vgg(channels=((4,), (8,)), hidden=8, dropout=0.5).eval()
    batch = torch.export.Dim("batch", min=2, max=512)
    example = (torch.randn(2, 1, 8, 8),)
    exported = torch.export.export(model, example, dynamic_shapes=({0: batch},)).module()
    images = torch.randn(7, 1, 8, 8)
    assert torch.allclose(exported(images), model(images), atol=1e-6)


def test_network_errors():
    with pytest.raises(
        ValueError, match="non-empty stacks, at most as many as 8 pixels can be halved"
    ):
        small_vgg(channels=((4,),) * 4)
    model = torch.nn.Sequential()
    model.add_module("features", torch.nn.Sequential(torch.nn.ReLU()))
    with pytest.raises(ValueError, match="no convolution that is followed by a ReLU"):
        last_conv_layer(model)


# Augmentation


def test_augmentation_shifts_without_wrapping():
    images = torch.zeros(400, 1, 8, 8)
    images[:, 0, 0, 4] = 1
    recipe = replace(RECIPE, augment_noise=0.0)
    shifted = augment(images, recipe, torch.Generator().manual_seed(0))
    places = {tuple(place) for place in shifted[:, 0].nonzero()[:, 1:].tolist()}
    assert places == {(row, column) for row in (0, 1) for column in (3, 4, 5)}
    assert 0 < (shifted.sum((1, 2, 3)) == 0).float().mean() < 0.5


def test_augmentation_noise_is_added_and_seeded():
    images = torch.ones(200, 1, 8, 8)
    recipe = replace(RECIPE, augment_shift=0)
    first = augment(images, recipe, torch.Generator().manual_seed(0))
    assert torch.equal(first, augment(images, recipe, torch.Generator().manual_seed(0)))
    assert (first - images).std().item() == pytest.approx(0.2, rel=0.05)
    assert torch.equal(images, torch.ones(200, 1, 8, 8))


# Training


@pytest.fixture(scope="module")
def data():
    return load_images("digits", DATA)


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    return train(RECIPE, data, MODEL, 1, tmp_path_factory.mktemp("whole") / "A.safetensors")


@pytest.mark.parametrize("epoch", [1, 3, 4])
def test_killed_training_ends_with_the_same_weights(data, undisturbed, tmp_path, epoch):
    with pytest.raises(Killed):
        train(
            RECIPE,
            data,
            MODEL,
            1,
            tmp_path / "A.safetensors",
            kill_after(epoch),
            checkpoint_seconds=0.0,
        )
    seen = []
    trained = train(RECIPE, data, MODEL, 1, tmp_path / "A.safetensors", seen.append)
    assert seen == [epoch, *[1] * (4 - epoch)]
    assert not trained.reused
    assert same_weights(trained, undisturbed)
    assert trained.test_accuracy == undisturbed.test_accuracy
    assert [path.name for path in tmp_path.iterdir()] == ["A.safetensors"]


def test_weights_do_not_depend_on_the_thread_count(data, undisturbed, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(3 - min(threads, 2))
    try:
        trained = train(RECIPE, data, MODEL, 1, tmp_path / "A.safetensors")
        assert torch.get_num_threads() == 3 - min(threads, 2)
    finally:
        torch.set_num_threads(threads)
    assert same_weights(trained, undisturbed)


def test_training_without_checkpoint_starts_again(data, undisturbed, tmp_path):
    with pytest.raises(Killed):
        train(
            RECIPE,
            data,
            MODEL,
            1,
            tmp_path / "A.safetensors",
            kill_after(2),
            checkpoint_seconds=1e9,
        )
    seen = []
    trained = train(RECIPE, data, MODEL, 1, tmp_path / "A.safetensors", seen.append)
    assert seen == [0, 1, 1, 1, 1]
    assert same_weights(trained, undisturbed)


def test_checkpoint_of_other_settings_is_not_resumed(data, undisturbed, tmp_path):
    other = replace(RECIPE, weight_decay=0.2)
    with pytest.raises(Killed):
        train(
            other, data, MODEL, 1, tmp_path / "A.safetensors", kill_after(2), checkpoint_seconds=0.0
        )
    assert same_weights(train(RECIPE, data, MODEL, 1, tmp_path / "A.safetensors"), undisturbed)


def test_training_learns(tmp_path):
    recipe = Recipe(0.0, 0.0, epochs=15, learning_rate=0.01, batch_size=32)
    model = ModelSettings(channels=((8,), (16,)), hidden=32)
    trained = train(recipe, images_without_noise(), model, 1, tmp_path / "A.safetensors")
    assert trained.train_accuracy > 0.9
    assert trained.test_accuracy > 0.7
    assert trained.gap == trained.train_accuracy - trained.test_accuracy


def test_accuracies_are_those_of_the_returned_model(data, undisturbed):
    assert not undisturbed.model.training
    with torch.no_grad():
        guesses = undisturbed.model(torch.from_numpy(data.test_images)).argmax(1).numpy()
    assert undisturbed.test_accuracy == np.mean(guesses == data.test_labels)
    assert undisturbed.true_label_accuracy is None


def test_true_label_accuracy_under_label_noise(tmp_path):
    noisy = load_images("digits", replace(DATA, pixel_noise=0.0), label_noise=0.2)
    recipe = replace(RECIPE, label_noise=0.2, dropout=0.0, epochs=12, augment_noise=0.0)
    trained = train(recipe, noisy, MODEL, 1, tmp_path / "0.2.safetensors")
    with torch.no_grad():
        guesses = trained.model(torch.from_numpy(noisy.train_images)).argmax(1).numpy()
    assert trained.train_accuracy == np.mean(guesses == noisy.train_labels)
    assert trained.true_label_accuracy == np.mean(guesses == noisy.true_train_labels)
    assert trained.train_accuracy != trained.true_label_accuracy


def test_finished_weights_are_reused(data, tmp_path):
    first = train(RECIPE, data, MODEL, 1, tmp_path / "A.safetensors")
    written = (tmp_path / "A.safetensors").stat().st_mtime_ns
    seen = []
    again = train(RECIPE, data, MODEL, 1, tmp_path / "A.safetensors", seen.append)
    assert again.reused
    assert not first.reused
    assert seen == [4]
    assert (tmp_path / "A.safetensors").stat().st_mtime_ns == written
    assert same_weights(first, again)
    assert not again.model.training
    assert replace(again, model=first.model, reused=False) == first


def test_a_checkpoint_beside_finished_weights_goes(data, tmp_path, monkeypatch):
    def dies(*given):
        save(*given)
        raise Killed

    save = training._save_weights
    with monkeypatch.context() as patch:
        patch.setattr(training, "_save_weights", dies)
        with pytest.raises(Killed):
            train(RECIPE, data, MODEL, 1, tmp_path / "A.safetensors")
    assert len(list(tmp_path.iterdir())) == 2
    assert train(RECIPE, data, MODEL, 1, tmp_path / "A.safetensors").reused
    assert [path.name for path in tmp_path.iterdir()] == ["A.safetensors"]


def flipped(content):
    place = 3 * len(content) // 4  # among the values
    return content[:place] + bytes([content[place] ^ 64]) + content[place + 1 :]


def other_accuracy(content):
    """A file whose header still fits."""
    at = content.index(b'"test_accuracy":"0.') + len(b'"test_accuracy":"0.')
    return content[:at] + (b"1" if content[at : at + 1] != b"1" else b"2") + content[at + 1 :]


DAMAGE = {
    "cut off": lambda content: content[:100],
    "empty": lambda content: b"",
    "one bit": flipped,
    "of another kind": lambda content: b"PK\x03\x04" * 40,
    "a header without end": lambda content: b"\xff" * 8 + content[8:],
}


@pytest.mark.parametrize("damage", [*DAMAGE.values(), other_accuracy])
def test_damaged_weights_are_trained_again(data, undisturbed, tmp_path, damage):
    file = tmp_path / "A.safetensors"
    train(RECIPE, data, MODEL, 1, file)
    assert train(RECIPE, data, MODEL, 1, file).reused
    file.write_bytes(damage(file.read_bytes()))
    trained = train(RECIPE, data, MODEL, 1, file)
    assert not trained.reused
    assert same_weights(trained, undisturbed)
    assert trained.test_accuracy == undisturbed.test_accuracy


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=list(DAMAGE))
def test_a_damaged_checkpoint_is_as_good_as_none(data, undisturbed, tmp_path, damage):
    file, seen = tmp_path / "A.safetensors", []
    with pytest.raises(Killed):
        train(RECIPE, data, MODEL, 1, file, kill_after(2), checkpoint_seconds=0.0)
    checkpoint = tmp_path / "A.safetensors.checkpoint"
    checkpoint.write_bytes(damage(checkpoint.read_bytes()))
    trained = train(RECIPE, data, MODEL, 1, file, seen.append)
    assert seen == [0, 1, 1, 1, 1]
    assert same_weights(trained, undisturbed)
    assert list(tmp_path.iterdir()) == [file]


def test_a_checkpoint_that_fits_in_part_changes_nothing(data, undisturbed, tmp_path):
    """The model is there, and the optimizer is not: what was loaded is taken back."""
    file, checkpoint = tmp_path / "A.safetensors", tmp_path / "A.safetensors.checkpoint"
    with pytest.raises(Killed):
        train(RECIPE, data, MODEL, 1, file, kill_after(2), checkpoint_seconds=0.0)
    stored = torch.load(io.BytesIO(unsealed(checkpoint.read_bytes())[0]), weights_only=True)
    del stored["schedule"]
    torch.save(stored, buffer := io.BytesIO())
    checkpoint.write_bytes(sealed(buffer.getvalue()))
    assert same_weights(train(RECIPE, data, MODEL, 1, file), undisturbed)


@pytest.mark.parametrize("change", ["recipe", "seed", "data", "model"])
def test_finished_weights_of_other_settings_are_not_reused(data, undisturbed, tmp_path, change):
    arguments = {"recipe": RECIPE, "data": data, "model_settings": MODEL, "seed": 1}
    other = {
        "recipe": replace(RECIPE, learning_rate=0.02),
        "seed": 2,
        "data": load_images("digits", replace(DATA, noise_seed=5)),
        "model_settings": replace(MODEL, hidden=9),
    }
    key = "model_settings" if change == "model" else change
    train(**arguments | {key: other[key]}, weights=tmp_path / "A.safetensors")
    trained = train(**arguments, weights=tmp_path / "A.safetensors")
    assert not trained.reused
    assert same_weights(trained, undisturbed)


def test_metadata_of_the_weights(undisturbed, data, tmp_path):
    train(RECIPE, data, MODEL, 1, tmp_path / "A.safetensors")
    with safe_open(tmp_path / "A.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert len(metadata["settings_hash"]) == 64
    assert float(metadata["train_accuracy"]) == undisturbed.train_accuracy
    assert float(metadata["test_accuracy"]) == undisturbed.test_accuracy


def test_global_state_is_left_alone(data, tmp_path):
    np.random.seed(3)
    torch.manual_seed(3)
    threads = torch.get_num_threads()
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    with pytest.raises(Killed):
        train(RECIPE, data, MODEL, 1, tmp_path / "A.safetensors", kill_after(1))
    train(RECIPE, data, MODEL, 1, tmp_path / "A.safetensors")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert torch.get_num_threads() == threads


def test_weights_do_not_depend_on_the_global_state(data, undisturbed, tmp_path):
    torch.manual_seed(99)
    assert same_weights(train(RECIPE, data, MODEL, 1, tmp_path / "A.safetensors"), undisturbed)


def test_seeds_give_different_models(data, undisturbed, tmp_path):
    assert not same_weights(train(RECIPE, data, MODEL, 2, tmp_path / "A.safetensors"), undisturbed)


def test_label_noise_of_recipe_and_data_must_agree(data, tmp_path):
    with pytest.raises(ValueError, match="'A' has label noise 0.2, the data 0.0: use load_images"):
        train(replace(RECIPE, label_noise=0.2), data, MODEL, 1, tmp_path / "A.safetensors")
