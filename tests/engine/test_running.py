"""What the engine does when something is wrong, scarce or extreme."""

import errno
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import networks
import reference
import unitroles as ur
from forcing import PLANS, analyze_toy, find, forced, layer_of, observe, one_copy
from forecasts import both
from unitroles.curves import store
from unitroles.curves.store import DiskStore, Stores
from unitroles.engine import choice, suffix
from unitroles.engine.additive import AdditivePlan
from unitroles.engine.masks import AllButOne, Prefixes
from unitroles.engine.plan import FullPlan
from unitroles.engine.suffix import SuffixPlan
from unitroles.engine.sums import Sums
from unitroles.heads.head import head_after
from unitroles.model.forward import Precision
from unitroles.model.memory import Pieces
from unitroles.rewrite.export import export

pytestmark = pytest.mark.usefixtures("one_thread")

MEAN = ur.Method(baseline="mean")


def spoiled(ablated):
    """A plan whose ablated units give something else than they should, and not zero."""

    def wrong(self, baseline):
        return ablated(self, None if baseline is None else baseline + 1)

    return wrong


@pytest.mark.parametrize(
    ("broken", "left"),
    [((), "additive"), ((AdditivePlan,), "suffix"), ((SuffixPlan,), "full")],
)
def test_a_plan_that_is_wrong_with_means_gives_way_and_it_is_said(broken, left, monkeypatch):
    toy = one_copy("conv_bn_gap", torch.float64)
    if broken == (AdditivePlan,):
        spoil = spoiled(SuffixPlan.ablated)
        monkeypatch.setattr(
            AdditivePlan,
            "ablated",
            lambda self, baseline: (
                replace(self, suffix=spoil(self.suffix, baseline)[0]),
                *self.suffix.ablated(baseline),
            ),
        )
    elif broken:
        monkeypatch.setattr(SuffixPlan, "ablated", spoiled(SuffixPlan.ablated))
    found, notes = analyze_toy(toy, method=MEAN)
    assert found.data.attrs["plan"] == left
    said = {"additive": [], "suffix": ["plan suffix, not additive: "], "full": ["plan full (N+1 "]}
    assert len(notes) == len(said[left])
    for note, start in zip(notes, said[left], strict=True):
        assert note.startswith(start)
        assert "the exported head differs from the model by" in note
    assert found.provenance["warnings"] == notes
    wanted = reference.analyze(
        toy.model, toy.layer, toy.train, toy.test, toy.axis, toy.call, baseline="mean"
    )
    np.testing.assert_allclose(found.data.loss, wanted.loss, rtol=0, atol=1e-10)


def test_means_leave_a_full_plan_its_reason():
    toy = one_copy("conv_bn_gap", torch.float64)
    with forced("full"):
        found, notes = analyze_toy(toy, method=MEAN)
        zero, _ = analyze_toy(toy)
    assert found.provenance["plan"] == zero.provenance["plan"]
    assert notes == zero.provenance["warnings"]


def test_a_wrong_removal_of_single_units_is_caught(monkeypatch):
    toy = one_copy("mlp", torch.float64)
    run = Sums.run

    def wrong(self, masks):
        times = 3 if isinstance(masks, AllButOne) else 1
        return ((part, times * logits) for part, logits in run(self, masks))

    monkeypatch.setattr(Sums, "run", wrong)
    found, notes = observe(ur.single_unit_ablation, toy.model, toy.train, layer=layer_of(toy))
    assert found.attrs["plan"] == "suffix"
    assert notes[0].startswith("plan suffix, not additive: ")
    wanted = reference.single_unit_ablation(toy.model, toy.layer, toy.train)
    np.testing.assert_allclose(found.loss_change, wanted["loss_change"], rtol=0, atol=1e-10)


def test_warnings_point_to_the_line_of_the_user(tmp_path):
    """In a process of its own: here the check of annotations puts frames in between."""
    script = tmp_path / "script.py"
    script.write_text(
        "import torch, unitroles as ur\n"
        "class Whole(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.a, self.b = torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)\n"
        "    def forward(self, x):\n"
        "        z = self.a(x)\n"
        "        return self.b(z) + (0 if float(z.sum()) > 1e9 else 1)\n"
        "data, net = (torch.randn(8, 3), torch.arange(8) % 2), Whole()\n"
        "ur.analyze(net, data, data, layer='a')\n"
        "ur.single_unit_ablation(net, data, layer='a')\n"
        "ur.cumulative_ablation(net, data, layer='a')\n"
        "ur.plan(net, data, data, layer='a')\n"
    )
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    said = [line for line in run.stderr.splitlines() if "PlanWarning: plan full" in line]
    assert [line.split(": PlanWarning")[0] for line in said] == [
        f"{script}:{number}" for number in (10, 11, 12, 13)
    ]


def test_disk_that_is_given_away_is_not_given_again():
    stores = Stores(0, disk=1000)
    rows = (torch.zeros(1, 100),)  # 400 bytes a row
    stores = [stores.open(1, rows) for _ in range(3)]
    assert [None if one is None else one.where for one in stores] == ["disk", "disk", None]


@pytest.mark.parametrize("written", [0, 1])
def test_a_disk_that_fails_is_one_sentence_and_leaves_nothing(written, monkeypatch, tmp_path):
    as_bytes, left = store._as_bytes, [None] * written

    def fail(value):
        if not left:
            raise OSError(errno.ENOSPC, "No space left on device")
        left.pop()
        return as_bytes(value)

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(store, "_as_bytes", fail)
    toy = networks.toy("residual")
    with pytest.raises(ur.InputError, match=f"cannot be written to {tmp_path}.*TMPDIR"):
        analyze_toy(toy, compute=ur.Compute(memory_budget=1))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    with pytest.raises(ur.InputError, match="cannot be written to .*absent"):
        DiskStore().add((torch.zeros(2, 3),))


class Scarce(nn.Module):
    """Runs out of memory with more rows than `most`, as a device does."""

    def __init__(self, most: int):
        super().__init__()
        self.most, self.seen = most, []

    def forward(self, x):
        if isinstance(x.shape[0], int):
            self.seen.append(x.shape[0])
            if x.shape[0] > self.most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return x


def test_a_body_that_runs_out_of_memory_goes_on_with_fewer_samples():
    toy = networks.toy("mlp", torch.float64)
    exact, _ = analyze_toy(toy)
    scarce = Scarce(8)
    model = nn.Sequential(nn.Sequential(scarce, toy.model[0]), *toy.model[1:])
    found, notes = observe(ur.analyze, model, toy.train, toy.test, layer="1")
    assert [note for note in notes if "memory ran out in the model's forward" in note] == notes
    assert len(notes) == 1
    np.testing.assert_allclose(found.data.loss, exact.data.loss, rtol=0, atol=1e-10)


@pytest.mark.parametrize("plan", PLANS)
def test_masks_that_run_out_of_memory_go_on_with_fewer_samples(plan, monkeypatch):
    toy = one_copy("mlp", torch.float64)
    with forced(plan):
        exact, _ = analyze_toy(toy)
        kind = {
            "additive": AdditivePlan,
            "suffix": SuffixPlan,
            "full": FullPlan,
        }[plan]
        run, sizes = kind.run, []

        def scarce(self, kept, masks, least=1):
            if isinstance(masks, Prefixes):
                sizes.append(len(masks.order))
            if sizes and isinstance(masks, Prefixes) and sizes[-1] > 6:
                raise torch.OutOfMemoryError("out of memory")
            return run(self, kept, masks, least)

        monkeypatch.setattr(kind, "run", scarce)
        found, notes = analyze_toy(toy)
    assert max(sizes) > 6
    ran_out = [note for note in notes if "memory ran out in the runs with masks" in note]
    assert 1 <= len(ran_out) <= 2  # once for each split, if it is another number
    np.testing.assert_allclose(found.data.loss, exact.data.loss, rtol=0, atol=1e-10)
    np.testing.assert_array_equal(found.data.accuracy, exact.data.accuracy)


def test_memory_that_runs_out_with_one_sample_is_an_error():
    def work(part):
        raise torch.OutOfMemoryError("out of memory")

    with (
        pytest.warns(ur.PlanWarning, match="with 4 samples at once; it goes on with fewer"),
        pytest.raises(ur.InputError, match="memory ran out in the test with a single sample"),
    ):
        Pieces("the test").run(work, 4)


@pytest.mark.usefixtures("uncompared")
def test_a_forecast_counts_the_passes_of_a_grid_and_one_refinement(monkeypatch):
    monkeypatch.setattr("unitroles.curves.store._DISK_SHARE", 0)
    toy = networks.wide("wide_mlp")
    with forced("suffix"):
        compute, method = ur.Compute(memory_budget=1), ur.Method(resolution="adaptive")
        found, taxonomy, seen = both(toy, compute=compute, method=method)
    assert taxonomy.data.attrs["resolution"] == "adaptive"
    assert found.cache == "recompute"
    samples = sum(found.samples)
    assert found.body_forwards == 4 * samples  # scores, grid, one refinement, swapped sets
    assert seen.rows["model"] % samples == 0
    assert seen.rows["model"] >= found.body_forwards


def test_a_tile_of_large_rows_holds_fewer():
    net = nn.Sequential(
        nn.Conv2d(1, 64, 1), nn.ReLU(), nn.Conv2d(64, 2, 3, padding=1), nn.AdaptiveAvgPool2d(1)
    )
    net = nn.Sequential(*net, nn.Flatten())
    x = torch.randn(2, 1, 128, 128)
    site, precision = find(net, "1", x), Precision(torch.device("cpu"))
    with torch.no_grad():
        head = head_after(export(net.eval(), [site], x), 0)
        plan = choice.suffix_plan(net, site, head, x, 2**30, precision)
    assert plan.tile == suffix.TILE_BYTES // (64 * 128 * 128 * 4) < suffix._TILE


@pytest.fixture(scope="module")
def confident():
    """A network and its data, trained (in float64) to a mean loss far below 1e-7."""
    torch.manual_seed(0)
    centers = 3 * torch.eye(4, 10)
    labels = torch.arange(48) % 4
    data = [(centers[labels] + 0.4 * torch.randn(48, 10), labels) for _ in range(2)]
    net = nn.Sequential(nn.Linear(10, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU())
    net = nn.Sequential(*net, nn.Linear(16, 4))
    optimizer = torch.optim.Adam(net.double().parameters(), lr=0.05)
    for _ in range(4000):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(data[0][0].double()), data[0][1])
        loss.backward()
        optimizer.step()
        if float(loss.detach()) < 2e-8:
            break
    return net.float().eval().requires_grad_(False), data


@pytest.mark.parametrize("scale", [1.0, 10.0])
@pytest.mark.parametrize("layer", ["1", "3"])
@pytest.mark.parametrize("plan", PLANS)
def test_turning_points_of_a_confident_network_are_those_of_the_definition(
    confident, plan, layer, scale
):
    """In float32, against the literal twin in float64, at the default tolerance."""
    net, (train, test) = deepcopy(confident[0]), confident[1]
    net[-1].weight.mul_(scale)
    net[-1].bias.mul_(scale)
    wide = [(x.double(), y) for x, y in (train, test)]
    wanted = reference.analyze(deepcopy(net).double(), layer, *wide)
    assert wanted.loss[0, :, -1].max() < 1e-7
    with forced(plan):
        found, _ = observe(ur.analyze, net, train, test, layer=layer)
    assert found.data.attrs["plan"] == plan
    np.testing.assert_array_equal(found.data.turning_point, wanted.turning_point)
    last = found.data.loss.values[0, :, -1]
    np.testing.assert_allclose(last, wanted.loss[0, :, -1], rtol=1e-3)
    np.testing.assert_allclose(found.data.loss, wanted.loss, rtol=1e-4, atol=1e-6 * scale)
