"""Runs of eight pictures whose order under each sorting is known; the page that shows them."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from anomaly_runs import tiny_anomaly_settings
from audited import table_of, write_audited

from gainmtl_lib.efficientad.evaluate import flag
from gainmtl_lib.efficientad.train import EfficientADRun
from gainmtl_lib.evaluation import file_digest
from gainmtl_lib.runs import Run, write_json
from gainmtl_lib.settings import PARTS

NAN = float("nan")
ROWS = pd.DataFrame(
    [
        ("d0", "test", 1, "scratch", 0.9, 0.60, 1.0, 0.50, 0.10, 0.2, 0.9),
        ("d1", "test", 1, "stain", 0.7, 0.05, 0.0, 0.01, 0.30, 0.6, 0.7),  # right for the wrong reason, as d3 is
        ("d2", "test", 1, "stain", 0.3, 0.40, 1.0, 0.60, 0.05, 0.1, NAN),
        ("d3", "test", 1, "scratch", 0.8, 0.02, 0.0, 0.04, 0.20, 0.1, 0.1),
        ("n0", "test", 0, "normal", 0.1, NAN, NAN, NAN, NAN, NAN, NAN),
        ("n1", "test", 0, "normal", 0.6, NAN, NAN, NAN, NAN, NAN, NAN),
        ("v0", "val", 1, "stain", 0.9, 0.50, 1.0, 0.70, 0.15, 0.3, 0.9),
        ("v1", "val", 0, "normal", 0.2, NAN, NAN, NAN, NAN, NAN, NAN),
    ],
    columns=["name", "split", "label", "defect_type", "probability", "cam_iou", "point_game", "energy_inside",
             "defect_area", "cf_probability", "cf_control_probability"],
)  # fmt: skip
FLIPS = ["cf_probability", "cf_control_probability"]
SCALES = {"cam": {"floor": 2.0, "ceiling": 4.0}}
TEACHER = "distilled from tiny on textures"
SERVE = """import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)
from gainmtl_lib.browser.serve import serve_browser
serve_browser(sys.argv[1:], open_browser=False)
print('ended')"""  # the runs are named after it


def start_server(command: Sequence[str], ready: str, log: Path, **environment: str) -> tuple[subprocess.Popen, str]:
    """Python in a process of its own, once its log says that it is ready, and the address that stands there."""
    with log.open("w") as output:
        told = {"stdout": output, "stderr": subprocess.STDOUT, "env": os.environ | environment}
        process = subprocess.Popen([sys.executable, *command], **told)
    until = time.monotonic() + 90
    try:
        while ready not in log.read_text():
            assert process.poll() is None and time.monotonic() < until, log.read_text()
            time.sleep(0.1)
        return process, re.search(r"http://127\.0\.0\.1\S*|/\S*\?token=\S*", log.read_text())[0]
    except BaseException:
        process.kill()  # nobody else knows it yet
        raise


def peaked_maps(count: int) -> np.ndarray:
    """Maps of zeros with one peak each, of 1, 2, 3, … at the cell of their number: from the third on above 2."""
    maps = np.zeros((count, 16), np.float16)
    maps[np.arange(count), np.arange(count) % 16] = 1.0 + np.arange(count)
    return maps.reshape(-1, 4, 4)


def entries_of(rows: pd.DataFrame, *, masks: bool = True) -> list[dict[str, Any]]:
    """As `write_audited` takes them; without `masks` no defect is annotated."""
    annotated, files = (rows["label"] == 1) & masks, rows["name"] + ".png"
    table = rows.assign(image="images/" + files, mask=("masks/" + files).where(annotated, None), group="")
    table = table.drop(columns="name").assign(grid_iou=np.where(annotated, 0.7, NAN))
    if not masks:
        table[["cam_iou", "point_game", "energy_inside", "defect_area"]] = NAN
    return table.to_dict("records")


def write_browsed_run(
    folder: Path, strategy="S5", *, rows=ROWS, pictures=True, masks=True, scales=SCALES, digest="same", **values: Any
) -> Run:
    """A strategy's run, with the maps and columns that it has, and its pictures of 24 x 32 px."""
    parts = PARTS[strategy]
    entries = entries_of(rows if "counterfactual" in parts else rows.drop(columns=FLIPS), masks=masks)
    for entry in entries if "attention" in parts else []:
        entry["attention_iou"] = entry["cam_iou"]
    values |= {"manifest": {"data_digest": digest}, "metrics": {"map_scales": scales}}
    run = Run(write_audited(folder, entries, strategy=strategy, pictures=pictures, size=(24, 32), **values))
    maps = peaked_maps(len(rows))
    np.save(run.folder / "maps" / "cam.npy", maps)
    for kind in ["attention"] * ("attention" in parts) + ["localization"] * bool(
        {"localization", "evidence"} & {*parts}
    ):
        np.save(run.folder / "maps" / f"{kind}.npy", maps / maps.max())
    return run


def write_browsed_anomalies(folder: Path, *, rows: pd.DataFrame = ROWS, **settings: Any) -> EfficientADRun:
    """A run of EfficientAD: its scores are tenths; its validation counts a synthesised defect, no row of the table."""
    made = tiny_anomaly_settings(folder, **settings)
    run = made.run_dir
    (run / "maps").mkdir(parents=True)
    (run / "settings.yaml").write_text(yaml.safe_dump(made.plain(), sort_keys=False))
    manifest = {"strategy": "efficientad", "status": "complete", "data_digest": "own", "teacher": {"text": TEACHER}}
    write_json(run / "manifest.json", manifest)
    table = table_of(entries_of(rows[(rows["split"] != "val") | (rows["label"] == 0)].drop(columns=FLIPS)))
    named = {name: f"anomaly_{name.removeprefix('cam_')}" for name in ("cam_iou", "point_game", "energy_inside")}
    table = table.assign(anomaly_score=table.pop("probability") / 10).rename(columns=named)
    table.to_csv(run / "predictions.csv", index=False)
    counts = {split: part["verdict"].value_counts().to_dict() for split, part in table.groupby("split")}
    counts["val"] = counts.get("val", {}) | {"TP": 1}
    scales = {"anomaly": {"floor": 0.0, "ceiling": 4.0}}
    write_json(run / "metrics.json", {"threshold": 0.05, "map_scales": scales, "teacher": TEACHER, **counts})
    np.save(run / "maps" / "anomaly.npy", peaked_maps(len(table)))
    return EfficientADRun(run)


def write_novelty(run: Run, novel: Sequence[str], *, unseen: Sequence[str] = ()) -> None:
    """What `find_novel` leaves: anomaly scores of 0.9 for the pictures of these names, of 0.1 for the others."""
    table = run.predictions
    names = table["image"].str.removeprefix("images/").str.removesuffix(".png")
    flagged, kinds = flag(table, np.where(names.isin(novel), 0.9, 0.1), 0.5, set(table["defect_type"]) - set(unseen))
    flagged.to_csv(run.folder / "novelty.csv", index=False)
    origin = {
        "predictions": file_digest(run.folder / "predictions.csv"), "weights": "w", "teacher": TEACHER,
        "efficientad_run": "/outputs/hand/efficientad/seed7", "threshold": 0.5, "threshold_from": "its validation",
    }  # fmt: skip
    write_json(run.folder / "novelty.json", origin | {"kinds": kinds})


def rewrite(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text("utf-8").replace(old, new), "utf-8")
