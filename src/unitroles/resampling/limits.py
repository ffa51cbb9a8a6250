"""The samples and the memory that evidence needs, checked beforehand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from unitroles.curves.scores import sample_score
from unitroles.curves.store import Stores
from unitroles.engine.plan import Plan
from unitroles.errors import InputError
from unitroles.options import Evidence, Method
from unitroles.stats.draws import half_size, held_bytes
from unitroles.stats.grid import expected
from unitroles.wording import size

DRAWN_FROM = ("train", "test", "both")


def require_points(evidence: Evidence | None, resolution: str | int) -> None:
    """Refuse curves whose points depend on the samples.

    Raises
    ------
    InputError : the resolution is "adaptive".
    """
    if evidence is not None and resolution == "adaptive":
        raise InputError(
            "evidence compares curves at the same n, which resolution 'adaptive' does not give; "
            "take 'exact' or a whole number"
        )


def require_halves(evidence: Evidence | None, samples: Int[np.ndarray, "split label"]) -> None:
    """Refuse floors where no class can be halved.

    Raises
    ------
    InputError : no class has two samples in both splits.
    """
    if evidence is not None and evidence.floors and not half_size(samples).any():
        raise InputError(
            "no class has two samples in both splits, so there are no halves to compare; analyse "
            "more samples, or take floors=0"
        )


def weights_of(evidence: Evidence, method: Method, samples: int) -> int:
    """Bytes of what says how often each sample counts."""
    alike = method.order == "per_split" and sample_score(method.score) is not None
    return held_bytes(samples, evidence.floors, evidence.resplits, evidence.draws, alike)


def curves_of(evidence: Evidence, labels: int, masks: int) -> int:
    """Bytes of the curves of all replicates, whose intervals are taken when all are there."""
    return 8 * 2 * labels * masks * evidence.draws * (evidence.bootstrap == "full")


def resampling_memory(budget: int) -> int:
    """The bytes that weights and curves, the losses of a class, and replicates may take each."""
    return budget // 4


def take_memory(
    evidence: Evidence | None,
    method: Method,
    samples: Int[np.ndarray, "split label"],
    plans: Sequence[Plan],
    stores: Stores,
) -> None:
    """Take what evidence holds, before the rows of samples come; refuse what there is no room for.

    That is a quarter of the memory at most for what stays while all draws are done, and a quarter
    for what comes and goes: the losses of a class, then replicates that are done together.

    Raises
    ------
    InputError : there are more draws, or larger classes, than there is memory for, and what to do.
    """
    if evidence is None:
        return
    memory, total, labels = resampling_memory(stores.memory), int(samples.sum()), samples.shape[1]
    masks = max(expected(p.site.units, p.resolution(method.resolution)) for p in plans)
    weights, curves = weights_of(evidence, method, total), curves_of(evidence, labels, masks)
    if weights > memory:
        raise InputError(
            f"evidence holds how often each of {total:,} samples counts in every draw, "
            f"{size(weights)}, more than a quarter of the memory_budget; give a larger one, fewer "
            "samples by max_per_class, or fewer floors, resplits and replicates"
        )
    if weights + curves > memory:
        raise InputError(
            f"bootstrap 'full' holds the curves of {labels:,} classes in {evidence.draws} "
            f"replicates, {size(curves)}, with the weights of samples more than a quarter of the "
            "memory_budget; give a larger one, a coarser resolution, or fewer replicates"
        )
    if evidence.bootstrap is not None:
        for name, counts in zip(DRAWN_FROM[:2], samples, strict=True):
            require_losses_fit(name, int(counts.max()), masks, evidence.draws, memory)
    comes_and_goes = memory if evidence.redoes or evidence.bootstrap is not None else 0
    stores.take(weights + curves + comes_and_goes)


def draw_bytes(parts: int, pairs: int, units: int, masks: int, labels: int) -> int:
    """Of the scores, copies of the orders and curves of one replicate, and of a tree of a class."""
    each = parts * (3 * units + masks) + 2 * pairs * units
    return 8 * (labels * each + 8 * parts * units)


def losses_bytes(samples: int, masks: int, replicates: int) -> int:
    """Of the losses of one class, held until all of its samples have come, and their weights."""
    return 8 * samples * (masks + replicates)


def require_losses_fit(name: str, samples: int, masks: int, replicates: int, memory: int) -> None:
    """Refuse samples whose losses do not fit into the memory.

    Parameters
    ----------
    name : of their split.

    Raises
    ------
    InputError : and what to do.
    """
    needed = losses_bytes(samples, masks, replicates)
    if needed > memory:
        raise InputError(
            f"bootstrap holds the losses of a class's samples at all n, {size(needed)} for {name}"
            ", more than a quarter of the memory_budget; give a larger one, fewer samples by "
            "max_per_class, a coarser resolution, or bootstrap=None"
        )
