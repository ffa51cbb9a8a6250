"""torchvision's families: the plan that is chosen gives the logits of the definition.

The definition is a hook that multiplies a clone of the layer's output by zeros and ones, in a copy
of the model, one forward for every mask; it shares nothing with the engine or its own check.
"""

from copy import deepcopy
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import families
import reference
import unitroles as ur
from unitroles.engine import choice
from unitroles.engine.choice import Choice, choose_plans
from unitroles.engine.masks import AllButOne, Own, Prefixes
from unitroles.graph.extract import CannotCut
from unitroles.model.borrow import untouched
from unitroles.model.forward import Precision
from unitroles.model.hooks import run_body
from unitroles.model.trace import find_site, trace
from unitroles.options import Layer

PRECISIONS = {"float32": (torch.float32, 1e-4), "float64": (torch.float64, 1e-10)}
ROWS = [(name, layer) for name, rows in families.PLANS.items() for layer in rows]
QUICK = ("mobilenet_v3_small", "resnet18", "vgg11_bn", "vit")
SAMPLES, REMOVED = 3, 4
# Removals come unit by unit, and behind a suffix each costs a run of the head.
REACH = 96

pytestmark = pytest.mark.usefixtures("one_thread")


def quick(name, layer):
    """Whether a layer is the first, the middle or the last of a family that is always looked at."""
    layers = list(families.PLANS[name])
    return name in QUICK and layer in (layers[0], layers[len(layers) // 2], layers[-1])


def rows(*more):
    """A parameter for every family and layer. One process exports a family.

    Slow are float64, and all but some layers of some families.
    """
    return [
        pytest.param(
            name,
            layer,
            *some,
            marks=[
                pytest.mark.xdist_group(name),
                *[pytest.mark.slow] * ("float64" in some or not quick(name, layer)),
            ],
        )
        for name, layer in ROWS
        for some in ([(one,) for one in more] or [()])
    ]


@dataclass(frozen=True)
class Planned:
    """A family's model, what was chosen for its layers from two images, and other images."""

    model: nn.Module
    choices: dict[str, Choice]
    inputs: Tensor


@cache
def planned(name: str, precision: str = "float32") -> Planned:
    dtype = PRECISIONS[precision][0]
    model = families.network(name).to(dtype)
    probe = families.images(name, 2, seed=2).to(dtype)
    layers = [Layer(path, axis=row.axis) for path, row in families.PLANS[name].items()]
    with untouched(model):
        seen = trace(model, probe)
        sites = [find_site(model, layer, seen.calls, len(probe)) for layer in layers]
        chosen = choose_plans(model, sites, seen, 2**28, Precision(torch.device("cpu")))
    by_layer = dict(zip(families.PLANS[name], chosen, strict=True))
    return Planned(model, by_layer, families.images(name, SAMPLES, seed=3).to(dtype))


class Literal:
    """A copy of a model whose layer obeys a mask (samples, units) in its last call."""

    def __init__(self, model: nn.Module, layer: str, axis: int, inputs: Tensor):
        self.model, self.axis, self.inputs = deepcopy(model), axis, inputs
        self.mask: Tensor | None = None
        self.outputs: list[Tensor] = []
        self.last = 0
        self.model.get_submodule(layer).register_forward_hook(self.hook)
        self.clean = self.run()
        self.last, self.output = len(self.outputs), self.outputs[-1].movedim(axis, 1)

    def hook(self, module, args, output):
        self.outputs.append(output.clone())
        if self.mask is None or len(self.outputs) < self.last:
            return None
        shape = [len(output)] + [1] * (output.ndim - 1)
        shape[self.axis] = -1
        return output.clone() * self.mask.to(output.dtype).view(shape)

    def run(self, mask: Tensor | None = None) -> Tensor:
        self.mask = mask
        self.outputs.clear()
        with torch.no_grad():
            return self.model(self.inputs)


@dataclass(frozen=True)
class Masks:
    """What is compared at one layer.

    Parameters
    ----------
    order : of the units, for every sample.
    points : how many of them are retrieved, alike for all samples.
    retrieved : how many are retrieved, for every mask and sample.
    removed : units that are removed alone: the strongest within reach.
    """

    order: Tensor
    points: list[int]
    retrieved: Tensor
    removed: list[int]

    @staticmethod
    def of(literal: Literal) -> "Masks":
        units = literal.output.shape[1]
        draw = torch.Generator().manual_seed(5)
        # What is negative may be cut off later, and would move no logit.
        strength = literal.output.clamp(min=0).transpose(0, 1).flatten(1).sum(dim=1)[:REACH]
        return Masks(
            torch.stack([torch.randperm(units, generator=draw) for _ in range(SAMPLES)]),
            sorted({0, 1, units // 4, units // 2, units - 1, units}),
            torch.randint(units + 1, (2, SAMPLES), generator=draw),
            sorted(strength.topk(REMOVED).indices.tolist()),
        )

    def literally(self) -> dict[str, list[Tensor]]:
        """The masks (samples, units) by the way in which a plan runs them."""
        units = self.order.shape[1]
        alone = []
        for unit in self.removed:
            mask = torch.ones(SAMPLES, units)
            mask[:, unit] = 0
            alone.append(mask)
        return {
            "prefixes": [self.first([n] * SAMPLES) for n in self.points],
            "masked": [self.first(counts) for counts in self.retrieved.tolist()],
            "without_each": alone,
        }

    def first(self, counts: list[int]) -> Tensor:
        mask = torch.zeros(self.order.shape)
        for sample, n in enumerate(counts):
            mask[sample, self.order[sample, :n]] = 1
        return mask


@cache
def definition(name: str, layer: str, precision: str) -> tuple[Masks, Tensor, dict[str, Tensor]]:
    """The masks, the logits without one, and (masks, samples, labels) by way of running them."""
    found = planned(name, precision)
    literal = Literal(found.model, layer, families.PLANS[name][layer].axis, found.inputs)
    masks = Masks.of(literal)
    logits = {
        way: torch.stack([literal.run(mask) for mask in many])
        for way, many in masks.literally().items()
    }
    return masks, literal.clean, logits


@cache
def engine(name: str, layer: str, precision: str) -> dict[str, Tensor]:
    """The same logits from the plan that was chosen."""
    found = planned(name, precision)
    plan, masks = found.choices[layer].plan, definition(name, layer, precision)[0]
    with untouched(found.model):
        body = run_body(found.model, plan.places, found.inputs)
        kept = plan.keep(body, found.inputs)
        alone = AllButOne(plan.site.units, range(plan.site.units))
        return {
            "prefixes": collected(plan.run(kept, Prefixes(masks.order, masks.points))),
            "masked": collected(plan.run(kept, Own(masks.order, masks.retrieved))),
            "without_each": collected(plan.run(kept, alone), masks.removed),
        }


def collected(parts, wanted=None) -> Tensor:
    """The logits of all masks, or of those that are wanted, in their order."""
    found = {}
    for part, logits in parts:
        found.update(zip(range(part.start, part.stop), logits.clone(), strict=True))
        if wanted is not None and set(wanted) <= found.keys():
            break
    return torch.stack([found[place] for place in (sorted(found) if wanted is None else wanted)])


def allowed(logits: Tensor, clean: Tensor, precision: str) -> Tensor:
    """The tolerance (masks,): a part of the largest logit with or without the mask."""
    return PRECISIONS[precision][1] * logits.abs().amax(dim=(1, 2)).clamp(min=clean.abs().max())


@pytest.mark.parametrize(("name", "layer", "precision"), rows(*PRECISIONS))
def test_the_masks_move_the_logits_far_beyond_the_tolerance(name, layer, precision):
    """One unit of thousands can do so in float64 only; all of them together do in float32 too."""
    _, clean, logits = definition(name, layer, precision)
    for way, many in logits.items():
        moved = (many - clean).abs().amax(dim=(1, 2)) / allowed(many, clean, precision)
        if way == "prefixes":
            assert moved.max() >= 1000
        elif precision == "float64":
            assert moved.min() >= 1000


@pytest.mark.parametrize(("name", "layer", "precision"), rows(*PRECISIONS))
def test_the_chosen_plan_gives_the_logits_of_the_definition(name, layer, precision):
    _, clean, logits = definition(name, layer, precision)
    assert logits.keys() == engine(name, layer, precision).keys()
    for way, found in engine(name, layer, precision).items():
        assert found.shape == logits[way].shape
        off = (found - logits[way]).abs().amax(dim=(1, 2))
        assert (off <= allowed(logits[way], clean, precision)).all(), (way, off)


@pytest.mark.parametrize(("name", "layer", "precision"), rows(*PRECISIONS))
def test_every_layer_gets_its_plan_at_once(name, layer, precision):
    row, found = families.PLANS[name][layer], planned(name, precision).choices[layer]
    assert found.plan.name == row.plan
    assert row.plan == "additive" or row.reason
    assert found.plan.reason.startswith(row.reason)
    assert not any(note.startswith("plan ") for note in found.notes)
    assert found.notes == ()


@cache
def traced(name: str):
    found = planned(name)
    with untouched(found.model):
        return found, trace(found.model, found.inputs).calls


@pytest.mark.parametrize(("name", "layer"), rows())
def test_the_unit_axis_is_found_without_being_told(name, layer):
    found, calls = traced(name)
    site = find_site(found.model, Layer(layer), calls, SAMPLES)
    assert site.axis == families.PLANS[name][layer].axis


def test_a_layer_that_is_called_twice_means_its_last_call():
    site = planned("resnet18").choices["layer4.1.relu"].plan.site
    assert (site.calls, site.call) == (2, 1)


def refuse(*args):
    raise CannotCut("refused by the test")


@pytest.mark.parametrize(
    ("name", "layer", "plan"),
    [
        ("densenet", "features.denseblock1.denselayer2.conv2", "additive"),
        ("swin", "features.1.1.attn", "suffix"),
        ("vit", "encoder.layers.encoder_layer_1.ln_1", "full"),
    ],
)
@pytest.mark.filterwarnings("ignore:plan full:unitroles.PlanWarning")
def test_an_analysis_equals_the_literal_twin(name, layer, plan, monkeypatch):
    if plan == "full":
        monkeypatch.setattr(choice, "export", refuse)
    axis = families.PLANS[name][layer].axis
    model, labels = families.network(name).double(), torch.tensor([0, 0, 1, 1])
    train, test = ((families.images(name, 4, seed).double(), labels) for seed in (6, 7))
    expected = reference.analyze(model, layer, train, test, axis)
    assert np.ptp(expected.loss, axis=2).min() > 0.1
    assert len(np.unique(expected.role)) >= 3
    found = ur.analyze(model, train, test, layer=ur.Layer(layer, axis=axis), progress=False).data
    assert found.attrs["plan"] == plan
    for name in ("order", "turning_point", "role", "accuracy", "swapped_accuracy"):
        np.testing.assert_array_equal(found[name], getattr(expected, name), err_msg=name)
    for name in ("score", "loss", "swapped_loss"):
        wanted = getattr(expected, name)
        np.testing.assert_allclose(found[name], wanted, rtol=1e-10, atol=1e-10, err_msg=name)
