"""The command line: parse, call, print.

Exit codes: 0 done; 1 a condition the user asked for failed; 2 bad input, with one line on the
error stream that says what, where and the remedy; 130 interrupted.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from unitroles.cli import arguments
from unitroles.cli.arguments import (
    Autocast,
    Baseline,
    BatchSize,
    Bootstrap,
    Budget,
    ChannelsLast,
    Classes,
    Config,
    Controls,
    Device,
    DryRun,
    Equalize,
    Floors,
    Force,
    GroupBy,
    ImageColumn,
    ImageSize,
    LabelColumn,
    LayerPath,
    Level,
    Loss,
    MaxLength,
    MaxPerClass,
    Mean,
    Missing,
    Model,
    Order,
    OutFile,
    Quiet,
    Replicates,
    Resolution,
    Resplits,
    Scale,
    Score,
    Seed,
    Std,
    Test,
    TextColumn,
    Tokenizer,
    Tolerance,
    Train,
    Transform,
    Weights,
    WithEvidence,
)
from unitroles.cli.config import config_beside, config_text, used_tables
from unitroles.errors import DataWarning, InputError, LayerHint, PlanWarning, unknown
from unitroles.files import check_new, make_folder, write_whole
from unitroles.options import Compute, Evidence, Method, Sample

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
    config: Config = None,
    weights: Weights = None,
    layer: LayerPath = None,
    train: Train,
    test: Test,
    image_size: ImageSize = None,
    scale: Scale = False,
    mean: Mean = None,
    std: Std = None,
    transform: Transform = None,
    label_column: LabelColumn = None,
    text_column: TextColumn = None,
    image_column: ImageColumn = None,
    tokenizer: Tokenizer = None,
    max_length: MaxLength = None,
    score: Score = Method.score,  # pyright: ignore[reportArgumentType]
    order: Order = Method.order,
    tolerance: Tolerance = Method.tolerance,
    baseline: Baseline = Method.baseline,
    loss: Loss = None,
    resolution: Resolution = "exact",
    classes: Classes = None,
    max_per_class: MaxPerClass = None,
    equalize: Equalize = False,
    group_by: GroupBy = None,
    missing: Missing = Sample.missing,
    seed: Seed = Sample.seed,
    device: Device = None,
    batch_size: BatchSize = Compute.batch_size,
    memory_budget: Budget = str(Compute.memory_budget),
    autocast: Autocast = None,
    channels_last: ChannelsLast = False,
    evidence: WithEvidence = False,
    floors: Floors = Evidence.floors,
    resplits: Resplits = Evidence.resplits,
    bootstrap: Bootstrap = "fixed_ranking",
    replicates: Replicates = None,
    level: Level = Evidence.level,
    controls: Controls = Evidence.controls,
    out: OutFile = None,
    dry_run: DryRun = False,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Name the role of every unit of a layer for every class of your own model."""
    options = used_tables(analyze, locals())
    method = Method(score, order, tolerance, baseline, None, arguments.whole(resolution))
    sample = Sample(None, max_per_class, equalize, None, missing, seed)
    budget = arguments.whole(memory_budget)
    compute = Compute(device, batch_size, budget, autocast, channels_last=channels_last)
    surely = None if bootstrap == "none" else bootstrap
    asked = Evidence(floors, resplits, surely, replicates, level, controls, seed)
    arguments.require_evidence(evidence, asked)
    beside = None
    if not dry_run:
        if out is None:
            raise InputError("Missing option '--out'; see unitroles analyze --help")
        check_new([out], force)
        beside = config_beside(out, config, options, force)
    _check_device(device)

    import unitroles as ur
    from unitroles.report import text
    from unitroles.sources.factory import known_of, load_object, trained_model
    from unitroles.sources.records import Columns
    from unitroles.sources.splits import Pictures, load_groups, load_splits
    from unitroles.sources.tokens import Tables

    change, own_loss = (
        load_object(spec, f"{option} must be module:function") if spec else None
        for option, spec in (("--transform", transform), ("--loss", loss))
    )
    method = replace(method, loss=own_loss)
    network = trained_model(model, weights)
    known = known_of(model, network)
    spread = arguments.numbers("--mean", mean), arguments.numbers("--std", std)
    pictures = Pictures(image_size, scale, *spread, change, known.transform)
    columns = Columns(label_column, text_column, image_column)
    tables = Tables(columns, tokenizer, max_length, known)
    first, second, names = load_splits(train, test, pictures, tables)
    groups = load_groups(train, test, group_by) if group_by else None
    if groups is not None:
        names = None  # those of the groups
    known_names = names if groups is None else {n for own in groups.values() for n in own.tolist()}
    chosen = arguments.classes(classes, known_names)
    sample = replace(sample, classes=chosen, group_by=groups)
    given = method, sample, compute, asked if evidence else None
    if out is None or dry_run:
        typer.echo(str(ur.plan(network, first, second, layer, names, *given)))
        return
    taxonomy = ur.analyze(network, first, second, layer, names, not quiet, *given)
    taxonomy.save(out)
    if beside is not None:
        write_whole({beside: config_text(options, ur.__version__)})
    if not quiet:
        written = f"{out} and {beside}" if beside else f"{out}"
        typer.echo(f"{text.report(taxonomy)}\n\nwrote {written}")


@app.command("layers")
def list_layers(
    model: Model,
    shape: Annotated[
        str | None,
        typer.Option(
            "--input", help="Shape of one input, such as 3,224,224; else the model's own."
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=2, help="Inputs in the example.")] = 2,
    csv: Annotated[bool, typer.Option("--csv", help="Print comma-separated values.")] = False,
) -> None:
    """List the layers of a model that have units, and what an analysis of each would cost."""
    import unitroles as ur
    from unitroles.report import text
    from unitroles.sources.factory import example_of, load_model

    network = load_model(model, bare=True)
    example = example_of(model, network, batch, arguments.shape(shape))
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
    from unitroles.report import text
    from unitroles.report.layout import csv_of

    found = ur.load(taxonomy)
    files = {} if csv is None else {csv / f"{n.removeprefix('to_')}.csv": n for n in found.tables}
    if csv is not None:
        make_folder(csv)
        check_new(list(files), force)
    typer.echo(text.report(found))
    tables = {path: getattr(found, name)() for path, name in files.items()}
    write_whole({p: csv_of(t, p.stem not in ("curves", "frame")) for p, t in tables.items()})


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
    evidence: Annotated[
        bool,
        typer.Option(
            "--evidence",
            help="Also noise floors, intervals, tests and what goes with the gap, beside the "
            "tables; of a finished folder nothing is trained again.",
        ),
    ] = False,
) -> None:
    """Train the models of the paper's kind and make its tables and figures."""
    for what, given, known in (("name", name, REPRODUCIBLE), ("ladder", ladder, LADDERS)):
        if given not in known:
            raise unknown(what, given, known)
    numbers = (
        None if seeds is None else tuple(map(int, arguments.numbers("--seeds", seeds, whole=True)))
    )
    make_folder(out)
    try:
        from unitroles.paper.reproduce import reproduce

        reproduce(name, out, numbers, quick, ladder, typer.echo, evidence)
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
        for category in (DataWarning, LayerHint, PlanWarning):
            warnings.simplefilter("always", category)
        try:
            code = typer.main.get_command(app).main(words, "unitroles", standalone_mode=False)
        except (KeyboardInterrupt, typer.Abort):
            code = 130
        except InputError as error:
            return _fail(str(error))
        except Exception as error:
            # The usage errors of typer, whichever click it brings, and of ignore else.
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


def _check_device(device: str | None) -> None:
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter: torch built without it
        reason = str(error).splitlines()[0]
        raise InputError(
            f"device {device!r} cannot be used: {reason}; leave --device out for the CPU"
        ) from error
