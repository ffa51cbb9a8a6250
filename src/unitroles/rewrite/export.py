"""The part of a model after a layer as a graph of its own, remembered while the model lives.

It is exported with `torch.export`; an identity op that a hook puts on the layer's output marks the
cut in the graph, so that reused modules, dropout and identities are found exactly.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn

from unitroles.graph.cut import CannotCut, constants_of, is_tap, prune, take_boundaries
from unitroles.model.borrow import OWN, fingerprint
from unitroles.model.calls import Place
from unitroles.model.forward import flat, form_of, logits_of
from unitroles.model.hooks import hooked, listening
from unitroles.model.trace import Site
from unitroles.rewrite.functional import make_functional, writes
from unitroles.rewrite.head import Head, divide
from unitroles.rewrite.hoist import hoist
from unitroles.wording import first_line


class _Logits(nn.Module):
    """The model with all inputs by position: an export orders keywords in its own way."""

    def __init__(self, model: nn.Module, names: tuple[str, ...] | None) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *args: Any) -> Tensor:
        if self.names is None:
            return logits_of(self.model(*args))
        return logits_of(self.model(**dict(zip(self.names, args, strict=True))))


@dataclass(frozen=True)
class Exported:
    """A model exported once, with the outputs of some layers marked.

    Parameters
    ----------
    program : the graph, free of in-place ops.
    taps : the marked outputs, by their place in the list of layers.
    axes : the unit axis of every layer.
    boundaries : the nodes of what modules took or gave, with their place in `places`.
    places : where such a value is met in a forward.
    holds_values : whether values were computed once and put into the graph.
    """

    program: torch.export.ExportedProgram
    taps: Mapping[int, fx.Node]
    axes: tuple[int, ...]
    boundaries: Mapping[fx.Node, int]
    places: tuple[Place, ...]
    holds_values: bool

    def head(self, place: int) -> Head:
        """The head after the layer at this place of the list, its cut as late as it can be.

        Raises
        ------
        CannotCut : the layer does not reach the logits, or what flows around it is no batch.
        """
        if place not in self.taps:
            raise CannotCut("the layer's output does not reach the logits")
        if self.taps[place] is self._logits:
            raise CannotCut("the layer makes the logits, nothing comes after it")
        tap, axis = self.taps[place], self.axes[place]
        cut = prune(self.program, tap, self._logits, axis, self.boundaries)
        hoist(cut.run)
        sources = tuple(i if kind == "input" else self.places[i] for kind, i in cut.sources)
        return divide(cut, sources)

    @property
    def _logits(self) -> fx.Node:
        name = next(iter(self.program.graph_signature.user_outputs))
        return next(n for n in self.program.graph_module.graph.nodes if n.name == name)


def _program(model: nn.Module, inputs: Any) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=2, max=2**20)
    return torch.export.export(
        _Logits(model, tuple(inputs) if isinstance(inputs, Mapping) else None),
        flat(inputs),
        dynamic_shapes={"args": tuple({0: batch} for _ in flat(inputs))},
        strict=False,
    )


def _exported(model: nn.Module, sites: Sequence[Site], inputs: Any) -> Exported:
    with ExitStack() as stack:
        for mark, site in enumerate(sites):
            stack.enter_context(hooked(model, site, partial(torch.ops.unitroles.tap, mark=mark)))
        places = stack.enter_context(listening(model, torch.ops.unitroles.boundary))
        stack.enter_context(_quiet())
        try:
            program = _program(model, inputs)
            module, constants = program.graph_module, constants_of(program)
            before = _held(module)
            if any(map(writes, module.graph.nodes)) and not make_functional(module, constants):
                # An empty table keeps the ops as they are but removes every in-place one.
                program = program.run_decompositions({})
            holds_values = _held(program.graph_module) != before
        except Exception as error:
            raise CannotCut(f"torch.export failed: {first_line(error)[:160]}") from error
    boundaries = take_boundaries(program.graph_module.graph)
    found = {node.args[1]: node for node in program.graph_module.graph.nodes if is_tap(node)}
    axes = tuple(site.axis for site in sites)
    return Exported(program, found, axes, boundaries, tuple(places), holds_values)


def _held(module: fx.GraphModule) -> set[Any]:
    """The names of the values that a graph holds itself."""
    return {node.target for node in module.graph.nodes if node.op == "get_attr"}


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings, no log, no dump of the graph on the error stream when an export fails."""
    names = [name for name in logging.root.manager.loggerDict if name.startswith("torch")]
    loggers = [logging.getLogger(name) for name in names]
    flags = [log.disabled for log in loggers]
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        for log in loggers:
            log.disabled = True
        try:
            yield
        finally:
            for log, flag in zip(loggers, flags, strict=True):
                log.disabled = flag


_MOST, _DEEPEST = 4, 4


_PLAIN = (bool, int, float, complex, str, bytes, type(None))


@dataclass(frozen=True)
class _Memory:
    """An export and what it was made of; `modules` live on, so that no identity is used twice.

    Where values were computed once and put into the graph, `contents` tells the weights they were
    computed from.
    """

    exported: Exported
    made_of: tuple[Any, ...]
    contents: str | None
    modules: list[nn.Module]


_memories: WeakKeyDictionary[nn.Module, _Memory] = WeakKeyDictionary()


def export(model: nn.Module, sites: Sequence[Site], inputs: Any) -> Exported:
    """Export a model with a dynamic batch and the outputs of all `sites` marked; remembered.

    Run it inside `untouched`, with a batch of at least two samples.

    Raises
    ------
    CannotCut : `torch.export` cannot take the model.
    """
    forget(model)
    made_of = _made_of(model, sites, inputs)
    exported = _exported(model, sites, inputs)
    contents = fingerprint(model) if exported.holds_values else None
    # The model itself is left out, or it would never be let go.
    modules = [module for module in model.modules() if module is not model]
    _memories[model] = _Memory(exported, made_of, contents, modules)
    while len(_memories) > _MOST:
        _memories.pop(next(iter(_memories)), None)
    return exported


def recall(model: nn.Module, sites: Sequence[Site], inputs: Any) -> Exported | None:
    """The last export of this model, where nothing has changed since that can be seen.

    Weights may have changed: a graph reads them where the model has them. Arrays that are no
    tensors, functions and global state are not looked into; only the self-check of a plan notices
    those.
    """
    memory = _memories.get(model)
    if memory is None or memory.made_of != _made_of(model, sites, inputs):
        return None
    if memory.contents is not None and memory.contents != fingerprint(model):
        return None
    return memory.exported


def forget(model: nn.Module) -> None:
    """Export this model again the next time."""
    _memories.pop(model, None)


def _made_of(model: nn.Module, sites: Sequence[Site], inputs: Any) -> tuple[Any, ...]:
    """Everything that decides a graph, in values that compare."""
    layers = tuple((site.path, id(site.module), site.call, site.axis) for site in sites)
    modules = tuple(
        (path, id(module), _hooks(module), _attributes(module))
        for path, module in model.named_modules(remove_duplicate=False)
    )
    tensors = tuple((id(t), _address(t), t.device, t.dtype, t.shape) for t in _tensors(model))
    return layers, modules, tensors, form_of(inputs)


def _address(tensor: Tensor) -> int:
    return tensor.data_ptr() if tensor.layout is torch.strided else 0


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _hooks(module: nn.Module) -> tuple[int, ...]:
    """The hooks of others; ours come and go."""
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    ours = __name__.partition(".")[0]
    return tuple(id(hook) for hook in hooks if not getattr(hook, "__module__", "").startswith(ours))


def _attributes(module: nn.Module) -> tuple[Any, ...]:
    return tuple((name, _value(value)) for name, value in vars(module).items() if name not in OWN)


def _value(value: Any, depth: int = 0) -> Any:
    """What a value holds, as far as it can be looked into; beyond, which object it is."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Tensor):
        return id(value), -1 if value.is_inference() else value._version
    if depth == _DEEPEST or isinstance(value, nn.Module):
        return id(value), type(value)
    if isinstance(value, (tuple, list)):
        return tuple(_value(one, depth + 1) for one in value)
    if isinstance(value, (set, frozenset)):
        return frozenset(_value(one, depth + 1) for one in value)
    if isinstance(value, dict):
        return tuple((str(name), _value(one, depth + 1)) for name, one in value.items())
    inside = vars(value) if hasattr(value, "__dict__") and not callable(value) else {}
    return id(value), type(value), _value(dict(inside), depth + 1)
