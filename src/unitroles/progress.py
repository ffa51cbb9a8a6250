"""Progress bars on the error stream; none where nobody looks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

Track = Callable[[str, int], Callable[[int], None]]
"""Called with a stage's name and its number of steps; returns what to call with steps done."""


def announce(text: str) -> None:
    """A line on the error stream, before something that takes long."""
    from rich.console import Console

    Console(stderr=True, soft_wrap=True).print(text, markup=False, highlight=False)


@contextmanager
def track(show: bool) -> Iterator[Track]:
    """Give a `Track` that draws one bar per stage while the block runs."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    seen = show and (console.is_terminal or console.is_jupyter)
    columns = (TextColumn("{task.description:<24}"), BarColumn(), TimeRemainingColumn())
    bars = Progress(*columns, console=console, transient=True, disable=not seen)

    def start(stage: str, steps: int) -> Callable[[int], None]:
        task = bars.add_task(stage, total=steps)
        return lambda done: bars.advance(task, done)

    with bars if seen else nullcontext():  # else some versions of rich write an empty line
        yield start
