"""Any kind of picture, and any kind of mask, to pixels: files, PIL pictures, arrays and tensors, one or many.

What comes out is what a file with the same pixels would give, so that the kind of input never changes an answer.
Sizes: h x w the picture as it is given, C channels (1 grey, 3 RGB, 4 with an alpha channel, which is dropped).
"""

from __future__ import annotations

import copy
import logging
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import cv2
import matplotlib as mpl
import numpy as np
import torch
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image, ImageOps
from scipy import ndimage
from torch import Tensor

from gainmtl_lib.backbone import ModelError
from gainmtl_lib.evaluation import stored_maps
from gainmtl_lib.figures import draw_overlay, enlarged_share, save_figure
from gainmtl_lib.labels import Resize, inner_size, inside, resize_image, resize_mask, same_aspect
from gainmtl_lib.metrics import MapScale, cam_iou, energy_inside, grid_iou, point_game
from gainmtl_lib.model import OUTSIDE_SOURCES, GAINMTLModel, GainOutput, as_at_inference, control_masks
from gainmtl_lib.readers import (
    MASK_THRESHOLD,
    DataError,
    UnreadableError,
    mask_to_8_bit,
    read_image,
    read_mask_values,
    to_8_bit,
)
from gainmtl_lib.runs import Run

logger = logging.getLogger(__name__)

KINDS = "a path, a PIL picture, an array (h, w[, C]) or a tensor (C, h, w)"
OVERSHOOT = 1e-3
"""How far floats may leave [0, 1], as resizing makes them do."""


class Asked(NamedTuple):
    """One picture to be explained, its mask or None, and what messages call them."""

    image: Any
    mask: Any
    name: str
    mask_name: str


def pair(image: Any, mask: Any = None) -> tuple[list[Asked], bool]:
    """Pictures with their masks, and whether many were given.

    Raises:
        DataError: another number of masks than of pictures.
    """
    images = _many(image)
    if images is None:
        if isinstance(mask, list | tuple):
            raise DataError(f"mask: got a {type(mask).__name__} of {len(mask)} for one picture; expected one mask")
        return [Asked(image, mask, _name(image, "image"), _name(mask, "mask"))], False
    if mask is None:
        masks: list[Any] = [None] * len(images)
    elif isinstance(mask, list | tuple | np.ndarray | Tensor):
        masks = list(mask)
    else:
        raise DataError(f"mask: got one {type(mask).__name__} for {len(images)} pictures; give a list, None for none")
    if len(masks) != len(images):
        raise DataError(f"mask: got {len(masks)} masks for {len(images)} pictures; give one each, None where none is")
    return [
        Asked(one, of_it, _name(one, f"image[{i}]"), _name(of_it, f"mask[{i}]"))
        for i, (one, of_it) in enumerate(zip(images, masks))
    ], True


def read_picture(picture: Any, name: str = "image") -> NDArray[np.uint8]:
    """One picture as RGB uint8 (h, w, 3).

    Grey becomes three channels, alpha is dropped, orientation tags are followed. Integers of 16 bits are scaled
    as files are, by `to_8_bit`; floats are rounded to 8 bits, which is what the model was trained on.

    Args:
        picture: a path, a PIL picture, an array (h, w), (h, w, 1), (h, w, 3) or (h, w, 4), or a tensor (h, w) or
            (C, h, w); uint8, uint16 or float in [0, 1].
        name: what messages call it.

    Raises:
        DataError: it cannot be read, holds several pictures, or its shape or values are none of these.
    """
    if isinstance(picture, str | PathLike):
        _check_file(Path(picture))
        return read_image(Path(picture))
    if isinstance(picture, Image.Image):
        picture = _from_pil(picture, name)
    elif isinstance(picture, Tensor):
        picture = _from_tensor(picture, name)
    elif not isinstance(picture, np.ndarray):
        raise DataError(f"{name}: got a {type(picture).__name__}; expected {KINDS}, or a list of such")
    return _rgb(_eight_bit(_with_channels(picture, name), name))


def read_defect(mask: Any, picture_size: tuple[int, int], name: str = "mask") -> NDArray[np.bool_] | None:
    """Defect pixels of one mask, bool (h, w), in the mask's own size; None when it marks nothing.

    Values are those of a mask file, > 127 is defect; floats likewise with 0.5. Arrays and tensors may also hold
    just 0 and 1, or booleans.

    Args:
        mask: a path, a PIL picture, an array (h, w) or (h, w, 1), or a tensor (h, w) or (1, h, w).
        picture_size: (h, w) of the mask's picture.
        name: what messages call it.

    Raises:
        DataError: as for `read_picture`, or the mask has another aspect ratio than its picture.
    """
    values = _mask_values(mask, name)
    size = (values.shape[0], values.shape[1])
    if not same_aspect(size, picture_size):
        raise DataError(
            f"{name}: mask is {size[0]}x{size[1]} (height x width), its picture {picture_size[0]}x{picture_size[1]}; "
            "expected the same aspect ratio"
        )
    defect = values > MASK_THRESHOLD
    if values.any() and not defect.any():
        logger.warning("%s: no mask value exceeds %d; treated as no mask", name, MASK_THRESHOLD)
    return defect if defect.any() else None


def _many(image: Any) -> list[Any] | None:
    if isinstance(image, list | tuple):
        return list(image)
    if isinstance(image, np.ndarray | Tensor) and image.ndim == 4:
        return list(image)
    return None


def _name(given: Any, otherwise: str) -> str:
    return str(given) if isinstance(given, str | PathLike) else otherwise


def _check_file(path: Path) -> None:
    # What PIL cannot open, the decoder may: it is the one to complain.
    with suppress(OSError, SyntaxError, Image.DecompressionBombError), Image.open(path) as picture:
        _check_frames(picture, str(path))


def _check_frames(picture: Image.Image, name: str) -> None:
    frames = getattr(picture, "n_frames", 1)
    if frames > 1 and picture.format != "MPO":  # a photograph with a preview behind it
        raise UnreadableError(
            f"{name}: holds {frames} frames ({picture.format}); expected one picture: save the frame that is meant "
            "as a file of its own"
        )


def _from_pil(picture: Image.Image, name: str) -> NDArray:
    _check_frames(picture, name)
    try:
        upright = ImageOps.exif_transpose(picture)
    except (OSError, SyntaxError, ValueError) as error:
        raise UnreadableError(f"{name}: PIL cannot decode the picture: {error}") from None
    if upright.mode.startswith("I;16"):
        return np.asarray(upright).astype(np.uint16)
    if upright.mode == "I":  # 16-bit files in 32 bits
        return _as_16_bit(np.asarray(upright), name)
    if upright.mode == "F":
        return np.asarray(upright)
    return np.asarray(upright.convert("L" if upright.mode in ("1", "L", "LA") else "RGB"))


def _as_16_bit(pixels: NDArray, name: str) -> NDArray[np.uint16]:
    if pixels.size and (pixels.min() < 0 or pixels.max() > 65535):
        raise DataError(f"{name}: values from {pixels.min()} to {pixels.max()}; expected 8- or 16-bit pixels")
    return pixels.astype(np.uint16)


def _from_tensor(picture: Tensor, name: str) -> NDArray:
    if picture.ndim == 3 and picture.shape[0] not in (1, 3, 4):
        hint = "; that is the order of arrays: permute(2, 0, 1)" if picture.shape[2] in (1, 3, 4) else ""
        raise DataError(f"{name}: tensor has shape {tuple(picture.shape)}; expected (1, h, w) or (3, h, w){hint}")
    return _as_array(picture.permute(1, 2, 0) if picture.ndim == 3 else picture)


def _as_array(tensor: Tensor) -> NDArray:
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()  # NumPy has no bfloat16


def _with_channels(pixels: NDArray, name: str) -> NDArray:
    """To (h, w) or (h, w, 3), without alpha, in the machine's own byte order."""
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4)):
        hint = "; that is the order of tensors: transpose(1, 2, 0)" if pixels.shape[:1] in ((1,), (3,)) else ""
        expected = "(h, w), (h, w, 1), (h, w, 3) or (h, w, 4)"
        raise DataError(f"{name}: array has shape {pixels.shape}; expected {expected}{hint}")
    if not pixels.size:
        raise DataError(f"{name}: has shape {pixels.shape}, no pixels")
    if pixels.ndim == 3:
        pixels = pixels[..., 0] if pixels.shape[2] == 1 else pixels[..., :3]
    return np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("="))


def _eight_bit(
    pixels: NDArray, name: str, of_integers: Callable[[NDArray, str], NDArray[np.uint8]] = to_8_bit
) -> NDArray[np.uint8]:
    if pixels.dtype in (np.uint8, np.uint16):
        return of_integers(pixels, name)
    if pixels.dtype.kind != "f":
        raise DataError(f"{name}: pixels are {pixels.dtype}; expected uint8, uint16 or float in [0, 1]")
    pixels = pixels.astype(np.float64)
    if not np.isfinite(pixels).all():
        raise DataError(f"{name}: {int((~np.isfinite(pixels)).sum())} values are not finite; expected [0, 1]")
    low, high = pixels.min(), pixels.max()
    if low < -OVERSHOOT or high > 1 + OVERSHOOT:
        hint = "the model normalises by itself" if low < 0 else "divide by the full scale, or give integers"
        raise DataError(f"{name}: float values from {low:.4g} to {high:.4g}; expected [0, 1]: {hint}")
    return np.rint(pixels.clip(0, 1) * 255).astype(np.uint8)


def _rgb(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return pixels[..., None].repeat(3, axis=2) if pixels.ndim == 2 else pixels


def _mask_values(mask: Any, name: str) -> NDArray[np.uint8]:
    if isinstance(mask, str | PathLike):
        _check_file(Path(mask))
        return read_mask_values(Path(mask))
    if isinstance(mask, Image.Image):
        values = _from_pil(mask, name)
        return _eight_bit(values if values.ndim == 2 else cv2.cvtColor(values, cv2.COLOR_RGB2GRAY), name, mask_to_8_bit)
    if not isinstance(mask, np.ndarray | Tensor):
        raise DataError(f"{name}: got a {type(mask).__name__}; expected {KINDS}")
    values = _as_array(mask) if isinstance(mask, Tensor) else mask
    while values.ndim > 2 and 1 in (values.shape[0], values.shape[-1]):
        values = values[0] if values.shape[0] == 1 else values[..., 0]
    if values.ndim != 2 or not values.size:
        raise DataError(f"{name}: mask has shape {tuple(mask.shape)}; expected (h, w), (h, w, 1) or (1, h, w)")
    if values.dtype.kind in "biu" and values.min() >= 0 and values.max() <= 1:
        return np.where(values == 1, 255, 0).astype(np.uint8)
    return _eight_bit(_with_channels(values, name), name, mask_to_8_bit)


# --- Where the defect lies in the picture as it was given


THRESHOLD = 0.5
"""Probability from which a pixel counts as defect."""

Box = tuple[int, int, int, int]
"""x0, y0, x1, y1 in whole pixels; x1 and y1 stand just behind the last pixel."""


@dataclass(frozen=True)
class Frame:
    """Where a picture of (h, w) lies in the network's input.

    Attributes:
        picture: (h, w).
        rows: of the input that it takes.
        columns: likewise.
    """

    picture: tuple[int, int]
    rows: slice
    columns: slice

    @classmethod
    def of(cls, picture: tuple[int, int], size: tuple[int, int], resize: Resize) -> Frame:
        """The frame of a picture (h, w) in an input of `size` (H, W)."""
        return cls(picture, *inside(inner_size(picture, size, resize), size))

    def crop(self, plane: NDArray) -> NDArray:
        """A map (H, W) without the bars beside the picture."""
        return plane[self.rows, self.columns]

    def plane(self, size: tuple[int, int]) -> NDArray[np.bool_]:
        """True where the picture lies in an input of `size` (H, W), False in the bars beside it."""
        plane = np.zeros(size, dtype=np.bool_)
        plane[self.rows, self.columns] = True
        return plane

    def to_picture(self, box: Box) -> Box:
        """A box of `crop`'s pixels in the given picture's pixels, rounded outwards."""
        (h, w), (height, width) = self.picture, self._inner
        x0, y0, x1, y1 = box
        return x0 * w // width, y0 * h // height, -(-x1 * w // width), -(-y1 * h // height)

    def to_input(self, box: Box) -> tuple[float, float, float, float]:
        """A box of the given picture in the input's pixels, to be drawn."""
        (h, w), (height, width) = self.picture, self._inner
        x0, y0, x1, y1 = box
        left, top = self.columns.start, self.rows.start
        return left + x0 * width / w, top + y0 * height / h, left + x1 * width / w, top + y1 * height / h

    @property
    def _inner(self) -> tuple[int, int]:
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start


def marked(localization: NDArray, frame: Frame, *, threshold: float = THRESHOLD) -> NDArray[np.bool_]:
    """Pixels of the input that count as defect, bool (H, W); the bars beside the picture hold none.

    Args:
        localization: probabilities, (H, W).
        frame: of the picture.
        threshold: from where a pixel counts.
    """
    defect = np.zeros(localization.shape, dtype=np.bool_)
    defect[frame.rows, frame.columns] = frame.crop(localization) >= threshold
    return defect


def defect_boxes(defect: NDArray[np.bool_], frame: Frame) -> list[Box]:
    """One box around each connected region of `marked` pixels (diagonals connect), the largest region first.

    In pixels of the given picture.
    """
    found = ndimage.label(frame.crop(defect), structure=np.ones((3, 3)))
    labels, _ = cast("tuple[NDArray[np.int32], int]", found)
    sizes = np.bincount(labels.ravel())[1:]
    places = ndimage.find_objects(labels)
    rows_and_columns = [places[int(index)] for index in np.argsort(-sizes, kind="stable")]
    return [frame.to_picture((x.start, y.start, x.stop, y.stop)) for y, x in rows_and_columns]


def defect_area(defect: NDArray[np.bool_], frame: Frame) -> float:
    """Share of the picture that is `marked`, in [0, 1]."""
    return float(frame.crop(defect).mean())


# --- Would the model still say so without the defect? The question, its control, and a sentence that clai


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


# --- What is said of one picture


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


# --- Which texts the installed fonts can draw


PREFERRED = ("Noto Sans CJK KR", "Noto Sans KR", "NanumGothic", "Malgun Gothic", "Apple SD Gothic Neo")
"""Taken before any other font that has the characters."""

PLACEHOLDERS = ("LastResort", "AdobeBlank")
"""Fonts that claim every character and draw boxes."""


def drawable_names(names: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """Class names as a figure can show them, and the font families to draw them with.

    Where no installed font has their characters the names are English, with a warning.
    """
    families = fonts_for("".join(names))
    if families is not None:
        return tuple(names), families
    logger.warning(
        "no installed font can draw %s; figures say %s instead (install one, such as fonts-nanum)",
        " and ".join(f"'{name}'" for name in names),
        " and ".join(f"'{name}'" for name in CLASS_NAMES),
    )
    return CLASS_NAMES, list(mpl.rcParams["font.family"])


def drawable(text: str) -> str:
    """The text with a question mark for each character that no installed font can draw."""
    return text if fonts_for(text) is not None else "".join(c if fonts_for(c) is not None else "?" for c in text)


def fonts_for(text: str) -> list[str] | None:
    """Families that draw a text together, the default ones first; None where the installed fonts lack a character."""
    default = list(mpl.rcParams["font.family"])
    missing = frozenset(text) - _characters(font_manager.findfont(font_manager.FontProperties(family=default)))
    if not missing:
        return default
    found = _family_with(missing)
    return None if found is None else [*default, found]


@cache
def _characters(path: str) -> frozenset[str]:
    return frozenset(map(chr, font_manager.get_font(path).get_charmap()))


@cache
def _family_with(characters: frozenset[str]) -> str | None:
    """An installed family that has all of these characters. Looking through all fonts takes a moment: once each."""
    for entry in sorted(font_manager.fontManager.ttflist, key=_preference):
        if entry.name.replace(" ", "").lstrip(".").startswith(PLACEHOLDERS):
            continue
        try:
            if characters <= _characters(entry.fname):
                return entry.name
        except (OSError, RuntimeError):  # a font that is gone or broken
            continue
    return None


def _preference(entry: font_manager.FontEntry) -> tuple[int, str]:
    return PREFERRED.index(entry.name) if entry.name in PREFERRED else len(PREFERRED), entry.name


# --- One explanation as a figure


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
        axis.set_aspect("auto")
        axis.title.set_fontsize(9)
    _write(figure, explanation, title, lines)
    return figure


def _ratio(explanation: Explanation) -> float:
    """Height by width at which pictures are shown: the given picture's, unless it is a ribbon."""
    height, width = explanation["image"].shape[:2] if _has_bars(explanation) else explanation.frame.picture
    return float(np.clip(height / width, 0.4, 2.0))


def _has_bars(explanation: Explanation) -> bool:
    return explanation.frame.crop(explanation["image"]).shape != explanation["image"].shape


def _draw_picture(axis: Axes, explanation: Explanation, scale: MapScale | None) -> None:
    draw_overlay(axis, explanation["image"], mask=explanation.get("mask"))
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
    image, mask = explanation["image"], explanation.get("mask")
    if scale is not None:
        draw_overlay(axis, image, enlarged_share(explanation.stored[name], scale, image.shape[:2]), mask)
        limits = f"{scale.floor:.2f} to {scale.ceiling:.2f}" if scale.separates else f"above {scale.floor:.2f} or not"
        axis.set_title(f"{HEADINGS[name]}\nabsolute, {limits}")
        if not explanation["found"][name]:
            _note(axis, "nothing found")
    elif name == "cam":
        draw_overlay(axis, np.full_like(image, 255), mask=mask)
        axis.set_title(f"{HEADINGS[name]}\nno absolute scale")
        _note(axis, "unknown", color="0.4")
    else:
        draw_overlay(axis, image, explanation[name], mask)
        axis.set_title(f"{HEADINGS[name]}\n0 to 1, no absolute scale")


def _draw_per_image(axis: Axes, explanation: Explanation, name: str) -> None:
    values = explanation[name]
    image = explanation["image"]
    draw_overlay(axis, image, enlarged_share(values, None, image.shape[:2]), explanation.get("mask"))
    axis.set_title(f"{HEADINGS[name]}\nper image, {values.min():.2f} to {values.max():.2f}")


def _note(axis: Axes, text: str, color: str = "white") -> None:
    axis.text(0.5, 0.5, text, transform=axis.transAxes, ha="center", va="center", color=color, fontsize=11)


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


# --- One picture, or many, explained


FIGURE_FORMATS = (".png", ".jpg", ".jpeg")
NOTHING_TO_SUPPRESS = "the localization marks nothing and no mask was given, so there is nothing to suppress"


class DefectExplainer:
    """Explains the decisions of one model.

    Args:
        model: its device is where the work is done; device and mode are left as they are.
        threshold: defect probability from which a picture is called defective.
        scales: the absolute scale of each map, ``cam``, ``attention``, ``localization``, as far as known.
        image_size: network input (H, W), that of the training.
        resize: squash or letterbox, that of the training.
        class_names: of normal and defective, in any language.
        batch_size: pictures in memory at a time.

    Raises:
        ValueError: a threshold outside [0, 1], an unknown `resize`, or not two different class names.
    """

    def __init__(
        self,
        model: GAINMTLModel,
        *,
        threshold: float = 0.5,
        scales: Mapping[str, MapScale] | None = None,
        image_size: tuple[int, int] = (512, 512),
        resize: Resize = "squash",
        class_names: Sequence[str] = CLASS_NAMES,
        batch_size: int = 16,
    ) -> None:
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold must be a probability in [0, 1], got {threshold}")
        if resize not in ("squash", "letterbox"):
            raise ValueError(f"resize must be squash or letterbox, got '{resize}'")
        if isinstance(class_names, str) or len(set(class_names)) != 2 or len(class_names) != 2:
            raise ValueError(f"class_names must be two different names, normal first, got {class_names!r}")
        self.model, self.threshold, self.scales = model, float(threshold), dict(scales or {})
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.resize: Resize = resize
        self.class_names, self.batch_size = tuple(class_names), max(1, batch_size)

    @classmethod
    def from_run(cls, run: Run, *, class_names: Sequence[str] = CLASS_NAMES) -> DefectExplainer:
        """With the run's best model, input size, threshold and absolute scales.

        A run that was not evaluated has neither of the last two: 0.5 is taken and maps are shown per image only.
        """
        metrics = run.metrics if run.is_evaluated else {}
        if not metrics:
            logger.warning("%s is not evaluated: the threshold is 0.5 and no map has an absolute scale", run.folder)
        return cls(
            run.model,
            threshold=metrics.get("threshold", 0.5),
            scales={name: MapScale(**scale) for name, scale in metrics.get("map_scales", {}).items()},
            image_size=run.settings.image_size,
            resize=run.settings.resize,
            class_names=class_names,
        )

    def explain(self, image: Any, mask: Any = None) -> Any:
        """Everything the model says of a picture.

        Args:
            image: a path, a PIL picture, an array (h, w[, C]) or a tensor (C, h, w), uint8, uint16 or float in [0, 1]
                (see `read_picture`). Many at once as a list, a tensor (B, C, h, w) or an array (B, h, w, C).
            mask: where the defect is, likewise (see `read_defect`); for many a list with None where there is none.

        Returns:
            An `Explanation`; for many a list of them, also where many is one. Keys that are always there:

            - ``prediction`` (0 normal, 1 defective), ``prediction_name``, ``confidence`` (probability of the predicted
              class), ``probability`` (of defective), ``threshold``;
            - ``image``, uint8 (H, W, 3) as the network saw it, and ``cam``, float32 (h, w), of the deciding head;
            - ``counterfactual``: for a defective verdict the fields of `CounterfactualAnswer`, None for a normal one.
              None too where it cannot be asked; then ``counterfactual_missing`` says why in a sentence.

            Keys that are there where they have an answer; asking for one that has none raises `NotExplained`:

            - ``attention``, float32 (h, w), what gates the features, from S3 on;
            - from S4 on ``localization``, float32 (H, W), ``boxes`` in pixels of the given picture, one
              (x0, y0, x1, y1) for each region at or above 0.5, ``box``, that of the largest, None without any, and
              ``area``, the regions' share of the picture. The localization is taught on defective pictures only: for a
              normal verdict just what exceeds the floor of its absolute scale counts, nothing where that is unknown;
            - ``found``, for each map with an absolute scale, whether it finds anything;
            - with a mask that marks something ``mask``, bool (H, W), ``cam_iou``, ``grid_iou`` (what the mask itself
              reaches on the CAM's grid), ``point_game`` and ``energy_inside``.

        Raises:
            DataError: a picture or a mask that cannot be used; names it, what was found and what was expected.
            ModelError: an S6 model whose masks come from outside.
        """
        asked, many = pair(image, mask)
        explanations = list(_raising(self._explained(asked)))
        return explanations if many else explanations[0]

    def stream(self, images: Sequence[Any], masks: Sequence[Any] | None = None) -> Iterator[Explanation]:
        """`explain` for many pictures, one explanation after the other, so that they need not fit into memory."""
        return _raising(self.attempts(images, masks))

    def attempts(self, images: Sequence[Any], masks: Sequence[Any] | None = None) -> Iterator[Explanation | DataError]:
        """`stream` that goes on behind a picture which cannot be used, and gives its error in its place."""
        asked, _ = pair(list(images), masks)
        return self._explained(asked)

    def visualize(self, image: Any, mask: Any = None, save_path: str | Path | None = None) -> Figure:
        """One picture's explanation as a figure, see `figure_of`.

        Args:
            image: one picture, see `explain`.
            mask: of the picture.
            save_path: where to write the figure, atomically, .png or .jpg.

        Raises:
            DataError: as for `explain`, or many pictures were given.
            ValueError: another format.
        """
        _check_format(save_path)
        asked, many = pair(image, mask)
        if many and len(asked) != 1:
            raise DataError(f"visualize draws one picture, got {len(asked)}; call it for each")
        (explanation,) = _raising(self._explained(asked))
        title = Path(asked[0].name).name if asked[0].name == str(asked[0].image) else ""
        return self.figure_of(explanation, title=title, save_path=save_path)

    def figure_of(self, explanation: Explanation, *, title: str = "", save_path: str | Path | None = None) -> Figure:
        """An explanation as a figure: verdict, box, each map on both scales, the counterfactual. Nothing is computed.

        Class names that no installed font can draw fall back to English, with a warning.

        Args:
            explanation: of this explainer.
            title: what the picture is called.
            save_path: where to write the figure, atomically, .png or .jpg.

        Raises:
            ValueError: another format.
        """
        _check_format(save_path)
        names, families = drawable_names(self.class_names)
        shown = explanation if names == self.class_names else _renamed(explanation, names)
        title = drawable(title)
        with mpl.rc_context({"font.family": families}):
            figure = verdict_figure(shown, scales=self.scales, class_names=names, title=title)
        return figure if save_path is None else save_figure(figure, Path(save_path))

    def _explained(self, asked: Sequence[Asked]) -> Iterator[Explanation | DataError]:
        if self.model.strategy == "S6" and self.model.mask_source in OUTSIDE_SOURCES:
            raise ModelError(
                f"mask_source '{self.model.mask_source}' needs a mask from outside for every picture, which cannot be "
                "had here; to explain what the model says without, take 'localization' or 'none': set "
                "model.mask_source, or give gainmtl explain --mask-source"
            )
        for start in range(0, len(asked), self.batch_size):
            ready = [self._ready(one) for one in asked[start : start + self.batch_size]]
            explained = iter(self._explain_batch([one for one in ready if isinstance(one, Ready)]))
            yield from (next(explained) if isinstance(one, Ready) else one for one in ready)

    def _ready(self, one: Asked) -> Ready | DataError:
        try:
            return self._read(one)
        except DataError as error:
            return error

    def _read(self, one: Asked) -> Ready:
        pixels = read_picture(one.image, one.name)
        size = (pixels.shape[0], pixels.shape[1])
        defect = None if one.mask is None else read_defect(one.mask, size, one.mask_name)
        if defect is not None:
            defect = resize_mask(defect, self.image_size, self.resize, image_size=size)
        frame = Frame.of(size, self.image_size, self.resize)
        return Ready(resize_image(pixels, self.image_size, self.resize), defect, frame)

    def _explain_batch(self, ready: Sequence[Ready]) -> list[Explanation]:
        if not ready:
            return []
        device = next(self.model.parameters()).device
        pixels = torch.from_numpy(np.stack([one.image for one in ready])).permute(0, 3, 1, 2)
        images = pixels.to(device, torch.float32).div_(255)  # (B, 3, H, W)
        with torch.inference_mode(), as_at_inference(self.model):
            output = self.model(images)
        explanations = [
            describe(
                _one(output, index),
                of_it,
                strategy=self.model.strategy,
                threshold=self.threshold,
                scales=self.scales,
                class_names=self.class_names,
            )
            for index, of_it in enumerate(ready)
        ]
        self._question(images, explanations)
        return explanations

    def _question(self, images: Tensor, explanations: Sequence[Explanation]) -> None:
        """Ask the defective verdicts for their counterfactual, all at once."""
        rows, masks, places, sources = [], [], [], []
        for row, explanation in enumerate(explanations):
            if explanation["prediction"] == 0:
                continue
            mask, source = _suppressed(explanation)
            reason = why_no_path(self.model) or (None if mask.any() else NOTHING_TO_SUPPRESS)
            if reason is not None:
                explanation["counterfactual_missing"] = reason
                continue
            rows.append(row)
            masks.append(torch.from_numpy(mask).float())
            places.append(torch.from_numpy(explanation.frame.plane(self.image_size)))
            sources.append(source)
        if rows:
            answers = ask_counterfactuals(
                self.model,
                images[rows],
                torch.stack(masks)[:, None],  # (b, 1, H, W)
                self.threshold,
                mask_from=sources,
                class_names=self.class_names,
                inside=torch.stack(places)[:, None],
            )
            for row, answered in zip(rows, answers, strict=True):
                explanations[row]["counterfactual"] = asdict(answered)


def _raising(explained: Iterator[Explanation | DataError]) -> Iterator[Explanation]:
    for one in explained:
        if isinstance(one, DataError):
            raise one
        yield one


def _check_format(save_path: str | Path | None) -> None:
    if save_path is not None and Path(save_path).suffix.lower() not in FIGURE_FORMATS:
        raise ValueError(f"save_path must end in {', '.join(FIGURE_FORMATS)}, got '{save_path}'")


def _renamed(explanation: Explanation, names: Sequence[str]) -> Explanation:
    """The same explanation in other class names."""
    renamed = copy.copy(explanation)
    renamed["prediction_name"] = names[explanation["prediction"]]
    asked = explanation["counterfactual"]
    if asked is not None:
        probabilities = asked["probability"], asked["without_defect"], asked["control"]
        renamed["counterfactual"] = asdict(answer(*probabilities, explanation["threshold"], asked["mask_from"], names))
    return renamed


def _suppressed(explanation: Explanation) -> tuple[NDArray[np.bool_], MaskFrom]:
    """The annotated defect, else what the model localizes; all False where there is neither."""
    annotated = "mask" in explanation
    return (explanation["mask"], "annotation") if annotated else (explanation.defect, "localization")


def _one(output: GainOutput, row: int) -> GainOutput:
    """The output of one picture of a batch, on the CPU."""
    values = {name: output[name] for name in output.keys()}  # noqa: SIM118  # a record, not a dict
    own: dict[str, Any] = {
        name: None if value is None else value[row : row + 1].cpu() for name, value in values.items()
    }
    return GainOutput(**own)
