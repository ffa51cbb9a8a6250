"""The part of a model after a layer, as a graph of its own.

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

import torch
from torch import Tensor, fx, nn

from unitroles.functional import make_functional, writes
from unitroles.graph import (
    CannotCut,
    constants_of,
    flat,
    is_tap,
    prune,
    take_boundaries,
)
from unitroles.hoist import hoist
from unitroles.probe import first_line, logits_of
from unitroles.separable import Head, divide
from unitroles.split import Place, hooked, listening
from unitroles.trace import Site


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


def export(model: nn.Module, sites: Sequence[Site], inputs: Any) -> Exported:
    """Export a model with a dynamic batch and the outputs of all `sites` marked.

    Run it inside `untouched`, with a batch of at least two samples.

    Raises
    ------
    CannotCut : `torch.export` cannot take the model.
    """
    with ExitStack() as stack:
        for mark, site in enumerate(sites):
            stack.enter_context(hooked(model, site, partial(torch.ops.unitroles.tap, mark=mark)))
        places = stack.enter_context(listening(model, torch.ops.unitroles.boundary))
        stack.enter_context(_silence())
        try:
            program = _program(model, inputs)
            module, constants = program.graph_module, constants_of(program)
            before = _attributes(module)
            if any(map(writes, module.graph.nodes)) and not make_functional(module, constants):
                # An empty table keeps the ops as they are but removes every in-place one.
                program = program.run_decompositions({})
            holds_values = _attributes(program.graph_module) != before
        except Exception as error:
            raise CannotCut(f"torch.export failed: {first_line(error)[:160]}") from error
    boundaries = take_boundaries(program.graph_module.graph)
    found = {node.args[1]: node for node in program.graph_module.graph.nodes if is_tap(node)}
    axes = tuple(site.axis for site in sites)
    return Exported(program, found, axes, boundaries, tuple(places), holds_values)


def _attributes(module: fx.GraphModule) -> set[Any]:
    """The names of the values that a graph holds itself."""
    return {node.target for node in module.graph.nodes if node.op == "get_attr"}


@contextmanager
def _silence() -> Iterator[None]:
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
