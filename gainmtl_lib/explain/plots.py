"""Pictures of images and maps. Every function returns a figure and shows nothing: none is pyplot's, which a notebook
would show a second time.

Sizes: N images, H x W pixels, h x w map cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib_inline.backend_inline import set_matplotlib_formats

from gainmtl_lib.explain.drawing import enlarged_share
from gainmtl_lib.files import atomic_path
from gainmtl_lib.map_scale import MapScale
from gainmtl_lib.metrics import normalize_maps

OUTLINE = "#00e5ff"
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
    axis.contour(np.asarray(mask) > 0, levels=[0.5], colors=[OUTLINE], linewidths=1.0)
