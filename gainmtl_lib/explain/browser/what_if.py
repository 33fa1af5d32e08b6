"""Would the verdict stand without the defect? Asked of the run's model where it is at hand, else of the evaluation.

Sizes: H x W network input, h x w the picture on disk.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError

from gainmtl_lib.data.findings import DataError
from gainmtl_lib.data.images import read_image
from gainmtl_lib.data.loading import load_picture
from gainmtl_lib.explain.drawing import fitted
from gainmtl_lib.explain.opened import OpenedRun
from gainmtl_lib.explain.regions import Frame, marked
from gainmtl_lib.explain.suppression import answer, ask_counterfactual
from gainmtl_lib.models.gain_mtl import OUTSIDE_SOURCES
from gainmtl_lib.models.weights import ModelError
from gainmtl_lib.runs import Run


def ask(opened: OpenedRun, row: int) -> list[str]:
    """The answer in sentences, the last of which says where it comes from."""
    if not isinstance(opened.run, Run):
        return [f"{opened.name}: this system has no counterfactual path; S5 to S7 of GAIN-MTL have one."]
    settings = opened.run.settings
    if settings.strategy < "S5":
        return [f"{opened.name}: strategy {settings.strategy} has no counterfactual path; S5 to S7 have one."]
    if not settings.use_counterfactual:
        return [f"{opened.name}: trained without a counterfactual path (use_counterfactual: false)."]
    try:
        return _ask_model(opened, opened.run, row)
    except (DataError, ModelError, OSError, RuntimeError, SafetensorError) as error:
        return [*_read_stored(opened, row), f"Not asked of the model: {error}."]


def _ask_model(opened: OpenedRun, run: Run, row: int) -> list[str]:
    if run.settings.strategy == "S6" and run.settings.mask_source in OUTSIDE_SOURCES:
        raise ModelError(f"its attention takes masks from outside ({run.settings.mask_source}), which are not at hand")
    if not (run.folder / "model.safetensors").is_file():
        raise FileNotFoundError(f"{run.folder} holds no model.safetensors")
    image, mask = opened.files(row)
    if image is None:
        raise FileNotFoundError(f"the folder {opened.root} of the pictures is missing")
    settings = run.settings
    picture = load_picture(
        str(image), None if mask is None else str(mask), image_size=settings.image_size, resize=settings.resize
    )
    mask_from = "annotation" if picture.mask is not None else "localization"
    region = picture.mask if picture.mask is not None else _localized(opened, row, image)
    if not region.any():
        return [f"{opened.name}: no defect is annotated or localized here, so there is nothing to take away."]
    asked = ask_counterfactual(
        run.model,
        torch.from_numpy(picture.image).permute(2, 0, 1)[None].float() / 255,
        torch.from_numpy(region)[None, None].float(),
        opened.threshold,
        mask_from=mask_from,
        inside=torch.from_numpy(_frame(opened, image).plane(settings.image_size))[None, None],
    )
    return [f"{opened.name}: {asked.message}", "Computed now, by the run's model."]


def _localized(opened: OpenedRun, row: int, image: Path) -> NDArray[np.bool_]:
    """Where the model itself sees a defect, for a picture without an annotation: bool (H, W), may be empty."""
    settings = opened.run.settings
    if "localization" not in opened.maps:
        return np.zeros(settings.image_size, dtype=np.bool_)
    values = np.asarray(opened.maps["localization"][row], dtype=np.float32)
    return marked(fitted(values, settings.image_size), _frame(opened, image))


def _frame(opened: OpenedRun, image: Path) -> Frame:
    h, w = read_image(image).shape[:2]
    return Frame.of((h, w), opened.run.settings.image_size, opened.run.settings.resize)


def _read_stored(opened: OpenedRun, row: int) -> list[str]:
    record = opened.table.iloc[row]
    without, control = record.get("cf_probability"), record.get("cf_control_probability")
    if without is None or pd.isna(without):
        return [f"{opened.name}: the evaluation stored no answer for this picture (it has no annotated defect)."]
    moved = None if control is None or pd.isna(control) else float(control)
    stored = answer(float(record["probability"]), float(without), moved, opened.threshold)
    return [f"{opened.name}: {stored.message}", "From the stored evaluation."]
