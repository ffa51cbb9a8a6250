"""The paper's figures from the members of one family."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from unitroles import Taxonomy, plots
from unitroles.zoo.files import write_whole

# Chosen before any role was computed; every class is in the saved taxonomies.
LABEL = "3"


def write_figures(taxonomies: Mapping[str, Taxonomy], folder: Path, mark: str) -> list[Path]:
    """Draw figures 1-4 and the distributions of the shares.

    Parameters
    ----------
    taxonomies : by model name, from the best to the worst generalizing.
    folder : where the five files go.
    mark : a line written on every figure: data, noise, seed, and "quick" for a smoke run.
    """
    first, *_, last = taxonomies
    ends = {name: taxonomies[name] for name in (first, last)}
    drawn = {
        "figure1.png": _figure(plots.rof_curve(taxonomies[first], LABEL)),
        "figure2.png": plots.compare(ends, LABEL),
        "figure3.png": plots.compare(taxonomies, LABEL),
        "figure4.png": _figure(plots.proportions_3d(taxonomies)),
        "shares.png": _figure(plots.shares(taxonomies)[0]),
    }
    return [_save(figure, folder / name, mark) for name, figure in drawn.items()]


def _figure(ax: Any) -> Figure:
    figure = ax.get_figure()
    if not isinstance(figure, Figure):
        raise TypeError(f"expected axes of a figure, got {type(figure).__name__}")
    return figure


def _save(figure: Figure, path: Path, mark: str) -> Path:
    figure.text(0.005, -0.01, mark, fontsize=7, color="0.35", ha="left", va="top")
    options: dict[str, Any] = {"format": "png", "dpi": 150, "bbox_inches": "tight"}
    return write_whole(partial(figure.savefig, metadata={"Comment": mark}, **options), path)
