"""What a map stride brings and costs, and the rule that recommends one."""

import pandas as pd
import pytest
import torch
from tiny import tiny_settings
from written_runs import split_predictions, write_planned, written_plan

from gainmtl_lib.settings import SettingsError
from gainmtl_lib.studies.ablation import (
    activation_bytes,
    map_stride_table,
    recommended_stride,
    saved_bytes,
    stride_tables,
)

STRIDES = {"stride 32": 32, "stride 8": 8}


def stride_plan(folder, strides=None, **changed):
    rows = {name: {"strategy": "S5", "map_stride": stride} for name, stride in (strides or STRIDES).items()}
    return written_plan(folder, rows=rows, steps=[], report="map_stride", seeds=[0, 1, 2], **changed)


def predictions(**scores):
    """Five seeds, whose pictures differ in name."""
    tables = {seed: split_predictions("test", **scores) for seed in range(5)}
    return {seed: table.assign(image=f"{seed}/" + table["image"]) for seed, table in tables.items()}


def test_saved_bytes_counts_each_storage_once_and_leaves_out_what_is_known():
    x = torch.ones(1000, requires_grad=True)
    assert saved_bytes(lambda: x.exp().sum(), besides=[]) == 4000  # exp keeps its result, sum nothing
    assert saved_bytes(lambda: (x * x).sum(), besides=[]) == 4000  # both factors are one storage
    assert saved_bytes(lambda: (x * x).sum(), besides=[x]) == 0
    assert saved_bytes(lambda: (x.exp() * x).sum(), besides=[x]) == 4000  # kept by both exp and the product


def test_a_finer_map_and_a_larger_batch_keep_more(tmp_path):
    one = tiny_settings(tmp_path, "S5", precision="32")
    coarse, fine = (activation_bytes(one.changed(map_stride=stride)) for stride in (16, 4))
    assert coarse < fine
    eight, four = (activation_bytes(one.changed(batch_size=size)) for size in (8, 4))
    assert eight == pytest.approx(2 * four, rel=1e-3)
    assert activation_bytes(one) == coarse


def test_half_precision_keeps_less_although_it_copies_the_weights(tmp_path):
    wide = tiny_settings(tmp_path, "S1", head_channels=4096, batch_size=2)  # weights far larger than activations
    single, half = (activation_bytes(wide.changed(precision=precision)) for precision in ("32", "bf16"))
    assert half < single


@pytest.mark.parametrize("strategy", ["S1", "S6"])
def test_other_strategies_can_be_measured(tmp_path, strategy):
    state = torch.random.get_rng_state()
    assert activation_bytes(tiny_settings(tmp_path, strategy)) > 0
    assert torch.equal(torch.random.get_rng_state(), state)


def test_table_goes_from_coarse_to_fine_with_costs_relative_to_the_coarsest(tmp_path):
    plan = stride_plan(tmp_path)
    runs = [write_planned(plan, "stride 8", seed, seconds=90.0, cam_iou=0.6) for seed in (0, 1)]
    runs += [write_planned(plan, "stride 32", seed, seconds=60.0, right=18, cam_iou=0.3) for seed in (0, 1)]
    table = map_stride_table(runs)
    assert table.index.tolist() == [32, 8]
    assert table["cam_iou"].tolist() == pytest.approx([0.3, 0.6])
    assert table["accuracy"].tolist() == pytest.approx([0.9, 0.75])
    assert table["grid_iou"].tolist() == pytest.approx([0.8, 0.8])
    assert table["seconds"].tolist() == [60, 90] and table["time_ratio"].tolist() == pytest.approx([1, 1.5])
    assert table["memory_ratio"].iloc[0] == 1 and (table["megabytes"] > 1).all()
    assert (table["cam_iou_low"] < table["cam_iou"]).all() and (table["cam_iou"] < table["cam_iou_high"]).all()
    assert table["seeds"].tolist() == [2, 2]


def test_two_rows_of_one_stride_are_refused(tmp_path):
    plan = stride_plan(tmp_path, {"a": 8, "b": 8})
    runs = [write_planned(plan, row, 0) for row in "ab"]
    with pytest.raises(SettingsError, match="rows 'a' and 'b' both have map_stride 8; keep one"):
        stride_tables(runs)


def test_the_coarsest_that_is_not_worse_is_recommended():
    tables = {
        32: predictions(right=18, cam_iou=0.2),
        16: predictions(right=18, cam_iou=0.5),
        8: predictions(right=18, cam_iou=0.5),
    }
    stride, sentence = recommended_stride(tables)
    assert stride == 16
    assert sentence.startswith("Recommended map_stride: 16 (the coarsest stride whose CAM-IoU is not worse")
    assert sentence.endswith("Ruled out: stride 32: its CAM-IoU is worse than at stride 16.")


def test_a_stride_that_costs_accuracy_is_ruled_out():
    tables = {32: predictions(right=10, cam_iou=0.5), 8: predictions(right=19, cam_iou=0.5)}
    stride, sentence = recommended_stride(tables)
    assert stride == 8
    assert "stride 32: its accuracy is worse than at stride 8" in sentence


def test_no_stride_that_holds_both_is_recommended():
    tables = {32: predictions(right=19, cam_iou=0.2), 8: predictions(right=10, cam_iou=0.5)}
    stride, sentence = recommended_stride(tables)
    assert stride is None
    assert sentence.startswith("No stride is recommended (")
    assert (
        "stride 32: its CAM-IoU is worse than at stride 8; stride 8: its accuracy is worse than at stride 32"
        in sentence
    )


def test_one_seed_recommends_nothing():
    tables = {stride: {0: predictions(right=18, cam_iou=iou)[0]} for stride, iou in ((32, 0.2), (8, 0.5))}
    assert recommended_stride(tables) == (
        None,
        "No stride is recommended: CAM-IoU was not tested: 8→32 (one seed).",
    )


def test_strides_without_a_seed_in_common_recommend_nothing():
    one, other = (predictions(right=18, cam_iou=iou) for iou in (0.2, 0.5))
    tables = {32: {0: one[0], 1: one[1]}, 8: {2: other[2], 3: other[3]}}
    said = "CAM-IoU was not tested: 8→32 (left out: seeds 0, 1, 2 and 3 (without a partner))."
    assert recommended_stride(tables) == (None, f"No stride is recommended: {said}")


def test_pictures_without_masks_recommend_nothing():
    blind = predictions(right=18, cam_iou=float("nan"))
    said = "No stride is recommended: CAM-IoU has no answer at "
    assert recommended_stride({32: blind, 8: blind}) == (None, said + "32, 8.")
    assert recommended_stride({32: blind, 8: predictions(right=18)}) == (None, said + "32.")


def test_stride_tables_hold_the_test_split_by_seed(tmp_path):
    plan = stride_plan(tmp_path)
    runs = [write_planned(plan, row, 2) for row in plan.rows]
    tables = stride_tables(runs)
    assert list(tables) == [32, 8] and list(tables[8]) == [2]
    assert isinstance(tables[8][2], pd.DataFrame) and set(tables[8][2]["split"]) == {"test"}
