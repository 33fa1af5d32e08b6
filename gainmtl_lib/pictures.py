"""A picture on disk -> RGB, a mask on disk -> its defect pixels. Both h x w, with C channels in a file of several."""

import contextlib
import os
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps, TiffImagePlugin

from gainmtl_lib.findings import DataError, UnreadableError

Size = tuple[int, int]  # height and width
Mask = NDArray[np.bool_]


# --- Files

IMAGE_SUFFIXES = {
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".jp2", ".j2k", ".avif", ".gif",
    ".pgm", ".ppm", ".pbm", ".pnm", ".pam", ".pxm", ".ras", ".sr", ".hdr", ".pic", ".pfm",
}  # fmt: skip
NOT_DATA = {
    "__macosx", "__pycache__", "lost+found", "#recycle", "#snapshot", "$recycle.bin", "recycler",
    "system volume information", "temporary items", "network trash folder",
}  # fmt: skip


def is_data(name: str) -> bool:
    """Whether a file or folder of this name can hold data.

    Not what is hidden, nor what file managers, network drives, offices and archives add.
    """
    return not name.startswith((".", "@", "~$")) and name.lower() not in NOT_DATA


def files_below(folder: Path) -> Iterator[Path]:
    """All files that `is_data`, at any depth, in no order; linked folders are followed, each folder once."""
    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(filter(is_data, folders))
        yield from (Path(place, name) for name in filter(is_data, names))


def image_files(folder: Path, suffixes: set[str] = IMAGE_SUFFIXES) -> list[Path]:
    """Pictures below a folder, sorted, as `files_below` finds them; a missing folder is empty."""
    return sorted(path for path in files_below(folder) if path.suffix.lower() in suffixes)


# --- Decoding


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """Decode an image to (h, w, 3) RGB, turned as its orientation tag says; grey is repeated, alpha dropped.

    `UnreadableError` where the file is missing, truncated, not an image, or several in one, as in a TIFF of many pages.
    """
    # Not IMREAD_COLOR_RGB: with 16-bit TIFF files OpenCV 5.0 then returns memory it never wrote.
    image = to_8_bit(_decoded(_bytes(path, "image"), path, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH, "image"), path)
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def read_grey(path: str | Path) -> NDArray[np.uint8]:
    """Decode a map of values, such as a soft mask, to (h, w); errors as for `read_image`."""
    values = _decoded(_bytes(path, "mask"), path, cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH, "mask")
    # A map has no brightness that must stay comparable: 16 bits whose values all fit 8 are kept.
    fits = values.dtype == np.uint16 and values.max(initial=0) <= 255
    return values.astype(np.uint8) if fits else to_8_bit(values, path)


def to_8_bit(image: NDArray, path: str | Path = "image") -> NDArray[np.uint8]:
    """Scale integers by their type: 16 bits are divided by 257, whatever the image holds; others: `UnreadableError`.

    A depth guessed from an image's largest value would differ within a dataset: brightness could tell the class.
    """
    if image.dtype not in (np.uint8, np.uint16):
        raise UnreadableError(f"{path}: pixels are {image.dtype}; {INTEGERS}")
    return image if image.dtype == np.uint8 else cv2.convertScaleAbs(image, alpha=1 / 257)  # type: ignore[return-value]


def picture_size(path: str | Path) -> Size:
    """(height, width) as `read_image` decodes it, mostly from the file's head alone."""
    with contextlib.suppress(Exception), Image.open(path) as picture:
        if orientation(picture) == 1:
            return picture.height, picture.width
    height, width, _ = read_image(path).shape
    return height, width


def orientation(picture: Image.Image) -> int:
    """What the orientation tag says: 1 upright, 5 to 8 with height and width changed."""
    return int(picture.getexif().get(0x0112, 1))


def damage(raw: bytes) -> str:
    """What a JPEG's decoder warns of although it gives a picture, in which a part may then be grey; else empty."""
    if raw[:2] != b"\xff\xd8":
        return ""
    try:
        simplejpeg.decode_jpeg(raw, "GRAY", min_factor=8, strict=True)  # an eighth of its size: all of it is read
    except ValueError as error:
        return str(error)
    return ""


def _decoded(raw: NDArray[np.uint8], path: str | Path, flags: int, what: str) -> NDArray:
    """One picture decoded by OpenCV: (h, w) or (h, w, C), blue first."""
    with contextlib.suppress(cv2.error):  # of an empty file, too
        if (image := cv2.imdecode(raw, flags)) is not None:
            return image
    raise UnreadableError(f"{path}: {what} {_reason(raw)}")


def _bytes(path: str | Path, what: str) -> NDArray[np.uint8]:
    """A file of one picture."""
    try:
        raw = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise UnreadableError(f"{path}: {what} cannot be read: {error.strerror}") from None
    _check_frames(raw, path)
    return raw


cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # what it does not decode is named by `_reason`
LARGEST = 2**30  # pixels of a picture that OpenCV decodes, unless OPENCV_IO_MAX_IMAGE_PIXELS says otherwise
LONGEST = 2**20  # pixels of a side, unless OPENCV_IO_MAX_IMAGE_WIDTH or _HEIGHT says otherwise
Image.MAX_IMAGE_PIXELS = LARGEST  # heads are read by PIL, which would warn of what OpenCV decodes
# How files that can hold several pictures begin; AVIF has its kind from the fifth byte on.
SEVERAL = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"GIF8", b"RIFF", b"\x89PNG")
INTEGERS = "expected 8- or 16-bit integers: scale them to one range for all pictures, and save them as such"


def _reason(raw: NDArray[np.uint8]) -> str:
    """Why OpenCV did not decode a file, and what to do."""
    if not raw.size:
        return "is empty; replace the file"
    advice = f"OpenCV decodes up to {LARGEST:,}: cut it into parts, or set OPENCV_IO_MAX_IMAGE_PIXELS"
    try:
        with Image.open(BytesIO(raw.tobytes())) as picture:
            if (pixels := picture.width * picture.height) > LARGEST:
                return f"has {picture.height}x{picture.width} (height x width), {pixels:,} pixels; {advice}"
            if max(picture.size) > LONGEST:
                return f"has {picture.height}x{picture.width} (height x width); a side has {LONGEST:,} at most: cut it"
            if picture.mode in ("I", "F"):
                return f"has pixels that are {'int32' if picture.mode == 'I' else 'float32'}; {INTEGERS}"
    except Image.DecompressionBombError as error:
        return f"is too large: {error}; {advice}"
    except Exception:  # PIL's parsers raise anything
        with contextlib.suppress(Exception):
            return f"has pixels that are {_of_tiff(raw)}; {INTEGERS}"
    return "is truncated or not an image; replace the file"


def _of_tiff(raw: NDArray[np.uint8]) -> str:
    """How a TIFF says that its pixels are stored, such as one channel of float64."""
    content = BytesIO(raw.tobytes())
    head = TiffImagePlugin.ImageFileDirectory_v2(content.read(8))
    content.seek(head.next)
    head.load(content)
    kinds = {1: "uint", 2: "int", 3: "float", 5: "int complex", 6: "complex"}
    channels = head.get(TiffImagePlugin.SAMPLESPERPIXEL, 1)
    kind = kinds[head.get(TiffImagePlugin.SAMPLEFORMAT, (1,))[0]]
    return f"{kind}{head[TiffImagePlugin.BITSPERSAMPLE][0]}, in {channels} channel{'s' * (channels > 1)}"


def _check_frames(raw: NDArray[np.uint8], path: str | Path) -> None:
    if not raw[:4].tobytes().startswith(SEVERAL) and raw[4:8].tobytes() != b"ftyp":
        return
    frames, kind = 1, None
    # What PIL cannot read, raising anything, the decoder may: it is the one to complain.
    with contextlib.suppress(Exception), Image.open(BytesIO(raw.tobytes())) as picture:
        frames, kind = getattr(picture, "n_frames", 1), picture.format
    if frames > 1:
        told = f"holds {frames} frames ({kind}); expected one picture"
        raise UnreadableError(f"{path}: {told}: save the frame that is meant as a file of its own")


# --- Which pixels of a mask are defect

MOST_CLASSES = 32  # values of a mask that can number its classes; more are shades, unless they fill areas
LINE = 8  # pixels from which a line is no chance
NOISE = 32  # of 255: below it a lossy file's black may lie near what is bright
FAINT = 12  # of 255: and elsewhere
FLAT = 12  # of 255: by which an area of one value may vary in a lossy file
REACH = 33  # pixels a side: so far a lossy file smears what is bright
SHARE = 0.1  # of the picture, which a background covers at least
MANY_COLOURS = 1024  # more than this is a photograph
VOID = (224, 224, 192)  # of index 255 in the palette of Pascal VOC: borders of objects, which are of no class


class MaskPixels(NamedTuple):
    """The defect pixels of a mask file, and by what they were told."""

    defect: Mask  # (h, w)
    told_by: str  # brightness, class numbers, palette, colours, alpha, outlines or several masks


def read_mask_pixels(path: str | Path) -> MaskPixels:
    """Decode a mask of any usual form: two values, grey, numbered classes, a palette, colours, or the alpha channel.

    `UnreadableError` as for `read_image`; `DataError` where defect and background cannot be told apart.
    """
    raw = _bytes(path, "mask")
    shown = None
    with contextlib.suppress(Exception), Image.open(BytesIO(raw.tobytes())) as picture:
        if picture.mode in ("P", "PA", "LA", "RGBA"):  # what OpenCV would turn into colours, or drop
            shown = ImageOps.exif_transpose(picture)
    if shown is not None:
        return mask_pixels(shown, path, lossless=not _is_lossy(raw))
    values = _decoded(raw, path, cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH, "mask")
    return mask_pixels(values, path, lossless=not _is_lossy(raw))


def read_soft_mask(path: str | Path) -> NDArray[np.float32]:
    """Decode a mask of shades of grey, such as a heat map, to (h, w) in [0, 1]; floats are in [0, 1] or [0, 255].

    One of few numbered values, of colours or with an alpha channel says yes or no. Errors as for `read_mask_pixels`.
    """
    raw = _bytes(path, "mask")
    values = _decoded(raw, path, cv2.IMREAD_UNCHANGED, "mask")
    if values.ndim == 3 and (values.shape[2] != 3 or (values != values[..., :1]).any()):
        return read_mask_pixels(path).defect.astype(np.float32)
    if values.max(initial=0) < MOST_CLASSES and values.dtype.kind in "iu" and not _is_lossy(raw):
        return (read_grey(path) > 0).astype(np.float32)
    if values.dtype.kind == "f" and values.ndim == 2 and 0 <= values.min() <= values.max() <= 255:
        return values.astype(np.float32) / np.float32(1 if values.max() <= 1 else 255)
    return read_grey(path).astype(np.float32) / np.float32(255)


def mask_pixels(mask: Image.Image | NDArray, name: str | Path = "mask", *, lossless: bool = True) -> MaskPixels:
    """As `read_mask_pixels`, of a picture in memory: an array is (h, w) or (h, w, C), C = 1 to 4, alpha last."""
    if isinstance(mask, Image.Image) and mask.mode == "P" and "transparency" in mask.info:
        mask = mask.convert("RGBA")  # its palette says what is transparent
        if np.asarray(mask)[..., 3].min() == 255:
            mask = mask.convert("RGB")
    if isinstance(mask, Image.Image) and mask.mode == "P":
        return _of_palette(mask, name)
    if isinstance(mask, Image.Image) and mask.mode in ("PA", "La", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"):
        mask = mask.convert("RGBA" if mask.mode in ("PA", "La", "RGBa") else "RGB")
    values = np.asarray(mask)
    if values.ndim == 3 and values.shape[2] in (2, 4):
        values, alpha = values[..., :-1], values[..., -1]
        if alpha.min() < alpha.max():
            opaque = _of_grey(alpha, f"{name} (its alpha channel)", lossless).defect
            if opaque.mean() <= 0.5 or (values[opaque] == values[opaque][:1]).all():
                return MaskPixels(opaque, "alpha")
            values = values * opaque[..., None].astype(values.dtype)  # transparent corners of what is read below
    if values.ndim == 3 and (values == values[..., :1]).all():
        values = values[..., 0]
    return _of_grey(values, name, lossless) if values.ndim == 2 else _of_colours(values, name, lossless)


def _is_lossy(raw: NDArray[np.uint8]) -> bool:
    """Whether a file's format may change values: JPEG, WebP, JPEG 2000, AVIF."""
    head = raw[:12].tobytes()
    return head.startswith((b"\xff\xd8", b"\xff\x4f\xff\x51")) or head[4:8] in (b"jP  ", b"ftyp") or head[8:] == b"WEBP"


def _half(values: NDArray) -> float:
    """Half of the full scale: above it is bright. A 16-bit mask whose values fit 8 bits is one of 8."""
    if values.dtype.kind == "f":
        return 0.5 if values.max(initial=0) <= 1 else 127.5
    if values.dtype == np.bool_:
        return 0.5
    return 127 if values.max(initial=0) <= 255 else np.iinfo(values.dtype).max // 2


def _of_grey(values: NDArray, name: str | Path, lossless: bool) -> MaskPixels:
    """Bright pixels; and in a lossless mask whose background is 0 those of dark values that number classes."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise DataError(f"{name}: mask has values that are not finite; {EXPECTED}")
    half, darkest, brightest = _half(values), values.min(), values.max()
    bright, told = values > half, f"values from {darkest:g} to {brightest:g}"
    kinds = np.flatnonzero(np.bincount(values.ravel())) if values.dtype == np.uint8 else np.unique(values)
    if not lossless and darkest < brightest:
        _refuse_dark_areas(values * (127 / half), name)
    if lossless and darkest == 0:
        dark, few = kinds[(kinds > 0) & (kinds <= half)], len(kinds) <= MOST_CLASSES
        if (numbered := _numbered(values, dark, bright, few=few)).any():
            return MaskPixels(numbered, "class numbers")
    if not bright.any() and brightest > 0:
        raise DataError(f"{name}: mask has {told}, none above half of the scale ({half:g}); {EXPECTED}")
    between = (values > half * NOISE / 128) & (values < 2 * half - half * NOISE / 128)
    if len(kinds) > MOST_CLASSES and between.mean() > 0.5:
        raise DataError(f"{name}: mask has shades of grey, as a photograph, on {between.mean():.0%} of it; {EXPECTED}")
    if bright.all() and darkest < brightest:
        raise DataError(f"{name}: mask has {told}, none of them dark; {EXPECTED}")
    return MaskPixels(bright, "brightness")


def _numbered(values: NDArray, dark: NDArray, bright: Mask, *, few: bool) -> Mask:
    """Defect pixels of a mask of which dark values number classes; none where they do not.

    Of few values those that fill areas or draw lines, the others may be edges; of many all, if most fill areas.
    """
    if not len(dark) or not (few or _are_areas(values, dark)):
        return np.zeros_like(bright)
    numbered = np.isin(values, [kind for kind in dark if _is_class(values, kind)] if few else dark)
    if not bright.any():
        numbered |= (values > 0) & _at_least_half_of_what_is_near(values.astype(np.float32))
    if not numbered.any():
        return numbered
    is_void = _is_rim(values == 255, numbered & (values < MOST_CLASSES))
    return numbered | (bright & (values != 255) if is_void else bright)


def _are_areas(values: NDArray, dark: NDArray) -> bool:
    """Whether most pixels of the dark values have neighbours of their own value: numbers of objects, not shades."""
    own = values[1:, 1:]
    even = (own == values[:-1, 1:]) & (own == values[1:, :-1])
    return bool(even[np.isin(own, dark)].mean() > 0.5)


def _is_class(values: NDArray, kind: Any) -> bool:
    """Whether a dark value fills 3x3 pixels, or draws a line of `LINE` pixels by itself: amid background only."""
    own = (values == kind).view(np.uint8)
    if cv2.erode(own, np.ones((3, 3))).any():
        return True
    others = cv2.dilate(((values != kind) & (values > 0)).view(np.uint8), np.ones((3, 3))).astype(np.bool_)
    count, pieces, stats, _ = cv2.connectedComponentsWithStats(own, connectivity=8)
    apart = np.setdiff1d(np.arange(1, count), pieces[others])
    return bool((stats[apart, cv2.CC_STAT_AREA] >= LINE).any())


def _at_least_half_of_what_is_near(values: NDArray[np.float32]) -> Mask:
    """The nearer half of the edges of what is drawn, and all that is alone."""
    return values >= cv2.dilate(values, np.ones((7, 7))) / 2


def _is_rim(bright: Mask, numbered: Mask) -> bool:
    """Whether the value 255 only surrounds numbered classes, as Pascal VOC's borders do."""
    thin = not cv2.erode(bright.view(np.uint8), np.ones((11, 11))).any()
    near = cv2.dilate(numbered.view(np.uint8), np.ones((3, 3))).astype(np.bool_)
    count, pieces = cv2.connectedComponents(bright.view(np.uint8), connectivity=8)
    return thin and count > 1 and not np.setdiff1d(np.arange(1, count), pieces[near]).size


def _refuse_dark_areas(values: NDArray, name: str | Path) -> None:
    """`DataError` where a lossy mask, of values up to 255, has areas too dark to be told from what its format adds."""
    values = values.astype(np.float32)
    low, high = (change(values, np.ones((5, 5))) for change in (cv2.erode, cv2.dilate))
    smeared = cv2.dilate((values > NOISE).astype(np.uint8), np.ones((REACH, REACH)))
    areas = (high - low <= FLAT) & (((low > NOISE) & (high <= 127)) | ((low > FAINT) & (smeared == 0)))
    if areas.any() or values.max() <= NOISE:
        value = float(values[areas].max() if areas.any() else values.max())
        raise DataError(f"{name}: mask has areas of the value {value:.0f} in a lossy format; save masks as PNG")


EXPECTED = "expected background 0 and defects above half, few numbered classes, a palette, or colours on black or white"


def _of_palette(picture: Image.Image, name: str | Path) -> MaskPixels:
    """Every index above 0, the background's; a palette of greys from black on is read by them."""
    index = np.asarray(picture)
    table = np.zeros((256, 3), dtype=np.uint8)
    given = np.array(picture.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
    table[: len(given)] = given
    used = np.unique(index)
    colours = table[used]
    if (colours == colours[:, :1]).all() and len({*colours[:, 0]}) == len(used) and (colours.min() == 0 or used[0] > 0):
        return _of_grey(table[index][..., 0], name, lossless=True)
    if table[0].any() and not table[used[used > 0]].any(axis=1).all():
        told = f"index 0 is {tuple(map(int, table[0]))}, another one black"
        raise DataError(f"{name}: cannot tell the mask's background: in its palette {told}; {EXPECTED}")
    is_void = len(used) > 2 and tuple(table[255]) == VOID
    return MaskPixels((index > 0) & ~((index == 255) & is_void), "palette")


def _of_colours(values: NDArray, name: str | Path, lossless: bool) -> MaskPixels:
    """Every colour but the background's, black or white, whichever covers more of the picture and of its edge.

    Of colours that fill no area, which edges and lossy formats add, those count that differ from the background by at
    least half as much as anything near them.
    """
    values = values.astype(np.int64)
    white = 255 if values.max() <= 255 else 65535
    code = values @ np.array([1, 1 << 16, 1 << 32])
    codes = np.unique(code)
    if lossless and len(codes) > MANY_COLOURS:
        raise DataError(f"{name}: mask has {len(codes)} colours, as a photograph with marks on it has; {EXPECTED}")
    margin = 0 if len(codes) <= MOST_CLASSES else 4 if lossless else NOISE
    black, pale = values.max(-1) * 255 <= margin * white, (white - values.min(-1)) * 255 <= margin * white
    background, other = (black, pale) if black.sum() >= pale.sum() else (pale, black)
    edge = np.ones(black.shape, dtype=np.bool_)
    edge[1:-1, 1:-1] = False
    if background.mean() < SHARE or background[edge].sum() < other[edge].sum():
        shares = f"black covers {black.mean():.0%} of it, white {pale.mean():.0%}"
        raise DataError(f"{name}: cannot tell the mask's background: {shares}; {EXPECTED}")
    ground = 0 if background is black else white
    differs = (np.abs(values - ground).max(-1) * 255 / white).astype(np.float32)
    if not lossless:
        _refuse_dark_areas(np.where(differs > 127, 255, differs), name)
    defect = (differs > margin) & _at_least_half_of_what_is_near(differs)
    if len(codes) <= MOST_CLASSES and lossless:  # a dark class beside a bright one
        numbers = np.searchsorted(codes, code) + 1
        kinds = [number for number in range(1, len(codes) + 1) if _is_class(numbers * (differs > 0), number)]
        defect |= np.isin(numbers, kinds) & (differs > 0)
    return MaskPixels(defect, "colours")
