"""How well a map or a predicted mask agrees with the annotated defect, and from scores to decisions.

Every score of a map is taken at the resolution of the masks (the network's input); a coarser map is upsampled
first. An image whose mask is empty, or covers most of it, has no answer: its score is NaN, and means leave it out.
Values of a map that are not finite count as zero. Sizes: B images, H x W masks, h x w maps.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from gainmtl_lib.labels import COVERS_MOST
from gainmtl_lib.layouts import DEFECTIVE, NORMAL

# Upsampling a constant map leaves differences of a few float32 ulp; min-max would blow them up to a pattern.
_FLAT = 1e-6
_TINY = torch.finfo(torch.float32).tiny


# --- Maps and masks, image by image: (B, 1, h, w), (B, 1, H, W) -> (B,)


def resize_maps(maps: Tensor, masks: Tensor) -> Tensor:
    """Maps at the masks' resolution, bilinear. (B, 1, h, w) -> float32 (B, 1, H, W); `ValueError`: other shapes."""
    if not maps.ndim == masks.ndim == 4 or not maps.shape[:2] == masks.shape[:2] == (len(masks), 1):
        raise ValueError(
            "maps must be (B, 1, h, w) and masks (B, 1, H, W) with the same B, "
            f"got {tuple(maps.shape)} and {tuple(masks.shape)}"
        )
    maps = maps.detach().float().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    return maps if maps.shape == masks.shape else F.interpolate(maps, size=masks.shape[-2:], mode="bilinear")


def normalize_maps(maps: Tensor) -> Tensor:
    """Min-max each map to [0, 1]; a constant map, which says nothing, becomes all zeros. Any (B, ...)."""
    maps = maps.detach().float()
    low, high = (bound.view(-1, *[1] * (maps.ndim - 1)) for bound in torch.aminmax(maps.flatten(1), dim=1))
    span = high - low
    varied = span > _FLAT * torch.maximum(low.abs(), high.abs())
    return (maps - low) / span.clamp_min(_TINY) * varied


def cam_iou(maps: Tensor, masks: Tensor, threshold: float = 0.5) -> Tensor:
    """IoU of the min-max normalised map, cut at the threshold, with the mask."""
    return _score(*_union(normalize_maps(resize_maps(maps, masks)) >= threshold, masks), masks)


def point_game(maps: Tensor, masks: Tensor) -> Tensor:
    """Whether the map's maximum lies inside the mask (Zhang et al. 2018); tied ones share the point."""
    peak = normalize_maps(resize_maps(maps, masks)) >= 1 - _FLAT
    return _score(_share(peak & (masks > 0.5)), _share(peak), masks)


def energy_inside(maps: Tensor, masks: Tensor) -> Tensor:
    """Share of the map's positive energy that lies inside the mask; 0 where there is none.

    Leaving such an image out would favour a model whose CAM is negative wherever it overlooks the defect.
    """
    energy = resize_maps(maps, masks).relu()
    return _score(_share(energy * (masks > 0.5)), _share(energy), masks)


def grid_iou(masks: Tensor, grid: tuple[int, int]) -> Tensor:
    """CAM-IoU that the mask itself reaches on a grid of (h, w) cells, by area: a reference, not a strict bound."""
    return cam_iou(F.adaptive_avg_pool2d(masks.float(), grid), masks)


def mask_iou(prob: Tensor, masks: Tensor, threshold: float = 0.5) -> Tensor:
    """IoU of a predicted mask, probabilities cut at the threshold."""
    return _score(*_union(resize_maps(prob, masks) >= threshold, masks), masks)


def dice(prob: Tensor, masks: Tensor, threshold: float = 0.5) -> Tensor:
    """Dice coefficient of a predicted mask, 2 IoU / (1 + IoU)."""
    predicted, defect = resize_maps(prob, masks) >= threshold, masks > 0.5
    return _score(2 * _share(predicted & defect), _share(predicted) + _share(defect), masks)


def pixel_accuracy(prob: Tensor, masks: Tensor, threshold: float = 0.5) -> Tensor:
    """Share of pixels predicted rightly."""
    correct = _share((resize_maps(prob, masks) >= threshold) == (masks > 0.5))
    return _score(correct, torch.ones_like(correct), masks)


def _share(values: Tensor) -> Tensor:
    return values.float().flatten(1).mean(dim=1)


def _union(predicted: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection and union, as shares of the image."""
    defect = masks > 0.5
    return _share(predicted & defect), _share(predicted | defect)


def _score(numerator: Tensor, denominator: Tensor, masks: Tensor) -> Tensor:
    """(B,) scores: 0 where the denominator is 0, NaN where the mask is empty or covers most of the picture."""
    scores = numerator / denominator.clamp_min(_TINY)
    return scores.masked_fill(~_tells(masks), torch.nan)


def _tells(masks: Tensor) -> Tensor:
    """Which masks say where a defect is, bool (B,)."""
    area = _share(masks > 0.5)
    return (area > 0) & (area <= COVERS_MOST)


def pooled_overlap(predicted: Tensor, masks: Tensor) -> Tensor:
    """Intersection and union, (2,), of all images that have a mask: in their ratio large defects weigh more."""
    return (torch.stack(_union(predicted, masks)) * _tells(masks)).sum(dim=1)


MEANS = (
    "cam_iou", "grid_iou", "point_game", "energy_inside", "attention_iou", "attention_point_game",
    "attention_energy_inside", "loc_iou", "loc_dice", "loc_pixel_accuracy",
)  # fmt: skip
"""Columns whose mean over images with an answer is reported under the same name."""


# --- Pixels of a whole set of pictures, whatever threshold is taken

LEVELS = 2**20  # scores that are told apart


class PixelScores:
    """How well maps tell defect pixels from others: counts of both, and shares of defect regions, at each level."""

    def __init__(self) -> None:
        self.defect, self.clean = np.zeros((2, LEVELS), dtype=np.int64)
        self.covered, self.regions = np.zeros(LEVELS), 0

    def update(self, maps: Tensor, masks: Tensor) -> None:
        """Count the pixels of a batch. Shape: (B, 1, h, w), (B, 1, H, W), empty for normal images."""
        scores, defect = resize_maps(maps, masks)[:, 0].cpu().numpy(), (masks[:, 0] > 0.5).cpu().numpy()
        # Levels are whole numbers of the scores' order: their first 20 bits, negative ones reversed.
        bits = (scores + np.float32(0)).view(np.int32)  # there is no -0 in a sum
        level = (np.where(bits < 0, bits ^ np.int32(0x7FFFFFFF), bits) >> 12) + LEVELS // 2
        self.defect += np.bincount(level[defect], minlength=LEVELS)
        self.clean += np.bincount(level[~defect], minlength=LEVELS)
        for levels, mask in zip(level, defect, strict=True):
            count, labels = cv2.connectedComponents(mask.view(np.uint8), connectivity=8)
            region = labels[mask]
            np.add.at(self.covered, levels[mask], 1 / np.bincount(region)[region])
            self.regions += count - 1  # without the background

    def auroc(self) -> float:
        """Probability that a defect pixel outscores a clean one, ties half; NaN where there is none of either."""
        pairs = float(self.defect.sum()) * float(self.clean.sum())
        below = self.clean.cumsum() - self.clean
        return float(self.defect @ (below + self.clean / 2)) / pairs if pairs else math.nan

    def aupro(self, limit: float = 0.3) -> float:
        """Area under the per-region-overlap curve up to a false-positive rate, divided by it (Bergmann et al. 2021).

        Lowering one threshold over the whole set, the mean share of each defect region (8-connected) that is covered is
        integrated over the share of defect-free pixels that are flagged, up to `limit`. Only points between two levels
        are missing, so the area is off by at most half the sum of (rate step x overlap step) / limit. NaN without a
        defect region or a defect-free pixel.
        """
        pixels = self.clean.sum()
        if not self.regions or not pixels:
            return math.nan
        rate = np.append(0.0, self.clean[::-1].cumsum() / pixels)  # equal scores come together
        overlap = np.append(0.0, self.covered[::-1].cumsum() / self.regions)
        end = int(np.searchsorted(rate, limit))  # first level to reach the limit
        at_limit = np.interp(limit, rate[end - 1 : end + 1], overlap[end - 1 : end + 1])
        area = np.trapezoid(np.append(overlap[:end], at_limit), np.append(rate[:end], limit))
        return float(area / limit)


# --- From scores to decisions

CALM_SHARE = 0.95  # of normal validation pictures, whose maps end below the floor; the report says it
OFF_THE_DEFECT_IOU = 0.1  # a map whose maximum misses the defect and whose IoU is below this is off the defect
LARGE_MARGIN = 13.8  # of a probability of 1 - 1e-6: beyond it nothing is surer
FALSE_ALARMS = 0.05  # share of new normal pictures that may be called unlike the normal ones


IDENTITY = (1.0, 0.0)


def fit_calibration(labels: NDArray, margins: NDArray, threshold: float) -> tuple[float, float]:
    """Slope and offset, as in sigma(slope * margin + offset), that make probabilities of margins, (N,), of any range.

    The offset lets one half be at the `threshold`, so that a verdict is what the probability says. The slope is that of
    a logistic regression of the validation split's labels (N,), never of a test split's, with Platt's targets (1999):
    (n + 1) / (n + 2) for n defects, 1 / (n + 2) for n normal pictures, so that a few pictures without an error make
    nothing certain. `IDENTITY` where there is nothing to fit: one class, equal margins, or such as do not rise with the
    label.
    """
    if min(np.ptp(labels), np.ptp(margins)) == 0:
        return IDENTITY
    spread, defects = margins.std(), int(labels.sum())
    target = np.where(labels == 1, (defects + 1) / (defects + 2), 1 / (len(labels) - defects + 2))
    both = np.tile((margins - threshold) / spread, 2)[:, None]
    fit = LogisticRegression(C=np.inf, fit_intercept=False)
    fit.fit(both, np.repeat([1, 0], len(labels)), sample_weight=np.concatenate([target, 1 - target]))
    slope = float(fit.coef_.item() / spread)
    return (slope, -slope * threshold) if slope > 0 else IDENTITY


BINS = 10  # of equal width


def calibration_error(labels: NDArray, prob: NDArray) -> float:
    """Expected calibration error (Naeini et al. 2015) of probabilities (N,): how far the share of defects, of labels
    (N,), is off the mean probability, over `BINS` and weighted by their pictures. In few pictures it is above 0 by
    chance."""
    apart = np.bincount(bins_of(prob), weights=prob - labels)
    return float(np.abs(apart).sum() / len(prob))


def bins_of(prob: NDArray) -> NDArray[np.int64]:
    """In which of `BINS` each probability lies."""
    return np.minimum((prob * BINS).astype(np.int64), BINS - 1)


def choose_threshold(labels: NDArray, margins: NDArray) -> float:
    """Margin from which an image is called defective; on the validation split, never on a test split.

    Where a logistic regression of the labels (N,) on the margins (N,) says one half. It rests on all images; the cut of
    the highest F1 or accuracy hangs on the few around it. 0 where there is nothing to choose: one class, equal margins,
    or such as do not rise with the label.
    """
    if min(np.ptp(labels), np.ptp(margins)) == 0:
        return 0.0
    bounded = np.clip(margins, -LARGE_MARGIN, LARGE_MARGIN)
    center, spread = bounded.mean(), bounded.std()  # the fit's penalty asks how steep it is: margins may crowd
    standard = ((bounded - center) / spread)[:, None]
    fit = LogisticRegression(C=1e3).fit(standard, labels)  # finite where the classes do not overlap
    slope, intercept = fit.coef_.item(), fit.intercept_.item()
    # Within the margins there are: a slope of almost nothing would put it anywhere.
    border = center - spread * intercept / slope
    return float(np.clip(border, margins.min(), margins.max())) if slope > 1e-3 else 0.0


def recall_threshold(labels: NDArray, prob: NDArray, required: float) -> float | None:
    """The highest threshold that finds the required share, in (0, 1], of the defects; None where there are none.

    Midway to the next lower probability. Labels, 0 or 1, and probabilities, (N,), are of the validation split.
    """
    scores = np.sort(prob[labels == 1])[::-1]
    if not len(scores):
        return None
    last = scores[math.ceil(round(required * len(scores), 9)) - 1]
    below = prob[prob < last]
    return float(last + (below.max() if len(below) else 0.0)) / 2


def f1_threshold(labels: NDArray, scores: NDArray) -> float:
    """Score, of any range, from which an image is called defective: the highest F1 on the validation split.

    Candidates lie midway between neighbouring scores; of several equally good ones the one with the widest margin is
    taken. Where there is nothing to choose (one class, or all scores equal) it is the highest score.
    """
    values = np.unique(scores)
    if len(values) < 2 or labels.min() == labels.max():
        return float(values[-1])
    candidates = (values[1:] + values[:-1]) / 2
    predicted = scores[None, :] >= candidates[:, None]
    hits = (predicted & (labels == 1)).sum(axis=1)
    f1 = 2 * hits / (predicted.sum(axis=1) + (labels == 1).sum())
    best = np.flatnonzero(f1 >= f1.max() - 1e-12)
    return float(candidates[best[np.diff(values)[best].argmax()]])


def novelty_threshold(normal_scores: NDArray) -> float:
    """Anomaly score above which a picture is unlike the normal ones: the conformal quantile of their scores, (N,).

    A new normal picture exceeds it with a probability of at most `FALSE_ALARMS`, whatever the scores' distribution,
    once there are 19 of them (Vovk, Gammerman, Shafer 2005); with fewer it is the highest score.
    """
    rank = math.ceil((len(normal_scores) + 1) * (1 - FALSE_ALARMS))
    return float(np.sort(normal_scores)[min(rank, len(normal_scores)) - 1])


def verdicts(labels: NDArray, predicted: NDArray) -> list[str]:
    """TP, FP, FN or TN of each image."""
    return np.array([["TN", "FP"], ["FN", "TP"]])[np.asarray(labels, int), np.asarray(predicted, int)].tolist()


def classification(labels: NDArray, predicted: NDArray, scores: NDArray) -> dict[str, float]:
    """Accuracy, precision, recall, F1 of the verdicts; AUROC and AP of the scores, of any range.

    NaN where there is no answer: a recall without defects, a precision where nothing was called defective, an F1 with
    neither, AUROC and AP of one class.
    """
    hits, called, defects = (labels * predicted).sum(), predicted.sum(), labels.sum()
    return {
        "accuracy": float((labels == predicted).mean()),
        "precision": float(hits / called) if called else math.nan,
        "recall": float(hits / defects) if defects else math.nan,
        "f1": f1(labels, predicted),
        "auroc": auroc(labels, scores),
        "average_precision": average_precision(labels, scores),
    }


def f1(labels: NDArray, called: NDArray) -> float:
    """Of verdicts; NaN where neither a defect nor a defective verdict is among them."""
    total = labels.sum() + called.sum()
    return float(2 * (labels * called).sum() / total) if total else math.nan


def auroc(labels: NDArray, scores: NDArray) -> float:
    """Share of (defective, normal) pairs in the right order, ties half (Mann and Whitney); NaN for one class.

    That of scikit-learn, without the checks that would make up most of the time of thousands of resamples.
    """
    defects = int(labels.sum())
    normals = len(labels) - defects
    if not defects or not normals:
        return math.nan
    ranks = rankdata(scores)
    return float((ranks[labels == 1].sum() - defects * (defects + 1) / 2) / (defects * normals))


def average_precision(labels: NDArray, scores: NDArray) -> float:
    """Precision at each distinct score, weighted by the recall that it adds; NaN for one class. See `auroc`."""
    if not labels.any() or labels.all():
        return math.nan
    order = np.argsort(-scores, kind="stable")
    hits = labels[order].cumsum()
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)  # equal scores are called together
    return float((np.diff(hits[ends], prepend=0) * hits[ends] / (ends + 1)).sum() / hits[-1])


# --- One scale for all maps of a model, fixed on validation, so that a picture without a defect looks calm


@dataclass(frozen=True)
class MapScale:
    """Floor and ceiling of a map's absolute scale, in the map's own unit."""

    # What the peaks of 95 % of the normal validation pictures do not exceed, or the map's own zero; shown as 0.
    floor: float
    ceiling: float  # the median peak of the defective ones; shown as 1

    @property
    def separates(self) -> bool:
        """Whether defective pictures peak above normal ones at all; otherwise the map cannot tell them apart."""
        return self.ceiling > self.floor

    def apply(self, maps: NDArray) -> NDArray[np.float32]:
        """Maps of any shape to [0, 1]. A scale that does not separate shows only whether a cell exceeds the floor."""
        above = np.asarray(maps, dtype=np.float32) - self.floor
        if not self.separates:
            return (above > 0).astype(np.float32)
        return np.clip(above / (self.ceiling - self.floor), 0, 1)

    def finds(self, maps: NDArray) -> NDArray[np.bool_]:
        """Whether a map rises above the floor anywhere: (..., h, w) -> (...)."""
        return np.asarray(maps, dtype=np.float32).max(axis=(-2, -1)) > self.floor


def fit_scale(maps: NDArray, labels: NDArray, *, zero: float | None = None) -> MapScale | None:
    """The scale of one kind of map, (N, h, w) of the validation split; None where a class is missing.

    `zero` is the floor of a map that has one of its own.
    """
    peaks = np.asarray(maps, dtype=np.float32).max(axis=(1, 2))
    normal, defective = peaks[labels == 0], peaks[labels == 1]
    if not len(normal) or not len(defective):
        return None
    floor = float(np.quantile(normal, CALM_SHARE, method="higher")) if zero is None else zero
    return MapScale(floor, float(np.median(defective)))


# --- Which defect

NAMED = "named_type"  # in a table of predictions the type of each picture that is called defective


def is_named(rows: pd.DataFrame) -> pd.Series:
    """Which defects, of rows with ``label`` and ``defect_type``, have a type with a name of its own."""
    return (rows["label"] == 1) & rows["defect_type"].notna() & ~rows["defect_type"].isin([NORMAL, DEFECTIVE])


def type_answers(rows: pd.DataFrame) -> pd.DataFrame:
    """The ``truth`` of each picture of a table of predictions and what it is ``called``, ``normal`` or a type.

    Defects whose type nobody named are left out.
    """
    known = rows[(rows["label"] == 0) | is_named(rows)]
    truth = known["defect_type"].where(known["label"] == 1, NORMAL)
    return pd.DataFrame({"truth": truth, "called": known[NAMED].fillna(NORMAL)})


def named_right(answers: pd.DataFrame) -> pd.Series:
    """Of the found defects among `type_answers` whether their type is named right."""
    found = answers[(answers["truth"] != NORMAL) & (answers["called"] != NORMAL)]
    return found["truth"] == found["called"]


def confusion(answers: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """How many pictures of each truth are called what, see `type_answers`: normal, then the types that the model knows,
    by their names; below them the truths that it does not know."""
    known = [NORMAL, *names]
    counts = pd.crosstab(answers["truth"], answers["called"])
    others = [truth for truth in counts.index if truth not in known]
    return counts.reindex(index=[*known, *others], columns=known, fill_value=0)


def macro_f1(truth: NDArray, called: NDArray) -> float:
    """Mean F1 over the types that occur, of answers (N,); NaN without a defect.

    That of a type is over all pictures: a missed defect is missed, a false alarm speaks against the type it names.
    """
    types = sorted({*truth} - {NORMAL})
    right = [2 * np.sum((truth == name) & (called == name)) for name in types]
    told = [np.sum(truth == name) + np.sum(called == name) for name in types]
    return float(np.mean(np.divide(right, told))) if types else math.nan
