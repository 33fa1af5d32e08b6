"""The audit report of a run: one HTML file that opens offline and prints."""

import json
from base64 import b64encode
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from gainmtl_lib import metrics, stats, wording
from gainmtl_lib.audit import numbers
from gainmtl_lib.audit.limits import known_limits, marks
from gainmtl_lib.audit.numbers import Audit, explanation_rows
from gainmtl_lib.dataset import load_picture
from gainmtl_lib.evaluation import KINDS, error_analysis, file_digest, stored_maps
from gainmtl_lib.figures import classification_figure, encode, enlarged_share, fitting, ground, overlay
from gainmtl_lib.findings import DataError
from gainmtl_lib.labels import resize_image
from gainmtl_lib.metrics import MapScale
from gainmtl_lib.runs import Run, atomic_path, load_run, row_name

FILES = (
    "settings.yaml", "manifest.json", "model.safetensors", "predictions.csv", "metrics.json", "maps/cam.npy",
    "faithfulness.json", "novelty.json", "novelty.csv",
)  # fmt: skip


def write_report(
    run: Run | str | Path,
    path: str | Path | None = None,
    *,
    required_recall: float = 0.99,
    data_root: str | Path | None = None,
) -> Path:
    """Write the audit report of an evaluated run, and return the file's path. Without pictures, maps are shown alone.

    Args:
        run: finished and evaluated, or its folder.
        path: of the file; ``report.html`` in the run's folder by default.
        required_recall: what the line demands, in (0, 1]; the threshold for it is chosen on validation.
        data_root: where the pictures lie now, when they moved since the training.

    Raises:
        RunError: no run, not finished, not evaluated, or its files are damaged.
        ValueError: a recall outside (0, 1].
        DataError: `data_root` is no folder.
        FileError: the file cannot be written.
    """
    run = load_run(run.folder if isinstance(run, Run) else run)
    path = run.folder / "report.html" if path is None else Path(path)
    settings, root = run.settings, Path(data_root or run.settings.data_root).expanduser().absolute()
    if data_root is not None and not root.is_dir():
        raise DataError(f"{root}: no such folder; data_root is the folder that the run's pictures are in now")
    audit = Audit(run, required_recall=required_recall)
    serious, other_limits = known_limits(audit)
    shown = galleries(run, audit, root)
    environment = Environment(
        loader=PackageLoader("gainmtl_lib", "audit"),
        autoescape=True,  # file names and class names come from outside
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    written = ("number", "percent", "interval", "of_count", "plural")
    environment.filters |= {name: getattr(wording, name) for name in written}
    environment.filters["duration"] = lambda seconds: str(timedelta(seconds=round(seconds)))
    environment.globals |= {"wording": wording, "stats": stats, "metrics": metrics, "numbers": numbers}
    text = environment.get_template("report.html.jinja").render(
        name=f"{settings.experiment} / {row_name(settings)} / seed {settings.seed}",
        settings=settings,
        manifest=run.manifest,
        software=run.manifest.get("versions", {}),
        audit=audit,
        marks=marks(audit),
        serious=serious,
        other_limits=other_limits,
        figures=report_figures(audit),
        explanation=explanation_rows(audit),
        novelty=audit.novelty,
        galleries=shown,
        missing=sum(case["picture"] is None for gallery in shown for case in gallery["cases"]),
        data_root=data_root or settings.plain()["data_root"],
        files=[(name, file_digest(run.folder / name) or "not there") for name in FILES],
        parameters=[
            (name, json.dumps(value, ensure_ascii=False).strip('"[]')) for name, value in settings.plain().items()
        ],
    )
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


# --- Figures


def report_figures(audit: Audit) -> dict[str, str]:
    """As data URIs: confusion, ROC and precision-recall; escapes and overkill over the threshold."""
    classification, uris = classification_figure(audit.table, audit.metrics["threshold"]), {}
    for name, figure in {"classification": classification, "trade_off": trade_off_figure(audit)}.items():
        figure.savefig(buffer := BytesIO(), format="svg")  # prints sharp
        uris[name] = f"data:image/svg+xml;base64,{b64encode(buffer.getvalue()).decode()}"
    return uris


def trade_off_figure(audit: Audit) -> Figure:
    """Escapes and overkill of every split with both classes over the threshold, with the thresholds in question."""
    figure = Figure(figsize=(11, 2.8), layout="constrained")
    axes = figure.subplots(1, len(audit.splits), sharey=True, squeeze=False)[0]
    for axis, split in zip(axes, audit.splits):
        rows = audit.rows(split)
        if rows["label"].nunique() == 2:
            overkill, recall, thresholds = roc_curve(rows["label"], rows["probability"], drop_intermediate=False)
            thresholds[0] = 1  # there nothing is called defective; from each score down to the next the rates stay
            axis.step(thresholds, 1 - recall, where="post", color="#b3261e", label="escapes (of the defects)")
            axis.step(thresholds, overkill, where="post", color="#1f5fa8", ls="--", label="overkill (of the normals)")
        axis.axvline(audit.metrics["threshold"], color="k", lw=0.8, label="decision threshold")
        if audit.choice.threshold is not None:
            name = f"for recall {audit.choice.required:g}"
            axis.axvline(audit.choice.threshold, color="k", lw=0.8, ls=":", label=name)
        axis.set(xlim=(0, 1), ylim=(-0.02, 1.02), xlabel="threshold on p(defect)")
        axis.set_title(wording.SPLIT_NAMES[split], fontsize=9)
    axes[0].set_ylabel("share")
    axes[-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


# --- The pictures that an auditor wants to see

SIDE = 192  # pixels of the longer side
SHOWN = 12  # of each kind and split
FAILURES = {
    "missed": ("missed defects", "lowest probability first"),
    "wrong reason": ("right for the wrong reason", "least energy inside the mask first"),
    "false alarm": ("false alarms", "highest probability first"),
}
"""Name of each kind of `error_analysis`, and its order there."""


def galleries(run: Run, audit: Audit, root: Path) -> list[dict[str, Any]]:
    """Failures of each test split, in the order of `error_analysis`.

    Each has ``split``, ``kind``, ``meaning`` (of kind and order), ``total`` and the ``cases`` that are shown.
    """
    maps, scale = stored_maps(run, len(audit.table))["cam"], audit.scales.get("cam")
    table, found = audit.table.assign(row=np.arange(len(audit.table)), finds=audit.found), []
    for split in audit.tests:
        errors = error_analysis(table, split)
        for kind, (name, order) in FAILURES.items():
            rows = errors[errors["kind"] == kind]
            cases = [_case(run, root, maps, row, scale) for row in rows.head(SHOWN).to_dict("records")]
            meaning = f"{KINDS[kind]}; {order}"
            found.append({"split": split, "kind": name, "meaning": meaning, "total": len(rows), "cases": cases})
    return found


def _case(run: Run, root: Path, maps: NDArray, row: dict[Any, Any], scale: MapScale | None) -> dict[str, Any]:
    """The picture and the CAM over it as data URIs; None where it cannot be read or has no absolute scale."""
    size = run.settings.image_size
    small = fitting(size, SIDE)
    try:
        mask = str(root / row["mask"]) if isinstance(row["mask"], str) else None
        picture = load_picture(str(root / row["image"]), mask, image_size=size, resize=run.settings.resize)
        pixels, mask = resize_image(picture.image, small, "squash"), picture.mask
    except DataError:
        picture, pixels, mask = None, ground(small), None

    def drawn(share: NDArray | None) -> str:
        jpeg = encode(overlay(pixels, share, mask=mask), quality=82)
        return f"data:image/jpeg;base64,{b64encode(jpeg).decode()}"

    return {
        "row": row,
        "picture": None if picture is None else drawn(None),
        "absolute": None if scale is None else drawn(enlarged_share(maps[row["row"]], scale, size)),
        "per_image": drawn(enlarged_share(maps[row["row"]], None, size)),
    }
