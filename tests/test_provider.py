from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_data import truncate_file, write_mask, write_picture
from torch.utils.data import DataLoader

from gainmtl_lib.dataset import Batch, build_samples, whole_batches
from gainmtl_lib.efficientad.data import (
    DatasetProvider,
    DrawnImages,
    NormalsAndAnomalies,
    SplitProvider,
    TrainStream,
    as_batch,
    build_provider,
    found_categories,
    kind_of,
)
from gainmtl_lib.efficientad.model import EfficientADSettings
from gainmtl_lib.readers import COLUMNS, DataError, data_digest, read_samples, split_samples
from gainmtl_lib.settings import Settings

SIZE = (64, 96)
DATA = dict(experiment="provider", seed=3)


def settings(root: Path, **values) -> EfficientADSettings:
    options = dict(data_root=root, teacher="random", image_size=SIZE, train_batch_size=2, eval_batch_size=4, **DATA)
    return EfficientADSettings(**{**options, **values})


def provider(root: Path, **values) -> SplitProvider:
    return build_provider(settings(root, **values))


def counts(samples) -> dict[tuple[str, int], int]:
    return samples.groupby(["split", "label"]).size().to_dict()


def names(samples, split: str) -> set[str]:
    return set(samples.loc[samples["split"] == split, "image"])


def steps(one: DatasetProvider, first: int, stop: int, seed: int = 3) -> list[torch.Tensor]:
    penalty = DrawnImages(image_size=SIZE, seed=seed)
    return [batch.images for batch in TrainStream(one, penalty, batch_size=1, seed=seed).interval(first, stop)]


def equal(first, second) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def same(first: DataLoader, second: DataLoader) -> bool:
    return all(equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.fixture
def loose(tmp_path) -> Path:
    """Generic data that is all in train: 20 normal and 12 defective pictures of two types, some in groups."""
    for number in range(20):
        write_picture(tmp_path / f"data/images/train/normal/part{number // 2}_{number}.png", seed=number)
    for number in range(12):
        kind = ("crack", "dent")[number % 2]
        write_picture(tmp_path / f"data/images/train/defective/{kind}/bad{number}_x.png", seed=number)
        write_mask(tmp_path / f"data/masks/train/defective/{kind}/bad{number}_x.png")
    return tmp_path / "data"


@pytest.fixture
def mvtec(tmp_path) -> Path:
    """Two categories: 20 good pictures to train on; in test 4 good, 3 broken and 2 scratched ones."""
    for category in ("bottle", "metal_nut"):
        root = tmp_path / "mvtec" / category
        for number in range(20):
            write_picture(root / f"train/good/{number:03}.png", seed=number)
        for kind, count in (("good", 4), ("broken", 3), ("scratched", 2)):
            for number in range(count):
                write_picture(root / f"test/{kind}/{number:03}.png", seed=100 + number)
                if kind != "good":
                    write_mask(root / f"ground_truth/{kind}/{number:03}_mask.png")
    return tmp_path / "mvtec"


class TestSplits:
    def test_defects_of_train_and_val_are_left_out(self, generic):
        one = provider(generic, val_ratio=0.0)
        assert tuple(one.samples.columns) == COLUMNS
        assert counts(one.samples) == {("train", 0): 3, ("val", 0): 3, ("test", 0): 3, ("test", 1): 3}
        assert one.split_sizes == {"train": 3, "val": 3, "test": 6}
        assert one.splits == ("val", "test")

    @pytest.mark.parametrize("pattern", [None, r"^([a-z]+\d+)_"])
    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_the_split_is_that_of_gain_mtl(self, loose, seed, pattern):
        shared = dict(data_root=loose, val_ratio=0.25, test_ratio=0.3, split_seed=seed, group_pattern=pattern)
        theirs = build_samples(Settings(image_size=(64, 96), **shared))
        ours = build_provider(EfficientADSettings(teacher="random", image_size=SIZE, **shared)).samples
        assert names(ours, "test") == names(theirs, "test")
        for split in ("train", "val"):
            assert names(ours, split) == names(theirs[theirs["label"] == 0], split)
        assert ours.groupby("group")["split"].nunique().max() == 1

    def test_synthetic_data_is_made_and_its_shifted_test_kept(self, tmp_path):
        options = dict(dataset_type="synthetic", num_samples=20, val_ratio=0.0)
        one = provider(tmp_path / "made", **options)
        assert one.splits == ("val", "test", "test_shift")
        theirs = build_samples(
            Settings(data_root=tmp_path / "made", image_size=(64, 96), dataset_type="synthetic", num_samples=20)
        )
        for split in ("test", "test_shift"):
            assert names(one.samples, split) == names(theirs, split)
            assert len(one.table(split)) == sum(len(batch.labels) for batch in one.loader(split))

    def test_data_without_any_defect_is_enough(self, tmp_path):
        for number in range(20):
            write_picture(tmp_path / f"images/train/normal/{number}.png", seed=number)
        one = provider(tmp_path, val_ratio=0.2)
        assert counts(one.samples) == {("train", 0): 13, ("val", 0): 3, ("test", 0): 4}
        with pytest.raises(DataError, match="all 20 images are normal; expected normal and defective ones"):
            read_samples(tmp_path, dataset_type="generic")

    def test_defects_in_test_alone_are_enough(self, generic):
        for split in ("train", "val"):
            shutil.rmtree(generic / "images" / split / "defective")
        one = provider(generic, val_ratio=0.0)
        assert counts(one.samples) == {("train", 0): 3, ("val", 0): 3, ("test", 0): 3, ("test", 1): 3}
        samples = read_samples(generic, dataset_type="generic")
        with pytest.raises(DataError, match="split 'train' has no defective image"):
            split_samples(samples, val_ratio=0.0, test_ratio=0.2, seed=0)

    @pytest.mark.parametrize(
        ("gone", "split"), [(("train/normal",), "train"), (("val/normal",), "val"), (("train/normal", "val/normal", "test/normal"), "train")]
    )  # fmt: skip
    def test_a_split_without_normal_images_is_named(self, generic, gone, split):
        for folder in gone:
            shutil.rmtree(generic / "images" / folder)
        with pytest.raises(
            DataError, match=f"{generic}: split '{split}' has no normal image among 3; .*normal images: add"
        ):
            provider(generic, val_ratio=0.0)

    def test_too_few_normal_images_for_validation(self, loose):
        for path in sorted((loose / "images/train/normal").iterdir())[3:]:
            path.unlink()
        with pytest.raises(DataError, match=r"split 'val' has no normal image among .*other val_ratio"):
            provider(loose, val_ratio=0.01)

    def test_errors_of_the_readers_stay(self, tmp_path):
        with pytest.raises(DataError, match="nowhere: data_root does not exist"):
            provider(tmp_path / "nowhere")
        (tmp_path / "junk").mkdir()
        with pytest.raises(DataError, match="no images; expected images/"):
            provider(tmp_path)


class TestMvtec:
    def test_the_whole_test_folder_is_tested_on(self, mvtec):
        one = provider(mvtec, dataset_type="mvtec", category="bottle", val_ratio=0.2)
        assert counts(one.samples) == {("train", 0): 16, ("val", 0): 4, ("test", 0): 4, ("test", 1): 5}
        test = one.table("test")
        assert set(test["defect_type"]) == {"normal", "broken", "scratched"}
        assert test["mask"].notna().sum() == 5
        assert all("bottle/train/good" in image for image in names(one.samples, "train") | names(one.samples, "val"))

    def test_the_category_may_be_the_root(self, mvtec):
        inside = provider(mvtec / "bottle", dataset_type="mvtec")
        assert inside.digest == provider(mvtec, dataset_type="mvtec", category="bottle").digest

    def test_the_seed_of_the_split_decides(self, mvtec):
        def val(seed):
            return names(provider(mvtec, dataset_type="mvtec", category="bottle", split_seed=seed).samples, "val")

        assert val(0) == val(0)
        assert len({frozenset(val(seed)) for seed in range(4)}) > 1

    def test_groups_are_not_torn(self, mvtec):
        folder = mvtec / "bottle/train/good"
        for path in sorted(folder.iterdir()):
            path.rename(folder / f"part{int(path.stem) // 4}_{path.stem}.png")
        one = provider(mvtec, dataset_type="mvtec", category="bottle", val_ratio=0.2, group_pattern=r"^part\d_|^\d+")
        val = one.samples[one.samples["split"] == "val"]
        assert len(val) == 4
        assert val["group"].nunique() == 1
        with pytest.raises(DataError, match="group lies in 2 splits"):
            provider(mvtec, dataset_type="mvtec", category="metal_nut", group_pattern=r"\d+")

    def test_an_unknown_category_names_the_closest_and_those_found(self, mvtec):
        with pytest.raises(
            DataError, match=r"mvtec: has no category 'botle'; did you mean 'bottle'\? \(found bottle, metal_nut\)"
        ):
            provider(mvtec, dataset_type="mvtec", category="botle")
        with pytest.raises(DataError, match=r"has no category 'hazelnuts'; did you mean 'hazelnut'\? \(found bottle"):
            provider(mvtec, dataset_type="mvtec", category="hazelnuts")
        (mvtec / "empty").mkdir()
        with pytest.raises(DataError, match=r"has no category 'qqq' \(no folder there holds train/good\)"):
            provider(mvtec / "empty", dataset_type="mvtec", category="qqq")
        with pytest.raises(DataError, match="nowhere/bottle: data_root does not exist"):
            provider(mvtec / "nowhere", dataset_type="mvtec", category="bottle")

    def test_categories_found(self, mvtec):
        (mvtec / "license").mkdir()
        assert found_categories(mvtec) == ["bottle", "metal_nut"]
        assert found_categories(mvtec / "nowhere") == []


class TestLoaders:
    def test_training_reads_normal_images_in_the_order_of_seed_and_pass(self, loose):
        one = provider(loose, val_ratio=0.25, test_ratio=0.3)
        loader = one.get_train_dataloader()
        batch = next(iter(loader))
        assert batch.images.shape == (2, 3, *SIZE)
        assert not any(batch.labels.any() for batch in loader)
        whole = steps(one, 0, 20)
        assert equal(steps(provider(loose, val_ratio=0.25, test_ratio=0.3), 13, 20), whole[13:])
        assert not equal(steps(provider(loose, val_ratio=0.25, test_ratio=0.3, seed=4, split_seed=3), 0, 3), whole[:3])

    def test_validation_holds_normals_and_their_anomalous_copies(self, generic):
        one = provider(generic, val_ratio=0.0)
        batches = [as_batch(batch, split="val") for batch in one.loader("val")]
        batch = Batch(*(torch.cat(parts) for parts in zip(*batches, strict=True)))
        assert batch.labels.tolist() == batch.has_mask.int().tolist() == [0, 0, 0, 1, 1, 1]
        table = one.table("val")
        assert table["label"].tolist() == batch.labels.tolist()
        assert table["defect_type"].tolist() == ["normal"] * 3 + [kind_of(place, seed=3) for place in range(3)]
        assert table["image"].tolist() == [one.samples["image"][row] for row in batch.index.tolist()]
        assert table["mask"].tolist() == [None] * 6
        assert set(table["split"]) == {"val"}
        for normal, copy, mask in zip(batch.images[:3], batch.images[3:], batch.masks[3:, 0].bool(), strict=True):
            assert torch.equal(normal[:, ~mask], copy[:, ~mask])
            assert not torch.equal(normal, copy)

    def test_validation_is_the_same_for_runs_of_one_split_seed(self, generic):
        first, second, third = (
            provider(generic, val_ratio=0.0, seed=seed, split_seed=split) for seed, split in ((0, 5), (1, 5), (0, 6))
        )
        assert same(first.loader("val"), second.loader("val"))
        assert not same(first.loader("val"), third.loader("val"))

    def test_tests_are_read_in_the_order_of_their_table(self, generic):
        one = provider(generic, val_ratio=0.0)
        table, batches = one.table("test"), list(one.loader("test"))
        assert [row for batch in batches for row in batch.index.tolist()] == one.samples.index[
            one.samples["split"] == "test"
        ].tolist()
        assert table["label"].tolist() == [label for batch in batches for label in batch.labels.tolist()]
        assert [len(batch.labels) for batch in batches] == [4, 2]
        assert sum(int(batch.masks.any(dim=(1, 2, 3)).sum()) for batch in batches) == 3

    def test_a_split_that_is_not_there(self, generic):
        shutil.rmtree(generic / "images/test/defective")
        one = provider(generic, val_ratio=0.0)
        for split in ("test_shift", "train", "tset"):
            with pytest.raises(DataError, match=f"no images in split '{split}'; the data has val, test"):
                one.loader(split)

    def test_files_in_memory_on_disk_and_by_workers_are_the_same(self, generic):
        plain, disk, workers = (
            provider(generic, val_ratio=0.0, **options)
            for options in (dict(), dict(cache_images=False), dict(num_workers=1))
        )
        for other in (disk, workers):
            assert same(plain.loader("val"), other.loader("val"))
            assert same(plain.loader("test"), other.loader("test"))
            assert equal(steps(plain, 0, 4), steps(other, 0, 4))
        assert disk._load().images is None
        assert plain._load().images is not None
        assert workers.get_train_dataloader().num_workers == 1

    def test_letterboxed_anomalies_lie_on_the_picture(self, tmp_path):
        for split in ("train", "val"):
            for number in range(8):
                write_picture(tmp_path / f"images/{split}/normal/{number}.png", size=(16, 64), seed=number)
        one = provider(tmp_path, val_ratio=0.0, resize="letterbox")
        masks = torch.cat([batch.masks for batch in one.loader("val")])
        assert not masks[:, :, :20].any()
        assert not masks[:, :, 44:].any()
        assert bool(masks[8:].flatten(1).any(1).all())

    def test_files_that_cannot_be_decoded(self, generic, caplog):
        truncate_file(generic / "images/train/normal/train_n1.png")
        truncate_file(generic / "images/val/normal/val_n0.png")
        strict = provider(generic, val_ratio=0.0)
        with pytest.raises(DataError, match=r"(?s)train_n1\.png: image is truncated.*val_n0\.png"):
            strict.get_train_dataloader()
        lenient = provider(generic, val_ratio=0.0, skip_unreadable=True)
        digest = lenient.digest
        assert len(lenient.table("val")) == 4
        assert lenient.split_sizes == {"train": 2, "val": 2, "test": 6}
        rows = [row for batch in lenient.loader("val") for row in batch.index.tolist()]
        assert {Path(lenient.samples["image"][row]).name for row in rows} == {"val_n1.png", "val_n2.png"}
        assert lenient.digest == digest == strict.digest

    def test_no_normal_image_can_be_decoded(self, generic):
        for path in (generic / "images/val/normal").iterdir():
            truncate_file(path)
        with pytest.raises(DataError, match="split 'val' has no normal image among 0"):
            provider(generic, val_ratio=0.0, skip_unreadable=True).loader("val")


def test_the_digest_is_of_the_pictures_in_use(generic):
    one = provider(generic, val_ratio=0.0)
    assert one.digest == data_digest(one.samples)
    assert provider(generic, val_ratio=0.0, seed=9).digest == one.digest
    write_picture(generic / "images/train/defective/train_d0.png", value=7)
    assert provider(generic, val_ratio=0.0).digest == one.digest
    write_picture(generic / "images/train/normal/train_n0.png", value=7)
    assert provider(generic, val_ratio=0.0).digest != one.digest


class OwnProvider(DatasetProvider):
    """Plain pictures from memory, as somebody else would write it."""

    def __init__(self, count: int = 6) -> None:
        self.pictures = [np.random.default_rng(k).integers(60, 160, (*SIZE, 3), dtype=np.uint8) for k in range(count)]

    def get_train_dataloader(self):
        images = [torch.from_numpy(picture).permute(2, 0, 1) / 255 for picture in self.pictures[2:]]
        return DataLoader(images, batch_size=3, shuffle=True)  # pyright: ignore[reportArgumentType]

    def get_val_dataloader(self):
        both = NormalsAndAnomalies(self.pictures[:2], seed=0)
        return whole_batches(both, range(len(both)), batch_size=2, num_workers=0, seed=0)


class TestOwnProvider:
    def test_it_needs_two_loaders(self):
        one = OwnProvider()
        assert one.splits == ("val",)
        assert one.table("val") is None
        assert one.split_sizes == {}
        assert one.digest.endswith("test_provider.OwnProvider")
        assert [batch.labels.tolist() for batch in one.loader("val")] == [[0, 0], [1, 1]]
        with pytest.raises(DataError, match="no images in split 'test'; the data has val"):
            one.loader("test")
        assert equal(steps(OwnProvider(), 3, 7), steps(OwnProvider(), 0, 7)[3:])

    def test_a_test_loader_is_a_split(self):
        class Tested(OwnProvider):
            def get_test_dataloader(self):
                return self.get_val_dataloader()

        assert Tested().splits == ("val", "test")
        assert same(Tested().loader("test"), OwnProvider().loader("val"))

    def test_one_loader_of_the_settings_data_can_be_replaced(self, generic):
        class Custom(SplitProvider):
            def get_train_dataloader(self):
                return DataLoader([torch.full((3, *SIZE), 0.5)])  # pyright: ignore[reportArgumentType]

        one = Custom(settings(generic, val_ratio=0.0))
        assert float(steps(one, 0, 1)[0].mean()) == 0.5
        assert same(one.loader("val"), provider(generic, val_ratio=0.0).loader("val"))

    def test_without_loaders_it_cannot_be_made(self):
        class Unfinished(DatasetProvider):
            def get_train_dataloader(self):
                return None

        with pytest.raises(TypeError, match="get_val_dataloader"):
            Unfinished()  # type: ignore[abstract]


class TestAsBatch:
    def test_batches_stay_and_images_become_normal_ones(self):
        images = torch.rand(2, 3, 8, 8)
        batch = as_batch(images, split="train")
        assert batch.images is images
        assert (batch.labels.tolist(), batch.has_mask.tolist(), batch.index.tolist()) == (
            [0, 0],
            [False, False],
            [0, 1],
        )
        assert batch.masks.shape == (2, 1, 8, 8)
        assert not batch.masks.any()
        assert as_batch(batch, split="val") is batch

    @pytest.mark.parametrize(
        ("item", "message"),
        [
            ([torch.rand(1, 3, 8, 8)], "the train loader yields list; expected gainmtl_lib.records.Batch, or a tensor"),
            (torch.rand(3, 8, 8), r"images \(3, 8, 8\) of torch.float32; expected torch.float32 \(B, 3, H, W\)"),
            (torch.rand(1, 1, 8, 8), r"images \(1, 1, 8, 8\)"),
            (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "of torch.uint8"),
            (torch.zeros(0, 3, 8, 8), r"images \(0, 3, 8, 8\)"),
            (torch.full((1, 3, 8, 8), -1.5), "images from -1.5 to -1.5; expected 0 to 1, not normalised"),
            (torch.full((1, 3, 8, 8), 255.0), "images from 255 to 255"),
            (torch.full((1, 3, 8, 8), float("nan")), "images from nan to nan"),
        ],
    )
    def test_what_cannot_be_used(self, item, message):
        with pytest.raises(DataError, match=message):
            as_batch(item, split="train")

    def test_defects_are_not_learned_from(self):
        batch = as_batch(torch.rand(2, 3, 8, 8), split="val")._replace(labels=torch.tensor([0, 1]))
        assert as_batch(batch, split="val") is batch
        with pytest.raises(DataError, match="the train loader yields defective images"):
            as_batch(batch, split="train")

    def test_labels_are_normal_or_anomalous(self):
        batch = as_batch(torch.rand(3, 3, 8, 8), split="val")
        with pytest.raises(DataError, match=r"the val loader yields labels \[2, 5\]; expected 0 \(normal\) and 1"):
            as_batch(batch._replace(labels=torch.tensor([5, 0, 2])), split="val")

    def test_masks_have_the_size_of_their_images(self):
        batch = as_batch(torch.rand(2, 3, 8, 8), split="val")
        with pytest.raises(DataError, match=r"masks \(2, 1, 4, 4\) and labels \(2,\) beside images \(2, 3, 8, 8\)"):
            as_batch(batch._replace(masks=torch.zeros(2, 1, 4, 4)), split="val")
