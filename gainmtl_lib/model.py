"""The GAIN-MTL network: the heads, the class activation map, the counterfactual, and what the whole says.

Sizes: B images, C channels, H x W network input, h x w feature grid (H / map_stride).
"""

import inspect
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torchvision.ops import Conv2dNormActivation, FeaturePyramidNetwork

from gainmtl_lib.backbone import LEVEL_STRIDES, ModelError, checked_levels, get_backbone
from gainmtl_lib.settings import PARTS, Settings


@dataclass
class GainOutput:
    """What the model says, by attribute or key. Fields the strategy lacks are None."""

    logits: Tensor  # the strategy's decision, (B, 2): `attended_cls_logits` for S3-S7, `cls_logits` for the others
    cam: Tensor  # class activation map of the deciding head, (B, 1, h, w), unbounded margin; of S8 the evidence
    cls_logits: Tensor  # path 1, (B, 2); of S8 read from the evidence
    cls_cam: Tensor  # CAM of path 1, (B, 1, h, w)
    attended_cls_logits: Tensor | None = None  # path 2, (B, 2)
    attention_logits: Tensor | None = None  # (B, 1, h, w), mining averaged in
    attention_map: Tensor | None = None  # sigmoid of `attention_logits`
    effective_attention: Tensor | None = None  # what gates the features: `attention_map`, in S6 fused with the mask
    cf_logits: Tensor | None = None  # the decision with the defect suppressed, (B, 2); needs masks
    localization_logits: Tensor | None = None  # (B, 1, H, W)
    localization_map: Tensor | None = None  # sigmoid of `localization_logits`
    deciding_features: Tensor | None = None  # those that decide, where `cam` is strongest, (B, 3 C); none in training
    type_logits: Tensor | None = None  # which defect it would be, (B, types), see `TypeHead`

    def __getitem__(self, key: str) -> Tensor | None:
        return getattr(self, key)

    def keys(self) -> list[str]:
        """Names of all fields, those that are None included."""
        return [field.name for field in fields(self)]


# --- Layers


def _convolutions(channels: int, hidden: int, out_channels: int, *, first: int = 3) -> nn.Sequential:
    return nn.Sequential(
        Conv2dNormActivation(channels, hidden, first),
        Conv2dNormActivation(hidden, hidden, 3),
        nn.Conv2d(hidden, out_channels, 1),
    )


class CBAM(nn.Module):
    """Channel, then spatial attention (Woo et al., ECCV 2018), as its equations have it: no batch norm on the gate."""

    def __init__(self, channels: int, *, reduction: int = 16, kernel_size: int = 7) -> None:
        super().__init__()
        hidden = max(8, channels // reduction)  # fewer rectified units can all be off, and then never come back
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))
        self.spatial = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2)

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, C, h, w) to the same shape."""
        gate = self.mlp(features.mean((2, 3))) + self.mlp(features.amax((2, 3)))  # (B, C)
        features = features * gate.sigmoid()[:, :, None, None]
        pooled = torch.cat([features.mean(1, keepdim=True), features.amax(1, keepdim=True)], 1)  # (B, 2, h, w)
        return features * self.spatial(pooled).sigmoid()


class PyramidFusion(nn.Module):
    """Feature pyramid (Lin et al., 2017) of levels given finest first, resized to the finest and summed."""

    def __init__(self, in_channels: list[int], channels: int) -> None:
        super().__init__()
        self.pyramid = FeaturePyramidNetwork(in_channels, channels)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Levels, finest first, to (B, channels, h, w) on the finest grid."""
        fused, *coarser = self.pyramid({str(index): level for index, level in enumerate(levels)}).values()
        for level in coarser:
            fused = fused + F.interpolate(level, size=fused.shape[2:], mode="bilinear")
        return fused


class MapProjection(nn.Module):
    """Features for maps finer than stride 32: the levels from that stride on, finest first, summed there and mixed."""

    def __init__(self, in_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(own, channels, 1) for own in in_channels)
        self.mix = Conv2dNormActivation(channels, channels, 3)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Levels, the finest (B, _, h, w), to (B, channels, h, w)."""
        fused, *coarser = (project(level) for project, level in zip(self.lateral, levels, strict=True))
        for level in coarser:
            fused = fused + F.interpolate(level, size=fused.shape[2:], mode="bilinear")
        return self.mix(fused)


def fuse_attention(
    attention_logits: Tensor, mask: Tensor | None, has_mask: Tensor | None = None, *, alpha: float, norm: str
) -> Tensor:
    """What gates the features: own attention (B, 1, h, w), confirmed by a mask in [0, 1] for the images that have one.

    alpha * mask + (1 - alpha) * mask * sigma(logits); without a mask sigma(logits). A product of two numbers in
    [0, 1], so that low attention stays low whatever the mask says. The norm ``"product"`` divides it by its maximum per
    image, which turns a uniform 0.01 into 1: kept for comparison only.
    """
    attention = attention_logits.sigmoid()
    if mask is None:
        return attention
    fused = mask * attention
    if norm == "product":
        fused = fused / fused.amax((1, 2, 3), keepdim=True).clamp(min=1e-6)
    fused = alpha * mask + (1 - alpha) * fused
    return fused if has_mask is None else torch.where(has_mask[:, None, None, None], fused, attention)


class Tiles:
    """How overlapping tiles cover a picture (H, W), and how their maps become one of the whole without a seam.

    Sides of picture and tile are multiples of 32, and so are the steps: cells of tiles and picture coincide. Neighbours
    share `overlap` of a tile or a little more, within which one map gives way to the next linearly; of 32 pixels none.

    Attributes:
        places: rows and columns of each tile, in the order in which `join` expects their maps.
    """

    def __init__(self, size: tuple[int, int], tile: tuple[int, int], overlap: float) -> None:
        self.size, self.tile = size, (min(size[0], tile[0]), min(size[1], tile[1]))
        self._starts = [_tile_starts(side, own, overlap) for side, own in zip(size, self.tile)]
        height, width = self.tile
        self.places = [(slice(y, y + height), slice(x, x + width)) for y, x in product(*self._starts)]

    def join(self, parts: Sequence[Tensor], *, border: int = 0) -> Tensor:
        """Maps of the tiles, (B, C, h, w) each, to one of the whole.

        `border` cells at a tile's edges count for nothing where another tile shows them, and are 0 where none does.
        """
        stride = self.tile[0] // parts[0].shape[2]
        rows, columns = (
            _tile_weights([start // stride for start in starts], own // stride, side // stride, border)
            for starts, own, side in zip(self._starts, self.tile, self.size)
        )
        whole = parts[0].new_zeros((*parts[0].shape[:2], *(side // stride for side in self.size)))
        for part, (y, x), (down, across) in zip(parts, self.places, product(rows, columns), strict=True):
            place = slice(y.start // stride, y.stop // stride), slice(x.start // stride, x.stop // stride)
            whole[:, :, *place] += part * torch.outer(down, across).to(part)
        return whole


def _tile_starts(side: int, tile: int, overlap: float) -> list[int]:
    step = max(32, int(tile * (1 - overlap)) // 32 * 32)
    return [*range(0, side - tile, step), side - tile]


def _tile_weights(starts: Sequence[int], tile: int, side: int, border: int) -> list[Tensor]:
    """Of the cells of each tile along a side, (tile,); they add up to 1, on a picture's border that none shows to 0."""
    ramp = torch.minimum(torch.arange(tile), torch.arange(tile).flip(0)).add(0.5 - border).clamp(min=0)
    total = torch.zeros(side)
    for start in starts:
        total[start : start + tile] += ramp
    return [ramp / total[start : start + tile].clamp(min=1e-6) for start in starts]


# --- The heads, and their class activation map


class ClassificationHead(nn.Module):
    """Average pooling and two linear layers, normal against defective."""

    def __init__(self, channels: int, *, hidden: int, dropout: float) -> None:
        super().__init__()
        self.hidden = nn.Linear(channels, hidden)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(hidden, 2)

    def forward(self, features: Tensor) -> Tensor:
        """Shape: (B, C, h, w) -> (B, 2), logits."""
        return self.out(self.dropout(F.relu(self.hidden(features.mean((2, 3))))))


class EvidenceHead(nn.Module):
    """The decision read from a map: one logit per cell, and of the strongest of them the margin.

    margin = max over k of scale_k * mean(k strongest cells) + offset_k, so that the map is the decision, cell by cell:
    the mean over few cells sees a small defect, which hardly moves the mean over many, and that sees a large pale one,
    whose single cells are no stronger than chance. `cells` names every k: a number and no share, because a defect has
    as many cells in a crop as in the whole picture.
    """

    def __init__(self, channels: int, *, cells: Sequence[int]) -> None:
        super().__init__()
        self.cells = tuple(cells)
        self.cell = nn.Conv2d(channels, 1, 1)
        nn.init.constant_(self.cell.bias, -3.0)  # type: ignore[arg-type]  # start with all cells calm: defects are rare
        counts = torch.tensor(self.cells, dtype=torch.float32)
        self.log_scale = nn.Parameter(torch.zeros(len(counts)))
        # At equal offsets the fewest would always win. √k, by which chance shrinks in a mean of k, as a logit.
        self.offset = nn.Parameter((counts / counts.min()).log() / 2)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, C, h, w) to the margin as logits (B, 2), and the evidence (B, 1, h, w), both in float32."""
        with torch.autocast(features.device.type, enabled=False):
            evidence = self.cell(features.float())
            return self.logits(evidence), evidence

    def logits(self, evidence: Tensor) -> Tensor:
        """Of a map (B, 1, h, w) the margin as logits, (B, 2)."""
        margin = self.margin(evidence)
        return torch.stack([-margin, margin], dim=1) / 2

    def margin(self, evidence: Tensor) -> Tensor:
        """Of a map (B, 1, h, w): logit1 - logit0, (B,). Of a map with fewer cells than decide, all count."""
        cells = evidence.flatten(1)
        strongest = cells.topk(min(max(self.cells), cells.shape[1]), dim=1).values
        means = torch.stack([strongest[:, :count].mean(dim=1) for count in self.cells], dim=1)
        return (self.log_scale.exp() * means + self.offset).amax(dim=1)


DECIDING_SHARES = (0.0, 0.0125, 0.05)
"""Of the cells of a map, the strongest; of 0 a single one. Chosen by cross-validation over the training and validation
tiles: together they tell types apart better than each, with the features of S1 and S8."""


def deciding_features(features: Tensor, cam: Tensor) -> Tensor:
    """Means of features (B, C, h, w) over the strongest `DECIDING_SHARES` of the cells of a map (B, 1, h, w), one after
    the other, (B, 3 C)."""
    cells = cam.flatten(1)
    counts = [max(1, round(share * cells.shape[1])) for share in DECIDING_SHARES]
    strongest = cells.topk(max(counts), dim=1).indices  # (B, k)
    seen = features.flatten(2).float().gather(2, strongest[:, None].expand(-1, features.shape[1], -1))
    return torch.cat([seen[:, :, :count].mean(2) for count in counts], dim=1)


class TypeHead(nn.Module):
    """Which of several defects it is, by `deciding_features`, of a model `width` channels wide.

    It is fitted once the verdict is learnt (`gainmtl_lib.defect_types`), and no training ever moves it or what it
    reads.
    """

    def __init__(self, width: int, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        self.out = nn.Linear(len(DECIDING_SHARES) * width, len(self.names)).requires_grad_(requires_grad=False)

    def forward(self, features: Tensor) -> Tensor:
        """Shape: (B, 3 C) -> (B, types), logits."""
        return self.out(features)


class AttentionHead(nn.Module):
    """One attention logit per cell, sharpened by a learned temperature."""

    def __init__(self, channels: int, *, hidden: int) -> None:
        super().__init__()
        self.body = _convolutions(channels, hidden, 1)
        self.log_temperature = nn.Parameter(torch.zeros(()))  # learned as a logarithm: it cannot reach zero

    def forward(self, features: Tensor) -> Tensor:
        """Shape: (B, C, h, w) -> (B, 1, h, w), unbounded logits."""
        return self.body(features) / self.log_temperature.exp()


class LocalizationHead(nn.Module):
    """Defect logits per pixel from the fused pyramid of `channels`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = _convolutions(channels, channels, 1)

    def forward(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """Shape: (B, C, h, w) -> (B, 1, *size), upsampled fourfold and then to `size`."""
        logits = F.interpolate(self.body(features), scale_factor=4.0, mode="bilinear")
        return logits if logits.shape[2:] == size else F.interpolate(logits, size=size, mode="bilinear")


def class_activation_map(features: Tensor, head: ClassificationHead) -> tuple[Tensor, Tensor]:
    """Where a two-layer head sees its margin in (B, C, h, w): map (B, 1, h, w) and effective bias (B,).

    mean(cam) + bias = logit1 - logit0, exact and differentiable. Dropout is left out, also in training: the map is of
    the head as it decides. Computed in float32.
    """
    with torch.autocast(features.device.type, enabled=False):
        features = features.float()
        w1, b1 = head.hidden.weight.float(), head.hidden.bias.float()
        margin = head.out.weight[1].float() - head.out.weight[0].float()  # (hidden,)
        hidden = features.mean((2, 3)) @ w1.T + b1  # (B, hidden)
        gated = (hidden > 0) * margin
        weight = gated @ w1  # (B, C)
        bias = gated @ b1 + (head.out.bias[1] - head.out.bias[0]).float()
        cam = weight[:, None] @ features.flatten(2)  # (B, 1, h * w)
        return cam.unflatten(2, features.shape[2:]), bias


# --- The counterfactual: features without the defect, and the control that moves the mask off it


class Counterfactual(nn.Module):
    """Replace the features of the defect region and leave every other cell as it is.

    ``learned`` suppresses, replaces and refines by convolutions, ``mean`` takes the surrounding features (nothing to
    learn, so no loophole), ``zero`` none.
    """

    def __init__(self, channels: int, *, mode: str = "learned") -> None:
        super().__init__()
        self.mode = mode
        if mode == "learned":
            hidden = max(8, channels // 4)
            self.suppressor = _convolutions(1, hidden, channels)
            nn.init.constant_(self.suppressor[-1].bias, 2.0)  # type: ignore[arg-type]  # start by suppressing 88 %
            self.replacer = _convolutions(channels, hidden, channels, first=1)
            self.refiner = _convolutions(channels, hidden, channels, first=1)

    def forward(self, features: Tensor, masks: Tensor) -> Tensor:
        """Shape: (B, C, h, w), (B, 1, H, W) -> (B, C, h, w)."""
        cells = F.adaptive_max_pool2d((masks > 0.5).float(), features.shape[2:])  # that hold a defect pixel
        region, around_it = (dilated(cells, margin).to(features.dtype) for margin in (1, 3))
        if self.mode == "zero":
            return features * (1 - region)
        if self.mode == "mean":  # of the two cells around the region; zero where that fills the grid
            ring = around_it - region
            around = (features * ring).sum((2, 3), keepdim=True) / ring.sum((2, 3), keepdim=True).clamp(min=1)
            return features * (1 - region) + around * region
        suppression = self.suppressor(cells.to(features.dtype)).sigmoid() * region  # (B, C, h, w)
        features = features + (self.replacer(features) - features) * suppression
        return features + self.refiner(features) * region


def dilated(masks: Tensor, margin: int) -> Tensor:
    """Binary masks (B, 1, H, W) grown by a square of `margin` cells to each side."""
    size = 2 * margin + 1
    rows = F.max_pool2d(masks, (size, 1), stride=1, padding=(margin, 0))
    return F.max_pool2d(rows, (1, size), stride=1, padding=(0, margin))


@contextmanager
def as_at_inference(module: nn.Module) -> Iterator[None]:
    """Run a module with its batch norms' running statistics, which stay as they are, and without dropout."""
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


def control_masks(masks: Tensor, *, margin: int | None = None, inside: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The same masks, (B, 1, H, W), moved off the defect, and which were placed: the others are all zero.

    Suppressing there must not change the decision. Where to is drawn among all places from the mask itself: the same
    every time, and not always the same corner.

    Args:
        margin: pixels to keep between the defect and its moved copy; None is a sixteenth of the shorter side.
            ``2 * map_stride`` keeps the copy's dilated region clear of the defect's cells.
        inside: where the pictures lie, bool, of the same shape. A copy in the flat bars beside a letterboxed picture
            would be a control that hardly ever changes anything.
    """
    defects = (masks > 0.5).float()
    forbidden = dilated(defects, min(masks.shape[2:]) // 16 if margin is None else margin)
    if inside is not None:
        forbidden = torch.maximum(forbidden, 1 - inside.to(forbidden))
    moved = torch.zeros_like(masks)
    for index in defects.flatten(1).any(dim=1).nonzero()[:, 0].tolist():
        # (H, W) each; float32 sums of large masks are not exact
        defect, taken = (part[index, 0].cpu().double() for part in (defects, forbidden))
        height, width = defect.shape
        rows, columns = defect.any(1).nonzero()[:, 0], defect.any(0).nonzero()[:, 0]
        # overlap[dy, dx] = sum of taken * defect rolled by (dy, dx): a circular correlation.
        spectrum = torch.fft.rfft2(taken) * torch.fft.rfft2(defect).conj()
        overlap = torch.fft.irfft2(spectrum, s=(height, width)).round()
        dy = torch.arange(-int(rows[0]), height - int(rows[-1]))
        dx = torch.arange(-int(columns[0]), width - int(columns[-1]))
        free = (overlap[dy % height][:, dx % width] == 0).nonzero()
        if len(free):
            drawn = (int(rows.sum()) * 7919 + int(columns.sum()) * 104729 + int(defect.sum())) % len(free)
            moved[index, 0] = defects[index, 0].roll((int(dy[free[drawn, 0]]), int(dx[free[drawn, 1]])), (0, 1))
    return moved, moved.flatten(1).any(dim=1)


# --- GAIN-MTL

OUTSIDE_SOURCES = ("efficientad", "external", "other", "oracle")  # of S6's masks, which the model must be given


class AttentionPath(nn.Module):
    """Path 2: where to look, and the decision on what is seen there."""

    def __init__(self, channels: int, *, hidden: int, head_channels: int, dropout: float, fusion_norm: str) -> None:
        super().__init__()
        self.fusion_norm = fusion_norm
        self.cbam = CBAM(channels)
        self.attention_head = AttentionHead(channels, hidden=hidden)
        # "Attention mining": the same of the raw features, without a temperature.
        self.mining_head = nn.Sequential(OrderedDict(body=_convolutions(channels, hidden, 1)))
        self.adapter = nn.Sequential(OrderedDict(body=Conv2dNormActivation(channels, channels, 1)))
        self.attended_cls_head = ClassificationHead(channels, hidden=head_channels, dropout=dropout)

    def forward(
        self, features: Tensor, mask: Tensor | None, has_mask: Tensor | None, *, alpha: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Attention logits and, with the mask, what gates the features, (B, 1, h, w), and what the head is to see."""
        refined = self.cbam(features)
        logits = (self.attention_head(refined) + self.mining_head(features)) / 2
        effective = fuse_attention(logits, mask, has_mask, alpha=alpha, norm=self.fusion_norm)
        return logits, effective, self.adapter(refined * effective)


def margin_of(logits: Tensor) -> Tensor:
    """What speaks for a defect: of logits (B, 2) the second less the first, (B,)."""
    return logits[:, 1].float() - logits[:, 0].float()


def defect_probability(logits: Tensor, calibration: tuple[float, float]) -> Tensor:
    """Of logits (B, 2), in [0, 1], (B,); `calibration` is that of the model."""
    slope, offset = calibration
    return torch.sigmoid(slope * margin_of(logits) + offset)


class GAINMTLModel(nn.Module):
    """Classifier of normal against defective surfaces that shows, and is taught, where it looks.

    Args:
        backbone_arch, pretrained, out_indices, use_mmpretrain, freeze_backbone_stages: see `get_backbone`.
        num_classes: 2; the CAM is a two-class margin.
        fpn_channels, attention_channels: width of the feature pyramid, and inside the attention and mining heads.
        use_counterfactual: False leaves path 3 out of S5 to S8.
        strategy: S1 to S8, whose parts alone exist; S7 is the model of S5, trained on edited pictures besides. In S8
            an `EvidenceHead` decides in place of path 1, and path 3 is of the mode ``mean``: it has nothing to learn.
        head_channels, dropout: of the two classification heads.
        map_stride: of CAM and attention; below 32 a projection of `map_channels` channels replaces conv_head.
        evidence_cells: of how many of S8's cells, the strongest, the margin may be the mean.
        tile_size, tile_overlap: pictures larger than this go through the network in overlapping `Tiles` outside
            training, so that its memory does not grow with the picture. S8's margin is then that of the joined
            evidence, that of the others the highest of a tile. None: never.
        counterfactual_mode, fusion_norm: see `Counterfactual`, `fuse_attention`.
        mask_source: where S6's mask comes from when forward is given none: the model's own ``localization``,
            ``none``, or one of `OUTSIDE_SOURCES`, which must be given.

    Raises:
        ModelError: a value that cannot be used; see also `get_backbone`.
    """

    calibration = (1.0, 0.0)  # slope and offset of the margin, which a run's evaluation fits on validation

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
        evidence_cells: Sequence[int] = (2, 40),
        tile_size: tuple[int, int] | None = None,
        tile_overlap: float = 0.25,
    ) -> None:
        super().__init__()
        if num_classes != 2:
            raise ModelError(f"num_classes must be 2 (the CAM is a two-class margin), got {num_classes}")
        choices = {"strategy": strategy, "map_stride": map_stride, "counterfactual_mode": counterfactual_mode}
        for name, value in (choices | {"fusion_norm": fusion_norm, "mask_source": mask_source}).items():
            if value not in (known := get_args(Settings.model_fields[name].annotation)):
                raise ModelError(f"{name} must be one of {', '.join(map(str, known))}, got '{value}'")
        levels = checked_levels(out_indices)
        self.strategy, self.map_stride, self.mask_source = strategy, map_stride, mask_source
        self.tile_size, self.tile_overlap = tile_size, tile_overlap

        map_levels = [level for level, stride in LEVEL_STRIDES.items() if map_stride <= stride < 32]
        wanted = sorted({*levels, *map_levels})
        self.backbone = get_backbone(backbone_arch, pretrained, wanted, use_mmpretrain, freeze_backbone_stages)
        strides, channels = self.backbone.strides, self.backbone.channels
        self._pyramid_levels = [strides.index(LEVEL_STRIDES[level]) for level in levels]
        # conv_head, the last, in place of the level of stride 32
        self._map_levels = [*(strides.index(LEVEL_STRIDES[level]) for level in map_levels), len(strides) - 1]
        self.mean = nn.Buffer(torch.tensor(self.backbone.mean).view(1, 3, 1, 1))
        self.std = nn.Buffer(torch.tensor(self.backbone.std).view(1, 3, 1, 1))

        width = map_channels if map_levels else channels[-1]
        mapped = [channels[index] for index in self._map_levels]
        self.projection = MapProjection(mapped, width) if map_levels else None
        parts = PARTS[strategy]
        self.width = width
        self.types: TypeHead | None = None  # see `gainmtl_lib.defect_types`
        self.cls_head = self.evidence = self.attention = self.localization = self.counterfactual = None
        if "evidence" in parts:
            self.evidence = EvidenceHead(width, cells=evidence_cells)
        else:
            self.cls_head = ClassificationHead(width, hidden=head_channels, dropout=dropout)
        if "attention" in parts:
            self.attention = AttentionPath(
                width, hidden=attention_channels, head_channels=head_channels, dropout=dropout, fusion_norm=fusion_norm
            )
        if "localization" in parts:
            pyramid = PyramidFusion([channels[index] for index in self._pyramid_levels], fpn_channels)
            self.localization = nn.ModuleDict({"pyramid": pyramid, "head": LocalizationHead(fpn_channels)})
        if "counterfactual" in parts and use_counterfactual:
            self.counterfactual = Counterfactual(width, mode="mean" if self.evidence else counterfactual_mode)

    def forward(
        self,
        images: Tensor,
        masks: Tensor | None = None,
        *,
        attention_masks: Tensor | None = None,
        has_attention_mask: Tensor | None = None,
        attention_alpha: float = 0.0,
    ) -> GainOutput:
        """Decide and explain; the same record in training and evaluation, but for what names the type.

        Args:
            images: RGB in [0, 1], (B, 3, H, W).
            masks: where the defect is, for path 3, (B, 1, H, W). Images whose mask is empty keep their `logits` in
                `cf_logits`.
            attention_masks: S6's masks in [0, 1], (B, 1, any, any), area-pooled to the feature grid.
            has_attention_mask: which images have one, bool (B,); None means all.
            attention_alpha: share of the mask that gates as it is.

        Raises:
            ModelError: masks of a wrong shape, for a strategy without them, or missing where they must be given.
        """
        for name, given in (("masks", masks), ("attention_masks", attention_masks)):
            if given is not None and (given.ndim != 4 or given.shape[:2] != (len(images), 1)):
                raise ModelError(f"{name} must be ({len(images)}, 1, height, width), got {tuple(given.shape)}")
        if attention_masks is not None and self.strategy != "S6":
            raise ModelError(f"attention_masks are for strategy S6, this model is {self.strategy}")
        if attention_masks is None and self.strategy == "S6" and self.mask_source in OUTSIDE_SOURCES:
            raise ModelError(f"mask_source '{self.mask_source}': attention_masks must be given")
        size = (images.shape[2], images.shape[3])
        fits = self.tile_size is None or all(side <= own for side, own in zip(size, self.tile_size))
        tiles = None if fits or self.training else Tiles(size, self.tile_size or size, self.tile_overlap)
        if self.evidence is not None:
            return self._of_evidence(images, masks, tiles)
        given = has_attention_mask, attention_alpha
        if tiles is None:
            return self._of_classes(images, masks, attention_masks, *given)
        if attention_masks is not None:
            attention_masks = F.interpolate(attention_masks, size=size, mode="bilinear")
        return _joined(
            [
                self._of_classes(images[..., *at], _cut(masks, at), _cut(attention_masks, at), *given)
                for at in tiles.places
            ],
            tiles,
        )

    def _of_classes(
        self,
        images: Tensor,
        masks: Tensor | None,
        attention_masks: Tensor | None,
        has_attention_mask: Tensor | None,
        attention_alpha: float,
    ) -> GainOutput:
        """What the classification heads of S1 to S7 decide, and why; see `forward`."""
        assert self.cls_head is not None
        features, levels = self.features(images)
        cls_logits, (cls_cam, _) = self.cls_head(features), class_activation_map(features, self.cls_head)
        output = GainOutput(logits=cls_logits, cam=cls_cam, cls_logits=cls_logits, cls_cam=cls_cam)
        deciding = features
        if self.localization is not None:
            fused = self.localization["pyramid"]([levels[index] for index in self._pyramid_levels])
            output.localization_logits = logits = self.localization["head"](fused, images.shape[2:])  # (B, 1, H, W)
            output.localization_map = own_mask = logits.sigmoid()
            if self.strategy == "S6" and attention_masks is None and self.mask_source == "localization":
                attention_masks = own_mask.detach()
        if self.attention is not None:
            if attention_masks is not None:
                attention_masks = F.adaptive_avg_pool2d(attention_masks, features.shape[2:]).to(features.dtype)  # type: ignore[arg-type]
            gate = attention_masks, has_attention_mask
            logits, output.effective_attention, deciding = self.attention(features, *gate, alpha=attention_alpha)
            output.attention_logits, output.attention_map = logits, logits.sigmoid()
            output.logits = output.attended_cls_logits = self.attention.attended_cls_head(deciding)
            output.cam, _ = class_activation_map(deciding, self.attention.attended_cls_head)
            output.cf_logits = self._without_defect(features, masks, output.logits, gate, attention_alpha)
        if not self.training:
            output.deciding_features = deciding_features(deciding, output.cam)
            output.type_logits = None if self.types is None else self.types(output.deciding_features)
        return output

    def features(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """What paths 1 to 3 work on, (B, C, h, w), and the backbone's own levels, of RGB images in [0, 1]."""
        levels = self.backbone((images - self.mean) / self.std)
        if self.projection is None:
            return levels[-1], levels
        return self.projection([levels[index] for index in self._map_levels]), levels

    def _of_evidence(self, images: Tensor, masks: Tensor | None, tiles: Tiles | None) -> GainOutput:
        """S8's record; path 3 asks the same head of features whose defect gave way to its surroundings."""
        assert self.evidence is not None
        if tiles is None:
            evidence, deciding, without = self._evidence(images, masks)
        else:
            parts = [self._evidence(images[..., *at], _cut(masks, at)) for at in tiles.places]
            evidence = tiles.join([own for own, _, _ in parts])
            margins = torch.stack([self.evidence.margin(own) for own, _, _ in parts])
            deciding = _of_worst(torch.stack([own for _, own, _ in parts if own is not None]), margins)
            suppressed = [own for _, _, own in parts if own is not None]
            without = tiles.join(suppressed) if suppressed else None
        logits = self.evidence.logits(evidence)
        output = GainOutput(logits=logits, cam=evidence, cls_logits=logits, cls_cam=evidence)
        output.localization_logits = F.interpolate(evidence, size=images.shape[2:], mode="bilinear")  # (B, 1, H, W)
        output.localization_map = output.localization_logits.sigmoid()
        if masks is not None and without is not None:
            asked = (masks > 0.5).flatten(1).any(1)[:, None]
            output.cf_logits = torch.where(asked, self.evidence.logits(without), logits)
        if deciding is not None:
            output.deciding_features = deciding
            output.type_logits = None if self.types is None else self.types(deciding)
        return output

    def _evidence(self, images: Tensor, masks: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Evidence (B, 1, h, w), the features that decide (B, 3 C), and with masks the evidence without the defect."""
        assert self.evidence is not None
        features, _ = self.features(images)
        _, evidence = self.evidence(features)
        deciding = None if self.training else deciding_features(features, evidence)
        if masks is None or self.counterfactual is None:
            return evidence, deciding, None
        return evidence, deciding, self.evidence(self.counterfactual(features, masks))[1]

    def _without_defect(
        self, features: Tensor, masks: Tensor | None, logits: Tensor, gate: tuple[Tensor | None, ...], alpha: float
    ) -> Tensor | None:
        """Path 3: the decision of path 2 on features without the defect, (B, 2)."""
        if masks is None or self.counterfactual is None or self.attention is None:
            return None
        cf_logits = logits.detach().clone()
        selected = (masks > 0.5).flatten(1).any(1).nonzero()[:, 0]
        if not len(selected) and not self.training:  # in training batch norm may wait for what other processes have
            return cf_logits
        suppressed = self.counterfactual(features[selected], masks[selected])
        gate = tuple(part if part is None else part[selected] for part in gate)
        # At inference: these features must not enter path 2's statistics, and the question is what it would decide. The
        # head's weights are detached: seeing only the answer "normal" here, it would learn to give it always.
        with as_at_inference(self.attention):
            _, _, seen = self.attention(suppressed, *gate, alpha=alpha)
            head = self.attention.attended_cls_head
            decided = functional_call(head, {name: p.detach() for name, p in head.named_parameters()}, (seen,))
        return cf_logits.index_copy(0, selected, decided.to(cf_logits.dtype))


def _cut(masks: Tensor | None, place: tuple[slice, slice]) -> Tensor | None:
    return None if masks is None else masks[..., *place]


def _joined(outputs: Sequence[GainOutput], tiles: Tiles) -> GainOutput:
    """One record of the whole: maps are joined, and each path says what it says of the tile that is worst."""
    whole: dict[str, Tensor] = {}
    decided = torch.stack([output.logits for output in outputs])  # (tiles, B, 2)
    for name in (field.name for field in fields(GainOutput)):
        parts: Any = [output[name] for output in outputs]
        if parts[0] is None:
            continue
        if parts[0].ndim == 4:
            whole[name] = tiles.join(parts)
        else:
            values = torch.stack(parts)
            margins = (values if name.endswith("cls_logits") or name == "cf_logits" else decided).diff(dim=2)[..., 0]
            whole[name] = _of_worst(values, margins)
    return GainOutput(**whole)


def _of_worst(values: Tensor, margins: Tensor) -> Tensor:
    """Of values (tiles, B, K) those of the tile with the highest margin (tiles, B), (B, K)."""
    worst = margins.argmax(dim=0)[None, :, None]  # (1, B, 1)
    return values.gather(0, worst.expand(-1, -1, values.shape[2]))[0]


def build_model(settings: Settings, *, pretrained: bool | Literal["auto"] | Path | None = None) -> GAINMTLModel:
    """The model of a run's settings; `pretrained` in place of their own: False where weights are loaded afterwards."""
    given: dict[str, Any] = {} if pretrained is None else {"pretrained": pretrained}
    return GAINMTLModel(
        **{name: getattr(settings, name) for name in inspect.signature(GAINMTLModel).parameters} | given
    )
