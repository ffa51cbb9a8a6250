"""Markdown tables, numbers with their spread, and what they were measured on."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

PACKAGES = ("unitroles", "torch", "torchvision", "numpy", "captum")


@dataclass(frozen=True)
class Setting:
    """What the command line asked for; `quick` sizes only show that everything runs.

    Parameters
    ----------
    shared : a folder with data and weights that are no part of the project.
    """

    quick: bool
    repeats: int
    threads: int
    cases: tuple[str, ...]
    shared: Path

    def few(self, full: int, quick: int) -> int:
        """One of two sizes."""
        return quick if self.quick else full


@dataclass(frozen=True)
class Spread:
    """Several measurements of one thing."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def __str__(self) -> str:
        if len(self.values) == 1:
            return number(self.median)
        return f"{number(self.median)} ({number(min(self.values))}–{number(max(self.values))})"


def spread(values: Iterable[float]) -> Spread:
    return Spread(tuple(values))


def ratios(ours: Iterable[float], theirs: Iterable[float]) -> Spread:
    """Measurement by measurement, as they were taken one after the other."""
    return spread(a / b for a, b in zip(ours, theirs, strict=True))


def number(value: float) -> str:
    """Three significant digits, without an exponent where it reads well."""
    if value != 0 and not 1e-3 <= abs(value) < 1e7:
        return f"{value:.1e}"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    digits = 2 if abs(value) >= 1 else 3
    return f"{value:.{digits}f}"


def met(value: float, limit: float) -> str:
    return "yes" if value <= limit else f"no, {value / limit:.2f} ×"


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows of one table; the first row names the columns."""
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([_cell(row[c]) for c in columns] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: object) -> str:
    return number(value) if isinstance(value, float) else str(value)


def section(title: str, *parts: str) -> str:
    return "\n\n".join([f"## {title}", *parts])


def machine(threads: int, packages: Iterable[str] = PACKAGES) -> str:
    """Processor, cores, threads and versions; nothing that names this computer."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    return (
        f"Machine: {_processor()}, {os.cpu_count()} cores, {memory:.0f} GiB, "
        f"{torch.backends.cpu.get_cpu_capability()}, {platform.system()}; threads used: {threads}. "
        f"Versions: Python {platform.python_version()}, {versions}."
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
