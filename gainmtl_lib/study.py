"""The collection run headless: each strategy's notebook in order, checked before a kernel starts."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gainmtl_lib.notebooks import ABLATION, INSPECTION, STRATEGY_NOTEBOOKS, execute
from gainmtl_lib.runs import claim
from gainmtl_lib.settings import Settings, SettingsError, read_parameters, repository_root

logger = logging.getLogger(__name__)


def notebook_settings(
    strategy: str | None, given: Mapping[str, Any], origin: Mapping[str, str] | None = None
) -> Settings:
    """What a notebook's `Settings` will be: its own parameters (quick + strategy), then what is given.

    Args:
        strategy: ``S1`` … ``S6``, or None for a notebook about all of them.
        given: values from files and the command line.
        origin: which file a value came from, for messages.

    Raises:
        SettingsError: a value that cannot be used, or another strategy than the notebook's.
    """
    asked = given.get("strategy", strategy)
    if strategy is not None and asked != strategy:
        where = f"{origin['strategy']}: " if origin and "strategy" in origin else ""
        raise SettingsError(f"{where}strategy is {asked!r}, but the notebook is {strategy}'s; leave it out")
    return Settings.from_yaml(*_own_files(strategy), **given)


def run_strategy(
    strategy: str, given: Mapping[str, Any], *, origin: Mapping[str, str] | None = None, force: bool = False
) -> Path:
    """Execute one strategy's notebook into its run's folder.

    Returns:
        The executed notebook, ``outputs/<experiment>/<strategy>/seed<k>/notebook.ipynb``.
    """
    settings = notebook_settings(strategy, given, origin)
    if force:
        with claim(settings, force=True):
            logger.info("dropped what %s held", settings.run_dir)
    parameters = read_parameters(_own_files(strategy)[-1]) | dict(given)
    return execute(STRATEGY_NOTEBOOKS[strategy], settings.run_dir / "notebook.ipynb", parameters)


def run_all(given: Mapping[str, Any], *, origin: Mapping[str, str] | None = None, force: bool = False) -> Path:
    """Execute the whole collection: inspection, S1 to S6, comparison. Finished strategies are reused.

    Returns:
        The experiment's folder.
    """
    if "strategy" in given:
        raise SettingsError("'all' runs every strategy; leave 'strategy' out of the parameters")
    for strategy in STRATEGY_NOTEBOOKS:
        notebook_settings(strategy, given, origin)
    settings = notebook_settings(None, given, origin)
    experiment = settings.outputs_dir / settings.experiment
    execute(INSPECTION, experiment / f"{INSPECTION}.ipynb", given)
    for number, strategy in enumerate(STRATEGY_NOTEBOOKS, start=1):
        logger.info("strategy %d of %d: %s", number, len(STRATEGY_NOTEBOOKS), strategy)
        run_strategy(strategy, given, origin=origin, force=force)
    execute(ABLATION, experiment / f"{ABLATION}.ipynb", given)
    return experiment


def _own_files(strategy: str | None) -> list[Path]:
    params = repository_root() / "params"
    return [params / "quick.yaml", *([params / f"{strategy.lower()}.yaml"] if strategy else [])]
