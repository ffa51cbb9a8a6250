"""What was made of a model, kept while the model is what it was made of.

A graph follows from the modules, their attributes and hooks, from the shapes and kinds of weights
and inputs, and from settings of PyTorch; the numbers in weights are no part of it. It follows, too,
from the code of forwards and from all that this code names: functions, classes and their
attributes, global variables, what modules of Python hold under such a name. All that is compared
before a graph is used again. What cannot be compared keeps nothing: an object that shows none of
its contents, code that looks things up by names it computes or imports as it runs. Functions and
classes of PyTorch, NumPy and Python itself are taken for what they are. Every graph has to pass all
checks in every call all the same.
"""

from __future__ import annotations

import dis
import enum
import functools
import sys
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
_MOST_LOOKED_AT = 5_000
"""Objects; where a model reaches more of them, to look costs more than it saves."""
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


_TRUSTED = {"torch", "numpy", "unitroles", *sys.stdlib_module_names} - {"__main__"}
_BY_COMPUTED_NAME = {"globals", "eval", "exec", "__import__", "import_module", "environ"}
_NEVER_READ = {
    "__repr__", "__str__", "__dict__", "__weakref__", "__doc__", "__module__", "__qualname__",
    "__annotations__", "__annotate_func__", "__annotations_cache__", "__firstlineno__",
    "__static_attributes__", "__type_params__", "__parameters__", "__orig_bases__",
    "__abstractmethods__", "_abc_impl", "__slots__", "__dataclass_fields__",
    "__dataclass_params__", "__match_args__", "__init_subclass__",
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
        return look.at(model), look.at_inputs(inputs), look.at_names(), _settings(model)
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
        torch.are_deterministic_algorithms_enabled(),
    )


class _Look:
    """Looks at objects; one that was met before is named by its number."""

    def __init__(self) -> None:
        self._met: dict[int, tuple[int, Any]] = {}
        self._names: set[str] = set()
        self._holders: dict[Any, set[str]] = {}
        self._by_name: set[type] = set()

    def at_names(self) -> State:
        """What classes and modules hold under the names that code reads; that may name more."""
        found: list[Any] = []
        while todo := [
            (holder, name)
            for holder, done in self._holders.items()
            for name in vars(holder)
            if name not in done and self._reads(holder, name)
        ]:
            for holder, name in todo:
                self._holders[holder].add(name)
                found.append((name, self.at(vars(holder).get(name))))
        return tuple(found)

    def _reads(self, holder: Any, name: str) -> bool:
        if name in _NEVER_READ:
            return False
        if name in ("__init__", "__new__"):  # of what code makes, not of the modules that are there
            return holder in self._by_name
        implied = name == "forward" or (isinstance(holder, type) and name.startswith("__"))
        return implied or name in self._names

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
        self._note(type(value))
        found = next(look(self, value) for kind, look in _KINDS.items() if isinstance(value, kind))
        more = isinstance(value, _CONTAINERS) and hasattr(value, "__dict__")
        return type(value), found, self.at(vars(value)) if more else None

    def _note(self, kind: type) -> None:
        """Look at what this class and those it is made of hold, in the end."""
        for one in kind.__mro__:
            if not _trusted(one):
                self._holders.setdefault(one, set())

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
        if tensor.is_meta or tensor.nbytes > _MOST_BYTES:
            raise _Unknown
        held = tensor.detach().flatten().contiguous().view(torch.uint8).cpu()
        return _Same(tensor), self._weight(tensor), held.numpy().tobytes()

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
        named = [] if _trusted(function) else self._named_in(function)
        return function.__code__, self._all(given), named

    def _named_in(self, function: types.FunctionType) -> Any:
        """What the code of a function reads of its module; what it reads of others, in the end."""
        names, of_file = _names(function.__code__)
        if names & _BY_COMPUTED_NAME:
            raise _Unknown
        self._names |= names
        held = function.__globals__
        return [(name, self.at(held[name])) for name in sorted(of_file) if name in held]

    def _class(self, kind: type) -> Any:
        self._note(kind)
        self._by_name.update(kind.__mro__)
        return _Same(kind), _code(kind)

    def _file(self, module: types.ModuleType) -> Any:
        if module.__name__.partition(".")[0] not in _TRUSTED:
            self._holders.setdefault(module, set())
        return _Same(module)

    def _wrapped(self, value: Any) -> Any:
        return self._all((value.__func__, vars(value)))

    def _property(self, value: property) -> Any:
        return self._all((value.fget, value.fset))

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
        hidden = any(vars(kind).get("__slots__") for kind in type(value).__mro__)
        if hidden or not hasattr(value, "__dict__") or isinstance(value, weakref.ReferenceType):
            raise _Unknown
        return _Same(value), self._dict(vars(value))


def _trusted(value: Any) -> bool:
    """Whether a function or class is one of PyTorch, NumPy, Python or ours."""
    return str(value.__module__).partition(".")[0] in _TRUSTED


@functools.lru_cache(1024)
def _names(code: types.CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """All names but local ones that code and the functions inside it read; those of its module."""
    names, of_file = {*code.co_names, *code.co_freevars}, set[str]()
    for step in dis.get_instructions(code):
        if step.opname == "IMPORT_NAME":
            raise _Unknown
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"):
            of_file.add(step.argval)
    for inner in (one for one in code.co_consts if isinstance(one, types.CodeType)):
        more = _names(inner)
        names |= more[0]
        of_file |= more[1]
    return frozenset(names), frozenset(of_file)


def _code(kind: type) -> Any:
    """The forward of a class: somebody may put another in its place."""
    return getattr(getattr(kind, "forward", None), "__code__", None)


_CONTAINERS = (dict, list, tuple, deque, set, frozenset)

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
    type: _Look._class,
    (staticmethod, classmethod): _Look._wrapped,
    property: _Look._property,
    (
        types.ModuleType,
        types.BuiltinFunctionType,
        types.MethodDescriptorType,
        types.WrapperDescriptorType,
        types.GetSetDescriptorType,
        types.MemberDescriptorType,
        torch._ops.OpOverload,
        torch._ops.OpOverloadPacket,
    ): _Look._same,
    object: _Look._object,
}
