"""The smallest study that has every part: 40 pictures of 64 px, b0, a few steps an epoch."""

from pathlib import Path
from typing import Any

import pandas as pd

from gainmtl_lib.dataset import GainDataModule
from gainmtl_lib.settings import Settings


def tiny_settings(folder: Path, strategy: str = "S6", **values: Any) -> Settings:
    """All outputs and data below `folder`."""
    places = {"experiment": "tiny", "outputs_dir": folder / "outputs", "data_root": folder / "data"}
    data = {"dataset_type": "synthetic", "num_samples": 40, "image_size": 64}
    backbone = {"backbone_arch": "b0", "pretrained": False, "out_indices": [3, 4], "map_stride": 16}
    narrow = {"fpn_channels": 8, "attention_channels": 8, "head_channels": 16, "map_channels": 16}
    narrow |= {"evidence_share": 0.1}  # of 4 x 4 cells
    training = {"num_epochs": 4, "batch_size": 8, "learning_rate": 1e-3, "device": "cpu", "precision": "32"}
    return Settings(**{"strategy": strategy} | places | data | backbone | narrow | training | values)


def tiny_data(samples: pd.DataFrame, **values: Any) -> GainDataModule:
    """Loaders over a table; sizes that only a network would refuse are fine."""
    settings = Settings(strategy="S1", seed=0, split_seed=0)
    return GainDataModule(settings.model_copy(update=values), samples)
