"""The committed settings of a family of trained models: TOML in, frozen dataclasses out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from unitroles.errors import unknown
from unitroles.files import read_toml

T = TypeVar("T")

LADDERS = {"capacity": "digits.toml", "noise": "digits_noise.toml"}


@dataclass(frozen=True)
class DataSettings:
    """The data set; the same for every model of a family.

    Parameters
    ----------
    train_samples, test_samples : sizes of the two disjoint, stratified splits.
    pixel_noise : standard deviation of the Gaussian noise on the pixels, whose own range is [0, 1].
    split_seed, noise_seed, label_seed : of the split, of the pixel noise and of the corrupted
        labels.
    """

    train_samples: int
    test_samples: int
    pixel_noise: float
    split_seed: int = 0
    noise_seed: int = 0
    label_seed: int = 0


@dataclass(frozen=True)
class ModelSettings:
    """The architecture; the same for every model of a family.

    Parameters
    ----------
    channels : one inner tuple per stack of conv-ReLU pairs; a max-pool ends every stack.
    hidden : features of the hidden layer of the head.
    """

    channels: tuple[tuple[int, ...], ...]
    hidden: int


@dataclass(frozen=True)
class Recipe:
    """The hyper-parameters in which the models of a family differ.

    Parameters
    ----------
    dropout : drop probability before the last linear layer.
    weight_decay : decoupled weight decay of AdamW.
    epochs : passes over the training images.
    learning_rate : peak of the one-cycle schedule.
    batch_size : images per optimizer step, over all processes.
    augment_noise : standard deviation of the Gaussian noise drawn again for every image and epoch.
    augment_shift : largest shift of an image along each axis, in pixels, drawn again every epoch.
    label_noise : fraction of the training labels that are replaced by another class.
    """

    dropout: float
    weight_decay: float
    epochs: int
    learning_rate: float
    batch_size: int
    augment_noise: float = 0.0
    augment_shift: int = 0
    label_noise: float = 0.0


@dataclass(frozen=True)
class Family:
    """All that decides the weights of a family of models.

    Parameters
    ----------
    data : the data set.
    model : the architecture.
    seeds : one family is trained for each.
    recipes : the hyper-parameters by model name, in the order of the file.
    sha256 : hexadecimal digest of the file the settings were read from.
    """

    data: DataSettings
    model: ModelSettings
    seeds: tuple[int, ...]
    recipes: dict[str, Recipe]
    sha256: str

    def quick(self) -> Family:
        """A variant for smoke runs: fewer samples, fewer epochs, the first seed only."""
        data = replace(
            self.data,
            train_samples=min(self.data.train_samples, 150),
            test_samples=min(self.data.test_samples, 150),
        )
        recipes = {
            name: replace(recipe, epochs=min(recipe.epochs, 2 + recipe.epochs // 10))
            for name, recipe in self.recipes.items()
        }
        return replace(self, data=data, recipes=recipes, seeds=self.seeds[:1])


def ladder(name: str) -> Family:
    """One of the settings files that come with the package.

    Parameters
    ----------
    name : "capacity" (models A to E) or "noise" (rising label noise).

    Raises
    ------
    InputError : there is no such ladder.
    """
    if name not in LADDERS:
        raise unknown("ladder", name, LADDERS)
    return read_settings(Path(__file__).with_name(LADDERS[name]))


def read_settings(path: Path) -> Family:
    """The settings of a family of models, from a TOML file.

    Parameters
    ----------
    path : a file with the key `seeds` and the tables `data`, `model` and `recipes.NAME`; a table
        `defaults` holds what all recipes share.

    Raises
    ------
    ValueError : a key is unknown, missing or of the wrong type, or the file is no TOML; the message
        names the file, the table and the keys.
    """
    try:
        table = read_toml(path)
    except ValueError as error:
        raise ValueError(f"{path}: not a TOML file: {error}") from error
    try:
        return _family(table, hashlib.sha256(path.read_bytes()).hexdigest())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _family(table: Mapping[str, Any], sha256: str) -> Family:
    known = {"seeds", "data", "model", "defaults", "recipes"}
    _refuse(sorted(set(table) - known), "unknown", "the top level", known)
    _refuse(sorted(known - {"defaults"} - set(table)), "missing", "the top level", known)
    for key in known & set(table) - {"seeds"}:
        if not isinstance(table[key], dict):
            raise ValueError(f"{key} must be a table")
    seeds = table["seeds"]
    if not isinstance(seeds, list) or not seeds or any(type(seed) is not int for seed in seeds):
        raise ValueError(f"seeds must be a list of whole numbers, got {seeds!r}")
    defaults = table.get("defaults", {})
    recipes = {
        name: _build(Recipe, {**defaults, **_table(own, name)}, f"recipes.{name}")
        for name, own in table["recipes"].items()
    }
    return Family(
        data=_build(DataSettings, table["data"], "data"),
        model=_build(ModelSettings, table["model"], "model"),
        seeds=tuple(seeds),
        recipes=recipes,
        sha256=sha256,
    )


def _table(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"recipes.{name} must be a table")
    return value


def _refuse(keys: list[str], what: str, where: str, known: set[str]) -> None:
    if keys:
        raise ValueError(
            f"{what} keys in {where}: {', '.join(keys)}; it takes {', '.join(sorted(known))}"
        )


def _build(kind: type[T], values: Any, where: str) -> T:
    known = {field.name: field for field in fields(cast(Any, kind))}
    required = {name for name, field in known.items() if field.default is MISSING}
    _refuse(sorted(set(values) - set(known)), "unknown", where, set(known))
    _refuse(sorted(required - set(values)), "missing", where, set(known))
    checked = {
        name: _value(known[name].type, value, f"{where}.{name}") for name, value in values.items()
    }
    return kind(**checked)


def _value(kind: Any, value: Any, where: str) -> Any:
    if kind == "int" and type(value) is int and value >= 0:
        return value
    if kind == "float" and type(value) in (int, float) and value >= 0:
        return float(value)
    if kind.startswith("tuple") and isinstance(value, list):
        stacks = [stack for stack in value if isinstance(stack, list) and stack]
        widths = [width for stack in stacks for width in stack]
        whole = all(type(width) is int and width > 0 for width in widths)
        if widths and whole and len(stacks) == len(value):
            return tuple(tuple(stack) for stack in stacks)
        raise ValueError(f"{where} must be a list of lists of positive whole numbers")
    raise ValueError(f"{where} must be a non-negative {kind}, got {value!r}")
