"""What the study's figures show, from made-up tables."""

import numpy as np
import pandas as pd

from gainmtl_lib.studies.reasons import BY_CHANCE, WARNED
from gainmtl_lib.studies.shortcut import kept_figure, reversed_heatmap, warnings_figure


def table():
    rows = []
    for strategy, same, shift in (("S1", 0.96, 0.11), ("S7", 0.80, 0.84)):
        for cue in ("mark", "border"):
            for correlation, shifted in ((0.5, same), (0.95, shift)):
                rows.append(
                    {"cue": cue, "correlation": correlation, "seed": 0, "strategy": strategy, "accuracy": same,
                     "accuracy_shift": shifted, "drop": same - shifted, "cam_iou": 0.1}
                )  # fmt: skip
    return pd.DataFrame(rows)


def texts(axis):
    return [text.get_text() for text in axis.texts]


def test_every_strategy_with_both_accuracies():
    (axis,) = kept_figure(table()).axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["S1", "S7"]
    assert texts(axis) == ["0.96", "0.11", "0.80", "0.84"]
    sides = {text.get_text(): text.get_horizontalalignment() for text in axis.texts}
    # Numbers stand outwards, whichever accuracy is the higher one.
    assert sides == {"0.96": "left", "0.11": "right", "0.80": "right", "0.84": "left"}


def test_numbers_in_the_cells_of_the_heatmap():
    figure = reversed_heatmap(table())
    axis = figure.axes[0]
    assert texts(axis) == ["0.96", "0.11", "0.96", "0.11", "0.80", "0.84", "0.80", "0.84", "mark", "border"]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["0.5", "0.95", "0.5", "0.95"]
    image = axis.images[0]
    assert np.allclose(image.to_rgba(np.array([0.5]))[0, :3], 0.97, atol=0.02)  # white is a coin's


def test_cells_of_a_cue_stand_together_whatever_the_order_of_the_runs():
    first = table()
    first = first[(first["cue"] != "mark") | (first["correlation"] != 0.95)]  # failed with the first seed
    figure = reversed_heatmap(pd.concat([first, table().assign(seed=1)]))
    axis = figure.axes[0]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["0.5", "0.95", "0.5", "0.95"]
    assert [(text.get_text(), text.get_position()[0]) for text in axis.texts[-2:]] == [("mark", 0.5), ("border", 2.5)]


def test_a_run_that_is_missing_is_a_dash():
    rows = table().drop(index=1)
    assert "–" in texts(reversed_heatmap(rows).axes[0])


def test_indicators_with_their_interval():
    rows = [
        {"indicator": "flips", "warns": "low", "rank_correlation": 0.8, "low": 0.5, "high": 0.9, "runs": 16, "verdict": WARNED},
        {"indicator": "CAM-IoU", "warns": "low", "rank_correlation": 0.1, "low": -0.4, "high": 0.5, "runs": 16, "verdict": BY_CHANCE},
        {"indicator": "constant", "warns": "low", "rank_correlation": np.nan, "low": np.nan, "high": np.nan, "runs": 16, "verdict": "too few runs"},
    ]  # fmt: skip
    figure = warnings_figure(pd.DataFrame(rows))
    (axis,) = figure.axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["flips (low; 16 runs)", "CAM-IoU (low; 16 runs)"]
    assert [bar.get_width() for bar in axis.patches[:2]] == [0.8, 0.1]
    assert texts(axis) == ["← misleads", "warns →"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [WARNED, BY_CHANCE]
