"""The counterfactual asked of models whose answer is known, and the sentence for every outcome."""

import pytest
import torch
from hand_made import CORNER, Looks

from gainmtl_lib.explain import NoCounterfactual, ask_counterfactual, ask_counterfactuals, why_no_path


def bright(rows=slice(0, 24), columns=slice(0, 24)):
    image = torch.zeros(1, 3, 64, 64)
    image[..., rows, columns] = 1
    return image


def mask_of(image):
    return image[:, :1]


def test_a_model_that_looks_at_the_defect_flips_and_its_control_does_not():
    answer = ask_counterfactual(Looks(), bright(), mask_of(bright()), 0.5)
    assert answer.flips and answer.control_flips is False and answer.mask_from == "annotation"
    assert answer.probability == answer.control > 0.99 > 0.01 > answer.without_defect
    assert answer.message == (
        "Without the annotated defect the verdict turns to normal (1.00 → 0.01), but not with an equal area suppressed "
        "elsewhere (1.00): the decision rests on this region."
    )


def test_a_decision_that_ignores_the_defect_does_not_flip():
    answer = ask_counterfactual(Looks(without="ignores"), bright(), mask_of(bright()), 0.5)
    assert not answer.flips and answer.control_flips is False
    assert answer.message.endswith("the decision does not hang on this region alone.")


def test_a_decision_elsewhere_does_not_flip():
    """The mask lies where the model does not look."""
    answer = ask_counterfactual(Looks(CORNER), bright(), mask_of(bright(slice(40, 60), slice(40, 60))), 0.5)
    assert not answer.flips and answer.without_defect == answer.probability


def test_a_flip_whose_control_flips_proves_nothing_and_says_so():
    answer = ask_counterfactual(Looks(without="fragile"), bright(), mask_of(bright()), 0.5)
    assert answer.flips and answer.control_flips
    assert "turns to normal (1.00 → 0.00), but so it does" in answer.message
    assert answer.message.endswith("the flip proves nothing.")


def test_a_verdict_that_only_the_control_turns_rests_on_something_else():
    """The moved mask, and only that, covers what the model looks at."""
    looks_everywhere_but_there = bright(slice(32, 64), slice(0, 64))
    mask = mask_of(bright(slice(0, 24), slice(0, 64)))
    model = Looks((slice(32, 64), slice(0, 64)), level=0.9)
    answer = ask_counterfactual(model, looks_everywhere_but_there, mask, 0.5)
    assert not answer.flips and answer.control_flips
    assert "stays defective" in answer.message and answer.message.endswith("the decision rests on something else.")


@pytest.mark.parametrize(
    ("without", "flips", "end"),
    [
        ("honest", True, "without a control the flip proves little."),
        ("ignores", False, "does not hang on this region alone; there was no room for a control."),
    ],
)
def test_a_mask_without_room_has_no_control(without, flips, end):
    answer = ask_counterfactual(Looks(without=without), bright(), torch.ones(1, 1, 64, 64), 0.5)
    assert answer.flips is flips and answer.control is None and answer.control_flips is None
    assert answer.message.endswith(end)


def test_the_sentence_says_where_the_mask_came_from_and_uses_the_class_names():
    answer = ask_counterfactual(
        Looks(), bright(), mask_of(bright()), 0.5, mask_from="localization", class_names=("양품", "불량")
    )
    assert answer.mask_from == "localization"
    assert answer.message.startswith("Without the region that the model itself localizes the verdict turns to 양품")


def test_a_normal_verdict_has_nothing_to_question():
    answer = ask_counterfactual(Looks(), bright() * 0.1, mask_of(bright()), 0.5)
    assert not answer.flips and answer.control_flips is False
    assert answer.message == "The verdict is normal already (0.02), so there is no defective verdict to question."


def test_a_threshold_below_both_leaves_the_verdict():
    answer = ask_counterfactual(Looks(), bright(), mask_of(bright()), 0.001)
    assert not answer.flips


def test_many_are_asked_at_once_and_answered_alike():
    images = torch.cat([bright(), bright(slice(0, 28)), bright(slice(0, 20), slice(0, 30))])
    model = Looks()
    together = ask_counterfactuals(model, images, images[:, :1], 0.5, mask_from=["annotation"] * 3)
    assert model.batches == [3, 3]
    for answer, image in zip(together, images.split(1)):
        assert answer == ask_counterfactual(model, image, mask_of(image), 0.5)


def test_the_model_is_left_as_it_was():
    model = Looks().train()
    answer = ask_counterfactual(model, bright(), mask_of(bright()), 0.5)
    assert model.training and model.dropout.training
    assert answer == ask_counterfactual(model.eval(), bright(), mask_of(bright()), 0.5)


def test_what_cannot_be_asked_says_why():
    with pytest.raises(NoCounterfactual, match="strategy S3 has no counterfactual path to ask; S5 to S7 have one"):
        ask_counterfactual(Looks(strategy="S3"), bright(), mask_of(bright()), 0.5)
    without_path = Looks(strategy="S6")
    without_path.counterfactual = None
    with pytest.raises(NoCounterfactual, match=r"this S6 model .* built with use_counterfactual false"):
        ask_counterfactual(without_path, bright(), mask_of(bright()), 0.5)
    with pytest.raises(NoCounterfactual, match="the mask is empty"):
        ask_counterfactual(Looks(), bright(), torch.zeros(1, 1, 64, 64), 0.5)
    assert why_no_path(Looks()) is None
