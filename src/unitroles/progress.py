"""Progress bars on the error stream; none where no terminal is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from unitroles.wording import printable

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID
    from rich.table import Table

Done = Callable[[float], None]
"""Told how many steps were done since it was last told; parts of steps count too."""

Track = Callable[[str, int], Done]
"""Called with a stage's name and its number of steps; returns what to call with steps done."""

_SHORT = 0.5  # seconds; a bar of a stage that takes no longer would only flash
_OFTEN = 0.1  # seconds between two changes of a bar


def _quiet(stage: str, steps: int) -> Done:
    return lambda done: None


def announce(text: str) -> None:
    """A line on the error stream, before something that takes long."""
    from rich.console import Console

    Console(stderr=True, soft_wrap=True).print(text, markup=False, highlight=False)


@contextmanager
def track(show: bool) -> Iterator[Track]:
    """Give a `Track` that draws one bar per stage while the block runs.

    A bar comes when its stage has taken half a second and goes when it is done. One of a single
    step tells that something goes on, and for how long it has.
    """
    if not show:
        yield _quiet
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.text import Text

    console = Console(stderr=True)
    if not (console.is_terminal or console.is_jupyter):
        yield _quiet
        return

    class Remaining(ProgressColumn):
        """By the mean pace of the whole stage: that of the last steps jumps where they differ."""

        def render(self, task: Task) -> Text:
            elapsed = task.elapsed or 0.0
            if not task.total or not task.completed:
                return Text(f"{_clock(elapsed)} so far")
            whole = task.fields["told"] * task.total / task.completed
            return Text(f"{_clock(whole - elapsed)} left")

    class Bars(Progress):
        def make_tasks_table(self, tasks: Iterable[Task]) -> Table:
            shown = [t for t in tasks if not t.finished and (t.elapsed or 0.0) > _SHORT]
            return super().make_tasks_table(shown)

    columns = (TextColumn("{task.description:<28}"), BarColumn(), Remaining())
    with Bars(*columns, console=console, transient=True) as bars:

        def start(stage: str, steps: int) -> Done:
            for old in [task.id for task in bars.tasks if task.finished]:
                bars.remove_task(old)  # hundreds of layers or networks would fill the terminal
            task = bars.add_task(escape(printable(stage)), total=None if steps == 1 else steps)
            return _Bar(bars, task, steps).advance

        yield start


class _Bar:
    """Tells a bar what was done, a few times a second: a stage may tell thousands of times."""

    def __init__(self, bars: Progress, task: TaskID, steps: int) -> None:
        self._bars, self._task, self._steps = bars, task, steps
        self._done, self._start = 0.0, time.monotonic()
        self._last = self._start

    def advance(self, count: float) -> None:
        self._done += count
        now = time.monotonic()
        if self._done >= self._steps * (1 - 1e-9):
            self._bars.update(self._task, total=self._steps, completed=self._steps)
        elif now - self._last > _OFTEN:
            self._last, elapsed = now, now - self._start
            self._bars.update(self._task, completed=self._done, told=elapsed)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
