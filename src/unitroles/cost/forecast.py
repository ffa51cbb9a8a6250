"""plan(): what an analysis would do, and about how long it would take, before it is run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from unitroles.analysis.passes import one_by_one, samples_alone
from unitroles.analysis.prepare import Ready, prepared
from unitroles.analysis.request import Request
from unitroles.annotations import checked
from unitroles.cost.rates import measured_rates, weighing_seconds
from unitroles.cost.shapes import OtherShape, other_shape
from unitroles.curves.scores import sample_score
from unitroles.curves.store import Stores, row_bytes
from unitroles.model.hooks import SomeRows
from unitroles.options import Compute, Evidence, Layer, Method, Sample
from unitroles.resampling.limits import curves_of, losses_bytes, weights_of
from unitroles.stats.draws import half_size
from unitroles.stats.grid import effective
from unitroles.wording import printable, size

_WHERE = ("none", "memory", "disk", "recompute")


@dataclass(frozen=True)
class Forecast:
    """An analysis that would be run: its plan, counts, memory and seconds.

    Parameters
    ----------
    layer : module path.
    units : N.
    plan, reason : how the masks would run, and why so.
    samples : how many would be analysed of the training and of the test set.
    labels : how many classes.
    body_forwards : samples through the model as far as the layer, with the padding of last batches.
    head_forwards : masked copies of samples through what comes after the layer, for plan "full"
        through the whole model; the swapped sets are among them.
    tail_forwards : plan "additive": rows through what follows the sum over the units.
    compared_samples : how many would be compared with the model itself: their forwards go on from
        the layer to its end, and with all units retrieved they run once more through what comes
        after the layer. 0 for plan "full", which keeps nothing that could differ, and where the
        samples of a batch influence each other.
    alone_samples : how many would also run alone, each by two whole forwards and some masked
        copies; beside them, as they come, those shorter or longer than all before.
    bytes_cached : what would be kept of the samples between the pass and the masks.
    caches : where, for either split: "memory", "disk", "recompute" where it fits in neither, or
        "none" where nothing is kept.
    evaluation_seconds : one plain pass of the model over both splits.
    fixed_seconds : checks, export and choice of the plan; the analysis itself spends them again.
    body_seconds, sweep_seconds : the passes of the model as far as the layer, with the comparison
        of all samples, and the masks.
    alone_seconds : the samples that also run alone.
    other_shape : how many samples of the training and of the test set come in batches of another
        shape than the plan was made for, and run in full.
    looked_at : of how many samples the shape was looked at; if not of all, `other_shape` and what
        follows from it is estimated from their share.
    full_forwards, full_seconds : the masked copies of those samples through the whole model, with
        the padding of last batches.
    evidence_sweeps : how many times as much as the masks the evidence is, if draws share nothing:
        but for plan "full", sets with which several orders begin run once for all of them.
    evidence_seconds : for so many, and to weigh losses for intervals.
    evidence_bytes : what evidence holds, in memory or, of the scores, on the disk: scores and
        weights of all samples, losses of one class with weights, and for a full bootstrap the
        curves of all replicates; once the losses are gone, replicates that are done together take
        no more than a quarter of the memory budget.
    """

    layer: str
    units: int
    plan: str
    reason: str
    samples: tuple[int, int]
    labels: int
    body_forwards: int
    head_forwards: int
    tail_forwards: int
    compared_samples: int
    alone_samples: int
    bytes_cached: int
    caches: tuple[str, str]
    evaluation_seconds: float
    fixed_seconds: float
    body_seconds: float
    sweep_seconds: float
    alone_seconds: float
    other_shape: tuple[int, int] = (0, 0)
    looked_at: tuple[int, int] | None = None
    full_forwards: int = 0
    full_seconds: float = 0.0
    evidence_sweeps: float = 0.0
    evidence_seconds: float = 0.0
    evidence_bytes: int = 0

    @property
    def cache(self) -> str:
        """Where what is kept of the samples would go; the slower place where the splits differ."""
        return max(self.caches, key=_WHERE.index)

    @property
    def seconds(self) -> float:
        """All of it but evidence."""
        masks = self.sweep_seconds + self.full_seconds
        return self.fixed_seconds + self.body_seconds + self.alone_seconds + masks

    def __str__(self) -> str:
        train, test = self.samples
        through = "the whole model" if self.plan == "full" else "what comes after the layer"
        sums = f"; {self.tail_forwards:,} rows through what follows the sum"
        rows = {
            "layer": f"{self.layer}: {self.units:,} units, {self.labels:,} classes",
            "plan": f"{self.plan}: {self.reason}",
            "samples": f"train {train:,}, test {test:,}",
            "body": f"{self.body_forwards:,} samples through the model as far as the layer"
            + ", or to its end to compare them" * (self.compared_samples > 0),
            "ablation runs": f"{self.head_forwards:,} masked copies through {through}"
            f"{sums if self.tail_forwards else ''}",
            "comparison": self._compared(),
            "sample storage": self._kept(),
            "time": f"about {_duration(self.seconds)}: {_duration(self.fixed_seconds)} to prepare "
            f"(now spent), {_duration(self.body_seconds)} body, "
            f"{_duration(self.alone_seconds)} samples alone, {_duration(self.sweep_seconds)} "
            f"ablation runs{self._in_full()}",
            "evaluate": f"{_duration(self.evaluation_seconds)} for one plain pass over both splits",
        }
        if self.evidence_sweeps or self.evidence_bytes:
            rows["evidence"] = self._evidence()
        if any(self.other_shape) or self._partly:
            rows["other shapes"] = self._shapes()
        return "\n".join(f"{name:<14} {printable(value)}" for name, value in rows.items())

    def _compared(self) -> str:
        every, alone = f"{self.compared_samples:,}", f"{self.alone_samples:,}"
        if not self.compared_samples:
            return f"{alone} samples, alone and among others" if self.alone_samples else "none"
        return f"{every} samples with the model's own logits, {alone} of them also alone"

    @property
    def _partly(self) -> bool:
        return self.looked_at is not None and self.looked_at != self.samples

    def _in_full(self) -> str:
        return f", {_duration(self.full_seconds)} in full" if any(self.other_shape) else ""

    def _shapes(self) -> str:
        """What runs in full, why, and the remedy."""
        found = "none"
        if any(self.other_shape):
            about = "about " * self._partly
            train, test = (f"{odd:,} of {count:,}" for odd, count in self._of_all())
            found = (
                f"{about}{train} train and {test} test samples run in full (N+1 runs of the model, "
                f"{self.full_forwards:,} masked copies in all), since their batches have another "
                "shape than the first; pad all samples to one size (texts: padding='max_length', "
                "max_length=...)"
            )
        if not self._partly or self.looked_at is None:
            return found
        train, test = self.looked_at
        return f"{found} (looked at {train:,} train and {test:,} test samples)"

    def _of_all(self) -> Iterator[tuple[int, int]]:
        return zip(self.other_shape, self.samples, strict=True)

    def _evidence(self) -> str:
        holds = f"; holds {size(self.evidence_bytes)}" if self.evidence_bytes else ""
        if not self.evidence_sweeps:
            weighed = f"; {_duration(self.evidence_seconds)} more to weigh their losses"
            return f"from the same ablation runs{weighed * (self.evidence_seconds > 0)}{holds}"
        times = self.evidence_sweeps
        more = f"about {times:.0f} times" if times >= 1 else f"{times:.1g} of"
        less = "" if self.plan == "full" else "; less where draws share sets"
        return f"{more} the ablation runs, {_duration(self.evidence_seconds)} more{less}{holds}"

    def _kept(self) -> str:
        train, test = self.caches
        if train == test == "none":
            return "nothing"
        if train == test == "recompute":
            return "nothing, neither memory nor disk has room: the body runs for every pass"
        where = train if train == test else f"train: {train}, test: {test}"
        return f"{size(self.bytes_cached)} ({where})"


def _duration(seconds: float) -> str:
    if seconds < 0.95:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


@checked
def plan(  # noqa: PLR0913
    model: nn.Module,
    train: Any,
    test: Any,
    layer: str | nn.Module | Layer | None = None,
    class_names: Sequence[str | int] | None = None,
    method: Method = Method(),
    sample: Sample = Sample(),
    compute: Compute = Compute(),
    evidence: Evidence | None = None,
    progress: bool = False,
) -> Forecast:
    """Forecast what `analyze` would do with the same arguments, by its checks and a short probe.

    Counts and bytes are exact as long as the shapes of all samples could be looked at in a second
    or two, but for the resolution "adaptive", of which the grid and four of its intervals are
    counted; seconds are estimates, without the time of a disk. The plan is that for ablated units
    that give zero. Nothing is kept, and the model comes back as it was.

    Parameters
    ----------
    model, train, test, layer, class_names, method, sample, compute, evidence : as for `analyze`.
    progress : tell on the error stream of a terminal that it goes on.

    Returns
    -------
    Forecast : `print` it for a summary.

    Raises
    ------
    InputError : what is wrong with the model, the data or an option, and the remedy.

    Examples
    --------
    >>> import torch, unitroles as ur
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(
    ...     torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)
    ... )
    >>> x, y = torch.randn(40, 4), torch.arange(40) % 2
    >>> found = ur.plan(model, (x[:20], y[:20]), (x[20:], y[20:]), layer="1")
    >>> found.plan, found.body_forwards, found.bytes_cached, found.cache
    ('additive', 40, 1280, 'memory')
    """
    request = Request(
        model,
        {"train": train, "test": test},
        [layer],
        class_names,
        method,
        sample,
        compute,
        evidence,
        progress,
    )
    with prepared(request) as ready:
        fixed, compared = ready.clock.seconds, samples_alone(ready)
        measured = ready.bars("measure", 1)
        try:
            odd = other_shape(ready)
            each = measured_rates(ready, compared, odd.example)
        except SomeRows:
            ready = one_by_one(ready)
            odd = other_shape(ready)
            each = measured_rates(ready, compared, odd.example)
        chosen, site = ready.choices[0].plan, ready.sites[0]
        scored = sample_score(method.score) is not None
        scores = scored and evidence is not None and evidence.redoes
        caches, kept = _cached(ready, scores, odd)
        swept, body = _samples_run(ready, caches, scored, odd)
        points, (head, tail) = ready.points, chosen.forwards(ready.points)
        sweeps = 0.0 if evidence is None else _sweeps(ready, evidence, chosen.whole_batches)
        in_full = 0.0 if evidence is None else _sweeps(ready, evidence, whole=True)
        weighing = 0.0 if evidence is None else weighing_seconds(ready, evidence)
        measured(1)
        held = 0 if evidence is None else _held(ready, evidence, scores)
    first, second = map(len, ready.splits)
    own, rows = first + second - sum(odd.samples), sum(odd.rows)
    alone = 0 if compared is None else min(compared, first) + min(compared, second)
    return Forecast(
        layer=site.path,
        units=site.units,
        plan=chosen.name,
        reason=chosen.reason,
        samples=(first, second),
        labels=len(ready.labels),
        body_forwards=body,
        head_forwards=swept * (head + 1),  # the swapped sets too
        tail_forwards=swept * tail,
        compared_samples=own * (compared is not None and chosen.keeps_rows),
        alone_samples=alone,
        bytes_cached=kept,
        caches=caches,
        evaluation_seconds=each.evaluation * (first + second),
        fixed_seconds=fixed,
        body_seconds=each.body * body,
        sweep_seconds=each.masks * swept,
        alone_seconds=each.alone * alone,
        other_shape=odd.samples,
        looked_at=odd.looked_at,
        full_forwards=rows * (points + 1),
        full_seconds=each.full * rows,
        evidence_sweeps=sweeps,
        evidence_seconds=sweeps * each.masks * swept + in_full * each.full * rows + weighing,
        evidence_bytes=held,
    )


def _sweeps(ready: Ready, evidence: Evidence, whole: bool) -> float:
    """How often the samples of both splits are put under all masks, if draws share nothing.

    Parameters
    ----------
    whole : whether their batches stay as they are.
    """
    samples, controls = ready.counts, 3.0 * evidence.controls
    full = evidence.draws * (evidence.bootstrap == "full")
    if whole:  # of two parts in either split
        return 2.0 * (evidence.floors + evidence.resplits) + full + controls
    halved = 4 * half_size(samples).sum() / samples.sum()
    # Of weighted samples e^-1 weigh nothing.
    drawn = evidence.floors * halved + evidence.resplits + full * (1 - np.exp(-1.0))
    return float(drawn + controls)


def _held(ready: Ready, evidence: Evidence, scored: bool) -> int:
    """Bytes of the scores and weights of all samples, losses of one class, replicates' curves."""
    samples, most = int(ready.counts.sum()), int(ready.counts.max())
    scores = 4 * samples * ready.sites[0].units * scored
    losses = losses_bytes(most, ready.points, evidence.draws)
    losses *= evidence.bootstrap is not None
    curves = curves_of(evidence, len(ready.labels), ready.points)
    return weights_of(evidence, ready.request.method, samples) + curves + scores + losses


def _cached(ready: Ready, scored: bool, odd: OtherShape) -> tuple[tuple[str, str], int]:
    """Where the rows of both splits would go, and how many bytes those are that are kept.

    The scores of a split, where evidence keeps them, take their room before its rows.
    """
    chosen = ready.choices[0].plan
    if not chosen.keeps_rows:
        return ("none", "none"), 0
    rows, where, kept = chosen.example, [], 0
    # Evidence has taken already what it needs beside.
    with Stores(ready.stores.memory, ready.stores.disk) as stores:
        for samples, others in zip(ready.splits, odd.samples, strict=True):
            if scored:
                stores.open(len(samples), [torch.zeros(1, ready.sites[0].units)])
            count = len(samples) - others
            store = stores.open(len(samples), rows) if count else None
            where.append(("recompute" if count else "none") if store is None else store.where)
            kept += 0 if store is None else count * row_bytes(rows)
    return (where[0], where[1]), kept


def _samples_run(
    ready: Ready, caches: Sequence[str], scored: bool, odd: OtherShape
) -> tuple[int, int]:
    """Samples under all masks, and those through the body.

    For plan "full" both come with the padding of the last batches.
    """
    chosen, batch = ready.choices[0].plan, ready.batch
    padded = [_padded(len(split), min(batch, len(split))) for split in ready.splits]
    means = padded[0] * (ready.request.method.baseline == "mean")  # one more pass
    if not chosen.keeps_rows:
        return sum(padded), sum(padded) * scored + means
    # The curves and the swapped sets each need the rows that were not kept.
    asked = chosen.resolution(ready.request.method.resolution)
    curves = 2 if effective(chosen.site.units, asked) == "adaptive" else 1
    again = [(curves + 1) * (where == "recompute") for where in caches]
    own = [len(split) - others for split, others in zip(ready.splits, odd.samples, strict=True)]
    more = [
        times * _padded(count, min(batch, len(split)))
        for times, count, split in zip(again, own, ready.splits, strict=True)
        if times
    ]
    return sum(own), means + sum(padded) + sum(more)


def _padded(count: int, batch: int) -> int:
    return -(-count // batch) * batch
