"""Logits of the first n units of random orders: by a plan, and by the literal twin."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import reference
from unitroles.engine.masks import Prefixes
from unitroles.engine.plan import Plan
from unitroles.model.borrow import untouched
from unitroles.model.hooks import run_body


def by_plan_and_twin(
    plan: Plan, net: nn.Module, x: Tensor, points: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Logits (points, samples, classes) of both, an order for each sample."""
    site = plan.site
    order = torch.stack([torch.randperm(site.units) for _ in x])
    with untouched(net), torch.inference_mode():
        kept = plan.keep(run_body(net, plan.places, x), x)
        found = torch.cat([part.clone() for _, part in plan.run(kept, Prefixes(order, points))])
    alone = [
        reference.masked_logits(net, site.path, one[None], mine[:n].tolist())
        for n in points
        for one, mine in zip(x, order, strict=True)
    ]
    return found, torch.stack(alone).view(found.shape)
