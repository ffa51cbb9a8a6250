"""What the commands take: the names, groups and help texts of their options."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from unitroles.cli.config import take_config
from unitroles.errors import InputError
from unitroles.options import Evidence

_DATA = (
    "a folder of class folders; file.npz (arrays 'images', 'labels') or file.npz::train "
    "('train_images', 'train_labels'): float arrays are given to the model as they are, float64 "
    "as float32; file.csv, file.tsv: label and text; file.parquet, or a folder of a Hugging Face "
    "data set: label, and picture or text"
)


def _panel(title: str, *names: str, **settings: Any) -> Any:
    return typer.Option(*names, rich_help_panel=title, **settings)


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="package.module:factory (a function without arguments, or the model itself; the "
        "current folder is searched too), torchvision:NAME, timm:NAME or hf:FOLDER_OR_NAME.",
    ),
]
Config = Annotated[
    Path | None,
    _panel(
        "Configuration",
        metavar="FILE.toml",
        is_eager=True,
        callback=take_config,
        help="Options from a TOML file, in tables named as the groups here: model, data, method, "
        "...; what is given here wins.",
    ),
]
Weights = Annotated[
    Path | None,
    _panel(
        "Model",
        help="safetensors file, or PyTorch file of tensors (no pickle); hf: models bring theirs.",
    ),
]
LayerPath = Annotated[
    str | None, _panel("Model", help="Layer whose output carries the units; else recommended.")
]
Train = Annotated[str, _panel("Data", metavar="DATA", help=f"Training data: {_DATA}.")]
Test = Annotated[str, _panel("Data", metavar="DATA", help="Held-out data, in the same forms.")]
ImageSize = Annotated[
    int | None,
    _panel(
        "Data",
        min=1,
        help="Pictures: resize the shorter side, crop the centre; else as the model's own preset.",
    ),
]
Scale = Annotated[
    bool, _panel("Data", "--scale", help="uint8 arrays: divide by 255, channels to the front.")
]
Mean = Annotated[str | None, _panel("Data", help="Per channel, after scaling: .5 or .4,.5,.6.")]
Std = Annotated[str | None, _panel("Data", help="Per channel, after scaling.")]
Transform = Annotated[
    str | None, _panel("Data", help="Pictures: package.module:function of one PIL picture.")
]
LabelColumn = Annotated[str | None, _panel("Data", help="Tables: the class; else 'label'.")]
TextColumn = Annotated[str | None, _panel("Data", help="Tables: the text; else 'text'.")]
ImageColumn = Annotated[
    str | None, _panel("Data", help="Parquet: the pictures; else the column of that type.")
]
Tokenizer = Annotated[
    str | None, _panel("Data", help="Texts: folder or name; else that of the hf: model.")
]
MaxLength = Annotated[
    int | None, _panel("Data", min=1, help="Texts: tokens at most; else as many as the model can.")
]
Score = Annotated[
    str,
    _panel("Method", help="activation_l1, activation_mean, activation_l2, weight_l1 or random."),
]
Order = Annotated[
    str, _panel("Method", help="Whose scores rank the units: per_split, train, test or pooled.")
]
Tolerance = Annotated[
    float, _panel("Method", help="Nats above the lowest loss that count as the lowest.")
]
Baseline = Annotated[
    str, _panel("Method", help="What an ablated unit gives: zero, or mean, its mean activation.")
]
Loss = Annotated[
    str | None,
    _panel(
        "Method",
        help="package.module:function of logits (rows, classes) and labels (rows) that gives one "
        "loss per row; else the cross-entropy.",
    ),
]
Resolution = Annotated[
    str,
    _panel(
        "Method",
        help="At which numbers of units the curves are evaluated, where each costs a run of what "
        "comes after the layer: exact (all), adaptive (a grid, then all around the minimum), or "
        "a number: every so many.",
    ),
]
Classes = Annotated[
    str | None, _panel("Sample", help="Only these classes: names or numbers, with commas.")
]
MaxPerClass = Annotated[int | None, _panel("Sample", help="Samples per class and split.")]
Equalize = Annotated[
    bool, _panel("Sample", "--equalize", help="As many samples of a class from both splits.")
]
GroupBy = Annotated[
    str | None,
    _panel("Sample", help="Group by this column, or array of an npz file, not by the class."),
]
Missing = Annotated[
    str, _panel("Sample", help="error or skip: classes with samples in one split only.")
]
Seed = Annotated[int, _panel("Sample", min=0, help="Of draws and of the score 'random'.")]
Device = Annotated[str | None, _panel("Compute", help="A torch device; else the CPU.")]
BatchSize = Annotated[int, _panel("Compute", help="Samples per forward.")]
Budget = Annotated[
    str,
    _panel(
        "Compute",
        help="Memory for what is kept of the samples: 500MB, 2GiB or bytes; what does not fit "
        "goes to the folder for temporary files.",
    ),
]
Autocast = Annotated[
    str | None, _panel("Compute", help="bfloat16 or float16 for the model up to the layer.")
]
ChannelsLast = Annotated[
    bool, _panel("Compute", "--channels-last", help="Images with their channels last in memory.")
]
WithEvidence = Annotated[
    bool,
    _panel(
        "Evidence",
        "--evidence",
        help="Also measure noise floors, an exchangeability test, intervals and controls.",
    ),
]
Floors = Annotated[
    int, _panel("Evidence", help="Random splits inside each split; 0 = no noise floors.")
]
Resplits = Annotated[
    int, _panel("Evidence", help="New splits of all samples; 0 = no exchangeability test.")
]
Bootstrap = Annotated[
    str,
    _panel(
        "Evidence",
        help="fixed_ranking: intervals with the order kept; full: scores, orders and curves again, "
        "with P(role); none.",
    ),
]
Replicates = Annotated[
    int | None,
    _panel("Evidence", help="Of the intervals; else 100 for fixed_ranking, 25 for full."),
]
Level = Annotated[float, _panel("Evidence", help="Of the intervals, between 0 and 1.")]
Controls = Annotated[
    bool,
    _panel(
        "Evidence",
        help="Other orders, scaled logits, accuracy, and what each active set does to all classes.",
    ),
]
OutFile = Annotated[Path | None, _panel("Output", metavar="FILE.nc", help="Where the result goes.")]
DryRun = Annotated[
    bool, _panel("Output", "--dry-run", help="Print plan, memory and time; write nothing.")
]
Force = Annotated[bool, _panel("Output", "--force", help="Overwrite what exists.")]
Quiet = Annotated[bool, _panel("Output", "--quiet", help="No bars and tables; warnings stay.")]


def numbers(option: str, text: str | None, whole: bool = False) -> Any:
    """ "3,224,224" as numbers."""
    if text is None:
        return None
    try:
        return tuple(map(int if whole else float, text.split(",")))
    except ValueError:
        kind = "whole numbers" if whole else "numbers"
        raise InputError(f"{option} takes {kind} with commas between, not {text!r}") from None


def shape(text: str | None) -> tuple[int, ...] | None:
    """ "3,224,224" as sizes."""
    found = numbers("--input", text, whole=True)
    if found is not None and min(found) < 1:
        raise InputError(f"--input takes positive sizes such as 3,224,224, not {text!r}")
    return found


def classes(text: str | None, names: Collection[Any] | None) -> tuple[int | str, ...] | None:
    """Names where the data have them, else numbers."""
    if text is None:
        return None
    words = [word.strip() for word in text.split(",")]
    return tuple(int(w) if w.isdigit() and w not in (names or ()) else w for w in words)


def whole(text: str) -> int | str:
    """A number where it is one: of units in a step, of bytes."""
    return int(text) if text.isdigit() else text


def require_evidence(wanted: bool, evidence: Evidence) -> None:
    """Refuse options of evidence where no evidence is asked for.

    Raises
    ------
    InputError : and which ones.
    """
    plain = Evidence(seed=evidence.seed)
    changed = [f.name for f in fields(plain) if getattr(plain, f.name) != getattr(evidence, f.name)]
    if changed and not wanted:
        names = ", ".join(
            "--no-controls" if name == "controls" else f"--{name}" for name in changed
        )
        raise InputError(f"{names}: of no use without --evidence; add it")
