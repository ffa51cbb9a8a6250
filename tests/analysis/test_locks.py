"""Two threads at once: one analysis after the other, and every model comes back as it was."""

import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import unitroles as ur
from unitroles.analysis.locks import one_at_a_time


def pair(start: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(80, 4, generator=torch.Generator().manual_seed(0))
    return x[start : start + 40], (x[:, 0] > 0).long()[start : start + 40]


def network(seed: int) -> nn.Sequential:
    """In training mode, with a dropout that shows it."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        layers = [nn.Linear(4, 6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 6), nn.LayerNorm(6)]
        return nn.Sequential(*layers, nn.Linear(6, 2)).train()


def analyze(model: nn.Module) -> ur.Taxonomy:
    return ur.analyze(model, pair(0), pair(40), "1", progress=False)


def together(calls: list[Callable[[], Any]]) -> list[Any]:
    """What calls in threads of their own give or raise, all let go at the same moment."""
    found: list[Any] = [None] * len(calls)
    start = threading.Barrier(len(calls))

    def run(place: int) -> None:
        start.wait()
        try:
            found[place] = calls[place]()
        except Exception as error:
            found[place] = error

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return found


def shared_body() -> list[nn.Module]:
    """Models that have modules in common."""
    body = network(0)
    return [body, nn.Sequential(*body[:3], nn.Linear(6, 2)), nn.Sequential(body, nn.Identity())]


@pytest.mark.parametrize(
    "models",
    [
        pytest.param(lambda: [network(0)] * 3, id="one model"),
        pytest.param(lambda: [network(seed) for seed in range(3)], id="three models"),
        pytest.param(shared_body, id="models that share modules"),
    ],
)
def test_threads_give_what_each_gives_alone(models: Callable[[], list[nn.Module]]) -> None:
    given = models()
    paths = ["1", "1", "1" if len(given[2]) > 2 else "0.1"]  # pyright: ignore
    calls = [
        lambda model=model, path=path: ur.analyze(model, pair(0), pair(40), path, progress=False)
        for model, path in zip(given, paths, strict=True)
    ]
    wanted = [call() for call in calls]
    before, filters = torch.get_rng_state(), list(warnings.filters)
    for found, alone_ in zip(together(calls), wanted, strict=True):
        assert isinstance(found, ur.Taxonomy), found
        assert found.data.attrs["plan"] == alone_.data.attrs["plan"] == "additive"
        np.testing.assert_array_equal(found.data.loss, alone_.data.loss)
        np.testing.assert_array_equal(found.data.role, alone_.data.role)
    for model in given:
        assert all(module.training for module in model.modules())
        assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), before)
    assert list(warnings.filters) == filters


def test_all_that_borrows_a_model_waits() -> None:
    model, x = network(0), pair(0)[0]
    # Not in functions of their own: each is imported at its first use, which the threads of
    # Python 3.11 cannot do side by side where modules are rewritten for the tests.
    calls: list[Callable[[], Any]] = [
        partial(analyze, model),
        partial(ur.layers, model, x[:2]),
        partial(ur.plan, model, pair(0), pair(40), "1"),
        partial(ur.single_unit_ablation, model, pair(0), "1", progress=False),
        partial(ur.analyze, model, pair(0), pair(40), "no such layer", progress=False),
    ]
    *found, error = together(calls)
    assert not [one for one in found if isinstance(one, Exception)]
    assert isinstance(error, ur.InputError)  # and the lock is free again
    assert all(module.training for module in model.modules())
    assert isinstance(together([lambda: analyze(model)])[0], ur.Taxonomy)


def test_another_thread_waits_until_the_block_ends() -> None:
    inside, entered = threading.Event(), []

    def enter() -> None:
        inside.set()
        with one_at_a_time():
            entered.append(True)

    thread = threading.Thread(target=enter)
    with one_at_a_time(), one_at_a_time():  # the same thread may enter again
        thread.start()
        assert inside.wait(60)
        thread.join(0.2)
        assert not entered
    thread.join(60)
    assert entered


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked here")
def test_a_forked_process_does_not_wait_for_a_thread_that_it_lacks() -> None:
    """As when a worker of a DataLoader is started while another thread analyses."""
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with one_at_a_time():
            held.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(60)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
        child = os.fork()
    if not child:
        threading.Timer(20, os._exit, (1,)).start()
        with one_at_a_time():
            os._exit(0)
    _, status = os.waitpid(child, 0)
    done.set()
    thread.join(60)
    assert os.waitstatus_to_exitcode(status) == 0


NEW = """
import os, sys, torch, unitroles as ur
before = dict(os.environ)
net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2))
data = torch.randn(40, 4), torch.arange(40) % 2
{call}
changed = set(os.environ.items()) ^ set(before.items())
assert not [name for name, _ in changed if not name.startswith("KMP_")], changed
"""


@pytest.mark.parametrize(
    "call",
    [
        "ur.analyze_layers(net, data, data, ['0', None])",
        "ur.plan(net, data, data, '1')",
        "ur.layers(net, data[0])",
        "ur.cumulative_ablation(net, data)",
    ],
)
def test_a_process_that_is_new_is_left_as_it_was(call: str, tmp_path: Path) -> None:
    """But for what threadpoolctl sets: without it a second OpenMP would end the process."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    environment.pop("TORCHINDUCTOR_CACHE_DIR", None)
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(ur.__file__).parents[1]), *sys.path])
    command = [sys.executable, "-W", "ignore", "-c", NEW.format(call=call)]
    subprocess.run(command, env=environment, check=True)
    assert list(temporary.iterdir()) == []
