"""``gainmtl data plant``: a dataset with a planted cue, and how many pictures carry it."""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from rich.console import Console
from rich.markup import escape

from gainmtl_lib.build import build_samples
from gainmtl_lib.data.findings import DataError
from gainmtl_lib.data.planting import PARAMETERS_FILE, plant_cue, planted_counts
from gainmtl_lib.reports.tables import frame_table
from gainmtl_lib.settings import Settings


def report_planting(
    console: Console, settings: Settings, out: Path, *, cue: str, correlation: float, seed: int
) -> None:
    """``gainmtl data plant``: write the dataset where it is missing, and say what is in it.

    Args:
        console: where it is printed.
        settings: that read and split the source.
        out: folder to write.
        cue: mark, lighting or border.
        correlation: of cue and class.
        seed: of the choice of pictures and places.

    Raises:
        DataError: the source's type is synthetic, or as `plant_cue`.
    """
    if settings.dataset_type == "synthetic":  # whose reading would make a dataset where there is none
        raise DataError(
            "dataset_type is 'synthetic', and planting takes photographs; choose generic, mvtec or magnetic_tile, or "
            "make synthetic data with a cue: gainmtl data synth"
        )
    origin = {
        "dataset_type": settings.dataset_type,
        "group_pattern": settings.group_pattern,
        "val_ratio": settings.val_ratio,
        "test_ratio": settings.test_ratio,
        "split_seed": settings.seed_of_split,
    }
    made = plant_cue(
        build_samples(settings), out, cue=cue, correlation=correlation, seed=seed, origin=origin,
        skip_unreadable=settings.skip_unreadable,
    )  # fmt: skip
    record = yaml.safe_load((out / PARAMETERS_FILE).read_text(encoding="utf-8"))
    console.print(f"{escape(str(out))}: {'written' if made else 'was there already'}, {cue} planted")
    console.print(frame_table("pictures and cues", planted_counts(out)))
    for reason, files in record["carry_none"].items():
        console.print(f"{len(files)} pictures carry none: {reason}; listed in {PARAMETERS_FILE}")
    read_with = " ".join(f"-p {name} {json.dumps(value)}" for name, value in record["read_with"].items())
    console.print(f"read it with: {escape(read_with)}")
