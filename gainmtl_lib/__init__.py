"""GAIN-MTL: a defect classifier taught to look at the defect, and the tools that measure whether it does.

The names below load on first use, so that a command's ``--help`` does not wait for PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gainmtl_lib.backbone import get_backbone
    from gainmtl_lib.efficientad.data import DatasetProvider, SplitProvider
    from gainmtl_lib.efficientad.evaluate import evaluate_efficientad
    from gainmtl_lib.efficientad.model import EfficientADModel, EfficientADSettings
    from gainmtl_lib.efficientad.train import EfficientADRun, fit_efficientad, load_efficientad
    from gainmtl_lib.evaluation import evaluate
    from gainmtl_lib.explain import DefectExplainer
    from gainmtl_lib.model import GAINMTLModel
    from gainmtl_lib.predict import Predictor
    from gainmtl_lib.runs import Run, load_run
    from gainmtl_lib.settings import Settings
    from gainmtl_lib.train import fit

__all__ = [
    "DatasetProvider",
    "DefectExplainer",
    "EfficientADModel",
    "EfficientADRun",
    "EfficientADSettings",
    "GAINMTLModel",
    "Predictor",
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
    "GAINMTLModel": "model",
    "get_backbone": "backbone",
    "fit": "train",
    "evaluate": "evaluation",
    "DefectExplainer": "explain",
    "Predictor": "predict",
    "Run": "runs",
    "load_run": "runs",
    "EfficientADModel": "efficientad.model",
    "EfficientADSettings": "efficientad.model",
    "EfficientADRun": "efficientad.train",
    "load_efficientad": "efficientad.train",
    "DatasetProvider": "efficientad.data",
    "SplitProvider": "efficientad.data",
    "fit_efficientad": "efficientad.train",
    "evaluate_efficientad": "efficientad.evaluate",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
