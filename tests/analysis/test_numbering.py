"""Labels and outputs that are numbered differently: a warning, and the first line of the report."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unitroles as ur
from unitroles.report import text
from unitroles.wording import NUMBERING

CLASSES, EACH = 5, 24
CENTRES = 4 * torch.eye(CLASSES)


def pair(seed: int, labels: Tensor | None = None, each: int = EACH) -> tuple[Tensor, Tensor]:
    """Samples round the centres of their classes."""
    true = torch.arange(CLASSES * each) % CLASSES
    draw = torch.Generator().manual_seed(seed)
    x = CENTRES[true] + 0.3 * torch.randn(len(true), CLASSES, generator=draw)
    return x, true if labels is None else labels[true]


def network() -> nn.Module:
    """Right for every sample: output k is the distance to centre k."""
    model = nn.Sequential(nn.Linear(CLASSES, CLASSES), nn.ReLU(), nn.Linear(CLASSES, CLASSES))
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.copy_(torch.eye(CLASSES))
            layer.bias.zero_()
    return model


def said(labels: list[int] | None, **options: Any) -> tuple[ur.Taxonomy, list[str]]:
    order = None if labels is None else torch.tensor(labels)
    each = options.pop("each", EACH)
    train, test = pair(0, order, each), pair(1, order, each)
    given: dict[str, Any] = {"layer": "1", "progress": False, **options}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = ur.analyze(network(), train, test, **given)
    notes = [str(warning.message) for warning in caught]
    return found, [note for note in notes if note.startswith(NUMBERING)]


def test_nothing_is_said_where_all_is_well() -> None:
    found, notes = said(None)
    assert notes == []
    assert text.report(found).startswith("layer ")


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([1, 2, 3, 4, 0], "gets 0.0 % of the training samples right (mean over the classes), chan"),
        ([0, 2, 1, 4, 3], "gets 20.0 % of the training samples right (mean over the classes), cha"),
        ([0, 1, 2, 4, 3], "training samples of 2 classes (3, 4) right, of the others 100 %"),
    ],
)
def test_labels_in_another_order_are_said_in_the_first_line(labels: list[int], words: str) -> None:
    """All the data numbered in another order, or some classes only: the rest is fine."""
    found, notes = said(labels)
    (note,) = notes
    assert words in note
    assert found.provenance["warnings"].count(note) == 1
    report = text.report(found)
    assert report.splitlines()[0] == f"warning: {note}"
    assert report.count(note) == 1
    order = torch.tensor(labels)
    with pytest.warns(ur.DataWarning, match=NUMBERING):
        again = ur.analyze_layers(
            network(), pair(0, order), pair(1, order), ["0", "1"], progress=False
        )
    assert all(member.provenance["warnings"].count(note) == 1 for member in again.values())


def test_classes_are_called_by_their_names() -> None:
    (note,) = said([0, 1, 2, 4, 3], class_names=list("abcde"))[1]
    assert "2 classes (d, e) right" in note


def test_one_class_alone_is_compared_with_the_chance_of_all_outputs() -> None:
    """A perfect model on one class: its recall is 1, and so is its share of the samples."""
    assert said(None, sample=ur.Sample(classes=[2]), each=40)[1] == []
    (note,) = said([0, 1, 2, 4, 3], sample=ur.Sample(classes=[3]), each=40)[1]
    assert "chance is 20 %" in note


def test_few_samples_say_nothing() -> None:
    assert said([0, 1, 2, 4, 3], each=19)[1] == []
    assert said([1, 2, 3, 4, 0], each=5)[1] == []


def test_a_group_may_be_wrong_as_a_whole() -> None:
    """Such as that of the wrong labels; that all are near chance is said of groups as well."""
    given = ["late" if label > 2 else "early" for label in pair(0)[1]]
    groups = {"train": given, "test": given}
    assert said([0, 1, 2, 4, 3], sample=ur.Sample(group_by=groups))[1] == []
    assert len(said([1, 2, 3, 4, 0], sample=ur.Sample(group_by=groups))[1]) == 1
