"""What a model says of any picture: verdict, maps, defect boxes, whether it would say so without the defect, a figure.

Sizes: h x w a picture as given, H x W network input; maps have a size of their own.
"""

import logging
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Self

import cv2
import matplotlib as mpl
import numpy as np
import torch
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from gainmtl_lib import metrics
from gainmtl_lib.backbone import ModelError
from gainmtl_lib.evaluation import output_maps
from gainmtl_lib.figures import draw_overlay, enlarged_share, save_figure
from gainmtl_lib.findings import DataError
from gainmtl_lib.labels import Place, Resize, check_aspect, inside, mask_of, resize_image, resize_mask
from gainmtl_lib.layouts import CLASS_NAMES
from gainmtl_lib.metrics import MapScale
from gainmtl_lib.model import OUTSIDE_SOURCES, GAINMTLModel, as_at_inference, control_masks, defect_probability
from gainmtl_lib.pictures import mask_pixels, read_image, to_8_bit
from gainmtl_lib.runs import Run
from gainmtl_lib.settings import PARTS, strategies_with

logger = logging.getLogger(__name__)

# --- Any kind of picture and mask to pixels: what comes out is what a file with the same pixels would give


def read_picture(picture: Any, name: str = "image") -> NDArray[np.uint8]:
    """One picture as RGB (h, w, 3): grey becomes three channels, alpha is dropped, orientation tags are followed.

    Args:
        picture: a path, a PIL picture, an array (h, w[, C]) or a tensor (h, w) or (C, h, w) of 1, 3 or 4 channels;
            8 bits, 16 bits, which are scaled as files are, or float in [0, 1]. Anything else is a `DataError`.
        name: what messages call it where it is no file.
    """
    if isinstance(picture, str | PathLike):
        return read_image(Path(picture))
    pixels = _pixels(picture, name)
    if pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (1,), (3,), (4,)) or not pixels.size:
        kinds = "1, 3 or 4 channels, first in a tensor, (C, h, w), last in an array, (h, w, C), or none, (h, w)"
        raise DataError(f"{name}: {type(picture).__name__} has shape {tuple(picture.shape)}; expected {kinds}")
    values = _eight_bit(np.atleast_3d(pixels)[..., :3], name).reshape(*pixels.shape[:2], -1)
    return np.repeat(values, 3 // values.shape[2], axis=2)


def read_defect(
    mask: Any, picture_size: tuple[int, int], name: str = "mask", *, picture: Any = None
) -> NDArray[np.bool_] | None:
    """Defect pixels of one mask, bool (h, w), in the mask's own size; None when it marks nothing.

    Args:
        mask: a path, several in a tuple, a PIL picture or integers as `mask_pixels` takes them; of floats those above
            0.5 are defect.
        picture_size: (h, w) of the mask's picture, which has the same aspect ratio.
        picture: that picture; where it is a path, a mask file in the frame that the camera stored is turned as it is.
    """
    if isinstance(mask, str | PathLike | tuple):
        name, path = str(mask), Path(picture) if isinstance(picture, str | PathLike) else None
        defect = mask_of(path, mask if isinstance(mask, tuple) else str(mask), picture_size)
    elif isinstance(mask, Image.Image):
        defect = mask_pixels(ImageOps.exif_transpose(mask), name).defect
    else:
        values = np.squeeze(_pixels(mask, name))
        if values.ndim != 2 or not values.size:
            raise DataError(f"{name}: mask has shape {tuple(mask.shape)}; expected (h, w), (h, w, 1) or (1, h, w)")
        floats = values.dtype.kind == "f"
        defect = _eight_bit(values, name) > 127 if floats else mask_pixels(values, name).defect
    check_aspect(name, defect.shape, None, picture_size)
    return defect if defect.any() else None


def _pixels(given: Any, name: str) -> NDArray:
    """What PIL, NumPy or torch holds as an array with channels last, if it has any."""
    if isinstance(given, np.ndarray):
        return given
    if isinstance(given, Tensor):
        given = given.detach().cpu()
        pixels = (given.float() if given.dtype == torch.bfloat16 else given).numpy()  # NumPy has no bfloat16
        return np.moveaxis(pixels, 0, -1) if pixels.ndim == 3 else pixels
    if not isinstance(given, Image.Image):
        kinds = "a path, a PIL picture, an array (h, w[, C]) or a tensor (C, h, w)"
        raise DataError(f"{name}: got a {type(given).__name__}; expected {kinds}, or a list of such")
    upright = ImageOps.exif_transpose(given)
    return np.asarray(upright if upright.mode.startswith(("I", "F")) else upright.convert("RGB"))  # 16 bits, floats


def _eight_bit(pixels: NDArray, name: str) -> NDArray[np.uint8]:
    pixels = np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("="))
    if pixels.dtype in (np.uint8, np.uint16):
        return to_8_bit(pixels, name)
    if pixels.dtype.kind != "f":
        raise DataError(f"{name}: pixels are {pixels.dtype}; expected uint8, uint16 or float in [0, 1]")
    pixels = pixels.astype(np.float64)
    if not np.isfinite(pixels).all():
        raise DataError(f"{name}: {int((~np.isfinite(pixels)).sum())} values are not finite; expected [0, 1]")
    low, high = pixels.min(), pixels.max()
    if low < -1e-3 or high > 1 + 1e-3:  # resizing may overshoot a little
        hint = "the model normalises by itself" if low < 0 else "divide by the full scale, or give integers"
        raise DataError(f"{name}: float values from {low:.4g} to {high:.4g}; expected [0, 1]: {hint}")
    return np.rint(pixels.clip(0, 1) * 255).astype(np.uint8)


# --- Where the defects lie, and would the model still say so without them?

REGION = {"annotation": "the annotated defect", "localization": "the region that the model itself localizes"}
THRESHOLD = 0.5  # probability from which a pixel counts as defect


def defect_boxes(defect: NDArray[np.bool_], picture: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """A box (x0, y0, x1, y1) around each connected region (diagonals connect), the largest region first.

    `defect` is the part of the network's input where the picture lies. Boxes are in pixels of the `picture` (h, w),
    rounded outwards; x1 and y1 stand just behind the last one.
    """
    _, _, regions, _ = cv2.connectedComponentsWithStats(defect.astype(np.uint8), connectivity=8)
    (h, w), (height, width) = picture, defect.shape
    return [
        (x * w // width, y * h // height, -(-(x + across) * w // width), -(-(y + down) * h // height))
        for x, y, across, down, _ in sorted(regions[1:].tolist(), key=lambda region: -region[cv2.CC_STAT_AREA])
    ]


def answer(
    before: float, after: float, control: float | None, threshold: float, mask_from: str, names: Sequence[str]
) -> dict[str, Any]:
    """What three defect probabilities say: of the picture, without the defect, and of the control if there was one.

    Returns:
        ``probability``, ``without_defect``, ``control``, whether the verdict turns to normal (``flips``,
        ``control_flips``), ``mask_from``, a key of `REGION`, and all of this in words, ``message``.
    """
    called = before >= threshold
    flips = called and after < threshold
    control_flips = None if control is None else called and control < threshold
    change = f"{f'turns to {names[0]}' if flips else f'stays {names[1]}'} ({before:.2f} → {after:.2f})"
    elsewhere = "" if control is None else f"with an equal area suppressed elsewhere ({control:.2f})"
    ends = {
        (True, None): ", but the mask has no room to move off it: without a control the flip proves little.",
        (False, None): ", so the decision does not hang on this region alone; there was no room for a control.",
        (True, True): f", but so it does {elsewhere}: the flip proves nothing.",
        (True, False): f", but not {elsewhere}: the decision rests on this region.",
        (False, True): f", yet turns {elsewhere}: the decision rests on something else.",
        (False, False): f", as {elsewhere}: the decision does not hang on this region alone.",
    }
    message = f"Without {REGION[mask_from]} the verdict {change}{ends[flips, control_flips]}"
    if not called:
        message = f"The verdict is {names[0]} already ({before:.2f}), so there is no {names[1]} verdict to question."
    said = {"probability": before, "without_defect": after, "control": control, "flips": flips}
    return said | {"control_flips": control_flips, "mask_from": mask_from, "message": message}


# --- What is said of one picture


class Explanation(dict[str, Any]):
    """Everything said of one picture, by name. What has no answer is absent, never NaN; asking for it says why.

    Always there: ``prediction`` (0 normal, 1 defective), ``prediction_name``, ``confidence`` (probability of the
    predicted class), ``probability`` (of defective), ``threshold``; ``image``, uint8 (H, W, 3) as the network saw it;
    ``cam``, float32, of the deciding head; ``counterfactual``, for a defective verdict what `answer` gives, else None;
    ``counterfactual_missing`` says why where it cannot be asked. Where there is an answer:

    - from S3 on ``attention``, float32, what gates the features; ``found``, whether each map with an absolute scale
      finds anything;
    - from S4 on ``localization``, float32 (H, W), ``boxes`` in pixels of the given picture around its regions, ``box``,
      that of the largest or None, and ``area``, the regions' share of the picture. Where it is a head of its own it is
      taught on defective pictures only: for a normal verdict just what exceeds the floor of its absolute scale counts,
      if that is known. In S8 it is the sigmoid of the evidence, the ``cam``, whose own zero is the level of both
      verdicts;
    - for a defective verdict of a run that names defect types ``defect_type``, and ``type_probability``, of it among
      them, given that it is a defect;
    - with a mask that marks something ``mask``, bool (H, W), ``cam_iou``, ``grid_iou`` (what the mask itself reaches on
      the CAM's grid), ``point_game`` and ``energy_inside``.
    """

    strategy: str
    picture: tuple[int, int]  # its own size (h, w)
    place: Place  # rows and columns that it takes in the network's input
    stored: dict[str, NDArray]  # the maps as an evaluation keeps them, which is what the absolute scales are of

    @property
    def of_evidence(self) -> bool:
        """Whether the map is S8's, which is the decision itself and is taught on normal pictures too."""
        return "evidence" in PARTS[self.strategy]

    def __missing__(self, key: str) -> Any:
        reasons = {
            "attention": f"strategy {self.strategy} has no attention path; {strategies_with('attention')} have one",
            "defect_type": "the verdict is normal, or the run names no defect types",
            "found": "no absolute scale is known; DefectExplainer.from_run takes it from an evaluated run",
            "counterfactual_missing": "the counterfactual is there, or the verdict is normal and asks for none",
        }
        for name in ("localization", "box", "boxes", "area"):
            there = strategies_with("localization", "evidence")
            reasons[name] = f"strategy {self.strategy} has no localization path; {there} have one"
        for name in ("mask", "cam_iou", "grid_iou", "point_game", "energy_inside"):
            reasons[name] = "no mask was given, or it marks no pixel, or most of them"
        raise KeyError(f"no '{key}' in this explanation: {reasons.get(key, 'there are ' + ', '.join(self))}")


class DefectExplainer:
    """Explains the decisions of one model. `ValueError` for a threshold, a resize or class names that are none.

    Args:
        model: its device is where the work is done; device and mode are left as they are.
        threshold: defect probability from which a picture is called defective.
        scales: the absolute scale of each map, ``cam``, ``attention``, ``localization``, as far as known.
        image_size: network input (H, W), that of the training, as `resize`, squash or letterbox.
        class_names: of normal and defective, in any language.
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
    ) -> None:
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold must be a probability in [0, 1], got {threshold}")
        if resize not in ("squash", "letterbox"):
            raise ValueError(f"resize must be squash or letterbox, got '{resize}'")
        if isinstance(class_names, str) or len(set(class_names)) != 2 or len(class_names) != 2:
            raise ValueError(f"class_names must be two different names, normal first, got {class_names!r}")
        self.model, self.threshold, self.scales = model, float(threshold), dict(scales or {})
        self.image_size, self.class_names = (int(image_size[0]), int(image_size[1])), tuple(class_names)
        self.resize: Resize = resize

    @classmethod
    def from_run(cls, run: Run, *, class_names: Sequence[str] = CLASS_NAMES) -> Self:
        """With the run's best model and input size and, once it is evaluated, its threshold and absolute scales."""
        measured = run.metrics if run.is_evaluated else {}
        if not measured:
            logger.warning("%s is not evaluated: the threshold is 0.5 and no map has an absolute scale", run.folder)
        known: dict[str, Any] = {"image_size": run.settings.image_size, "resize": run.settings.resize}
        known["scales"] = {name: MapScale(**scale) for name, scale in measured.get("map_scales", {}).items()}
        return cls(run.model, threshold=measured.get("threshold", 0.5), class_names=class_names, **known)

    def explain(self, image: Any, mask: Any = None) -> Any:
        """Everything the model says of a picture: an `Explanation`, for many a list of them, also where many is one.

        Args:
            image: see `read_picture`. Many at once as a list, a tensor (B, C, h, w) or an array (B, h, w, C).
            mask: where the defect is, see `read_defect`; for many a list with None where there is none.

        Raises:
            DataError: what cannot be used; names it, what was found and what was expected.
            ModelError: an S6 model whose masks come from outside.
        """
        many = isinstance(image, list | tuple) or (isinstance(image, np.ndarray | Tensor) and image.ndim == 4)
        images, several = list(image) if many else [image], isinstance(mask, list | tuple)
        if many != several and mask is not None and not (many and isinstance(mask, np.ndarray | Tensor)):
            raise DataError(f"mask: got a {type(mask).__name__} for {len(images)} pictures; give a list for a list")
        masks = [None] * len(images) if mask is None else list(mask) if many else [mask]
        if len(masks) != len(images):
            counts = f"{len(masks)} masks for {len(images)} pictures"
            raise DataError(f"mask: got {counts}; give one each, None where none is")
        told = [self._explain(*both, f"[{place}]" if many else "") for place, both in enumerate(zip(images, masks))]
        return told if many else told[0]

    def visualize(self, image: Any, mask: Any = None, save_path: str | Path | None = None) -> Figure:
        """One picture's explanation as a figure, see `figure_of`; raises as `explain`, or when many are given."""
        told = self.explain(image, mask)
        if isinstance(told, list) and len(told) != 1:
            raise DataError(f"visualize draws one picture, got {len(told)}; call it for each")
        title = Path(image).name if isinstance(image, str | PathLike) else ""
        return self.figure_of(told[0] if isinstance(told, list) else told, title=title, save_path=save_path)

    def figure_of(self, explanation: Explanation, *, title: str = "", save_path: str | Path | None = None) -> Figure:
        """An explanation as a figure, written to `save_path`, .png or .jpg (else `ValueError`); nothing is computed."""
        if save_path is not None and Path(save_path).suffix.lower() not in (".png", ".jpg", ".jpeg"):
            raise ValueError(f"save_path must end in .png, .jpg, .jpeg, got '{save_path}'")
        installed = {entry.name for entry in font_manager.fontManager.ttflist}
        fonts = [font for font in HANGUL_FONTS if font in installed]
        if not fonts and max("".join(self.class_names)) >= "\u1100":  # matplotlib's own has next to none from here on
            logger.warning("no font for '%s' and '%s': install one, such as fonts-nanum", *self.class_names)
        with mpl.rc_context({"font.family": [*mpl.rcParams["font.family"], *fonts]}):
            figure = _verdict_figure(explanation, self.scales, title)
        return figure if save_path is None else save_figure(figure, Path(save_path))

    @torch.inference_mode()
    def _explain(self, image: Any, mask: Any, at: str) -> Explanation:
        if self.model.strategy == "S6" and self.model.mask_source in OUTSIDE_SOURCES:
            needs = f"mask_source '{self.model.mask_source}' needs a mask from outside for every picture"
            instead = "set model.mask_source to 'localization' or 'none', or give gainmtl explain --mask-source"
            raise ModelError(f"{needs}; to explain what the model says without, {instead}")
        pixels = read_picture(image, f"image{at}")
        size = (pixels.shape[0], pixels.shape[1])
        defect = None if mask is None else read_defect(mask, size, f"mask{at}", picture=image)
        pixels = resize_image(pixels, self.image_size, self.resize)
        device = next(self.model.parameters()).device
        images = torch.from_numpy(pixels).permute(2, 0, 1)[None].to(device, torch.float32).div_(255)  # (1, 3, H, W)
        with as_at_inference(self.model):
            output = self.model(images)
        probability = float(defect_probability(output.logits, self.model.calibration)[0])
        prediction = int(probability >= self.threshold)
        told = Explanation(
            prediction=prediction, prediction_name=self.class_names[prediction],
            confidence=probability if prediction else 1 - probability, probability=probability,
            threshold=self.threshold, image=pixels, counterfactual=None,
        )  # fmt: skip
        if prediction and output.type_logits is not None and self.model.types is not None:
            shares = output.type_logits[0].softmax(dim=0)
            told["defect_type"] = self.model.types.names[int(shares.argmax())]
            told["type_probability"] = float(shares.max())
        maps = {"cam": output.cam, "attention": output.effective_attention, "localization": output.localization_map}
        told |= {name: maps[name][0, 0].float().cpu().numpy() for name in maps if maps[name] is not None}
        told.strategy, told.picture = self.model.strategy, size
        told.place = inside(size, self.image_size, self.resize)
        told.stored = {name: values[0] for name, values in output_maps(output).items()}
        if known := [name for name in self.scales if name in told.stored]:
            told["found"] = {name: bool(self.scales[name].finds(told.stored[name])) for name in known}
        own = np.zeros(self.image_size, dtype=np.bool_)  # what the model localizes
        if "localization" in told:
            level, scale = THRESHOLD, self.scales.get("localization")
            if not prediction and not told.of_evidence:
                level = max(THRESHOLD, scale.floor) if scale and told["found"]["localization"] else np.inf
            own[told.place] = told["localization"][told.place] >= level
            boxes = defect_boxes(own[told.place], size)
            told |= {"box": boxes[0] if boxes else None, "boxes": boxes, "area": float(own[told.place].mean())}
        if defect is not None:
            told["mask"] = resize_mask(defect, self.image_size, self.resize, image_size=size)
            cam, masks = output.cam.float().cpu(), torch.from_numpy(told["mask"])[None, None].float()
            for name in ("cam_iou", "point_game", "energy_inside"):
                told[name] = float(getattr(metrics, name)(cam, masks))
            told["grid_iou"] = float(metrics.grid_iou(masks, (cam.shape[-2], cam.shape[-1])))
        if prediction:
            self._ask_without_defect(images, told, own)
        return told

    def _ask_without_defect(self, images: Tensor, told: Explanation, own: NDArray[np.bool_]) -> None:
        """Ask for the counterfactual of the annotated defect, or of the model's own."""
        mask, strategy = told.get("mask", own), self.model.strategy
        missing = "" if mask.any() else "the localization marks nothing and no mask was given: nothing to suppress"
        if self.model.counterfactual is None:
            missing = f"this {strategy} model has no counterfactual path: it was built with use_counterfactual false"
        if "counterfactual" not in PARTS[strategy]:
            have = f"{strategies_with('counterfactual')} have one"
            missing = f"strategy {strategy} has no counterfactual path to ask; {have}"
        if missing:
            told["counterfactual_missing"] = missing
            return
        suppressed = torch.from_numpy(mask)[None, None].to(images)
        within = torch.zeros_like(suppressed, dtype=torch.bool)
        within[..., told.place[0], told.place[1]] = True
        # Two cells clear of the defect, because suppression reaches one cell beyond its mask.
        moved, placed = control_masks(suppressed, margin=2 * self.model.map_stride, inside=within)
        with as_at_inference(self.model):
            output = self.model(images.repeat(2, 1, 1, 1), torch.cat([suppressed, moved]))
        after, control = defect_probability(output.cf_logits, self.model.calibration).tolist()
        numbers = told["probability"], after, control if placed[0] else None, self.threshold
        told["counterfactual"] = answer(*numbers, "annotation" if "mask" in told else "localization", self.class_names)


# --- One explanation as a figure

HEADINGS = {"cam": "deciding CAM", "attention": "attention", "localization": "localization"}
OF_EVIDENCE = HEADINGS | {"cam": "evidence, the decision"}
VERDICT_COLORS = ("#1b7837", "#b2182b")
BOX = "#ffb000"
HANGUL_FONTS = ("Noto Sans CJK KR", "Noto Sans KR", "NanumGothic", "Malgun Gothic", "Apple SD Gothic Neo")


def _verdict_figure(explanation: Explanation, scales: Mapping[str, MapScale], title: str) -> Figure:
    """Left the picture, right the maps: above on their absolute scale, below stretched per image."""
    headings = OF_EVIDENCE if explanation.of_evidence else HEADINGS
    maps = [name for name in headings if name in explanation]
    place, (h, w), full = explanation.place, explanation.picture, explanation["image"].shape[:2]
    image = explanation["image"][place]  # without the bars of a letterboxed one
    mask = explanation["mask"][place] if "mask" in explanation else None
    ratio = float(np.clip(h / w, 0.4, 2.0))  # a ribbon is shown less extreme
    panel = 2.6 / max(1.0, ratio) ** 0.5
    across = max(7.0, panel * (2 + len(maps)))
    lines = [line for text in _texts(explanation, scales) for line in textwrap.wrap(text, int(across * 13))]
    figure = Figure(figsize=(across, 2 * panel * ratio + 1.5 + 0.2 * len(lines)), layout="constrained")
    mosaic: Any = [["picture", *maps], ["picture", *(f"{name} per image" for name in maps)]]
    axes = figure.subplot_mosaic(mosaic, width_ratios=[2, *[1] * len(maps)])
    draw_overlay(axes["picture"], image, mask=mask)
    axes["picture"].set_title(f"picture\n{w} × {h} pixels")
    y_scale, x_scale = image.shape[0] / h, image.shape[1] / w
    for number, (x0, y0, x1, y1) in enumerate(explanation.get("boxes", [])):
        style = {"fill": False, "ec": BOX, "clip_on": False, "lw": 1.0 if number else 2.0}
        sides = (x1 - x0) * x_scale, (y1 - y0) * y_scale
        axes["picture"].add_patch(Rectangle((x0 * x_scale - 0.5, y0 * y_scale - 0.5), *sides, **style))
    for name in maps:
        values, scale, note, share = explanation[name], scales.get(name), "", None
        if scale is not None:
            share = enlarged_share(explanation.stored[name], scale, full)[place]
            end = f"{scale.floor:.2f} to {scale.ceiling:.2f}" if scale.separates else f"above {scale.floor:.2f} or not"
            about, note = f"absolute, {end}", "" if explanation["found"][name] else "nothing found"
        elif name == "cam":
            about, note = "no absolute scale", "unknown"
        else:
            share, about = enlarged_share(values, MapScale(0.0, 1.0), full)[place], "0 to 1, no absolute scale"
        axes[name].set_title(f"{headings[name]}\n{about}")
        centre = {"transform": axes[name].transAxes, "ha": "center", "va": "center"}
        axes[name].text(0.5, 0.5, note, color="white", fontsize=11, **centre)
        draw_overlay(axes[name], np.full_like(image, 128) if share is None else image, share, mask)
        draw_overlay(axes[f"{name} per image"], image, enlarged_share(values, None, full)[place], mask)
        axes[f"{name} per image"].set_title(f"{headings[name]}\nper image, {values.min():.2f} to {values.max():.2f}")
    for axis in axes.values():
        axis.set_aspect(ratio * image.shape[1] / image.shape[0])
        axis.title.set_fontsize(9)
    title = title if len(title) <= 48 else f"…{title[-47:]}"
    verdict = "{prediction_name}, confidence {confidence:.1%}".format_map(explanation)
    if "defect_type" in explanation:
        verdict += ": {defect_type} ({type_probability:.0%})".format_map(explanation)
    heading, color = f"{title}: {verdict}" if title else verdict, VERDICT_COLORS[explanation["prediction"]]
    figure.suptitle(heading, x=0.01, ha="left", fontsize=13, weight="bold", color=color)
    figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=9.5)
    return figure


def _texts(explanation: Explanation, scales: Mapping[str, MapScale]) -> Iterator[str]:
    """Numbers, what the marks mean, scales that tell little, and the counterfactual."""
    facts = ["p(defect) {probability:.3f}, threshold {threshold:.3f}".format_map(explanation)]
    if "area" in explanation:
        facts.append(f"localized area {explanation['area']:.1%}")
    if "cam_iou" in explanation:
        facts.append("CAM-IoU {cam_iou:.2f} (grid {grid_iou:.2f})".format_map(explanation))
        facts.append("PointGame {point_game:.2f} · Energy-Inside {energy_inside:.2f}".format_map(explanation))
    yield " · ".join(facts)
    marks = ["Cyan outline: annotated defect."] if "mask" in explanation else []
    boxes, scale = explanation.get("boxes"), scales.get("localization")
    normal = explanation["prediction"] == 0 and not explanation.of_evidence
    if boxes:
        level = max(THRESHOLD, scale.floor) if normal and scale else THRESHOLD
        marks.append(f"Orange box: localization ≥ {level:.2g}{', evidence ≥ 0' * explanation.of_evidence}.")
    elif boxes is not None and normal and scale is None:
        marks.append("No box: of a normal verdict the localization is judged on its absolute scale, which is unknown.")
    elif boxes is not None:
        marks.append(f"The localization marks nothing{' beyond what it does on normal parts' if normal else ''}.")
    yield " ".join(marks)
    flat = "peaks as high on normal validation pictures as on defective ones"
    if explanation.of_evidence:
        flat = "stays below its zero on half of the defective validation pictures"
    for name, heading in HEADINGS.items():
        if name in explanation and name in scales and not scales[name].separates:
            yield f"The {heading} {flat}: it tells little."
    if explanation["counterfactual"] is not None:
        yield explanation["counterfactual"]["message"]
    elif "counterfactual_missing" in explanation:
        yield f"No counterfactual: {explanation['counterfactual_missing']}."
