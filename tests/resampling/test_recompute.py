"""Evidence equals the slow literal twin: every draw analysed from the start, sample by sample."""

from itertools import pairwise

import numpy as np
import pytest
import torch

import networks
import reference
import unitroles as ur
from forcing import analyze_toy, find, forced, layer_of, one_copy
from unitroles.curves.collect import Kept
from unitroles.data.samples import Samples
from unitroles.engine.additive import AdditivePlan
from unitroles.engine.masks import Sets
from unitroles.engine.plan import FullPlan
from unitroles.engine.suffix import SuffixPlan
from unitroles.model.forward import Precision
from unitroles.resampling import recompute as resample
from unitroles.resampling.intervals import LossObserver
from unitroles.resampling.limits import DRAWN_FROM
from unitroles.resampling.recompute import LayerRun
from unitroles.resampling.subsets import Job
from unitroles.stats import draws
from unitroles.stats.evidence import interval, role_proportions

NAMES = sorted(networks.TOYS)
SMALL = ["mlp", "conv_pool_linear"]
FEW = ur.Evidence(floors=2, resplits=2, bootstrap="full", replicates=2, seed=3)

pytestmark = pytest.mark.usefixtures("one_thread")


def in_order(toy):
    """Both splits as they are analysed: by label, then by number."""
    found = []
    for x, y in (toy.train, toy.test):
        turn = np.lexsort((np.arange(len(y)), y.numpy()))
        found.append((x[torch.from_numpy(turn)], y[torch.from_numpy(turn)], turn))
    return found


def classes_of(splits):
    labels = np.unique(np.concatenate([y.numpy() for _, y, _ in splits]))
    return [np.searchsorted(labels, y.numpy()) for _, y, _ in splits], labels


def part_of(splits, drawn, replicate, part):
    """The samples of a part, each as often as it counts."""
    inputs, given = [], []
    for (x, y, _), weights in zip(splits, drawn.weights, strict=True):
        for place, times in enumerate(weights[replicate, part]):
            for _ in range(int(times)):
                inputs.append(x[place])
                given.append(y[place])
    return torch.stack(inputs), torch.stack(given)


def literal(toy, splits, drawn, replicate, pair, **options):
    both = [part_of(splits, drawn, replicate, part) for part in drawn.pairs[pair]]
    return reference.analyze(toy.model, toy.layer, *both, toy.axis, toy.call, **options)


def regrets_of(found):
    return np.stack([found.regret["train"], found.regret["test"]])


def same_roles(toy, share, found):
    """Equal, or the twin's own numbers depend on a rounding."""
    np.testing.assert_allclose(share, found.proportions, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_floors_new_splits_and_full_confidence_are_those_of_the_literal_twin(name):
    toy = one_copy(name, torch.float64)
    taxonomy, _ = analyze_toy(toy, evidence=FEW)
    data, splits = taxonomy.data, in_order(toy)
    classes, labels = classes_of(splits)
    halves = draws.halves(classes, len(labels), 2, FEW.seed)
    for r in range(2):
        for pair, name in enumerate(DRAWN_FROM):
            share = data.noise_floor_proportion.sel(drawn_from=name)[r].values
            twin = literal(toy, splits, halves, r, pair)
            same_roles(toy, share, twin)
            drawn = data.sel(drawn_from=name).isel(draw=r)
            np.testing.assert_allclose(drawn.noise_floor_regret, regrets_of(twin), atol=1e-10)
            spread = reference.shares(twin.role).std(axis=0)
            np.testing.assert_allclose(drawn.noise_floor_std_over_units, spread, atol=1e-12)
    again = draws.resplits(classes, len(labels), 2, FEW.seed)
    for r in range(2):
        same_roles(toy, data.resplit_proportion[r].values, literal(toy, splits, again, r, 0))
    rows = [turn for _, _, turn in splits]
    weighted = draws.reweighted(classes, rows, len(labels), 2, FEW.seed)
    twins = [literal(toy, splits, weighted, r, 0) for r in range(2)]
    for r, twin in enumerate(twins):
        same_roles(toy, data.proportion_replicate[r].values, twin)
        np.testing.assert_array_equal(data.turning_point_replicate[r], twin.turning_point)
        np.testing.assert_allclose(data.regret_replicate[r], regrets_of(twin), atol=1e-10)
    low, high = interval(np.stack([twin.loss for twin in twins]), FEW.level)
    np.testing.assert_allclose(data.loss_low, low, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(data.loss_high, high, rtol=1e-9, atol=1e-12)
    for place, role in enumerate(ur.Role(k) for k in (1, 2, 3, 4)):
        chance = np.mean([twin.role == role for twin in twins], axis=0)
        np.testing.assert_allclose(data.role_probability[..., place], chance)


@pytest.mark.parametrize("order", ["train", "test", "pooled"])
def test_a_shared_order_is_one_of_each_pair(order):
    toy = one_copy(SMALL[0], torch.float64)
    taxonomy, _ = analyze_toy(toy, evidence=FEW, method=ur.Method(order=order))
    splits = in_order(toy)
    classes, labels = classes_of(splits)
    halves = draws.halves(classes, len(labels), 2, FEW.seed)
    for pair, name in enumerate(DRAWN_FROM):
        share = taxonomy.data.noise_floor_proportion.sel(drawn_from=name)[1].values
        twin = literal(toy, splits, halves, 1, pair, order_mode=order)
        same_roles(toy, share, twin)
        assert (share[:, 1] * share[:, 2] == 0).all()


@pytest.mark.parametrize("score", ["random", "weight_l1"])
def test_a_score_without_samples_is_that_of_the_side_in_each_pair(score):
    """The first part of a pair is read in the order of train, the second in that of test."""
    toy = one_copy("mlp", torch.float64)
    given = {"evidence": FEW, "method": ur.Method(score=score)}
    data, splits = analyze_toy(toy, **given)[0].data, in_order(toy)
    classes, labels = classes_of(splits)
    halves = draws.halves(classes, len(labels), 2, FEW.seed)
    assert (data.order[0] != data.order[1]).any() == (score == "random")
    for r in range(2):
        for pair, name in enumerate(DRAWN_FROM):
            parts = [part_of(splits, halves, r, part) for part in halves.pairs[pair]]
            for k, label in enumerate(labels.tolist()):
                active = []
                for side, (x, y) in enumerate(parts):
                    order = data.order[side, k].values
                    curve = reference.rof_curve(toy.model, toy.layer, x[y == label], label, order)
                    active.append(order[: reference.turning_point(curve[0])])
                role = reference.roles(active[0], active[1], data.sizes["unit"])
                share = data.noise_floor_proportion.sel(drawn_from=name)[r, k]
                np.testing.assert_allclose(share, reference.proportions(role[None])[0], atol=1e-12)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("plan", ["suffix", "full"])
def test_every_plan_gives_the_same_evidence(name, plan):
    toy = networks.toy(name, torch.float64)
    first, _ = analyze_toy(one_copy(name, torch.float64), evidence=FEW)
    with forced(plan):
        second, _ = analyze_toy(toy, evidence=FEW)
    assert second.data.attrs["plan"] == plan
    for name in first.data:
        if name in (
            "noise_floor_proportion",
            "resplit_proportion",
            "control_proportion",
            "proportion_replicate",
        ):
            np.testing.assert_allclose(first.data[name], second.data[name], atol=1e-12)
        if name in ("loss_low", "loss_high", "paired_error"):
            np.testing.assert_allclose(first.data[name], second.data[name], atol=1e-9)


class Together(Job):
    """Sets run once for all uses."""

    def __post_init__(self):
        object.__setattr__(self, "shared", True)


class Apart(Job):
    """Every use runs its own masks."""

    def __post_init__(self):
        object.__setattr__(self, "shared", False)


@pytest.mark.parametrize("name", ["mlp", "residual_early", "transformer"])
def test_sets_that_run_once_for_all_draws_give_what_each_draw_gives_alone(name, monkeypatch):
    seen = {}
    for shared in (True, False):
        with monkeypatch.context() as patch:
            patch.setattr(resample, "Job", Together if shared else Apart)
            seen[shared] = analyze_toy(one_copy(name, torch.float64), evidence=FEW)[0].data
    for variable in (
        "noise_floor_proportion",
        "resplit_proportion",
        "proportion_replicate",
        "role_probability",
    ):
        np.testing.assert_array_equal(seen[True][variable], seen[False][variable])
    for variable in ("noise_floor_regret", "loss_low", "loss_high"):
        np.testing.assert_allclose(seen[True][variable], seen[False][variable], atol=1e-10)


def test_intervals_in_the_given_order_are_those_of_weighted_means():
    toy = one_copy(SMALL[0], torch.float64)
    asked = ur.Evidence(floors=0, resplits=0, controls=False, replicates=7, seed=5)
    taxonomy, _ = analyze_toy(toy, evidence=asked)
    data, splits = taxonomy.data, in_order(toy)
    classes, labels = classes_of(splits)
    weights = draws.reweighted(classes, [s[2] for s in splits], len(labels), 7, 5)
    for split, (x, y, _) in enumerate(splits):
        for k, label in enumerate(labels):
            mine, order = y == label, data.order[split, k].values
            rows = []
            for one in x[mine]:
                given = (toy.model, toy.layer, one[None], int(label), order, toy.axis, toy.call)
                rows.append(reference.rof_curve(*given)[0])
            losses = np.array(rows)
            w = weights.weights[split][:, split, mine.numpy()].astype(float)
            curves = (w[..., None] * losses).sum(1) / w.sum(1)[:, None]
            points = [reference.turning_point(curve) for curve in curves]
            np.testing.assert_array_equal(data.turning_point_replicate[:, split, k], points)
            low, high = interval(curves, asked.level)
            np.testing.assert_allclose(data.loss_low[split, k], low, atol=1e-10)
            np.testing.assert_allclose(data.loss_high[split, k], high, atol=1e-10)
            n0 = int(data.turning_point[split, k])
            error = [np.std(losses[:, n] - losses[:, n0], ddof=1) for n in range(len(low))]
            scale = np.sqrt(len(losses))
            np.testing.assert_allclose(data.paired_error[split, k], error / scale, atol=1e-10)
            other = data.order[1 - split, k, : int(data.turning_point[1 - split, k])].values
            cost = [
                reference.performance(toy.model, toy.layer, one[None], int(label), other)[0]
                for one in x[mine]
            ]
            again = (w * (cost - losses[:, n0])).sum(1) / w.sum(1)
            found = data.regret_replicate[:, split, k]
            np.testing.assert_allclose(found, again, atol=1e-10)


def test_nothing_of_the_analysis_itself_changes_with_evidence():
    toy = one_copy(SMALL[0], torch.float32)
    plain, _ = analyze_toy(toy)
    asked, _ = analyze_toy(toy, evidence=ur.Evidence(floors=3, resplits=3))
    for name in plain.data:
        np.testing.assert_array_equal(plain.data[name].values, asked.data[name].values)


def test_replicates_do_not_depend_on_how_many_run_together():
    toy = one_copy(SMALL[0], torch.float32)
    seen = []
    for budget in ("1GiB", "60KB"):
        compute = ur.Compute(batch_size=16, memory_budget=budget)
        found = ur.analyze(
            toy.model,
            toy.train,
            toy.test,
            layer=layer_of(toy),
            progress=False,
            compute=compute,
            evidence=ur.Evidence(floors=5, resplits=5, bootstrap=None),
        )
        seen.append(found.data)
    for name in ("noise_floor_proportion", "resplit_proportion", "control_proportion"):
        np.testing.assert_array_equal(seen[0][name].values, seen[1][name].values)


def split_of(classes):
    """A split whose masks ignore runs, as an observer sees it."""
    samples = Samples("train", None, np.arange(len(classes)), classes, torch.from_numpy(classes))
    plan = FullPlan(torch.nn.Identity(), SITE, "")
    return Kept(plan, samples, 1, Precision(torch.device("cpu")))


SITE = find(torch.nn.Sequential(torch.nn.Linear(3, 6), torch.nn.ReLU()), "1", torch.zeros(2, 3))


@pytest.mark.parametrize("cuts", [[0, 40], [0, 1, 17, 40], [0, 39, 40], list(range(41))])
def test_shards_in_any_number_and_sequence_give_the_same_bits(cuts):
    rng = np.random.default_rng(0)
    classes = np.sort(rng.integers(0, 2, 40))
    losses = torch.from_numpy(rng.random((7, 40)))
    setting = LayerRun(
        [split_of(classes)] * 2, np.arange(2), np.arange(7), "per_split", 1e-6, None, 1
    )
    drawn = draws.reweighted([classes] * 2, [np.arange(40)] * 2, 2, 9, 0)

    def watched(parts):
        watch = LossObserver(setting, 0, drawn, ur.Evidence())
        for a, b in parts:
            watch(np.arange(a, b), losses[:, a:b])
        return [vars(kind[label]) for kind in (watch.found, watch.iterated) for label in (0, 1)]

    whole = watched([(0, 40)])
    parts = list(pairwise(cuts))
    for found in (watched(parts), watched(parts[::-1])):
        for mine, same in zip(found, whole, strict=True):
            for name, values in mine.items():
                np.testing.assert_array_equal(values, same[name])


@pytest.mark.usefixtures("uncompared")
@pytest.mark.parametrize(("budget", "most"), [("2GiB", 256), ("60KB", 64)])
def test_samples_under_a_few_masks_are_cut_to_the_budget(budget, most, monkeypatch):
    """However many there are of a class; fewer than a tile of 64 gain nothing."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
    x, y = torch.randn(1400, 3), torch.arange(1400) % 2
    calls, run = [], SuffixPlan.run

    def watched(self, kept, masks, least=1):
        calls.append((isinstance(masks, Sets), len(kept[0])))
        yield from run(self, kept, masks, least)

    monkeypatch.setattr(SuffixPlan, "run", watched)
    ur.analyze(
        *(model, (x[:700], y[:700]), (x[700:], y[700:]), "1"),
        progress=False,
        compute=ur.Compute(memory_budget=budget),
        evidence=ur.Evidence(floors=2, resplits=0, bootstrap=None, controls=False),
    )
    assert max(rows for sets, rows in calls if sets) == most


@pytest.mark.parametrize("size", [1, 2, 5])
def test_however_few_samples_run_together_none_is_lost(size, monkeypatch):
    toy, asked = networks.TOYS["mlp"](), ur.Evidence(floors=5, resplits=5, bootstrap=None)
    seen = []
    for small in (False, True):
        if small:
            monkeypatch.setattr(AdditivePlan, "rows", lambda self, masks: size)
        given = toy.model, toy.train, toy.test, layer_of(toy)
        seen.append(ur.analyze(*given, progress=False, evidence=asked).data)
    assert seen[0].attrs["plan"] == "additive"
    for name in ("noise_floor_proportion", "resplit_proportion"):
        np.testing.assert_array_equal(seen[1][name], seen[0][name])
    # In nats; sums of float32 losses in other pieces differ in their last bits.
    np.testing.assert_allclose(seen[1].noise_floor_regret, seen[0].noise_floor_regret, atol=1e-6)


def test_a_class_without_samples_in_a_part_has_no_roles():
    assert np.isnan(role_proportions(np.zeros((2, 5), dtype=np.uint8))).all()
