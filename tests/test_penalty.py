from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from drawn_data import truncate_file, write_picture

from gainmtl_lib.efficientad.data import GREY_SHARE, DrawnImages, FolderImages, build_penalty, draw_leaves
from gainmtl_lib.efficientad.model import EfficientADSettings
from gainmtl_lib.readers import DataError, UnreadableError

SIZE = (64, 96)


def of_folder(folder, *, seed: int = 0, skip: bool = False) -> FolderImages:
    return FolderImages(folder, image_size=SIZE, seed=seed, skip_unreadable=skip)


def drawn(*, seed: int = 0) -> DrawnImages:
    return DrawnImages(image_size=SIZE, seed=seed)


def settings(**values) -> EfficientADSettings:
    return EfficientADSettings(teacher="random", image_size=SIZE, **values)


@pytest.fixture
def folder(tmp_path):
    """Plain pictures of 40, 80, … at several depths."""
    for number, name in enumerate(["a.png", "deep/b.png", "deep/deeper/c.jpg", "d.png", "e.bmp"], start=1):
        write_picture(tmp_path / "natural" / name, value=40 * number, size=(30, 50))
    return tmp_path / "natural"


def level(image: torch.Tensor) -> int:
    return round(float(image.mean()) * 255)


def test_pictures_are_what_the_network_wants(folder):
    for penalty in (of_folder(folder), drawn()):
        images = penalty.__getitems__([4, 9, 1])
        assert (images.shape, images.dtype) == ((3, 3, *SIZE), torch.float32)
        assert float(images.min()) >= 0
        assert float(images.max()) <= 1
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(penalty[9], images[1])


def test_number_and_seed_decide(folder):
    for make in (lambda seed: of_folder(folder, seed=seed), lambda seed: drawn(seed=seed)):
        first = make(0).__getitems__(list(range(10)))
        again = make(0)
        backwards = torch.stack([again[number] for number in reversed(range(10))]).flip(0)
        assert torch.equal(first, backwards)
        assert not torch.equal(first, make(1).__getitems__(list(range(10))))


def test_each_pass_shows_every_image_once_in_another_order(folder):
    penalty = of_folder(folder)
    passes = [[level(penalty[5 * k + place]) for place in range(5)] for k in range(4)]
    assert all(sorted(levels) == [40, 80, 120, 160, 200] for levels in passes)
    assert len({tuple(levels) for levels in passes}) > 1


def test_the_middle_is_kept(tmp_path):
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[10:30, 20:60] = 200
    cv2.imwrite(str(tmp_path / "a.png"), pixels)
    image = of_folder(tmp_path)[0]
    assert float(image[:, 2:-2, 2:-2].min()) * 255 == pytest.approx(200)
    assert image.shape == (3, *SIZE)


def test_a_share_of_the_pictures_is_grey(folder):
    colourful = np.zeros((20, 20, 3), np.uint8)
    colourful[..., 0] = 200
    for path in folder.rglob("*.*"):
        path.unlink()
    cv2.imwrite(str(folder / "blue.png"), colourful)
    for penalty in (of_folder(folder), drawn()):
        images = penalty.__getitems__(list(range(100)))
        grey = (images == images[:, :1]).flatten(1).all(1)
        assert abs(float(grey.float().mean()) - GREY_SHARE) < 0.12


def test_drawn_pictures_differ_and_have_edges_colours_and_textures():
    pictures = [draw_leaves(np.random.default_rng(seed), SIZE) for seed in range(8)]
    assert all((picture.shape, picture.dtype) == ((*SIZE, 3), np.uint8) for picture in pictures)
    assert all(picture.std() > 30 for picture in pictures)
    assert all(np.abs(np.diff(picture.astype(int), axis=1)).max() > 40 for picture in pictures)
    means = [tuple(picture.reshape(-1, 3).mean(0).round()) for picture in pictures]
    assert len(set(means)) == 8
    assert draw_leaves(np.random.default_rng(0), (32, 32)).shape == (32, 32, 3)


@pytest.mark.parametrize("make", ["missing", "empty", "file"])
def test_a_folder_without_images_is_named(tmp_path, make):
    where = tmp_path / "natural"
    if make == "empty":
        where.mkdir()
        (where / "notes.txt").write_text("no picture")
    if make == "file":
        where.write_text("")
    expected = "holds no images; penalty_images names a folder" if make == "empty" else "no such folder; penalty_images"
    with pytest.raises(DataError, match=f"natural: {expected}"):
        build_penalty(settings(penalty_images=where))


def test_a_file_that_cannot_be_decoded_stops_or_gives_its_turn_to_the_next(folder, caplog):
    truncate_file(folder / "a.png")
    strict = of_folder(folder)
    with pytest.raises(UnreadableError, match=r"a\.png: image is truncated .*skip_unreadable: true"):
        strict.__getitems__(list(range(5)))
    levels = [level(of_folder(folder, skip=True)[number]) for number in range(5)]
    assert set(levels) == {80, 120, 160, 200}
    assert "left out: " in caplog.text
    for path in folder.rglob("*.*"):
        path.write_bytes(b"junk")
    with pytest.raises(DataError, match="natural: none of its 5 images can be decoded"):
        of_folder(folder, skip=True)[0]


def test_the_record_says_where_the_pictures_come_from(folder):
    assert build_penalty(settings(penalty_images=folder)).text == "5 natural images of natural"
    assert "not natural images" in build_penalty(settings()).text


def test_the_digest_follows_the_list_of_files(folder):
    first = of_folder(folder).digest
    assert first == of_folder(folder, seed=1).digest
    write_picture(folder / "more.png")
    assert of_folder(folder).digest != first
    assert drawn().digest == ""
