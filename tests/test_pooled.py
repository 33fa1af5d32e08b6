"""Pooled scores of a split, counted by hand."""

import math

import pytest
import torch

from gainmtl_lib.dataset import Batch
from gainmtl_lib.evaluation import PooledScores
from gainmtl_lib.model import GainOutput

LABELS = [1, 1, 0, 1]
HAS_MASK = [True, True, False, False]  # the last is a defect that nobody annotated


def batch(rows=slice(0, 4)):
    masks = torch.zeros(4, 1, 2, 4)
    masks[0, 0, 0, :2] = 1
    masks[1, 0, :, :3] = 1
    parts = torch.zeros(4, 3, 2, 4), torch.tensor(LABELS), masks, torch.tensor(HAS_MASK), torch.arange(4)
    return Batch(*(part[rows] for part in parts))


def output(rows=slice(0, 4)):
    maps = torch.zeros(4, 1, 2, 4)
    maps[0, 0, 0, :2] = 1.0  # 2 of 2 pixels, none beside them
    maps[1, 0, 0, 1:] = 1.0  # 2 of 6, one beside them
    maps[2, 0, 0, 0] = 0.25
    maps[3] = 1.0
    maps = maps[rows]
    logits = torch.zeros(len(maps), 2)
    fields = {"attention_map": maps, "effective_attention": 0 * maps, "localization_map": maps}
    return GainOutput(logits=logits, cam=maps, cls_logits=logits, cls_cam=maps, **fields)


def test_every_score_is_of_all_annotated_pictures_as_one():
    pooled = PooledScores()
    pooled.update(batch(), output())
    scores = pooled.compute()
    # 2 and 2 pixels hit; united 2 and 7; marked 2 and 3; annotated 2 and 6.
    assert scores["cam_iou_pooled"] == scores["attention_iou_pooled"] == scores["loc_iou_pooled"]
    assert scores["cam_iou_pooled"] == pytest.approx(4 / 9)
    assert scores["energy_inside_pooled"] == scores["attention_energy_inside_pooled"] == pytest.approx(4 / 5)
    assert scores["loc_dice_pooled"] == pytest.approx(2 * 4 / (5 + 8))
    assert scores["grid_iou_pooled"] == 1
    # Of 6 + 2 + 8 clean pixels (none of the picture without annotation) one is flagged at 1, another at 0.25, where
    # the overlap is (1 + 1/3) / 2; at 0 everything is: (0, 0), (1/16, 2/3), (1/8, 2/3), (1, 1), cut at 0.3.
    area = 1 / 16 * 1 / 3 + 1 / 16 * 2 / 3 + 0.175 * (2 / 3 + 1 / 30)
    assert scores["loc_aupro"] == pytest.approx(area / 0.3)
    assert set(scores) == {
        "cam_iou_pooled", "grid_iou_pooled", "energy_inside_pooled", "attention_iou_pooled",
        "attention_energy_inside_pooled", "loc_iou_pooled", "loc_dice_pooled", "loc_aupro",
    }  # fmt: skip


def test_batches_add_up_to_one_pass():
    whole, parts = PooledScores(), PooledScores()
    whole.update(batch(), output())
    for rows in (slice(0, 1), slice(1, 3), slice(3, 4)):
        parts.update(batch(rows), output(rows))
    assert parts.compute() == pytest.approx(whole.compute())


def test_a_strategy_has_the_scores_of_its_maps():
    pooled, said = PooledScores(), output()
    pooled.update(batch(), GainOutput(logits=said.logits, cam=said.cam, cls_logits=said.logits, cls_cam=said.cam))
    assert set(pooled.compute()) == {"cam_iou_pooled", "grid_iou_pooled", "energy_inside_pooled"}


def test_without_an_annotation_there_is_no_answer():
    pooled, rows = PooledScores(), slice(2, 4)
    pooled.update(batch(rows), output(rows))
    assert all(math.isnan(score) for score in pooled.compute().values())
