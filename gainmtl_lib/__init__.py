"""GAIN-MTL: a defect classifier taught to look at the defect, and the tools that measure whether it does.

The names below load on first use, so that a command's ``--help`` does not wait for PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gainmtl_lib.efficientad.evaluate import evaluate_efficientad
    from gainmtl_lib.efficientad.fit import fit_efficientad
    from gainmtl_lib.efficientad.model import EfficientADModel
    from gainmtl_lib.efficientad.provider import DatasetProvider, SplitProvider
    from gainmtl_lib.efficientad.runs import EfficientADRun, load_efficientad
    from gainmtl_lib.efficientad.settings import EfficientADSettings
    from gainmtl_lib.evaluation.evaluate import evaluate
    from gainmtl_lib.explain.explainer import DefectExplainer
    from gainmtl_lib.models.backbone import get_backbone
    from gainmtl_lib.models.gain_mtl import GAINMTLModel
    from gainmtl_lib.runs import Run, load_run
    from gainmtl_lib.settings import Settings
    from gainmtl_lib.training.fit import fit

__all__ = [
    "DatasetProvider",
    "DefectExplainer",
    "EfficientADModel",
    "EfficientADRun",
    "EfficientADSettings",
    "GAINMTLModel",
    "Run",
    "Settings",
    "SplitProvider",
    "evaluate",
    "evaluate_efficientad",
    "fit",
    "fit_efficientad",
    "get_backbone",
    "load_efficientad",
    "load_run",
]

_HOME = {
    "Settings": "settings",
    "GAINMTLModel": "models.gain_mtl",
    "get_backbone": "models.backbone",
    "fit": "training.fit",
    "evaluate": "evaluation.evaluate",
    "DefectExplainer": "explain.explainer",
    "Run": "runs",
    "load_run": "runs",
    "EfficientADModel": "efficientad.model",
    "EfficientADSettings": "efficientad.settings",
    "EfficientADRun": "efficientad.runs",
    "load_efficientad": "efficientad.runs",
    "DatasetProvider": "efficientad.provider",
    "SplitProvider": "efficientad.provider",
    "fit_efficientad": "efficientad.fit",
    "evaluate_efficientad": "efficientad.evaluate",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
