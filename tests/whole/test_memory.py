"""The memory budget holds for a whole call: peaks of processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from peaks import CASES, MIB

SMALL, LARGE = 16, 64
"""Budgets, in MiB."""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks begin anew on Linux")
@pytest.mark.parametrize("name", CASES)
def test_the_peak_is_no_higher_than_the_budget_and_a_fixed_part(name):
    case = CASES[name]
    # What is let go goes to the system at once: holes between blocks are not what is held.
    prompt = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    script = Path(__file__).parents[1] / "support" / "peaks.py"
    command = [sys.executable, str(script), name, str(SMALL), str(LARGE)]
    run = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, **prompt}
    )
    small, large = (grown * MIB for grown in json.loads(run.stdout))
    assert small < case.most(SMALL * MIB)
    assert large < case.most(LARGE * MIB)
    if case.kept > LARGE * MIB:  # the budget is there to be used
        assert large > LARGE * MIB
