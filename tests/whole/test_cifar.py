"""A network with real weights on real images: the CIFAR-10 ResNet-20 of the shared data."""

import numpy as np
import pytest
import torch

import reference
import unitroles as ur
from cifar import class_names, read_split, resnet20
from forcing import PLANS, forced, quietly

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.xdist_group("cifar"),
]

LAYERS = {"layer3": 64, "layer2.0": 32}
PUBLISHED = 0.917  # on the whole test set


@pytest.fixture(scope="module")
def cifar(shared_data):
    """Both splits, and the names of the classes."""
    train, test = (read_split(shared_data, split) for split in ("train", "test"))
    return train, test, class_names(shared_data)


@pytest.fixture(scope="module")
def resnet(shared_data):
    return resnet20(shared_data)


@pytest.fixture(scope="module")
def taxonomies(resnet, cifar):
    """All test images for the last layer, which is a running sum, and fewer for the early one."""
    train, test, names = cifar
    return {
        layer: quietly(
            ur.analyze,
            resnet,
            train,
            test,
            layer=layer,
            class_names=names,
            sample=ur.Sample(max_per_class=count),
            compute=ur.Compute(batch_size=100),
        )
        for layer, count in (("layer3", 200), ("layer2.0", 10))
    }


@torch.no_grad()
def accuracy(model, split) -> float:
    images, labels = split
    hits = [
        model(x).argmax(1) == y for x, y in zip(images.split(500), labels.split(500), strict=True)
    ]
    return float(torch.cat(hits).double().mean())


def test_the_intact_model_is_as_accurate_as_published(resnet, cifar, taxonomies):
    measured = accuracy(resnet, cifar[1])
    assert abs(measured - PUBLISHED) <= 0.015
    found = taxonomies["layer3"]
    assert found.data.attrs["test_accuracy"] == pytest.approx(measured, abs=1e-12)
    np.testing.assert_array_equal(found.data.samples, 200)
    assert found.gap > 0.05


@pytest.mark.parametrize(("layer", "units"), LAYERS.items())
def test_every_class_has_roles_that_sum_to_one(layer, units, taxonomies, cifar):
    taxonomy, names = taxonomies[layer], cifar[2]
    assert taxonomy.labels == names
    shares = taxonomy.proportions()
    assert shares.index.tolist() == names
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-12)
    assert taxonomy.roles().shape == (10, units)
    point = taxonomy.data.turning_point
    for split, other in (("train", "overfitted"), ("test", "generalizing")):
        active = (shares.core + shares[other]) * units
        np.testing.assert_allclose(active, point.sel(split=split), rtol=1e-9)


def test_the_last_layer_is_folded_and_has_roles_of_several_kinds(taxonomies):
    data = taxonomies["layer3"].data
    assert data.attrs["plan"] == "additive"
    assert "running sum" in taxonomies["layer3"].provenance["plan"]["reason"]
    assert len(np.unique(data.role)) >= 3
    # Retrieving units helps: far below the fully ablated layer, in every class of both splits.
    assert taxonomies["layer3"].flagged() == []


@pytest.mark.parametrize("layer", LAYERS)
def test_a_saved_taxonomy_loads_equal(layer, taxonomies, tmp_path):
    taxonomy = taxonomies[layer]
    again = ur.load(taxonomy.save(tmp_path / "roles.nc"))
    assert again.data.identical(taxonomy.data)
    assert again.summary().equals(taxonomy.summary())


def first(split, count, classes=range(10)):
    """The first images of some classes."""
    images, labels = split
    rows = torch.cat([torch.nonzero(labels == label)[:count, 0] for label in classes])
    return images[rows], labels[rows]


@pytest.mark.parametrize(("layer", "plans"), [("layer3", 3), ("layer2.0", 2)])
def test_all_plans_are_equal(layer, plans, resnet, cifar):
    """The early layer has no running sum: units leave it on two ways."""
    train, test = (first(split, 2) for split in cifar[:2])
    found = {}
    for plan in PLANS[-plans:]:
        with forced(plan):
            found[plan] = quietly(ur.analyze, resnet, train, test, layer=layer).data
        assert found[plan].attrs["plan"] == plan
    full = found["full"]
    assert np.ptp(full.loss.values, axis=2).min() > 0.01
    for data in found.values():
        np.testing.assert_array_equal(data.order, full.order)
        np.testing.assert_array_equal(data.turning_point, full.turning_point)
        np.testing.assert_array_equal(data.role, full.role)
        np.testing.assert_allclose(data.score, full.score, rtol=1e-5)
        np.testing.assert_allclose(data.loss, full.loss, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layer", LAYERS)
def test_the_curves_are_those_of_clone_and_zero(layer, resnet, cifar):
    train, test = (first(split, 3, classes=(3, 5)) for split in cifar[:2])
    data = quietly(ur.analyze, resnet, train, test, layer=layer).data
    for split, (images, labels) in enumerate((train, test)):
        for place, label in enumerate((3, 5)):
            own, curve = images[labels == label], data.isel(split=split, label=place)
            score = reference.score(resnet, layer, own)
            np.testing.assert_allclose(curve.score, score, rtol=1e-5)
            for n in (0, 1, 5, 20, curve.sizes["unit"]):
                retrieved = curve.order.values[:n]
                loss, hits = reference.performance(resnet, layer, own, label, retrieved)
                np.testing.assert_allclose(curve.loss[n], loss, rtol=1e-5, atol=1e-5)
                assert curve.accuracy[n] == hits
