"""Clone and zero on a copy of a model that the library never sees."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import torch
from torch import Tensor, nn

import unitroles as ur
from benchmarks.speed.baselines import losses

POINTS = 5
Split = tuple[Tensor, Tensor]


class Untouched:
    """A copy of the model that the library never sees; a hook clones and zeroes.

    Only the last call of the layer is changed.
    """

    def __init__(self, model: nn.Module, layer: str, axis: int) -> None:
        self.model, self.axis = deepcopy(model), axis
        self._calls = self._last = 0
        self._ablated: Tensor | None = None
        self.output = torch.empty(0)
        self.model.get_submodule(layer).register_forward_hook(self._hook)

    def _hook(self, module: nn.Module, args: object, output: Tensor) -> Tensor | None:
        self._calls += 1
        if self._ablated is None:
            self.output, self._last = output.clone(), self._calls
            return None
        if self._calls < self._last:
            return None
        return output.clone().index_fill_(self.axis, self._ablated, 0.0)

    def logits(self, images: Tensor, ablated: Tensor | None = None) -> Tensor:
        self._calls, self._ablated = 0, ablated
        with torch.no_grad():
            return self.model(images)

    def scores(self) -> Tensor:
        """Mean L1 norm of every unit over the images of the last forward without a mask."""
        return self.output.movedim(self.axis, 1).flatten(2).abs().double().sum(2).mean(0)


def compare(
    found: ur.Taxonomy, model: nn.Module, splits: tuple[Split, ...]
) -> tuple[float, float, float]:
    """How far masks move the logits, and how far a taxonomy is off, on samples of every label.

    Returns
    -------
    moved : the largest change of a logit, in largest logits of the intact model.
    loss : the largest difference of a mean loss, in nats per largest logit.
    score : the largest difference of a score, in largest scores of the class.
    """
    layer = found.provenance["layer"]
    literal = Untouched(model, layer["path"], layer["axis"])
    moved, off, score_off, size = 0.0, 0.0, 0.0, 0.0
    for split, (images, labels) in enumerate(splits):
        for label in found.data.label_index.values.tolist():
            data = found.data.isel(split=split).sel(label=label)
            own = images[labels == label]
            clean, wanted = literal.logits(own), literal.scores()
            got = torch.from_numpy(data["score"].values)
            score_off = max(score_off, float((got - wanted).abs().max() / wanted.max()))
            order = torch.from_numpy(data["order"].values).long()
            loss = data["loss"].values
            some = np.flatnonzero(np.isfinite(loss))
            some = some[np.linspace(0, len(some) - 1, POINTS).round().astype(int)]
            for n in {*some.tolist(), int(some[1])}:
                logits = literal.logits(own, order[n:])
                mean = float(losses(logits, torch.full((len(own),), label)).mean())
                off = max(off, abs(mean - float(loss[n])))
                moved = max(moved, float((logits - clean).abs().max()))
                size = max(size, float(clean.abs().max()))
    return moved / size, off / size, score_off
