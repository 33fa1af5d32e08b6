"""Finished runs of a plan whose predictions are written by hand: nothing is trained."""

import json

import numpy as np
import pandas as pd
import yaml

from gainmtl_lib.studies.plans import Cell, load_plan


def written_plan(folder, **changed):
    """A plan on the small setting whose outputs and data lie below `folder`."""
    values = {
        "experiment": "hand",
        "base": ["params/small.yaml"],
        "seeds": [0, 1],
        "data_per_seed": True,
        "rows": {"S1": {"strategy": "S1"}, "S5": {"strategy": "S5"}},
        "steps": [["S1", "S5"]],
        "parameters": {"outputs_dir": str(folder / "outputs"), "data_root": str(folder / "made")},
    } | changed
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return load_plan(path)


def split_predictions(split, *, right, pictures=40, cam_iou=0.5, grid_iou=0.8, flips=False):
    """The first half defective; the first `right` of each class judged rightly.

    The CAM-IoU of successive defects lies 0.1 above and below `cam_iou`.
    """
    half = pictures // 2
    label = np.repeat([1, 0], half)
    hit = np.tile(np.arange(half) < right, 2)
    predicted = np.where(hit, label, 1 - label)
    swing = np.where(np.arange(pictures) % 2 == 0, 0.1, -0.1)
    defective = label == 1
    table = pd.DataFrame(
        {
            "image": [f"images/{split}/{number:03d}.png" for number in range(pictures)],
            "mask": None,
            "split": split,
            "label": label,
            "defect_type": np.where(defective, "scratch", "normal"),
            "group": None,
            "probability": np.where(predicted == 1, 0.9, 0.1),
            "defect_area": np.where(defective, 0.05, np.nan),
            "cam_iou": np.where(defective, cam_iou + swing, np.nan),
            "grid_iou": np.where(defective, grid_iou, np.nan),
            "predicted": predicted,
            "verdict": np.select([hit & defective, hit, defective, ~defective], ["TP", "TN", "FN", "FP"], default="TN"),
            "wrong_reason": False,
        }
    )
    if flips:
        found = (table["verdict"] == "TP").to_numpy()
        table["attention_iou"] = table["cam_iou"]
        table["cf_flip"] = np.where(found, 1.0, np.nan)
        table["cf_control_flip"] = np.where(found, (np.arange(pictures) % 2).astype(float), np.nan)
    return table


def write_planned(plan, row, seed, *, right=15, right_shift=10, seconds=60.0, **scores):
    """Leave a run in its folder as training and evaluation would, without weights."""
    settings = plan.settings(row, seed)
    folder = settings.run_dir
    folder.mkdir(parents=True)
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings.plain()))
    manifest = {
        "status": "complete", "data_digest": "d", "pretrained": "random", "strategy": settings.strategy,
        "duration_s": seconds,
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    flips = settings.strategy >= "S5"
    parts = {"test": right, "test_shift": right_shift}
    tables = [split_predictions(split, right=count, flips=flips, **scores) for split, count in parts.items()]
    pd.concat(tables).to_csv(folder / "predictions.csv", index=False)
    summary = {split: {"accuracy": count / 20, "cam_iou": 0.5} for split, count in parts.items()}
    (folder / "metrics.json").write_text(json.dumps({"threshold": 0.5} | summary))
    (folder / "maps").mkdir()
    np.save(folder / "maps" / "cam.npy", np.zeros((len(tables) * 40, 2, 2), np.float16))
    return Cell(row, seed, settings)
