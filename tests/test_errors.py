"""How warnings reach the line that called the library."""

from __future__ import annotations

import warnings

import pytest

from unitroles.errors import DataWarning, InputError, own_warnings


def call(*texts, error=None):
    """As a public verb does: warn, and perhaps fail."""
    with own_warnings() as notes:
        for text in texts:
            warnings.warn(text, DataWarning, stacklevel=1)
        if error is not None:
            raise error
    return notes


def test_a_warning_comes_once_and_from_the_file_that_called_the_library():
    with pytest.warns(DataWarning, match="one") as told:
        notes = call("one", "one")
    assert [(str(warning.message), warning.filename) for warning in told] == [("one", __file__)]
    assert notes == ["one"]


def test_an_error_keeps_the_warnings_before_it():
    with (
        pytest.warns(DataWarning, match="before") as told,
        pytest.raises(InputError, match="the error"),
    ):
        call("before", error=InputError("the error"))
    assert [warning.filename for warning in told] == [__file__]
