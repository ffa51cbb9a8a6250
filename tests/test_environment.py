"""What PyTorch leaves in environment and temporary folder is taken back, and nothing else."""

import gc
import os
import weakref
from pathlib import Path

import pytest

from unitroles.environment import collector_resting, no_compiler_cache

NAME = "TORCHINDUCTOR_CACHE_DIR"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What PyTorch would make; the environment does not name it yet."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv(NAME, "")
    monkeypatch.delenv(NAME)
    return tmp_path / "torchinductor_me"


def make(folder: Path) -> None:
    folder.mkdir()
    os.environ[NAME] = str(folder)


def test_the_folder_and_its_name_are_taken_back(folder: Path) -> None:
    with no_compiler_cache():
        make(folder)
    assert NAME not in os.environ
    assert not folder.exists()
    with pytest.raises(FileExistsError), no_compiler_cache():
        list(map(make, [folder, folder]))
    assert NAME not in os.environ
    assert not folder.exists()


def test_what_was_compiled_stays(folder: Path) -> None:
    with no_compiler_cache():
        make(folder)
        (folder / "kernel").touch()
    assert NAME not in os.environ
    assert [path.name for path in folder.iterdir()] == ["kernel"]


def test_what_was_named_before_stays(folder: Path) -> None:
    make(folder)
    with no_compiler_cache():
        pass
    assert os.environ[NAME] == str(folder)
    assert folder.is_dir()


def test_what_others_set_meanwhile_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = folder.with_name("own")
    with no_compiler_cache():
        make(own)
        monkeypatch.setenv("UNITROLES_OTHER", "1")
    assert os.environ[NAME] == str(own)
    assert os.environ["UNITROLES_OTHER"] == "1"
    assert own.is_dir()


def test_the_collector_rests_inside_and_runs_again_after() -> None:
    assert gc.isenabled()
    with collector_resting():
        assert not gc.isenabled()
        with collector_resting():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(FileExistsError), collector_resting():
        raise FileExistsError
    assert gc.isenabled()


def test_what_was_made_meanwhile_is_old_and_can_still_be_collected() -> None:
    class Ring:
        def __init__(self) -> None:
            self.own = self

    with collector_resting():
        ring = Ring()
    there = weakref.ref(ring)
    assert any(one is ring for one in gc.get_objects(generation=2))
    assert gc.get_freeze_count() == 0
    del ring
    gc.collect()
    assert there() is None


def test_a_collector_that_rests_already_and_what_somebody_froze_stay_as_they_are() -> None:
    gc.disable()
    try:
        with collector_resting():
            pass
        assert not gc.isenabled()
        gc.enable()
        gc.freeze()
        with collector_resting():
            pass
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
        gc.enable()
