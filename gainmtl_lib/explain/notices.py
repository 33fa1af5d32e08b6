"""What must be said of opened runs before anybody looks: what is missing, what does not fit, whose teacher it was."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from gainmtl_lib.efficientad.runs import EfficientADRun
from gainmtl_lib.evaluation.novelty import OUT_OF_DATE, is_stale
from gainmtl_lib.explain.opened import OpenedRun
from gainmtl_lib.runs import Run


def notices(opened: Sequence[OpenedRun]) -> Iterable[str]:
    """One sentence each."""
    for root, runs in _by_root(opened).items():
        if not runs[0].has_root:
            yield (
                f"The folder {root} of the pictures is missing: verdicts and maps are shown on a grey ground. "
                "If the pictures moved, name their folder with data_root."
            )
    for one in opened:
        if not one.has_masks:
            yield (
                f"{one.name}: no defect is annotated, so there is no outline, no {one.system.iou_name} and nothing to "
                "call right for the wrong reason. Verdicts, confidence and maps are there."
            )
        if not one.scales:
            yield f"{one.name}: no absolute scale (it needs a validation split); maps are shown per image."
        if one.run.metrics.get("label_leaks"):
            yield f"{one.name}: was given the ground truth as its mask; what it shows is no result."
        yield from _teachers(one)
        if isinstance(one.run, Run) and is_stale(one.run):
            yield f"{one.name}: novel pictures are not marked: {OUT_OF_DATE.format(folder=one.run.folder)}."
    first = opened[0]
    for other in opened[1:]:
        yield from _mismatch(first, other)


def _teachers(one: OpenedRun) -> Iterable[str]:
    """Wherever EfficientAD had a part in what is shown, its teacher stands beside it."""
    if isinstance(one.run, EfficientADRun):
        yield f"{one.name}: teacher {one.run.teacher}."
    elif teacher := one.run.metrics.get("teacher"):
        yield f"{one.name}: its attention takes masks from EfficientAD; teacher {teacher}."
    if one.novelty is not None:
        teacher = one.novelty.teacher
        yield f"{one.name}: novel pictures are flagged by EfficientAD ({one.novelty.source}); teacher {teacher}."


def _by_root(opened: Sequence[OpenedRun]) -> dict[Path, list[OpenedRun]]:
    roots: dict[Path, list[OpenedRun]] = {}
    for one in opened:
        roots.setdefault(one.root, []).append(one)
    return roots


def _mismatch(first: OpenedRun, other: OpenedRun) -> Iterable[str]:
    common = len(first.row_of.keys() & other.row_of.keys())
    if not common:
        yield (
            f"{first.name} and {other.name} have no picture in common: they cannot be shown side by side, "
            "each can be browsed by itself."
        )
    elif common < len(first.row_of):
        yield f"{other.name} has {common} of the {len(first.row_of)} pictures of {first.name}; the others are left out."
    if common and (unlike := _unlike(first, other)):
        yield f"{first.name} and {other.name} {unlike}: pictures are matched by path alone and may not be the same."


def _unlike(first: OpenedRun, other: OpenedRun) -> str:
    """Why pictures of the same path may be others; empty where nothing says so."""
    if first.system is other.system:
        return "were trained on different data" if first.data_digest != other.data_digest else ""
    return "have their pictures in different folders" if first.root.resolve() != other.root.resolve() else ""
