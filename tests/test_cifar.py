"""A network with real weights on real images: the CIFAR-10 ResNet-20 of the shared data."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reference
import unitroles as ur
from forcing import PLANS, forced, quietly
from unitroles.weights import load_weights

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.xdist_group("cifar"),
]

LAYERS = {"layer3": 64, "layer2.0": 32}
PUBLISHED = 0.917  # on the whole test set
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


class Block(nn.Module):
    """Where it halves the image, the shortcut takes every other pixel and pads the channels."""

    def __init__(self, before: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.padding = stride, (width - before) // 2

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        x = x[:, :, :: self.stride, :: self.stride]
        return F.relu(h + F.pad(x, (0, 0, 0, 0, self.padding, self.padding)))


class ResNet20(nn.Module):
    """He et al. 2016, section 4.2, with option A: shortcuts without parameters."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(Block(before, width, stride), *(Block(width, width, 1) for _ in range(2)))
            for before, width, stride in ((16, 16, 1), (16, 32, 2), (32, 64, 2))
        )
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(h.mean((2, 3)))


def existing(folder, name):
    path = folder / name
    if not path.is_file():
        pytest.skip(f"there is no {name} in the shared data")
    return path


@pytest.fixture(scope="module")
def cifar(shared_data):
    """Splits as (images normalised, labels), and the names of the classes."""
    with np.load(existing(shared_data, "cifar10-small.npz")) as file:
        arrays = {name: file[name] for name in file.files}
    splits = {}
    for name in ("train", "test"):
        pixels = torch.from_numpy(arrays[f"{name}_images"]).permute(0, 3, 1, 2).float() / 255
        splits[name] = (pixels - MEAN) / STD, torch.from_numpy(arrays[f"{name}_labels"]).long()
    return splits["train"], splits["test"], [str(name) for name in arrays["classes"]]


@pytest.fixture(scope="module")
def resnet(shared_data):
    """The file's names begin with "module.", which is taken off."""
    model = ResNet20()
    load_weights(model, existing(shared_data, "resnet20-12fca82f.th"))
    return model.eval().requires_grad_(False)


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
    # Waking units helps: far better than the dead layer, in every class of both splits.
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
                awake = curve.order.values[:n]
                loss, hits = reference.performance(resnet, layer, own, label, awake)
                np.testing.assert_allclose(curve.loss[n], loss, rtol=1e-5, atol=1e-5)
                assert curve.accuracy[n] == hits
