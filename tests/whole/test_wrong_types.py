"""Whatever is given wrongly: one sentence, in Python an InputError, on the command line code 2."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def done(script: str, step: int) -> dict:
    """What a script of tests/support prints; without warnings as errors, as for a user."""
    command = [sys.executable, str(ROOT / "tests" / "support" / script), str(step)]
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    given = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, env=given)
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout.splitlines()[-1])


# Every seventh meets every argument and every value: neither count of values divides by it.
STEPS = [7, pytest.param(1, marks=pytest.mark.slow)]


@pytest.mark.parametrize("step", STEPS)
def test_wrong_values_of_every_argument_are_refused(step: int) -> None:
    found = done("wrong.py", step)
    print(f"{found['count']} calls, {found['refused']} of them refused")
    assert found["failed"] == []
    assert found["refused"] > 0.9 * found["count"] > 150


@pytest.mark.parametrize("step", STEPS)
def test_bad_command_lines_end_in_one_line(step: int) -> None:
    found = done("bad_lines.py", step)
    print(f"{found['count']} command lines")
    assert found["failed"] == []
    assert found["count"] >= 150
