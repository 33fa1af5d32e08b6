"""Evaluation as a whole, and its parts on tables drawn by hand."""

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from tiny import tiny_settings

from gainmtl_lib.build import build_data, build_model
from gainmtl_lib.evaluation.errors import error_analysis
from gainmtl_lib.evaluation.evaluate import evaluate
from gainmtl_lib.evaluation.summary import add_verdicts, choose_threshold, classification
from gainmtl_lib.runs import RunError, load_run
from gainmtl_lib.training.fit import fit


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fit(tiny_settings(tmp_path_factory.mktemp("evaluate"), num_epochs=2))


@pytest.fixture(scope="module")
def evaluated(run):
    return evaluate(run)


def test_one_row_per_image_of_every_split(run, evaluated):
    table, summary = evaluated
    assert table["split"].value_counts().to_dict() == {"val": 4, "test": 6, "test_shift": 6}
    assert not table["image"].duplicated().any()
    splits = {"val", "test", "test_shift"}
    assert set(summary) == splits | {"threshold", "threshold_from", "map_scales", "mask_source", "label_leaks"}
    assert set(summary["map_scales"]) == {"cam", "attention", "localization"}
    assert summary["mask_source"] == "localization" and summary["label_leaks"] is False
    maps = run.maps
    assert maps["cam"].shape == (16, 4, 4) and maps["attention"].shape == (16, 4, 4)
    assert maps["localization"].shape == (16, 16, 16)


def test_scores_exist_for_annotated_defects_only(evaluated):
    table, summary = evaluated
    columns = ["cam_iou", "grid_iou", "point_game", "energy_inside", "attention_iou", "loc_iou", "cf_probability"]
    assert table.loc[table["label"] == 1, columns].notna().all().all()
    assert table.loc[table["label"] == 0, columns].isna().all().all()
    assert summary["test"]["cam_iou"] == pytest.approx(table.query("split == 'test'")["cam_iou"].mean(), abs=1e-4)
    assert summary["test"]["annotated"] == 3


def test_a_second_call_reads_what_the_first_stored(run, evaluated):
    table, summary = evaluate(load_run(run.folder))
    pd.testing.assert_frame_equal(table, evaluated[0])
    assert summary == evaluated[1]


def test_evaluating_anew_gives_the_same_numbers(run, evaluated):
    table, summary = evaluate(run, reuse=False)
    pd.testing.assert_frame_equal(table, evaluated[0])
    assert summary == evaluated[1]


def test_a_model_is_evaluated_on_the_data_it_is_given(run, evaluated):
    table, summary = evaluate(run.model, data=build_data(run.settings))
    assert summary["test"]["auroc"] == pytest.approx(evaluated[1]["test"]["auroc"])
    with pytest.raises(RunError, match="evaluating a model needs data"):
        evaluate(run.model)


def test_a_given_threshold_is_not_chosen_and_not_stored(run, evaluated):
    table, summary = evaluate(run, threshold=0.0)
    assert (table["predicted"] == 1).all() and summary["threshold_from"] == "given"
    assert run.metrics["threshold"] == evaluated[1]["threshold"]


def test_oracle_is_marked_and_not_stored(run, evaluated):
    _, summary = evaluate(run, mask_source="oracle")
    assert summary["label_leaks"] is True and summary["mask_source"] == "oracle"
    assert run.metrics["mask_source"] == "localization"


def test_a_mask_source_is_for_s6(tmp_path):
    settings = tiny_settings(tmp_path, "S3")
    with pytest.raises(RunError, match="mask_source is for strategy S6; this model is S3"):
        evaluate(build_model(settings), data=build_data(settings), mask_source="none")


def test_external_masks_come_from_a_folder(run, tmp_path):
    with pytest.raises(RunError, match="needs external_mask_dir"):
        evaluate(run, mask_source="external")
    for path in build_data(run.settings).samples["image"]:
        cv2.imwrite(str(tmp_path / path.split("/")[-1]), np.full((64, 64), 255, np.uint8))
    _, full = evaluate(run, mask_source="external", external_mask_dir=tmp_path)
    _, none = evaluate(run, mask_source="none")
    # A mask of ones lets attention through as it is, which is what no mask does.
    assert full["test"]["cam_iou"] == pytest.approx(none["test"]["cam_iou"], abs=1e-6)
    assert full["mask_source"] == "external"


def test_threshold_maximises_f1_with_a_margin():
    labels = np.array([0, 0, 0, 1, 1])
    assert choose_threshold(labels, np.array([0.1, 0.2, 0.3, 0.7, 0.9])) == pytest.approx(0.5)
    # F1 of the cuts: 0.25 -> 6/7, 0.55 -> 0.5, 0.8 -> 1/2... the widest cut that keeps both defects wins.
    assert choose_threshold(np.array([0, 1, 0, 1]), np.array([0.1, 0.4, 0.7, 0.9])) == pytest.approx(0.25)
    assert choose_threshold(labels, np.full(5, 0.3)) == 0.5
    assert choose_threshold(np.zeros(3, int), np.array([0.1, 0.2, 0.3])) == 0.5


def table_by_hand():
    nan = float("nan")
    return pd.DataFrame(
        [
            # image, label, probability, cam_iou, point_game, energy, cf, control
            ("found", 1, 0.9, 0.6, 1.0, 0.8, 0.1, 0.8),
            ("lucky", 1, 0.8, 0.05, 0.0, 0.1, 0.7, 0.9),
            ("missed", 1, 0.2, 0.4, 1.0, 0.5, 0.1, 0.2),
            ("no_mask", 1, 0.7, nan, nan, nan, nan, nan),
            ("alarm", 0, 0.6, nan, nan, nan, nan, nan),
            ("calm", 0, 0.1, nan, nan, nan, nan, nan),
        ],
        columns=["image", "label", "probability", "cam_iou", "point_game", "energy_inside", "cf_probability",
                 "cf_control_probability"],
    ).assign(split="test")  # fmt: skip


def test_verdicts_flips_and_wrong_reasons_by_hand():
    table = add_verdicts(table_by_hand(), 0.5).set_index("image")
    assert table["verdict"].to_dict() == {
        "found": "TP", "lucky": "TP", "missed": "FN", "no_mask": "TP", "alarm": "FP", "calm": "TN"
    }  # fmt: skip
    assert table.index[table["wrong_reason"]].tolist() == ["lucky"]
    assert table["cf_flip"].dropna().to_dict() == {"found": 1.0, "lucky": 0.0}
    assert table["cf_control_flip"].dropna().to_dict() == {"found": 0.0, "lucky": 0.0}


def test_classification_by_hand():
    scores = classification(add_verdicts(table_by_hand(), 0.5))
    assert scores["accuracy"] == pytest.approx(4 / 6)
    assert scores["precision"] == pytest.approx(3 / 4)
    assert scores["recall"] == pytest.approx(3 / 4)
    assert scores["auroc"] == pytest.approx(7 / 8)  # 7 of 8 pairs of a defect and a normal are in order
    one_class = add_verdicts(table_by_hand().query("label == 1"), 0.5)
    assert np.isnan(classification(one_class)["auroc"])


def test_errors_list_the_missed_first_then_the_wrong_reason():
    table = add_verdicts(table_by_hand(), 0.5)
    worse = table.query("image == 'missed'").assign(image="surely missed", probability=0.01)
    errors = error_analysis(pd.concat([table, worse], ignore_index=True))
    assert errors["image"].tolist() == ["surely missed", "missed", "lucky", "alarm"]
    assert errors["kind"].tolist() == ["missed", "missed", "wrong reason", "false alarm"]
    assert len(error_analysis(table, "val")) == 0


def test_flips_are_asked_with_the_mask_off_the_defect_too(run, evaluated):
    table, _ = evaluated
    rows = table[table["label"] == 1]
    assert rows["cf_probability"].between(0, 1).all()
    placed = rows["cf_control_probability"].dropna()
    assert placed.between(0, 1).all()
    assert not torch.allclose(
        torch.tensor(rows.loc[placed.index, "cf_probability"].to_numpy()), torch.tensor(placed.to_numpy())
    )
