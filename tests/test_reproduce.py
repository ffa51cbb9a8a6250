"""The main job on tiny networks: tables against the taxonomies, resumed runs, honest patterns."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import unitroles as ur
from unitroles.zoo import paper, reproduce, show, tables
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
    show._relations(pd.concat([relations, second]), roles, lines.append)
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
        expected = paper.relation(means[ROLES], gap)["pearson"]
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


@pytest.mark.parametrize(
    ("target", "file"),
    [
        ("pandas.DataFrame.to_csv", "table1.csv"),
        ("matplotlib.figure.Figure.savefig", "figure1.png"),
        ("pathlib.Path.write_text", "run.json"),
    ],
)
def test_a_full_disk_is_told_and_leaves_no_part(one_seed, monkeypatch, target, file):
    before = {path.name: path.read_bytes() for path in one_seed.glob("*.*")}

    def full(self, *args, **options):
        path = self if target.startswith("pathlib") else args[0]
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(target, full)
    with pytest.raises(ur.InputError, match=f"cannot write to .*{file}: No space left .*--out"):
        reproduce.reproduce("digits", one_seed, seeds=(1,))
    assert {path.name for path in one_seed.iterdir()} == {*before, "seed1", "seed2"}
    assert (one_seed / file).read_bytes() == before[file]


def test_a_folder_of_another_run_is_refused(run, small):
    out, _, _ = run
    with pytest.raises(ur.InputError, match="other settings.*--out, or delete this one"):
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
