"""What else than the defect could tell the class: how the pictures were taken; and masks that mark nothing particular.

N pictures, h x w pixels each.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import norm, rankdata

from gainmtl_lib.pictures import Mask

# --- How one picture was taken

BORDER = 0.1  # of a side, on either end of it
CELLS = 8  # a side, into which the picture is cut for its border
SEEN = 256  # pixels of the longer side at which all but sharpness is measured
AROUND = 4  # of these pixels: so far a defect's soft edge may reach beyond its mask
LEAST_LEFT = 0.1  # of the picture
BLOCK = 16  # pixels of the file: so far a JPEG carries an edge's traces
EXIF = {
    0x010F: "make", 0x0110: "model", 0xA431: "serial number", 0xA434: "lens", 0x920A: "focal length",
    0x829A: "exposure", 0x829D: "aperture", 0x8827: "ISO", 0x0131: "software",
}  # fmt: skip
TAKEN_AT = (0x9003, 0x9004, 0x0132)  # original, digitized, changed

Taken = dict[str, Any]  # a text, a number or a list of numbers by property; None where it cannot be said


def how_taken(path: str, pixels: NDArray[np.uint8], defect: Mask | None) -> Taken:
    """What can be said of a picture (h, w, 3): of the file, and of the pixels off a mask (h, w).

    That is the defect's; of a normal picture any defect's, so that both show as much of the surface.
    """
    height, width, _ = pixels.shape
    fine = cv2.Laplacian(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.CV_32F)
    scale = min(1.0, SEEN / max(height, width))
    small = max(1, round(width * scale)), max(1, round(height * scale))
    seen, good = cv2.resize(pixels, small, interpolation=cv2.INTER_AREA), np.ones(small[::-1], dtype=np.uint8)
    if defect is not None and defect.any():
        touched = cv2.resize(defect.astype(np.float32), small, interpolation=cv2.INTER_AREA) > 0
        for around in (AROUND + round(BLOCK * scale) * _is_jpeg(path), AROUND, 0):
            good = 1 - cv2.dilate(touched.view(np.uint8), np.ones((2 * around + 1,) * 2))
            if good.mean() > LEAST_LEFT:
                break
    rest = good if good.any() else np.ones_like(good)
    colour, spread = (values.ravel() for values in cv2.meanStdDev(seen, mask=rest))
    whole = cv2.resize(rest, (width, height), interpolation=cv2.INTER_NEAREST)
    return {
        "image size": [height, width, height / width],
        "brightness": float(colour.mean()),
        "contrast": float(spread.mean()),
        "sharpness": float(cv2.meanStdDev(fine, mask=whole)[1].item()),
        "colour balance": [float(colour[0] - colour[1]), float(colour[2] - colour[1])],
        "border": _border(cv2.cvtColor(seen, cv2.COLOR_RGB2GRAY), good > 0),
        BYTES: os.path.getsize(path) / _bytes_anew(path, pixels),
        **_of_head(path),
    }


def _is_jpeg(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"\xff\xd8"


def _bytes_anew(path: str, pixels: NDArray[np.uint8]) -> int:
    """Bytes of the same picture saved in one way for all: a detailed one needs more of them, whatever the settings."""
    grey = bool((pixels == pixels[..., :1]).all())
    plain = pixels[..., 0] if grey else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    is_jpeg = _is_jpeg(path)
    options = [cv2.IMWRITE_JPEG_QUALITY, 90] if is_jpeg else [cv2.IMWRITE_PNG_COMPRESSION, 1]
    return len(cv2.imencode(".jpg" if is_jpeg else ".png", plain, options)[1])


def _border(grey: NDArray[Any], good: Mask) -> list[float]:
    """Of the border, `BORDER` of a side deep: mean grey, how much it varies, and most within a cell along it.

    Then by how much each cell differs from the mean, NaN for one that a defect covers.
    """
    deep = max(1, round(BORDER * min(grey.shape)))
    means, spreads = [], []
    for axis, side in ((1, np.s_[:deep]), (1, np.s_[-deep:]), (0, np.s_[:, :deep]), (0, np.s_[:, -deep:])):
        for some, own in zip(np.array_split(grey[side], CELLS, axis), np.array_split(good[side], CELLS, axis)):
            whole = own.all() and own.size > 0
            means.append(float(some.mean()) if whole else np.nan)
            spreads.append(float(some.std()) if whole else np.nan)
    cells = np.array([means, spreads])
    if np.isnan(cells).all():
        return [np.nan] * (3 + len(means))
    mean = float(np.nanmean(cells[0]))
    varies = float(np.hypot(np.nanstd(cells[0]), np.nanmean(cells[1])))
    return [mean, varies, float(np.nanmax(cells[1])), *(cells[0] - mean).tolist()]


def _of_head(path: str) -> Taken:
    """File type, depth, camera and time, by the file's head; PIL names them whatever the suffix says."""
    try:
        with Image.open(path) as picture:
            kind, tables = picture.format, getattr(picture, "quantization", None)
            if tables:  # the quality at which a JPEG was saved
                kind = f"{kind}, quantized by {np.mean(tables[0]):.1f} on average"
            stored = str(picture.tile[0][3]) if picture.tile else ""
            depth = picture.mode + " of 16 bit" * ("16" in stored)
            exif = picture.getexif()
            more = {**exif, **exif.get_ifd(0x8769)}  # the camera's own block
    except Exception:  # PIL's parsers raise anything on a broken head; OpenCV decoded the picture
        return {"file type": os.path.splitext(path)[1].lower(), "bit depth": "not known"}
    camera = [f"{name} {more[tag]}" for tag, name in EXIF.items() if tag in more]
    times = (re.sub(r"\D", "", str(more.get(tag, "")))[:14] for tag in TAKEN_AT)
    time = next((one for one in times if len(one) == 14), None)
    return {
        "file type": kind,
        "bit depth": depth,
        "camera": ", ".join(camera) or None,
        "time of the camera": time and float(time),
    }


# --- What alone predicts the class

FOLDS, PERMUTATIONS, BINS = 5, 200, 16
LOUD = 0.6  # AUROC from which a property is warned of, if chance does not reach it
MONTH, DAY, AT = r"(?P<month>0[1-9]|1[0-2])", r"(?P<day>0[1-9]|[12]\d|3[01])", r"(?P<at>[0-2]\d[0-5]\d[0-5]\d)"
DATES = tuple(
    re.compile(rf"(?<!\d){pattern}(?!\d)")
    for pattern in (
        rf"(?:20)?(?P<year>\d\d){MONTH}{DAY}(?:[-_T ]?{AT})?",
        rf"20(?P<year>\d\d)[-_.]{MONTH}[-_.]{DAY}",
        rf"{DAY}[-_.]{MONTH}[-_.]20(?P<year>\d\d)",
        r"(?P<unix>1\d{9})(?:\d{3})?",
    )
)
MOSTLY = 0.9  # of the pictures, whose names must hold a date
LEAST_SPREAD = 0.15  # of the bytes, relative: settings that differ change them more
BYTES = "bytes per pixel (1: as saved anew)"
DATE = "date in the file name"
BOTH = "date, within the days in which both classes occur"


def predictors(seen: pd.DataFrame, taken: Sequence[Taken]) -> pd.DataFrame:
    """How well each property alone predicts the class of pictures, loudest first.

    Args:
        seen: `image`, `label` and `group` of N pictures.
        taken: what `how_taken` says of each.

    Returns:
        By property: ``auroc`` of small linear models, each over the groups that it was not made from, together; NaN
        where the classes lie in fewer than two groups; ``low`` and ``high``, between which all of them lie in 99 % of
        the cases where the classes are dealt out anew; ``normal`` and ``defective``, what is usual there.
    """
    seen, values = seen.reset_index(drop=True), pd.DataFrame([*taken]).dropna(axis="columns", how="all")
    dates = _dates(seen)
    chance = float(norm.isf(0.005 / max(1, values.shape[1] + 2 * (dates is not None))))
    rows = {name: _predicts(seen, values[name], chance) for name in values}
    if dates is not None:
        of = seen.loc[dates.index]
        days = dates.str[:8].groupby(of["label"])
        both = dates.str[:8].between(days.min().max(), days.max().min())
        rows[DATE] = _predicts(of, dates, chance)
        rows[BOTH] = _predicts(of[both], dates[both], chance)
    table = pd.DataFrame.from_dict(rows, orient="index", columns=list(Predicted._fields))
    return table.sort_values("auroc", ascending=False, kind="stable")


class Predicted(NamedTuple):
    """A row of `predictors`."""

    auroc: float
    low: float
    high: float
    normal: str
    defective: str


def _dates(seen: pd.DataFrame) -> pd.Series | None:
    """Dates in the file names, ``YYYYmmdd``, with ``HHMMSS`` behind where all have it; None where most have none."""
    names = [os.path.basename(image) for image in seen["image"]]
    for form in DATES:
        found = [form.search(name) for name in names]
        dates = pd.Series([one and _digits(one.groupdict()) for one in found], index=seen.index, dtype=object).dropna()
        if len(dates) >= MOSTLY * len(seen) and seen.loc[dates.index, "label"].nunique() == 2:
            return dates.str[: dates.str.len().min()].rename(DATE)
    return None


def _digits(parts: Mapping[str, str | None]) -> str:
    if unix := parts.get("unix"):
        return datetime.fromtimestamp(int(unix), UTC).strftime("%Y%m%d%H%M%S")
    return f"20{parts['year']}{parts['month']}{parts['day']}{parts.get('at') or ''}"


def _predicts(seen: pd.DataFrame, values: pd.Series, chance: float) -> Predicted:
    labels, groups = seen["label"].to_numpy(), pd.factorize(seen["group"])[0]
    usual = [_usual(values[labels == label]) for label in (0, 1)]
    if values.name == DATE:
        values = values.astype(float)
    folds = seen.groupby("label")["group"].nunique().reindex([0, 1], fill_value=0).clip(upper=FOLDS).min()
    if folds < 2:
        return Predicted(np.nan, np.nan, np.nan, *usual)
    rng = np.random.default_rng(0)
    if values.name == BYTES and np.ptp(np.quantile(values, [0.05, 0.95])) < LEAST_SPREAD * values.median():
        values = values * 0 + 1.0  # what the pictures show changes it a little, too
    features = _features(values, rng)
    if features.shape[1] < 2:  # all the same
        return Predicted(0.5, 0.5, 0.5, *usual)
    dealt = np.stack([labels, *(_dealt_anew(labels, groups, rng) for _ in range(PERMUTATIONS))], axis=1)
    found = _out_of_fold(features, dealt, _folds(labels, groups, folds, rng))
    low, high = np.clip(found[1:].mean() + chance * found[1:].std() * np.array([-1, 1]), 0, 1)
    return Predicted(float(found[0]), float(low), float(high), *usual)


def _usual(values: pd.Series) -> str:
    """The commonest text with its share, or the median number."""
    values = values.dropna()
    if values.empty:
        return "–"
    if values.name == DATE:
        return sorted(values)[len(values) // 2]
    if isinstance(values.iloc[0], str):
        first = values.value_counts(normalize=True)
        return f"{first.index[0]} ({first.iloc[0]:.0%})"
    medians = np.median(np.stack([np.atleast_1d(one) for one in values]), axis=0)
    return " x ".join(f"{one:.14g}" if abs(one) >= 1e3 else f"{one:.3g}" for one in medians[:2])


def _features(values: pd.Series, rng: np.random.Generator) -> NDArray[np.float64]:
    """One column per text, or per bin of each number.

    Pictures without any number have a column of their own. One missing among others, such as a cell that a defect
    covers, would tell the class by that: another picture's takes its place.
    """
    if values.map(lambda value: isinstance(value, str)).any():
        common = values.fillna("").value_counts().index[: 2 * BINS]
        return np.stack([(values.fillna("") == one).to_numpy(float) for one in common], axis=1)
    width = max(len(np.atleast_1d(value)) for value in values.dropna())
    missing = np.full(width, np.nan)
    # None in a list of numbers, and pandas' NaN for none at all, mean the same.
    table = np.stack([missing if value is None or np.isnan(value).all() else np.atleast_1d(value) for value in values])
    columns = [np.isnan(table[:, 0]).astype(float)]
    for number, column in enumerate(table.T):
        known = column[~np.isnan(column)]
        column = np.where(np.isnan(column), rng.choice(known if len(known) else np.zeros(1), len(column)), column)
        bins = BINS if number < 3 else 4  # of the cells along a border there are many
        edges = np.unique(np.quantile(column, np.linspace(0, 1, bins + 1)[1:-1]))
        place = np.searchsorted(edges, column, side="right")
        columns += [(place == one).astype(float) for one in range(len(edges) + 1)]
    kept = [column for column in columns if 0 < column.mean() < 1]
    return np.stack(kept, axis=1) if kept else np.ones((len(values), 1))


def _dealt_anew(labels: NDArray, groups: NDArray, rng: np.random.Generator) -> NDArray:
    """Labels in another order: groups of one class change places as a whole, in other groups the pictures do."""
    dealt = labels.copy()
    sizes = np.bincount(groups)
    share = np.bincount(groups, weights=labels) / sizes
    pure = np.isin(share, (0, 1))
    moved = share.copy()
    moved[pure] = rng.permutation(share[pure])
    dealt[pure[groups]] = moved[groups[pure[groups]]]
    mixed = np.flatnonzero(~pure[groups])
    order = mixed[np.argsort(groups[mixed], kind="stable")]
    shuffled = order[np.lexsort((rng.random(len(order)), groups[order]))]
    dealt[order] = labels[shuffled]
    return dealt


def _folds(labels: NDArray, groups: NDArray, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """A fold for each picture, groups whole, groups of like shares of defects in turn."""
    share = np.bincount(groups, weights=labels) / np.bincount(groups)
    order = np.lexsort((rng.random(len(share)), share))
    fold = np.empty(len(share), dtype=np.int64)
    fold[order] = np.arange(len(share)) % count
    return fold[groups]


def _out_of_fold(features: NDArray, labels: NDArray, folds: NDArray) -> NDArray[np.float64]:
    """AUROC, (P,), for each of P columns of labels (N, P), of ridge regressions that saw the other folds alone."""
    scores = np.empty(labels.shape)
    for fold in np.unique(folds):
        test = folds == fold
        own, mean = features[~test], labels[~test].mean(axis=0)
        squares = own.T @ own + np.eye(own.shape[1])
        scores[test] = mean + features[test] @ np.linalg.solve(squares, own.T @ (labels[~test] - mean))
    ranks, count = rankdata(scores.round(9), axis=0), labels.sum(axis=0)
    wins = (ranks * labels).sum(axis=0) - count * (count + 1) / 2
    return wins / (count * (len(labels) - count))


ADVICE = {
    "image size": "resize: squash hides it best",
    "file type": "save all pictures in the same way and quality",
    "bit depth": "save all pictures in the same way",
    BYTES: "save all pictures with the same settings",
    "camera": "take both classes with the same camera and settings",
    "brightness": "take both classes under the same light",
    "contrast": "take both classes under the same light",
    "colour balance": "take both classes under the same light",
    "sharpness": "take both classes with the same focus and distance",
    "border": "look at the edges of the pictures: is the part placed differently, or something marked there?",
}
LATER = "a classifier may learn what else came with time"


OF_PIXELS = ("brightness", "contrast", "colour balance", "sharpness", "border")


def loud(table: pd.DataFrame, *, unmasked: int = 0) -> Iterator[str]:
    """A sentence for each row of `predictors` that predicts the class better than chance does, loudest first.

    `unmasked` defective pictures have no mask, so that their defects are part of what is measured.
    """
    for name, row in table.iterrows():
        if row["auroc"] > max(LOUD, row["high"]):
            told = f"{name}: alone it predicts the class with AUROC {row['auroc']:.2f} (chance: {row['low']:.2f} to "
            told += f"{row['high']:.2f}). Usual are {row['normal']} in normal pictures, {row['defective']} in defective"
            part = f"; the defects of {unmasked} pictures without a mask are part of it" * (name in OF_PIXELS)
            yield f"{told} ones; {ADVICE.get(str(name), LATER)}{part if unmasked else ''}"


# --- Masks that mark nothing particular

SIDE = 256  # pixels a side at which masks are compared
RING = 6  # pixels around a mask that are its surroundings
OTHERS = 19  # pictures on which a mask is tried besides its own
MOST_COMPARED = 200  # masks that are compared
ODD = 0.25  # rank below which a mask is worth a look,
ODD_AMID_CLEAR = 0.75  # where three quarters have a rank of
CLEAR = 0.95
PARTICULAR = 0.6  # mean rank of the own picture from which masks mark something; 0.5 is chance


class Marked(NamedTuple):
    """A picture and its mask at `SIDE`, to be compared."""

    grey: NDArray[Any]  # uint8
    mask: Mask


def marked(pixels: NDArray[np.uint8], defect: Mask) -> Marked:
    """A picture (h, w, 3) and its mask (h', w') at `SIDE`, squashed; a small defect keeps every pixel it touches."""
    grey = cv2.resize(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    share = cv2.resize(defect.astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return Marked(grey, share >= 0.5 if share.max() >= 0.5 else share > 0)


def mask_ranks(pictures: Mapping[str, Marked]) -> pd.Series:
    """Where the own picture stands among others by how much what a mask covers differs from its surroundings there.

    1: it differs most on its own picture; 0: least. The mean is 0.5 for masks that could as well be those of other
    pictures. By mask's path.
    """
    names, rng = list(pictures), np.random.default_rng(0)
    if len(names) < 2:
        return pd.Series(dtype=float)
    views = {name: _views(one.grey) for name, one in pictures.items()}
    scale = np.mean([view.std(axis=(1, 2)) for view in views.values()], axis=0).clip(1e-6)
    ranks = {}
    for name, one in pictures.items():
        others = [other for other in names if other != name]
        drawn = [others[k] for k in rng.permutation(len(others))[:OTHERS]]
        contrast = _contrasts(one.mask, [views[place] for place in (name, *drawn)], scale)
        if contrast:
            ranks[name] = (rankdata(contrast)[0] - 1) / len(drawn)
    return pd.Series(ranks, dtype=float)


def stands_out(one: Marked) -> float:
    """By how much what a mask covers differs from its surroundings, in standard deviations of the picture."""
    view = _views(one.grey)
    return max(_contrasts(one.mask, [view], view.std(axis=(1, 2)).clip(1e-6)), default=0.0)


def _contrasts(mask: Mask, views: Sequence[NDArray], scale: NDArray) -> list[float]:
    """By how much each picture differs inside and around a mask; empty for one without surroundings."""
    ring = (cv2.dilate(mask.view(np.uint8), np.ones((2 * RING + 1,) * 2)) > 0) & ~mask
    if not ring.any():
        return []
    window = tuple(slice(int(own.min()), int(own.max()) + 1) for own in np.nonzero(ring | mask))
    inside, outside = mask[window], ring[window]
    parts = (view[:, *window] for view in views)
    differences = (part[:, inside].mean(axis=1) - part[:, outside].mean(axis=1) for part in parts)
    return [float(np.max(np.abs(one) / scale)) for one in differences]


def _views(grey: NDArray[Any]) -> NDArray[np.float32]:
    """Brightness, and how much varies in each place, (2, SIDE, SIDE)."""
    smooth = cv2.GaussianBlur(grey.astype(np.float32), (0, 0), 1)
    rough = np.abs(cv2.Laplacian(grey, cv2.CV_32F))
    return np.stack([smooth, np.sqrt(rough)])
