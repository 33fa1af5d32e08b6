"""Figures of numbers: confusion, ROC and precision-recall, training curves, strategies side by side.

Every function returns a figure and shows nothing; none is pyplot's, which a notebook would show a second time.
"""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib_inline.backend_inline import set_matplotlib_formats
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from sklearn.metrics import PrecisionRecallDisplay, RocCurveDisplay, confusion_matrix

from gainmtl_lib.dataset import Batch, GainDataModule, build_data
from gainmtl_lib.evaluation import MaskSource, rows_of
from gainmtl_lib.metrics import MapScale, normalize_maps
from gainmtl_lib.model import GAINMTLModel, GainOutput
from gainmtl_lib.readers import DataError, read_image, read_mask
from gainmtl_lib.runs import ORACLE_MARK, Run, RunError, atomic_path, row_name

SPLIT_NAMES = {"val": "validation", "test": "test (same distribution)", "test_shift": "test_shift (changed conditions)"}
SPLIT_COLORS = {"val": "#7f7f7f", "test": "#1f77b4", "test_shift": "#d62728"}


def classification_figure(predictions: pd.DataFrame, threshold: float) -> Figure:
    """Confusion matrix per test split, then ROC and precision-recall curves with the chosen threshold marked.

    Args:
        predictions: table of `evaluate`.
        threshold: the decision threshold, from validation.
    """
    splits = [split for split in ("test", "test_shift") if (predictions["split"] == split).any()]
    panels = len(splits) + 2
    figure = Figure(figsize=(3.1 * panels, 3.1), layout="constrained")
    axes = figure.subplots(1, panels)
    for axis, split in zip(axes, splits):
        rows = predictions[predictions["split"] == split]
        counts = confusion_matrix(rows["label"], rows["predicted"], labels=[0, 1])
        names = ["normal", "defective"]
        sns.heatmap(
            counts,
            annot=True,
            fmt="d",
            cmap="Blues",
            cbar=False,
            ax=axis,
            xticklabels=names,
            yticklabels=names,
            square=True,
        )
        axis.set_title(SPLIT_NAMES[split], fontsize=9)
        axis.set(xlabel=f"verdict at {threshold:.2f}", ylabel="truth")
    _curves(axes[-2], axes[-1], predictions, splits, threshold)
    return figure


def _curves(roc: Axes, pr: Axes, predictions: pd.DataFrame, splits: list[str], threshold: float) -> None:
    for split in splits:
        rows = predictions[predictions["split"] == split]
        if rows["label"].nunique() < 2:
            continue
        style = {"name": split, "curve_kwargs": {"color": SPLIT_COLORS[split]}}
        RocCurveDisplay.from_predictions(rows["label"], rows["probability"], ax=roc, **style)
        PrecisionRecallDisplay.from_predictions(rows["label"], rows["probability"], ax=pr, **style)
        called = rows["probability"] >= threshold
        recall = called[rows["label"] == 1].mean()
        roc.plot(called[rows["label"] == 0].mean(), recall, "o", color=SPLIT_COLORS[split])
        if called.any():
            pr.plot(recall, rows.loc[called, "label"].mean(), "o", color=SPLIT_COLORS[split])
    roc.set(title="ROC (dot: threshold)", xlabel="false alarm rate", ylabel="recall")
    pr.set(title="precision-recall (dot: threshold)", xlabel="recall", ylabel="precision", ylim=(0, 1.03))
    for axis in (roc, pr):
        axis.title.set_fontsize(9)
        if axis.get_legend_handles_labels()[0]:  # a split of one class has no curve
            axis.legend(fontsize=7, loc="lower right" if axis is roc else "lower left")


def training_figure(history: pd.DataFrame) -> Figure:
    """Loss terms by step with the stages shaded, and validation scores by epoch.

    Args:
        history: of a run, columns ``tag``, ``step``, ``value``.
    """
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    losses, scores = figure.subplots(1, 2, width_ratios=[1.15, 1])
    for tag, rows in history[history["tag"].str.startswith("train/loss_")].groupby("tag"):
        name = str(tag).removeprefix("train/loss_")
        style = {"label": "total (weighted)", "color": "k", "lw": 2} if name == "total" else {"label": name, "lw": 1}
        losses.plot(rows["step"], rows["value"].rolling(5, min_periods=1).mean(), **style)
    _shade_stages(losses, history[history["tag"] == "train/stage"])
    losses.set(xlabel="optimiser step", title="training losses (mean of 5 log entries)")
    losses.margins(y=0.12)
    losses.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    tags = {"val/average_precision": "AP", "val/accuracy": "accuracy at 0.5", "val/cam_iou": "CAM-IoU"}
    for tag, name in tags.items():
        values = history.loc[history["tag"] == tag, "value"]
        if len(values):
            scores.plot(np.arange(1, len(values) + 1), values, marker="o", ms=3, label=name)
    scores.set(xlabel="epoch", ylim=(0, 1.02), title="validation")
    scores.legend(fontsize=7)
    for axis in (losses, scores):
        axis.title.set_fontsize(9)
    return figure


def _shade_stages(axis: Axes, stages: pd.DataFrame) -> None:
    for stage in sorted(stages["value"].astype(int).unique()):
        steps = stages.loc[stages["value"] == stage, "step"]
        axis.axvspan(steps.min(), steps.max(), color="k", alpha=0.02 + 0.03 * (stage % 2), lw=0)
        place = {"transform": axis.get_xaxis_transform(), "ha": "center", "va": "top"}
        axis.text(steps.median(), 0.98, f"stage {stage}", fontsize=7, **place)


def strategies_figure(comparison: pd.DataFrame) -> Figure:
    """Accuracy on both test splits beside what the deciding CAM reaches, by strategy; dots are single runs.

    Args:
        comparison: of `ablation.compare`.
    """
    figure = Figure(figsize=(9.5, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for split, rows in comparison.groupby("split"):
        mean = rows.groupby("strategy")["accuracy"].mean()
        left.plot(mean.index, mean, marker="o", color=SPLIT_COLORS[str(split)], label=SPLIT_NAMES[str(split)])
        left.scatter(rows["strategy"], rows["accuracy"], s=10, color=SPLIT_COLORS[str(split)], alpha=0.5)
    left.axhline(0.5, color="k", lw=0.7, ls=":")
    left.set(ylim=(0, 1.02), title="accuracy (dotted: a coin)")
    rows = comparison[comparison["split"] == "test"]
    for name, label in {
        "cam_iou": "CAM-IoU (deciding)",
        "attention_iou": "attention IoU",
        "loc_iou": "Loc-IoU",
    }.items():
        mean = rows.groupby("strategy")[name].mean()
        right.plot(mean.index, mean, marker="o", label=label)
    grid = rows.groupby("strategy")["grid_iou"].mean()
    right.plot(grid.index, grid, color="k", lw=0.8, ls="--", label="grid IoU (the mask itself)")
    right.set(ylim=(0, 1.02), title="agreement with the mask, test")
    for axis in (left, right):
        axis.legend(fontsize=7)
    return figure


# --- One picture with one map, composed from pixels


OUTLINE = (0, 229, 255)
"""RGB of the annotated defect's outline, as in the figures."""
CONTOUR = (255, 255, 255)
RIM = (25, 25, 25)
BESIDE = 4
"""Pixels from the defect to its outline: more than the line and its rim reach inwards."""
BAND = (32, 36, 42)
BAND_TEXT = (235, 238, 242)
GROUND = 150
"""Grey of a picture that is not there."""

FLAT = 1e-6
"""Relative span below which a map is constant and says nothing."""
FADE = 0.35
"""Map value from which the overlay has its full strength."""
LETTER, SMALLEST = 15, 11
"""Height of the band's letters, and how small they may become where words are long."""
BAR_RIM = (120, 126, 134)
QUALITY = 90

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


_single = {"depth": 0, "before": 0}
_single_lock = Lock()


@contextmanager
def one_thread() -> Iterator[None]:
    """OpenCV with a single thread; also a decorator.

    On a machine that is busy, with a training say, its threads wait for each other: decoding a picture then takes
    twenty times as long as with one.
    """
    with _single_lock:
        if not _single["depth"]:
            _single["before"] = cv2.getNumThreads()
            cv2.setNumThreads(1)
        _single["depth"] += 1
    try:
        yield
    finally:
        with _single_lock:
            _single["depth"] -= 1
            if not _single["depth"]:
                cv2.setNumThreads(_single["before"])


def enlarged_share(values: NDArray[np.floating], scale: MapScale | None, size: tuple[int, int]) -> NDArray[np.float32]:
    """A map enlarged, then brought to [0, 1]: every picture of a map goes through here, so that all show the same.

    In this order, which is that of the metrics. Scaled first, a cell far above the ceiling would count as one at the
    ceiling, and the line of 0.5 would lie elsewhere.

    Args:
        values: (h, w); what is not finite counts as 0.
        scale: absolute; None stretches the map to its own range, a constant one to 0.
        size: (H, W), reached bilinearly.

    Returns:
        (H, W).
    """
    full = _enlarged(np.nan_to_num(np.asarray(values, dtype=np.float32), posinf=0, neginf=0), size)
    if scale is not None:
        return scale.apply(full)
    # As `metrics.normalize_maps`, without torch's threads, which cost more than the sum.
    low, high = float(full.min()), float(full.max())
    if high - low <= FLAT * max(abs(low), abs(high)):
        return np.zeros_like(full)
    return (full - low) / (high - low)


def fitted(share: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """A map in [0, 1] at another size (H, W), bilinearly."""
    return _enlarged(share, size).clip(0, 1)


def _enlarged(values: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    full = cv2.resize(values, size[::-1], interpolation=cv2.INTER_LINEAR)
    return np.asarray(full).astype(np.float32, copy=False)


def compose(
    picture: NDArray[np.uint8],
    heat: NDArray[np.float32] | None = None,
    *,
    strength: float = 0.6,
    level: float | None = None,
    mask: NDArray[np.bool_] | None = None,
) -> NDArray[np.uint8]:
    """Lay a map over a greyed picture; without a map the picture keeps its colours.

    Args:
        picture: RGB, (H, W, 3).
        heat: map on its scale, (H, W) in [0, 1].
        strength: of the overlay, in [0, 1].
        level: draws the contour of the map at this value.
        mask: annotated defect, (H, W), outlined.

    Returns:
        (H, W, 3).
    """
    drawn = picture.copy()
    if heat is not None:
        drawn = _overlay(picture, heat, strength)
        if level is not None:
            _contour(drawn, heat >= level, CONTOUR)
    if mask is not None:
        _contour(drawn, _grown(mask), OUTLINE)
    return drawn


def _overlay(picture: NDArray[np.uint8], heat: NDArray[np.float32], strength: float) -> NDArray[np.uint8]:
    grey = cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    index = np.rint(np.clip(heat, 0, 1) * 255).astype(np.uint8)
    colours = inferno()[index]
    share = cv2.cvtColor(_strengths(strength)[index], cv2.COLOR_GRAY2RGB)
    mixed = np.empty(picture.shape, dtype=np.uint8)
    cv2.add(cv2.multiply(colours, share, scale=1 / 255), cv2.multiply(grey, 255 - share, scale=1 / 255), dst=mixed)
    return mixed


@cache
def inferno() -> NDArray[np.uint8]:
    """The colours of 256 map values, RGB, (256, 3)."""
    ramp = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], cv2.COLORMAP_INFERNO)
    return np.ascontiguousarray(ramp[:, 0, ::-1], dtype=np.uint8)


def _strengths(strength: float) -> NDArray[np.uint8]:
    """Opacity of 256 map values: rises to the full strength at `FADE`."""
    values = np.arange(256, dtype=np.float32) / 255
    return np.rint(255 * strength * np.clip(values / FADE, 0, 1)).astype(np.uint8)


def _contour(drawn: NDArray[np.uint8], region: NDArray[np.bool_], colour: tuple[int, int, int]) -> None:
    """The region's edge with a dark rim, which keeps it visible on any ground."""
    lines, _ = cv2.findContours(region.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    width = 2 if max(drawn.shape) >= 320 else 1
    cv2.drawContours(drawn, lines, -1, RIM, width + 2, cv2.LINE_AA)
    cv2.drawContours(drawn, lines, -1, colour, width, cv2.LINE_AA)


def _grown(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Its outline then runs beside the defect: on a thin scratch it would otherwise cover what it shows."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * BESIDE + 1, 2 * BESIDE + 1))
    return np.asarray(cv2.dilate(mask.astype(np.uint8), kernel) > 0)


def ground(size: tuple[int, int]) -> NDArray[np.uint8]:
    """A grey field (H, W, 3) in place of a picture that is not there."""
    return np.full((*size, 3), GROUND, dtype=np.uint8)


def with_band(drawn: NDArray[np.uint8], text: str, *, bar: bool) -> NDArray[np.uint8]:
    """Add a line of words below the picture, so that a copy of it still says what is shown on which scale.

    Args:
        drawn: (H, W, 3).
        text: in smaller letters, then shortened, where it does not fit.
        bar: with the colours of 0 to 1 before the words.
    """
    width = drawn.shape[1]
    band = Image.new("RGB", (width, 2 * LETTER), BAND)
    pen = ImageDraw.Draw(band)
    start = _draw_bar(band, pen) if bar else 8
    words, font = _fitting(text, width - start - 6)
    pen.text((start, LETTER), words, BAND_TEXT, font, anchor="lm")
    return np.concatenate([drawn, np.asarray(band)])


def _draw_bar(band: Image.Image, pen: ImageDraw.ImageDraw) -> int:
    """Colours from 0 to 1; returns where the words begin."""
    left, width, half = 23, 56, 7
    ramp = inferno()[np.linspace(0, 255, width).astype(int)]
    band.paste(Image.fromarray(np.tile(ramp, (2 * half, 1, 1))), (left, LETTER - half))
    pen.rectangle((left - 1, LETTER - half - 1, left + width, LETTER + half), outline=BAR_RIM)
    pen.text((left - 6, LETTER), "0", BAND_TEXT, _font(LETTER), anchor="rm")
    pen.text((left + width + 6, LETTER), "1", BAND_TEXT, _font(LETTER), anchor="lm")
    return left + width + 24


@cache
def _font(size: int) -> Font:
    return ImageFont.load_default(size)


def _fitting(text: str, width: int) -> tuple[str, Font]:
    """A line in the largest letters that fit; one too long for the smallest is shortened."""
    for size in range(LETTER, SMALLEST, -1):
        if _font(size).getlength(text) <= width:
            return text, _font(size)
    while len(text) > 1 and _font(SMALLEST).getlength(text) > width:
        text = text[:-2].rstrip() + "…"
    return text, _font(SMALLEST)


def encode(pixels: NDArray[np.uint8], quality: int = QUALITY) -> bytes:
    """RGB (H, W, 3) as JPEG, with colours at full resolution: outlines are thin."""
    options = [
        cv2.IMWRITE_JPEG_QUALITY,
        quality,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    ]
    return cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)[1].tobytes()


# --- Pictures of images and maps


OUTLINE_PLOTS = "#00e5ff"
JPEG = {"pil_kwargs": {"quality": 80}}
HEAT = "inferno"


def save_figure(figure: Figure, path: Path) -> Figure:
    """Write a figure, atomically; the suffix says the format, ``.jpg`` for photographs.

    Returned, so that a notebook's last line shows it; one of pyplot's is closed, so that it is not shown twice.
    """
    options: dict[str, Any] = {"metadata": {"Software": None}} if path.suffix == ".png" else JPEG
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130, **options)
    plt.close(figure)
    return figure


def inline_figures_as_jpeg() -> None:
    """In a notebook: pages of photographs as JPEG, a tenth of their PNG. Without IPython it does nothing."""
    set_matplotlib_formats("jpeg", dpi=80, pil_kwargs={"quality": 70})


def contact_sheet(
    images: Sequence[np.ndarray],
    masks: Sequence[np.ndarray | None],
    titles: Sequence[str],
    *,
    columns: int = 6,
    title: str | None = None,
) -> Figure:
    """Images in a grid, the outline of the defect mask drawn on each.

    Args:
        images: (H, W, 3) uint8.
        masks: (H, W), above zero is defect, or None.
        titles: one line each.
        columns: of the grid.
        title: of the whole sheet.
    """
    rows = max(1, -(-len(images) // columns))
    figure = Figure(figsize=(1.7 * columns, 1.95 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, mask, text in zip(axes.flat, images, masks, titles):
        axis.imshow(image)
        if mask is not None:
            _outline(axis, mask)
        axis.set_title(text, fontsize=8)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def map_grid(
    images: np.ndarray,
    masks: np.ndarray,
    maps: Mapping[str, np.ndarray],
    row_titles: Sequence[str],
    *,
    notes: Mapping[str, Sequence[str]] | None = None,
    unit_maps: Sequence[str] = (),
    scales: Mapping[str, MapScale] | None = None,
) -> Figure:
    """One row per image: the picture with the mask's outline, then each map laid over it.

    Maps are min-max normalised per image, except `unit_maps`, which are shown on their own scale of 0 to 1, and those
    with an absolute scale. The heading says which, because per-image scaling makes any picture glow.

    Args:
        images: (N, H, W, 3) in [0, 1].
        masks: (N, H, W), above zero is defect.
        maps: name to (N, h, w).
        row_titles: what stands at the left of each row.
        notes: name to a line under each picture of that column.
        unit_maps: names of the maps that are probabilities.
        scales: of the maps to be shown on an absolute scale; one that finds nothing says so.
    """
    count = len(images)
    side = 2.0 if len(maps) <= 4 else 1.45  # inches
    size = (side * (1 + len(maps)) + 0.7, (side + 0.12) * count + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(count, 1 + len(maps), squeeze=False)
    for row in range(count):
        axes[row, 0].imshow(images[row])
        axes[row, 0].set_ylabel(row_titles[row], fontsize=8)
        for column, (name, values) in enumerate(maps.items(), start=1):
            scale = (scales or {}).get(name)
            unit = name in unit_maps or scale is not None
            size = (images[row].shape[0], images[row].shape[1])
            shown = values[row] if scale is None else enlarged_share(values[row], scale, size)
            overlay(axes[row, column], images[row], shown, unit=unit)
            if scale is not None and not scale.finds(values[row]):
                axes[row, column].set_xlabel("nothing found", fontsize=7)
            if row == 0:
                about = "absolute" if scale else "0 to 1" if unit else "per image"
                axes[row, column].set_title(f"{name}\n({about})", fontsize=8)
            if notes and name in notes:
                axes[row, column].set_xlabel(notes[name][row], fontsize=7)
        for axis in axes[row]:
            axis.set(xticks=[], yticks=[])
            if masks[row].any():
                _outline(axis, masks[row])
    axes[0, 0].set_title("picture\n(outline: mask)", fontsize=8)
    return figure


def overlay(axis: Axes, image: np.ndarray, values: np.ndarray, *, unit: bool = False, strength: float = 0.6) -> None:
    """Lay one map (h, w) over a greyed picture (H, W, 3), bilinearly upsampled as the metrics see it."""
    tensor = torch.tensor(np.asarray(values, dtype=np.float32))[None, None]
    full = torch.nn.functional.interpolate(tensor, size=image.shape[:2], mode="bilinear", align_corners=False)
    shown = full if unit else normalize_maps(full)
    axis.imshow(image.mean(axis=2), cmap="gray", vmin=0, vmax=1)
    axis.imshow(shown[0, 0].numpy(), cmap=HEAT, vmin=0, vmax=1, alpha=strength)


def _outline(axis: Axes, mask: np.ndarray) -> None:
    axis.contour(np.asarray(mask) > 0, levels=[0.5], colors=[OUTLINE_PLOTS], linewidths=1.0)


# --- Pictures and masks at the size they are shown in, decoded once and kept for a while.


KEPT_PICTURES = 32
KEPT_THUMBNAILS = 4096
THUMBNAIL = 84
READERS = 2


@dataclass(frozen=True)
class Shown:
    """A picture ready to be drawn on.

    Attributes:
        pixels: RGB, (H, W, 3); a grey field where the file is not there.
        size: (h, w) on disk; of the grey field where the file is not there.
        mask: annotated defect, (H, W), or None.
        problem: what is missing, in words; empty where nothing is.
    """

    pixels: NDArray[np.uint8]
    size: tuple[int, int]
    mask: NDArray[np.bool_] | None
    problem: str


class PictureFiles:
    """Decoded pictures and thumbnails, the most recently used kept; safe to use from several threads."""

    def __init__(self) -> None:
        self.load = lru_cache(KEPT_PICTURES)(load_shown)
        self.thumbnail = lru_cache(KEPT_THUMBNAILS)(thumbnail)
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="pictures")
        self._ahead: list[Future[bytes]] = []

    def thumbnails(self, paths: list[Path | None]) -> list[bytes]:
        """Small JPEGs in the order of the paths; decoding releases the interpreter lock."""
        self.prefetch_thumbnails([])  # what may be wanted later stands back
        return list(self._readers.map(self.thumbnail, paths))

    def prefetch_thumbnails(self, paths: list[Path | None]) -> None:
        """Decode those of a page that is likely to be next; what an earlier call left to do is given up."""
        for waiting in self._ahead:
            waiting.cancel()
        self._ahead = [self._readers.submit(self.thumbnail, path) for path in paths]

    def prefetch(self, image: Path | None, mask: Path | None, side: int, size: tuple[int, int]) -> None:
        """Decode a picture that is likely to be looked at next, beside whatever goes on."""
        self._readers.submit(self.load, image, mask, side, size)

    def close(self) -> None:
        """Stop reading ahead."""
        self._readers.shutdown(wait=False, cancel_futures=True)


@one_thread()
def load_shown(image: Path | None, mask: Path | None, side: int, size: tuple[int, int]) -> Shown:
    """Decode a picture and its mask, the longer side brought to `side`.

    Args:
        image: None where its folder is known to be missing.
        mask: None where there is no annotation.
        side: in pixels.
        size: (h, w) of the grey field that stands for a picture that is not there.
    """
    problems = []
    try:
        pixels = read_image(image) if image is not None else ground(size)
    except DataError as error:
        pixels = ground(size)
        problems.append(_first_sentence(error))
    h, w = pixels.shape[:2]
    outlined = None
    try:
        outlined = read_mask(mask) if mask is not None else None
    except DataError as error:
        problems.append(_first_sentence(error))
    scale = side / max(h, w)
    shape = max(1, round(h * scale)), max(1, round(w * scale))
    return Shown(resized(pixels, shape), (h, w), resized_mask(outlined, shape), "; ".join(problems))


@one_thread()
def thumbnail(path: Path | None) -> bytes:
    """A small JPEG of the whole picture; grey where the file is not there."""
    pixels = ground((THUMBNAIL, THUMBNAIL))
    try:
        if path is not None:
            pixels = _reduced_jpeg(path) if path.suffix.lower() in {".jpg", ".jpeg"} else read_image(path)
    except (DataError, OSError, cv2.error):  # an empty file is an error of OpenCV's own
        pass
    h, w = pixels.shape[:2]
    scale = THUMBNAIL / max(h, w)
    return encode(resized(pixels, (max(1, round(h * scale)), max(1, round(w * scale)))), quality=80)


def _reduced_jpeg(path: Path) -> NDArray[np.uint8]:
    """A JPEG decoded at a quarter of its size, which is several times faster; small ones at their own."""
    reduced = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_REDUCED_COLOR_4)
    if reduced is None or max(reduced.shape) < THUMBNAIL:
        return read_image(path)
    return np.asarray(cv2.cvtColor(reduced, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def resized(pixels: NDArray, shape: tuple[int, int]) -> NDArray:
    """Bring (h, w[, C]) to (H, W[, C]): by area where it shrinks, smoothly where it grows."""
    if pixels.shape[:2] == shape:
        return pixels
    shrinks = shape[0] < pixels.shape[0]
    return cv2.resize(pixels, shape[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def resized_mask(mask: NDArray[np.bool_] | None, shape: tuple[int, int]) -> NDArray[np.bool_] | None:
    """A region that shrinking would lose keeps every pixel it touches, so that a thin defect stays outlined."""
    if mask is None or not mask.any():
        return None
    shrinks = shape[0] < mask.shape[0]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    share = cv2.resize(mask.astype(np.float32), shape[::-1], interpolation=method)
    if not shrinks:  # half a pixel of the mask, so that its outline is no staircase
        share = cv2.GaussianBlur(share, (0, 0), max(0.5, 0.5 * shape[0] / mask.shape[0]))
    kept, touched = share >= 0.5, share > 0
    count, labels = cv2.connectedComponents(touched.astype(np.uint8))
    regions = labels.astype(np.intp)
    lost = np.arange(count) > 0  # region 0 is what is not touched
    lost[regions[kept]] = False
    return kept | lost[regions]


def _first_sentence(error: DataError) -> str:
    return str(error).split(";")[0]


# --- Test pictures with everything a model says of them, as figures.


logger = logging.getLogger(__name__)

PER_PAGE, CHARACTERS_PER_INCH = 8, 16
THE_SAME = "the same"
UNIT_MAPS = {"effective_attention": "attention", "localization_map": "localization"}
LEAKS = "mask_source oracle: the model is told where the defect is; no result"


def pick_rows(samples: pd.DataFrame, split: str, *, defective: int, normal: int) -> list[int]:
    """Rows of a split to show: defective ones of as many defect types as there are, then normal ones.

    The choice depends on the table alone, so that every strategy shows the same pictures.
    """
    rows = samples[samples["split"] == split]
    broken = rows[(rows["label"] == 1) & rows["mask"].notna()]
    order = broken.assign(turn=broken.groupby("defect_type").cumcount()).sort_values(["turn", "defect_type"])
    return [*order.index[:defective], *rows.index[rows["label"] == 0][:normal]]


def look(
    run_or_model: Run | GAINMTLModel, data: GainDataModule, rows: Sequence[int], source: MaskSource | None = None
) -> tuple[Batch, GainOutput]:
    """What the model says of some rows, in evaluation mode.

    Args:
        run_or_model: a run knows its folder of masks, if its attention takes them from one.
        data: set up.
        rows: of ``data.samples``.
        source: of S6's masks, in place of the run's or the model's own.

    Raises:
        RunError: a model alone whose masks come from outside, or an EfficientAD run that cannot be used.
        DataError: masks from outside that cannot be had.
    """
    model = run_or_model.model if isinstance(run_or_model, Run) else run_or_model
    source = source or _own_source(run_or_model)
    batch = data.dataset.__getitems__(list(rows))
    with torch.inference_mode(), source.applied(model):
        return batch, model.eval()(batch.images, batch.masks, attention_masks=source.masks(data, batch))


def _own_source(run_or_model: Run | GAINMTLModel) -> MaskSource:
    return MaskSource.of(run_or_model.settings if isinstance(run_or_model, Run) else run_or_model)


def explanation_figure(
    run_or_model: Run | GAINMTLModel,
    data: GainDataModule,
    rows: Sequence[int],
    *,
    threshold: float | None = None,
    scale: MapScale | None = None,
    source: MaskSource | None = None,
) -> Figure:
    """One row per picture: mask outline, then every map the strategy has.

    Args:
        run_or_model: evaluated or to be.
        data: set up.
        rows: of ``data.samples``.
        threshold: adds the verdict to the row's title.
        scale: shows the deciding CAM on its absolute scale, too.
        source: of S6's masks, see `look`; the oracle is named, and the teacher of an EfficientAD run.
    """
    source = source or _own_source(run_or_model)
    batch, output = look(run_or_model, data, rows, source)
    maps = {"deciding CAM": output.cam[:, 0].float().numpy()}
    if scale is not None:
        maps[THE_SAME] = maps["deciding CAM"]
    maps |= {
        heading: value[:, 0].float().numpy()
        for name, heading in UNIT_MAPS.items()
        if (value := output[name]) is not None
    }
    prob = output.logits.float().softmax(dim=1)[:, 1]
    figure = map_grid(
        batch.images.permute(0, 2, 3, 1).numpy(),
        batch.masks[:, 0].numpy(),
        maps,
        [_title(int(label), float(p), threshold) for label, p in zip(batch.labels, prob)],
        unit_maps=list(UNIT_MAPS.values()),
        scales={THE_SAME: scale} if scale else None,
    )
    if said := _masks_told(source):
        figure.supxlabel(said, fontsize=8)
    return figure


def _masks_told(source: MaskSource) -> str:
    """What must stand beside results of a source of masks; empty where it is the model itself."""
    teacher = source.summary.get("teacher")
    return LEAKS if source.leaks else f"masks from EfficientAD; its teacher: {teacher}" if teacher else ""


def _title(label: int, probability: float, threshold: float | None) -> str:
    truth = ("normal", "defective")[label]
    verdict = "" if threshold is None else f"\ncalled {('normal', 'defective')[probability >= threshold]}"
    return f"{truth}{verdict}\np(defect) {probability:.2f}"


def explanation_pictures(
    run_or_model: Run | GAINMTLModel,
    data: GainDataModule,
    table: pd.DataFrame,
    *,
    splits: Sequence[str],
    threshold: float,
    scale: MapScale | None = None,
    source: MaskSource | None = None,
) -> Iterator[tuple[str, Figure]]:
    """Pages of pictures of whole splits, the most telling first: misses, false alarms, then the rest.

    Args:
        run_or_model: of the predictions.
        data: set up, with the pictures of the predictions.
        table: of `evaluate`.
        splits: which of them, where present.
        threshold: the decision threshold.
        scale: the absolute one of the deciding CAM, where it is known.
        source: of S6's masks, the one that the predictions were made with, see `look`.

    Yields:
        A name such as ``test_FN_01`` and its figure.

    Raises:
        ValueError: predictions and data do not hold the same pictures.
    """
    source = source or _own_source(run_or_model)
    for split in splits:
        predicted = table[table["split"] == split]
        rows, verdicts = rows_of(predicted, data), predicted["verdict"].to_numpy()
        for verdict in ("FN", "FP", "TP", "TN"):
            chosen = rows[verdicts == verdict]
            for page, start in enumerate(range(0, len(chosen), PER_PAGE), start=1):
                shown = chosen[start : start + PER_PAGE].tolist()
                figure = explanation_figure(run_or_model, data, shown, threshold=threshold, scale=scale, source=source)
                yield f"{split}_{verdict}_{page:02d}", figure


def same_pictures_figure(runs: Sequence[Run], split: str = "test", *, defective: int = 4, normal: int = 1) -> Figure:
    """The deciding CAM of several strategies on the same pictures, the defect probability under each.

    A run whose masks from outside cannot be had is left out, and the figure says so.

    Args:
        runs: trained on the same data; of several seeds of a strategy the first is shown.
        split: where the pictures come from.
        defective: how many defective pictures, of as many types as there are.
        normal: how many normal ones.
    """
    data = build_data(runs[0].settings)
    data.setup("test")
    rows = pick_rows(data.samples, split, defective=defective, normal=normal)
    maps, notes, missing, told = {}, {}, set(), []
    for run in runs:
        source = MaskSource.of(run.settings)
        name = row_name(run.settings) + (f"\n{ORACLE_MARK.strip()}" if source.leaks else "")
        if name in maps:
            continue
        try:
            _, output = look(run.model, data, rows, source)
        except (DataError, RunError) as error:
            logger.warning("%s seed %d is left out of the figure: %s", name, run.settings.seed, error)
            missing.add(name)
            continue
        maps[name] = output.cam[:, 0].float().numpy()
        notes[name] = [f"p(defect) {p:.2f}" for p in output.logits.float().softmax(dim=1)[:, 1]]
        if not source.leaks and (said := _masks_told(source)):
            told.append(f"{name}: {said}.")
    batch = data.dataset.__getitems__(rows)
    titles = [f"{split}\n{data.samples.loc[row, 'defect_type']}" for row in rows]
    figure = map_grid(batch.images.permute(0, 2, 3, 1).numpy(), batch.masks[:, 0].numpy(), maps, titles, notes=notes)
    told += [f"{name} is left out: its masks from outside cannot be had." for name in sorted(missing - set(maps))]
    if told:
        figure.supxlabel(textwrap.fill(" ".join(told), int(figure.get_figwidth() * CHARACTERS_PER_INCH)), fontsize=8)
    return figure
