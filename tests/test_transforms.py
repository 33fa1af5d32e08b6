from __future__ import annotations

import cv2
import numpy as np
import pytest

from gainmtl_lib.dataset import Augmentation
from gainmtl_lib.labels import resize_image, resize_mask, same_aspect
from gainmtl_lib.readers import UnreadableError, read_image, read_mask, to_8_bit


def test_shrinking_averages_by_area():
    image = np.zeros((4, 4, 3), np.uint8)
    image[:2, :2] = 200
    image[0, 2] = 100
    assert resize_image(image, (2, 2), "squash")[..., 0].tolist() == [[200, 25], [0, 0]]


def test_one_side_shrinks_by_area_while_the_other_grows():
    image = np.zeros((8, 2, 3), np.uint8)
    image[::2] = 100  # rows alternate: area gives 50 everywhere, picking single rows would not
    assert np.unique(resize_image(image, (2, 4), "squash")).tolist() == [50]


def test_letterbox_is_centred_and_filled_with_the_mean_colour():
    image = np.zeros((4, 8, 3), np.uint8)
    image[:, 4:] = [200, 100, 50]
    boxed = resize_image(image, (8, 8), "letterbox")
    assert boxed.shape == (8, 8, 3)
    assert boxed[0, 0].tolist() == boxed[7, 7].tolist() == [100, 50, 25]
    assert np.array_equal(boxed[2:6], image)


def test_letterbox_puts_the_mask_where_the_image_is():
    mask = np.zeros((4, 8), bool)
    mask[:, :2] = True
    boxed = resize_mask(mask, (8, 8), "letterbox")
    assert np.argwhere(boxed).min(0).tolist() == [2, 0]
    assert np.argwhere(boxed).max(0).tolist() == [5, 1]


def test_mask_is_cut_at_half_a_pixel():
    mask = np.zeros((4, 4), bool)
    mask[0, :2] = mask[:2, 3] = mask[3, 3] = True  # the cells hold 2, 2, 0 and 1 of four pixels
    assert resize_mask(mask, (2, 2), "squash").tolist() == [[True, True], [False, False]]


def test_a_mask_that_the_cut_would_empty_keeps_every_pixel_it_touches():
    mask = np.zeros((8, 8), bool)
    mask[3, :] = True  # a line of one eighth of each cell
    assert resize_mask(mask, (2, 2), "squash").tolist() == [[True, True], [False, False]]
    assert not resize_mask(np.zeros((8, 8), bool), (2, 2), "squash").any()


def test_a_mask_of_another_size_is_fitted_to_its_image():
    mask = np.zeros((2, 4), bool)
    mask[0, :2] = True
    fitted = resize_mask(mask, (8, 8), "letterbox", image_size=(4, 8))
    assert fitted.sum() == pytest.approx(8, abs=4)
    assert fitted[:2].sum() == fitted[6:].sum() == 0


@pytest.mark.parametrize(
    ("mask", "image", "same"),
    [
        ((100, 200), (100, 200), True),
        ((33, 67), (100, 200), True),
        ((200, 100), (100, 200), False),
        ((90, 200), (100, 200), False),
    ],
)
def test_same_aspect_allows_for_rounding(mask, image, same):
    assert same_aspect(mask, image) is same


def make_augmentation(size: tuple[int, int] = (8, 8), **probabilities: float) -> Augmentation:
    names = ("hflip_prob", "vflip_prob", "rotate90_prob", "color_jitter_prob", "gaussian_noise_prob")
    return Augmentation(image_size=size, **{name: probabilities.get(name, 0.0) for name in names})


def picture(size: tuple[int, int] = (8, 8)) -> tuple[np.ndarray, np.ndarray]:
    """An image whose red channel is the mask, so that both can be compared after any move."""
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 2, size).astype(np.uint8)
    image = np.stack([mask * 255, *rng.integers(0, 256, (2, *size))], axis=-1).astype(np.uint8)
    return image, mask


def test_image_and_mask_move_together_in_all_eight_ways():
    augment = make_augmentation(hflip_prob=0.5, vflip_prob=0.5, rotate90_prob=0.5)
    image, mask = picture()
    seen = set()
    for index in range(100):
        moved, moved_mask = augment(image, mask, seed=0, epoch=0, index=index)
        assert np.array_equal(moved[..., 0], moved_mask * 255)
        seen.add(moved.tobytes())
    assert len(seen) == 8


def test_probability_zero_changes_nothing_and_one_flips_always():
    image, mask = picture()
    same, same_mask = make_augmentation()(image, mask, seed=0, epoch=0, index=0)
    assert np.array_equal(same, image)
    assert np.array_equal(same_mask, mask)
    flipped, _ = make_augmentation(hflip_prob=1.0)(image, mask, seed=0, epoch=0, index=0)
    assert np.array_equal(flipped, image[:, ::-1])


def test_inputs_that_are_not_square_are_turned_by_half_only():
    image, mask = picture((8, 12))
    augment = make_augmentation((8, 12), rotate90_prob=1.0)
    for index in range(8):
        turned, turned_mask = augment(image, mask, seed=0, epoch=0, index=index)
        assert np.array_equal(turned, image[::-1, ::-1])
        assert np.array_equal(turned_mask, mask[::-1, ::-1])


def test_noise_and_jitter_leave_the_mask_alone():
    image, mask = picture()
    noisy, same = make_augmentation(color_jitter_prob=1.0, gaussian_noise_prob=1.0)(
        image, mask, seed=0, epoch=0, index=0
    )
    assert not np.array_equal(noisy, image)
    assert noisy.dtype == np.uint8
    assert np.array_equal(same, mask)


def test_augmentation_depends_on_seed_epoch_and_index_alone():
    image, mask = picture()
    probabilities = dict(hflip_prob=0.5, rotate90_prob=0.5, color_jitter_prob=1.0, gaussian_noise_prob=1.0)
    first, second = make_augmentation(**probabilities), make_augmentation(**probabilities)
    wanted = first(image, mask, seed=1, epoch=2, index=3)[0]
    for other in ((0, 2, 3), (1, 3, 3), (1, 2, 4)):
        changed = second(image, mask, seed=other[0], epoch=other[1], index=other[2])[0]
        assert not np.array_equal(changed, wanted)
    assert np.array_equal(second(image, mask, seed=1, epoch=2, index=3)[0], wanted)


def write(path, pixels):
    path.write_bytes(cv2.imencode(path.suffix, pixels)[1].tobytes())
    return path


def test_images_of_other_kinds_become_8_bit_rgb(tmp_path):
    colour = np.zeros((4, 5, 3), np.uint8)
    colour[...] = [10, 20, 30]  # OpenCV writes blue first
    assert read_image(write(tmp_path / "colour.png", colour))[0, 0].tolist() == [30, 20, 10]
    rgba = np.dstack([colour, np.full((4, 5), 7, np.uint8)])
    assert read_image(write(tmp_path / "rgba.png", rgba))[0, 0].tolist() == [30, 20, 10]
    assert read_image(write(tmp_path / "grey.png", colour[..., 0]))[0, 0].tolist() == [10, 10, 10]
    deep = np.array([[0, 257 * 100, 65535]], np.uint16)
    assert read_image(write(tmp_path / "deep.png", deep))[0, :, 0].tolist() == [0, 100, 255]
    assert read_image(write(tmp_path / "deep.tif", np.dstack([deep] * 3)))[0, :, 2].tolist() == [0, 100, 255]


def test_sixteen_bits_are_scaled_alike_whatever_the_image_holds():
    assert to_8_bit(np.array([0, 255, 4095, 4096, 65535], np.uint16)).ravel().tolist() == [0, 1, 16, 16, 255]
    for peak, brightness in ((255, 1), (4095, 16), (4096, 16)):
        assert to_8_bit(np.array([0, peak], np.uint16)).ravel().tolist() == [0, brightness]
    every = np.arange(65536, dtype=np.uint16)
    assert np.array_equal(to_8_bit(every).ravel(), np.rint(every / 257))
    with pytest.raises(UnreadableError, match=r"x.tif: pixels are float32; expected 8- or 16-bit integers"):
        to_8_bit(np.zeros((2, 2), np.float32), "x.tif")


def test_mask_values_above_127_are_defect(tmp_path):
    mask = read_mask(write(tmp_path / "mask.png", np.array([[0, 127, 128, 255]], np.uint8)))
    assert mask.tolist() == [[False, False, True, True]]
    for values in ([0, 127, 128, 255], [0, 127 * 257, 128 * 257, 65535]):
        deep = read_mask(write(tmp_path / "deep.png", np.array([values], np.uint16)))
        assert deep.tolist() == [[False, False, True, True]]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp"])
def test_truncated_image_is_named(tmp_path, suffix):
    path = write(tmp_path / f"cut{suffix}", np.random.default_rng(0).integers(0, 256, (50, 60, 3)).astype(np.uint8))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UnreadableError, match=f"cut{suffix}: image is truncated or not an image; replace the file"):
        read_image(path)


def test_empty_and_missing_files_are_named(tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(UnreadableError, match=r"empty.png: image is empty; replace the file$"):
        read_image(tmp_path / "empty.png")
    with pytest.raises(UnreadableError, match=r"gone.png: mask cannot be read: No such file"):
        read_mask(tmp_path / "gone.png")
