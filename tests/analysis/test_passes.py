"""What the pass keeps of the samples, where a layer goes on to its next plan."""

import pytest

import odd
import unitroles as ur
from unitroles.analysis.passes import gathered
from unitroles.analysis.prepare import prepared
from unitroles.analysis.request import Request
from unitroles.curves.scores import activation_mean
from unitroles.curves.store import Stores

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.filterwarnings("ignore::unitroles.errors.PlanWarning")
@pytest.mark.parametrize("where", ["memory", "disk"])
@pytest.mark.parametrize(
    ("name", "layers", "alone"),
    [
        ("Plain", ["act", "mid"], []),
        ("FixedCapacity", ["act", "mid"], ["act"]),
        ("SortedBody", ["act"], ["act"]),  # after one that keeps rows and fails too
        ("ManyReached", ["mid", "act"], ["act"]),  # seen in the middle of a pass
    ],
)
def test_a_plan_that_is_given_up_leaves_its_room(name, layers, alone, where, monkeypatch):
    monkeypatch.setattr(Stores, "place", lambda self, needed: where)
    inputs, labels = odd.samples(20, 0)
    inputs[labels == 0, 0] = 0.99  # the first class, and with it the first batch, is not touched
    data = {"train": (inputs, labels), "test": odd.samples(16, 9)}
    compute = ur.Compute(batch_size=4)
    request = Request(odd.odd(name, 0.5, 0), data, layers, compute=compute, progress=False)
    with prepared(request) as ready:
        before = ready.stores.memory + ready.stores.disk
        done, found = gathered(ready, activation_mean, "activity", each=True)
        assert [one.plan.site.path for one in done.choices if one.plan.alone] == alone
        kept = [one for layer in found for one in layer.kept]
        held = [store for one in kept for store in (one.store, one.scores) if store is not None]
        assert {store.where for store in held} == {where}
        rows = [value for store in held for rows in store.tiles(100) for value in rows]
        size = sum(value.numel() * value.element_size() for value in rows)
        assert before - (ready.stores.memory + ready.stores.disk) == size
