"""Pictures and masks of every form that people have, and what files that are none of these are called."""

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from drawn_data import spoil_tiff, write_picture
from PIL import Image

from gainmtl_lib.findings import DataError, UnreadableError
from gainmtl_lib.pictures import image_files, read_image, read_mask_pixels, read_soft_mask

SIZE = (24, 32)
SMALL, LARGE = np.zeros(SIZE, np.bool_), np.zeros(SIZE, np.bool_)
SMALL[3:6, 4:9], LARGE[12:20, 10:25] = True, True
BOTH = SMALL | LARGE
LINE = np.zeros(SIZE, np.bool_)
LINE[22, 2:20] = True  # too thin to fill 3x3 pixels
PALETTE = [0, 0, 0, 128, 0, 0, 0, 0, 0, 192, 128, 128]  # class 2 is as dark as the background


def saved(tmp_path: Path, pixels, name: str = "m.png", **options) -> Path:
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    picture.save(tmp_path / name, **options)
    return tmp_path / name


def painted(*colours: tuple[int, ...], ground: tuple[int, ...] = (0, 0, 0)) -> np.ndarray:
    """The two defects in colours of their own on a ground."""
    pixels = np.full((*SIZE, len(ground)), ground, np.uint8)
    pixels[SMALL], pixels[LARGE] = colours
    return pixels


def paletted(table: list[int]) -> Image.Image:
    picture = Image.fromarray((SMALL + 2 * LARGE).astype(np.uint8))
    picture.putpalette(table)
    return picture


@pytest.mark.parametrize(("pixels", "told_by"), [
    (BOTH, "brightness"),  # one bit
    (BOTH.astype(np.uint8) * 255, "brightness"),
    (BOTH.astype(np.uint16) * 65535, "brightness"),
    (BOTH.astype(np.uint16) * 255, "brightness"),
    (BOTH.astype(np.float32), "brightness"),
    (BOTH.astype(np.uint8), "class numbers"),
    ((SMALL + 2 * LARGE).astype(np.uint8), "class numbers"),
    ((SMALL * 7 + LARGE * 300).astype(np.uint16), "class numbers"),
    ((SMALL * 85 + LARGE * 255).astype(np.uint8), "class numbers"),  # a type drawn in dark grey beside a bright one
    ((LINE * 40 + BOTH * 255).astype(np.uint8), "class numbers"),
    (painted((250, 50, 83), (51, 221, 255)), "colours"),
    (painted((0, 0, 70), (1, 0, 0)), "colours"),
    (painted((0, 0, 70), (200, 0, 0), ground=(255, 255, 255)), "colours"),
    (paletted(PALETTE), "palette"),
    (paletted([255, 255, 255, 255, 0, 0, 0, 0, 255]), "palette"),
    (paletted([0, 0, 0, 60, 60, 60, 255, 255, 255]), "class numbers"),
    (painted((255, 255, 255, 255), (255, 255, 255, 255), ground=(255, 255, 255, 0)), "alpha"),
    (painted((0, 0, 0, 255), (0, 0, 0, 255), ground=(9, 9, 9, 0)), "alpha"),
    (painted((255, 0, 0, 255), (0, 0, 255, 255), ground=(255, 255, 255, 0)), "alpha"),
    (painted((255, 255, 255, 255), (255, 255, 255, 255), ground=(0, 0, 0, 255)), "brightness"),
    (painted((255, 255), (255, 255), ground=(255, 0)), "alpha"),
])  # fmt: skip
def test_a_mask_is_told_whatever_form_it_has(tmp_path, pixels, told_by):
    values = np.asarray(pixels)
    found = read_mask_pixels(saved(tmp_path, pixels, "m.tif" if values.dtype == np.float32 else "m.png"))
    assert found.told_by == told_by
    np.testing.assert_array_equal(found.defect, BOTH | LINE if values.ndim == 2 and values[22, 5] else BOTH)


def test_grey_edges_and_what_a_lossy_file_adds_are_no_defects(tmp_path):
    blurred = cv2.GaussianBlur(BOTH.astype(np.uint8) * 255, (0, 0), 1)
    np.testing.assert_array_equal(read_mask_pixels(saved(tmp_path, blurred)).defect, blurred > 127)
    halved = cv2.resize(BOTH.astype(np.uint8) * 255, (13, 11), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(read_mask_pixels(saved(tmp_path, halved)).defect, halved > 127)
    for pixels in (BOTH.astype(np.uint8) * 255, painted((255, 40, 40), (60, 60, 255))):
        found = read_mask_pixels(saved(tmp_path, pixels, "m.jpg", quality=90)).defect
        near = cv2.dilate(BOTH.astype(np.uint8), np.ones((5, 5))).astype(np.bool_)
        assert (found & BOTH).sum() > 0.95 * BOTH.sum() and not (found & ~near).any()
    assert not read_mask_pixels(saved(tmp_path, 0 * blurred, "m.jpg")).defect.any()


GREY = np.random.default_rng(0).integers(40, 216, (64, 64), np.uint8)  # a photograph's shades
NUMBERS = np.repeat(np.repeat(np.arange(64, dtype=np.uint8).reshape(8, 8) * 3, 6, axis=0), 6, axis=1)


def smooth(pixels: np.ndarray) -> np.ndarray:
    """Drawn at five times the size, so that edges are shades."""
    return cv2.resize(np.kron(pixels, np.ones((5, 5, 1), np.uint8)), (96, 72), interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize(("pixels", "options", "expected"), [
    # Of several objects on a transparent ground all are defects, black ones too, and faint strokes beside others.
    (painted((0, 0, 0, 255), (255, 0, 0, 255), ground=(0, 0, 0, 0)), {}, BOTH),
    (painted((255, 0, 0, 100), (255, 0, 0, 255), ground=(0, 0, 0, 0)), {}, BOTH),
    (painted((255, 0, 0, 100), (255, 0, 0, 100), ground=(0, 0, 0, 0)), {}, BOTH),
    (painted((9, 9, 9), (200, 0, 0), ground=(255, 255, 255)), {}, BOTH),  # one black defect is not the background
    (painted((0, 0, 0), (200, 0, 0), ground=(255, 255, 255)), {}, BOTH),
    (NUMBERS, {}, NUMBERS > 0),  # 63 numbered objects up to 189
    (paletted([0, 0, 0, 128, 0, 0, 0, 128, 0]), {"transparency": 0}, BOTH),
    (paletted([128, 0, 0, 0, 0, 0, 0, 128, 0]), {"transparency": 0}, BOTH),
    (Image.fromarray((SMALL + LARGE * 255).astype(np.uint8)), {}, BOTH),  # 255 that does not surround the other
    (Image.fromarray((LARGE + (cv2.dilate(LARGE.view(np.uint8), np.ones((5, 5))) - LARGE) * 255).astype(np.uint8)), {}, LARGE),
])  # fmt: skip
def test_no_defect_vanishes_and_no_background_becomes_one(tmp_path, pixels, options, expected):
    np.testing.assert_array_equal(read_mask_pixels(saved(tmp_path, pixels, **options)).defect, expected)


def test_soft_masks_are_floats_or_grey_and_numbered_ones_say_yes_or_no(tmp_path):
    soft = np.linspace(0, 1, 768, dtype=np.float32).reshape(SIZE)
    np.testing.assert_array_equal(read_soft_mask(saved(tmp_path, soft, "s.tif")), soft)
    np.testing.assert_allclose(read_soft_mask(saved(tmp_path, soft * 255, "t.tif")), soft, rtol=1e-6)
    np.testing.assert_array_equal(read_soft_mask(saved(tmp_path, (SMALL + 2 * LARGE).astype(np.uint8))), BOTH)


def test_the_void_of_pascal_vocs_palette_is_of_no_class(tmp_path):
    picture = Image.fromarray((SMALL * 1 + LARGE * 255).astype(np.uint8))
    picture.putpalette([0, 0, 0, 128, 0, 0, *[0] * 759, 224, 224, 192])
    np.testing.assert_array_equal(read_mask_pixels(saved(tmp_path, picture)).defect, SMALL)


@pytest.mark.parametrize(
    ("name", "options"), [("m.png", {}), ("m.jpg", {"quality": 75}), ("m.jp2", {}), ("m.avif", {})]
)
@pytest.mark.parametrize("colours", [((255, 0, 0), (255, 255, 0)), ((255,) * 3, (255,) * 3)])
def test_edges_and_halos_of_colours_are_no_defects(tmp_path, name, options, colours):
    if name == "m.jp2":
        options = {"quality_mode": "rates", "quality_layers": [20], "irreversible": True}
    found = read_mask_pixels(saved(tmp_path, smooth(painted(*colours)), name, **options)).defect
    truth = smooth(painted((255,) * 3, (255,) * 3))[..., 0] > 127
    assert (found & truth).sum() / (found | truth).sum() > 0.85


@pytest.mark.parametrize("pixels", [
    painted((255, 0, 0), (255, 0, 0)), painted((100,) * 3, (100,) * 3), painted((200, 0, 0), (0, 0, 200), ground=(255,) * 3),
])  # fmt: skip
def test_shades_at_the_edges_of_few_colours_are_cut_half_way(tmp_path, pixels):
    shaded = smooth(pixels)
    shaded = (shaded // 16 * 16).astype(np.uint8) if pixels[0, 0, 0] == 0 else shaded  # few values
    found = read_mask_pixels(saved(tmp_path, shaded)).defect
    truth = smooth(painted((255,) * 3, (255,) * 3))[..., 0] > 127
    assert (found & truth).sum() / (found | truth).sum() > 0.9


@pytest.mark.parametrize("colour", [(90, 90, 90), (28, 18, 8), (60, 0, 0)])
def test_a_dark_defect_in_a_lossy_file_is_refused(tmp_path, colour):
    pixels = np.kron(painted(colour, (255, 255, 255)), np.ones((4, 4, 1), np.uint8))
    path = saved(tmp_path, pixels, "m.jpg", quality=85)
    with pytest.raises(DataError, match=r"m.jpg: mask has areas of the value \d+ in a lossy format; save masks as PNG"):
        read_mask_pixels(path)


@pytest.mark.parametrize(("pixels", "message"), [
    (GREY, "mask has shades of grey, as a photograph, on 100%"),
    ((128 + BOTH * 127).astype(np.uint8), "mask has values from 128 to 255, none of them dark; expected background 0"),
    (painted((255, 255, 255), (200, 0, 0), ground=(90, 90, 90)), "mask's background: black covers 0% of it, white 2%"),
    (np.full(SIZE, 3, np.uint8), "mask has values from 3 to 3, none above half of the scale (127); expected background 0"),
    ((np.arange(768) // 9).reshape(SIZE).astype(np.uint8), "mask has values from 0 to 85, none above half of the scale"),
    (painted((250, 50, 83), (51, 221, 255), ground=(68, 1, 84)), "mask's background: black covers 0% of it, white 0%; expected"),
    (paletted([255, 255, 255, 0, 0, 0, 255, 0, 0]), "in its palette index 0 is (255, 255, 255), another one black; exp"),
    (np.random.default_rng(0).integers(0, 16, (64, 64, 3), np.uint8) * 17, "colours, as a photograph with marks on it has"),
])  # fmt: skip
def test_what_cannot_be_told_is_refused_with_advice(tmp_path, pixels, message):
    path = saved(tmp_path, pixels)
    with pytest.raises(DataError) as caught:
        read_mask_pixels(path)
    assert str(caught.value).startswith(f"{path}: ") and message in str(caught.value)


def tiff(path: Path, pixels: np.ndarray) -> Path:
    """A TIFF of one channel, of kinds that neither OpenCV nor PIL writes."""
    height, width = pixels.shape
    sample = {"u": 1, "i": 2, "f": 3, "c": 6}[pixels.dtype.kind]
    tags = {256: width, 257: height, 258: 8 * pixels.itemsize, 259: 1, 262: 1, 273: 8, 277: 1, 278: height}
    tags |= {279: pixels.nbytes, 339: sample}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    head = struct.pack("<2sHI", b"II", 42, 8 + pixels.nbytes)
    path.write_bytes(head + pixels.tobytes() + struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0))
    return path


def test_pictures_that_are_not_decoded_are_named_as_what_they_are(tmp_path, monkeypatch):
    def refused(path: Path) -> str:
        with pytest.raises(UnreadableError) as caught:
            read_image(path)
        return str(caught.value).removeprefix(f"{path}: image ").removeprefix(f"{path}: ")

    integers = "expected 8- or 16-bit integers: scale them to one range for all pictures, and save them as such"
    assert refused(saved(tmp_path, BOTH.astype(np.float32), "f.tif")) == f"has pixels that are float32; {integers}"
    assert refused(saved(tmp_path, BOTH.astype(np.int32), "i.tif")) == f"has pixels that are int32; {integers}"
    pages = Image.fromarray(BOTH)
    path = saved(tmp_path, pages, "p.tif", save_all=True, append_images=[pages])
    advice = "save the frame that is meant as a file of its own"
    assert refused(path) == f"holds 2 frames (TIFF); expected one picture: {advice}"
    moving = saved(tmp_path, pages.convert("RGB"), "p.avif", save_all=True, append_images=[pages.convert("RGB")] * 2)
    assert refused(moving) == f"holds 3 frames (AVIF); expected one picture: {advice}"
    for kind, told in (("<f8", "float64"), ("<f2", "float16"), ("<c8", "complex64"), ("<u8", "uint64")):
        assert (
            refused(tiff(tmp_path / "x.tif", np.zeros((4, 4), kind)))
            == f"has pixels that are {told}, in 1 channel; {integers}"
        )
    path = write_picture(tmp_path / "cut.png")
    path.write_bytes(path.read_bytes()[:60])
    assert refused(path) == "is truncated or not an image; replace the file"
    path = saved(tmp_path, pages.convert("RGB"), "x.avif")
    path.write_bytes(path.read_bytes().replace(b"pitm", b"none"))
    assert refused(path) == "is truncated or not an image; replace the file"
    with pytest.raises(UnreadableError, match="mask is truncated or not an image"):
        read_mask_pixels(path)
    monkeypatch.setattr("gainmtl_lib.pictures.LARGEST", 100)
    monkeypatch.setattr("gainmtl_lib.pictures.cv2.imdecode", lambda *_: None)
    large = "has 12x16 (height x width), 192 pixels; OpenCV decodes up to 100: cut it into parts"
    assert refused(write_picture(tmp_path / "large.png")).startswith(large)


def test_a_tiff_whose_other_pages_pil_cannot_count_is_the_decoders_to_judge(tmp_path):
    path = write_picture(tmp_path / "a.tif")
    whole = read_image(path)
    spoil_tiff(path)
    with Image.open(path) as picture, pytest.raises(TypeError):
        picture.n_frames  # noqa: B018
    np.testing.assert_array_equal(read_image(path), whole)


def test_pictures_of_any_suffix_are_found_below_linked_folders_and_not_among_what_computers_add(tmp_path):
    root, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    kept = [root / f"a{suffix}" for suffix in (".PNG", ".jfif", ".pgm", ".ppm", ".jp2", ".tif")]
    for path in kept:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    for folder in ("@eaDir", ".ipynb_checkpoints", "sub/__MACOSX", "sub/.hidden", "#recycle", "lost+found", "@__thumb"):
        (root / folder).mkdir(parents=True)
        (root / folder / "b.png").touch()
    elsewhere.mkdir()
    (elsewhere / "c.png").touch()
    (root / "._a.png").touch()
    (root / "~$a.png").touch()
    (root / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(root)  # a circle
    assert image_files(root) == sorted([*kept, root / "linked/c.png"])
