"""The labelled result of one analysis, and of several: tables, files, nothing computed twice."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from unitroles import roles
from unitroles.annotations import check_fields, checked
from unitroles.errors import InputError, unknown
from unitroles.files import write_whole
from unitroles.results import evidence, signs, tables
from unitroles.roles import Role
from unitroles.stats.minima import NEVER_FALLS

# fmt: off
_TABLES = (
    "proportions", "shares", "summary", "sensitivity", "regret", "minima", "agreement", "curves",
    "to_frame",
)
# fmt: on
# What each table of evidence is made of, and what it takes to measure it.
_EVIDENCE = {
    "floors": ("noise_floor_proportion", "floors=20"),
    "signs": ("noise_floor_proportion", "floors=20"),
    "exchangeability": ("resplit_proportion", "resplits=20"),
    "intervals": ("proportion_replicate", "bootstrap='fixed_ranking'"),
    "controls": ("control_proportion", "controls=True"),
    "active_sets": ("set_loss", "controls=True"),
}


@dataclass(frozen=True)
class Taxonomy:
    """Roles of the units of one layer, with everything they were read from.

    Parameters
    ----------
    data : dims `split` (train, test), `label`, `unit`, `position` (0 ... N-1), `retrieved`
        (0 ... N); variables `score` (split, label, unit), `order` (split, label, position),
        `loss` in nats (see `loss_units`) and `accuracy` (split, label, retrieved), `samples`,
        `turning_point`, `swapped_loss`, `swapped_accuracy`, `status` (split, label) and `role`
        (label, unit). Where the attribute `resolution` is not "exact", `loss` and `accuracy` are
        not a number at the n that were not evaluated, and turning points are read from the others;
        at n = 0 also where the model divides 0 by 0 with the whole layer ablated.
    """

    data: xr.Dataset

    def __post_init__(self) -> None:
        check_fields(self)

    def __repr__(self) -> str:
        units, labels = self.data.sizes["unit"], self.data.sizes["label"]
        name = self.data.attrs.get("layer", "?")
        return f"Taxonomy(layer={name!r}, units={units}, labels={labels})\n{self.summary()}"

    @property
    def layer(self) -> str:
        """The module path whose output carries the units."""
        return str(self.data.attrs["layer"])

    @property
    def tolerance(self) -> float:
        """Nats above the minimum of a curve that counted as the minimum."""
        return float(self.data.attrs["tolerance"])

    @property
    def loss_units(self) -> str:
        """In what losses and tolerance are measured: nats, but for a loss of the user's own."""
        return str(self.data.loss.attrs.get("units", "nats"))

    @property
    def scored(self) -> bool:
        """Whether accuracy was measured: not where labels are no class numbers of the output."""
        return bool(np.isfinite(self.data.accuracy.values).any())

    @property
    def gap(self) -> float:
        """Training accuracy minus test accuracy of the intact model on the analysed samples.

        NaN where accuracy was not measured.
        """
        return float(self.data.attrs["train_accuracy"] - self.data.attrs["test_accuracy"])

    @property
    def provenance(self) -> dict[str, Any]:
        """The way the result came about: options, versions, plan, self-check, warnings, times."""
        return json.loads(self.data.attrs["provenance"])

    @property
    def labels(self) -> list[Any]:
        """The classes in order: their names, or their numbers where no names are known."""
        return self.data.label.values.tolist()

    @checked
    def find_label(self, label: int | str) -> int:
        """The place of a class, given by name or by its number in the model's output."""
        if label in self.labels:
            return self.labels.index(label)
        numbers = self.data.label_index.values.tolist()
        if not isinstance(label, str) and label in numbers:
            return numbers.index(label)
        raise unknown("label", label, [str(name) for name in self.labels])

    @checked
    def units(
        self, role: Role | int | str, label: int | str, confidence: float | None = None
    ) -> np.ndarray:
        """Indices of the units with `role` for `label`, strongest first.

        Generalizing units are ranked by their scores on the test split, the others by those on
        the training split.

        Parameters
        ----------
        confidence : only units that have the role in at least this share of the replicates of
            other samples; None = those of the samples at hand. It takes a result with
            `Evidence(bootstrap="full")`, whose replicates hold fewer different samples than there
            are: roles change more often in them than they would with as many new samples.
        """
        wanted, place = Role.of(role), self.find_label(label)
        split = "test" if wanted is Role.GENERALIZING else "train"
        order = self.data.order.sel(split=split)[place].values
        if confidence is None:
            return order[self.data.role[place].values[order] == wanted]
        if not 0.5 < confidence <= 1:
            raise InputError(f"confidence must be above 0.5 and at most 1, not {confidence!r}")
        evidence.require(self.data, "role_probability", 'bootstrap="full"')
        if wanted is Role.UNDECIDED:
            chosen = self.data.role_probability[place].max("role_name").values < confidence
        else:
            chosen = self.data.role_probability[place, :, wanted - 1].values >= confidence
        return order[chosen[order]]

    def roles(self) -> pd.DataFrame:
        """Role names, label x unit."""
        return tables.role_names(self.data)

    def proportions(self) -> pd.DataFrame:
        """Proportion of the units with each role, label x role, fractions (the paper's table 2)."""
        index = pd.Index(self.labels, name="label")
        return tables.by_role(roles.proportions(self.data.role.values), index)

    def shares(self) -> pd.DataFrame:
        """Share of the classes in which a unit has each role, unit x role (table 3)."""
        index = pd.Index(self.data.unit.values, name="unit")
        return tables.by_role(roles.shares(self.data.role.values), index)

    def flagged(self) -> list[Any]:
        """Classes never below the fully ablated layer: no number of retrieved units helps them.

        A class whose loss is not a number there is not flagged: nothing is known of it.
        """
        bad = (self.data.status.values == NEVER_FALLS).any(axis=0)
        return [label for label, flag in zip(self.labels, bad, strict=True) if flag]

    @checked
    def summary(self, flagged: bool = True) -> pd.DataFrame:
        """Mean proportion of each role and its population std over labels and over units.

        With evidence also the interval of the mean, `low` and `high`, and `observed`, `noise_floor`
        and `above_floor` as in `floors`.

        Parameters
        ----------
        flagged : False leaves out the classes of `flagged()`, and evidence, which is of all of
            them; NaN where none is left.
        """
        return tables.summary(self.data, self.level, None if flagged else self.flagged())

    def sensitivity(self) -> pd.DataFrame:
        """Mean proportion of each role under other rules for the turning point, rule x role.

        All from the same curves: where the resolution left points out, they were left out with a
        view to the tolerance in use, and the other rows are only as fine as what is there. With
        bootstrap also for the rule of one standard error, see `minima`.
        """
        return tables.sensitivity(self.data, self.tolerance)

    def regret(self) -> pd.DataFrame:
        """The cost of the other split's active set, label x [train, test, *_accuracy].

        `train` and `test` are in nats, E(other set) - E(own set); the accuracies are fractions,
        own set - other set. Positive = the other split's set is worse. With bootstrap also the
        intervals of the losses, `*_low` and `*_high`, with a fixed ranking and both sets as given.
        """
        return tables.regret(self.data, self.level)

    @checked
    def minima(self, delta: float = 0.01) -> pd.DataFrame:
        """The sharpness of the minimum of every curve, one row per split x label.

        `low` and `high`: the run of n around n0 in which E(n) <= E(n0) + `delta`; `width`: how many
        evaluated n >= 1 have that; `status`: the curve in plain words. Where n were left out,
        `hidden`: how far below the lowest loss found one may lie at one of them, an estimate that
        is exceeded now and then (see `unitroles.stats.grid.hidden`). With bootstrap `one_error`:
        the smallest n whose loss lies above E(n0) by no more than one standard error, that of the
        paired difference over as many samples as the smaller split has of the class; and
        `turning_point_low` and `turning_point_high`, the interval of n0.

        Parameters
        ----------
        delta : in what the loss is measured: nats.
        """
        if not delta >= 0:
            raise InputError(f"delta must be 0 or more nats, not {delta!r}")
        return evidence.minima(self.data, delta, self.level)

    def agreement(self) -> pd.DataFrame:
        """Is a core a core: label x the values of `unitroles.agreement.Overlap`.

        `adjusted_p` is p adjusted for the number of classes (Benjamini-Hochberg).
        """
        return evidence.agreement(self.data)

    def controls(self) -> pd.DataFrame:
        """Mean proportions under controls, control x [core, ..., confusing, agreement].

        Under random and reversed orders, and with a fixed ranking by the loss of logits scaled to
        the temperature `data.temperature` and by accuracy. `agreement`: share of the units whose
        role is that of the analysis; what the random order gives is chance.
        """
        return evidence.controls(self._measured("controls"))

    def active_sets(self) -> pd.DataFrame:
        """Effects of the active set of each class on all classes, one row per split x label.

        Only the loss of its own class made the set, and any push towards the class lowers that.
        `recall` of the class; `balanced_accuracy`, the mean of that and of the share of the other
        samples not taken for it; `loss`, the mean over all samples; beside each the same of the
        whole layer, `intact_*`.
        """
        return evidence.active_sets(self._measured("active_sets"))

    def _measured(self, table: str) -> xr.Dataset:
        """The data, if they hold what a table of evidence needs."""
        evidence.require(self.data, *_EVIDENCE[table])
        return self.data

    @property
    def level(self) -> float:
        """Of the intervals."""
        asked = self.provenance.get("options", {}).get("evidence") or {}
        return float(asked.get("level", 0.9))

    def floors(self) -> pd.DataFrame:
        """Proportions that sampling alone gives, role x columns, fractions, means over the classes.

        `observed` is the proportion between halves of both splits, `train_noise_floor` and
        `test_noise_floor` that between two halves of one split, all of the same size; `*_low` and
        `*_high` are the 5 and 95 % of the draws; `noise_floor` is the larger of the two means,
        `noise_floor_95` the larger `*_high`, and `above_floor` what was observed beyond the noise
        floor. `observed_std_*` and `noise_floor_std_*` are the population std over classes (table
        2) and over units (table 3) at that size.
        """
        return evidence.floors(self._measured("floors"))

    def exchangeability(self) -> pd.DataFrame:
        """Units active on one split only, against new splits of all samples of the same sizes.

        p = (b + 1) / (R + 1); `attrs` hold R, the smallest possible p and what the test asks.
        """
        return evidence.exchangeability(self._measured("exchangeability"))

    @checked
    def intervals(self, by_label: bool = False) -> pd.DataFrame:
        """Proportions, role x [value, low, high, ...]: other samples, this network.

        Mean proportions, and their std over classes and units as in `summary`, each with its
        interval; `attrs` say the level, and whether the uncertainty of the ranking is included: not
        with "fixed_ranking".

        Parameters
        ----------
        by_label : one row per label x role, with `value`, `low` and `high` alone.
        """
        made = evidence.intervals_by_label if by_label else evidence.intervals
        return made(self._measured("intervals"), self.level)

    def signs(self) -> pd.DataFrame:
        """The paper's signs of good and bad generalization, and regret on test, as findings.

        One row each, with `value`, interval (`low`, `high`), the columns of `floors`, the value
        `at_tolerance_0.01`, `finding` and a `sentence`. Fractions; regret in what the loss is
        measured.
        """
        return signs.signs(self._measured("signs"), self.level, self.loss_units)

    def train_only_signs(self) -> pd.DataFrame:
        """Signs from the training samples alone, sign x [value, low, high, sentence].

        Of the test set nothing is used but how many samples it has, which says how large the halves
        are that `unstable units` come from.

        Raises
        ------
        InputError : test samples ranked the units, with order "test" or "pooled".
        """
        return signs.train_only_signs(self.data, self.level, self._order)

    @property
    def _order(self) -> str:
        return str(self.provenance.get("options", {}).get("method", {}).get("order", "per_split"))

    @property
    def tables(self) -> list[str]:
        """The methods that give a table of this result."""
        found = [
            *_TABLES,
            *(name for name, (needed, _) in _EVIDENCE.items() if needed in self.data),
        ]
        measured = "noise_floor_proportion" in self.data or "proportion_replicate" in self.data
        known = measured and self._order not in signs.RANKED_BY_TEST
        return found + ["train_only_signs"] * known

    def to_frame(self) -> pd.DataFrame:
        """Tidy: one row per label x unit with role, score and position on both splits.

        With bootstrap "full" also `p_core` ... `p_confusing`, how often the unit had each role.
        """
        return tables.to_frame(self.data)

    def curves(self) -> pd.DataFrame:
        """Tidy: split, label, retrieved, loss (nats), accuracy (fraction).

        With bootstrap also `loss_low` and `loss_high`, the interval of the loss.
        """
        return tables.curves(self.data, self.level)

    @checked
    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write NetCDF, whole or not at all, with its SHA-256 behind it, which `load` compares.

        Other programs that read NetCDF or HDF5 take no notice of it.

        Raises
        ------
        InputError : the file cannot be written, or something in `data` cannot be kept as it is.
        """
        from unitroles.results import storage  # NetCDF and HDF5, for files alone

        write_whole({Path(path): storage.to_bytes(self.data)})
        return Path(path)


@checked
def load(path: str | os.PathLike[str]) -> Taxonomy:
    """Read what `Taxonomy.save` wrote.

    A file without a SHA-256, of an older version or of another program, is read too; the warnings
    in `provenance` and the report then say that it was not checked.

    Raises
    ------
    InputError : the file is absent, was changed after it was written, or holds something else.
    """
    from unitroles.results import storage

    file = Path(path)
    try:
        there = file.exists()
    except (OSError, ValueError):
        there = False
    if not there or file.is_dir():
        raise InputError(f"there is no file {path}; give a taxonomy written by save or analyze")
    try:
        return Taxonomy(storage.read(file))
    except InputError as error:
        raise InputError(f"{path} is not a taxonomy: {error}; analyse again") from error
