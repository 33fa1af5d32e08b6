"""What is shown and said of one picture: the picture, a run's map over it, and the verdict without the defect.

Sizes: H x W network input, h x w map cells.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from safetensors import SafetensorError

from gainmtl_lib.backbone import ModelError
from gainmtl_lib.browser.library import GAIN_MTL, MAPS, OpenedRun
from gainmtl_lib.explain import DefectExplainer, Frame, answer
from gainmtl_lib.figures import Shown, encode, enlarged_share, overlay, with_band
from gainmtl_lib.metrics import MapScale
from gainmtl_lib.readers import DataError
from gainmtl_lib.runs import Run


class Look(NamedTuple):
    """How maps are shown."""

    kind: str = GAIN_MTL.main  # one of `MAPS`; a run shows its own main map in place of the other system's; "" for none
    absolute: bool = True  # on the scale fixed on validation; otherwise stretched per image
    strength: float = 0.7  # of the overlay
    level: float | None = 0.5  # of the shown scale, where a contour is drawn
    outline: bool = True  # of the annotated defect


Panel = tuple[bytes, list[str]]
"""A drawing as JPEG, and what to say below it: short sentences."""


def plain_panel(shown: Shown, *, outline: bool) -> Panel:
    """The picture in its own colours."""
    text = "picture not found" if shown.problem else "picture"
    if outline and shown.mask is not None:
        text += " · outline: annotated defect"
    drawn = overlay(shown.pixels, mask=shown.mask if outline else None)
    return encode(with_band(drawn, text, bar=False)), [shown.problem] if shown.problem else []


def map_panel(opened: OpenedRun, row: int, shown: Shown, look: Look) -> Panel:
    """The picture with a run's map over it; a map that the run lacks is said instead."""
    mask = shown.mask if look.outline else None
    kind = opened.own_kind(look.kind)
    if kind not in opened.maps:
        drawn = with_band(overlay(shown.pixels, mask=mask), f"{opened.name} · no map", bar=False)
        return encode(drawn), [opened.why_no_map(kind)] if kind else []
    values = np.asarray(opened.maps[kind][row], dtype=np.float32)  # (h, w)
    scale = opened.scales.get(kind) if look.absolute else None
    size = opened.run.settings.image_size
    heat = Frame.of(shown.size, size, opened.run.settings.resize).crop(enlarged_share(values, scale, size))
    drawn = overlay(shown.pixels, heat, strength=look.strength, level=look.level, mask=mask)
    nothing = scale is not None and not bool(scale.finds(values))
    text = f"{MAPS[kind].short} · {'absolute' if scale else 'per-image'} scale" + " · nothing found" * nothing
    return encode(with_band(drawn, text, bar=True)), _words(look, scale, heat, nothing)


def _words(look: Look, scale: MapScale | None, heat: NDArray, nothing: bool) -> list[str]:
    words = []
    if scale is None and look.absolute:
        words.append("No absolute scale for this map (it needs a validation split); shown per image.")
    if scale is not None and nothing:
        words.append(f"Nothing found: the map stays below {scale.floor:z.2f}, where maps of normal parts end.")
    if scale is not None and not scale.separates:
        words.append("This map peaks no higher on defects than on normal parts: it shows only what exceeds the floor.")
    if look.level is not None and not nothing:
        share, above = (heat >= look.level).mean(), f"at or above {look.level:.2f}"
        covered = "Less than 0.1%" if share < 0.001 else f"{share:.1%}"
        words.append(f"{covered} of the picture is {above} (white line)." if share else f"Nothing is {above}.")
    return words


# --- Would the verdict stand without the defect?


def ask(opened: OpenedRun, row: int) -> list[str]:
    """The answer in sentences, from the run's model where it is at hand, else from the stored evaluation."""
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
    if not (run.folder / "model.safetensors").is_file():
        raise FileNotFoundError(f"{run.folder} holds no model.safetensors")
    image, mask = opened.files(row)
    if image is None:
        raise FileNotFoundError(f"the folder {opened.root} of the pictures is missing")
    explained = DefectExplainer.from_run(run).explain(image, mask)
    asked = explained["counterfactual"]
    if asked is not None:
        return [f"{opened.name}: {asked['message']}", "Computed now, by the run's model."]
    said = explained.get("counterfactual_missing") or "the verdict is normal, so there is no defect to take away"
    return [f"{opened.name}: {said}."]


def _read_stored(opened: OpenedRun, row: int) -> list[str]:
    record = opened.table.iloc[row]
    without, control = record.get("cf_probability"), record.get("cf_control_probability")
    if pd.isna(without):
        return [f"{opened.name}: the evaluation stored no answer for this picture (it has no annotated defect)."]
    moved = None if pd.isna(control) else float(control)
    stored = answer(float(record["probability"]), float(without), moved, opened.threshold)
    return [f"{opened.name}: {stored['message']}", "From the stored evaluation."]
