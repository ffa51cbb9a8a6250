"""Plots: the artists show what the taxonomy holds, and nothing is left behind."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from unitroles import plots, roles
from unitroles.errors import InputError
from unitroles.plots.style import ROLE_COLOURS
from unitroles.results.dataset import SPLITS, Measured, dataset
from unitroles.results.taxonomy import Taxonomy
from unitroles.roles import ROLE_NAMES, ROLES
from unitroles.stats.minima import NEVER_FALLS

NAMES = ["plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
GAPS = {"A": 0.08, "B": 0.13, "C": 0.27, "D": 0.38, "E": 0.60}


def falling(points: np.ndarray, low: np.ndarray, rise: np.ndarray, units: int) -> np.ndarray:
    """One curve a row: 2.3 with no unit, `low` at the turning point, `rise` more at N."""
    n, point = np.arange(units + 1), points[:, None]
    before = np.clip(1 - n / point, 0, None) ** 2.2
    after = np.clip((n - point) / np.maximum(units - point, 1), 0, None) ** 1.4
    return low[:, None] + (2.3 - low[:, None]) * before + rise[:, None] * after


def model(gap: float, units: int = 64, names: list[str] | None = NAMES) -> Taxonomy:
    """A made-up model: the wider the gap, the later the training curve turns."""
    rng, count = np.random.default_rng(int(1000 * gap)), len(names or NAMES)
    score = rng.gamma(1.2, 1.0, (1, count, units))
    score = score * rng.lognormal(0, 0.1 + 0.3 * gap, (2, count, units))
    centre = np.array([[0.22 + 1.1 * gap], [0.24 + 0.1 * gap]])
    points = np.clip(centre + rng.normal(0, 0.05, (2, count)), 0.08, 0.97) * units
    low = np.array([[0.01 + 0.3 * (0.66 - gap)], [0.5 + 1.2 * gap]])
    rise = np.array([[0.01 + 0.3 * (0.66 - gap)], [0.15 + 7 * gap**2]])
    low, rise = (x * rng.uniform(0.8, 1.2, (2, count)) for x in (low, rise))
    whole = np.maximum(points.astype(int), 1)
    loss = np.stack([falling(whole[s], low[s], rise[s], units) for s in (0, 1)])
    attrs = {"layer": "features", "train_accuracy": 0.95, "test_accuracy": 0.95 - gap}
    measured = Measured(
        score=score,
        order=np.argsort(-score, axis=-1, kind="stable"),
        loss=loss,
        accuracy=np.exp(-loss),
        samples=np.full((2, count), 100),
        turning_point=roles.turning_point(loss),
        swapped_loss=loss[..., -1],
        swapped_accuracy=np.exp(-loss[..., -1]),
    )
    data = dataset(
        measured,
        labels=np.arange(count),
        names=names,
        attrs=attrs,
        provenance={},
    )
    return Taxonomy(data)


def with_loss(member: Taxonomy, change: np.ndarray) -> Taxonomy:
    """The same taxonomy with every loss multiplied by `change`."""
    return Taxonomy(member.data.assign(loss=member.data.loss * change))


def with_flags(member: Taxonomy, label: str, *splits: str) -> Taxonomy:
    """The same taxonomy, but on `splits` retrieving units never helps the class."""
    data = member.data.copy(deep=True)
    for split in splits:
        data["status"].loc[{"split": split, "label": label}] = NEVER_FALLS
    return Taxonomy(data)


MODELS = {name: model(gap) for name, gap in GAPS.items()}


def artist(ax: Axes, gid: str):
    (found,) = [child for child in ax.get_children() if child.get_gid() == gid]
    return found


def legend_texts(holder) -> list[str]:
    return [text.get_text() for text in holder.get_texts()]


def texts(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.texts]


def drawn(figure: Figure) -> Figure:
    """Lay out and draw (what does not fit warns, and warnings are errors): nothing is cut off."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    box, (width, height) = figure.get_tightbbox(canvas.get_renderer()), figure.get_size_inches()
    assert min(box.x0, box.y0) > -0.02
    assert box.x1 < width + 0.02
    assert box.y1 < height + 0.02
    return figure


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    figures, parameters = plt.get_fignums(), dict(matplotlib.rcParams)
    yield
    assert plt.get_fignums() == figures
    assert dict(matplotlib.rcParams) == parameters


def test_the_models_have_every_role_and_two_orders() -> None:
    data = MODELS["B"].data
    assert set(np.unique(data.role.values)) == {int(role) for role in ROLES}
    assert (data.order.values[0] != data.order.values[1]).any()
    assert (data.turning_point.values[0] != data.turning_point.values[1]).any()


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", ["B", "E"])
def test_rof_curve_shows_the_curve_its_turning_point_and_both_ends(name: str, split: str) -> None:
    member = MODELS[name]
    ax = plots.rof_curve(member, "cat", split)
    data = member.data.sel(split=split, label="cat")
    line = artist(ax, "curve")
    np.testing.assert_array_equal(line.get_xdata(), data.retrieved)
    np.testing.assert_array_equal(line.get_ydata(), data.loss)
    point = int(data.turning_point)
    assert set(artist(ax, "turning point").get_xdata()) == {point}
    assert artist(ax, "turning point").get_linestyle() == "--"
    ablated, whole = data.loss.values[[0, -1]]
    expected = {
        f"$n_0$ = {point}",
        f"fully ablated layer {ablated:#.3g}",
        f"whole layer {whole:#.3g}",
    }
    assert set(texts(ax)) == {*expected, *notes(member, "cat", split)}
    drawn(ax.figure)


def test_the_losses_of_both_ends_stay_apart_where_they_are_alike() -> None:
    change = np.ones(65)
    for last in (0.99, 1.0, 1.01):
        member = MODELS["A"]
        change[-1] = last * float(member.data.loss[0, 3, 0] / member.data.loss[0, 3, -1])
        ax = plots.rof_curve(with_loss(member, change), "cat")
        drawn(ax.figure)
        ablated, whole = (
            next(t for t in ax.texts if t.get_text().startswith(name)).get_window_extent()
            for name in ("fully ablated", "whole")
        )
        assert max(ablated.y0, whole.y0) >= min(ablated.y1, whole.y1) - 0.01
        assert (ablated.y0 > whole.y0) == (last <= 1)


@pytest.mark.parametrize("name", ["B", "E"])
def test_role_curves_draw_each_split_in_its_own_order(name: str) -> None:
    data = MODELS[name].data.sel(label="dog")
    curves, strips = plots.role_curves(MODELS[name], "dog")
    for split in SPLITS:
        own = data.sel(split=split)
        np.testing.assert_array_equal(artist(curves, f"{split} curve").get_ydata(), own.loss)
        point = int(own.turning_point)
        assert set(artist(curves, f"{split} turning point").get_xdata()) == {point}
        strip = artist(strips, f"{split} roles")
        assert strip.get_extent()[:2] == [0, 64]
        expected = [
            to_rgba(ROLE_COLOURS[ROLE_NAMES[data.role.values[unit] - 1]])
            for unit in own.order.values
        ]
        np.testing.assert_array_equal(strip.get_array()[0], expected)
    assert texts(strips) == [f"$n_0$ = {n}" for n in data.turning_point.values]
    assert curves.get_xlim() == strips.get_xlim() == (0, 64)


def test_the_train_strip_lies_over_the_test_strip_and_is_named() -> None:
    _, strips = plots.role_curves(MODELS["A"], "cat")
    train, test = (artist(strips, f"{split} roles").get_extent()[2:] for split in SPLITS)
    assert min(train) > max(test)
    names = [tick.get_text() for tick in strips.get_yticklabels()]
    for (low, high), place, name, split in zip(
        (train, test), strips.get_yticks(), names, SPLITS, strict=True
    ):
        assert low < place < high
        assert name == split


def test_train_is_solid_and_test_dashed() -> None:
    curves, _ = plots.role_curves(MODELS["A"], "cat")
    assert artist(curves, "train curve").get_linestyle() == "-"
    assert artist(curves, "test curve").get_linestyle() == "--"
    assert legend_texts(curves.get_legend()) == ["train", "test"]


@pytest.mark.parametrize("name", ["B", "E"])
def test_the_legend_counts_every_role(name: str) -> None:
    _, strips = plots.role_curves(MODELS[name], "ship")
    legend = strips.get_legend()
    counts = [len(MODELS[name].units(role, "ship")) for role in ROLES]
    assert sum(counts) == 64
    expected = [f"{role} {count}" for role, count in zip(ROLE_NAMES, counts, strict=True)]
    assert legend_texts(legend) == expected
    colours = [patch.get_facecolor() for patch in legend.get_patches()]
    assert colours == [to_rgba(ROLE_COLOURS[role]) for role in ROLE_NAMES]


def test_a_log_scale_only_for_losses_over_three_decades() -> None:
    member = MODELS["C"]
    linear, _ = plots.role_curves(member, "cat")
    assert linear.get_yscale() == "linear"
    assert linear.get_ylabel() == "cross-entropy (nats)"
    wide = with_loss(member, np.where(np.arange(65) == 0, 1, 1e-4))
    for ax in (plots.role_curves(wide, "cat")[0], plots.rof_curve(wide, "cat")):
        assert ax.get_yscale() == "symlog"
        assert ax.get_ylabel() == "cross-entropy (nats, log scale)"
        drawn(ax.figure)


def test_a_loss_of_zero_can_be_drawn() -> None:
    member = with_loss(MODELS["C"], np.where(np.arange(65) < 30, 1, 0))
    curves, _ = plots.role_curves(member, "cat")
    drawn(curves.figure)
    assert curves.get_yscale() == "symlog"
    assert curves.get_ylim()[0] < 0


def test_classes_without_names_are_labels() -> None:
    member = model(0.2, names=None)
    assert plots.rof_curve(member, 3, "test").get_title("left") == "class 3, test"
    assert plots.role_curves(member, 3)[0].get_title("left") == "class 3"
    assert plots.role_curves(MODELS["A"], 3)[0].get_title("left") == "class cat"


def test_compare_has_a_panel_per_model() -> None:
    figure = drawn(plots.compare(MODELS, "cat"))
    panels = [ax for ax in figure.axes if ax.get_title("left")]
    titles = ["A  gap .08", "B  gap .13", "C  gap .27", "D  gap .38", "E  gap .60"]
    assert [ax.get_title("left") for ax in panels] == titles
    assert len(figure.axes) == 2 * len(MODELS)
    strips = [ax for ax in figure.axes if ax.images]
    for curves, strip, member in zip(panels, strips, MODELS.values(), strict=True):
        data = member.data.sel(label="cat")
        for split in SPLITS:
            own = data.sel(split=split)
            np.testing.assert_array_equal(artist(curves, f"{split} curve").get_ydata(), own.loss)
        counts = [str(len(member.units(role, "cat"))) for role in ROLES]
        assert legend_texts(strip.get_legend()) == counts
        assert curves.get_ylim() == panels[0].get_ylim()
    (legend,) = figure.legends
    assert legend.get_title().get_text() == "class cat"
    assert legend_texts(legend) == [*SPLITS, *ROLE_NAMES]


def title_box(ax: Axes):
    return ax._left_title.get_window_extent()  # pyright: ignore[reportAttributeAccessIssue]


def under_title(ax: Axes) -> list[str]:
    """The lines between the title and the axes, checked to stand there, apart from the title."""
    found = [text for text in ax.texts if text.get_gid() == "status"]
    for text in found:
        box = text.get_window_extent()
        assert ax.get_window_extent().y1 < box.y0
        assert box.y1 <= title_box(ax).y0 + 1
    return [line for text in found for line in text.get_text().split("\n")]


def notes(member: Taxonomy, label: str, *splits: str) -> list[str]:
    """What should be said of curves without a clear minimum."""
    status = member.data.status.sel(label=label)
    words = {split: str(status.sel(split=split).item()) for split in splits}
    return [f"{split}: {text}" for split, text in words.items() if text != "clear minimum"]


def test_bands_show_the_intervals_where_there_are_some() -> None:
    member = MODELS["B"]
    data, n = member.data, member.data.sizes["retrieved"]
    low, high = data.loss - 0.1, data.loss + 0.2
    points = data.turning_point.values + np.array([-1, 0, 1])[:, None, None]
    again = (("replicate", "split", "label"), points)
    wide = data.assign(loss_low=low, loss_high=high, turning_point_replicate=again)
    sure = Taxonomy(wide.assign_attrs(provenance='{"options": {}}'))
    ax = plots.rof_curve(sure, "cat", "test")
    band = artist_of(ax.collections, "test interval").get_paths()[0].vertices
    own = data.loss.sel(split="test", label="cat").values
    assert set(band[:, 0]) == set(range(n))
    np.testing.assert_allclose(band[:, 1].min(), own.min() - 0.1)
    np.testing.assert_allclose(band[:, 1].max(), own.max() + 0.2)
    span = artist_of(ax.patches, "test interval of n0")
    n0 = int(data.turning_point.sel(split="test", label="cat"))
    first, last = np.percentile([n0 - 1, n0, n0 + 1], [5, 95])
    np.testing.assert_allclose([span.get_x(), span.get_x() + span.get_width()], [first, last])
    drawn(ax.figure)
    curves, _ = plots.role_curves(sure, "cat")
    assert {c.get_gid() for c in curves.collections} == {"train interval", "test interval"}
    drawn(curves.figure)
    assert not plots.rof_curve(member, "cat", "test").collections


def artist_of(artists, gid: str):
    (found,) = [artist for artist in artists if artist.get_gid() == gid]
    return found


def test_compare_marks_the_flagged_panels() -> None:
    flagged = {
        "B": MODELS["B"],
        "D": with_flags(MODELS["D"], "cat", "test"),
        "E": with_flags(MODELS["E"], "cat", "train", "test"),
    }
    figure = drawn(plots.compare(flagged, "cat"))
    panels = [ax for ax in figure.axes if ax.get_title("left")]
    test = "test: never below the fully ablated layer"
    expected = [[], [test], ["train: never below the fully ablated layer", test]]
    assert [under_title(ax) for ax in panels] == expected
    assert len({round(title_box(ax).y0, 3) for ax in panels}) == 1
    other = drawn(plots.compare(flagged, "dog"))
    assert not any(under_title(ax) for ax in other.axes)


def test_curves_of_a_flagged_class_are_marked() -> None:
    member = with_flags(MODELS["E"], "cat", "test")
    test = "test: never below the fully ablated layer"
    train, both = notes(member, "cat", "train"), notes(member, "dog", *SPLITS)
    for axes, expected in (
        (plots.role_curves(member, "cat")[0], [*train, test]),
        (plots.rof_curve(member, "cat", "test"), [test]),
        (plots.rof_curve(member, "cat", "train"), train),
        (plots.role_curves(member, "dog")[0], both),
    ):
        drawn(axes.figure)
        assert under_title(axes) == expected


def test_the_mark_stands_apart_from_the_turning_point() -> None:
    ax = plots.rof_curve(with_flags(MODELS["A"], "cat", "test"), "cat", "test")
    drawn(ax.figure)
    mark = next(text for text in ax.texts if text.get_gid() == "status").get_window_extent()
    point = next(text for text in ax.texts if text.get_text().startswith("$n_0$"))
    assert point.get_window_extent().y1 <= mark.y0


def test_compare_does_not_share_an_axis_that_would_flatten_a_model() -> None:
    large = with_loss(MODELS["A"], np.full(65, 50.0))
    figure = drawn(plots.compare({"A": MODELS["A"], "large": large}, "cat"))
    small, big = (ax for ax in figure.axes if ax.get_title("left"))
    assert big.get_ylim()[1] > 10 * small.get_ylim()[1]
    assert big.yaxis.get_tick_params()["labelleft"]


def test_compare_breaks_into_rows() -> None:
    many = {f"layer {i}": MODELS["A"] for i in range(7)}
    figure = drawn(plots.compare(many, "cat"))
    titles = [ax.get_title("left") for ax in figure.axes if ax.get_title("left")]
    assert titles == [f"layer {i}  gap .08" for i in range(7)]
    assert len(figure.axes) == 14
    panels = [ax for ax in figure.axes if ax.get_title("left")]
    assert panels[6].get_position().y1 < panels[0].get_position().y0


@pytest.mark.parametrize(
    ("gap", "text"), [(-0.03, "-.03"), (-0.001, ".00"), (0.0, ".00"), (1.0, "1.00"), (0.5, ".50")]
)
def test_gaps_are_short(gap: float, text: str) -> None:
    attrs = {**MODELS["A"].data.attrs, "train_accuracy": gap, "test_accuracy": 0.0}
    figure = plots.compare({"A": Taxonomy(MODELS["A"].data.assign_attrs(attrs))}, "cat")
    assert figure.axes[0].get_title("left") == f"A  gap {text}"


def test_proportions_3d_has_a_point_per_class_and_model() -> None:
    ax = plots.proportions_3d(MODELS)
    clouds = [child for child in ax.collections if isinstance(child, PathCollection)]
    assert len(clouds) == len(MODELS)
    for cloud, member in zip(clouds, MODELS.values(), strict=True):
        points = np.stack(cloud._offsets3d, axis=1)  # pyright: ignore[reportAttributeAccessIssue]
        table = member.proportions()[["core", "overfitted", "confusing"]]
        np.testing.assert_array_equal(points, table)
    names = [ax.get_xlabel(), ax.get_ylabel(), ax.get_zlabel()]
    assert names == [f"{role} units (fraction)" for role in ("core", "overfitted", "confusing")]
    looks = {(*cloud.get_facecolor()[0], len(cloud.get_paths()[0])) for cloud in clouds}
    assert len(looks) == len(MODELS)
    (legend,) = drawn(ax.figure).legends
    assert [text.split()[0] for text in legend_texts(legend)] == list(MODELS)


def test_shares_draw_the_distribution_over_the_units() -> None:
    panels = plots.shares(MODELS)
    assert [ax.get_title("left") for ax in panels] == list(ROLE_NAMES)
    for ax, role in zip(panels, ROLE_NAMES, strict=True):
        tables = [member.shares()[role] for member in MODELS.values()]
        fractions = [table.value_counts(normalize=True).sort_index() for table in tables]
        widest = max(fraction.max() for fraction in fractions)
        for i, (bars, fraction) in enumerate(zip(ax.containers, fractions, strict=True)):
            boxes = [bar.get_bbox() for bar in bars]
            np.testing.assert_allclose([(b.y0 + b.y1) / 2 for b in boxes], fraction.index)
            np.testing.assert_allclose([(b.x0 + b.x1) / 2 for b in boxes], i, atol=1e-12)
            widths = np.array([b.width for b in boxes])
            np.testing.assert_allclose(widths / 0.88, fraction / widest)
        means = [line.get_ydata()[0] for line in ax.lines]
        np.testing.assert_allclose(means, [table.mean() for table in tables])
        assert {bar.get_facecolor() for bar in ax.patches} == {to_rgba(ROLE_COLOURS[role])}
    assert [tick.get_text() for tick in panels[3].get_xticklabels()] == list(MODELS)
    drawn(panels[0].figure)


def test_shares_of_many_classes_are_rounded_to_twentieths() -> None:
    member = model(0.3, units=32, names=[f"class {i}" for i in range(60)])
    for ax, role in zip(plots.shares({"A": member}), ROLE_NAMES, strict=True):
        heights = [bar.get_y() + bar.get_height() / 2 for bar in ax.patches]
        nearest = np.unique(np.rint(member.shares()[role].to_numpy() * 20)) / 20
        np.testing.assert_allclose(heights, nearest)


def test_given_axes_are_used_and_returned() -> None:
    figure = Figure()
    grid = figure.subplots(3, 2)
    assert plots.rof_curve(MODELS["A"], "cat", ax=grid[0, 0]) is grid[0, 0]
    assert plots.role_curves(MODELS["A"], "cat", axes=grid[1]) == tuple(grid[1])
    other = Figure().subplots(2, 2)
    assert plots.shares(MODELS, axes=other) == tuple(other.flat)
    ax = Figure().add_subplot(projection="3d")
    assert plots.proportions_3d(MODELS, ax=ax) is ax
    assert len(legend_texts(ax.get_legend())) == len(MODELS)
    assert len(figure.axes) == 6
    assert all(ax.lines for ax in (grid[0, 0], *grid[1]))
    assert not any(ax.has_data() for ax in (grid[0, 1], *grid[2]))


def test_an_unknown_label_or_split_is_named() -> None:
    for draw in (plots.rof_curve, plots.role_curves):
        with pytest.raises(InputError, match="unknown label 'cats'; did you mean cat"):
            draw(MODELS["A"], "cats")
    with pytest.raises(InputError, match="unknown label 'cats'"):
        plots.compare(MODELS, "cats")
    with pytest.raises(InputError, match="unknown split 'tests'; did you mean test"):
        plots.rof_curve(MODELS["A"], "cat", "tests")


def test_wrong_axes_and_no_taxonomies_are_told() -> None:
    with pytest.raises(InputError, match="expected 2 axes, for the curves and .*; 3 were given"):
        plots.role_curves(MODELS["A"], "cat", axes=Figure().subplots(3))
    with pytest.raises(InputError, match="expected 4 axes, for the four roles; 2 were given"):
        plots.shares(MODELS, axes=Figure().subplots(2))
    for draw in (plots.shares, plots.proportions_3d, lambda none: plots.compare(none, "cat")):
        with pytest.raises(InputError, match="at least one"):
            draw({})


def test_a_flat_panel_cannot_hold_three_dimensions() -> None:
    flat = Figure().add_subplot()
    with pytest.raises(InputError, match='projection="3d"'):
        plots.proportions_3d(MODELS, ax=flat)


def test_every_role_has_a_colour_of_its_own() -> None:
    assert tuple(ROLE_COLOURS) == ROLE_NAMES
    assert len(set(ROLE_COLOURS.values())) == len(ROLE_NAMES)
