"""The one place where settings become parts: data and model."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pandas as pd

from gainmtl_lib.data.datamodule import GainDataModule
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
        samples, val_ratio=settings.val_ratio, test_ratio=settings.test_ratio, seed=settings.seed_of_split
    )


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
