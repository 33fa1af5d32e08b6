"""Would the model still say so without the defect? The question, its control, and a sentence that claims no more.

Suppressing any region disturbs the features. So the same mask is moved off the defect and suppressed there too: a
verdict that turns either way says nothing about the defect.

Sizes: B pictures, H x W network input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gainmtl_lib.models.counterfactual import as_at_inference, control_masks
from gainmtl_lib.models.gain_mtl import GAINMTLModel
from gainmtl_lib.models.weights import ModelError

MaskFrom = Literal["annotation", "localization"]
CLASS_NAMES = ("normal", "defective")
REGION = {"annotation": "the annotated defect", "localization": "the region that the model itself localizes"}


class NoCounterfactual(ModelError):
    """The question cannot be asked; the message says why in a sentence."""


@dataclass(frozen=True)
class CounterfactualAnswer:
    """What suppressing the defect does to one verdict. Probabilities are of the class defective.

    Attributes:
        probability: of the picture as it is.
        without_defect: with the features of the defect suppressed.
        control: with the same mask moved off the defect; None where it has no place to move to.
        flips: whether the verdict turns from defective to normal without the defect.
        control_flips: whether it does so in the control; None without one.
        mask_from: where the mask came from.
        message: all of this as one sentence.
    """

    probability: float
    without_defect: float
    control: float | None
    flips: bool
    control_flips: bool | None
    mask_from: MaskFrom
    message: str


def ask_counterfactual(
    model: GAINMTLModel,
    image: Tensor,
    mask: Tensor,
    threshold: float,
    *,
    mask_from: MaskFrom = "annotation",
    class_names: Sequence[str] = CLASS_NAMES,
    inside: Tensor | None = None,
) -> CounterfactualAnswer:
    """Ask one picture.

    Args:
        model: any mode, any device; both are left as they are.
        image: RGB in [0, 1], (1, 3, H, W).
        mask: where the defect is, (1, 1, H, W).
        threshold: probability from which a picture is called defective.
        mask_from: said in the message.
        class_names: of normal and defective, for the message.
        inside: where the picture lies in the input, bool (1, 1, H, W), see `control_masks`; None is everywhere.

    Raises:
        NoCounterfactual: the model has no counterfactual path, or the mask is empty.
    """
    return ask_counterfactuals(
        model, image, mask, threshold, mask_from=[mask_from], class_names=class_names, inside=inside
    )[0]


@torch.inference_mode()
def ask_counterfactuals(
    model: GAINMTLModel,
    images: Tensor,
    masks: Tensor,
    threshold: float,
    *,
    mask_from: Sequence[MaskFrom],
    class_names: Sequence[str] = CLASS_NAMES,
    inside: Tensor | None = None,
) -> list[CounterfactualAnswer]:
    """`ask_counterfactual` for several pictures at once, (B, 3, H, W) and (B, 1, H, W)."""
    if reason := why_no_path(model):
        raise NoCounterfactual(reason)
    device = next(model.parameters()).device
    images, masks = images.to(device), masks.to(device)
    if not (masks > 0.5).flatten(1).any(1).all():
        raise NoCounterfactual("the mask is empty: there is no defect to suppress")
    # Two cells clear of the defect, because suppression reaches one cell beyond its mask.
    moved, placed = control_masks(masks, margin=2 * model.map_stride, inside=inside)
    with as_at_inference(model):
        output = model(images, masks)
        control_logits = model(images, moved).cf_logits
    before, after, control = (_defect_probability(x) for x in (output.logits, output.cf_logits, control_logits))
    return [
        answer(before[i], after[i], control[i] if placed[i] else None, threshold, mask_from[i], class_names)
        for i in range(len(images))
    ]


def why_no_path(model: GAINMTLModel) -> str | None:
    """Why the question cannot be put to a model at all; None where it can."""
    if model.counterfactual is not None:
        return None
    if model.strategy < "S5":
        return f"strategy {model.strategy} has no counterfactual path to ask; S5 to S7 have one"
    return f"this {model.strategy} model has no counterfactual path: it was built with use_counterfactual false"


def answer(
    before: float,
    after: float,
    control: float | None,
    threshold: float,
    mask_from: MaskFrom = "annotation",
    names: Sequence[str] = CLASS_NAMES,
) -> CounterfactualAnswer:
    """What three defect probabilities say: of the picture, without the defect, and of the control if there was one."""
    called = before >= threshold
    flips = called and after < threshold
    control_flips = None if control is None else called and control < threshold
    if called:
        message = _sentence(before, after, control, flips, control_flips, REGION[mask_from], names)
    else:
        message = f"The verdict is {names[0]} already ({before:.2f}), so there is no {names[1]} verdict to question."
    return CounterfactualAnswer(before, after, control, flips, control_flips, mask_from, message)


def _sentence(
    before: float,
    after: float,
    control: float | None,
    flips: bool,
    control_flips: bool | None,
    region: str,
    names: Sequence[str],
) -> str:
    verdict = f"turns to {names[0]}" if flips else f"stays {names[1]}"
    claim = f"Without {region} the verdict {verdict} ({before:.2f} → {after:.2f})"
    if control is None:
        return claim + (
            ", but the mask has no room to move off it: without a control the flip proves little."
            if flips
            else ", so the decision does not hang on this region alone; there was no room for a control."
        )
    elsewhere = f"with an equal area suppressed elsewhere ({control:.2f})"
    if flips and control_flips:
        return f"{claim}, but so it does {elsewhere}: the flip proves nothing."
    if flips:
        return f"{claim}, but not {elsewhere}: the decision rests on this region."
    if control_flips:
        return f"{claim}, yet turns {elsewhere}: the decision rests on something else."
    return f"{claim}, as {elsewhere}: the decision does not hang on this region alone."


def _defect_probability(logits: Tensor | None) -> list[float]:
    assert logits is not None  # the path was asked for
    return logits.float().softmax(dim=1)[:, 1].tolist()
