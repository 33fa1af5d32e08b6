"""The report's head: what was trained on what, from settings and manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gainmtl_lib.evaluation.ablation import row_name
from gainmtl_lib.explain.audit_report.wording import plural, rounded
from gainmtl_lib.runs import Run
from gainmtl_lib.settings import Settings

STRATEGIES = {
    "S1": "classification alone",
    "S2": "classification with a guided CAM",
    "S3": "guided attention decides",
    "S4": "guided attention and localization",
    "S5": "guided attention, localization and counterfactual",
    "S6": "attention fused with a mask, localization and counterfactual",
    "S7": "as S5, trained besides on pictures whose defect was taken away or added",
}
UNKNOWN = "not recorded"
FILES = (
    "settings.yaml", "manifest.json", "model.safetensors", "predictions.csv", "metrics.json", "maps/cam.npy",
    "faithfulness.json", "novelty.json", "novelty.csv",
)  # fmt: skip

Rows = list[tuple[str, str]]


def head_rows(run: Run) -> dict[str, Rows]:
    """Label and text of each fact, by group."""
    settings, manifest = run.settings, run.manifest
    return {
        "Model": _model(settings, manifest),
        "Data": _data(settings, manifest),
        "Training": _training(settings, manifest),
        "Software": [(name, str(found or "missing")) for name, found in manifest.get("versions", {}).items()],
    }


def run_name(settings: Settings) -> str:
    """``quick / S5 / seed 42``."""
    return f"{settings.experiment} / {row_name(settings)} / seed {settings.seed}"


def started(manifest: Mapping[str, Any]) -> str:
    """When the training began."""
    return _get(manifest, "started").replace("T", " ").replace("+00:00", " UTC")


def file_digests(folder: Path) -> Rows:
    """SHA-256 of the files that the report rests on, so that it can be told which ones it was written from."""
    return [(name, _digest(folder / name)) for name in FILES]


def settings_rows(settings: Settings) -> Rows:
    """Every parameter of the run."""
    return [(name, _plain(value)) for name, value in settings.plain().items()]


def _model(settings: Settings, manifest: Mapping[str, Any]) -> Rows:
    height, width = settings.image_size
    rows = [
        ("strategy", f"{settings.strategy}: {STRATEGIES[settings.strategy]}"),
        ("backbone", f"{settings.backbone_arch}, built by {_get(manifest, 'provider')}"),
        ("backbone weights at the start", _get(manifest, "pretrained")),
        ("parameters", f"{manifest['parameters']:,}" if "parameters" in manifest else UNKNOWN),
        ("input", f"{height} x {width} px (height x width), {settings.resize}"),
        (
            "map grid",
            f"{height // settings.map_stride} x {width // settings.map_stride} cells, stride {settings.map_stride}",
        ),
    ]
    if settings.strategy == "S6":
        rows.append(("mask source asked for", settings.mask_source))
    return rows


def _data(settings: Settings, manifest: Mapping[str, Any]) -> Rows:
    sizes = manifest.get("split_sizes", {})
    order = [split for split in ("train", "val", "test", "test_shift") if split in sizes]
    rows = [
        ("type", settings.dataset_type),
        ("folder", str(settings.plain()["data_root"])),
        ("digest (SHA-256)", _get(manifest, "data_digest")),
        ("pictures", ", ".join(f"{split} {sizes[split]}" for split in order) or UNKNOWN),
    ]
    if "train_normal" in manifest:
        annotated = manifest.get("train_annotated", UNKNOWN)
        counts = f"{manifest['train_normal']} normal, {manifest['train_defective']} defective ({annotated} with a mask)"
        rows.append(("training pictures", counts))
    if settings.mask_share < 1 or settings.mask_quality != "exact":
        kept = f"{100 * settings.mask_share:g} % of the defects keep their masks"
        rows.append(("training masks", f"{kept}, {settings.mask_quality}"))
    if settings.image_counterfactual > 0:
        rows.append(("edited training pictures", _edits(settings, manifest)))
    drawn = f"seed {settings.seed_of_split}, test ratio {settings.test_ratio:g}"
    rows.append(("split", f"the data's own where it has one; else {drawn}"))
    if settings.dataset_type == "synthetic":
        planted = f"{settings.shortcut}, with the label in {100 * settings.shortcut_correlation:g} % of the pictures"
        rows.append(("planted shortcut", "none" if settings.shortcut == "none" else planted))
    return rows


def _edits(settings: Settings, manifest: Mapping[str, Any]) -> str:
    expected = manifest.get("edits_per_epoch") or {}
    kinds = ", ".join(f"{kind} {number:g}" for kind, number in expected.items())
    counted = f"on average of an epoch {kinds}" if kinds else UNKNOWN
    return f"{100 * settings.image_counterfactual:g} %; {counted}"


def _training(settings: Settings, manifest: Mapping[str, Any]) -> Rows:
    weights = ", ".join(f"{term} {weight:g}" for term, weight in settings.weights.items() if weight)
    ratios = ", ".join(f"{getattr(settings, f'stage{k}_ratio'):g}" for k in (1, 2, 3, 4))
    best = f"{manifest['best_epoch']} of {settings.num_epochs}" if "best_epoch" in manifest else UNKNOWN
    if manifest.get("best_val_ap") is not None:
        best += f", by validation AP {rounded(manifest['best_val_ap'])}"
    return [
        ("seed", str(settings.seed)),
        ("best epoch", best),
        ("loss weights λ in force", weights),
        ("stages 1 to 4", f"{ratios} of the training"),
        ("learning rate, batch", f"{settings.learning_rate:g}, {plural(settings.batch_size, 'picture')}"),
        ("device, precision", f"{_get(manifest, 'device')}, {_get(manifest, 'precision')}"),
        ("started", started(manifest)),
        ("duration", _duration(manifest.get("duration_s"))),
        ("code", _code(manifest)),
    ]


def _code(manifest: Mapping[str, Any]) -> str:
    version = manifest.get("versions", {}).get("gainmtl")
    commit = manifest.get("commit")
    return f"gainmtl {version or UNKNOWN}" + (f", commit {commit}" if commit else "")


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return UNKNOWN
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (rest, "s")]
    return " ".join(f"{value} {unit}" for value, unit in parts if value) or "0 s"


def _get(manifest: Mapping[str, Any], name: str) -> str:
    value = manifest.get(name)
    return UNKNOWN if value is None else str(value)


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return {True: "true", False: "false"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def _digest(path: Path) -> str:
    if not path.is_file():
        return "not there"
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
