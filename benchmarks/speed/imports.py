"""How long a saved result takes to open, beside importing what it cannot do without.

python -m benchmarks.speed.imports [--repeats 7]

Processes are run in turns; seconds of processor time, user and system. Printed: the median of each
and the ratio to the first, median (lowest to highest).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

LIGHT = Path(__file__).resolve().parents[2] / "tests" / "support" / "light.py"
NEEDED = "import xarray, h5netcdf, scipy.stats"
CASES = {
    "import xarray, h5netcdf, scipy.stats": NEEDED,
    "load a result, print its summary": (
        "import unitroles as ur; print(ur.load('light.nc').summary())"
    ),
    "unitroles report": "from unitroles.cli.app import main; main(['report', 'light.nc'])",
    "import unitroles, every public name": (
        "import unitroles as ur; [getattr(ur, name) for name in ur.__all__]"
    ),
    "unitroles analyze --help": "from unitroles.cli.app import main; main(['analyze', '--help'])",
}


def seconds(code: str, folder: str) -> float:
    """Processor time of one fresh process."""
    timed = (
        "import os\n"
        f"try:\n    {code}\nexcept SystemExit:\n    pass\n"
        "spent = os.times()\nprint(spent.user + spent.system)"
    )
    run = subprocess.run(
        [sys.executable, "-c", timed], capture_output=True, text=True, check=True, cwd=folder
    )
    return float(run.stdout.splitlines()[-1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, LIGHT], cwd=folder, check=True, capture_output=True)
        rounds = [
            {name: seconds(code, folder) for name, code in CASES.items()} for _ in range(repeats)
        ]
    first = next(iter(CASES))
    for name in CASES:
        ratios = sorted(each[name] / each[first] for each in rounds)
        print(
            f"{name:<40} {median(each[name] for each in rounds):6.2f} s  "
            f"x {median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )


if __name__ == "__main__":
    main()
