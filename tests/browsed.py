"""Evaluated runs written by hand, without any training: eight pictures whose order under each sorting is known."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from anomaly_runs import tiny_anomaly_settings
from drawn_data import write_mask, write_picture
from tiny import tiny_settings

from gainmtl_lib.efficientad.evaluate import flag
from gainmtl_lib.efficientad.train import EfficientADRun
from gainmtl_lib.evaluation import file_digest
from gainmtl_lib.runs import Run, write_json

NAN = float("nan")

ROWS = pd.DataFrame(
    [
        # image, split, label, defect_type, probability, verdict, cam_iou, point_game, energy, area, wrong, cf, control
        ("d0", "test", 1, "scratch", 0.9, "TP", 0.60, 1.0, 0.50, 0.10, False, 0.2, 0.9),
        ("d1", "test", 1, "stain", 0.7, "TP", 0.05, 0.0, 0.01, 0.30, True, 0.6, 0.7),
        ("d2", "test", 1, "stain", 0.3, "FN", 0.40, 1.0, 0.60, 0.05, False, 0.1, NAN),
        ("d3", "test", 1, "scratch", 0.8, "TP", 0.02, 0.0, 0.04, 0.20, True, 0.1, 0.1),
        ("n0", "test", 0, "normal", 0.1, "TN", NAN, NAN, NAN, NAN, False, NAN, NAN),
        ("n1", "test", 0, "normal", 0.6, "FP", NAN, NAN, NAN, NAN, False, NAN, NAN),
        ("v0", "val", 1, "stain", 0.9, "TP", 0.50, 1.0, 0.70, 0.15, False, 0.3, 0.9),
        ("v1", "val", 0, "normal", 0.2, "TN", NAN, NAN, NAN, NAN, False, NAN, NAN),
    ],
    columns=["name", "split", "label", "defect_type", "probability", "verdict", "cam_iou", "point_game",
             "energy_inside", "defect_area", "wrong_reason", "cf_probability", "cf_control_probability"],
)  # fmt: skip
THRESHOLD = 0.5
SCALES = {"cam": {"floor": 2.0, "ceiling": 4.0}}


def peaked_maps(peaks: list[float], side: int = 4) -> np.ndarray:
    """Maps of zeros with one peak each, at the cell of their number."""
    maps = np.zeros((len(peaks), side * side), np.float16)
    maps[np.arange(len(peaks)), np.arange(len(peaks)) % (side * side)] = peaks
    return maps.reshape(-1, side, side)


def write_browsed_run(
    folder: Path,
    strategy: str = "S5",
    *,
    rows: pd.DataFrame = ROWS,
    peaks: list[float] | None = None,
    pictures: bool = True,
    masks: bool = True,
    scales: dict[str, Any] | None = None,
    digest: str = "same",
    threshold: float = THRESHOLD,
    **settings: Any,
) -> Run:
    """A run's folder as `evaluate` leaves it, and its pictures; the strategy decides which maps and columns there are.

    `peaks` of the maps are 1, 2, 3, …, of which those above 2 are found on the absolute scale; without `masks` no
    defect is annotated; the verdicts are those of `ROWS` whatever `threshold` the summary names.
    """
    made = tiny_settings(folder, strategy, **settings)
    run = made.run_dir
    run.mkdir(parents=True)
    (run / "settings.yaml").write_text(yaml.safe_dump(made.plain(), sort_keys=False))
    write_json(run / "manifest.json", {"status": "complete", "data_digest": digest})
    table = _table(rows, strategy, masks)
    table.to_csv(run / "predictions.csv", index=False)
    found = {"cam": SCALES["cam"]} if scales is None else scales
    counts = {split: part["verdict"].value_counts().to_dict() for split, part in table.groupby("split")}
    write_json(run / "metrics.json", {"threshold": threshold, "map_scales": found, "label_leaks": False, **counts})
    kinds = ["cam"] + ["attention"] * (strategy >= "S3") + ["localization"] * (strategy >= "S4")
    (run / "maps").mkdir()
    for kind in kinds:
        values = peaked_maps(peaks or [1.0 + row for row in range(len(table))])
        np.save(run / "maps" / f"{kind}.npy", values if kind == "cam" else values / values.max())
    if pictures:
        _write_pictures(made.data_root, table)
    return Run(run)


def _table(rows: pd.DataFrame, strategy: str, masks: bool) -> pd.DataFrame:
    table = rows.drop(columns="name").copy()
    table.insert(0, "image", "images/" + rows["name"] + ".png")
    annotated = (rows["label"] == 1) & masks
    table.insert(1, "mask", ("masks/" + rows["name"] + ".png").where(annotated))
    table["grid_iou"] = np.where(annotated, 0.7, NAN)
    table["group"] = ""
    table["predicted"] = (table["probability"] >= THRESHOLD).astype(int)
    if not masks:
        table[["cam_iou", "grid_iou", "energy_inside", "defect_area", "cf_probability", "cf_control_probability"]] = NAN
        table["wrong_reason"] = False
    if strategy >= "S3":
        table["attention_iou"] = table["cam_iou"]
    if strategy < "S5":
        table = table.drop(columns=["cf_probability", "cf_control_probability"])
    return table


def _write_pictures(root: Path, table: pd.DataFrame) -> None:
    for image, mask in zip(table["image"], table["mask"]):
        write_picture(root / image, size=(24, 32))
        if isinstance(mask, str):
            write_mask(root / mask, size=(24, 32))


TEACHER = "distilled from tiny on textures"


def write_browsed_anomalies(
    folder: Path, *, rows: pd.DataFrame = ROWS, digest: str = "same", **settings: Any
) -> EfficientADRun:
    """A run of EfficientAD on the same pictures, as its evaluation leaves it: its score is a tenth of the probability.

    Its validation counts one synthesised defect that was found, which is no row of the table.
    """
    made = tiny_anomaly_settings(folder, **settings)
    run = made.run_dir
    (run / "maps").mkdir(parents=True)
    (run / "settings.yaml").write_text(yaml.safe_dump(made.plain(), sort_keys=False))
    manifest = {"strategy": "efficientad", "status": "complete", "data_digest": digest, "teacher": {"text": TEACHER}}
    write_json(run / "manifest.json", manifest)
    table = _table(rows[(rows["split"] != "val") | (rows["label"] == 0)], "S1", masks=True)
    named = {name: f"anomaly_{name.removeprefix('cam_')}" for name in ("cam_iou", "point_game", "energy_inside")}
    table = table.assign(anomaly_score=table.pop("probability") / 10).rename(columns=named)
    table.to_csv(run / "predictions.csv", index=False)
    counts = {split: part["verdict"].value_counts().to_dict() for split, part in table.groupby("split")}
    counts["val"] = counts.get("val", {}) | {"TP": 1}
    scales = {"anomaly": {"floor": 0.0, "ceiling": 4.0}}
    write_json(run / "metrics.json", {"threshold": THRESHOLD / 10, "map_scales": scales, "teacher": TEACHER, **counts})
    np.save(run / "maps" / "anomaly.npy", peaked_maps([1.0 + row for row in range(len(table))]))
    return EfficientADRun(run)


def write_novelty(run: Run, novel: Sequence[str], *, unseen: Sequence[str] = ()) -> None:
    """What `find_novel` leaves: anomaly scores of 0.9 for the pictures of these names, of 0.1 for the others."""
    table = run.predictions
    names = table["image"].str.removeprefix("images/").str.removesuffix(".png")
    known = set(table["defect_type"]) - set(unseen)
    flagged, kinds = flag(table, np.where(names.isin(novel), 0.9, 0.1), 0.5, known)
    flagged.to_csv(run.folder / "novelty.csv", index=False)
    origin = {
        "predictions": file_digest(run.folder / "predictions.csv"),
        "efficientad_run": "/outputs/hand/efficientad/seed7",
        "weights": "w",
        "teacher": TEACHER,
        "threshold": 0.5,
        "threshold_from": "normal validation pictures of that run, 5% false alarms allowed",
    }
    write_json(run.folder / "novelty.json", origin | {"kinds": kinds})
