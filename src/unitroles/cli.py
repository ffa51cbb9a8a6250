"""The command line: parse, call, print.

Exit codes: 0 done; 1 a condition the user asked for failed; 2 bad input, with one line on the
error stream that says what, where and the remedy; 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from unitroles.arguments import (
    Autocast,
    Baseline,
    BatchSize,
    Budget,
    ChannelsLast,
    Classes,
    Device,
    DryRun,
    Equalize,
    Force,
    ImageSize,
    LayerPath,
    MaxPerClass,
    Mean,
    Missing,
    Model,
    Order,
    OutFile,
    Quiet,
    Resolution,
    Scale,
    Score,
    Seed,
    Std,
    Test,
    Tolerance,
    Train,
    Transform,
    Weights,
)
from unitroles.errors import DataWarning, InputError, PlanWarning, unknown
from unitroles.options import Compute, Method, Sample

# Only what parsing needs is imported here; the commands import what they run.

LADDERS = ("capacity", "noise")
REPRODUCIBLE = ("digits",)
app = typer.Typer(
    name="unitroles",
    add_completion=False,
    help="Which role every unit of a trained network plays for every class: core, overfitted, "
    "generalizing or confusing.",
)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from unitroles import __version__

        typer.echo(f"unitroles {__version__}")
        raise typer.Exit


@app.command()
def analyze(
    model: Model,
    *,
    weights: Weights = None,
    layer: LayerPath = None,
    train: Train,
    test: Test,
    image_size: ImageSize = None,
    scale: Scale = False,
    mean: Mean = None,
    std: Std = None,
    transform: Transform = None,
    score: Score = Method.score,  # pyright: ignore[reportArgumentType]
    order: Order = Method.order,
    tolerance: Tolerance = Method.tolerance,
    baseline: Baseline = Method.baseline,
    resolution: Resolution = "exact",
    classes: Classes = None,
    max_per_class: MaxPerClass = None,
    equalize: Equalize = False,
    missing: Missing = Sample.missing,
    seed: Seed = Sample.seed,
    device: Device = None,
    batch_size: BatchSize = Compute.batch_size,
    memory_budget: Budget = str(Compute.memory_budget),
    autocast: Autocast = None,
    channels_last: ChannelsLast = False,
    out: OutFile = None,
    dry_run: DryRun = False,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Name the role of every unit of a layer for every class of your own model."""
    steps = int(resolution) if resolution.isdigit() else resolution
    method = Method(score, order, tolerance, baseline, None, steps)
    sample = Sample(None, max_per_class, equalize, None, missing, seed)
    budget = int(memory_budget) if memory_budget.isdigit() else memory_budget
    compute = Compute(device, batch_size, budget, autocast, channels_last=channels_last)
    if out is None and not dry_run:
        raise InputError("Missing option '--out'; see unitroles analyze --help")
    if out is not None and not dry_run:
        _check_new([out], force)
    _check_device(device)

    import unitroles as ur
    from unitroles import text
    from unitroles.inputs import Pictures, load_splits
    from unitroles.weights import load_model, load_object, load_weights
    from unitroles.weights import preset as preset_of

    network = load_model(model)
    if weights is not None:
        load_weights(network, weights)
    elif model.startswith("torchvision:"):
        raise InputError(f"{model} comes without weights; give a file of them with --weights")
    pictures = Pictures(
        size=image_size,
        scale=scale,
        mean=_numbers("--mean", mean),
        std=_numbers("--std", std),
        transform=load_object(transform, "--transform must be module:function")
        if transform
        else None,
        preset=preset_of(model),
    )
    first, second, names = load_splits(train, test, pictures)
    sample = replace(sample, classes=_classes(classes, names))
    options = method, sample, compute
    if out is None or dry_run:
        typer.echo(str(ur.plan(network, first, second, layer, names, *options)))
        return
    taxonomy = ur.analyze(network, first, second, layer, names, not quiet, *options)
    taxonomy.save(out)
    if not quiet:
        typer.echo(f"{text.report(taxonomy)}\n\nwrote {out}")


@app.command("layers")
def list_layers(
    model: Model,
    shape: Annotated[
        str | None,
        typer.Option("--input", help="Shape of one input, such as 3,224,224; else the usual one."),
    ] = None,
    batch: Annotated[int, typer.Option(min=2, help="Inputs in the example.")] = 2,
    csv: Annotated[bool, typer.Option("--csv", help="Print comma-separated values.")] = False,
) -> None:
    """List the layers of a model that have units, and what an analysis of each would cost."""
    import torch

    import unitroles as ur
    from unitroles import text
    from unitroles.weights import load_model, preset

    network = load_model(model)
    if shape is None:
        usual = getattr(preset(model), "crop_size", [224])[0]
        side = getattr(network, "image_size", usual)  # of torchvision's transformers
        size = (3, side, side)
    else:
        size = _shape(shape)
    example = torch.rand(batch, *size, generator=torch.Generator().manual_seed(0))
    frame = ur.layers(network, example)
    typer.echo(frame.to_csv(index=False).rstrip() if csv else text.layer_table(frame))


@app.command()
def report(
    taxonomy: Annotated[Path, typer.Argument(metavar="FILE.nc", help="Written by analyze.")],
    csv: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also write all tables there as csv.")
    ] = None,
    force: Force = False,
) -> None:
    """Print the tables and warnings of an analysis again."""
    import unitroles as ur
    from unitroles import text

    found = ur.load(taxonomy)
    names = ("proportions", "shares", "summary", "sensitivity", "regret", "curves", "to_frame")
    files = {} if csv is None else {csv / f"{n.removeprefix('to_')}.csv": n for n in names}
    if csv is not None:
        _make_folder(csv)
        _check_new(list(files), force)
    typer.echo(text.report(found))
    tables = {path: getattr(found, name)() for path, name in files.items()}
    _write({p: t.to_csv(index=p.stem not in ("curves", "frame")) for p, t in tables.items()})


@app.command("reproduce")
def run_again(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to reproduce: digits.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for tables and figures.")],
    seeds: Annotated[
        str | None, typer.Option(help="Such as 1,2,3: train and analyse once for each.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Short trainings: to see that it runs, not results.")
    ] = False,
    ladder: Annotated[
        str, typer.Option(help="capacity: clean labels, models A to E; noise: corrupted labels.")
    ] = "capacity",
) -> None:
    """Train the models of the paper's kind and make its tables and figures."""
    for what, given, known in (("name", name, REPRODUCIBLE), ("ladder", ladder, LADDERS)):
        if given not in known:
            raise unknown(what, given, known)
    numbers = None if seeds is None else tuple(map(int, _numbers("--seeds", seeds, whole=True)))
    _make_folder(out)
    try:
        from unitroles.zoo.reproduce import reproduce

        reproduce(name, out, numbers, quick, ladder, typer.echo)
    except ModuleNotFoundError as error:
        raise InputError(
            f"{error.name} is missing; install it with: pip install 'unitroles[zoo]'"
        ) from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Parameters
    ----------
    arguments : the words after `unitroles`; None takes those of this process.
    """
    words = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        for category in (DataWarning, PlanWarning):
            warnings.simplefilter("always", category)
        try:
            code = typer.main.get_command(app).main(words, "unitroles", standalone_mode=False)
        except (KeyboardInterrupt, typer.Abort):
            code = 130
        except InputError as error:
            return _fail(str(error))
        except Exception as error:
            # The usage errors of typer, whichever click it brings, and of nobody else.
            message = getattr(error, "format_message", None)
            if message is None:
                raise
            command = getattr(getattr(error, "ctx", None), "command_path", "unitroles")
            return _fail(f"{message().rstrip('.')}; see {command} --help")
    if code == 130:
        typer.echo("error: interrupted; what was finished is kept", err=True)
    return int(code or 0)


def _fail(message: str) -> int:
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    return 2


def _show_warning(message: Warning | str, *where: Any) -> None:
    typer.echo(f"warning: {' '.join(str(message).split())}", err=True)


def _numbers(option: str, text: str | None, whole: bool = False) -> Any:
    if text is None:
        return None
    try:
        return tuple(map(int if whole else float, text.split(",")))
    except ValueError:
        kind = "whole numbers" if whole else "numbers"
        raise InputError(f"{option} takes {kind} with commas between, not {text!r}") from None


def _shape(text: str) -> tuple[int, ...]:
    shape = _numbers("--input", text, whole=True)
    if min(shape) < 1:
        raise InputError(f"--input takes positive sizes such as 3,224,224, not {text!r}")
    return shape


def _classes(text: str | None, names: list[str] | None) -> tuple[int | str, ...] | None:
    """Names where the data have them, else numbers."""
    if text is None:
        return None
    words = [word.strip() for word in text.split(",")]
    return tuple(int(w) if w.isdigit() and w not in (names or ()) else w for w in words)


def _check_new(paths: list[Path], force: bool) -> None:
    """Before anything is computed: the files can be written, and nothing is lost by it."""
    for path in paths:
        if path.is_dir():
            raise InputError(f"{path} is a folder; give the name of a file")
        if path.exists() and not force:
            raise InputError(f"{path} exists; give another name, or --force to overwrite it")
    folder = paths[0].parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"cannot write in folder {folder}: {error.strerror}; choose a folder that exists and "
            "is writable"
        ) from error


def _check_device(device: str | None) -> None:
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter: torch built without it
        reason = str(error).splitlines()[0]
        raise InputError(
            f"device {device!r} cannot be used: {reason}; leave --device out for the processor"
        ) from error


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot make folder {folder}: {error.strerror}; choose another place"
        ) from error


def _write(files: dict[Path, str]) -> None:
    """All under temporary names first, so that no half file is ever left."""
    parts = {path: path.with_name(f".{path.name}.{os.getpid()}.part") for path in files}
    try:
        for path, text in files.items():
            parts[path].write_text(text, encoding="utf-8")
        for path, part in parts.items():
            os.replace(part, path)
    except OSError as error:
        raise InputError(
            f"cannot write {error.filename}: {error.strerror}; free some space"
        ) from error
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)
