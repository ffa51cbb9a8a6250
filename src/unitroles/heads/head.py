"""Divide a head where units meet: what acts on every unit alone comes before the masks.

Where t acts on every unit alone, ablating a unit before t is the same as putting t of an ablated
layer in its place after t. Convolutional layers thus cross their activation function and pooling,
after which a masked copy is a fraction of its size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from unitroles.graph.constants import Constants
from unitroles.graph.cut import Cut, prune, repeatable
from unitroles.graph.extract import CannotCut, ancestors, descendants, extract, inputs_of, result_of
from unitroles.graph.ops import value_of
from unitroles.heads.fast import by_place
from unitroles.heads.hoist import hoist
from unitroles.heads.owners import owners
from unitroles.model.calls import Place
from unitroles.model.forward import HALF
from unitroles.rewrite.export import Exported
from unitroles.rewrite.precision import compute_in

_aten = torch.ops.aten


@dataclass(frozen=True)
class Owners:
    """The unit that owns each element of a row, for masks over values.

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
        plain = index.tolist() == list(range(retrieved.shape[-1]))
        mask = retrieved if plain else retrieved[..., index.clamp(min=0)]
        if self.axis is None:
            return mask.unflatten(-1, self.shape) if self.shape else mask[..., 0]
        sizes = [-1 if place == self.axis else 1 for place in range(1, len(self.shape) + 1)]
        return mask.unflatten(-1, sizes) if sizes else mask[..., 0]


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
    made : of the weights, for faster graphs; the heads of one export share it.
    by_place : whether what comes after reads the order of numbers in memory.
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
    made: Constants
    by_place: bool

    @property
    def edges(self) -> int:
        """The number of values that the masks act on."""
        return len(self.owners)


def head_after(exported: Exported, place: int) -> Head:
    """The head after the layer at this place of the list, its cut as late as it can be.

    Raises
    ------
    CannotCut : the layer does not reach the logits, or what flows around it is no batch.
    """
    if place not in exported.taps:
        raise CannotCut("the layer's output does not reach the logits")
    tap, logits, axis = exported.taps[place], exported.logits, exported.axes[place]
    if tap is logits:
        raise CannotCut("the layer makes the logits, nothing comes after it")
    if free_unbacked_symbols(value_of(tap).shape[0]):
        raise CannotCut("only some of the samples reach the layer")
    cut = prune(exported.module, tap, logits, axis, exported.boundaries)
    if any(value_of(node).dtype in HALF for node in (tap, logits)):
        for part in filter(None, (cut.run, cut.context)):
            compute_in(part, torch.float32)
    hoist(cut.run)
    sources = tuple(i if kind == "input" else exported.places[i] for kind, i in cut.sources)
    return divide(cut, sources, exported.made)


def divide(cut: Cut, sources: tuple[int | Place, ...], made: Constants) -> Head:
    """Move the masks of a pruned head as late as every unit still stands alone.

    Raises
    ------
    CannotCut : what flows around the layer cannot be repeated for every mask.
    """
    run = cut.run
    nodes, logits = list(run.graph.nodes), result_of(run)
    inputs = inputs_of(run)
    place, *live = inputs
    owner = owners(run, place, cut.axis)
    dependent = descendants(run.graph, [place])
    mixed = dependent - owner.keys()
    edge = [n for n in owner if n is logits or _tensor_users(n) & mixed]
    if not edge:
        raise CannotCut("the layer's output does not reach the logits")
    needed = mixed & ancestors(logits)
    apart = descendants(run.graph, live) - dependent

    def met(needed: set[fx.Node]) -> list[fx.Node]:
        values = (n for n in nodes if n in apart - needed and isinstance(value_of(n), Tensor))
        return [node for node in values if _tensor_users(node) & needed]

    around = repeatable(met, needed, place)
    joined = ancestors(*edge) & set(live)
    after = extract(run, [*edge, *around], logits)
    return Head(
        before=extract(run, inputs, (*edge, *around)),
        after=after,
        context=cut.context,
        sources=sources,
        owners=tuple(Owners.of(owner[node]) for node in edge),
        repeats=tuple(map(_per_sample, around)),
        same_ablated=not any(map(_per_sample, joined)),
        units=int(value_of(place).shape[cut.axis]),
        dtype=value_of(place).dtype,
        made=made,
        by_place=by_place(after),
    )


def _per_sample(node: fx.Node) -> bool:
    return isinstance(value_of(node).shape[0], torch.SymInt)


def _tensor_users(node: fx.Node) -> set[fx.Node]:
    return {user for user in node.users if user.target is not _aten.sym_size.int}
