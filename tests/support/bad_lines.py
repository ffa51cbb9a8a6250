"""Command lines with bad input, in a process of its own as a user runs them, warnings and all.

Every n-th line is run, n being the argument. Prints one line of JSON: how many lines were run, and
those that ended in anything but exit code 2, one line on the error stream and nothing written.
"""

import contextlib
import io
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from PIL import Image

from bad_folder import write
from unitroles.cli.app import main
from unitroles.cli.arguments import OPTIONS
from unitroles.cli.config import flag

SPLITS = ("train", "test")
# fmt: off
GOOD = {"train": "d.npz::train", "test": "d.npz::test", "out": "a.nc"}
BIG = "10" * 12
WORDS = [
    "", " ", "none", "-1", "0", "1e400", "nan", "inf", "2.5", BIG, "no such thing", "a,b",
    ",", "1,,2", "../..", "/", "d.npz", "bad.toml", "bytes.bin", "a.b:c", "bad_nets:broken",
    "bad_nets:number", "bad_nets:loss", "\0", "\u00fc\u202e", "--", "-", "[1]", "x" * 300,
]
"""Given for every option that takes a value."""
NO_FILES = ["", "\0", "/", ".", "d.npz", "no/a.nc", "d.npz/a.nc", "x" * 300, "a.toml", "bytes.bin"]
RIGHT = {
    "layer": {"0"}, "tolerance": {"0", "2.5", BIG}, "resolution": {BIG}, "classes": {"0"},
    "max_per_class": {BIG}, "seed": {"0", BIG}, "batch_size": {BIG}, "memory_budget": {BIG},
    "audit": {"0", BIG}, "output": {"0"},
}
"""Those that are right for an option."""
# fmt: on


def lines() -> Iterator[list[str]]:
    """Lines of all commands, of which none can be obeyed."""
    for name, option in OPTIONS.items():
        if option.plain is not bool and name not in ("model", "force", "out"):
            for word in WORDS:
                if word not in RIGHT.get(name, ()):
                    yield analyze({**GOOD, name: word})
    for word in NO_FILES:
        yield analyze({**GOOD, "out": word})
    for model in [*WORDS, "torchvision:", "timm:x", "hf:", "hf:.", ":", "os", "torchvision:vgg"]:
        yield analyze(GOOD, model)
        yield ["layers", model]
    for word in WORDS:
        yield ["report", word]
        yield ["report", "d.npz", "--csv", word]
        yield ["layers", "bad_nets:net", "--input", word]
        yield ["layers", "bad_nets:net", "--batch", word]
        yield ["reproduce", word, "--out", "new"]
        yield ["reproduce", "digits", "--out", "d.npz", "--seeds", word]
        yield ["reproduce", "digits", "--out", "d.npz", "--ladder", word]
        yield [word, "d.npz"]
        yield [f"--{word}", "report"]
    for left_out in SPLITS:
        yield analyze({name: word for name, word in GOOD.items() if name != left_out})
    yield from (["analyze"], ["report"], ["layers"], ["reproduce"], ["reproduce", "digits"])


def analyze(given: dict[str, str], model: str = "bad_nets:net") -> list[str]:
    return ["analyze", model, *(f"{flag(name)}={word}" for name, word in given.items())]


def prepare() -> None:
    write(Path())
    Path("bad.toml").write_text("[sample\nseed = ")
    Path("bytes.bin").write_bytes(bytes(range(256)))
    Path("pictures/a").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save("pictures/a/1.png")


def run(words: list[str]) -> tuple[int | str, str]:
    """The exit code, or what was raised; and the error stream."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            code: int | str = main(words)
        except BaseException as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            code = f"{type(error).__name__}: {error} ({place.filename}:{place.lineno})"
    return code, errors.getvalue()


def contents() -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}


def check(step: int) -> None:
    os.chdir(tempfile.mkdtemp())
    sys.dont_write_bytecode = True
    prepare()
    before, count, failed = contents(), 0, []
    for words in islice(lines(), None, None, step):
        count += 1
        code, errors = run(words)
        if code != 2 or len(errors.splitlines()) != 1 or not errors.startswith("error: "):
            failed.append(f"{words}: {code} {errors[-300:]!r}")
        elif contents() != before:
            failed.append(f"{words}: other files than before")
            break
    print(json.dumps({"count": count, "failed": failed}))


if __name__ == "__main__":
    check(int(sys.argv[1]))
