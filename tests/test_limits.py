"""Every limit on evidence that has it, and on evidence that does not."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from audited import MANIFEST, measured, row, spread, table_of, write_audited

from gainmtl_lib.audit import (
    limits as limits_of_data,
)
from gainmtl_lib.audit import (
    limits as limits_of_map,
)
from gainmtl_lib.audit import (
    limits as limits_of_model,
)
from gainmtl_lib.audit import (
    limits as limits_of_novelty,
)
from gainmtl_lib.audit.limits import known_limits, marks
from gainmtl_lib.audit.numbers import Evidence, RecallChoice, audit_run
from gainmtl_lib.efficientad.evaluate import Kind, Novelty
from gainmtl_lib.runs import load_run
from gainmtl_lib.stats import Estimate


def sound_rows():
    """Three splits of grouped parts, a few mistakes on each; flips that their controls do not do."""
    rows = []
    for split in ("val", "test", "test_shift"):
        flips = {"cf_probability": 0.1, "cf_control_probability": 0.9}
        rows += [entry | {"group": f"{split}{number // 2}"} for number, entry in enumerate(
            spread(split, 1, 0.45, 0.95, 20, **flips) + spread(split, 0, 0.05, 0.55, 300)
        )]  # fmt: skip
    return rows


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Evidence that none of the rules but those on seeds, learned counterfactuals and few defects objects to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gainmtl_lib.stats.RESAMPLES", 200)
        run = load_run(write_audited(tmp_path_factory.mktemp("sound"), sound_rows()))
        return Evidence(run.settings, run.manifest, audit_run(run, required_recall=0.9), faithfulness=measured())


def without_measure(evidence, **values):
    return replace(evidence, faithfulness=None, **values)


def with_table(evidence, rows):
    return replace(evidence, audit=replace(evidence.audit, table=table_of(rows)))


def with_scores(evidence, split="test", **scores):
    changed = evidence.audit.scores | {split: evidence.audit.scores[split] | scores}
    return replace(evidence, audit=replace(evidence.audit, scores=changed))


def without_split(evidence, split):
    kept = {name: scores for name, scores in evidence.audit.scores.items() if name != split}
    return replace(evidence, audit=replace(evidence.audit, scores=kept))


def with_metrics(evidence, **metrics):
    return replace(evidence, audit=replace(evidence.audit, metrics=evidence.audit.metrics | metrics))


def test_a_sound_run_still_has_the_limits_that_every_run_has(sound):
    titles = [limit.title for limit in known_limits(sound)]
    assert titles == ["Learned counterfactual", "One seed", "Few test defects"]
    assert marks(sound) == []


def test_serious_limits_come_first(sound):
    found = known_limits(replace(sound, settings=sound.settings.changed(dataset_type="synthetic")))
    assert found[0].title == "Synthetic data" and found[0].serious
    assert [limit.serious for limit in found] == sorted((limit.serious for limit in found), reverse=True)


def test_oracle_masks(sound):
    leaking = with_metrics(sound, label_leaks=True)
    limit = limits_of_model.oracle_masks(leaking)
    assert limit.serious and "they tell it the label" in limit.text
    assert marks(leaking) == ["oracle masks: no results"]
    assert limits_of_model.oracle_masks(sound) is None


@pytest.mark.parametrize(
    ("weights", "title", "serious"),
    [
        ("random", "Random weights", False),
        ("random (pretrained: auto, but no network)", "Random weights", True),
        (None, "Origin of the weights unknown", False),
    ],
)
def test_weights(sound, weights, title, serious):
    evidence = replace(sound, manifest=MANIFEST | {"pretrained": weights})
    limit = limits_of_model.random_weights(evidence)
    assert (limit.title, limit.serious) == (title, serious)
    assert marks(evidence) == (["random weights"] if weights else [])
    assert limits_of_model.random_weights(sound) is None


def test_weights_of_an_old_manifest(sound):
    assert limits_of_model.random_weights(replace(sound, manifest={})).title == "Origin of the weights unknown"


@pytest.mark.parametrize(("probability", "answer"), [(0.9, "defective"), (0.1, "normal")])
def test_one_answer_for_every_picture(sound, probability, answer):
    evidence = with_table(sound, [row("test", label, probability) for label in (0, 1, 1)])
    assert f"calls all 3 pictures of test {answer}" in limits_of_model.one_answer(evidence).text
    assert limits_of_model.one_answer(sound) is None


def test_chance(sound):
    evidence = with_scores(sound, auroc=Estimate(0.55, 0.45, 0.65))
    evidence = with_scores(evidence, "test_shift", auroc=Estimate(0.2, 0.1, 0.3))
    text = limits_of_model.near_chance(evidence).text
    assert text.startswith(
        "On test the AUROC 0.550 (0.450 to 0.650) cannot be told from a coin's 0.5 and on test_shift"
    )
    assert "normal pictures score higher than defective ones (AUROC 0.200" in text
    assert limits_of_model.near_chance(sound) is None
    unknown = with_scores(with_scores(sound, auroc=Estimate(0.5)), "test_shift", auroc=Estimate())
    assert limits_of_model.near_chance(unknown) is None


def test_worse_on_the_shifted_split(sound):
    evidence = with_scores(sound, recall=Estimate(0.9, 0.85, 0.95))
    evidence = with_scores(evidence, "test_shift", recall=Estimate(0.5, 0.4, 0.6))
    text = limits_of_model.drops_under_shift(evidence).text
    assert "these fall: recall by 0.400 (" in text and "accuracy" not in text
    assert limits_of_model.drops_under_shift(sound) is None
    assert limits_of_model.drops_under_shift(without_split(evidence, "test_shift")) is None


def test_right_for_the_wrong_reason(sound):
    rate = Estimate(0.25, 0.1, 0.4, count=40, hits=10)
    text = limits_of_model.wrong_reason(with_scores(sound, wrong_reason_rate=rate)).text
    assert text.startswith("In 10 of 40 found defects of test (25\u00a0%) the deciding CAM lies off the defect")
    assert limits_of_model.wrong_reason(with_scores(sound, wrong_reason_rate=Estimate(0.1, 0.05, 0.2))) is None
    assert limits_of_model.wrong_reason(with_scores(sound, wrong_reason_rate=Estimate())) is None


@pytest.mark.parametrize(
    ("excess", "limited"),
    [
        (Estimate(0.1, -0.1, 0.3), True),
        (Estimate(0.1, 0.01, 0.3), False),
        (Estimate(0.0), True),
        (Estimate(1 / 52, -0.051, 0.101), True),
        (Estimate(0.5), True),
        (Estimate(), False),
    ],
)
def test_flips_against_their_control(sound, excess, limited):
    rates = {"cf_flip_rate": Estimate(0.9, count=10, hits=9), "cf_control_flip_rate": Estimate(0.8, count=10, hits=8)}
    limit = limits_of_model.control_flips(with_scores(sound, cf_excess=excess, **rates))
    assert (limit is not None) == limited
    if limit:
        assert "flips 9 of 10 verdicts, suppressing the same area off it 8 of 10" in limit.text
        assert limit.title == "Not shown to flip more often than the control"


def test_maps_that_do_not_separate(sound):
    scales = {"cam": {"floor": 2.0, "ceiling": 1.0}, "attention": {"floor": 1.0, "ceiling": 2.0}}
    limit = limits_of_model.scale_does_not_separate(with_metrics(sound, map_scales=scales))
    assert "(cam)" in limit.text and limit.serious
    assert limits_of_model.scale_does_not_separate(sound) is None


def test_a_cam_that_is_calm_on_defects_too(sound):
    blind = replace(sound, audit=replace(sound.audit, found=np.zeros(len(sound.audit.table), bool)))
    limit = limits_of_model.calm_on_defects(blind)
    text = limit.text
    assert limit.title == "CAM not shown to be calmer on normal parts" and "tells them apart is not shown" in text
    assert "nothing on test on 20 of 20 defective and 300 of 300 normal pictures and on test_shift on 20" in text
    assert limits_of_model.calm_on_defects(sound) is None
    assert limits_of_model.calm_on_defects(replace(sound, audit=replace(sound.audit, found=None))) is None


def test_faithfulness_that_was_not_measured(sound):
    never = limits_of_map.not_measured(without_measure(sound))
    assert never.text.endswith("(it takes the model and minutes); gainmtl report RUN --faithfulness does.")
    stale = limits_of_map.not_measured(without_measure(sound, stale_faithfulness=True))
    assert "(it was measured for other predictions)" in stale.text
    assert limits_of_map.not_measured(sound) is None
    for rule in (limits_of_map.not_faithful, limits_of_map.independent_of_weights):
        assert rule(without_measure(sound)) is None and rule(sound) is None


@pytest.mark.parametrize(
    ("verdict", "serious"),
    [
        ("not distinguishable from a random map", True),
        ("worse than a random map", True),
        ("too few pictures of different parts to say (3, at least 10)", False),
    ],
)
def test_a_map_not_shown_to_be_faithful(sound, verdict, serious):
    limit = limits_of_map.not_faithful(replace(sound, faithfulness=measured(road=verdict)))
    assert limit.text.startswith(f"On 2 found defects of test, ROAD: {verdict}. That the decision rests on")
    assert limit.serious == serious and "deletion" not in limit.text


@pytest.mark.parametrize(
    ("verdict", "similarity", "told"),
    [
        ("stays the same without the learnt weights: it explains nothing", 0.9, "map 0.900, the same from 0.5)"),
        ("every map is flat: there is nothing to check", None, "map –, the same from 0.5)"),
    ],
)
def test_a_map_that_does_not_need_the_weights(sound, verdict, similarity, told):
    shuffled = {"verdict": verdict, "similarity": similarity, "level": 0.5, "parts": {}, "notes": []}
    limit = limits_of_map.independent_of_weights(replace(sound, faithfulness=measured(randomisation=shuffled)))
    assert limit.serious and verdict in limit.text and told in limit.text


def test_no_counterfactual(sound):
    scores = {split: {"recall": Estimate()} for split in sound.audit.scores}
    evidence = replace(sound, audit=replace(sound.audit, scores=scores))
    assert "Strategy S5 as trained has no counterfactual" in limits_of_model.no_counterfactual(evidence).text
    assert limits_of_model.learned_counterfactual(evidence) is None
    assert limits_of_model.no_counterfactual(sound) is None


def test_learned_counterfactual(sound):
    assert "trained to turn the verdict" in limits_of_model.learned_counterfactual(sound).text
    changed = replace(sound, settings=sound.settings.changed(counterfactual_mode="mean"))
    assert limits_of_model.learned_counterfactual(changed) is None


def test_one_seed_is_always_stated(sound):
    assert "one training (seed 7)" in limits_of_model.one_seed(sound).text


def test_synthetic_data(sound):
    assert limits_of_data.synthetic_data(sound) is None


def test_no_validation(sound):
    evidence = without_split(sound, "val")
    assert "The threshold 0.500 was not chosen on validation" in limits_of_data.no_validation(evidence).text
    assert limits_of_data.no_validation(sound) is None
    nothing = replace(evidence, audit=replace(evidence.audit, choice=RecallChoice(0.99, None, 0, 100)))
    assert limits_of_data.few_defects_for_recall(nothing) is None  # said already


def test_masks(sound):
    bare = {"mask": None, "cam_iou": np.nan, "grid_iou": np.nan, "point_game": np.nan, "defect_area": np.nan}
    some = with_table(sound, [row("test", 1, 0.9), row("test", 1, 0.9, **bare), row("val", 1, 0.9, **bare)])
    assert limits_of_data.no_masks(some).text == "1 of 2 test defects have no mask; scores of the maps leave them out."
    none = with_table(sound, [row("test", 1, 0.9, **bare), row("test", 0, 0.1)])
    assert limits_of_data.no_masks(none).title == "No masks" and limits_of_data.no_masks(none).serious
    assert limits_of_data.no_masks(sound) is None


def test_a_class_is_missing(sound):
    evidence = with_table(sound, [row("test", 1, 0.9), row("test_shift", 0, 0.9)])
    text = limits_of_data.a_class_is_missing(evidence).text
    assert text.startswith("Test holds no normal picture and test_shift holds no defective picture;")
    assert limits_of_data.a_class_is_missing(sound) is None


def test_too_few_validation_defects(sound):
    few = replace(sound, audit=replace(sound.audit, choice=RecallChoice(0.99, 0.4, 20, 100)))
    text = limits_of_data.few_defects_for_recall(few).text
    assert text.startswith("A recall of 99\u00a0% allows one miss in 100 defects; validation holds 20.")
    never = replace(sound, audit=replace(sound.audit, choice=RecallChoice(1.0, 0.4, 20, None)))
    assert "cannot be shown by any number" in limits_of_data.few_defects_for_recall(never).text
    assert limits_of_data.few_defects_for_recall(sound) is None


def test_few_test_defects(sound):
    known = {"recall": Estimate(0.95, 0.91, 0.99, count=300)}
    evidence = with_scores(with_scores(sound, **known), "test_shift", recall=Estimate(0.9, 0.7, 0.98, count=20))
    text = limits_of_data.small_test_set(evidence).text
    assert text == "Recall is known only roughly: 0.900 (0.700 to 0.980) on test_shift (20 defects)."
    assert limits_of_data.small_test_set(with_scores(evidence, "test_shift", **known)) is None


def test_rare_types(sound):
    rare = [replace(sound.audit.types["test"][0], name="hole", recall=Estimate(1.0, count=9))]
    evidence = replace(sound, audit=replace(sound.audit, types={"test": rare}))
    assert limits_of_data.few_of_a_type(evidence).text == "Fewer than 10 pictures of test show hole (9)."
    assert limits_of_data.few_of_a_type(sound) is None


def test_no_shifted_split(sound):
    assert "was not tested" in limits_of_data.no_shift_split(without_split(sound, "test_shift")).text
    assert limits_of_data.no_shift_split(sound) is None


def test_more_defects_than_on_a_line(sound):
    evidence = with_table(sound, [row("test", label, 0.5) for label in (0, 0, 0, 1)])
    assert limits_of_data.prevalence(evidence).text.startswith("25\u00a0% of the test pictures are defective.")
    assert limits_of_data.prevalence(sound) is None


def test_training_masks(sound):
    evidence = replace(sound, manifest=MANIFEST | {"train_annotated": 12})
    assert limits_of_data.training_masks(evidence).text.startswith("12 of 20 defective training pictures have a mask")
    plain = sound.settings.changed(
        strategy="S1", **{f"lambda_{term}": 0.0 for term in ("am", "cam_guide", "loc", "guide", "cf", "consist")}
    )
    assert limits_of_data.training_masks(replace(evidence, settings=plain)) is None
    assert limits_of_data.training_masks(replace(evidence, manifest={})) is None
    assert limits_of_data.training_masks(sound) is None


def test_coarse_maps(sound):
    text = limits_of_data.coarse_grid(with_scores(sound, grid_iou=Estimate(0.37))).text
    assert "(stride 16) the masks themselves reach an IoU of 0.370" in text
    assert limits_of_data.coarse_grid(sound) is None
    assert limits_of_data.coarse_grid(with_scores(sound, grid_iou=Estimate())) is None


def test_perfect_scores(sound):
    text = limits_of_data.no_interval(with_scores(sound, "val", auroc=Estimate(1.0))).text
    assert text.startswith("The AUROC on validation is 1 in every resample")
    assert limits_of_data.no_interval(sound) is None


def test_parts_unknown(sound):
    assert "group_pattern" in limits_of_data.groups_unknown(with_table(sound, [row("test", 1, 0.9)])).text
    assert limits_of_data.groups_unknown(sound) is None


def test_pictures_not_at_hand(sound):
    assert limits_of_data.pictures_missing(replace(sound, missing_pictures=3)).text.startswith("3 of the pictures")
    elsewhere = limits_of_data.pictures_missing(replace(sound, missing_pictures=3, data_root=Path("/now")))
    assert "below /now" in elsewhere.text and "--data-root" in elsewhere.text
    assert limits_of_data.pictures_missing(sound) is None


RANDOM = "random (untrained teacher: not the paper's method)"


def novelty(teacher="distilled from x", **normals):
    """With so many of 20 normal pictures of each split flagged."""
    splits = {split: [asdict(Kind("normal", 20, 0, count, count))] for split, count in normals.items()}
    return Novelty(pd.DataFrame(), {"teacher": teacher, "splits": splits})


def test_a_random_teacher(sound):
    assert limits_of_novelty.random_teacher(replace(sound, novelty=novelty())) is None
    flags = limits_of_novelty.random_teacher(replace(sound, novelty=novelty(RANDOM)))
    assert flags.text.startswith("The EfficientAD run that flags novel pictures had a random, untrained teacher.")
    masks = with_metrics(sound, teacher=RANDOM)
    assert "that makes the masks of the attention had" in limits_of_novelty.random_teacher(masks).text
    assert marks(masks) == ["masks of a random teacher"] and limits_of_novelty.random_teacher(sound) is None


def test_good_parts_that_are_flagged(sound):
    for few in (novelty(test=0), novelty(test=2, test_shift=1)):  # 2 of 20 may be chance
        assert limits_of_novelty.flags_good_parts(replace(sound, novelty=few)) is None
    limit = limits_of_novelty.flags_good_parts(replace(sound, novelty=novelty(test=1, test_shift=12)))
    assert limit.text.replace("\u00a0", " ").startswith(
        "12 of 20 normal pictures of test_shift (60 %) lie above the novelty threshold, which validation would let 5 %"
    )
    assert limits_of_novelty.flags_good_parts(sound) is None


def test_every_rule_is_in_the_list():
    for module in (limits_of_data, limits_of_map, limits_of_model, limits_of_novelty):
        rules = {name for name, value in vars(module).items()
                 if callable(value) and getattr(value, "__module__", "") == module.__name__}  # fmt: skip
        assert {rule.__name__ for rule in module.RULES} == rules
