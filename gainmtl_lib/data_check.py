"""What is wrong with a dataset, and what could mislead a training on it, before any training."""

import contextlib
import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image

from gainmtl_lib import confounders, readers
from gainmtl_lib.annotations import told_mask, told_unused
from gainmtl_lib.dataset import load_picture
from gainmtl_lib.findings import DataError, Finding, reported
from gainmtl_lib.labels import COVERS_MOST, TURNS, resize_mask, same_aspect, upright_mask, with_labels
from gainmtl_lib.layouts import NORMAL, SPLITS
from gainmtl_lib.metrics import grid_iou
from gainmtl_lib.pictures import Mask, damage, orientation, read_image
from gainmtl_lib.progress import counted
from gainmtl_lib.settings import Settings

logger = logging.getLogger(__name__)

LEVELS = ("error", "warning", "info")
STRIDES = (32, 16, 8, 4)
THUMBNAIL = 32
NEAR_DUPLICATE = 0.9  # correlation of two thumbnails' fine structure from which they show the same thing
ONE_SCENE = 0.5  # share of pairs that correlate so from which they tell nothing
MAX_COMPARED = 20_000
MOST_MASKS = 500  # whose grid IoU is taken, and of which some are compared with other pictures
MOST_SEEN = 2000  # pictures of which it is asked how they were taken: more say the same
LEAST_RANKED = 10  # masks from which it can be said that they mark nothing particular


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
    alone: pd.DataFrame  # what of how the pictures were taken predicts the class, see `confounders.predictors`
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
    samples = _read(settings, val_ratio, found)
    drawn = _drawn_masks(samples)
    with ThreadPoolExecutor() as pool:
        columns = (samples[name] for name in ("image", "label", "mask"))
        results = pool.map(
            partial(_inspect, settings, drawn, _drawn_images(samples)), *columns, _masks_of_others(samples)
        )
        inspected = [vars(one) for one in counted(results, len(samples), "checked images", log=logger)]
    told = pd.DataFrame(inspected, columns=[one.name for one in fields(Inspected)])
    samples[["height", "width", "defect_area"]] = told[["height", "width", "defect_area"]].astype(float)
    samples["mask_state"] = told["mask_state"]
    masks = _mask_counts(told, found)
    duplicates = _find_duplicates(samples, told, found)
    seen = told["taken"].notna()
    alone = confounders.predictors(samples[seen], told.loc[seen, "taken"].tolist())
    found += _findings_of_masks(samples, told, settings)
    found += [finding for findings in told["findings"] for finding in findings]
    found += _findings_of_all(samples, masks, duplicates, alone, settings)
    areas = samples[samples["defect_area"].notna()].groupby("defect_type")["defect_area"]
    quantiles = {f"{share:.0%}": areas.quantile(share) for share in (0.0, 0.25, 0.5, 0.75, 1.0)}
    ious = pd.DataFrame([*filter(None, told["grid_ious"])], columns=pd.Index(STRIDES, name="map_stride"), dtype=float)
    height, width = settings.image_size
    return DataReport(
        samples=samples,
        counts=_counts(samples),
        masks=pd.DataFrame({"masks": masks}),
        defect_area=pd.DataFrame(quantiles | {"images": areas.size()}),
        duplicates=duplicates,
        alone=alone,
        grid_iou=ious.agg(["mean", "median"]).T.assign(grid=[f"{height // one}x{width // one}" for one in STRIDES]),
        findings=sorted(found, key=lambda finding: LEVELS.index(finding.level)),
        usable=not any(finding.level == "error" for finding in found),
    )


def _read(settings: Settings, val_ratio: float | None, found: list[Finding]) -> pd.DataFrame:
    """The table with its masks, and its split where nothing is wrong; what is wrong goes to `found`."""
    samples = readers.read_samples(settings.data_root, **settings.reading, both_classes=False, findings=found)
    classes = {*samples["label"]}
    if classes == {0}:
        told = f"all {len(samples)} images are normal: EfficientAD learns from them, GAIN-MTL needs defective ones, too"
        found.append(Finding("warning", str(settings.data_root), told))
    elif classes == {1}:
        told = f"all {len(samples)} images are defective; expected normal ones, or both"
        found.append(Finding("error", str(settings.data_root), told))
    sound = len(samples) > 0 and not any(finding.level == "error" for finding in found)
    if len(samples):
        samples = with_labels(samples, settings, found)
    if sound:
        if val_ratio is None:
            val_ratio = 0.0 if "val" in set(samples["split"]) else 0.2
        test_ratio, seed = settings.test_ratio, settings.seed_of_split
        with reported(found, str(settings.data_root)):
            ratios = {"val_ratio": val_ratio, "test_ratio": test_ratio}
            samples = readers.split_samples(samples, **ratios, seed=seed, both_classes=len(classes) > 1)
    return samples


def _counts(samples: pd.DataFrame) -> pd.DataFrame:
    """Pictures by split and defect type, with their sums."""
    counts = pd.crosstab(samples["split"].fillna("undecided"), samples["defect_type"])
    kinds = sorted(counts.columns, key=lambda name: name != NORMAL)
    counts = counts.reindex([name for name in (*SPLITS, "undecided") if name in counts.index])[kinds]
    name = "total" if "total" not in kinds else "all types"  # a defect type may be called so
    sums = counts if counts.empty else pd.concat([counts, counts.sum().rename("total").to_frame().T])
    return sums.assign(**{name: lambda table: table.sum(axis=1)})


def _mask_counts(told: pd.DataFrame, found: list[Finding]) -> dict[str, int]:
    """Masks by their state and by what was done to them, and labels by what is wrong with them."""
    states = told["mask_state"].tolist()
    masks: dict[str, int] = {state: states.count(state) for state in ("ok", "missing", "empty", "misfit", "unreadable")}
    masks |= {
        f"told by {how}": count for how, count in Counter(told["mask_told_by"]).items() if how not in ("", "brightness")
    }
    masks |= {"resized": int(told["mask_resized"].sum()), "turned": int(told["mask_turned"].sum())}
    return masks | Counter(finding.kind for finding in found if finding.kind)


@dataclass
class Inspected:
    """What decoding one sample told; NaN and None where it cannot be said."""

    height: float = np.nan
    width: float = np.nan
    digest: str | None = None
    thumbnail: NDArray | None = None  # its fine structure as a unit vector; None without any
    mask_state: str | None = None
    mask_resized: bool = False
    mask_turned: bool = False  # drawn in the frame that the camera stored
    mask_told_by: str = ""  # see `MaskPixels`
    defect_area: float = np.nan
    grid_ious: tuple[float, ...] = ()  # what the mask reaches on the grid of each of `STRIDES`
    taken: confounders.Taken | None = None
    marked: confounders.Marked | None = None
    stored_fits: bool | None = None  # whether a mask that fits either way stands out more turned as the tag says
    findings: list[Finding] = field(default_factory=list)


def _drawn_masks(samples: pd.DataFrame) -> dict[str, int]:
    """Masks whose grid IoU is taken, drawn at random where there are many, and their number in that order."""
    masks = samples.loc[samples["mask"].notna(), "mask"]
    return {mask: number for number, mask in enumerate(masks.sample(min(len(masks), MOST_MASKS), random_state=0))}


def _drawn_images(samples: pd.DataFrame) -> set[str]:
    """Images of which it is asked how they were taken: not of test_shift, which may be those of test once more."""
    images = samples.loc[samples["split"] != "test_shift", "image"]
    return {*images.sample(min(len(images), MOST_SEEN), random_state=0)}


def _masks_of_others(samples: pd.DataFrame) -> list[str | None]:
    """For each normal picture the mask of a defective one, drawn at random, to be left out of what is said of it."""
    masks, rng = samples["mask"].dropna().tolist(), np.random.default_rng(0)
    picks = rng.integers(max(1, len(masks)), size=len(samples))
    return [masks[pick] if masks and label == 0 else None for pick, label in zip(picks, samples["label"])]


def _inspect(
    settings: Settings,
    drawn: dict[str, int],
    seen: set[str],
    image: str,
    label: int,
    mask: str | None,
    of_another: str | None,
) -> Inspected:
    one, pixels = Inspected(mask_state="missing" if label == 1 else None), None
    with reported(one.findings):
        pixels = read_image(image)
        one.height, one.width = map(float, pixels.shape[:2])
        raw = Path(image).read_bytes()
        one.digest = hashlib.sha256(raw).hexdigest()
        if told := damage(raw):
            text = f"is damaged, a part of it may be grey or of another picture ({told}); replace the file"
            one.findings.append(Finding("warning", image, text))
        grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)
        small = cv2.resize(grey, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
        detail = small - cv2.GaussianBlur(small, (0, 0), 2)
        norm = float(np.linalg.norm(detail))
        one.thumbnail = (detail / norm).ravel() if norm > 0.1 * THUMBNAIL else None
    if mask is not None:
        _inspect_mask(one, settings, image, mask, pixels, drawn, seen)
    if pixels is not None and one.taken is None and image in seen:
        part = None
        with contextlib.suppress(DataError):  # it is said of the picture that it belongs to
            if of_another is not None:
                part = resize_mask(told_mask(of_another).defect, (pixels.shape[0], pixels.shape[1]), "squash")
        one.taken = confounders.how_taken(image, pixels, part)
    return one


def _inspect_mask(
    one: Inspected,
    settings: Settings,
    image: str,
    mask: str,
    pixels: NDArray[np.uint8] | None,
    drawn: dict[str, int],
    seen: set[str],
) -> None:
    with reported(one.findings):
        one.mask_state = "unreadable"
        defect, one.mask_told_by = told_mask(mask)
        size = (defect.shape[0], defect.shape[1]) if pixels is None else (pixels.shape[0], pixels.shape[1])
        one.mask_state = "misfit"
        defect, one.mask_turned = upright_mask(defect, mask, image, size)
        one.mask_state, one.mask_resized = "ok", defect.shape != size
        if one.mask_resized:
            sizes = f"mask is {defect.shape[0]}x{defect.shape[1]} (height x width), its image {size[0]}x{size[1]}"
            one.findings.append(Finding("info", mask, f"{sizes}; it is fitted"))
        if not defect.any():
            one.mask_state = "empty"
            one.findings.append(Finding("warning", mask, "mask holds no defect pixel; treated as missing"))
            return
        if pixels is not None:
            one.stored_fits = _fits_better_turned(image, pixels, defect) if not one.mask_turned else None
            whole = resize_mask(defect, size, "squash") if one.mask_resized else defect
            if image in seen:
                one.taken = confounders.how_taken(image, pixels, whole)
            if drawn.get(mask, MOST_MASKS) < confounders.MOST_COMPARED and defect.mean() <= COVERS_MOST:
                one.marked = confounders.marked(pixels, defect)
        one.defect_area = float(defect.mean())
        if mask in drawn:
            height, width = settings.image_size
            fitted = torch.from_numpy(resize_mask(defect, (height, width), settings.resize, image_size=size)).float()
            grids = [(height // stride, width // stride) for stride in STRIDES]
            one.grid_ious = tuple(float(grid_iou(fitted[None, None], grid=grid)) for grid in grids)


def _fits_better_turned(image: str, pixels: NDArray[np.uint8], defect: Mask) -> bool | None:
    """None where there is but one way in which a mask can lie on its picture."""
    tag = 1
    with contextlib.suppress(Exception), Image.open(image) as picture:
        tag = orientation(picture)
    if tag not in TURNS or tag == 1:
        return None
    turned = np.ascontiguousarray(TURNS[tag](defect))
    if not same_aspect((turned.shape[0], turned.shape[1]), (pixels.shape[0], pixels.shape[1])):
        return None
    here, there = (confounders.stands_out(confounders.marked(pixels, one)) for one in (defect, turned))
    return there > here


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


def _findings_of_masks(samples: pd.DataFrame, told: pd.DataFrame, settings: Settings) -> Iterator[Finding]:
    """Inverted masks, masks in another frame than their picture's, masks that mark nothing particular."""
    areas, masks = samples["defect_area"], samples["mask"]
    covering, known = masks[areas > COVERS_MOST], int(areas.notna().sum())
    if len(covering):
        most = len(covering) > known / 2 and settings.mask_marks == "auto"
        told_of = f"{len(covering)} of {known} masks mark more than half of their picture"
        advice = "set mask_marks: background if they mark the good surface, mask_marks: defect if they are right"
        of = "of training and of the scores" if settings.mask_marks == "auto" else "of the scores"
        left_out = f"they are left out {of} of agreement; if these alone are inverted, invert their files"
        told_of += f"; {advice if most else left_out}"
        yield Finding("error" if most else "warning", covering.iloc[0], told_of)
    if turned := masks[told["mask_turned"]].tolist():
        frame = "lie in the frame that the camera stored; they are turned as the pictures' orientation tags say"
        yield Finding("info", turned[0], f"{len(turned)} masks {frame}")
    if unclear := told["stored_fits"].dropna().tolist():
        first, stored = masks[told["stored_fits"].notna()].iloc[0], sum(unclear)
        frame = (
            "belong to pictures that an orientation tag turns, and fit them either way; the upright frame is expected"
        )
        advice = f"{stored} of them stand out more as the tag turns them: look at them with --contact-sheet"
        level = "warning" if stored > len(unclear) / 2 else "info"
        yield Finding(level, first, f"{len(unclear)} masks {frame}, and {advice}")
    pictures = {mask: one for mask, one in zip(masks, told["marked"]) if one is not None}
    ranks = confounders.mask_ranks(pictures)
    clear = len(ranks) > 0 and ranks.quantile(0.25) >= confounders.CLEAR
    odd = ranks[ranks < (confounders.ODD_AMID_CLEAR if clear else confounders.ODD)].sort_values()
    names = odd.index if len(odd) else ranks.sort_values().index
    worst = ", ".join(os.path.relpath(name, settings.dataset_folder) for name in names[:10])
    worst += f" and {len(names) - 10} more" * (len(odd) > 10)
    if len(ranks) >= LEAST_RANKED and ranks.mean() < confounders.PARTICULAR:
        told_of = "what they cover differs from its surroundings no more than in other pictures"
        rank = f"in {ranks.mean():.0%} of the comparisons (50% is chance)"
        yield Finding("warning", "", f"the masks mark nothing particular: {told_of}, {rank}; look at {worst}")
    elif len(ranks) >= LEAST_RANKED and len(odd):
        told_of = f"{len(odd)} of {len(ranks)} compared masks stand out less on their own picture than on most others"
        faint = "where most stand out clearly" if clear else "or a faint defect"
        told_of += f", as a misplaced mask does, {faint}; look at {worst}"
        yield Finding("warning" if clear and len(odd) > 1 else "info", "", told_of)


def _findings_of_all(
    samples: pd.DataFrame, masks: dict[str, int], duplicates: pd.DataFrame, alone: pd.DataFrame, settings: Settings
) -> Iterator[Finding]:
    defective, missing = int((samples["label"] == 1).sum()), masks["missing"]
    rare = min(defective, len(samples) - defective)
    crossing = duplicates[duplicates["crosses"] != ""]
    if missing:
        lack = f"{missing} of {defective} defective images have no {settings.label_kind}"
        unused = told_unused(Path(settings.dataset_folder)) if settings.label_kind == "mask" else ""
        trained = "they train the classification terms only"
        if missing == defective:
            trained = "strategies that learn from masks refuse such data, unless allow_no_masks says otherwise"
        yield Finding("warning", "", f"{lack}; {trained}{unused}")
    labels = dict(zip(samples["image"], samples["label"]))
    exact = duplicates[duplicates["kind"] == "exact"]
    for first, second in exact[["first", "second"]].itertuples(index=False):
        if labels[first] != labels[second]:
            yield Finding("warning", second, f"same bytes as {first}, which is of the other class; remove one")
    for first, second, kind, crosses in crossing.itertuples(index=False):
        what = "same bytes as" if kind == "exact" else "nearly the same picture as"
        yield Finding("warning", second, f"{what} {first}, across splits ({crosses})")
    if within := len(duplicates) - len(crossing):
        twins = ", or of test and test_shift" if "test_shift" in set(samples["split"]) else ""
        yield Finding("info", "", f"{within} pairs of (nearly) equal images within a split{twins}")
    if 0 < rare < 0.1 * len(samples):
        named = "defective" if rare == defective else "normal"
        yield Finding("warning", "", f"only {rare} of {len(samples)} images are {named} ({rare / len(samples):.1%})")
    yield from (Finding("warning", "", sentence) for sentence in confounders.loud(alone, unmasked=missing))


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
