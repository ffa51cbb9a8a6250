"""Heads that begin with running sums over the units, recognised in a graph.

Where an op that mixes units is linear, its result with the first n units retrieved is

    h_n = h_0 + sum over i <= n of (t_i(a_i) - t_i(0)) W_i,

t_i being what acts on unit i alone: one running sum instead of n + 1 products. W_i is a row of a
matrix, or the kernel of a convolution for one of its channels. Units may reach several such ops and
others too, as in a residual block. Where only affine ops follow a single sum, or one layer norm and
then affine ops, they are folded into W, and the running sum is that of the logits themselves.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, fx

from unitroles.graph.extract import CannotCut, copied, extract, inputs_of, result_of
from unitroles.graph.ops import (
    Kind,
    args_of,
    argument,
    is_norm,
    is_pointwise_convolution,
    op_of,
    value_of,
)
from unitroles.heads.fast import fast, without_norms
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
class Window:
    """The window of a convolution over positions: rows and columns of each."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]


@dataclass(frozen=True)
class Sum:
    """A linear op in which units meet, as a running sum.

    Parameters
    ----------
    edge : the place of the edge value that it takes.
    features : for every unit the features of that value that it owns; the number of features itself
        stands for none.
    axis : the axis of that value that counts features, the samples' axis being 0.
    mix : (edge value) -> h.
    add : what one unit of each feature adds to h, or to the logits where the head is folded. Of a
        convolution each feature counts once for every place in its window.
    window : of a convolution over positions; else None.
    """

    edge: int
    features: Int[Tensor, "units owned"]
    axis: int
    mix: fx.GraphModule
    add: Float[Tensor, "units features outputs"]
    window: Window | None = None


@dataclass(frozen=True)
class Additive:
    """A head that begins with running sums over units.

    Parameters
    ----------
    sums : at least one; where `folded` or with a norm, that of the logits and no other.
    masked : the places of the edge values that the tail takes under their masks.
    tail : (h of every sum, *masked edge values, *around) -> logits.
    folded : whether the rows of the sum reach through the tail to the logits.
    norm : the normalisation on the way, or None.
    by_place : as of the head.
    """

    sums: tuple[Sum, ...]
    masked: tuple[int, ...]
    tail: fx.GraphModule
    by_place: bool = False
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
    form = running_sums(replace(head, after=without_norms(head.after, head.made)))
    if not can_fold(form):
        return replace(form, tail=fast(form.tail, head.made))
    # Nothing here depends on the samples: one of each value around stands for all.
    pairs = zip(around, head.repeats, strict=True)
    return fold(form, tuple(value[:1] if per_row else value for value, per_row in pairs))


def running_sums(head: Head) -> Additive:
    """The sums of the first ops that mix units, nothing folded.

    Raises
    ------
    CannotCut : none of these ops is linear, and why.
    """
    after = head.after
    edges, around = inputs_of(after)[: head.edges], inputs_of(after)[head.edges :]
    direct = _direct(head)
    if direct is not None:
        tail = extract(after, [edges[0], *around], result_of(after))
        form = Additive((direct,), (), tail)
        if not can_fold(form):
            raise CannotCut("units meet in a norm before an op that is not linear")
        return form
    sums: dict[fx.Node, Sum] = {}
    masked: dict[int, str] = {}
    for place, edge in enumerate(edges):
        for user in _users(edge):
            try:
                sums[user] = _sum(head, place, user)
            except CannotCut as error:
                masked.setdefault(place, str(error))
    if not sums:
        raise CannotCut(next(iter(masked.values())))
    tail = extract(after, [*sums, *(edges[i] for i in masked), *around], result_of(after))
    return Additive(tuple(sums.values()), tuple(masked), tail, head.by_place)


def _users(node: fx.Node) -> list[fx.Node]:
    """The ops that take more of a value than its number of rows."""
    return [user for user in node.users if user.target is not _aten.sym_size.int]


def _direct(head: Head) -> Sum | None:
    """The sum of units as they are, where they are the logits or meet in one norm."""
    edge = inputs_of(head.after)[0]
    users = _users(edge)
    if head.edges != 1 or len(users) != 1:
        return None
    (mix,) = users
    normed = is_norm(mix) and mix.args[0] is edge and _whole_row(mix)
    if mix.op != "output" and not normed:
        return None
    axes = [axis for axis, size in enumerate(head.owners[0].shape, 1) if size > 1]
    if len(axes) > 1:
        raise CannotCut("units meet in a norm over positions")
    axis = axes[0] if axes else 1
    matrix = torch.eye(head.owners[0].shape[axis - 1], dtype=head.dtype)
    return _of_matrix(head, 0, edge, matrix, axis)


def _sum(head: Head, place: int, mix: fx.Node) -> Sum:
    """The running sum of a linear op with a fixed weight.

    Raises
    ------
    CannotCut : it is none, or units are not spread over what it sums.
    """
    module, edge = head.after, inputs_of(head.after)[place]
    kind = str(mix.target).removeprefix("aten.").split(".")[0]
    linear = op_of(mix).kind in (Kind.LINEAR, Kind.CONVOLUTION)
    weight = args_of(mix)[1] if linear else None
    if not isinstance(weight, fx.Node) or weight.op != "get_attr" or mix.args[0] is not edge:
        raise CannotCut(f"units meet in an op that is not linear ({kind})")
    value = getattr(module, str(weight.target))
    if value.dtype in HALF:
        raise CannotCut("units meet in a product of 16 bits, whose running sum would be rounded")
    if op_of(mix).kind is Kind.LINEAR:
        return _of_matrix(head, place, mix, value.t(), value_of(edge).ndim - 1)
    if is_pointwise_convolution(mix):
        return _of_matrix(head, place, mix, value.flatten(1).t(), 1)
    if argument(mix, "groups") > 1:
        raise CannotCut("units meet in a convolution of several groups")
    found = _of_matrix(head, place, mix, value.flatten(2).permute(1, 2, 0), 1)
    rest = [argument(mix, name) for name in ("stride", "padding", "dilation")]
    window = Window(*(tuple(sizes) for sizes in (value.shape[2:], *rest)))
    return replace(found, window=window)


def _of_matrix(
    head: Head, place: int, h: fx.Node, rows: Float[Tensor, "features *taps outputs"], axis: int
) -> Sum:
    """The sum of what each feature gives.

    Raises
    ------
    CannotCut : units are not spread over the features.
    """
    owners = head.owners[place]
    if owners.axis != axis and not (owners.axis is None and len(owners.shape) == 0):
        raise CannotCut("the units are not spread over the features of the op that mixes them")
    features = _features(owners.index, head.units)
    mix = extract(head.after, [inputs_of(head.after)[place]], h)
    return Sum(place, features, axis, mix, _rows(rows, features))


def _rows(
    weight: Float[Tensor, "inputs *taps outputs"], features: Int[Tensor, "units owned"]
) -> Float[Tensor, "units features outputs"]:
    """The rows of a matrix by unit; zeros for the feature that stands for none."""
    in_turn = torch.arange(features.numel()).view(features.shape)
    if features.numel() == len(weight) and bool((features == in_turn).all()):
        rows = weight.unflatten(0, features.shape)  # may be large, and is not copied
        rows = rows.contiguous() if features.shape[1] == 1 else rows
    else:
        none = weight.new_zeros(1, *weight.shape[1:])
        rows = torch.cat([weight, none])[features.to(weight.device)]
    return rows.flatten(1, -2)


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
    """Whether only affine ops and at most one norm follow a single sum without positions."""
    one = form.sums[0]
    sizes = value_of(inputs_of(one.mix)[0]).shape[1:]
    chain = _chain(form.tail)
    if len(form.sums) > 1 or form.masked or one.window is not None or chain is None:
        return False
    if any(size != 1 for place, size in enumerate(sizes, 1) if place != one.axis):
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
    (one,) = form.sums
    tail = copied(form.tail)
    rows = one.add.flatten(0, 1).to(torch.float64)
    node = next((node for node in _chain(tail) or () if is_norm(node)), None)
    if node is None:
        return _folded(form, _linear_part(tail, rows, around))
    h, *others = inputs_of(tail)
    _take_gain_out(node)
    start = extract(tail, [h, *others], args_of(node)[0])
    finish = extract(tail, [node, *others], result_of(tail))
    centered = op_of(node).kind is Kind.LAYER_NORM
    add = _linear_part(start, rows, around)
    if centered:
        add = add - add.mean(dim=1, keepdim=True)
    norm = Norm(start, _by_unit(add, one), centered, _eps(node), finish)
    return replace(_folded(form, _linear_part(finish, add, around)), norm=norm)


def _folded(form: Additive, rows: Float[Tensor, "rows labels"]) -> Additive:
    (one,) = form.sums
    return replace(form, sums=(replace(one, add=_by_unit(rows, one)),), folded=True)


def _by_unit(rows: Tensor, one: Sum) -> Tensor:
    return rows.to(one.add.dtype).unflatten(0, one.add.shape[:2])


def _chain(tail: fx.GraphModule) -> list[fx.Node] | None:
    """The ops between h and the logits, where they are a chain."""
    found, users = [], _users(inputs_of(tail)[0])
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
