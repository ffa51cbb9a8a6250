"""Our curves against clone and zero: the same samples, the layer's output cloned, units zeroed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

import unitroles as ur
from benchmarks.speed.baselines import losses, without
from benchmarks.speed.cases import Case, Data

_CLASSES, _EACH = 2, 2


@dataclass(frozen=True)
class Agreement:
    """Mean losses of some masks, ours and clone and zero; nats.

    Parameters
    ----------
    difference : the largest of a mean loss.
    lowest, highest : of the compared losses; they must differ for the comparison to mean anything.
    points : how many mean losses were compared.
    """

    difference: float
    lowest: float
    highest: float
    points: int

    @property
    def equal(self) -> bool:
        return self.difference <= 1e-5 * max(1.0, self.highest)


def analyze(case: Case, model: nn.Module, data: Data) -> ur.Taxonomy:
    compute = ur.Compute(batch_size=case.batch)
    return ur.analyze(model, *data, layer=case.layer, progress=False, compute=compute)


def agreement(case: Case, model: nn.Module, data: Data) -> Agreement:
    """Analyse a few samples of two classes and compare some points of every curve."""
    names = torch.arange(_CLASSES).repeat_interleave(_EACH)
    few = Data(*((images[: len(names)], names) for images, _ in data))
    found = analyze(case, model, few).data
    units = found.sizes["unit"]
    ours, theirs = [], []
    for split, (images, labels) in enumerate(few):
        for label in range(_CLASSES):
            order = torch.from_numpy(found["order"].values[split, label]).long()
            own = labels == label
            for n in sorted({0, 1, units // 3, 2 * units // 3, units - 1, units}):
                logits = without(model, case.layer, case.axis, images[own], order[n:])
                theirs.append(float(losses(logits, labels[own]).mean()))
                ours.append(float(found["loss"].values[split, label, n]))
    difference = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    return Agreement(difference, min(theirs), max(theirs), len(theirs))
