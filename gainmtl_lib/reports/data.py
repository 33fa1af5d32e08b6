"""``gainmtl data check``: what a dataset holds, and what would stop or mislead a training."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape

from gainmtl_lib.evaluation.data_check import LEVELS, check_data_of, contact_sheet_samples
from gainmtl_lib.explain.plots import contact_sheet, save_figure
from gainmtl_lib.reports.tables import frame_table
from gainmtl_lib.settings import Settings

FINDINGS_SHOWN = 12
"""Of each level; the data check may find hundreds of one kind."""


def report_data_check(
    console: Console, settings: Settings, *, val_ratio: float | None, contact_sheet_path: Path | None
) -> bool:
    """``gainmtl data check``: tables and findings.

    Args:
        console: where they are printed.
        settings: of the training that the data is for.
        val_ratio: as for `check_dataset`.
        contact_sheet_path: file of the contact sheet; None for none.

    Returns:
        Whether a training run would accept the data.
    """
    report = check_data_of(settings, val_ratio=val_ratio)
    sections = {
        "images by split and defect type": report.counts,
        "boxes by class, with quantiles of their share of the image": report.boxes,
        "masks": report.masks,
        "defect area, share of the image": report.defect_area,
        f"grid IoU at {' x '.join(map(str, settings.image_size))} px: what the masks reach on a map": report.grid_iou,
    }
    for title, rows in sections.items():
        if len(rows):
            console.print(frame_table(title, rows))
    console.print(f"image size alone predicts the class with AUROC {report.size_auroc:.2f} (0.5: not at all)")
    for level in LEVELS:
        found = [finding for finding in report.findings if finding.level == level]
        for finding in found[:FINDINGS_SHOWN]:
            console.print(f"{level}: {escape(str(finding))}")
        if len(found) > FINDINGS_SHOWN:
            console.print(f"{level}: … and {len(found) - FINDINGS_SHOWN} more")
    if contact_sheet_path is not None:
        sheet = contact_sheet_samples(report.samples)
        save_figure(contact_sheet(sheet.images, sheet.masks, sheet.titles), contact_sheet_path)
        console.print(f"contact sheet: {escape(str(contact_sheet_path))}")
    counts = {level: sum(finding.level == level for finding in report.findings) for level in ("error", "warning")}
    console.print(f"{counts['error']} errors, {counts['warning']} warnings")
    return report.usable
