"""Everything that is asked of a model, in one record, checked before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from unitroles.curves.scores import sample_score
from unitroles.errors import InputError
from unitroles.options import Compute, Evidence, Layer, Method, Sample
from unitroles.resampling.limits import require_points


@dataclass(frozen=True)
class Request:
    """The arguments of an analysis, a forecast or an ablation.

    Parameters
    ----------
    model : as the user gave it, perhaps in a wrapper.
    data : splits by name, the first one being what class names and the probe are taken from.
    layers : module paths, modules or `Layer` values; None = the recommended one.
    class_names : names by class number; None takes those of the first split if it has any.
    method, sample, compute, evidence : the option groups.
    progress : whether bars are drawn.

    Raises
    ------
    InputError : options that contradict each other, and the remedy.
    """

    model: nn.Module
    data: Mapping[str, Any]
    layers: Iterable[str | nn.Module | Layer | None]
    class_names: Sequence[str | int] | None = None
    method: Method = Method()
    sample: Sample = Sample()
    compute: Compute = Compute()
    evidence: Evidence | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        if not self.layers:
            raise InputError("layers is empty; name at least one, or None for the recommended one")
        require_points(self.evidence, self.method.resolution)
        sample_score(self.method.score)
