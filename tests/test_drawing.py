import cv2
import numpy as np
import pytest
from PIL import Image

from gainmtl_lib.figures import (
    BAND,
    CONTOUR,
    LETTER,
    OUTLINE,
    encode,
    enlarged_share,
    inferno,
    overlay,
    with_band,
)
from gainmtl_lib.metrics import MapScale, normalize_maps, resize_maps


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(40, 200, (60, 80, 3)).astype(np.uint8)


def grey(picture):
    return cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def decoded(jpeg):
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def test_without_a_map_the_picture_keeps_its_colours(picture):
    before = picture.copy()
    assert np.array_equal(overlay(picture), before)


def test_a_calm_map_leaves_the_picture_grey_and_otherwise_as_it_is(picture):
    assert np.array_equal(overlay(picture, np.zeros((60, 80), np.float32), level=0.5), grey(picture))


def test_colours_follow_the_value_and_the_strength(picture):
    full = np.ones((60, 80), np.float32)
    assert np.array_equal(overlay(picture, full, strength=1.0), np.broadcast_to(inferno()[255], picture.shape))
    assert np.array_equal(overlay(picture, full, strength=0.0), grey(picture))
    half = overlay(picture, full, strength=0.5).astype(int)
    assert np.abs(half - (grey(picture).astype(int) + inferno()[255]) / 2).max() <= 2


def test_inferno_is_the_one_of_the_figures():
    from matplotlib import colormaps

    expected = np.asarray([colormaps["inferno"](value)[:3] for value in range(256)]) * 255
    assert np.abs(inferno() - expected).max() < 3


def test_the_contour_runs_where_the_map_reaches_the_level(picture):
    heat = np.zeros((60, 80), np.float32)
    heat[20:40, 30:60] = 0.6
    lit = np.abs(overlay(picture, heat, strength=0, level=0.5).astype(int) - CONTOUR).sum(axis=2) < 150
    assert lit[20, 35:55].all() and lit[39, 35:55].all() and not lit[25:35, 35:55].any() and not lit[:15].any()
    assert np.array_equal(overlay(picture, heat, strength=0, level=0.7), grey(picture))


def test_the_outline_runs_beside_the_defect_and_leaves_it_visible(picture):
    mask = np.zeros((60, 80), bool)
    mask[30:32, 10:70] = True  # a scratch of two pixels
    drawn = overlay(picture, mask=mask)
    assert np.array_equal(drawn[30:32, 12:68], picture[30:32, 12:68])
    cyan = np.abs(drawn.astype(int) - OUTLINE).sum(axis=2) < 250
    assert cyan[25:29, 30:50].all(axis=1).any() and cyan[33:37, 30:50].all(axis=1).any()
    assert np.array_equal(drawn[:22], picture[:22])


def test_the_band_stands_below_the_picture_and_fits_its_words(picture):
    wide = np.full((50, 400, 3), 90, np.uint8)
    whole = with_band(wide, "CAM · absolute scale", bar=True)
    assert whole.shape == (50 + 2 * LETTER, 400, 3) and np.array_equal(whole[:50], wide)
    assert np.array_equal(whole[-1, -1], BAND) and (whole[50:] == inferno()[255]).all(axis=2).any()
    narrow = with_band(picture, "words that never fit into eighty pixels, however small", bar=False)
    assert np.array_equal(narrow[60:, -3:], np.broadcast_to(BAND, (2 * LETTER, 3, 3)))  # nothing runs over the edge


def test_bytes_are_a_jpeg_with_colours_at_full_resolution(picture):
    smooth = cv2.GaussianBlur(picture, (0, 0), 4)
    data = encode(smooth)
    assert np.abs(decoded(data).astype(int) - smooth).mean() < 3
    import io

    assert [part[1:3] for part in Image.open(io.BytesIO(data)).layer] == [(1, 1)] * 3


def test_shares_agree_with_the_metrics():
    import torch

    values = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    wanted = resize_maps(torch.from_numpy(values)[None, None], torch.zeros(1, 1, 32, 48))
    stretched = enlarged_share(values, None, (32, 48))
    assert np.abs(stretched - normalize_maps(wanted)[0, 0].numpy()).max() < 1e-4
    scale = MapScale(-0.5, 1.5)
    expected = scale.apply(wanted[0, 0].numpy())
    assert np.abs(enlarged_share(values.astype(np.float16), scale, (32, 48)) - expected).max() < 1e-3
    assert enlarged_share(values, MapScale(100.0, 200.0), (32, 48)).max() == 0
    assert enlarged_share(np.full((3, 3), 7, np.float32), None, (3, 3)).max() == 0
    assert (enlarged_share(np.full((2, 2), np.nan, np.float32), None, (4, 4)) == 0).all()


def test_a_cell_far_above_the_ceiling_spreads_as_far_as_it_is_high():
    """Between cells of 0 and 10 whose centres are 8 pixels apart, half the ceiling of 1 is reached at the fifth."""
    shown = enlarged_share(np.array([[0.0, 10.0]], np.float32), MapScale(0.0, 1.0), (1, 16))[0]
    assert np.flatnonzero(shown >= 0.5).tolist() == list(range(4, 16))
    assert shown[4] == pytest.approx(10 * 0.5 / 8)
