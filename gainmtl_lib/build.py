"""The one place where settings become parts: data and model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import pandas as pd

from gainmtl_lib.data.boxes.labels import BoxSource, read_boxes
from gainmtl_lib.data.datamodule import GainDataModule
from gainmtl_lib.data.findings import DataError
from gainmtl_lib.data.samples import read_samples
from gainmtl_lib.data.splits import split_samples
from gainmtl_lib.data.synthetic import make_synthetic
from gainmtl_lib.models.gain_mtl import GAINMTLModel
from gainmtl_lib.run_settings import RunSettings
from gainmtl_lib.settings import Settings


def make_data(settings: RunSettings) -> None:
    """Make synthetic data where it is missing; data of any other type is left to its owner."""
    if settings.dataset_type == "synthetic":
        make_synthetic(
            settings.data_root,
            num_samples=settings.num_samples,
            image_size=settings.image_size,
            seed=settings.synthetic_seed,
            shortcut=settings.shortcut,
            shortcut_correlation=settings.shortcut_correlation,
        )


def build_samples(settings: RunSettings) -> pd.DataFrame:
    """The table of samples with its split; synthetic data is made first where it is missing."""
    make_data(settings)
    samples = read_samples(settings.data_root, dataset_type=settings.dataset_type, group_pattern=settings.group_pattern)
    return split_samples(
        with_boxes(samples, settings),
        val_ratio=settings.val_ratio,
        test_ratio=settings.test_ratio,
        seed=settings.seed_of_split,
    )


def with_boxes(samples: pd.DataFrame, settings: RunSettings) -> pd.DataFrame:
    """The table of samples as it is, or with masks drawn from boxes where these are the labels.

    Raises:
        DataError: see `read_boxes` and `box_source`.
    """
    source = box_source(settings)
    return samples if source is None else read_boxes(samples, settings.dataset_folder, source)


def box_source(settings: RunSettings) -> BoxSource | None:
    """Where the boxes come from; None where masks are the labels.

    Raises:
        DataError: a place of boxes is given, but masks are the labels.
    """
    if settings.label_kind == "box":
        return BoxSource(settings.box_labels, settings.outputs_dir / "data", settings.image_size, settings.resize)
    if settings.box_labels is not None:
        raise DataError("box_labels is given, but label_kind is 'mask'; set label_kind: box, or leave box_labels out")
    return None


def box_labels_of(settings: RunSettings, data_root: Path) -> Path | None:
    """Box labels of other data than the settings' own: at the same place below its folder, else at the usual places.

    Labels from outside the dataset's folder describe its own pictures, and are never taken for others.
    """
    labels = settings.box_labels
    if labels is None:
        return None
    place, own = Path(os.path.abspath(labels)), Path(os.path.abspath(settings.data_root))
    return data_root / place.relative_to(own) if place.is_relative_to(own) else None


def build_data(settings: Settings, samples: pd.DataFrame | None = None) -> GainDataModule:
    """Loaders over the samples, at the network's input size."""
    return GainDataModule(
        build_samples(settings) if samples is None else samples,
        image_size=settings.image_size,
        resize=settings.resize,
        batch_size=settings.batch_size,
        seed=settings.seed,
        hflip_prob=settings.hflip_prob,
        vflip_prob=settings.vflip_prob,
        rotate90_prob=settings.rotate90_prob,
        color_jitter_prob=settings.color_jitter_prob,
        gaussian_noise_prob=settings.gaussian_noise_prob,
        image_counterfactual=settings.image_counterfactual,
        mask_share=settings.mask_share,
        mask_quality=settings.mask_quality,
        mask_seed=settings.seed_of_split,
        num_workers=settings.num_workers,
        cache_images=settings.cache_images,
        skip_unreadable=settings.skip_unreadable,
    )


def build_model(settings: Settings, *, pretrained: bool | Literal["auto"] | Path | None = None) -> GAINMTLModel:
    """The strategy's model.

    Args:
        settings: its architecture.
        pretrained: in place of the settings' own; False when weights are loaded afterwards.
    """
    return GAINMTLModel(
        backbone_arch=settings.backbone_arch,
        num_classes=settings.num_classes,
        pretrained=settings.pretrained if pretrained is None else pretrained,
        fpn_channels=settings.fpn_channels,
        attention_channels=settings.attention_channels,
        use_counterfactual=settings.use_counterfactual,
        strategy=settings.strategy,
        out_indices=settings.out_indices,
        use_mmpretrain=settings.use_mmpretrain,
        freeze_backbone_stages=settings.freeze_backbone_stages,
        head_channels=settings.head_channels,
        dropout=settings.dropout,
        map_stride=settings.map_stride,
        map_channels=settings.map_channels,
        counterfactual_mode=settings.counterfactual_mode,
        fusion_norm=settings.fusion_norm,
        mask_source=settings.mask_source,
    )
