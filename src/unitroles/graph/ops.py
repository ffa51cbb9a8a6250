"""The operations of an exported graph: what each does, and how its arguments are read.

A new operation is a name in `_TABLE`. What is not known of one stands nowhere: units meet in it,
nothing moves past it, and it is folded into nothing.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import has_side_effect

_aten = torch.ops.aten

ROWS = 2
"""The samples that operations are counted for."""


# Not `torch.library.custom_op`, which looks through all modules of the process for its source.
_MARKS = torch.library.Library("unitroles", "DEF")
for _name in ("tap", "boundary"):
    _MARKS.define(f"{_name}(Tensor value, int mark) -> Tensor")
    _MARKS.impl(_name, lambda value, mark: value.clone(), "CompositeExplicitAutograd")

# Its result is not used: it only tells which value of a graph a module took or gave.
has_side_effect(torch.ops.unitroles.boundary.default)


def is_tap(node: fx.Node) -> bool:
    return node.target is torch.ops.unitroles.tap.default


def value_of(node: Any) -> Any:
    """The value that a node is known to hold while tracing, a tensor of shapes without numbers."""
    return node.meta.get("val") if isinstance(node, fx.Node) else node


def args_of(node: fx.Node) -> tuple[Any, ...]:
    """Its arguments; what each is follows from the op, which the types of a graph do not know."""
    return node.args


def argument(node: fx.Node, name: str) -> Any:
    """An argument of an ATen op by its name there, its default where it is not given."""
    target: Any = node.target
    (place,) = (i for i, one in enumerate(target._schema.arguments) if one.name == name)
    if place < len(node.args):
        return node.args[place]
    return node.kwargs.get(name, target._schema.arguments[place].default_value)


def map_values(value: Any, change: Any) -> Any:
    """Change the tensors of a value, and make the sizes in it those of `ROWS` samples."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (list, tuple)):
        return [map_values(one, change) for one in value]
    return plain(value)


def plain(size: Any) -> Any:
    """A size as a number, that of the samples' axis as `ROWS`; what is no size stays."""
    if not isinstance(size, torch.SymInt):
        return size
    expression: Any = size.node.expr
    return int(expression.subs(dict.fromkeys(expression.free_symbols, ROWS)))


class Kind(Enum):
    """The kinds of ops, by what they do with the units of what they take."""

    MOVE = auto()  # gives the same numbers in other places
    PAD = auto()
    CAST = auto()  # makes another kind of number of those in the same place
    POINTWISE = auto()  # makes every number of those in the same place
    BATCH_NORM = auto()
    REDUCTION = auto()
    POOL = auto()
    LINEAR = auto()
    CONVOLUTION = auto()
    LAYER_NORM = auto()
    RMS_NORM = auto()
    DROPOUT = auto()  # writes to what it takes, or leaves it as it is
    NEW = auto()  # takes only the kind and place of numbers from its first argument
    UNKNOWN = auto()


Axes = dict[int, list[int]] | None


def _nowhere(node: fx.Node, axes: list[int]) -> Axes:
    return None


def _same(node: fx.Node, axes: list[int]) -> Axes:
    return {0: axes}


def _permuted(node: fx.Node, axes: list[int]) -> Axes:
    order = [axis % len(args_of(node)[1]) for axis in args_of(node)[1]]
    return {0: [order[axis] for axis in axes]} if order[0] == 0 else None


def _transposed(node: fx.Node, axes: list[int]) -> Axes:
    one, two = (axis % value_of(node).ndim for axis in args_of(node)[1:3])
    swap = {one: two, two: one}
    return {0: [swap.get(axis, axis) for axis in axes]} if 0 not in swap else None


def _without_features(node: fx.Node, axes: list[int]) -> Axes:
    return {0: axes} if max(axes) < value_of(node).ndim - 1 else None


def _without_normalised(node: fx.Node, axes: list[int]) -> Axes:
    return {0: axes} if max(axes) < value_of(node).ndim - len(args_of(node)[1]) else None


def _positions(node: fx.Node, axes: list[int]) -> Axes:
    batched = set(axes) <= {2, 3} and value_of(node).ndim == 4
    return {0: axes} if batched and is_pointwise_convolution(node) else None


def _broadcast(node: fx.Node, axes: list[int]) -> Axes:
    """The operands that have these axes; the others stay as they are."""
    if node.kwargs and set(node.kwargs) != {"alpha"}:
        return None
    found: dict[int, list[int]] = {}
    for place, operand in enumerate(node.args[:2]):
        if isinstance(operand, (int, float)):
            continue
        value = value_of(operand)
        if not isinstance(value, Tensor):
            return None
        shift = value_of(node).ndim - value.ndim
        sizes = [value.shape[axis - shift] if axis >= shift else 1 for axis in axes]
        if all(size == 1 for size in sizes):
            continue
        if any(size == 1 for size in sizes):
            return None
        found[place] = [axis - shift for axis in axes]
    return found or None


def _never(node: fx.Node) -> bool:
    return False


def _always(node: fx.Node) -> bool:
    return True


def fixed_weights(node: fx.Node) -> bool:
    """Whether an op takes weights alone beside its first argument."""
    given, *weights = node.all_input_nodes
    return node.args[0] is given and all(weight.op == "get_attr" for weight in weights)


def _one_factor(node: fx.Node) -> bool:
    factors = [one for one in node.args if isinstance(one, fx.Node)]  # a square has two
    return sum(one.op != "get_attr" for one in factors) == 1


def _by_a_number(node: fx.Node) -> bool:
    return not isinstance(node.args[1], fx.Node) and _one_factor(node)


def _keeps_32_bits(node: fx.Node) -> bool:
    """Whether a cast is one of numbers to numbers, of 32 bits or more: it rounds nothing coarse."""
    kinds = (value_of(node.args[0]).dtype, value_of(node).dtype)
    return all(kind in (torch.float32, torch.float64) for kind in kinds)


def _fixed_statistics(node: fx.Node) -> bool:
    return not argument(node, "training") and argument(node, "running_mean") is not None


@dataclass(frozen=True)
class Op:
    """An operation, as far as it is known.

    Parameters
    ----------
    kind : what it does with units.
    axes : (node, axes of its result) -> by operand the axes on which that may be sliced instead of
        the result; None where it may not.
    means : the operands, one or several together, whose mean over such axes gives that of the
        result.
    affine : whether a node is affine in what comes from the units, alike for all samples.
    renames : whether it may give back the very tensor it was given, which its schema does not say.
    """

    kind: Kind = Kind.UNKNOWN
    axes: Callable[[fx.Node, list[int]], Axes] = _nowhere
    means: tuple[tuple[int, ...], ...] = ()
    affine: Callable[[fx.Node], bool] = _never
    renames: bool = False


_FIRST = ((0,),)

_TABLE = [
    (Op(Kind.MOVE, _same, _FIRST, _always), "alias clone contiguous"),
    (Op(Kind.MOVE, _same, _FIRST, _always, renames=True), "dropout"),
    (Op(Kind.MOVE, _permuted, _FIRST, _always), "permute"),
    (Op(Kind.MOVE, _transposed, _FIRST, _always), "transpose.int"),
    (
        Op(Kind.MOVE, affine=_always),
        """flatten.using_ints reshape select.int squeeze squeeze.dim squeeze.dims unsqueeze
        view""",
    ),
    (
        Op(Kind.MOVE),
        """cat channel_shuffle chunk detach expand flip movedim.int pixel_shuffle repeat roll
        slice.Tensor split.Tensor split_with_sizes stack unbind.int unflatten.int""",
    ),
    (Op(Kind.PAD), "constant_pad_nd pad"),
    (
        Op(Kind.CAST, _same, affine=_keeps_32_bits, renames=True),
        "_to_copy to.device to.dtype to.dtype_layout to.other type_as",
    ),
    (Op(Kind.POINTWISE, _same, _FIRST, _always), "neg"),
    (Op(Kind.POINTWISE, _broadcast, ((0,), (1,), (0, 1)), _always), "add.Tensor sub.Tensor"),
    (Op(Kind.POINTWISE, _broadcast, ((0,), (1,)), _one_factor), "mul.Tensor"),
    (Op(Kind.POINTWISE, _broadcast, _FIRST, _by_a_number), "div.Tensor"),
    (
        Op(Kind.POINTWISE, _same),
        """abs elu gelu hardsigmoid hardswish hardtanh leaky_relu mish relu relu6 sigmoid silu
        softplus tanh""",
    ),
    (
        Op(Kind.POINTWISE),
        """add.Scalar clamp clamp.Tensor clamp_max clamp_min div.Scalar erf exp full_like ge.Scalar
        ge.Tensor gt.Scalar gt.Tensor le.Scalar le.Tensor log log1p log_sigmoid lt.Scalar lt.Tensor
        masked_fill.Scalar masked_fill.Tensor maximum minimum mul.Scalar ones_like
        pow.Tensor_Scalar reciprocal rsqrt rsub.Scalar rsub.Tensor selu sqrt square sub.Scalar
        threshold where.Scalar where.ScalarOther where.ScalarSelf where.self zeros_like""",
    ),
    (Op(Kind.BATCH_NORM, affine=_fixed_statistics), "batch_norm"),
    (Op(Kind.BATCH_NORM), "_native_batch_norm_legit_no_training"),
    (Op(Kind.REDUCTION), "mean.dim sum.dim_IntList amax amin"),
    (
        Op(Kind.POOL),
        """adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d avg_pool1d avg_pool2d
        avg_pool3d max_pool1d max_pool2d max_pool3d""",
    ),
    (Op(Kind.LINEAR, _without_features, _FIRST, fixed_weights), "linear"),
    (Op(Kind.CONVOLUTION, _positions, _FIRST), "conv2d"),
    (Op(Kind.LAYER_NORM, _without_normalised), "layer_norm"),
    (Op(Kind.RMS_NORM), "rms_norm"),
    (Op(Kind.DROPOUT), "alpha_dropout_ dropout_ feature_alpha_dropout_ feature_dropout_"),
    (Op(Kind.NEW), "new_full new_ones new_zeros"),
    (Op(renames=True), "alpha_dropout feature_dropout"),
]


def _aten_op(name: str) -> Any:
    packet, _, overload = name.partition(".")
    return getattr(getattr(_aten, packet), overload or "default")


_OPS: dict[Any, Op] = {_aten_op(name): op for op, names in _TABLE for name in names.split()}
_OPS[operator.getitem] = Op(Kind.MOVE, renames=True)


def op_of(node: fx.Node) -> Op:
    """The operation of a node, as far as it is known."""
    return _OPS.get(node.target, Op())


def is_cast(node: fx.Node) -> bool:
    """Whether an op changes nothing but the kind of numbers, or where they are."""
    return op_of(node).kind is Kind.CAST


def is_norm(node: fx.Node) -> bool:
    """Whether an op is a layer norm or an RMS norm."""
    return op_of(node).kind in (Kind.LAYER_NORM, Kind.RMS_NORM)


def is_pointwise_convolution(node: fx.Node) -> bool:
    """Whether a convolution sees one position at a time: 1 x 1, stride 1, no padding, no groups."""
    weight = node.args[1]
    if not isinstance(weight, fx.Node) or weight.op != "get_attr":
        return False
    plain = set(value_of(weight).shape[2:]) == set(argument(node, "stride")) == {1}
    return plain and set(argument(node, "padding")) == {0} and argument(node, "groups") == 1
