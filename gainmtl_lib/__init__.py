"""GAIN-MTL: a defect classifier taught to look at the defect, and the tools that measure whether it does.

The names below load on first use, so that a command's ``--help`` does not wait for PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gainmtl_lib.evaluation.evaluate import evaluate
    from gainmtl_lib.explain.explainer import DefectExplainer
    from gainmtl_lib.models.backbone import get_backbone
    from gainmtl_lib.models.gain_mtl import GAINMTLModel
    from gainmtl_lib.runs import Run, load_run
    from gainmtl_lib.settings import Settings
    from gainmtl_lib.training.fit import fit

__all__ = ["DefectExplainer", "GAINMTLModel", "Run", "Settings", "evaluate", "fit", "get_backbone", "load_run"]

_HOME = {
    "Settings": "settings",
    "GAINMTLModel": "models.gain_mtl",
    "get_backbone": "models.backbone",
    "fit": "training.fit",
    "evaluate": "evaluation.evaluate",
    "DefectExplainer": "explain.explainer",
    "Run": "runs",
    "load_run": "runs",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
