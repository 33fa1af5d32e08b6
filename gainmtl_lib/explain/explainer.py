"""One picture, or many, explained: what the model decided, where it looked, whether it says so without the defect.

Sizes: B pictures of a batch, H x W network input, h x w map cells.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from gainmtl_lib.data.findings import DataError
from gainmtl_lib.data.transforms import Resize, resize_image, resize_mask
from gainmtl_lib.explain.explanation import Explanation, Ready, describe
from gainmtl_lib.explain.fonts import drawable, drawable_names
from gainmtl_lib.explain.picture_input import Asked, pair, read_defect, read_picture
from gainmtl_lib.explain.plots import save_figure
from gainmtl_lib.explain.regions import Frame
from gainmtl_lib.explain.suppression import CLASS_NAMES, MaskFrom, answer, ask_counterfactuals, why_no_path
from gainmtl_lib.explain.verdict_figure import verdict_figure
from gainmtl_lib.map_scale import MapScale
from gainmtl_lib.models.counterfactual import as_at_inference
from gainmtl_lib.models.gain_mtl import OUTSIDE_SOURCES, GAINMTLModel
from gainmtl_lib.models.weights import ModelError
from gainmtl_lib.records import GainOutput
from gainmtl_lib.runs import Run

logger = logging.getLogger(__name__)

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
