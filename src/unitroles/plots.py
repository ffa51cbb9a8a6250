"""Taxonomy -> matplotlib: curves with the roles under them, comparisons of several models.

Every function draws on the axes it is given, or on a figure of its own, and returns what it drew
on. Figures never pass through pyplot: nothing is shown, and nothing has to be closed. A class is
given by its name or by its number in the model's output; a class or a split that does not exist,
the wrong number of axes and an empty mapping are an `InputError`. Losses that span more than three
decades are drawn on a log scale (linear below 1e-6 nats, where they are numerical noise). Lines
under the title of a class say which splits have no clear minimum, and what they have instead;
where models are compared, only those in which waking units never lowers the loss. Results with
confidence show the intervals of the losses and of n0 as bands, without rank noise where that was
"given_order".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba_array
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d.art3d import Poly3DCollection
from mpl_toolkits.mplot3d.axes3d import Axes3D

from unitroles.drawing import (
    EDGE,
    FAINT,
    INK,
    NARROW,
    PLAIN,
    ROLE_COLOURS,
    SMALL,
    SPLIT_STYLES,
    TEXT,
    TITLE,
    calm,
    class_title,
    dots,
    draw_intervals,
    evaluated,
    finish_curves,
    flags_of,
    notes_of,
    patches,
    spans_decades,
    take,
    write_beside,
    write_title,
)
from unitroles.errors import InputError, unknown
from unitroles.labelled import SPLITS
from unitroles.roles import ROLE_NAMES, ROLES
from unitroles.taxonomy import Taxonomy

# Seven colours and eight markers: 56 models before a pair comes back.
_MODEL_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#4d4d4d")
_MODEL_MARKERS = "os^Dv<>P"
_POINT: dict[str, Any] = {"s": 32, "edgecolors": "white", "linewidths": 0.5, "depthshade": False}
_MAX_STEPS = 20
_PANELS_PER_ROW = 6


def rof_curve(
    taxonomy: Taxonomy, label: int | str, split: str = "train", ax: Axes | None = None
) -> Axes:
    """The ROF curve E(n) of one class, in nats, with its turning point (the paper's figure 1B).

    Parameters
    ----------
    split : "train" or "test".
    ax : where to draw; None makes a figure.
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    place = taxonomy.find_label(label)
    data = taxonomy.data.sel(split=split).isel(label=place)
    loss, point, last = data.loss.values, int(data.turning_point), data.sizes["unit"]
    if ax is None:
        ax = Figure(figsize=(6.2, 3.6), layout="constrained").add_subplot()
    ax.plot(*evaluated(loss), color=INK, linewidth=1.6, gid="curve", **dots(loss))
    draw_intervals(ax, taxonomy, place, split, INK)
    ax.axvline(point, color=INK, linestyle="--", linewidth=0.9, gid="turning point")
    ax.plot([0, point, last], loss[[0, point, last]], "o", color=INK, markersize=4, clip_on=False)
    finish_curves(ax, loss, spans_decades([loss]), taxonomy.loss_units)
    ax.set_xlabel("units retrieved", fontsize=TEXT)
    top, title = ax.get_xaxis_transform(), f"{class_title(taxonomy, place)}, {split}"
    ax.text(point, 1.02, f"$n_0$ = {point}", transform=top, ha="center", fontsize=TEXT)
    notes = notes_of(taxonomy, place, (split,))
    write_title(ax, title, notes, len(notes), below=12.0)  # n0 stands between
    ends = np.stack([[0, last], loss[[0, last]]], axis=1)
    heights = ax.transAxes.inverted().transform(ax.transData.transform(ends))[:, 1]
    sides = ("bottom", "top") if heights[0] >= heights[1] else ("top", "bottom")
    apart = abs(heights[0] - heights[1]) > 0.08
    for n, name, side in zip((0, last), ("dead layer", "whole layer"), sides, strict=True):
        ax.axhline(loss[n], color=FAINT, linestyle=":", linewidth=0.9, zorder=0)
        write_beside(ax, loss[n], f"{name} {loss[n]:#.3g}", TEXT, "center" if apart else side)
    return ax


def role_curves(
    taxonomy: Taxonomy, label: int | str, axes: Sequence[Axes] | np.ndarray | None = None
) -> tuple[Axes, Axes]:
    """Both ROF curves of one class over the roles of its units (the paper's figure 2).

    Each split has its own order: the unit at position p of the order is the stretch from p to
    p + 1 of the split's strip, and the vertical lines are the two turning points.

    Parameters
    ----------
    axes : two axes, for the curves and for the strips under them; None makes a figure.
    """
    place = taxonomy.find_label(label)
    if axes is None:
        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        axes = figure.subplots(2, 1, height_ratios=[6, 1])
    curves, strips = take(axes, 2, "the curves and the strips under them")
    log = spans_decades(taxonomy.data.loss.values[:, place])
    _draw_roles(curves, strips, taxonomy, place, log)
    # Above the axes, where no line can run through it.
    curves.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, **PLAIN)
    notes = notes_of(taxonomy, place)
    write_title(curves, class_title(taxonomy, place), notes, len(notes))
    _count_roles(strips, taxonomy, place, "{role} {count}")
    return curves, strips


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
        _draw_roles(curves, strips, member, places[i], log)
        _count_roles(strips, member, places[i], "{count}")
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


def proportions_3d(taxonomies: Mapping[str, Taxonomy], ax: Axes | None = None) -> Axes3D:
    """Role proportions of every class: core x overfitted x confusing (the paper's figure 4).

    One point per class, one colour and marker per model. The shaded triangle holds the classes
    without generalizing units; the others lie behind it.
    """
    members = _members(taxonomies)
    size = (6.8 + 0.08 * max(map(len, members)), 4.8)  # room for the legend
    figure = Figure(figsize=size, layout="constrained") if ax is None else None
    if figure is not None:
        with rc_context({"grid.color": "#d9dde1", "grid.linewidth": 0.6}):  # 3-D axes keep these
            ax = figure.add_subplot(projection="3d")
    if not isinstance(ax, Axes3D):
        raise InputError('proportions_3d needs 3-D axes; make them with projection="3d"')
    _draw_space(ax)
    for i, (name, member) in enumerate(members.items()):
        core, overfitted, _, confusing = member.proportions().to_numpy().T
        colour = _MODEL_COLOURS[i % len(_MODEL_COLOURS)]
        marker = _MODEL_MARKERS[i % len(_MODEL_MARKERS)]
        style = {"color": colour, "marker": marker, "label": f"{name}  {_gap(member)}", **_POINT}
        ax.scatter(core, overfitted, confusing, **style)
    if figure is None:
        ax.legend(loc="upper left", **PLAIN)
    else:
        figure.legend(loc="outside right upper", **PLAIN)
    return ax


def shares(
    taxonomies: Mapping[str, Taxonomy], axes: Sequence[Axes] | np.ndarray | None = None
) -> tuple[Axes, ...]:
    """How the role shares of the units are distributed, one panel per role (the paper's table 3).

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


def _draw_roles(curves: Axes, strips: Axes, taxonomy: Taxonomy, place: int, log: bool) -> None:
    data = taxonomy.data.isel(label=place)
    losses, role, order = data.loss.values, data.role.values, data.order.values
    palette = to_rgba_array([FAINT, *(ROLE_COLOURS[name] for name in ROLE_NAMES)])
    for split, loss in zip(SPLITS, losses, strict=True):
        look = {**SPLIT_STYLES[split], **dots(loss)}
        curves.plot(*evaluated(loss), label=split, linewidth=1.5, gid=f"{split} curve", **look)
        draw_intervals(curves, taxonomy, place, split, look["color"])
    for i, (split, low) in enumerate(zip(SPLITS, (1.15, 0), strict=True)):
        point, style = int(data.turning_point[i]), SPLIT_STYLES[split]
        mark = {"color": style["color"], "linewidth": 0.9}
        curves.axvline(point, linestyle=style["linestyle"], gid=f"{split} turning point", **mark)
        curves.plot(point, losses[i, point], "o", markersize=3.5, clip_on=False, **mark)
        image = {"extent": (0, len(role), low, low + 1), "gid": f"{split} roles"}
        strips.imshow(palette[role[order[i]]][None], interpolation="nearest", **image)
        strips.plot([point, point], [low, low + 1], **mark)
        write_beside(strips, low + 0.5, f"$n_0$ = {point}", SMALL)
    finish_curves(curves, losses, log, taxonomy.loss_units)
    curves.tick_params(labelbottom=False)
    calm(strips, len(role))
    strips.spines[:].set_visible(False)
    strips.set(aspect="auto", ylim=(0, 2.15), yticks=(1.65, 0.5), yticklabels=SPLITS)
    strips.tick_params(axis="y", length=0)
    strips.set_xlabel("units retrieved", fontsize=TEXT)


def _count_roles(ax: Axes, taxonomy: Taxonomy, place: int, text: str) -> None:
    role = taxonomy.data.role.values[place]
    texts = [text.format(role=r.name.lower(), count=int((role == r).sum())) for r in ROLES]
    below: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -1.1), "ncols": 4}
    ax.legend(patches(), texts, **below, **PLAIN, **NARROW)


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
