"""What masks are worth, by kind of annotation and strategy."""

import pytest
from written_runs import write_planned, written_plan

from gainmtl_lib.settings import Settings
from gainmtl_lib.studies.ablation import annotation_table, kind_of
from gainmtl_lib.studies.plans import load_plan


@pytest.mark.parametrize(
    ("share", "quality", "kind"),
    [
        (1.0, "exact", "all masks"),
        (0.0, "exact", "no masks"),
        (0.0, "box", "no masks"),
        (0.05, "exact", "5 % of the masks"),
        (0.125, "exact", "12.5 % of the masks"),
        (1.0, "box", "boxes"),
        (1.0, "shifted", "shifted masks"),
        (0.25, "dilated", "25 % of the dilated masks"),
    ],
)
def test_annotation_in_words(share, quality, kind):
    assert kind_of(Settings(mask_share=share, mask_quality=quality)) == kind


def test_kinds_go_from_no_masks_to_all_then_to_worse_ones(tmp_path):
    studied = load_plan("annotation")
    plan = written_plan(tmp_path, rows=studied.rows, steps=[])
    runs = [write_planned(plan, row, seed) for row in reversed(plan.rows) for seed in (0, 1)]
    table = annotation_table(runs)
    assert list(dict.fromkeys(table["kind"])) == [
        "no masks", "5 % of the masks", "25 % of the masks", "all masks", "boxes", "dilated masks", "shifted masks"
    ]  # fmt: skip
    assert table["strategy"].tolist() == ["S5", *["S5", "S7"] * 6]
    assert table.loc["S7, boxes", "kind"] == "boxes" and set(table["seeds"]) == {2}


def test_scores_are_those_of_their_splits(tmp_path):
    plan = written_plan(tmp_path, rows={"S5": {"strategy": "S5"}}, steps=[])
    runs = [
        write_planned(plan, "S5", seed, right=18, right_shift=shifted, cam_iou=0.4)
        for seed, shifted in ((0, 4), (1, 8))
    ]
    row = annotation_table(runs).loc["S5"]
    assert row["accuracy"] == pytest.approx(0.9)
    assert row["accuracy_shift"] == pytest.approx((0.2 + 0.4) / 2)
    assert row["cam_iou"] == pytest.approx(0.4)
    assert row["accuracy_shift_low"] < 0.3 < row["accuracy_shift_high"]
