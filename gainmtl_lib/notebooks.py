"""Notebooks without a browser: which there are, how one is executed, how a committed one is kept clean."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
import papermill
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError

from gainmtl_lib.files import atomic_path
from gainmtl_lib.parameters import repository_root

logger = logging.getLogger(__name__)

STRATEGY_NOTEBOOKS = {
    "S1": "01_s1_classification",
    "S2": "02_s2_cam_guidance",
    "S3": "03_s3_attention",
    "S4": "04_s4_localization",
    "S5": "05_s5_counterfactual",
    "S6": "06_s6_mask_attention",
    "S7": "10_s7_image_counterfactual",
}
INSPECTION = "00_data_inspection"
ABLATION = "07_ablation_comparison"
EXPLANATION = "08_cam_explanation"
ANOMALIES = "09_efficientad"
SHORTCUTS = "11_shortcut_study"

KEPT_METADATA = ("kernelspec", "language_info")


class NotebookError(RuntimeError):
    """A notebook that stopped: names it, the cell and the error."""


def notebook_path(name: str) -> Path:
    """Where a notebook of the collection lies."""
    return repository_root() / "notebooks" / f"{name}.ipynb"


def execute(name: str, output: Path, parameters: Mapping[str, Any]) -> Path:
    """Run a notebook headless; its log lines appear on stderr as it goes.

    Args:
        name: of the notebook, without suffix.
        output: the executed copy; kept up to the failing cell when the notebook stops.
        parameters: injected after its parameters cell.

    Raises:
        NotebookError: a cell raised an error.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    source = notebook_path(name)
    logger.info("notebook %s -> %s", source.name, output)
    try:
        _papermill(source, output, dict(parameters))
    except PapermillExecutionError as error:
        raise NotebookError(
            f"{source.name} stopped in cell {error.exec_count}: {error.ename}: {error.evalue}\n"
            f"the notebook up to there: {output}"
        ) from None
    return output


def refresh(path: Path) -> None:
    """Execute a committed notebook in place with its own parameters, and clean it. Running it twice changes nothing."""
    with atomic_path(path) as temporary:
        _papermill(path, temporary, {})
        notebook = clean(nbformat.read(temporary, as_version=4))
        temporary.write_text(json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + os.linesep, "utf-8")


def _papermill(source: Path, output: Path, parameters: dict[str, Any]) -> None:
    """With the cells' log lines on stderr, and without the kernel's advice on network encryption."""
    papermill.execute_notebook(
        source,
        output,
        parameters=parameters,
        cwd=str(source.parent),
        progress_bar=False,
        log_output=True,
        extra_arguments=["--log-level=ERROR"],
    )


def clean(notebook: NotebookNode) -> NotebookNode:
    """Keep tags, outputs and counts; drop stderr, widget views and metadata that change; number the cell ids."""
    notebook.metadata = NotebookNode({key: notebook.metadata[key] for key in KEPT_METADATA if key in notebook.metadata})
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
        tags = cell.metadata.get("tags", [])
        cell.metadata = NotebookNode({"tags": tags} if tags else {})
        if cell.cell_type == "code":
            cell.outputs = [_clean_output(output) for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def _clean_output(output: NotebookNode) -> NotebookNode:
    output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    if "metadata" in output:
        output.metadata = NotebookNode()
    return output
