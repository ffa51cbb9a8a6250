"""The forecast of an analysis beside what the analysis then does."""

import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any

import pytest
from torch import nn

import networks
import unitroles as ur
from forcing import BATCH, layer_of, quietly
from unitroles.analysis import prepare
from unitroles.analysis.request import Request
from unitroles.cost.forecast import Forecast
from unitroles.curves.store import Store, Stores

pytestmark = pytest.mark.usefixtures("one_thread")

analysis = import_module("unitroles.analysis.analyze")


class Seen:
    """What really ran, and what the stores really held."""

    def __init__(self) -> None:
        self.rows: Counter[str] = Counter()
        self.held = 0
        self.where: list[str] = []


def watched(seen: Seen, patch: pytest.MonkeyPatch) -> None:
    """Count from where the preparation of an analysis ends."""
    prepared = analysis.prepared

    @contextmanager
    def watch(request: Request) -> Iterator[Any]:
        with prepared(request) as ready, ExitStack() as stack:
            for name, module in parts(request.model, ready.choices[0].plan).items():
                hook = counter(seen.rows, name)
                stack.callback(module.register_forward_pre_hook(hook).remove)
            yield ready

    class Watched(Stores):
        def keep(self, wanted: Collection[Store]) -> None:
            for store, _ in self.opened:
                if any(store is one for one in wanted):
                    continue
                values = [value for rows in store.tiles(1000) for value in rows]
                seen.held += sum(value.numel() * value.element_size() for value in values)
                seen.where.append(store.where)
            super().keep(wanted)

    patch.setattr(analysis, "prepared", watch)
    patch.setattr(prepare, "Stores", Watched)


def parts(model: nn.Module, plan: Any) -> dict[str, nn.Module]:
    if not plan.keeps_rows:
        return {"model": model}
    if plan.name == "suffix":
        return {"model": model, "head": plan.after}
    norm = plan.form.norm
    tail = plan.form.tail if norm is None else norm.finish
    return {"model": model, "head": plan.suffix.after, "tail": tail}


def counter(rows: Counter[str], name: str) -> Callable[[nn.Module, Any], None]:
    def hook(module: nn.Module, args: Any) -> None:
        rows[name] += len(args[0])

    return hook


def layer(toy: networks.Toy, path: str | None) -> ur.Layer:
    return layer_of(toy) if path is None else ur.Layer(path)


def plan(toy: networks.Toy, **options: Any) -> Forecast:
    """The forecast; only plan warnings are let pass."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ur.LayerHint)
        warnings.simplefilter("ignore", ur.PlanWarning)
        return ur.plan(toy.model, toy.train, toy.test, **options)


def both(
    toy: networks.Toy, path: str | None = None, **options: Any
) -> tuple[Forecast, ur.Taxonomy, Seen]:
    """The forecast, and the analysis with what it did."""
    seen = Seen()
    options = {"compute": BATCH, "layer": layer(toy, path), **options}
    found = plan(toy, **options)
    with pytest.MonkeyPatch.context() as patch:
        watched(seen, patch)
        return found, quietly(ur.analyze, toy.model, toy.train, toy.test, **options), seen
