"""Defects by type and size, counted by hand."""

import math

import numpy as np
import pytest
from audited import row, table_of

from gainmtl_lib.audit.numbers import NOT_ANNOTATED, SizeBins, by_size, by_type, choose_bins


def plain(names):
    return [name.replace("\u00a0", " ") for name in names]


def table():
    rows = [row("val", 1, 0.9, defect_area=area) for area in (0.01, 0.02, 0.03, 0.04)]
    rows += [row("test", 1, 0.9, defect_type="hole", defect_area=0.01, cam_iou=0.2, grid_iou=0.4)]
    rows += [row("test", 1, 0.1, defect_type="hole", defect_area=0.02, cam_iou=0.4, grid_iou=0.6)]
    rows += [row("test", 1, 0.8, defect_type="긁힘", defect_area=0.2, cam_iou=0.0, point_game=0.0)]
    rows += [row("test", 1, 0.7, defect_type="긁힘", defect_area=np.nan, cam_iou=np.nan, grid_iou=np.nan, mask=None)]
    return table_of([*rows, row("test", 0, 0.9)])


def test_by_type():
    hole, scratch = by_type(table().query("split == 'test'"))
    assert (hole.name, hole.recall.hits, hole.recall.count) == ("hole", 1, 2)
    assert hole.cam_iou.value == pytest.approx(0.3) and hole.grid_iou == pytest.approx(0.5)
    assert (hole.found_with_mask, hole.wrong_reason) == (1, 0)
    assert (scratch.name, scratch.recall.hits, scratch.recall.count) == ("긁힘", 2, 2)
    assert (scratch.cam_iou.count, scratch.found_with_mask, scratch.wrong_reason) == (1, 1, 1)


def test_bins_are_the_terciles_of_validation():
    bins = choose_bins(table(), ["val", "test"])
    assert bins.chosen_on == "val" and bins.bounds == pytest.approx((0.02, 0.03))
    assert plain(bins.labels) == ["small (up to 2 %)", "medium (2 to 3 %)", "large (over 3 %)"]


def test_without_validation_bins_are_those_of_test():
    assert choose_bins(table(), ["test"]) is not None
    assert choose_bins(table().query("split == 'val'"), ["val"]).chosen_on == "val"
    few = table().query("split == 'test' and label == 1").iloc[:2]
    assert choose_bins(few, ["val", "test"]) is None


def test_a_size_belongs_to_the_bin_that_it_bounds():
    bins = SizeBins((0.02, 0.03), "val")
    named = bins.names(table().query("split == 'val'")["defect_area"])
    assert plain(named) == ["small (up to 2 %)", "small (up to 2 %)", "medium (2 to 3 %)", "large (over 3 %)"]


def test_by_size_leaves_out_sizes_that_do_not_occur():
    rows = by_size(table().query("split == 'test'"), SizeBins((0.02, 0.03), "val"))
    assert plain(r.name for r in rows) == ["small (up to 2 %)", "large (over 3 %)", NOT_ANNOTATED]
    assert [r.recall.count for r in rows] == [2, 1, 1]
    assert rows[2].cam_iou.count == 0 and math.isnan(rows[2].grid_iou) and rows[2].found_with_mask == 0


def test_equal_bounds_name_each_row_once():
    rows = by_size(table().query("split == 'test'"), SizeBins((0.02, 0.02), "val"))
    assert len({r.name for r in rows}) == len(rows) == 3
