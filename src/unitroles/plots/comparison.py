"""Figures of several models: proportions, shares, gaps, turning points side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d.art3d import Poly3DCollection
from mpl_toolkits.mplot3d.axes3d import Axes3D

from unitroles.annotations import checked
from unitroles.errors import InputError
from unitroles.plots.roles import count_roles, draw_roles
from unitroles.plots.style import (
    EDGE,
    FAINT,
    INK,
    PLAIN,
    ROLE_COLOURS,
    SMALL,
    TEXT,
    TITLE,
    calm,
    class_title,
    flags_of,
    patches,
    spans_decades,
    take,
    write_title,
)
from unitroles.results.dataset import SPLITS
from unitroles.results.taxonomy import Taxonomy
from unitroles.roles import ROLE_NAMES

# Seven colours and eight markers: 56 models before a pair comes back.
_MODEL_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#4d4d4d")
_MODEL_MARKERS = "os^Dv<>P"
_MAX_STEPS = 20
_PANELS_PER_ROW = 6


@checked
def compare(taxonomies: Mapping[str, Taxonomy], label: int | str) -> Figure:
    """The same class in several models, side by side (the paper's figure 3).

    Under each panel stand the numbers of core, overfitted, generalizing and confusing units. The
    loss axis is shared unless one model's losses would flatten another's.
    """
    members = _members(taxonomies)
    places = [member.find_label(label) for member in members.values()]
    losses = [m.data.loss.values[:, i] for m, i in zip(members.values(), places, strict=True)]
    columns = min(len(members), _PANELS_PER_ROW)
    rows = -(-len(members) // columns)
    size = (max(2.3 * columns + 0.7, 6.4), 3.4 * rows + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    if rows > 1:  # or the counts would stand closer to the title below than to their own panel
        figure.set_layout_engine("constrained", h_pad=0.09)
    grid = figure.subplots(2 * rows, columns, height_ratios=[6, 1] * rows, squeeze=False)
    notes = [flags_of(m, i) for m, i in zip(members.values(), places, strict=True)]
    lines = max(map(len, notes))  # the titles of a row stay level
    log, peaks = spans_decades(losses), [np.nanmax(loss) for loss in losses]
    shared = log or max(peaks) <= 5 * min(peaks)
    for i, (name, member) in enumerate(members.items()):
        row, column = divmod(i, columns)
        curves, strips = grid[2 * row : 2 * row + 2, column]
        if i and shared:
            curves.sharey(grid[0, 0])
        draw_roles(curves, strips, member, places[i], log)
        count_roles(strips, member, places[i], "{count}")
        between = "  " if len(name) < 16 else "\n"
        write_title(curves, f"{name}{between}{_gap(member)}", notes[i], lines)
        if column:
            curves.set_ylabel("")
            curves.tick_params(labelleft=not shared)
            strips.set_yticklabels([])
    for spare in grid[-2:, len(members) - columns * (rows - 1) :].flat:
        spare.remove()
    handles, names = [*grid[0, 0].get_lines()[:2], *patches()], [*SPLITS, *ROLE_NAMES]
    title = class_title(next(iter(members.values())), places[0])
    figure.legend(handles, names, title=title, loc="outside upper center", ncols=6, **PLAIN)
    return figure


@checked
def proportions_3d(taxonomies: Mapping[str, Taxonomy], ax: Axes | None = None) -> Axes3D:
    """Role proportions of every class: core x overfitted x confusing (the paper's figure 4).

    One point per class, one colour and marker per model. The shaded triangle holds the classes
    without generalizing units; the others lie behind it.
    """
    members = _members(taxonomies)
    size = (6.8 + 0.08 * max(map(len, members)), 4.8)  # room for the legend
    figure = Figure(figsize=size) if ax is None else None
    if figure is not None:
        with rc_context({"grid.color": "#d9dde1", "grid.linewidth": 0.6}):  # 3-D axes keep these
            ax = figure.add_subplot(projection="3d")
    if not isinstance(ax, Axes3D):
        raise InputError('proportions_3d needs 3-D axes; make them with projection="3d"')
    _draw_space(ax)
    for i, (name, member) in enumerate(members.items()):
        core, overfitted, _, confusing = member.proportions().to_numpy().T
        ax.scatter(
            core,
            overfitted,
            confusing,
            s=32,
            color=_MODEL_COLOURS[i % len(_MODEL_COLOURS)],
            marker=_MODEL_MARKERS[i % len(_MODEL_MARKERS)],
            edgecolors="white",
            linewidths=0.5,
            depthshade=False,
            label=f"{name}  {_gap(member)}",
        )
    if figure is None:
        ax.legend(loc="upper left", **PLAIN)
    else:
        # Before 3.11 matplotlib knows where the texts of 3-D axes stand only once they are drawn.
        figure.draw_without_rendering()
        figure.set_layout_engine("constrained")
        figure.legend(loc="outside right upper", **PLAIN)
    return ax


@checked
def shares(
    taxonomies: Mapping[str, Taxonomy], axes: Sequence[Any] | None = None
) -> tuple[Axes, ...]:
    """The distribution of the role shares of the units, one panel per role (the paper's table 3).

    At every share (of the classes) a bar as wide as the fraction of the units that have it, in
    one scale per panel; the dot is the mean. With more than 20 classes the shares are rounded to
    multiples of 0.05 for the bars.

    Parameters
    ----------
    axes : four axes, in the order core, overfitted, generalizing, confusing; None makes a figure.
    """
    members = _members(taxonomies)
    if axes is None:
        figure = Figure(figsize=(2.6 + 1.4 * len(members), 5.2), layout="constrained")
        figure.supxlabel("width: fraction of the units;  dot: mean", fontsize=SMALL)
        axes = figure.subplots(2, 2, sharex=True, sharey=True)
    panels = take(axes, len(ROLE_NAMES), "the four roles")
    tables = [member.shares() for member in members.values()]
    steps = [min(len(member.labels), _MAX_STEPS) for member in members.values()]
    turned: dict[str, Any] = {"rotation": 30, "ha": "right"} if max(map(len, members)) > 9 else {}
    for ax, role in zip(panels, ROLE_NAMES, strict=True):
        columns = [table[role].to_numpy() for table in tables]
        _draw_distributions(ax, columns, steps, ROLE_COLOURS[role])
        ax.set_xticks(range(len(members)), list(members), fontsize=TEXT, **turned)
        ax.set_title(role, loc="left", fontsize=TITLE)
        ax.set_ylabel("role share (of the classes)", fontsize=TEXT)
        ax.label_outer()
    return panels


def _draw_distributions(ax: Axes, columns: list[np.ndarray], steps: list[int], colour: str) -> None:
    widths = [
        np.bincount(np.rint(values * n).astype(int), minlength=n + 1) / len(values)
        for values, n in zip(columns, steps, strict=True)
    ]
    scale = 0.88 / max(width.max() for width in widths)
    for i, (values, width, n) in enumerate(zip(columns, widths, steps, strict=True)):
        used = np.flatnonzero(width)
        bars = width[used] * scale
        ax.barh(used / n, bars, left=i - bars / 2, height=0.82 / n, color=colour, **EDGE)
        ax.plot(i, values.mean(), "o", color=INK, markeredgecolor="white", markersize=5)
    calm(ax)
    ax.set(xlim=(-0.6, len(columns) - 0.4), ylim=(-0.06, 1.06), yticks=np.linspace(0, 1, 6))


def _draw_space(ax: Axes3D) -> None:
    simplex = Poly3DCollection([np.eye(3)], facecolor="#8a929a14", edgecolor=FAINT, linewidth=0.7)
    ax.add_collection3d(simplex)
    ax.set(xlim=(0, 1), ylim=(0, 1), zlim=(0, 1))
    sides: list[Any] = [ax.xaxis, ax.yaxis, ax.zaxis]
    for side, role in zip(sides, ("core", "overfitted", "confusing"), strict=True):
        side.set_pane_color((1, 1, 1, 0))
        side.line.set(color=FAINT, linewidth=0.8)
        side.set_label_text(f"{role} units (fraction)", fontsize=TEXT)
        # At 0 and 1 the texts of two sides would collide.
        side.set_ticks(np.linspace(0, 1, 6), ["", "0.2", "0.4", "0.6", "0.8", ""])
    ax.tick_params(labelsize=SMALL, pad=0)
    ax.view_init(elev=28, azim=45)  # facing the triangle


def _gap(taxonomy: Taxonomy) -> str:
    if not taxonomy.scored:
        return "gap not measured"
    return f"gap {round(taxonomy.gap, 2) + 0:.2f}".replace("0.", ".", 1)


def _members(taxonomies: Mapping[str, Taxonomy]) -> dict[str, Taxonomy]:
    if not taxonomies:
        raise InputError("expected taxonomies by name, at least one: {'A': taxonomy, ...}")
    return dict(taxonomies)
