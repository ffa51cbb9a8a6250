"""What was made of a model, kept while the model is what it was made of.

A graph follows from the modules, their attributes and hooks, from the shapes and kinds of weights
and inputs, and from settings of PyTorch; the numbers in weights are no part of it. All that is
compared before a graph is used again. What cannot be compared, such as an object that shows none
of its contents, keeps nothing; what a forward reads elsewhere (a global variable) is not seen, and
is left to the checks that every graph has to pass in every call.
"""

from __future__ import annotations

import enum
import functools
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from unitroles.model.forward import leaves

T = TypeVar("T")
_MOST_KEPT = 4
"""Of one model, for inputs of several shapes."""
_MOST_LOOKED_AT = 50_000
_MOST_BYTES = 2**16
_PLAIN = (
    bool, int, str, bytes, type(None), type(...), slice, range, types.CodeType, torch.dtype,
    torch.device, torch.layout, torch.memory_format,
)  # fmt: skip
_HOOKS = (
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks",
    "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
)  # fmt: skip
# Of a module: what is looked at in its own way, and what no forward without gradients reads.
_APART = {
    *_HOOKS, "_parameters", "_buffers", "_backward_hooks", "_backward_pre_hooks",
    "_is_full_backward_hook", "_state_dict_hooks", "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
}  # fmt: skip


class Kept(Generic[T]):
    """One kind of thing made of models; it goes with the model, and holds nothing of it."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[weakref.ref[nn.Module], list[tuple[State, T]]]] = {}

    def get(self, model: nn.Module, state: State | None) -> T | None:
        """What was made of a model in this state."""
        return next((made for known, made in self._of(model) if known == state), None)

    def put(self, model: nn.Module, state: State | None, made: T) -> None:
        """Keep what was made of a model; nothing without a state."""
        if state is None:
            return
        others = [one for one in self._of(model) if one[0] != state]
        number, kept = id(model), self._kept
        there = weakref.ref(model, lambda _: kept.pop(number, None))
        kept[number] = there, [(state, made), *others][:_MOST_KEPT]

    def forget(self, model: nn.Module) -> None:
        """Keep nothing of a model any more."""
        self._kept.pop(id(model), None)

    def _of(self, model: nn.Module) -> list[tuple[State, T]]:
        there, found = self._kept.get(id(model), (None, []))
        return found if there is not None and there() is model else []


State = tuple[Any, ...]


class _Unknown(Exception):
    """Something that does not show its contents."""


class _Same:
    """Equal while it is the very same object; it does not keep that alive."""

    def __init__(self, value: Any) -> None:
        try:
            self._there = weakref.ref(value)
        except TypeError as error:
            raise _Unknown from error

    def __eq__(self, other: object) -> bool:
        mine = self._there()
        return isinstance(other, _Same) and mine is not None and mine is other._there()

    def __hash__(self) -> int:
        return id(self._there())


def state_of(model: nn.Module, inputs: Any) -> State | None:
    """All that decides the graph of a model for inputs of a form; None = it does not all show.

    Two states are equal where the graph is the same, whatever numbers the weights hold and however
    many samples there are.
    """
    look = _Look()
    try:
        return look.at(model), look.at_inputs(inputs), _settings(model)
    except (_Unknown, RecursionError):
        return None


def _settings(model: nn.Module) -> State:
    """What of PyTorch's state decides which operations a forward is made of."""
    if torch._C._len_torch_function_stack() or torch._C._len_torch_dispatch_stack():
        raise _Unknown
    kinds = {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} | {"cpu"}
    casts = [
        (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
        for kind in sorted(kinds - {"meta"})
    ]
    return (
        casts,
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        torch.backends.mha.get_fastpath_enabled(),
    )


class _Look:
    """Looks at objects; one that was met before is named by its number."""

    def __init__(self) -> None:
        self._met: dict[int, tuple[int, Any]] = {}

    def at_inputs(self, inputs: Any) -> State:
        """Everything about a batch but its numbers, and how many samples it holds."""
        return type(inputs), [
            (name, self._weight(value)[:-2], value.shape[1:], value.stride()[1:])
            if isinstance(value, Tensor)
            else (name, self.at(value))
            for name, value in leaves(inputs)
        ]

    def at(self, value: Any) -> Any:
        """A value that is equal for what makes the same graph."""
        if type(value) in _PLAIN:
            return type(value), value
        if isinstance(value, (float, complex, np.generic)):
            return type(value), repr(value)  # not a number equals itself here
        if isinstance(value, enum.Enum):
            return type(value), value.name
        if id(value) in self._met:
            return "met", self._met[id(value)][0]
        if len(self._met) > _MOST_LOOKED_AT:
            raise _Unknown
        self._met[id(value)] = len(self._met), value  # alive, so that its number stays its own
        return type(value), next(
            look(self, value) for kind, look in _KINDS.items() if isinstance(value, kind)
        )

    def _all(self, values: Iterable[Any]) -> list[Any]:
        return [self.at(value) for value in values]

    def _module(self, module: nn.Module) -> Any:
        held = vars(module)
        order = {
            name: {key: place for place, key in enumerate(held.get(name, ()))}
            for name in ("_forward_pre_hooks", "_forward_hooks")
        }
        hooks = [
            # The keys of hooks count all hooks of the process.
            [
                (order["_forward_pre_hooks" if "pre" in name else "_forward_hooks"].get(key), seen)
                for key, seen in zip(given, self._all(given.values()), strict=True)
            ]
            for name in _HOOKS
            for given in [held.get(name, {})]
        ]
        weights = [
            (name, None if tensor is None else self._named(tensor))
            for kind in ("_parameters", "_buffers")
            for name, tensor in held.get(kind, {}).items()
        ]
        rest = {name: value for name, value in held.items() if name not in _APART}
        return _code(type(module)), hooks, weights, self._all(rest), self._all(rest.values())

    def _named(self, tensor: Tensor) -> Any:
        """A parameter or buffer: not its numbers, but whether another name is its too."""
        if id(tensor) in self._met:
            return "met", self._met[id(tensor)][0]
        self._met[id(tensor)] = len(self._met), tensor
        return self._weight(tensor)

    def _weight(self, tensor: Tensor) -> Any:
        if tensor.layout is not torch.strided:
            raise _Unknown
        kind = type(tensor), tensor.dtype, tensor.device, tensor.requires_grad
        return *kind, tensor.shape, tensor.stride()

    def _tensor(self, tensor: Tensor) -> Any:
        """A tensor that is no weight: a forward may have read its numbers."""
        if tensor.is_inference() or tensor.is_meta:
            raise _Unknown
        return _Same(tensor), self._weight(tensor), tensor._version, tensor.data_ptr()

    def _array(self, array: np.ndarray) -> Any:
        if array.nbytes > _MOST_BYTES or array.dtype.hasobject:
            raise _Unknown
        return array.dtype.str, array.shape, array.tobytes()

    def _function(self, function: types.FunctionType) -> Any:
        cells = function.__closure__ or ()
        try:
            held = [cell.cell_contents for cell in cells]
        except ValueError as error:  # a name that is not set yet
            raise _Unknown from error
        given = function.__defaults__, function.__kwdefaults__, vars(function), held
        return function.__code__, self._all(given)

    def _method(self, method: types.MethodType) -> Any:
        return self._all((method.__func__, method.__self__))

    def _partial(self, made: functools.partial[Any]) -> Any:
        return self._all((made.func, made.args, made.keywords))

    def _dict(self, values: dict[Any, Any]) -> Any:
        return self._all(values), self._all(values.values())

    def _set(self, values: Iterable[Any]) -> Any:
        return sorted(repr(self.at(value)) for value in values)

    def _same(self, value: Any) -> Any:
        return _Same(value)

    def _object(self, value: Any) -> Any:
        if not hasattr(value, "__dict__") or isinstance(value, weakref.ReferenceType):
            raise _Unknown
        return _Same(value), self._dict(vars(value))


def _code(kind: type) -> Any:
    """The forward of a class: somebody may put another in its place."""
    return getattr(getattr(kind, "forward", None), "__code__", None)


# In this order: the first kind that a value is of says how it is looked at.
_KINDS: dict[Any, Callable[[_Look, Any], Any]] = {
    nn.Module: _Look._module,
    Tensor: _Look._tensor,
    np.ndarray: _Look._array,
    types.FunctionType: _Look._function,
    types.MethodType: _Look._method,
    functools.partial: _Look._partial,
    (dict, OrderedDict, types.MappingProxyType): _Look._dict,
    (list, tuple, deque): _Look._all,
    (set, frozenset): _Look._set,
    (type, types.ModuleType, types.BuiltinFunctionType, torch._ops.OpOverload): _Look._same,
    (torch._ops.OpOverloadPacket,): _Look._same,
    object: _Look._object,
}
