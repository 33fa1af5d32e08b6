"""Accuracy by the share of edited training pictures."""

import pytest
from written_runs import write_planned, written_plan

from gainmtl_lib.settings import SettingsError
from gainmtl_lib.studies.ablation import edited_share_table


def written(folder, **shares):
    rows = {name: {"strategy": "S7", "image_counterfactual": share} for name, share in shares.items()}
    return written_plan(folder, rows=rows, steps=[])


def test_shares_go_from_few_to_many_with_their_scores(tmp_path):
    plan = written(tmp_path, many=1.0, none=0.0, half=0.5)
    right = {"many": 16, "none": 4, "half": 12}
    runs = [write_planned(plan, row, seed, right=18, right_shift=right[row]) for row in plan.rows for seed in (0, 1)]
    table = edited_share_table(runs)
    assert table.index.tolist() == [0.0, 0.5, 1.0]
    assert table["cue_left"].tolist() == pytest.approx([1.0, 0.6, 0.2])
    assert table["accuracy"].tolist() == pytest.approx([0.9] * 3)
    assert table["accuracy_shift"].tolist() == pytest.approx([0.2, 0.6, 0.8])
    assert table["seeds"].tolist() == [2, 2, 2] and table["strategy"].tolist() == ["S7"] * 3


def test_two_rows_of_one_share_are_an_error(tmp_path):
    plan = written(tmp_path, one=0.5, two=0.5)
    runs = [write_planned(plan, row, 0) for row in plan.rows]
    with pytest.raises(SettingsError, match=r"rows 'one' and 'two' both have image_counterfactual 0\.5; keep one"):
        edited_share_table(runs)
