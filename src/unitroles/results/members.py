"""Several taxonomies by name, and their tables one under the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pandas as pd

from unitroles.annotations import checked
from unitroles.errors import unknown
from unitroles.results.taxonomy import Taxonomy
from unitroles.wording import printable


class TaxonomySet(Mapping[str, Taxonomy]):
    """Several taxonomies by name: layers, checkpoints, seeds or models.

    The tables are those of the members, one under the other, with the name as first index level.
    """

    @checked
    def __init__(self, members: Mapping[str, Taxonomy]) -> None:
        self._members = dict(members)

    def __getitem__(self, name: str) -> Taxonomy:
        if name not in self._members:
            raise KeyError(str(unknown("member", name, self._members)))
        return self._members[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def __repr__(self) -> str:
        return f"TaxonomySet({', '.join(map(printable, self))})"

    def _stack(self, table: str) -> pd.DataFrame:
        frames = {name: getattr(member, table)() for name, member in self.items()}
        return pd.concat(frames, names=["name"])

    def proportions(self) -> pd.DataFrame:
        """`Taxonomy.proportions` of every member."""
        return self._stack("proportions")

    def shares(self) -> pd.DataFrame:
        """`Taxonomy.shares` of every member."""
        return self._stack("shares")

    def summary(self) -> pd.DataFrame:
        """`Taxonomy.summary` of every member."""
        return self._stack("summary")

    def sensitivity(self) -> pd.DataFrame:
        """`Taxonomy.sensitivity` of every member."""
        return self._stack("sensitivity")

    def regret(self) -> pd.DataFrame:
        """`Taxonomy.regret` of every member."""
        return self._stack("regret")
