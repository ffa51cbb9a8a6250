"""Take an exported graph apart at a layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.export.graph_signature import InputKind

from unitroles.graph.extract import CannotCut, ancestors, descendants, extract
from unitroles.graph.ops import value_of


@dataclass(frozen=True)
class Cut:
    """A model's graph taken apart at a layer.

    Parameters
    ----------
    run : (the layer's output, *live) -> logits; rows are independent.
    context : (*sources) -> live, what flows around the layer (residual streams and the like).
    sources : what `context` takes: an input of the model by its place ("input", i), or a value
        that a module took or gave ("boundary", mark).
    axis : the unit axis of the layer's output.
    """

    run: fx.GraphModule
    context: fx.GraphModule | None
    sources: tuple[tuple[str, int], ...]
    axis: int


def with_constants(program: torch.export.ExportedProgram) -> fx.GraphModule:
    """The program's graph, changed in place: its only inputs are the model's.

    Parameters, buffers and lifted tensors become attributes that share the model's memory.
    """
    module = program.graph_module
    for place, kind, value in _constants(program):
        name = f"{kind.name.lower()}_{place.name}"
        module.register_buffer(name, value, persistent=False)
        with module.graph.inserting_before(place):
            constant = module.graph.get_attr(name)
        constant.meta = dict(place.meta)
        place.replace_all_uses_with(constant)
        module.graph.erase_node(place)
    return module


def made_constants(program: torch.export.ExportedProgram) -> dict[fx.Node, Tensor]:
    """Tensors that are neither parameters nor buffers, by their placeholders."""
    found = _constants(program)
    return {place: value for place, kind, value in found if kind is InputKind.CONSTANT_TENSOR}


def _constants(
    program: torch.export.ExportedProgram,
) -> list[tuple[fx.Node, InputKind, Tensor]]:
    """Parameters, buffers and lifted tensors, with their placeholders."""
    specs = program.graph_signature.input_specs
    places = program.graph_module.graph.find_nodes(op="placeholder")
    found = []
    for place, spec in zip(places, specs, strict=True):
        name = spec.target or ""
        value = program.state_dict.get(name, program.constants.get(name))
        if isinstance(value, Tensor):
            found.append((place, spec.kind, value.detach()))
    return found


def take_boundaries(graph: fx.Graph) -> dict[fx.Node, int]:
    """The values that modules took or gave, by node; the marks leave the graph."""
    found: dict[fx.Node, int] = {}
    for node in list(graph.nodes):
        if node.target is torch.ops.unitroles.boundary.default:
            value, mark = node.args
            found.setdefault(value, mark)
            # Where a forward changes the gradient mode, the export forgets that it is used here.
            value.users.setdefault(node)
            graph.erase_node(node)
    return found


def prune(
    module: fx.GraphModule,
    tap: fx.Node,
    logits: fx.Node,
    axis: int,
    boundaries: Mapping[fx.Node, int],
) -> Cut:
    """The graph after the tap, and what must be known of the values that flow around it.

    Raises
    ------
    CannotCut : the layer does not reach the logits, or what flows around it is no batch.
    """
    nodes = list(module.graph.nodes)
    after = (descendants(module.graph, [tap]) & ancestors(logits)) - {tap}
    if logits not in after:
        raise CannotCut("the layer's output does not reach the logits")

    def met(after: set[fx.Node]) -> list[fx.Node]:
        taken = dict.fromkeys(one for n in nodes if n in after for one in n.all_input_nodes)
        around = [n for n in taken if n not in after and n is not tap]
        return [n for n in around if _is_tensor(n) and _depends_on_input(n)]

    live = repeatable(met, after, tap)
    run = extract(module, [tap, *live], logits)
    if not live:
        return Cut(run, None, (), axis)
    # A boundary without rows would be cut where the padding of a last batch is. What the inputs
    # alone decide is cheap, and a model may leave it out: transformers drop a mask that hides none.
    weights = [n for n in nodes if n.op == "get_attr" and str(n.target).startswith("parameter_")]
    learned = set(filter(_is_tensor, descendants(module.graph, weights)))
    usable = {n: mark for n, mark in boundaries.items() if n in learned and keeps_rows(n, tap)}
    inputs = [n for n in nodes if n.op == "placeholder"]
    needed = ancestors(*live, stop=usable)
    known = [n for n in nodes if n in needed and (n in inputs or n in usable)]
    sources = [
        ("input", inputs.index(n)) if n in inputs else ("boundary", usable[n]) for n in known
    ]
    return Cut(run, extract(module, known, tuple(live)), tuple(sources), axis)


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(value_of(node), Tensor)


def keeps_rows(node: fx.Node, cut: fx.Node) -> bool:
    """Whether the first dimension, and no other, counts samples, whatever their number."""
    sizes = value_of(node).shape
    symbolic = [isinstance(size, torch.SymInt) for size in sizes]
    return symbolic[:1] == [True] and not any(symbolic[1:]) and str(sizes[0]) == _samples(cut)


def _samples(cut: fx.Node) -> str:
    return str(value_of(cut).shape[0])


def repeatable(
    met: Callable[[set[fx.Node]], list[fx.Node]], after: set[fx.Node], cut: fx.Node
) -> list[fx.Node]:
    """The values that the nodes `after` a cut meet, each with one row for every sample.

    A batch elsewhere, or several rows a sample (one for each head of an attention), cannot be
    repeated for every mask: what makes such a value is taken among those after the cut.

    Parameters
    ----------
    met : (nodes after the cut) -> the values from elsewhere that they take.
    after : is added to.

    Raises
    ------
    CannotCut : the model is given such a value.
    """
    while True:
        found = met(after)
        wrong = [node for node in found if not _rows_first(node, cut)]
        given = [node for node in wrong if node.op != "call_function"]
        if given:
            raise CannotCut(
                f"a value that flows around the layer has its batch inside ({given[0].name})"
            )
        if not wrong:
            return found
        after |= set(wrong)


def _rows_first(node: fx.Node, cut: fx.Node) -> bool:
    first, *others = value_of(node).shape or (1,)
    inside = any(isinstance(size, torch.SymInt) for size in others)
    return not inside and (not isinstance(first, torch.SymInt) or str(first) == _samples(cut))


def _depends_on_input(node: fx.Node) -> bool:
    """Whether the samples decide a value; one that knows only their number is made again.

    Row numbers, for one, must count the rows of a call with many masks, not those of the batch.
    """
    return any(one.op == "placeholder" for one in ancestors(node))
