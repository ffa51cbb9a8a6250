"""Which of the things that a model returns is the logits; probabilities are not taken for them."""

import json
import warnings
from collections import namedtuple
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import unitroles as ur
from forcing import PLANS, forced, quietly

pytestmark = pytest.mark.usefixtures("one_thread")

LABELS = 3
Both = namedtuple("Both", ["features", "scores"])
WRAPS = {
    "tuple": lambda features, logits: (features, logits),
    "list": lambda features, logits: [features, logits],
    "named tuple": lambda features, logits: Both(features, logits),
    "mapping": lambda features, logits: {"features": features, "scores": logits},
    "object": lambda features, logits: SimpleNamespace(features=features, scores=logits),
    "with others": lambda features, logits: (None, features, features.sum(), "text", logits),
}
SECOND = {"tuple": 1, "list": -1, "with others": 4}
"""The name of the logits where it is not "scores"."""


class Net(nn.Module):
    """Gives its features and its logits, or whatever is made of them."""

    def __init__(self, wrap=WRAPS["tuple"], features: int = 6) -> None:
        super().__init__()
        self.hidden, self.act = nn.Linear(5, 8), nn.ReLU()
        self.middle, self.out = nn.Linear(8, features), nn.Linear(features, LABELS)
        self.wrap = wrap

    def forward(self, x: Tensor):
        features = self.middle(self.act(self.hidden(x)))
        return self.wrap(features, self.out(features))


def net(wrap, features: int = 6) -> Net:
    torch.manual_seed(3)
    return Net(wrap, features).double()


def data() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    drawn = torch.randn(2, 12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(12) % LABELS
    return (drawn[0], labels), (drawn[1], labels)


def analyzed(model: nn.Module, output=None, **options) -> ur.Taxonomy:
    method = ur.Method(output=output, **options)
    return quietly(ur.analyze, model, *data(), layer="act", method=method)


@pytest.fixture(scope="module")
def bare() -> ur.Taxonomy:
    """Of the same network that returns its logits alone."""
    return analyzed(net(lambda features, logits: logits))


def assert_same(found: ur.Taxonomy, wanted: ur.Taxonomy) -> None:
    for name in ("loss", "accuracy", "score", "role", "turning_point"):
        np.testing.assert_allclose(found.data[name], wanted.data[name], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("wrap", WRAPS)
def test_the_output_with_a_number_for_every_class_is_taken(wrap, bare):
    assert_same(analyzed(net(WRAPS[wrap])), bare)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("wrap", WRAPS)
def test_a_name_a_number_or_a_function_says_which(wrap, plan, bare):
    name = SECOND.get(wrap, "scores")
    model = net(WRAPS[wrap])

    def logits(output):
        return output.scores if hasattr(output, "scores") else output[name]

    with forced(plan):
        assert_same(analyzed(model, name), bare)
        found = analyzed(model, logits)
    assert_same(found, bare)
    assert found.data.attrs["plan"] == plan
    assert not model._forward_hooks
    assert found.provenance["options"]["method"]["output"].endswith("logits")


def test_the_number_of_classes_comes_from_names_and_from_the_model_too():
    """Labels that leave out the last class decide nothing."""
    (x, y), _ = data()
    model, some = net(WRAPS["tuple"]), (x, y % 2)
    with pytest.raises(ur.InputError, match="several things that may be its logits for 2 classes"):
        ur.analyze(model, some, some, layer="act", progress=False)
    found = quietly(ur.analyze, model, some, some, layer="act", class_names=["a", "b", "c"])
    right = quietly(ur.analyze, model, some, some, layer="act", method=ur.Method(output=1))
    assert_same(found, right)
    model.config = SimpleNamespace(num_labels=LABELS)
    assert_same(quietly(ur.analyze, model, some, some, layer="act"), right)


@pytest.mark.parametrize("features", [LABELS, 7])
def test_several_outputs_that_may_be_the_logits_are_listed(features):
    (x, y), _ = data()
    labels = y if features == LABELS else y % 2
    said = rf"may be its logits.*0 \(2, {features}\), 1 \(2, 3\); say which.*output=1"
    with pytest.raises(ur.InputError, match=said):
        ur.analyze(net(WRAPS["tuple"], features), (x, labels), (x, labels), progress=False)


@pytest.mark.parametrize(
    ("wrap", "output", "said"),
    [
        ("tuple", 2, r"returns no output 2, only 0 \(2, 6\), 1 \(2, 3\)"),
        ("mapping", "score", r"no output 'score', only 'features' \(2, 6\), 'scores' \(2, 3\)"),
        ("with others", 3, r"must hold logits of shape \(samples, classes\), got str"),
        ("tuple", lambda output: output[7], "the function given as output fails: tuple index"),
        ("tuple", lambda output: "text", "must hold logits.*got str"),
        ("tuple", lambda output: output[1].sum(), r"must hold logits.*got \(\)"),
    ],
)
def test_an_output_that_is_not_there_or_no_logits_is_refused(wrap, output, said):
    model = net(WRAPS[wrap])
    with pytest.raises(ur.InputError, match=said):
        analyzed(model, output)
    assert not model._forward_hooks


@pytest.mark.parametrize("output", [True, ""])
def test_what_can_name_no_output_is_refused(output):
    with pytest.raises(ur.InputError, match="output must be"):
        ur.Method(output=output)


def test_ablations_and_layers_take_the_same_option():
    (x, y), _ = data()
    model, alone = net(WRAPS["tuple"], LABELS), net(lambda features, logits: logits, LABELS)
    for ablation in (ur.single_unit_ablation, ur.cumulative_ablation):
        with pytest.raises(ur.InputError, match="several things that may be its logits"):
            ablation(model, (x, y), "act", progress=False)
        found, wanted = (
            quietly(ablation, net_, (x, y), "act", output=name)
            for net_, name in ((model, 1), (alone, None))
        )
        np.testing.assert_allclose(found.loss, wanted.loss, rtol=0, atol=1e-10)
        assert json.loads(found.attrs["provenance"])["options"]["method"]["output"] == 1
    with pytest.raises(ur.InputError, match="several things that may be its logits"):
        ur.layers(model, x[:2])
    frame = ur.layers(model, x[:2], output=1)
    assert frame["plan"].tolist() == ur.layers(alone, x[:2])["plan"].tolist()


# --- probabilities


SQUASHED = {
    "softmax": (lambda features, logits: logits.softmax(1), "looks like probabilities"),
    "softmax in a tuple": (
        lambda features, logits: (features, logits.softmax(1)),
        "looks like probabilities",
    ),
    "float32": (lambda features, logits: logits.float().softmax(1), "looks like probabilities"),
    "half": (lambda features, logits: logits.bfloat16().softmax(1), "looks like probabilities"),
    "sigmoid": (lambda features, logits: logits.sigmoid(), "are sigmoids, not logits"),
    "sigmoid in a view": (
        lambda features, logits: torch.sigmoid(logits[:, None]).reshape(-1, LABELS),
        "are sigmoids, not logits",
    ),
}


@pytest.mark.parametrize("kind", SQUASHED)
def test_probabilities_are_not_taken_for_logits(kind):
    wrap, said = SQUASHED[kind]
    with pytest.raises(ur.InputError, match=said):
        analyzed(net(wrap))


@pytest.mark.parametrize("plan", ["suffix", "full"])
@pytest.mark.parametrize("kind", ["softmax", "softmax in a tuple", "named"])
def test_probabilities_are_read_as_such_when_asked(kind, plan, bare):
    wrap = SQUASHED.get(kind, [lambda f, logits: {"probabilities": logits.softmax(1), "x": f}])[0]
    with forced(plan):
        assert_same(analyzed(net(wrap), "probabilities"), bare)


@pytest.mark.parametrize("kind", ["logits", "sigmoid"])
def test_what_is_no_distribution_is_not_read_as_one(kind):
    wrap = {"logits": lambda features, logits: logits}.get(kind, SQUASHED["sigmoid"][0])
    with pytest.raises(ur.InputError, match="its rows are no distributions"):
        analyzed(net(wrap), "probabilities")


def test_a_loss_of_ones_own_may_take_probabilities(bare):
    def likelihood(outputs: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.nll_loss(outputs.log(), labels, reduction="none")

    found = analyzed(net(SQUASHED["softmax"][0]), loss=likelihood)
    np.testing.assert_allclose(found.data.loss, bare.data.loss, rtol=0, atol=1e-9)


def test_a_function_is_trusted_and_logarithms_of_probabilities_are_logits(bare):
    assert_same(analyzed(net(SQUASHED["sigmoid"][0]), torch.logit), bare)
    assert_same(analyzed(net(lambda features, logits: logits.log_softmax(1))), bare)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = analyzed(net(SQUASHED["softmax"][0]), lambda output: output)
    assert not np.allclose(found.data.loss, bare.data.loss, atol=1e-3)
