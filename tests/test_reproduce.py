"""The main job on tiny networks: tables against the taxonomies, resumed runs, honest patterns."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import unitroles as ur
from unitroles.zoo import paper, reproduce, tables
from unitroles.zoo.settings import ModelSettings, ladder

ROLES = list(paper.ROLES)


def shrink(settings):
    """Two seeds of three small networks; the noise ladder keeps its extremes and its middle."""
    names = list(settings.recipes)
    kept = {name: settings.recipes[name] for name in (names[0], names[2], names[-1])}
    return replace(
        settings,
        seeds=(1, 2),
        model=ModelSettings(((4,), (8,)), 8),
        recipes={name: replace(recipe, epochs=2) for name, recipe in kept.items()},
    )


@pytest.fixture(scope="module")
def small():
    """Settings of the main job, small enough for a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reproduce, "ladder", lambda name: shrink(ladder(name).quick()))
        yield


@pytest.fixture(scope="module")
def run(small, tmp_path_factory):
    out, lines = tmp_path_factory.mktemp("capacity"), []
    written = reproduce.reproduce("digits", out, say=lines.append)
    return out, written, lines


@pytest.fixture(scope="module")
def quick_noise(small, tmp_path_factory):
    out, lines = tmp_path_factory.mktemp("noise"), []
    written = reproduce.reproduce(
        "digits", out, seeds=(5,), quick=True, ladder="noise", say=lines.append
    )
    return out, written, lines


def test_all_files_are_there(run):
    out, _, _ = run
    names = {path.name for path in out.iterdir()}
    images = {"figure1.png", "figure2.png", "figure3.png", "figure4.png", "shares.png"}
    frames = {"table1.csv", "table2.csv", "table3.csv", "sensitivity.csv", "regret.csv"}
    assert names == images | frames | {"relations.csv", "run.json", "seed1", "seed2"}
    for seed in ("seed1", "seed2"):
        models = {path.name for path in (out / seed).iterdir()}
        assert models == {
            f"{model}{end}" for model in "ACE" for end in (".nc", "-order-train.nc", ".safetensors")
        }


@pytest.mark.parametrize(
    ("table", "method", "axis"), [("table2", "proportions", 0), ("table3", "shares", 0)]
)
def test_role_tables_are_those_of_the_saved_taxonomies(run, table, method, axis):
    out, written, _ = run
    rows = written[table]
    assert len(rows) == 2 * 3 * 2
    for row in rows.to_dict("records"):
        suffix = "" if row["order"] == "per_split" else "-order-train"
        taxonomy = ur.load(out / f"seed{row['seed']}" / f"{row['model']}{suffix}.nc")
        frame = getattr(taxonomy, method)()
        np.testing.assert_allclose([row[r] for r in ROLES], frame.mean(axis=axis), atol=1e-12)
        stds = [row[f"{role}_std"] for role in ROLES]
        np.testing.assert_allclose(stds, frame.std(axis=axis, ddof=0), atol=1e-12)
        assert row["gap"] == pytest.approx(taxonomy.gap)
    assert pd.read_csv(out / f"{table}.csv")["run"].eq("full").all()


def test_tables_hold_the_rows_of_the_paper(run):
    _, written, _ = run
    for name, expected in (("A", 0.161), ("E", 0.177)):
        rows = written["table2"][written["table2"]["model"] == name]
        assert (rows["paper_core"] == expected).all()
    assert (written["table1"].set_index("model").loc["C", "paper_gap"] == 0.275).all()


def test_a_shared_order_leaves_no_class_with_both_overfitted_and_generalizing_units(run):
    out, _, _ = run
    for file in out.glob("seed*/*-order-train.nc"):
        frame = ur.load(file).proportions()
        assert (frame["overfitted"] * frame["generalizing"]).eq(0).all()


def test_relations_of_the_paper_are_those_of_its_own_tables():
    found = paper.RELATION["pearson"].round(3).to_dict()
    assert found == {
        "core": -0.107,
        "overfitted": 0.975,
        "generalizing": -0.913,
        "confusing": -0.992,
        "active_on_train": 0.993,
    }


def relations_of(overfitted: list[float]) -> pd.DataFrame:
    gap = [0.0, 0.1, 0.2, 0.3, 0.4]
    frame = pd.DataFrame(
        {
            "order": "per_split",
            "samples": "given labels",
            "seed": 1,
            "model": list("ABCDE"),
            "rule": tables.DEFAULT_RULE,
            "core": [0.2, 0.3, 0.1, 0.3, 0.2],
            "overfitted": overfitted,
            "generalizing": 0.0,
            "confusing": [0.8, 0.7, 0.6, 0.5, 0.4],
            "gap": gap,
            "pixel_noise": 0.6,
            "train_samples_per_class": "30",
            "test_samples_per_class": "20",
        }
    )
    return tables.relations(frame)


def test_patterns_say_what_appears_and_what_does_not():
    rising = "\n".join(tables.patterns(relations_of([0.0, 0.1, 0.2, 0.3, 0.4])))
    assert "overfitted units rise with the gap (paper +0.98): appears" in rising
    assert "confusing units fall with the gap (paper -0.99): appears" in rising
    assert "core units no clear relation with the gap (paper -0.11): appears" in rising
    falling = "\n".join(tables.patterns(relations_of([0.4, 0.3, 0.2, 0.1, 0.0])))
    assert "overfitted units rise with the gap (paper +0.98): does NOT appear" in falling
    assert "generalizing units fall with the gap (paper -0.91): does NOT appear" in rising


def test_the_text_shows_every_table_and_how_long_it_took(run):
    _, _, lines = run
    text = "\n".join(lines)
    for part in ("Table 1", "Table 2", "Table 3", "Sensitivity", "Regret", "order train"):
        assert part in text
    assert "pixel noise 0." in text
    assert "ddof 0" in text
    assert "s in all" in text


def test_a_second_run_trains_and_analyses_nothing(run, small, monkeypatch):
    out, written, _ = run
    before = {path: path.stat().st_mtime_ns for path in out.glob("seed*/*")}
    monkeypatch.setattr(ur, "analyze", None)
    again = reproduce.reproduce("digits", out)
    assert {path: path.stat().st_mtime_ns for path in out.glob("seed*/*")} == before
    pd.testing.assert_frame_equal(again["table2"], written["table2"])


def test_a_killed_run_goes_on_and_ends_with_the_same_numbers(run, small, tmp_path, monkeypatch):
    _, written, _ = run
    calls, analyze = [], ur.analyze

    def dies(*args, **options):
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return analyze(*args, **options)

    monkeypatch.setattr(ur, "analyze", dies)
    with pytest.raises(KeyboardInterrupt):
        reproduce.reproduce("digits", tmp_path)
    assert json.loads((tmp_path / "run.json").read_text())["finished"] is False
    again = reproduce.reproduce("digits", tmp_path)
    assert len(calls) == 12 + 1  # twelve taxonomies, one of them begun twice
    pd.testing.assert_frame_equal(again["table3"], written["table3"])


def test_a_folder_of_another_run_is_refused(run, small):
    out, _, _ = run
    with pytest.raises(ur.InputError, match="other settings.*--out"):
        reproduce.reproduce("digits", out, quick=True)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ur.InputError, match="cannot write to .*another folder"):
        reproduce.reproduce("digits", tmp_path / "file" / "sub")


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(ur.InputError, match="known: digits"):
        reproduce.reproduce("imagenet", tmp_path)
    with pytest.raises(ur.InputError, match="known: capacity, noise"):
        reproduce.reproduce("digits", tmp_path, ladder="depth")


def test_every_file_of_a_smoke_run_says_quick(quick_noise):
    out, written, lines = quick_noise
    assert "QUICK" in lines[0]
    for name in written:
        assert pd.read_csv(out / f"{name}.csv")["run"].eq("quick").all()
    for image in out.glob("*.png"):
        assert "quick" in Image.open(image).text["Comment"]
    stored = list((out / "seed5").iterdir())
    assert len(stored) > 3
    assert all("quick" in path.name for path in stored)
    assert all(ur.load(p).data.attrs["run"] == "quick" for p in stored if p.suffix == ".nc")
    assert json.loads((out / "run.json").read_text())["run"] == "quick"


def test_the_noise_ladder_is_shown_by_given_and_by_correct_labels(quick_noise):
    _, written, _ = quick_noise
    table = written["table2"]
    table = table[table["order"] == "per_split"].set_index(["samples", "model"])
    given, correct = table.loc["given labels"], table.loc["correct labels"]
    assert len(given) == 3
    # Nothing is corrupted in the first model, and nothing is correct in the last.
    assert list(correct.index) == list(given.index[1:2])
    assert (given["core"].iloc[1] != correct["core"].iloc[0]) or (
        given["confusing"].iloc[1] != correct["confusing"].iloc[0]
    )
    lows = correct["train_samples_per_class"].iloc[0].split("-")
    assert int(lows[0]) < int(given["train_samples_per_class"].iloc[1].split("-")[0])


def test_the_settings_hash_is_stored(run):
    out, _, _ = run
    stored = json.loads((out / "run.json").read_text())
    assert stored["settings_sha256"] == ladder("digits").sha256
    assert stored["seeds"] == [1, 2]
    assert len(stored["models"]) == 6
    assert set(stored["versions"]) >= {"torch", "unitroles", "accelerate"}
