"""Figures of a study, from tables written by hand."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from gainmtl_lib.figures import save_figure
from gainmtl_lib.studies.ablation import annotation_figure, edited_share_figure, map_stride_figure, steps_figure

NAN = float("nan")


@pytest.fixture(autouse=True)
def no_figure_is_pyplots():
    yield
    assert not plt.get_fignums()


def steps():
    lines = [
        ("S1→S2", 0.1, 0.05, 0.15, "better"),
        ("S2→S3", -0.1, -0.15, -0.05, "worse"),
        ("S3→S4", 0.01, -0.1, 0.12, "not distinguishable"),
        ("S4→S5", 0.02, NAN, NAN, "not tested"),
        ("S5→S6", NAN, NAN, NAN, "not tested"),
    ]
    return pd.DataFrame(lines, columns=["step", "difference", "low", "high", "verdict"])


def test_every_step_stands_with_its_numbers_and_verdict():
    axis, words = steps_figure(steps(), metric="accuracy, test_shift").axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["S1→S2", "S2→S3", "S3→S4", "S4→S5", "S5→S6"]
    assert [text.get_text() for text in words.texts] == [
        "+0.100 [+0.050, +0.150]", "better",
        "−0.100 [−0.150, −0.050]", "worse",
        "+0.010 [−0.100, +0.120]", "not distinguishable",
        "+0.020", "not tested",
        "–", "not tested",
    ]  # fmt: skip
    assert "change of accuracy, test_shift" in axis.get_xlabel()


def test_steps_run_downwards_and_verdicts_differ_in_marker_and_colour():
    axis, _ = steps_figure(steps(), metric="accuracy").axes
    low, high = axis.get_ylim()
    assert low > high
    intervals, points = axis.lines[0:10:2], axis.lines[1:10:2]
    assert [tuple(line.get_xdata()) for line in intervals[:2]] == [(0.05, 0.15), (-0.15, -0.05)]
    assert [list(line.get_ydata()) for line in points] == [[0], [1], [2], [3], [4]]
    assert [point.get_marker() for point in points] == [">", "<", "o", "x", "x"]
    assert len({point.get_color() for point in points[:4]}) == 4


def test_long_names_of_steps_are_shortened():
    axis, _ = steps_figure(steps().assign(step="S5→" + "very long name " * 5), metric="accuracy").axes
    assert all(len(label.get_text()) <= 46 for label in axis.get_yticklabels())


def stride_table(**columns):
    base = {"accuracy": [0.9, 0.95], "cam_iou": [0.1, 0.4], "grid_iou": [0.3, 0.8]}
    ends = {f"{name}_{end}": np.array(base[name]) + d for name in ("accuracy", "cam_iou") for end, d in
            (("low", -0.02), ("high", 0.03))}  # fmt: skip
    values = base | ends | {"time_ratio": [1.0, 1.5], "memory_ratio": [1.0, 2.1]} | columns
    return pd.DataFrame(values, index=pd.Index([32, 8], name="stride"))


def labels(axis):
    return axis.get_legend_handles_labels()[1]


def test_the_map_figure_has_gain_and_cost_and_marks_the_recommended_stride():
    gain, cost = map_stride_figure(stride_table(), 8).axes
    assert labels(gain) == ["grid IoU (the mask itself)", "recommended", "accuracy", "CAM-IoU (deciding)"]
    assert [text.get_text() for text in cost.texts] == ["1.0", "1.5", "1.0", "2.1"]
    assert [label.get_text() for label in gain.get_xticklabels()] == ["32", "8"]
    (band,) = cost.patches
    assert band.get_x() == pytest.approx(0.7)


def test_nothing_is_marked_without_a_recommendation():
    gain, cost = map_stride_figure(stride_table(), None).axes
    assert "recommended" not in labels(gain) and not cost.patches


def test_attention_stands_in_the_map_figure_where_there_is_some():
    with_attention = stride_table(attention_iou=[0.2, 0.5])
    assert "attention IoU" in labels(map_stride_figure(with_attention, 8).axes[0])
    without = stride_table(attention_iou=[NAN, NAN])
    assert "attention IoU" not in labels(map_stride_figure(without, 8).axes[0])


def test_the_annotation_figure_has_a_marker_per_strategy_and_no_line_where_a_kind_is_missing(tmp_path):
    lines = [("no masks", "S5", 0.2), ("boxes", "S5", 0.4), ("boxes", "S7", 0.8)]
    table = pd.DataFrame(lines, columns=["kind", "strategy", "accuracy_shift"])
    table["cam_iou"] = table["accuracy_shift"] / 2
    for name in ("accuracy_shift", "cam_iou"):
        table[f"{name}_low"], table[f"{name}_high"] = table[name] - 0.1, table[name] + 0.05
    figure = annotation_figure(table)
    upper, lower = figure.axes
    assert labels(upper) == ["S5", "S7"]
    data = [bars.lines[0] for bars in upper.containers]
    assert [list(line.get_xdata()) for line in data] == [pytest.approx([-0.08, 0.92]), pytest.approx([1.08])]
    assert [list(line.get_ydata()) for line in data] == [[0.2, 0.4], [0.8]]
    assert [label.get_text() for label in lower.get_xticklabels()] == ["no masks", "boxes"]
    save_figure(figure, tmp_path / "annotation.png")
    assert (tmp_path / "annotation.png").stat().st_size < 100_000


def test_without_changed_conditions_the_accuracy_is_that_of_test():
    table = pd.DataFrame({"kind": ["boxes"], "strategy": ["S5"], "accuracy": [0.7], "cam_iou": [0.3]})
    assert [axis.get_ylabel() for axis in annotation_figure(table).axes] == [
        "accuracy, test",
        "CAM-IoU (deciding), test",
    ]


def test_the_share_figure_draws_both_distributions_over_the_shares(tmp_path):
    table = pd.DataFrame(
        {
            "cue_left": [1.0, 0.6, 0.2],
            **{name: [0.9, 0.9, 0.8] for name in ("accuracy", "accuracy_low", "accuracy_high")},
            **{f"accuracy_shift{end}": [0.3, 0.8, 0.85] for end in ("", "_low", "_high")},
        },
        index=pd.Index([0.0, 0.5, 1.0], name="share"),
    )
    (axis,) = edited_share_figure(table).axes
    assert [label.get_text() for label in axis.get_xticklabels()] == ["0 %\n1.00", "50 %\n0.60", "100 %\n0.20"]
    drawn = {bars.get_label(): bars.lines[0].get_xydata().tolist() for bars in axis.containers}
    assert drawn["accuracy, changed conditions"] == [[0, 0.3], [0.5, 0.8], [1, 0.85]]
    assert len(edited_share_figure(table.drop(columns="accuracy_shift")).axes[0].containers) == 1
    save_figure(edited_share_figure(table), tmp_path / "share.png")
    assert (tmp_path / "share.png").stat().st_size < 100_000
