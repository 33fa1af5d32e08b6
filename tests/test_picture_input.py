"""Every kind of input gives the pixels of a file, and what cannot be used is named."""

import cv2
import numpy as np
import pytest
import torch
from drawn_data import truncate_file
from PIL import Image

from gainmtl_lib.explain import pair, read_defect, read_picture
from gainmtl_lib.readers import DataError, UnreadableError

RNG = np.random.default_rng(0)
COLOR = RNG.integers(0, 256, (12, 16, 3)).astype(np.uint8)
GREY = RNG.integers(0, 256, (12, 16)).astype(np.uint8)
ALPHA = RNG.integers(0, 256, (12, 16, 1)).astype(np.uint8)


def tensor(pixels):
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


COLORED = {
    "array": COLOR,
    "array, read-only strides": COLOR[:, ::-1][:, ::-1],
    "16 bits": COLOR.astype(np.uint16) * 257,
    "16 bits, other byte order": (COLOR.astype(np.uint16) * 257).astype(">u2"),
    "float": COLOR / 255,
    "half": (COLOR / 255).astype(np.float16),
    "alpha": np.dstack([COLOR, ALPHA]),
    "alpha, 16 bits": np.dstack([COLOR, ALPHA]).astype(np.uint16) * 257,
    "PIL": Image.fromarray(COLOR),
    "PIL alpha": Image.fromarray(np.dstack([COLOR, ALPHA])),
    "tensor": tensor(COLOR),
    "tensor float": tensor(COLOR) / 255,
    "tensor that learns": (tensor(COLOR) / 255).requires_grad_(),
    "tensor alpha": tensor(np.dstack([COLOR, ALPHA])),
}
GREYS = {
    "array": GREY,
    "array (h, w, 1)": GREY[..., None],
    "16 bits": GREY.astype(np.uint16) * 257,
    "PIL": Image.fromarray(GREY),
    "PIL alpha": Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA[..., 0])]),
    "PIL 16 bits": Image.fromarray(GREY.astype(np.uint16) * 257),
    "PIL 32 bits": Image.fromarray(GREY.astype(np.int32) * 257),
    "PIL float": Image.fromarray((GREY / 255).astype(np.float32)),
    "tensor (1, h, w)": torch.from_numpy(GREY)[None],
    "tensor (h, w)": torch.from_numpy(GREY) / 255,
    "tensor bfloat16": torch.from_numpy(GREY).to(torch.bfloat16)[None] / 255,
}


@pytest.mark.parametrize("kind", COLORED)
def test_every_kind_of_colour_picture_gives_the_same_pixels(kind):
    pixels = read_picture(COLORED[kind])
    assert pixels.dtype == np.uint8 and np.array_equal(pixels, COLOR)


@pytest.mark.parametrize("kind", GREYS)
def test_every_kind_of_grey_picture_gives_three_equal_channels(kind):
    pixels = read_picture(GREYS[kind])
    expected = np.repeat(GREY[..., None], 3, axis=2)
    tolerance = 1 if "bfloat16" in kind else 0  # has 8 bits, of which one is the sign of the exponent
    assert pixels.shape == (12, 16, 3) and np.abs(pixels.astype(int) - expected).max() <= tolerance


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_files_give_the_same_pixels(tmp_path, suffix):
    Image.fromarray(COLOR).save(tmp_path / f"colour{suffix}")
    Image.fromarray(GREY).save(tmp_path / f"grey{suffix}")
    assert np.array_equal(read_picture(tmp_path / f"colour{suffix}"), COLOR)
    assert np.array_equal(read_picture(str(tmp_path / f"grey{suffix}"))[..., 1], GREY)


def test_sixteen_bits_and_alpha_in_files(tmp_path):
    Image.fromarray(GREY.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.fromarray(np.dstack([COLOR, ALPHA])).save(tmp_path / "alpha.png")
    Image.fromarray(COLOR).quantize(16).save(tmp_path / "palette.png")
    assert np.array_equal(read_picture(tmp_path / "deep.png")[..., 0], GREY)
    dark = GREY.astype(np.uint16)
    Image.fromarray(dark).save(tmp_path / "dark.png")
    assert np.array_equal(read_picture(dark), read_picture(tmp_path / "dark.png")) and read_picture(dark).max() <= 1
    assert np.array_equal(read_picture(tmp_path / "alpha.png"), COLOR)
    palette = Image.open(tmp_path / "palette.png")
    assert np.array_equal(read_picture(tmp_path / "palette.png"), read_picture(palette))


def test_orientation_tags_are_followed_by_both_readers(tmp_path):
    picture = Image.fromarray(COLOR)
    exif = picture.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    picture.save(tmp_path / "turned.png", exif=exif)
    from_file = read_picture(tmp_path / "turned.png")
    assert from_file.shape == (16, 12, 3)
    assert np.array_equal(from_file, read_picture(Image.open(tmp_path / "turned.png")))


@pytest.mark.parametrize("suffix", [".gif", ".png", ".tif", ".webp"])
def test_several_frames_are_no_picture(tmp_path, suffix):
    path = tmp_path / f"moving{suffix}"
    frames = [Image.fromarray(RNG.integers(0, 256, (8, 8, 3)).astype(np.uint8)) for _ in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    for given in (path, Image.open(path)):
        with pytest.raises(UnreadableError, match=r"holds 3 frames \(.*\); expected one picture: save the frame"):
            read_picture(given)


def test_a_still_gif_is_a_picture(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "still.gif")
    assert np.array_equal(read_picture(tmp_path / "still.gif")[..., 0], GREY)


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(DataError, match=r"absent.png: image cannot be read: No such file"):
        read_picture(tmp_path / "absent.png")
    with pytest.raises(DataError, match="image cannot be read: Is a directory"):
        read_picture(tmp_path)
    Image.fromarray(COLOR).save(tmp_path / "cut.png")
    truncate_file(tmp_path / "cut.png")
    with pytest.raises(DataError, match=r"cut.png: image is truncated or not an image"):
        read_picture(tmp_path / "cut.png")
    with pytest.raises(DataError, match="shot: PIL cannot decode the picture: "):
        read_picture(Image.open(tmp_path / "cut.png"), "shot")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, "image: got a int; expected a path, a PIL picture, an array"),
        (None, "image: got a NoneType"),
        (
            np.zeros((3, 8, 8)),
            r"image: array has shape \(3, 8, 8\); expected .* order of tensors: transpose\(1, 2, 0\)",
        ),
        (np.zeros((8, 8, 2)), r"image: array has shape \(8, 8, 2\); expected \(h, w\), \(h, w, 1\), \(h, w, 3\)"),
        (np.zeros(8), r"image: array has shape \(8,\)"),
        (np.zeros((0, 8, 3)), r"image: has shape \(0, 8, 3\), no pixels"),
        (torch.zeros(8, 8, 3), r"image: tensor has shape \(8, 8, 3\); .* order of arrays: permute\(2, 0, 1\)"),
        (torch.zeros(2, 8, 8), r"image: tensor has shape \(2, 8, 8\); expected \(1, h, w\) or \(3, h, w\)$"),
        (torch.zeros(8), r"image: array has shape \(8,\)"),
        (np.zeros((8, 8), np.int64), "image: pixels are int64; expected uint8, uint16 or float in"),
        (np.zeros((8, 8), np.bool_), "image: pixels are bool"),
        (np.full((8, 8), np.nan), "image: 64 values are not finite"),
        (np.full((8, 8), np.inf), "image: 64 values are not finite"),
        (np.full((8, 8), 200.0), "image: float values from 200 to 200; expected .* divide by the full scale"),
        (torch.randn(3, 8, 8), "image: float values from -.* expected .* the model normalises by itself"),
        (Image.fromarray(np.full((8, 8), -5, np.int32)), "image: values from -5 to -5; expected 8- or 16-bit pixels"),
    ],
)
def test_what_is_no_picture_is_said(given, message):
    with pytest.raises(DataError, match=message):
        read_picture(given)


def test_floats_may_overshoot_a_little():
    assert read_picture(np.array([[1.0005, -0.0005]]))[0, :, 0].tolist() == [255, 0]


MASK = np.zeros((12, 16), np.bool_)
MASK[2:5, 3:9] = True
MASKS = {
    "booleans": MASK,
    "0 and 1": MASK.astype(np.int64),
    "0 and 255": MASK.astype(np.uint8) * 255,
    "16 bits": MASK.astype(np.uint16) * 65535,
    "8 bits in 16": MASK.astype(np.uint16) * 255,
    "float": MASK * 0.8,
    "(h, w, 1)": MASK[..., None],
    "PIL": Image.fromarray(MASK.astype(np.uint8) * 255),
    "PIL 1 bit": Image.fromarray(MASK),
    "PIL colour": Image.fromarray(np.repeat(MASK.astype(np.uint8)[..., None] * 200, 3, axis=2)),
    "tensor": torch.from_numpy(MASK),
    "tensor (1, h, w)": torch.from_numpy(MASK)[None].float(),
    "tensor (1, 1, h, w)": torch.from_numpy(MASK)[None, None].to(torch.uint8),
}


@pytest.mark.parametrize("kind", MASKS)
def test_every_kind_of_mask_gives_the_same_pixels(kind):
    assert np.array_equal(read_defect(MASKS[kind], (12, 16)), MASK)


def test_mask_files(tmp_path):
    cv2.imwrite(str(tmp_path / "m.png"), MASK.astype(np.uint8) * 255)
    assert np.array_equal(read_defect(tmp_path / "m.png", (24, 32)), MASK)
    with pytest.raises(DataError, match=r"absent.png: mask cannot be read"):
        read_defect(tmp_path / "absent.png", (12, 16))


def test_an_empty_mask_is_none_and_a_faint_one_is_reported(caplog):
    assert read_defect(np.zeros((12, 16)), (12, 16)) is None and not caplog.text
    assert read_defect(np.full((12, 16), 100, np.uint8), (12, 16), "m.png") is None
    assert "m.png: no mask value exceeds 127; treated as no mask" in caplog.text


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            np.ones((12, 12)),
            r"mask: mask is 12x12 \(height x width\), its picture 12x16; expected the same aspect ratio",
        ),
        (np.ones((12, 16, 3)), r"mask: mask has shape \(12, 16, 3\); expected \(h, w\)"),
        (torch.ones(2, 12, 16), r"mask: mask has shape \(2, 12, 16\)"),
        (np.full((12, 16), 255.0), "mask: float values from 255 to 255"),
        (np.full((12, 16), np.nan), "mask: 192 values are not finite"),
        (np.full((12, 16), 255), "mask: pixels are int64"),
        (object(), "mask: got a object"),
    ],
)
def test_what_is_no_mask_is_said(mask, message):
    with pytest.raises(DataError, match=message):
        read_defect(mask, (12, 16))


def test_one_picture_is_one_and_a_list_is_many():
    asked, many = pair("a.png", "b.png")
    assert not many and asked == [("a.png", "b.png", "a.png", "b.png")]
    asked, many = pair(["a.png", COLOR], [None, MASK])
    assert many and [one.name for one in asked] == ["a.png", "image[1]"]
    assert [one.mask_name for one in asked] == ["mask[0]", "mask[1]"]
    assert pair([]) == ([], True)


@pytest.mark.parametrize("batch", [torch.zeros(1, 3, 8, 8), np.zeros((1, 8, 8, 3))])
def test_a_batch_of_one_is_many(batch):
    asked, many = pair(batch, torch.ones(1, 1, 8, 8))
    assert many and len(asked) == 1 and asked[0].mask.shape == (1, 8, 8)


@pytest.mark.parametrize(
    ("images", "masks", "message"),
    [
        (["a", "b"], ["m"], "mask: got 1 masks for 2 pictures; give one each, None where none is"),
        (["a", "b"], "m", "mask: got one str for 2 pictures; give a list"),
        ("a", ["m"], "mask: got a list of 1 for one picture; expected one mask"),
        (torch.zeros(2, 3, 8, 8), torch.zeros(3, 1, 8, 8), "mask: got 3 masks for 2 pictures"),
    ],
)
def test_a_wrong_number_of_masks_is_said(images, masks, message):
    with pytest.raises(DataError, match=message):
        pair(images, masks)
