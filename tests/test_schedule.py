from __future__ import annotations

import pytest

from gainmtl_lib.losses import Schedule, mask_blend_alpha
from gainmtl_lib.settings import STRATEGY_WEIGHTS, TERMS

# The method document's §3.3, column by column; S6 = S5, and S7 besides.
DOCUMENT = {
    #           S1   S2   S3   S4   S5   S6   S7
    "cls": (1.0, 1.0, 0.3, 0.3, 0.3, 0.3, 0.3),
    "am": (0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0),
    "cam_guide": (0.0, 0.3, 1.0, 1.0, 1.0, 1.0, 1.0),
    "loc": (0.0, 0.0, 0.0, 0.2, 0.2, 0.2, 0.2),
    "guide": (0.0, 0.0, 0.5, 0.5, 0.5, 0.5, 0.5),
    "cf": (0.0, 0.0, 0.0, 0.0, 0.3, 0.3, 0.3),
    "consist": (0.0, 0.0, 0.0, 0.2, 0.2, 0.2, 0.2),
}


def s5(**changes) -> Schedule:
    return Schedule(**{"lambdas": STRATEGY_WEIGHTS["S5"]} | changes)


@pytest.mark.parametrize("term", TERMS)
def test_weights_are_those_of_the_document_and_s7_has_those_of_s5(term):
    assert tuple(row[term] for row in STRATEGY_WEIGHTS.values()) == DOCUMENT[term]


@pytest.mark.parametrize("strategy", STRATEGY_WEIGHTS)
def test_the_end_has_the_whole_row(strategy):
    assert Schedule(STRATEGY_WEIGHTS[strategy]).weights(0.99) == STRATEGY_WEIGHTS[strategy]


@pytest.mark.parametrize(
    ("progress", "stage", "in_force"),
    [
        (0.0, 1, {"cls"}),
        (0.2499, 1, {"cls"}),
        (0.25, 2, {"cls", "am", "guide", "cam_guide"}),
        (0.4999, 2, {"cls", "am", "guide", "cam_guide"}),
        (0.5, 3, {"cls", "am", "guide", "cam_guide", "consist"}),  # loc starts from 0
        (0.51, 3, {"cls", "am", "guide", "cam_guide", "loc", "consist"}),
        (0.7499, 3, {"cls", "am", "guide", "cam_guide", "loc", "consist"}),
        (0.75, 4, set(TERMS)),
        (0.9999, 4, set(TERMS)),
        (1.0, 4, set(TERMS)),
    ],
)
def test_stages_of_s5(progress, stage, in_force):
    assert s5().stage(progress) == stage
    weights = s5().weights(progress)
    assert list(weights) == list(TERMS)
    assert {term for term, weight in weights.items() if weight > 0} == in_force
    assert all(weights[term] == STRATEGY_WEIGHTS["S5"][term] for term in in_force - {"loc"})


@pytest.mark.parametrize("strategy", STRATEGY_WEIGHTS)
def test_stage_1_trains_classification_with_the_strategys_weight(strategy):
    weights = Schedule(STRATEGY_WEIGHTS[strategy]).weights(0.1)
    assert weights == {term: STRATEGY_WEIGHTS[strategy]["cls"] if term == "cls" else 0.0 for term in TERMS}


def test_a_term_the_strategy_lacks_never_counts():
    assert {s for p in range(100) for s, w in Schedule(STRATEGY_WEIGHTS["S2"]).weights(p / 100).items() if w > 0} == {
        "cls",
        "cam_guide",
    }
    assert Schedule({"cls": 1.0}).weights(0.9) == {term: float(term == "cls") for term in TERMS}


@pytest.mark.parametrize(("share_of_stage_3", "loc"), [(0.0, 0.0), (0.25, 0.1), (0.375, 0.15), (0.5, 0.2), (0.9, 0.2)])
def test_localization_warms_up_over_the_first_half_of_stage_3(share_of_stage_3, loc):
    assert s5().weights(0.5 + 0.25 * share_of_stage_3)["loc"] == pytest.approx(loc)


def test_warmup_may_take_none_or_all_of_the_stage():
    assert s5(loc_warmup_ratio=0.0).weights(0.5)["loc"] == 0.2
    assert s5(loc_warmup_ratio=1.0).weights(0.625)["loc"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("ratios", "stages", "final"),
    [
        ((0.0, 0.0, 0.0, 1.0), {4}, 0.0),
        ((1.0, 0.0, 0.0, 0.0), {1}, 0.0),
        ((0.5, 0.0, 0.0, 0.5), {1, 4}, 0.5),
        ((0.0, 0.5, 0.5, 0.0), {2, 3}, 0.5),
        ((0.25, 0.25, 0.25, 0.25), {1, 2, 3, 4}, 0.75),
    ],
)
def test_stages_without_length(ratios, stages, final):
    schedule = s5(ratios=ratios)
    assert {schedule.stage(step / 20) for step in range(21)} == stages
    assert schedule.final_stage_start == final


def test_a_boundary_falls_on_its_step_whatever_the_rounding():
    schedule = s5(ratios=(0.1, 0.2, 0.3, 0.4))  # 0.1 + 0.2 > 0.3 in floating point
    assert [schedule.stage(step / 10) for step in range(10)] == [1, 2, 2, 3, 3, 3, 4, 4, 4, 4]
    assert schedule.weights(0.3)["loc"] == 0.0


def test_errors():
    with pytest.raises(ValueError, match=r"ratios must be four shares that sum to 1, got \[0.5, 0.5, 0.5, 0.5\]"):
        s5(ratios=(0.5, 0.5, 0.5, 0.5))
    with pytest.raises(ValueError, match="ratios must be four shares"):
        s5(ratios=(-0.5, 0.5, 0.5, 0.5))
    with pytest.raises(ValueError, match=r"loc_warmup_ratio must lie in \[0, 1\], got 2"):
        s5(loc_warmup_ratio=2)
    with pytest.raises(ValueError, match="unknown loss term lok; there are cls, am"):
        Schedule({"lok": 1.0})


def test_mask_blend_falls_from_a_half_to_zero():
    assert [mask_blend_alpha(progress) for progress in (0.0, 0.5, 0.75, 1.0)] == [0.5, 0.25, 0.125, 0.0]
