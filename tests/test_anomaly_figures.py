"""Figures of the second system, drawn from tiny models and tables by hand."""

import pandas as pd
import pytest
import torch

from gainmtl_lib.dataset import Batch
from gainmtl_lib.efficientad.figures import anomaly_maps_figure, anomaly_training_figure, framed, score_figure
from gainmtl_lib.efficientad.model import EfficientADModel
from gainmtl_lib.metrics import MapScale


def batch(size=64):
    masks = torch.zeros(2, 1, size, size)
    masks[0, :, 8:20, 8:20] = 1
    return Batch(
        torch.rand(2, 3, size, size), torch.tensor([1, 0]), masks, torch.tensor([True, False]), torch.arange(2)
    )


def test_the_border_is_filled_with_the_lowest_value_of_each_map():
    maps = torch.stack([torch.full((1, 8, 8), 2.0), torch.full((1, 8, 8), 5.0)])
    maps[0, 0, 3, 3] = 1.0
    shown = framed(maps, EfficientADModel("S", 4))
    assert shown.shape == (2, 16, 16)
    assert shown[0, 0, 0] == 1.0 and shown[0, 4, 4] == 2.0 and shown[1, 0, 0] == 5.0
    assert framed(maps, EfficientADModel("S", 4, padding=True)).shape == (2, 8, 8)


def test_one_row_per_picture_with_its_score_and_calm_maps_say_so():
    model = EfficientADModel("S", 4).eval()
    figure = anomaly_maps_figure(model, batch(), ["defective", "normal"], scale=MapScale(1e6, 2e6))
    assert len(figure.axes) == 8
    headings = [axis.get_title() for axis in figure.axes[:4]]
    assert headings[1].startswith("student–teacher") and headings[3] == "anomaly map\n(absolute)"
    assert figure.axes[3].get_xlabel().startswith("score ")
    assert figure.axes[4].get_ylabel() == "normal"


def test_scores_are_shown_per_split_around_the_threshold():
    rows = [("test", 0, 0.1), ("test", 1, 0.9), ("test_shift", 0, 0.5), ("test_shift", 1, 0.7), ("val", 0, 0.2)]
    figure = score_figure(pd.DataFrame(rows, columns=["split", "label", "anomaly_score"]), 3.0)
    assert [axis.get_title() for axis in figure.axes] == ["test (same distribution)", "test_shift (changed conditions)"]
    for axis in figure.axes:
        low, high = axis.get_xlim()
        assert low < 0.1 and high > 3.0
        assert [text.get_text() for text in axis.get_legend().get_texts()] == ["normal", "defective", "threshold"]


def test_scores_of_the_splits_that_are_asked_for():
    rows = pd.DataFrame([("val", 0, 0.1), ("test", 1, 0.9)], columns=["split", "label", "anomaly_score"])
    assert len(score_figure(rows, 0.5, splits=("val", "test")).axes) == 2
    with pytest.raises(ValueError, match="no pictures of the splits test, test_shift; the table has val"):
        score_figure(rows[rows["split"] == "val"], 0.5)


def test_training_shows_the_four_terms_and_both_validation_scores():
    tags = [*(f"train/{term}_loss" for term in ("st", "penalty", "ae", "stae")), "val/image_auroc", "val/pixel_auroc"]
    history = pd.DataFrame(
        [(tag, step, 0.5 + step) for tag in tags for step in range(3)], columns=["tag", "step", "value"]
    )
    losses, scores = anomaly_training_figure(history).axes
    assert len(losses.lines) == 4 and losses.get_yscale() == "log"
    assert [line.get_label() for line in scores.lines] == ["image AUROC", "pixel AUROC"]
