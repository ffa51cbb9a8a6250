"""The page on the evidence of two networks: its numbers, its sentences, its weights, its errors."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import unitroles as ur

# Last, so that no benchmark stands before a module of the same name.
from benchmarks.evidence import cifar as sure
from benchmarks.evidence.cifar_nets import (
    IMAGES,
    RESNET,
    VGG,
    Cifar,
    Recipe,
    ResNet20,
    cifar,
    resnet20,
    trained_vgg,
)
from benchmarks.evidence.cifar_page import document
from benchmarks.evidence.cifar_reading import ROLES, beside_paper, reading, within_both
from benchmarks.evidence.planting import LAYER, Plan, plant
from unitroles.report.text import report
from unitroles.results.signs import SIGNS

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES, SIDE = list("abcdefghij"), 16
TINY = Recipe(channels=(4, 8), hidden=16, epochs=20, batch_size=16, learning_rate=0.01)
TRAIN, TEST = 60, 40
OVERFITTING = Plan(
    units=24, labels=4, strength=0.3, overfitted=0.25, generalizing=0.0, train=TRAIN, test=TEST
)


@pytest.fixture(scope="module")
def cases():
    """A network of planted overfitting and a null one, as the command analyses its own."""
    evidence, found = ur.Evidence(floors=20, resplits=20, replicates=10), []
    for name, plan in (("Bad", OVERFITTING), ("Null", replace(OVERFITTING.null, seed=1))):
        made = plant(plan)
        data = Cifar(made.train, made.test, NAMES[: plan.labels])
        network = sure.Network(name, "planted", made.model, LAYER)
        found.append(sure.studied(network, data, evidence, lambda text: None))
    return found


@pytest.fixture(scope="module")
def page(cases):
    return document(cases, "settings", "machine", "costs")


def row(page, *first):
    """The cells of the one row that begins with these."""
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    (found,) = (cells for cells in rows if cells[: len(first)] == list(first))
    return found[len(first) :]


def close(cells, values, digits=1):
    assert [float(cell) for cell in cells] == pytest.approx(list(values), abs=0.51 * 10**-digits)


def test_the_page_holds_the_whole_report_of_both_networks(page, cases):
    for case in cases:
        assert f"```text\n{report(case.every)}\n```" in page
        for sentence in case.every.train_only_signs().sentence:
            assert sentence in page


def test_tables_2_and_3_are_those_of_the_taxonomies(page, cases):
    for case in cases:
        part = page.split(f"{case.name}, %:")[1].split("\n\n")[1]
        for name, found in case.results.items():
            intervals, floors = 100 * found.intervals(), 100 * found.floors()
            stds = ("std_over_labels", "std_over_units")
            for role in ROLES:
                cells = row(part, name, role)
                own, floor = intervals.loc[role], floors.loc[role]
                assert cells[0] == f"{own.value:.1f} [{own.low:.1f}, {own.high:.1f}]"
                for cell, std in zip(
                    cells[1:3], ("std_over_labels", "std_over_units"), strict=True
                ):
                    band = f"[{own[f'{std}_low']:.1f}, {own[f'{std}_high']:.1f}]"
                    assert cell == f"{own[std]:.1f} {band}"
                close(cells[3:4], [floor.observed])
                inside = [cell.split()[0] for cell in cells[4:6]]
                close(
                    [*inside, cells[6]],
                    [floor.train_noise_floor, floor.test_noise_floor, floor.above_floor],
                )
                for cell, std in zip(cells[7:], stds, strict=True):
                    close(
                        cell.split(" / "), [floor[f"observed_{std}"], floor[f"noise_floor_{std}"]]
                    )


def test_the_comparison_has_one_column_for_each_result(page, cases):
    side_by_side = page.split("## The networks side by side")[1].split("## Tables")[0]
    results = [found for case in cases for found in case.results.values()]
    assert row(side_by_side, "gap") == [f"{found.gap:+.4f}" for found in results]
    sizes = row(side_by_side, "images of a class, train / test")
    assert sizes == [f"{TRAIN} / {TEST}", f"{TEST} / {TEST}"] * 2
    for role in ROLES:
        shares = [cell.split()[0] for cell in row(side_by_side, f"{role}, %")]
        close(shares, [100 * found.summary()["mean"][role] for found in results])
    p = [[f"{value:.3f}" for value in found.exchangeability().p] for found in results]
    name = "p (smallest 0.048), overfitted / generalizing / either"
    assert row(side_by_side, name) == [" / ".join(values) for values in p]
    verdicts = [found.signs().finding for found in results]
    above = [", ".join(v.index[v.str.startswith("above")].map(SIGNS)) for v in verdicts]
    assert bool(above[0]) > bool(above[2])
    assert row(side_by_side, "above what sampling gives") == [text or "none" for text in above]
    cells = row(side_by_side, "test loss of a class at n0 / N / 0, nats")
    for found, cell in zip(results, cells, strict=True):
        loss = found.data.loss.values[1]
        values = [loss[:, 1:].min(axis=1).mean(), loss[:, -1].mean(), loss[:, 0].mean()]
        close(cell.split(" / "), values, digits=4)


def test_times_are_those_of_the_results(page, cases):
    part = page.split("## Time and memory")[1]
    for case in cases:
        for (name, found), peak in zip(case.results.items(), case.peaks, strict=True):
            cells = row(part, f"{case.name}, {name}")
            assert cells[0] == str(int(found.data.samples.sum()))
            stages = found.provenance["stages"]
            shown = [f"{stages[stage]:.1f}" for stage in ("prepare", "body", "sweep", "evidence")]
            assert cells[1:] == [*shown, f"{found.provenance['seconds']:.1f}", f"{peak:.0f}"]
    assert 0 < cases[0].peaks[0] <= cases[1].peaks[1]


def test_the_sentences_tell_overfitting_from_none(cases):
    bad, null = reading(cases).split("**Null**")
    assert "Above what sampling gives: overfitted proportion (" in bad
    assert "p = 0.048, the smallest that there can be: training images are not like" in bad
    assert "overfitted proportion (" not in bad.split("Within it: ")[1].split("\n")[0]
    assert "Above what sampling gives: none. Within it: overfitted proportion (" in null
    assert "do not show its gap; within is no proof of none" in null
    assert "cannot be told from fresh ones" in null
    assert f"{TEST} images of each class in both splits" in null
    assert SIGNS["overfitted"] not in within_both(cases)
    assert SIGNS["overfitted"] in within_both(cases[1:])


def test_the_networks_are_compared_from_the_smaller_gap_to_the_larger(cases):
    assert cases[0].every.gap > cases[1].every.gap
    rows = beside_paper(cases)
    assert rows == beside_paper(cases[::-1])
    over = next(row for row in rows if row["%"] == "overfitted proportion")
    shares = [100 * case.every.summary()["mean"].overfitted for case in cases[::-1]]
    assert over["paper, A → E"] == "3.1 → 61.4"
    assert over["here"] == " → ".join(f"{share:.1f}" for share in shares)
    assert over["same direction"] == over["same direction there"] == "yes"
    bad, null = (case.every.sensitivity().overfitted for case in cases)
    assert over["rules"] == f"{(bad > null).sum()} of {len(bad)}"


def pictures(rng, count):
    """Each class has a bright row of its own, on noise."""
    labels = np.tile(np.arange(len(NAMES)), count)
    images = rng.integers(0, 150, (len(labels), SIDE, SIDE, 3))
    images[np.arange(len(labels)), labels] += 100
    return images.astype(np.uint8), labels


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Stand-ins for images and weights, as the command finds them."""
    made, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    arrays = {"classes": np.array(NAMES)}
    for split in ("train", "test"):
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = pictures(rng, 10)
    np.savez(made / IMAGES, **arrays)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        state = ResNet20().state_dict()
    torch.save({f"module.{name}": value for name, value in state.items()}, made / RESNET)
    return made


def test_stored_weights_are_read_for_the_same_recipe_and_images_alone(folder, tmp_path):
    data, state = cifar(folder), torch.random.get_rng_state()
    first, again = (trained_vgg(TINY, data, tmp_path) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert bool((first.model(data.train[0]).argmax(1) == data.train[1]).all())
    assert isinstance(first.model.get_submodule(TINY.layer), torch.nn.ReLU)
    assert (first.reused, again.reused) == (False, True)
    assert again.seconds == first.seconds
    states = [trained.model.state_dict() for trained in (first, again)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not trained_vgg(replace(TINY, seed=1), data, tmp_path).reused
    other = replace(data, train=(data.train[0] + 1, data.train[1]))
    assert not trained_vgg(replace(TINY, seed=1), other, tmp_path).reused
    (tmp_path / VGG).write_bytes(b"damaged")
    assert not trained_vgg(TINY, data, tmp_path).reused
    assert trained_vgg(TINY, data, tmp_path).reused


@pytest.fixture
def small(monkeypatch, cases):
    """The command with a small recipe and finished analyses; the models that it would analyse."""
    given = []

    def studied(network, *_):
        given.append(network.model)
        return cases[network.name == "VGG"]

    monkeypatch.setattr(sure, "Recipe", lambda: TINY)
    monkeypatch.setattr(sure, "studied", studied)
    return given


def test_a_second_call_does_not_train_again(small, folder, tmp_path, capsys):
    words, pages = ["--data", str(folder), "--work", str(tmp_path / "work"), "--out"], []
    for name in ("first", "second"):
        assert sure.main([*words, str(tmp_path / name)]) == 0
        said = capsys.readouterr()
        pages.append((tmp_path / name / sure.PAGE).read_text(encoding="utf-8"))
        assert said.out == pages[-1]
        assert [path.name for path in (tmp_path / name).iterdir()] == [sure.PAGE]
        assert ("epoch 20 of 20" in said.err) == (name == "first")
    assert "The VGG was trained in this call, in" in pages[0]
    assert "The VGG was trained in an earlier call, whose weights were read, in" in pages[1]
    first, second = (text.split("## Time and memory")[0] for text in pages)
    assert first == second
    assert str(tmp_path.parent) not in pages[0]
    assert "20 floors, 20 new splits, 100 weightings (fixed_ranking), level 0.9, controls" in first
    weights = [model.state_dict() for model in small]
    assert len(weights) == 4
    for one, other in (weights[::2], weights[1::2]):
        assert all(torch.equal(one[name], other[name]) for name in one)


def fails(words, capsys):
    """The one line that says what is wrong."""
    assert sure.main([str(word) for word in words]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = (text for text in said.err.splitlines() if not text.startswith("["))
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize("lacking", [IMAGES, RESNET])
def test_a_folder_without_the_files_is_refused(lacking, folder, tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    for name in {IMAGES, RESNET} - {lacking}:
        (data / name).write_bytes((folder / name).read_bytes())
    line = fails(["--data", data, "--work", tmp_path / "w", "--out", tmp_path / "out"], capsys)
    assert f"there is no file {data / lacking}; --data has to name a folder that holds" in line
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


OTHER = {f"{split}_images": np.zeros((2, 3, 4, 4)) for split in ("train", "test")}
OTHER |= {"train_labels": np.zeros(2, int), "classes": np.array(NAMES)}


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda path: path.write_bytes(b"PK\x03\x04 nothing more"), "it has to hold train_images"),
        (lambda path: np.savez(path, classes=np.array(NAMES)), "train_images is not a file in"),
        (lambda path: np.savez(path, **OTHER), "train_images are no uint8 of (images, height"),
    ],
)
def test_other_images_are_refused(spoil, why, folder, tmp_path, capsys):
    (tmp_path / RESNET).write_bytes((folder / RESNET).read_bytes())
    spoil(tmp_path / IMAGES)
    line = fails(["--data", tmp_path, "--work", tmp_path / "work"], capsys)
    assert f"{tmp_path / IMAGES} cannot be read: " in line
    assert why in line


def test_a_place_where_nothing_can_be_written_is_noticed_before_the_training(
    folder, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(sure, "trained_vgg", lambda *_: pytest.fail("trained"))
    (tmp_path / "file").touch()
    for option, other in (("--out", "--work"), ("--work", "--out")):
        words = ["--data", folder, option, tmp_path / "file", other, tmp_path / "other"]
        assert "cannot make folder" in fails(words, capsys)


def test_a_call_that_fails_leaves_the_old_page(small, folder, tmp_path, capsys, monkeypatch):
    def fail(*_):
        raise ur.InputError("the second\nnetwork")

    (tmp_path / sure.PAGE).write_text("old", encoding="utf-8")
    monkeypatch.setattr(sure, "document", fail)
    words = ["--data", folder, "--work", tmp_path / "work", "--out", tmp_path]
    assert fails(words, capsys) == "error: the second network"
    assert (tmp_path / sure.PAGE).read_text(encoding="utf-8") == "old"


@pytest.mark.slow
def test_both_networks_are_analysed(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sure, "Recipe", lambda: TINY)
    assert sure.main(["--data", str(folder), "--work", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert (
        row(text, "layer, units, plan")
        == ["layer3, 64, additive"] * 2 + [f"{TINY.layer}, 8, additive"] * 2
    )


@pytest.mark.slow
def test_the_real_weights_are_as_accurate_as_published(shared_data):
    if not all((shared_data / name).is_file() for name in (IMAGES, RESNET)):
        pytest.skip("CIFAR-10 or the ResNet-20 is not in the shared data")
    (images, labels), model = cifar(shared_data).test, resnet20(shared_data)
    hits = torch.cat([model(part).argmax(1) for part in images.split(500)]) == labels
    assert hits.double().mean() == pytest.approx(0.917, abs=0.015)
