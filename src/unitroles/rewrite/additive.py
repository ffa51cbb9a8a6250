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

from unitroles.graph.cut import CannotCut
from unitroles.graph.ops import args_of, is_norm, is_pointwise_convolution, value_of
from unitroles.rewrite.head import Head

_aten = torch.ops.aten

_AFFINE = {
    _aten.alias.default,
    _aten.clone.default,
    _aten.contiguous.default,
    _aten.dropout.default,
    _aten.flatten.using_ints,
    _aten.neg.default,
    _aten.permute.default,
    _aten.reshape.default,
    _aten.select.int,
    _aten.squeeze.default,
    _aten.squeeze.dim,
    _aten.squeeze.dims,
    _aten.transpose.int,
    _aten.unsqueeze.default,
    _aten.view.default,
}


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
    folded: bool
    norm: Norm | None


def recognise(head: Head, around: tuple[Tensor, ...], fold: bool = True) -> Additive:
    """The additive form of a head.

    Parameters
    ----------
    around : what flows around the layer for a few samples.
    fold : whether what follows the sum is folded where it can be; else `folded` only says so, the
        form cannot be run, and `around` is not looked at.

    Raises
    ------
    CannotCut : the head has no such form, and why.
    """
    graph = head.after.graph
    places = [node for node in graph.nodes if node.op == "placeholder"]
    (output,) = (node for node in graph.nodes if node.op == "output")
    if head.edges != 1:
        raise CannotCut("units leave the layer on more than one way")
    edge = places[0]
    users = [user for user in edge.users if user.target is not _aten.sym_size.int]
    if len(users) != 1:
        raise CannotCut("the units reach more than one op that mixes them")
    (mix,) = users
    direct = mix is output or (is_norm(mix) and mix.args[0] is edge and _whole_row(mix))
    if direct:
        weight, axis = _identity(head)
    else:
        weight, axis = _weight(head.after, mix, edge)
    owners = head.owners[0]
    if owners.axis != axis and not (owners.axis is None and len(owners.shape) == 0):
        raise CannotCut("the units are not spread over the features of the op that mixes them")
    features = _features(owners.index, head.units)
    rows = _rows(weight, features)
    h = edge if direct else mix
    tail = _between(head.after, h, places[1:], output)
    base = Additive(features, axis, _mixing(head.after, edge, h), tail, rows, False, None)
    positions = [size for place, size in enumerate(owners.shape, 1) if place != axis]
    folded = all(size == 1 for size in positions) and _foldable(tail) is not None
    if direct and not folded:
        raise CannotCut("units meet in a norm before an op that is not linear")
    if not fold:
        return replace(base, folded=folded)
    # Nothing here depends on the samples: one of each value around stands for all.
    given = [
        value[:1] if per_row else value for value, per_row in zip(around, head.repeats, strict=True)
    ]
    return _fold(base, tuple(given)) if folded else base


def _rows(
    weight: Float[Tensor, "inputs outputs"], features: Int[Tensor, "units features"]
) -> Float[Tensor, "units features outputs"]:
    """The rows of a matrix by unit; ignore's feature has a row of zeros."""
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


def _weight(
    module: fx.GraphModule, mix: fx.Node, edge: fx.Node
) -> tuple[Float[Tensor, "features outputs"], int]:
    """The matrix of a linear op and the axis of its input that counts features."""
    value = value_of(edge)
    kind = str(mix.target).removeprefix("aten.").split(".")[0]
    if mix.args[0] is not edge or mix.args.count(edge) != 1:
        raise CannotCut(f"units meet in an op that is not linear ({kind})")
    weight: Any = mix.args[1] if len(mix.args) > 1 else None
    constant = isinstance(weight, fx.Node) and weight.op == "get_attr"
    if mix.target is _aten.linear.default and constant:
        return getattr(module, str(weight.target)).t(), value.ndim - 1
    if mix.target is _aten.conv2d.default and constant:
        if not is_pointwise_convolution(module, mix):
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


def _mixing(module: fx.GraphModule, edge: fx.Node, h: fx.Node) -> fx.GraphModule:
    graph = fx.Graph()
    copies = {edge: graph.placeholder("edge")}
    if h is not edge:
        for node in h.all_input_nodes:
            if node is not edge:
                copies[node] = graph.node_copy(node)
        copies[h] = graph.node_copy(h, copies.__getitem__)
    graph.output(copies[h])
    return fx.GraphModule(module, graph)


def _between(
    module: fx.GraphModule, h: fx.Node, around: list[fx.Node], output: fx.Node
) -> fx.GraphModule:
    graph = fx.Graph()
    copies = {h: graph.placeholder("h")}
    copies[h].meta = dict(h.meta)
    for node in around:
        copies[node] = graph.node_copy(node)
    rows = graph.call_function(_aten.sym_size.int, (copies[h], 0))
    edge = next(iter(module.graph.nodes))
    for node in module.graph.nodes:
        if node in copies or node is edge:
            continue
        if node.target is _aten.sym_size.int and node.args == (edge, 0):
            copies[node] = rows
        elif node is output:
            graph.output(copies[output.all_input_nodes[0]])
        else:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.eliminate_dead_code()
    return fx.GraphModule(module, graph)


def _fold(form: Additive, around: tuple[Tensor, ...]) -> Additive:
    """The same form with what follows the sum taken into its rows."""
    found = _foldable(form.tail)
    assert found is not None
    chain, norms = found
    rows = form.add.flatten(0, 1).to(torch.float64)
    if not norms:
        folded = _linear_part(form.tail, rows, around).to(form.add.dtype)
        return _with(form, folded, None)
    return _fold_norm(form, chain, norms[0], rows, around)


def _foldable(tail: fx.GraphModule) -> tuple[list[fx.Node], list[int]] | None:
    """The ops after the sum and the places of norms among them; None = they cannot be folded."""
    chain = _chain(tail)
    if chain is None:
        return None
    norms = [i for i, node in enumerate(chain) if is_norm(node)]
    if any(not _is_affine(node) for i, node in enumerate(chain) if i not in norms):
        return None
    if len(norms) > 1 or (norms and not _whole_row(chain[norms[0]])):
        return None
    return chain, norms


def _fold_norm(
    form: Additive,
    chain: list[fx.Node],
    place: int,
    rows: Float[Tensor, "features outputs"],
    around: tuple[Tensor, ...],
) -> Additive:
    node = chain[place]
    centered = node.target is _aten.layer_norm.default
    start, finish = _cut_at(form.tail, node)
    add = _linear_part(start, rows, around)
    if centered:
        add = add - add.mean(dim=1, keepdim=True)
    norm = Norm(start, _split(add, form), centered, _eps(node), finish)
    return _with(form, _linear_part(finish, add, around).to(form.add.dtype), norm)


def _with(form: Additive, add: Tensor, norm: Norm | None) -> Additive:
    fields = {name: getattr(form, name) for name in ("features", "axis", "mix", "tail")}
    return Additive(**fields, add=_split(add, form), folded=True, norm=norm)


def _split(rows: Tensor, form: Additive) -> Tensor:
    return rows.to(form.add.dtype).unflatten(0, form.add.shape[:2])


def _chain(tail: fx.GraphModule) -> list[fx.Node] | None:
    """The ops between h and the logits, where they are a chain."""
    place = next(iter(tail.graph.nodes))
    found = []
    while True:
        users = [user for user in place.users if user.target is not _aten.sym_size.int]
        if len(users) != 1:
            return None
        (place,) = users
        if place.op == "output":
            return found
        found.append(place)


def _whole_row(node: fx.Node) -> bool:
    """Whether a norm takes all that one sample has at this point."""
    sizes = value_of(node).shape[1:]
    wanted: Any = node.args[1]
    return [s for s in sizes if s != 1] == [s for s in wanted if s != 1]


def _eps(node: fx.Node) -> float:
    layer = node.target is _aten.layer_norm.default
    place = 4 if layer else 3
    default = 1e-5 if layer else torch.finfo(value_of(node).dtype).eps
    given: Any = node.args[place] if len(node.args) > place else node.kwargs.get("eps")
    return float(default if given is None else given)


def _is_affine(node: fx.Node) -> bool:
    """Whether an op is affine in what comes along the chain, alike for all samples."""
    if node.target in _AFFINE:
        return True
    if node.target is _aten.linear.default:
        weights = node.all_input_nodes[1:]
        return node.args[0] is node.all_input_nodes[0] and all(
            weight.op == "get_attr" for weight in weights
        )
    if node.target in (_aten.add.Tensor, _aten.sub.Tensor):
        return True
    if node.target in (_aten.mul.Tensor, _aten.div.Tensor):
        first_only = node.target is _aten.mul.Tensor or not isinstance(node.args[1], fx.Node)
        factors = [one for one in node.args if isinstance(one, fx.Node)]  # a square has two
        others = [one for one in factors if one.op == "get_attr"]
        return first_only and len(others) + 1 == len(factors)
    if node.target is _aten.batch_norm.default:
        return not node.args[5] and node.args[3] is not None
    return False


def _linear_part(
    module: fx.GraphModule, rows: Float[Tensor, "rows features"], around: tuple[Tensor, ...]
) -> Float[Tensor, "rows outputs"]:
    """What an affine graph makes of rows, without its constant part."""
    wide = copy.deepcopy(module).to(rows.dtype)
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


def _cut_at(tail: fx.GraphModule, norm: fx.Node) -> tuple[fx.GraphModule, fx.GraphModule]:
    """(h, *around) -> what is normalised, and (the normalised value, *around) -> logits."""
    places = [node for node in tail.graph.nodes if node.op == "placeholder"]
    first, second = fx.Graph(), fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in tail.graph.nodes:
        if node is norm:
            first.output(copies[args_of(norm)[0]])
            break
        copies[node] = first.node_copy(node, copies.__getitem__)
    first.eliminate_dead_code()
    start = value = second.placeholder("normalised")
    start.meta = dict(norm.meta)
    copies = {node: second.node_copy(node) for node in places[1:]}
    gain = norm.args[2:4] if norm.target is _aten.layer_norm.default else norm.args[2:3]
    for op, weight in zip((_aten.mul.Tensor, _aten.add.Tensor), gain, strict=False):
        if isinstance(weight, fx.Node):
            value = second.call_function(op, (value, second.node_copy(weight)))
    copies[norm] = value
    for node in tail.graph.nodes:
        if node.target is _aten.sym_size.int and node.args == (places[0], 0):
            copies[node] = second.call_function(_aten.sym_size.int, (start, 0))
        elif node.op == "output":
            second.output(copies[node.all_input_nodes[0]])
        elif node not in (*copies, places[0]) and set(node.all_input_nodes) <= copies.keys():
            copies[node] = second.node_copy(node, copies.__getitem__)
    second.eliminate_dead_code()
    return fx.GraphModule(tail, first), fx.GraphModule(tail, second)
