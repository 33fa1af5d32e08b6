"""What is said of one picture: the verdict, its maps, the defect's place, the counterfactual.

Sizes: H x W network input, h x w map cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gainmtl_lib.evaluation.predict import stored_maps
from gainmtl_lib.explain.regions import THRESHOLD, Frame, defect_area, defect_boxes, marked
from gainmtl_lib.map_scale import MapScale
from gainmtl_lib.metrics import cam_iou, energy_inside, grid_iou, point_game
from gainmtl_lib.records import GainOutput

SCORES = ("cam_iou", "grid_iou", "point_game", "energy_inside")
PLACE = ("localization", "box", "boxes", "area")


class NotExplained(KeyError):
    """Something that this explanation does not hold; the message says why."""

    def __str__(self) -> str:
        return str(self.args[0])


class Explanation(dict[str, Any]):
    """Everything said of one picture, by name. What has no answer is absent, never NaN.

    ``"attention" in explanation`` tells whether it is there and ``get`` gives a default; asking for what is not
    there raises `NotExplained` with the reason.

    Attributes:
        frame: where the picture lies in the network's input.
        reasons: why names are absent.
        stored: the maps as an evaluation keeps them, which is what the absolute scales are of; name to (h, w).
        defect: what the model localizes, bool (H, W); all False where it localizes nothing.
    """

    def __init__(self, values: Mapping[str, Any], *, frame: Frame, reasons: Mapping[str, str]) -> None:
        super().__init__(values)
        self.frame, self.reasons = frame, dict(reasons)
        self.stored: dict[str, NDArray] = {}
        self.defect: NDArray[np.bool_] = np.zeros(values["image"].shape[:2], dtype=np.bool_)

    def __missing__(self, key: str) -> Any:
        reason = self.reasons.get(key, f"there are {', '.join(self)}")
        raise NotExplained(f"no '{key}' in this explanation: {reason}")


@dataclass(frozen=True)
class Ready:
    """One picture at the network's size: image uint8 (H, W, 3), mask bool (H, W) or None."""

    image: NDArray[np.uint8]
    mask: NDArray[np.bool_] | None
    frame: Frame


def describe(
    output: GainOutput,
    ready: Ready,
    *,
    strategy: str,
    threshold: float,
    scales: Mapping[str, MapScale],
    class_names: Sequence[str],
) -> Explanation:
    """All but the counterfactual, which is None until it is asked for.

    Args:
        output: of this one picture, B = 1.
        ready: the picture.
        strategy: names the reason of what is missing.
        threshold: defect probability from which the verdict is defective.
        scales: absolute scales by map, as far as known.
        class_names: of normal and defective.
    """
    probability = float(output.logits.float().softmax(dim=1)[0, 1])
    prediction = int(probability >= threshold)
    values: dict[str, Any] = {
        "prediction": prediction,
        "prediction_name": class_names[prediction],
        "confidence": probability if prediction else 1 - probability,
        "probability": probability,
        "threshold": threshold,
        "image": ready.image,
        "counterfactual": None,
        **_maps(output),
    }
    explanation = Explanation(values, frame=ready.frame, reasons=_reasons(strategy))
    explanation.stored = {name: value[0] for name, value in stored_maps(output).items()}
    known = {name: scale for name, scale in scales.items() if name in explanation.stored}
    if known:
        explanation["found"] = {name: bool(scale.finds(explanation.stored[name])) for name, scale in known.items()}
    if "localization" in explanation:
        explanation |= _place(explanation, scales.get("localization"))
    if ready.mask is not None:
        explanation["mask"] = ready.mask
        explanation |= _scores(output.cam, ready.mask)
    return explanation


def _maps(output: GainOutput) -> dict[str, NDArray[np.float32]]:
    maps = {"cam": output.cam, "attention": output.effective_attention, "localization": output.localization_map}
    return {name: value[0, 0].float().cpu().numpy().copy() for name, value in maps.items() if value is not None}


def _place(explanation: Explanation, scale: MapScale | None) -> dict[str, Any]:
    explanation.defect = _localized(explanation, scale)
    boxes = defect_boxes(explanation.defect, explanation.frame)
    area = defect_area(explanation.defect, explanation.frame)
    return {"box": boxes[0] if boxes else None, "boxes": boxes, "area": area}


def _localized(explanation: Explanation, scale: MapScale | None) -> NDArray[np.bool_]:
    """The localization is taught on defective pictures only and may light up anywhere on others.

    So for a normal verdict only what exceeds the normal pictures of the validation counts.
    """
    localization, frame = explanation["localization"], explanation.frame
    if explanation["prediction"] == 1:
        return marked(localization, frame)
    if scale is None or not explanation["found"]["localization"]:
        return np.zeros_like(localization, dtype=np.bool_)
    return marked(localization, frame, threshold=max(THRESHOLD, scale.floor))


def _scores(cam: Tensor, mask: NDArray[np.bool_]) -> dict[str, float]:
    cam, masks = cam.float().cpu(), torch.from_numpy(mask)[None, None].float()
    grid = (cam.shape[-2], cam.shape[-1])
    scores = (cam_iou(cam, masks), grid_iou(masks, grid), point_game(cam, masks), energy_inside(cam, masks))
    return {name: float(score) for name, score in zip(SCORES, scores, strict=True)}


def _reasons(strategy: str) -> dict[str, str]:
    """Why a name may be absent; of names that are there it is never read."""
    reasons = {"attention": f"strategy {strategy} has no attention path; S3 to S7 have one"}
    reasons |= dict.fromkeys(PLACE, f"strategy {strategy} has no localization path; S4 to S7 have one")
    reasons |= dict.fromkeys((*SCORES, "mask"), "no mask was given, or it marks no pixel")
    reasons["found"] = "no absolute scale is known; DefectExplainer.from_run takes it from an evaluated run"
    reasons["counterfactual_missing"] = "the counterfactual is there, or the verdict is normal and asks for none"
    return reasons
