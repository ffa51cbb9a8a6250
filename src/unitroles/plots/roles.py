"""Figures of one taxonomy: curves of the retrieval test with the roles under them.

A class is given by its name or by its number in the model's output; a class or a split that does
not exist, the wrong number of axes and an empty mapping are an `InputError`. Losses that span more
than three decades are drawn on a log scale (linear below 1e-6 nats, where they are rounding).
Lines under the title of a class say which splits have no clear minimum, and what they have instead;
where models are compared, only those never below the fully ablated layer. Results with
bootstrap show the intervals of the losses and of n0 as bands, without the uncertainty of the
ranking where that was "fixed_ranking".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba_array
from matplotlib.figure import Figure

from unitroles.annotations import checked
from unitroles.errors import unknown
from unitroles.plots.style import (
    FAINT,
    INK,
    PLAIN,
    ROLE_COLOURS,
    SMALL,
    SPLIT_STYLES,
    TEXT,
    calm,
    class_title,
    draw_curve,
    finish_curves,
    notes_of,
    patches,
    spans_decades,
    take,
    write_beside,
    write_title,
)
from unitroles.results.dataset import SPLITS
from unitroles.results.taxonomy import Taxonomy
from unitroles.roles import ROLE_NAMES, ROLES


@checked
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
    draw_curve(ax, taxonomy, place, split, color=INK, linewidth=1.6, gid="curve")
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
    apart = not abs(heights[0] - heights[1]) <= 0.08
    for n, name, side in zip((0, last), ("fully ablated layer", "whole layer"), sides, strict=True):
        if np.isnan(loss[n]):
            continue  # 0/0 with no unit retrieved
        ax.axhline(loss[n], color=FAINT, linestyle=":", linewidth=0.9, zorder=0)
        write_beside(ax, loss[n], f"{name} {loss[n]:#.3g}", TEXT, "center" if apart else side)
    return ax


@checked
def role_curves(
    taxonomy: Taxonomy, label: int | str, axes: Sequence[Any] | None = None
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
        axes = Figure(figsize=(6.4, 4.2), layout="constrained").subplots(2, 1, height_ratios=[6, 1])
    curves, strips = take(axes, 2, "the curves and the strips under them")
    log = spans_decades(taxonomy.data.loss.values[:, place])
    draw_roles(curves, strips, taxonomy, place, log)
    # Above the axes, where no line can run through it.
    curves.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, **PLAIN)
    notes = notes_of(taxonomy, place)
    write_title(curves, class_title(taxonomy, place), notes, len(notes))
    count_roles(strips, taxonomy, place, "{role} {count}")
    return curves, strips


def draw_roles(curves: Axes, strips: Axes, taxonomy: Taxonomy, place: int, log: bool) -> None:
    data = taxonomy.data.isel(label=place)
    losses, role, order = data.loss.values, data.role.values, data.order.values
    palette = to_rgba_array([FAINT, *(ROLE_COLOURS[name] for name in ROLE_NAMES)])
    for split, style in SPLIT_STYLES.items():
        gid = f"{split} curve"
        draw_curve(curves, taxonomy, place, split, label=split, linewidth=1.5, gid=gid, **style)
    for i, (split, low) in enumerate(zip(SPLITS, (1.15, 0), strict=True)):
        point, style = int(data.turning_point[i]), SPLIT_STYLES[split]
        mark = {"color": style["color"], "linewidth": 0.9}
        curves.axvline(point, linestyle=style["linestyle"], gid=f"{split} turning point", **mark)
        curves.plot(point, losses[i, point], "o", markersize=3.5, clip_on=False, **mark)
        strips.imshow(
            palette[role[order[i]]][None],
            extent=(0, len(role), low, low + 1),
            interpolation="nearest",
            gid=f"{split} roles",
        )
        strips.plot([point, point], [low, low + 1], **mark)
        write_beside(strips, low + 0.5, f"$n_0$ = {point}", SMALL)
    finish_curves(curves, losses, log, taxonomy.loss_units)
    curves.tick_params(labelbottom=False)
    calm(strips, len(role))
    strips.spines[:].set_visible(False)
    strips.set(aspect="auto", ylim=(0, 2.15), yticks=(1.65, 0.5), yticklabels=SPLITS)
    strips.tick_params(axis="y", length=0)
    strips.set_xlabel("units retrieved", fontsize=TEXT)


def count_roles(ax: Axes, taxonomy: Taxonomy, place: int, text: str) -> None:
    role = taxonomy.data.role.values[place]
    texts = [text.format(role=r.name.lower(), count=int((role == r).sum())) for r in ROLES]
    ax.legend(
        patches(),
        texts,
        loc="upper center",
        bbox_to_anchor=(0.5, -1.1),
        ncols=4,
        handlelength=1.2,
        handletextpad=0.5,
        columnspacing=1.2,
        **PLAIN,
    )
