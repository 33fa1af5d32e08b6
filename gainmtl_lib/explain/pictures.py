"""Test pictures with everything a model says of them, as figures."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Iterator, Sequence

import pandas as pd
import torch
from matplotlib.figure import Figure

from gainmtl_lib.build import build_data
from gainmtl_lib.data.datamodule import GainDataModule
from gainmtl_lib.data.findings import DataError
from gainmtl_lib.evaluation.ablation import ORACLE_MARK, row_name
from gainmtl_lib.evaluation.mask_source import MaskSource
from gainmtl_lib.evaluation.pairing import rows_of
from gainmtl_lib.explain.plots import map_grid
from gainmtl_lib.map_scale import MapScale
from gainmtl_lib.models.gain_mtl import GAINMTLModel
from gainmtl_lib.records import Batch, GainOutput
from gainmtl_lib.runs import Run, RunError

logger = logging.getLogger(__name__)

PER_PAGE, CHARACTERS_PER_INCH = 8, 16
THE_SAME = "the same"
UNIT_MAPS = {"effective_attention": "attention", "localization_map": "localization"}
LEAKS = "mask_source oracle: the model is told where the defect is; no result"


def pick_rows(samples: pd.DataFrame, split: str, *, defective: int, normal: int) -> list[int]:
    """Rows of a split to show: defective ones of as many defect types as there are, then normal ones.

    The choice depends on the table alone, so that every strategy shows the same pictures.
    """
    rows = samples[samples["split"] == split]
    broken = rows[(rows["label"] == 1) & rows["mask"].notna()]
    order = broken.assign(turn=broken.groupby("defect_type").cumcount()).sort_values(["turn", "defect_type"])
    return [*order.index[:defective], *rows.index[rows["label"] == 0][:normal]]


def look(
    run_or_model: Run | GAINMTLModel, data: GainDataModule, rows: Sequence[int], source: MaskSource | None = None
) -> tuple[Batch, GainOutput]:
    """What the model says of some rows, in evaluation mode.

    Args:
        run_or_model: a run knows its folder of masks, if its attention takes them from one.
        data: set up.
        rows: of ``data.samples``.
        source: of S6's masks, in place of the run's or the model's own.

    Raises:
        RunError: a model alone whose masks come from outside, or an EfficientAD run that cannot be used.
        DataError: masks from outside that cannot be had.
    """
    model = run_or_model.model if isinstance(run_or_model, Run) else run_or_model
    source = source or _own_source(run_or_model)
    batch = data.dataset.__getitems__(list(rows))
    with torch.inference_mode(), source.applied(model):
        return batch, model.eval()(batch.images, batch.masks, attention_masks=source.masks(data, batch))


def _own_source(run_or_model: Run | GAINMTLModel) -> MaskSource:
    return MaskSource.of(run_or_model.settings if isinstance(run_or_model, Run) else run_or_model)


def explanation_figure(
    run_or_model: Run | GAINMTLModel,
    data: GainDataModule,
    rows: Sequence[int],
    *,
    threshold: float | None = None,
    scale: MapScale | None = None,
    source: MaskSource | None = None,
) -> Figure:
    """One row per picture: mask outline, then every map the strategy has.

    Args:
        run_or_model: evaluated or to be.
        data: set up.
        rows: of ``data.samples``.
        threshold: adds the verdict to the row's title.
        scale: shows the deciding CAM on its absolute scale, too.
        source: of S6's masks, see `look`; the oracle is named, and the teacher of an EfficientAD run.
    """
    source = source or _own_source(run_or_model)
    batch, output = look(run_or_model, data, rows, source)
    maps = {"deciding CAM": output.cam[:, 0].float().numpy()}
    if scale is not None:
        maps[THE_SAME] = maps["deciding CAM"]
    maps |= {
        heading: value[:, 0].float().numpy()
        for name, heading in UNIT_MAPS.items()
        if (value := output[name]) is not None
    }
    prob = output.logits.float().softmax(dim=1)[:, 1]
    figure = map_grid(
        batch.images.permute(0, 2, 3, 1).numpy(),
        batch.masks[:, 0].numpy(),
        maps,
        [_title(int(label), float(p), threshold) for label, p in zip(batch.labels, prob)],
        unit_maps=list(UNIT_MAPS.values()),
        scales={THE_SAME: scale} if scale else None,
    )
    if said := _masks_told(source):
        figure.supxlabel(said, fontsize=8)
    return figure


def _masks_told(source: MaskSource) -> str:
    """What must stand beside results of a source of masks; empty where it is the model itself."""
    teacher = source.summary.get("teacher")
    return LEAKS if source.leaks else f"masks from EfficientAD; its teacher: {teacher}" if teacher else ""


def _title(label: int, probability: float, threshold: float | None) -> str:
    truth = ("normal", "defective")[label]
    verdict = "" if threshold is None else f"\ncalled {('normal', 'defective')[probability >= threshold]}"
    return f"{truth}{verdict}\np(defect) {probability:.2f}"


def explanation_pictures(
    run_or_model: Run | GAINMTLModel,
    data: GainDataModule,
    table: pd.DataFrame,
    *,
    splits: Sequence[str],
    threshold: float,
    scale: MapScale | None = None,
    source: MaskSource | None = None,
) -> Iterator[tuple[str, Figure]]:
    """Pages of pictures of whole splits, the most telling first: misses, false alarms, then the rest.

    Args:
        run_or_model: of the predictions.
        data: set up, with the pictures of the predictions.
        table: of `evaluate`.
        splits: which of them, where present.
        threshold: the decision threshold.
        scale: the absolute one of the deciding CAM, where it is known.
        source: of S6's masks, the one that the predictions were made with, see `look`.

    Yields:
        A name such as ``test_FN_01`` and its figure.

    Raises:
        ValueError: predictions and data do not hold the same pictures.
    """
    source = source or _own_source(run_or_model)
    for split in splits:
        predicted = table[table["split"] == split]
        rows, verdicts = rows_of(predicted, data), predicted["verdict"].to_numpy()
        for verdict in ("FN", "FP", "TP", "TN"):
            chosen = rows[verdicts == verdict]
            for page, start in enumerate(range(0, len(chosen), PER_PAGE), start=1):
                shown = chosen[start : start + PER_PAGE].tolist()
                figure = explanation_figure(run_or_model, data, shown, threshold=threshold, scale=scale, source=source)
                yield f"{split}_{verdict}_{page:02d}", figure


def same_pictures_figure(runs: Sequence[Run], split: str = "test", *, defective: int = 4, normal: int = 1) -> Figure:
    """The deciding CAM of several strategies on the same pictures, the defect probability under each.

    A run whose masks from outside cannot be had is left out, and the figure says so.

    Args:
        runs: trained on the same data; of several seeds of a strategy the first is shown.
        split: where the pictures come from.
        defective: how many defective pictures, of as many types as there are.
        normal: how many normal ones.
    """
    data = build_data(runs[0].settings)
    data.setup("test")
    rows = pick_rows(data.samples, split, defective=defective, normal=normal)
    maps, notes, missing, told = {}, {}, set(), []
    for run in runs:
        source = MaskSource.of(run.settings)
        name = row_name(run.settings) + (f"\n{ORACLE_MARK.strip()}" if source.leaks else "")
        if name in maps:
            continue
        try:
            _, output = look(run.model, data, rows, source)
        except (DataError, RunError) as error:
            logger.warning("%s seed %d is left out of the figure: %s", name, run.settings.seed, error)
            missing.add(name)
            continue
        maps[name] = output.cam[:, 0].float().numpy()
        notes[name] = [f"p(defect) {p:.2f}" for p in output.logits.float().softmax(dim=1)[:, 1]]
        if not source.leaks and (said := _masks_told(source)):
            told.append(f"{name}: {said}.")
    batch = data.dataset.__getitems__(rows)
    titles = [f"{split}\n{data.samples.loc[row, 'defect_type']}" for row in rows]
    figure = map_grid(batch.images.permute(0, 2, 3, 1).numpy(), batch.masks[:, 0].numpy(), maps, titles, notes=notes)
    told += [f"{name} is left out: its masks from outside cannot be had." for name in sorted(missing - set(maps))]
    if told:
        figure.supxlabel(textwrap.fill(" ".join(told), int(figure.get_figwidth() * CHARACTERS_PER_INCH)), fontsize=8)
    return figure
