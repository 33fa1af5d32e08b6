"""Where S6's masks come from: what fits together, and that each picture gets its own."""

from types import SimpleNamespace

import pytest
import torch
from drawn_data import write_generic, write_mask

from gainmtl_lib.data.datamodule import GainDataModule
from gainmtl_lib.data.findings import DataError
from gainmtl_lib.data.samples import read_samples
from gainmtl_lib.evaluation.mask_source import MaskSource
from gainmtl_lib.runs import RunError


def model(strategy="S6", mask_source="localization"):
    return SimpleNamespace(strategy=strategy, mask_source=mask_source)


@pytest.fixture
def data(tmp_path):
    samples = read_samples(write_generic(tmp_path / "data"), dataset_type="generic")
    data = GainDataModule(samples, image_size=(8, 8), batch_size=4)
    data.setup()
    return data


@pytest.fixture
def folder(tmp_path, data):
    """Masks in subfolders, each with as many pixels as its image's row says."""
    for row, image in enumerate(data.dataset.paths):
        kind, name = image.split("/")[-2:]
        size = (24, 32)  # twice the picture's
        write_mask(tmp_path / "masks" / kind / name, size=size, box=(slice(0, 24), slice(0, 4 * (row % 6))))
    return tmp_path / "masks"


def test_the_models_own_source_unless_another_is_asked_for():
    assert MaskSource.of(model()).name == "localization"
    assert MaskSource.of(model(), "oracle").leaks and not MaskSource.of(model()).leaks
    assert MaskSource.of(model("S3", "localization")).name is None


def test_settings_know_their_folder(tmp_path):
    settings = SimpleNamespace(strategy="S6", mask_source="external", external_mask_dir=tmp_path)
    assert MaskSource.of(settings).folder == tmp_path
    assert MaskSource.of(settings, folder=tmp_path / "b").folder == tmp_path / "b"
    assert MaskSource.of(settings, "none").folder is None


def test_what_does_not_fit_together_is_named(tmp_path):
    with pytest.raises(RunError, match="mask_source is for strategy S6; this model is S3"):
        MaskSource.of(model("S3"), "none")
    with pytest.raises(RunError, match="'external' needs external_mask_dir"):
        MaskSource.of(model(), "external")
    with pytest.raises(RunError, match="this model is S6, and mask_source is 'localization': give mask_source 'ext"):
        MaskSource.of(model(), folder=tmp_path)
    with pytest.raises(RunError, match="this model is S3, whose attention takes no mask"):
        MaskSource.of(model("S3"), folder=tmp_path)


def test_the_model_gets_its_own_source_back():
    own = model()
    with pytest.raises(RuntimeError), MaskSource.of(own, "none").applied(own):
        assert own.mask_source == "none"
        raise RuntimeError
    assert own.mask_source == "localization"


def test_each_picture_gets_its_own_mask_in_any_order_and_from_any_split(data, folder):
    source = MaskSource("external", folder)
    rows = [5, 2, 14, 3, 8]
    masks = source.masks(data, data.dataset.__getitems__(rows))
    assert masks.shape == (5, 1, 8, 8)
    assert masks.mean((1, 2, 3)).tolist() == pytest.approx([(row % 6) / 8 for row in rows])
    expected = data.external_masks("test", folder)
    batches = [source.masks(data, batch) for batch in data.loader("test")]
    assert len(batches) == 2 and torch.equal(torch.cat(batches), expected)


def test_a_split_of_masks_is_read_once(data, folder, monkeypatch):
    read = []
    own = GainDataModule.external_masks
    monkeypatch.setattr(GainDataModule, "external_masks", lambda *a: read.append(a[1]) or own(*a))
    source = MaskSource("external", folder)
    for batch in data.loader("test"):
        source.masks(data, batch)
    assert read == ["test"]


def test_the_other_sources_need_no_file(data, tmp_path):
    batch = data.dataset.__getitems__(data.rows("test"))
    assert torch.equal(MaskSource("oracle").masks(data, batch), batch.masks)
    assert all(MaskSource(name).masks(data, batch) is None for name in (None, "none", "localization"))
    with pytest.raises(DataError, match="no such folder"):
        MaskSource("external", tmp_path / "gone").masks(data, batch)
