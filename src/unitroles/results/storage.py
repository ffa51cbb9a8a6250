"""A result as the bytes of a file and back: what a file may hold, before any of it is read.

NetCDF 4, which is HDF5, with its SHA-256 behind it (`files.sealed`). A file can be damaged, or made
to harm: HDF5 by itself follows links to other files, fills memory that no file backs, and waits for
pipes. So the digest comes first, then the layout of all that is to be read, then the values.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5netcdf
import h5py
import numpy as np
import xarray as xr
from xarray.backends import H5NetCDFStore

from unitroles.errors import InputError
from unitroles.files import read_regular, sealed, unsealed
from unitroles.results.dataset import BASIC, COORDINATES, VARIABLES, known_names, upgraded
from unitroles.results.integrity import check, checked_provenance
from unitroles.wording import few, is_whole

UNCHECKED = (
    "the file was not checked: it has no SHA-256, which only files of older versions and of other "
    "programs lack, so a change of it would go unnoticed"
)
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_END = {0: 40, 1: 44, 2: 28, 3: 28}
"""Where the first block of HDF5 says how long the file is, by the version of the block."""
_LARGEST = 2**28
"""Bytes that the values may take, or that many texts; a file may declare more than it has."""
_TIMES = 100
"""As many times the size of the file they may take too: values may be compressed."""
_FILTERS = {1, 2, 3, 32000}
"""Of HDF5, that need no plugin: deflate, shuffle, checksum, LZF."""
_PACKED = ("scale_factor", "add_offset", "_Unsigned", "missing_value")
_OF_THE_FORMAT = {
    "CLASS", "NAME", "DIMENSION_LIST", "REFERENCE_LIST", "DIMENSION_LABELS", "_FillValue",
    "_Netcdf4Dimid", "_Netcdf4Coordinates", "_NCProperties", "_nc3_strict", "coordinates",
}  # fmt: skip
"""Attributes that are no part of the data."""
_DTYPES = {"number": "f", "fraction": "f", "count": "iu", "place": "iu", "integer": "iu"}
_TEXTS = ("text", "name")


def to_bytes(data: xr.Dataset) -> bytes:
    """A data set as the bytes of a NetCDF file with its SHA-256 behind it.

    Raises
    ------
    InputError : something in it cannot be kept as it is.
    """
    _check_kept(data)
    buffer = io.BytesIO()
    try:
        store = H5NetCDFStore(h5netcdf.File(buffer, "w"))
        data.dump_to_store(store)
        store.close()
    except (TypeError, ValueError, OverflowError, OSError, RuntimeError) as error:
        raise InputError(
            f"the result cannot be saved: {error}; take out what was added to its data"
        ) from error
    return sealed(buffer.getvalue())


def _check_kept(data: xr.Dataset) -> None:
    """Refuse what a file would not give back, or not as it is."""
    unknown = [str(name) for name in data.variables if name not in {**VARIABLES, **COORDINATES}]
    if unknown:
        raise InputError(
            f"variable {few(unknown)} is none of a taxonomy's; save it in a file of its own"
        )
    holders = {"": data.attrs} | {f" of {n}": each.attrs for n, each in data.variables.items()}
    for where, attrs in holders.items():
        for name, value in attrs.items():
            if not isinstance(name, str) or not name or not _plain(value):
                raise InputError(
                    f"attribute {name!r}{where} cannot be saved: it is {_kind(value)}; make it a "
                    "text, a number or an array of numbers, or take it out"
                )
    for name, each in data.variables.items():
        if each.dtype.kind not in "OU":
            continue
        for text in each.values.ravel().tolist():
            if not is_whole(text):
                raise InputError(
                    f"{name} {text!r} cannot be saved: it is no text without NUL and without "
                    "halves of characters; give other names"
                )


def _plain(value: Any) -> bool:
    if isinstance(value, str):
        return is_whole(value)
    if isinstance(value, bool | np.bool_):
        return False
    return isinstance(value, int | float | np.number) or (
        isinstance(value, np.ndarray) and value.dtype.kind in "iuf" and value.ndim == 1
    )


def _kind(value: Any) -> str:
    if isinstance(value, str):
        return "a text with NUL or halves of characters"
    return f"of type {type(value).__name__}"


def read(path: Path) -> xr.Dataset:
    """The data set of a file.

    Raises
    ------
    InputError : the file is absent, damaged, or holds something else; without the name of the file.
    """
    try:
        content, had_seal = body_of(read_regular(path))
        data, left_out = _opened(content)
        data = upgraded(data)
        check(data)
    except InputError:
        raise
    # HDF5 and what is built on it raise of every kind where a file is damaged.
    except Exception as error:
        why = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise InputError(f"it cannot be read as NetCDF: {why or type(error).__name__}") from error
    notes = [UNCHECKED] * (not had_seal) + left_out
    return _noted(data, notes) if notes else data


def _noted(data: xr.Dataset, notes: list[str]) -> xr.Dataset:
    """The same with warnings in its provenance, once each."""
    provenance = json.loads(data.attrs["provenance"])
    provenance["warnings"] = list(dict.fromkeys([*provenance.get("warnings", []), *notes]))
    return data.assign_attrs(provenance=json.dumps(provenance))


def body_of(content: bytes) -> tuple[bytes, bool]:
    """The HDF5 of a file, and whether it had its SHA-256; nothing of it is opened.

    Raises
    ------
    InputError : it is no HDF5, was changed or cut off, or has something else behind its end.
    """
    try:
        body, had_seal = unsealed(content)
    except ValueError as error:
        raise InputError(str(error)) from error
    if not body.startswith(_SIGNATURE) or len(body) < 96:
        raise InputError("it cannot be read as NetCDF: it does not begin as such files do")
    place = _END.get(body[8])
    if place is not None:  # a later version of HDF5, which finds out by itself
        (end,) = struct.unpack_from("<Q", body, place)
        if end > len(body):
            raise InputError("it is cut off")
        if end < len(body):
            raise InputError("behind its end is something else than its SHA-256")
    return body, had_seal


def _opened(content: bytes) -> tuple[xr.Dataset, list[str]]:
    """The variables that are known, and a line about others."""
    with h5py.File(io.BytesIO(content), "r") as root:
        links = {str(name): root.get(name, getlink=True) for name in root}
        linked = [name for name, link in links.items() if not isinstance(link, h5py.HardLink)]
        if linked:
            raise InputError(f"it holds links ({few(linked)}), which no result does")
        attrs = _attributes(root)
        known = known_names(attrs.get("format"))
        checked_provenance(attrs)
        places = {name: name for name in COORDINATES} | known
        held = {name: _dataset(root, name) for name in places if name in links}
        missing = [name for name in ("split", "label", "label_index", *BASIC) if name not in held]
        if missing:
            raise InputError(f"it has no variable {few(missing)}")
        _check_size(held, len(content))
        variables = {places[name]: _variable(each, places[name]) for name, each in held.items()}
        dims = {dim for names, _, _ in variables.values() for dim in names}
        others = [n for n in links if n not in held and n not in dims and _is_dataset(root, n)]
    notes = [f"variable {few(others)} of the file was left out: this version does not know it"]
    coords = {name: variables.pop(name) for name in COORDINATES if name in variables}
    return xr.Dataset(variables, coords, attrs), notes * bool(others)


def _is_dataset(root: h5py.File, name: str) -> bool:
    return root.get(name, getclass=True) is h5py.Dataset


def _dataset(root: h5py.File, name: str) -> h5py.Dataset:
    """A variable whose values are in the file itself; nothing of it is read."""
    if not _is_dataset(root, name):
        raise InputError(f"{name} is no variable")
    found = h5py.h5d.open(root.id, name.encode())
    how = found.get_create_plist()
    if how.get_layout() == h5py.h5d.VIRTUAL or how.get_external_count():
        raise InputError(f"the values of {name} are in other files, which no result's are")
    if any(how.get_filter(place)[0] not in _FILTERS for place in range(how.get_nfilters())):
        raise InputError(f"the values of {name} are compressed in a way that no result's are")
    return h5py.Dataset(found)


def _check_size(held: dict[str, h5py.Dataset], length: int) -> None:
    """Refuse what declares much more than there is."""
    declared = 0
    for name, each in held.items():
        if each.shape is None:
            raise InputError(f"{name} has no values")
        count = 1
        for size in each.shape:
            count *= size
        declared += count * each.dtype.itemsize
    if declared > _LARGEST + _TIMES * length:
        raise InputError(f"it declares {declared} bytes of values and has {length}")


def _variable(found: h5py.Dataset, name: str) -> tuple[tuple[str, ...], np.ndarray, dict[str, Any]]:
    """Dims, values and attributes, of the kind that they are to be of."""
    kind = COORDINATES[name] if name in COORDINATES else VARIABLES[name][1]
    dims, attrs = _dims(found, name), _attributes(found)
    fill = found.attrs.get("_FillValue", np.nan) if found.dtype.kind == "f" else np.nan
    if any(each in found.attrs for each in _PACKED) or not np.isnan(fill).all():
        raise InputError(f"the values of {name} are packed, which no result's are")
    if kind in _TEXTS and h5py.check_string_dtype(found.dtype) is not None:
        return dims, _texts(found), attrs
    plain = found.dtype.kind in _DTYPES.get(kind, "iu") and found.dtype.itemsize in (1, 4, 8)
    # A class of HDF5 with numbers under names looks like numbers to NumPy.
    if kind == "text" or not plain or h5py.check_enum_dtype(found.dtype) is not None:
        raise InputError(f"the values of {name} are of type {found.dtype}, not {kind}s")
    return dims, np.asarray(found[()]).astype(found.dtype.newbyteorder("=")), attrs


def _dims(found: h5py.Dataset, name: str) -> tuple[str, ...]:
    if found.is_scale:
        dims = (name,) * (found.ndim == 1)
    else:
        dims = tuple(
            str(each[0].name).removeprefix("/") if len(each) else "" for each in found.dims
        )
    wanted = VARIABLES[name][0] if name in VARIABLES else (name,)
    if dims != (("label",) if name == "label_index" else wanted):
        raise InputError(f"the dims of {name} are {dims}, not {wanted}")
    return dims


def _texts(found: h5py.Dataset) -> np.ndarray:
    """Texts, a few at a time: every one may be as long as the file, and several the same."""
    values = np.empty(found.shape, dtype=object)
    if found.ndim == 0 or not found.size:
        return values
    rows = found.asstr()
    longest = found.file.id.get_filesize()
    at_once = max(1, _LARGEST // (longest * max(1, found.size // len(found))))
    total = 0
    for start in range(0, len(found), at_once):
        part = np.asarray(rows[start : start + at_once], dtype=object)
        values[start : start + at_once] = part
        total += sum(map(len, part.ravel().tolist()))
        if total > _LARGEST:
            raise InputError(f"the texts of {str(found.name).removeprefix('/')} are too long")
    return values


def _attributes(holder: h5py.File | h5py.Dataset) -> dict[str, Any]:
    """Attributes that are a text, a number or a row of numbers."""
    return dict(_plain_attributes(holder))


def _plain_attributes(holder: h5py.File | h5py.Dataset) -> Iterator[tuple[str, Any]]:
    for name in holder.attrs:
        if name in _OF_THE_FORMAT:
            continue
        found = holder.attrs.get_id(name)
        text = h5py.check_string_dtype(found.dtype) is not None
        if found.shape is None and text:
            yield name, ""
            continue
        size = None if found.shape is None else int(np.prod(found.shape))
        numbers = found.dtype.kind in "iuf" and h5py.check_enum_dtype(found.dtype) is None
        if size is None or not (numbers or (text and size == 1)) or len(found.shape or ()) > 1:
            raise InputError(f"its attribute {name!r} is no text and no number")
        value = np.asarray(holder.attrs[name])
        if size != 1:
            yield name, value
        else:
            item = value.reshape(()).item()
            yield name, item.decode() if isinstance(item, bytes) else item
