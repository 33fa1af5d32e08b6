"""What a model says of any picture: verdict, maps, defect boxes, whether it would say so without the defect, a figure.

Sizes: B pictures, h x w a picture as it is given, H x W network input; maps have a size of their own.
"""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any

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
from gainmtl_lib.evaluation import output_maps
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

# --- Any kind of picture and mask to pixels: what comes out is what a file with the same pixels would give

KINDS = "a path, a PIL picture, an array (h, w[, C]) or a tensor (C, h, w)"
GREY = ("1", "L", "LA")
OVERSHOOT = 1e-3
"""How far floats may leave [0, 1], as resizing makes them do."""


def read_picture(picture: Any, name: str = "image") -> NDArray[np.uint8]:
    """One picture as RGB (h, w, 3): grey becomes three channels, alpha is dropped, orientation tags are followed.

    Args:
        picture: a path, a PIL picture, an array (h, w[, C]) or a tensor (h, w) or (C, h, w) of 1, 3 or 4 channels;
            8 bits, 16 bits, which are scaled as files are, or float in [0, 1]. Anything else is a `DataError`.
        name: what messages call it.
    """
    if isinstance(picture, str | PathLike):
        _check_file(picture)
        return read_image(Path(picture))
    pixels = _pixels(picture, name)
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    if pixels.ndim not in (2, 3) or channels not in (1, 3, 4) or not pixels.size:
        raise DataError(
            f"{name}: {type(picture).__name__} has shape {tuple(picture.shape)}; expected 1, 3 or 4 channels, first in "
            "a tensor, (C, h, w), last in an array, (h, w, C), or none, (h, w)"
        )
    values = _eight_bit(np.atleast_3d(pixels)[..., :3], name, to_8_bit).reshape(*pixels.shape[:2], -1)
    return np.repeat(values, 3 // values.shape[2], axis=2)


def read_defect(mask: Any, picture_size: tuple[int, int], name: str = "mask") -> NDArray[np.bool_] | None:
    """Defect pixels of one mask, bool (h, w), in the mask's own size; None when it marks nothing.

    Args:
        mask: as a picture, of one channel, > 127 is defect, of floats > 0.5; arrays and tensors may also hold just 0
            and 1, or booleans. Anything else is a `DataError`.
        picture_size: (h, w) of the mask's picture, which has the same aspect ratio.
        name: what messages call it.
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


def _mask_values(mask: Any, name: str) -> NDArray[np.uint8]:
    if isinstance(mask, str | PathLike):
        _check_file(mask)
        return read_mask_values(Path(mask))
    values, shape = _pixels(mask, name), getattr(mask, "shape", ())
    if isinstance(mask, Image.Image) and values.ndim == 3:
        values = cv2.cvtColor(values, cv2.COLOR_RGB2GRAY)
    values = np.squeeze(values)
    if values.ndim != 2 or not values.size:
        raise DataError(f"{name}: mask has shape {tuple(shape)}; expected (h, w), (h, w, 1) or (1, h, w)")
    if values.dtype.kind in "biu" and values.min() >= 0 and values.max() <= 1:
        return values.astype(np.uint8) * 255
    return _eight_bit(values, name, mask_to_8_bit)


def _pixels(given: Any, name: str) -> NDArray:
    """What PIL, NumPy or torch holds as an array with channels last, if it has any."""
    if isinstance(given, Image.Image):
        return _from_pil(given, name)
    if isinstance(given, Tensor):
        given = given.detach().cpu()
        pixels = (given.float() if given.dtype == torch.bfloat16 else given).numpy()  # NumPy has no bfloat16
        return np.moveaxis(pixels, 0, -1) if pixels.ndim == 3 else pixels
    if not isinstance(given, np.ndarray):
        raise DataError(f"{name}: got a {type(given).__name__}; expected {KINDS}, or a list of such")
    return given


def _from_pil(picture: Image.Image, name: str) -> NDArray:
    _check_frames(picture, name)
    try:
        upright = ImageOps.exif_transpose(picture)
    except (OSError, SyntaxError, ValueError) as error:
        raise UnreadableError(f"{name}: PIL cannot decode the picture: {error}") from None
    if upright.mode.startswith("I"):  # 16-bit files, also in 32 bits
        pixels = np.asarray(upright)
        low, high = (pixels.min(), pixels.max()) if pixels.size else (0, 0)
        if low < 0 or high > 65535:
            raise DataError(f"{name}: values from {low} to {high}; expected 8- or 16-bit pixels")
        return pixels.astype(np.uint16)
    return np.asarray(upright if upright.mode == "F" else upright.convert("L" if upright.mode in GREY else "RGB"))


def _check_file(path: str | PathLike[str]) -> None:
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


def _eight_bit(pixels: NDArray, name: str, of_integers: Callable[[NDArray, str], NDArray]) -> NDArray[np.uint8]:
    pixels = np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("="))
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


Asked = tuple[Any, Any, str, str]
"""One picture to be explained, its mask or None, and what messages call them."""


def pair(image: Any, mask: Any = None) -> tuple[list[Asked], bool]:
    """Pictures with their masks, and whether many were given. `DataError`: another number of masks than of pictures."""
    many = isinstance(image, list | tuple) or (isinstance(image, np.ndarray | Tensor) and image.ndim == 4)
    images, several = list(image) if many else [image], isinstance(mask, list | tuple)
    if many != several and mask is not None and not (many and isinstance(mask, np.ndarray | Tensor)):
        raise DataError(f"mask: got a {type(mask).__name__} for {len(images)} pictures; give a list for a list")
    masks = [None] * len(images) if mask is None else list(mask) if many else [mask]
    if len(masks) != len(images):
        raise DataError(f"mask: got {len(masks)} masks for {len(images)} pictures; give one each, None where none is")

    def name(given: Any, what: str) -> str:
        return str(given) if isinstance(given, str | PathLike) else what

    places = [f"[{place}]" for place in range(len(images))] if many else [""]
    rows = zip(images, masks, places, strict=True)
    return [(one, own, name(one, f"image{at}"), name(own, f"mask{at}")) for one, own, at in rows], many


# --- Where the picture and its defects lie

THRESHOLD = 0.5
"""Probability from which a pixel counts as defect."""

Box = tuple[int, int, int, int]
"""x0, y0, x1, y1 in whole pixels; x1 and y1 stand just behind the last pixel."""


@dataclass(frozen=True)
class Frame:
    """Where a picture of (h, w) lies in the network's input: the rows and columns that it takes."""

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
        (h, w), (height, width), (x0, y0, x1, y1) = self.picture, self._inner, box
        return x0 * w // width, y0 * h // height, -(-x1 * w // width), -(-y1 * h // height)

    def to_input(self, box: Box) -> tuple[float, float, float, float]:
        """A box of the given picture in the input's pixels, to be drawn."""
        (h, w), (height, width), (x0, y0, x1, y1) = self.picture, self._inner, box
        left, top = self.columns.start, self.rows.start
        return left + x0 * width / w, top + y0 * height / h, left + x1 * width / w, top + y1 * height / h

    @property
    def _inner(self) -> tuple[int, int]:
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start


def defect_boxes(defect: NDArray[np.bool_], frame: Frame) -> list[Box]:
    """A box around each connected region of an input (diagonals connect) in the given picture, largest region first."""
    labels, _ = ndimage.label(frame.crop(defect), structure=np.ones((3, 3)))  # pyright: ignore[reportGeneralTypeIssues]
    places = ndimage.find_objects(labels)
    order = np.argsort(-np.bincount(labels.ravel())[1:], kind="stable")
    return [frame.to_picture((x.start, y.start, x.stop, y.stop)) for y, x in (places[int(k)] for k in order)]


# --- Would the model still say so without the defect?

CLASS_NAMES = ("normal", "defective")
REGION = {"annotation": "the annotated defect", "localization": "the region that the model itself localizes"}
NOTHING_TO_SUPPRESS = "the localization marks nothing and no mask was given, so there is nothing to suppress"


def answer(
    before: float,
    after: float,
    control: float | None,
    threshold: float,
    mask_from: str = "annotation",
    names: Sequence[str] = CLASS_NAMES,
) -> dict[str, Any]:
    """What three defect probabilities say: of the picture, without the defect, and of the control if there was one.

    Returns:
        ``probability``, ``without_defect`` (its features suppressed), ``control`` (the same mask moved off the defect;
        None without a place to move to), whether the verdict turns from defective to normal (``flips``,
        ``control_flips``), ``mask_from``, and all of this as a sentence, ``message``.
    """
    called = before >= threshold
    flips = called and after < threshold
    control_flips = None if control is None else called and control < threshold
    verdict = f"turns to {names[0]}" if flips else f"stays {names[1]}"
    elsewhere = "" if control is None else f"with an equal area suppressed elsewhere ({control:.2f})"
    ends = {
        (True, None): ", but the mask has no room to move off it: without a control the flip proves little.",
        (False, None): ", so the decision does not hang on this region alone; there was no room for a control.",
        (True, True): f", but so it does {elsewhere}: the flip proves nothing.",
        (True, False): f", but not {elsewhere}: the decision rests on this region.",
        (False, True): f", yet turns {elsewhere}: the decision rests on something else.",
        (False, False): f", as {elsewhere}: the decision does not hang on this region alone.",
    }
    message = f"Without {REGION[mask_from]} the verdict {verdict} ({before:.2f} → {after:.2f})"
    message += ends[flips, control_flips]
    if not called:
        message = f"The verdict is {names[0]} already ({before:.2f}), so there is no {names[1]} verdict to question."
    said = {"probability": before, "without_defect": after, "control": control, "flips": flips}
    return said | {"control_flips": control_flips, "mask_from": mask_from, "message": message}


def why_no_path(model: GAINMTLModel) -> str | None:
    """Why the question cannot be put to a model at all; None where it can."""
    if model.counterfactual is not None:
        return None
    if model.strategy < "S5":
        return f"strategy {model.strategy} has no counterfactual path to ask; S5 to S7 have one"
    return f"this {model.strategy} model has no counterfactual path: it was built with use_counterfactual false"


# --- What is said of one picture


class NotExplained(KeyError):
    """Something that this explanation does not hold; the message says why."""

    def __str__(self) -> str:
        return str(self.args[0])


class Explanation(dict[str, Any]):
    """Everything said of one picture, by name. What has no answer is absent, never NaN; asking for it says why.

    Always there:

    - ``prediction`` (0 normal, 1 defective), ``prediction_name``, ``confidence`` (probability of the predicted class),
      ``probability`` (of defective), ``threshold``;
    - ``image``, uint8 (H, W, 3) as the network saw it, and ``cam``, float32, of the deciding head;
    - ``counterfactual``: for a defective verdict what `answer` gives, None for a normal one. None too where it cannot
      be asked; then ``counterfactual_missing`` says why in a sentence.

    Where there is an answer:

    - ``attention``, float32, what gates the features, from S3 on;
    - from S4 on ``localization``, float32 (H, W), ``boxes`` (x0, y0, x1, y1) in pixels of the given picture, one for
      each region at or above 0.5, ``box``, that of the largest, None without any, and ``area``, the regions' share of
      the picture. The localization is taught on defective pictures only: for a normal verdict just what exceeds the
      floor of its absolute scale counts, nothing where that is unknown;
    - ``found``, for each map with an absolute scale, whether it finds anything;
    - with a mask that marks something ``mask``, bool (H, W), ``cam_iou``, ``grid_iou`` (what the mask itself reaches on
      the CAM's grid), ``point_game`` and ``energy_inside``.

    Attributes:
        strategy: of the model.
        frame: where the picture lies in the network's input.
        stored: the maps as an evaluation keeps them, which is what the absolute scales are of.
        defect: what the model localizes, bool (H, W).
    """

    strategy: str
    frame: Frame
    stored: dict[str, NDArray]
    defect: NDArray[np.bool_]

    def __missing__(self, key: str) -> Any:
        reasons = {"attention": f"strategy {self.strategy} has no attention path; S3 to S7 have one"}
        place = f"strategy {self.strategy} has no localization path; S4 to S7 have one"
        reasons |= dict.fromkeys(("localization", "box", "boxes", "area"), place)
        scores = ("cam_iou", "grid_iou", "point_game", "energy_inside", "mask")
        reasons |= dict.fromkeys(scores, "no mask was given, or it marks no pixel")
        reasons["found"] = "no absolute scale is known; DefectExplainer.from_run takes it from an evaluated run"
        reasons["counterfactual_missing"] = "the counterfactual is there, or the verdict is normal and asks for none"
        reason = reasons.get(key, f"there are {', '.join(self)}")
        raise NotExplained(f"no '{key}' in this explanation: {reason}")


Ready = tuple[NDArray[np.uint8], NDArray[np.bool_] | None, Frame]
"""A picture (H, W, 3) and its mask (H, W) at the network's size."""


class DefectExplainer:
    """Explains the decisions of one model.

    Args:
        model: its device is where the work is done; device and mode are left as they are.
        threshold: defect probability from which a picture is called defective.
        scales: the absolute scale of each map, ``cam``, ``attention``, ``localization``, as far as known.
        image_size: network input (H, W), that of the training, as `resize`, squash or letterbox.
        class_names: of normal and defective, in any language.
        batch_size: pictures in memory at a time.
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
        """Everything the model says of a picture: an `Explanation`, for many a list of them, also where many is one.

        Args:
            image: see `read_picture`. Many at once as a list, a tensor (B, C, h, w) or an array (B, h, w, C).
            mask: where the defect is, see `read_defect`; for many a list with None where there is none.

        Raises:
            DataError: what cannot be used; names it, what was found and what was expected.
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
        return self._explained(pair(list(images), masks)[0])

    def visualize(self, image: Any, mask: Any = None, save_path: str | Path | None = None) -> Figure:
        """One picture's explanation as a figure, see `figure_of`; raises as `explain`, or when many are given."""
        _check_format(save_path)
        asked, _ = pair(image, mask)
        if len(asked) != 1:
            raise DataError(f"visualize draws one picture, got {len(asked)}; call it for each")
        (explanation,) = _raising(self._explained(asked))
        given, _, name, _ = asked[0]
        title = Path(name).name if name == str(given) else ""
        return self.figure_of(explanation, title=title, save_path=save_path)

    def figure_of(self, explanation: Explanation, *, title: str = "", save_path: str | Path | None = None) -> Figure:
        """An explanation as a figure: verdict, boxes, each map on both scales, the counterfactual. Nothing is computed.

        Class names that no installed font can draw fall back to English, with a warning.

        Args:
            explanation: of this explainer.
            title: what the picture is called.
            save_path: where to write the figure, atomically, .png or .jpg.
        """
        _check_format(save_path)
        families, missing = fonts_for("".join(self.class_names))
        names = CLASS_NAMES if missing else self.class_names
        if missing:
            told = [" and ".join(f"'{name}'" for name in each) for each in (self.class_names, CLASS_NAMES)]
            logger.warning("no font for %s; figures say %s (install one, such as fonts-nanum)", *told)
        lacking = fonts_for(title)[1]
        title = "".join("?" if letter in lacking else letter for letter in title)
        with mpl.rc_context({"font.family": families}):
            figure = verdict_figure(explanation, scales=self.scales, class_names=names, title=title)
        return figure if save_path is None else save_figure(figure, Path(save_path))

    def _explained(self, asked: Sequence[Asked]) -> Iterator[Explanation | DataError]:
        if self.model.strategy == "S6" and self.model.mask_source in OUTSIDE_SOURCES:
            raise ModelError(
                f"mask_source '{self.model.mask_source}' needs a mask from outside for every picture, which cannot be "
                "had here; to explain what the model says without, take 'localization' or 'none': set "
                "model.mask_source, or give gainmtl explain --mask-source"
            )
        for start in range(0, len(asked), self.batch_size):
            ready = [self._read(one) for one in asked[start : start + self.batch_size]]
            explained = iter(self._explain_batch([one for one in ready if not isinstance(one, DataError)]))
            yield from (one if isinstance(one, DataError) else next(explained) for one in ready)

    def _read(self, asked: Asked) -> Ready | DataError:
        image, mask, name, mask_name = asked
        try:
            pixels = read_picture(image, name)
            size = (pixels.shape[0], pixels.shape[1])
            defect = None if mask is None else read_defect(mask, size, mask_name)
        except DataError as error:
            return error
        if defect is not None:
            defect = resize_mask(defect, self.image_size, self.resize, image_size=size)
        frame = Frame.of(size, self.image_size, self.resize)
        return resize_image(pixels, self.image_size, self.resize), defect, frame

    @torch.inference_mode()
    def _explain_batch(self, ready: Sequence[Ready]) -> list[Explanation]:
        if not ready:
            return []
        device = next(self.model.parameters()).device
        pixels = torch.from_numpy(np.stack([image for image, _, _ in ready])).permute(0, 3, 1, 2)
        images = pixels.to(device, torch.float32).div_(255)  # (B, 3, H, W)
        with as_at_inference(self.model):
            output = self.model(images)
        stored = output_maps(output)
        explanations = [self._describe(output, stored, row, *of_it) for row, of_it in enumerate(ready)]
        self._ask_without_defect(images, explanations)
        return explanations

    def _describe(self, output: GainOutput, stored: Mapping[str, NDArray], row: int, *ready: Any) -> Explanation:
        """All but the counterfactual, which is None until it is asked for."""
        image, mask, frame = ready
        probability = _defect_probability(output.logits)[row]
        prediction = int(probability >= self.threshold)
        told = Explanation(
            prediction=prediction,
            prediction_name=self.class_names[prediction],
            confidence=probability if prediction else 1 - probability,
            probability=probability,
            threshold=self.threshold,
            image=image,
            counterfactual=None,
        )
        maps = {"cam": output.cam, "attention": output.effective_attention, "localization": output.localization_map}
        told |= {name: maps[name][row, 0].float().cpu().numpy().copy() for name in maps if maps[name] is not None}
        told.strategy, told.frame = self.model.strategy, frame
        told.stored = {name: values[row] for name, values in stored.items()}
        known = {name: scale for name, scale in self.scales.items() if name in told.stored}
        if known:
            told["found"] = {name: bool(scale.finds(told.stored[name])) for name, scale in known.items()}
        told.defect = self._localized(told)
        if "localization" in told:
            boxes = defect_boxes(told.defect, told.frame)
            area = float(told.frame.crop(told.defect).mean())
            told |= {"box": boxes[0] if boxes else None, "boxes": boxes, "area": area}
        if mask is not None:
            cam, masks = output.cam[row : row + 1].float().cpu(), torch.from_numpy(mask)[None, None].float()
            told |= {"mask": mask, "cam_iou": float(cam_iou(cam, masks)), "point_game": float(point_game(cam, masks))}
            told["grid_iou"] = float(grid_iou(masks, (cam.shape[-2], cam.shape[-1])))
            told["energy_inside"] = float(energy_inside(cam, masks))
        return told

    def _localized(self, told: Explanation) -> NDArray[np.bool_]:
        """What counts as localized defect, of a normal verdict only what exceeds normal validation pictures."""
        if "localization" not in told:
            return np.zeros(self.image_size, dtype=np.bool_)
        level = THRESHOLD
        if told["prediction"] == 0:
            scale = self.scales.get("localization")
            level = max(THRESHOLD, scale.floor) if scale and told["found"]["localization"] else np.inf
        return (told["localization"] >= level) & told.frame.plane(self.image_size)

    def _ask_without_defect(self, images: Tensor, explanations: Sequence[Explanation]) -> None:
        """Ask the defective verdicts for their counterfactual, all at once: of the annotated defect, or their own."""
        asked, masks = [], []
        for row, told in enumerate(explanations):
            mask = told.get("mask", told.defect)
            reason = why_no_path(self.model) or (None if mask.any() else NOTHING_TO_SUPPRESS)
            if told["prediction"] == 1 and reason:
                told["counterfactual_missing"] = reason
            elif told["prediction"] == 1:
                asked.append(row)
                masks.append(torch.from_numpy(mask).float()[None])
        if not asked:
            return
        planes = [torch.from_numpy(explanations[row].frame.plane(self.image_size))[None] for row in asked]
        suppressed, within = torch.stack(masks).to(images.device), torch.stack(planes).to(images.device)
        # Two cells clear of the defect, because suppression reaches one cell beyond its mask.
        moved, placed = control_masks(suppressed, margin=2 * self.model.map_stride, inside=within)
        with as_at_inference(self.model):
            output = self.model(images[asked], suppressed)
            control_logits = self.model(images[asked], moved).cf_logits
        said = (_defect_probability(logits) for logits in (output.logits, output.cf_logits, control_logits))
        for row, before, after, control, has_place in zip(asked, *said, placed.tolist()):
            told, source = explanations[row], "annotation" if "mask" in explanations[row] else "localization"
            control = control if has_place else None
            told["counterfactual"] = answer(before, after, control, self.threshold, source, self.class_names)


def _raising(explained: Iterable[Explanation | DataError]) -> Iterator[Explanation]:
    for one in explained:
        if isinstance(one, DataError):
            raise one
        yield one


def _defect_probability(logits: Tensor) -> list[float]:
    return logits.float().softmax(dim=1)[:, 1].tolist()


# --- One explanation as a figure

HEADINGS = {"cam": "deciding CAM", "attention": "attention", "localization": "localization"}
VERDICT_COLORS = ("#1b7837", "#b2182b")
BOX = "#ffb000"
SIDE = 2.6
"""Of a map panel, in inches."""
CHARACTERS_PER_INCH = 13
LONGEST_TITLE = 48
HANGUL_FONTS = ("Noto Sans CJK KR", "Noto Sans KR", "NanumGothic", "Malgun Gothic", "Apple SD Gothic Neo")


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
    image, mask, frame = explanation["image"], explanation.get("mask"), explanation.frame
    bars = frame.crop(image).shape != image.shape
    height, width = image.shape[:2] if bars else frame.picture
    ratio = float(np.clip(height / width, 0.4, 2.0))  # a ribbon is shown less extreme
    panel = SIDE / max(1.0, ratio) ** 0.5
    across = max(7.0, panel * (2 + len(maps)))
    texts = _texts(explanation, scales, class_names)
    lines = [line for text in texts for line in textwrap.wrap(text, int(across * CHARACTERS_PER_INCH))]
    figure = Figure(figsize=(across, 2 * panel * ratio + 1.5 + 0.2 * len(lines)), layout="constrained")
    mosaic: Any = [["picture", *maps], ["picture", *(f"{name} per image" for name in maps)]]
    axes = figure.subplot_mosaic(mosaic, width_ratios=[2, *[1] * len(maps)])
    draw_overlay(axes["picture"], image, mask=mask)
    axes["picture"].set_title("picture\n{1} × {0} pixels".format(*frame.picture))
    for place, box in enumerate(explanation.get("boxes", [])):
        x0, y0, x1, y1 = frame.to_input(box)
        style = {"fill": False, "ec": BOX, "clip_on": False, "lw": 1.0 if place else 2.0}
        axes["picture"].add_patch(Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, **style))
    for name in maps:
        _draw_absolute(axes[name], explanation, name, scales.get(name))
        values = explanation[name]
        draw_overlay(axes[f"{name} per image"], image, enlarged_share(values, None, image.shape[:2]), mask)
        axes[f"{name} per image"].set_title(f"{HEADINGS[name]}\nper image, {values.min():.2f} to {values.max():.2f}")
    for axis in axes.values():
        axis.set_aspect(ratio * image.shape[1] / image.shape[0])
        axis.title.set_fontsize(9)
    title = title if len(title) <= LONGEST_TITLE else f"…{title[1 - LONGEST_TITLE :]}"
    verdict = f"{class_names[explanation['prediction']]}, confidence {explanation['confidence']:.1%}"
    heading, color = f"{title}: {verdict}" if title else verdict, VERDICT_COLORS[explanation["prediction"]]
    figure.suptitle(heading, x=0.01, ha="left", fontsize=13, weight="bold", color=color)
    figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=9.5)
    return figure


def _draw_absolute(axis: Axes, explanation: Explanation, name: str, scale: MapScale | None) -> None:
    image, mask, note = explanation["image"], explanation.get("mask"), ""
    if scale is not None:
        draw_overlay(axis, image, enlarged_share(explanation.stored[name], scale, image.shape[:2]), mask)
        about = f"{scale.floor:.2f} to {scale.ceiling:.2f}" if scale.separates else f"above {scale.floor:.2f} or not"
        about, note = f"absolute, {about}", "" if explanation["found"][name] else "nothing found"
    elif name == "cam":
        draw_overlay(axis, np.full_like(image, 128), mask=mask)
        about, note = "no absolute scale", "unknown"
    else:
        draw_overlay(axis, image, explanation[name], mask)
        about = "0 to 1, no absolute scale"
    axis.set_title(f"{HEADINGS[name]}\n{about}")
    axis.text(0.5, 0.5, note, transform=axis.transAxes, ha="center", va="center", color="white", fontsize=11)


def _texts(explanation: Explanation, scales: Mapping[str, MapScale], names: Sequence[str]) -> Iterator[str]:
    """Numbers, what the marks mean, scales that tell little, and the counterfactual."""
    facts = [f"p({names[1]}) {explanation['probability']:.3f}, threshold {explanation['threshold']:.3f}"]
    if "area" in explanation:
        facts.append(f"localized area {explanation['area']:.1%}")
    if "cam_iou" in explanation:
        facts.append(f"CAM-IoU {explanation['cam_iou']:.2f} (grid {explanation['grid_iou']:.2f})")
        facts.append(f"PointGame {explanation['point_game']:.2f}")
        facts.append(f"Energy-Inside {explanation['energy_inside']:.2f}")
    yield " · ".join(facts)
    marks = ["Cyan outline: annotated defect."] if "mask" in explanation else []
    boxes, scale, normal = explanation.get("boxes"), scales.get("localization"), explanation["prediction"] == 0
    if boxes:
        marks.append(
            f"Orange box: localization ≥ {max(THRESHOLD, scale.floor) if normal and scale else THRESHOLD:.2g}."
        )
    elif boxes is not None and normal and scale is None:
        marks.append("No box: of a normal verdict the localization is judged on its absolute scale, which is unknown.")
    elif boxes is not None:
        marks.append(f"The localization marks nothing{' beyond what it does on normal parts' if normal else ''}.")
    yield " ".join(marks)
    for name, heading in HEADINGS.items():
        if name in explanation and name in scales and not scales[name].separates:
            yield f"The {heading} peaks as high on normal validation pictures as on defective ones: it tells little."
    asked = explanation["counterfactual"]
    if asked is not None:
        numbers = asked["probability"], asked["without_defect"], asked["control"], explanation["threshold"]
        yield answer(*numbers, asked["mask_from"], names)["message"]
    elif "counterfactual_missing" in explanation:
        yield f"No counterfactual: {explanation['counterfactual_missing']}."


def _check_format(save_path: str | Path | None) -> None:
    if save_path is not None and Path(save_path).suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise ValueError(f"save_path must end in .png, .jpg, .jpeg, got '{save_path}'")


def fonts_for(text: str) -> tuple[list[str], set[str]]:
    """Families to draw a text with, the default ones before those for Hangul, and the characters that all lack."""
    installed = {entry.name for entry in font_manager.fontManager.ttflist}
    families = [*mpl.rcParams["font.family"], *(name for name in HANGUL_FONTS if name in installed)]
    return families, set(text).difference(*map(_characters, families))


@cache
def _characters(family: str) -> frozenset[str]:
    path = font_manager.findfont(font_manager.FontProperties(family=[family]))
    return frozenset(map(chr, font_manager.get_font(path).get_charmap()))
