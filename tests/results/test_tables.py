"""Evidence in the tables of a result: each number is that of its replicates, and says of what."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import networks
import reference
import unitroles as ur
from forcing import layer_of, one_copy, quietly
from unitroles.report import text
from unitroles.report.layout import csv_of
from unitroles.results.evidence import WITH_RANKS, WITHOUT_RANKS
from unitroles.roles import ROLE_NAMES
from unitroles.stats.minima import CLEAR

pytestmark = pytest.mark.usefixtures("one_thread")

ASKED = ur.Evidence(floors=4, resplits=4, replicates=7, level=0.8, controls=False)
TAIL = 10  # percent


def analysed(toy, evidence, **options):
    return quietly(
        ur.analyze, toy.model, toy.train, toy.test, layer_of(toy), evidence=evidence, **options
    )


@pytest.fixture(scope="module", params=["fixed_ranking", "full"])
def taxonomy(request):
    return analysed(one_copy("mlp", torch.float64), replace(ASKED, bootstrap=request.param))


def percentiles(values):
    return np.percentile(values, [TAIL, 100 - TAIL], axis=0)


def redone(data, r):
    """The roles of one replicate in the given order."""
    units = data.sizes["unit"]
    found = []
    for k in range(data.sizes["label"]):
        sets = [
            data.order.values[s, k][: data.turning_point_replicate.values[r, s, k]] for s in (0, 1)
        ]
        found.append(reference.roles(*sets, units))
    return np.stack(found)


def test_intervals_of_both_stds_are_those_of_the_replicates(taxonomy):
    data, frame = taxonomy.data, taxonomy.intervals()
    summary = taxonomy.summary()
    assert frame["value"].equals(summary["mean"])
    over_labels = data.proportion_replicate.values.std(axis=1)
    if "role_probability" not in data:
        roles = [redone(data, r) for r in range(ASKED.replicates)]
        np.testing.assert_allclose(
            [reference.shares(role).std(axis=0) for role in roles], data.std_over_units_replicate
        )
    for name, again in (
        ("std_over_labels", over_labels),
        ("std_over_units", data.std_over_units_replicate.values),
    ):
        np.testing.assert_allclose(frame[name], summary[name], atol=1e-12)
        low, high = percentiles(again)
        np.testing.assert_allclose(frame[f"{name}_low"], low, atol=1e-12)
        np.testing.assert_allclose(frame[f"{name}_high"], high, atol=1e-12)


def test_bounds_of_shares_are_ordered_and_shares(taxonomy):
    by_label = taxonomy.intervals(by_label=True)
    for frame in (taxonomy.intervals(), by_label, taxonomy.signs().loc[list(ROLE_NAMES)]):
        assert (frame.low >= 0).all()
        assert (frame.low <= frame.high).all()
        assert (frame.high <= 1).all()
    floors = taxonomy.floors()
    for split in ("train", "test"):
        columns = floors[[f"{split}_low", f"{split}_high"]]
        assert (columns.diff(axis=1).iloc[:, 1] >= 0).all()
        assert ((columns >= 0) & (columns <= 1)).all(axis=None)


def test_intervals_of_each_class(taxonomy):
    frame = taxonomy.intervals(by_label=True)
    assert list(frame.index.names) == ["label", "role"]
    low, high = percentiles(taxonomy.data.proportion_replicate.values)
    for place, label in enumerate(taxonomy.labels):
        rows = frame.loc[label]
        assert list(rows.index) == list(ROLE_NAMES)
        np.testing.assert_array_equal(rows["value"], taxonomy.proportions().loc[label])
        np.testing.assert_allclose(rows[["low", "high"]].T, [low[place], high[place]], atol=1e-12)


def test_curves_minima_and_regret_have_their_intervals(taxonomy):
    data, curves = taxonomy.data, taxonomy.curves()
    for side in ("low", "high"):
        np.testing.assert_array_equal(curves[f"loss_{side}"], data[f"loss_{side}"].values.ravel())
    low, high = percentiles(data.turning_point_replicate.values)
    minima = taxonomy.minima()
    np.testing.assert_allclose(minima.turning_point_low, low.ravel(), atol=1e-12)
    np.testing.assert_allclose(minima.turning_point_high, high.ravel(), atol=1e-12)
    low, high = percentiles(data.regret_replicate.values)
    regret = taxonomy.regret()
    for place, split in enumerate(("train", "test")):
        np.testing.assert_allclose(regret[f"{split}_low"], low[place], atol=1e-12)
        np.testing.assert_allclose(regret[f"{split}_high"], high[place], atol=1e-12)


def test_the_chance_of_every_role_stands_beside_the_unit(taxonomy):
    frame, data = taxonomy.to_frame(), taxonomy.data
    names = [f"p_{role}" for role in ROLE_NAMES]
    if "role_probability" not in data:
        assert not set(names) & set(frame)
        return
    chance = frame[names].to_numpy()
    np.testing.assert_allclose(chance.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(chance, data.role_probability.values.reshape(chance.shape))


def test_without_evidence_tables_are_as_they_were():
    plain = analysed(one_copy("mlp", torch.float64), None)
    assert list(plain.curves()) == ["split", "label", "retrieved", "loss", "accuracy"]
    assert list(plain.regret()) == ["train", "test", "train_accuracy", "test_accuracy"]
    assert list(plain.minima()) == ["turning_point", "low", "high", "width", "status"]
    assert len(plain.to_frame().columns) == 7
    assert "train_only_signs" not in plain.tables
    assert "training samples alone" not in text.report(plain)


def test_every_interval_says_whether_ranks_are_in_it(taxonomy):
    full = "role_probability" in taxonomy.data
    noise = WITH_RANKS if full else WITHOUT_RANKS
    frames = [taxonomy.intervals(), taxonomy.intervals(by_label=True), taxonomy.signs()]
    frames += [taxonomy.summary(), taxonomy.minima(), taxonomy.regret(), taxonomy.curves()]
    for frame in frames:
        assert frame.attrs == {"level": ASKED.level, "noise": noise}
        lines = csv_of(frame, True).splitlines()
        assert lines[0].endswith(",level,noise")
        assert all(line.endswith(f",{ASKED.level},{noise}") for line in lines[1:])
    printed = text.report(taxonomy)
    assert printed.count(noise) == 2
    assert (WITHOUT_RANKS in printed) != full
    assert ("coverage is not measured where orders are redone" in printed) == full
    assert ("coverage" in taxonomy.data) != full


def test_a_value_outside_its_own_interval_is_said(taxonomy):
    data, said = taxonomy.data, "which is then not to be trusted: "
    inside = data.assign(
        proportion_replicate=data.proportion_replicate * 0 + own_shares(data),
        std_over_units_replicate=data.std_over_units_replicate * 0
        + taxonomy.summary().std_over_units.values,
    )
    assert said not in text.report(ur.Taxonomy(inside))
    moved = data.proportion_replicate * 0 + np.array([0.0, 0.5, 0.5, 0.0])
    printed = text.report(ur.Taxonomy(data.assign(proportion_replicate=moved)))
    names = printed.split(f"{said}proportion ")[1].split("\n")[0].split("; ")[0].split(", ")
    value = taxonomy.proportions().mean()
    beyond = [
        role for role, x in zip(ROLE_NAMES, (0, 0.5, 0.5, 0), strict=True) if value[role] != x
    ]
    assert names == beyond


def own_shares(data):
    return np.stack([(data.role.values == i).mean(axis=1) for i in (1, 2, 3, 4)], axis=-1)


def test_new_splits_say_how_many_they_are(taxonomy):
    frame = taxonomy.exchangeability()
    assert (frame.attrs["resplits"], frame.attrs["smallest_p"]) == (4, 1 / 5)
    (head, *rows) = csv_of(frame, True).splitlines()
    assert head.endswith(",p,resplits,smallest_p,asks")
    assert len(rows) == 3
    assert all(",4,0.2," in row for row in rows)


def test_what_the_training_samples_say_stands_in_the_report(taxonomy):
    frame = taxonomy.train_only_signs()
    assert "train_only_signs" in taxonomy.tables
    printed = text.report(taxonomy)
    assert all(sentence in printed for sentence in frame.sentence)
    first, second = frame.sentence
    assert f"[{100 * ASKED.level:g} % interval " in first
    (size,) = set(taxonomy.data.noise_floor_samples.values.tolist())
    assert second.endswith(f"of two sets of training samples, of {size} per class")
    assert "[5 to 95 % of the draws " in second


def test_sets_of_several_sizes_are_said():
    toy = one_copy("mlp", torch.float64)
    x, y = toy.test
    keep = torch.cat([torch.nonzero(y != 0)[:, 0], torch.nonzero(y == 0)[:4, 0]])
    found = analysed(replace(toy, test=(x[keep], y[keep])), ASKED)
    assert found.train_only_signs().sentence.iloc[1].endswith(" of 2 to 3 per class")


@pytest.mark.parametrize("order", ["test", "pooled"])
def test_where_test_samples_rank_the_units_it_does_not(order):
    toy = networks.TOYS["mlp"]()
    found = analysed(toy, ASKED, method=ur.Method(order=order))
    assert "train_only_signs" not in found.tables
    assert "training samples alone" not in text.report(found)


def test_a_summary_without_flagged_classes_has_no_evidence_whether_there_are_any(taxonomy):
    data = taxonomy.data
    clear = ur.Taxonomy(data.assign(status=data.status.where(False, CLEAR)))
    assert clear.flagged() == []
    for found in (taxonomy, clear):
        frame = found.summary(flagged=False)
        assert list(frame) == ["mean", "std_over_labels", "std_over_units"]


@pytest.mark.parametrize(("held", "said"), [(0.76, False), (0.74, True)])
def test_coverage_is_too_low_for_the_level_that_was_asked_for(held, said):
    """Of intervals of 80 %: below 75 %, as below 85 % for those of 90 %."""
    data = analysed(one_copy("mlp", torch.float64), ASKED).data
    moved = ur.Taxonomy(data.assign(coverage=data.coverage * 0 + held))
    assert ("too narrow there" in text.report(moved)) == said
