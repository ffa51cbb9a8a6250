"""Measure everything in docs/benchmarks.md and print it.

pip install -e '.[bench]'
python -m benchmarks.speed.run --out docs/benchmarks.md
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.speed import (
    adaptive,
    engine,
    everyday,
    first,
    forecast,
    kernel,
    memory,
    scaling,
    single_unit,
)
from benchmarks.speed.cases import CASES
from benchmarks.table import Setting, machine

Say = Callable[[str], None]
SECTIONS: dict[str, Callable[[Setting, Say], str]] = {
    "everyday": everyday.report,
    "first": first.report,
    "engine": engine.report,
    "single_unit": single_unit.report,
    "kernel": kernel.report,
    "memory": memory.report,
    "scaling": scaling.report,
    "adaptive": adaptive.report,
    "forecast": forecast.report,
}
SHARED = Path(__file__).resolve().parents[3] / "shared"
_QUICK = "**QUICK smoke run: sizes are tiny and the numbers mean nothing.**"


def options() -> argparse.Namespace:
    """The command line."""
    keys = [case.key for case in CASES]
    parser = argparse.ArgumentParser(description="Measure everything in docs/benchmarks.md")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does everything run?")
    parser.add_argument("--cases", nargs="+", choices=keys, default=keys, metavar="CASE")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--repeats", type=int, help="default 5; with --quick 1")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--shared", type=Path, default=SHARED, help="folder of shared data, weights and loops"
    )
    parser.add_argument("--out", type=Path, help="write the document here too")
    return parser.parse_args()


def document(setting: Setting, sections: list[str]) -> str:
    """The whole text; progress goes to the error stream."""
    start = time.perf_counter()

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - start:5.0f} s] {text}", file=sys.stderr, flush=True)

    parts = [SECTIONS[name](setting, say) for name in sections]
    head = [
        "# Benchmarks",
        *([_QUICK] if setting.quick else []),
        "Printed by `python -m benchmarks.speed.run`, all in one run; random weights and random "
        f"images with fixed seeds; {setting.repeats} repetitions, {engine.HEAVY_REPEATS} of the "
        "heavy cases, in turns; median (lowest–highest). Times in seconds of wall clock.",
        machine(setting.threads),
        f"The whole run took {(time.perf_counter() - start) / 60:.1f} minutes.",
    ]
    return "\n\n".join([*head, *parts]) + "\n"


def main() -> None:
    """Measure, print, and write the file if asked."""
    asked = options()
    torch.set_num_threads(asked.threads)
    repeats = asked.repeats or (1 if asked.quick else 5)
    setting = Setting(asked.quick, repeats, asked.threads, tuple(asked.cases), asked.shared)
    text = document(setting, asked.sections)
    print(text, end="")
    if asked.out is not None:
        asked.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
