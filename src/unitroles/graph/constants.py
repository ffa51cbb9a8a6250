"""Constants made of weights, once for all the graphs that use them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

T = TypeVar("T")


class Constants:
    """What is made of weights, once for all graphs of an export: it may be as large as they are."""

    def __init__(self) -> None:
        self._made: dict[Any, tuple[tuple[Any, ...], Any]] = {}

    def of(self, form: str, make: Callable[..., T], *weights: Any) -> T:
        """What `make` makes of some weights, or has made of them."""
        key = (
            form,
            *(
                (w.data_ptr(), w.dtype, *w.shape, *w.stride()) if isinstance(w, Tensor) else w
                for w in weights
            ),
        )
        if key not in self._made:  # with the weights: a place in memory is theirs while they live
            self._made[key] = weights, make(*weights)
        return self._made[key][1]
