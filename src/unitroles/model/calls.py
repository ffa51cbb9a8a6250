"""Watch modules in the forwards of a model: what each takes and gives, call by call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Place:
    """A value that a module takes or gives.

    Parameters
    ----------
    path, module : the module.
    call : 0-based number of its call within one forward.
    argument : which positional argument; None = its output.
    """

    path: str = field(compare=False)
    module: nn.Module
    call: int
    argument: int | None = None


@contextmanager
def watched(
    model: nn.Module,
    modules: Iterable[tuple[str, nn.Module]],
    tell: Callable[[Place, Any], Any],
    begin: Callable[[], object] = lambda: None,
) -> Iterator[Counter[nn.Module]]:
    """Tell all that some modules take and give in every forward of the model.

    Yields the number of calls of every module in the last forward.

    Parameters
    ----------
    modules : with their paths.
    tell : gets every value and its place; what it returns takes the place of an output, unless it
        is None.
    begin : called where a forward begins.
    """
    told = _CallHooks(tell, begin)
    with ExitStack() as stack:
        stack.callback(model.register_forward_pre_hook(told.restart, prepend=True).remove)
        for path, module in modules:
            hooks = partial(told.before, path, module), partial(told.after, path, module)
            stack.callback(module.register_forward_pre_hook(hooks[0]).remove)
            stack.callback(module.register_forward_hook(hooks[1]).remove)
        yield told.calls


class _CallHooks:
    """The hooks of `watched`, and the number of calls of every module in the last forward."""

    def __init__(self, tell: Callable[[Place, Any], Any], begin: Callable[[], object]) -> None:
        self.tell, self.begin = tell, begin
        self.calls: Counter[nn.Module] = Counter()

    def restart(self, module: nn.Module, args: Any) -> None:
        self.calls.clear()
        self.begin()

    # The module that a hook is given may be a copy that an export made of it.
    def before(self, path: str, mine: nn.Module, module: nn.Module, args: tuple[Any, ...]) -> None:
        for i, value in enumerate(args):
            self.tell(Place(path, mine, self.calls[mine], i), value)

    def after(self, path: str, mine: nn.Module, module: nn.Module, args: Any, output: Any) -> Any:
        place = Place(path, mine, self.calls[mine])
        self.calls[mine] += 1
        return self.tell(place, output)
