"""From the table to batches: what a batch holds, what an epoch depends on, edits, augmentation, fewer and coarser masks."""

import math
import shutil
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import cv2
import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
from drawn_data import truncate_file, write_ball_screw, write_generic, write_mask, write_picture
from PIL import Image
from tiny import tiny_data

from gainmtl_lib import labels
from gainmtl_lib.dataset import (
    VISIBLE,
    Augmentation,
    Batch,
    GainDataModule,
    _left_to_the_group,
    build_samples,
    build_test_samples,
    coarser_mask,
    cropped,
    load_picture,
    with_mask_share,
)  # fmt: skip
from gainmtl_lib.edits.counterfactuals import ImageCounterfactuals
from gainmtl_lib.findings import DataError
from gainmtl_lib.readers import data_digest, read_samples
from gainmtl_lib.settings import Settings, SettingsError

SIZE = (24, 32)
STILL = dict(hflip_prob=0.0, vflip_prob=0.0, rotate90_prob=0.0, color_jitter_prob=0.0, gaussian_noise_prob=0.0)


def module(root: Path, **options) -> GainDataModule:
    samples = read_samples(root, dataset_type="generic")
    return tiny_data(samples, **{**dict(image_size=SIZE, batch_size=4, seed=7), **options})


def epoch_of(data: GainDataModule, epoch: int) -> list[Batch]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)  # type: ignore[union-attr]
    return list(loader)


def equal(first: list[Batch], second: list[Batch]) -> bool:
    pairs = zip(first, second, strict=True)
    return all(torch.equal(a, b) for one, other in pairs for a, b in zip(one, other, strict=True))


def test_a_batch_is_what_the_record_says(generic):
    data = module(generic)
    batch = next(iter(data.loader("train")))
    assert (batch.images.shape, batch.images.dtype) == ((4, 3, *SIZE), torch.float32)
    assert 0 <= batch.images.min() < batch.images.max() <= 1
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert (batch.labels.dtype, batch.has_mask.dtype, batch.index.dtype) == (torch.int64, torch.bool, torch.int64)
    assert data.samples.iloc[batch.index.tolist()]["label"].tolist() == batch.labels.tolist()
    assert batch.has_mask.tolist() == (batch.labels == 1).tolist()
    quarters = torch.zeros((4, 1, *SIZE))
    quarters[:, :, :12, :16] = batch.labels[:, None, None, None]
    assert torch.equal(batch.masks, quarters)


def test_an_epoch_depends_on_seed_and_epoch_alone(generic):
    data, on_disk = module(generic), module(generic, cache_images=False)
    first = epoch_of(data, 1)
    epoch_of(data, 0)
    torch.manual_seed(123)
    before = torch.get_rng_state()
    assert equal(epoch_of(data, 1), first), "as after a resume"
    assert torch.equal(torch.get_rng_state(), before), "the model's own draws are left alone"
    assert equal(epoch_of(on_disk, 1), first) and not any(on_disk.dataset.cached)
    assert equal(epoch_of(module(generic, num_workers=2), 1), first)
    assert not equal(epoch_of(data, 2), first) and not equal(epoch_of(module(generic, seed=8), 1), first)
    rows, model = [], L.LightningModule()
    model.training_step = lambda batch, batch_idx: rows.append(batch.index.tolist())
    model.configure_optimizers = lambda: None
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    L.Trainer(max_epochs=2, accelerator="cpu", limit_val_batches=0, **quiet).fit(model, datamodule=data)
    assert rows == [batch.index.tolist() for epoch in (0, 1) for batch in epoch_of(data, epoch)], "Lightning tells it"


def test_training_rows_are_shuffled_and_augmented_and_other_splits_come_in_order_as_they_are(generic):
    data = module(generic, batch_size=2)
    rows = torch.cat([batch.index for batch in epoch_of(data, 0)]).tolist()
    assert sorted(rows) == data.rows("train") != rows
    assert len({data.dataset[key].images.numpy().tobytes() for key in (rows[0], *((k, rows[0]) for k in range(8)))}) > 2
    for split, loader in (("val", data.val_dataloader()), ("test", data.loader("test"))):
        assert torch.cat([batch.index for batch in loader]).tolist() == data.rows(split) == sorted(data.rows(split))
    with pytest.raises(DataError, match="no image is in split 'test_shift'; the data has test, train, val"):
        data.loader("test_shift")
    tiled = module(generic, batch_size=4, image_size=(64, 64), tile_size=(32, 64))  # two tiles a picture
    assert [len(batch.images) for batch in tiled.loader("test")] == [2, 2, 2]
    for batch_size, sizes in ((5, [5]), (4, [4, 2]), (1, [1] * 6)):  # a last batch of one is dropped in training
        data = module(generic, batch_size=batch_size)
        assert [len(batch.labels) for batch in epoch_of(data, 0)] == sizes
        assert sum(len(batch.labels) for batch in data.loader("train")) == 6


@pytest.mark.parametrize("cache", [True, False])
def test_masks_of_the_training_are_those_that_show_a_defect(generic, cache, caplog):
    (generic / "masks/train/defective/train_d0.png").unlink()
    write_mask(generic / "masks/train/defective/train_d1.png", box=(slice(0, 0), slice(0, 0)))
    write_mask(generic / "masks/train/defective/train_d2.png", size=(24, 32))  # another size: fitted
    data = module(generic, cache_images=cache)
    digest = data.digest
    assert digest == data_digest(data.samples)
    data.setup("fit")
    assert "train_d1.png: mask holds no defect pixel; treated as missing" in caplog.text
    assert data.samples["mask"].notna().sum() == 7 and data.samples["mask"].iloc[4] is None
    batch = next(iter(data.loader("train")))
    assert batch.labels[:3].tolist() == [1, 1, 1] and batch.has_mask[:3].tolist() == [False, False, True]
    assert batch.masks[:3].sum(dim=(1, 2, 3)).tolist() == [0, 0, 192]
    assert data.digest == digest and data.class_counts == (3, 3)
    write_mask(generic / "masks/train/defective/train_d2.png", size=(12, 12))
    with pytest.raises(
        DataError, match=r"train_d2.png: mask is 12x12 \(height x width\), its image .* 12x16; expected"
    ):
        module(generic, skip_unreadable=True, cache_images=cache).setup("fit")


def test_guided_strategies_are_not_trained_without_a_mask_unless_asked_to(generic):
    """A run of S2 to S6 without masks is one of S1 that says it looked at the defect."""
    masks = generic / "masks/train/defective"
    (masks / "train_d0.png").unlink()
    for number in (1, 2):
        write_mask(masks / f"train_d{number}.png", box=(slice(0, 0), slice(0, 0)))
    samples = read_samples(generic, dataset_type="generic")

    def fitted(strategy: str, stage: str = "fit", **values) -> None:
        GainDataModule(Settings(strategy=strategy, image_size=32, **values), samples).setup(stage)

    for strategy in ("S2", "S3", "S4", "S5", "S6"):
        with pytest.raises(
            DataError, match=rf"strategy {strategy} learns from defect masks .*and none is in use"
        ) as caught:
            fitted(strategy)
    told = (
        "of 3 defective training images 1 have no mask file, and 2 masks hold no defect pixel; see gainmtl data check"
    )
    assert told in str(caught.value) and str(caught.value).endswith(
        "allow_no_masks: true trains the classification alone"
    )
    fitted("S1")
    fitted("S5", allow_no_masks=True)
    fitted("S5", mask_share=0.0)
    fitted("S5", "test")  # nothing is learned


def test_masks_of_the_background_are_found_and_inverted_when_told(generic, tmp_path, caplog):
    paths = sorted((generic / "masks").rglob("*.png"))
    for path in paths:
        image = 255 - cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        path.write_bytes(cv2.imencode(".png", image)[1].tobytes())
    with pytest.raises(
        DataError, match=r"9 of 9 masks mark more than half of their picture, such as .*; set mask_marks:"
    ):
        module(generic).setup("fit")
    module(generic, mask_marks="defect").setup("fit")
    assert "they are left out of the scores of agreement" in caplog.text
    digests = set()
    for outputs in ("first", "first", "second"):
        its = Settings(data_root=generic, mask_marks="background", outputs_dir=tmp_path / outputs, image_size=32)
        data = tiny_data(labels.with_labels(read_samples(generic, dataset_type="generic"), its), image_size=SIZE)
        data.setup("fit")
        defects = [batch.masks[batch.labels == 1] for batch in data.loader("train")]
        assert torch.cat(defects).mean() == 0.25
        digests.add(data.digest)
    assert len(digests) == 1
    for path in paths[:5]:
        write_mask(path)
    caplog.clear()
    module(generic).setup("fit")
    assert "4 of 9 masks mark more than half of their picture" in caplog.text
    assert "they are left out of training and of the scores of agreement; mask_marks: defect takes" in caplog.text
    for cache in (False, True):
        assert module(generic, cache_images=cache).dataset.has_mask.sum() == 5
        assert module(generic, cache_images=cache, mask_marks="defect").dataset.has_mask.sum() == 9
    with pytest.raises(SettingsError, match="mask_marks is 'background', but with label_kind 'box' masks are drawn"):
        Settings(mask_marks="background", label_kind="box")


@pytest.mark.parametrize("tag", [6, 8])
def test_a_mask_in_the_stored_frame_of_a_picture_with_an_orientation_tag_is_turned(tmp_path, tag):
    picture, mask = Image.fromarray(np.zeros((12, 16, 3), np.uint8)), np.zeros((12, 16), np.uint8)
    mask[0, :5] = 255
    exif = picture.getexif()
    exif[0x0112] = tag
    picture.save(tmp_path / "a.jpg", exif=exif)
    Image.fromarray(mask).save(tmp_path / "m.png")
    shown = load_picture(str(tmp_path / "a.jpg"), str(tmp_path / "m.png"), image_size=(32, 32), resize="letterbox")
    upright = np.rot90(mask > 0, -1 if tag == 6 else 1)
    np.testing.assert_array_equal(shown.without_bars[1], labels.resize_mask(upright, (32, 24), "squash"))


def test_pictures_that_the_memory_cannot_hold_are_decoded_each_time(generic, monkeypatch, caplog):
    needed, free = SIZE[0] * SIZE[1] * (3 * 18 + 9), SimpleNamespace()
    monkeypatch.setattr("gainmtl_lib.dataset.psutil.virtual_memory", lambda: free)
    free.available = 4 * needed
    kept = module(generic)
    assert all(kept.dataset.cached) and not caplog.text
    monkeypatch.setenv("GAINMTL_SIDE_BY_SIDE", "3")  # each of whom keeps as much
    other = module(generic)
    assert not any(other.dataset.cached) and "they are decoded each time" in caplog.text
    free.available = 6 * needed
    assert all(module(generic).dataset.cached)
    assert equal(epoch_of(other, 1), epoch_of(kept, 1))


@pytest.mark.parametrize(("files", "left"), [
    ({"memory.max": "max", "memory.current": "7"}, math.inf),
    ({"memory.max": "100", "memory.current": "7"}, 93),
    ({"memory/memory.limit_in_bytes": "100", "memory/memory.usage_in_bytes": "60"}, 40),
    ({}, math.inf),
])  # fmt: skip
def test_what_a_container_or_a_job_may_take_counts_as_free(tmp_path, files, left):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    assert _left_to_the_group(tmp_path) == left


@pytest.mark.parametrize("cache", [True, False])
def test_unreadable_files_are_all_named_or_left_out_when_asked(generic, cache, caplog):
    truncate_file(generic / "images/train/normal/train_n0.png")
    truncate_file(generic / "masks/train/defective/train_d0.png")
    with pytest.raises(DataError, match=r"train_n0.png: image is truncated or not an image") as caught:
        module(generic, cache_images=cache).setup("fit")
    assert "train_d0.png" in str(caught.value) and "leave it out with skip_unreadable: true" in str(caught.value)
    data = module(generic, cache_images=cache, skip_unreadable=True)
    data.setup("fit")
    assert "left out" in caplog.text and "train_n0.png" in caplog.text
    assert len(data.samples) == 16 and data.class_counts == (2, 2)
    for batch in data.loader("train"):
        assert data.samples["label"].iloc[batch.index.tolist()].tolist() == batch.labels.tolist()
        assert torch.equal(batch.masks.sum(dim=(1, 2, 3)), 192.0 * batch.labels)
    for number in range(3):
        truncate_file(generic / f"images/train/normal/train_n{number}.png")
    with pytest.raises(DataError, match="the training split has 0 normal and 2 defective images; needs both"):
        module(generic, skip_unreadable=True).setup("fit")


def test_external_masks_keep_their_values_and_are_missing_ambiguous_or_do_not_fit(generic, tmp_path):
    maps = tmp_path / "maps"
    for name, value in (("normal/test_n0", 51), ("normal/test_n1", 0), ("normal/test_n2", 255)):
        write_picture(tmp_path / f"values/{name}.png", value=value)
    for number in range(3):
        write_picture(tmp_path / f"values/test_d{number}_mask.png", value=102, size=(24, 32))
    masks = module(generic).external_masks("test", tmp_path / "values")
    assert (masks.shape, masks.dtype) == ((6, 1, *SIZE), torch.float32)
    assert masks.mean(dim=(1, 2, 3)).tolist() == pytest.approx([0.4, 0.4, 0.4, 0.2, 0.0, 1.0])

    for number, name in enumerate(("test_d0_GT.png", "TEST_D1.png", "test_d2.png.png")):  # names and forms as of masks
        (tmp_path / f"values/test_d{number}_mask.png").unlink()
        write_picture(tmp_path / f"values/{name}", value=1)
    assert module(generic).external_masks("test", tmp_path / "values").mean(dim=(1, 2, 3)).tolist()[:3] == [1, 1, 1]

    def refused(message: str) -> None:
        with pytest.raises(DataError, match=message):
            module(generic).external_masks("test", maps)

    refused(r"maps: no such folder; external_mask_dir holds one mask per image")
    write_picture(maps / "test_d1.png", value=9)
    refused(r"has no mask for .*test_d0.png; expected defective/test_d0.png or")
    write_picture(maps / "test_d0.png", size=(20, 16), value=9)
    refused(r"test_d0.png: mask is 20x16 \(height x width\), its image .* 12x16; expected")
    write_picture(generic / "images/test/normal/test_d0.png")
    refused(r"several images have the stem test_d0; .* as defective/test_d0.png")


@pytest.fixture(scope="module")
def marked(tmp_path_factory) -> Path:
    """Eight grainy pictures per class and split; the defective ones have a dark box of 8 pixels, and a mask."""
    root, rng = tmp_path_factory.mktemp("marked"), np.random.default_rng(0)
    for split, number in ((split, number) for split in ("train", "val", "test") for number in range(8)):
        box = (slice(4 + 3 * number, 12 + 3 * number), slice(20, 28))
        write_mask(root / f"masks/{split}/defective/{split}_d{number}.png", size=(40, 40), box=box)
        for kind in ("normal", "defective"):
            pixels = rng.normal(150, 6, (40, 40, 1)).repeat(3, axis=2)
            pixels[box] -= 70 * (kind == "defective")
            path = write_picture(root / f"images/{split}/{kind}/{split}_{kind[0]}{number}.png")
            cv2.imwrite(str(path), pixels.clip(0, 255).astype(np.uint8))
    return root


def edited(root: Path, **options) -> GainDataModule:
    return module(root, image_size=(40, 40), image_counterfactual=1.0, **options)


def test_edited_pictures_have_their_labels_and_masks_follow_seed_and_epoch_and_are_augmented_after(marked):
    data = edited(marked, **STILL)
    kinds, labels = set(), []
    for epoch in range(10):
        for batch in epoch_of(data, epoch):
            labels += batch.labels.tolist()
            for image, label, mask, has_mask, row in zip(*batch, strict=True):
                drawn = data.counterfactuals.draw(epoch, int(row))
                if drawn is None or drawn.edit is None:
                    continue
                kinds.add(drawn.kind)
                assert int(label) == drawn.edit.label == int(has_mask)
                assert np.array_equal(mask[0].numpy() > 0, drawn.edit.mask)
                assert np.array_equal((image.permute(1, 2, 0) * 255).round().byte().numpy(), drawn.edit.image)
    assert kinds == {"heal", "paste", "heal_spot", "heal_beside", "paste_clean", "repaste"}
    assert np.mean(labels) == pytest.approx(0.5, abs=0.08), "the classes stay as large as they are"
    data = edited(marked)
    first = epoch_of(data, 1)
    assert not equal(epoch_of(data, 2), first) and not equal(epoch_of(edited(marked, seed=8), 1), first)
    assert equal(epoch_of(edited(marked, cache_images=False, num_workers=1), 1), first)
    drawn = {row: data.counterfactuals.draw(1, row) for row in data.rows("train")}
    row, edit = next((row, each.edit) for row, each in drawn.items() if each is not None and each.kind == "paste")
    image, mask = data.dataset.augmentation(edit.image, edit.mask.astype(np.uint8), epoch=1, index=row)
    shown = data.dataset[(1, row)]
    assert np.array_equal(shown.masks[0, 0].numpy(), mask)
    assert torch.equal(shown.images[0], torch.from_numpy(image).permute(2, 0, 1) / 255)
    one = edited(marked, mask_share=0.05)  # the one mask serves all defects, and turns differently each time
    (defect,) = (row for row, _ in one.training_masks())
    batches = [batch for epoch in range(3) for batch in epoch_of(one, epoch)]
    shown = [image.numpy().tobytes() for each in batches for image in each.images[each.index == defect]]
    assert 8 < len(shown) == len(set(shown))


def test_only_training_pictures_are_edited(marked, monkeypatch):
    tried = []
    monkeypatch.setattr(ImageCounterfactuals, "check", lambda self: tried.append(self.share))
    plain, data = module(marked, image_size=(40, 40)), edited(marked)
    data.setup("test")
    assert not tried
    for _ in range(2):  # Lightning calls it once more
        data.setup("fit")
    assert tried == [1.0] and data.counterfactuals.rows == data.rows("train")
    assert all(equal(list(data.loader(split)), list(plain.loader(split))) for split in ("train", "val", "test"))
    assert plain.counterfactuals is None and list(plain.pasted_masks()) == []
    assert [(mask.shape, mask.dtype) for mask in data.pasted_masks()] == [((1, 40, 40), torch.float32)] * 5
    monkeypatch.undo()
    with pytest.raises(DataError, match=r"image_counterfactual is 1, but none of the 8 .* has a mask in use"):
        edited(marked, mask_share=0.0).setup("fit")


def augmented(size: tuple[int, int] = (8, 8), epoch: int = 0, index: int = 0, **values: float) -> tuple:
    """An image whose red channel is the mask, that mask, and both after an augmentation."""
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 2, size).astype(np.uint8)
    image = np.stack([mask * 255, *rng.integers(0, 256, (2, *size))], axis=-1).astype(np.uint8)
    augment = Augmentation(Settings().model_copy(update=STILL | {"image_size": size} | values))
    return image, mask, *augment(image, mask, epoch=epoch, index=index)


def test_image_and_mask_move_together_in_all_eight_ways_by_probabilities_seed_epoch_and_index():
    turns, ways = dict(hflip_prob=0.5, vflip_prob=0.5, rotate90_prob=0.5), set()
    for index in range(100):
        *_, moved, moved_mask = augmented(index=index, **turns)
        ways.add(moved.tobytes())
        assert np.array_equal(moved[..., 0], moved_mask * 255)
    assert len(ways) == 8
    for index in range(8):  # inputs that are not square are turned by half only
        image, mask, turned, turned_mask = augmented((8, 12), index=index, rotate90_prob=1.0)
        assert np.array_equal(turned, image[::-1, ::-1]) and np.array_equal(turned_mask, mask[::-1, ::-1])

    image, mask, same, same_mask = augmented()
    assert np.array_equal(same, image) and np.array_equal(same_mask, mask)
    assert np.array_equal(augmented(hflip_prob=1.0)[2], image[:, ::-1])
    *_, noisy, same = augmented(color_jitter_prob=1.0, gaussian_noise_prob=1.0)
    assert not np.array_equal(noisy, image) and noisy.dtype == np.uint8 and np.array_equal(same, mask)
    values = dict(hflip_prob=0.5, rotate90_prob=0.5, color_jitter_prob=1.0, gaussian_noise_prob=1.0)
    wanted = augmented(epoch=2, index=3, **values)[2]
    assert np.array_equal(augmented(epoch=2, index=3, **values)[2], wanted)
    for other in (dict(epoch=3, index=3), dict(epoch=2, index=4), dict(epoch=2, index=3, seed=8)):
        assert not np.array_equal(augmented(**other, **values)[2], wanted)


@pytest.mark.parametrize("box", [(40, 60, 4, 4), (0, 0, 1, 2), (10, 20, 50, 70)])
def test_half_of_the_crops_are_around_the_defect_and_each_is_labelled_by_what_it_shows(box):
    mask, size, rng = boxes(box, size=(64, 96)).astype(np.uint8), (32, 48), np.random.default_rng(0)
    windows = {(y, x): mask[y : y + 32, x : x + 48] for y in range(33) for x in range(49)}  # every one there is
    enough = min(VISIBLE, mask.sum())
    anywhere = np.mean([window.any() for window in windows.values()])
    places, holding = set(), 0
    for _ in range(1000):
        (rows, columns), part = cropped(size, (64, 96), mask, rng)
        window = windows[rows.start, columns.start]  # inside
        assert (rows.stop - rows.start, columns.stop - columns.start) == size
        assert (part is None) == (window.sum() < enough) and (part is None or np.array_equal(part, window))
        holding += window.any()
        places.add((rows.start, columns.start))
    assert holding / 1000 == pytest.approx(0.5 + 0.5 * anywhere, abs=0.05) and len(places) > 200
    assert cropped((64, 96), (64, 96), mask, rng)[0] == (slice(0, 64), slice(0, 96))
    normal = [cropped(size, (64, 96), None, rng) for _ in range(300)]
    assert all(part is None for _, part in normal) and len({place[0].start for place, _ in normal}) == 33


def test_training_shows_crops_and_validation_whole_pictures(marked):
    asked = dict(image_size=(40, 40), crop_size=(16, 24), batch_size=16, **STILL)
    data = module(marked, **asked)
    first, labels = epoch_of(data, 0), []
    for batch in (batch for epoch in range(6) for batch in epoch_of(data, epoch)):
        assert batch.images.shape[1:] == (3, 16, 24) and batch.masks.shape[1:] == (1, 16, 24)
        assert torch.equal(batch.labels == 1, batch.has_mask)
        for image, label, mask, row in zip(batch.images, batch.labels, batch.masks, batch.index):
            dark = (image.mean(0) < 0.45).sum()  # the defect's pixels
            assert (mask.sum() >= VISIBLE) == bool(label) == (dark >= VISIBLE)
            labels += [int(label)] if data.samples["label"].iloc[int(row)] else []
    assert 0.5 < np.mean(labels) < 0.95, "some crops of a defective picture show a normal one"
    assert equal(epoch_of(data, 0), first) and not equal(epoch_of(data, 1), first)
    assert equal(epoch_of(module(marked, **asked, num_workers=1), 0), first)
    assert {batch.images.shape[1:] for batch in data.val_dataloader()} == {(3, 40, 40)}
    kinds = {bool(batch.labels[k]) for batch in epoch_of(edited(marked, crop_size=(16, 24)), 0) for k in range(2)}
    assert kinds == {True, False}


def test_of_a_defect_without_a_mask_no_crop_is_shown_nor_edited(marked):
    data = edited(marked, crop_size=(24, 24), mask_share=0.25)
    data.setup("fit")
    shown = torch.cat([batch.index for batch in epoch_of(data, 0)]).tolist()
    annotated = [row for row in data.rows("train") if data.dataset.has_mask[row]]
    assert len(annotated) == 2 and sorted(shown) == sorted(annotated + data.counterfactuals.normals)
    assert data.class_counts == (8, 2) and data.counterfactuals.defectives == annotated
    assert module(marked, mask_share=0.25).class_counts == (8, 8)
    without = "has 8 normal and 0 defective images with a mask, which crop_size asks for; needs both"
    for share in (0.0, 0.5):
        with pytest.raises(DataError, match=without):
            module(marked, crop_size=(24, 24), mask_share=0.0, image_counterfactual=share).setup("fit")


def test_s6s_bank_holds_crops_where_training_shows_crops(marked):
    data = module(marked, image_size=(40, 40), crop_size=(16, 24), image_counterfactual=0.5)
    for masks in ([mask for _, mask in data.training_masks()], list(data.pasted_masks())):
        assert masks and {mask.shape for mask in masks} == {(1, 16, 24)}
        assert all(VISIBLE <= mask.sum() <= 64 for mask in masks), "as many pixels to a cell as in the pictures shown"
    again = [mask for _, mask in module(marked, image_size=(40, 40), crop_size=(16, 24)).training_masks()]
    own = [mask for _, mask in data.training_masks()]
    assert all(torch.equal(*pair) for pair in zip(own, again, strict=True))
    assert len({tuple(mask.nonzero()[0].tolist()) for mask in own}) > 4, "at all places, as in training"
    corners = np.zeros((40, 40), np.uint8)
    corners[::39, ::39] = 1  # of which no crop ever shows enough
    assert list(data._as_cropped(corners, 0)) == []


def kept(share: float, seed: int = 0) -> set[str]:
    """Names of the masks kept of 15 scratches and 5 dents in training."""
    rows = [("scratch", 1, f"s{k}", "train") for k in range(15)] + [("dent", 1, f"d{k}", "train") for k in range(5)]
    rows += [("dent", 1, None, "train"), ("normal", 0, None, "train"), ("dent", 1, "t", "test")]
    table = pd.DataFrame(rows, columns=["defect_type", "label", "mask", "split"], dtype=object).astype({"label": int})
    left = with_mask_share(table, share, seed=seed)
    pd.testing.assert_frame_equal(left.drop(columns="mask"), table.drop(columns="mask"))
    assert {"t", None} <= set(left["mask"]), "masks of other splits stay"
    return set(left["mask"]) - {"t", None}


def test_shares_of_masks_are_nested_drawn_by_the_seed_and_alike_in_each_type():
    counts = {0.0: 0, 0.001: 1, 0.1: 2, 0.25: 5, 0.5: 10, 0.9: 18, 1.0: 20}
    assert {share: len(kept(share)) for share in counts} == counts, "at least one is kept, unless none is asked for"
    assert all(less <= more for less, more in pairwise(kept(share) for share in counts))
    assert kept(0.25) != kept(0.25, seed=1)
    for share, scratches in ((0.2, 3), (0.4, 6), (0.6, 9)):
        assert all(sum(name[0] == "s" for name in kept(share, seed)) == scratches for seed in range(5))


@pytest.mark.parametrize("cache", [True, False])
def test_training_masks_are_fewer_or_coarser_and_others_stay(marked, cache):
    def data(**options):
        return module(marked, image_size=(40, 40), cache_images=cache, batch_size=16, **options)

    full, few = data(), data(mask_share=0.25)
    coarse, shifted = data(mask_quality="dilated"), data(mask_quality="shifted")
    assert [len(list(each.training_masks())) for each in (full, few, data(mask_share=0.0))] == [8, 2, 0]
    (train,), (test,) = few.loader("train"), few.loader("test")
    assert few.samples["mask"].notna().sum() == 18 and train.has_mask.sum() == 2
    assert train.labels.sum() == test.has_mask.sum() == 8 and torch.equal(train.masks.flatten(1).any(1), train.has_mask)
    for (_, mask), (_, exact) in zip(coarse.training_masks(), full.training_masks(), strict=True):
        assert exact.sum() == 64 and mask.sum() > 2 * exact.sum() and (mask >= exact).all()
    assert all(equal(list(coarse.loader(split)), list(full.loader(split))) for split in ("val", "test"))
    wanted = list(shifted.loader("train"))
    assert equal(list(data(mask_quality="shifted", seed=9).loader("train")), wanted)
    assert not equal(list(data(mask_quality="shifted", split_seed=1).loader("train")), wanted)


def boxes(*places: tuple[int, int, int, int], size: tuple[int, int] = (20, 30)) -> np.ndarray:
    """Boxes of (top, left, height, width)."""
    mask = np.zeros(size, dtype=bool)
    for top, left, height, width in places:
        mask[top : top + height, left : left + width] = True
    return mask


def coarser(mask: np.ndarray, quality: str, seed: int = 0) -> np.ndarray:
    mask.flags.writeable = False
    result = coarser_mask(mask, quality, np.random.default_rng(seed))
    assert result.dtype == bool and result.shape == mask.shape
    return result


def test_where_a_letterboxed_picture_lies_is_known_and_coarser_masks_stay_off_the_bars(generic):
    large = write_picture(generic / "images/train/normal/large.jpg", size=(100, 50))
    for quality in ("exact", "box", "dilated", "shifted"):
        dataset = module(generic, resize="letterbox", image_size=(32, 32), mask_quality=quality).dataset
        for row, path in enumerate(dataset.paths):  # 100 x 50 becomes 32 x 16, 12 x 16 becomes 24 x 32
            place = (slice(0, 32), slice(8, 24)) if path == str(large) else (slice(4, 28), slice(0, 32))
            picture = dataset.stored(row)
            image, mask = picture.without_bars
            assert picture.place == dataset.places[row] == place and np.array_equal(image, picture.image[place])
            assert mask.sum() == (0 if picture.mask is None else picture.mask.sum())
            assert mask.any() == bool(dataset.has_mask[row])
        assert not coarser(boxes(), quality).any()


def test_boxes_hold_their_pieces_which_touching_are_one_and_dilation_grows_each_by_half_its_size():
    ring = boxes((2, 3, 6, 8)) & ~boxes((4, 5, 2, 4))
    assert np.array_equal(coarser(ring, "exact"), ring) and np.array_equal(coarser(ring, "box"), boxes((2, 3, 6, 8)))
    angle_and_dot = boxes((2, 2, 1, 8), (3, 2, 7, 1), (5, 5, 2, 2))  # an angle whose box holds the dot
    assert np.array_equal(coarser(angle_and_dot, "box"), boxes((2, 2, 8, 8)))
    angle = boxes((2, 2, 1, 6), (3, 2, 3, 1))  # its box ends where the other begins
    assert np.array_equal(coarser(angle | boxes((6, 7, 2, 8)), "box"), boxes((2, 2, 6, 13)))
    two = boxes((6, 4, 8, 8), (2, 27, 1, 1))
    assert np.array_equal(coarser(two, "box"), two)
    grown = coarser(two, "dilated")
    large = np.argwhere(grown[:, :20])
    assert large.min(0).tolist() == [2, 0] and large.max(0).tolist() == [17, 15]
    assert not grown[2, 0] and 3 * 64 < grown[:, :20].sum() <= 4 * 64, "by a disc: the corners are round"
    assert grown[:, 20:].sum() == 5, "a single pixel grows by one"


def test_a_shifted_mask_lies_beside_a_compact_defect_in_a_direction_of_the_seed():
    mask, places = boxes((18, 18, 6, 6), size=(40, 40)), set()
    for seed in range(20):
        moved = coarser(mask, "shifted", seed)
        places.add(moved.tobytes())
        centre = np.argwhere(moved).mean(axis=0) - np.argwhere(mask).mean(axis=0)
        assert moved.sum() == 36 and np.hypot(*centre) == pytest.approx(6, abs=0.75) and (moved & mask).sum() <= 9
    assert len(places) > 12
    for large in (boxes((0, 0, 3, 3)), boxes((0, 0, 20, 30)), boxes((19, 0, 1, 30))):
        assert all(coarser(large, "shifted", seed).sum() >= large.sum() / 2 for seed in range(10))


# --- Pictures to be judged alone


def test_of_a_test_folder_nothing_is_split_and_a_copy_of_the_runs_data_is_split_as_it_was(tmp_path):
    alone = write_generic(tmp_path / "alone", splits=("test", "train"))
    settings = Settings(data_root=alone, val_ratio=0.4)
    assert build_test_samples(settings)["image"].str.contains("/test/").sum() == len(build_test_samples(settings)) == 6
    shutil.rmtree(alone / "images/test/normal")  # one class is enough
    assert build_test_samples(settings)["label"].tolist() == [1, 1, 1]
    shutil.rmtree(alone / "images/test")
    told = r"alone: no picture is in a test split \(6 in train\); put the pictures to be judged into images/test"
    with pytest.raises(DataError, match=told):
        build_test_samples(settings)

    screws = write_ball_screw(tmp_path / "screws", positions=6, moments=4)  # a layout without folders of splits
    settings = Settings(data_root=screws, dataset_type="ball_screw", val_ratio=0.4)
    as_trained = build_samples(settings)
    assert set(build_test_samples(settings)["split"]) == {"test"} < set(as_trained["split"])
    shutil.copytree(screws, tmp_path / "copy")
    copied = build_test_samples(settings.changed(data_root=tmp_path / "copy"), digest=data_digest(as_trained))
    assert copied["split"].tolist() == as_trained["split"].tolist()
