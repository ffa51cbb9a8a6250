"""A user's own loss in place of cross-entropy, and samples classed by another column."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reference
import unitroles as ur
from forcing import BATCH, PLANS, forced, one_copy, quietly
from unitroles.engine import additive
from unitroles.report import text

pytestmark = pytest.mark.usefixtures("one_thread")


class Regression(nn.Module):
    """Outputs of any shape for one sample."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden = nn.Linear(6, 5)
        self.relu = nn.ReLU()
        self.out = nn.Linear(5, int(np.prod(shape)))
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.relu(self.hidden(x))).view(-1, *self.shape)


def squares(outputs: Tensor, labels: Tensor) -> Tensor:
    return (outputs - labels).square().flatten(1).mean(dim=1)


def cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs, labels, reduction="none")


def halves(shape: tuple[int, ...], labels: Tensor | None = None):
    """Both splits of 20 samples, with real-valued labels, and two groups of them."""
    draw = torch.Generator().manual_seed(1)
    found = []
    for _ in range(2):
        x = torch.randn(20, 6, generator=draw)
        y = torch.randn(20, *shape, generator=draw) if labels is None else labels
        found.append((x, y, (x[:, 0] > 0).long()))
    return found


def same(taxonomy: ur.Taxonomy, twin: reference.Reference, tolerance: float) -> None:
    data = taxonomy.data
    for name in ("score", "loss", "swapped_loss", "accuracy", "swapped_accuracy"):
        np.testing.assert_allclose(data[name], getattr(twin, name), rtol=tolerance, atol=tolerance)
    for name in ("order", "turning_point", "role"):
        np.testing.assert_array_equal(data[name], getattr(twin, name))


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("shape", [(1,), (3,), (2, 4)])
def test_losses_of_numbers_equal_the_twin(shape, plan):
    model = Regression(shape).double()
    (x, y, g), (u, v, h) = halves(shape)
    x, y, u, v = (t.double() for t in (x, y, u, v))
    method = ur.Method(loss=squares)
    sample = ur.Sample(group_by={"train": g, "test": h.numpy()})
    with forced(plan):
        found = quietly(
            ur.analyze, model, (x, y), (u, v), layer="relu", method=method, sample=sample
        )
    twin = reference.analyze(model, "relu", (x, y), (u, v), loss=squares, groups=(g, h))
    same(found, twin, 1e-10)
    assert found.data.attrs["plan"] == plan
    assert np.isnan(found.data.accuracy).all()
    assert np.isnan(found.gap)


def test_an_output_without_an_axis_for_its_numbers():
    model = Regression(())
    (x, y, g), (u, v, h) = halves(())
    method = ur.Method(loss=lambda outputs, labels: (outputs - labels).square())
    sample = ur.Sample(group_by={"train": g, "test": h})
    found = quietly(ur.analyze, model, (x, y), (u, v), layer="relu", method=method, sample=sample)
    with torch.no_grad():
        whole = (model(u) - v).square()[h == 1].mean()
    assert found.data.loss.sel(split="test")[1, -1].item() == pytest.approx(float(whole), rel=1e-5)


@pytest.mark.parametrize("plan", PLANS)
def test_cross_entropy_as_an_own_loss_is_the_built_in_one(plan):
    toy = one_copy("conv_pool_linear", torch.float64)
    layer = ur.Layer(toy.layer, toy.axis, toy.call)
    with forced(plan):
        built_in = quietly(ur.analyze, toy.model, toy.train, toy.test, layer=layer)
        own = quietly(
            ur.analyze,
            toy.model,
            toy.train,
            toy.test,
            layer=layer,
            method=ur.Method(loss=cross_entropy),
        )
    for name in ("loss", "swapped_loss"):
        np.testing.assert_allclose(own.data[name], built_in.data[name], atol=1e-12)
    for name in ("accuracy", "swapped_accuracy", "turning_point", "role"):
        np.testing.assert_array_equal(own.data[name], built_in.data[name])


def test_a_loss_that_writes_to_the_outputs_changes_nothing_else():
    toy = one_copy("conv_pool_linear", torch.float32)

    def writing(outputs: Tensor, labels: Tensor) -> Tensor:
        found = cross_entropy(outputs, labels)
        outputs.zero_()
        return found

    layer, split = ur.Layer(toy.layer, toy.axis, toy.call), (toy.train, toy.test)
    first, second = (
        quietly(ur.analyze, toy.model, *split, layer=layer, method=ur.Method(loss=loss))
        for loss in (cross_entropy, writing)
    )
    np.testing.assert_array_equal(first.data.loss, second.data.loss)


def test_tables_and_files_say_what_was_measured(tmp_path):
    model = Regression((1,))
    (x, y, g), (u, v, h) = halves((1,))
    found = quietly(
        ur.analyze,
        model,
        (x, y),
        (u, v),
        layer="relu",
        class_names=["low", "high"],
        method=ur.Method(loss=squares),
        sample=ur.Sample(group_by={"train": g, "test": h}),
    )
    again = ur.load(found.save(tmp_path / "a.nc"))
    assert again.labels == ["low", "high"]
    assert again.loss_units == "units of the loss"
    assert not again.scored
    printed = text.report(again)
    assert "squares" in printed
    assert "nats" not in printed
    assert "not measured" in printed
    assert "nan" not in printed
    assert "(grouped by given arrays)" in printed
    assert "accuracy" not in again.sensitivity().index


def wrong(outputs: Tensor, labels: Tensor) -> Tensor:
    raise RuntimeError("no such thing")


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (lambda outputs, labels: squares(outputs, labels).mean(), "reduction='none'"),
        (lambda outputs, labels: (outputs - labels).square(), "one number per sample"),
        (lambda outputs, labels: squares(outputs, labels) / 0, "is not finite"),
        (wrong, "the loss cannot be computed .* no such thing"),
    ],
)
def test_losses_that_cannot_be_used(loss, said):
    (x, y, g), (u, v, h) = halves((1,))
    with pytest.raises(ur.InputError, match=said):
        ur.analyze(
            Regression((1,)),
            (x, y),
            (u, v),
            layer="relu",
            method=ur.Method(loss=loss),
            sample=ur.Sample(group_by={"train": g, "test": h}),
        )


def test_numbers_as_labels_need_groups():
    (x, y, _), (u, v, _) = halves((1,))
    with pytest.raises(ur.InputError, match=r"groups with Sample\(group_by=\.\.\.\)"):
        ur.analyze(Regression((1,)), (x, y), (u, v), "relu", method=ur.Method(loss=squares))


def test_a_loss_must_be_a_function():
    method = ur.Method()
    object.__setattr__(method, "loss", "mse")  # past the checked types of the tests
    with pytest.raises(ur.InputError, match="loss must be a function"):
        method.__post_init__()


def test_a_plan_knows_the_loss():
    (x, y, g), (u, v, h) = halves((1,))
    found = ur.plan(
        Regression((1,)),
        (x, y),
        (u, v),
        layer="relu",
        method=ur.Method(loss=squares),
        sample=ur.Sample(group_by={"train": g, "test": h}),
        compute=BATCH,
    )
    assert (found.plan, found.labels) == ("additive", 2)
    assert found.seconds > 0


@pytest.mark.parametrize(
    "loss",
    [
        lambda outputs, labels: squares(outputs - outputs.mean(dim=0), labels),
        lambda outputs, labels: squares(outputs, labels) + torch.rand(len(outputs)),
    ],
)
def test_a_loss_that_couples_or_draws_is_refused(loss):
    (x, y, g), (u, v, h) = halves((3,))
    with pytest.raises(ur.InputError, match="differs between two calls, or alone and among others"):
        ur.analyze(
            Regression((3,)),
            (x, y),
            (u, v),
            layer="relu",
            method=ur.Method(loss=loss),
            sample=ur.Sample(group_by={"train": g, "test": h}),
        )


class Probabilities(nn.Module):
    """No output of it is 0, as the logarithm of a loss demands."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Sequential(nn.Linear(6, 24), nn.ReLU())
        self.out = nn.Sequential(nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 4), nn.Softmax(dim=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(x))


@pytest.mark.parametrize("plan", PLANS)
def test_points_that_no_one_asked_for_do_not_reach_the_loss(plan, monkeypatch):
    monkeypatch.setattr(additive, "_WORTH_A_WALK", 0)

    def log_loss(outputs: Tensor, labels: Tensor) -> Tensor:
        assert bool((outputs > 0).all())
        return -outputs[torch.arange(len(labels)), labels].log()

    draw = torch.Generator().manual_seed(3)
    split = torch.randn(40, 6, generator=draw), torch.arange(40) % 4
    with forced(plan):
        exact, adaptive = (
            quietly(
                ur.analyze,
                Probabilities(),
                split,
                split,
                layer="layer.1",
                method=ur.Method(loss=log_loss, resolution=resolution),
            )
            for resolution in ("exact", "adaptive")
        )
    seen = np.isfinite(adaptive.data.loss.values)
    assert seen.mean() < 1
    np.testing.assert_allclose(
        adaptive.data.loss.values[seen], exact.data.loss.values[seen], atol=1e-6
    )


def test_names_for_more_labels_than_outputs():
    (x, _, _), (u, _, _) = halves((1,))
    labels = torch.arange(20) % 5
    for names, said in ((["a"] * 3, "must differ"), (["a", "b", "c"], "label 4 occurs")):
        with pytest.raises(ur.InputError, match=said):
            ur.analyze(
                Regression((1,)),
                (x, labels),
                (u, labels),
                layer="relu",
                class_names=names,
                method=ur.Method(loss=lambda outputs, labels: squares(outputs, labels[:, None])),
            )


@pytest.mark.parametrize("kind", [torch.int32, torch.uint8])
def test_small_whole_labels_are_whole_labels(kind):
    x, _, g = halves((3,))[0]
    split = x, (torch.arange(20) % 3).to(kind)
    sample = ur.Sample(group_by={"train": g, "test": g})
    method = ur.Method(loss=cross_entropy)
    found = quietly(
        ur.analyze, Regression((3,)), split, split, layer="relu", method=method, sample=sample
    )
    assert found.scored
