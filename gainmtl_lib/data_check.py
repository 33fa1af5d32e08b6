"""What is wrong with a dataset, and what could mislead a training on it, before any training."""

import hashlib
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

from gainmtl_lib import readers
from gainmtl_lib.dataset import load_picture
from gainmtl_lib.labels import check_aspect, resize_mask, with_boxes
from gainmtl_lib.metrics import auroc, grid_iou
from gainmtl_lib.progress import counted
from gainmtl_lib.readers import MASK_THRESHOLD, NORMAL, Finding, reported
from gainmtl_lib.settings import Settings

logger = logging.getLogger(__name__)

LEVELS = ("error", "warning", "info")
STRIDES = (32, 16, 8, 4)
THUMBNAIL = 32
NEAR_DUPLICATE = 0.9  # correlation of two thumbnails' fine structure from which they show the same thing
ONE_SCENE = 0.5  # share of pairs that correlate so from which they tell nothing
MAX_COMPARED = 20_000


@dataclass(frozen=True)
class DataReport:
    """What a dataset holds.

    `samples` is the table with `height`, `width` (NaN where unreadable), `mask_state` (ok, empty, misfit, unreadable,
    missing, or None for normal images) and `defect_area`, the defect's share of the image.
    """

    samples: pd.DataFrame
    counts: pd.DataFrame  # images by split (rows) and defect type (columns), with totals
    masks: pd.DataFrame  # a row per class of mask problem, and of boxes left out or changed, with its count
    defect_area: pd.DataFrame  # quantiles, by defect type
    duplicates: pd.DataFrame  # pairs of files: `first`, `second`, `kind` (exact, near), `crosses` (splits, or empty)
    alone: dict[str, float]  # AUROC with which this alone predicts the class; 0.5 tells nothing, NaN cannot be said
    grid_iou: pd.DataFrame  # mean and median IoU that the masks themselves reach on the map's grid, by map stride
    findings: list[Finding]  # every problem, errors first
    usable: bool  # whether a training run would accept the data


def check_data_of(settings: Settings, *, val_ratio: float | None = None) -> DataReport:
    """Read every file of a training's data and report all that a run would stumble over, or be misled by.

    The split is the training's; one that fails is reported as an error. Where boxes take the place of mask files, what
    can be drawn is checked as masks are (`FileError` where these cannot be written). `val_ratio` goes before the
    settings'; None is 0.2, or the data's own validation folder.
    """
    found: list[Finding] = []
    kind, pattern = settings.dataset_type, settings.group_pattern
    samples = readers.read_samples(settings.data_root, dataset_type=kind, group_pattern=pattern, findings=found)
    sound = len(samples) > 0 and not any(finding.level == "error" for finding in found)
    if len(samples):
        samples = with_boxes(samples, settings, found)
    if sound:
        if val_ratio is None:
            val_ratio = 0.0 if "val" in set(samples["split"]) else 0.2
        test_ratio, seed = settings.test_ratio, settings.seed_of_split
        with reported(found, str(settings.data_root)):
            samples = readers.split_samples(samples, val_ratio=val_ratio, test_ratio=test_ratio, seed=seed)
    with ThreadPoolExecutor() as pool:
        results = pool.map(partial(_inspect, settings), samples["image"], samples["label"], samples["mask"])
        inspected = [vars(one) for one in counted(results, len(samples), "checked images", log=logger)]
    told = pd.DataFrame(inspected, columns=list(Inspected.__dataclass_fields__))
    samples[["height", "width", "defect_area"]] = told[["height", "width", "defect_area"]].astype(float)
    samples["mask_state"] = told["mask_state"]
    states = told["mask_state"].tolist()
    masks: dict[str, int] = {state: states.count(state) for state in ("ok", "missing", "empty", "misfit", "unreadable")}
    masks |= {"non-binary": int(told["mask_grey"].sum()), "resized": int(told["mask_resized"].sum())}
    masks |= Counter(finding.kind for finding in found if finding.kind)
    duplicates, alone = _find_duplicates(samples, told, found), _alone(samples)
    found += [finding for findings in told["findings"] for finding in findings]
    found += _findings_of_all(samples, masks, duplicates, alone, settings.label_kind)
    splits = samples["split"].fillna("undecided")
    counts = pd.crosstab(splits, samples["defect_type"], margins=True, margins_name="total")
    kinds = sorted(counts.columns, key=lambda name: (name != NORMAL, name == "total"))
    order = [name for name in (*readers.SPLITS, "undecided", "total") if name in counts.index]
    areas = samples[samples["defect_area"].notna()].groupby("defect_type")["defect_area"]
    quantiles = {f"{share:.0%}": areas.quantile(share) for share in (0.0, 0.25, 0.5, 0.75, 1.0)}
    ious = pd.DataFrame([*filter(None, told["grid_ious"])], columns=pd.Index(STRIDES, name="map_stride"), dtype=float)
    height, width = settings.image_size
    return DataReport(
        samples=samples,
        counts=counts.loc[order, kinds],
        masks=pd.DataFrame({"masks": masks}),
        defect_area=pd.DataFrame(quantiles | {"images": areas.size()}),
        duplicates=duplicates,
        alone=alone,
        grid_iou=ious.agg(["mean", "median"]).T.assign(grid=[f"{height // one}x{width // one}" for one in STRIDES]),
        findings=sorted(found, key=lambda finding: LEVELS.index(finding.level)),
        usable=not any(finding.level == "error" for finding in found),
    )


@dataclass
class Inspected:
    """What decoding one sample told; NaN and None where it cannot be said."""

    height: float = np.nan
    width: float = np.nan
    digest: str | None = None
    thumbnail: NDArray | None = None  # its fine structure as a unit vector; None without any
    mask_state: str | None = None
    mask_resized: bool = False
    mask_grey: bool = False  # it holds more than two values
    defect_area: float = np.nan
    grid_ious: tuple[float, ...] = ()  # what the mask reaches on the grid of each of `STRIDES`
    findings: list[Finding] = field(default_factory=list)


def _inspect(settings: Settings, image: str, label: int, mask: str | None) -> Inspected:
    one, pixels = Inspected(mask_state="missing" if label == 1 else None), None
    with reported(one.findings):
        pixels = readers.read_image(image)
        one.height, one.width = map(float, pixels.shape[:2])
        one.digest = hashlib.sha256(Path(image).read_bytes()).hexdigest()
        grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)
        small = cv2.resize(grey, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
        detail = small - cv2.GaussianBlur(small, (0, 0), 2)
        norm = float(np.linalg.norm(detail))
        one.thumbnail = (detail / norm).ravel() if norm > 0.1 * THUMBNAIL else None
    if mask is None:
        return one
    with reported(one.findings):
        one.mask_state = "unreadable"
        values = readers.read_mask_values(mask)
        one.mask_state, one.mask_grey = "misfit", not np.isin(values, (0, values.max())).all()
        size = (values.shape[0], values.shape[1]) if pixels is None else check_aspect(mask, values, image, pixels)
        one.mask_state, one.mask_resized, defect = "ok", values.shape != size, values > MASK_THRESHOLD
        if one.mask_resized:
            sizes = f"mask is {values.shape[0]}x{values.shape[1]} (height x width), its image {size[0]}x{size[1]}"
            one.findings.append(Finding("info", mask, f"{sizes}; it is fitted"))
        if not defect.any():
            one.mask_state = "empty"
            message = f"mask holds no defect pixel (largest value {values.max()}, above {MASK_THRESHOLD} counts)"
            one.findings.append(Finding("warning", mask, f"{message}; treated as missing"))
            return one
        height, width = settings.image_size
        fitted = torch.from_numpy(resize_mask(defect, (height, width), settings.resize, image_size=size)).float()
        one.defect_area = float(defect.mean())
        grids = [(height // stride, width // stride) for stride in STRIDES]
        one.grid_ious = tuple(float(grid_iou(fitted[None, None], grid=grid)) for grid in grids)
    return one


def _find_duplicates(samples: pd.DataFrame, told: pd.DataFrame, found: list[Finding]) -> pd.DataFrame:
    """Pairs of images with equal bytes, and pairs whose thumbnails' fine structure correlates, whatever their lighting.

    A perceptual hash of a plain surface encodes little but its lighting, and finds every picture alike. Pictures of one
    scene all correlate: then only equal bytes tell, and `found` takes a word about it. A pair of test and test_shift
    does not count as crossing: the shifted test may show the test pictures again.
    """
    pairs: dict[tuple[int, int], str] = {}
    for first, *others in told.groupby("digest").indices.values():
        pairs |= {(first, other): "exact" for other in others}
    rows = np.flatnonzero(told["thumbnail"].notna())[:MAX_COMPARED].tolist()
    stack = np.array([*told["thumbnail"].iloc[rows]]).reshape(len(rows), THUMBNAIL**2)
    starts = range(0, len(rows), 1024)
    alike = (np.triu(stack[start : start + 1024] @ stack.T > NEAR_DUPLICATE, k=start + 1) for start in starts)
    near = [(rows[start + left], rows[right]) for start, one in zip(starts, alike) for left, right in np.argwhere(one)]
    if (share := len(near) / max(1, len(rows) * (len(rows) - 1) / 2)) > ONE_SCENE:
        scene = "they show one scene, so that only equal files can be told for duplicates"
        found.append(Finding("info", "", f"{share:.0%} of all pairs of images are alike: {scene}"))
    else:
        pairs |= dict.fromkeys(near, "near") | pairs
    images, splits, lines = samples["image"].tolist(), samples["split"].tolist(), []
    for (first, second), kind in pairs.items():
        where = {splits[first], splits[second]}
        apart = None not in where and len(where) == 2 and where != {"test", "test_shift"}
        crosses = f"{splits[first]}, {splits[second]}" if apart else ""
        lines.append((images[first], images[second], kind, crosses))
    return pd.DataFrame(lines, columns=["first", "second", "kind", "crosses"])


DATED = re.compile(r"(?<!\d)((?:20)?\d{2}(?:0[1-9]|1[0-2])(?:[0-2]\d|3[01]))[-_T]?([0-2]\d[0-5]\d[0-5]\d)?(?!\d)")


def _alone(samples: pd.DataFrame) -> dict[str, float]:
    """How well image size predicts the class, and where every file name holds one, the date, also while both occur."""
    # Pictures of test_shift may be those of test under other groups.
    seen = samples[samples["height"].notna() & (samples["split"] != "test_shift")]
    sizes = seen[["height", "width"]].to_numpy()
    found = {"image size": _predicts(seen, np.column_stack([sizes, sizes[:, 0] / sizes[:, 1]]))}
    found_in = (DATED.search(os.path.basename(image)) for image in seen["image"])
    dates = pd.Series(["".join(filter(None, one.groups())) if one else "" for one in found_in], index=seen.index)
    # Of one length, the order of the digits is that of time.
    if dates.ne("").all() and len({*dates.str.len()}) == 1 and seen["label"].nunique() == 2:
        dated, days = seen.assign(date=dates.astype(float)), dates.str[: {6: 6, 12: 6}.get(len(dates.iloc[0]), 8)]
        of_class = days.groupby(seen["label"])
        both = (days >= of_class.min().max()) & (days <= of_class.max().min())
        found["date in the file name"] = _predicts(dated, dated[["date"]].to_numpy())
        some = dated[both]
        found["date, within the days in which both classes occur"] = _predicts(some, some[["date"]].to_numpy())
    return found


def _predicts(seen: pd.DataFrame, features: NDArray) -> float:
    """AUROC of a small model that sees nothing but the features, (N, k); groups are kept whole."""
    labels = seen["label"].to_numpy()
    folds = seen.groupby("label")["group"].nunique().reindex([0, 1], fill_value=0).clip(upper=5).min()
    if folds < 2 or len(np.unique(features, axis=0)) == 1:
        return float("nan") if folds < 2 else 0.5
    model = RandomForestClassifier(100, min_samples_leaf=5, random_state=0)
    cv = StratifiedGroupKFold(folds, shuffle=True, random_state=0)
    try:
        scores = cross_val_predict(model, features, labels, groups=seen["group"], cv=cv, method="predict_proba")
    except (ValueError, IndexError):  # a fold without one of the classes
        return float("nan")
    return auroc(labels, np.asarray(scores)[:, 1])


def _findings_of_all(
    samples: pd.DataFrame, masks: dict[str, int], duplicates: pd.DataFrame, alone: dict[str, float], annotation: str
) -> Iterator[Finding]:
    defective, missing, grey = int((samples["label"] == 1).sum()), masks["missing"], masks["non-binary"]
    rare = min(defective, len(samples) - defective)
    crossing = duplicates[duplicates["crosses"] != ""]
    if missing:
        lack = f"{missing} of {defective} defective images have no {annotation}"
        yield Finding("warning", "", f"{lack}; they train the classification terms only")
    if grey:
        several = f"{grey} of {masks['ok'] + masks['empty'] + masks['misfit']} masks are not binary"
        yield Finding("info", "", f"{several}; values above {MASK_THRESHOLD} count as defect")
    for first, second, kind, crosses in crossing.itertuples(index=False):
        what = "same bytes as" if kind == "exact" else "nearly the same picture as"
        yield Finding("warning", second, f"{what} {first}, across splits ({crosses})")
    if within := len(duplicates) - len(crossing):
        twins = ", or of test and test_shift" if "test_shift" in set(samples["split"]) else ""
        yield Finding("info", "", f"{within} pairs of (nearly) equal images within a split{twins}")
    if 0 < rare < 0.1 * len(samples):
        named = "defective" if rare == defective else "normal"
        yield Finding("warning", "", f"only {rare} of {len(samples)} images are {named} ({rare / len(samples):.1%})")
    advice = {"image size": "; resize: squash hides it best"}
    for name, value in alone.items():
        if value > 0.6:
            predicts = f"{name} alone predicts the class with AUROC {value:.2f} (0.5 tells nothing)"
            yield Finding(
                "warning", "", predicts + advice.get(name, "; a classifier may learn what else came with time")
            )


def contact_sheet_samples(samples: pd.DataFrame) -> tuple[list[NDArray], list[NDArray | None], list[str]]:
    """What a contact sheet shows of a report's samples: pictures, masks, titles; 6 of every type, normal first.

    Files that cannot be decoded, or whose mask does not fit, are left out.
    """
    sound = samples[samples["height"].notna() & ~samples["mask_state"].isin(["misfit", "unreadable"])]
    some = sound.sample(frac=1, random_state=0).groupby("defect_type").head(6)
    rows = some.sort_values("defect_type", key=lambda kinds: kinds.replace(NORMAL, ""), kind="stable")
    files = zip(rows["image"], rows["mask"])
    pictures = [load_picture(image, mask, image_size=(160, 160), resize="letterbox") for image, mask in files]
    titles = [f"{kind}: {Path(image).name}" for kind, image in zip(rows["defect_type"], rows["image"])]
    return [one.image for one in pictures], [one.mask for one in pictures], titles
