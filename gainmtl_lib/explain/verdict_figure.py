"""One explanation as a figure: the picture with its box, every map on both scales, the verdict in words.

Sizes: H x W network input, h x w map cells.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from gainmtl_lib.explain.drawing import enlarged_share
from gainmtl_lib.explain.explanation import Explanation
from gainmtl_lib.explain.plots import OUTLINE, overlay
from gainmtl_lib.explain.regions import THRESHOLD, Box
from gainmtl_lib.map_scale import MapScale

HEADINGS = {"cam": "deciding CAM", "attention": "attention", "localization": "localization"}
VERDICT_COLORS = ("#1b7837", "#b2182b")
BOX = "#ffb000"
SIDE, WIDEST = 2.5, 3.0
"""Of a square map panel, and of the widest one, in inches."""
GAP, TITLE, HEADER, LINE = 0.12, 0.45, 0.35, 0.19
"""Between panels, and the heights of a title of two lines, of the verdict and of a line of text, in inches."""
CHARACTERS_PER_INCH = 14
LONGEST_TITLE = 48


def verdict_figure(
    explanation: Explanation, *, scales: Mapping[str, MapScale], class_names: Sequence[str], title: str = ""
) -> Figure:
    """Left the picture, right the maps: above on their absolute scale, below stretched per image.

    Args:
        explanation: of one picture.
        scales: absolute scales by map, as far as known.
        class_names: of normal and defective, in characters that the fonts have.
        title: stands before the verdict.
    """
    maps = [name for name in HEADINGS if name in explanation]
    ratio = _ratio(explanation)
    width = min(SIDE / ratio**0.5, WIDEST)
    height = width * ratio
    tall = 2 * height + TITLE  # as high as two maps and the title between them
    total = tall / ratio + (GAP + width) * len(maps) + 2 * GAP
    texts = [
        _facts(explanation, class_names[1]),
        _legend(explanation, scales.get("localization")),
        *(_about_scale(name, scales.get(name)) for name in maps),
        _counterfactual(explanation),
    ]
    lines = [line for text in texts for line in textwrap.wrap(text, int(total * CHARACTERS_PER_INCH))]
    footer = GAP + LINE * len(lines)
    figure = Figure(figsize=(total, footer + tall + TITLE + HEADER))  # not pyplot's, which would show and keep it

    def axes(left: float, bottom: float, wide: float, high: float) -> Axes:
        across, up = figure.get_size_inches()
        return figure.add_axes((left / across, (footer + bottom) / up, wide / across, high / up))

    _draw_picture(axes(GAP, 0, tall / ratio, tall), explanation, scales.get("localization"))
    for column, name in enumerate(maps):
        left = 2 * GAP + tall / ratio + column * (width + GAP)
        _draw_absolute(axes(left, height + TITLE, width, height), explanation, name, scales.get(name))
        _draw_per_image(axes(left, 0, width, height), explanation, name)
    for axis in figure.axes:
        axis.set(xticks=[], yticks=[], aspect="auto")
        axis.title.set_fontsize(9)
        _draw_mask(axis, explanation)
    _write(figure, explanation, title, lines)
    return figure


def _ratio(explanation: Explanation) -> float:
    """Height by width at which pictures are shown: the given picture's, unless it is a ribbon."""
    height, width = explanation["image"].shape[:2] if _has_bars(explanation) else explanation.frame.picture
    return float(np.clip(height / width, 0.4, 2.0))


def _has_bars(explanation: Explanation) -> bool:
    return explanation.frame.crop(explanation["image"]).shape != explanation["image"].shape


def _draw_picture(axis: Axes, explanation: Explanation, scale: MapScale | None) -> None:
    axis.imshow(explanation["image"])
    for place, box in enumerate(explanation.get("boxes", [])):
        x0, y0, x1, y1 = explanation.frame.to_input(box)
        style = {"lw": 1.0 if place else 2.0, "ls": "--" if _is_unsure(explanation, box, scale) else "-"}
        axis.add_patch(Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, ec=BOX, clip_on=False, **style))
    height, width = explanation.frame.picture
    axis.set_title(f"picture\n{width} × {height} pixels")


def _is_unsure(explanation: Explanation, box: Box, scale: MapScale | None) -> bool:
    """Whether the localization is no stronger in the box than it gets on normal parts."""
    if scale is None:
        return False
    x0, y0, x1, y1 = (round(edge) for edge in explanation.frame.to_input(box))
    return not (explanation["found"]["localization"] and explanation["localization"][y0:y1, x0:x1].max() > scale.floor)


def _draw_absolute(axis: Axes, explanation: Explanation, name: str, scale: MapScale | None) -> None:
    image = explanation["image"] / 255
    if scale is not None:
        size = (image.shape[0], image.shape[1])
        overlay(axis, image, enlarged_share(explanation.stored[name], scale, size), unit=True)
        limits = f"{scale.floor:.2f} to {scale.ceiling:.2f}" if scale.separates else f"above {scale.floor:.2f} or not"
        axis.set_title(f"{HEADINGS[name]}\nabsolute, {limits}")
        if not explanation["found"][name]:
            _note(axis, "nothing found")
    elif name == "cam":
        axis.imshow(np.ones_like(image))
        axis.set_title(f"{HEADINGS[name]}\nno absolute scale")
        _note(axis, "unknown", color="0.4")
    else:
        overlay(axis, image, explanation[name], unit=True)
        axis.set_title(f"{HEADINGS[name]}\n0 to 1, no absolute scale")


def _draw_per_image(axis: Axes, explanation: Explanation, name: str) -> None:
    values = explanation[name]
    overlay(axis, explanation["image"] / 255, values)
    axis.set_title(f"{HEADINGS[name]}\nper image, {values.min():.2f} to {values.max():.2f}")


def _note(axis: Axes, text: str, color: str = "white") -> None:
    axis.text(0.5, 0.5, text, transform=axis.transAxes, ha="center", va="center", color=color, fontsize=11)


def _draw_mask(axis: Axes, explanation: Explanation) -> None:
    if "mask" not in explanation:
        return
    axis.autoscale(False)
    mask = np.pad(explanation["mask"], 1)  # so that a mask at the border is closed
    places = [np.arange(-1, size - 1) for size in mask.shape]
    axis.contour(places[1], places[0], mask, levels=[0.5], colors=[OUTLINE], linewidths=1.0)


def _write(figure: Figure, explanation: Explanation, title: str, lines: Sequence[str]) -> None:
    verdict = f"{explanation['prediction_name']}, confidence {explanation['confidence']:.1%}"
    title = title if len(title) <= LONGEST_TITLE else f"…{title[1 - LONGEST_TITLE :]}"
    heading = f"{title}: {verdict}" if title else verdict
    across, up = figure.get_size_inches()
    color = VERDICT_COLORS[explanation["prediction"]]
    figure.text(GAP / across, 1 - 0.08 / up, heading, va="top", fontsize=13, weight="bold", color=color)
    figure.text(GAP / across, 0.06 / up, "\n".join(lines), va="bottom", fontsize=9.5, linespacing=1.3)


def _facts(explanation: Explanation, defective: str) -> str:
    facts = [f"p({defective}) {explanation['probability']:.3f}, threshold {explanation['threshold']:.3f}"]
    if "area" in explanation:
        facts.append(f"localized area {explanation['area']:.1%}")
    if "cam_iou" in explanation:
        facts.append(f"CAM-IoU {explanation['cam_iou']:.2f} (grid {explanation['grid_iou']:.2f})")
        facts.append(f"PointGame {explanation['point_game']:.2f}")
        facts.append(f"Energy-Inside {explanation['energy_inside']:.2f}")
    return " · ".join(facts)


def _legend(explanation: Explanation, scale: MapScale | None) -> str:
    marks = ["Cyan outline: annotated defect."] if "mask" in explanation else []
    boxes = explanation.get("boxes")
    if boxes:
        unsure = any(_is_unsure(explanation, box, scale) for box in boxes)
        dashes = ", dashed where it is no stronger than on normal parts" if unsure else ""
        start = THRESHOLD if explanation["prediction"] == 1 or scale is None else max(THRESHOLD, scale.floor)
        marks.append(f"Orange box: localization ≥ {start:.2g}{dashes}.")
    elif boxes is not None and explanation["prediction"] == 1:
        marks.append("The localization marks nothing.")
    elif boxes is not None and scale is None:
        marks.append("No box: of a normal verdict the localization is judged on its absolute scale, which is unknown.")
    elif boxes is not None:
        marks.append("The localization marks nothing beyond what it does on normal parts.")
    return " ".join(marks)


def _about_scale(name: str, scale: MapScale | None) -> str:
    if scale is None or scale.separates:
        return ""
    return f"The {HEADINGS[name]} peaks as high on normal validation pictures as on defective ones: it tells little."


def _counterfactual(explanation: Explanation) -> str:
    answer = explanation["counterfactual"]
    if answer is not None:
        return answer["message"]
    missing = explanation.get("counterfactual_missing")
    return f"No counterfactual: {missing}." if missing else ""
