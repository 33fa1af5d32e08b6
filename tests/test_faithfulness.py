import pandas as pd
import pytest
import torch
from looks_at_corner import CORNER, DEFECT, LooksAtCorner, Pictures, picture

from gainmtl_lib.backbone import ModelError
from gainmtl_lib.model import GAINMTLModel
from gainmtl_lib.studies.faithfulness import (
    deletion_insertion,
    faithfulness,
    found_defects,
    road,
    summarise_faithfulness,
)

FEW_STEPS = {"steps": 8, "road_fractions": (0.1, 0.5)}


def verdicts(model, **options):
    summary = summarise_faithfulness(faithfulness(model, Pictures(10), range(10), **FEW_STEPS | options))
    return {name: summary[name]["verdict"] for name in ("deletion", "insertion", "road") if name in summary}


def test_a_map_of_what_the_decision_looks_at_is_faithful():
    assert set(verdicts(LooksAtCorner()).values()) == {"faithful"}


def test_a_map_of_the_defect_fails_where_the_decision_ignores_it():
    maps = DEFECT.expand(10, 1, 8, 8)
    assert "faithful" not in verdicts(LooksAtCorner(), maps=maps).values()
    # The mask itself at full size, for a decision that nothing moves.
    mask = torch.zeros(10, 1, 32, 32)
    mask[:, :, 20:28, 20:28] = 1
    blind = verdicts(LooksAtCorner(gain=0.0), maps=mask)
    assert set(blind.values()) == {"not distinguishable from a random map"} and len(blind) == 3


def test_the_reversed_map_is_worse_than_random():
    assert set(verdicts(LooksAtCorner(shown=-CORNER)).values()) == {"worse than a random map"}


def test_a_flat_map_is_not_faithful():
    assert "faithful" not in verdicts(LooksAtCorner(shown=torch.zeros(8, 8))).values()


def test_one_row_per_picture_with_what_the_single_measures_say():
    model = LooksAtCorner().train()
    table = faithfulness(model, Pictures(5), [3, 1], **FEW_STEPS, seed=7)
    assert table["row"].tolist() == [3, 1] and table["image"].tolist() == ["/data/3.png", "/data/1.png"]
    curves = deletion_insertion(model, picture(3), CORNER, steps=8, seed=(7, 3))
    first = table.iloc[0]
    assert first["deletion_auc"] == pytest.approx(curves.deletion_auc)
    assert first["insertion_auc"] == pytest.approx(curves.insertion_auc)
    assert first["road"] == pytest.approx(road(model, picture(3), CORNER, fractions=(0.1, 0.5), seed=(7, 3)).score)
    assert first["probability"] > 0.99 and first["baseline_probability"] < 0.05
    assert model.training


def test_a_picture_has_the_same_numbers_whatever_stands_beside_it():
    alone = faithfulness(LooksAtCorner(), Pictures(5), [3], **FEW_STEPS)
    beside = faithfulness(LooksAtCorner(), Pictures(5), [0, 3], **FEW_STEPS, batch_size=3)
    pd.testing.assert_frame_equal(alone, beside.iloc[[1]].reset_index(drop=True))


def test_without_road_there_is_no_road():
    table = faithfulness(LooksAtCorner(), Pictures(1), [0], steps=2, road_fractions=())
    assert not [name for name in table if "road" in name]


def predictions(**columns):
    table = pd.DataFrame(
        {
            "image": [f"images/{row}.png" for row in range(6)],
            "split": "test",
            "verdict": ["TP", "FN", "TP", "TP", "TP", "TN"],
        }
    )
    return table.assign(**columns)


def test_the_flips_of_the_run_stand_beside():
    flips = predictions(cf_flip=[1.0, None, 0.0, 1, 1, None], cf_control_flip=[0.0, None, 0.0, 0, 1, None])
    table = faithfulness(LooksAtCorner(), Pictures(6), [0, 2], steps=2, road_fractions=(), predictions=flips)
    assert table["cf_flip"].tolist() == [1, 0] and table["cf_control_flip"].tolist() == [0, 0]
    without = faithfulness(LooksAtCorner(), Pictures(6), [0], steps=2, road_fractions=(), predictions=predictions())
    assert "cf_flip" not in without


def test_found_defects_are_those_called_defective():
    data = Pictures(6)
    assert found_defects(predictions(), data) == [0, 2, 3, 4]
    drawn = found_defects(predictions(), data, limit=2)
    assert len(drawn) == 2 and set(drawn) < {0, 2, 3, 4} and drawn == sorted(drawn)
    assert drawn == found_defects(predictions(), data, limit=2)
    assert len({tuple(found_defects(predictions(), data, limit=2, seed=seed)) for seed in range(9)}) > 1


def test_found_defects_are_rows_of_the_table_not_places_in_the_split():
    data = Pictures(8)
    data.samples["split"] = ["train", "train", *["test"] * 6]
    names = [f"images/{row}.png" for row in range(2, 8)]
    assert found_defects(predictions(image=names), data) == [2, 4, 5, 6]


def test_what_cannot_be_tested_is_named():
    data = Pictures(6)
    with pytest.raises(ValueError, match=r"no defective picture of 'test' was found \(no TP\)"):
        found_defects(predictions(verdict="FN"), data)
    with pytest.raises(ValueError, match="hold 6 pictures of 'test', the data 4, and they are not the same"):
        found_defects(predictions(), Pictures(4))
    with pytest.raises(ValueError, match="rows is empty"):
        faithfulness(LooksAtCorner(), data, [])
    with pytest.raises(ValueError, match=r"maps must be \(2, 1, h, w\), one for each row, got \(1, 1, 8, 8\)"):
        faithfulness(LooksAtCorner(), data, [0, 1], maps=CORNER[None, None])


def test_maps_of_a_method_by_name():
    torch.manual_seed(0)
    model = GAINMTLModel("b0", pretrained=False, strategy="S1", map_stride=16, map_channels=8, head_channels=8)
    options = {"steps": 2, "road_fractions": ()}
    named = faithfulness(model, Pictures(1, size=64), [0], maps="hires_cam", **options)
    pd.testing.assert_frame_equal(named, faithfulness(model, Pictures(1, size=64), [0], **options))
    with pytest.raises(ModelError, match="strategy S1 has no attention"):
        faithfulness(model, Pictures(1, size=64), [0], maps="attention")
