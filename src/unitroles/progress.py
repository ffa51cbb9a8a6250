"""Progress bars on the error stream; none where no terminal is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from unitroles.wording import printable

Track = Callable[[str, int], Callable[[int], None]]
"""Called with a stage's name and its number of steps; returns what to call with steps done."""


def _quiet(stage: str, steps: int) -> Callable[[int], None]:
    return lambda done: None


def announce(text: str) -> None:
    """A line on the error stream, before something that takes long."""
    from rich.console import Console

    Console(stderr=True, soft_wrap=True).print(text, markup=False, highlight=False)


@contextmanager
def track(show: bool) -> Iterator[Track]:
    """Give a `Track` that draws one bar per stage while the block runs."""
    if not show:
        yield _quiet
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not (console.is_terminal or console.is_jupyter):
        yield _quiet
        return
    columns = (TextColumn("{task.description:<28}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bars:

        def start(stage: str, steps: int) -> Callable[[int], None]:
            for old in [task.id for task in bars.tasks if task.finished]:
                bars.remove_task(old)  # hundreds of layers or networks would fill the terminal
            task = bars.add_task(escape(printable(stage)), total=steps)
            return lambda done: bars.advance(task, done)

        yield start
