"""The sweep kernel beside the machine's own log_softmax, one thread, 1000 labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.speed.baselines import seconds
from benchmarks.table import Setting, ratios, section, spread, table
from unitroles.curves.loss import losses, margins
from unitroles.engine.masks import Prefixes
from unitroles.engine.parts import Amounts
from unitroles.engine.sums import Sums, rows_per_tile
from unitroles.heads.additive import Additive, Sum

_GOAL = 0.4
_LABELS = 1000


@dataclass(frozen=True)
class KernelCase:
    """An affine head: logits with n units retrieved are `start` + the sum over the first n units of
    value × row of `weight`.

    Parameters
    ----------
    start : logits of the fully ablated layer (samples, labels).
    values : of the units (samples, units).
    weight : (units, labels).
    order : units by position for every sample (samples, units).
    labels : (samples).
    """

    start: Tensor
    values: Tensor
    weight: Tensor
    order: Tensor
    labels: Tensor

    @property
    def cells(self) -> int:
        """samples × masks × labels, what the kernel and log_softmax both go over."""
        return len(self.values) * (len(self.weight) + 1) * self.weight.shape[1]

    def times(self, factor: float) -> KernelCase:
        """The same with logits so many times as wide."""
        return replace(self, start=self.start * factor, weight=self.weight * factor)

    def logit_std(self) -> float:
        return float((self.start + self.values @ self.weight).std())


def kernel_case(setting: Setting) -> KernelCase:
    """Random features and a random head, every sample in its own order."""
    torch.manual_seed(0)
    samples, units = setting.few(130, 20), setting.few(512, 64)
    values = torch.randn(samples, units).relu()
    weight = torch.randn(units, _LABELS) / units**0.5
    order = values.argsort(dim=1, descending=True)
    return KernelCase(
        torch.zeros(samples, _LABELS), values, weight, order, torch.arange(samples) % _LABELS
    )


def trained_case(setting: Setting) -> KernelCase:
    """The same with a head trained to tell noisy prototypes of the classes."""
    case = kernel_case(setting)
    units = case.values.shape[1]
    prototypes = torch.randn(_LABELS, units).relu()
    weight = torch.zeros(units, _LABELS, requires_grad=True)
    optimizer = torch.optim.Adam([weight], lr=0.02)
    for _ in range(setting.few(150, 3)):
        labels = torch.randint(_LABELS, (512,))
        features = (prototypes[labels] + torch.randn(len(labels), units)).relu()
        optimizer.zero_grad()
        F.cross_entropy(features @ weight, labels).backward()
        optimizer.step()
    values = (prototypes[case.labels] + torch.randn(len(case.labels), units)).relu()
    order = values.argsort(dim=1, descending=True)
    return replace(case, values=values, weight=weight.detach(), order=order)


def affine(case: KernelCase) -> Additive:
    """The head as the engine would recognise it."""
    features = torch.arange(len(case.weight))[:, None]
    nothing = torch.fx.symbolic_trace(nn.Identity())
    return Additive((Sum(0, features, 1, nothing, case.weight[:, None]),), (), nothing, folded=True)


def _tile(case: KernelCase) -> int:
    return rows_per_tile(affine(case), case.weight.shape[1])


def sweep(case: KernelCase) -> None:
    """Our kernel, as a run calls it: losses and correct answers for all n, tile by tile."""
    form, tile = affine(case), _tile(case)
    for first in range(0, len(case.values), tile):
        rows = slice(first, first + tile)
        amounts = Amounts(case.values[rows, None, :, None])
        sums = Sums(form, (amounts,), (case.start[rows],))
        parts = sums.run(Prefixes(case.order[rows], range(len(case.weight) + 1)))
        found = [margins(logits, case.labels[rows])[0] for _, logits in parts]
        losses(torch.cat(found))


def log_softmax(case: KernelCase) -> None:
    """The machine's own: once per mask over tiles of as many samples, numbers as wide."""
    logits = case.start + case.values @ case.weight
    for part in logits.split(_tile(case)):
        for _ in range(len(case.weight) + 1):
            torch.log_softmax(part, dim=1)


def report(setting: Setting, say: Callable[[str], None]) -> str:
    """Throughputs, measured in turns on one thread."""
    say("sweep kernel")
    random, trained = kernel_case(setting), trained_case(setting)
    cases = {
        "random head": random,
        "random head × 10": random.times(10),
        "trained head": trained,
        "trained head × 10": trained.times(10),
    }
    torch.set_num_threads(1)
    try:
        rows = [_row(name, case, setting) for name, case in cases.items()]
    finally:
        torch.set_num_threads(setting.threads)
    return section(
        "Sweep kernel",
        table(rows),
        f"One thread, {len(random.values)} samples of mixed classes, each in its own order, "
        f"{len(random.weight)} units, {_LABELS} labels; G/s are 10⁹ samples × masks × labels per "
        "second. log_softmax: `torch.log_softmax` over (samples, labels), N+1 times.",
    )


@torch.inference_mode()
def _row(name: str, case: KernelCase, setting: Setting) -> dict[str, object]:
    sweep(case)
    log_softmax(case)
    ours, theirs = [], []
    for _ in range(2 * setting.repeats):
        ours.append(case.cells / seconds(lambda: sweep(case)) / 1e9)
        theirs.append(case.cells / seconds(lambda: log_softmax(case)) / 1e9)
    share = ratios(ours, theirs)
    return {
        "head": name,
        "std of the logits": case.logit_std(),
        "kernel, G/s": spread(ours),
        "log_softmax, G/s": spread(theirs),
        "share": share,
        "goal": f"{_GOAL}: {'yes' if share.median >= _GOAL else 'no'}",
    }
