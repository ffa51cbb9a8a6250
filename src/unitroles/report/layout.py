"""Columns of text."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from unitroles.wording import printable


def aligned(frame: pd.DataFrame, texts: Sequence[str] = ()) -> str:
    """Columns two spaces apart: the first, and those of `texts`, to the left, others right."""
    columns = []
    for place, name in enumerate(frame.columns):
        cells = [printable(name), *map(printable, frame.iloc[:, place])]
        width = max(map(len, cells))
        left = place == 0 or name in texts
        columns.append([cell.ljust(width) if left else cell.rjust(width) for cell in cells])
    return "\n".join("  ".join(row).rstrip() for row in zip(*columns, strict=True))


def csv_of(frame: pd.DataFrame, index: bool) -> str:
    """A table as csv; what pandas keeps beside it becomes a column of its own."""
    beside = {
        str(name): " ".join(value.split()) if isinstance(value, str) else value
        for name, value in frame.attrs.items()
    }
    return frame.assign(**beside).to_csv(index=index)
