"""Evaluated runs written by hand: settings, manifest, predictions, metrics and CAMs, with no training behind them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from drawn_data import write_mask, write_picture

from gainmtl_lib.evaluation import add_verdicts
from gainmtl_lib.settings import Settings

SCALES = {"cam": {"floor": 1.0, "ceiling": 3.0}}
MANIFEST = {
    "status": "complete", "data_digest": "d" * 64, "pretrained": "imagenet:some_weights", "provider": "timm",
    "device": "cpu", "precision": "32-true", "started": "2026-01-02T03:04:05+00:00", "duration_s": 3723.4,
    "parameters": 1234567, "best_epoch": 3, "best_val_ap": 0.75, "split_sizes": {"val": 8, "test": 8, "train": 40},
    "train_normal": 20, "train_defective": 20, "train_annotated": 20, "versions": {"gainmtl": "0.1.0"},
}  # fmt: skip


def row(split: str, label: int, probability: float, **values: Any) -> dict[str, Any]:
    """One picture; defects have a mask of 2 % and a CAM on it unless told otherwise."""
    defect = {"defect_area": 0.02, "cam_iou": 0.5, "grid_iou": 0.7, "point_game": 1.0, "energy_inside": 0.4}
    scores = defect if label else dict.fromkeys(defect, np.nan)
    kind = "defective" if label else "normal"
    return {"split": split, "label": label, "probability": probability, "defect_type": "scratch" if label else "normal",
            "group": "", **scores, "kind": kind} | values  # fmt: skip


def table_of(rows: list[dict[str, Any]], threshold: float = 0.5) -> pd.DataFrame:
    """The rows as `evaluate` leaves them; names are made up where none are given."""
    for number, entry in enumerate(rows):
        kind = entry.pop("kind", "normal")
        entry.setdefault("image", f"images/{entry['split']}/{kind}/{number:03d}.png")
        entry.setdefault("mask", f"masks/{entry['split']}/{kind}/{number:03d}.png" if entry["label"] else None)
        entry["group"] = entry["group"] or entry["image"]
    return add_verdicts(pd.DataFrame(rows), threshold)


def write_audited(
    folder: Path, rows: list[dict[str, Any]], *, strategy="S5", threshold=0.5, peaks: list[float] | None = None,
    manifest: dict[str, Any] | None = None, metrics: dict[str, Any] | None = None, pictures=False, size=(64, 64),
    **settings: Any,
) -> Path:  # fmt: skip
    """The folder of a finished and evaluated run.

    `peaks` of the CAMs are 2.0 on defects and 0.5 elsewhere, all other cells 0; `manifest` and `metrics` stand in place
    of single entries; `pictures` writes the data that the rows name.
    """
    table = table_of(rows, threshold)
    chosen = Settings(
        **{"strategy": strategy, "seed": 7, "outputs_dir": folder, "experiment": "hand", "pretrained": False,
           "data_root": folder / "data", "image_size": 64, "map_stride": 16} | settings
    )  # fmt: skip
    run = chosen.run_dir
    (run / "maps").mkdir(parents=True)
    (run / "settings.yaml").write_text(json.dumps(chosen.plain(), ensure_ascii=False), "utf-8")
    (run / "manifest.json").write_text(json.dumps(MANIFEST | (manifest or {})))
    table.to_csv(run / "predictions.csv", index=False, float_format="%.6g")
    summary = {"threshold": threshold, "threshold_from": "validation, logistic fit", "map_scales": SCALES,
               "mask_source": None, "label_leaks": False}  # fmt: skip
    for split in table["split"].unique():
        counts = table.loc[table["split"] == split, "verdict"].value_counts()
        summary[split] = {name: int(counts.get(name, 0)) for name in ("TP", "FP", "FN", "TN")}
    (run / "metrics.json").write_text(json.dumps(summary | (metrics or {})))
    cams = np.zeros((len(table), 4, 4), np.float16)
    cams[:, 1, 1] = np.where(table["label"] == 1, 2.0, 0.5) if peaks is None else peaks
    np.save(run / "maps" / "cam.npy", cams)
    if pictures:
        for entry in table.to_dict("records"):
            write_picture(chosen.data_root / entry["image"], size=size)
            if isinstance(entry["mask"], str):
                write_mask(chosen.data_root / entry["mask"], size=size, box=(slice(8, 24), slice(8, 24)))
    return run


def spread(split: str, label: int, low: float, high: float, count: int, **values: Any) -> list[dict[str, Any]]:
    """Pictures of one class whose probabilities run evenly from `low` to `high`."""
    return [row(split, label, float(p), **values) for p in np.linspace(low, high, count)]
