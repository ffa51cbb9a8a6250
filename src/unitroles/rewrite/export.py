"""A model as a graph, with the outputs of some layers marked.

It is exported with `torch.export`; an identity op that a hook puts on the layer's output marks the
cut in the graph, so that reused modules, dropout and identities are found exactly.
"""

from __future__ import annotations

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
from torch.export.graph_signature import OutputKind

from unitroles.graph.constants import Constants
from unitroles.graph.cut import made_constants, take_boundaries, with_constants
from unitroles.graph.extract import CannotCut
from unitroles.graph.ops import is_tap
from unitroles.model.calls import Place
from unitroles.model.forward import flat, logits_of
from unitroles.model.hooks import hooked, listening
from unitroles.model.trace import Site
from unitroles.rewrite.functional import make_functional
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
    module = with_constants(found)
    drop_casts(module.graph)
    boundaries = take_boundaries(module.graph)
    make_linear(module)
    taps = {node.args[1]: node for node in module.graph.nodes if is_tap(node)}
    # Before the logits come buffers that a decomposed forward writes.
    kinds = [spec.kind for spec in found.graph_signature.output_specs]
    results: Any = module.graph.output_node().args[0]
    logits = results[kinds.index(OutputKind.USER_OUTPUT)]
    axes = tuple(site.axis for site in sites)
    return Exported(module, logits, taps, axes, boundaries, tuple(places))


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
