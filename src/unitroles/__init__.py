"""Roles of the units of trained neural networks: core, overfitted, generalizing, confusing."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unitroles.ablation import cumulative_ablation, single_unit_ablation
    from unitroles.analysis import analyze, analyze_layers
    from unitroles.errors import DataWarning, InputError, LayerHint, PlanWarning
    from unitroles.forecast import Forecast, plan
    from unitroles.members import TaxonomySet
    from unitroles.options import Compute, Evidence, Layer, Method, Sample
    from unitroles.relations import relation
    from unitroles.roles import Role
    from unitroles.survey import layers
    from unitroles.taxonomy import Taxonomy, load

__version__ = "0.1.0"

_HOME = {
    "cumulative_ablation": "ablation",
    "single_unit_ablation": "ablation",
    "analyze": "analysis",
    "analyze_layers": "analysis",
    "DataWarning": "errors",
    "InputError": "errors",
    "LayerHint": "errors",
    "PlanWarning": "errors",
    "Forecast": "forecast",
    "plan": "forecast",
    "layers": "survey",
    "Compute": "options",
    "Evidence": "options",
    "Layer": "options",
    "Method": "options",
    "Sample": "options",
    "relation": "relations",
    "Role": "roles",
    "Taxonomy": "taxonomy",
    "TaxonomySet": "members",
    "load": "taxonomy",
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
    value = getattr(import_module(f"unitroles.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
