"""Common to the figures: colours, sizes of text, axes, bands and notes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from unitroles.errors import InputError
from unitroles.results.dataset import SPLITS
from unitroles.results.taxonomy import Taxonomy
from unitroles.roles import ROLE_NAMES
from unitroles.stats.evidence import interval
from unitroles.stats.minima import CLEAR, NEVER_FALLS
from unitroles.wording import shown

# The paper's light red, orange, light yellow and light blue, in shades that stay apart for every
# type of colour vision.
ROLE_COLOURS: dict[str, str] = {
    "core": "#f2a7a0",
    "overfitted": "#dd7a1c",
    "generalizing": "#fbeb9a",
    "confusing": "#b5d3ea",
}

INK, FAINT = "#22262b", "#9aa1a9"
SPLIT_STYLES: dict[str, dict[str, Any]] = {
    "train": {"color": INK, "linestyle": "-"},
    "test": {"color": "#5b3fa0", "linestyle": (0, (4, 1.6))},
}
EDGE: dict[str, Any] = {"edgecolor": INK, "linewidth": 0.4}
SMALL, TEXT, TITLE = 7.5, 8.5, 10.0
PLAIN: dict[str, Any] = {"frameon": False, "fontsize": TEXT, "borderpad": 0}
_RESOLUTION = 1e-6  # nats
# Whether it is cross-entropy and whether the scale is logarithmic.
_LOSS = {
    (True, False): "cross-entropy (nats)",
    (True, True): "cross-entropy (nats, log scale)",
    (False, False): "loss",
    (False, True): "loss (log scale)",
}


def draw_curve(ax: Axes, taxonomy: Taxonomy, place: int, split: str, **look: Any) -> None:
    """A curve; a band around it and one around n0, over other samples, where they were measured.

    Where some points were left out, every evaluated one has a dot; that a fully ablated layer has
    no loss (0/0) leaves none out.
    """
    data = taxonomy.data.sel(split=split).isel(label=place)
    loss = data.loss.dropna("retrieved")
    if bool(data.loss[1:].isnull().any()):
        look |= {"marker": "o", "markersize": 2.5}
    ax.plot(loss.retrieved.values, loss.values, **look)
    if "loss_low" in data:
        low, high = data.loss_low.dropna("retrieved"), data.loss_high.dropna("retrieved")
        tint: dict[str, Any] = {"color": look["color"], "linewidth": 0, "zorder": 1}
        n, name = low.retrieved.values, f"{split} interval"
        ax.fill_between(n, low.values, high.values, alpha=0.16, gid=name, **tint)
        first, last = interval(data.turning_point_replicate.values, taxonomy.level)
        ax.axvspan(float(first), float(last), alpha=0.07, gid=f"{name} of n0", **tint)


def patches() -> list[Patch]:
    return [Patch(facecolor=ROLE_COLOURS[name], **EDGE) for name in ROLE_NAMES]


def write_beside(ax: Axes, y: float, text: str, size: float, va: str = "center") -> None:
    ax.annotate(
        text,
        (1, y),
        (5, 0),
        xycoords=ax.get_yaxis_transform(),
        textcoords="offset points",
        va=va,
        fontsize=size,
    )


def notes_of(taxonomy: Taxonomy, place: int, splits: Sequence[str] = SPLITS) -> list[str]:
    """A line for each split whose curve has no clear minimum: what it has instead."""
    status = taxonomy.data.status.isel(label=place).sel(split=list(splits)).values
    return [f"{split}: {s}" for split, s in zip(splits, status, strict=True) if s != CLEAR]


def flags_of(taxonomy: Taxonomy, place: int) -> list[str]:
    """Of these lines those without which the roles would be misread."""
    return [note for note in notes_of(taxonomy, place) if note.endswith(NEVER_FALLS)]


def write_title(ax: Axes, title: str, notes: list[str], lines: int, below: float = 0.0) -> None:
    """The title with room for `lines` notes under it, and `below` points under these."""
    ax.set_title(title, loc="left", fontsize=TITLE, pad=6 + below + 1.3 * SMALL * lines)
    if notes:
        ax.annotate(
            "\n".join(notes),
            (0, 1),
            (0, 5 + below + 1.3 * SMALL * (lines - len(notes))),
            xycoords="axes fraction",
            textcoords="offset points",
            gid="status",
            fontsize=SMALL,
            style="italic",
            va="bottom",
        )


def finish_curves(ax: Axes, losses: np.ndarray, log: bool, units: str) -> None:
    if log:
        ax.set_yscale("symlog", linthresh=_RESOLUTION)  # a loss may be exactly 0
    ax.set_ylabel(_LOSS[units == "nats", log], fontsize=TEXT)
    calm(ax, losses.shape[-1] - 1)


def calm(ax: Axes, units: int | None = None) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set(color=FAINT, linewidth=0.8)
    ax.tick_params(labelsize=SMALL, color=FAINT, length=3)
    if units is not None:
        ax.set_xlim(0, units)
        ax.locator_params(axis="x", nbins=7, steps=[1, 2, 5, 10], integer=True)


def spans_decades(losses: Iterable[np.ndarray]) -> bool:
    values = np.concatenate([np.ravel(loss) for loss in losses])
    return bool(np.nanmax(values) > 1e3 * max(np.nanmin(values), _RESOLUTION))


def class_title(taxonomy: Taxonomy, place: int) -> str:
    return f"class {taxonomy.labels[place]}"


def take(axes: Sequence[Any] | np.ndarray | None, count: int, use: str) -> tuple[Axes, ...]:
    taken = tuple(np.ravel(np.array(axes, dtype=object)))
    if len(taken) != count:
        raise InputError(f"expected {count} axes, for {use}; {len(taken)} were given")
    for each in taken:
        if not isinstance(each, Axes):
            raise InputError(f"expected {count} axes of matplotlib, for {use}, not {shown(each)}")
    return taken
