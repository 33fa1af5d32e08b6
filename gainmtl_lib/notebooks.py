"""Notebooks without a browser: which there are, how one is executed, how a committed one is kept clean."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
import papermill
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError

from gainmtl_lib.runs import atomic_path, claim
from gainmtl_lib.settings import RunSettings, Settings, SettingsError, read_parameters, repository_root

if TYPE_CHECKING:
    from gainmtl_lib.efficientad.model import EfficientADSettings


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


# --- The collection run headless


def notebook_settings(strategy: str | None, files: Sequence[Path], overrides: Mapping[str, Any]) -> Settings:
    """What a notebook's `Settings` will be: its own parameters (quick + strategy), then files, then overrides.

    Args:
        strategy: ``S1`` … ``S7``, or None for a notebook about all of them.
        files: parameter files, later ones win.
        overrides: values that win over files.

    Raises:
        SettingsError: a value that cannot be used, or another strategy than the notebook's.
    """
    asked = _given(files, overrides).get("strategy", strategy)
    if strategy is not None and asked != strategy:
        raise SettingsError(f"strategy is {asked!r}, but the notebook is {strategy}'s; leave it out")
    return Settings.from_yaml(*_own_files(strategy), *files, **overrides)


def run_strategy(strategy: str, files: Sequence[Path], overrides: Mapping[str, Any], *, force: bool = False) -> Path:
    """Execute one strategy's notebook into its run's folder.

    Returns:
        The executed notebook, ``outputs/<experiment>/<strategy>/seed<k>/notebook.ipynb``.
    """
    settings = notebook_settings(strategy, files, overrides)
    if force:
        _drop(settings)
    parameters = read_parameters(_own_files(strategy)[-1]) | _given(files, overrides)
    return execute(STRATEGY_NOTEBOOKS[strategy], settings.run_dir / "notebook.ipynb", parameters)


def run_all(files: Sequence[Path], overrides: Mapping[str, Any], *, force: bool = False) -> Path:
    """Execute the whole collection: inspection, S1 to S7, comparison, explanation, EfficientAD, shortcuts.

    Finished runs stay, unless `force` drops them. EfficientAD is given what both systems share (`RunSettings`); what is
    left is its notebook's own. The shortcut study has parameters and synthetic data of its own, so that data that is
    not synthetic goes without it.

    Returns:
        The experiment's folder.
    """
    from gainmtl_lib.studies.shortcut import ShortcutStudySettings  # a kit

    given = _given(files, overrides)
    if "strategy" in given:
        raise SettingsError("'all' runs every strategy; leave 'strategy' out of the parameters")
    for strategy in STRATEGY_NOTEBOOKS:
        notebook_settings(strategy, files, overrides)
    anomaly_settings(given)
    shortcuts = repository_root() / "params" / "studies" / "shortcut.yaml"
    cells = ShortcutStudySettings.from_yaml(shortcuts, **_outputs(given)).cells()
    settings = notebook_settings(None, files, overrides)
    experiment = settings.outputs_dir / settings.experiment
    execute(INSPECTION, experiment / f"{INSPECTION}.ipynb", given)
    for number, strategy in enumerate(STRATEGY_NOTEBOOKS, start=1):
        logger.info("strategy %d of %d: %s", number, len(STRATEGY_NOTEBOOKS), strategy)
        run_strategy(strategy, files, overrides, force=force)
    for name in (ABLATION, EXPLANATION):
        execute(name, experiment / f"{name}.ipynb", given)
    anomalies = anomaly_settings(given)
    if force:
        _drop(anomalies)
    execute(ANOMALIES, experiment / f"{ANOMALIES}.ipynb", _shared(given))
    if settings.dataset_type == "synthetic":
        for cell in cells if force else ():
            _drop(cell.settings)
        execute(SHORTCUTS, experiment / f"{SHORTCUTS}.ipynb", _outputs(given))
    else:
        logger.info("left out: %s, which draws synthetic data; see gainmtl shortcut --help", SHORTCUTS)
    return experiment


def anomaly_settings(given: Mapping[str, Any]) -> EfficientADSettings:
    """What notebook 09's settings will be: its own parameters, then those of `given` that both systems share."""
    from gainmtl_lib.efficientad.model import EfficientADSettings  # a kit

    return EfficientADSettings.from_yaml(repository_root() / "params" / "efficientad_synthetic.yaml", **_shared(given))


def _drop(settings: RunSettings) -> None:
    with claim(settings, force=True):
        logger.info("dropped what %s held", settings.run_dir)


def _shared(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name in RunSettings.model_fields}


def _outputs(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: given[name] for name in ("outputs_dir",) if name in given}


def _given(files: Sequence[Path], overrides: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for path in files:
        values |= read_parameters(path)
    return values | dict(overrides)


def _own_files(strategy: str | None) -> list[Path]:
    params = repository_root() / "params"
    return [params / "quick.yaml", *([params / f"{strategy.lower()}.yaml"] if strategy else [])]
