"""One case: our run, the evaluation pass and the other ways, measured in turns."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import mean

import torch
from torch import Tensor, nn

import unitroles as ur
from benchmarks.speed.baselines import (
    ROWS,
    cached_loop,
    cut_of,
    evaluation_pass,
    fastest,
    head_pass,
    hook_loop,
    products,
    seconds,
)
from benchmarks.speed.cases import Case, Data
from benchmarks.speed.exact import Agreement, agreement, analyze
from benchmarks.speed.fixed import fixed_parts
from benchmarks.table import Spread, ratios, spread

HOOK_SAMPLES = 32
HEAD_PASSES = 4
CACHED_CLASSES, CACHED_MASKS = 2, 8


@dataclass(frozen=True)
class Stages:
    """Where the seconds of one analysis went; `total` is wall clock around it."""

    prepare: float
    body: float
    sweep: float
    total: float

    @property
    def growing(self) -> float:
        """What grows with the samples."""
        return self.total - self.prepare

    @property
    def rest(self) -> float:
        """Neither body nor sweep: the result built, the model given back; rounded."""
        return round(self.growing - self.body - self.sweep, 3)


@dataclass
class Measured:
    """All measurements of one case; lists have one entry per repetition, in seconds.

    Parameters
    ----------
    batch : samples a forward in the evaluation pass, the faster of two.
    rows : rows a call, the fastest of some, in what is run again for every mask.
    operations : of the exported graph.
    passes : for every repetition the mean of an evaluation pass right before and one right after
        our run, all three of one object.
    again : what has to run for all N+1 masks: matrix products, or passes of a deep head.
    hook, cached : the loops over masks, extrapolated.
    fixed : seconds of what does not grow with the samples, by part, of one run.
    """

    case: Case
    batch: int
    rows: int = 0
    plan: str = ""
    units: int = 0
    operations: int = 0
    passes: list[float] = field(default_factory=list)
    runs: list[Stages] = field(default_factory=list)
    again: list[float] = field(default_factory=list)
    hook: list[float] = field(default_factory=list)
    cached: list[float] = field(default_factory=list)
    agreement: Agreement | None = None
    fixed: dict[str, float] = field(default_factory=dict)

    @property
    def ratio(self) -> Spread:
        """The growing part in evaluation passes."""
        return ratios((run.growing for run in self.runs), self.passes)

    @property
    def again_ratio(self) -> Spread | None:
        """g, or for a deep head its N+1 passes, in evaluation passes."""
        return ratios(self.again, self.passes) if self.again else None

    @property
    def goal(self) -> float:
        """The limit for the growing part in evaluation passes."""
        if self.again_ratio is None:
            return self.case.limit
        if self.case.deep:
            return 1 + self.case.limit * self.again_ratio.median
        return self.case.limit * (1 + self.again_ratio.median)

    @property
    def fixed_goal(self) -> float:
        """Seconds for what does not grow with the samples."""
        return 3.0 if self.operations <= 200 else 8.0

    def seconds(self, name: str) -> Spread:
        """Of one stage, over the repetitions."""
        return spread(getattr(run, name) for run in self.runs)


def timed(run: Callable[[], ur.Taxonomy]) -> tuple[ur.Taxonomy, Stages]:
    """An analysis, and its wall clock by the stages that it recorded itself."""
    start = time.perf_counter()
    taxonomy = run()
    total = time.perf_counter() - start
    parts = taxonomy.provenance["stages"]
    return taxonomy, Stages(parts["prepare"], parts["body"], parts["sweep"], total)


def measure(case: Case, repeats: int, say: Callable[[str], None]) -> Measured:
    """In turns: an evaluation pass, our run, another pass; what must run again, the loops."""
    model, data = case.model(), case.data()

    def evaluate(model: nn.Module, batch: int) -> float:
        return seconds(lambda: evaluation_pass(model, data, batch))

    batch = fastest(lambda rows: evaluate(model, rows), {case.batch, 32})
    found = Measured(case, batch)
    again: Callable[[], float] | None = None
    for repeat in range(repeats):
        say(f"{case.key}: repetition {repeat + 1} of {repeats}")
        before = evaluate(model, batch)
        taxonomy, took = timed(lambda: analyze(case, model, data))
        found.passes.append((before + evaluate(model, batch)) / 2)
        found.runs.append(took)
        found.plan, found.units = taxonomy.data.attrs["plan"], taxonomy.data.sizes["unit"]
        again = again or _again(found, model, data)
        found.again.extend([again()] if again else [])
        found.hook.append(_hook_seconds(case, model, data, found.units))
        found.cached.append(_cached_seconds(case, model, data, found.units))
    found.operations = _operations(model, data)
    found.agreement = agreement(case, model, data)
    found.fixed = fixed_parts(case, model, data)
    return found


def _again(found: Measured, model: nn.Module, data: Data) -> Callable[[], float] | None:
    """Times what has to run for every mask, with the rows a call that are fastest."""
    case, masks = found.case, found.units + 1
    if case.deep:
        parts = case.parts(model)
        cut = cut_of(parts, data)
        rows = found.rows = fastest(lambda count: head_pass(parts, cut, count), ROWS)
        return lambda: mean(
            seconds(lambda: head_pass(parts, cut, rows)) * masks for _ in range(HEAD_PASSES)
        )
    layers = case.products(model)
    if not layers:
        return None
    rows = found.rows = fastest(lambda count: products(layers, max(ROWS), count), ROWS)
    return lambda: seconds(lambda: products(layers, case.samples * masks, rows))


def _masks(rows: int, units: int, count: int) -> list[Tensor]:
    """Masks (rows, units) of rising numbers of retrieved units, every row in its own order."""
    rank = torch.stack([torch.randperm(units) for _ in range(rows)])
    return [(rank < units * (k + 1) // (count + 1)).float() for k in range(count)]


def _hook_seconds(case: Case, model: nn.Module, data: Data, units: int) -> float:
    """N+1 whole forwards of all samples, from a few masks on a few samples."""
    images, labels = (tensor[:HOOK_SAMPLES] for tensor in data.train)
    masks = _masks(len(images), units, case.hook_masks)
    took = seconds(lambda: hook_loop(model, case.layer, case.axis, (images, labels), masks))
    return took / len(masks) / len(images) * case.samples * (units + 1)


def _cached_seconds(case: Case, model: nn.Module, data: Data, units: int) -> float:
    """Body once per class and the head for every mask, from a few classes and masks."""
    parts, (images, labels) = case.parts(model), data.train
    masks = _masks(1, units, CACHED_MASKS)
    few = [(images[labels == label], label) for label in labels.unique()[:CACHED_CLASSES].tolist()]
    took = [cached_loop(parts, case.axis, own, label, masks) for own, label in few]
    body, heads = (sum(times) for times in zip(*took, strict=True))
    samples = sum(len(own) for own, _ in few)
    return (body + heads / len(masks) * (units + 1)) / samples * case.samples


def _operations(model: nn.Module, data: Data) -> int:
    program = torch.export.export(model, (data.train[0][:2],))
    return sum(node.op == "call_function" for node in program.graph.nodes)
