"""Where S6's masks come from: what fits together, and that each picture gets its own."""

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from anomaly_runs import TEACHER, tiny_anomaly_settings, write_anomaly_run
from drawn_data import write_generic, write_mask
from tiny import tiny_data, tiny_settings

from gainmtl_lib.console import _masks_from
from gainmtl_lib.dataset import GainDataModule, build_samples
from gainmtl_lib.efficientad.evaluate import ScoredPicture, anomaly_mask, check_unseen
from gainmtl_lib.efficientad.model import AnomalyOutput
from gainmtl_lib.evaluation import MaskSource, evaluate
from gainmtl_lib.model import build_model
from gainmtl_lib.readers import DataError, read_samples
from gainmtl_lib.runs import RunError


def model(strategy="S6", mask_source="localization"):
    return SimpleNamespace(strategy=strategy, mask_source=mask_source)


@pytest.fixture
def data(tmp_path):
    samples = read_samples(write_generic(tmp_path / "data"), dataset_type="generic")
    data = tiny_data(samples, image_size=(8, 8), batch_size=4)
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
    assert MaskSource.of(settings).place == tmp_path
    assert MaskSource.of(settings, folder=tmp_path / "b").place == tmp_path / "b"
    assert MaskSource.of(settings, "none").place is None


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


class RedIsAnomalous(torch.nn.Module):
    """An EfficientAD whose anomaly map is the red channel, from the 90 % to the 99.5 % quantile of normal parts."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, images):
        maps = 0.1 * images[:, :1]
        return AnomalyOutput(maps, maps.amax(dim=(1, 2, 3)), maps)


def anomalous(folder, monkeypatch, **settings):
    """A source of masks whose run is made up, and which has seen no picture."""
    monkeypatch.setattr("gainmtl_lib.efficientad.evaluate.check_unseen", lambda *_: None)
    source = MaskSource("efficientad", folder)
    made = {"image_size": (64, 64), "resize": "squash", "precision": "32"} | settings
    source._outside.run = SimpleNamespace(model=RedIsAnomalous(), settings=SimpleNamespace(**made), teacher="a teacher")
    return source


@pytest.fixture
def halves(tmp_path):
    """A picture of 24 x 48 whose right half is red, and its table of samples."""
    pixels = np.zeros((24, 48, 3), np.uint8)
    pixels[:, 24:, 2] = 255  # OpenCV's order
    cv2.imwrite(str(tmp_path / "halves.png"), pixels)
    row = {"image": str(tmp_path / "halves.png"), "label": 1, "mask": None, "defect_type": "x", "group": "x"}
    return pd.DataFrame([row | {"split": "test"}])


@pytest.mark.parametrize("own", ["squash", "letterbox"])
@pytest.mark.parametrize("resize", ["squash", "letterbox"])
def test_anomaly_masks_lie_where_the_picture_lies(halves, tmp_path, monkeypatch, own, resize):
    """Whatever way either system puts the picture on its input: the right half is anomalous, and no bar is."""
    data = tiny_data(halves, image_size=(32, 32), resize=resize)
    source = anomalous(tmp_path, monkeypatch, resize=own, image_size=(128, 64))
    (mask,) = source.masks(data, data.dataset.__getitems__([0]))
    rows = slice(0, 32) if resize == "squash" else slice(8, 24)
    expected = torch.zeros(1, 32, 32)
    expected[:, rows, 16:] = 1
    assert mask.shape == (1, 32, 32) and mask.dtype == torch.float32
    beside = [column for column in range(32) if column not in (15, 16)]  # where interpolation mixes the halves
    torch.testing.assert_close(mask[..., beside], expected[..., beside], atol=1e-5, rtol=0)


def test_an_anomaly_map_becomes_a_mask_through_its_quantiles():
    values = np.array([[-0.3, 0.0, 0.05], [0.1, 0.4, 0.025]], np.float32)
    picture = ScoredPicture(Path("a.png"), (2, 3), 0.4, values)
    mask = anomaly_mask(picture, "squash", size=(2, 3), resize="squash")
    np.testing.assert_allclose(mask, [[0, 0, 0.5], [1, 1, 0.25]], atol=1e-6)


def test_anomaly_masks_come_from_the_picture_alone(data, tmp_path, monkeypatch):
    source = anomalous(tmp_path, monkeypatch)
    batch = data.dataset.__getitems__([5, 2])
    told = source.masks(data, batch)
    untold = source.masks(data, batch._replace(masks=torch.zeros_like(batch.masks), labels=1 - batch.labels))
    assert torch.equal(told, untold) and told.min() >= 0 and told.max() <= 1 and not torch.equal(told[0], told[1])
    assert torch.equal(source.masks(data, data.dataset.__getitems__([2])), told[1:])
    assert source.summary == {
        "mask_source": "efficientad", "label_leaks": False, "efficientad_run": str(tmp_path), "teacher": "a teacher"
    }  # fmt: skip


def test_a_picture_that_cannot_be_read_is_named(data, tmp_path, monkeypatch):
    batch = data.dataset.__getitems__([3])
    Path(data.dataset.paths[3]).write_bytes(b"")
    with pytest.raises(DataError, match="image is empty"):
        anomalous(tmp_path, monkeypatch).masks(data, batch)


def test_the_run_that_makes_the_masks_must_be_named(tmp_path):
    with pytest.raises(RunError, match="'efficientad' needs efficientad_run, the folder of a finished EfficientAD run"):
        MaskSource.of(model(), "efficientad")
    with pytest.raises(
        RunError, match="efficientad_run is for mask_source 'efficientad'; this model is S6, and mask_so"
    ):
        MaskSource.of(model(), "external", tmp_path, tmp_path)
    settings = SimpleNamespace(strategy="S6", mask_source="efficientad", efficientad_run=tmp_path)
    assert MaskSource.of(settings).place == tmp_path
    assert MaskSource.of(settings, efficientad_run=tmp_path / "b").place == tmp_path / "b"


@pytest.fixture
def study(tmp_path):
    """A model of S6, its data, and a run of EfficientAD on them."""
    settings = tiny_settings(tmp_path, "S6")
    samples = build_samples(settings)
    torch.manual_seed(0)
    return build_model(settings), samples, write_anomaly_run(tiny_anomaly_settings(tmp_path))


def test_s6_is_evaluated_with_masks_of_an_efficientad_run(study):
    s6, samples, run = study
    data = tiny_data(samples, image_size=(64, 64), batch_size=8)
    table, summary = evaluate(s6, data=data, mask_source="efficientad", efficientad_run=run.folder)
    assert summary["mask_source"] == "efficientad" and summary["teacher"] == TEACHER["text"]
    assert summary["efficientad_run"] == str(run.folder) and summary["label_leaks"] is False
    without, _ = evaluate(s6, data=data, mask_source="none")
    assert (table["probability"] != without["probability"]).any() and s6.mask_source == "localization"


def test_masks_of_a_run_that_learnt_from_the_test_pictures_are_refused(study):
    s6, samples, run = study
    swapped = samples.assign(split=samples["split"].replace({"train": "test", "test": "train"}))
    data = tiny_data(swapped, image_size=(64, 64))
    with pytest.raises(RunError, match=r"learnt from \d+ of the \d+ test pictures"):
        evaluate(s6, data=data, mask_source="efficientad", efficientad_run=run.folder)


def test_an_efficientad_run_whose_data_moved_with_the_pictures_is_used(study, tmp_path):
    _, samples, run = study
    here = (tmp_path / "data").rename(tmp_path / "now")
    moved = samples.assign(
        image=samples["image"].str.replace(str(tmp_path / "data"), str(here)),
        mask=[mask and mask.replace(str(tmp_path / "data"), str(here)) for mask in samples["mask"]],
    )
    check_unseen(run, moved)
    assert not (tmp_path / "data").exists()  # and is not made anew
    with pytest.raises(RunError, match=r"learnt from \d+ of the \d+ test pictures"):
        check_unseen(run, moved.assign(split=moved["split"].replace({"train": "test", "test": "train"})))


def test_the_runs_own_efficientad_run_by_another_path_makes_its_own_masks(tmp_path):
    settings = SimpleNamespace(strategy="S6", mask_source="efficientad", efficientad_run=tmp_path / "run")
    assert _masks_from(tmp_path / "b" / ".." / "run", settings, None) is None  # so it is asked for novel pictures
    assert _masks_from(tmp_path / "b", settings, None) == tmp_path / "b"
