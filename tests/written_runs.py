"""Finished runs of a plan whose predictions are written by hand: nothing is trained."""

import json

import numpy as np
import pandas as pd
import yaml

from gainmtl_lib.studies.plans import Cell, load_plan


def written_plan(folder, **changed):
    """A plan on the small setting whose outputs and data lie below `folder`."""
    values = {"experiment": "hand", "base": ["params/small.yaml"], "seeds": [0, 1], "data_per_seed": True}
    values |= {"rows": {name: {"strategy": name} for name in ("S1", "S5")}, "steps": [["S1", "S5"]]}
    values["parameters"] = {"outputs_dir": str(folder / "outputs"), "data_root": str(folder / "made")}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.yaml").write_text(yaml.safe_dump(values | changed, sort_keys=False), encoding="utf-8")
    return load_plan(folder / "plan.yaml")


def split_predictions(split, *, right, flips):
    """40 pictures, the first half defective, of each class the first `right` judged rightly."""
    number = np.arange(40)
    defective, hit = number < 20, number % 20 < right
    table = pd.DataFrame({"image": [f"images/{split}/{one:03d}.png" for one in number], "mask": None, "split": split})
    table = table.assign(label=defective.astype(int), group=None, predicted=(defective == hit).astype(int))
    table["verdict"] = np.select([hit & defective, hit, defective], ["TP", "TN", "FN"], default="FP")
    table["wrong_reason"], table["probability"] = False, np.where(table["predicted"], 0.9, 0.1)
    table["cam_iou"] = np.where(defective, np.where(number % 2, 0.4, 0.6), np.nan)
    table["grid_iou"] = np.where(defective, 0.8, np.nan)
    for name, flipped in {"cf_flip": 1.0, "cf_control_flip": number % 2}.items() if flips else ():
        table[name] = np.where(hit & defective, flipped, np.nan)
    return table


def write_planned(plan, row, seed, *, right=15, right_shift=10, seconds=60.0):
    """Leave a run in its folder as training and evaluation would, without weights."""
    settings, parts = plan.settings(row, seed), {"test": right, "test_shift": right_shift}
    folder = settings.run_dir
    (folder / "maps").mkdir(parents=True)
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings.plain()))
    manifest = {"status": "complete", "data_digest": "d", "pretrained": "random", "duration_s": seconds}
    (folder / "manifest.json").write_text(json.dumps(manifest | {"strategy": settings.strategy}))
    tables = [split_predictions(name, right=n, flips=settings.has("counterfactual")) for name, n in parts.items()]
    pd.concat(tables).to_csv(folder / "predictions.csv", index=False)
    summary = {split: {"accuracy": count / 20, "cam_iou": 0.5} for split, count in parts.items()}
    (folder / "metrics.json").write_text(json.dumps({"threshold": 0.5} | summary))
    np.save(folder / "maps" / "cam.npy", np.zeros((80, 2, 2), np.float16))
    return Cell(row, seed, settings)
