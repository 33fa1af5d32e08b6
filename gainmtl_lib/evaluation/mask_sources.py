"""One run of S6 with the masks of each source in turn: what its attention owes to the mask that it is given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from gainmtl_lib.data.datamodule import GainDataModule
from gainmtl_lib.evaluation.evaluate import TEST_SPLITS, evaluate, evaluated_data
from gainmtl_lib.evaluation.mask_source import PLACES, MaskSource
from gainmtl_lib.runs import Run, RunError

SOURCES = {
    "localization": "the model's own",
    "efficientad": "EfficientAD's anomaly map",
    "external": "from a folder",
    "none": "no mask",
    "other": "another picture's",
    "oracle": "its own annotation",
}
"""Every source, in the order of the table, and whose mask a picture is given."""

METRICS = ("accuracy", "recall", "auroc", "cam_iou", "grid_iou")


def mask_source_table(
    run: Run,
    sources: Sequence[str],
    *,
    data: GainDataModule | None = None,
    efficientad_run: Path | None = None,
    external_mask_dir: Path | None = None,
    device: str | None = None,
    reuse: bool = True,
) -> pd.DataFrame:
    """Test results of a run of S6 by source of its masks, each source evaluated once.

    The run's own source is evaluated as the run was trained, and kept as `evaluate` does; nothing of the others is
    stored. The threshold is chosen on validation with the masks of the same source.

    Args:
        run: a finished run of S6.
        sources: names of `SOURCES`.
        data: the run's own, where it is loaded already.
        efficientad_run: makes the masks of `efficientad`; in place of the settings' own.
        external_mask_dir: holds those of `external`; in place of the settings' own.
        device: see `evaluate`.
        reuse: take the stored results of the run's own source.

    Returns:
        One row per source and test split: ``source``, ``mask`` (see `SOURCES`), ``split``, ``threshold``, the
        `METRICS`, ``label_leaks`` and ``teacher`` (of `efficientad`, else None).

    Raises:
        RunError: another strategy, an unknown source, one without its place, or what `evaluate` refuses.
        DataError: masks that cannot be had, or pictures that cannot be read.
    """
    places = {"efficientad": efficientad_run, "external": external_mask_dir}
    for name in sources:  # all of them before the first minutes are spent
        _source(run, name, places)
    data = data or evaluated_data(run)
    rows = []
    for name in sources:
        if name == run.settings.mask_source and _source(run, name, places).place == MaskSource.of(run.settings).place:
            _, summary = evaluate(run, device=device, reuse=reuse)
        else:
            _, summary = evaluate(
                run,
                data=data,
                mask_source=name,
                external_mask_dir=external_mask_dir if name == "external" else None,
                efficientad_run=efficientad_run if name == "efficientad" else None,
                device=device,
            )
        rows += _rows(name, summary)
    return pd.DataFrame(rows)


def known_sources(
    run: Run, *, efficientad_run: Path | None = None, external_mask_dir: Path | None = None
) -> tuple[list[str], dict[str, str]]:
    """The sources that a run of S6 can be evaluated with, and why each of the others is left out.

    Raises:
        RunError: another strategy.
    """
    MaskSource.of(run.settings, "none")  # complains where the strategy takes no masks
    places = {"efficientad": efficientad_run, "external": external_mask_dir}
    known, left_out = [], {}
    for name in SOURCES:
        if name in PLACES and not (places[name] or getattr(run.settings, PLACES[name][0])):
            left_out[name] = f"{PLACES[name][0]}, {PLACES[name][1]}, is not given"
        else:
            known.append(name)
    return known, left_out


def _source(run: Run, name: str, places: dict[str, Path | None]) -> MaskSource:
    if name not in SOURCES:
        raise RunError(f"mask_source must be one of {', '.join(SOURCES)}, got '{name}'")
    own = {"external": "folder", "efficientad": "efficientad_run"}
    return MaskSource.of(run.settings, name, **({own[name]: places[name]} if name in own else {}))


def _rows(name: str, summary: dict[str, Any]) -> list[dict[str, Any]]:
    told = {"label_leaks": summary["label_leaks"], "teacher": summary.get("teacher")}
    return [
        {"source": name, "mask": SOURCES[name], "split": split, "threshold": summary["threshold"]}
        | {metric: summary[split].get(metric) for metric in METRICS}
        | told
        for split in TEST_SPLITS
        if split in summary
    ]
