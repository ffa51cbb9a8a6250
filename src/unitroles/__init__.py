"""Roles of the units of trained neural networks: core, overfitted, generalizing, confusing."""

from unitroles.analysis import analyze, analyze_layers
from unitroles.errors import DataWarning, InputError, PlanWarning
from unitroles.layers import layers
from unitroles.options import Compute, Layer, Method, Sample
from unitroles.roles import Role
from unitroles.taxonomy import Taxonomy, TaxonomySet, load

__version__ = "0.1.0"

__all__ = [
    "Compute",
    "DataWarning",
    "InputError",
    "Layer",
    "Method",
    "PlanWarning",
    "Role",
    "Sample",
    "Taxonomy",
    "TaxonomySet",
    "analyze",
    "analyze_layers",
    "layers",
    "load",
]
