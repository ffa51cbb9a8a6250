"""Heads that are one running sum over the units, recognised in a graph.

Where the first op that mixes units is linear, its result with the first n units retrieved is

    h_n = h_0 + sum over i <= n of (t_i(a_i) - t_i(0)) W_i,

t_i being what acts on unit i alone: one running sum instead of n + 1 products. Where only affine
ops follow, or one layer norm and then affine ops, they are folded into W, and the running sum is
that of the logits themselves.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, fx

from unitroles.graph.extract import CannotCut, extract
from unitroles.graph.ops import (
    Kind,
    args_of,
    argument,
    is_norm,
    is_pointwise_convolution,
    op_of,
    value_of,
)
from unitroles.heads.head import Head
from unitroles.model.forward import HALF
from unitroles.rewrite.precision import compute_in

_aten = torch.ops.aten


@dataclass(frozen=True)
class Norm:
    """The one normalisation in a folded tail.

    Parameters
    ----------
    start, add : what is normalised is `start` of h_0, plus the retrieved units' rows of `add`.
    centered : whether the mean is taken off (layer norm) or not (RMS norm).
    eps : added to the variance.
    finish : (the normalised value, *around) -> logits.
    """

    start: fx.GraphModule
    add: Float[Tensor, "units features outputs"]
    centered: bool
    eps: float
    finish: fx.GraphModule


@dataclass(frozen=True)
class Additive:
    """A head as a running sum over units.

    Parameters
    ----------
    features : for every unit the features of the mixing op's input that it owns; the number of
        features itself stands for none.
    axis : the axis of that input that counts features, the samples' axis being 0.
    mix : (edge value) -> h, the first op that mixes units.
    tail : (h, *around) -> logits.
    add : what one unit of each feature adds to h, or to the logits where `folded`.
    folded : whether `add` reaches through the tail to the logits.
    norm : the normalisation on the way, or None.
    """

    features: Int[Tensor, "units features"]
    axis: int
    mix: fx.GraphModule
    tail: fx.GraphModule
    add: Float[Tensor, "units features outputs"]
    folded: bool = False
    norm: Norm | None = None


def recognise(head: Head, around: tuple[Tensor, ...]) -> Additive:
    """The additive form of a head, folded where it can be.

    Parameters
    ----------
    around : what flows around the layer for a few samples.

    Raises
    ------
    CannotCut : the head has no such form, and why.
    """
    form = running_sum(head)
    if not can_fold(form):
        return form
    # Nothing here depends on the samples: one of each value around stands for all.
    pairs = zip(around, head.repeats, strict=True)
    return fold(form, tuple(value[:1] if per_row else value for value, per_row in pairs))


def running_sum(head: Head) -> Additive:
    """The sum of the first op that mixes units, nothing folded.

    Raises
    ------
    CannotCut : there is no such op or it is not linear, and why.
    """
    edge, mix = _mixing_op(head)
    direct = mix.op == "output" or (is_norm(mix) and mix.args[0] is edge and _whole_row(mix))
    matrix, axis = _identity(head) if direct else _matrix(head.after, mix, edge)
    owners = head.owners[0]
    if owners.axis != axis and not (owners.axis is None and len(owners.shape) == 0):
        raise CannotCut("the units are not spread over the features of the op that mixes them")
    features = _features(owners.index, head.units)
    if matrix.dtype in HALF:
        raise CannotCut("units meet in a product of 16 bits, whose running sum would be rounded")
    h = edge if direct else mix
    around = _places(head.after)[1:]
    form = Additive(
        features=features,
        axis=axis,
        mix=extract(head.after, [edge], h),
        tail=extract(head.after, [h, *around], _result(head.after)),
        add=_rows(matrix, features),
    )
    if direct and not can_fold(form):
        raise CannotCut("units meet in a norm before an op that is not linear")
    return form


def _places(module: fx.GraphModule) -> list[fx.Node]:
    return module.graph.find_nodes(op="placeholder")


def _result(module: fx.GraphModule) -> fx.Node:
    return module.graph.output_node().all_input_nodes[0]


def _mixing_op(head: Head) -> tuple[fx.Node, fx.Node]:
    """The value that the units leave on, and the one op that takes it."""
    if head.edges != 1:
        raise CannotCut("units leave the layer on more than one way")
    edge = _places(head.after)[0]
    users = _users(edge)
    if len(users) != 1:
        raise CannotCut("the units reach more than one op that mixes them")
    return edge, users[0]


def _users(node: fx.Node) -> list[fx.Node]:
    """The ops that take more of a value than its number of rows."""
    return [user for user in node.users if user.target is not _aten.sym_size.int]


def _rows(
    weight: Float[Tensor, "inputs outputs"], features: Int[Tensor, "units features"]
) -> Float[Tensor, "units features outputs"]:
    """The rows of a matrix by unit; zeros for the feature that stands for none."""
    in_turn = torch.arange(features.numel()).view(features.shape)
    if features.numel() == len(weight) and bool((features == in_turn).all()):
        rows = weight.unflatten(0, features.shape)  # may be large, and is not copied
        return rows.contiguous() if features.shape[1] == 1 else rows
    return torch.cat([weight, weight.new_zeros(1, weight.shape[1])])[features.to(weight.device)]


def _identity(head: Head) -> tuple[Tensor, int]:
    """Units that are summed as they are: they meet in a norm, or are the logits."""
    axes = [axis for axis, size in enumerate(head.owners[0].shape, 1) if size > 1]
    if len(axes) > 1:
        raise CannotCut("units meet in a norm over positions")
    axis = axes[0] if axes else 1
    return torch.eye(head.owners[0].shape[axis - 1], dtype=head.dtype), axis


def _matrix(
    module: fx.GraphModule, mix: fx.Node, edge: fx.Node
) -> tuple[Float[Tensor, "features outputs"], int]:
    """The matrix of a linear op and the axis of its input that counts features."""
    value = value_of(edge)
    kind = str(mix.target).removeprefix("aten.").split(".")[0]
    if mix.args[0] is not edge or mix.args.count(edge) != 1:
        raise CannotCut(f"units meet in an op that is not linear ({kind})")
    weight: Any = mix.args[1] if len(mix.args) > 1 else None
    constant = isinstance(weight, fx.Node) and weight.op == "get_attr"
    if op_of(mix).kind is Kind.LINEAR and constant:
        return getattr(module, str(weight.target)).t(), value.ndim - 1
    if op_of(mix).kind is Kind.CONVOLUTION and constant:
        if not is_pointwise_convolution(mix):
            raise CannotCut("units meet in a convolution over positions")
        return getattr(module, str(weight.target)).flatten(1).t(), 1
    raise CannotCut(f"units meet in an op that is not linear ({kind})")


def _features(owner: Int[Tensor, " inputs"], units: int) -> Int[Tensor, "units features"]:
    """The features of every unit, filled up with one beyond the last."""
    counts = torch.bincount(owner[owner >= 0], minlength=units)
    found = torch.full((units, max(int(counts.max()), 1)), len(owner))
    filled = [0] * units
    for feature, unit in enumerate(owner.tolist()):
        if unit >= 0:
            found[unit, filled[unit]] = feature
            filled[unit] += 1
    return found


def can_fold(form: Additive) -> bool:
    """Whether only affine ops and at most one norm follow a sum without positions."""
    sizes = value_of(_places(form.mix)[0]).shape[1:]
    chain = _chain(form.tail)
    if chain is None or any(size != 1 for place, size in enumerate(sizes, 1) if place != form.axis):
        return False
    norms = [node for node in chain if is_norm(node)]
    others = [node for node in chain if not is_norm(node)]
    return (
        len(norms) <= 1
        and all(map(_whole_row, norms))
        and all(op_of(node).affine(node) for node in others)
    )


def fold(form: Additive, around: tuple[Tensor, ...]) -> Additive:
    """The same form with what follows the sum taken into its rows."""
    tail = extract(form.tail, _places(form.tail), _result(form.tail))  # a copy, to be changed
    rows = form.add.flatten(0, 1).to(torch.float64)
    node = next((node for node in _chain(tail) or () if is_norm(node)), None)
    if node is None:
        logits = _linear_part(tail, rows, around)
        return replace(form, add=_by_unit(logits, form), folded=True)
    h, *others = _places(tail)
    _take_gain_out(node)
    start = extract(tail, [h, *others], args_of(node)[0])
    finish = extract(tail, [node, *others], _result(tail))
    centered = op_of(node).kind is Kind.LAYER_NORM
    add = _linear_part(start, rows, around)
    if centered:
        add = add - add.mean(dim=1, keepdim=True)
    norm = Norm(start, _by_unit(add, form), centered, _eps(node), finish)
    logits = _linear_part(finish, add, around)
    return replace(form, add=_by_unit(logits, form), folded=True, norm=norm)


def _by_unit(rows: Tensor, form: Additive) -> Tensor:
    return rows.to(form.add.dtype).unflatten(0, form.add.shape[:2])


def _chain(tail: fx.GraphModule) -> list[fx.Node] | None:
    """The ops between h and the logits, where they are a chain."""
    found, users = [], _users(_places(tail)[0])
    while len(users) == 1:
        (node,) = users
        if node.op == "output":
            return found
        found.append(node)
        users = _users(node)
    return None


def _whole_row(node: fx.Node) -> bool:
    """Whether a norm takes all that one sample has at this point."""
    sizes = value_of(node).shape[1:]
    wanted: Any = node.args[1]
    return [s for s in sizes if s != 1] == [s for s in wanted if s != 1]


def _eps(node: fx.Node) -> float:
    given = argument(node, "eps")
    return float(torch.finfo(value_of(node).dtype).eps if given is None else given)


def _linear_part(
    module: fx.GraphModule, rows: Float[Tensor, "rows features"], around: tuple[Tensor, ...]
) -> Float[Tensor, "rows outputs"]:
    """The linear part of what an affine graph makes of rows."""
    wide = copy.deepcopy(module)
    compute_in(wide, rows.dtype, (torch.float32,))
    shape = value_of(next(iter(module.graph.nodes))).shape[1:]
    zeros = torch.zeros_like(rows[:1]).expand(2, -1)  # two rows at least, as in the export
    # What flows around is only added: without it, no huge number of one sample hides the rows.
    given = [
        torch.zeros_like(value, dtype=rows.dtype) if value.is_floating_point() else value
        for value in around
    ]
    results = []
    for values in (torch.cat([rows, zeros]), zeros):
        results.append(wide(values.reshape(len(values), *shape), *given).flatten(1))
    whole, constant = results[0][: len(rows)], results[1][:1]
    # A class that is masked out is minus infinity in both.
    return torch.where(whole == constant, 0.0, whole - constant)


def _take_gain_out(norm: fx.Node) -> None:
    """Let ops of their own multiply with the weight of a norm and add its bias."""
    users, value = list(norm.users), norm
    gain = norm.args[2:4] if op_of(norm).kind is Kind.LAYER_NORM else norm.args[2:3]
    with norm.graph.inserting_before(norm.next):
        for op, weight in zip((_aten.mul.Tensor, _aten.add.Tensor), gain, strict=False):
            if isinstance(weight, fx.Node):
                value = norm.graph.call_function(op, (value, weight))
                value.meta["val"] = value_of(norm)
    for user in users:
        user.replace_input_with(norm, value)
