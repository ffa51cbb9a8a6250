"""Which of the things that a model returns is the logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unitroles.errors import InputError
from unitroles.model.flow import Flow, last_operation
from unitroles.model.forward import (
    HALF,
    answer_of,
    batch_size,
    each,
    logits_of,
    parts_of,
    tensors,
)
from unitroles.model.trace import attempted
from unitroles.options import PROBABILITIES
from unitroles.wording import few, first_line

Output = int | str | Callable[[Any], Any] | None
_SQUASHING = ("sigmoid", "hardsigmoid")


@dataclass(frozen=True)
class Asked:
    """What is known of the model's output before it runs.

    Parameters
    ----------
    output : as in `Method`.
    classes : the number of classes by who says so, the most trusted first; it decides which of
        several outputs is the logits.
    strict : whether probabilities are refused: a loss of one's own may take them.
    """

    output: Output = None
    classes: Sequence[int] = ()
    strict: bool = True


@contextmanager
def logits_alone(model: nn.Module, inputs: Any, asked: Asked) -> Iterator[None]:
    """Let the model return its logits and nothing else, for as long as the block runs.

    Run it inside `untouched`. Which ones they are is decided once, from a forward of `inputs`.

    Raises
    ------
    InputError : what it returns holds no logits, or several things that may be, or probabilities.
    """
    read = _read_once(model, inputs, asked)

    def replace(module: nn.Module, args: Any, output: Any) -> Tensor:
        return read(output)

    hook = model.register_forward_hook(replace)
    try:
        yield
    finally:
        hook.remove()


def _read_once(model: nn.Module, inputs: Any, asked: Asked) -> Callable[[Any], Tensor]:
    """What takes the logits out of all that the model returns, after a look at a few samples."""
    flow = Flow()
    try:
        with flow:
            given = each(inputs, torch.clone)
            flow.begin(tensors(given))
            output = attempted(model, given)
    except InputError:  # some forwards bear no one watching: compiled parts, for example
        flow = Flow()
        output = attempted(model, each(inputs, torch.clone))
    read = _reader(output, batch_size(inputs), asked)
    answer = read(output)
    if asked.strict and not callable(asked.output):
        _require_logits(answer, last_operation(flow.values, flow.value_of(answer)), asked)
    return read


def classes_of(model: nn.Module) -> list[int]:
    """The number of classes that a model of transformers says it has."""
    found = getattr(getattr(model, "config", None), "num_labels", None)
    return [found] if isinstance(found, int) else []


def _reader(output: Any, samples: int, asked: Asked) -> Callable[[Any], Tensor]:
    """What takes the logits out of whatever the model returns."""
    given = asked.output
    if callable(given):
        return lambda output: _made(given, output)
    if given == PROBABILITIES:
        named = PROBABILITIES in parts_of(output)
        name = PROBABILITIES if named else _decided(output, samples, asked.classes)
        return lambda output: _logarithm(_taken(output, name))
    name = _decided(output, samples, asked.classes) if given is None else given
    _taken(output, name)
    return lambda output: _taken(output, name)


def _made(function: Callable[[Any], Any], output: Any) -> Tensor:
    try:
        found = function(output)
    except Exception as error:  # a user's function can raise anything
        raise InputError(
            f"the function given as output fails: {first_line(error)}; give one that takes what "
            "the model returns and gives logits (samples, classes)"
        ) from error
    return answer_of(found)


def _taken(output: Any, name: int | str | None) -> Tensor:
    """The part of this name or number; None = what `answer_of` takes."""
    if name is None:
        return answer_of(output)
    parts = parts_of(output)
    if name not in parts and isinstance(name, int) and -len(parts) <= name < len(parts):
        name = list(parts)[name]
    if name not in parts:
        what = f"only {_listed(parts)}" if parts else f"a single {type(output).__name__}"
        raise InputError(
            f"the model returns no output {name!r}, {what}; give output= the name or number of the "
            "logits, or a function of all that the model returns"
        )
    return answer_of(parts[name])


def _decided(output: Any, samples: int, classes: Sequence[int]) -> int | str | None:
    """The name of the logits among several outputs, or None where there is nothing to choose."""
    parts = parts_of(output)
    if "logits" in parts:
        return None
    able = {
        name: part
        for name, part in parts.items()
        if isinstance(part, Tensor)
        and part.is_floating_point()
        and part.ndim
        and part.shape[0] == samples
    }
    if len(able) < 2:
        return next(iter(able), None)
    for count in classes:
        fitting = [name for name, part in able.items() if part.shape[1:] == (count,)]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            break
    said = f" for {classes[0]} classes" if classes else ""
    raise InputError(
        f"the model returns several things that may be its logits{said}: {_listed(able)}; say "
        f"which with Method(output=...) (--output), such as output={next(reversed(able))!r}"
    )


def _listed(parts: Mapping[Any, Any]) -> str:
    def said(part: Any) -> str:
        return str(tuple(part.shape)) if isinstance(part, Tensor) else type(part).__name__

    return few([f"{name!r} {said(part)}" for name, part in parts.items()])


def _sums_to_one(answer: Tensor) -> bool:
    """Whether every row is a distribution, as far as its kind of numbers can say."""
    rows = logits_of(answer).to(torch.float64)
    near = (rows.sum(dim=1) - 1).abs().max() <= (2e-2 if answer.dtype in HALF else 1e-4)
    return bool((rows >= 0).all() and near)


def _require_logits(answer: Tensor, operation: str, asked: Asked) -> None:
    """Refuse probabilities where logits are needed, and other things where probabilities are."""
    rows = logits_of(answer)
    if rows.shape[1] < 2:
        return  # refused where labels are checked
    if asked.output == PROBABILITIES:
        if not _sums_to_one(rows.exp()):
            raise InputError(
                "the model's output is read as probabilities, but its rows are no distributions "
                "(0 or more, with the sum 1); give output='probabilities' for a softmax alone"
            )
    elif _sums_to_one(rows):
        raise InputError(
            "the model's output looks like probabilities: every row is 0 or more with the sum 1; "
            "take the softmax off, or give Method(output='probabilities') (--output "
            "probabilities), which takes their logarithm. If they are logits all the same, give a "
            "function: output=lambda output: output"
        )
    elif operation in _SQUASHING:
        raise InputError(
            "the model's output are sigmoids, not logits: take the sigmoid off, or undo it with "
            "Method(output=torch.logit), or give a loss of your own, Method(loss=...)"
        )


def _logarithm(probabilities: Tensor) -> Tensor:
    return probabilities.log()
