"""Paired rows of a study: scores under weights, the test over seeds, Holm's correction, and every verdict's words."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from gainmtl_lib.readers import DataError
from gainmtl_lib.stats import (
    FEWEST_GROUPS,
    NAMES,
    PartDraws,
    TTest,
    compare_rows,
    contrast,
    draw_seeds,
    holm,
    percentiles,
    rows_table,
    score,
    scorer,
    seeds_t_test,
    sentence,
    split_scores,
    steps_table,
    verdict,
)

STILL = np.zeros((50, 5))
"""Resamples in which nothing changes: pictures add no variance."""


def predictions(right, *, count=20, prefix="a", area=0.1, **columns):
    """Half normal, half defective; the first `right` of each class are called rightly."""
    half = count // 2
    label = np.repeat([0, 1], half)
    wrong = np.tile(np.arange(half) >= right, 2)
    predicted = np.where(wrong, 1 - label, label)
    table = pd.DataFrame(
        {
            "image": [f"{prefix}{number:03}.png" for number in range(count)],
            "split": "test",
            "label": label,
            "group": None,
            "defect_area": np.where(label == 1, area, np.nan),
            "predicted": predicted,
            "probability": np.where(predicted == 1, 0.9, 0.1),
        }
    )
    return table.assign(**columns)


def evaluated(seed, count=60):
    """A table with every column that a metric reads, with gaps where the evaluation has them."""
    rng = np.random.default_rng(seed)
    table = predictions(count // 2, count=count)
    prob = np.round(np.clip(0.3 + 0.4 * table["label"] + rng.normal(0, 0.25, count), 0, 1), 1)  # with ties
    defect = table["label"] == 1
    table = table.assign(probability=prob, predicted=(prob >= 0.5).astype(int))
    names = {(1, 1): "TP", (0, 1): "FP", (1, 0): "FN", (0, 0): "TN"}
    table["verdict"] = [names[pair] for pair in zip(table["label"], table["predicted"])]
    table["cam_iou"] = np.where(defect & (rng.random(count) < 0.9), rng.random(count), np.nan)
    for name in ("grid_iou", "point_game", "energy_inside", "attention_iou", "loc_iou"):
        table[name] = np.where(table["cam_iou"].notna(), rng.random(count), np.nan)
    found = (table["verdict"] == "TP") & table["cam_iou"].notna()
    table["wrong_reason"] = found & (table["cam_iou"] < 0.3)
    table["cf_flip"] = (rng.random(count) < 0.7).astype(float)
    table["cf_control_flip"] = (rng.random(count) < 0.2).astype(float)
    table["cf_flip"] = table["cf_flip"].where(found)
    table["cf_control_flip"] = table["cf_control_flip"].where(found & (rng.random(count) < 0.8))
    return table


# scores


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_a_split(seed):
    table = evaluated(seed)
    expected = {name: estimate.value for name, estimate in split_scores(table).items()}
    found = {name: score(table, name) for name in expected if name in NAMES}
    assert len(found) > 12 and found == pytest.approx({name: expected[name] for name in found})


def test_a_score_counted_by_hand():
    table = pd.DataFrame({"image": list("abcd"), "label": [0, 0, 1, 1], "predicted": [0, 1, 1, 1]})
    table["probability"] = [0.2, 0.6, 0.6, 0.9]
    table["cf_flip"], table["cf_control_flip"] = [np.nan, np.nan, 1, 1], [np.nan, np.nan, 0, np.nan]
    assert (score(table, "accuracy"), score(table, "recall")) == (0.75, 1)
    assert score(table, "auroc") == 3.5 / 4  # one tie among four pairs
    assert score(table, "cf_excess") == 1  # of the one picture that was asked both
    assert (score(table, "cf_flip_rate"), score(table, "probability")) == (1, pytest.approx(0.575))


def test_weights_are_repetitions():
    table, rng = evaluated(0), np.random.default_rng(0)
    weights = rng.integers(0, 4, (5, len(table)))
    for metric in (*NAMES[:9], "cam_iou", "attention_iou"):
        repeated = [score(table.loc[np.repeat(table.index, row)], metric) for row in weights]
        assert scorer(table, metric)(weights.astype(float)) == pytest.approx(np.array(repeated)), metric


@pytest.mark.parametrize("metric", ["auroc", "recall", "cam_iou"])
def test_no_answer_is_not_a_number(metric):
    normals = evaluated(0).query("label == 0")
    assert math.isnan(score(normals, metric))
    assert math.isnan(score(normals.head(0), metric))
    assert math.isnan(score(predictions(5), "cam_iou"))  # lacks the column


def test_an_unknown_metric_names_the_closest():
    with pytest.raises(ValueError, match="unknown metric 'acuracy'; did you mean 'accuracy'\\?; known: accuracy, prec"):
        score(predictions(5), "acuracy")
    with pytest.raises(ValueError, match="unknown metric 'image'"):
        steps_table({"S1": {0: predictions(5)}}, [], "image")


# draws


def test_draws_keep_the_parts_of_each_class():
    table = predictions(5).assign(group=[f"p{number // 2}" for number in range(20)])
    draws = PartDraws([table], resamples=300)
    weights = draws.scores(0, lambda block: block[:, :10].sum(axis=1))
    assert (weights == 10).all()  # five parts of two normal pictures each
    pairs = np.stack([draws.scores(0, lambda block, n=n: block[:, n]) for n in range(20)])
    assert (pairs[::2] == pairs[1::2]).all() and pairs.std() > 0
    assert pairs.shape == (20, 300) and pairs.mean() == pytest.approx(1)
    assert draws.parts(0, np.arange(20) < 3) == 2


def test_pictures_that_seeds_share_are_drawn_once_for_all():
    table = predictions(5)
    draws = PartDraws([table, table], resamples=50)
    first, second = (draws.scores(place, lambda block: block[:, 0]) for place in (0, 1))
    assert draws.shared and (first == second).all()


@pytest.mark.parametrize("other", [{"prefix": "b"}, {"area": 0.2}])
def test_pictures_of_their_own_are_drawn_for_each_seed(other):
    """Other names, or other pictures under the same names: data that is made for each seed."""
    draws = PartDraws([predictions(5), predictions(5, **other)], resamples=200)
    first, second = (draws.scores(place, lambda block: block[:, :10].sum(axis=1)) for place in (0, 1))
    assert not draws.shared and (first == 10).all() and (second == 10).all()
    first, second = (draws.scores(place, lambda block: block[:, 0]) for place in (0, 1))
    assert (first != second).any()


def test_another_label_makes_another_picture():
    turned = predictions(5).assign(label=np.repeat([1, 0], 10), defect_area=np.nan)
    assert not PartDraws([predictions(5).assign(defect_area=np.nan), turned], resamples=2).shared


def test_a_class_with_one_part_cannot_vary():
    table = predictions(5)
    draws = PartDraws([table.head(11)], resamples=2)
    assert not draws.vary(0, np.ones(11, dtype=bool)) and draws.vary(0, np.arange(11) < 10)


def test_percentiles_without_spread_are_none():
    assert percentiles(np.arange(1001.0)) == pytest.approx((25, 975))
    assert all(math.isnan(end) for drawn in ([1.0, 1.0, np.nan], [np.nan], []) for end in percentiles(np.array(drawn)))


# the test over seeds


def with_covariance(matrix):
    """Four resamples with exactly this covariance."""
    signs = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]]) * math.sqrt(3) / 2
    return signs @ np.linalg.cholesky(np.array(matrix, dtype=float)).T


def test_without_variance_of_pictures_it_is_the_paired_t_test():
    differences = np.array([0.01, 0.02, 0.03, 0.04, 0.05])
    test = seeds_t_test(differences, STILL, shared=True, parts=1000)
    # sd 0.0158114, standard error 0.0070711, t 4.2426 with 4 degrees of freedom, whose 97.5 % point is 2.7764
    assert (test.difference, test.standard_error) == (pytest.approx(0.03), pytest.approx(0.0070711, abs=1e-7))
    assert (test.low, test.high) == (pytest.approx(0.010368, abs=1e-6), pytest.approx(0.049632, abs=1e-6))
    assert test.freedom == pytest.approx(4) and test.p == pytest.approx(0.013236, abs=1e-6)
    assert test.p == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)


def test_five_pairs_can_reach_the_level_where_ranks_cannot():
    differences = np.array([0.01, 0.02, 0.03, 0.04, 0.05])
    assert seeds_t_test(differences, STILL, shared=True, parts=1000).p < 0.05
    assert stats.wilcoxon(differences).pvalue == 0.0625


def test_differences_that_agree_by_chance_keep_the_error_of_the_pictures():
    drawn = with_covariance([[4, 0], [0, 4]])
    test = seeds_t_test(np.array([3.0, 3.0]), drawn, shared=False, parts=50)
    # Two seeds of variance 4 each: that of the mean is 2.
    assert (test.standard_error, test.freedom) == (pytest.approx(math.sqrt(2)), pytest.approx(1))
    assert test.p == pytest.approx(2 * stats.t.sf(3 / math.sqrt(2), 1))


def test_what_common_pictures_do_to_all_seeds_is_added():
    differences, drawn = np.array([1.0, 1 + math.sqrt(20)]), with_covariance([[4, 2], [2, 4]])
    test = seeds_t_test(differences, drawn, shared=True, parts=11)
    # s² = 10, so 10/2 of the seeds and 2 in common; freedom (5 + 2)² / (5²/1 + 2²/10)
    assert test.standard_error == pytest.approx(math.sqrt(7)) and test.freedom == pytest.approx(49 / 25.4)
    # Seeds that agree leave b² = (4 + 2) / 2 of the pictures, 2 of it in common; freedom 3² / (1²/1 + 2²/10)
    agreed = seeds_t_test(np.array([1.0, 1.0]), drawn, shared=True, parts=11)
    assert agreed.standard_error == pytest.approx(math.sqrt(3)) and agreed.freedom == pytest.approx(9 / 1.4)
    # Pictures of their own have nothing in common, whatever the draws say.
    assert seeds_t_test(differences, drawn, shared=False, parts=11).standard_error == pytest.approx(math.sqrt(5))


def test_opposite_seeds_have_nothing_in_common():
    drawn = with_covariance([[4, -2], [-2, 4]])
    assert seeds_t_test(np.array([1.0, 1.0]), drawn, shared=True, parts=11).standard_error == pytest.approx(
        math.sqrt(2)
    )


def test_a_difference_that_all_show_alike_is_as_sure_as_one_dissenting_part_allows():
    test = seeds_t_test(np.ones(5), np.ones((50, 5)), shared=True, parts=10)
    assert test.standard_error == pytest.approx(0.1) and test.p == pytest.approx(2 * stats.t.sf(10, 4))


def test_no_difference_at_all_has_p_one():
    test = seeds_t_test(np.zeros(5), STILL, shared=True, parts=10)
    assert (test.difference, test.low, test.high, test.p) == (0, 0, 0, 1)


def test_no_difference_between_pictures_that_vary_has_p_one_and_an_interval():
    test = seeds_t_test(np.zeros(2), with_covariance([[4, 0], [0, 4]]), shared=False, parts=10)
    assert test.p == 1 and test.low == pytest.approx(-test.high) and test.high > 1


def test_one_seed_is_not_tested():
    test = seeds_t_test(np.array([0.1]), np.ones((50, 1)), shared=False, parts=10)
    assert test.difference == 0.1 and all(math.isnan(end) for end in (test.low, test.high, test.p))


def test_interval_and_p_agree():
    rng, seen = np.random.default_rng(0), set()
    for _ in range(300):
        drawn = rng.normal(0, 0.02, (40, 3)) + rng.normal(0, 0.02, (40, 1))
        differences = rng.normal(0.06, 0.03, 3)
        test = seeds_t_test(differences, drawn, shared=bool(rng.integers(2)), parts=30)
        assert (test.p < 0.05) == (not test.low <= 0 <= test.high)
        assert test.standard_error >= 0.99 * math.sqrt(np.cov(drawn.T).trace()) / 3
        seen.add(test.p < 0.05)
    assert seen == {True, False}


# Holm and words


def test_holm_by_hand():
    # 4 × 0.005, 3 × 0.01, 2 × 0.03, then 0.04, not below the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == pytest.approx([1, 1]) and holm([0.02, 0.02]) == pytest.approx([0.04, 0.04])
    assert holm([0.04]) == pytest.approx([0.04]) and len(holm([])) == 0


def test_what_was_not_tested_is_no_member_of_the_family():
    assert holm([math.nan, 0.03, 0.02]) == pytest.approx([math.nan, 0.04, 0.04], nan_ok=True)
    assert np.isnan(holm([math.nan])).all()


@pytest.mark.parametrize("wrong", [-0.1, 1.3])
def test_holm_takes_probabilities_only(wrong):
    with pytest.raises(ValueError, match=rf"p-values must lie in \[0, 1\], got {wrong:g}"):
        holm([0.5, wrong])


@pytest.mark.parametrize(
    ("difference", "adjusted", "metric", "words"),
    [
        (0.1, 0.049, "accuracy", "better"),
        (-0.1, 0.049, "accuracy", "worse"),
        (-0.1, 0.049, "cf_control_flip_rate", "better"),
        (0.1, 0.049, "wrong_reason_rate", "worse"),
        (0.1, 0.051, "accuracy", "not distinguishable"),
        (0.1, math.nan, "accuracy", "not tested"),
    ],
)
def test_verdicts(difference, adjusted, metric, words):
    assert verdict(difference, adjusted, metric) == words


def test_sentences():
    test = TTest(-0.0214, -0.0461, 0.0044, 0.0812)
    assert sentence(test, 0.1624, 2, "recall", [52, 52]) == (
        "recall −0.021 (95 % interval −0.046 to +0.004; 2 seeds, 52 pictures each): "
        "not distinguishable, p = 0.081, p = 0.162 by Holm's correction for 2 steps"
    )
    assert sentence(TTest(0.3, 0.2, 0.4, 1e-5), 1e-5, 1, "auroc", [48, 52]) == (
        "auroc +0.300 (95 % interval +0.200 to +0.400; 2 seeds, 48 to 52 pictures each): better, p < 0.001"
    )
    assert sentence(TTest(-0.0001), math.nan, 0, "recall", [1]) == "recall 0.000 (1 seed, 1 picture): not tested"
    assert sentence(TTest(math.nan), math.nan, 0, "recall", []) == "recall not tested"


# rows and steps


def study():
    """Two seeds of 20 pictures: S1 is right on 14 and 16, S2 on all, S3 like S1, S4 with one seed, S5 without any."""
    tables = {seed: predictions(right) for seed, right in {0: 7, 1: 8}.items()}
    return {"S1": tables, "S2": {0: predictions(10), 1: predictions(10)}, "S3": tables, "S4": {1: predictions(9)}}


def test_a_table_of_steps():
    table = steps_table(study(), [["S1", "S2"], ["S1", "S3"], ["S3", "S4"], ["S4", "S5"]], "accuracy").set_index("step")
    assert list(table["difference"]) == pytest.approx([0.25, 0, 0.1, math.nan], nan_ok=True)
    assert list(table["seeds"]) == [2, 2, 1, 0] and list(table["pictures"]) == [20, 20, 20, 0]
    assert list(table["verdict"]) == ["not distinguishable"] * 2 + ["not tested"] * 2
    assert table.loc["S1→S3", ["p", "p_holm", "low", "high"]].tolist() == [1, 1, 0, 0]
    assert list(table["note"]) == ["", "", "one seed; left out: seed 0 (without a partner)", "no run of S5"]
    assert table.loc["S1→S2", "p_holm"] == pytest.approx(2 * table.loc["S1→S2", "p"])
    assert table.loc["S1→S2", "drawn_low"] < 0.25 < table.loc["S1→S2", "drawn_high"]
    assert table.loc["S4→S5", "sentence"] == "S4→S5: accuracy not tested (no run of S5)"
    assert table.loc["S3→S4", "sentence"] == (
        "S3→S4: accuracy +0.100 (1 seed, 20 pictures): not tested (one seed; left out: seed 0 (without a partner))"
    )


def test_a_step_by_hand():
    """Seeds 0.3 and 0.2, s² = 0.005. Per class 3 or 2 of 10 pictures change by one: variance p (1 − p) / 10 of its
    share, a quarter of it twice for both classes. Of the first two pictures both seeds profit."""
    step = compare_rows(study()["S1"], study()["S2"], "accuracy")
    own = [0.3 * 0.7 / 20, 0.2 * 0.8 / 20]
    common = (0.2 - 0.3 * 0.2) / 20
    assert step.test.difference == pytest.approx(0.25)
    assert step.test.standard_error**2 == pytest.approx(max(0.0025, np.mean(own) / 2 - common / 2) + common, rel=0.06)
    once_more = compare_rows(study()["S1"], study()["S2"], "accuracy")
    assert once_more == step


def test_no_steps_make_an_empty_table():
    table = steps_table({}, [], "accuracy")
    assert len(table) == 0 and {"step", "difference", "low", "high", "p", "p_holm", "verdict"} <= set(table)


def test_the_order_of_the_pictures_does_not_matter():
    rows = study()
    shuffled = {seed: table.sample(frac=1, random_state=seed) for seed, table in rows["S2"].items()}
    assert compare_rows(rows["S1"], shuffled, "auroc") == compare_rows(rows["S1"], rows["S2"], "auroc")


def test_a_metric_that_a_row_lacks_is_not_tested():
    with_maps = {seed: predictions(9, loc_iou=np.linspace(0, 1, 20)) for seed in range(2)}
    step = compare_rows(study()["S1"], with_maps, "loc_iou", names=("S3", "S4"))
    assert step.notes == ("S3 has no loc_iou",) and math.isnan(step.test.difference) and not step.seeds


def test_seeds_without_an_answer_are_left_out():
    some = {seed: predictions(9, loc_iou=np.nan if seed in (1, 2) else 0.5) for seed in range(4)}
    step = compare_rows(some, some, "loc_iou")
    assert step.seeds == (0, 3) and step.notes == ("left out: seeds 1 and 2 (without an answer)",)
    none = compare_rows({1: some[1]}, {1: some[1]}, "loc_iou")
    assert none.notes == ("left out: seed 1 (without an answer)",) and not none.seeds
    apart = compare_rows({0: some[0], 1: some[0], 2: some[0]}, {3: some[0]}, "loc_iou")
    assert apart.notes == ("left out: seeds 0, 1, 2 and 3 (without a partner)",)


def test_few_parts_are_not_tested():
    few = {seed: predictions(5, count=2 * FEWEST_GROUPS - 2) for seed in range(2)}
    recall, accuracy = (compare_rows(few, few, metric) for metric in ("recall", "accuracy"))
    assert recall.notes == (f"too few parts: {FEWEST_GROUPS - 1}, needed are {FEWEST_GROUPS}",)
    assert recall.pictures == (9, 9) and math.isnan(recall.test.p) and accuracy.test.p == 1
    lone = {seed: predictions(5).head(11) for seed in range(2)}
    assert compare_rows(lone, lone, "accuracy").notes == ("too few parts: one alone of its class",)
    parts = {seed: predictions(5, group=[f"p{number // 4}" for number in range(20)]) for seed in range(2)}
    assert compare_rows(parts, parts, "accuracy").notes == ("too few parts: 5, needed are 10",)


def test_the_parts_of_the_lesser_row_count():
    asked = {seed: predictions(9, cf_flip=np.where(np.arange(20) < 3, 1.0, np.nan)) for seed in range(2)}
    all_asked = {seed: predictions(9, cf_flip=1.0) for seed in range(2)}
    step = compare_rows(all_asked, asked, "cf_flip")
    assert step.notes == ("too few parts: 3, needed are 10",) and step.pictures == (20, 20)


def test_other_pictures_in_a_pair_are_an_error():
    rows = study()
    with pytest.raises(DataError, match=r"S1→S2, seed 0: .*different pictures \(20 and 18, 18 of them in both\)"):
        compare_rows(rows["S1"], {0: predictions(9).head(18)}, "accuracy", names=("S1", "S2"))
    with pytest.raises(DataError, match=r"different pictures \(20 and 20, 0 of them in both\); compare runs of the"):
        compare_rows(rows["S1"], {0: predictions(9, prefix="b")}, "accuracy")
    turned = predictions(9).assign(label=np.repeat([1, 0], 10))
    with pytest.raises(DataError, match=r"seed 0: 20 pictures have another label in the second run, the first is a000"):
        compare_rows(rows["S1"], {0: turned}, "accuracy")


def test_tables_that_are_not_one_split_are_an_error():
    table = predictions(9)
    two = {0: table.assign(split=["test", "val"] * 10)}
    with pytest.raises(ValueError, match="S1, seed 0: the predictions hold the splits test, val; give the rows of one"):
        rows_table({"S1": two}, "accuracy")
    with pytest.raises(ValueError, match=r"after, seed 0: a000\.png stands in the predictions twice"):
        compare_rows({0: table}, {0: pd.concat([table, table.head(1)])}, "accuracy")
    with pytest.raises(ValueError, match="before, seed 0: the predictions lack image and label"):
        compare_rows({0: table[["predicted", "probability"]]}, {0: table}, "auroc")


def test_a_table_of_rows():
    rows = study() | {"S5": {}, "S6": {0: predictions(5).head(4)}}
    table = rows_table(rows, "accuracy").set_index("row")
    assert list(table["mean"]) == pytest.approx([0.75, 1, 0.75, 0.9, math.nan, 1], nan_ok=True)
    first = table.loc["S1"]
    assert first["seed_sd"] == pytest.approx(0.0707107) and (first["lowest"], first["highest"]) == (0.7, 0.8)
    assert first["low"] < 0.75 < first["high"] and (first["seeds"], first["pictures"]) == (2, 20)
    assert math.isnan(table.loc["S2", "low"])  # every resample is right
    assert math.isnan(table.loc["S4", "seed_sd"]) and table.loc["S4", "low"] < 0.9
    assert table.loc["S5", "note"] == "no run of S5" and table.loc["S6", "note"] == "too few parts: 4, needed are 10"


def test_the_interval_of_a_row_is_that_of_its_pictures():
    values = np.linspace(0.1, 0.9, 40)
    own = {seed: predictions(20, count=40, prefix=f"s{seed}", loc_iou=values) for seed in range(4)}
    same = {seed: predictions(20, count=40, loc_iou=values) for seed in range(4)}
    table = rows_table({"own": own, "same": same}, "loc_iou").set_index("row")
    # Each class is half of the values, drawn apart: half of the variance of 20 values, divided by 20.
    error = values[:20].std() / math.sqrt(40)
    for name, seeds in {"own": 4, "same": 1}.items():
        assert table.loc[name, "high"] - table.loc[name, "low"] == pytest.approx(
            3.92 * error / math.sqrt(seeds), rel=0.1
        )


def test_rows_without_an_answer():
    table = rows_table({"S1": study()["S1"], "S4": {0: predictions(5, loc_iou=np.nan), 1: predictions(5)}}, "loc_iou")
    assert list(table["note"]) == ["S1 has no loc_iou", "no answer in any seed"] and list(table["seeds"]) == [0, 0]
    partly = rows_table({"S4": {0: predictions(5, loc_iou=0.5), 1: predictions(5)}}, "loc_iou")
    assert partly.loc[0, "note"] == "left out: seed 1 (without an answer)" and partly.loc[0, "seeds"] == 1


def test_rounding_is_no_difference():
    before, after = predictions(5, loc_iou=0.3), predictions(5, loc_iou=0.1 + 0.2)
    assert (after["loc_iou"] - before["loc_iou"]).abs().max() > 0
    assert contrast([before, after], "loc_iou").value == 0
    seeds = draw_seeds({0: contrast([before, after], "accuracy")})
    assert seeds.observed.tolist() == [0] and not seeds.why_not
