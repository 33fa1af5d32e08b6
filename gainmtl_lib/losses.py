"""The seven loss terms of the method document §3 and S8's, their weighted sum, and the schedule of four stages.

Terms are pure functions of logits, computed in float32 whatever the precision around them. Spatial terms
reduce per image first, then average over the images they apply to. Of a part of a batch, which several processes
share, these means are weighted by the part's share of those images.

Sizes: B images, H x W network input, h x w feature grid. Every `has_mask` is bool (B,), masks are in [0, 1].
"""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ParamSpec, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gainmtl_lib.dataset import Batch
from gainmtl_lib.model import GainOutput
from gainmtl_lib.processes import mean_weights
from gainmtl_lib.settings import TERMS, Settings

P = ParamSpec("P")
HARD_PIXELS, HARD_SHARE = 3, 0.01  # off the defect: for each of it, and at least of all, in the evidence's loss


def term(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Run a loss outside autocast on float32 copies; an exact zero, attached to the graph, where no image is selected.

    Tensors go by position, a bool one selects the images.
    """

    @functools.wraps(function)
    def wrapped(*tensors: Any, **options: Any) -> Tensor:
        with torch.autocast(tensors[0].device.type, enabled=False):
            tensors = tuple(tensor.float() if tensor.is_floating_point() else tensor for tensor in tensors)
            if any(tensor.dtype == torch.bool and not tensor.any() for tensor in tensors):
                return torch.stack([tensor.sum() for tensor in tensors if tensor.is_floating_point()]).sum() * 0.0
            return function(*tensors, **options)

    return wrapped


@term
def focal_loss(logits: Tensor, labels: Tensor, *, gamma: float, alpha: float) -> Tensor:
    """FL = -α_t (1 - p_t)^γ log p_t of logits (B, 2) and labels (B,), mean over images (Lin et al. 2017).

    `gamma` is the focus on hard images, 0 is weighted cross-entropy; `alpha` the weight of class 1, 1 - alpha that of
    class 0. Serves `cls` on path 1 and `am` (attention mining) on the attended logits.
    """
    labels = labels.long()[:, None]
    log_prob = logits.log_softmax(dim=1)
    log_true, log_other = log_prob.gather(1, labels), log_prob.gather(1, 1 - labels)
    # 1 - p_t is the other class's probability; through its logarithm the power has a gradient even at 0.
    weight = torch.where(labels == 1, alpha, 1 - alpha)
    return -(weight * (gamma * log_other).exp() * log_true).mean()


def focal_alpha(normals: int, defectives: int) -> float:
    """α for `focal_loss` from the training counts: the share of normals, so that the rarer class weighs more."""
    if min(normals, defectives) < 1:
        counts = f"{normals} normal and {defectives} defective"
        raise ValueError(f"focal alpha needs training images of both classes, got {counts}; check the split")
    return normals / (normals + defectives)


@term
def guided_attention_loss(attention_logits: Tensor, masks: Tensor, has_mask: Tensor) -> Tensor:
    """Pull attention (B, 1, h, w) onto the annotated defect (B, 1, H, W): BCE + Dice + soft IoU at mask resolution."""
    logits, masks = _upsample(attention_logits[has_mask], masks), masks[has_mask]
    return (_bce(logits, masks) + _dice(logits, masks) + _soft_iou(logits, masks)).mean()


@term
def normal_attention_loss(attention_logits: Tensor, normal: Tensor, *, kind: str = "entropy") -> Tensor:
    """Keep attention (B, 1, h, w) on the `normal` images, bool (B,), from settling anywhere.

    `entropy`: 1 - H(softmax over space) / log(h w), 0 when attention is even, 1 when it is one cell.
    `zero`: BCE towards no attention at all.
    """
    logits = attention_logits[normal].flatten(1)  # (B', h w)
    if kind == "zero":
        return F.softplus(logits).mean()
    if logits.shape[1] == 1:  # a single cell is always even
        return logits.sum() * 0.0
    log_prob = logits.log_softmax(dim=1)
    entropy = -(log_prob.exp() * log_prob).sum(dim=1)
    return (1 - entropy / math.log(logits.shape[1])).mean()


@term
def cam_guide_loss(cam: Tensor, masks: Tensor, has_mask: Tensor, gain: Tensor, offset: Tensor) -> Tensor:
    """Pull a CAM (B, 1, h, w) onto the annotated defect (B, 1, H, W): BCE + Dice of its standardised shape.

    A CAM has no scale of its own: it is standardised per image, then `gain * z + offset`, scalars, are its logits.
    The term therefore moves where the CAM is high, not how high it is (that is the decision's margin).
    """
    cam, masks = cam[has_mask], masks[has_mask]
    centered = cam - cam.mean(dim=(1, 2, 3), keepdim=True)
    variance = centered.square().mean(dim=(1, 2, 3), keepdim=True)
    # A CAM flatter than 0.01 is not blown up further: the gradient stays within 1 / 0.01 of the CAM's own.
    logits = _upsample(gain * (centered / variance.clamp_min(0.01**2).sqrt()) + offset, masks)
    return (_bce(logits, masks) + _dice(logits, masks)).mean()


@term
def localization_loss(localization_logits: Tensor, masks: Tensor, has_mask: Tensor) -> Tensor:
    """Segment the annotated defect: Dice + BCE of (B, 1, H, W)."""
    logits, masks = _upsample(localization_logits[has_mask], masks), masks[has_mask]
    return (_dice(logits, masks) + _bce(logits, masks)).mean()


@term
def counterfactual_loss(cf_logits: Tensor, has_mask: Tensor) -> Tensor:
    """Without its defect an image is normal: cross-entropy of cf_logits (B, 2) to class 0."""
    return -cf_logits[has_mask].log_softmax(dim=1)[:, 0].mean()


@term
def consistency_loss(attention_logits: Tensor, localization_logits: Tensor, has_mask: Tensor) -> Tensor:
    """MSE of the attention map (B, 1, h, w) and the localization map (B, 1, H, W), pooled by area to its grid."""
    attention, localization = attention_logits[has_mask].sigmoid(), localization_logits[has_mask].sigmoid()
    localization = F.adaptive_avg_pool2d(localization, attention.shape[-2:])  # type: ignore[arg-type]
    return (attention - localization).square().mean()


@term
def evidence_loss(evidence: Tensor, masks: Tensor, known: Tensor) -> Tensor:
    """Teach the evidence (B, 1, h, w) cell by cell what is defect, of masks (B, 1, H, W): BCE + Dice.

    Of the images that are `known`, bool (B,): annotated defects, and normal ones, all of whose cells are calm. BCE is a
    mean over the defect's pixels, so that a small one weighs as much as a large one, and one over the hardest pixels
    off it, by which a cue beside the defect would decide: three times as many (the ratio of Shrivastava et al., CVPR
    2016, and Liao et al., AAAI 2020), at least 1 % of the picture. Dice is of defects alone.
    """
    logits, masks = _upsample(evidence[known], masks[known]), masks[known]
    bce = F.binary_cross_entropy_with_logits(logits, masks, reduction="none").flatten(1)
    defect = masks.flatten(1)  # (B', H W)
    inside = (bce * defect).sum(1) / defect.sum(1).clamp_min(1)
    count = (HARD_PIXELS * defect.sum(1)).clamp(HARD_SHARE * defect.shape[1], defect.shape[1]).ceil()
    off = zip(bce * (1 - defect), count.int().tolist(), strict=True)
    outside = torch.stack([values.topk(k, sorted=False).values.mean() for values, k in off])
    return (inside + outside + _dice(logits, masks) * defect.any(1)).mean()


def _upsample(logits: Tensor, masks: Tensor) -> Tensor:
    return F.interpolate(logits, size=masks.shape[-2:], mode="bilinear", align_corners=False)


def _bce(logits: Tensor, masks: Tensor) -> Tensor:
    """Per image, as the overlaps below: (B, 1, H, W) logits and masks -> (B,)."""
    return F.binary_cross_entropy_with_logits(logits, masks, reduction="none").mean(dim=(1, 2, 3))


def _overlap(logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Soft intersection, and the sum of both areas."""
    prob = logits.sigmoid()
    return (prob * masks).sum(dim=(1, 2, 3)), (prob + masks).sum(dim=(1, 2, 3))


def _dice(logits: Tensor, masks: Tensor) -> Tensor:
    shared, both = _overlap(logits, masks)
    return 1 - 2 * shared / both.clamp_min(1e-6)


def _soft_iou(logits: Tensor, masks: Tensor) -> Tensor:
    shared, both = _overlap(logits, masks)
    return 1 - shared / (both - shared).clamp_min(1e-6)


# --- All terms together


class GainLoss(nn.Module):
    """All terms of a batch and their weighted sum.

    Holds the gain and offset that turn a standardised CAM into logits, learned with the model. They start at 2 and -2,
    a border one deviation above the CAM's mean: a defect is a small part of its image, and they move slowly. The CAM
    that is guided is that of path 1 (``cls``), of the ``deciding`` head, or ``both`` in the mean.
    """

    def __init__(
        self,
        *,
        focal_gamma: float,
        focal_alpha: float,
        cam_guide_target: str = "both",
        normal_attention: str = "entropy",
    ) -> None:
        super().__init__()
        self.focal = functools.partial(focal_loss, gamma=focal_gamma, alpha=focal_alpha)
        self.cam_guide_target, self.normal_attention = cam_guide_target, normal_attention
        self.cam_log_gain = nn.Parameter(torch.tensor(math.log(2.0)))
        self.cam_offset = nn.Parameter(torch.tensor(-2.0))

    def forward(self, output: GainOutput, batch: Batch, weights: Mapping[str, float]) -> dict[str, Tensor]:
        """Terms whose weight is above 0, each unweighted, and ``total``, their weighted sum."""
        selected = _selected(batch)
        parts = dict(zip(selected, mean_weights(torch.stack([*selected.values()])), strict=True))
        terms = {name: self._term(name, output, batch, selected, parts) for name in TERMS if weights.get(name, 0) > 0}
        total = sum((weights[name] * value for name, value in terms.items()), start=output.logits.float().sum() * 0.0)
        return {**terms, "total": total}

    def _term(
        self, name: str, said: Any, batch: Batch, selected: Mapping[str, Tensor], parts: Mapping[str, Tensor]
    ) -> Tensor:
        """Unweighted but for the part; the settings see to it that the strategy says what the term needs."""
        annotated, normal, known = (selected[name] for name in ("annotated", "normal", "known"))
        match name:
            case "cls":
                return self.focal(said.cls_logits, batch.labels) * parts["all"]
            case "am":
                return self.focal(said.attended_cls_logits, batch.labels) * parts["all"]
            case "cam_guide":
                both = [said.cls_cam, said.cam]
                cams = {"cls": both[:1], "deciding": both[1:], "both": both}[self.cam_guide_target]
                shape = self.cam_log_gain.exp(), self.cam_offset
                guided = torch.stack([cam_guide_loss(cam, batch.masks, annotated, *shape) for cam in cams]).mean()
                return guided * parts["annotated"]
            case "loc":
                return localization_loss(said.localization_logits, batch.masks, annotated) * parts["annotated"]
            case "guide":
                on_defects = guided_attention_loss(said.attention_logits, batch.masks, annotated)
                even = normal_attention_loss(said.attention_logits, normal, kind=self.normal_attention)
                return on_defects * parts["annotated"] + even * parts["normal"]
            case "cf":
                # None where no picture of the batch has a defect to take away.
                logits = said.logits if said.cf_logits is None else said.cf_logits
                return counterfactual_loss(logits, annotated) * parts["annotated"]
            case "evidence":
                return evidence_loss(said.cam, batch.masks, known) * parts["known"]
            case _:
                consistent = consistency_loss(said.attention_logits, said.localization_logits, annotated)
                return consistent * parts["annotated"]


def _selected(batch: Batch) -> dict[str, Tensor]:
    """Which images the terms apply to, bool (B,): all, those with a mask, normal ones, those whose cells are known."""
    annotated, normal = batch.has_mask & (batch.labels == 1), batch.labels == 0
    return {"all": torch.ones_like(normal), "annotated": annotated, "normal": normal, "known": annotated | normal}


# --- Which terms are in force at what point of the training

FIRST_STAGE = {"cls": 1, "evidence": 1, "am": 2, "guide": 2, "cam_guide": 2, "loc": 3, "consist": 3, "cf": 4}


@dataclass(frozen=True)
class Schedule:
    """Four stages that multiply the strategy's λ by 0 or 1, `loc` by a linear warm-up."""

    lambdas: Mapping[str, float]  # by term; a term left out counts as 0
    ratios: tuple[float, float, float, float] = (0.25, 0.25, 0.25, 0.25)  # of the training; a stage may have length 0
    loc_warmup_ratio: float = 0.5  # share of stage 3 over which λ_loc rises from 0 to its value

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The schedule of a run."""
        ratios = (settings.stage1_ratio, settings.stage2_ratio, settings.stage3_ratio, settings.stage4_ratio)
        return cls(settings.weights, ratios, settings.loc_warmup_ratio)

    @property
    def starts(self) -> list[float]:
        """Progress at which each stage begins."""
        return list(accumulate(self.ratios[:3], initial=0.0))

    @property
    def final_stage_start(self) -> float:
        """Progress at which the last stage that has any length begins; "best" is chosen from there on."""
        return max(start for start, ratio in zip(self.starts, self.ratios, strict=True) if ratio > 0)

    def stage(self, progress: float) -> int:
        """The stage in force, 1 to 4. At the very end of the training, progress 1, the last one with any length."""
        # Sums such as 0.1 + 0.2 may lie an ulp above the step that should open the next stage.
        return sum(start <= min(progress + 1e-9, 1 - 1e-9) for start in self.starts)

    def weights(self, progress: float) -> dict[str, float]:
        """λ in force, for every one of `TERMS`; 0 where a term does not count yet."""
        stage = self.stage(progress)
        weights = {term: self.lambdas.get(term, 0.0) if stage >= FIRST_STAGE[term] else 0.0 for term in TERMS}
        warmup = self.loc_warmup_ratio * self.ratios[2]
        if stage == 3 and warmup > 0:
            weights["loc"] *= min(max((progress - self.starts[2]) / warmup, 0.0), 1.0)
        return weights


def mask_blend_alpha(progress: float) -> float:
    """Share of the plain mask in S6's attention: from 0.5 down to 0 over the training, linear."""
    return 0.5 * (1 - progress)
