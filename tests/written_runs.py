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


def split_predictions(split, *, right, flips):
    """40 pictures, the first half defective, of each class the first `right` judged rightly."""
    number = np.arange(40)
    label, hit = (number < 20).astype(int), number % 20 < right
    defective, predicted = label == 1, np.where(hit, label, 1 - label)
    verdict = np.select([hit & defective, hit, defective], ["TP", "TN", "FN"], default="FP")
    table = pd.DataFrame({"image": [f"images/{split}/{one:03d}.png" for one in number], "mask": None, "split": split})
    table = table.assign(label=label, group=None, predicted=predicted, verdict=verdict, wrong_reason=False)
    table["probability"] = np.where(predicted == 1, 0.9, 0.1)
    table["cam_iou"] = np.where(defective, np.where(number % 2, 0.4, 0.6), np.nan)
    table["grid_iou"] = np.where(defective, 0.8, np.nan)
    if flips:
        table["cf_flip"] = np.where(verdict == "TP", 1.0, np.nan)
        table["cf_control_flip"] = np.where(verdict == "TP", number % 2, np.nan)
    return table


def write_planned(plan, row, seed, *, right=15, right_shift=10, seconds=60.0):
    """Leave a run in its folder as training and evaluation would, without weights."""
    settings = plan.settings(row, seed)
    folder = settings.run_dir
    (folder / "maps").mkdir(parents=True)
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings.plain()))
    manifest = {"status": "complete", "data_digest": "d", "pretrained": "random", "duration_s": seconds}
    (folder / "manifest.json").write_text(json.dumps(manifest | {"strategy": settings.strategy}))
    parts, flips = {"test": right, "test_shift": right_shift}, settings.strategy >= "S5"
    tables = [split_predictions(split, right=count, flips=flips) for split, count in parts.items()]
    pd.concat(tables).to_csv(folder / "predictions.csv", index=False)
    summary = {split: {"accuracy": count / 20, "cam_iou": 0.5} for split, count in parts.items()}
    (folder / "metrics.json").write_text(json.dumps({"threshold": 0.5} | summary))
    np.save(folder / "maps" / "cam.npy", np.zeros((80, 2, 2), np.float16))
    return Cell(row, seed, settings)
