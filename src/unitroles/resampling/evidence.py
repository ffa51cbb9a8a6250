"""Measure what `Evidence` asks for, for one layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from unitroles.curves.retrieval import Observer, nobody
from unitroles.engine.plan import FullPlan
from unitroles.options import Evidence
from unitroles.progress import Track
from unitroles.resampling.controls import Variables, other_roles, what_sets_do
from unitroles.resampling.intervals import QUANTITIES, Swapped, Watch, in_given_order, regrets
from unitroles.resampling.limits import DRAWN_FROM, require_room
from unitroles.resampling.recompute import Redone, Setting, redo, work
from unitroles.roles import ROLE_NAMES, ROLES
from unitroles.stats.draws import Draws, half_size, halves, resplits, reweighted
from unitroles.stats.evidence import interval, role_shares, unit_spread

# The dim of the four roles; `role` itself is the variable (label, unit).
_CURVE, _BY_LABEL = ("split", "label", "retrieved"), ("label", "role_name")


_REPLICATE = ("replicate", "split", "label")


# Of what confidence gives.
_DIMS = {
    "loss_low": _CURVE,
    "loss_high": _CURVE,
    "paired_error": _CURVE,
    "turning_point_replicate": _REPLICATE,
    "regret_replicate": _REPLICATE,
    "share_replicate": ("replicate", *_BY_LABEL),
    "unit_std_replicate": ("replicate", "role_name"),
    "role_probability": ("label", "unit", "role_name"),
    "coverage": ("quantity",),
}


Found = tuple[Variables, dict[str, np.ndarray]]
"""Variables as (dims, values), and the coordinates of the dims that are new."""


@dataclass(frozen=True)
class Inquiry:
    """What is asked about one layer.

    Parameters
    ----------
    setting : what all replicates share.
    evidence : what was asked for.
    bars : progress.
    watches : of the losses in the given order, for both splits; () = none.
    swapped : of the losses under the other split's active sets, likewise.
    """

    setting: Setting
    evidence: Evidence
    bars: Track
    watches: tuple[Watch, ...]
    swapped: tuple[Swapped, ...] = ()

    def observer(self, split: int) -> Observer:
        """What is shown the losses of the curves."""
        return self.watches[split] if self.watches else nobody

    def swap_observer(self, split: int) -> Observer:
        """What is shown the losses under the other split's active sets."""
        return self.swapped[split] if self.swapped else nobody


def inquire(setting: Setting, evidence: Evidence, bars: Track) -> Inquiry:
    """Get ready to watch the curves; call before they are evaluated.

    Raises
    ------
    InputError : the losses of samples that wait for others do not fit into memory.
    """
    if evidence.confidence is None:
        return Inquiry(setting, evidence, bars, ())
    for kept in setting.kept:
        if kept.foreign:  # they come last, when the other samples of many classes are waiting
            require_room(kept.samples.name, len(kept.samples), len(setting.points), setting.room)
    rows = [kept.samples.rows for kept in setting.kept]
    shape = (len(setting.labels), evidence.draws, evidence.seed)
    draws = reweighted(_classes(setting), rows, *shape)
    watches = tuple(Watch(setting, split, draws, evidence) for split in (0, 1))
    swapped = tuple(Swapped(np.full(len(mine), np.nan)) for mine in rows)
    return Inquiry(setting, evidence, bars, watches, swapped)


def _classes(setting: Setting) -> list[Int[np.ndarray, " _"]]:
    return [setting.classes(split) for split in (0, 1)]


def _samples(setting: Setting) -> Int[np.ndarray, "split label"]:
    """Samples by split and class."""
    return np.stack([np.bincount(classes) for classes in _classes(setting)])


def findings(
    inquiry: Inquiry,
    order: Int[np.ndarray, "split label position"],
    point: Int[np.ndarray, "split label"],
    accuracy: Float[np.ndarray, "split label retrieved"],
    say: Callable[[float], None] | None = None,
) -> Found:
    """All evidence as variables (dims, values), and the coordinates of their new dims.

    Parameters
    ----------
    order, point, accuracy : of the analysis itself.
    say : told before orders are redone for a full confidence, how many times the samples of both
        splits are put under all masks.
    """
    evidence, setting = inquiry.evidence, inquiry.setting
    found: Variables = {}
    coords = {
        "role_name": np.array(ROLE_NAMES, dtype=object),
        "drawn_from": np.array(DRAWN_FROM, dtype=object),
        "quantity": np.array(QUANTITIES, dtype=object),
    }
    if inquiry.watches:
        found |= _confidence(inquiry, order, point, say)
    if evidence.floors:
        found |= _floors(inquiry)
    if evidence.resplits:
        shape = (len(setting.labels), evidence.resplits, evidence.seed)
        shares = _shares(inquiry, "new splits", resplits(_classes(setting), *shape))
        found["resplit_share"] = ("resplit", *_BY_LABEL), shares[:, 0]
    if evidence.controls:
        of_roles, names = other_roles(setting, order, point, accuracy, evidence.seed, inquiry.bars)
        found |= of_roles | what_sets_do(setting, order, point, inquiry.bars)
        coords["control"] = np.array(names, dtype=object)
    dims = {dim for names, _ in found.values() for dim in names}
    return found, {name: values for name, values in coords.items() if name in dims}


def _redone(inquiry: Inquiry, name: str, draws: Draws) -> Iterator[Redone]:
    done = inquiry.bars(name, work(inquiry.setting, draws))
    return redo(inquiry.setting, draws, done)


def _shares(
    inquiry: Inquiry, name: str, draws: Draws
) -> Float[np.ndarray, "replicate pair label role"]:
    blocks = [role_shares(block.role) for block in _redone(inquiry, name, draws)]
    return np.concatenate(blocks)


def _floors(inquiry: Inquiry) -> Variables:
    """Roles inside the training set, inside the test set, and of both, all at the same size."""
    setting, evidence = inquiry.setting, inquiry.evidence
    shape = (len(setting.labels), evidence.floors, evidence.seed)
    draws, found = halves(_classes(setting), *shape), []
    for block in _redone(inquiry, "noise floors", draws):  # whose curves are not kept
        found.append((role_shares(block.role), unit_spread(block.role), block.regret))
    # The pair of parts, from which roles and regret are, comes first.
    share, spread, regret = (
        np.moveaxis(np.concatenate(values), 1, 0) for values in zip(*found, strict=True)
    )
    drawn = ("drawn_from", "draw")
    return {
        "floor_share": ((*drawn, *_BY_LABEL), share),
        "floor_unit_std": ((*drawn, "role_name"), spread),
        "floor_regret": ((*drawn, "half", "label"), regret),
        "floor_samples": (("label",), half_size(_samples(setting)).astype(np.int64)),
    }


def _confidence(
    inquiry: Inquiry,
    order: Int[np.ndarray, "split label position"],
    point: Int[np.ndarray, "split label"],
    say: Callable[[float], None] | None,
) -> Variables:
    first, second = inquiry.watches
    one, other = inquiry.swapped
    if inquiry.evidence.confidence == "full":
        found = _full(inquiry, first.draws, say)
    else:
        found = {"regret_replicate": regrets((first, second), (one, other))}
    found |= in_given_order((first, second), order, point)
    found["turning_point_replicate"] = found["turning_point_replicate"].astype(np.int32)
    return {name: (_DIMS[name], values) for name, values in found.items()}


def _full(
    inquiry: Inquiry, draws: Draws, say: Callable[[float], None] | None
) -> dict[str, np.ndarray]:
    """Score, order and curve anew for every replicate: P(role), and intervals with rank noise."""
    setting, level = inquiry.setting, inquiry.evidence.level
    if say is not None:
        whole = isinstance(setting.kept[0].plan, FullPlan)  # its batches are never cut
        say(len(draws) if whole else work(setting, draws) / setting.samples)
    blocks = list(_redone(inquiry, "confidence", draws))
    role = np.concatenate([block.role[:, 0] for block in blocks])
    curve = np.concatenate([block.curve[:, 0] for block in blocks])
    low, high = (np.full((*curve.shape[1:3], setting.units + 1), np.nan) for _ in range(2))
    low[..., setting.points], high[..., setting.points] = interval(curve, level)
    chance = np.stack([(role == value).mean(axis=0) for value in ROLES], axis=-1)
    points = np.concatenate([block.point[:, 0] for block in blocks])
    return {
        "loss_low": low,
        "loss_high": high,
        "turning_point_replicate": points,
        "regret_replicate": np.concatenate([block.regret[:, 0] for block in blocks]),
        "share_replicate": role_shares(role),
        "unit_std_replicate": unit_spread(role),
        "role_probability": chance.astype(np.float32),
    }
