"""The collection run headless: each strategy's notebook in order, checked before a kernel starts."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gainmtl_lib.claims import claim
from gainmtl_lib.efficientad.settings import EfficientADSettings
from gainmtl_lib.evaluation.shortcut_settings import ShortcutStudySettings
from gainmtl_lib.notebooks import ABLATION, ANOMALIES, EXPLANATION, INSPECTION, SHORTCUTS, STRATEGY_NOTEBOOKS, execute
from gainmtl_lib.parameters import SettingsError, read_parameters, repository_root
from gainmtl_lib.run_settings import RunSettings
from gainmtl_lib.settings import Settings

logger = logging.getLogger(__name__)


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
