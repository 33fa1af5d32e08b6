"""Small pictures for a page: a part with its mask's outline, a map laid over it, a figure; all as data URIs.

Sizes: H x W pixels of the network's input.
"""

from __future__ import annotations

import hashlib
import sys
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib import rc_context
from matplotlib.figure import Figure
from numpy.typing import NDArray

from gainmtl_lib.audit import numbers as wording
from gainmtl_lib.audit.limits import known_limits, marks
from gainmtl_lib.audit.numbers import (
    DECISION,
    FLIPS,
    Audit,
    Evidence,
    Limit,
    ShiftRow,
    audit_run,
    calm_rows,
    defects_to_show,
    explanation_rows,
    faithfulness_rows,
    interval,
    join_words,
    of_count,
    percent,
    percent_interval,
    plural,
    rounded,
    shift_rows,
    verdicts_in_words,
)
from gainmtl_lib.audit.numbers import SPLIT_NAMES as SPLITS
from gainmtl_lib.dataset import Picture, load_picture
from gainmtl_lib.efficientad.evaluate import NORMAL, Kind, stored_novelty
from gainmtl_lib.efficientad.evaluate import is_stale as novelty_is_stale
from gainmtl_lib.evaluation import KINDS, error_analysis, stored_cams
from gainmtl_lib.figures import (
    classification_figure,
    encode,
    enlarged_share,
    fitted,
    inferno,
    overlay,
    resized,
    resized_mask,
)
from gainmtl_lib.metrics import CALM_SHARE, OFF_THE_DEFECT_IOU, MapScale
from gainmtl_lib.readers import DataError
from gainmtl_lib.runs import Run, atomic_path, load_run, row_name
from gainmtl_lib.settings import Settings
from gainmtl_lib.stats import CONFIDENCE, FEWEST_GROUPS, RESAMPLES, SEED
from gainmtl_lib.studies.faithfulness import is_stale as faithfulness_is_stale
from gainmtl_lib.studies.faithfulness import stored_faithfulness

SIDE = 192
"""Pixels of the longer side."""

JPEG_QUALITY = 82


def shown_size(size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) scaled so that the longer one is `SIDE`."""
    scale = SIDE / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def picture_uri(picture: Picture) -> str:
    """The part as the network sees it, with its mask's outline."""
    pixels, mask = _small(picture)
    return _jpeg(overlay(pixels, mask=mask))


def map_uri(share: NDArray[np.float32], picture: Picture | None) -> str:
    """A map in colour over the greyed part, or alone.

    Args:
        share: the map on its scale, in [0, 1], (H, W).
        picture: None where it is not at hand.
    """
    small = fitted(share, shown_size((share.shape[0], share.shape[1])))
    if picture is None:
        return _jpeg(inferno()[np.rint(small * 255).astype(np.uint8)])
    pixels, mask = _small(picture)
    return _jpeg(overlay(pixels, small, mask=mask))


def figure_uri(figure: Figure) -> str:
    """A figure as SVG, which prints sharp; the same bytes each time."""
    buffer = BytesIO()
    with rc_context({"svg.hashsalt": "gainmtl", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return f"data:image/svg+xml;base64,{b64encode(buffer.getvalue()).decode()}"


def _small(picture: Picture) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
    """Pixels and mask as shown; however thin the defect is, something of its mask stays."""
    size = shown_size((picture.image.shape[0], picture.image.shape[1]))
    mask = None if picture.mask is None else resized_mask(picture.mask > 0, size)
    return resized(picture.image, size), mask


def _jpeg(pixels: NDArray[np.uint8]) -> str:
    return f"data:image/jpeg;base64,{b64encode(encode(pixels, quality=JPEG_QUALITY)).decode()}"


# --- The report's figures, as data URIs.


ESCAPES, OVERKILL = "#b3261e", "#1f5fa8"


def report_figures(audit: Audit) -> dict[str, str]:
    """``classification``: confusion, ROC, precision-recall. ``trade_off``: escapes and overkill over the threshold."""
    return {
        "classification": figure_uri(classification_figure(audit.table, audit.threshold)),
        "trade_off": figure_uri(trade_off_figure(audit)),
    }


def trade_off_figure(audit: Audit) -> Figure:
    """Escapes and overkill of every evaluated split over the threshold, with the thresholds in question."""
    figure = Figure(figsize=(11, 2.8), layout="constrained")
    axes = figure.subplots(1, len(audit.splits), sharey=True, squeeze=False)
    for axis, split in zip(axes[0], audit.splits):
        thresholds, escapes, overkill = error_rates(audit.rows(split))
        axis.step(thresholds, escapes, where="post", color=ESCAPES, label="escapes (of the defects)")
        axis.step(thresholds, overkill, where="post", color=OVERKILL, ls="--", label="overkill (of the normals)")
        axis.axvline(audit.threshold, color="k", lw=0.8, label="decision threshold")
        if audit.choice.threshold is not None:
            name = f"for recall {audit.choice.required:g}"
            axis.axvline(audit.choice.threshold, color="k", lw=0.8, ls=":", label=name)
        axis.set(xlim=(0, 1), ylim=(-0.02, 1.02), xlabel="threshold on p(defect)")
        axis.set_title(SPLITS[split], fontsize=9)
    axes[0, 0].set_ylabel("share")
    axes[0, -1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def error_rates(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Thresholds where something changes, and escape and overkill rate from each on (NaN without that class).

    A picture is called defective from the threshold on, so that raising it past a score lets that picture pass.
    """
    thresholds = np.append(0.0, np.nextafter(np.unique(rows["probability"]), 2))
    rates = []
    for label in (1, 0):
        scores = np.sort(rows.loc[rows["label"] == label, "probability"])
        below = np.searchsorted(scores, thresholds, side="left") / len(scores) if len(scores) else np.nan * thresholds
        rates.append(below)
    escapes, overkill = rates[0], 1 - rates[1]
    return np.append(thresholds, 1.0), np.append(escapes, escapes[-1]), np.append(overkill, overkill[-1])


# --- The report's head


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


# --- The report's sentences


def in_short(evidence: Evidence, limits: Sequence[Limit]) -> list[tuple[str, str]]:
    """The report in one sentence for each of its questions."""
    audit = evidence.audit
    lines = [
        ("Trained", _trained(evidence)),
        ("Decision", threshold_sentence(audit)),
        ("Escapes and overkill", escapes_sentence(audit)),
        ("At the required recall", recall_sentence(audit)),
        ("Reason", reason_sentence(evidence)),
        ("Faithfulness", faithfulness_sentence(evidence)),
        ("Counterfactual", flip_sentence(evidence)),
        ("Shift", shift_sentence(audit)),
        ("Novel defects", novelty_sentence(evidence)),
    ]
    serious = [limit.title for limit in limits if limit.serious]
    count = f"{plural(len(limits), 'known limit')} below"
    lines.append(
        ("Limits", f"{count}; serious: {'; '.join(serious)}." if serious else f"{count}, none marked serious.")
    )
    return lines


def threshold_sentence(audit: Audit) -> str:
    """Where the threshold came from."""
    origin = audit.metrics.get("threshold_from", "origin not recorded")
    text = f"A picture is called defective from p(defect) = {rounded(audit.threshold)} upwards ({origin})."
    if origin.startswith("validation") and "val" in audit.scores:
        labels = audit.rows("val")["label"]
        text += f" Chosen on {len(labels)} validation pictures, {labels.sum()} of them defective; never on test."
    source, teacher = audit.metrics.get("mask_source"), audit.metrics.get("teacher")
    if teacher:
        source = f"{source}, the run {audit.metrics['efficientad_run']} (teacher: {teacher})"
    return text + (f" Attention took its mask from: {source}." if source else "")


def escapes_sentence(audit: Audit) -> str:
    """What the run's own threshold lets through and throws away, on the headline split."""
    point = audit.chosen[audit.main]
    return (
        f"On {audit.main} {of_count(point.escapes)} defects escape ({percent_interval(point.escapes)}), and "
        f"{of_count(point.overkill)} normal pictures are rejected ({percent_interval(point.overkill)})."
    )


def recall_sentence(audit: Audit) -> str:
    """What the threshold for the required recall does on the headline split, and whether it means something."""
    choice, required = audit.choice, percent(audit.choice.required)
    if choice.threshold is None:
        return f"No threshold for a recall of {required} can be given: there are no validation defects to choose it on."
    point, recall = audit.at_recall[audit.main], 1 - audit.at_recall[audit.main].escapes.value
    text = (
        f"The threshold for a recall of {required}, chosen on validation, is {rounded(choice.threshold)}. "
        f"On {audit.main} it reached {percent(recall)} ({of_count(point.escapes)} defects escape), "
        f"with {of_count(point.overkill)} normal pictures rejected."
    )
    if not choice.enough:
        text += f" Validation has too few defects ({choice.defects}) to know."
    return text


def evidence_sentence(audit: Audit) -> str:
    """How many defects it takes to choose, and to show, the required recall."""
    choice, show, required = audit.choice, defects_to_show(audit.choice.required), percent(audit.choice.required)
    if choice.needed is None or show is None:
        return f"A recall of {required} cannot be shown by any number of pictures."
    return (
        f"To choose a threshold for a recall of {required} takes at least {choice.needed} validation defects; there "
        f"are {choice.defects}. To show that recall on test with {percent(CONFIDENCE)} confidence takes {show} defects "
        "without a miss."
    )


def reason_sentence(evidence: Evidence) -> str:
    """Whether found defects are found for the right reason, on the headline split."""
    rate, cam, grid = (evidence.score(name) for name in ("wrong_reason_rate", "cam_iou", "grid_iou"))
    if not cam.count:
        return f"Not measured: no defect of {evidence.audit.main} has a mask."
    return (
        f"In {of_count(rate)} found defects the deciding CAM lies off the defect ({percent_interval(rate)}). "
        f"CAM-IoU is {interval(cam)}; the masks themselves reach {rounded(grid.value)} on the map's grid."
    )


def flip_sentence(evidence: Evidence) -> str:
    """What the flips mean: only what exceeds the control counts."""
    flip, control, excess = (evidence.score(name) for name in FLIPS)
    if not evidence.has_counterfactual:
        return f"Not asked: strategy {evidence.settings.strategy} as trained has no counterfactual."
    if not flip.count:
        return "Not answered: no found defect has a mask."
    text = (
        f"With the defect's features suppressed the verdict turns to normal in {of_count(flip)} found defects "
        f"({percent(flip.value)}), with the same area off the defect suppressed in {of_count(control)} "
        f"({percent(control.value)})."
    )
    if excess.value != excess.value:
        return text + " Without a control the flips say nothing."
    text += f" Where both were asked, flip minus control is {interval(excess)}: "
    if excess.low > 0:
        return text + "that much is due to suppressing the defect itself."
    return text + "that suppressing the defect does more than suppressing any other area is not shown."


def faithfulness_sentence(evidence: Evidence) -> str:
    """Whether the decision rests on what the map marks, and whether the map depends on what the model learnt."""
    measured = evidence.faithfulness
    if measured is None:
        return "Not measured: gainmtl report RUN --faithfulness does."
    check = measured["randomisation"]
    return (
        f"The deciding CAM against the same map moved to a random place, on {len(measured['pictures'])} of "
        f"{plural(measured['found'], 'found defect')} of {measured['split']}: "
        f"{verdicts_in_words(faithfulness_rows(measured))}. "
        f"With all weights shuffled: {check['verdict']} (rank correlation {rounded(check['similarity'])})."
    )


def shift_sentence(audit: Audit) -> str:
    """The drop, in words."""
    rows = {row.label: row for row in shift_rows(audit)}
    if not rows:
        return "Not tested: the data has no shifted split."
    told = [_change(rows[label]) for label in ("recall", "overkill", "accuracy", "AUROC") if label in rows]
    return f"From test to test_shift {join_words(told)}."


def novelty_sentence(evidence: Evidence) -> str:
    """What EfficientAD flags of what the verdict lets pass, on the headline split."""
    split, novelty = evidence.audit.main, evidence.novelty
    if novelty is None:
        why = "what is stored is out of date" if evidence.stale_novelty else "it takes an EfficientAD run"
        return f"Not asked ({why}): gainmtl evaluate RUN --efficientad-run FOLDER does."
    kinds = novelty.kinds.get(split, [])
    defects = [kind for kind in kinds if kind.name != NORMAL]
    normals = [kind for kind in kinds if kind.name == NORMAL]
    text = (
        f"On {split} EfficientAD flags {_flagged(defects)} escaped defects as novel, and {_flagged(normals)} normal "
        f"pictures that pass. Its teacher: {novelty.teacher}."
    )
    unseen = [f"{kind.name} ({kind.anomalous} of {kind.count} anomalous)" for kind in defects if kind.unseen]
    return text + (f" Types that no training picture shows: {join_words(unseen)}." if unseen else "")


def _flagged(kinds: Sequence[Kind]) -> str:
    """``3 of 5``: novel ones of those called normal."""
    return f"{sum(kind.novel for kind in kinds)} of {sum(kind.count - kind.called_defective for kind in kinds)}"


def _change(row: ShiftRow) -> str:
    span = f"from {rounded(row.test.value)} to {rounded(row.shift.value)}"
    verb = {"lower": "falls", "higher": "rises"}.get(row.words)
    return f"{row.label} {verb} {span}" if verb else f"{row.label} goes {span} ({row.words})"


def _trained(evidence: Evidence) -> str:
    settings, manifest = evidence.settings, evidence.manifest
    count = manifest.get("split_sizes", {}).get("train")
    pictures = f"{settings.dataset_type} data" + (f" ({plural(count, 'picture')})" if count else "")
    weights = "random weights" if evidence.random_weights else str(manifest.get("pretrained", "weights not recorded"))
    return (
        f"Strategy {settings.strategy} ({STRATEGIES[settings.strategy]}), backbone {settings.backbone_arch} "
        f"from {weights}, on {pictures}, seed {settings.seed}."
    )


# --- The pictures that an auditor wants to see


SHOWN = 12
"""Of each kind of failure and split."""

KIND_NAMES = {"missed": "missed defects", "wrong reason": "right for the wrong reason", "false alarm": "false alarms"}
ORDERS = {
    "missed": "lowest probability first",
    "wrong reason": "least energy inside the mask first",
    "false alarm": "highest probability first",
}
TYPICAL = {
    "typical find": "for comparison: found, CAM-IoU nearest to the median",
    "typical pass": "for comparison: normal, called normal, probability nearest to the median",
}
TYPICAL_SHOWN = 2


@dataclass(frozen=True)
class Case:
    """One picture of a gallery.

    Attributes:
        row: of the table of predictions.
        picture: data URI of the part with its mask's outline; None where the file cannot be read.
        absolute: of the deciding CAM on its absolute scale; None where the run has none.
        per_image: of the same, stretched to the full range.
        finds: whether the CAM rises above what normal parts reach; None without an absolute scale.
    """

    row: Mapping[str, Any]
    picture: str | None
    absolute: str | None
    per_image: str
    finds: bool | None


@dataclass(frozen=True)
class Gallery:
    """Cases of one kind in one split.

    Attributes:
        split: where they are from.
        kind: its name.
        meaning: of the kind, and the order.
        total: how many there are.
        cases: those that are shown.
    """

    split: str
    kind: str
    meaning: str
    total: int
    cases: list[Case]


def galleries(
    run: Run, table: pd.DataFrame, splits: Sequence[str], scale: MapScale | None, *, data_root: Path | None = None
) -> list[Gallery]:
    """Failures of each split in the order of `error_analysis`, then typical cases of the first split beside them.

    Args:
        run: evaluated.
        table: its predictions, all N rows.
        splits: test splits.
        scale: absolute scale of the CAM; None where the run has none.
        data_root: where the pictures lie now, when they moved since the training.

    Raises:
        RunError: the stored maps are damaged, or are not those of the table.
    """
    maps = stored_cams(run, len(table))
    table = table.assign(row=np.arange(len(table)))
    root = data_root or run.settings.data_root

    def gallery(split: str, kind: str, meaning: str, rows: pd.DataFrame, shown: int) -> Gallery:
        cases = [_case(run.settings, root, maps, row, scale) for row in rows.head(shown).to_dict("records")]
        return Gallery(split, kind, meaning, len(rows), cases)

    found = []
    for split in splits:
        errors = error_analysis(table, split)
        for kind, meaning in KINDS.items():
            rows = errors[errors["kind"] == kind]
            found.append(gallery(split, KIND_NAMES[kind], f"{meaning}; {ORDERS[kind]}", rows, SHOWN))
    for kind, rows in _typical(table[table["split"] == splits[0]]).items():
        found.append(gallery(splits[0], kind, TYPICAL[kind], rows, TYPICAL_SHOWN))
    return found


def _typical(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    found = rows[(rows["verdict"] == "TP") & rows["cam_iou"].notna()]
    passed = rows[rows["verdict"] == "TN"]
    return {"typical find": _nearest(found, "cam_iou"), "typical pass": _nearest(passed, "probability")}


def _nearest(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    distance = (rows[column] - rows[column].median()).abs()
    return rows.loc[distance.sort_values(kind="stable").index]


def _case(settings: Settings, root: Path, maps: NDArray, row: dict[Any, Any], scale: MapScale | None) -> Case:
    cam = np.asarray(maps[row["row"]], dtype=np.float32)  # (h, w)
    picture = _load(settings, root, row)
    size = settings.image_size
    return Case(
        row=row,
        picture=None if picture is None else picture_uri(picture),
        absolute=None if scale is None else map_uri(enlarged_share(cam, scale, size), picture),
        per_image=map_uri(enlarged_share(cam, None, size), picture),
        finds=None if scale is None else bool(scale.finds(cam)),
    )


def _load(settings: Settings, root: Path, row: Mapping[str, Any]) -> Picture | None:
    mask = str(root / row["mask"]) if isinstance(row["mask"], str) else None
    image = str(root / row["image"])
    try:
        return load_picture(image, mask, image_size=settings.image_size, resize=settings.resize)
    except DataError:
        return None


# --- The audit report of a run


TEMPLATE = "report.html.jinja"


def write_report(
    run: Run | str | Path,
    path: str | Path | None = None,
    *,
    required_recall: float = 0.99,
    data_root: str | Path | None = None,
) -> Path:
    """Write the audit report of an evaluated run.

    The run's pictures are shown where they are at hand; without them its maps are shown alone.

    Args:
        run: finished and evaluated, or its folder.
        path: of the file; ``report.html`` in the run's folder by default.
        required_recall: what the line demands, in (0, 1]; the threshold for it is chosen on validation.
        data_root: where the pictures lie now, when they moved since the training.

    Returns:
        The file's path.

    Raises:
        RunError: no run, not finished, not evaluated, or its files are damaged or do not belong together.
        ValueError: a recall outside (0, 1].
        DataError: `data_root` is no folder.
        FileError: the file cannot be written.
    """
    run = load_run(run.folder if isinstance(run, Run) else run)
    path = run.folder / "report.html" if path is None else Path(path)
    root = _checked_root(data_root)
    text = report_html(run, audit_run(run, required_recall=required_recall), data_root=root)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def _checked_root(data_root: str | Path | None) -> Path | None:
    if data_root is None:
        return None
    root = Path(data_root).expanduser().absolute()
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; data_root is the folder that the run's pictures are in now")
    return root


def report_html(run: Run, audit: Audit, *, data_root: Path | None = None) -> str:
    """The report as text."""
    return _environment().get_template(TEMPLATE).render(_content(run, audit, data_root))


def _content(run: Run, audit: Audit, data_root: Path | None) -> dict[str, Any]:
    measured, novelty = stored_faithfulness(run), stored_novelty(run)
    table = audit.table if novelty is None else audit.table.assign(novel=novelty.table["novel"])
    shown = galleries(run, table, audit.tests, audit.scales.get("cam"), data_root=data_root)
    evidence = Evidence(
        run.settings,
        run.manifest,
        audit,
        missing_pictures=_missing(shown),
        data_root=data_root,
        faithfulness=measured,
        stale_faithfulness=faithfulness_is_stale(run),
        novelty=novelty,
        stale_novelty=novelty_is_stale(run),
    )
    limits = known_limits(evidence)
    return {
        "name": run_name(run.settings),
        "settings": run.settings,
        "started": started(run.manifest),
        "data_root": evidence.pictures_below,
        "audit": audit,
        "marks": marks(evidence),
        "in_short": in_short(evidence, limits),
        "head": head_rows(run),
        "limits": limits,
        "decision": DECISION,
        "figures": report_figures(audit),
        "reason": reason_sentence(evidence),
        "explanation": explanation_rows(audit),
        "calm": calm_rows(audit),
        "faithfulness": faithfulness_sentence(evidence),
        "faithfulness_rows": faithfulness_rows(measured),
        "measured": measured,
        "flips": flip_sentence(evidence),
        "flip_rows": FLIPS if evidence.has_counterfactual else {},
        "shift": shift_rows(audit),
        "novel": novelty_sentence(evidence),
        "novelty": novelty,
        "galleries": shown,
        "missing_pictures": evidence.missing_pictures,
        "files": file_digests(run.folder),
        "parameters": settings_rows(run.settings),
    }


def _missing(shown: list[Gallery]) -> int:
    return sum(case.picture is None for gallery in shown for case in gallery.cases)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("gainmtl_lib", "audit"),
        autoescape=True,  # file names and class names come from outside
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "rounded": wording.rounded,
        "percent": wording.percent,
        "plural": wording.plural,
        "of_count": wording.of_count,
    }
    environment.globals |= _constants()
    return environment


def _constants() -> dict[str, Any]:
    return {
        "split_names": wording.SPLIT_NAMES,
        "words": sys.modules[__name__],
        "confidence": CONFIDENCE,
        "resamples": RESAMPLES,
        "resampling_seed": SEED,
        "fewest_groups": FEWEST_GROUPS,
        "calm_share": CALM_SHARE,
        "off_the_defect_iou": OFF_THE_DEFECT_IOU,
    }
