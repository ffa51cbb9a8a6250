"""What the commands take: the names, groups and help texts of their options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

_DATA = (
    "a folder of class folders, file.npz (arrays 'images', 'labels') or file.npz::train "
    "('train_images', 'train_labels'); float arrays are given to the model as they are, float64 "
    "as float32"
)


def _panel(title: str, *names: str, **settings: Any) -> Any:
    return typer.Option(*names, rich_help_panel=title, **settings)


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="package.module:factory (a function without arguments, or the model itself; the "
        "current folder is searched too) or torchvision:NAME.",
    ),
]
Weights = Annotated[
    Path | None, _panel("Model", help="safetensors file, or PyTorch file of tensors (no pickle).")
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
        help="Folders: resize the shorter side, crop the centre; else the torchvision preset.",
    ),
]
Scale = Annotated[
    bool, _panel("Data", "--scale", help="uint8 arrays: divide by 255, channels to the front.")
]
Mean = Annotated[str | None, _panel("Data", help="Per channel, after scaling: .5 or .4,.5,.6.")]
Std = Annotated[str | None, _panel("Data", help="Per channel, after scaling.")]
Transform = Annotated[
    str | None, _panel("Data", help="Folders: package.module:function of one PIL picture.")
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
    str, _panel("Method", help="What a silent unit gives: zero, or mean, its mean activation.")
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
Missing = Annotated[
    str, _panel("Sample", help="error or skip: classes with samples in one split only.")
]
Seed = Annotated[int, _panel("Sample", min=0, help="Of draws and of the score 'random'.")]
Device = Annotated[str | None, _panel("Compute", help="A torch device; else the processor.")]
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
OutFile = Annotated[Path | None, _panel("Output", metavar="FILE.nc", help="Where the result goes.")]
DryRun = Annotated[
    bool, _panel("Output", "--dry-run", help="Print plan, memory and time; write nothing.")
]
Force = Annotated[bool, _panel("Output", "--force", help="Overwrite what exists.")]
Quiet = Annotated[bool, _panel("Output", "--quiet", help="No bars and tables; warnings stay.")]
