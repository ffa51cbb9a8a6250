"""Wherever the rows of the samples are kept, the numbers are the same."""

import os
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import unitroles as ur
from forcing import (
    analyze_toy,
    forced,
    quietly,
)
from twins import assert_equals_twin, assert_same_bits, same, twin
from unitroles.curves.collect import Kept
from unitroles.curves.store import DiskStore, MemoryStore, Stores, joined
from unitroles.engine.additive import AdditivePlan
from unitroles.engine.suffix import SuffixPlan

pytestmark = pytest.mark.usefixtures("one_thread")


def stored(name, plan, where, **compute):
    """The taxonomy of a toy whose rows are kept in a certain place, and where they were."""
    seen = []
    place = Stores.place

    def forced_place(self, needed):
        seen.append(place(self, needed) if where is None else where)
        return seen[-1]

    with forced(plan), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stores, "place", forced_place)
        found, _ = analyze_toy(same(name), compute=ur.Compute(**compute))
    assert found.data.attrs["plan"] == plan
    return found, set(seen)


STORES = [("residual", "additive"), ("residual", "suffix"), ("transformer", "additive")]
STORES += [("mlp", "suffix"), ("conv_pool_linear", "additive")]


@pytest.mark.parametrize("batch_size", [5, 16])
@pytest.mark.parametrize(("name", "plan"), STORES)
def test_wherever_the_rows_are_kept_the_bits_are_the_same(name, plan, batch_size):
    found = {
        where: stored(name, plan, where, batch_size=batch_size)
        for where in ("memory", "disk", "recompute")
    }
    assert all(seen == {where} for where, (_, seen) in found.items())
    for where in ("disk", "recompute"):
        assert_same_bits(found["memory"][0], found[where][0])
    assert_equals_twin(found["memory"][0], twin(name), 1e-10)


@pytest.mark.parametrize(("name", "plan"), STORES)
def test_several_small_tiles_give_the_same_bits_wherever_they_come_from(name, plan, monkeypatch):
    kind = AdditivePlan if plan == "additive" else SuffixPlan
    monkeypatch.setattr(kind, "tile", 7)
    places = ("memory", "recompute", "disk")
    found = [stored(name, plan, where, batch_size=5)[0] for where in places]
    assert_same_bits(found[0], found[1])
    assert_same_bits(found[0], found[2])
    assert_equals_twin(found[0], twin(name), 1e-10)


@pytest.mark.parametrize("batch_size", [1, 5])
@pytest.mark.parametrize(("name", "plan"), STORES[:3])
def test_a_tiny_memory_budget_gives_the_same(name, plan, batch_size):
    tiny, seen = stored(name, plan, None, batch_size=batch_size, memory_budget=1)
    assert seen == {"disk"}
    assert_same_bits(tiny, stored(name, plan, "memory", batch_size=batch_size, memory_budget=1)[0])
    assert_equals_twin(tiny, twin(name), 1e-10)


def test_rows_that_fit_nowhere_are_computed_again(monkeypatch):
    full = SimpleNamespace(free=0)
    monkeypatch.setattr("unitroles.curves.store.shutil.disk_usage", lambda folder: full)
    found, seen = stored("mlp", "additive", None, memory_budget=1, batch_size=5)
    assert seen == {"recompute"}
    assert_equals_twin(found, twin("mlp"), 1e-10)


def test_the_disk_is_left_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    written, tiles = [], DiskStore.tiles

    def seen(self, size):
        written.extend(tmp_path.rglob("*"))
        return tiles(self, size)

    monkeypatch.setattr(DiskStore, "tiles", seen)
    stored("residual", "suffix", "disk", batch_size=5)
    assert any(file.name == "000" for file in written)
    assert list(tmp_path.iterdir()) == []


def rows(count, start=0):
    """Of every kind that a plan may keep, and of no number at all."""
    numbers = torch.arange(start, start + count)
    kinds = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool)
    some = [(numbers[:, None] % 3 + torch.arange(4)).to(kind) for kind in kinds]
    turned = numbers.expand(2, 3, count).movedim(2, 0).float()  # not in one piece
    return (*some, numbers.float(), turned, torch.zeros(count, 0, 2))


@pytest.mark.parametrize("sizes", [[7, 7, 5], [1] * 4, [30]])
@pytest.mark.parametrize("tile", [1, 4, 64])
def test_both_stores_give_back_what_they_were_given(sizes, tile, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    total, kept = sum(sizes), [MemoryStore(sum(sizes)), DiskStore()]
    for end, size in zip(np.cumsum(sizes).tolist(), sizes, strict=True):
        for one in kept:
            one.add(rows(size, end - size))
    for one in kept:
        for _ in range(2):  # as often as they are asked for
            found = list(one.tiles(tile))
            assert [len(part[0]) for part in found[:-1]] == [tile] * (len(found) - 1)
            for mine, given in zip(joined(found), rows(total), strict=True):
                assert mine.dtype == given.dtype
                assert torch.equal(mine, given)
        one.close()
    assert list(tmp_path.iterdir()) == []


def test_nothing_waits_before_it_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    kept = DiskStore()
    for turn in range(1, 4):
        given = torch.ones(2, 3)
        kept.add((given,))
        assert sum(file.stat().st_size for file in tmp_path.rglob("000")) == turn * given.nbytes
        last = weakref.ref(given)
        del given
        assert last() is None
    kept.close()


def test_a_file_that_was_cut_short_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    kept = DiskStore()
    kept.add((torch.ones(4, 3),))
    (file,) = tmp_path.rglob("000")
    os.truncate(file, 40)
    assert torch.equal(next(kept.tiles(3))[0], torch.ones(3, 3))
    with pytest.raises(ur.InputError, match="cannot be read back from .*the file ends too early"):
        list(kept.tiles(3))
    kept.close()
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_rows_takes_memory_too():
    stores = Stores(100, disk=1000)
    stores.take(60)
    assert stores.open(1, (torch.zeros(1, 10),)).where == "memory"
    assert stores.open(1, (torch.zeros(1, 1),)).where == "disk"
    assert stores.memory == 0


@pytest.mark.parametrize("where", ["memory", "disk"])
@pytest.mark.parametrize("asked", [None, ur.Evidence(floors=2, resplits=0, bootstrap=None)])
def test_a_layer_s_rows_go_when_its_curves_and_evidence_are_done(where, asked, monkeypatch):
    """The first call is after the pass, the last at the end of all."""
    seen, keep = [], Stores.keep

    def watched(self, wanted):
        keep(self, wanted)
        seen.append((len(self.opened), self.memory, self.disk))

    monkeypatch.setattr(Stores, "keep", watched)
    monkeypatch.setattr(Stores, "place", lambda self, needed: where)
    toy, layers = same("mlp"), ["0", "1", "3"]
    quietly(
        ur.analyze_layers, toy.model, toy.train, toy.test, layers, progress=False, evidence=asked
    )
    each = 2 if asked is None else 4  # rows and scores of both splits
    counts, memory, disk = zip(*seen, strict=True)
    assert counts == (3 * each, 2 * each, each, 0, 0)
    free = memory if where == "memory" else disk
    assert free[0] < free[1] < free[2] < free[3] == free[4]


@pytest.mark.parametrize("plan", ["additive", "suffix"])
def test_a_later_layer_gets_the_room_that_an_earlier_one_leaves(plan, monkeypatch):
    """Rows of the first that fill the memory; those of the other come there when it is done."""
    seen, tiles, layers = [], Kept.tiles, ["0", "1"]

    def watched(self):
        seen.append((self.plan.site.path, self.store and self.store.where))
        return tiles(self)

    def found(budget):
        toy, compute = same("mlp"), ur.Compute(batch_size=5, memory_budget=budget)
        given = toy.model, toy.train, toy.test, layers
        seen.clear()
        with forced(plan):
            done = quietly(ur.analyze_layers, *given, progress=False, compute=compute)
        return done, list(dict.fromkeys(seen))

    monkeypatch.setattr(Kept, "tiles", watched)
    whole, where = found("2GiB")
    assert where == [("0", "memory"), ("1", "memory")]
    toy = same("mlp")
    with forced(plan):
        room = ur.plan(toy.model, toy.train, toy.test, layer="0").bytes_cached
    monkeypatch.setattr("unitroles.curves.store._DISK_SHARE", 0)
    runs, again = [], Kept._again
    monkeypatch.setattr(Kept, "_again", lambda self, p: runs.append(1) or again(self, p))
    tight, where = found(room)
    assert where == [("0", "memory"), ("1", "memory")]
    assert len(runs) == 2  # once for each split of the later layer
    for layer in layers:
        assert_same_bits(tight[layer], whole[layer])


def test_what_is_given_up_makes_room_for_others(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    rows = (torch.arange(8.0).reshape(4, 2),)  # 8 bytes each
    with Stores(memory=64, disk=200) as stores:
        opened = [stores.open(4, rows) for _ in range(4)]
        for one in opened:
            one.add(rows)
        assert [one.where for one in opened] == ["memory", "memory", "disk", "disk"]
        assert (stores.memory, stores.disk) == (0, 136)
        stores.keep(opened[1::2])
        assert (stores.memory, stores.disk) == (32, 168)
        assert len(list(tmp_path.iterdir())) == 1
        for one in opened[1::2]:
            assert torch.equal(torch.cat([tile for (tile,) in one.tiles(4)]), rows[0])
        assert stores.open(4, rows).where == "memory"
    assert (stores.memory, stores.disk) == (64, 200)
    assert list(tmp_path.iterdir()) == []
