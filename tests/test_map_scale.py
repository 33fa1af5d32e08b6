"""The absolute scale on maps drawn by hand."""

import numpy as np
import pytest

from gainmtl_lib.metrics import MapScale, fit_scale


def peaked(*peaks):
    maps = np.full((len(peaks), 2, 3), -5.0)
    maps[:, 1, 2] = peaks
    return maps


def test_the_scale_begins_where_normal_maps_end():
    scale = fit_scale(peaked(0, 1, 2, 10, 20, 30), np.array([0, 0, 0, 1, 1, 1]))
    assert scale == MapScale(floor=2.0, ceiling=20.0) and scale.separates


def test_one_normal_picture_in_twenty_may_exceed_the_floor():
    scale = fit_scale(peaked(*range(1, 41), 50), np.array([0] * 40 + [1]))
    assert scale.floor == 39
    assert scale.finds(peaked(38, 39, 39.5)).tolist() == [False, False, True]


def test_a_calm_map_shows_nothing_and_a_strong_one_is_cut():
    scale = MapScale(floor=2.0, ceiling=4.0)
    shown = scale.apply(np.array([[-1.0, 2.0], [3.0, 9.0]]))
    assert shown.tolist() == [[0.0, 0.0], [0.5, 1.0]]


def test_maps_that_do_not_separate_show_only_what_exceeds_the_floor():
    scale = MapScale(floor=2.0, ceiling=1.0)
    assert not scale.separates
    assert scale.apply(np.array([[1.5, 2.5]])).tolist() == [[0.0, 1.0]]


@pytest.mark.parametrize("label", [0, 1])
def test_without_one_of_the_classes_there_is_no_scale(label):
    assert fit_scale(peaked(1, 2), np.array([label, label])) is None
