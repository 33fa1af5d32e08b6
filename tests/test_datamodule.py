from __future__ import annotations

import logging
from pathlib import Path

import cv2
import lightning as L
import numpy as np
import pytest
import torch
from drawn_data import truncate_file, write_generic, write_mask, write_picture
from tiny import tiny_data

from gainmtl_lib.dataset import Batch, EpochSampler, GainDataModule
from gainmtl_lib.edits.counterfactuals import ImageCounterfactuals
from gainmtl_lib.readers import DataError, read_samples

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
    assert (batch.masks.shape, batch.masks.dtype) == ((4, 1, *SIZE), torch.float32)
    assert (batch.labels.dtype, batch.has_mask.dtype, batch.index.dtype) == (torch.int64, torch.bool, torch.int64)
    rows = data.samples.iloc[batch.index.tolist()]
    assert rows["label"].tolist() == batch.labels.tolist()
    assert batch.has_mask.tolist() == (batch.labels == 1).tolist()
    quarter = torch.zeros(SIZE)
    quarter[:12, :16] = 1
    for mask, label in zip(batch.masks, batch.labels, strict=True):
        assert torch.equal(mask[0], quarter * label)


def test_cached_or_not_the_batches_are_the_same(generic):
    cached, on_disk = module(generic), module(generic, cache_images=False)
    assert equal(epoch_of(cached, 3), epoch_of(on_disk, 3))
    assert equal(list(cached.loader("test")), list(on_disk.loader("test")))
    assert on_disk.dataset.images is None


def test_workers_change_nothing(generic):
    assert equal(epoch_of(module(generic), 2), epoch_of(module(generic, num_workers=2), 2))


def test_an_epoch_depends_on_seed_and_epoch_alone(generic):
    data = module(generic)
    first = epoch_of(data, 1)
    epoch_of(data, 0)
    torch.manual_seed(123)
    np.random.seed(5)  # noqa: NPY002
    assert equal(epoch_of(data, 1), first), "as after a resume"
    assert not equal(epoch_of(data, 2), first)
    assert not equal(epoch_of(module(generic, seed=8), 1), first)


def test_loaders_leave_the_global_random_numbers_alone(generic):
    data = module(generic)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    epoch_of(data, 0)
    list(data.loader("val"))
    assert torch.equal(torch.get_rng_state(), before)


def test_every_training_row_once_shuffled_and_augmented(generic):
    data = module(generic, batch_size=2)
    batches = epoch_of(data, 0)
    rows = torch.cat([batch.index for batch in batches]).tolist()
    assert sorted(rows) == data.rows("train")
    assert rows != sorted(rows)
    plain = data.dataset[rows[0]].images
    variants = {data.dataset[(epoch, rows[0])].images.numpy().tobytes() for epoch in range(8)}
    assert len(variants | {plain.numpy().tobytes()}) > 2


def test_other_splits_come_in_order_as_they_are(generic):
    data = module(generic)
    index = torch.cat([batch.index for batch in data.val_dataloader()])
    assert index.tolist() == data.rows("val") == sorted(data.rows("val"))
    assert torch.cat([batch.index for batch in data.test_dataloader()]).tolist() == data.rows("test")
    assert equal(list(data.loader("val")), list(data.loader("val")))


def test_without_augmentation_epochs_differ_in_order_only(generic):
    data = module(generic, **STILL)
    first = {int(b.index[k]): b.images[k] for b in epoch_of(data, 0) for k in range(len(b.index))}
    second = {int(b.index[k]): b.images[k] for b in epoch_of(data, 1) for k in range(len(b.index))}
    assert all(torch.equal(first[row], second[row]) for row in first)


@pytest.mark.parametrize(("batch_size", "sizes"), [(5, [5]), (4, [4, 2]), (1, [1] * 6), (6, [6])])
def test_a_last_batch_of_one_is_dropped_in_training(generic, batch_size, sizes):
    data = module(generic, batch_size=batch_size)
    assert [len(batch.labels) for batch in epoch_of(data, 0)] == sizes
    assert sum(len(batch.labels) for batch in data.loader("train")) == 6


def test_lightning_tells_the_sampler_the_epoch(generic):
    class Recorder(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)
            self.rows: list[list[int]] = []

        def training_step(self, batch, batch_idx):
            self.rows.append(batch.index.tolist())
            return self.layer(torch.ones(1, 1)).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    model, data = Recorder(), module(generic, batch_size=6)
    trainer = L.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    assert model.rows == [epoch_of(data, epoch)[0].index.tolist() for epoch in range(2)]


def test_sampler_gives_epoch_and_row():
    sampler = EpochSampler([4, 7, 9], seed=0)
    sampler.set_epoch(5)
    keys = list(sampler)
    assert len(sampler) == 3
    assert {epoch for epoch, _ in keys} == {5}
    assert sorted(row for _, row in keys) == [4, 7, 9]


def test_class_counts_and_training_masks(generic):
    data = module(generic)
    assert data.class_counts == (3, 3)
    for cached in (data, module(generic, cache_images=False)):
        masks = dict(cached.training_masks())
        assert list(cached.samples.loc[list(masks), "label"]) == [1, 1, 1]
        assert [(tuple(mask.shape), mask.sum().item()) for mask in masks.values()] == [((1, *SIZE), 192.0)] * 3
    (generic / "masks").rename(generic / "elsewhere")
    assert list(module(generic).training_masks()) == []


def test_defective_without_mask_or_with_an_empty_one_has_no_mask(generic, caplog):
    (generic / "masks/train/defective/train_d0.png").unlink()
    write_mask(generic / "masks/train/defective/train_d1.png", box=(slice(0, 0), slice(0, 0)))
    data = module(generic)
    assert data.samples["mask"].notna().sum() == 8
    data.setup("fit")
    assert "train_d1.png: mask holds no defect pixel; treated as missing" in caplog.text
    assert data.samples["mask"].notna().sum() == 7
    assert data.samples["mask"].iloc[4] is None
    batch = next(iter(data._loader(data.rows("train"), drop_last=False)))
    assert batch.labels[:3].tolist() == [1, 1, 1]
    assert batch.has_mask[:3].tolist() == [False, False, True]
    assert batch.masks[:2].sum() == 0


@pytest.mark.parametrize("cache", [True, False])
def test_unreadable_files_are_all_named(generic, cache):
    truncate_file(generic / "images/train/normal/train_n0.png")
    (generic / "images/test/defective/test_d1.png").write_text("no picture")
    data = module(generic, cache_images=cache)
    with pytest.raises(DataError, match=r"train_n0.png: image is truncated or not an image") as caught:
        data.setup("fit")
    assert "test_d1.png" in str(caught.value)
    assert "leave it out with skip_unreadable: true" in str(caught.value)


@pytest.mark.parametrize("cache", [True, False])
def test_unreadable_files_are_left_out_when_asked(generic, cache, caplog):
    truncate_file(generic / "images/train/normal/train_n0.png")
    truncate_file(generic / "masks/train/defective/train_d0.png")
    data = module(generic, cache_images=cache, skip_unreadable=True)
    data.setup("fit")
    assert "left out" in caplog.text
    assert "train_n0.png" in caplog.text
    assert len(data.samples) == 16
    assert data.class_counts == (2, 2)
    for batch in data.loader("train"):
        for row, label, mask in zip(batch.index.tolist(), batch.labels, batch.masks, strict=True):
            assert data.samples["label"][row] == label
            assert mask.sum() == 192 * label


def test_a_mask_of_another_aspect_ratio_is_an_error_even_then(generic):
    write_mask(generic / "masks/train/defective/train_d0.png", size=(12, 12))
    with pytest.raises(
        DataError, match=r"train_d0.png: mask is 12x12 \(height x width\), its image .* 12x16; expected"
    ):
        module(generic, skip_unreadable=True).setup("fit")


def test_a_mask_of_another_size_is_fitted(generic):
    write_mask(generic / "masks/train/defective/train_d0.png", size=(24, 32))
    data = module(generic)
    assert [mask.sum().item() for _, mask in data.training_masks()] == [192.0] * 3


def test_a_training_split_without_a_class(tmp_path):
    write_generic(tmp_path)
    for number in range(3):
        truncate_file(tmp_path / f"images/train/normal/train_n{number}.png")
    with pytest.raises(DataError, match="the training split has 0 normal and 3 defective images; needs both"):
        module(tmp_path, skip_unreadable=True).setup("fit")


def test_an_unknown_split_names_those_that_exist(generic):
    with pytest.raises(DataError, match="no image is in split 'test_shift'; the data has test, train, val"):
        module(generic).loader("test_shift")


def test_long_loads_show_that_they_are_alive(generic, caplog, monkeypatch):
    monkeypatch.setattr("gainmtl_lib.dataset.SECONDS_BETWEEN_LOG_LINES", 0.0)
    with caplog.at_level(logging.INFO, logger="gainmtl_lib"):
        module(generic).setup("fit")
    assert "decoded 9 of 18 images" in caplog.text
    assert "decoded 18 images in" in caplog.text


def test_pictures_of_any_size_and_kind_share_a_batch(tmp_path):
    write_generic(tmp_path)
    write_picture(tmp_path / "images/train/normal/large.jpg", size=(100, 90))
    data = module(tmp_path, resize="letterbox", batch_size=7)
    assert next(iter(data.loader("train"))).images.shape == (7, 3, *SIZE)


@pytest.mark.parametrize("cached", [True, False])
def test_where_a_letterboxed_picture_lies_is_known(tmp_path, cached):
    write_generic(tmp_path)
    write_picture(tmp_path / "images/train/normal/large.jpg", size=(100, 50))
    truncate_file(tmp_path / "images/train/normal/train_n1.png")
    data = module(tmp_path, resize="letterbox", cache_images=cached, skip_unreadable=True)
    for row, path in enumerate(data.dataset.paths):
        # 100 x 50 in 24 x 32 is 24 x 12, in the middle; 12 x 16 fills it.
        columns = slice(10, 22) if path.endswith("large.jpg") else slice(0, 32)
        picture = data.dataset.stored(row)
        assert picture.place == data.dataset.places[row] == (slice(0, 24), columns)
        image, mask = picture.without_bars
        assert np.array_equal(image, picture.image[:, columns]) and mask.shape == image.shape[:2]
        assert mask.any() == (picture.mask is not None)
    assert "large" in "".join(data.dataset.paths) and len(data.dataset.paths) == 18
    squashed = module(tmp_path, cache_images=cached, skip_unreadable=True).dataset
    assert {squashed.stored(row).image[squashed.places[row]].shape for row in range(18)} == {(*SIZE, 3)}


@pytest.mark.parametrize("quality", ["box", "dilated", "shifted"])
def test_coarser_masks_stay_off_the_bars(tmp_path, quality):
    """Pictures of 12 x 16 fill the rows 4 to 27 of 32; their defects lie in the upper left quarter."""
    write_generic(tmp_path)
    exact, coarse = (
        module(tmp_path, resize="letterbox", image_size=(32, 32), mask_quality=each).dataset
        for each in ("exact", quality)
    )
    rows = [row for row in range(len(exact)) if exact.has_mask[row]]
    assert len(rows) == 9
    for row in rows:
        mask = coarse.stored(row).mask
        assert mask.dtype == np.uint8 and mask.any() and not mask[:4].any() and not mask[28:].any()
        if quality != "box" and exact.in_training[row]:
            assert not np.array_equal(mask, exact.stored(row).mask)


# edited training pictures


def write_surface(
    path: Path, *, seed: int, box: tuple[slice, slice] | None = None, size: tuple[int, int] = (40, 40)
) -> None:
    """A grainy grey surface, with a dark box."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).normal(150, 6, (*size, 1)).repeat(3, axis=2)
    if box is not None:
        pixels[box] -= 70
    cv2.imwrite(str(path), pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture
def marked(tmp_path):
    """Eight pictures per class and split; the defective ones have a dark box of 8 pixels, and a mask."""
    for place, split in enumerate(("train", "val", "test")):
        for number in range(8):
            normal, defective = f"{split}_n{number}.png", f"{split}_d{number}.png"
            box = (slice(4 + 3 * number, 12 + 3 * number), slice(20, 28))
            write_surface(tmp_path / f"images/{split}/normal" / normal, seed=100 * place + number)
            write_surface(tmp_path / f"images/{split}/defective" / defective, seed=100 * place + 50 + number, box=box)
            write_mask(tmp_path / f"masks/{split}/defective" / defective, size=(40, 40), box=box)
    return tmp_path


def edited(root: Path, **options) -> GainDataModule:
    return module(root, **{**dict(image_size=(40, 40), image_counterfactual=1.0), **options})


def test_edited_pictures_come_with_their_labels_masks_and_rows(marked):
    data = edited(marked, **STILL)
    kinds = set()
    for epoch in range(6):
        for batch in epoch_of(data, epoch):
            for image, label, mask, has_mask, row in zip(*batch, strict=True):
                drawn = [each for each in (data.counterfactuals.draw(epoch, int(row)),) if each is not None]
                if not drawn or drawn[0].edit is None:
                    continue
                kinds.add(drawn[0].kind)
                edit = drawn[0].edit
                assert int(label) == edit.label == int(has_mask)
                assert np.array_equal(mask[0].numpy() > 0, edit.mask)
                pixels = (image.permute(1, 2, 0) * 255).round().byte().numpy()
                assert np.array_equal(pixels, edit.image)
    assert kinds == {"heal", "paste", "heal_spot", "heal_beside", "paste_clean", "repaste"}


def test_edits_come_before_the_augmentation_and_follow_seed_and_epoch(marked):
    data = edited(marked)
    first = epoch_of(data, 1)
    epoch_of(data, 0)
    assert equal(epoch_of(data, 1), first), "as after a resume"
    assert not equal(epoch_of(data, 2), first)
    assert not equal(epoch_of(edited(marked, seed=8), 1), first)
    row = next(
        row for row in data.rows("train") if (each := data.counterfactuals.draw(1, row)) and each.kind == "paste"
    )
    edit = data.counterfactuals.draw(1, row).edit
    image, mask = data.dataset.augmentation(edit.image, edit.mask.astype(np.uint8), seed=7, epoch=1, index=row)
    shown = data.dataset[(1, row)]
    assert np.array_equal(shown.masks[0, 0].numpy(), mask)
    assert torch.equal(shown.images[0], torch.from_numpy(image).permute(2, 0, 1) / 255)


def test_edits_are_the_same_from_disk_and_from_workers(marked):
    first = epoch_of(edited(marked), 2)
    assert equal(epoch_of(edited(marked, cache_images=False), 2), first)
    assert equal(epoch_of(edited(marked, num_workers=2), 2), first)
    assert equal(epoch_of(edited(marked, cache_images=False, num_workers=1), 2), first)


def test_only_training_pictures_are_edited(marked):
    plain, data = module(marked, image_size=(40, 40)), edited(marked)
    data.setup("fit")
    for split in ("train", "val", "test"):
        assert equal(list(data.loader(split)), list(plain.loader(split)))
    training = set(data.rows("train"))
    counterfactuals = data.counterfactuals
    assert set(counterfactuals.rows) == training
    assert {
        each.row for row in training for epoch in range(4) if (each := counterfactuals.draw(epoch, row))
    } <= training
    assert plain.counterfactuals is None and list(plain.pasted_masks()) == []
    assert dict(data.training_masks()).keys() == dict(plain.training_masks()).keys()


def test_edits_are_tried_once_before_training(marked, monkeypatch):
    tried = []
    monkeypatch.setattr(ImageCounterfactuals, "check", lambda self: tried.append(self.share))
    data = edited(marked)
    data.setup("test")
    assert not tried
    for _ in range(2):  # Lightning calls it once more
        data.setup("fit")
    assert tried == [1.0]


def test_the_classes_stay_as_large_as_they_are(marked):
    data = edited(marked)
    labels = torch.cat([batch.labels for epoch in range(10) for batch in epoch_of(data, epoch)])
    assert labels.float().mean().item() == pytest.approx(0.5, abs=0.08)
    assert data.class_counts == (8, 8)


def test_one_mask_serves_all_defects_and_turns_differently_each_time(marked):
    data = edited(marked, mask_share=0.05)
    ((row, _),) = data.training_masks()
    batches = [batch for epoch in range(3) for batch in epoch_of(data, epoch)]
    annotated = [(int(b.index[k]), b.images[k].numpy().tobytes()) for b in batches for k in range(len(b.index))
                 if b.has_mask[k] and data.samples["label"][int(b.index[k])] == 1]  # fmt: skip
    assert {index for index, _ in annotated} == {row}
    assert len(annotated) > 8 and len({image for _, image in annotated}) == len(annotated)


def test_pasted_masks_are_float_and_of_the_inputs_size(marked):
    masks = list(edited(marked).pasted_masks())
    assert len(masks) == 5  # 8 masks; an epoch with p = 1 shows 3.2 pasted and 4.8 as stored
    assert {(tuple(mask.shape), mask.dtype) for mask in masks} == {((1, 40, 40), torch.float32)}


def test_edits_without_a_mask_or_a_class_stop_the_training(marked):
    with pytest.raises(DataError, match=r"image_counterfactual is 1, but none of the 8 .* has a mask in use"):
        edited(marked, mask_share=0.0).setup("fit")
    data = edited(marked, mask_share=0.0)
    data.setup("test")
    assert len(list(data.loader("test"))) == 4
    for number in range(8):
        truncate_file(marked / f"images/train/normal/train_n{number}.png")
    with pytest.raises(
        DataError, match="image_counterfactual is 1, but the training split has 0 normal and 8 defective"
    ):
        edited(marked, skip_unreadable=True).setup("fit")


# fewer and coarser training masks


@pytest.mark.parametrize("cache", [True, False])
def test_a_share_of_the_training_masks_is_used(marked, cache):
    counts = {}
    for share in (0.0, 0.25, 1.0):
        data = module(marked, image_size=(40, 40), mask_share=share, cache_images=cache)
        counts[share] = {row: mask.sum().item() for row, mask in data.training_masks()}
        assert data.samples["mask"].notna().sum() == 16 + len(counts[share])
        assert sum(batch.has_mask.sum().item() for batch in data.loader("test")) == 8
        (train,) = list(module(marked, image_size=(40, 40), mask_share=share, batch_size=16).loader("train"))
        assert train.has_mask.sum() == len(counts[share]) and train.labels.sum() == 8
        assert torch.equal(train.masks.flatten(1).any(1), train.has_mask)
    assert [len(masks) for masks in counts.values()] == [0, 2, 8]
    assert set(counts[0.25]) < set(counts[1.0]) and set(counts[0.25].values()) == {64.0}


@pytest.mark.parametrize("cache", [True, False])
def test_training_masks_are_made_coarser_and_others_stay(marked, cache):
    plain = module(marked, image_size=(40, 40))
    data = module(marked, image_size=(40, 40), mask_quality="dilated", cache_images=cache)
    for (_, mask), (_, exact) in zip(data.training_masks(), plain.training_masks(), strict=True):
        assert mask.sum() > 2 * exact.sum() and (mask >= exact).all()
    for split in ("val", "test"):
        assert equal(list(data.loader(split)), list(plain.loader(split)))


def test_shifted_masks_follow_the_seed_of_masks_and_the_row(marked):
    def shifted(**options):
        data = module(marked, image_size=(40, 40), mask_quality="shifted", **options)
        return torch.stack([mask for _, mask in data.training_masks()])

    first = shifted()
    assert torch.equal(shifted(cache_images=False, seed=9), first)
    assert not torch.equal(shifted(split_seed=1), first)


def test_external_masks_keep_their_values_and_the_order_of_the_loader(generic, tmp_path):
    for name, value in (("normal/test_n0", 51), ("normal/test_n1", 0), ("normal/test_n2", 255)):
        write_picture(tmp_path / f"maps/{name}.png", value=value)
    for number in range(3):
        write_picture(tmp_path / f"maps/test_d{number}_mask.png", value=102, size=(24, 32))
    masks = module(generic).external_masks("test", tmp_path / "maps")
    assert (masks.shape, masks.dtype) == ((6, 1, *SIZE), torch.float32)
    assert masks.mean(dim=(1, 2, 3)).tolist() == pytest.approx([0.4, 0.4, 0.4, 0.2, 0.0, 1.0])


def test_external_masks_that_are_missing_ambiguous_or_do_not_fit(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no such folder; external_mask_dir holds one mask per image"):
        module(write_generic(tmp_path / "data")).external_masks("test", tmp_path / "nowhere")
    (tmp_path / "maps").mkdir()
    data = module(tmp_path / "data")
    with pytest.raises(DataError, match=r"has no mask for .*test_d0.png; expected defective/test_d0.png or"):
        data.external_masks("test", tmp_path / "maps")
    write_picture(tmp_path / "maps/test_d0.png", size=(20, 16))
    with pytest.raises(DataError, match=r"test_d0.png: mask is 20x16 \(height x width\), its image .* 12x16; expected"):
        data.external_masks("test", tmp_path / "maps")
    write_picture(tmp_path / "data/images/test/normal/test_d0.png")
    with pytest.raises(DataError, match=r"several images have the stem test_d0; .* as defective/test_d0.png"):
        module(tmp_path / "data").external_masks("test", tmp_path / "maps")


def test_bars_of_letterboxed_pictures_are_not_edited(tmp_path):
    for number in range(6):
        size, box = ((20, 40), (40, 20))[number % 2], (slice(8, 14), slice(6, 12))
        write_surface(tmp_path / f"images/train/normal/n{number}.png", seed=number, size=size)
        write_surface(tmp_path / f"images/train/defective/d{number}.png", seed=50 + number, box=box, size=size)
        write_mask(tmp_path / f"masks/train/defective/d{number}.png", size=size, box=box)
    cached, on_disk = (edited(tmp_path, **STILL, resize="letterbox", cache_images=keep) for keep in (True, False))
    for data in (cached, on_disk):
        data.setup("fit")  # which prepares the edits
    changed = 0
    for row in cached.rows("train"):
        for epoch in range(4):
            shown = cached.dataset[(epoch, row)]
            assert equal([shown], [on_disk.dataset[(epoch, row)]])
            place = cached.dataset.places[int(shown.index)]
            before = cached.dataset[int(shown.index)].images
            bars = torch.ones(40, 40, dtype=torch.bool)
            bars[place] = False
            assert bars.sum() == 800
            assert len(shown.images[0][:, bars].unique(dim=1).T) == 1 and not shown.masks[..., bars].any()
            changed += not torch.equal(shown.images, before)
    assert changed > 40
