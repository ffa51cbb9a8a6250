"""The paper's definitions: orders, turning points, active sets, roles, proportions, shares.

Arrays in, arrays out (NumPy only); everything else in the library is about this file. It holds for
one run of the retrieval-of-function test; see [Zhao2023]_, equations 1-9.

.. [Zhao2023] Zhao, Zhang, Hu. Role Taxonomy of Units in Deep Neural Networks. arXiv 2011.00789.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from unitroles.errors import unknown

RESOLUTION = 1e-6
"""Nats; differences of a mean loss below it are rounding in float32."""


TOLERANCES = (0.0, RESOLUTION, 1e-3, 1e-2, 5e-2)


class Role(IntEnum):
    """A unit's role for one class: its place in the two active sets; 0 = undecided."""

    UNDECIDED = 0
    CORE = 1
    OVERFITTED = 2
    GENERALIZING = 3
    CONFUSING = 4

    @classmethod
    def of(cls, role: Role | int | str) -> Role:
        """The role with this number or name.

        >>> Role.of("core")
        <Role.CORE: 1>
        """
        try:
            return cls[role.upper()] if isinstance(role, str) else cls(role)
        except (KeyError, ValueError):
            raise unknown("role", role, ROLE_NAMES) from None


ROLES = (Role.CORE, Role.OVERFITTED, Role.GENERALIZING, Role.CONFUSING)


ROLE_NAMES = tuple(role.name.lower() for role in ROLES)


def turning_point(
    curve: Float[np.ndarray, "*rest retrieved"], tolerance: float = RESOLUTION
) -> Int[np.ndarray, "*rest"]:
    """The smallest n >= 1 whose loss lies within `tolerance` of the minimum over n >= 1.

    Parameters
    ----------
    curve : E(n) for n = 0 ... N on the last axis, in nats; n at which it is not a number were not
        evaluated, and do not count.
    tolerance : nats.

    Returns
    -------
    Int array of the leading shape ([Zhao2023]_ eq. 1).

    >>> int(turning_point(np.array([2.0, 1.0, 0.5, 0.5, 0.7])))
    2
    """
    retrieved = curve[..., 1:]
    low = np.fmin.reduce(retrieved, axis=-1, keepdims=True)
    return np.asarray((retrieved <= low + tolerance).argmax(axis=-1) + 1)


def accuracy_turning_point(
    curve: Float[np.ndarray, "*rest retrieved"],
) -> Int[np.ndarray, "*rest"]:
    """The smallest n >= 1 with the highest accuracy; `curve` as in `turning_point`."""
    return turning_point(-curve, tolerance=0.0)


def positions(order: Int[np.ndarray, "*rest position"]) -> Int[np.ndarray, "*rest unit"]:
    """The place of every unit in an order: the inverse permutation along the last axis."""
    return np.argsort(order, axis=-1, kind="stable")


def active_set(
    order: Int[np.ndarray, "*rest position"], point: Int[np.ndarray, "*rest"]
) -> Bool[np.ndarray, "*rest unit"]:
    """True for the first `point` units of each order ([Zhao2023]_ eq. 2)."""
    return positions(order) < np.asarray(point)[..., None]


def assign_roles(
    on_train: Bool[np.ndarray, "*rest unit"], on_test: Bool[np.ndarray, "*rest unit"]
) -> UInt8[np.ndarray, "*rest unit"]:
    """One role per unit from its membership in the two active sets ([Zhao2023]_ eqs 3-6)."""
    table = np.array(
        [[Role.CONFUSING, Role.GENERALIZING], [Role.OVERFITTED, Role.CORE]], dtype=np.uint8
    )
    return table[on_train.astype(np.intp), on_test.astype(np.intp)]


def roles_at(
    order: Int[np.ndarray, "split=2 *rest position"], point: Int[np.ndarray, "split=2 *rest"]
) -> UInt8[np.ndarray, "*rest unit"]:
    """One role per unit from the orders and turning points of the two splits; train, then test.

    >>> roles_at(np.array([[2, 0, 1], [1, 2, 0]]), np.array([2, 1])).tolist()
    [2, 3, 2]
    """
    return assign_roles(*active_set(order, point))


def proportions(role: UInt8[np.ndarray, "*rest unit"]) -> Float[np.ndarray, "*rest role"]:
    """The share of the units that have each role; columns as `ROLES`."""
    return _count(role).sum(axis=-2) / role.shape[-1]


def shares(role: UInt8[np.ndarray, "label unit"]) -> Float[np.ndarray, "unit role"]:
    """The share of the classes for which a unit has each role ([Zhao2023]_ eqs 8-9)."""
    return _count(role).sum(axis=0) / role.shape[0]


def _count(role: UInt8[np.ndarray, "*rest unit"]) -> Int[np.ndarray, "*rest unit role"]:
    return (role[..., None] == np.array(ROLES, dtype=np.uint8)).astype(np.int64)


def falls(loss: Float[np.ndarray, "*rest retrieved"]) -> Bool[np.ndarray, "*rest"]:
    """Whether some number of retrieved units brings the loss below that of the fully ablated layer.

    By more than `RESOLUTION`: a unit without effect leaves the loss where it was but for rounding.
    True also where a fully ablated layer has no loss (0/0): nothing is above it then.
    """
    never = np.fmin.reduce(loss[..., 1:], axis=-1) >= loss[..., 0] - RESOLUTION
    return np.asarray(~never)


def sensitivity(
    loss: Float[np.ndarray, "split label retrieved"],
    accuracy: Float[np.ndarray, "split label retrieved"],
    order: Int[np.ndarray, "split label position"],
    tolerance: float = RESOLUTION,
) -> dict[str, Float[np.ndarray, " role"]]:
    """Mean role proportions under other rules for the turning point, from the same curves.

    Returns one row per rule: the tolerances of `TOLERANCES` and the one in use, in nats, then the
    best accuracy, where accuracy is measured.
    """
    used = sorted({*TOLERANCES, tolerance})
    rules = {f"tolerance {nats:g}": turning_point(loss, nats) for nats in used}
    if np.isfinite(accuracy).any():
        rules["accuracy"] = accuracy_turning_point(accuracy)
    return {rule: proportions(roles_at(order, point)).mean(axis=0) for rule, point in rules.items()}


def ranked(score: Float[np.ndarray, "*rest unit"]) -> Int[np.ndarray, "*rest position"]:
    """Units by descending score; ties by unit index."""
    return np.argsort(-score, axis=-1, kind="stable")


def order_units(
    score: Float[np.ndarray, "split label unit"],
    samples: Int[np.ndarray, "split label"],
    order: str,
) -> Int[np.ndarray, "split label position"]:
    """The order of the units for every split and class.

    Parameters
    ----------
    score : mean score per split and class.
    samples : samples per split and class, the weights of the pooled score.
    order : "per_split", "train", "test" or "pooled", see `unitroles.Method`.
    """
    if order == "per_split":
        return ranked(score)
    if order == "pooled":
        weight = samples / samples.sum(axis=0)
        shared = (score * weight[..., None]).sum(axis=0)
    else:
        shared = score[("train", "test").index(order)]
    return np.broadcast_to(ranked(shared), score.shape).copy()
