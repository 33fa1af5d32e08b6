"""GAIN-MTL: one backbone, up to four paths; the strategy S1 to S7 says which.

path 1  features -> classification head -> cls_logits, cls_cam                                        S1 on
path 2  features -> CBAM -> attention -> adapter -> second head -> attended_cls_logits                 S3 on
path 3  path 2 once more, with the defect's features replaced -> cf_logits                             S5 on
path 4  backbone levels -> pyramid -> localization                                                     S4 on

"features" are conv_head or, below map stride 32, its projection onto a finer grid. Sizes: B images, C channels,
H x W network input, h x w feature grid (H / map_stride).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from gainmtl_lib.models.backbone import LEVEL_STRIDES, checked_levels, get_backbone
from gainmtl_lib.models.cam import class_activation_map
from gainmtl_lib.models.counterfactual import Counterfactual, as_at_inference
from gainmtl_lib.models.heads import AttentionHead, ClassificationHead, FeatureAdapter, LocalizationHead, MiningHead
from gainmtl_lib.models.layers import CBAM, MapProjection, PyramidFusion, fuse_attention
from gainmtl_lib.models.weights import ModelError
from gainmtl_lib.records import GainOutput
from gainmtl_lib.settings import STRATEGY_WEIGHTS

MASK_SOURCES = ("localization", "efficientad", "external", "none", "other", "oracle")
OUTSIDE_SOURCES = ("efficientad", "external", "other", "oracle")
"""Those of them whose masks the model must be given."""
FUSION_NORMS = ("sigmoid", "product")


class AttentionPath(nn.Module):
    """Path 2: where to look, and the decision on what is seen there."""

    def __init__(self, channels: int, *, attention_channels: int, head_channels: int, dropout: float) -> None:
        super().__init__()
        self.cbam = CBAM(channels)
        self.attention_head = AttentionHead(channels, hidden=attention_channels)
        self.mining_head = MiningHead(channels, hidden=attention_channels)
        self.adapter = FeatureAdapter(channels)
        self.attended_cls_head = ClassificationHead(channels, hidden=head_channels, dropout=dropout)

    def attend(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, C, h, w) to refined ones, same shape, and attention logits (B, 1, h, w)."""
        refined = self.cbam(features)
        return refined, (self.attention_head(refined) + self.mining_head(features)) / 2

    def adapt(self, refined: Tensor, effective_attention: Tensor) -> Tensor:
        """What the deciding head classifies, (B, C, h, w)."""
        return self.adapter(refined * effective_attention)


class _Gate:
    """Attention logits to effective attention, with S6's mask where there is one."""

    def __init__(self, mask: Tensor | None, has_mask: Tensor | None, *, alpha: float, norm: str) -> None:
        self.mask, self.has_mask, self.alpha, self.norm = mask, has_mask, alpha, norm

    def __call__(self, attention_logits: Tensor) -> Tensor:
        return fuse_attention(attention_logits, self.mask, self.has_mask, alpha=self.alpha, norm=self.norm)

    def of(self, selected: Tensor) -> _Gate:
        """The gate of some of the images."""
        mask = None if self.mask is None else self.mask[selected]
        has_mask = None if self.has_mask is None else self.has_mask[selected]
        return _Gate(mask, has_mask, alpha=self.alpha, norm=self.norm)


class GAINMTLModel(nn.Module):
    """Classifier of normal against defective surfaces that shows, and is taught, where it looks.

    Only the parts that the strategy uses exist.

    Args:
        backbone_arch, pretrained, out_indices, use_mmpretrain: see `get_backbone`.
        num_classes: 2; the CAM is a two-class margin.
        fpn_channels: width of the feature pyramid.
        attention_channels: width inside the attention and mining heads.
        use_counterfactual: False leaves path 3 out of S5 to S7.
        strategy: S1 to S7; S7 is the model of S5, trained on edited pictures besides.
        freeze_backbone_stages: see `Backbone.freeze`.
        head_channels, dropout: of the two classification heads.
        map_stride: of CAM and attention; below 32 a projection of `map_channels` channels replaces conv_head.
        counterfactual_mode: see `Counterfactual`.
        fusion_norm: see `fuse_attention`.
        mask_source: where S6's mask comes from when forward is given none: the model's own ``localization``,
            ``none``, or one of `OUTSIDE_SOURCES`, which must be given.

    Raises:
        ModelError: a value that cannot be used; see also `get_backbone`.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone_arch: str = "s",
        num_classes: int = 2,
        pretrained: bool | str | Path = True,
        fpn_channels: int = 256,
        attention_channels: int = 512,
        use_counterfactual: bool = True,
        strategy: str = "S5",
        *,
        out_indices: Sequence[int] = (1, 2, 3, 4),
        use_mmpretrain: bool = True,
        freeze_backbone_stages: int = -1,
        head_channels: int = 512,
        dropout: float = 0.5,
        map_stride: int = 32,
        map_channels: int = 256,
        counterfactual_mode: str = "learned",
        fusion_norm: str = "sigmoid",
        mask_source: str = "localization",
    ) -> None:
        super().__init__()
        if num_classes != 2:
            raise ModelError(f"num_classes must be 2 (the CAM is a two-class margin), got {num_classes}")
        _one_of("strategy", strategy, tuple(STRATEGY_WEIGHTS))
        _one_of("fusion_norm", fusion_norm, FUSION_NORMS)
        _one_of("mask_source", mask_source, MASK_SOURCES)
        if map_stride not in LEVEL_STRIDES.values():
            raise ModelError(f"map_stride must be one of {list(LEVEL_STRIDES.values())}, got {map_stride}")
        levels = checked_levels(out_indices)
        self.strategy, self.map_stride = strategy, map_stride
        self.fusion_norm, self.mask_source = fusion_norm, mask_source

        map_level = [level for level, stride in LEVEL_STRIDES.items() if stride == map_stride < 32]
        self.backbone = get_backbone(
            backbone_arch,
            pretrained,
            sorted({*levels, *map_level}),
            use_mmpretrain,
            freeze_backbone_stages,
        )
        strides, channels = self.backbone.strides, self.backbone.channels
        self._pyramid_levels = [strides.index(LEVEL_STRIDES[level]) for level in levels]
        self._map_level = strides.index(map_stride)
        self.register_buffer("mean", torch.tensor(self.backbone.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(self.backbone.std).view(1, 3, 1, 1))

        width = map_channels if map_level else channels[-1]
        self.projection = MapProjection(channels[-1], channels[self._map_level], width) if map_level else None
        self.cls_head = ClassificationHead(width, hidden=head_channels, dropout=dropout)
        self.attention: AttentionPath | None = None
        self.localization: nn.ModuleDict | None = None
        self.counterfactual: Counterfactual | None = None
        if strategy >= "S3":
            self.attention = AttentionPath(
                width, attention_channels=attention_channels, head_channels=head_channels, dropout=dropout
            )
        if strategy >= "S4":
            pyramid = PyramidFusion([channels[index] for index in self._pyramid_levels], fpn_channels)
            self.localization = nn.ModuleDict({"pyramid": pyramid, "head": LocalizationHead(fpn_channels)})
        if strategy >= "S5" and use_counterfactual:
            self.counterfactual = Counterfactual(width, mode=counterfactual_mode)

    def parts(self) -> dict[str, nn.Module]:
        """The parts this strategy has, by name; together they hold every parameter once."""
        named = {
            "backbone": self.backbone,
            "projection": self.projection,
            "cls": self.cls_head,
            "attention": self.attention,
            "localization": self.localization,
            "counterfactual": self.counterfactual,
        }
        return {name: part for name, part in named.items() if part is not None}

    def forward(
        self,
        images: Tensor,
        masks: Tensor | None = None,
        *,
        attention_masks: Tensor | None = None,
        has_attention_mask: Tensor | None = None,
        attention_alpha: float = 0.0,
    ) -> GainOutput:
        """Decide and explain; the same record in training and evaluation.

        Args:
            images: RGB in [0, 1], (B, 3, H, W).
            masks: where the defect is, for path 3, (B, 1, H, W); ground truth in training, the predicted mask at
                inference. Images whose mask is empty keep their `logits` in `cf_logits`.
            attention_masks: S6's masks in [0, 1], (B, 1, any, any), area-pooled to the feature grid.
            has_attention_mask: which images have one, bool (B,); None means all.
            attention_alpha: share of the mask that gates as it is.

        Raises:
            ModelError: masks of a wrong shape, for a strategy without them, or missing where they must be given.
        """
        self._check(images, masks, attention_masks)
        features, levels = self.features(images)
        cls_logits = self.cls_head(features)
        cls_cam, _ = class_activation_map(features, self.cls_head)
        if self.attention is None:
            return GainOutput(logits=cls_logits, cam=cls_cam, cls_logits=cls_logits, cls_cam=cls_cam)

        localization_logits = localization_map = None
        if self.localization is not None:
            fused = self.localization["pyramid"]([levels[index] for index in self._pyramid_levels])
            localization_logits = self.localization["head"](fused, images.shape[2:])  # (B, 1, H, W)
            localization_map = localization_logits.sigmoid()

        if self.strategy == "S6" and attention_masks is None and self.mask_source == "localization":
            assert localization_map is not None
            attention_masks = localization_map.detach()
        if attention_masks is not None:
            attention_masks = F.adaptive_avg_pool2d(attention_masks, (features.shape[2], features.shape[3])).to(
                features.dtype
            )
        gate = _Gate(attention_masks, has_attention_mask, alpha=attention_alpha, norm=self.fusion_norm)

        refined, attention_logits = self.attention.attend(features)
        effective = gate(attention_logits)  # (B, 1, h, w)
        adapted = self.attention.adapt(refined, effective)
        logits = self.attention.attended_cls_head(adapted)
        cam, _ = class_activation_map(adapted, self.attention.attended_cls_head)
        return GainOutput(
            logits=logits,
            cam=cam,
            cls_logits=cls_logits,
            cls_cam=cls_cam,
            attended_cls_logits=logits,
            attention_logits=attention_logits,
            attention_map=attention_logits.sigmoid(),
            effective_attention=effective,
            cf_logits=self._decide_without_defect(features, masks, gate, logits),
            localization_logits=localization_logits,
            localization_map=localization_map,
        )

    def features(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """What paths 1 to 3 work on, (B, C, h, w), and the backbone's own levels, of RGB images in [0, 1]."""
        levels = self.backbone((images - self.mean) / self.std)
        if self.projection is None:
            return levels[-1], levels
        return self.projection(levels[-1], levels[self._map_level]), levels

    def _decide_without_defect(
        self, features: Tensor, masks: Tensor | None, gate: _Gate, logits: Tensor
    ) -> Tensor | None:
        """Path 3: the decision of path 2 on features without the defect, (B, 2).

        The deciding head takes part with detached weights: seeing only the answer "normal" here, it would learn to
        give it always. Path 2 runs as at inference, because the question is about the decision it would make, and
        because these features must not enter its batch norms' statistics.
        """
        if masks is None or self.counterfactual is None or self.attention is None:
            return None
        selected = (masks > 0.5).flatten(1).any(1).nonzero()[:, 0]
        cf_logits = logits.detach().clone()
        if not len(selected):
            return cf_logits
        suppressed = self.counterfactual(features[selected], masks[selected])
        with as_at_inference(self.attention):
            refined, attention_logits = self.attention.attend(suppressed)
            adapted = self.attention.adapt(refined, gate.of(selected)(attention_logits))
            head = self.attention.attended_cls_head
            detached = {name: parameter.detach() for name, parameter in head.named_parameters()}
            decided = functional_call(head, detached, (adapted,))
        return cf_logits.index_copy(0, selected, decided.to(cf_logits.dtype))

    def _check(self, images: Tensor, masks: Tensor | None, attention_masks: Tensor | None) -> None:
        for name, given in (("masks", masks), ("attention_masks", attention_masks)):
            if given is not None and (given.ndim != 4 or given.shape[:2] != (len(images), 1)):
                raise ModelError(f"{name} must be ({len(images)}, 1, height, width), got {tuple(given.shape)}")
        if self.strategy != "S6":
            if attention_masks is not None:
                raise ModelError(f"attention_masks are for strategy S6, this model is {self.strategy}")
        elif attention_masks is None and self.mask_source in OUTSIDE_SOURCES:
            raise ModelError(f"mask_source '{self.mask_source}': attention_masks must be given")


def _one_of(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ModelError(f"{name} must be one of {', '.join(known)}, got '{value}'")
