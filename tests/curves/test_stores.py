"""Wherever the rows of the samples are kept, the numbers are the same."""

from types import SimpleNamespace

import pytest
import torch

import unitroles as ur
from forcing import (
    analyze_toy,
    forced,
)
from twins import assert_equals_twin, assert_same_bits, same, twin
from unitroles.curves import store
from unitroles.curves.store import Stores
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
    found = [stored(name, plan, where, batch_size=5)[0] for where in ("memory", "recompute")]
    monkeypatch.setattr("unitroles.curves.store.SHARD_BYTES", 1)  # a file for every tile
    found.append(stored(name, plan, "disk", batch_size=5)[0])
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
    monkeypatch.setattr("unitroles.curves.store.SHARD_BYTES", 1)
    written = []
    save = store.save_file
    monkeypatch.setattr(store, "save_file", lambda *a: written.append(a[1]) or save(*a))
    stored("residual", "suffix", "disk", batch_size=5)
    assert written
    assert all(tmp_path in file.parents for file in written)
    assert list(tmp_path.iterdir()) == []


def test_what_is_given_up_makes_room_for_others(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("unitroles.curves.store.SHARD_BYTES", 1)
    rows = (torch.arange(8.0).reshape(4, 2),)  # 8 bytes each
    with Stores(memory=64, disk=200) as stores:
        opened = [stores.open(4, rows, 1) for _ in range(4)]
        for one in opened:
            one.add(rows)
        assert [one.where for one in opened] == ["memory", "memory", "disk", "disk"]
        assert (stores.memory, stores.disk) == (0, 136)
        stores.keep(opened[1::2])
        assert (stores.memory, stores.disk) == (32, 168)
        assert len(list(tmp_path.iterdir())) == 1
        for one in opened[1::2]:
            assert torch.equal(torch.cat([tile for (tile,) in one.tiles(4)]), rows[0])
        assert stores.open(4, rows, 1).where == "memory"
    assert (stores.memory, stores.disk) == (64, 200)
    assert list(tmp_path.iterdir()) == []
