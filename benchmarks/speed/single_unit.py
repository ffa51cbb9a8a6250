"""Single-unit ablation beside captum's LayerFeatureAblation: speed, and who is right."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from captum.attr import LayerFeatureAblation
from torch import Tensor, nn

import unitroles as ur
from benchmarks.speed.baselines import losses, seconds, without
from benchmarks.speed.cases import CASES, Split
from benchmarks.table import Setting, number, ratios, section, spread, table

_SPEED_LAYER, _WRONG_LAYER = "layer4", "layer4.1.bn2"
_UNITS = 512
_SAMPLES, _TIMED = 32, 8
_COMPARED, _SHOWN = 64, 4


def report(setting: Setting, say: Callable[[str], None]) -> str:
    """Both tables."""
    case = CASES[0].small() if setting.quick else CASES[0]
    model = case.model()
    images, labels = (tensor[:_SAMPLES] for tensor in case.data().train)
    say("single-unit ablation: speed")
    speed = _speed(model, (images, labels), setting.repeats)
    say("single-unit ablation: values")
    few = images[:4], labels[:1].repeat(4)
    return section("Single-unit ablation against captum", *speed, *_values(model, few))


def _captum(model: nn.Module, layer: str, split: Split, units: int) -> Tensor:
    """Change of the mean loss when each of the first units is removed; all others go as one.

    The model is in eval mode already; captum leaves it in the mode in which it finds it.
    """
    images, labels = split
    groups = torch.arange(_UNITS).clamp(max=units).view(1, -1, 1, 1)
    ablation = LayerFeatureAblation(
        lambda x: losses(model(x), labels).float(), model.get_submodule(layer)
    )
    change = torch.as_tensor(ablation.attribute(images, layer_mask=groups))
    return -change.mean(0)[:units, 0, 0]  # captum's is intact minus ablated


def _speed(model: nn.Module, split: Split, repeats: int) -> list[str]:
    ours, theirs = [], []
    for _ in range(repeats):
        ours.append(seconds(partial(ur.single_unit_ablation, model, split, _SPEED_LAYER)))
        took = seconds(lambda: _captum(model, _SPEED_LAYER, split, _TIMED))
        theirs.append(took / _forwards(_TIMED + 1) * _forwards(_UNITS))
    row = {
        "case": f"ResNet-18, `{_SPEED_LAYER}`, {_UNITS} units, {len(split[0])} samples",
        "ours, s": spread(ours),
        "captum, s": spread(theirs),
        "captum ÷ ours": ratios(theirs, ours),
    }
    text = (
        "Ours: all of `single_unit_ablation`, export and self-check included. captum: one whole "
        f"forward per group of units and two more, extrapolated from {_forwards(_TIMED + 1)} "
        f"forwards to {_forwards(_UNITS)}."
    )
    return [table([row]), text]


def _forwards(groups: int) -> int:
    """captum reads the layer's output once, runs the rest intact once, then removes each group."""
    return groups + 2


def _values(model: nn.Module, split: Split) -> list[str]:
    images, labels = split
    found = ur.single_unit_ablation(model, split, _WRONG_LAYER)
    ours = torch.as_tensor(found["loss_change"].values[0])
    captum = _captum(model, _WRONG_LAYER, split, _COMPARED).double()
    with torch.inference_mode():
        intact = losses(model(images), labels).mean()
    literal = torch.stack([_removed(model, split, unit) - intact for unit in range(_COMPARED)])
    rows = [
        {
            "unit": unit,
            "clone and zero": f"{literal[unit]:+.6f}",
            "ours": f"{ours[unit]:+.6f}",
            "captum": f"{captum[unit]:+.6f}",
        }
        for unit in range(_SHOWN)
    ]
    text = (
        f"Change of the mean loss in nats when one unit of torchvision's `resnet18` "
        f"`{_WRONG_LAYER}` is removed, {len(images)} samples of one class, eval mode. Largest "
        f"difference from clone and zero over the first {_COMPARED} units: ours "
        f"{number(_apart(ours[:_COMPARED], literal))}, captum {number(_apart(captum, literal))} "
        f"(the changes themselves reach {number(float(literal.abs().max()))}). captum keeps the "
        "layer's output without a copy, and the network then adds to it in place."
    )
    return [table(rows), text]


def _removed(model: nn.Module, split: Split, unit: int) -> Tensor:
    images, labels = split
    return losses(without(model, _WRONG_LAYER, 1, images, torch.tensor([unit])), labels).mean()


def _apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())
