"""Defects of kinds that a strategy never saw: what it calls normal, and EfficientAD finds unlike the good parts.

The flag stands beside the verdict and never changes it. It is kept beside the run's evaluation as ``novelty.csv`` and
``novelty.json``, and belongs to one evaluation and one EfficientAD run.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from gainmtl_lib.claims import hold
from gainmtl_lib.decisions import FALSE_ALARMS
from gainmtl_lib.efficientad.evaluate import evaluate_efficientad
from gainmtl_lib.efficientad.runs import EfficientADRun, load_efficientad
from gainmtl_lib.evaluation.anomalies import check_unseen, scored
from gainmtl_lib.evaluation.evaluate import TEST_SPLITS, samples_as_trained
from gainmtl_lib.evaluation.stored import file_digest, stored_tables
from gainmtl_lib.files import atomic_path, remove_temporaries
from gainmtl_lib.runs import Run, RunError, read_json, write_json

TABLE, SUMMARY = "novelty.csv", "novelty.json"
COLUMNS = {"image": str, "split": str, "anomaly_score": float, "anomalous": bool, "novel": bool}
KEYS = {"predictions", "efficientad_run", "weights", "teacher", "threshold", "threshold_from", "splits"}
NORMAL = "normal"
OUT_OF_DATE = (
    "what is stored is of other predictions or of an EfficientAD run that was trained anew; flag anew: "
    "gainmtl evaluate {folder} --efficientad-run FOLDER"
)


@dataclass(frozen=True)
class Kind:
    """The normal pictures of a split, or its defects of one type.

    Attributes:
        name: of the type, or `NORMAL`.
        count: pictures.
        called_defective: those that the verdict finds; of normal ones, its false alarms.
        anomalous: those whose anomaly score is above the threshold.
        novel: anomalous ones that the verdict calls normal.
        unseen: a type that no training picture shows.
    """

    name: str
    count: int
    called_defective: int
    anomalous: int
    novel: int
    unseen: bool = False


@dataclass(frozen=True)
class Novelty:
    """Which pictures of an evaluation are flagged as novel.

    Attributes:
        table: one row per prediction, in their order: ``image``, ``split``, ``anomaly_score``, ``anomalous`` (above the
            threshold) and ``novel`` (anomalous, although the verdict is normal).
        summary: ``predictions`` and ``weights``, SHA-256 of what it belongs to; ``efficientad_run``, its ``teacher``,
            ``threshold`` and ``threshold_from``; ``splits``, see `kinds`.
    """

    table: pd.DataFrame
    summary: dict[str, Any]

    @property
    def threshold(self) -> float:
        """Anomaly score above which a picture is unlike the good ones."""
        return float(self.summary["threshold"])

    @property
    def teacher(self) -> str:
        """Where the EfficientAD run's teacher came from; stands wherever the flag is shown."""
        return str(self.summary["teacher"])

    @property
    def source(self) -> str:
        """The folder of the EfficientAD run."""
        return str(self.summary["efficientad_run"])

    @property
    def kinds(self) -> dict[str, list[Kind]]:
        """By test split: the normal pictures first, then the defects by type."""
        return {split: [Kind(**kind) for kind in kinds] for split, kinds in self.summary["splits"].items()}


def find_novel(
    run: Run, efficientad: EfficientADRun | str | Path, *, device: str | None = None, reuse: bool = True
) -> Novelty:
    """Flag the pictures of an evaluated run that EfficientAD finds unlike the good parts although they passed.

    The threshold is that of the EfficientAD run, from its own normal validation pictures; where that run is not
    evaluated, it is evaluated first. Nothing that the strategy's evaluation stored is touched.

    Args:
        run: finished and evaluated.
        efficientad: a finished run of EfficientAD, or its folder.
        device: where to compute, see `checked_device`; None is where EfficientAD was trained.
        reuse: take what is stored where it was found with this EfficientAD run for these predictions.

    Raises:
        RunError: a run that is not evaluated or whose data changed, no finished run of EfficientAD, one that learnt
            from the test pictures, or another process writes to the run.
        DataError: pictures that cannot be read.
    """
    other = efficientad if isinstance(efficientad, EfficientADRun) else load_efficientad(efficientad)
    stored = _stored(run) if reuse and other.is_evaluated else None
    if stored is not None and stored.summary.items() >= _origin(run, other).items():
        return stored
    with hold(run.folder):
        table, _ = stored_tables(run)
        samples = samples_as_trained(run)
        check_unseen(other, samples)
        evaluate_efficientad(other, device=device)
        origin = _origin(run, other)
        files = [run.settings.dataset_folder / image for image in table["image"]]
        scores = [one.score for one in scored(other, files, device=device or other.settings.accelerator)]
        flagged = flag(table, scores, origin["threshold"])
        known = samples.loc[(samples["split"] == "train") & (samples["label"] == 1), "defect_type"]
        _store(run, flagged, origin | {"splits": count_kinds(table, flagged, set(known))})
    return Novelty(*_read(run))  # as a later call reads it


def _origin(run: Run, other: EfficientADRun) -> dict[str, Any]:
    """What the flags are of and from, `other` evaluated."""
    return {
        "predictions": file_digest(run.folder / "predictions.csv"),
        "efficientad_run": str(other.folder.resolve()),
        "weights": file_digest(other.folder / "model.safetensors"),
        "teacher": other.teacher,
        "threshold": float(other.metrics["novelty_threshold"]),
        "threshold_from": f"normal validation pictures of that run, {FALSE_ALARMS:.0%} false alarms allowed",
    }


def flag(table: pd.DataFrame, scores: Collection[float], threshold: float) -> pd.DataFrame:
    """The columns of `Novelty.table`.

    Args:
        table: of predictions, N rows.
        scores: anomaly score of each row, (N,).
        threshold: above it a picture is anomalous.
    """
    flagged = table[["image", "split"]].assign(anomaly_score=list(scores))
    flagged["anomalous"] = flagged["anomaly_score"] > threshold
    return flagged.assign(novel=flagged["anomalous"] & (table["predicted"] == 0))


def count_kinds(table: pd.DataFrame, flagged: pd.DataFrame, known: Collection[str]) -> dict[str, list[dict[str, Any]]]:
    """What the flag does on each test split, as `Novelty.kinds` reads it.

    Args:
        table: of predictions.
        flagged: of `flag`, its rows in the same order.
        known: defect types of the training pictures.
    """
    rows = table.assign(anomalous=flagged["anomalous"], novel=flagged["novel"])
    rows["kind"] = rows["defect_type"].fillna("unknown").where(rows["label"] == 1, NORMAL)
    counted: dict[str, list[dict[str, Any]]] = {}
    for split in TEST_SPLITS:
        for (label, name), part in rows[rows["split"] == split].groupby(["label", "kind"]):
            kind = Kind(
                name=str(name),
                count=len(part),
                called_defective=int(part["predicted"].sum()),
                anomalous=int(part["anomalous"].sum()),
                novel=int(part["novel"].sum()),
                unseen=bool(label == 1 and name not in known),
            )
            counted.setdefault(split, []).append(asdict(kind))
    return counted


def stored_novelty(run: Run) -> Novelty | None:
    """What `find_novel` left in the run's folder; None where nothing is, or where it is out of date: of other
    predictions, or of an EfficientAD run that was trained anew since.

    Raises:
        RunError: its files are damaged.
    """
    if not (run.folder / SUMMARY).is_file():
        return None
    table, summary = _read(run)
    if not _is_current(run, summary):
        return None
    if table["image"].tolist() != run.predictions["image"].tolist():
        raise RunError(f"{run.folder / TABLE}: not of the pictures in predictions.csv; {_again(run)}")
    return Novelty(table, summary)


def is_stale(run: Run) -> bool:
    """Whether what is stored is out of date, see `stored_novelty`."""
    return (run.folder / SUMMARY).is_file() and stored_novelty(run) is None


def _is_current(run: Run, summary: dict[str, Any]) -> bool:
    """An EfficientAD run that is not there any more is taken to be as it was."""
    weights = file_digest(Path(summary["efficientad_run"]) / "model.safetensors")
    return summary["predictions"] == file_digest(run.folder / "predictions.csv") and weights in ("", summary["weights"])


def _stored(run: Run) -> Novelty | None:
    """Damaged files are made anew."""
    try:
        return stored_novelty(run)
    except RunError:
        return None


def _store(run: Run, flagged: pd.DataFrame, summary: dict[str, Any]) -> None:
    # Written last and removed first: an interruption leaves no flags, never a mixture of two.
    (run.folder / SUMMARY).unlink(missing_ok=True)
    remove_temporaries(run.folder / TABLE, run.folder / SUMMARY)
    with atomic_path(run.folder / TABLE) as path:
        flagged.to_csv(path, index=False)  # in full: a rounded score could lie on the other side of the threshold
    write_json(run.folder / SUMMARY, summary)


def _read(run: Run) -> tuple[pd.DataFrame, dict[str, Any]]:
    summary = read_json(run.folder / SUMMARY)
    if not isinstance(summary, dict) or not summary.keys() >= KEYS:
        raise RunError(f"{run.folder / SUMMARY}: lacks what belongs there; {_again(run)}")
    try:
        table = pd.read_csv(run.folder / TABLE, dtype=COLUMNS, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise RunError(f"{run.folder / TABLE}: cannot be read: {' '.join(str(error).split())}; {_again(run)}") from None
    if tuple(table) != tuple(COLUMNS):
        raise RunError(f"{run.folder / TABLE}: expected the columns {', '.join(COLUMNS)}; {_again(run)}")
    return table, summary


def _again(run: Run) -> str:
    return f"remove novelty.json, or flag anew: gainmtl evaluate {run.folder} --efficientad-run FOLDER"
