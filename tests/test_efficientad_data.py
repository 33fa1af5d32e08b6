"""Where EfficientAD's pictures come from: splits, loaders, providers, anomalies, the penalty, batches by step."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from drawn_data import truncate_file, write_mask, write_picture
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler

from gainmtl_lib.dataset import Batch, build_samples, whole_batches
from gainmtl_lib.efficientad import data as module
from gainmtl_lib.efficientad.data import DatasetProvider, SplitProvider
from gainmtl_lib.efficientad.model import EfficientADSettings
from gainmtl_lib.findings import DataError, UnreadableError
from gainmtl_lib.processes import Part
from gainmtl_lib.readers import COLUMNS, data_digest
from gainmtl_lib.settings import Settings

SIZE = (64, 96)


def settings(root=Path("data"), **values):
    options = dict(data_root=root, teacher="random", image_size=SIZE, train_batch_size=2, eval_batch_size=4, seed=3)
    return EfficientADSettings(**options | values)


def provider(root, **values):
    return SplitProvider(settings(root, **{"val_ratio": 0.0} | values))


def counts(samples):
    return samples.groupby(["split", "label"]).size().to_dict()


def names(samples, split):
    return set(samples.loc[samples["split"] == split, "image"])


def read(one, first, stop, *, rank=0, world=1, **values):
    asked = settings(**values)
    batches = module.TrainingData(asked, one, module.PenaltyImages(asked)).batches(first, rank, world)
    return [
        (number, images, penalty.mean((1, 2, 3)).tolist(), part)
        for (number, part, images, penalty), _ in zip(batches, range(first, stop))
    ]


def equal(first, second):
    return all(a[::2] == b[::2] and torch.equal(a[1], b[1]) for a, b in zip(first, second, strict=True))


def whole(loader):
    return Batch(*(torch.cat(parts) for parts in zip(*loader, strict=True)))


def test_defects_of_train_and_val_are_left_out_and_the_digest_is_of_what_is_used(generic):
    one = provider(generic)
    assert tuple(one.samples.columns) == COLUMNS and one.splits == ("val", "test")
    assert counts(one.samples) == {("train", 0): 3, ("val", 0): 3, ("test", 0): 3, ("test", 1): 3}
    assert one.digest == data_digest(one.samples) == provider(generic, seed=9).digest
    write_picture(generic / "images/train/defective/train_d0.png", value=7)
    assert provider(generic).digest == one.digest
    write_picture(generic / "images/train/normal/train_n0.png", value=7)
    assert provider(generic).digest != one.digest
    for split in ("val", "train"):
        shutil.rmtree(generic / "images" / split / "normal")
        with pytest.raises(DataError, match=f"{generic}: split '{split}' has no normal image among 3; .*images: add"):
            provider(generic)


@pytest.mark.parametrize("pattern", [None, r"^([a-z]+\d+)_"])
def test_the_split_is_that_of_gain_mtl(tmp_path, pattern):
    for number in range(20):
        write_picture(tmp_path / f"images/train/normal/part{number // 2}_{number}.png", seed=number)
        write_picture(tmp_path / f"images/train/defective/type{number % 2}/bad{number}_x.png", seed=number)
    shared = dict(data_root=tmp_path, val_ratio=0.25, test_ratio=0.3, split_seed=1, group_pattern=pattern)
    theirs = build_samples(Settings(**shared))
    ours = module.samples_in_use(EfficientADSettings(teacher="random", **shared))
    assert names(ours, "test") == names(theirs, "test")
    for split in ("train", "val"):
        assert names(ours, split) == names(theirs[theirs["label"] == 0], split)


def test_mvtec_is_tested_on_its_whole_test_folder(tmp_path):
    root = tmp_path / "bottle"
    for folder, count in (("train/good", 20), ("test/good", 4), ("test/broken", 3), ("test/scratched", 2)):
        for number in range(count):
            path = write_picture(root / f"{folder}/{number:03}.png", seed=number + 100 * len(folder))
            if "good" not in folder:
                write_mask(root / "ground_truth" / path.parent.name / f"{number:03}_mask.png")
    (tmp_path / "metal_nut/train/good").mkdir(parents=True)
    values = dict(dataset_type="mvtec", val_ratio=0.2)
    one = provider(tmp_path, category="bottle", **values)
    assert counts(one.samples) == {("train", 0): 16, ("val", 0): 4, ("test", 0): 4, ("test", 1): 5}
    assert all("train/good" in image for image in names(one.samples, "train") | names(one.samples, "val"))
    assert provider(root, **values).digest == one.digest  # the category may be the root
    with pytest.raises(DataError, match=r"no category 'hazelnuts'; did you mean 'hazelnut'\? \(found bottle, metal"):
        provider(tmp_path, category="hazelnuts", **values)


def test_validation_holds_normals_and_their_anomalous_copies_and_tests_follow_their_table(generic):
    one = provider(generic)
    batch, table = whole(one.loader("val")), one.table("val")
    assert batch.labels.tolist() == batch.has_mask.int().tolist() == table["label"].tolist() == [0, 0, 0, 1, 1, 1]
    assert table["defect_type"].tolist() == ["normal"] * 3 + [module.kind_of(place, seed=3) for place in range(3)]
    assert table["image"].tolist() == [one.samples["image"][row] for row in batch.index.tolist()]
    for normal, copy, mask in zip(batch.images[:3], batch.images[3:], batch.masks[3:, 0].bool(), strict=True):
        assert torch.equal(normal[:, ~mask], copy[:, ~mask]) and not torch.equal(normal, copy)
    assert torch.equal(batch.images, whole(provider(generic, seed=0, split_seed=3).loader("val")).images)
    assert not torch.equal(batch.images, whole(provider(generic, split_seed=6).loader("val")).images)
    assert [len(batch.labels) for batch in one.loader("test")] == [4, 2]
    batch = whole(one.loader("test"))
    assert batch.labels.tolist() == one.table("test")["label"].tolist() and batch.masks.any(dim=(1, 2, 3)).sum() == 3
    with pytest.raises(DataError, match="no images in split 'test_shift'; the data has val, test"):
        one.loader("test_shift")
    for number in range(8):
        write_picture(generic / f"images/val/normal/wide{number}.png", size=(16, 64), seed=number)
    masks = whole(provider(generic, resize="letterbox").loader("val")).masks[-8:]  # on the picture, rows 20 to 44
    assert not masks[:, :, :20].any() and not masks[:, :, 44:].any() and bool(masks.flatten(1).any(1).all())


def test_files_that_cannot_be_decoded(generic):
    truncate_file(generic / "images/train/normal/train_n1.png")
    truncate_file(generic / "images/val/normal/val_n0.png")
    strict, lenient = provider(generic), provider(generic, skip_unreadable=True)
    with pytest.raises(DataError, match=r"(?s)train_n1\.png: image is truncated.*val_n0\.png"):
        strict.get_train_dataloader()
    assert len(lenient.table("val")) == 4 and lenient.split_sizes == {"train": 2, "val": 2, "test": 6}
    assert lenient.digest == strict.digest
    for path in (generic / "images/val/normal").iterdir():
        truncate_file(path)
    with pytest.raises(DataError, match="split 'val' has no normal image among 0"):
        provider(generic, skip_unreadable=True).loader("val")


class Own(DatasetProvider):
    def __init__(self, loader):
        self.get_train_dataloader = self.get_val_dataloader = lambda: loader

    get_train_dataloader = get_val_dataloader = None


def test_a_provider_of_ones_own_needs_two_loaders_and_plain_images_become_normal_ones():
    both = module.NormalsAndAnomalies([photograph(0), photograph(1)], seed=0)
    one = Own(whole_batches(both, range(4), batch_size=2, num_workers=0, seed=0))
    assert one.splits == ("val",) and one.table("val") is None and one.split_sizes == {}
    assert one.digest.endswith("test_efficientad_data.Own")
    batch = whole(one.loader("val"))
    assert batch.labels.tolist() == [0, 0, 1, 1] and batch.index.tolist() == [0, 1, 0, 1]
    one.get_test_dataloader = one.get_val_dataloader
    assert one.splits == ("val", "test") and torch.equal(whole(one.loader("test")).images, batch.images)
    images = torch.rand(2, 3, 8, 8)
    batch = module.as_batch(images, split="train")
    assert batch.images is images and batch.labels.tolist() == [0, 0] and not batch.has_mask.any()
    assert batch.masks.shape == (2, 1, 8, 8) and not batch.masks.any()


def test_what_a_loader_may_not_yield():
    normal = module.as_batch(torch.rand(2, 3, 8, 8), split="val")
    assert module.as_batch(normal, split="train") is normal
    for item, message in (
        ([torch.rand(1, 3, 8, 8)], "the train loader yields list; expected gainmtl_lib.dataset.Batch, or a tensor"),
        (torch.rand(3, 8, 8), r"images \(3, 8, 8\) of torch.float32; expected torch.float32 \(B, 3, H, W\)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "of torch.uint8"),
        (torch.zeros(0, 3, 8, 8), r"images \(0, 3, 8, 8\)"),
        (torch.full((1, 3, 8, 8), -1.5), "images from -1.5 to -1.5; expected 0 to 1: the model normalises"),
        (torch.full((1, 3, 8, 8), float("nan")), "images from nan to nan"),
        (normal._replace(labels=torch.tensor([0, 1])), "the train loader yields defective images"),
        (normal._replace(labels=torch.tensor([0, 5])), r"yields labels \[5\]; expected 0 \(normal\) and 1"),
        (normal._replace(masks=torch.zeros(2, 1, 4, 4)), r"masks \(2, 1, 4, 4\) and labels \(2,\) beside images"),
    ):
        with pytest.raises(DataError, match=message):
            module.as_batch(item, split="train")


def photograph(seed=0, *, size=(64, 80), low=90, high=150):
    return np.random.default_rng(seed).integers(low, high, (*size, 3), dtype=np.uint8)


@pytest.mark.parametrize("grey", [None, 0, 255])
def test_the_mask_is_exact_and_the_anomaly_visible_on_any_ground(grey):
    image = photograph() if grey is None else np.full((64, 80, 3), grey, np.uint8)
    region = (slice(24, 40), slice(0, 80))
    for index in range(4):
        made, mask = module.synthesise(image.copy(), other=image, seed=0, index=index)
        assert np.array_equal(made[~mask], image[~mask]) and mask.sum() >= max(8, 0.0015 * 64 * 64)
        assert np.median(np.abs(made.astype(int) - image).max(axis=2)[mask]) >= module.LEAST_CHANGE
        assert (made == made[..., :1]).all() == (image == image[..., :1]).all()  # grey stays grey
        again, other = (module.synthesise(image, other=image, seed=seed, index=index)[0] for seed in (0, 1))
        assert np.array_equal(made, again) and not np.array_equal(made, other)
        _, mask = module.synthesise(image, other=image, seed=0, index=index, region=region)
        assert mask[region].sum() == mask.sum() >= 8


def test_a_pasted_piece_is_of_the_other_picture_in_another_light():
    rounds = [tuple(module.kind_of(4 * k + turn, seed=0) for turn in range(4)) for k in range(6)]
    assert all(sorted(kinds) == sorted(module.KINDS) for kinds in rounds) and len(set(rounds)) > 2
    low, high = photograph(1, low=40, high=44), photograph(2, size=(9, 70), low=180, high=184)
    made, mask = module.synthesise(low, other=high, seed=0, index=rounds[0].index(module.CUT_PASTE))
    piece = made[mask].astype(int)
    assert abs(np.median(piece) - 182) <= 0.15 * 255 + 3 and np.ptp(piece) <= 4


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(["a.png", "deep/b.png", "deep/deeper/c.jpg", "d.png", "e.bmp"], start=1):
        write_picture(tmp_path / "natural" / name, value=40 * number, size=(30, 50))
    return tmp_path / "natural"


def penalty(folder=None, **values):
    return module.PenaltyImages(settings(penalty_images=folder, **values))


def levels(images):
    return [round(float(image.mean()) * 255) for image in images]


def test_penalty_pictures_follow_from_seed_and_number_and_each_pass_shows_every_middle_once(folder, tmp_path):
    for where in (folder, None):
        first, again = penalty(where).__getitems__(range(10)), penalty(where)
        assert (first.shape, first.dtype) == ((10, 3, *SIZE), torch.float32) and first.min() >= 0 and first.max() <= 1
        assert torch.equal(first, torch.cat([again.__getitems__([number]) for number in reversed(range(10))]).flip(0))
        assert not torch.equal(first, penalty(where, seed=1).__getitems__(range(10)))
    assert penalty(folder).text == "5 natural images of natural" and "not natural images" in penalty().text
    drawn = penalty().__getitems__(range(8))
    assert (drawn.flatten(1).std(1) > 0.1).all() and (drawn.diff(dim=3).abs().flatten(1).amax(1) > 0.15).all()
    passes = [tuple(levels(penalty(folder).__getitems__(range(5 * k, 5 * k + 5)))) for k in range(4)]
    assert all(sorted(each) == [40, 80, 120, 160, 200] for each in passes) and len(set(passes)) > 1
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[10:30, 20:60, 0] = 200
    (tmp_path / "blue").mkdir()
    cv2.imwrite(str(tmp_path / "blue/a.png"), pixels)
    images = penalty(tmp_path / "blue").__getitems__(range(100))
    assert float(images[:, 2, 2:-2, 2:-2].amin()) * 255 > 20  # the middle alone is blue; grey blue is dark
    grey = (images == images[:, :1]).flatten(1).all(1)
    assert abs(float(grey.float().mean()) - 0.3) < 0.12


def test_a_penalty_folder_that_cannot_be_used_is_named(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    for name, what in (("nowhere", "no such folder"), ("empty", "holds no images")):
        with pytest.raises(DataError, match=f"{name}: {what}; penalty_images names a folder"):
            penalty(tmp_path / name)
    truncate_file(folder / "a.png")
    with pytest.raises(UnreadableError, match=r"a\.png: image is truncated .*skip_unreadable: true"):
        penalty(folder).__getitems__(range(5))
    with pytest.raises(DataError, match=rf"^{folder}/a\.png: [^\n]*skip_unreadable: true$"):  # no worker's traceback
        read(Own(shuffled()), 0, 3, penalty_images=folder, num_workers=1)
    assert set(levels(penalty(folder, skip_unreadable=True).__getitems__(range(5)))) == {80, 120, 160, 200}
    for path in folder.rglob("*.*"):
        truncate_file(path)
    with pytest.raises(DataError, match="natural: none of its 5 images can be decoded"):
        penalty(folder, skip_unreadable=True).__getitems__([0])


def test_each_image_is_recoloured_by_one_of_three_changes_near_one():
    images = torch.rand((1, 3, 8, 10), generator=torch.Generator().manual_seed(0)) * 0.5 + 0.2
    grey = (images[0] * torch.tensor([0.2989, 0.587, 0.114]).view(3, 1, 1)).sum(0, keepdim=True)
    towards = {"brightness": torch.zeros(1), "contrast": grey.mean(), "saturation": grey.expand(3, -1, -1)}
    found = {name: [] for name in towards}
    for number in range(60):
        changed = module.recoloured(images, seed=1, number=number)[0]
        for name, middle in towards.items():
            away = images[0] - middle
            factor = float(((changed - middle) * away).sum() / away.square().sum())
            if torch.allclose(changed, middle + factor * away, atol=1e-3):
                found[name].append(factor)
    assert all(len(each) > 10 and min(each) >= 0.8 - 1e-3 and max(each) <= 1.2 + 1e-3 for each in found.values())
    whole = module.recoloured(images.repeat(4, 1, 1, 1), seed=0, number=0)
    assert len({float(image.sum()) for image in whole}) == 4
    part = module.recoloured(images.repeat(2, 1, 1, 1), seed=0, number=0, part=Part.of(4, 1, 2))
    assert torch.equal(part, whole[2:])  # as a single process would


NUMBERED = [torch.full((3, *SIZE), place / 100) for place in range(7)]


def shuffled(**options):
    return DataLoader(NUMBERED, **{**dict(batch_size=2, shuffle=True), **options})


def test_passes_follow_one_another_each_with_every_image_once_devices_share_them_epochs_bound_them():
    batches = read(Own(shuffled()), 0, 12)
    assert [number for number, *_ in batches] == list(range(12))
    passes = [torch.cat([images for _, images, *_ in batches[k : k + 4]])[:, 0, 0, 0] for k in (0, 4, 8)]
    orders = [tuple((each * 100).round().int().tolist()) for each in passes]
    assert all(sorted(order) == list(range(7)) for order in orders) and len(set(orders)) > 1
    assert len({mean for _, _, penalty, _ in batches for mean in penalty}) == 24
    assert not equal(read(Own(shuffled()), 0, 4, seed=1), batches[:4])
    parts = [read(Own(shuffled()), 0, 4, rank=rank, world=2) for rank in range(2)]
    for (_, images, penalty, _), *own in zip(batches[:4], *parts, strict=True):
        shown = [part[1] for part in own]
        assert torch.equal(torch.cat(shown) if len(images) == 2 else shown[0], images)  # a last one alone both show
        assert [mean for part in own for mean in part[2]] == penalty
        assert [part[3] for part in own] == [Part.of(len(images), rank, 2) for rank in range(2)]
    assert equal(read(Own(shuffled()), 2, 4, rank=1, world=2), parts[1][2:])
    given = ({}, {"max_epochs": 3}, {"max_epochs": 30}, {"max_epochs": 3, "devices": 2})
    trainings = (module.TrainingData(settings(max_steps=100, **values), Own(shuffled()), None) for values in given)
    assert [training.total_steps for training in trainings] == [100, 12, 100, 12]


def test_a_training_that_goes_on_reads_what_an_uninterrupted_one_reads():
    for make in (
        shuffled,
        lambda: shuffled(generator=torch.Generator().manual_seed(9)),
        lambda: shuffled(num_workers=1, persistent_workers=True),
        lambda: DataLoader(NUMBERED, batch_sampler=BatchSampler(RandomSampler(NUMBERED), 2, False)),
    ):
        uninterrupted = read(Own(make()), 0, 11)
        torch.manual_seed(123)
        assert equal(read(Own(make()), 6, 11), uninterrupted[6:])


def test_training_loaders_that_cannot_be_used():
    three = type("Three", (IterableDataset,), {"__iter__": lambda self: iter([torch.zeros(3, *SIZE)] * 3)})
    short = type("Short", (three,), {"__len__": lambda self: 5})
    for loader, message in (
        (DataLoader(three()), "the train loader has no length"),
        (DataLoader(torch.zeros(0, 3, 4, 4)), "the train loader is empty; expected normal images"),
        ([torch.zeros(1, 3, 4, 4)], "get_train_dataloader returned list; expected a torch DataLoader"),
        (DataLoader(torch.zeros(3, 3, 40, 32)), r"images of \(40, 32\) pixels, image_size is \(64, 96\); set image_s"),
        (DataLoader(short()), "has length 5, but a pass over it gave 3 batches"),
    ):
        with pytest.raises(DataError, match=message):
            read(Own(loader), 0, 6)
