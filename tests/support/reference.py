"""The slow literal twin of every definition: plain loops, one sample and one mask per forward.

Split axis 0 is train, 1 is test. Inputs are tensors (samples, ...); `x` is one sample with its
batch axis, (1, ...). `axis` is the unit axis of the layer's output, batch axis included.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

CORE, OVERFITTED, GENERALIZING, CONFUSING = 1, 2, 3, 4
TRAIN, TEST = 0, 1


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; the mode of every module is put back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def forward(model: nn.Module, layer: str, x: Tensor, on_call: Callable[[int, Tensor], object]):
    """The model's output on `x`; `on_call(i, output)` may replace the output of the i-th call."""
    calls = 0

    def hook(module, args, output):
        nonlocal calls
        calls += 1
        return on_call(calls - 1, output)

    handle = model.get_submodule(layer).register_forward_hook(hook)
    try:
        with evaluating(model):
            return model(x)
    finally:
        handle.remove()


def call_index(model: nn.Module, layer: str, x: Tensor, call: int) -> int:
    """Which call, counted from 0, `call` means; negative ones count from the last."""
    seen = []
    forward(model, layer, x, lambda i, output: seen.append(i))
    return seen[call]


def activation(model: nn.Module, layer: str, x: Tensor, call: int = -1) -> Tensor:
    """What the layer returns for the one sample `x`, (1, ...)."""
    kept = []

    # Cloned at once: a later in-place op may overwrite the tensor the layer returned.
    def keep(i: int, output: Tensor) -> None:
        kept.append(output.clone())

    forward(model, layer, x, keep)
    return kept[call]


def masked_logits(
    model: nn.Module,
    layer: str,
    x: Tensor,
    active: Iterable[int],
    axis: int = 1,
    call: int = -1,
    ablated: np.ndarray | None = None,
) -> Tensor:
    """Logits (labels,) of the one sample `x` with only the units in `active` retrieved.

    Each of the others is set to its value in `ablated` at all positions; None = 0.
    """
    target = call_index(model, layer, x, call)
    active = {int(unit) for unit in active}

    def mask(i: int, output: Tensor) -> Tensor | None:
        if i != target:
            return None
        inactive = [unit for unit in range(output.shape[axis]) if unit not in active]
        output = output.clone()
        for unit in inactive:
            output.select(axis, unit)[...] = 0 if ablated is None else float(ablated[unit])
        return output

    return forward(model, layer, x, mask)[0]


def mean_over_samples(
    model: nn.Module,
    layer: str,
    inputs: Tensor,
    axis: int,
    call: int,
    statistic: Callable[[Tensor], Tensor],
) -> np.ndarray:
    """Mean (units,) over the samples of a statistic of each unit's positions."""
    rows = []
    for s in range(len(inputs)):
        output = activation(model, layer, inputs[s : s + 1], call).double()
        units = range(output.shape[axis])
        rows.append([statistic(output.select(axis, unit)).item() for unit in units])
    return np.array(rows, dtype=np.float64).sum(axis=0) / len(rows)


def score(
    model: nn.Module, layer: str, inputs: Tensor, axis: int = 1, call: int = -1
) -> np.ndarray:
    """L1 norm over positions, mean over samples: (units,) float64 (section 3)."""
    return mean_over_samples(model, layer, inputs, axis, call, lambda unit: unit.abs().sum())


def score_mean(
    model: nn.Module, layer: str, inputs: Tensor, axis: int = 1, call: int = -1
) -> np.ndarray:
    """Signed mean over positions, mean over samples: (units,) float64.

    A sample that does not reach the layer, an expert, counts with zero.
    """

    def mean(unit: Tensor) -> Tensor:
        return unit.mean() if unit.numel() else unit.new_zeros(())

    return mean_over_samples(model, layer, inputs, axis, call, mean)


def score_l2(
    model: nn.Module, layer: str, inputs: Tensor, axis: int = 1, call: int = -1
) -> np.ndarray:
    """L2 norm over positions, mean over samples: (units,) float64."""
    return mean_over_samples(model, layer, inputs, axis, call, lambda u: u.square().sum().sqrt())


def order(score: np.ndarray) -> np.ndarray:
    """Units (position,) by descending score, ties by unit index."""
    units = range(len(score))
    return np.array(sorted(units, key=lambda unit: (-score[unit], unit)), dtype=np.int64)


def sample_loss(logits: Tensor, label: int) -> float:
    """Cross-entropy in nats, as softplus(logsumexp_{j != label} z_j - z_label)."""
    z = logits.tolist()
    others = z[:label] + z[label + 1 :]
    top = max(others)
    margin = top + math.log(math.fsum(math.exp(value - top) for value in others)) - z[label]
    return max(margin, 0.0) + math.log1p(math.exp(-abs(margin)))


def correct(logits: Tensor, label: int) -> bool:
    """Whether the largest logit is the label's; the lowest index wins a tie."""
    z = logits.tolist()
    return z.index(max(z)) == label


def performance(
    model: nn.Module,
    layer: str,
    inputs: Tensor,
    label: int | Tensor,
    active: Iterable[int],
    axis: int = 1,
    call: int = -1,
    ablated: np.ndarray | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> tuple[float, float]:
    """Mean loss and accuracy of the samples of one label with only `active` retrieved.

    `label` is one number for all samples, or what the loss compares each of them with; `loss` is a
    function of the outputs and labels of some samples, None = cross-entropy.
    """
    active = list(active)
    losses, hits = [], []
    for s in range(len(inputs)):
        logits = masked_logits(model, layer, inputs[s : s + 1], active, axis, call, ablated)
        target = label[s] if isinstance(label, Tensor) else torch.tensor(label)
        if loss is None:
            losses.append(sample_loss(logits, int(target)))
        else:
            losses.append(loss(logits[None], target[None])[0].item())
        whole = logits.ndim == 1 and target.ndim == 0 and not target.is_floating_point()
        hits.append(correct(logits, int(target)) if whole else math.nan)
    return sum(losses) / len(losses), sum(hits) / len(hits)


def rof_curve(
    model: nn.Module,
    layer: str,
    inputs: Tensor,
    label: int | Tensor,
    order: np.ndarray,
    axis: int = 1,
    call: int = -1,
    ablated: np.ndarray | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Loss and accuracy, each (units + 1,), with the first n = 0 ... units retrieved."""
    points = []
    for n in range(len(order) + 1):
        points.append(
            performance(model, layer, inputs, label, order[:n], axis, call, ablated, loss)
        )
    losses, accuracy = zip(*points, strict=True)
    return np.array(losses, dtype=np.float64), np.array(accuracy, dtype=np.float64)


def silent_units(
    model: nn.Module, layer: str, inputs: Tensor, baseline: str, axis: int = 1, call: int = -1
) -> np.ndarray | None:
    """What ablated units give: None for zero, or the mean over samples and positions (units,)."""
    return {"zero": None, "mean": score_mean(model, layer, inputs, axis, call)}[baseline]


def single_unit_ablation(
    model: nn.Module,
    layer: str,
    data: tuple[Tensor, Tensor],
    baseline: str = "zero",
    axis: int = 1,
    call: int = -1,
) -> dict[str, np.ndarray]:
    """Loss and accuracy of the intact model (label,), and their change without a unit.

    The changes, (label, unit), are with the unit removed minus intact.
    """
    inputs, given = data
    ablated = silent_units(model, layer, inputs, baseline, axis, call)
    units = activation(model, layer, inputs[:1], call).shape[axis]
    intact, changes = [], []
    for label in sorted(set(given.tolist())):
        mine = inputs[given == label]
        whole = performance(model, layer, mine, label, range(units), axis, call, ablated)
        row = []
        for unit in range(units):
            rest = [other for other in range(units) if other != unit]
            loss, accuracy = performance(model, layer, mine, label, rest, axis, call, ablated)
            row.append((loss - whole[0], accuracy - whole[1]))
        intact.append(whole)
        changes.append(row)
    whole, change = np.array(intact), np.array(changes)
    return {
        "loss": whole[:, 0],
        "accuracy": whole[:, 1],
        "loss_change": change[..., 0],
        "accuracy_change": change[..., 1],
    }


def cumulative_ablation(
    model: nn.Module,
    layer: str,
    data: tuple[Tensor, Tensor],
    orders: np.ndarray,
    baseline: str = "zero",
    axis: int = 1,
    call: int = -1,
) -> dict[str, np.ndarray]:
    """Loss and accuracy, each (label, units + 1), with the first k units of an order removed.

    `orders` is (label, position).
    """
    inputs, given = data
    ablated = silent_units(model, layer, inputs, baseline, axis, call)
    rows = []
    for label, order in zip(sorted(set(given.tolist())), orders, strict=True):
        mine, row = inputs[given == label], []
        for k in range(len(order) + 1):
            rest = set(order.tolist()) - set(order[:k].tolist())
            row.append(performance(model, layer, mine, label, rest, axis, call, ablated))
        rows.append(row)
    found = np.array(rows)
    return {"loss": found[..., 0], "accuracy": found[..., 1]}


def turning_point(curve: np.ndarray, tolerance: float = 1e-6) -> int:
    """The smallest n >= 1 with E(n) <= min over n >= 1 + tolerance (eq. 1)."""
    lowest = min(curve[1:])
    for n in range(1, len(curve)):
        if curve[n] <= lowest + tolerance:
            return n
    raise ValueError("the curve has no point n >= 1, or holds NaN")


def adaptive(curves: np.ndarray, samples: Sequence[int]) -> np.ndarray:
    """Exact curves of all classes with NaN at the points that the resolution "adaptive" leaves out.

    A grid of 0, 1, 1 + step, ... and N; then the intervals of it in which a random walk would fall
    by more than .002 below the lowest loss of the grid in the mean, as long as no more than .7 of
    all evaluations are done, or else the middles of those.
    """
    units = curves.shape[1] - 1
    step = max(1, round(math.sqrt(units / 2)))
    grid = sorted({0, units} | {n for n in range(1, units + 1) if (n - 1) % step == 0})
    if len(grid) > (units + 1) / 2:
        return curves.copy()
    known = [set(grid) for _ in curves]
    found = []
    for label, curve in enumerate(curves):
        low = min(curve[grid[1:]])
        floor = 0.0 if low >= 0 else -np.inf
        spans = list(pairwise(grid[1:]))
        rates = [(curve[b] - curve[a]) ** 2 / (b - a) for a, b in spans]
        for place, (first, last) in enumerate(spans):
            near = rates[max(0, place - 2) : place + 3]
            variance = sum(near) / len(near) * (last - first)
            if last - first == 1 or variance == 0:
                continue

            def deeper(m: float, a=curve[first], b=curve[last], variance=variance) -> float:
                return math.exp(-2 * (a - m) * (b - m) / variance)

            lowest = max(floor, low - 20 * math.sqrt(variance))
            nodes, weights = np.polynomial.legendre.leggauss(200)
            depths = lowest + (low - lowest) * (nodes + 1) / 2
            gain = sum(w * deeper(m) for w, m in zip(weights, depths, strict=True))
            gain *= (low - lowest) / 2
            if gain > 0.002:
                found.append((round(-gain, 9), label, first, last))
    left = 0.7 * sum(samples) * (units + 1) - sum(samples) * len(grid)
    for _, label, first, last in sorted(found):
        for part in (range(first + 1, last), [(first + last) // 2]):
            if samples[label] * len(part) <= left:
                left -= samples[label] * len(part)
                known[label] |= set(part)
                break
    there = np.array([[n in mine for n in range(units + 1)] for mine in known])
    return np.where(there, curves, np.nan)


def roles(active_train: Iterable[int], active_test: Iterable[int], units: int) -> np.ndarray:
    """Role (units,) uint8 from the two active sets (eqs. 3-6)."""
    on_train = {int(unit) for unit in active_train}
    on_test = {int(unit) for unit in active_test}
    layer = set(range(units))
    sets = {
        CORE: on_train & on_test,
        OVERFITTED: on_train & (layer - on_test),
        GENERALIZING: on_test & (layer - on_train),
        CONFUSING: (layer - on_train) & (layer - on_test),
    }
    role = np.zeros(units, dtype=np.uint8)
    for value, members in sets.items():
        for unit in members:
            role[unit] = value
    return role


def proportions(role: np.ndarray) -> np.ndarray:
    """Share of the units with each role, (label, unit) -> (label, 4) (table 2)."""
    out = np.zeros((role.shape[0], 4))
    for label in range(role.shape[0]):
        for value in (CORE, OVERFITTED, GENERALIZING, CONFUSING):
            out[label, value - 1] = sum(r == value for r in role[label]) / role.shape[1]
    return out


def shares(role: np.ndarray) -> np.ndarray:
    """Share of the labels for which a unit has each role, (label, unit) -> (unit, 4) (eq. 9)."""
    out = np.zeros((role.shape[1], 4))
    for unit in range(role.shape[1]):
        for value in (CORE, OVERFITTED, GENERALIZING, CONFUSING):
            out[unit, value - 1] = sum(r == value for r in role[:, unit]) / role.shape[0]
    return out


@dataclass(frozen=True)
class Reference:
    """Everything the taxonomy of one layer holds; split axis 0 = train, 1 = test."""

    labels: list[int]
    score: np.ndarray  # (split, label, unit)
    order: np.ndarray  # (split, label, position)
    loss: np.ndarray  # (split, label, retrieved)
    accuracy: np.ndarray  # (split, label, retrieved)
    turning_point: np.ndarray  # (split, label)
    role: np.ndarray  # (label, unit)
    proportions: np.ndarray  # (label, role)
    shares: np.ndarray  # (unit, role)
    swapped_loss: np.ndarray  # (split, label)
    swapped_accuracy: np.ndarray  # (split, label)
    regret: dict[str, np.ndarray]  # (label,) each


def orders_of(
    scored: Callable[[Tensor], np.ndarray], splits: list[Tensor], mode: str
) -> list[np.ndarray]:
    """The order used on each split: by its own scores, or one order shared by both."""
    if mode == "per_split":
        return [order(scored(splits[TRAIN])), order(scored(splits[TEST]))]
    shared = {"train": splits[TRAIN], "test": splits[TEST], "pooled": torch.cat(splits)}[mode]
    return [order(scored(shared)), order(scored(shared))]


def regret(
    loss: np.ndarray,
    accuracy: np.ndarray,
    turning_point: np.ndarray,
    swapped_loss: np.ndarray,
    swapped_accuracy: np.ndarray,
) -> dict[str, np.ndarray]:
    """What the other split's active set costs, in nats and in accuracy, (label,) each."""
    out = {}
    for split, name in ((TRAIN, "train"), (TEST, "test")):
        labels = range(loss.shape[1])
        n0 = turning_point[split]
        own_loss = np.array([loss[split, k, n0[k]] for k in labels])
        own_accuracy = np.array([accuracy[split, k, n0[k]] for k in labels])
        out[name] = swapped_loss[split] - own_loss
        out[f"{name}_accuracy"] = own_accuracy - swapped_accuracy[split]
    return out


def analyze_label(
    splits: list[Tensor],
    targets: list[Tensor],
    scored: Callable[[Tensor], np.ndarray],
    curve: Callable[..., tuple[np.ndarray, np.ndarray]],
    under: Callable[..., tuple[float, float]],
    order_mode: str,
    tolerance: float,
) -> dict[str, list]:
    """Everything about one label, one entry per split; `role` has no split.

    `targets` is what the loss compares the samples of each split with.
    """
    orders = orders_of(scored, splits, order_mode)
    curves = [curve(splits[i], targets[i], orders[i]) for i in (TRAIN, TEST)]
    n0 = [turning_point(loss, tolerance) for loss, _ in curves]
    active = [orders[i][: n0[i]] for i in (TRAIN, TEST)]
    swapped = [
        under(splits[TRAIN], targets[TRAIN], active[TEST]),
        under(splits[TEST], targets[TEST], active[TRAIN]),
    ]
    return {
        "score": [scored(inputs) for inputs in splits],
        "order": orders,
        "loss": [loss for loss, _ in curves],
        "accuracy": [accuracy for _, accuracy in curves],
        "turning_point": n0,
        "role": roles(active[TRAIN], active[TEST], len(orders[TRAIN])),
        "swapped_loss": [loss for loss, _ in swapped],
        "swapped_accuracy": [accuracy for _, accuracy in swapped],
    }


def analyze(
    model: nn.Module,
    layer: str,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    axis: int = 1,
    call: int = -1,
    order_mode: str = "per_split",
    tolerance: float = 1e-6,
    score: Callable[..., np.ndarray] = score,
    baseline: str = "zero",
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    groups: tuple[Tensor, Tensor] | None = None,
) -> Reference:
    """Sections 3, 4 and 6 for every label; `train` and `test` are (inputs, labels).

    `groups` class the samples of both splits where their labels do not.
    """
    ablated = silent_units(model, layer, train[0], baseline, axis, call)

    def scored(inputs: Tensor) -> np.ndarray:
        return score(model, layer, inputs, axis, call)

    def curve(inputs: Tensor, given: Tensor, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return rof_curve(model, layer, inputs, given, order, axis, call, ablated, loss)

    def under(inputs: Tensor, given: Tensor, active: np.ndarray) -> tuple[float, float]:
        return performance(model, layer, inputs, given, active, axis, call, ablated, loss)

    group_of = groups if groups is not None else (train[1], test[1])
    labels = sorted(set(group_of[TRAIN].tolist()) | set(group_of[TEST].tolist()))
    rows = []
    for label in labels:
        mine = [group_of[split] == label for split in (TRAIN, TEST)]
        splits = [train[0][mine[TRAIN]], test[0][mine[TEST]]]
        targets = [train[1][mine[TRAIN]], test[1][mine[TEST]]]
        rows.append(analyze_label(splits, targets, scored, curve, under, order_mode, tolerance))
    role = np.array([row.pop("role") for row in rows])
    fields = {name: np.swapaxes([row[name] for row in rows], 0, 1) for name in rows[0]}
    return Reference(
        labels=labels,
        **fields,
        role=role,
        proportions=proportions(role),
        shares=shares(role),
        regret=regret(**{name: fields[name] for name in fields if name not in ("score", "order")}),
    )
