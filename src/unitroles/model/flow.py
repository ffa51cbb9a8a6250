"""Which values of a forward the logits are made of: its operations, one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# fmt: off
MIXING = {
    "addmm", "mm", "addmv", "mv", "dot", "bmm", "baddbmm", "matmul", "linear", "convolution",
    "convolution_overrideable", "_convolution", "_transformer_encoder_layer_fwd",
}
"""Operations in which units meet weights. Names are those of ATen, without its mark of in-place."""
ACTIVATING = {
    "relu", "clamp", "clamp_min", "hardtanh", "leaky_relu", "elu", "celu", "gelu", "silu", "mish",
    "hardswish", "hardsigmoid", "sigmoid", "tanh", "softplus", "prelu", "_prelu_kernel",
    "rrelu_with_noise", "log_sigmoid_forward", "threshold", "glu",
}
LAYOUT = {"permute", "transpose", "t", "movedim", "clone", "contiguous", "detach", "alias"}
"""Those that move all numbers and keep the units on one axis."""
_VIEWS = {"view", "_unsafe_view", "reshape", "flatten", "squeeze", "unsqueeze", "_to_copy"}
PASSING = LAYOUT | _VIEWS | {
    "as_strided", "expand", "select", "slice", "narrow", "index", "gather", "index_select", "split",
    "split_with_sizes", "unbind", "chunk", "mean", "sum", "amax", "amin", "max", "min",
    "avg_pool1d", "avg_pool2d", "avg_pool3d", "max_pool2d", "max_pool2d_with_indices",
    "max_pool3d_with_indices", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d",
    "adaptive_avg_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d", "native_dropout",
}
"""Those that only move, choose or pool numbers."""
_LOOKING_UP = {
    "embedding", "embedding_bag", "_embedding_bag", "index", "index_select", "gather",
}
# fmt: on


@dataclass(frozen=True)
class Value:
    """What an operation made of the model's inputs.

    Parameters
    ----------
    operation : its name in ATen; "input" for the model's own.
    sources : numbers of the values it was made of.
    floating : whether it holds floating-point numbers.
    """

    operation: str
    sources: tuple[int, ...]
    floating: bool


class Flow(TorchDispatchMode):
    """Notes every operation on what comes from the inputs, while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[Value] = []
        self._made: dict[int, int] = {}  # the value of a tensor
        self._written: dict[int, int] = {}  # the last one in a piece of memory
        self._keep: list[Tensor] = []  # an identity means something only while its tensor lives

    def begin(self, inputs: Iterable[Tensor]) -> None:
        """These tensors are what the model is given."""
        for tensor in inputs:
            self._note(tensor, Value("input", (), tensor.is_floating_point()), whole=True)

    def value_of(self, tensor: Any) -> int | None:
        """The number of the value that a tensor holds now; None = made of no input."""
        if not isinstance(tensor, Tensor):
            return None
        found = self._made.get(id(tensor)), self._written.get(_memory(tensor))
        return max((n for n in found if n is not None), default=None)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        taken = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        numbers = {self.value_of(tensor) for tensor in taken}
        sources = tuple(sorted(n for n in numbers if n is not None))
        memories = {_memory(tensor) for tensor in taken}
        made = func(*args, **kwargs)
        if sources:
            packet = getattr(func, "overloadpacket", func)
            name = getattr(packet, "__name__", str(packet)).removesuffix("_")
            for tensor in tree_leaves(made):
                if isinstance(tensor, Tensor):
                    written = any(tensor is other for other in taken)
                    own = written or _memory(tensor) not in memories  # else a view of its source
                    value = Value(name, sources, tensor.is_floating_point())
                    self._note(tensor, value, whole=own)
        return made

    def _note(self, tensor: Tensor, value: Value, whole: bool) -> None:
        self._keep.append(tensor)
        self._made[id(tensor)] = len(self.values)
        if whole:
            self._written[_memory(tensor)] = len(self.values)
        self.values.append(value)


def _memory(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage()._cdata
    except (RuntimeError, NotImplementedError):  # sparse tensors, and those inside a vmap
        return -id(tensor)


def on_every_path(values: Sequence[Value], end: int) -> list[int]:
    """The values that every path from the inputs to `end` goes through, the last one first.

    Paths are those of floating-point numbers, beginning where token numbers look up weights; where
    there is none, those of all numbers.
    """
    for all_kinds in (False, True):
        above = _dominators(values[: end + 1], all_kinds)
        if end in above:
            found = [end]
            while above[found[-1]] >= 0:
                found.append(above[found[-1]])
            return found
    return []


def _dominators(values: Sequence[Value], all_kinds: bool) -> dict[int, int]:
    """For every value the last one before it that all paths to it go through; -1 = there is none.

    A value is made after those it is made of, so one pass is enough.
    """
    above: dict[int, int] = {-1: -1}
    for number, value in enumerate(values):
        if not (value.floating or all_kinds):
            continue
        sources = [source for source in value.sources if source in above]
        if sources:
            shared = sources[0]
            for other in sources[1:]:
                while shared != other:
                    shared, other = max(shared, other), min(shared, other)
                    shared = above[shared]
            above[number] = shared
        elif value.operation == "input" or (value.operation in _LOOKING_UP and value.sources):
            above[number] = -1
    return above


def before_mixing(values: Sequence[Value], end: int) -> set[int]:
    """The values that meet weights on their way to `end`."""
    used, found = {end}, set[int]()
    for number in range(end, -1, -1):
        if number in used:
            used.update(values[number].sources)
            if number in found or values[number].operation in MIXING:
                found.update(values[number].sources)
    return found


def last_operation(values: Sequence[Value], end: int | None) -> str:
    """What made a value, but for operations that only move numbers."""
    while end is not None and values[end].operation in LAYOUT | _VIEWS:
        end = values[end].sources[0] if values[end].sources else None
    return "" if end is None else values[end].operation
