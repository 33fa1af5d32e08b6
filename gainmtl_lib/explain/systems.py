"""What the results of the two systems are called where people look at them: the score that decides, and the maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pandas as pd

from gainmtl_lib.efficientad.runs import EfficientADRun
from gainmtl_lib.evaluation.ablation import row_name
from gainmtl_lib.evaluation.stored import AnyRun
from gainmtl_lib.runs import Run


@dataclass(frozen=True)
class MapWords:
    """A kind of map.

    Attributes:
        name: in a sentence.
        short: where there is little room.
        iou: what its overlap with the annotated defect is called.
        column: of that overlap in the table of predictions.
    """

    name: str
    short: str
    iou: str
    column: str


MAPS = {
    "cam": MapWords("deciding CAM", "CAM", "CAM-IoU", "cam_iou"),
    "anomaly": MapWords("anomaly", "anomaly", "anomaly IoU", "anomaly_iou"),
    "attention": MapWords("attention", "attention", "attention IoU", "attention_iou"),
    "localization": MapWords("localization", "localization", "localization IoU", "loc_iou"),
}
"""Every kind by the name that its file has in a run's folder, the main ones first."""


@dataclass(frozen=True)
class System:
    """How one system's results are read.

    Attributes:
        name: of a run, as short as can be.
        score: the column that the verdict is from; high is defective.
        score_name: what it is called.
        digits: behind the point, as many as it takes to tell scores of this kind apart.
        main: kind of the map that shows where the verdict comes from.
        energy: column of that map's energy inside the defect.
        lacks: kind to why a run may have no such map.
        confidence: of the verdicts of a table of predictions, (N,), given the threshold.
    """

    name: Callable[[AnyRun], str]
    score: str
    score_name: str
    digits: int
    main: str
    energy: str
    lacks: Mapping[str, str]
    confidence: Callable[[pd.DataFrame, float], pd.Series]

    @property
    def iou_name(self) -> str:
        """What the main map's overlap with the annotated defect is called."""
        return MAPS[self.main].iou

    def rounded(self, score: float) -> str:
        """A score, or what it is compared with, as it is shown."""
        return f"{score:.{self.digits}f}"


def _strategy(run: AnyRun) -> str:
    assert isinstance(run, Run)
    name = row_name(run.settings)
    return f"{name} (oracle)" if run.metrics.get("label_leaks") else name


def _efficientad(run: AnyRun) -> str:
    assert isinstance(run, EfficientADRun)
    return "EfficientAD" if run.settings.category is None else f"EfficientAD {run.settings.category}"


def _probability_of_verdict(table: pd.DataFrame, threshold: float) -> pd.Series:
    return table["probability"].where(table["predicted"] == 1, 1 - table["probability"])


def _distance_to_threshold(table: pd.DataFrame, threshold: float) -> pd.Series:
    return (table["anomaly_score"] - threshold).abs()


GAIN_MTL = System(
    name=_strategy,
    score="probability",
    score_name="p(defect)",
    digits=2,
    main="cam",
    energy="energy_inside",
    lacks={"attention": "from S3 on", "localization": "from S4 on"},
    confidence=_probability_of_verdict,
)
EFFICIENTAD = System(
    name=_efficientad,
    score="anomaly_score",
    score_name="anomaly score",
    digits=3,
    main="anomaly",
    energy="anomaly_energy_inside",
    lacks={"attention": "GAIN-MTL has one", "localization": "GAIN-MTL has one"},
    confidence=_distance_to_threshold,
)
MAIN_MAPS = (GAIN_MTL.main, EFFICIENTAD.main)


def system_of(run: AnyRun) -> System:
    """The system that a run is of."""
    return EFFICIENTAD if isinstance(run, EfficientADRun) else GAIN_MTL
