"""The frozen option groups; each is a keyword of `analyze` and refuses values it does not know."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unitroles.annotations import check_fields
from unitroles.errors import InputError, unknown

BASELINES = ("zero", "mean")
RESOLUTIONS = ("exact", "adaptive")
PROBABILITIES = "probabilities"
"""The output that is no name, unless the model has one of that name: a softmax."""
ORDERS = ("per_split", "train", "test", "pooled")
BOOTSTRAPS = {"fixed_ranking": 100, "full": 25}
"""Replicates where none are asked for."""
_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def _whole(what: str, value: int, least: int) -> None:
    if value < least:
        raise InputError(f"{what} must be a whole number of at least {least}, not {value!r}")


def _one_of(what: str, value: object, known: tuple[str | None, ...]) -> None:
    if value not in known:
        raise unknown(what, value, [str(name) for name in known])


@dataclass(frozen=True)
class Layer:
    """A module path whose output carries the units.

    Parameters
    ----------
    path : dotted module path, as in `model.named_modules()`.
    axis : the axis of the output that counts the units; None finds it.
    call : which call of the module within one forward, for modules that are reused, from 0, or from
        -1 backwards; None takes the last, and says so where there are several.
    """

    path: str
    axis: int | None = None
    call: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Method:
    """The ranking of the units and the rule of the turning point.

    Parameters
    ----------
    score : what ranks the units: "activation_l1", "activation_mean", "activation_l2", "weight_l1"
        or "random". Or a function of one tensor (samples, units, positions) that returns (samples,
        units).
    order : whose scores rank the units: "per_split", each split by its own; "train", "test",
        "pooled": one order for both.
    tolerance : nats above the minimum of a curve that still count as the minimum.
    baseline : what an ablated unit gives: "zero"; or "mean", its mean activation. That is the mean
        over all analysed training samples of its mean over the positions of a sample.
    loss : a function (package.module:function) of the model's output and the labels that gives one
        loss per sample; else the cross-entropy of the label. It gets the output for some samples,
        as the model gives it, and their labels as the data give them, and returns one number per
        sample, the lower the better: with `reduction="none"`, torch's own losses are such. Samples
        are then classed by their labels or by `Sample.group_by`, and accuracy is measured only
        where labels are class numbers of the output.
    resolution : at which numbers n of retrieved units the curves are evaluated, where each costs a
        run of what comes after the layer: "exact", at all; "adaptive", on a coarse grid, then where
        a lower loss is expected, at .7 of all at most; a number, at 1 and every so many units from
        there, 0 and N. Other n are not a number in the curves, and turning points under other rules
        (`Taxonomy.sensitivity`) are read from the points that were evaluated for this one.
        "adaptive" takes the curve between two points of its grid for a random walk, and all n of
        the intervals of which more than .002 nats below the lowest loss found are expected, until
        it has had .7 of the evaluations of exact curves, over all classes of a split; it is exact
        for 12 units or fewer, and where what follows costs little. It finds a loss about as low as
        the lowest, at an n that need not be that of the exact curve, and looks at the loss alone,
        whatever `tolerance` is: `Taxonomy.minima` estimates what it may have missed (column
        `hidden`), docs/results/everyday.md tells what it missed on real networks. Where the curve
        is one running sum of logits, all n are evaluated whatever it says: nothing would be saved.
    output : which of the model's outputs is the logits: its number in a tuple, its name in a
        mapping or an object, "probabilities", or a function (package.module:function). Else the
        one called `logits`, the only one, or the only one with a number for every class. A function
        gets all that the model returns and gives the logits (samples, classes); it is trusted.
        "probabilities" is for models that end in a softmax: what would be taken for logits is read
        as probabilities, and its logarithm analysed; where an output has that name, it is that one.
        Without it, and without a `loss` of one's own, probabilities and sigmoids are refused.
    """

    score: str | Callable[[Any], Any] = "activation_l1"
    order: str = "per_split"
    tolerance: float = 1e-6
    baseline: str = "zero"
    loss: Callable[[Any, Any], Any] | None = None
    resolution: str | int = "exact"
    output: int | str | Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        _one_of("order", self.order, ORDERS)
        _one_of("baseline", self.baseline, BASELINES)
        if isinstance(self.resolution, int):
            _whole("resolution", self.resolution, 1)
        elif self.resolution not in RESOLUTIONS:
            raise unknown("resolution", self.resolution, [*RESOLUTIONS, "a whole number"])
        if self.output == "":
            raise InputError(
                "output must be the number or name of one of the model's outputs, 'probabilities', "
                "or a function of what the model returns, not ''"
            )
        if not 0 <= self.tolerance < float("inf"):
            raise InputError(f"tolerance must be 0 or more nats, not {self.tolerance!r}")


@dataclass(frozen=True)
class Sample:
    """The samples that are analysed.

    Parameters
    ----------
    classes : only these classes: names or numbers, on the command line with commas; else all.
    max_per_class : at most so many samples of each class in each split. They are drawn with `seed`.
    equalize : draw the same number from both splits of a class, the smaller of the two.
    group_by : what classes the samples, if not their label: another column of theirs, or array of
        an npz file. In Python by name or as arrays {"train": ..., "test": ...} with a number or a
        text for each sample. The loss still compares with the label. Roles are then those of the
        groups, such as the true labels of a training set with wrong ones, or an attribute.
    missing : what to do with a class that has samples in one split only: "error" or "skip".
    seed : of the draw, and of the score "random".
    """

    classes: Sequence[int | str] | None = None
    max_per_class: int | None = None
    equalize: bool = False
    group_by: str | Mapping[str, Any] | None = None
    missing: str = "error"
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.classes is not None and not len(self.classes):
            raise InputError("classes is empty; name at least one class, or None for all")
        _one_of("missing", self.missing, ("error", "skip"))
        if self.max_per_class is not None:
            _whole("max_per_class", self.max_per_class, 1)
        _whole("seed", self.seed, 0)


@dataclass(frozen=True)
class Compute:
    """Where and with how much memory the analysis runs.

    Results do not depend on it beyond rounding, but for `autocast`, and for `batch_size` where the
    samples of a batch influence each other (of which you are warned).

    Parameters
    ----------
    device : a torch device; else where the model is: for the command line, the CPU.
    batch_size : samples per forward; else by a rule from the size of the largest value in one: on
        the CPU as many as stay in its caches, 8 to 256; on other devices 256.
    memory_budget : memory for all that a call keeps, of all layers and both splits, and for what
        evidence holds (up to half of it): "500MB", "2GiB" or bytes. What is kept of the samples and
        does not fit goes to the folder for temporary files, or is computed again where that has no
        room either. A fixed part comes beside it, whatever the number of samples: the model; what
        is made of the weights after the layers, two to three times as much as these; one batch,
        with what the model and the analysed layers give for it, a few times over; one tile of
        samples under masks, at most 64 MiB of what is kept of them a few times over, with up to
        80 MiB of masked copies and losses; tables as large as the result, and one draw of evidence.
    autocast : precision of the matrix products up to the layer: "bfloat16" or "float16"; else the
        model's own. What comes after the layer runs in float32.
    channels_last : have the channels of images and convolution weights last in memory.
    audit : how many samples are also run alone, each under a mask of its own, and compared with
        what the run gives them: a number, or "all". Models that read numbers out of their tensors
        get 256 instead of 64.
    """

    device: str | None = None
    batch_size: int | None = None
    memory_budget: int | str = "2GiB"
    autocast: str | None = None
    channels_last: bool = False
    audit: int | str = 64

    def __post_init__(self) -> None:
        if type(self.device).__module__ == "torch":  # a torch.device
            object.__setattr__(self, "device", str(self.device))
        check_fields(self)
        if isinstance(self.audit, str):
            if self.audit != "all":
                raise unknown("audit", self.audit, ["all", "a whole number"])
        else:
            _whole("audit", self.audit, 0)
        _one_of("autocast", self.autocast, (None, "bfloat16", "float16"))
        if self.batch_size is not None:
            _whole("batch_size", self.batch_size, 1)
        if self.bytes < 1:
            raise InputError(f"memory_budget must be positive, not {self.memory_budget!r}")

    @property
    def bytes(self) -> int:
        """The memory budget in bytes."""
        if isinstance(self.memory_budget, int):
            return self.memory_budget
        match = re.fullmatch(
            r"\s*(\d+(?:\.\d+)?)\s*((?:[KMG]i?)?B)\s*", self.memory_budget, re.IGNORECASE
        )
        if match is None:
            raise InputError(
                f"cannot read memory_budget {self.memory_budget!r}; write a number of bytes or "
                "something like '500MB' or '2GiB'"
            )
        return int(float(match[1]) * _UNITS[match[2].upper()])


@dataclass(frozen=True)
class Evidence:
    """Noise floors, an exchangeability test, a bootstrap and controls beside a result.

    Parameters
    ----------
    floors : random splits inside each split; 0 = no noise floors. The roles of such parts of the
        training and of the test set are what sampling alone gives. Of fewer than 20 no finding is
        read. What ablated units give with `Method(baseline="mean")` stays that of all training
        samples.
    resplits : new splits of all samples; 0 = no exchangeability test. They are two sets of the
        sizes of training and test set. The smallest possible p is 1 / (resplits + 1).
    bootstrap : intervals from samples weighted again: "fixed_ranking", each unit keeps its place in
        the order; "full", scores, orders and curves are computed again, as P(role) of a unit needs;
        or none.
    replicates : how many of the bootstrap; else 100 for "fixed_ranking" and 25 for "full".
    level : of the intervals, between 0 and 1.
    controls : also random and reversed orders, scaled logits, and what the retrieved sets do to
        the other classes.
    seed : of every draw.
    """

    floors: int = 20
    resplits: int = 20
    bootstrap: str | None = "fixed_ranking"
    replicates: int | None = None
    level: float = 0.9
    controls: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        _whole("floors", self.floors, 0)
        _whole("resplits", self.resplits, 0)
        _whole("seed", self.seed, 0)
        if self.bootstrap == "given_order":
            raise InputError("bootstrap 'given_order' is now 'fixed_ranking'; write that")
        _one_of("bootstrap", self.bootstrap, (None, *BOOTSTRAPS))
        if self.replicates is not None:
            _whole("replicates", self.replicates, 2)
        if not 0 < self.level < 1:
            raise InputError(f"level must lie between 0 and 1, not {self.level!r}")

    @property
    def redoes(self) -> bool:
        """Whether scores and orders are computed again for other samples."""
        return bool(self.floors or self.resplits or self.bootstrap == "full")

    @property
    def draws(self) -> int:
        """The number of replicates of the bootstrap."""
        if self.bootstrap is None:
            return 0
        return BOOTSTRAPS[self.bootstrap] if self.replicates is None else self.replicates
