"""What is absent says why, and numbers are those of the metrics."""

import pickle

import numpy as np
import pytest
import torch
from hand_made import Looks

from gainmtl_lib.explain import Frame, NotExplained, Ready, describe
from gainmtl_lib.metrics import MapScale

NAMES = ("normal", "defective")
FRAME = Frame.of((64, 64), (64, 64), "squash")
MASK = np.zeros((64, 64), np.bool_)
MASK[8:16, 8:16] = True


def picture(brightness=1.0):
    image = np.zeros((64, 64, 3), np.uint8)
    image[8:16, 8:16] = round(255 * brightness)
    return image


def said(strategy="S5", brightness=1.0, level=0.01, mask=None, scales=None, threshold=0.5):
    images = torch.from_numpy(picture(brightness)).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        output = Looks(level=level, strategy=strategy).eval()(images)
    return describe(
        output,
        Ready(picture(brightness), mask, FRAME),
        strategy=strategy,
        threshold=threshold,
        scales=scales or {},
        class_names=NAMES,
    )


def test_the_verdict_and_its_confidence():
    explanation = said(threshold=0.7)
    p = explanation["probability"]
    assert p == pytest.approx(1 / (1 + np.exp(-20 * (64 / 1024 - 0.01))), abs=1e-5)
    assert (explanation["prediction"], explanation["prediction_name"]) == (1, "defective")
    assert explanation["confidence"] == p and explanation["threshold"] == 0.7
    cautious = said(threshold=0.9)
    assert cautious["prediction_name"] == "normal" and cautious["confidence"] == pytest.approx(1 - p)


@pytest.mark.parametrize(
    ("strategy", "there"),
    [("S1", set()), ("S3", {"attention"}), ("S4", {"attention", "localization", "box", "boxes", "area"})],
)
def test_what_the_strategy_lacks_is_absent(strategy, there):
    always = {"prediction", "prediction_name", "confidence", "probability", "threshold", "image", "cam"}
    assert set(said(strategy)) == always | {"counterfactual"} | there


@pytest.mark.parametrize(
    ("strategy", "name", "reason"),
    [
        ("S1", "attention", "strategy S1 has no attention path; S3 to S7 have one"),
        ("S3", "localization", "strategy S3 has no localization path; S4 to S7 have one"),
        ("S3", "box", "strategy S3 has no localization path"),
        ("S5", "cam_iou", "no mask was given, or it marks no pixel"),
        ("S5", "found", "no absolute scale is known; DefectExplainer.from_run"),
        ("S5", "counterfactual_missing", "the verdict is normal and asks for none"),
        ("S5", "atention", "there are prediction, prediction_name, confidence"),
    ],
)
def test_asking_for_what_is_absent_says_why(strategy, name, reason):
    explanation = said(strategy)
    assert name not in explanation and explanation.get(name, "N/A") == "N/A"
    with pytest.raises(NotExplained, match=f"^no '{name}' in this explanation: .*{reason}"):
        explanation[name]
    with pytest.raises(KeyError):
        explanation[name]


def test_maps_are_single_precision_and_as_large_as_they_are():
    explanation = said()
    shapes = {name: explanation[name].shape for name in ("cam", "attention", "localization")}
    assert shapes == {"cam": (16, 16), "attention": (16, 16), "localization": (64, 64)}
    assert all(explanation[name].dtype == np.float32 for name in shapes)


def test_scores_need_a_mask():
    explanation = said(mask=MASK)
    assert explanation["cam_iou"] > 0.5 and explanation["grid_iou"] > 0.5
    assert explanation["point_game"] == 1.0 and 0.5 < explanation["energy_inside"] < 1
    assert np.array_equal(explanation["mask"], MASK)
    assert not {"cam_iou", "grid_iou", "point_game", "energy_inside", "mask"} & set(said())


def test_box_and_area_of_a_defective_verdict():
    explanation = said()
    assert explanation["box"] == (8, 8, 16, 16) and explanation["boxes"] == [(8, 8, 16, 16)]
    assert explanation["area"] == 64 / 4096
    nothing = said(brightness=0.4)
    assert nothing["prediction"] == 1
    assert nothing["box"] is None and nothing["boxes"] == [] and nothing["area"] == 0


def test_found_is_said_of_maps_with_a_scale_only():
    scales = {"cam": MapScale(0.0, 1.0), "localization": MapScale(0.99, 1.5), "unknown": MapScale(0, 1)}
    assert said(scales=scales)["found"] == {"cam": True, "localization": True}
    assert said(scales=scales, brightness=0.8)["found"] == {"cam": True, "localization": False}
    assert "localization" not in said("S1", scales=scales)["found"]


def test_a_normal_verdict_has_a_box_only_where_it_stands_out_from_normal_parts():
    assert said(level=0.5)["box"] is None
    assert said(level=0.5, scales={"localization": MapScale(0.6, 0.9)})["box"] == (8, 8, 16, 16)
    assert said(level=0.5, brightness=0.6, scales={"localization": MapScale(0.2, 0.9)})["area"] == 64 / 4096
    calm = said(level=0.5, brightness=0.7, scales={"localization": MapScale(0.8, 0.9)})
    assert calm["prediction"] == 0 and calm["localization"].max() > 0.5
    assert calm["box"] is None and calm["area"] == 0


def test_explanations_travel():
    explanation = said(mask=MASK)
    copy = pickle.loads(pickle.dumps(explanation))
    assert copy["probability"] == explanation["probability"] and copy.frame == explanation.frame
    with pytest.raises(NotExplained, match="no absolute scale"):
        copy["found"]
