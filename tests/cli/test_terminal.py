"""What a terminal is shown, and the signals that end a command: it always cleans up."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import unitroles as ur
from kills import (
    CODES,
    COMMAND,
    INTERRUPTED,
    KILLS,
    PART,
    TORTURE,
    begun,
    ended,
    fresh_environment,
)
from unitroles.cli.app import main
from unitroles.cli.terminal import say, stopped_by_signals
from unitroles.report.text import report
from unitroles.wording import printable

NAMES = {
    "the title of the window": "\x1b]0;owned\x07",
    "a colour": "\x1b[31mred",
    "a link": "\x1b]8;;http://a\x1b\\b",
    "the other control sequences": "\x9b31m",
    "a line of its own": "cat\nwarning: all is well",
    "a carriage return": "cat\rdog",
    "the other direction": "\u202egnp exe",
    "an isolated direction": "\u2066a\u2069",
    "a mark of direction": "\u200fa",
    "breaks of lines": "a\u2028b\u2029c\x85d",
    "nothing to be seen": "c\ufeffat\u00ad",
    "delete": "a\x7f\x08b",
}
RAW = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u00ad\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")


def analysed(names=None, path="relu"):
    torch.manual_seed(0)
    x, y = torch.randn(24, 4), torch.arange(24) % 2
    net = torch.nn.Sequential()
    net.add_module("first", torch.nn.Linear(4, 6))
    net.add_module(path, torch.nn.ReLU())
    net.add_module("last", torch.nn.Linear(6, 2))
    data = (x[:12], y[:12]), (x[12:], y[12:])
    return net, data, names


# --- what is shown


@pytest.mark.parametrize("kind", NAMES)
def test_names_are_shown_without_their_commands(kind, tmp_path, capsys):
    name = NAMES[kind]
    net, data, names = analysed([name, "dog"], path=name)
    evidence = ur.Evidence(floors=2, resplits=2, bootstrap="fixed_ranking", replicates=3)
    options = {"layer": name, "class_names": names, "evidence": evidence}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # samples are few
        taxonomy = ur.analyze(net, *data, progress=False, **options)
    assert taxonomy.labels == names  # kept as they are
    shown = {
        "report": report(taxonomy),
        "repr": repr(taxonomy),
        "set": repr(ur.TaxonomySet({name: taxonomy})),
        "plan": str(ur.plan(net, *data, **options)),
    }
    path = taxonomy.save(tmp_path / "a.nc")
    assert main(["report", str(path)]) == 0
    shown["command"] = capsys.readouterr().out
    with pytest.raises(ur.InputError) as unknown:
        taxonomy.units("core", "bird")
    shown["error"] = str(unknown.value)
    shown["warning"] = str(ur.DataWarning(f"{name} is odd"))
    assert main(["report", name]) == 2
    shown["command's error"] = capsys.readouterr().err
    assert {what for what, text in shown.items() if RAW.search(text)} == set()
    first = re.escape(printable(name).split(" ")[0])
    for what in ("report", "plan", "error", "set"):
        assert re.search(first, shown[what]), what


def test_other_scripts_and_spaces_stay_as_they_are():
    for text in ("größe", "猫", "می‌خواهم", "👩‍🔬", "a\u00a0b", "é", "\\x1b"):
        assert printable(text) == text
    assert printable("a\n\tb\x1b", keep="\n\t") == "a\n\tb\\x1b"
    assert printable("\ud800") == "\\ud800"
    assert printable(3) == "3"


def test_lines_are_printed_where_the_output_has_no_such_letters(tmp_path):
    code = "from unitroles.cli.terminal import say; say('2.5 ± 1 猫 \\x1b[0m')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "2.5 \\xb1 1 \\u732b \\x1b[0m\n"


def test_a_full_output_is_one_sentence(monkeypatch):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(ur.InputError, match="cannot print: No space left on device; give"):
            say("text")
        monkeypatch.undo()
        with pytest.raises(OSError, match="No space left"):
            full.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())


# --- signals


def handlers():
    return [signal.getsignal(getattr(signal, name)) for name in CODES]


@pytest.mark.parametrize("name", CODES)
def test_a_signal_cleans_up_and_is_one_line(name, monkeypatch, capsys):
    cleaned, before = [], handlers()

    def stopped(*given):
        try:
            signal.raise_signal(getattr(signal, name))
            time.sleep(5)
        finally:
            cleaned.append(True)

    monkeypatch.setattr(ur, "load", stopped)
    assert main(["report", "a.nc"]) == CODES[name]
    assert capsys.readouterr() == ("", INTERRUPTED)
    assert cleaned == [True]
    assert handlers() == before


@pytest.mark.parametrize("error", [None, RuntimeError("a worker died"), ur.InputError("so")])
def test_a_swallowed_interrupt_is_said_at_the_end(error, monkeypatch, capsys):
    def swallows(*given):
        try:
            signal.raise_signal(signal.SIGTERM)
            time.sleep(5)
        except KeyboardInterrupt:
            if error is not None:
                raise error from None
        return analysed_once

    net, data, _ = analysed()
    analysed_once = ur.analyze(net, *data, layer="relu", progress=False)
    monkeypatch.setattr(ur, "load", swallows)
    assert main(["report", "a.nc"]) == 143
    assert capsys.readouterr().err.endswith(INTERRUPTED)


def test_an_interrupt_in_a_finalizer_comes_again():
    class Last:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)
            time.sleep(0)

    came, hook = [], sys.unraisablehook

    def finalizes():
        Last()
        time.sleep(5)

    with pytest.raises(KeyboardInterrupt), stopped_by_signals(came):
        finalizes()
    assert came == [signal.SIGINT] * 2
    assert sys.unraisablehook is hook


def test_a_second_signal_does_not_disturb_the_cleaning_up():
    came, cleaned = [], []

    def cleans_up():
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGTERM)
            cleaned.append(True)

    with pytest.raises(KeyboardInterrupt), stopped_by_signals(came):
        cleans_up()
    assert came == [signal.SIGINT, signal.SIGTERM]
    assert cleaned == [True]


def test_what_others_do_with_signals_is_left():
    def own(number, frame):
        pass

    before = [signal.signal(getattr(signal, name), own) for name in ("SIGTERM", "SIGHUP")]
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    try:
        with stopped_by_signals([]):
            assert signal.getsignal(signal.SIGTERM) is own
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        for name, handler in zip(("SIGTERM", "SIGHUP"), before, strict=True):
            signal.signal(getattr(signal, name), handler)


def test_a_command_in_another_thread_sets_no_handlers():
    found = []

    def run():
        with stopped_by_signals([]):
            found.append(handlers())

    before = handlers()
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [before]


def state():
    variables = {n: value for n, value in os.environ.items() if not n.startswith("KMP_")}
    return variables, os.getcwd(), handlers(), sys.unraisablehook, torch.get_num_threads()


NETS = """
import torch

def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 3))
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a model and data, and another for temporary files."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "terminal_nets.py").write_text(NETS)
    draw = np.random.default_rng(0)
    found = {}
    for split in ("train", "test"):
        labels = np.arange(300) % 3
        images = draw.normal(size=(300, 8)) + labels[:, None]
        found |= {f"{split}_images": images.astype(np.float32), f"{split}_labels": labels}
    np.savez(folder / "d.npz", **found)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "terminal_nets", raising=False)
    return folder


def analyze_words(*more):
    return [
        "analyze", "terminal_nets:net", "--train", "d.npz::train", "--test", "d.npz::test",
        "--layer", "1", "--out", "a.nc", *more,
    ]  # fmt: skip


def test_a_run_may_replace_what_it_wrote_before(here, capsys):
    assert main(analyze_words("--quiet")) == 0
    assert main(analyze_words("--quiet")) == 2
    assert main(analyze_words("--quiet", "--force")) == 0
    assert main(["analyze", "terminal_nets:net", "--config", "a.toml", "--force"]) == 0
    assert {path.name for path in here.iterdir()} == {"a.nc", "a.toml", "d.npz", "terminal_nets.py"}


def test_a_command_leaves_the_process_as_it_was(here, capsys):
    before = state()
    assert main(analyze_words("--quiet")) == 0
    assert main(["report", "a.nc"]) == 0
    assert main(["report", "b.nc"]) == 2
    assert main(analyze_words("--out", "none/a.nc")) == 2
    assert main(analyze_words("--dry-run")) == 0
    assert state() == before


def test_an_empty_folder_that_a_killed_process_left_goes(tmp_path, monkeypatch, capsys):
    names = pytest.importorskip("torch._inductor.runtime.cache_dir_utils")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    left = Path(names.default_cache_dir())
    for files in (0, 1):
        left.mkdir()
        for number in range(files):
            (left / f"{number}").touch()
        assert main(["report", "none.nc"]) == 2
        assert left.exists() == (files == 1)


def test_a_process_that_is_new_is_left_as_it_was(here, tmp_path):
    (tmp_path / "temporary").mkdir()
    code = (
        "import os, sys; from unitroles.cli.app import main; before = dict(os.environ);"
        "assert main(sys.argv[1:]) == 0;"
        "changed = set(os.environ.items()) ^ set(before.items());"
        "assert {name for name, _ in changed if not name.startswith('KMP_')} == set(), changed"
    )
    command = [sys.executable, "-c", code, *analyze_words("--quiet")]
    subprocess.run(command, env=fresh_environment(tmp_path / "temporary"), check=True)
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("d.npz", "is read as --train and would be overwritten; give another name"),
        ("link", "is read as --train and would be overwritten; give another name"),
        ("loop", "choose another name"),
        ("n" * 300, "choose another name"),
        ("/dev/full", "is no file that can be replaced; give another name"),
        ("folder", "is a folder; give the name of a file"),
        ("folder/none/a.nc", "choose a folder that exists and is writable"),
        ("a\0b", "null byte"),
        ("weights.bin", "is read as --weights and would be overwritten; give another name"),
        ("given.toml", "is read as --config and would be overwritten; give another name"),
    ],
)
def test_a_place_for_the_result_that_is_none_is_one_sentence(here, capsys, out, said):
    (here / "link").symlink_to("d.npz")
    (here / "loop").symlink_to("loop")
    (here / "folder").mkdir()
    (here / "weights.bin").write_text("")
    (here / "given.toml").write_text("")
    before = {path: path.read_bytes() for path in here.iterdir() if path.is_file()}
    more = ("--weights", "weights.bin", "--config", "given.toml", "--out", out, "--force")
    assert main(analyze_words(*more)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1
    assert {path: path.read_bytes() for path in here.iterdir() if path.is_file()} == before


# --- killed while it runs: the slow part


@pytest.mark.slow
@pytest.mark.property
@pytest.mark.parametrize("name", KILLS)
def test_a_killed_analysis_leaves_nothing_and_goes_on(name, here, tmp_path, draws):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    words = analyze_words("--force", "--evidence", "--floors", "200", "--quiet")
    before = {path.name for path in here.iterdir()}

    def run(kill_after=None):
        start = time.monotonic()
        with begun(words, temporary) as process:
            try:
                process.wait(kill_after)
            except subprocess.TimeoutExpired:
                process.send_signal(getattr(signal, name))
            _, error = process.communicate(timeout=600)
        return process.returncode, error, time.monotonic() - start

    code, _, length = run()
    assert code == 0
    whole, seen = ur.load("a.nc"), []
    shares = draws.uniform(0.0, 1.0, 20).tolist() if TORTURE else (0.4, 0.6, 0.8)
    for share in shares:
        for path in ("a.nc", "a.toml"):
            Path(path).unlink(missing_ok=True)
        code, error, seconds = run(share * length)
        how = ended(name, code, error)
        seen.append((round(share, 3), round(share * length, 2), how))
        left = {path.name for path in here.iterdir()} - before
        if how == "finished":
            length = min(length, seconds)  # the machine has less to do than before
            assert left == {"a.nc", "a.toml"}
        elif name == "SIGKILL":
            assert all(each in ("a.nc", "a.toml") or PART.fullmatch(each) for each in left)
        else:
            assert left <= {"a.nc", "a.toml"}
        if "a.nc" in left:
            assert same(whole, ur.load("a.nc"))
        if name != "SIGKILL":
            assert list(temporary.iterdir()) == []
    assert any(how != "finished" for *_, how in seen)
    assert run()[0] == 0
    assert {path.name for path in here.iterdir()} - before == {"a.nc", "a.toml"}
    assert list(temporary.iterdir()) == []
    assert same(whole, ur.load("a.nc"))
    print(json.dumps({name: seen}))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL"])
def test_rows_that_a_killed_analysis_kept_on_disk_are_taken_away(name, here, tmp_path):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = fresh_environment(temporary)
    words = analyze_words("--quiet", "--memory-budget", "1B")
    killed = (
        "import os, signal; from unitroles.curves.store import DiskStore; add = DiskStore.add;"
        f"DiskStore.add = lambda *a: (add(*a), os.kill(os.getpid(), signal.{name}));"
    )
    command = [sys.executable, "-c", killed + COMMAND[-1], *words]
    code = subprocess.run(command, env=environment, check=False, capture_output=True).returncode
    assert code == CODES.get(name, -signal.SIGKILL)
    assert bool(list(temporary.glob("unitroles-*/*"))) == (name == "SIGKILL")
    subprocess.run([*COMMAND, *words], env=environment, check=True)
    assert list(temporary.iterdir()) == []


def same(one, other):
    return one.data.drop_attrs().identical(other.data.drop_attrs())


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0, reason="only root may mount a small file system")
def test_a_full_disk_leaves_nothing(tmp_path, here, capsys):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"no small file system can be mounted: {mounted.stderr.decode().strip()}")
    try:
        words = analyze_words("--quiet", "--out", str(small / "a.nc"))
        assert main([*words, "--evidence"]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: cannot write")
        assert error.endswith("a.nc: No space left on device; free some space")
        assert list(small.iterdir()) == []
        (small / "room").write_bytes(bytes(1000))
        assert main(analyze_words("--quiet", "--out", "a.nc")) == 0
        (small / "fill").write_bytes(bytes(3 * 2**14))
        taxonomy = ur.load("a.nc")
        with pytest.raises(ur.InputError, match="No space left on device; free some space"):
            taxonomy.save(small / "b.nc")
        assert {path.name for path in small.iterdir()} == {"room", "fill"}
    finally:
        subprocess.run(["umount", str(small)], check=True)
