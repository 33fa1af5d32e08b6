"""Boxes and areas of maps drawn by hand."""

import numpy as np
import pytest

from gainmtl_lib.explain import Frame, defect_area, defect_boxes, marked

SQUASHED = Frame.of((20, 40), (10, 10), "squash")
LETTERBOXED = Frame.of((20, 40), (8, 8), "letterbox")


def drawn(size, *boxes, value=0.9):
    plane = np.zeros(size, np.float32)
    for x0, y0, x1, y1 in boxes:
        plane[y0:y1, x0:x1] = value
    return plane


def test_a_box_is_in_the_pixels_of_the_given_picture():
    assert defect_boxes(marked(drawn((10, 10), (1, 2, 3, 7)), SQUASHED), SQUASHED) == [(4, 4, 12, 14)]


def test_letterboxed_pictures_lose_their_bars():
    assert (LETTERBOXED.rows, LETTERBOXED.columns) == (slice(2, 6), slice(0, 8))
    defect = marked(drawn((8, 8), (2, 3, 4, 5)), LETTERBOXED)
    assert defect_boxes(defect, LETTERBOXED) == [(10, 5, 20, 15)]
    assert defect_area(defect, LETTERBOXED) == 4 / 32
    in_the_bars = marked(drawn((8, 8), (0, 0, 8, 2), (0, 6, 8, 8)), LETTERBOXED)
    assert not in_the_bars.any() and defect_boxes(in_the_bars, LETTERBOXED) == []


@pytest.mark.parametrize(
    ("frame", "box", "drawn_at"),
    [(SQUASHED, (4, 4, 20, 16), (1, 2, 5, 8)), (LETTERBOXED, (5, 5, 20, 15), (1, 3, 4, 5))],
)
def test_a_box_is_drawn_where_it_was_found(frame, box, drawn_at):
    assert frame.to_input(box) == drawn_at
    left, top = frame.columns.start, frame.rows.start
    x0, y0, x1, y1 = drawn_at
    assert frame.to_picture((x0 - left, y0 - top, x1 - left, y1 - top)) == box


def test_rounding_never_leaves_the_picture():
    frame = Frame.of((7, 5), (64, 64), "squash")
    assert defect_boxes(np.ones((64, 64), bool), frame) == [(0, 0, 5, 7)]


def test_the_largest_region_comes_first_and_diagonals_connect():
    plane = drawn((10, 10), (0, 0, 1, 1), (5, 5, 7, 7), (7, 7, 9, 9))
    assert defect_boxes(marked(plane, SQUASHED), SQUASHED) == [(20, 10, 36, 18), (0, 0, 4, 2)]


def test_the_threshold_itself_counts():
    assert marked(drawn((10, 10), (0, 0, 1, 1), value=0.5), SQUASHED).sum() == 1
    assert marked(drawn((10, 10), (0, 0, 1, 1), value=0.499), SQUASHED).sum() == 0
    assert marked(drawn((10, 10), (0, 0, 1, 1), value=0.7), SQUASHED, threshold=0.8).sum() == 0


def test_the_plane_is_true_where_the_picture_lies():
    assert SQUASHED.plane((10, 10)).all()
    plane = LETTERBOXED.plane((8, 8))
    assert plane[2:6].all() and plane.sum() == 4 * 8
