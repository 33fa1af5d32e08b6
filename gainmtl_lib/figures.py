"""Pictures: a map laid over a picture, in one way everywhere, and the figures that more than one notebook draws.

No figure is pyplot's, which a notebook would show a second time. Sizes: H x W a picture's pixels, h x w a map's cells.
"""

import logging
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib_inline.backend_inline import set_matplotlib_formats
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from sklearn.metrics import PrecisionRecallDisplay, RocCurveDisplay

from gainmtl_lib.dataset import Batch, GainDataModule, build_data
from gainmtl_lib.evaluation import MaskSource, rows_of
from gainmtl_lib.findings import DataError
from gainmtl_lib.labels import resize_image
from gainmtl_lib.layouts import CLASS_NAMES, NORMAL, TEST_SPLITS
from gainmtl_lib.metrics import NAMED, MapScale, bins_of, confusion, type_answers
from gainmtl_lib.model import GAINMTLModel, GainOutput, defect_probability
from gainmtl_lib.runs import ORACLE_MARK, Run, RunError, atomic_path, row_name
from gainmtl_lib.stats import group_codes, proportion
from gainmtl_lib.wording import METRICS, SPLIT_NAMES

logger = logging.getLogger(__name__)

# --- A map over a picture

# RGB of the annotated defect's outline, of the line at a level of the map, of the dark rim of both; of 256 map values.
OUTLINE, CONTOUR, RIM = (0, 229, 255), (255, 255, 255), (25, 25, 25)
INFERNO = np.rint(255 * plt.colormaps["inferno"](np.arange(256))[:, :3]).astype(np.uint8)


def overlay(
    picture: NDArray,
    share: NDArray[np.floating] | None = None,
    *,
    strength: float = 0.6,
    level: float | None = None,
    mask: NDArray | None = None,
) -> NDArray[np.uint8]:
    """Lay a map over a greyed picture; without a map the picture keeps its colours. Gives (H, W, 3).

    Args:
        picture: RGB, (H, W, 3), 8 bits; the others are fitted to it.
        share: map in [0, 1], see `enlarged_share`.
        strength: of the map's colours, in [0, 1].
        level: draws the contour of the map at this value.
        mask: annotated defect, above zero, to be outlined.
    """
    drawn: Any = picture.copy()
    size = (drawn.shape[0], drawn.shape[1])
    if share is not None:
        heat = _enlarged(share, size).clip(0, 1)
        grey = cv2.cvtColor(cv2.cvtColor(drawn, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        index = np.rint(heat * 255).astype(np.uint8)
        # From a map value of 0.35 the colours have their full strength.
        opacities = np.rint(255 * strength * np.clip(np.arange(256) / 255 / 0.35, 0, 1)).astype(np.uint8)
        opacity = cv2.cvtColor(opacities[index], cv2.COLOR_GRAY2RGB)
        colours = cv2.multiply(INFERNO[index], opacity, scale=1 / 255)
        drawn = cv2.add(colours, cv2.multiply(grey, 255 - opacity, scale=1 / 255))
        if level is not None:
            _draw_edge(drawn, heat >= level, CONTOUR)
    if mask is not None and (region := resized_mask(np.asarray(mask) > 0, size)) is not None:
        # Four pixels beside the defect: an outline on it would cover a thin scratch.
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (9, 9))
        _draw_edge(drawn, cv2.dilate(region.astype(np.uint8), kernel), OUTLINE)
    return drawn


def enlarged_share(values: NDArray, scale: MapScale | None, size: tuple[int, int]) -> NDArray[np.float32]:
    """A map (h, w) enlarged to `size` (H, W), then brought to [0, 1] as the metrics do: no map is shown otherwise.

    Scaled first, a cell far above the ceiling would count as one at the ceiling, and the line of 0.5 lie elsewhere.
    Without an absolute `scale` it is stretched to its own range, a constant map to 0. What is not finite counts as 0.
    """
    full = _enlarged(np.nan_to_num(values, posinf=0, neginf=0), size)
    if scale is not None:
        return scale.apply(full)
    # As `metrics.normalize_maps`, without torch's threads, which cost more than the sum.
    low, high = float(full.min()), float(full.max())
    if high - low <= 1e-6 * max(abs(low), abs(high)):  # constant: says nothing
        return np.zeros_like(full)
    return np.divide(full - low, high - low, dtype=np.float32)


def _enlarged(values: NDArray, size: tuple[int, int]) -> NDArray[np.float32]:
    return cv2.resize(values.astype(np.float32), size[::-1], interpolation=cv2.INTER_LINEAR).astype(np.float32)


def _draw_edge(drawn: NDArray[np.uint8], region: NDArray, colour: tuple[int, int, int]) -> None:
    lines, _ = cv2.findContours(region.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    width = 2 if max(drawn.shape) >= 320 else 1
    # The dark rim keeps it visible on any ground.
    cv2.drawContours(drawn, lines, -1, RIM, width + 2, cv2.LINE_AA)
    cv2.drawContours(drawn, lines, -1, colour, width, cv2.LINE_AA)


def resized_mask(mask: NDArray[np.bool_] | None, size: tuple[int, int]) -> NDArray[np.bool_] | None:
    """A mask at another size; shrunk, it keeps every pixel it touches, so that no region is lost. None without any."""
    if mask is None or not mask.any():
        return None
    if mask.shape == size:
        return mask
    if size[0] < mask.shape[0]:
        return cv2.resize(mask.astype(np.float32), size[::-1], interpolation=cv2.INTER_AREA) > 0
    # Blurred by half a pixel of the mask, so that its outline is no staircase.
    return cv2.GaussianBlur(_enlarged(mask, size), (0, 0), max(0.5, 0.5 * size[0] / mask.shape[0])) >= 0.5


# --- Pictures with words below them, as JPEG, and in figures

BAND = (32, 36, 42)
LETTER = 15  # height of the band's letters
_font = cache(ImageFont.load_default)


def with_band(drawn: NDArray[np.uint8], text: str, *, bar: bool) -> NDArray[np.uint8]:
    """Add a line of words below the picture (H, W, 3), so that a copy of it still says which map it shows, and how.

    Words that do not fit become smaller, then fewer; `bar` puts the colours of 0 to 1 before them.
    """
    band = Image.new("RGB", (drawn.shape[1], 2 * LETTER), BAND)
    text_colour = (235, 238, 242)
    pen, start = ImageDraw.Draw(band), 103 if bar else 8
    if bar:
        ramp = INFERNO[np.linspace(0, 255, 56).astype(int)]
        band.paste(Image.fromarray(np.tile(ramp, (14, 1, 1))), (23, LETTER - 7))
        pen.rectangle((22, LETTER - 8, 79, LETTER + 7), outline=(120, 126, 134))
        pen.text((17, LETTER), "0", text_colour, _font(LETTER), anchor="rm")
        pen.text((85, LETTER), "1", text_colour, _font(LETTER), anchor="lm")
    room = band.width - start - 6
    size = next((size for size in range(LETTER, 11, -1) if _font(size).getlength(text) <= room), 11)
    while len(text) > 1 and _font(size).getlength(text) > room:
        text = text[:-2].rstrip() + "…"
    pen.text((start, LETTER), text, text_colour, _font(size), anchor="lm")
    return np.concatenate([drawn, np.asarray(band)])


def encode(pixels: NDArray[np.uint8], quality: int = 90) -> bytes:
    """RGB (H, W, 3) as JPEG, with colours at full resolution: outlines are thin."""
    flags = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    return cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), flags)[1].tobytes()


def ground(size: tuple[int, int]) -> NDArray[np.uint8]:
    """A grey field (H, W, 3) in place of a picture that is not there."""
    return np.full((*size, 3), 150, dtype=np.uint8)


def fitting(size: tuple[int, int], side: int) -> tuple[int, int]:
    """The size (H, W) at which a picture of (h, w) has its longer side of `side` pixels."""
    scale = side / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def save_figure(figure: Figure, path: Path) -> Figure:
    """Write a figure, atomically; the suffix says the format. Returned, so that a notebook's last line shows it."""
    options: Any = {"metadata": {"Software": None}} if path.suffix == ".png" else {"pil_kwargs": {"quality": 80}}
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130, **options)
    plt.close(figure)
    return figure


def inline_figures_as_jpeg() -> None:
    """In a notebook: pages of photographs as JPEG, a tenth of their PNG. Without IPython it does nothing."""
    set_matplotlib_formats("jpeg", dpi=72, pil_kwargs={"quality": 60})


def draw_overlay(axis: Axes, picture: NDArray, share: NDArray | None = None, mask: NDArray | None = None) -> None:
    """Show an `overlay` on an axis without ticks, whose coordinates stay those of the picture's own pixels."""
    height, width = picture.shape[:2]
    pixels = picture if picture.dtype == np.uint8 else np.rint(picture * 255).astype(np.uint8)
    size = fitting((height, width), max(320, height, width))  # so that outlines are as fine on small pictures
    drawn = overlay(resize_image(pixels, size, "squash"), share, mask=mask)
    axis.imshow(drawn, extent=(-0.5, width - 0.5, height - 0.5, -0.5))
    axis.set(xticks=[], yticks=[])


def contact_sheet(
    images: Sequence[NDArray], masks: Sequence[NDArray | None], titles: Sequence[str], *, columns: int = 6
) -> Figure:
    """Images (H, W, 3), 8 bits or float in [0, 1], in a grid, with the outline of the mask (H, W) if there is one."""
    rows = max(1, -(-len(images) // columns))
    figure = Figure(figsize=(1.7 * columns, 1.95 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, mask, text in zip(axes.flat, images, masks, titles):
        draw_overlay(axis, np.asarray(image), mask=mask)
        axis.set_title(text, fontsize=8)
    return figure


def map_grid(
    images: NDArray,
    masks: NDArray,
    maps: Mapping[str, NDArray],
    row_titles: Sequence[str],
    *,
    notes: Mapping[str, Sequence[str]] | None = None,
    unit_maps: Sequence[str] = (),
    scales: Mapping[str, MapScale] | None = None,
) -> Figure:
    """One row per image: the picture (H, W, 3) in [0, 1] with the outline of its mask (H, W), then each map over it.

    Args:
        images, masks: (N, H, W, 3) and (N, H, W), above zero is defect.
        maps: name to (N, h, w); stretched per image, and the heading says so, for that makes any picture glow.
        notes: name to a line under each picture of that column.
        unit_maps: names of the maps that are shown on their own scale of 0 to 1.
        scales: of the maps to be shown on an absolute scale; one that finds nothing says so.
    """
    notes, scales = notes or {}, scales or {}
    side = 2.0 if len(maps) <= 4 else 1.45  # inches
    height = side * images.shape[1] / images.shape[2] + 0.12
    figure = Figure(figsize=(side * (1 + len(maps)) + 0.7, height * len(images) + 0.4), layout="constrained")
    axes = figure.subplots(len(images), 1 + len(maps), squeeze=False)
    axes[0, 0].set_title("picture\n(outline: mask)", fontsize=8)
    for row, (image, mask) in enumerate(zip(images, masks)):
        draw_overlay(axes[row, 0], image, mask=mask)
        axes[row, 0].set_ylabel(row_titles[row], fontsize=8)
    for column, (name, values) in enumerate(maps.items(), start=1):
        scale = scales.get(name)
        about = "absolute" if scale else "0 to 1" if name in unit_maps else "per image"
        of_share = MapScale(0.0, 1.0) if name in unit_maps else scale
        axes[0, column].set_title(f"{name}\n({about})", fontsize=8)
        for row, (image, mask) in enumerate(zip(images, masks)):
            draw_overlay(axes[row, column], image, enlarged_share(values[row], of_share, image.shape[:2]), mask)
            nothing = "nothing found" if scale and not scale.finds(values[row]) else ""
            axes[row, column].set_xlabel(notes[name][row] if name in notes else nothing, fontsize=7)
    return figure


# --- What a model says of test pictures

UNIT_MAPS = {"effective_attention": "attention", "localization_map": "localization"}


def pick_rows(samples: pd.DataFrame, split: str, *, defective: int, normal: int) -> list[int]:
    """Rows of a split to show, of any model the same: defects of as many types and parts as there are, then normal."""
    rows = samples[samples["split"] == split]
    broken = rows[(rows["label"] == 1) & rows["mask"].notna()]
    again = broken.groupby(["defect_type", "group"], dropna=False).cumcount()
    broken = broken.loc[again.sort_values(kind="stable").index]
    order = broken.assign(turn=broken.groupby("defect_type").cumcount()).sort_values(["turn", "defect_type"])
    return [*order.index[:defective], *rows.index[rows["label"] == 0][:normal]]


def look(
    run_or_model: Run | GAINMTLModel, data: GainDataModule, rows: Sequence[int], source: MaskSource | None = None
) -> tuple[Batch, GainOutput]:
    """What the model says of some rows of ``data.samples``, in evaluation mode.

    A run knows the place of its attention's masks; without those of S6, its own or of a `source`: `RunError`.
    """
    model = run_or_model.model if isinstance(run_or_model, Run) else run_or_model
    source = source or MaskSource.of(run_or_model)
    batch = data.dataset.__getitems__(list(rows))
    with torch.inference_mode(), source.applied(model):
        return batch, model.eval()(batch.images, batch.masks, attention_masks=source.masks(data, batch))


def explanation_figure(
    run_or_model: Run | GAINMTLModel,
    data: GainDataModule,
    rows: Sequence[int],
    *,
    threshold: float,
    scale: MapScale | None = None,
    source: MaskSource | None = None,
) -> Figure:
    """One row per picture, see `look`: the verdict, the mask's outline, then every map.

    A `scale` shows the deciding CAM on its absolute scale, too. The oracle is named, and EfficientAD's teacher.
    """
    source = source or MaskSource.of(run_or_model)
    batch, output = look(run_or_model, data, rows, source)
    maps = {"deciding CAM": output.cam} | ({"the same": output.cam} if scale else {})
    maps |= {heading: value for name, heading in UNIT_MAPS.items() if (value := output[name]) is not None}
    shown = {heading: values[:, 0].float().numpy() for heading, values in maps.items()}
    calibration = run_or_model.calibration
    titles = [
        f"{CLASS_NAMES[label]}\ncalled {CLASS_NAMES[p >= threshold]}\np(defect) {p:.2f}"
        for label, p in zip(batch.labels.int().tolist(), defect_probability(output.logits, calibration).tolist())
    ]
    images, masks = batch.images.permute(0, 2, 3, 1).numpy(), batch.masks[:, 0].numpy()
    scales = {"the same": scale} if scale else None
    figure = map_grid(images, masks, shown, titles, unit_maps=list(UNIT_MAPS.values()), scales=scales)
    figure.supxlabel(_masks_told(source), fontsize=8)
    return figure


def _masks_told(source: MaskSource) -> str:
    if source.leaks:
        return "mask_source oracle: the model is told where the defect is; no result"
    return f"masks from EfficientAD; its teacher: {name}" if (name := source.summary.get("teacher")) else ""


def explanation_pictures(
    run_or_model: Run | GAINMTLModel, data: GainDataModule, table: pd.DataFrame, **shown: Any
) -> Iterator[tuple[str, Figure]]:
    """Figures and names, such as ``test_FN_01``, of all test pictures: misses, false alarms, then the rest.

    `table` is of `evaluate`; `data`, set up, has its pictures, otherwise `ValueError`; see `explanation_figure`.
    """
    for split in TEST_SPLITS:
        predicted = table[table["split"] == split]
        rows, verdicts = rows_of(predicted, data), predicted["verdict"].to_numpy()
        for verdict in ("FN", "FP", "TP", "TN"):
            chosen = rows[verdicts == verdict]
            for page, start in enumerate(range(0, len(chosen), 8), start=1):
                figure = explanation_figure(run_or_model, data, chosen[start : start + 8].tolist(), **shown)
                yield f"{split}_{verdict}_{page:02d}", figure


def same_pictures_figure(runs: Sequence[Run], split: str = "test", *, defective: int = 4) -> Figure:
    """The deciding CAM of several strategies, the first seed of each, and the defect probability under it.

    Pictures are of `pick_rows`, one normal. A run whose masks from outside cannot be had is left out, which is said.
    """
    data = build_data(runs[0].settings)
    data.setup("test")
    rows = pick_rows(data.samples, split, defective=defective, normal=1)
    maps, notes, told = {}, {}, {}
    for run in runs:
        source = MaskSource.of(run.settings)
        name = row_name(run.settings) + (f"\n{ORACLE_MARK.strip()}" if source.leaks else "")
        if name in maps:
            continue
        try:
            _, output = look(run.model, data, rows, source)
        except (DataError, RunError) as error:
            logger.warning("%s seed %d is left out of the figure: %s", name, run.settings.seed, error)
            told[name] = f"{name} is left out: its masks from outside cannot be had."
            continue
        maps[name] = output.cam[:, 0].float().numpy()
        notes[name] = [f"p(defect) {p:.2f}" for p in defect_probability(output.logits, run.calibration)]
        told[name] = f"{name}: {said}." if not source.leaks and (said := _masks_told(source)) else ""
    batch = data.dataset.__getitems__(rows)
    titles = [f"{split}\n{data.samples.loc[row, 'defect_type']}" for row in rows]
    figure = map_grid(batch.images.permute(0, 2, 3, 1).numpy(), batch.masks[:, 0].numpy(), maps, titles, notes=notes)
    figure.supxlabel(textwrap.fill(" ".join(filter(None, told.values())), int(figure.get_figwidth() * 16)), fontsize=8)
    return figure


# --- Numbers: confusion and curves, training, strategies side by side

SPLIT_COLORS = {"test": "#1f77b4", "test_shift": "#d62728"}
small_letters = mpl.rc_context({"axes.titlesize": 9, "legend.fontsize": 7})


@small_letters
def classification_figure(predictions: pd.DataFrame, threshold: float) -> Figure:
    """Confusion matrix per test split of an `evaluate` table, by type where it names types, ROC, precision-recall and
    reliability curves, the threshold marked."""
    splits = [split for split in SPLIT_COLORS if (predictions["split"] == split).any()]
    figure = Figure(figsize=(3.1 * (len(splits) + 3), 3.1), layout="constrained")
    *matrices, roc, pr, reliability = figure.subplots(1, len(splits) + 3)
    for axis, split in zip(matrices, splits):
        rows, color = predictions[predictions["split"] == split], SPLIT_COLORS[split]
        labels, scores, called = rows["label"], rows["probability"], rows["probability"] >= threshold
        _draw_confusion(axis, rows)
        axis.set(title=SPLIT_NAMES[split], xlabel=f"called, at {threshold:.2f}", ylabel="truth")
        _draw_reliability(reliability, rows, color)
        if labels.nunique() < 2:  # one class alone has no curve
            continue
        curve = {"name": split, "curve_kwargs": {"color": color}}
        RocCurveDisplay.from_predictions(labels, scores, ax=roc, **curve)
        PrecisionRecallDisplay.from_predictions(labels, scores, ax=pr, **curve)
        roc.plot(called[labels == 0].mean(), called[labels == 1].mean(), "o", color=color)
        if called.any():
            pr.plot(called[labels == 1].mean(), labels[called].mean(), "o", color=color)
    roc.set(title="ROC (dot: threshold)", xlabel="false alarm rate", ylabel="recall")
    pr.set(title="precision-recall (dot: threshold)", xlabel="recall", ylabel="precision", ylim=(0, 1.03))
    reliability.plot([0, 1], [0, 1], color="k", lw=0.7, ls=":")
    reliability.axvline(threshold, color="k", lw=0.7)
    reliability.set(title="reliability (line: threshold)", xlabel="p(defect)", ylabel="share of defects")
    reliability.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    return figure


def _draw_confusion(axis: Axes, rows: pd.DataFrame) -> None:
    """How many pictures of each class, or type, are called what; darker where more of the truth are."""
    if NAMED in rows:
        answers = type_answers(rows)
        counts = confusion(answers, sorted({*answers["truth"], *answers["called"]} - {NORMAL}))
    else:
        truth, called = (rows[name].map(dict(enumerate(CLASS_NAMES))) for name in ("label", "predicted"))
        counts = pd.crosstab(truth, called).reindex(index=[*CLASS_NAMES], columns=[*CLASS_NAMES], fill_value=0)
    values = counts.to_numpy()
    shares = values / np.maximum(values.sum(axis=1, keepdims=True), 1)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        axis.text(column, row, str(value), ha="center", va="center", color="w" if shares[row, column] > 0.5 else "k")
    slanted: Any = {"rotation": 30, "ha": "right"} if len(counts) > 2 else {}
    axis.set_xticks(range(values.shape[1]), counts.columns, **slanted)
    axis.set_yticks(range(values.shape[0]), counts.index)


def _draw_reliability(axis: Axes, rows: pd.DataFrame, color: str) -> None:
    """Of each bin of probabilities its mean and the share of defects, with its interval; larger where more pictures
    lie in it."""
    groups, place = group_codes(rows), bins_of(rows["probability"].to_numpy())
    for number in np.unique(place):
        chosen = place == number
        share, mean = proportion(rows["label"].to_numpy()[chosen], groups[chosen]), rows["probability"][chosen].mean()
        axis.vlines(mean, share.low, share.high, color=color, lw=1, alpha=0.6)
        axis.scatter(mean, share.value, s=6 + 60 * chosen.mean(), color=color, alpha=0.8, lw=0)


@small_letters
def training_figure(history: pd.DataFrame) -> Figure:
    """Loss terms of a run's history by step with the stages shaded, and validation scores by epoch."""
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    losses, scores = figure.subplots(1, 2, width_ratios=[1.15, 1])
    for tag, rows in history[history["tag"].str.startswith("train/loss_")].groupby("tag"):
        name = str(tag).removeprefix("train/loss_")
        style = {"label": "total (weighted)", "color": "k", "lw": 2} if name == "total" else {"label": name, "lw": 1}
        losses.plot(rows["step"], rows["value"].rolling(5, min_periods=1).mean(), **style)
    above = {"transform": losses.get_xaxis_transform(), "ha": "center", "va": "top", "fontsize": 7}
    stages = history[history["tag"] == "train/stage"].astype({"value": int}).groupby("value")["step"]
    for number, (stage, steps) in enumerate(stages, start=1):
        losses.axvspan(steps.min(), steps.max(), color="k", alpha=0.02 + 0.03 * (number % 2), lw=0)
        losses.text(steps.median(), 0.98, f"stage {stage}", **above)
    losses.set(xlabel="optimiser step", title="training losses (mean of 5 log entries)")
    losses.margins(y=0.12)
    losses.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    for name in ("average_precision", "accuracy", "cam_iou"):
        values = history.loc[history["tag"] == f"val/{name}", "value"]
        if len(values):
            scores.plot(np.arange(1, len(values) + 1), values, marker="o", ms=3, label=METRICS[name])
    scores.set(xlabel="epoch", ylim=(0, 1.02), title="validation")
    scores.legend()
    return figure


@small_letters
def strategies_figure(comparison: pd.DataFrame) -> Figure:
    """Accuracy on both test splits and agreement with the mask, by strategy of a `compare` table; dots are runs."""
    figure = Figure(figsize=(9.5, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for split, rows in comparison.groupby("split"):
        mean = rows.groupby("strategy")["accuracy"].mean()
        left.plot(mean.index, mean, marker="o", color=SPLIT_COLORS[str(split)], label=SPLIT_NAMES[str(split)])
        left.scatter(rows["strategy"], rows["accuracy"], s=10, color=SPLIT_COLORS[str(split)], alpha=0.5)
    left.axhline(0.5, color="k", lw=0.7, ls=":")
    left.set(ylim=(0, 1.02), title="accuracy (dotted: a coin)")
    means = comparison[comparison["split"] == "test"].groupby("strategy").mean(numeric_only=True)
    for name in ("cam_iou", "attention_iou", "loc_iou"):
        right.plot(means.index, means[name], marker="o", label=METRICS[name])
    right.plot(means.index, means["grid_iou"], color="k", lw=0.8, ls="--", label=f"{METRICS['grid_iou']} (the mask)")
    right.set(ylim=(0, 1.02), title="agreement with the mask, test")
    left.legend()
    right.legend()
    return figure
