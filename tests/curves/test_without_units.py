"""Models that divide by the size of what a layer gives: with no unit retrieved, 0 by 0."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import reference
import unitroles as ur
from forcing import forced, observe
from unitroles import plots
from unitroles.errors import PlanWarning
from unitroles.report import text

pytestmark = pytest.mark.usefixtures("one_thread")

UNITS, CLASSES, EACH = 9, 3, 7
LABELS = torch.arange(CLASSES).repeat_interleave(EACH)
SAID = "with no unit of layer 'body.1' retrieved the loss is not a number"


class Cosine(nn.Module):
    """Logits by the angle between features and classes, as CLIP and ArcFace have them."""

    def __init__(self, activation: type[nn.Module] = nn.Tanh, around: bool = False):
        super().__init__()
        last = nn.Linear(UNITS, 5, bias=False)
        self.body = nn.Sequential(nn.Linear(6, UNITS), activation(), last)
        self.classes = nn.Parameter(torch.randn(5, CLASSES))
        self.around = around

    def forward(self, x: Tensor) -> Tensor:
        f = self.body(x)
        if self.around:  # only samples of a negative first number have nothing left
            f = f + x[:, :1].clamp(min=0)
        return 4 * (f / f.norm(dim=-1, keepdim=True)) @ self.classes


class Bare(nn.Module):
    """The units' own length, without a layer between."""

    def __init__(self, units: int = UNITS):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, units), nn.Tanh())
        self.last = nn.Linear(units, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        f = self.body(x)
        return self.last(f / f.norm(dim=-1, keepdim=True))


def splits(seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    return [(torch.randn(len(LABELS), 6, generator=draw), LABELS) for _ in range(2)]


def build(make, seed: int = 0, **options) -> nn.Module:
    torch.manual_seed(seed)
    return make(**options).eval()


def analyzed(net: nn.Module, plan: str = "additive", **options):
    with forced(plan):
        return observe(ur.analyze, net, *splits(), layer="body.1", progress=False, **options)


def twin(net: nn.Module, taxonomy: ur.Taxonomy) -> tuple[np.ndarray, np.ndarray]:
    """Loss and accuracy of every split, class and n, one sample alone at a time."""
    found = np.zeros((2, 2, CLASSES, UNITS + 1))
    for split, (x, y) in enumerate(splits()):
        for label in range(CLASSES):
            order = taxonomy.data.order.values[split, label]
            for n in range(UNITS + 1):
                outputs = [
                    reference.masked_logits(net, "body.1", one[None], order[:n])
                    for one in x[y == label]
                ]
                losses = [reference.sample_loss(out, label) for out in outputs]
                found[0, split, label, n] = np.mean(losses)
                found[1, split, label, n] = np.mean([int(out.argmax()) == label for out in outputs])
    return found[0], found[1]


@pytest.mark.parametrize(
    ("net", "plan"),
    [
        *((build(Cosine), plan) for plan in ("additive", "suffix", "full")),
        *((build(Cosine, around=True), plan) for plan in ("additive", "full")),
        *((build(Bare), plan) for plan in ("suffix", "full")),
    ],
)
def test_all_but_the_loss_without_units_is_that_of_samples_alone(net, plan):
    taxonomy, said = analyzed(net, plan)
    data = taxonomy.data
    assert data.plan == plan
    loss, accuracy = twin(net, taxonomy)
    assert np.isnan(loss[..., 0]).all()
    assert np.isnan(data.loss.values[..., 0]).all()
    assert np.isnan(data.accuracy.values[..., 0]).all()
    np.testing.assert_allclose(data.loss.values[..., 1:], loss[..., 1:], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(data.accuracy.values[..., 1:], accuracy[..., 1:])
    point = [[reference.turning_point(curve) for curve in rows] for rows in data.loss.values]
    assert data.turning_point.values.tolist() == point
    assert [SAID in note for note in said].count(True) == 1
    if plan != "full":
        assert len(said) == 1  # no plan was given up for it


def test_no_class_is_flagged_and_the_reader_is_told():
    taxonomy, _ = analyzed(build(Cosine))
    assert taxonomy.flagged() == []
    assert not np.isin(taxonomy.data.status.values, ["never below the fully ablated layer"]).any()
    (caution,) = [one for one in text.cautions(taxonomy) if SAID in one]
    assert "no class can be flagged" in caution
    assert "Method(baseline='mean')" in caution
    assert caution in text.report(taxonomy)


def test_a_mean_gives_the_fully_ablated_layer_a_loss():
    taxonomy, said = analyzed(build(Cosine), method=ur.Method(baseline="mean"))
    assert np.isfinite(taxonomy.data.loss.values).all()
    assert not said


@pytest.mark.parametrize("resolution", ["adaptive", 4])
def test_points_left_out_stay_apart_from_the_loss_that_is_none(resolution):
    units = 40  # of fewer than 13 adaptive curves are exact
    whole, _ = analyzed(build(Bare, units=units), "suffix")
    method = ur.Method(resolution=resolution)
    coarse, _ = analyzed(build(Bare, units=units), "suffix", method=method)
    known = np.isfinite(coarse.data.loss.values)
    assert known.any(axis=-1).all()
    assert not known[..., 0].any()
    np.testing.assert_allclose(coarse.data.loss.values[known], whole.data.loss.values[known])
    share = np.mean(known | (np.arange(units + 1) == 0))  # there it was evaluated too
    assert share < 0.8
    assert f"({100 * share:.0f} % of the curves' points evaluated;" in text.report(coarse)
    if resolution == "adaptive":
        low = [np.nanmin(found.data.loss.values[..., 1:], axis=-1) for found in (coarse, whole)]
        assert 0 <= (low[0] - low[1]).max() < 0.02


@pytest.mark.parametrize("bootstrap", ["full", "fixed_ranking"])
@pytest.mark.parametrize("plan", ["additive", "full"])
def test_evidence_has_gaps_at_no_unit_alone(bootstrap, plan, tmp_path):
    asked = ur.Evidence(bootstrap=bootstrap, floors=3, resplits=3, controls=True)
    taxonomy, _ = analyzed(build(Cosine), plan, evidence=asked)
    taxonomy.save(tmp_path / "a.nc")
    taxonomy = ur.load(tmp_path / "a.nc")
    for name, values in taxonomy.data.data_vars.items():
        gaps = values.isnull()
        if "retrieved" in values.dims:
            assert gaps.isel(retrieved=0).all(), name
            gaps = gaps.isel(retrieved=slice(1, None))
        assert not gaps.any(), name
    for name in taxonomy.tables:
        assert len(getattr(taxonomy, name)())
    assert text.report(taxonomy)
    for draw in (plots.rof_curve, plots.role_curves):
        axes = np.ravel(draw(taxonomy, 0))
        words = [one.get_text() for one in axes[0].texts]
        assert not [word for word in words if "nan" in word]
        axes[0].figure.savefig(tmp_path / "a.png")
        (line, *_) = axes[0].get_lines()
        assert line.get_marker() == "None"  # all points that have a loss were evaluated
    plots.compare({"a": taxonomy}, 0).savefig(tmp_path / "a.png")


def test_a_sample_that_no_retrieved_unit_answers_is_refused_with_the_remedy():
    said = (
        r"the loss of train sample \d+ \(label \d\) is not finite with some units of layer "
        r"'body\.1' ablated, but is with others: .*0 by 0; give Method\(baseline='mean'\)"
    )
    with pytest.raises(ur.InputError, match=said):
        analyzed(build(Cosine, activation=nn.ReLU))
    taxonomy, _ = analyzed(build(Cosine, activation=nn.ReLU), method=ur.Method(baseline="mean"))
    assert np.isfinite(taxonomy.data.loss.values).all()


def test_removing_all_units_gives_no_loss_and_is_said():
    net, (data, _) = build(Cosine), splits()
    with pytest.warns(PlanWarning, match=SAID):
        found = ur.cumulative_ablation(net, data, layer="body.1", progress=False)
    expected = reference.cumulative_ablation(net, "body.1", data, found.order.values)
    np.testing.assert_allclose(found.loss, expected["loss"], rtol=0, atol=1e-5)
    assert np.isnan(found.loss.values[:, -1]).all()
    assert np.isnan(found.accuracy.values[:, -1]).all()
    single = ur.single_unit_ablation(net, data, layer="body.1", progress=False)
    assert np.isfinite(single.loss_change.values).all()
