"""What others install: the files of the wheel, and types that a checker knows."""

import json
import os
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
from hatchling.builders.wheel import WheelBuilder

import unitroles as ur

ROOT = Path(__file__).resolve().parents[2]
BESIDE = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    (path,) = WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])
    with ZipFile(path) as opened:
        yield opened


def test_the_wheel_holds_the_library_and_nothing_else(wheel):
    info = f"unitroles-{ur.__version__}.dist-info/"
    source = ROOT / "src"
    files = [p for p in (source / "unitroles").rglob("*") if p.suffix in {".py", ".toml", ".typed"}]
    assert "unitroles/py.typed" in wheel.namelist()
    assert "unitroles/zoo/digits.toml" in wheel.namelist()
    expected = {str(path.relative_to(source).as_posix()) for path in files}
    assert set(wheel.namelist()) == expected | {info + name for name in BESIDE}


def test_the_wheel_says_what_it_needs_and_how_it_is_called(wheel):
    info = f"unitroles-{ur.__version__}.dist-info/"
    said = wheel.read(info + "METADATA").decode()
    assert "Requires-Python: >=3.10" in said
    assert "Requires-Dist: torch" in said
    assert "Provides-Extra: vision" in said
    assert "Description-Content-Type: text/markdown" in said
    assert "unitroles = unitroles.cli.app:main" in wheel.read(info + "entry_points.txt").decode()


@pytest.mark.slow
def test_a_type_checker_knows_the_public_names():
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson"]
    run = subprocess.run(
        [*command, "--ignoreexternal", "--verifytypes", "unitroles"],
        capture_output=True,
        text=True,
        cwd=ROOT / "tests",
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    symbols = json.loads(run.stdout)["typeCompleteness"]["symbols"]
    public = {f"{getattr(ur, name).__module__}.{name}" for name in ur.__all__}
    known = {one["name"]: one["isTypeKnown"] for one in symbols}
    assert public <= set(known)
    mine = {name for name in known if name in public or name.rpartition(".")[0] in public}
    assert len(mine) > 60
    assert {name for name in mine if not known[name]} == set()
