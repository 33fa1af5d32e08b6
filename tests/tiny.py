"""The smallest study that has every part: 40 pictures of 64 px, b0, a few steps an epoch."""

from pathlib import Path
from typing import Any

import pandas as pd

from gainmtl_lib.dataset import GainDataModule
from gainmtl_lib.settings import Settings


def tiny_settings(folder: Path, strategy: str = "S6", **values: Any) -> Settings:
    """All outputs and data below `folder`."""
    return Settings(
        **{
            "strategy": strategy,
            "experiment": "tiny",
            "outputs_dir": folder / "outputs",
            "data_root": folder / "data",
            "dataset_type": "synthetic",
            "num_samples": 40,
            "image_size": 64,
            "backbone_arch": "b0",
            "pretrained": False,
            "out_indices": [3, 4],
            "fpn_channels": 8,
            "attention_channels": 8,
            "head_channels": 16,
            "map_stride": 16,
            "map_channels": 16,
            "num_epochs": 4,
            "batch_size": 8,
            "learning_rate": 1e-3,
            "device": "cpu",
            "precision": "32",
        }
        | values
    )


def tiny_data(samples: pd.DataFrame, **values: Any) -> GainDataModule:
    """Loaders over a table; sizes that only a network would refuse are fine."""
    settings = Settings(strategy="S1", seed=0, split_seed=0)
    return GainDataModule(settings.model_copy(update=values), samples)
