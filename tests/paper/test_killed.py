"""The main job in a process that is killed again and again: it goes on, and ends the same."""

import json
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors import safe_open

import unitroles as ur
from kills import KILLS, PART, TORTURE, begun, ended
from unitroles.files import unsealed

# By stage: the end of the next file that has to be written, and seconds after that.
TRAINING, ANALYSIS = ("-order-train.nc", 0.05), (".safetensors", 0.2)
FIXED = [
    ("SIGINT", "run.json", 0.5),  # imports; training
    ("SIGINT", *ANALYSIS),
    ("SIGTERM", *TRAINING),
    ("SIGTERM", *ANALYSIS),
    ("SIGHUP", *TRAINING),
    ("SIGHUP", *ANALYSIS),
    ("SIGKILL", *TRAINING),
    ("SIGKILL", *ANALYSIS),
    ("SIGINT", "table2.csv", 0.0),  # tables and figures
    ("SIGTERM", "figure1.png", 0.0),
    ("SIGHUP", "figure3.png", 0.1),
    ("SIGKILL", "figure4.png", 0.05),
]
TIMES = ("seconds_of_this_call", "training_seconds", "analysis_seconds")
"""What differs between runs: in run.json these, in results and weights `seconds` and `stages`."""


@dataclass(frozen=True)
class Run:
    """The main job into a folder, in a process of its own."""

    folder: Path
    temporary: Path

    def start(self):
        self.temporary.mkdir(exist_ok=True)
        words = ["reproduce", "digits", "--quick", "--seeds", "1", "--out", str(self.folder)]
        return begun(words, self.temporary)

    def finish(self):
        with self.start() as process:
            _, error = process.communicate(timeout=600)
        assert process.returncode == 0, error

    def kill(self, name, file, seconds):
        """Send a signal some seconds after a file was written, or after the start; how it ended."""
        path = self.folder / file if file else None
        before = when(path)
        with self.start() as process:
            while path and process.poll() is None and when(path) == before:
                time.sleep(0.002)
            time.sleep(seconds)
            process.send_signal(getattr(signal, name))
            _, error = process.communicate(timeout=600)
        return ended(name, process.returncode, error)

    def written(self):
        """The files that are there, and when each was written, in seconds."""
        found = [path for path in self.folder.rglob("*") if path.is_file()]
        return {str(path.relative_to(self.folder)): when(path) for path in found}


def when(path):
    return path.stat().st_mtime if path and path.exists() else None


@dataclass(frozen=True)
class Whole(Run):
    """One that nobody disturbed."""

    pauses: dict[str, float]
    """Seconds from each file, or from the start, "", to the next; in the order of writing."""

    def check(self, killed, name):
        """After a kill: whole files of this run, checkpoints, and what only SIGKILL leaves."""
        left = killed.written()
        for file in left:
            path = killed.folder / file
            if path.suffix == ".checkpoint":
                assert unsealed(path.read_bytes())[1]
            elif not PART.fullmatch(path.name):
                assert same(path, self.folder / file), file
            else:
                assert name == "SIGKILL", file
        if name != "SIGKILL":
            assert list(killed.temporary.iterdir()) == []

    def check_finished(self, killed):
        assert set(killed.written()) == set(self.pauses) - {""}
        assert json.loads((killed.folder / "run.json").read_text())["finished"]
        self.check(killed, "nobody")

    def ahead(self, killed):
        """The files that are yet to be written; what is in no folder is so in every run."""
        there = killed.written()
        return [file for file in self.pauses if "/" not in file or file not in there]

    def fixed(self, killed):
        for name, end, seconds in FIXED:
            files = [file for file in self.ahead(killed) if file.endswith(end)]
            yield name, files[0] if files else "table1.csv", seconds

    def drawn(self, name, killed, draws):
        """Five files, "" for the start, and times until a little after the next one."""
        for _ in range(5):
            file = str(draws.choice(self.ahead(killed)))
            yield name, file, round(float(draws.uniform(0.0, 1.2 * self.pauses[file])), 3)


def same(path, other):
    """Whether two files say the same, but for times."""
    if path.suffix == ".nc":
        one, two = ur.load(path), ur.load(other)
        said = [
            {n: v for n, v in each.provenance.items() if n not in ("seconds", "stages")}
            for each in (one, two)
        ]
        kept = [
            {n: v for n, v in each.data.attrs.items() if n != "provenance"} for each in (one, two)
        ]
        bare = one.data.drop_attrs(), two.data.drop_attrs()
        return said[0] == said[1] and kept[0] == kept[1] and bare[0].identical(bare[1])
    if path.suffix == ".safetensors":
        return weights(path) == weights(other)
    if path.name == "run.json":
        one, two = (timeless(json.loads(each.read_text())) for each in (path, other))
        begun = {name: two[name] for name in one} | {"finished": False}
        return one in (two, begun)
    return path.read_bytes() == other.read_bytes()


def weights(path):
    with safe_open(path, framework="np") as file:
        said = file.metadata()
        arrays = {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118
    return arrays, {n: v for n, v in said.items() if n not in ("seconds", "content_sha256")}


def timeless(content):
    if isinstance(content, dict):
        return {name: timeless(part) for name, part in content.items() if name not in TIMES}
    return [timeless(part) for part in content] if isinstance(content, list) else content


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run = Run(tmp_path_factory.mktemp("whole") / "out", tmp_path_factory.mktemp("temporary"))
    start = time.time()
    run.finish()
    end = time.time()
    assert list(run.temporary.iterdir()) == []
    found = sorted(run.written().items(), key=lambda item: item[1])
    began = [("", start), *found]
    pairs = zip(began, [*found, ("", end)], strict=True)
    pauses = {file: after - own for (file, own), (_, after) in pairs}
    return Whole(run.folder, run.temporary, pauses)


@pytest.mark.slow
@pytest.mark.property
@pytest.mark.parametrize("names", [[name] for name in KILLS] if TORTURE else [KILLS], ids="-".join)
def test_a_killed_reproduction_goes_on_and_ends_the_same(names, whole, draws, tmp_path):
    seen = []
    for number in range(4 if TORTURE else 1):
        run = Run(tmp_path / f"{number}", tmp_path / f"temporary{number}")
        kills = whole.drawn(names[0], run, draws) if TORTURE else whole.fixed(run)
        for name, file, seconds in kills:
            seen.append((name, file, seconds, run.kill(name, file, seconds)))
            whole.check(run, name)
        run.finish()
        whole.check_finished(run)
        shutil.rmtree(run.folder)
    print(json.dumps(seen))
    assert len(seen) == (20 if TORTURE else len(FIXED))
    assert sum(how != "finished" for *_, how in seen) > 0.75 * len(seen)
