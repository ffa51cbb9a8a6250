"""Measures the evidence that was asked for, beside the curves of one layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float, Int

from unitroles.activity import order_units
from unitroles.collect import Kept
from unitroles.confidence import QUANTITIES, Watch, in_given_order, require_room
from unitroles.draws import Draws, half_size, halves, random_scores, resplits, reweighted
from unitroles.errors import InputError
from unitroles.evidence import interval, role_shares
from unitroles.options import Evidence
from unitroles.progress import Track
from unitroles.resample import Redone, Setting, redo, work
from unitroles.retrieval import Observer, nobody, rof_curve
from unitroles.roles import ROLE_NAMES, ROLES, active_set, assign_roles, turning_point

DRAWN_FROM = ("train", "test", "both")
CONTROLS = ("random order", "reversed order")
# The dim of the four roles; `role` itself is the variable (label, unit).
_CURVE, _BY_LABEL = ("split", "label", "retrieved"), ("label", "role_name")

Variables = dict[str, tuple[tuple[str, ...], np.ndarray]]
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
    """

    setting: Setting
    evidence: Evidence
    bars: Track
    watches: tuple[Watch, ...]

    def observer(self, split: int) -> Observer:
        """What is shown the losses of the curves."""
        return self.watches[split] if self.watches else nobody


def require_points(evidence: Evidence | None, resolution: str | int) -> None:
    """Refuse curves whose points hang on the samples.

    Raises
    ------
    InputError : the resolution is "adaptive".
    """
    if evidence is not None and resolution == "adaptive":
        raise InputError(
            "evidence compares curves at the same n, which resolution 'adaptive' does not give; "
            "take 'exact' or a whole number"
        )


def inquire(setting: Setting, evidence: Evidence, bars: Track) -> Inquiry:
    """Get ready to watch the curves; call before they are evaluated.

    Raises
    ------
    InputError : the losses of a class do not fit into memory.
    """
    if evidence.confidence is None:
        return Inquiry(setting, evidence, bars, ())
    for kept in setting.kept:
        require_room(kept, setting.labels, len(setting.points), setting.room)
    rows = [kept.samples.rows for kept in setting.kept]
    shape = (len(setting.labels), evidence.draws, evidence.seed)
    draws = reweighted(_classes(setting), rows, *shape)
    watches = tuple(Watch(setting, split, draws, evidence) for split in (0, 1))
    return Inquiry(setting, evidence, bars, watches)


def _classes(setting: Setting) -> list[Int[np.ndarray, " _"]]:
    return [setting.classes(split) for split in (0, 1)]


def _samples(setting: Setting) -> Int[np.ndarray, "split label"]:
    """Samples by split and class."""
    return np.stack([np.bincount(classes) for classes in _classes(setting)])


def findings(
    inquiry: Inquiry,
    order: Int[np.ndarray, "split label position"],
    point: Int[np.ndarray, "split label"],
    say: Callable[[float], None] | None = None,
) -> Found:
    """All evidence as variables (dims, values), and the coordinates of their new dims.

    Parameters
    ----------
    order, point : of the analysis itself.
    say : told before orders are redone for a full confidence, how many times the samples of both
        splits are put under all masks.
    """
    evidence, setting = inquiry.evidence, inquiry.setting
    found: Variables = {}
    if inquiry.watches:
        found |= _confidence(inquiry, order, point, say)
    if evidence.floors:
        found |= _floors(inquiry)
    if evidence.resplits:
        shape = (len(setting.labels), evidence.resplits, evidence.seed)
        shares = _shares(inquiry, "new splits", resplits(_classes(setting), *shape))
        found["resplit_share"] = ("resplit", *_BY_LABEL), shares[:, 0]
    if evidence.controls:
        found["control_share"] = ("control", *_BY_LABEL), _controls(inquiry, order)
    coords = {
        "role_name": np.array(ROLE_NAMES, dtype=object),
        "drawn_from": np.array(DRAWN_FROM, dtype=object),
        "control": np.array(CONTROLS, dtype=object),
        "quantity": np.array(QUANTITIES, dtype=object),
    }
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
    shares = _shares(inquiry, "noise floors", halves(_classes(setting), *shape))
    return {
        "floor_share": (("drawn_from", "draw", *_BY_LABEL), np.moveaxis(shares, 1, 0)),
        "floor_samples": (("label",), half_size(_samples(setting)).astype(np.int64)),
    }


def _confidence(
    inquiry: Inquiry,
    order: Int[np.ndarray, "split label position"],
    point: Int[np.ndarray, "split label"],
    say: Callable[[float], None] | None,
) -> Variables:
    first, second = inquiry.watches
    arrays = in_given_order((first, second), order, point)
    found: Variables = {
        "loss_low": (_CURVE, arrays["loss_low"]),
        "loss_high": (_CURVE, arrays["loss_high"]),
        "paired_error": (_CURVE, arrays["paired_error"]),
        "turning_point_replicate": (
            ("replicate", "split", "label"),
            arrays["turning_point_replicate"].astype(np.int32),
        ),
        "share_replicate": (("replicate", *_BY_LABEL), arrays["share_replicate"]),
        "coverage": (("quantity",), arrays["coverage"]),
    }
    if inquiry.evidence.confidence == "full":
        del found["coverage"]  # that of the given order is not that of new orders
        found |= _full(inquiry, first.draws, say)
    return found


def _full(inquiry: Inquiry, draws: Draws, say: Callable[[float], None] | None) -> Variables:
    """Score, order and curve anew for every replicate: P(role), and intervals with rank noise."""
    setting, level = inquiry.setting, inquiry.evidence.level
    if say is not None:
        say(work(setting, draws) / sum(len(kept.samples) for kept in setting.kept))
    blocks = list(_redone(inquiry, "confidence", draws))
    role = np.concatenate([block.role[:, 0] for block in blocks])
    curve = np.concatenate([block.curve[:, 0] for block in blocks])
    low, high = (np.full((*curve.shape[1:3], setting.units + 1), np.nan) for _ in range(2))
    low[..., setting.points], high[..., setting.points] = interval(curve, level)
    chance = np.stack([(role == value).mean(axis=0) for value in ROLES], axis=-1)
    points = np.concatenate([block.point[:, 0] for block in blocks])
    return {
        "loss_low": (_CURVE, low),
        "loss_high": (_CURVE, high),
        "turning_point_replicate": (("replicate", "split", "label"), points.astype(np.int32)),
        "share_replicate": (("replicate", *_BY_LABEL), role_shares(role)),
        "role_probability": (("label", "unit", "role_name"), chance.astype(np.float32)),
    }


def _controls(
    inquiry: Inquiry, order: Int[np.ndarray, "split label position"]
) -> Float[np.ndarray, "control label role"]:
    """Role shares where the order says nothing, and where it says the opposite."""
    setting = inquiry.setting
    scores = random_scores(order.shape, inquiry.evidence.seed)
    drawn = order_units(scores, _samples(setting), setting.order)
    found = []
    for name, other in zip(CONTROLS, (drawn, order[..., ::-1]), strict=True):
        done = inquiry.bars(name, sum(len(kept.samples) for kept in setting.kept))
        curve = partial(_curve, setting, done)
        point = np.stack([curve(kept, other[i]) for i, kept in enumerate(setting.kept)])
        found.append(role_shares(assign_roles(*active_set(other, point))))
    return np.stack(found)


def _curve(
    setting: Setting, done: Callable[[int], None], kept: Kept, order: np.ndarray
) -> Int[np.ndarray, " label"]:
    sums = rof_curve(kept, setting.labels, order, done, setting.points)
    return turning_point(sums.mean_loss, setting.tolerance)
