"""The labelled result: what it holds, its tables, and files."""

import json
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

import networks
import unitroles as ur
from forcing import quietly
from unitroles import roles
from unitroles.results.dataset import Measured, dataset

NAMES = ["ant", "bee", "cat", "dog"]
ROLE_NAMES = ["core", "overfitted", "generalizing", "confusing"]
LABELS, UNITS = 4, 12
DIMS = {"split": 2, "label": LABELS, "unit": UNITS, "position": UNITS, "retrieved": UNITS + 1}
VARIABLES = {
    "score": (("split", "label", "unit"), np.float64),
    "order": (("split", "label", "position"), np.int32),
    "loss": (("split", "label", "retrieved"), np.float64),
    "accuracy": (("split", "label", "retrieved"), np.float64),
    "samples": (("split", "label"), np.int64),
    "turning_point": (("split", "label"), np.int32),
    "swapped_loss": (("split", "label"), np.float64),
    "swapped_accuracy": (("split", "label"), np.float64),
    "role": (("label", "unit"), np.uint8),
    "status": (("split", "label"), np.object_),
}


def analyze_mlp(class_names):
    toy = networks.toy("mlp")
    return ur.analyze(
        toy.model, toy.train, toy.test, layer="1", class_names=class_names, progress=False
    )


@pytest.fixture(scope="module")
def named():
    return analyze_mlp(NAMES)


@pytest.fixture(scope="module")
def numbered():
    return analyze_mlp(None)


def built(loss=None, labels=(2, 5, 7), names=None):
    """Three classes and four units, all arrays by hand; each split keeps the first two units."""
    order = np.array([[[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]]] * 2)
    order[1, 0] = [1, 3, 2, 0]
    if loss is None:
        loss = np.tile([2.0, 1.0, 0.5, 0.75, 0.75], (2, 3, 1))
    measured = Measured(
        score=np.linspace(1, 2, 24).reshape(2, 3, 4),
        order=order,
        loss=loss,
        accuracy=np.tile([0.0, 0.25, 0.5, 1.0, 1.0], (2, 3, 1)),
        samples=np.full((2, 3), 4),
        turning_point=roles.turning_point(loss),
        swapped_loss=np.array([[0.75, 0.5, 0.5], [1.5, 0.25, 0.5]]),
        swapped_accuracy=np.array([[0.25, 0.5, 0.5], [0.0, 0.75, 0.5]]),
    )
    data = dataset(
        measured,
        labels=np.array(labels),
        names=names,
        attrs={"layer": "1", "plan": "suffix", "train_accuracy": 0.75, "test_accuracy": 0.5},
        provenance={"note": None, "fine": True},
    )
    return ur.Taxonomy(data)


def test_every_axis_and_type_is_as_promised(named):
    assert dict(named.data.sizes) == DIMS
    assert {name: (v.dims, v.dtype) for name, v in named.data.data_vars.items()} == VARIABLES
    assert set(named.data.coords) == {*DIMS, "label_index"}
    assert named.data.split.values.tolist() == ["train", "test"]
    assert named.data.unit.values.tolist() == list(range(UNITS))
    assert named.data.position.values.tolist() == list(range(UNITS))
    assert named.data.retrieved.values.tolist() == list(range(UNITS + 1))


def test_labels_are_names_where_they_are_known(named, numbered):
    assert named.data.label.values.tolist() == named.labels == NAMES
    assert numbered.data.label.values.tolist() == numbered.labels == [0, 1, 2, 3]
    assert named.data.label_index.values.tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(named.data.role, numbered.data.role)


def test_attributes_are_plain_values(named):
    attrs = named.data.attrs
    assert attrs["layer"] == named.layer == "1"
    assert attrs["plan"] == "additive"
    assert named.gap == attrs["train_accuracy"] - attrs["test_accuracy"] > 0
    assert all(type(value) in (str, float, int) for value in attrs.values())


def test_role_carries_its_meanings_as_flags(named):
    attrs = named.data.role.attrs
    meanings = dict(zip(attrs["flag_values"].tolist(), attrs["flag_meanings"].split(), strict=True))
    assert meanings == {0: "undecided", **dict(enumerate(ROLE_NAMES, start=1))}
    assert attrs["flag_values"].dtype == np.uint8
    assert named.data.loss.attrs["units"] == named.data.swapped_loss.attrs["units"] == "nats"


@pytest.mark.parametrize("result", ["named", "numbered"])
def test_a_saved_taxonomy_comes_back_identical(result, request, tmp_path):
    taxonomy = request.getfixturevalue(result)
    path = taxonomy.save(tmp_path / "a.nc")
    assert path == tmp_path / "a.nc"
    assert [file.name for file in tmp_path.iterdir()] == ["a.nc"]
    back = ur.load(path)
    xr.testing.assert_identical(back.data, taxonomy.data)
    assert back.data.status.dtype.kind in "OU"
    for name in set(VARIABLES) - {"status"}:
        assert back.data[name].dtype == VARIABLES[name][1]
        assert back.data[name].dims == VARIABLES[name][0]
    assert back.provenance == taxonomy.provenance
    assert back.labels == taxonomy.labels
    pd.testing.assert_frame_equal(back.to_frame(), taxonomy.to_frame())
    pd.testing.assert_frame_equal(back.summary(), taxonomy.summary())


def test_the_file_has_no_fill_value_and_opens_without_the_library(named, tmp_path):
    path = named.save(tmp_path / "a.nc")
    with h5py.File(path) as file:
        assert "_FillValue" not in file["role"].attrs
        assert file["role"].dtype == np.uint8
    with xr.open_dataset(path, engine="h5netcdf") as data:
        assert data.role.dtype == np.uint8
        assert data.sel(split="test", label="cat").turning_point.dtype == np.int32


def test_saving_replaces_an_older_file(named, numbered, tmp_path):
    numbered.save(tmp_path / "a.nc")
    named.save(str(tmp_path / "a.nc"))
    assert ur.load(tmp_path / "a.nc").labels == NAMES
    assert len(list(tmp_path.iterdir())) == 1


def test_saving_into_a_missing_folder_is_refused_and_leaves_nothing(named, tmp_path):
    with pytest.raises(ur.InputError, match="cannot write .*choose a folder that exists"):
        named.save(tmp_path / "missing" / "a.nc")
    assert list(tmp_path.iterdir()) == []


def test_saving_over_a_folder_is_refused_and_leaves_nothing(named, tmp_path):
    (tmp_path / "a.nc").mkdir()
    with pytest.raises(ur.InputError, match="cannot write"):
        named.save(tmp_path / "a.nc")
    assert [file.name for file in tmp_path.iterdir()] == ["a.nc"]


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ur.InputError, match="there is no file .*b.nc"):
        ur.load(tmp_path / "b.nc")
    with pytest.raises(ur.InputError, match="there is no file"):
        ur.load(tmp_path)


def test_a_foreign_file_is_refused(named, tmp_path):
    xr.Dataset({"loss": ("x", [1.0])}).to_netcdf(tmp_path / "foreign.nc", engine="h5netcdf")
    with pytest.raises(ur.InputError, match="its format is None, .*analyse again"):
        ur.load(tmp_path / "foreign.nc")
    older = named.data.assign_attrs(format="unitroles taxonomy 0")
    older.to_netcdf(tmp_path / "older.nc", engine="h5netcdf")
    with pytest.raises(ur.InputError, match="its format is .* 0', this version reads"):
        ur.load(tmp_path / "older.nc")


def test_a_file_of_the_format_before_is_read():
    """Written by 0.1.0 before its release, of three classes and five units, with all evidence."""
    file = Path(__file__).with_name("format2.nc")
    with xr.open_dataset(file, engine="h5netcdf") as raw:
        old = raw.load()
    found = ur.load(file)
    for before, now in {
        "floor_share": "noise_floor_proportion",
        "floor_unit_std": "noise_floor_std_over_units",
        "floor_regret": "noise_floor_regret",
        "floor_samples": "noise_floor_samples",
        "resplit_share": "resplit_proportion",
        "share_replicate": "proportion_replicate",
        "unit_std_replicate": "std_over_units_replicate",
        "control_share": "control_proportion",
    }.items():
        assert before not in found.data
        np.testing.assert_array_equal(found.data[now].values, old[before].values)
    assert found.provenance["options"]["evidence"]["bootstrap"] == "full"
    assert "confidence" not in found.provenance["options"]["evidence"]
    assert {len(getattr(found, name)()) > 0 for name in found.tables} == {True}
    assert {"floors", "signs", "exchangeability", "intervals", "controls"} <= set(found.tables)


def test_words_of_the_format_before_are_read_as_those_of_today(tmp_path):
    file = Path(__file__).with_name("format2.nc")
    with xr.open_dataset(file, engine="h5netcdf") as raw:
        old = raw.load()
    old["status"] = old.status.astype(object)
    old["status"][1, 2] = "never below the dead layer"
    old["loss"][1, 2, 0] = 0.0  # which is then so
    made = json.loads(old.attrs["provenance"])
    made["options"]["evidence"]["confidence"] = "given_order"
    old.attrs["provenance"] = json.dumps(made)
    old.to_netcdf(tmp_path / "old.nc", engine="h5netcdf")
    found = ur.load(tmp_path / "old.nc")
    assert found.flagged() == ["c"]
    assert found.provenance["options"]["evidence"]["bootstrap"] == "fixed_ranking"
    again = ur.load(found.save(tmp_path / "new.nc"))
    xr.testing.assert_identical(again.data, found.data)


def test_there_is_room_for_a_digest_and_for_groups(named, tmp_path):
    """Of later versions: whoever does not know them reads the rest."""
    file = named.save(tmp_path / "a.nc")
    xr.Dataset({"image": ("x", [1.0])}).to_netcdf(file, engine="h5netcdf", mode="a", group="more")
    with h5py.File(file, "a") as root:
        root.attrs["digest"] = "sha256:0"
    found = ur.load(file)
    xr.testing.assert_identical(found.data.drop_attrs(), named.data.drop_attrs())


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.9])
def test_a_cut_off_file_is_refused(named, tmp_path, keep):
    whole = named.save(tmp_path / "a.nc").read_bytes()
    kept = keep if isinstance(keep, int) else int(keep * len(whole))
    (tmp_path / "cut.nc").write_bytes(whole[:kept])
    with pytest.raises(ur.InputError, match="cut.nc is not a taxonomy"):
        ur.load(tmp_path / "cut.nc")


@pytest.mark.parametrize("content", [b"label,role\n", b"PK\x03\x04", b"CDF\x01" + bytes(40)])
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    (tmp_path / "other.nc").write_bytes(content)
    with pytest.raises(ur.InputError, match="other.nc is not a taxonomy"):
        ur.load(tmp_path / "other.nc")


@pytest.mark.filterwarnings("ignore:The 'phony_dims'")
def test_a_plain_hdf5_file_is_refused(tmp_path):
    with h5py.File(tmp_path / "plain.h5", "w") as file:
        file["images"] = np.zeros((3, 3))
    with pytest.raises(ur.InputError, match="plain.h5 is not a taxonomy"):
        ur.load(tmp_path / "plain.h5")


def test_roles_names_every_unit_of_every_label(named):
    table = named.roles()
    assert table.shape == (LABELS, UNITS)
    assert (table.index.name, table.columns.name) == ("label", "unit")
    assert table.index.tolist() == NAMES
    for label, unit in np.ndindex(LABELS, UNITS):
        assert table.iloc[label, unit] == ROLE_NAMES[int(named.data.role[label, unit]) - 1]


def test_proportions_are_per_label_and_add_up(named):
    table = named.proportions()
    assert table.index.tolist() == NAMES
    assert table.columns.tolist() == ROLE_NAMES
    np.testing.assert_allclose(table.sum(axis=1), 1, rtol=1e-12)
    for label, role in np.ndindex(LABELS, 4):
        expected = (named.data.role.values[label] == role + 1).mean()
        assert table.iloc[label, role] == pytest.approx(expected)


def test_shares_are_per_unit_and_add_up(named):
    table = named.shares()
    assert table.index.tolist() == list(range(UNITS))
    assert (table.index.name, table.columns.name) == ("unit", "role")
    np.testing.assert_allclose(table.sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(table.mean(), named.proportions().mean(), rtol=1e-12)
    assert table.loc[3, "core"] == pytest.approx((named.data.role.values[:, 3] == 1).mean())


def test_summary_has_population_deviations(named):
    table = named.summary()
    assert table.index.tolist() == ROLE_NAMES
    assert table.columns.tolist() == ["mean", "std_over_labels", "std_over_units"]
    assert table["mean"].sum() == pytest.approx(1)
    np.testing.assert_allclose(table["mean"], named.proportions().mean())
    np.testing.assert_allclose(table["std_over_labels"], named.proportions().std(ddof=0))
    np.testing.assert_allclose(table["std_over_units"], named.shares().std(ddof=0))


def test_summary_may_leave_out_flagged_classes():
    loss = np.tile([2.0, 1.0, 0.5, 0.75, 0.75], (2, 3, 1))
    loss[1, 1] = [0.5, 2.0, 1.0, 1.5, 1.5]  # on one split only
    taxonomy = built(loss, names=["a", "b", "c"])
    assert taxonomy.flagged() == ["b"]
    assert taxonomy.data.status.sel(split="test").values.tolist() == [
        "clear minimum",
        "never below the fully ablated layer",
        "clear minimum",
    ]
    kept = taxonomy.proportions().loc[["a", "c"]]
    assert not kept.mean().equals(taxonomy.proportions().mean())
    np.testing.assert_allclose(taxonomy.summary()["mean"], taxonomy.proportions().mean())
    without = taxonomy.summary(flagged=False)
    np.testing.assert_allclose(without["mean"], kept.mean())
    np.testing.assert_allclose(without["std_over_labels"], kept.std(ddof=0))


def test_summary_of_flagged_classes_alone_is_empty():
    taxonomy = built(np.tile([0.5, 2.0, 1.0, 1.5, 1.5], (2, 3, 1)))
    assert taxonomy.flagged() == [2, 5, 7]
    assert taxonomy.summary(flagged=False).shape == (4, 3)
    assert taxonomy.summary(flagged=False).isna().all(axis=None)


def test_sensitivity_has_a_row_for_every_rule(named):
    table = named.sensitivity()
    assert table.index.name == "rule"
    assert len(table) == 6
    assert table.columns.tolist() == ROLE_NAMES
    np.testing.assert_allclose(table.sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(table.loc["tolerance 1e-06"], named.summary()["mean"])
    assert table.loc["tolerance 0.05", "confusing"] >= table.loc["tolerance 0", "confusing"]


def test_regret_is_the_cost_of_the_other_set():
    table = built().regret()
    assert table.columns.tolist() == ["train", "test", "train_accuracy", "test_accuracy"]
    # E(n0) is 0.5 and the accuracy there 0.5, on both splits of every class.
    assert table["train"].tolist() == [0.25, 0, 0]
    assert table["test"].tolist() == [1, -0.25, 0]
    assert table["train_accuracy"].tolist() == [0.25, 0, 0]
    assert table["test_accuracy"].tolist() == [0.5, -0.25, 0]


def test_the_tidy_frame_has_one_row_per_label_and_unit(named):
    frame = named.to_frame()
    assert frame.columns.tolist() == [
        "label",
        "unit",
        "role",
        "score_train",
        "score_test",
        "position_train",
        "position_test",
    ]
    assert len(frame) == LABELS * UNITS
    for row in frame.itertuples():
        label = NAMES.index(row.label)
        assert row.role == named.roles().loc[row.label, row.unit]
        for split in ("train", "test"):
            place = {"split": split, "label": row.label}
            position = getattr(row, f"position_{split}")
            assert named.data.order.sel(place).values[position] == row.unit
            score = float(named.data.score.sel(split=split)[label, row.unit])
            assert getattr(row, f"score_{split}") == score


def test_the_tidy_curves_have_one_row_per_point(named):
    frame = named.curves()
    assert frame.columns.tolist() == ["split", "label", "retrieved", "loss", "accuracy"]
    assert len(frame) == 2 * LABELS * (UNITS + 1)
    some = frame[(frame.split == "test") & (frame.label == "dog")]
    assert some.retrieved.tolist() == list(range(UNITS + 1))
    np.testing.assert_array_equal(some.loss, named.data.loss.sel(split="test", label="dog"))
    np.testing.assert_array_equal(some.accuracy, named.data.accuracy.sel(split="test", label="dog"))


@pytest.mark.parametrize("role", ROLE_NAMES)
def test_units_come_strongest_first(named, role):
    split = "test" if role == "generalizing" else "train"
    found = 0
    for label in NAMES:
        units = named.units(role, label)
        assert set(units) == set(np.flatnonzero(named.roles().loc[label] == role))
        scores = named.data.score.sel(split=split, label=label).values[units]
        assert (np.diff(scores) <= 0).all()
        found += len(units)
    assert found > 0


def test_generalizing_units_are_ranked_by_the_test_split():
    loss = np.tile([2.0, 1.0, 0.5, 0.75, 0.75], (2, 3, 1))
    loss[0, 0, 1], loss[1, 0, 3] = 0.25, 0.25
    taxonomy = built(loss)
    # On train unit 0 is active, on test 1, 3 and 2, which come as 1, 2, 3 on train.
    assert taxonomy.units("overfitted", 2).tolist() == [0]
    assert taxonomy.units("generalizing", 2).tolist() == [1, 3, 2]


def test_units_takes_a_role_by_name_number_or_member(named):
    expected = named.units("core", "cat").tolist()
    assert expected
    for role in ("CORE", 1, ur.Role.CORE):
        assert named.units(role, "cat").tolist() == expected
    assert named.units("core", 2).tolist() == expected
    assert named.units("undecided", "cat").tolist() == []


def test_a_label_is_found_by_name_and_by_number():
    taxonomy = built(names=["two", "five", "seven"])
    assert [taxonomy.find_label(name) for name in ("two", "five", "seven")] == [0, 1, 2]
    assert [taxonomy.find_label(number) for number in (2, 5, 7)] == [0, 1, 2]
    assert [built().find_label(number) for number in (2, 5, 7)] == [0, 1, 2]


@pytest.mark.parametrize("label", [0, "fife", "5"])
def test_an_unknown_label_lists_the_known(label):
    taxonomy = built(names=["two", "five", "seven"])
    with pytest.raises(ur.InputError, match=f"unknown label {label!r}.*known: two, five, seven"):
        taxonomy.units("core", label)


def test_a_role_is_found_by_name_or_number():
    assert [ur.Role.of(name) for name in ROLE_NAMES] == [1, 2, 3, 4]
    assert [ur.Role.of(number) for number in range(5)] == list(ur.Role)
    assert ur.Role.of("Core") is ur.Role.of(ur.Role.CORE) is ur.Role.CORE


@pytest.mark.parametrize("role", ["cores", 5, -1, ""])
def test_an_unknown_role_lists_the_known(role):
    with pytest.raises(ur.InputError, match=f"unknown role {role!r}.*known: core, overfitted"):
        ur.Role.of(role)


def test_a_near_role_is_suggested():
    with pytest.raises(ur.InputError, match="did you mean overfitted"):
        ur.Role.of("overfit")


def test_the_text_form_shows_layer_sizes_and_summary(named):
    text = repr(named)
    assert text.startswith("Taxonomy(layer='1', units=12, labels=4)")
    assert all(role in text for role in ROLE_NAMES)


def test_provenance_says_how_the_result_came_about(named):
    record = named.provenance
    assert record == json.loads(named.data.attrs["provenance"])
    options = record["options"]
    assert record["layer"] == {"path": "1", "axis": 1, "call": 0}
    assert options["method"]["order"] == "per_split"
    assert options["method"]["score"] == "activation_l1"
    assert options["method"]["tolerance"] == 1e-6
    assert options["sample"]["seed"] == 0
    assert options["compute"]["batch_size"] is None
    assert record["samples_per_forward"] == 256
    assert record["plan"]["name"] == named.data.attrs["plan"]
    assert record["plan"]["reason"].startswith("what the units meet in is a running sum")
    assert record["self_check"]["difference"] <= record["self_check"]["tolerance"]
    assert record["self_check"]["conclusive"]
    assert set(record["stages"]) == {"prepare", "body", "sweep"}
    assert sum(record["stages"].values()) == pytest.approx(record["seconds"], abs=0.01)
    assert record["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert record["versions"]["unitroles"] == ur.__version__
    assert record["machine"]["device"] == "cpu"
    assert record["machine"]["threads"] == torch.get_num_threads()
    assert record["model"]["class"] == "Sequential"
    assert record["warnings"] == []
    assert 0 < record["seconds"] < 600


def test_the_fingerprint_follows_the_weights(named, numbered):
    assert named.provenance["model"] == numbered.provenance["model"]
    toy = networks.toy("mlp")
    with torch.no_grad():
        toy.model[4].bias[0] += 1e-3
    changed = ur.analyze(toy.model, toy.train, toy.test, layer="1", progress=False)
    assert changed.provenance["model"]["sha256"] != named.provenance["model"]["sha256"]
    assert len(changed.provenance["model"]["sha256"]) == 64


def unchecked(options, **values):
    """Options given values that the type checks of the tests would refuse, but a user's run not."""
    for name, value in values.items():
        object.__setattr__(options, name, value)
    options.__post_init__()
    return options


def test_values_of_numpy_and_torch_can_be_recorded(tmp_path):
    toy = networks.toy("mlp")
    taxonomy = ur.analyze(
        toy.model,
        toy.train,
        toy.test,
        layer="1",
        progress=False,
        sample=unchecked(ur.Sample(), classes=np.array([0, 2])),
        compute=unchecked(ur.Compute(), device=torch.device("cpu")),
        method=ur.Method(score=lambda units: units.amax(dim=2)),
    )
    assert taxonomy.labels == [0, 2]
    options = ur.load(taxonomy.save(tmp_path / "a.nc")).provenance["options"]
    assert options["sample"]["classes"] == [0, 2]
    assert options["compute"]["device"] == "cpu"
    assert "lambda" in options["method"]["score"]


def test_a_set_is_a_mapping_with_the_tables_of_its_members(named):
    small = built()
    members = ur.TaxonomySet({"mlp": named, "hand": small})
    assert list(members) == ["mlp", "hand"]
    assert len(members) == 2
    assert members["hand"] is small
    assert dict(members) == {"mlp": named, "hand": small}
    assert repr(members) == "TaxonomySet(mlp, hand)"
    for table in ("proportions", "shares", "summary", "sensitivity", "regret"):
        stacked = getattr(members, table)()
        assert stacked.index.names[0] == "name"
        for name, member in members.items():
            alone = getattr(member, table)()
            np.testing.assert_array_equal(stacked.loc[name], alone)
            assert stacked.loc[name].index.tolist() == alone.index.tolist()
            assert stacked.columns.tolist() == alone.columns.tolist()
        assert len(stacked) == sum(len(getattr(m, table)()) for m in members.values())


def test_a_set_says_which_members_it_has(named):
    members = ur.TaxonomySet({"mlp": named})
    assert "mpl" not in members
    with pytest.raises(KeyError, match="unknown member 'mpl'; did you mean mlp"):
        members["mpl"]


def test_several_layers_are_analysed_into_a_set():
    toy = networks.toy("mlp")
    layers = ["1", ur.Layer("3")]
    members = ur.analyze_layers(toy.model, toy.train, toy.test, layers, progress=False)
    assert list(members) == ["1", "3"]
    assert [member.layer for member in members.values()] == ["1", "3"]
    assert [member.data.sizes["unit"] for member in members.values()] == [12, 8]


def test_a_layer_given_twice_is_refused():
    toy = networks.toy("relu_twice")
    first, last = ur.Layer("relu", call=0), ur.Layer("relu", call=1)
    for layers in ([first, last], ["relu", last], [toy.model.relu, first]):
        with pytest.raises(ur.InputError, match="layer 'relu' is given twice"):
            quietly(ur.analyze_layers, toy.model, toy.train, toy.test, layers)


def test_the_tolerance_in_use_is_a_row_of_the_sensitivity():
    x, y = torch.randn(24, 4, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 2
    net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2))
    method = ur.Method(tolerance=0.02)
    taxonomy = ur.analyze(net, (x[:12], y[:12]), (x[12:], y[12:]), method=method, progress=False)
    row = taxonomy.sensitivity().loc["tolerance 0.02"]
    np.testing.assert_allclose(row, taxonomy.summary()["mean"], atol=1e-12)
    assert taxonomy.tolerance == 0.02


def test_saving_never_replaces_what_is_no_file_and_follows_links(tmp_path):
    x, y = torch.randn(24, 4, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 2
    net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2))
    taxonomy = ur.analyze(net, (x[:12], y[:12]), (x[12:], y[12:]), progress=False)
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(ur.InputError, match="it is no file"):
        taxonomy.save(folder)
    (tmp_path / "link.nc").symlink_to(tmp_path / "real.nc")
    taxonomy.save(tmp_path / "link.nc")
    assert (tmp_path / "link.nc").is_symlink()
    assert ur.load(tmp_path / "real.nc").data.identical(taxonomy.data)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "link.nc", "real.nc"]
    with pytest.raises(ur.InputError, match="cannot write"):
        taxonomy.save(tmp_path / ("n" * 300))
