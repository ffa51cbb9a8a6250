"""What holds for every test: no display, two cores, repeatable examples, checked shapes."""

import os
import zlib
from collections.abc import Iterator
from pathlib import Path

os.environ["MPLBACKEND"] = "Agg"  # read once, when matplotlib is first imported

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

# Under xdist the workers share the cores; two threads in each of them would slow all of them down.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)

settings.register_profile(
    "unitroles",
    deadline=None,
    derandomize=True,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow],
)
# `make torture`: many more examples, other ones at every seed.
settings.register_profile(
    "torture", settings.get_profile("unitroles"), derandomize=False, max_examples=1000
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "unitroles"))

# Must come before the first import of the package: it rewrites modules as they are imported. To
# check the arguments of every function doubles the time of the tests: `make test-slow` does.
_ARRAYS = ("roles", "stats", "results", "curves", "resampling", "analysis", "data")
install_import_hook(
    "unitroles" if os.environ.get("SHAPES") == "all" else [f"unitroles.{name}" for name in _ARRAYS],
    "beartype.beartype",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the property tests, whose examples `make torture` multiplies."""
    for item in items:
        if getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
            item.add_marker("property")


@pytest.fixture(scope="session", autouse=True)
def exports_of_shared_toys() -> Iterator[None]:
    """Thousands of analyses of the same few toys would else be mostly their exports."""
    from forcing import once_for_shared
    from unitroles.engine import choice

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice, "export", once_for_shared(choice.export))
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data and weights that are not part of the project: CIFAR-10, a ResNet-20, TREC."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("UNITROLES_DATA", beside))
    if not folder.is_dir():
        pytest.skip("the shared data folder is absent")
    return folder


@pytest.fixture(scope="module")
def one_thread():
    """Threads that wait for each other make thousands of tiny forwards slow."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def draws(request: pytest.FixtureRequest) -> np.random.Generator:
    """What a test draws by itself: the same at every run with one `--hypothesis-seed`, else 0."""
    seed = request.config.getoption("--hypothesis-seed") or "0"
    return np.random.default_rng(zlib.crc32(f"{seed} {request.node.name}".encode()))


@pytest.fixture
def uncompared(monkeypatch: pytest.MonkeyPatch) -> None:
    """No sample is compared with the model: where a test counts what the sweep alone runs."""

    for module in ("analysis.passes", "cost.forecast"):
        monkeypatch.setattr(f"unitroles.{module}.samples_alone", lambda ready: None)
