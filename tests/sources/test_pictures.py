"""Pictures: which files are samples, what is left out, and that folders and tables read alike."""

import os
import struct
import warnings
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unitroles.errors import DataWarning, InputError
from unitroles.sources.pictures import read_picture
from unitroles.sources.records import DataOptions
from unitroles.sources.splits import load_splits

SEEN = DataOptions(transform=np.asarray, class_names=("a", "b"))
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)
GREY = (np.arange(48, dtype=np.uint16) * 1394).reshape(6, 8)  # 0 ... 65518


def encoded(pixels: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def lying(kind: str = "PNG", orientation: int = 6) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(PIXELS, kind, exif=exif)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(encoded(PIXELS))
    return tmp_path


def read(folder: Path) -> Any:
    return load_splits(str(folder), str(folder), SEEN)[0]


def names(data: Any, folder: Path) -> list[str]:
    return [os.path.relpath(path, folder) for path, _ in data.samples]


# --- which files


def test_every_usual_ending_is_a_picture_whatever_its_case(folder: Path) -> None:
    jpeg = encoded(PIXELS, "JPEG")
    kept = ["1.JFIF", "2.jpe", "3.jpeg", "deep/er/4.Jpg", "deep/5.gif"]
    (folder / "b" / "deep" / "er").mkdir(parents=True)
    for name in kept:
        (folder / "b" / name).write_bytes(encoded(PIXELS, "GIF") if "gif" in name else jpeg)
    data = read(folder)
    assert names(data, folder) == [
        *("a/0.png", "b/0.png", "b/1.JFIF", "b/2.jpe", "b/3.jpeg"),
        *("b/deep/5.gif", "b/deep/er/4.Jpg"),
    ]
    assert data.targets == [0, 1, 1, 1, 1, 1, 1]
    assert [data[row][0].shape for row in range(7)] == [(6, 8, 3)] * 7


def test_what_is_left_out_is_counted_and_named(folder: Path) -> None:
    picture = encoded(PIXELS)
    (folder / ".cache").mkdir()
    (folder / "__MACOSX" / "a").mkdir(parents=True)
    (folder / "a" / ".ipynb_checkpoints").mkdir()
    for name in (
        *("a/.ipynb_checkpoints/0-checkpoint.png", "a/._0.png", "__MACOSX/a/._0.png"),
        *("a/notes.txt", "b/1.heic", "b/2", "top.png", ".cache/x.bin"),
        *("a/.DS_Store", "a/Thumbs.db", "b/desktop.ini", "list.csv"),
    ):
        (folder / name).write_bytes(picture)
    os.mkfifo(folder / "b" / "pipe.png")
    (folder / "b" / "gone.png").symlink_to(folder / "nowhere.png")
    with pytest.warns(DataWarning) as caught:
        data = read(folder)
    assert names(data, folder) == ["a/0.png", "b/0.png"]
    assert data.classes == ["a", "b"]
    (said,) = {str(warning.message).partition("are left out: ")[2] for warning in caught}
    assert set(said.split("; ")) == {
        "1 in no class folder (top.png)",
        "3 hidden (__MACOSX/a/._0.png, a/._0.png, a/.ipynb_checkpoints/0-checkpoint.png)",
        "3 without the ending of a picture (a/notes.txt, b/1.heic, b/2)",
        "2 that are no files or lead nowhere (b/gone.png, b/pipe.png)",
    }


def test_a_link_back_up_does_not_multiply_pictures(folder: Path) -> None:
    (folder / "a" / "again").symlink_to(folder / "a", target_is_directory=True)
    (folder / "a" / "other").symlink_to(folder / "b", target_is_directory=True)
    assert names(read(folder), folder) == ["a/0.png", "a/other/0.png", "b/0.png"]


def test_folders_without_pictures_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "a" / "0.png").rename(folder / "a" / "0.heic")
    (folder / "b" / "0.png").unlink()
    with (
        pytest.warns(DataWarning, match=r"1 without the ending of a picture \(a/0.heic\)"),
        pytest.raises(InputError, match="the train folder .* holds no pictures; DATA is"),
    ):
        read(folder)


def test_a_folder_that_may_not_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match="the folder .* cannot be read .*Permission"):
        read(folder)


# --- what is in them


def bomb() -> bytes:
    """The start of a PNG of a million pixels a side."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        sum_ = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + sum_

    size = struct.pack(">IIBBBBB", 10**6, 10**6, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"")) + b""


CONTENTS = {
    "colours": encoded(PIXELS),
    "palette": encoded(np.asarray(Image.fromarray(PIXELS).quantize(8)), "GIF"),
    "grey of 8 bits": encoded(PIXELS[..., 0]),
    "grey of 16 bits": encoded(GREY),
    "grey of 16 bits in TIFF": encoded(GREY, "TIFF"),
    "grey of 16 bits, most significant first": encoded(GREY.astype(">u2"), "TIFF"),
    "grey of 16 bits in PGM": encoded(GREY, "PPM"),
    "numbers of 32 bits in the range of 16": encoded(GREY.astype(np.int32), "TIFF"),
    "lying on its side": lying(),
    "on its head": lying("JPEG", 3),
}


def both_ways(content: bytes, tmp_path: Path) -> list[np.ndarray]:
    """A picture from a class folder, and from a table."""
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    for name in "ab":
        (tmp_path / "x" / name).mkdir(parents=True)
        (tmp_path / "x" / name / "0.png").write_bytes(content)
    rows = {"label": [0, 1], "image": [{"bytes": content, "path": None}] * 2}
    features = datasets.Features(label=datasets.Value("int64"), image=datasets.Image())
    datasets.Dataset.from_dict(rows, features).to_parquet(str(tmp_path / "x.parquet"))
    made = [load_splits(s, s, SEEN)[0] for s in (str(tmp_path / "x"), str(tmp_path / "x.parquet"))]
    return [data[0][0] for data in made]


@pytest.mark.parametrize("kind", CONTENTS)
def test_folders_and_tables_read_alike(kind: str, tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        first, second = both_ways(CONTENTS[kind], tmp_path)
    assert first.dtype == np.uint8
    assert np.array_equal(first, second)
    turned = "on its" in kind
    assert [str(w.message) for w in caught if "turned upright" not in str(w.message)] == []
    assert len(caught) == 2 * turned
    if kind == "lying on its side":
        assert np.array_equal(first, np.rot90(PIXELS, -1))
    if kind == "on its head":
        with Image.open(BytesIO(encoded(PIXELS, "JPEG"))) as plain:
            assert np.array_equal(first, np.rot90(np.asarray(plain), 2))


@pytest.mark.parametrize("kind", [kind for kind in CONTENTS if "16" in kind])
def test_grey_of_16_bits_keeps_its_levels(kind: str) -> None:
    found = np.asarray(read_picture(BytesIO(CONTENTS[kind]), "it"))
    expected = np.rint(GREY / 65535 * 255)
    assert np.array_equal(found, np.repeat(expected[..., None], 3, axis=2))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (encoded(GREY.astype(np.float32), "TIFF"), "holds float32 from 0.0 to 65518.0, and which"),
        (encoded(GREY.astype(np.int32) * 9, "TIFF"), "holds int32 from 0 to 589662, and which"),
        (encoded(-GREY.astype(np.int32), "TIFF"), "holds int32 from -65518 to 0, and which"),
        (encoded(PIXELS)[:60], "cannot be read as a picture .*repair or remove it"),
        (b"", "cannot be read as a picture"),
        (bomb(), r"cannot be read as a picture \(Image size \(1000000000000 pixels\) exceeds"),
    ],
    ids=["floats", "32 bits", "negative", "damaged", "empty", "a million pixels a side"],
)
def test_pictures_that_cannot_be_read(content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=f"^the picture {message}"):
        read_picture(BytesIO(content), "the picture")


def test_the_first_picture_that_is_turned_is_named(folder: Path) -> None:
    for name in ("1.png", "2.png"):
        (folder / "b" / name).write_bytes(lying())
    data = read(folder)
    data[0]
    with pytest.warns(DataWarning, match=r"b/1.png lies .* ImageFolder does not") as caught:
        assert [data[row][0].shape for row in (1, 2, 3)] == [(6, 8, 3), (8, 6, 3), (8, 6, 3)]
    assert len(caught) == 1
