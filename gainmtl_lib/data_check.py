"""One file of a dataset at a time: what decoding it tells the data check.

H x W network input.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from gainmtl_lib.dataset import box_source, load_picture
from gainmtl_lib.labels import KINDS, BoxFinding, BoxSource, Resize, resize_mask, same_aspect, scan_boxes
from gainmtl_lib.metrics import grid_iou
from gainmtl_lib.readers import (
    MASK_THRESHOLD,
    DataError,
    Finding,
    read_image,
    read_mask_values,
    scan_samples,
    split_samples,
)
from gainmtl_lib.settings import Settings

logger = logging.getLogger(__name__)

STRIDES = (32, 16, 8, 4)
THUMBNAIL = 32


@dataclass(frozen=True)
class Inspected:
    """What decoding one sample told.

    Attributes:
        height: of the image on disk; NaN where it cannot be decoded, like `width`.
        width: see `height`.
        digest: SHA-256 of the image file.
        thumbnail: its fine structure as a unit vector; None for a flat picture.
        mask_state: ok, empty, misfit, unreadable, missing; None for normal images.
        mask_resized: the mask's size differs from its image's, the aspect ratio does not.
        mask_binary: the mask holds no other values than 0 and its largest.
        defect_area: share of the mask that is defect.
        grid_ious: IoU that the mask reaches on the map's grid, for each of `STRIDES`.
        findings: problems of these files.
    """

    height: float = np.nan
    width: float = np.nan
    digest: str | None = None
    thumbnail: NDArray | None = None
    mask_state: str | None = None
    mask_resized: bool = False
    mask_binary: bool = True
    defect_area: float = np.nan
    grid_ious: tuple[float, ...] = (np.nan,) * len(STRIDES)
    findings: tuple[Finding, ...] = ()


def inspect_samples(samples: pd.DataFrame, *, image_size: tuple[int, int], resize: Resize) -> list[Inspected]:
    """Decode every file of the table, in its order."""
    jobs = list(zip(samples["image"], samples["label"], samples["mask"], strict=True))
    results: list[Inspected] = []
    started = last = time.monotonic()
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for result in pool.map(lambda job: _inspect(*job, image_size=image_size, resize=resize), jobs):
            results.append(result)
            if time.monotonic() - last >= 5:
                last = time.monotonic()
                rate = len(results) / (last - started)
                logger.info("checked %d of %d images (%.0f/s)", len(results), len(jobs), rate)
    return results


def _inspect(image: str, label: int, mask: str | None, *, image_size: tuple[int, int], resize: Resize) -> Inspected:
    findings: list[Finding] = []
    facts: dict[str, Any] = {}
    size = None
    try:
        pixels = read_image(image)
        size = (pixels.shape[0], pixels.shape[1])
        facts = {
            "height": float(size[0]),
            "width": float(size[1]),
            "digest": hashlib.sha256(Path(image).read_bytes()).hexdigest(),
            "thumbnail": _thumbnail(pixels),
        }
    except DataError as error:
        findings.append(Finding("error", image, str(error).removeprefix(f"{image}: ")))
    if mask is not None:
        facts |= _inspect_mask(mask, size, findings, image_size=image_size, resize=resize)
    elif label == 1:
        facts["mask_state"] = "missing"
    return Inspected(**facts, findings=tuple(findings))


def _inspect_mask(
    mask: str,
    size: tuple[int, int] | None,
    findings: list[Finding],
    *,
    image_size: tuple[int, int],
    resize: Resize,
) -> dict[str, Any]:
    try:
        values = read_mask_values(mask)
    except DataError as error:
        findings.append(Finding("error", mask, str(error).removeprefix(f"{mask}: ")))
        return {"mask_state": "unreadable"}
    defect = values > MASK_THRESHOLD
    own = (defect.shape[0], defect.shape[1])
    sizes = f"mask is {own[0]}x{own[1]} (height x width), its image {size[0]}x{size[1]}" if size else ""
    facts: dict[str, Any] = {"mask_state": "ok", "mask_binary": bool(np.isin(values, (0, values.max())).all())}
    if size is not None and own != size:
        if not same_aspect(own, size):
            findings.append(Finding("error", mask, f"{sizes}; expected the same aspect ratio"))
            return facts | {"mask_state": "misfit"}
        findings.append(Finding("info", mask, f"{sizes}; it is fitted"))
        facts["mask_resized"] = True
    if not defect.any():
        message = f"mask holds no defect pixel (largest value {values.max()}, above {MASK_THRESHOLD} counts)"
        findings.append(Finding("warning", mask, f"{message}; treated as missing"))
        return facts | {"mask_state": "empty"}
    fitted = torch.from_numpy(resize_mask(defect, image_size, resize, image_size=size)).float()[None, None]
    grids = [(max(1, image_size[0] // stride), max(1, image_size[1] // stride)) for stride in STRIDES]
    return facts | {
        "defect_area": float(defect.mean()),
        "grid_ious": tuple(float(grid_iou(fitted, grid=grid)) for grid in grids),
    }


def _thumbnail(pixels: NDArray[np.uint8]) -> NDArray | None:
    """Unit vector of the fine structure of a small grey picture; None for a picture without any."""
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)
    small = cv2.resize(grey, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
    detail = small - cv2.GaussianBlur(small, (0, 0), 2)
    norm = float(np.linalg.norm(detail))
    return (detail / norm).ravel() if norm > 0.1 * THUMBNAIL else None


# --- Lint a dataset before training on it


NEAR_DUPLICATE = 0.9
"""Correlation of the fine structure of two thumbnails from which they count as pictures of the same thing."""
MAX_COMPARED = 20_000
USUAL_VAL_RATIO = 0.2
LEVELS = ("error", "warning", "info")


@dataclass(frozen=True)
class DataReport:
    """What a dataset holds.

    Attributes:
        samples: the table, plus `height`, `width` (NaN where unreadable), `mask_state` (ok, empty, misfit,
            unreadable, missing, or None for normal images) and `defect_area`, the defect's share of the image.
        counts: images by split (rows) and defect type (columns), with totals.
        masks: one row per class of mask problem, with its count: missing, empty, non-binary, mis-sized …; of boxes,
            what was left out or changed, too.
        defect_area: quantiles of the defect's share of the image, by defect type.
        duplicates: pairs of files: `first`, `second`, `kind` (exact, near), `crosses` (splits, or empty).
        size_auroc: how well image size alone tells the class; 0.5 tells nothing, NaN cannot be said.
        grid_iou: mean and median IoU that the masks themselves reach on the map's grid, by map stride.
        findings: every problem, errors first.
        boxes: by class of box: boxes, images with one, quantiles of a box's share of its image; empty without boxes.
    """

    samples: pd.DataFrame
    counts: pd.DataFrame
    masks: pd.DataFrame
    defect_area: pd.DataFrame
    duplicates: pd.DataFrame
    size_auroc: float
    grid_iou: pd.DataFrame
    findings: list[Finding]
    boxes: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def usable(self) -> bool:
        """Whether a training run would accept the data."""
        return not any(finding.level == "error" for finding in self.findings)


def check_dataset(
    root: str | Path,
    *,
    dataset_type: str = "generic",
    group_pattern: str | None = None,
    image_size: tuple[int, int] = (512, 512),
    resize: Resize = "squash",
    val_ratio: float | None = None,
    test_ratio: float = 0.2,
    split_seed: int = 42,
    boxes: BoxSource | None = None,
) -> DataReport:
    """Read every file of a dataset and report all that a run would stumble over, or be misled by.

    Counts and crossings are those of the split that a run with the same parameters trains on; the defaults are
    those of `Settings`.

    Args:
        root: the dataset's folder.
        dataset_type: generic, mvtec, magnetic_tile or synthetic.
        group_pattern: as for `read_samples`.
        image_size: network input, for the grid IoU.
        resize: squash or letterbox.
        val_ratio: as for `split_samples`; a split that fails is reported as an error. None: 0.2, or the data's
            own validation folder.
        test_ratio: as for `split_samples`.
        split_seed: its seed: `split_seed` of the settings, or their `seed` where that is None.
        boxes: where boxes take the place of mask files: what can be drawn is drawn and checked as masks are.

    Raises:
        DataError: only for a `dataset_type` that does not exist.
        FileError: the masks of boxes cannot be written.
    """
    samples, findings = scan_samples(root, dataset_type=dataset_type, group_pattern=group_pattern)
    findings = list(findings)
    boxed = None
    if boxes is not None and len(samples):
        boxed = scan_boxes(samples, root, boxes)
        samples = boxed.samples
    if len(samples) and not any(finding.level == "error" for finding in findings):
        if val_ratio is None:
            val_ratio = 0.0 if "val" in set(samples["split"]) else USUAL_VAL_RATIO
        try:
            samples = split_samples(samples, val_ratio=val_ratio, test_ratio=test_ratio, seed=split_seed)
        except DataError as error:
            findings.append(Finding("error", str(root), str(error)))
    inspected = inspect_samples(samples, image_size=image_size, resize=resize)
    findings += [] if boxed is None else boxed.findings
    findings += [finding for one in inspected for finding in one.findings]
    samples = samples.assign(
        height=[one.height for one in inspected],
        width=[one.width for one in inspected],
        mask_state=pd.Series([one.mask_state for one in inspected], dtype=object),
        defect_area=[one.defect_area for one in inspected],
    )
    duplicates = find_duplicates(samples, inspected)
    auroc = size_auroc(samples)
    report = DataReport(
        samples=samples,
        counts=_counts(samples),
        masks=_mask_table(inspected, None if boxed is None else boxed.findings),
        defect_area=_area_table(samples),
        duplicates=duplicates,
        size_auroc=auroc,
        grid_iou=_grid_table(inspected, image_size),
        findings=findings
        + _summary_findings(samples, inspected, duplicates, auroc, "mask" if boxed is None else "box"),
        boxes=pd.DataFrame() if boxed is None else boxed.classes,
    )
    report.findings.sort(key=lambda finding: LEVELS.index(finding.level))
    return report


def check_data_of(settings: Settings, *, val_ratio: float | None = None) -> DataReport:
    """`check_dataset` of a training's data, split as the training splits it.

    Args:
        settings: of the training.
        val_ratio: as for `check_dataset`.
    """
    return check_dataset(
        settings.data_root,
        dataset_type=settings.dataset_type,
        group_pattern=settings.group_pattern,
        image_size=settings.image_size,
        resize=settings.resize,
        val_ratio=val_ratio,
        test_ratio=settings.test_ratio,
        split_seed=settings.seed_of_split,
        boxes=box_source(settings),
    )


def find_duplicates(samples: pd.DataFrame, inspected: Sequence[Inspected]) -> pd.DataFrame:
    """Pairs of images with equal bytes, and pairs whose thumbnails correlate.

    Thumbnails are compared by their fine structure, whatever their brightness, contrast and lighting: a
    perceptual hash of a plain surface encodes little but its lighting, and finds every picture alike. A pair of test
    and test_shift does not count as crossing: the shifted test may show the test pictures again.
    """
    first_of: dict[str, int] = {}
    pairs: list[tuple[int, int, str]] = []
    for row, one in enumerate(inspected):
        if one.digest is not None:
            first = first_of.setdefault(one.digest, row)
            pairs += [(first, row, "exact")] if first != row else []
    exact = {pair[:2] for pair in pairs}
    rows = [row for row, one in enumerate(inspected) if one.thumbnail is not None][:MAX_COMPARED]
    if rows:
        stack = np.stack([inspected[row].thumbnail for row in rows])  # type: ignore[arg-type]
        for start in range(0, len(rows), 1024):
            alike = stack[start : start + 1024] @ stack.T > NEAR_DUPLICATE
            for left, right in np.argwhere(np.triu(alike, k=start + 1)):
                pair = (rows[start + left], rows[right])
                pairs += [(*pair, "near")] if pair not in exact else []
    images, splits = samples["image"].tolist(), samples["split"].tolist()
    lines = []
    for first, second, kind in pairs:
        where = {splits[first], splits[second]}
        apart = None not in where and len(where) == 2 and where != {"test", "test_shift"}
        crosses = f"{splits[first]}, {splits[second]}" if apart else ""
        lines.append((images[first], images[second], kind, crosses))
    return pd.DataFrame(lines, columns=["first", "second", "kind", "crosses"])


def size_auroc(samples: pd.DataFrame) -> float:
    """AUROC of a small model that sees only height, width and aspect ratio; groups are kept whole.

    Without test_shift, whose pictures may be those of test under other groups.
    """
    sizes = samples[["height", "width"]].to_numpy(dtype=float)
    readable = ~np.isnan(sizes[:, 0]) & (samples["split"] != "test_shift").to_numpy()
    sizes, groups = sizes[readable], samples["group"].to_numpy(dtype=object)[readable]
    labels = samples["label"].to_numpy(dtype=np.int64)[readable]
    folds = min([5, *(len(set(groups[labels == label])) for label in (0, 1))])
    if folds < 2:
        return float("nan")
    if len(np.unique(sizes, axis=0)) == 1:
        return 0.5
    # Imported here: scikit-learn takes a second to load, and nothing else needs it.
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

    features = np.column_stack([sizes, sizes[:, 0] / sizes[:, 1]])
    model = RandomForestClassifier(100, min_samples_leaf=5, random_state=0)
    cv = StratifiedGroupKFold(folds, shuffle=True, random_state=0)
    try:
        scores = cross_val_predict(model, features, labels, groups=groups, cv=cv, method="predict_proba")
    except (ValueError, IndexError):  # a fold without one of the classes
        return float("nan")
    return float(roc_auc_score(labels, np.asarray(scores)[:, 1]))


class ContactSheet(NamedTuple):
    """Pictures uint8 (H, W, 3), masks bool (H, W) or None, titles."""

    images: list[NDArray[np.uint8]]
    masks: list[NDArray[np.bool_] | None]
    titles: list[str]


def contact_sheet_samples(
    samples: pd.DataFrame,
    *,
    image_size: tuple[int, int] = (160, 160),
    per_type: int = 6,
    resize: Resize = "letterbox",
    seed: int = 0,
) -> ContactSheet:
    """What a contact sheet shows: random pictures of every defect type, normal first, with their masks.

    Files that cannot be decoded, or whose mask does not fit, are left out.

    Args:
        samples: table of samples.
        image_size: (H, W) of the small pictures.
        per_type: pictures of each defect type, at most.
        resize: squash or letterbox.
        seed: of the choice.
    """
    rng = np.random.default_rng(seed)
    sheet = ContactSheet([], [], [])
    rows = samples.to_dict("records")
    for kind in sorted({row["defect_type"] for row in rows}, key=lambda name: (name != "normal", name)):
        of_kind = [row for row in rows if row["defect_type"] == kind]
        taken = 0
        for place in rng.permutation(len(of_kind)):
            row = of_kind[place]
            try:
                picture = load_picture(row["image"], row["mask"], image_size=image_size, resize=resize)
            except DataError:
                continue
            sheet.images.append(picture.image)
            sheet.masks.append(None if picture.mask is None else picture.mask.astype(np.bool_))
            sheet.titles.append(f"{kind}: {Path(row['image']).name}")
            taken += 1
            if taken == per_type:
                break
    return sheet


def _counts(samples: pd.DataFrame) -> pd.DataFrame:
    if not len(samples):
        return pd.DataFrame()
    splits = samples["split"].where(samples["split"].notna(), "undecided")
    table = pd.crosstab(splits, samples["defect_type"], margins=True, margins_name="total")
    order = [name for name in ("train", "val", "test", "test_shift", "undecided", "total") if name in table.index]
    kinds = [name for name in table.columns if name not in ("normal", "total")]
    return table.loc[order, [*(["normal"] if "normal" in table.columns else []), *kinds, "total"]]


def _mask_table(inspected: Sequence[Inspected], boxes: Sequence[BoxFinding] | None) -> pd.DataFrame:
    states = [one.mask_state for one in inspected]
    counts = {state: states.count(state) for state in ("ok", "missing", "empty", "misfit", "unreadable")}
    counts["non-binary"] = sum(not one.mask_binary for one in inspected)
    counts["resized"] = sum(one.mask_resized for one in inspected)
    if boxes is not None:
        found = Counter(finding.kind for finding in boxes)
        counts |= {f"boxes: {kind}": found[kind] for kind in KINDS if found[kind]}
    return pd.DataFrame({"masks": counts})


def _area_table(samples: pd.DataFrame) -> pd.DataFrame:
    areas = samples[samples["defect_area"].notna()].groupby("defect_type")["defect_area"]
    quantiles = {f"{share:.0%}": areas.quantile(share) for share in (0.0, 0.25, 0.5, 0.75, 1.0)}
    return pd.DataFrame({**quantiles, "images": areas.size()})


def _grid_table(inspected: Sequence[Inspected], image_size: tuple[int, int]) -> pd.DataFrame:
    values = np.array([one.grid_ious for one in inspected if not np.isnan(one.grid_ious[0])]).reshape(-1, len(STRIDES))
    table = pd.DataFrame(values, columns=pd.Index(STRIDES, name="map_stride")).agg(["mean", "median"]).T
    return table.assign(grid=[f"{image_size[0] // stride}x{image_size[1] // stride}" for stride in STRIDES])


def _summary_findings(
    samples: pd.DataFrame, inspected: Sequence[Inspected], duplicates: pd.DataFrame, auroc: float, annotation: str
) -> list[Finding]:
    """Findings about the dataset as a whole."""
    findings = []
    masks = [one for one in inspected if one.mask_state not in (None, "missing", "unreadable")]
    defective = samples["label"].tolist().count(1)
    missing = sum(one.mask_state == "missing" for one in inspected)
    grey = sum(not one.mask_binary for one in masks)
    if missing:
        message = (
            f"{missing} of {defective} defective images have no {annotation}; they train the classification terms only"
        )
        findings.append(Finding("warning", "", message))
    if grey:
        message = f"{grey} of {len(masks)} masks are not binary; values above {MASK_THRESHOLD} count as defect"
        findings.append(Finding("info", "", message))
    pairs = duplicates.to_dict("records")
    for pair in pairs:
        if pair["crosses"]:
            what = "same bytes as" if pair["kind"] == "exact" else "nearly the same picture as"
            message = f"{what} {pair['first']}, across splits ({pair['crosses']})"
            findings.append(Finding("warning", pair["second"], message))
    inside = sum(not pair["crosses"] for pair in pairs)
    if inside:
        twins = ", or of test and test_shift" if "test_shift" in set(samples["split"]) else ""
        findings.append(Finding("info", "", f"{inside} pairs of (nearly) equal images within a split{twins}"))
    rare = min(defective, len(samples) - defective)
    if len(samples) and 0 < rare < 0.1 * len(samples):
        name = "defective" if rare == defective else "normal"
        findings.append(
            Finding("warning", "", f"only {rare} of {len(samples)} images are {name} ({rare / len(samples):.1%})")
        )
    if auroc > 0.6:
        message = f"image size alone predicts the class with AUROC {auroc:.2f} (0.5 tells nothing)"
        findings.append(Finding("warning", "", f"{message}; resize: squash hides it best"))
    return findings
