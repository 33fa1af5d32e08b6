"""Test pictures with everything a model says of them, as figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from gainmtl_lib.build import build_data
from gainmtl_lib.data.datamodule import GainDataModule
from gainmtl_lib.evaluation.map_scale import MapScale
from gainmtl_lib.explain.plots import map_grid
from gainmtl_lib.models.gain_mtl import GAINMTLModel
from gainmtl_lib.records import Batch, GainOutput
from gainmtl_lib.runs import Run

PER_PAGE = 8
THE_SAME = "the same"
UNIT_MAPS = {"effective_attention": "attention", "localization_map": "localization"}


def pick_rows(samples: pd.DataFrame, split: str, *, defective: int, normal: int) -> list[int]:
    """Rows of a split to show: defective ones of as many defect types as there are, then normal ones.

    The choice depends on the table alone, so that every strategy shows the same pictures.
    """
    rows = samples[samples["split"] == split]
    broken = rows[(rows["label"] == 1) & rows["mask"].notna()]
    order = broken.assign(turn=broken.groupby("defect_type").cumcount()).sort_values(["turn", "defect_type"])
    return [*order.index[:defective], *rows.index[rows["label"] == 0][:normal]]


def look(model: GAINMTLModel, data: GainDataModule, rows: Sequence[int]) -> tuple[Batch, GainOutput]:
    """What the model says of some rows, in evaluation mode."""
    batch = data.dataset.__getitems__(list(rows))
    with torch.inference_mode():
        return batch, model.eval()(batch.images, batch.masks)


def explanation_figure(
    model: GAINMTLModel,
    data: GainDataModule,
    rows: Sequence[int],
    *,
    threshold: float | None = None,
    scale: MapScale | None = None,
) -> Figure:
    """One row per picture: mask outline, then every map the strategy has.

    Args:
        model: evaluated or to be.
        data: set up.
        rows: of ``data.samples``.
        threshold: adds the verdict to the row's title.
        scale: shows the deciding CAM on its absolute scale, too.
    """
    batch, output = look(model, data, rows)
    maps = {"deciding CAM": output.cam[:, 0].float().numpy()}
    if scale is not None:
        maps[THE_SAME] = maps["deciding CAM"]
    maps |= {
        heading: value[:, 0].float().numpy()
        for name, heading in UNIT_MAPS.items()
        if (value := output[name]) is not None
    }
    prob = output.logits.float().softmax(dim=1)[:, 1]
    return map_grid(
        batch.images.permute(0, 2, 3, 1).numpy(),
        batch.masks[:, 0].numpy(),
        maps,
        [_title(int(label), float(p), threshold) for label, p in zip(batch.labels, prob)],
        unit_maps=list(UNIT_MAPS.values()),
        scales={THE_SAME: scale} if scale else None,
    )


def _title(label: int, probability: float, threshold: float | None) -> str:
    truth = ("normal", "defective")[label]
    verdict = "" if threshold is None else f"\ncalled {('normal', 'defective')[probability >= threshold]}"
    return f"{truth}{verdict}\np(defect) {probability:.2f}"


def explanation_pictures(
    model: GAINMTLModel,
    data: GainDataModule,
    table: pd.DataFrame,
    *,
    splits: Sequence[str],
    threshold: float,
    scale: MapScale | None = None,
) -> Iterator[tuple[str, Figure]]:
    """Pages of pictures of whole splits, the most telling first: misses, false alarms, then the rest.

    Args:
        model: of the predictions.
        data: set up, with the same rows as the predictions.
        table: of `evaluate`, in the order of the splits' rows.
        splits: which of them, where present.
        threshold: the decision threshold.
        scale: the absolute one of the deciding CAM, where it is known.

    Yields:
        A name such as ``test_FN_01`` and its figure.
    """
    for split in splits:
        rows = np.flatnonzero(data.samples["split"] == split)
        verdicts = table.loc[table["split"] == split, "verdict"].to_numpy()
        for verdict in ("FN", "FP", "TP", "TN"):
            chosen = rows[verdicts == verdict]
            for page, start in enumerate(range(0, len(chosen), PER_PAGE), start=1):
                shown = chosen[start : start + PER_PAGE].tolist()
                figure = explanation_figure(model, data, shown, threshold=threshold, scale=scale)
                yield f"{split}_{verdict}_{page:02d}", figure


def same_pictures_figure(runs: Sequence[Run], split: str = "test", *, defective: int = 4, normal: int = 1) -> Figure:
    """The deciding CAM of several strategies on the same pictures, the defect probability under each.

    Args:
        runs: trained on the same data; of several seeds of a strategy the first is shown.
        split: where the pictures come from.
        defective: how many defective pictures, of as many types as there are.
        normal: how many normal ones.
    """
    data = build_data(runs[0].settings)
    data.setup("test")
    rows = pick_rows(data.samples, split, defective=defective, normal=normal)
    maps, notes = {}, {}
    for run in runs:
        name = run.settings.strategy
        if name not in maps:
            _, output = look(run.model, data, rows)
            maps[name] = output.cam[:, 0].float().numpy()
            notes[name] = [f"p(defect) {p:.2f}" for p in output.logits.float().softmax(dim=1)[:, 1]]
    batch = data.dataset.__getitems__(rows)
    titles = [f"{split}\n{data.samples.loc[row, 'defect_type']}" for row in rows]
    return map_grid(batch.images.permute(0, 2, 3, 1).numpy(), batch.masks[:, 0].numpy(), maps, titles, notes=notes)
