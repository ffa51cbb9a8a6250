"""Files written whole or not at all, whatever the disk, the name or a signal does."""

import fcntl
import os

import pytest

from unitroles import InputError, files
from unitroles.files import Scratch, check_new, sealed, unsealed, write_whole


def failing(name, error, monkeypatch):
    """A file system whose n-th call of a function of `os` fails."""

    def fail(*given, **options):
        raise error

    monkeypatch.setattr(f"unitroles.files.os.{name}", fail)


def test_files_are_written_whole(tmp_path):
    write_whole({tmp_path / "a": b"old", tmp_path / "b": "text"})
    write_whole({tmp_path / "a": "new \xe4"})
    assert [(path.name, path.read_text()) for path in sorted(tmp_path.iterdir())] == [
        ("a", "new \xe4"),
        ("b", "text"),
    ]


@pytest.mark.parametrize("step", ["open", "write", "fsync", "replace"])
@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (OSError(28, "No space left on device"), "No space left on device; free some space"),
        (OSError(122, "Disk quota exceeded"), "Disk quota exceeded; free some space"),
        (OSError(5, "Input/output error"), "Input/output error; choose a folder"),
    ],
)
def test_a_failed_write_leaves_what_was_there_and_is_one_sentence(
    tmp_path, monkeypatch, step, error, remedy
):
    (tmp_path / "a").write_text("old")
    with monkeypatch.context() as patch:
        failing(step, error, patch)
        with pytest.raises(InputError, match=f"cannot write .*a: {remedy}"):
            write_whole({tmp_path / "a": "new"})
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "old")]


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch, step):
    with monkeypatch.context() as patch:
        failing(step, KeyboardInterrupt(), patch)
        with pytest.raises(KeyboardInterrupt):
            write_whole({tmp_path / "a": "new"})
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    calls = []
    for name in ("write", "fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(
            f"unitroles.files.os.{name}",
            lambda *given, real=real, name=name: calls.append(name) or real(*given),
        )
    write_whole({tmp_path / "a": "new"})
    assert calls == ["write", "fsync", "replace", "fsync"]  # the last one of the folder


def test_a_write_in_pieces_is_whole(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr("unitroles.files.os.write", lambda to, rest: real(to, rest[:3]))
    write_whole({tmp_path / "a": "0123456789"})
    assert (tmp_path / "a").read_text() == "0123456789"


def test_temporary_files_of_killed_processes_are_taken_away_and_those_in_use_are_not(tmp_path):
    stale, used = (tmp_path / f".{digit * 32}.part" for digit in "0a")
    other, mine = tmp_path / ".part", tmp_path / "x.part"
    for path in (stale, used, other, mine):
        path.write_text("ha")
    (tmp_path / f".{'b' * 32}.part").touch()  # killed before it wrote anything
    with open(used) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        write_whole({tmp_path / "a": "new"})
    assert {*tmp_path.iterdir()} == {used, other, mine, tmp_path / "a"}
    write_whole({tmp_path / "a": "new"})
    assert {*tmp_path.iterdir()} == {other, mine, tmp_path / "a"}


def test_a_file_that_is_taken_away_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    made, real = [], os.open

    def opened(path, flags, mode=0o777):
        number = real(path, flags, mode)
        if flags & os.O_CREAT:
            made.append(path)
            if len(made) == 1:  # another process that writes there takes it for a stale one
                with monkeypatch.context() as patch:
                    patch.setattr("unitroles.files.os.open", real)
                    write_whole({tmp_path / "b": "other"})
                assert not path.exists()
        return number

    monkeypatch.setattr("unitroles.files.os.open", opened)
    write_whole({tmp_path / "a": "new"})
    assert len(made) == 2
    found = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert found == {"a": "new", "b": "other"}


def test_temporary_folders_of_killed_processes_are_taken_away_and_no_others(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    stale, used = tmp_path / f"unitroles-{'0' * 32}", Scratch()
    others = [tmp_path / name for name in ("unitroles-mine", f"unitroles-{'1' * 32}x", "0" * 32)]
    for folder in (stale, *others):
        folder.mkdir()
        (folder / "000000.safetensors").write_text("")
    link, file = tmp_path / f"unitroles-{'2' * 32}", tmp_path / f"unitroles-{'3' * 32}"
    link.symlink_to(others[0])
    file.write_text("")
    Scratch.take_away_stale()
    assert {*tmp_path.iterdir()} == {used.path, *others, link, file}
    assert all(any(folder.iterdir()) for folder in others)
    used.close()
    assert {*tmp_path.iterdir()} == {*others, link, file}


def test_a_temporary_folder_that_is_taken_away_before_it_is_locked_is_made_again(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    held, made = files._held, []

    def taken(number, path):
        made.append(path)
        if len(made) == 1:
            path.rmdir()
        return held(number, path)

    monkeypatch.setattr(files, "_held", taken)
    scratch = Scratch()
    assert [*tmp_path.iterdir()] == [scratch.path] == made[1:]
    scratch.close()
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("name", ["/dev/full", "loop", "n" * 300, "file/inner", "a\0b", "pipe"])
def test_names_that_are_none_of_a_file_are_one_sentence(tmp_path, name):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe")
    before = {*tmp_path.iterdir()}
    with pytest.raises(InputError, match="cannot write .*; choose "):
        write_whole({tmp_path / name: "new"})
    with pytest.raises(InputError, match="choose |give another name"):
        check_new([tmp_path / name], force=True)
    assert {*tmp_path.iterdir()} == before


def test_a_link_to_where_nothing_is_stays_one(tmp_path):
    (tmp_path / "link").symlink_to("real")
    check_new([tmp_path / "link"], force=False)
    write_whole({tmp_path / "link": "new"})
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_what_is_read_is_never_overwritten(tmp_path):
    data, out = tmp_path / "data.npz", tmp_path / "out.nc"
    data.write_text("")
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "1.png").write_text("")
    (tmp_path / "soft").symlink_to(data)
    (tmp_path / "hard").hardlink_to(data)
    given = {"--train": data, "--test": folder, "--weights": tmp_path / "none"}
    for name in ("data.npz", "soft", "hard", "pictures/1.png"):
        with pytest.raises(InputError, match="is read as --t.* and would be overwritten; give an"):
            check_new([tmp_path / name], True, given)
    check_new([out], False, given)


def test_a_seal_tells_of_every_change():
    content = sealed(b"some bytes")
    assert unsealed(content) == (b"some bytes", True)
    assert unsealed(b"some bytes") == (b"some bytes", False)
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1
        try:
            assert not unsealed(bytes(changed))[1]
        except ValueError as error:
            assert "its SHA-256 is another" in str(error)  # noqa: PT017
