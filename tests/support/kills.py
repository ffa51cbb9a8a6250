"""Commands in processes of their own that are killed: how they end, and what they may leave."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import unitroles as ur

CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}
KILLS = (*CODES, "SIGKILL")
INTERRUPTED = "error: interrupted; what was finished is kept\n"
# It hears all signals: a process started in the background, or by nohup, would ignore some.
COMMAND = [
    sys.executable,
    "-c",
    "import signal as s; s.signal(s.SIGINT, s.default_int_handler);"
    "s.signal(s.SIGTERM, s.SIG_DFL); s.signal(s.SIGHUP, s.SIG_DFL);"
    "from unitroles.cli.app import main; raise SystemExit(main())",
]
TORTURE = os.environ.get("HYPOTHESIS_PROFILE") == "torture"
"""Whether this is `make torture`: twenty drawn moments, not three chosen ones."""
PART = re.compile(r"\.[0-9a-f]{32}\.part")


def fresh_environment(temporary):
    """That of a process in which no library has set anything."""
    found = {**os.environ, "TMPDIR": str(temporary), "PYTHONDONTWRITEBYTECODE": "1"}
    found.pop("TORCHINDUCTOR_CACHE_DIR", None)
    found["PYTHONPATH"] = os.pathsep.join([str(Path(ur.__file__).parents[1]), *sys.path])
    return found


def begun(words, temporary):
    """A process of the command."""
    return subprocess.Popen(
        [*COMMAND, *words],
        env=fresh_environment(temporary),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(name, code, error):
    """How a process ended that was sent a signal; every other end fails."""
    if code == 0:
        return "finished"
    if code == CODES.get(name):
        assert error.endswith(INTERRUPTED), error
        return "interrupted"
    # The others: before the command began, or while Python ends.
    assert code == -getattr(signal, name), (code, error)
    return "killed"
