"""Taxonomy -> plain text for terminals and pipes: the tables, and the warnings that matter."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd

from unitroles.report.evidence import agreement, evidence, minima
from unitroles.report.layout import aligned
from unitroles.results.dataset import CROSS_ENTROPY, SPLITS
from unitroles.results.signs import LOOSE
from unitroles.results.taxonomy import Taxonomy
from unitroles.roles import ROLE_NAMES
from unitroles.wording import COUPLED, NUMBERING, count_of, names_of, printable, range_of, size

FEW = 20
"""Samples; roles of a class with fewer are mostly chance."""
_REASON = 22
_REST = "; masked copies run through the rest"


def report(taxonomy: Taxonomy) -> str:
    """Everything about one taxonomy: tables, agreement, evidence, warnings.

    A warning that makes all of it doubtful comes first.

    Parameters
    ----------
    taxonomy : the result of `unitroles.analyze` or `unitroles.load`.

    Returns
    -------
    Lines without a final line break; percentages, and losses in nats. Names may come from anywhere:
    what they hold of control and other invisible characters is written as escapes.
    """
    notes = cautions(taxonomy)
    first = [text for text in notes if text.startswith(NUMBERING) or text.endswith(COUPLED)]
    parts = [
        _warned(first),
        header(taxonomy),
        role_tables(taxonomy),
        sensitivity(taxonomy),
        regret(taxonomy),
    ]
    parts += [agreement(taxonomy), minima(taxonomy), evidence(taxonomy)]
    parts.append(_warned([text for text in notes if text not in first]))
    return printable("\n\n".join(part for part in parts if part), keep="\n")


def _warned(notes: Sequence[str]) -> str:
    return "\n".join(f"warning: {printable(text)}" for text in notes)


def header(taxonomy: Taxonomy) -> str:
    """The layer, how it was analysed, and how well the intact model does."""
    attrs = taxonomy.data.attrs
    given = _recorded(taxonomy, "options", "sample", "group_by", missing=None)
    accuracy = ", ".join(f"{name} {attrs[f'{name}_accuracy']:.4f}" for name in SPLITS)
    grouped = "" if given is None else f" (grouped by {given})"
    own = attrs.get("loss", CROSS_ENTROPY)
    sizes = taxonomy.data.sizes
    plan, reason = (_recorded(taxonomy, "plan", name) for name in ("name", "reason"))
    score, order = (_recorded(taxonomy, "options", "method", name) for name in ("score", "order"))
    rows = {
        "layer": f"{taxonomy.layer}: {sizes['unit']} units, {sizes['label']} classes{grouped}",
        "plan": f"{plan}: {reason}",
        **_in_full(taxonomy),
        "method": f"score {score}, order {order}, "
        f"tolerance {taxonomy.tolerance:g} {taxonomy.loss_units}" + _beside_defaults(taxonomy),
        **({} if own == CROSS_ENTROPY else {"loss": own}),
        "samples": ", ".join(_samples(taxonomy, name) for name in SPLITS),
        "accuracy": f"{accuracy}, gap {taxonomy.gap:+.4f}" if taxonomy.scored else "not measured",
        "checked": _audited(taxonomy),
    }
    return "\n".join(f"{name:<9} {printable(value)}" for name, value in rows.items())


def _in_full(taxonomy: Taxonomy) -> dict[str, str]:
    """How many samples did not run as the plan says; nothing where all did."""
    found = _recorded(taxonomy, "plan", "in_full", missing={})
    if not any(found.values()):
        return {}
    every = taxonomy.data.samples.sum("label")
    parts = [f"{n} of {int(every.sel(split=name))} {name}" for name, n in found.items()]
    why = "their batches have another shape than the first"
    return {"in full": f"{' and '.join(parts)} samples (N+1 runs of the model): {why}"}


def _audited(taxonomy: Taxonomy) -> str:
    """What was compared with the model itself, and what that leaves open (Hanley 1983, 3 / m).

    .. Hanley, Lippman-Hand. If nothing goes wrong, is everything all right? JAMA 249, 1983.
    """
    audit = _recorded(taxonomy, "audit", missing=None)
    if audit is None:
        return "no sample was compared with the model alone"
    every, alone, off = audit["every"], audit["alone"], audit["difference"]
    if any(times > 1 for times in audit["times_allowed"].values()):
        return (
            f"of {alone} samples run alone some gave other logits than among others (largest "
            f"difference {max(off.values()):.1e}): results depend on the batches"
        )
    said = []
    if every:
        said.append(
            f"with all units retrieved {every} samples gave the model's own logits (largest "
            f"difference {off['all_retrieved']:.1e})"
        )
    if alone:
        said.append(
            f"of {alone} random (sample, mask) pairs run alone none differed: with 95 % confidence "
            f"fewer than {min(100.0, 300 / alone):.2g} % do; rarer interactions are not excluded"
        )
    return "; ".join(said) or "no sample was run alone (audit=0)"


def _recorded(taxonomy: Taxonomy, *path: str, missing: Any = "not recorded") -> Any:
    """A part of the provenance, which not every file has."""
    found: Any = taxonomy.provenance
    for name in path:
        found = found.get(name, missing) if isinstance(found, dict) else missing
    return found


def _beside_defaults(taxonomy: Taxonomy) -> str:
    """The baseline and the resolution, where they are not those that every reader expects."""
    baseline = _recorded(taxonomy, "options", "method", "baseline", missing="zero")
    resolution = taxonomy.data.attrs.get("resolution", "exact")
    text = "" if baseline == "zero" else f", baseline {baseline}"
    if resolution == "exact":
        return text
    evaluated = np.isfinite(taxonomy.data.loss.values)
    evaluated[..., 0] = True  # also where the loss there is not a number
    share = 100 * evaluated.mean()
    steps = resolution if resolution == "adaptive" else f"every {resolution} units"
    found = taxonomy.minima()
    deep = f"{found.hidden.max():.2g} {taxonomy.loss_units}" if "hidden" in found else ""
    return (
        f"{text}, resolution {steps} ({share:.0f} % of the curves' points evaluated"
        f"{f'; at the others a loss may lie up to about {deep} below the minimum' * bool(deep)})"
    )


def _samples(taxonomy: Taxonomy, split: str) -> str:
    count = taxonomy.data.samples.sel(split=split).values
    return f"{split} {range_of(count)} per class ({count.sum()} in all)"


def role_tables(taxonomy: Taxonomy) -> str:
    """Proportions over classes (the paper's table 2) and shares over units (table 3)."""
    summary = taxonomy.summary()
    table = pd.DataFrame(
        {
            "role": ROLE_NAMES,
            "share of the units": _mean_std(summary["mean"], summary.std_over_labels),
            "share of the classes": _mean_std(summary["mean"], summary.std_over_units),
        }
    )
    sizes = taxonomy.data.sizes
    return (
        f"Roles in %: share of the units per class, mean ± std over {sizes['label']} classes; "
        f"share of the\nclasses per unit, mean ± std over {sizes['unit']} units; "
        f"std = population std (ddof 0)\n{aligned(table)}"
    )


def _mean_std(mean: pd.Series, std: pd.Series) -> list[str]:
    return [f"{100 * m:.1f} ± {100 * s:.1f}" for m, s in zip(mean, std, strict=True)]


def sensitivity(taxonomy: Taxonomy) -> str:
    """Mean proportions under other rules for the turning point, from the same curves."""
    frame = (100 * taxonomy.sensitivity()).map("{:.1f}".format)
    coarse = bool(taxonomy.data.attrs.get("resolution", "exact") != "exact")
    return (
        "Sensitivity: mean share of the units in % under other rules for the turning point\n"
        f"(tolerance in {taxonomy.loss_units} above the lowest loss"
        + "; or the highest accuracy" * taxonomy.scored
        + ")\n"
        + "(read from the points evaluated for the rule in use; the others are coarser)\n" * coarse
        + aligned(frame.reset_index())
    )


def regret(taxonomy: Taxonomy) -> str:
    """The cost of the other split's active set, over the classes."""
    frame = taxonomy.regret()
    lost, points = frame[list(SPLITS)], 100 * frame[[f"{split}_accuracy" for split in SPLITS]]
    table: dict[str, Sequence[str]] = {"split": SPLITS}
    table |= _over_classes(lost, f"loss ({taxonomy.loss_units})", "over classes", "{:+.2g}")
    if taxonomy.scored:
        table |= _over_classes(points, "accuracy (points)", "over classes ", "{:+.2f}")
    return (
        "Regret: what a split loses under the other split's active set (positive = worse)\n"
        f"{aligned(pd.DataFrame(table))}"
    )


def _over_classes(frame: pd.DataFrame, mean: str, ends: str, form: str) -> dict[str, list[str]]:
    """Two columns with a row for every column of `frame`: its mean, and its least and most."""
    shown = frame.agg(["mean", "min", "max"]).map(lambda value: form.format(value + 0.0))  # no -0
    return {mean: list(shown.loc["mean"]), ends: list(shown.loc["min"] + " to " + shown.loc["max"])}


def cautions(taxonomy: Taxonomy) -> list[str]:
    """Warnings to a reader of the tables, one sentence each; [] where all is well."""
    own = [_flagged(taxonomy), _unequal(taxonomy), _too_few(taxonomy), _depends(taxonomy)]
    stored = taxonomy.provenance.get("warnings", [])
    return list(dict.fromkeys(text for text in [*own, *stored] if text))


def _flagged(taxonomy: Taxonomy) -> str | None:
    flagged = taxonomy.flagged()
    if not flagged:
        return None
    rest = taxonomy.summary(flagged=False)["mean"]
    means = ", ".join(f"{role} {100 * rest[role]:.1f}" for role in ROLE_NAMES)
    without = (
        f"without them the mean proportions in % are {means}" if rest.notna().all() else "all are"
    )
    return (
        f"{count_of(flagged)} flagged ({names_of(flagged)}): no number of active units brings the "
        f"loss below that of the fully ablated layer, so their roles mean little; {without}"
    )


def _unequal(taxonomy: Taxonomy) -> str | None:
    samples = taxonomy.data.samples.sel(split=list(SPLITS)).values
    if (samples[0] == samples[1]).all():
        return None
    train, test = np.median(samples, axis=1)
    return (
        f"unequal numbers of samples (median {train:g} per class for train, {test:g} for test): "
        "roles carry sampling noise that differs by split; --equalize draws the same number"
    )


def _too_few(taxonomy: Taxonomy) -> str | None:
    low = taxonomy.data.samples.values.min(axis=0)
    few = [label for label, count in zip(taxonomy.labels, low, strict=True) if count < FEW]
    if not few:
        return None
    return (
        f"{count_of(few)} with fewer than {FEW} samples in a split ({names_of(few)}): too few for "
        "roles"
    )


def _depends(taxonomy: Taxonomy) -> str | None:
    """Changes below half a point are left out: twice nothing is nothing."""
    table = taxonomy.sensitivity()["overfitted"].to_dict()
    used = taxonomy.tolerance
    tight, loose = table[f"tolerance {used:g}"], table[f"tolerance {LOOSE:g}"]
    change = abs(tight - loose)
    if change <= 0.005 or (change <= 0.05 and max(tight, loose) <= 2 * min(tight, loose)):
        return None
    return (
        f"the overfitted proportion depends on the tolerance: {100 * tight:.1f} % at {used:g} "
        f"{taxonomy.loss_units}, "
        f"{100 * loose:.1f} % at {LOOSE:g}; never compare models across tolerances"
    )


def layer_table(frame: pd.DataFrame) -> str:
    """The table of `unitroles.layers`, the recommended layer marked with a star.

    As wide as the terminal where that is enough; reasons are wrapped.
    """
    axes = list(zip(frame.axis, frame.note, strict=True))
    columns = {
        **frame[["layer", "kind", "plan", "units"]],
        "axis": [f"{axis}{'?' * ('guess' in note)}" for axis, note in axes],
        "cost": [f"{cost:,.1f}" for cost in frame.cost],
        "ms": [f"{each:,.2g}" if each < 10 else f"{each:,.0f}" for each in frame.ms_per_sample],
        "memory/sample": [size(count) for count in frame.bytes_per_sample.tolist()],
        "": ["*" if best else "" for best in frame.recommended],
    }
    table = aligned(pd.DataFrame(columns), ("kind", "plan")).splitlines()
    pairs = zip(frame.plan, frame.reason, strict=True)
    why = [
        "" if plan == "additive" else printable(text).removesuffix(_REST) for plan, text in pairs
    ]
    start = len(table[0]) + 5  # behind the stars
    width = max(shutil.get_terminal_size((100, 24)).columns, start + _REASON)
    lines = [
        fill(
            reason,
            width,
            initial_indent=line.ljust(start),
            subsequent_indent=" " * start,
            break_long_words=False,
            break_on_hyphens=False,
        )
        or line
        for line, reason in zip(table, ["why", *why], strict=True)
    ]
    shown = "\n".join(lines)
    best = "".join(frame.note[frame.recommended])
    doubt = (
        "? = a guess, give Layer(path, axis=...)\n" if any("guess" in n for _, n in axes) else ""
    )
    return (
        f"{shown}\n\n* = taken where --layer is not given; {best}\n{doubt}"
        "cost = in evaluation passes over the same samples;\n"
        "ms = cost × what one sample of the example takes here, in milliseconds;\n"
        "memory/sample = kept of every sample between the pass of the model and the ablation runs"
    )
