"""A model as a graph, with the outputs of some layers marked.

It is exported with `torch.export`; an identity op that a hook puts on the layer's output marks the
cut in the graph, so that reused modules, dropout and identities are found exactly.
The graph is kept while the model stays what it is, but for the numbers in its weights.
"""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind, OutputKind

from unitroles.graph.constants import Constants
from unitroles.graph.cut import (
    constants_of,
    made_constants,
    mark_layers,
    take_boundaries,
    with_constants,
)
from unitroles.graph.extract import CannotCut, lazily
from unitroles.graph.ops import is_tap
from unitroles.model.calls import Place
from unitroles.model.forward import flat, logits_of
from unitroles.model.hooks import hooked, listening, output_of
from unitroles.model.trace import Site
from unitroles.rewrite.functional import make_functional
from unitroles.rewrite.kept import Kept, state_of
from unitroles.rewrite.precision import drop_casts
from unitroles.rewrite.products import make_linear
from unitroles.rewrite.sizes import program
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
    module : the graph, free of in-place ops, with the model's weights.
    logits : the node of the result.
    taps : the marked outputs, by their place in the list of layers.
    axes : the unit axis of every layer.
    boundaries : the nodes of what modules took or gave, with their place in `places`.
    places : where such a value is met in a forward.
    made : constants of the heads.
    """

    module: fx.GraphModule
    logits: fx.Node
    taps: Mapping[int, fx.Node]
    axes: tuple[int, ...]
    boundaries: Mapping[fx.Node, int]
    places: tuple[Place, ...]
    made: Constants = field(default_factory=Constants)


def export(model: nn.Module, sites: Sequence[Site], inputs: Any, afresh: bool = False) -> Exported:
    """A model with a dynamic batch and the outputs of all `sites` marked.

    Run it inside `untouched`, with a batch of at least two samples. The model is exported once for
    all layers, and again only where it is another than it was; its weights are those of now.

    Parameters
    ----------
    afresh : export it for these layers, whatever was exported before: that may be no more right.

    Raises
    ------
    CannotCut : `torch.export` cannot take the model.
    """
    if afresh:
        _PROGRAMS.forget(model)
        return _marked(_program(model, inputs, sites), model, sites)
    state = state_of(model, inputs)
    found = _PROGRAMS.get(model, state)
    if found is None:
        found = _program(model, inputs)
        if found.light:
            _PROGRAMS.put(model, state, found)
    return _marked(found, model, sites)


@dataclass(frozen=True)
class _Program:
    """A graph without in-place ops and without weights, for any layer.

    Parameters
    ----------
    module : takes its constants and the model's inputs.
    weights : the kind and path of parameters and buffers, by placeholder.
    constants : other tensors that it takes: the numbers in a forward, for one.
    logits : which of its outputs they are.
    places : the path of a module, the number of its call and of its argument, by mark.
    """

    module: fx.GraphModule
    weights: Mapping[str, tuple[InputKind, str]]
    constants: Mapping[str, tuple[InputKind, Tensor]]
    logits: int
    places: tuple[tuple[str, int, int | None], ...]

    @property
    def light(self) -> bool:
        """Whether what it holds of its own may stay in memory."""
        held = [value for _, value in self.constants.values()]
        tensors = [*held, *self.module.buffers()]
        learned = any(isinstance(value, nn.Parameter) for value in held)
        return not learned and sum(value.nbytes for value in tensors) <= _MOST_BYTES


_PROGRAMS: Kept[_Program] = Kept()
_MOST_BYTES = 2**24


def _program(model: nn.Module, inputs: Any, sites: Sequence[Site] = ()) -> _Program:
    """Export a model; the layers are marked by hooks of their own."""
    with ExitStack() as stack:
        for mark, site in enumerate(sites):
            stack.enter_context(hooked(model, site, partial(torch.ops.unitroles.tap, mark=mark)))
        ops = torch.ops.unitroles
        places = stack.enter_context(listening(model, ops.boundary, ops.renamed))
        stack.enter_context(_quiet())
        try:
            names = tuple(inputs) if isinstance(inputs, Mapping) else None
            found = program(_Logits(model, names), flat(inputs))
            if not make_functional(found.graph_module, made_constants(found)):
                found.constants.update(found.graph_module.named_buffers())  # what was computed
                # An empty table keeps the ops as they are but removes every in-place one.
                found = found.run_decompositions({})
        except CannotCut:
            raise
        except Exception as error:
            raise CannotCut(_why(error)) from error
    paths = {id(tensor): path for path, tensor in _weights(model).items()}
    weights, constants = {}, {}
    for place, (kind, value) in constants_of(found).items():
        if id(value) in paths:
            weights[place.name] = kind, paths[id(value)]
        else:
            constants[place.name] = kind, value
    for node in found.graph_module.graph.nodes:
        node.meta = {"val": node.meta.get("val")}  # not the lines of a forward, and what they hold
    # Before the logits come buffers that a decomposed forward writes.
    kinds = [spec.kind for spec in found.graph_signature.output_specs]
    return _Program(
        module=found.graph_module,
        weights=weights,
        constants=constants,
        logits=kinds.index(OutputKind.USER_OUTPUT),
        places=tuple((place.path, place.call, place.argument) for place in places),
    )


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _marked(program: _Program, model: nn.Module, sites: Sequence[Site]) -> Exported:
    """A copy of the program with the weights that the model has now, and its layers marked."""
    module = lazily(program.module, copy.deepcopy(program.module.graph))
    modules = dict(model.named_modules())
    places = tuple(
        Place(path, modules[path], call, argument) for path, call, argument in program.places
    )
    marks = {place: mark for mark, place in enumerate(places)}
    layers = {marks.get(output_of(site), -1): mark for mark, site in enumerate(sites)}
    mark_layers(module.graph, layers)
    now = _weights(model)
    weights = {name: (kind, now[path]) for name, (kind, path) in program.weights.items()}
    with_constants(module, {**program.constants, **weights})
    drop_casts(module.graph)
    boundaries = take_boundaries(module.graph)
    make_linear(module)
    taps = {node.args[1]: node for node in module.graph.nodes if is_tap(node)}
    results: Any = module.graph.output_node().args[0]
    axes = tuple(site.axis for site in sites)
    return Exported(module, results[program.logits], taps, axes, boundaries, places)


def _why(error: Exception) -> str:
    """Why a model cannot be exported."""
    text = f"torch.export failed: {first_line(error)[:160]}"
    if "data-dependent" not in text:
        return text
    return (
        f"the forward branches on numbers, or takes sizes from them, that samples decide ({text}); "
        "operations on all samples (torch.where) have a faster plan"
    )


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
