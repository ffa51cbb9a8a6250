"""Follow one forward of a model: which modules are called, and on which axis their units are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from unitroles.errors import InputError, unknown
from unitroles.model.borrow import untouched
from unitroles.model.calls import Place, watched
from unitroles.model.forward import (
    FORWARD_ERRORS,
    answer_of,
    batch_size,
    describe,
    each,
    forward,
    logits_of,
    rows_of,
    tensors,
)
from unitroles.model.memory import out_of_memory, ran_out
from unitroles.options import Layer
from unitroles.wording import first_line

_POOLS = tuple(getattr(nn, name) for name in nn.modules.pooling.__all__)
_BY_CHANNEL = (
    *_POOLS,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
)
_CHANNELS_FIRST = (*_BY_CHANNEL, nn.modules.conv._ConvNd)
KEEPING = (
    *(
        getattr(nn, name)
        for name in nn.modules.activation.__all__
        if name not in ("GLU", "MultiheadAttention")
    ),
    nn.modules.dropout._DropoutNd,
    nn.Identity,
    *_BY_CHANNEL,
)
"""Modules that leave every unit on its axis."""
_CHANNELS_LAST = (nn.Linear, nn.LayerNorm, nn.Embedding)
# Where other libraries keep activation functions of their own.
_ACTIVATIONS_OF_OTHERS = ("transformers.activations", "timm.layers.activations")


@dataclass(frozen=True)
class Call:
    """One call of one module in one forward.

    Parameters
    ----------
    path : module path; "" is the model itself.
    index : 0-based number of this call of this module.
    module : the module that was called.
    shape : shape of its output; None where that is not one floating-point tensor.
    axis : the axis that counts the units; None where there is none.
    guessed : whether the axis may be another one as well.
    output : identity and version of the output tensor.
    inputs : identities and versions of the tensors it was called with.
    dtype : of its output.
    """

    path: str
    index: int
    module: nn.Module
    shape: tuple[int, ...] | None = None
    axis: int | None = None
    guessed: bool = False
    output: tuple[int, int] = (0, 0)
    inputs: tuple[tuple[int, int], ...] = ()
    dtype: torch.dtype | None = None

    @property
    def units(self) -> int:
        """The number of units that the output carries; 0 = none."""
        return 0 if self.shape is None or self.axis is None else self.shape[self.axis]


@dataclass(frozen=True)
class Site:
    """A layer found in a model: which call of which module, and where its units are."""

    path: str
    module: nn.Module
    call: int
    axis: int
    shape: tuple[int, ...]
    calls: int = 1
    guessed: bool = False
    dtype: torch.dtype | None = None

    @property
    def units(self) -> int:
        """N, the number of units."""
        return self.shape[self.axis]


@dataclass(frozen=True)
class Trace:
    """One forward of a model.

    Parameters
    ----------
    calls : every module call, in the order in which the calls end.
    logits : what the model returned, all numbers of a sample in one row.
    shape : of what it returned for one sample.
    inputs : the batch.
    writes : whether the model wrote to its inputs.
    alone : the same for the first sample alone; None where the model refuses a single one.
    apart : logits of the first and the last sample, each alone; None as before.
    """

    calls: list[Call]
    logits: Tensor
    shape: tuple[int, ...]
    inputs: Any
    writes: bool
    alone: Trace | None = None
    apart: Tensor | None = None

    @property
    def samples(self) -> int:
        """The number of samples in the batch."""
        return batch_size(self.inputs)


def trace(model: nn.Module, inputs: Any) -> Trace:
    """Run a batch, and its first and its last sample alone, and note every module call.

    Where an axis is still a guess, the model runs at other sizes of the inputs too. Run it inside
    `untouched`.

    Raises
    ------
    InputError : the model cannot take the inputs.
    """
    seen = _run(model, inputs)
    seen = replace(seen, calls=_settled(model, inputs, seen.calls))
    try:
        first, last = (_run(model, rows_of(inputs, part)) for part in (slice(1), slice(-1, None)))
        return replace(seen, alone=first, apart=torch.cat([first.logits, last.logits]))
    except InputError:  # a norm over the batch refuses a batch of one
        return seen


class _Record:
    """Notes every module call of one forward."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._axes: dict[int, int] = {}
        self._keep: list[Any] = []  # an identity means something only while its tensor lives
        self._took: dict[Place, list[tuple[Tensor, tuple[int, int]]]] = defaultdict(list)

    def note(self, place: Place, value: Any) -> None:
        if place.argument is None:
            self._keep.append(value)
            self.calls.append(self._call(place, value))
        elif isinstance(value, Tensor):  # before the call: a module may write to what it is given
            self._took[replace(place, argument=None)].append((value, _identity(value)))

    def _call(self, place: Place, output: Any) -> Call:
        taken = self._took[place]
        made, inputs = _identity(output), tuple(identity for _, identity in taken)
        call = Call(place.path, place.call, place.module, output=made, inputs=inputs)
        if not isinstance(output, Tensor) or not output.is_floating_point() or output.is_nested:
            return call
        args = [value for value, _ in taken]
        axis, guessed = _unit_axis(place.module, args, output, self._axes, self.calls)
        if axis is not None and not guessed:
            self._axes[id(output)] = axis
        shape = tuple(output.shape)
        return replace(call, shape=shape, axis=axis, guessed=guessed, dtype=output.dtype)


def _identity(value: Any) -> tuple[int, int]:
    """The tensor and the count of writes to it: an addition in place makes another."""
    counted = isinstance(value, Tensor) and not value.is_inference()
    return id(value), value._version if counted else 0


def attempted(model: nn.Module, inputs: Any) -> Any:
    """What the model returns for a batch, which it may write to.

    Raises
    ------
    InputError : the model cannot take it.
    """
    try:
        return forward(model, inputs)
    except InputError:
        raise
    except FORWARD_ERRORS as error:
        if ran_out(error):
            raise out_of_memory("the model's forward", batch_size(inputs)) from error
        raise InputError(
            f"the model cannot take a batch of {describe(inputs)}: {first_line(error)}; give "
            "samples of the shape and type the model was trained with"
        ) from error


def _run(model: nn.Module, inputs: Any) -> Trace:
    record = _Record()
    with watched(model, model.named_modules(), record.note):
        given = each(inputs, torch.clone)
        before = list(map(_identity, tensors(given)))
        output = attempted(model, given)
    writes = list(map(_identity, tensors(given))) != before
    logits, shape = (
        logits_of(output, batch_size(inputs)).clone(),
        tuple(answer_of(output).shape[1:]),
    )
    return Trace(record.calls, logits, shape, inputs, writes)


def _unit_axis(
    module: nn.Module, args: Sequence[Any], output: Tensor, axes: dict[int, int], past: list[Call]
) -> tuple[int | None, bool]:
    """The unit axis from the kind of module, its input or its inside; True where it is a guess."""
    if output.ndim < 2:
        return None, False
    if isinstance(module, _CHANNELS_FIRST):
        return 1, False
    whole = isinstance(module, nn.LayerNorm) and len(module.normalized_shape) > 1
    last = isinstance(module, _CHANNELS_LAST) and not whole
    if (last and not _moves_axes(module)) or output.ndim == 2:
        return output.ndim - 1, False
    if id(output) in axes:
        return axes[id(output)], False
    inside = any(True for _ in module.children())
    for value in () if inside else args:
        axis = axes.get(id(value))
        if axis is not None and value.shape == output.shape:
            return axis, not (whole or _keeps(module)) and _is_one_of_several(axis, output.shape)
    for call in reversed(past):
        if call.shape == tuple(output.shape) and call.axis is not None:
            return call.axis, call.guessed or _is_one_of_several(call.axis, output.shape)
    return 2 if output.ndim == 3 else 1, True


def _is_one_of_several(axis: int, shape: Sequence[int]) -> bool:
    """Whether another axis has this size too, so that the units may have been moved there."""
    return list(shape[1:]).count(shape[axis]) > 1


def _keeps(module: nn.Module) -> bool:
    return isinstance(module, KEEPING) or is_foreign_activation(module)


def _settled(model: nn.Module, inputs: Any, calls: list[Call]) -> list[Call]:
    """The axes that were guessed, from the weights they meet, or from other sizes of the inputs.

    A layer has as many units for small inputs as for large ones. Where several axes are left, or
    none, the axis stays a guess.
    """
    calls = _meeting_weights(calls)
    shapes = {(c.path, c.index): c.shape for c in calls if c.guessed and c.shape is not None}
    left = {place: set(range(1, len(shape))) for place, shape in shapes.items()}
    for other in _of_other_sizes(inputs) if left else ():
        record = _Record()
        watch = watched(model, model.named_modules(), record.note)
        # A model may keep what it learnt of a size: it must not meet its own inputs with that.
        with untouched(model), suppress(InputError), watch:
            attempted(model, other)  # what it was called for until it fails counts as well
        for call in record.calls:
            place, shape = (call.path, call.index), call.shape or ()
            given = shapes.get(place, ())
            if given:
                same = zip(shape, given, strict=True) if len(shape) == len(given) else ()
                left[place] &= {i for i, (one, two) in enumerate(same) if one == two}
        if _most_axes(inputs) > 3 and all(len(axes) == 1 for axes in left.values()):
            break  # larger pictures would cost more and tell nothing else
    found = {place: axes.pop() for place, axes in left.items() if len(axes) == 1}
    return [
        replace(call, axis=found[call.path, call.index], guessed=False)
        if (call.path, call.index) in found
        else call
        for call in calls
    ]


def _meeting_weights(calls: list[Call]) -> list[Call]:
    """The axes that were guessed, where a layer with weights, or what keeps them, takes them in."""
    calls, taken = list(calls), defaultdict[tuple[int, int], set[int]](set)
    for place in reversed(range(len(calls))):
        call = calls[place]
        shape = call.shape
        if shape is None:
            continue
        if call.guessed and len(axes := taken[call.output]) == 1:
            call = calls[place] = replace(call, axis=next(iter(axes)), guessed=False)
        module, last = call.module, len(shape) - 1
        for identity in call.inputs:
            if isinstance(module, _CHANNELS_FIRST) and not isinstance(module, _POOLS):
                taken[identity].add(1)
            elif isinstance(module, (nn.Linear, nn.LayerNorm)) and not _moves_axes(module):
                whole = isinstance(module, nn.LayerNorm) and len(module.normalized_shape) > 1
                taken[identity].update(() if whole else (last,))
            elif _keeps(module) and call.axis is not None and not call.guessed:
                same = any(c.output == identity and c.shape == shape for c in calls)
                taken[identity].update((call.axis,) if same else ())
    return calls


def _of_other_sizes(inputs: Any) -> Iterator[Any]:
    """Smaller pictures and shorter texts or series, then larger pictures, with the same samples."""
    most = _most_axes(inputs)

    def half(axes: Sequence[int], of: int) -> Any:
        def shorter(value: Tensor) -> Tensor:
            for axis in axes if value.ndim == of else ():
                value = value.narrow(axis, 0, (value.shape[axis] + 1) // 2)
            return value.clone()

        return each(inputs, shorter)

    def double(value: Tensor) -> Tensor:
        return value.repeat(*[1] * (most - 2), 2, 2) if value.ndim == most else value.clone()

    if most > 3:
        yield half((-1, -2), most)
        yield each(inputs, double)
    elif most == 3:
        yield half((2,), 3)
        yield half((1,), 3)
    elif most == 2 and not any(value.is_floating_point() for value in tensors(inputs)):
        yield half((1,), 2)  # numbers of tokens: a model may know no more positions


def _most_axes(inputs: Any) -> int:
    return max((tensor.ndim for tensor in tensors(inputs)), default=0)


def is_foreign_activation(module: nn.Module) -> bool:
    """Whether a module is an activation function of a known library that torch has none like."""
    return type(module).__module__.startswith(_ACTIVATIONS_OF_OTHERS)


def _moves_axes(module: nn.Module) -> bool:
    """Whether a class of one's own may count channels elsewhere, as norms of images do."""
    theirs = next(kind for kind in _CHANNELS_LAST if isinstance(module, kind))
    return type(module).forward is not theirs.forward


def some_rows_message(path: str, rows: int, samples: int) -> str:
    """The message about a layer that gives fewer rows than there are samples."""
    return (
        f"layer {path!r} gives {rows} rows for {samples} samples: only some reach it, as they do "
        "an expert, or the model cuts or merges its batch; name a layer that all samples pass "
        "through"
    )


class NotReached(InputError):
    """A module that not every sample of a forward reaches, as an expert.

    Parameters
    ----------
    path, module : of it.
    """

    def __init__(self, path: str, module: nn.Module, message: str) -> None:
        super().__init__(message)
        self.path, self.module = path, module


def find_site(model: nn.Module, layer: Layer, calls: list[Call], batch: int) -> Site:
    """The call of a module that a `Layer` names, in a trace of `batch` samples.

    Raises
    ------
    InputError : no such module, never called, no such call, or its output carries no units.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    if layer.path not in modules or not layer.path:
        raise unknown("layer", layer.path, [path for path in modules if path])
    mine = [call for call in calls if call.module is modules[layer.path]]
    if not mine:
        raise NotReached(
            layer.path,
            modules[layer.path],
            f"layer {layer.path!r} is not called in the model's forward; name a layer listed by "
            "unitroles.layers",
        )
    index = -1 if layer.call is None else layer.call
    if not -len(mine) <= index < len(mine):
        raise InputError(
            f"layer {layer.path!r} is called {len(mine)} time(s) in one forward, there is no call "
            f"{index}; count from 0, or from -1 backwards"
        )
    call = mine[index]
    if call.shape is not None and len(call.shape) > 1 and call.shape[0] < batch:
        raise NotReached(
            layer.path, call.module, some_rows_message(layer.path, call.shape[0], batch)
        )
    if call.shape is None or len(call.shape) < 2 or call.shape[0] != batch:
        shape = "no single floating-point tensor" if call.shape is None else f"shape {call.shape}"
        raise InputError(
            f"layer {layer.path!r} has no unit axis: its output is {shape} for a batch of {batch}; "
            "name a layer whose output is (samples, units, ...)"
        )
    axis = call.axis if layer.axis is None else layer.axis
    if axis is None or not -len(call.shape) < axis < len(call.shape) or axis % len(call.shape) == 0:
        raise InputError(
            f"axis {layer.axis} of layer {layer.path!r} cannot count units: its output has shape "
            f"{call.shape} and axis 0 counts the samples; give the axis that counts the units"
        )
    return Site(
        path=layer.path,
        module=call.module,
        call=call.index,
        axis=axis % len(call.shape),
        shape=call.shape,
        calls=len(mine),
        guessed=call.guessed and layer.axis is None,
        dtype=call.dtype,
    )
