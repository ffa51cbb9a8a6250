"""Roles of the units of trained neural networks: core, overfitted, generalizing, confusing."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unitroles.analysis.ablation import cumulative_ablation, single_unit_ablation
    from unitroles.analysis.analyze import analyze, analyze_layers
    from unitroles.cost.forecast import Forecast, plan
    from unitroles.cost.layers import layers
    from unitroles.errors import DataWarning, InputError, LayerHint, PlanWarning
    from unitroles.options import Compute, Evidence, Layer, Method, Sample
    from unitroles.results.members import TaxonomySet
    from unitroles.results.relation import relation
    from unitroles.results.taxonomy import Taxonomy, load
    from unitroles.roles import Role

__version__ = "0.1.0"

_HOME = {
    "cumulative_ablation": "analysis.ablation",
    "single_unit_ablation": "analysis.ablation",
    "analyze": "analysis.analyze",
    "analyze_layers": "analysis.analyze",
    "DataWarning": "errors",
    "InputError": "errors",
    "LayerHint": "errors",
    "PlanWarning": "errors",
    "Forecast": "cost.forecast",
    "plan": "cost.forecast",
    "layers": "cost.layers",
    "Compute": "options",
    "Evidence": "options",
    "Layer": "options",
    "Method": "options",
    "Sample": "options",
    "relation": "results.relation",
    "Role": "roles",
    "Taxonomy": "results.taxonomy",
    "TaxonomySet": "results.members",
    "load": "results.taxonomy",
}

__all__ = [
    "Compute",
    "DataWarning",
    "Evidence",
    "Forecast",
    "InputError",
    "Layer",
    "LayerHint",
    "Method",
    "PlanWarning",
    "Role",
    "Sample",
    "Taxonomy",
    "TaxonomySet",
    "analyze",
    "analyze_layers",
    "cumulative_ablation",
    "layers",
    "load",
    "plan",
    "relation",
    "single_unit_ablation",
]


def __getattr__(name: str) -> Any:
    # Importing torch takes seconds; the command line's --help and --version do without.
    if name not in _HOME:
        raise AttributeError(f"module 'unitroles' has no attribute {name!r}")
    from unitroles.environment import collector_resting

    with collector_resting():
        value = getattr(import_module(f"unitroles.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
