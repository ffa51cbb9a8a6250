"""Options from a file: what it may say, who wins, and that the file of a run repeats it."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import unitroles as ur
from unitroles.cli.app import main
from unitroles.cli.arguments import LASTING
from unitroles.cli.config import config_text, read_config, used_tables

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

NETS = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, 3))
"""
RUN = """
[model]
model = "config_nets:net"
layer = 2

[data]
train = "d.npz::train"
test = "d.npz::test"

[sample]
max-per-class = 9
classes = ["cat", 2]
seed = 4

[method]
tolerance = 1

[compute]
memory_budget = 1000000

[output]
out = "a.nc"
quiet = true
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "config_nets", raising=False)
    (tmp_path / "config_nets.py").write_text(NETS)
    draw, found = np.random.default_rng(0), {}
    for split in ("train", "test"):
        found[f"{split}_images"] = draw.normal(size=(60, 1, 4, 4)).astype(np.float32)
        found[f"{split}_labels"] = np.arange(60) % 3
    np.savez(tmp_path / "d.npz", **found, classes=np.array(["cat", "dog", "owl"]))
    (tmp_path / "run.toml").write_text(RUN)
    return tmp_path


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def used(file: str) -> dict[str, Any]:
    return ur.load(file).provenance["options"]


def same(one: str, two: str) -> bool:
    first, second = ur.load(one), ur.load(two)
    return first.data.drop_attrs().identical(second.data.drop_attrs()) and (
        first.provenance["options"] == second.provenance["options"]
    )


def test_every_option_may_come_from_the_file(here: Path) -> None:
    assert main(["analyze", "--config", "run.toml"]) == 0
    found = used("a.nc")
    assert ur.load("a.nc").layer == "2"
    assert (
        found["sample"] | {"classes": ["cat", 2], "max_per_class": 9, "seed": 4}
        == (found["sample"])
    )
    assert (found["method"]["tolerance"], found["compute"]["memory_budget"]) == (1.0, 1000000)


def test_the_command_line_wins(here: Path) -> None:
    given = ["--seed", "5", "--out", "b.nc", "--classes", "dog,owl"]
    assert main(["analyze", "config_nets:net", "--config", "run.toml", *given]) == 0
    found = used("b.nc")["sample"]
    assert (found["seed"], found["classes"], found["max_per_class"]) == (5, ["dog", "owl"], 9)


def test_the_file_of_a_run_repeats_it(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--score", "random", "--seed", "7", "--max-per-class", "11", "--tolerance", "1e-3"]
    data = ["--train", "d.npz::train", "--test", "d.npz::test", "--layer", "2"]
    assert main(["analyze", "config_nets:net", *data, *given, "--out", "a.nc"]) == 0
    assert capsys.readouterr().out.endswith("wrote a.nc and a.toml\n")
    tables = tomllib.loads((here / "a.toml").read_text())
    assert tables["model"] == {"model": "config_nets:net", "layer": "2"}
    assert tables["sample"] == {
        "max_per_class": 11,
        "equalize": False,
        "missing": "error",
        "seed": 7,
    }
    assert (tables["method"]["score"], tables["method"]["tolerance"]) == ("random", 0.001)
    assert tables["output"] == {"out": "a.nc", "quiet": False}

    assert main(["analyze", "--config", "a.toml", "--out", "b.nc"]) == 0
    assert same("a.nc", "b.nc")
    before = (here / "a.toml").read_bytes()
    assert main(["analyze", "--config", "a.toml"]) == 2
    assert "a.nc exists; give another name, or --force" in capsys.readouterr().err
    assert main(["analyze", "--config", "a.toml", "--force"]) == 0
    assert capsys.readouterr().out.endswith("wrote a.nc\n")
    assert (here / "a.toml").read_bytes() == before
    assert same("a.nc", "b.nc")


def test_a_configuration_is_not_overwritten(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(here)
    assert main(["analyze", "--config", "run.toml", "--out", "run.nc"]) == 2
    assert (
        "run.toml would be overwritten by all options used; give another name for --out, or "
        "--force to overwrite it\n"
    ) in capsys.readouterr().err
    (here / "b.toml").write_text("mine")
    assert main(["analyze", "--config", "run.toml", "--out", "b.nc"]) == 2
    assert "b.toml exists; give another name, or --force" in capsys.readouterr().err
    (here / "b.toml").unlink()
    assert main(["analyze", "--config", "run.toml", "--out", "b.toml"]) == 2
    assert "b.toml is the place of the options used; end --out with .nc" in capsys.readouterr().err
    assert files(here) == before


def test_a_configuration_is_overwritten_on_demand(here: Path) -> None:
    given = ["analyze", "--config", "run.toml", "--out", "run.nc", "--force"]
    assert main([*given, "--seed", "5"]) == 0
    assert used("run.nc")["sample"]["seed"] == 5
    tables = tomllib.loads((here / "run.toml").read_text())
    assert (
        tables["sample"] | {"seed": 5, "max_per_class": 9, "classes": "cat,2"} == (tables["sample"])
    )
    assert tables["output"] == {"out": "run.nc", "quiet": True}
    assert main(["analyze", "--config", "run.toml", "--out", "again.nc"]) == 0
    assert same("run.nc", "again.nc")


def test_a_dry_run_writes_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(here)
    assert main(["analyze", "--config", "run.toml", "--dry-run"]) == 0
    assert "2" in capsys.readouterr().out
    assert files(here) == before


def test_all_options_of_the_command_have_a_table() -> None:
    tables = {setting.table for setting in LASTING.values()}
    assert tables == {"model", "data", "method", "sample", "compute", "evidence", "output"}
    assert LASTING["model"].table == "model"


@pytest.mark.parametrize("text", ['a"b', "a\\b", "a\nb", "ü\t€", "]\x7f\x01 #", ""])
def test_any_text_comes_back(text: str, tmp_path: Path) -> None:
    values = dict.fromkeys(LASTING) | {"train": text, "seed": 3, "scale": False}
    tables = used_tables(LASTING, values)
    (tmp_path / "a.toml").write_text(config_text(tables, "1"), encoding="utf-8")
    found = read_config(tmp_path / "a.toml", LASTING)
    assert found == {"train": text, "seed": 3, "scale": False}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[sampl]\nseed = 1", "unknown table in run.toml 'sampl'; did you mean sample? known: mod"),
        ("[sample]\nsed = 1", "unknown key in [sample] of run.toml 'sed'; did you mean seed? kno"),
        ("[method]\nseed = 1", "run.toml: 'seed' stands in [method]; put it in [sample]"),
        ("seed = 1", "run.toml: 'seed' stands outside of all tables; put it in [sample]"),
        ("colour = 1", "run.toml: 'colour' stands outside of all tables; put it in one of its"),
        (
            "[evidence]\nconfidence = 'full'",
            "run.toml: 'confidence' is now 'bootstrap'; write that",
        ),
        ("[evidence]\nbootstrap = 'given_order'", "bootstrap 'given_order' is now 'fixed_ranking'"),
        ("[sample]\nseed = '1'", "run.toml: [sample] seed must be a whole number, not '1'; change"),
        ("[sample]\nseed = true", "[sample] seed must be a whole number, not True; change it"),
        ("[sample]\nequalize = 1", "[sample] equalize must be true or false, not 1; change it"),
        ("[method]\ntolerance = 'x'", "[method] tolerance must be a number, not 'x'; change it"),
        ("[method]\norder = ['x']", "[method] order must be a text or a number, not ['x']; change"),
        ("[sample]\nclasses = ['a,b']", "[sample] classes must be a text or a number, or a list"),
        ("[sample]\nclasses = []", "classes must be a text or a number, or a list of these"),
        ("[sample]\nclasses = {a = 1}", "classes must be a text or a number, or a list of these"),
        (
            "[sample]\nseed = 1\nseed = 2",
            "the configuration run.toml cannot be read: Cannot overwr",
        ),
        ("[sample", "the configuration run.toml cannot be read: ... write TOML: tables such as"),
        ("[output]\nforce = true", "unknown key in [output] of run.toml 'force'; ... known: out"),
        ("[method]\norder = 'x'", "unknown order 'x'; known: per_split"),
        ("[compute]\nbatch_size = 0", "batch_size must be a whole number of at least 1, not 0"),
        (b"\xff", "the configuration run.toml cannot be read: ... write TOML"),
        (None, "cannot read the configuration run.toml: No such file or directory; give a TOML"),
    ],
)
def test_configurations_that_are_refused(
    content: str | bytes | None, message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is None:
        (here / "run.toml").unlink()
    elif isinstance(content, bytes):
        (here / "run.toml").write_bytes(content)
    else:
        (here / "run.toml").write_text(content)
    before = files(here)
    data = ["--train", "d.npz::train", "--test", "d.npz::test", "--out", "a.nc"]
    assert main(["analyze", "config_nets:net", *data, "--config", "run.toml"]) == 2
    printed, errors = capsys.readouterr()
    assert printed == ""
    (line,) = errors.splitlines()
    for part in message.split(" ... "):
        assert part in line
    assert files(here) == before


@pytest.mark.parametrize(
    ("leave_out", "message"),
    [("model =", "Missing argument 'MODEL'"), ("train =", "Missing option '--train'")],
)
def test_what_must_be_given_somewhere(
    leave_out: str, message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [line for line in RUN.splitlines() if not line.startswith(leave_out)]
    (here / "run.toml").write_text("\n".join(lines))
    assert main(["analyze", "--config", "run.toml"]) == 2
    assert message in capsys.readouterr().err
