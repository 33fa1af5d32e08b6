"""What stands on the picture of an explanation; every map says its scale."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from hand_made import Looks
from matplotlib.colors import to_rgba

from gainmtl_lib.explain import BOX, VERDICT_COLORS, DefectExplainer, verdict_figure
from gainmtl_lib.metrics import MapScale

SCALES = {"cam": MapScale(0.0, 2.0), "attention": MapScale(0.5, 0.9), "localization": MapScale(0.6, 0.9)}


def picture(rows=slice(0, 24), columns=slice(0, 24), value=1.0, size=(64, 64)):
    image = np.zeros(size)
    image[rows, columns] = value
    return image


def figure_of(model=None, image=None, mask=None, scales=SCALES, title="", **options):
    explainer = DefectExplainer(model or Looks(), image_size=(64, 64), scales=scales, **options)
    explanation = explainer.explain(picture() if image is None else image, mask)
    return verdict_figure(explanation, scales=explainer.scales, class_names=explainer.class_names, title=title)


def titles(figure):
    return [axis.get_title() for axis in figure.axes]


def words(figure):
    return "\n".join(text.get_text() for text in figure.texts)


def test_every_map_is_drawn_on_both_scales_and_says_which():
    figure = figure_of()
    assert titles(figure) == [
        "picture\n64 × 64 pixels",
        "deciding CAM\nabsolute, 0.00 to 2.00",
        "deciding CAM\nper image, -5.00 to 15.00",
        "attention\nabsolute, 0.50 to 0.90",
        "attention\nper image, 0.00 to 1.00",
        "localization\nabsolute, 0.60 to 0.90",
        "localization\nper image, 0.00 to 1.00",
    ]
    assert not plt.get_fignums()  # shows nothing and leaks nothing


def test_a_strategy_with_one_map_has_one_column():
    assert [title.split("\n")[0] for title in titles(figure_of(Looks(strategy="S1")))] == [
        "picture",
        "deciding CAM",
        "deciding CAM",
    ]


def test_a_calm_map_says_that_nothing_was_found_and_stays_dark():
    figure = figure_of(image=picture(value=0.3))
    absolute, per_image = figure.axes[5:7]
    assert [text.get_text() for text in absolute.texts] == ["nothing found"] and not per_image.texts
    assert absolute.images[-1].get_array().max() == 0 and per_image.images[-1].get_array().max() == 1


def test_without_a_scale_the_picture_says_so():
    figure = figure_of(scales=None)
    assert titles(figure)[1] == "deciding CAM\nno absolute scale"
    assert [text.get_text() for text in figure.axes[1].texts] == ["unknown"]
    assert titles(figure)[3] == "attention\n0 to 1, no absolute scale"
    shown = figure_of(image=picture(value=0.3), scales=None).axes[5].images[-1].get_array()
    assert shown.max() == pytest.approx(0.3, abs=0.01)


def test_a_scale_that_does_not_separate_is_called_so():
    figure = figure_of(scales=SCALES | {"cam": MapScale(2.0, 1.0)})
    assert titles(figure)[1] == "deciding CAM\nabsolute, above 2.00 or not"
    assert "The deciding CAM peaks as high on normal validation pictures as on defective ones" in words(figure)


def test_verdict_numbers_and_counterfactual_stand_in_words():
    figure = figure_of(mask=picture(), title="part_7.png", class_names=("good", "bad"))
    heading, text = (text.get_text() for text in figure.texts)
    assert heading == "part_7.png: bad, confidence 99.8%"
    assert to_rgba(figure.texts[0].get_color()) == to_rgba(VERDICT_COLORS[1])
    lines = text.split("\n")
    assert lines[0].startswith("p(bad) 0.998, threshold 0.500 · localized area 14.1% · CAM-IoU ")
    assert "(grid 1.00) · PointGame 1.00 · Energy-Inside " in text
    assert "Cyan outline: annotated defect. Orange box: localization ≥ 0.5." in text
    assert "Without the annotated defect the verdict turns to good (1.00 → 0.01)" in text


def test_a_normal_verdict_is_green_and_has_no_counterfactual():
    figure = figure_of(image=picture(value=0.1))
    assert to_rgba(figure.texts[0].get_color()) == to_rgba(VERDICT_COLORS[0])
    assert words(figure).endswith("The localization marks nothing beyond what it does on normal parts.")
    seen = figure_of(Looks(level=2), image=picture(value=0.8))
    assert "Orange box: localization ≥ 0.6." in words(seen) and len(seen.axes[0].patches) == 1
    assert "absolute scale, which is unknown" in words(figure_of(image=picture(value=0.1), scales=None))


def test_a_missing_counterfactual_says_why():
    assert "No counterfactual: strategy S1 has no counterfactual path" in words(figure_of(Looks(strategy="S1")))
    dim = figure_of(Looks(level=0.01), image=picture(value=0.4))
    assert "The localization marks nothing." in words(dim)
    assert "No counterfactual: the localization marks nothing and no mask was given" in words(dim)


def test_boxes_are_drawn_in_the_input_and_dashed_where_normal_parts_look_alike():
    image = picture()
    image[40:48, 40:48] = 0.55
    patches = figure_of(image=image).axes[0].patches
    assert [patch.get_bbox().bounds for patch in patches] == [(-0.5, -0.5, 24, 24), (39.5, 39.5, 8, 8)]
    assert [patch.get_linestyle() for patch in patches] == ["-", "--"]
    assert all(patch.get_edgecolor() == to_rgba(BOX) for patch in patches)
    assert "dashed where it is no stronger than on normal parts" in words(figure_of(image=image))
    assert [patch.get_linestyle() for patch in figure_of(image=image, scales=None).axes[0].patches] == ["-", "-"]


def test_the_mask_is_outlined_on_every_panel():
    figure = figure_of(mask=np.ones((64, 64)))
    assert [len(axis.collections) for axis in figure.axes] == [1] * 7
    assert figure.axes[0].get_xlim() == (-0.5, 63.5)
    assert not figure_of().axes[0].collections


@pytest.mark.parametrize(("size", "ratio"), [((64, 64), 1), ((32, 64), 0.5), ((64, 32), 2), ((10, 500), 0.4)])
def test_squashed_pictures_are_shown_in_their_own_proportions(size, ratio):
    figure = figure_of(image=picture(size=size))
    figure.draw_without_rendering()
    for axis in figure.axes:
        box = axis.get_window_extent()
        assert box.height / box.width == pytest.approx(ratio, rel=0.02)


def test_letterboxed_pictures_are_shown_as_the_network_saw_them():
    figure = figure_of(image=picture(size=(32, 64)), resize="letterbox")
    box = figure.axes[0].get_window_extent()
    assert box.height == pytest.approx(box.width) and titles(figure)[0] == "picture\n64 × 32 pixels"


def test_long_names_keep_their_end():
    heading = figure_of(title="x" * 100 + "_7.png").texts[0].get_text()
    assert heading.startswith("…xxx") and "_7.png: defective" in heading and len(heading) < 80


@pytest.mark.parametrize("size", [(64, 64), (64, 30), (20, 64)])
@pytest.mark.parametrize("scales", [SCALES | {"cam": MapScale(2.0, 1.0)}, None])
def test_nothing_overlaps_or_leaves_the_page(size, scales):
    figure = figure_of(image=picture(size=size), mask=picture(size=size), scales=scales)
    figure.draw_without_rendering()
    page = figure.bbox
    heading, lines = (text.get_window_extent() for text in figure.texts)
    assert lines.y1 < figure.axes[0].get_window_extent().y0 and lines.x1 < page.x1 and lines.y0 >= 0
    placed = [axis.title.get_window_extent() for axis in figure.axes] + [
        axis.get_window_extent() for axis in figure.axes
    ]
    assert heading.y0 > max(box.y1 for box in placed) and heading.y1 < page.y1
    assert all(box.x0 >= 0 and box.x1 <= page.x1 for box in placed)
    assert not [(a, b) for k, a in enumerate(placed) for b in placed[k + 1 :] if a.overlaps(b)]
