"""Files of results: every change is noticed, a file made to harm is refused before it is read."""

import io
import json
import os
import warnings
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import networks
import unitroles as ur
from unitroles import roles
from unitroles.files import sealed
from unitroles.report.text import report
from unitroles.results import storage
from unitroles.results.dataset import VARIABLES, Measured, dataset

PROVENANCE = {
    "options": {"method": {"score": "activation_l1", "order": "per_split", "tolerance": 1e-6}},
    "plan": {"name": "suffix", "reason": "why"},
    "warnings": [],
}


def small(names=("ant", "bee"), layer="1", **attrs):
    """Two classes and four units, all arrays by hand."""
    loss = np.tile([2.0, 1.0, 0.5, 0.75, 0.75], (2, 2, 1))
    score = np.random.default_rng(0).random((2, 2, 4))
    measured = Measured(
        score=score,
        order=roles.ranked(score),
        loss=loss,
        accuracy=np.tile([0.0, 0.25, 0.5, 1.0, 1.0], (2, 2, 1)),
        samples=np.full((2, 2), 4),
        turning_point=roles.turning_point(loss),
        swapped_loss=np.full((2, 2), 0.75),
        swapped_accuracy=np.full((2, 2), 0.25),
    )
    given = {"layer": layer, "plan": "suffix", "train_accuracy": 0.75, "test_accuracy": 0.5}
    labels = np.array([2, 5])
    return dataset(
        measured, labels=labels, names=list(names), attrs=given | attrs, provenance=PROVENANCE
    )


@pytest.fixture(scope="module")
def whole():
    return storage.to_bytes(small())


def refuses(content, tmp_path, match=""):
    file = tmp_path / "harm.nc"
    file.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ur.InputError, match=f"harm.nc is not a taxonomy: .*{match}") as raised:
            ur.load(file)
    assert "\n" not in str(raised.value)


def edited(change, content):
    """The file with something changed in it by HDF5, and a digest that fits."""
    buffer = io.BytesIO(storage.body_of(content)[0])
    with h5py.File(buffer, "r+") as file:
        change(file)
    return sealed(buffer.getvalue())


# A change is noticed


def test_every_byte_that_is_changed_is_noticed(whole):
    content = bytearray(whole)
    for place in range(len(content)):
        content[place] ^= 1 << place % 8
        with pytest.raises(ur.InputError):
            storage.body_of(bytes(content))
        content[place] ^= 1 << place % 8
    assert storage.body_of(bytes(content))[1]


def test_a_changed_file_is_one_sentence(whole, tmp_path):
    content = bytearray(whole)
    content[len(content) // 2] ^= 1
    refuses(bytes(content), tmp_path, "changed after it was written: its SHA-256 is another")


def test_every_truncation_is_noticed(whole):
    body, _ = storage.body_of(whole)
    for length in {*range(0, len(whole), 97), *range(len(body) - 99, len(whole))} - {len(body)}:
        with pytest.raises(ur.InputError):
            storage.body_of(whole[:length])


def test_bytes_behind_the_end_are_noticed(whole, tmp_path):
    refuses(whole + b"\n", tmp_path, "behind its end")
    refuses(whole + whole, tmp_path)


def test_other_programs_take_no_notice_of_the_digest(whole, tmp_path):
    (tmp_path / "a.nc").write_bytes(whole)
    for engine in ("h5netcdf",):
        with xr.open_dataset(tmp_path / "a.nc", engine=engine) as opened:
            xr.testing.assert_identical(opened.load(), small())
    with h5py.File(tmp_path / "a.nc") as file:
        assert set(file) == {*small().variables}


def test_a_file_without_digest_says_that_it_was_not_checked(whole, tmp_path):
    (tmp_path / "bare.nc").write_bytes(storage.body_of(whole)[0])
    bare = ur.load(tmp_path / "bare.nc")
    assert bare.data.drop_attrs().identical(small().drop_attrs())
    assert bare.provenance["warnings"] == [storage.UNCHECKED]
    assert f"warning: {storage.UNCHECKED}" in report(bare)
    again = ur.load(bare.save(tmp_path / "again.nc"))  # what was not checked stays so
    assert again.provenance["warnings"] == [storage.UNCHECKED]
    (tmp_path / "whole.nc").write_bytes(whole)
    assert ur.load(tmp_path / "whole.nc").provenance["warnings"] == []


def test_a_result_that_xarray_wrote_again_is_read(tmp_path):
    packed = {"loss": {"zlib": True}, "score": {"zlib": True, "shuffle": True}}
    small().to_netcdf(tmp_path / "again.nc", engine="h5netcdf", encoding=packed)
    assert ur.load(tmp_path / "again.nc").data.drop_attrs().identical(small().drop_attrs())


# What is saved comes back as it was


NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=6)


@given(st.lists(NAMES, min_size=2, max_size=2, unique=True), NAMES)
def test_names_come_back_as_they_were(names, layer):
    content = storage.to_bytes(small(names, layer))
    data, left_out = storage._opened(storage.body_of(content)[0])
    xr.testing.assert_identical(data, small(names, layer))
    assert left_out == []


@pytest.mark.parametrize("name", ["b\0c", "\ud800", None, 3])
def test_texts_that_a_file_does_not_give_back_are_refused(name, tmp_path):
    data = small()
    data["status"][1, 0] = name
    with pytest.raises(ur.InputError, match="status .* cannot be saved: it is no text"):
        ur.Taxonomy(data).save(tmp_path / "a.nc")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "value",
    [None, {"a": 1}, True, np.True_, Path("a"), ["a"], b"a", 1j, "a\0b", "\udc80", object()],
)
@pytest.mark.parametrize("where", ["data", "variable"])
def test_attributes_that_a_file_cannot_hold_are_refused(value, where, tmp_path):
    data = small()
    (data if where == "data" else data.loss).attrs["mine"] = value
    with pytest.raises(ur.InputError, match="attribute 'mine'.* cannot be saved: it is .*make it"):
        ur.Taxonomy(data).save(tmp_path / "a.nc")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", ["", "text", "ä\n\x1b", 3, -2.5, float("nan"), np.arange(3.0)])
def test_plain_attributes_come_back(value, tmp_path):
    data = small(mine=value)
    back = ur.load(ur.Taxonomy(data).save(tmp_path / "a.nc"))
    np.testing.assert_array_equal(back.data.attrs["mine"], value)
    xr.testing.assert_identical(back.data, data)


@pytest.mark.parametrize("name", ["", 3, None])
def test_names_of_attributes_are_texts(name, tmp_path):
    data = small()
    data.attrs[name] = "a"
    with pytest.raises(ur.InputError, match="attribute .* cannot be saved"):
        ur.Taxonomy(data).save(tmp_path / "a.nc")


def test_a_variable_of_ones_own_is_refused_before_it_is_lost(tmp_path):
    data = small().assign(mine=("label", [1, 2]))
    with pytest.raises(ur.InputError, match="variable mine is none of a taxonomy's"):
        ur.Taxonomy(data).save(tmp_path / "a.nc")


def test_a_variable_of_a_later_version_is_left_out_and_named(whole, tmp_path):
    def change(file):
        file["later"] = np.arange(3.0)
        file.create_group("group")["inner"] = 1

    (tmp_path / "a.nc").write_bytes(edited(change, whole))
    found = ur.load(tmp_path / "a.nc")
    assert "later" not in found.data
    (note,) = found.provenance["warnings"]
    assert "variable later of the file was left out" in note


def test_all_that_an_analysis_gives_is_known(tmp_path):
    toy = networks.toy("mlp")
    for bootstrap in ("full", "fixed_ranking"):
        evidence = ur.Evidence(floors=2, resplits=2, bootstrap=bootstrap, replicates=3)
        found = ur.analyze(
            toy.model, toy.train, toy.test, layer="1", progress=False, evidence=evidence
        )
        assert {name: found.data[name].dims for name in found.data} == {
            name: VARIABLES[name][0] for name in found.data
        }
        xr.testing.assert_identical(ur.load(found.save(tmp_path / "a.nc")).data, found.data)


# A file made to harm


def replaced(name, values, **options):
    """A variable with other values, on the same axes."""

    def change(file):
        old = file[name]
        scales = [axis[0] for axis in old.dims if len(axis)]
        attrs = {key: old.attrs[key] for key in ("units", "flag_values") if key in old.attrs}
        del file[name]
        new = file.create_dataset(name, data=values, **options)
        new.attrs.update(attrs)
        for place, scale in enumerate(scales):
            new.dims[place].attach_scale(scale)

    return change


def set_values(name, place, value):
    def change(file):
        file[name][place] = value

    return change


def set_attribute(name, value, of=""):
    def change(file):
        (file[of] if of else file).attrs[name] = value

    return change


def set_provenance(*path, value):
    def change(file):
        made = json.loads(file.attrs["provenance"])
        part = made
        for name in path[:-1]:
            part = part.setdefault(name, {})
        part[path[-1]] = value
        file.attrs["provenance"] = json.dumps(made)

    return change


def link(name, target):
    def change(file):
        if name in file:
            del file[name]
        file[name] = target

    return change


def virtual(name):
    def change(file):
        shape = file[name].shape
        del file[name]
        layout = h5py.VirtualLayout(shape, np.uint8)
        layout[...] = h5py.VirtualSource("/etc/passwd", "role", shape)
        file.create_virtual_dataset(name, layout)

    return change


def external(path):
    def change(file):
        shape = file["role"].shape
        del file["role"]
        file.create_dataset("role", shape, np.uint8, external=[(path, 0, 8)])

    return change


def huge(name, shape):
    def change(file):
        del file[name]
        file.create_dataset(name, shape, "f8", chunks=tuple(min(each, 64) for each in shape))

    return change


def enumerated(file):
    del file["role"]
    kind = h5py.enum_dtype({"core": 1, "other": 2}, basetype="u1")
    file.create_dataset("role", (2, 4), kind)


def reshaped(file):
    """Loss on the axes of accuracy, whose order is another."""
    values = file["score"][...]
    scales = [file["label"], file["split"], file["unit"]]
    del file["score"]
    new = file.create_dataset("score", data=values)
    for place, scale in enumerate(scales):
        new.dims[place].attach_scale(scale)


HARM = {
    "a link to another file": (link("role", h5py.ExternalLink("/etc/passwd", "x")), "links"),
    "a link that nothing needs": (link("more", h5py.ExternalLink("/etc/passwd", "x")), "links"),
    "a link inside the file": (link("role", h5py.SoftLink("/order")), "links"),
    "a link to nowhere": (link("loss", h5py.SoftLink("/nowhere")), "links"),
    "a virtual data set": (virtual("role"), "other files"),
    "raw external storage": (external("/etc/passwd"), "other files"),
    "a device as raw storage": (external("/dev/zero"), "other files"),
    "sizes that no file backs": (huge("score", (2, 2, 10**12)), "declares"),
    "an axis that no file backs": (huge("unit", (10**12,)), "declares|type"),
    "a packed variable": (set_attribute("scale_factor", 2.0, "loss"), "packed"),
    "a shifted variable": (set_attribute("add_offset", 2.0, "loss"), "packed"),
    "numbers that stand for none": (set_attribute("_FillValue", 0.5, "loss"), "packed"),
    "losses in other units": (set_attribute("units", "bits", "loss"), "not in nats"),
    "an enumeration": (enumerated, "dims|type"),
    "axes in another order": (reshaped, "dims of score"),
    "losses as texts": (replaced("loss", np.full((2, 2, 5), "a", dtype="S1")), "type"),
    "losses as whole numbers": (replaced("loss", np.ones((2, 2, 5), int)), "type"),
    "names as numbers": (replaced("status", np.ones((2, 2))), "type"),
    "compound values": (replaced("samples", np.zeros((2, 2), [("a", "i4")])), "type"),
    "no variable": (lambda file: file.__delitem__("role"), "no variable role"),
    "a group as a variable": (
        lambda file: (file.__delitem__("role"), file.create_group("role")),
        "no variable",
    ),
    "a shared order": (set_values("order", (0, 0, 0), 1), "permutation|turning"),
    "an order beyond the units": (set_values("order", (0, 0, 0), 99), "permutation"),
    "an order below 0": (set_values("order", (0, 0, 0), -1), "below 0"),
    "another role": (set_values("role", (0, 0), 3), "roles"),
    "an unknown role": (set_values("role", (0, 0), 9), "roles"),
    "n0 beyond N": (set_values("turning_point", (0, 0), 5), "0 to 4"),
    "n0 below 0": (set_values("turning_point", (0, 0), -1), "0 to 4"),
    "another n0": (set_values("turning_point", (0, 0), 3), "turning points"),
    "a loss that is no number": (set_values("loss", (0, 0, 3), np.nan), "not a number"),
    "an infinite loss": (set_values("loss", (0, 0, 3), np.inf), "infinite"),
    "a lower loss": (set_values("loss", (0, 0, 4), 0.1), "turning points"),
    "a score that is no number": (set_values("score", (0, 0, 0), np.nan), "score"),
    "an accuracy above 1": (set_values("accuracy", (0, 0, 0), 1.5), "fractions"),
    "a swapped loss that is none": (set_values("swapped_loss", (0, 0), np.nan), "swapped_loss"),
    "no samples": (set_values("samples", (0, 0), 0), "no samples"),
    "another status": (
        set_values("status", (0, 0), "never below the fully ablated layer"),
        "status",
    ),
    "splits the other way round": (set_values("split", slice(None), ["test", "train"]), "splits"),
    "a class twice": (set_values("label", slice(None), ["a", "a"]), "twice"),
    "a number twice": (set_values("label_index", slice(None), [2, 2]), "twice"),
    "units from 1": (set_values("unit", slice(None), [1, 2, 3, 4]), "unit does not count"),
    "n from 1": (set_values("retrieved", slice(None), [1, 2, 3, 4, 5]), "retrieved"),
    "another tolerance": (set_attribute("tolerance", 1.0), "turning points"),
    "a tolerance below 0": (set_attribute("tolerance", -1.0), "tolerance"),
    "no number as tolerance": (set_attribute("tolerance", np.nan), "tolerance"),
    "a text as tolerance": (set_attribute("tolerance", "1"), "tolerance"),
    "many tolerances": (set_attribute("tolerance", [1.0, 2.0]), "tolerance"),
    "an accuracy above 1 in all": (set_attribute("train_accuracy", 3.0), "train_accuracy"),
    "an unknown resolution": (set_attribute("resolution", "fine"), "resolution"),
    "a resolution below 1": (set_attribute("resolution", 0), "resolution"),
    "a number as layer": (set_attribute("layer", 3), "layer"),
    "another format": (set_attribute("format", "unitroles taxonomy 9"), "its format is"),
    "an attribute of many axes": (set_attribute("mine", np.ones((2, 2))), "no text and no number"),
    "an attribute of many texts": (set_attribute("mine", ["a", "b"]), "no text and no number"),
    "no provenance": (lambda file: file.attrs.__delitem__("provenance"), "provenance"),
    "provenance that is no JSON": (set_attribute("provenance", "{"), "no JSON"),
    "provenance of one list": (set_attribute("provenance", "[]"), "no JSON of names"),
    "provenance of a long number": (set_attribute("provenance", "9" * 5000), "no JSON"),
    "deep provenance": (set_attribute("provenance", "[" * 10**4 + "]" * 10**4), "no JSON"),
    "provenance of many levels": (
        set_attribute("provenance", '{"a":' * 30 + "1" + "}" * 30),
        "levels",
    ),
    "options as a list": (set_provenance("options", value=[]), "options"),
    "a method as a text": (set_provenance("options", "method", value="a"), "options.method"),
    "a plan as a text": (set_provenance("plan", value="a"), "plan"),
    "a reason as a number": (set_provenance("plan", "reason", value=1), "plan.reason"),
    "evidence as a list": (set_provenance("options", "evidence", value=[1]), "evidence"),
    "a level of 2": (set_provenance("options", "evidence", "level", value=2), "level"),
    "warnings as a text": (set_provenance("warnings", value="a"), "warnings"),
    "warnings as numbers": (set_provenance("warnings", value=[1]), "warnings"),
}


@pytest.mark.parametrize("kind", HARM)
def test_a_file_made_to_harm_is_refused(kind, whole, tmp_path):
    change, match = HARM[kind]
    refuses(edited(change, whole), tmp_path, match)


def test_only_the_loss_without_any_unit_may_be_no_number(whole, tmp_path):
    (tmp_path / "a.nc").write_bytes(edited(set_values("loss", (0, 0, 0), np.nan), whole))
    assert np.isnan(ur.load(tmp_path / "a.nc").data.loss.values[0, 0, 0])


@pytest.mark.parametrize("path", [("options",), ("plan",), ("warnings",), ("options", "method")])
def test_a_report_says_what_is_not_recorded(path, whole, tmp_path):
    def change(file):
        made = json.loads(file.attrs["provenance"])
        part = made
        for name in path[:-1]:
            part = part[name]
        del part[path[-1]]
        file.attrs["provenance"] = json.dumps(made)

    (tmp_path / "a.nc").write_bytes(edited(change, whole))
    found = ur.load(tmp_path / "a.nc")
    assert report(found).startswith("layer     1: 4 units, 2 classes")
    assert all(len(getattr(found, name)()) for name in found.tables)


def test_the_same_long_name_many_times_fills_no_memory(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "_LARGEST", 2**16)

    def change(file):
        file["status"][...] = "a" * 2**15

    refuses(edited(change, whole), tmp_path, "texts of status are too long")


def test_a_pipe_does_not_wait(tmp_path):
    os.mkfifo(tmp_path / "pipe.nc")
    with pytest.raises(ur.InputError, match="pipe.nc is not a taxonomy: .*no regular file"):
        ur.load(tmp_path / "pipe.nc")
    with pytest.raises(ur.InputError, match="no regular file"):
        ur.load("/dev/zero")


def test_a_file_larger_than_memory_is_not_read(tmp_path):
    with open(tmp_path / "huge.nc", "wb") as file:
        file.truncate(2**43)
    with pytest.raises(ur.InputError, match="huge.nc is not a taxonomy: .*larger than the memory"):
        ur.load(tmp_path / "huge.nc")


@pytest.mark.parametrize("name", ["a\0b", "n" * 300, "file/inner.nc", "loop.nc"])
def test_a_name_that_leads_nowhere_is_one_sentence(name, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "loop.nc").symlink_to(tmp_path / "loop.nc")
    with pytest.raises(ur.InputError, match="there is no file"):
        ur.load(tmp_path / name)


@pytest.mark.parametrize("seed", range(4))
def test_noise_with_a_fitting_digest_is_read_or_refused(seed, whole, tmp_path):
    """Whoever makes a file can make its digest too: HDF5 then sees what it was never meant to."""
    body, _ = storage.body_of(whole)
    draw = np.random.default_rng(seed)
    for _ in range(25):
        content = bytearray(body)
        for place in draw.integers(64, len(body), size=draw.integers(1, 6)):
            content[place] = draw.integers(256)
        (tmp_path / "noise.nc").write_bytes(sealed(bytes(content)))
        with suppress(ur.InputError):
            report(ur.load(tmp_path / "noise.nc"))
