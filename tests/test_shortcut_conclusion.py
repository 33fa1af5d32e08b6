"""Sentences of the shortcut study, from tables made for opposite outcomes."""

from math import nan

import pandas as pd
import pytest

from gainmtl_lib.stats import BETTER, NOT_DISTINGUISHABLE, NOT_TESTED, WORSE
from gainmtl_lib.studies.reasons import BY_CHANCE, MISLED, TOO_FEW, WARNED
from gainmtl_lib.studies.shortcut import best_strategy, by_strategy, conclusion, followed


def table(runs, *, control=0.0):
    """Rows of (strategy, accuracy, accuracy reversed, CAM-IoU) in mark 0.95, and in a control that loses `control`."""
    rows = []
    for strategy, same, shift, cam in runs:
        for correlation, shifted in ((0.5, same - control), (0.95, shift)):
            rows.append(
                {"cue": "mark", "correlation": correlation, "seed": 0, "strategy": strategy, "accuracy": same,
                 "accuracy_shift": shifted, "drop": same - shifted, "cam_iou": cam}
            )  # fmt: skip
    return pd.DataFrame(rows)


def step(name, difference, verdict, low=-0.1, high=0.1, pairs=4, p_holm=0.02):
    ends = {"low": low, "high": high, "drawn_low": nan, "drawn_high": nan, "p_holm": p_holm}
    return {"step": name, "difference": difference, "verdict": verdict, "seeds": pairs} | ends


def warning(indicator, correlation, verdict, low=nan, high=nan):
    return {"indicator": indicator, "rank_correlation": correlation, "verdict": verdict, "low": low, "high": high,
            "runs": 16, "cells": 4}  # fmt: skip


def said(runs, shifted=(), same=(), warnings=(), **values):
    columns = list(step("", 0, ""))
    frames = (pd.DataFrame(list(steps), columns=columns) for steps in (shifted, same))
    return conclusion(
        table(runs, **values),
        shifted=next(frames),
        same=next(frames),
        warnings=pd.DataFrame(list(warnings), columns=list(warning("", 0, ""))),
    )


FOOLED = [("S1", 0.96, 0.11, 0.02), ("S3", 0.97, 0.17, 0.25), ("S7", 0.86, 0.845, 0.4)]


def test_by_strategy_is_over_cells_with_a_cue_to_follow():
    kept = by_strategy(table(FOOLED))
    assert kept["runs"].tolist() == [1, 1, 1]
    assert kept.loc["S1", ["accuracy", "accuracy_shift", "worst_shift"]].tolist() == [0.96, 0.11, 0.11]
    assert kept["met"].tolist() == [0, 0, 1] and best_strategy(table(FOOLED)) == "S7"


def test_a_cell_that_a_strategy_lacks_is_not_compared():
    more = table(FOOLED).assign(correlation=lambda rows: rows["correlation"].replace(0.95, 1.0))
    rows = pd.concat([table(FOOLED), more[more["strategy"] != "S7"]])
    assert set(followed(rows)["correlation"]) == {0.95}


def test_the_simpler_of_equal_strategies_is_the_best():
    assert best_strategy(table([("S3", 0.9, 0.8, 0.1), ("S1", 0.9, 0.8, 0.1)])) == "S1"


def test_what_each_strategy_keeps():
    first = said(FOOLED)[0]
    assert first == (
        "With a cue to follow, S7 is the most accurate once the cue is reversed: 0.84 on average and 0.84 at worst, "
        "0.86 as in training (1 run). S1 loses most: from 0.96 to 0.11."
    )


def test_a_strategy_that_loses_least_because_it_knows_little():
    first = said([("S1", 0.55, 0.55, 0.0), ("S7", 0.95, 0.85, 0.3)])[0]
    assert "S7 is the most accurate" in first and "S7 loses most" not in first
    assert "S1 loses least (0.00), but is right in 0.55 of the pictures only." in first


def test_no_cue_to_follow():
    rows = table(FOOLED)
    assert conclusion(
        rows[rows["correlation"] == 0.5], shifted=pd.DataFrame(), same=pd.DataFrame(), warnings=pd.DataFrame()
    ) == [
        "No cell with a cue to follow (a correlation above 0.5) and a test with it reversed has been finished by every "
        "strategy: nothing can be concluded yet."
    ]


@pytest.mark.parametrize(
    ("control", "words"),
    [
        (0.0, "accuracy changes by +0.000 on average: reversing it makes little difference by itself."),
        (-0.03, "accuracy changes by +0.030 on average"),
        (0.08, "accuracy falls by 0.08 on average all the same: that part of a drop is not the cue's."),
    ],
)
def test_control(control, words):
    assert words in said(FOOLED, control=control)[1]


@pytest.mark.parametrize(
    ("difference", "verdict", "words", "map_words"),
    [
        (0.4, BETTER, "helped: accuracy with the cue reversed +0.400 (95 % interval +0.300 to +0.500; 4 pairs of "
         "runs; p 0.020 with Holm's correction over the steps).",
         "The map moved onto the defect with it (CAM-IoU 0.02 → 0.25)."),
        (-0.4, WORSE, "did harm: accuracy with the cue reversed −0.400",
         "Yet the map moved onto the defect (CAM-IoU 0.02 → 0.25): a better picture is no proof of a better reason."),
        (0.06, NOT_DISTINGUISHABLE, "made no difference that can be told from chance: accuracy with the cue reversed +0.060",
         "Yet the map moved onto the defect"),
    ],
)  # fmt: skip
def test_attention_alone(difference, verdict, words, map_words):
    shifted = [step("S1→S3", difference, verdict, low=difference - 0.1, high=difference + 0.1)]
    sentence = said(FOOLED, shifted)[2]
    assert sentence.startswith(f"Attention supervision alone (S1→S3) {words}")
    assert map_words in sentence


def test_attention_that_does_not_even_move_the_map():
    runs = [("S1", 0.96, 0.11, 0.20), ("S3", 0.97, 0.17, 0.22)]
    sentence = said(runs, [step("S1→S3", 0.06, NOT_DISTINGUISHABLE)])[2]
    assert sentence.endswith("Nor did it move the map onto the defect (CAM-IoU 0.20 → 0.22).")


def test_a_map_that_moved_in_an_untested_step_proves_nothing():
    row = step("S1→S3", 0.6, NOT_TESTED, low=nan, high=nan, pairs=1)
    sentence = said(FOOLED, [row])[2]
    assert sentence.endswith("(one training each). The map moved onto the defect (CAM-IoU 0.02 → 0.25).")


def test_edits_and_their_price():
    shifted = [step("S5→S7", 0.7, BETTER), step("S1→S7", 0.73, BETTER)]
    answer = said(FOOLED, shifted, [step("S1→S7", -0.1, WORSE)])
    assert any(s.startswith("Image counterfactuals (S5→S7) helped: ") for s in answer)
    assert any(s.startswith("The whole of S7 (S1→S7) helped: ") for s in answer)
    assert any(s.startswith("On the distribution of the training S7 pays for it: −0.100") for s in answer)
    harmed = said(FOOLED, [step("S5→S7", -0.7, WORSE)], [step("S1→S7", 0.1, BETTER)])
    assert any(s.startswith("Image counterfactuals (S5→S7) did harm: ") for s in harmed)
    assert any("S7 is also more accurate: +0.100" in s for s in harmed)
    unclear = said(FOOLED, [], [step("S1→S7", 0.01, NOT_DISTINGUISHABLE)])
    assert any("S7's accuracy is not distinguishable from S1's: +0.010" in s for s in unclear)


def test_one_training_each_is_not_tested():
    row = step("S5→S7", 0.7, NOT_TESTED, low=nan, high=nan, pairs=1)
    answer = said(FOOLED, [row | {"drawn_low": 0.6, "drawn_high": 0.8}])
    assert any(
        s.endswith(
            "was not tested: accuracy with the cue reversed +0.700 (+0.600 to +0.800 over other pictures; one "
            "training each, so that other seeds are unknown)."
        )
        for s in answer
    )
    assert any("+0.700 (one training each)." in s for s in said(FOOLED, [row]))


def test_an_interval_of_accuracies_ends_at_one():
    answer = said(FOOLED, [step("S5→S7", 0.5, NOT_DISTINGUISHABLE, low=-3, high=4, pairs=2)])
    assert any("(95 % interval −1.000 to +1.000; 2 pairs of runs; p" in s for s in answer)


def test_an_interval_without_zero_and_a_verdict_that_holds_back_are_told_apart():
    row = step("S1→S7", 0.49, NOT_DISTINGUISHABLE, low=0.19, high=0.8, p_holm=0.07)
    answer = said(FOOLED, [row])
    assert any("made no difference that can be told from chance" in s and "p 0.070 with Holm's" in s for s in answer)
    assert any("p < 0.001 with Holm's" in s for s in said(FOOLED, [row | {"p_holm": 1e-5, "verdict": BETTER}]))


def test_a_step_that_the_study_lacks_is_not_mentioned():
    assert not any("→" in sentence for sentence in said(FOOLED))
    assert not any("S5→S7" in sentence for sentence in said(FOOLED, [step("S5→S7", nan, NOT_TESTED)]))


def test_what_so_few_runs_cannot_decide():
    steps = [step(f"S1→{name}", 0.1, NOT_DISTINGUISHABLE) for name in ("S2", "S3", "S4", "S7")]
    steps += [step("S1→S5", 0.1, BETTER)]
    answer = said(FOOLED, steps)
    assert "Not distinguishable from S1 with the cue reversed, with so few runs: S2, S4." in answer


def test_goal_met_and_missed():
    met = said(FOOLED)
    assert "The goal, at most 2 points of accuracy lost by the best strategy (S7), is met in 1 of 1 run." in met
    missed = said([("S1", 0.96, 0.11, 0.0), ("S7", 0.86, 0.80, 0.3)])
    assert any(s.endswith("(S7), is missed in 1 of 1 run: mark 0.95 (0.86 to 0.80).") for s in missed)
    exactly = said([("S7", 0.86, 0.84, 0.3)])
    assert any("is met in 1 of 1 run" in s for s in exactly)


def test_goal_names_the_seed_where_there_are_several():
    rows = table([("S7", 0.86, 0.80, 0.3)])
    rows = pd.concat([rows, rows.assign(seed=1)])
    empty = pd.DataFrame(columns=list(step("", 0, "")))
    answer = conclusion(rows, shifted=empty, same=empty, warnings=pd.DataFrame())
    assert any("mark 0.95 seed 0 (0.86 to 0.80), mark 0.95 seed 1 (0.86 to 0.80)" in s for s in answer)


def test_who_warned():
    answer = said(
        FOOLED,
        warnings=[
            warning("energy on the cue", 0.81, WARNED, 0.6, 0.93),
            warning("flips", 0.7, WARNED, 0.1, 0.9),
            warning("CAM-IoU", 0.1, BY_CHANCE, -0.4, 0.5),
            warning("accuracy", -0.5, MISLED, -0.8, -0.1),
        ],
    )
    assert answer[-3:] == [
        "Without a shifted test set, energy on the cue (+0.81, +0.60 to +0.93, 16 runs) would have warned best; so would "
        "flips (+0.70, +0.10 to +0.90, 16 runs).",
        "Misleading, because runs that look better by it lost more: accuracy (−0.50, −0.80 to −0.10, 16 runs).",
        "Not distinguishable from chance (rank correlation): CAM-IoU (+0.10).",
    ]


def test_nothing_warned():
    answer = said(FOOLED, warnings=[warning("CAM-IoU", 0.1, BY_CHANCE, -0.4, 0.5)])
    assert "Without a shifted test set, no indicator can be shown to have warned." in answer


def test_too_few_runs_to_say_who_warned():
    answer = said(FOOLED, warnings=[warning("CAM-IoU", 0.8, TOO_FEW), warning("accuracy", nan, TOO_FEW)])
    assert answer[-1] == (
        "Which indicator warns cannot be said from 16 runs in 4 cells; the highest rank correlation with the drop is "
        "CAM-IoU (+0.80, 16 runs)."
    )
