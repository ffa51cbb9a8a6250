"""The main job on tiny networks: tables against the taxonomies, resumed runs, honest patterns."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from torch import nn

import unitroles as ur
from unitroles.paper import evidence, evidence_text, numbers, reproduce, tables, text
from unitroles.paper.folder import claim
from unitroles.zoo.images import DATA_SETS
from unitroles.zoo.settings import ModelSettings, ladder
from unitroles.zoo.training import Trained

ROLES = list(numbers.ROLES)
ASKED, FEW = reproduce.EVIDENCE, ur.Evidence(floors=20, resplits=4)


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
    """Settings and evidence of the main job, small enough for a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reproduce, "ladder", lambda name: shrink(ladder(name).quick()))
        patch.setattr(reproduce, "EVIDENCE", FEW)
        yield


@pytest.fixture(scope="module")
def run(small, tmp_path_factory):
    out, lines = tmp_path_factory.mktemp("capacity"), []
    written = reproduce.reproduce("digits", out, write=lines.append)
    return out, written, lines


def test_a_further_data_set_is_a_function_and_its_name(small, tmp_path, monkeypatch):
    def stripes():
        draw = np.random.default_rng(0)
        labels = np.arange(330) % 3
        images = draw.random((330, 2, 12, 12))
        images[np.arange(330), :, 4 * labels] += 1
        return images / 2, labels, ("top", "middle", "bottom")

    monkeypatch.setitem(DATA_SETS, "stripes", stripes)
    lines = []
    written = reproduce.reproduce("stripes", tmp_path, write=lines.append)
    assert set(written["regret"]["label"]) == {"top", "middle", "bottom"}
    assert "stripes, capacity ladder" in lines[0]
    assert json.loads((tmp_path / "run.json").read_text())["data_set"] == "stripes"
    with pytest.raises(ur.InputError, match="holds a run with other settings"):
        reproduce.reproduce("digits", tmp_path)


@pytest.fixture(scope="module")
def quick_noise(small, tmp_path_factory):
    out, lines = tmp_path_factory.mktemp("noise"), []
    written = reproduce.reproduce(
        "digits", out, seeds=(5,), quick=True, ladder="noise", write=lines.append
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
    found = numbers.RELATION["pearson"].round(3).to_dict()
    assert found == {
        "core": -0.107,
        "overfitted": 0.975,
        "generalizing": -0.913,
        "confusing": -0.992,
        "active_on_train": 0.993,
    }


def family(overfitted: list[float], **changes) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Relations and role table of five made-up models of one seed, ten classes each."""
    values = {
        "core": [0.2, 0.3, 0.1, 0.3, 0.25],
        "overfitted": overfitted,
        "generalizing": 0.0,
        "confusing": [0.8, 0.7, 0.6, 0.5, 0.4],
    }
    frame = pd.DataFrame(
        {
            "order": "per_split",
            "samples": "given labels",
            "seed": 1,
            "model": list("ABCDE"),
            **values,
            "gap": [0.0, 0.1, 0.2, 0.3, 0.4],
            "gap_by": "given labels",
            "pixel_noise": 0.6,
            "train_samples_per_class": ["30", "30", "30", "25-31", "30"],
            "test_samples_per_class": "20",
        }
    )
    left = {f"{role}_unflagged": frame[role] for role in ROLES}
    roles = frame.assign(**left, flagged_classes=0, class_count=10).assign(**changes)
    return tables.relations(frame.assign(rule=tables.DEFAULT_RULE), roles), roles


RISING, FALLING = [0.0, 0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1, 0.0]


def test_patterns_say_what_appears_and_what_does_not():
    rising = "\n".join(tables.patterns(*family(RISING)))
    assert "overfitted units rise with the gap (paper +0.98): appears" in rising
    assert "confusing units fall with the gap (paper -0.99): appears" in rising
    falling = "\n".join(tables.patterns(*family(FALLING)))
    assert "overfitted units rise with the gap (paper +0.98): does NOT appear" in falling
    assert "generalizing units fall with the gap (paper -0.91): does NOT appear" in rising
    assert rising.count("0 of 50 classes flagged") == 5
    assert "without" not in rising


def test_core_units_have_a_range_and_no_verdict():
    relations, roles = family(RISING)
    (line,) = (line for line in tables.patterns(relations, roles) if "core" in line)
    rho = relations.set_index(["classes", "role"]).loc[("all", "core"), "spearman"]
    range_ = "core units (paper 16-29 %): ours 10-30 %"
    assert f"{range_} (Spearman by seed {rho:+.2f}); 0 of 50" in line
    assert "appear" not in line
    second = roles.assign(seed=2, core=roles["core"] + 0.2)
    (line,) = tables.patterns(relations[relations["role"] == "core"], pd.concat([roles, second]))
    assert "ours 20-40 %" in line  # the range of the means over the seeds


def test_patterns_are_said_without_the_flagged_classes_too():
    relations, roles = family(
        RISING,
        flagged_classes=[0, 0, 0, 3, 5],
        overfitted_unflagged=FALLING,
        core_unflagged=[0.4, 0.5, 0.6, 0.5, 0.4],
    )
    found = relations.set_index(["role", "classes"])["spearman"]
    assert found["overfitted", "all"] == pytest.approx(1)
    assert found["overfitted", "unflagged"] == pytest.approx(-1)
    text = "\n".join(tables.patterns(relations, roles))
    assert text.count("8 of 50 classes flagged, without them") == 5
    assert (
        "overfitted units rise with the gap (paper +0.98): appears (Spearman by seed +1.00); "
        "8 of 50 classes flagged, without them: does NOT appear (-1.00)"
    ) in text
    assert "ours 10-30 %" in text
    assert "without them 40-60 %" in text


def test_a_model_without_an_unflagged_class_leaves_the_relation_undefined():
    gone = {f"{role}_unflagged": [0.1, 0.2, 0.3, 0.4, np.nan] for role in ROLES}
    relations, roles = family(RISING, flagged_classes=[0, 0, 0, 0, 10], **gone)
    left = relations[relations["classes"] == "unflagged"]
    assert len(left) == 5
    assert left[["pearson", "spearman"]].isna().all(axis=None)
    text = "\n".join(tables.patterns(relations, roles))
    assert text.count("10 of 50 classes flagged, without them undefined") == 5
    assert "appears (Spearman by seed +1.00)" in text


def test_relations_say_over_which_samples_they_are():
    relations, _ = family(RISING)
    assert set(relations["train_samples_per_class"]) == {"25-31"}
    assert set(relations["gap_by"]) == {"given labels"}


def test_an_undefined_seed_makes_the_mean_undefined():
    relations, roles = family(RISING)
    second = relations.assign(seed=2)
    second.loc[second["role"] == "overfitted", "spearman"] = np.nan
    lines: list[str] = []
    text._relations(pd.concat([relations, second]), roles, lines.append)
    for table in (lines[1], lines[3]):
        assert "NaN" in table
    row = next(line for line in lines[1].splitlines() if "overfitted" in line).split()
    assert row[-4:] == ["1.000", "NaN", "0.975", "NaN"]
    row = next(line for line in lines[1].splitlines() if "confusing" in line).split()
    assert row[-4:] == ["-1.000", "-1.000", "-0.992", "-1.000"]
    line = next(line for line in lines if "overfitted units rise" in line)
    assert "does NOT appear (Spearman by seed +1.00 undefined)" in line


def test_the_relations_without_flagged_classes_are_those_of_the_taxonomies(run):
    out, written, _ = run
    rows = written["relations"]
    assert set(rows["rule"][rows["classes"] == "unflagged"]) == {tables.DEFAULT_RULE}
    left = rows[(rows["classes"] == "unflagged") & (rows["order"] == "per_split")]
    for seed in (1, 2):
        members = {model: ur.load(out / f"seed{seed}" / f"{model}.nc") for model in "ACE"}
        means = pd.DataFrame({m: t.summary(flagged=False)["mean"] for m, t in members.items()}).T
        gap = pd.Series({m: t.gap for m, t in members.items()})
        expected = numbers.relation(means[ROLES], gap)["pearson"]
        found = left[left["seed"] == seed].set_index("role")["pearson"][ROLES]
        np.testing.assert_allclose(found, expected, atol=1e-9)
    assert set(written["table2"]["class_count"]) == {10}


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


def test_tables_of_two_calls_are_never_called_finished(one_seed, monkeypatch):
    def finished():
        return json.loads((one_seed / "run.json").read_text())["finished"]

    def dies(*given):
        raise KeyboardInterrupt

    assert finished()
    for name in ("train", "write_figures"):  # nothing is mixed before the first table is written
        with monkeypatch.context() as patch:
            patch.setattr(reproduce, name, dies)
            with pytest.raises(KeyboardInterrupt):
                reproduce.reproduce("digits", one_seed, seeds=(1,))
        assert finished() == (name == "train")
    assert pd.read_csv(one_seed / "table2.csv")["seed"].unique().tolist() == [1]
    reproduce.reproduce("digits", one_seed, seeds=(1,))
    assert finished()


@pytest.mark.parametrize(
    "seeds", [(-1,), (1, 1), (True,), (), (1, -2, 3)], ids=lambda seeds: f"{seeds}"
)
def test_unusable_seeds_are_refused_before_anything_is_written(small, tmp_path, seeds):
    with pytest.raises(ur.InputError, match="seeds must be different whole numbers from 0 on, got"):
        reproduce.reproduce("digits", tmp_path / "out", seeds=seeds)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("seed", [1.0, "1", None])
def test_seeds_that_are_no_whole_numbers_are_refused(seed):
    with pytest.raises(ur.InputError, match=f"whole numbers from 0 on, got 3, {seed}$"):
        reproduce._checked((3, seed))


@pytest.fixture
def one_seed(run, small, tmp_path):
    """A copy of the finished folder, to be called with seed 1 only."""
    shutil.copytree(run[0], tmp_path / "copy")
    return tmp_path / "copy"


def analyses(monkeypatch) -> list[str]:
    """The orders of all analyses that are done from here on."""
    orders, analyze = [], ur.analyze

    def counted(*args, **options):
        orders.append(options["method"].order)
        return analyze(*args, **options)

    monkeypatch.setattr(ur, "analyze", counted)
    return orders


def test_a_damaged_taxonomy_is_computed_again(run, one_seed, monkeypatch):
    file = one_seed / "seed1" / "C-order-train.nc"
    file.write_bytes(file.read_bytes()[:1000])
    orders = analyses(monkeypatch)
    again = reproduce.reproduce("digits", one_seed, seeds=(1,))
    assert orders == ["train"]
    whole = ur.load(run[0] / "seed1" / "C-order-train.nc")
    assert ur.load(file).proportions().equals(whole.proportions())
    assert set(again["table2"]["seed"]) == {1}  # the other seed stays, but is not shown
    assert (one_seed / "seed2" / "A.nc").exists()


def test_taxonomies_of_another_version_are_computed_again(one_seed, monkeypatch):
    orders = analyses(monkeypatch)
    reproduce.reproduce("digits", one_seed, seeds=(1,))
    assert orders == []
    monkeypatch.setattr(ur, "__version__", "99")
    reproduce.reproduce("digits", one_seed, seeds=(1,))
    assert orders == ["per_split", "train"] * 3


@pytest.mark.parametrize("file", ["table1.csv", "figure1.png", "run.json"])
def test_a_full_disk_is_told_and_leaves_no_part(one_seed, monkeypatch, file):
    before = {path.name: path.read_bytes() for path in one_seed.glob("*.*")}
    real = os.replace

    def full(part, target):
        if Path(target).name == file:
            raise OSError(28, "No space left on device")
        real(part, target)

    monkeypatch.setattr("unitroles.files.os.replace", full)
    with pytest.raises(
        ur.InputError, match=f"cannot write .*{file}: No space left .*free some space"
    ):
        reproduce.reproduce("digits", one_seed, seeds=(1,))
    assert {path.name for path in one_seed.iterdir()} == {*before, "seed1", "seed2"}
    assert (one_seed / file).read_bytes() == before[file]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"key": 3}', b"\xff", b"[" * 9999])
def test_a_run_that_cannot_be_read_is_as_good_as_none(tmp_path, content):
    job = reproduce._job("digits", tmp_path, None, True, "capacity", False)
    (tmp_path / "run.json").write_bytes(content)
    claim(job)
    assert json.loads((tmp_path / "run.json").read_text())["finished"] is False
    claim(job)
    other = reproduce._job("digits", tmp_path, None, False, "capacity", False)
    with pytest.raises(ur.InputError, match="other settings"):
        claim(other)


def test_a_folder_of_another_run_is_refused(run, small):
    out, _, _ = run
    with pytest.raises(ur.InputError, match="other settings.*--out, or delete this one"):
        reproduce.reproduce("digits", out, quick=True)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ur.InputError, match="cannot make folder .*choose another place"):
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
    out, written, lines = quick_noise
    table = written["table2"]
    table = table[table["order"] == "per_split"].set_index(["samples", "model"])
    given, correct = table.loc["given labels"], table.loc["correct labels"]
    assert list(given.index) == ["0.0", "0.4", "1.0"]
    # All is correct in the first model, and nothing in the last.
    assert list(correct.index) == ["0.0", "0.4"]
    pd.testing.assert_series_equal(correct.loc["0.0"], given.loc["0.0"])
    assert not list(out.glob("seed5/0.0*-correct.nc"))  # analysed once
    assert len(list(out.glob("seed5/0.4*-correct.nc"))) == 2
    assert (correct.loc["0.4", ROLES] != given.loc["0.4", ROLES]).any()
    lows = correct.loc["0.4", "train_samples_per_class"].split("-")
    assert int(lows[0]) < int(given.loc["0.4", "train_samples_per_class"].split("-")[0])
    assert set(table["gap_by"]) == {"given labels"}
    text = "\n".join(lines)
    assert "No row for label noise 1.0: there not every class has a correctly labelled" in text
    assert "still that of all training samples by their given labels" in text


def test_the_capacity_ladder_says_nothing_of_correct_labels(run):
    _, written, lines = run
    assert set(written["table2"]["samples"]) == {"given labels"}
    assert "correct labels" not in "\n".join(lines)


def test_the_settings_hash_is_stored(run):
    out, _, _ = run
    stored = json.loads((out / "run.json").read_text())
    assert stored["settings_sha256"] == ladder("capacity").sha256
    assert stored["seeds"] == [1, 2]
    assert len(stored["models"]) == 6
    assert set(stored["versions"]) >= {"torch", "unitroles", "accelerate"}


# --- evidence

KEYS = ["samples", "seed", "model"]
ONE_PROCESS = pytest.mark.xdist_group("reproduce with evidence")


def no_figures(*given):
    """Evidence has none of its own, and they take the time."""


@pytest.fixture(scope="module")
def surely(run, small, tmp_path_factory):
    """The finished folder, called again with evidence: what was there, and what was analysed."""
    out = tmp_path_factory.mktemp("evidence") / "copy"
    shutil.copytree(run[0], out)
    before = {path: path.stat().st_mtime_ns for path in out.glob("seed*/*")}
    asked, lines, analyze = [], [], ur.analyze

    def counted(*args, **options):
        asked.append((options["method"].order, options["evidence"]))
        return analyze(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ur, "analyze", counted)
        patch.setattr(reproduce, "_figures", no_figures)
        written = reproduce.reproduce("digits", out, write=lines.append, evidence=True)
    return out, written, "\n".join(lines), before, asked


@ONE_PROCESS
def test_evidence_asked_for_later_analyses_again_and_trains_nothing(surely):
    out, _, _, before, asked = surely
    assert ur.Evidence() == ASKED
    assert asked == [("per_split", FEW)] * 6
    changed = {path for path in before if path.stat().st_mtime_ns != before[path]}
    assert changed == {out / f"seed{seed}" / f"{model}.nc" for seed in (1, 2) for model in "ACE"}
    assert json.loads((out / "run.json").read_text())["evidence"] == asdict(FEW)


@ONE_PROCESS
def test_evidence_adds_tables_and_changes_no_other(run, surely):
    (plain, before, _), (out, written, _, _, _) = run, surely
    assert set(written) == {*before, *evidence.EVIDENCE_TABLES}
    added = {f"{name}.csv" for name in evidence.EVIDENCE_TABLES}
    assert {path.name for path in out.iterdir()} == {*added, *(p.name for p in plain.iterdir())}
    for name in ("table1", "table2", "table3", "regret"):
        pd.testing.assert_frame_equal(written[name], before[name])
    rules = set(written["sensitivity"]["rule"]) - set(before["sensitivity"]["rule"])
    assert rules == {tables.ONE_ERROR}
    for name in evidence.EVIDENCE_TABLES:
        frame = pd.read_csv(out / f"{name}.csv")
        assert len(frame) == len(written[name]) > 0
        assert frame["run"].eq("full").all()


@ONE_PROCESS
def test_a_second_run_with_evidence_is_the_same(surely, small, monkeypatch):
    out, written, _, _, _ = surely
    monkeypatch.setattr(ur, "analyze", None)
    monkeypatch.setattr(reproduce, "_figures", no_figures)
    again = reproduce.reproduce("digits", out, evidence=True)
    assert set(again) == set(written)
    for name, frame in written.items():
        pd.testing.assert_frame_equal(again[name], frame)


@ONE_PROCESS
def test_without_evidence_its_tables_go_and_its_taxonomies_stay(
    run, surely, small, tmp_path, monkeypatch
):
    out = tmp_path / "copy"
    shutil.copytree(surely[0], out)
    before = {path: path.read_bytes() for path in out.glob("seed*/*")}
    monkeypatch.setattr(ur, "analyze", None)
    monkeypatch.setattr(reproduce, "_figures", no_figures)
    lines: list[str] = []
    written = reproduce.reproduce("digits", out, write=lines.append)
    assert {path: path.read_bytes() for path in out.glob("seed*/*")} == before
    assert {path.name for path in out.iterdir()} == {path.name for path in run[0].iterdir()}
    assert lines[:-1] == run[2][:-1]  # the last line has the seconds
    for name, frame in run[1].items():
        pd.testing.assert_frame_equal(written[name], frame)


def saved(out, samples, seed, model):
    assert samples == "given labels"
    return ur.load(out / f"seed{seed}" / f"{model}.nc")


@ONE_PROCESS
def test_the_floors_are_those_of_the_saved_taxonomies(surely):
    out, written, _, _, _ = surely
    groups = written["floors"].groupby(KEYS)
    assert len(groups) == 6
    for key, rows in groups:
        taxonomy, found = saved(out, *key), rows.set_index("role")
        for name in (
            "observed",
            "noise_floor",
            "above_floor",
            "train_low",
            "train_high",
            "test_low",
        ):
            np.testing.assert_allclose(found[name], taxonomy.floors()[name])
        for name in ("observed_std_over_labels", "noise_floor_std_over_units"):
            np.testing.assert_allclose(found[name], taxonomy.floors()[name])
        for name in ("low", "high"):
            np.testing.assert_allclose(found[name], taxonomy.intervals()[name])
        np.testing.assert_allclose(found["mean"], taxonomy.proportions().mean())
        assert set(found["noise_floor_samples_per_class"]) == {"7"}  # half of 15
        assert set(found["noise_floor_classes"]) == {10}


@ONE_PROCESS
def test_the_other_tables_of_evidence_are_those_of_the_saved_taxonomies(surely):
    out, written, _, _, _ = surely
    for name, index in (("signs", "sign"), ("exchangeability", "active_on_one_split")):
        groups = written[name].groupby(KEYS)
        assert len(groups) == 6
        for key, rows in groups:
            expected = getattr(saved(out, *key), name)()
            found = rows.set_index(index)[expected.columns].rename_axis(expected.index.name)
            pd.testing.assert_frame_equal(found, expected, check_names=False)
    assert written["exchangeability"]["smallest_p"].eq(1 / 5).all()
    for row in written["agreement"].to_dict("records"):
        taxonomy = saved(out, *(row[name] for name in KEYS))
        expected = taxonomy.agreement()
        for name in ("lift", "jaccard", "spearman", "rank_biased"):
            assert row[name] == pytest.approx(expected[name].mean())
        # Of the adjusted p those above .05: as many as by the step-up rule, written out.
        p = np.sort(expected.p.dropna())  # a class whose two orders are one has none
        passed = np.flatnonzero(p <= 0.05 * np.arange(1, len(p) + 1) / len(p))
        assert row["classes_tested"] == len(p)
        assert row["classes_by_chance"] == len(p) - (passed.max() + 1 if len(passed) else 0)


@ONE_PROCESS
def test_criteria_are_the_relation_of_every_seed(surely):
    out, written, _, _, _ = surely
    table = written["criteria"]
    for seed in (1, 2):
        members = {model: ur.load(out / f"seed{seed}" / f"{model}.nc") for model in "ACE"}
        expected = ur.relation(members)
        found = table[table["seed"] == seed].set_index("criterion")[expected.columns]
        pd.testing.assert_frame_equal(found, expected, check_names=False)
    assert table["permutations"].eq(6).all()
    assert table["smallest_p"].eq(1 / 3).all()
    assert (table["pearson_p"].dropna() >= 1 / 3).all()


@ONE_PROCESS
def test_the_text_says_what_the_evidence_asks(surely):
    _, written, text, _, _ = surely
    halves = written["floors"].iloc[0]["noise_floor_samples_per_class"]
    for part in (
        "never of another training",
        f"Table 2 beside its noise floor; halves of {halves} samples per class",
        "Table 3 beside its noise floor",
        "within is no proof of none",
        "read the size of the difference, not p",
        "p by seed, never below 0.200",
        "given labels: 3 models, all 6 re-pairings, p never below 0.333",
        "mean of the others",
        "measured coverage",
        "one standard error",
    ):
        assert part in text
    assert "No noise floor" not in text
    assert "mixture" not in text


@ONE_PROCESS
def test_the_shown_numbers_are_means_over_the_seeds(surely):
    _, written, text, _, _ = surely
    rows = written["floors"].query("model == 'A' and role == 'core'")
    line = next(
        line for line in text.split("Table 2 beside")[1].splitlines() if line.startswith("A  ")
    )
    mean = 100 * rows.mean(numeric_only=True)
    low = np.where(
        rows.train_noise_floor >= rows.test_noise_floor, rows.train_low, rows.test_low
    ).mean()
    start = f"A core {mean['mean']:.1f} [{mean['low']:.1f}, {mean['high']:.1f}] "
    floor = f"{mean['observed']:.1f} {mean['noise_floor']:.1f} [{100 * low:.1f}, "
    assert " ".join(line.split()).startswith(start + floor)


@ONE_PROCESS
def test_classes_too_small_for_halves_are_left_out_and_said(tmp_path, monkeypatch):
    """One correctly labelled sample of each class; for the first model of three classes two."""
    parts = reproduce._parts

    def two(name):
        settings = shrink(ladder(name).quick())
        recipes = {rate: replace(ladder(name).recipes[rate], epochs=2) for rate in ("0.2", "0.4")}
        return replace(settings, recipes=recipes)

    def few(data):
        found, doubled = parts(data), 3 if data.label_noise < 0.3 else 0
        right = found[tables.CORRECT]
        of_class = [right[data.train_labels[right] == label] for label in range(10)]
        kept = [rows[: 2 if c < doubled else 1] for c, rows in enumerate(of_class)]
        return found | {tables.CORRECT: np.concatenate(kept)}

    patches = {"ladder": two, "EVIDENCE": FEW, "_parts": few, "_figures": no_figures}
    for name, patch in patches.items():
        monkeypatch.setattr(reproduce, name, patch)
    lines: list[str] = []
    written = reproduce.reproduce(
        "digits", tmp_path, (5,), quick=True, ladder="noise", write=lines.append, evidence=True
    )
    text = "\n".join(lines)
    left_out = "No noise floor and no signs for model 0.4, correct labels, seed 5: there no class"
    assert left_out in text
    assert "in both splits: model 0.2, correct labels, seed 5 (3 of 10); proportions at" in text
    assert "a mixture, which no class of the test set is" in text
    for samples in ("given", "correct"):
        assert f"the models for {samples} labels, seed 5: fewer than three models" in text
    assert pd.read_csv(tmp_path / "criteria.csv").empty
    chosen = {
        name: written[name].query("samples == 'correct labels'").groupby("model").size().to_dict()
        for name in evidence.EVIDENCE_TABLES
    }
    assert chosen == {
        "floors": {"0.2": 4},
        "signs": {"0.2": 7},
        "exchangeability": {"0.2": 3, "0.4": 3},
        "agreement": {"0.2": 1, "0.4": 1},
        "criteria": {},
    }
    floors = written["floors"].query("samples == 'correct labels'")
    assert set(floors["noise_floor_samples_per_class"]) == {"1"}
    assert floors[["observed", "noise_floor", "above_floor"]].notna().all(axis=None)


@ONE_PROCESS
def test_models_of_one_gap_have_no_relation(surely):
    out, written, _, _, _ = surely
    taxonomy = ur.load(out / "seed1" / "A.nc")
    recipe = ladder("capacity").recipes["A"]

    def member(model, gap):
        trained = Trained(nn.Identity(), 1.0, 1.0 - gap, None, 1, 0.0, True)
        return tables.Member(1, model, recipe, trained, {("per_split", tables.GIVEN): taxonomy})

    assert evidence.criteria([member(model, 0.1) for model in "ABC"]).empty
    assert evidence.criteria([member("A", 0.1), member("B", 0.2)]).empty
    found = evidence.criteria([member("A", 0.1), member("B", 0.2), member("C", 0.3)])
    assert len(found) == len(written["criteria"]) // 2
    lines: list[str] = []
    evidence_text._criteria(pd.DataFrame(columns=KEYS), written["exchangeability"], lines.append)
    assert len(lines) == 1
    assert "for given labels, seed 1, 2: fewer than three models, or one gap for all" in lines[0]


@ONE_PROCESS
def test_intervals_that_do_not_hold_are_named(surely):
    _, written, _, _, _ = surely
    table = written["floors"].query("seed == 1").copy()
    table["coverage_by_class"] = table["coverage_by_class"].clip(lower=0.9)
    table[["low", "high"]] = table[["mean", "mean"]].to_numpy()
    assert len(evidence_text._coverage(table).splitlines()) == 1
    place = table.index[(table["model"] == "C") & (table["role"] == "overfitted")]
    table.loc[place, "coverage_by_class"] = 0.6
    table.loc[place, "low"] = table.loc[place, "mean"] + 0.1
    first, narrow, outside = evidence_text._coverage(table).splitlines()
    assert "overfitted 0.60 to" in first
    assert narrow == "  below 0.85, too narrow: C overfitted"
    assert outside.endswith("not to be trusted: C overfitted")
