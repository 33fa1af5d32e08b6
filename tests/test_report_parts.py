"""Head, tables, sentences, figures and wording of the report."""

import base64
import math
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from audited import MANIFEST, measured, row, spread, write_audited

from gainmtl_lib.audit import numbers as wording
from gainmtl_lib.audit import report as words
from gainmtl_lib.audit.numbers import (
    Evidence,
    Limit,
    ShiftRow,
    audit_run,
    calm_rows,
    explanation_rows,
    faithfulness_rows,
    shift_rows,
)
from gainmtl_lib.audit.report import (
    error_rates,
    file_digests,
    head_rows,
    report_figures,
    run_name,
    settings_rows,
    started,
    trade_off_figure,
)
from gainmtl_lib.runs import load_run
from gainmtl_lib.stats import Estimate


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr("gainmtl_lib.stats.RESAMPLES", 100)
    yield
    plt.close("all")


def flat(text):
    return text.replace("\u00a0", " ")


FLIPS = {"cf_probability": 0.1, "cf_control_probability": 0.9}


def rows():
    flips = FLIPS
    found = [row("val", 1, 0.9, **flips), row("val", 1, 0.4, **flips), row("val", 0, 0.1)]
    found += [row("test", 1, 0.9, attention_iou=0.6, loc_pixel_accuracy=0.97, **flips), row("test", 1, 0.8, **flips)]
    found += [row("test", 1, 0.3, **flips), row("test", 0, 0.35), row("test", 0, 0.6)]
    return found


def evidence_of(folder, rows, *, required_recall=0.9, **values):
    run = load_run(write_audited(folder, rows, **values))
    return Evidence(run.settings, run.manifest, audit_run(run, required_recall=required_recall))


@pytest.fixture
def evidence(tmp_path):
    metrics = {"test": {"TP": 2, "FP": 1, "FN": 1, "TN": 1, "cam_iou_pooled": 0.25, "loc_aupro": None}}
    return evidence_of(tmp_path, rows(), metrics=metrics)


# head


def test_the_head_says_what_was_trained_on_what(tmp_path):
    run = load_run(write_audited(tmp_path, rows(), strategy="S6"))
    facts = {label: text for group in head_rows(run).values() for label, text in group}
    assert facts["strategy"].startswith("S6: attention fused with a mask")
    assert facts["backbone"] == "s, built by timm"
    assert facts["backbone weights at the start"] == "imagenet:some_weights"
    assert facts["digest (SHA-256)"] == "d" * 64
    assert facts["pictures"] == "train 40, val 8, test 8"
    assert facts["training pictures"] == "20 normal, 20 defective (20 with a mask)"
    assert facts["split"] == "the data's own where it has one; else seed 7, test ratio 0.2"
    assert facts["map grid"] == "4 x 4 cells, stride 16"
    assert facts["parameters"] == "1,234,567"
    assert facts["best epoch"] == "3 of 100, by validation AP 0.750"
    assert facts["loss weights λ in force"].startswith("cls 0.3, am 1, cam_guide 1, loc 0.2")
    assert facts["device, precision"] == "cpu, 32-true"
    assert facts["started"] == "2026-01-02 03:04:05 UTC" and facts["duration"] == "1 h 2 min 3 s"
    assert facts["code"] == "gainmtl 0.1.0" and facts["torch"] == "2.6.0"
    assert facts["mask source asked for"] == "localization"
    assert run_name(run.settings) == "hand / S6 / seed 7"


def test_the_head_names_edited_pictures_and_training_masks(tmp_path):
    options = {"strategy": "S7", "variant": "few", "mask_share": 0.25, "mask_quality": "box"}
    edits = {"edits_per_epoch": {"paste": 2.4, "heal": 2.4}}
    run = load_run(write_audited(tmp_path, rows(), manifest=edits, **options))
    facts = {label: text for group in head_rows(run).values() for label, text in group}
    assert facts["strategy"] == "S7: as S5, trained besides on pictures whose defect was taken away or added"
    assert facts["training masks"] == "25 % of the defects keep their masks, box"
    assert facts["edited training pictures"] == "50 %; on average of an epoch paste 2.4, heal 2.4"
    assert run_name(run.settings) == "hand / S7-few / seed 7"
    unrecorded = load_run(write_audited(tmp_path / "unrecorded", rows(), strategy="S7"))
    assert dict(head_rows(unrecorded)["Data"])["edited training pictures"] == "50 %; not recorded"


def test_only_weights_in_force_are_named(tmp_path):
    run = load_run(write_audited(tmp_path, rows(), use_counterfactual=False))
    facts = dict(head_rows(run)["Training"])
    terms = [term.split()[0] for term in facts["loss weights λ in force"].split(", ")]
    assert terms == ["cls", "am", "cam_guide", "loc", "guide", "consist"]


def test_a_split_seed_and_a_planted_shortcut_are_named(tmp_path):
    run = load_run(write_audited(tmp_path, rows(), split_seed=3, dataset_type="synthetic"))
    facts = dict(head_rows(run)["Data"])
    assert "else seed 3" in facts["split"]
    assert facts["planted shortcut"] == "mark, with the label in 95 % of the pictures"


def test_what_a_manifest_lacks_is_said(tmp_path):
    folder = write_audited(tmp_path, rows())
    (folder / "manifest.json").write_text('{"status": "complete", "commit": "abc123"}')
    groups = head_rows(load_run(folder))
    facts = {label: text for group in groups.values() for label, text in group}
    for label in (
        "backbone weights at the start",
        "digest (SHA-256)",
        "pictures",
        "best epoch",
        "duration",
        "parameters",
    ):
        assert facts[label] == "not recorded"
    assert facts["code"] == "gainmtl not recorded, commit abc123"
    assert started({}) == "not recorded" and groups["Software"] == []


def test_files_are_told_by_their_digest(tmp_path):
    folder = write_audited(tmp_path, rows())
    (folder / "settings.yaml").write_bytes(b"abc")
    digests = dict(file_digests(folder))
    assert digests["settings.yaml"] == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert digests["model.safetensors"] == "not there"


def test_every_parameter_is_listed(evidence):
    values = dict(settings_rows(evidence.settings))
    assert set(values) == set(type(evidence.settings).model_fields)
    assert (values["image_size"], values["use_mmpretrain"], values["seed"]) == ("64, 64", "true", "7")


# tables


def test_explanations_stand_beside_what_costs_no_insight(evidence):
    table = {(r.part, r.label): r for r in explanation_rows(evidence.audit)}
    cam = table["deciding CAM", "CAM-IoU"]
    assert cam.beside == "grid IoU" and cam.readings["test"].beside == pytest.approx(0.7)
    assert table["deciding CAM", "PointGame"].readings["test"].beside == pytest.approx(0.02)
    assert table["localization", "pixel accuracy"].readings["test"].beside == pytest.approx(0.98)
    pooled = table["deciding CAM", "CAM-IoU, pooled"].readings
    assert pooled["test"].estimate.value == 0.25 and not pooled["test"].estimate.has_interval
    assert math.isnan(pooled["val"].estimate.value) and math.isnan(pooled["test"].beside)
    assert ("attention", "IoU") in table and ("localization", "Dice") not in table
    assert ("localization", "AUPRO") not in table  # stored, but without an answer


def test_no_masks_no_rows(tmp_path):
    bare = {"cam_iou": np.nan, "grid_iou": np.nan, "point_game": np.nan, "energy_inside": np.nan, "defect_area": np.nan}
    audit = evidence_of(tmp_path, [row("test", 1, 0.9, **bare), row("test", 0, 0.1)], strategy="S1").audit
    assert explanation_rows(audit) == []


def test_calm_rows(evidence):
    assert calm_rows(evidence.audit)["normal"]["test"].hits == 2
    assert calm_rows(evidence.audit)["defective"]["test"].hits == 0


@pytest.mark.parametrize(
    ("drop", "word"),
    [
        (Estimate(0.2, 0.1, 0.3), "lower"),
        (Estimate(-0.2, -0.3, -0.1), "higher"),
        (Estimate(0.1, -0.1, 0.3), "no clear change"),
        (Estimate(0.1), "no interval"),
    ],
)
def test_a_drop_in_words(drop, word):
    assert ShiftRow("recall", Estimate(), Estimate(), drop).words == word


def test_shift_rows(tmp_path, evidence):
    assert shift_rows(evidence.audit) == []
    shifted = [*rows(), row("test_shift", 1, 0.1), row("test_shift", 0, 0.9)]
    table = {r.label: r for r in shift_rows(evidence_of(tmp_path / "s", shifted).audit)}
    assert list(table)[:2] == ["recall", "overkill"]
    assert table["overkill"].drop.value == pytest.approx(-0.5) and table["AUROC"].shift.value == 0


# sentences


def test_sentences_by_hand(evidence):
    audit = evidence.audit
    assert words.threshold_sentence(audit) == (
        "A picture is called defective from p(defect) = 0.500 upwards (validation, highest F1). "
        "Chosen on 3 validation pictures, 2 of them defective; never on test."
    )
    assert flat(words.escapes_sentence(audit)) == (
        "On test 1 of 3 defects escape (33.3 %, interval 6.1 % to 79.2 %), and 1 of 2 normal pictures are rejected "
        "(50 %, interval 9.5 % to 90.5 %)."
    )
    # All validation defects at 0.4 and above, the next lower score is 0.1
    assert flat(words.recall_sentence(audit)) == (
        "The threshold for a recall of 90 %, chosen on validation, is 0.250. On test it reached 100 % (0 of 3 defects "
        "escape), with 2 of 2 normal pictures rejected. Validation has too few defects (2) to know."
    )
    assert flat(words.evidence_sentence(audit)) == (
        "To choose a threshold for a recall of 90 % takes at least 10 validation defects; there are 2. To show that "
        "recall on test with 95 % confidence takes 29 defects without a miss."
    )
    assert flat(words.reason_sentence(evidence)).startswith(
        "In 0 of 2 found defects the deciding CAM lies off the defect (0 %, interval 0 % to 65.8 %). CAM-IoU is 0.500;"
    )
    assert words.shift_sentence(audit) == "Not tested: the data has no shifted split."


def test_flips_are_judged_by_what_exceeds_the_control(evidence):
    assert flat(words.flip_sentence(evidence)) == (
        "With the defect's features suppressed the verdict turns to normal in 2 of 2 found defects (100 %), with the "
        "same area off the defect suppressed in 0 of 2 (0 %). Where both were asked, flip minus control is "
        "1.000 (\u22120.315 to 1.000): that suppressing the defect does more than suppressing any other area is not "
        "shown."
    )


def test_many_flips_without_a_control_flip_are_due_to_the_defect(tmp_path):
    found = [row("test", 1, 0.9, **FLIPS) for _ in range(12)]
    text = words.flip_sentence(evidence_of(tmp_path, [*found, row("test", 0, 0.1)]))
    assert text.endswith("1.000 (0.515 to 1.000): that much is due to suppressing the defect itself.")


def test_one_flip_of_fifty_two_is_not_due_to_anything(tmp_path):
    kept = FLIPS | {"cf_probability": 0.9}
    found = [row("test", 1, 0.9, **(kept if number else FLIPS)) for number in range(52)]
    text = words.flip_sentence(evidence_of(tmp_path, [*found, row("test", 0, 0.1)]))
    assert "0.019 (\u22120.051 to 0.101)" in text and text.endswith("suppressing any other area is not shown.")


def test_faithfulness_in_words(evidence):
    assert words.faithfulness_sentence(evidence) == "Not measured: gainmtl report RUN --faithfulness does."
    told = words.faithfulness_sentence(replace(evidence, faithfulness=measured(road="worse than a random map")))
    assert told == (
        "The deciding CAM against the same map moved to a random place, on 2 of 3 found defects of test: deletion and "
        "insertion: faithful; ROAD: worse than a random map. With all weights shuffled: depends on the learnt weights "
        "(rank correlation 0.125)."
    )


def test_faithfulness_rows():
    missing = measured()
    missing["map"]["deletion"] |= {"low": None, "high": None}
    del missing["map"]["road"]
    deletion, insertion = faithfulness_rows(missing)
    assert (deletion.label, deletion.gain.value, deletion.gain.has_interval) == ("deletion", 0.2, False)
    assert (insertion.gain.low, insertion.gain.high, insertion.ours) == (0.1, 0.3, 0.4)
    assert faithfulness_rows(None) == []


def counterfactual(folder, **values):
    return words.flip_sentence(evidence_of(folder, [row("test", 1, 0.9, **values), row("test", 0, 0.1)]))


def test_flips_that_say_nothing(tmp_path):
    alike = counterfactual(tmp_path / "a", cf_probability=0.1, cf_control_probability=0.1)
    assert alike.endswith("more than suppressing any other area is not shown.")
    alone = counterfactual(tmp_path / "b", cf_probability=0.1, cf_control_probability=np.nan)
    assert alone.endswith("Without a control the flips say nothing.")
    missed = evidence_of(tmp_path / "c", [row("test", 1, 0.1, cf_probability=0.1, cf_control_probability=0.9)])
    assert words.flip_sentence(missed) == "Not answered: no found defect has a mask."
    plain = evidence_of(tmp_path / "d", [row("test", 1, 0.9), row("test", 0, 0.1)], strategy="S1")
    assert words.flip_sentence(plain) == "Not asked: strategy S1 as trained has no counterfactual."


def test_without_validation_no_threshold_for_a_recall(tmp_path):
    metrics = {"threshold_from": "default, no validation split", "map_scales": {}}
    audit = evidence_of(tmp_path, [row("test", 1, 0.9), row("test", 0, 0.1)], metrics=metrics).audit
    assert flat(words.recall_sentence(audit)).startswith("No threshold for a recall of 90 % can be given:")
    assert words.threshold_sentence(audit).endswith("upwards (default, no validation split).")
    assert calm_rows(audit) == {}


def test_a_recall_of_one_cannot_be_shown(tmp_path):
    audit = evidence_of(tmp_path, rows(), required_recall=1.0).audit
    assert flat(words.evidence_sentence(audit)) == "A recall of 100 % cannot be shown by any number of pictures."


def test_the_shift_in_words(tmp_path):
    many = spread("test", 1, 0.6, 0.9, 30) + spread("test", 0, 0.1, 0.4, 30)
    many += spread("test_shift", 1, 0.1, 0.4, 30) + spread("test_shift", 0, 0.1, 0.4, 30)
    text = words.shift_sentence(evidence_of(tmp_path, many).audit)
    assert text.startswith(
        "From test to test_shift recall falls from 1.000 to 0.000, overkill goes from 0.000 to 0.000 (no clear change)"
    )


def test_in_short_names_serious_limits(evidence):
    short = dict(words.in_short(evidence, [Limit("Bad", "…", serious=True), Limit("Odd", "…")]))
    assert short["Limits"] == "2 known limits below; serious: Bad."
    assert dict(words.in_short(evidence, [Limit("Odd", "…")]))["Limits"] == "1 known limit below, none marked serious."
    assert "backbone s from imagenet:some_weights, on generic data (40 pictures), seed 7" in short["Trained"]


def test_random_weights_are_named_in_short(tmp_path):
    evidence = evidence_of(tmp_path, rows(), manifest=MANIFEST | {"pretrained": "random (pretrained: auto, but …)"})
    assert "from random weights" in dict(words.in_short(evidence, []))["Trained"]


# figures


def test_error_rates_by_hand():
    table = pd.DataFrame({"label": [1, 1, 0, 0], "probability": [0.8, 0.4, 0.4, 0.2]})
    thresholds, escapes, overkill = error_rates(table)
    assert thresholds == pytest.approx([0, 0.2, 0.4, 0.8, 1], abs=1e-9)
    assert escapes.tolist() == [0, 0, 0.5, 1, 1]
    assert overkill.tolist() == [1, 0.5, 0, 0, 0]


def test_a_missing_class_has_no_rate():
    _, escapes, overkill = error_rates(pd.DataFrame({"label": [0], "probability": [0.4]}))
    assert np.isnan(escapes).all() and overkill.tolist() == [1, 0, 0]


def test_the_trade_off_marks_both_thresholds(evidence):
    axes = trade_off_figure(evidence.audit).axes
    assert [axis.get_title() for axis in axes] == ["validation", "test"]
    marked = [
        line.get_xdata()[0] for line in axes[1].lines if line.get_label() in ("decision threshold", "for recall 0.9")
    ]
    assert marked == pytest.approx([0.5, 0.25])


def test_figures_become_pictures_without_being_shown(evidence):
    figures = report_figures(evidence.audit)
    assert set(figures) == {"classification", "trade_off"} and not plt.get_fignums()
    assert b"<svg" in base64.b64decode(figures["trade_off"].split(",")[1])


# wording


def test_numbers_as_words():
    assert [wording.rounded(v) for v in (0.12345, -0.5, -0.0001, None, math.nan)] == [
        "0.123",
        "\u22120.500",
        "0.000",
        "–",
        "–",
    ]
    assert [flat(wording.percent(v)) for v in (0.5, 0.0576, 1.0, None, math.nan)] == [
        "50 %",
        "5.8 %",
        "100 %",
        "–",
        "–",
    ]
    assert wording.interval(Estimate(0.5, 0.25, 0.75)) == "0.500 (0.250 to 0.750)"
    assert wording.interval(Estimate(0.5)) == "0.500" and flat(wording.percent_interval(Estimate(0.5))) == "50 %"
    assert wording.of_count(Estimate(0.5, hits=1, count=2)) == "1 of 2" and wording.of_count(Estimate(0.5)) == "–"
    assert [wording.join_words(list(w)) for w in ("", "a", "ab", "abc")] == ["", "a", "a and b", "a, b and c"]
    assert (wording.plural(1, "picture"), wording.plural(2, "picture")) == ("1 picture", "2 pictures")
