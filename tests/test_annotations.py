"""Values against annotations: what is taken, how it comes out; what is refused, in what words."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import unitroles as ur
from unitroles.annotations import checked, plain


@pytest.mark.parametrize(
    ("value", "hint", "wanted"),
    [
        (np.int64(3), int, 3),
        (np.uint8(3), int | None, 3),
        (None, int | None, None),
        (2, float, 2),
        (np.float32(0.5), float, 0.5),
        (np.int32(2), float, 2.0),
        (np.True_, bool, True),
        (np.str_("a"), str, "a"),
        (np.array(["a", "b"]), Sequence[str], ("a", "b")),
        (np.arange(2), Sequence[int | str] | None, (0, 1)),
        (torch.arange(2), Sequence[int | str], (0, 1)),
        (pd.Series([1, 2]), Sequence[int], (1, 2)),
        ({"a": 1, "b": 2}.keys(), Sequence[str], ("a", "b")),
        ((name for name in "ab"), Sequence[str], ("a", "b")),
        ({"a"}, Iterable[str], ("a",)),
        ([], Sequence[int], ()),
    ],
)
def test_what_is_right_comes_out_plain(value: Any, hint: Any, wanted: Any) -> None:
    found = plain(value, hint, "x")
    assert found == wanted
    assert type(found) is type(wanted)
    items = zip(found, wanted, strict=True) if isinstance(found, tuple) else ()
    assert all(type(one) is type(other) for one, other in items)


@pytest.mark.parametrize(
    ("value", "hint", "said"),
    [
        (True, int, "x must be a whole number, not True"),
        (np.True_, float, "x must be a number, not np.True_"),
        (2.0, int | None, "x must be a whole number or None, not 2.0"),
        (1, bool, "x must be True or False, not 1"),
        ("no", bool, "x must be True or False, not 'no'"),
        (1j, float, "x must be a number, not 1j"),
        (b"a", str, "x must be a text, not b'a'"),
        (None, str, "x must be a text, not None"),
        (3, str | Callable[[int], int], "x must be a text or a function, not 3"),
        ("ab", Sequence[str], "x must be a list of texts, not 'ab'"),
        ({"a"}, Sequence[str], "x must be a list of texts, not {'a'}"),
        ({"a": 1}, Sequence[str], "x must be a list of texts, not {'a': 1}"),
        (np.array(1), Sequence[int], "x must be a list of whole numbers, not array(1)"),
        (["a", None], Sequence[str] | None, "x[1] must be a text, not None"),
        ([[1], [2, "b"]], Sequence[Sequence[int]], "x[1][1] must be a whole number, not 'b'"),
        ({"a": "b"}, Mapping[str, int], "x['a'] must be a whole number, not 'b'"),
        ({1: 2}, Mapping[str, int], "x: every name must be a text, not 1"),
        ([1], Mapping[str, int], "x must be a mapping of names to whole numbers, not [1]"),
        (5, Mapping[str, Any] | None, "x must be a mapping or None, not 5"),
        (5, ur.Layer, "x must be a Layer, not 5"),
        (5, ur.Evidence | None, "x must be an Evidence or None, not 5"),
        (np.zeros((30, 30)), int, "x must be a whole number, not a value of type ndarray"),
    ],
)
def test_what_is_wrong_is_said_with_its_place_and_what_it_must_be(
    value: Any, hint: Any, said: str
) -> None:
    with pytest.raises(ur.InputError) as error:
        plain(value, hint, "x")
    assert str(error.value) == said


def test_a_value_that_cannot_be_shown_is_called_by_its_type() -> None:
    class Silent:
        def __repr__(self) -> str:
            raise RuntimeError

    with pytest.raises(ur.InputError, match="^x must be a text, not a value of type Silent$"):
        plain(Silent(), str, "x")


def test_a_checked_function_gets_plain_values_and_keeps_its_face() -> None:
    @checked
    def f(first: int, *others: Any, names: Sequence[str] = (), flag: bool = False) -> Any:
        """Say."""
        return first, others, names, flag

    assert f(np.int64(1), 2, "c", names=np.array(["a"]), flag=np.True_) == (
        1,
        (2, "c"),
        ("a",),
        True,
    )
    assert (f.__name__, f.__doc__) == ("f", "Say.")
    with pytest.raises(ur.InputError, match=r"f: flag must be True or False, not 0$"):
        f(1, flag=0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'first'"):
        f()  # pyright: ignore[reportCallIssue]
