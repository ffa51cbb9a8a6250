"""The command line: parse, call, print.

Exit codes: 0 done; 1 a condition the user asked for failed; 2 bad input, with one line on the
error stream that says what, where and the remedy; 130 interrupted, 143 ended (SIGTERM), 129 hung up
(SIGHUP), all of which clean up.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from unitroles.cli.arguments import (
    LASTING,
    OPTIONS,
    Arguments,
    Data,
    Force,
    Model,
    Network,
    Output,
    class_names_of,
    made,
    numbered,
    require_evidence,
    takes_all,
)
from unitroles.cli.config import RENAMED, config_beside, config_text, flag, numbers, used_tables
from unitroles.cli.terminal import same_environment, say, stopped_by_signals
from unitroles.errors import OWN_WARNINGS, InputError
from unitroles.files import check_new, make_folder, write_whole
from unitroles.options import Compute, Evidence, Method, Sample
from unitroles.wording import first_line

# Only what parsing needs is imported here; the commands import what they run.

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

        say(f"unitroles {__version__}")
        raise typer.Exit


@app.command()
@takes_all
def analyze(**given: Any) -> None:
    """Name the role of every unit of a layer for every class of your own model."""
    options = used_tables(LASTING, given)
    method, sample = made(Method, {**given, "loss": None}), made(Sample, given)
    compute, evidence = made(Compute, given), made(Evidence, given)
    require_evidence(given)
    model, data, output = made(Network, given), made(Data, given), made(Output, given)
    beside = None
    if not output.dry_run:
        if output.out is None:
            raise InputError("Missing option '--out'; see unitroles analyze --help")
        inputs = {
            f"--{name}": str(given[name]).split("::")[0]
            for name in ("train", "test", "weights", "config")
            if given[name] is not None
        }
        check_new([output.out], output.force, inputs)
        beside = config_beside(output.out, given["config"], options, output.force)
        if beside is not None:
            inputs.pop("--config", None)  # which --force overwrites with all options used
            check_new([beside], True, inputs)
    _check_device(compute.device)

    import unitroles as ur
    from unitroles.report import text
    from unitroles.sources.factory import known_of, load_object, trained_model
    from unitroles.sources.records import DataOptions
    from unitroles.sources.splits import load_groups, load_splits

    transform, loss = (
        None if spec is None else load_object(spec, f"--{name} must be module:function")
        for name, spec in (("transform", given["transform"]), ("loss", given["loss"]))
    )
    if isinstance(method.output, str) and ":" in method.output:
        function = load_object(
            method.output, "--output must be a name, a number or module:function"
        )
        method = replace(method, output=function)
    network = trained_model(**vars(model))
    how = {name: value for name, value in vars(data).items() if name not in ("train", "test")}
    how |= {"transform": transform, "class_names": class_names_of(data.class_names)}
    reading = DataOptions(**how, known=known_of(model.model, network))
    first, second, names = load_splits(data.train, data.test, reading)
    groups = load_groups(data.train, data.test, given["group_by"]) if given["group_by"] else None
    if groups is not None:
        names = None  # those of the groups
    known_names = names if groups is None else {n for own in groups.values() for n in own.tolist()}
    classes = None if sample.classes is None else numbered(sample.classes, known_names)
    sample = replace(sample, classes=classes, group_by=groups)
    wanted = vars(made(Arguments, given)) | {
        "class_names": names,
        "method": replace(method, loss=loss),
        "sample": sample,
        "compute": compute,
        "evidence": evidence if given["evidence"] else None,
    }
    if output.out is None or output.dry_run:
        say(str(ur.plan(network, first, second, progress=not output.quiet, **wanted)))
        return
    taxonomy = ur.analyze(network, first, second, progress=not output.quiet, **wanted)
    taxonomy.save(output.out)
    if beside is not None:
        write_whole({beside: config_text(options, ur.__version__)})
    if not output.quiet:
        written = f"{output.out} and {beside}" if beside else f"{output.out}"
        say(f"{text.report(taxonomy)}\n\nwrote {written}")


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
    output: Annotated[
        str | None, typer.Option(help="Number or name of the output that is the logits.")
    ] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Print comma-separated values.")] = False,
) -> None:
    """List the layers of a model that have units, and what an analysis of each would cost."""
    import unitroles as ur
    from unitroles.report import text
    from unitroles.sources.factory import example_of, load_model

    sizes = None if shape is None else numbers("--input", shape, int)
    if sizes is not None and min(sizes) < 1:
        raise InputError(f"--input takes positive sizes such as 3,224,224, not {shape!r}")
    network = load_model(model, bare=True)
    example = example_of(model, network, batch, sizes)
    frame = ur.layers(network, example, OPTIONS["output"].value(output), progress=True)
    say(frame.to_csv(index=False).rstrip() if csv else text.layer_table(frame))


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
    files = {}
    if csv is not None:
        files = {csv / f"{n.replace('to_frame', 'units')}.csv": n for n in found.tables}
        make_folder(csv)
        check_new(list(files), force)
    say(text.report(found))
    write_whole(
        {
            path: csv_of(getattr(found, name)(), index=name not in ("curves", "to_frame"))
            for path, name in files.items()
        }
    )


@app.command("reproduce")
def run_again(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The data set: digits.")],
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
    from unitroles.paper.reproduce import reproduce

    each = None if seeds is None else numbers("--seeds", seeds, int)
    reproduce(name, out, each, quick, ladder, say, evidence)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Parameters
    ----------
    arguments : the words after `unitroles`; None takes those of this process.
    """
    words = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    code, message, came = 0, "", []
    try:
        with stopped_by_signals(came), same_environment(), warnings.catch_warnings():
            warnings.showwarning = _show_warning
            for category in OWN_WARNINGS:
                warnings.simplefilter("always", category)
            code, message = _run(words)
    except (KeyboardInterrupt, Exception):
        if not came:
            raise
    if came:  # whatever became of the exception on its way
        code = 128 + came[0]
    if code >= 128:
        message = "interrupted; what was finished is kept"
    if message:
        say(f"error: {' '.join(message.split())}", err=True)
    return code


def _run(words: list[str]) -> tuple[int, str]:
    """The exit code of a command, and the message of its error."""
    try:
        code = typer.main.get_command(app).main(words, "unitroles", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        return 130, ""
    except InputError as error:
        return 2, str(error)
    except BrokenPipeError:
        raise
    except OSError as error:  # a name that the system refuses, wherever it was asked for
        name = str(error.filename or "a file")[:60]
        return 2, f"{name} cannot be used: {error.strerror}; give another name"
    except Exception as error:
        # The usage errors of typer, whichever click it brings, and of nobody else.
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        command = getattr(getattr(error, "ctx", None), "command_path", "unitroles")
        old = str(getattr(error, "option_name", "")).removeprefix("--").replace("-", "_")
        said = message().rstrip(".")
        if old in RENAMED:
            said = f"{flag(old)} is now {flag(RENAMED[old])}; write that"
        return 2, f"{said}; see {command} --help"
    return int(code or 0), ""


def _show_warning(message: Warning | str, *where: Any) -> None:
    say(f"warning: {' '.join(str(message).split())}", err=True)


def _check_device(device: str | None) -> None:
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter: torch built without it
        raise InputError(
            f"device {device!r} cannot be used: {first_line(error)}; leave --device out for the CPU"
        ) from error
