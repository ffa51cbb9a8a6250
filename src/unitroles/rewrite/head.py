"""Divide a head where units meet: what acts on every unit alone comes before the masks.

Where t acts on every unit alone, ablating a unit before t is the same as putting t of an ablated
layer in its place after t. Convolutional layers thus cross their activation function and pooling,
after which a masked copy is a fraction of its size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor, fx

from unitroles.graph.cut import CannotCut, Cut, ancestors, require_rows_first
from unitroles.graph.ops import value_of
from unitroles.model.calls import Place
from unitroles.rewrite.owners import owners

_aten = torch.ops.aten


@dataclass(frozen=True)
class Owners:
    """Which unit owns each element of a row, for masks over values.

    Parameters
    ----------
    index : the owner of every element along `axis`, or of every element of the flat row.
    axis : the only axis that owners differ on, the samples' axis being 0; None = they differ
        on more than one.
    shape : sizes of a row.
    """

    index: Int[Tensor, " elements"]
    axis: int | None
    shape: tuple[int, ...]

    @staticmethod
    def of(owner: Int[Tensor, "*rest"]) -> Owners:
        for axis in range(owner.ndim):
            line = owner[tuple(slice(None) if a == axis else slice(1) for a in range(owner.ndim))]
            if bool((owner == line).all()):
                return Owners(line.flatten(), axis + 1, tuple(owner.shape))
        return Owners(owner.flatten(), None, tuple(owner.shape))

    def spread(self, retrieved: Bool[Tensor, "*leading units"]) -> Tensor:
        """A mask over units as a mask that broadcasts over the elements of rows."""
        index = self.index.to(retrieved.device)
        plain = len(index) == retrieved.shape[-1] and bool((index == _counting(index)).all())
        mask = retrieved if plain else retrieved[..., index.clamp(min=0)]
        if self.axis is None:
            return mask.unflatten(-1, self.shape)
        sizes = [-1 if place == self.axis else 1 for place in range(1, len(self.shape) + 1)]
        return mask.unflatten(-1, sizes) if sizes else mask[..., 0]


def _counting(index: Tensor) -> Tensor:
    return torch.arange(len(index), device=index.device)


@dataclass(frozen=True)
class Head:
    """Everything after a layer: a part that acts on every unit alone, and the rest.

    Parameters
    ----------
    before : (the layer's output, *live) -> (*edge, *around), run once for every sample.
    after : (*edge, *around) -> logits, run for every mask; rows are independent.
    context : (*sources) -> live, what flows around the layer; None where nothing does.
    sources : what `context` takes: an input of the model by its place, or a module's value.
    owners : for every edge value, which unit each element belongs to.
    repeats : for every value around, whether it has a row for each sample.
    same_ablated : whether an ablated layer gives the same edge values for every sample.
    units : N.
    dtype : the precision it computes in.
    """

    before: fx.GraphModule
    after: fx.GraphModule
    context: fx.GraphModule | None
    sources: tuple[int | Place, ...]
    owners: tuple[Owners, ...]
    repeats: tuple[bool, ...]
    same_ablated: bool
    units: int
    dtype: torch.dtype

    @property
    def edges(self) -> int:
        """How many values the masks act on."""
        return len(self.owners)

    def to(self, dtype: torch.dtype) -> Head:
        """The same head computing in another precision."""
        parts = {n: getattr(self, n) for n in ("before", "after", "context")}
        return replace(self, dtype=dtype, **{n: p and p.to(dtype) for n, p in parts.items()})


def divide(cut: Cut, sources: tuple[int | Place, ...]) -> Head:
    """Move the masks of a pruned head as late as every unit still stands alone.

    Raises
    ------
    CannotCut : what flows around the layer cannot be repeated for every mask.
    """
    run = cut.run
    nodes = list(run.graph.nodes)
    place = nodes[0]
    (output,) = (node for node in nodes if node.op == "output")
    (logits,) = output.all_input_nodes
    owner = owners(run, place, cut.axis)
    dependent = _dependent(place)
    mixed = dependent - owner.keys()
    edge = [n for n in owner if n is logits or _tensor_users(n) & mixed]
    if not edge:
        raise CannotCut("the layer's output does not reach the logits")
    needed = ancestors(logits)
    samples = _from_samples(run, place)
    around = [
        node
        for node in nodes
        if node in samples - dependent and _tensor_users(node) & mixed & needed
    ]
    for node in around:
        require_rows_first(node, place)
    live = [node for node in nodes if node.op == "placeholder" and node is not place]
    joined = ancestors(*edge) & set(live)
    return Head(
        before=_before(run, edge + around),
        after=_after(run, edge + around, logits),
        context=cut.context,
        sources=sources,
        owners=tuple(Owners.of(owner[node]) for node in edge),
        repeats=tuple(isinstance(value_of(node).shape[0], torch.SymInt) for node in around),
        same_ablated=not any(isinstance(value_of(n).shape[0], torch.SymInt) for n in joined),
        units=int(value_of(place).shape[cut.axis]),
        dtype=value_of(place).dtype,
    )


def _tensor_users(node: fx.Node) -> set[fx.Node]:
    return {user for user in node.users if user.target is not _aten.sym_size.int}


def _dependent(place: fx.Node) -> set[fx.Node]:
    """The values that depend on the cut, but for those that only know its number of rows."""
    found = {place}
    for node in place.graph.nodes:
        if node.target is _aten.sym_size.int or isinstance(value_of(node), torch.SymInt):
            continue
        if not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return {node for node in found if node.op != "output"}


def _from_samples(run: fx.GraphModule, place: fx.Node) -> set[fx.Node]:
    """The tensors that are computed from what flows around the layer."""
    found: set[fx.Node] = set()
    for node in run.graph.nodes:
        if (node.op == "placeholder" and node is not place) or (
            isinstance(value_of(node), (Tensor, list, tuple))
            and not found.isdisjoint(node.all_input_nodes)
        ):
            found.add(node)
    return {node for node in found if isinstance(value_of(node), Tensor)}


def _before(run: fx.GraphModule, values: list[fx.Node]) -> fx.GraphModule:
    """The graph from the placeholders to `values`."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    wanted = ancestors(*values)
    for node in run.graph.nodes:
        if node in wanted or node.op == "placeholder":
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[node] for node in values))
    return fx.GraphModule(run, graph)


def _after(run: fx.GraphModule, values: list[fx.Node], logits: fx.Node) -> fx.GraphModule:
    """The graph from `values` to the logits; the number of rows is that of the first value."""
    graph = fx.Graph()
    copies = {node: graph.placeholder(f"value_{i}") for i, node in enumerate(values)}
    for node, copy in copies.items():
        copy.meta = dict(node.meta)
    rows = graph.call_function(_aten.sym_size.int, (copies[values[0]], 0))
    rows.meta["val"] = value_of(values[0]).shape[0]
    wanted = _ancestors_until(logits, set(values))
    for node in run.graph.nodes:
        if node in copies or node not in wanted:
            continue
        if node.target is _aten.sym_size.int and _counts_rows(node):
            copies[node] = rows
        else:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(copies[logits])
    graph.eliminate_dead_code()
    return fx.GraphModule(run, graph)


def _ancestors_until(logits: fx.Node, stop: set[fx.Node]) -> set[fx.Node]:
    found, todo = set(), [logits]
    while todo:
        node = todo.pop()
        if node not in found and node not in stop:
            found.add(node)
            # Rows are counted again, whatever they were counted on.
            if not (node.target is _aten.sym_size.int and _counts_rows(node)):
                todo.extend(node.all_input_nodes)
    return found


def _counts_rows(node: fx.Node) -> bool:
    value, dim = node.args[0], node.args[1]
    return bool(dim == 0) and isinstance(value_of(value).shape[0], torch.SymInt)
