"""Would the verdict stand without the defect? Asked of the run's model where it is at hand, else of the evaluation."""

from __future__ import annotations

import cv2
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError

from gainmtl_lib.data.findings import DataError
from gainmtl_lib.data.loading import load_picture
from gainmtl_lib.explain.library import OpenedRun
from gainmtl_lib.models.weights import ModelError

PREDICTED_FROM = 0.5
"""Localization probability from which a pixel belongs to the region that the model itself marks."""


def ask(opened: OpenedRun, row: int) -> list[str]:
    """The answer in sentences, the last of which says where it comes from."""
    settings = opened.run.settings
    if settings.strategy < "S5":
        return [f"{opened.name}: strategy {settings.strategy} has no counterfactual path; S5 and S6 have one."]
    if not settings.use_counterfactual:
        return [f"{opened.name}: trained without a counterfactual path (use_counterfactual: false)."]
    try:
        return _ask_model(opened, row)
    except (DataError, ModelError, OSError, RuntimeError, SafetensorError) as error:
        return [*_read_stored(opened, row), f"Not asked of the model: {error}."]


def _ask_model(opened: OpenedRun, row: int) -> list[str]:
    # Late, because the browser opens without any of it.
    from gainmtl_lib.explain.suppression import ask_counterfactual

    if not (opened.run.folder / "model.safetensors").is_file():
        raise FileNotFoundError(f"{opened.run.folder} holds no model.safetensors")
    image, mask = opened.files(row)
    if image is None:
        raise FileNotFoundError(f"the folder {opened.root} of the pictures is missing")
    settings = opened.run.settings
    picture = load_picture(
        str(image), None if mask is None else str(mask), image_size=settings.image_size, resize=settings.resize
    )
    mask_from = "annotation" if picture.mask is not None else "localization"
    region = picture.mask if picture.mask is not None else _predicted_region(opened, row)
    if not region.any():
        return [f"{opened.name}: no defect is annotated or localized here, so there is nothing to take away."]
    answer = ask_counterfactual(
        opened.run.model,
        torch.from_numpy(picture.image).permute(2, 0, 1)[None].float() / 255,
        torch.from_numpy(region)[None, None].float(),
        opened.threshold,
        mask_from=mask_from,
    )
    return [f"{opened.name}: {answer.message}", "Computed now, by the run's model."]


def _predicted_region(opened: OpenedRun, row: int) -> NDArray[np.uint8]:
    """Where the model itself sees a defect, for a picture without an annotation; may be empty."""
    height, width = opened.run.settings.image_size
    if "localization" not in opened.maps:
        return np.zeros((height, width), dtype=np.uint8)
    localization = np.asarray(opened.maps["localization"][row], dtype=np.float32)
    full = cv2.resize(localization, (width, height))
    return np.asarray(full >= PREDICTED_FROM, dtype=np.uint8)


def _read_stored(opened: OpenedRun, row: int) -> list[str]:
    record = opened.table.iloc[row]
    without, control = record.get("cf_probability"), record.get("cf_control_probability")
    before = float(record["probability"])
    if without is None or pd.isna(without):
        return [f"{opened.name}: the evaluation stored no answer for this picture (it has no annotated defect)."]
    turns = "turns to normal" if before >= opened.threshold > float(without) else "does not turn"
    change = f"without the annotated defect p(defect) goes from {before:.2f} to {without:.2f}"
    words = f"{opened.name}: {change}; the verdict {turns}."
    if control is None or pd.isna(control):
        return [words, "There was no room for a control. From the stored evaluation."]
    return [
        words,
        f"Control, the same mask off the defect: {control:.2f}; "
        f"the verdict {'turns too: the flip proves nothing' if before >= opened.threshold > control else 'stays'}. "
        "From the stored evaluation.",
    ]
