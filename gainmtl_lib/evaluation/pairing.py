"""Which row of the data each row of an evaluation's table is."""

from __future__ import annotations

from pathlib import PurePath

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gainmtl_lib.data.datamodule import GainDataModule


def rows_of(predictions: pd.DataFrame, data: GainDataModule) -> NDArray[np.int64]:
    """The row of ``data.samples`` of each row of predictions: both hold the pictures of a split in the same order.

    Args:
        predictions: of `evaluate`, all rows of each split that they hold.
        data: set up.

    Raises:
        ValueError: the pictures are not the same.
    """
    rows = np.empty(len(predictions), dtype=np.int64)
    for split in predictions["split"].unique():
        predicted = (predictions["split"] == split).to_numpy()
        there = np.flatnonzero(data.samples["split"] == split)
        names = [
            [PurePath(str(path)).name for path in table]
            for table in (predictions.loc[predicted, "image"], data.samples.loc[there, "image"])
        ]
        if names[0] != names[1]:
            raise ValueError(
                f"the predictions hold {predicted.sum()} pictures of '{split}', the data {len(there)}, "
                "and they are not the same; give the data of the run that was evaluated: build_data(run.settings)"
            )
        rows[predicted] = there
    return rows
