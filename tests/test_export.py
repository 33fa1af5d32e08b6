"""A model in one file: the same verdicts as the run, its card, and what is refused."""

import errno
import json
import os
import pickle
import tracemalloc
import zipfile
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from anomaly_runs import tiny_anomaly_settings, write_anomaly_run
from drawn_data import write_picture
from test_commands import done, refused
from tiny import tiny_settings

from gainmtl_lib import export as module
from gainmtl_lib.dataset import Batch
from gainmtl_lib.efficientad.evaluate import evaluate_efficientad
from gainmtl_lib.evaluation import evaluate
from gainmtl_lib.export import Card, ExportError, LineModel, card_of, export_run, open_judge
from gainmtl_lib.findings import DataError
from gainmtl_lib.predict import Predictor
from gainmtl_lib.runs import FileError, Run, RunError
from gainmtl_lib.train import fit


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    small = {"backbone_arch": "test_resnet", "num_epochs": 1}  # whose graph is soon written
    run = fit(tiny_settings(tmp_path_factory.mktemp("exported"), "S8", **small))
    evaluate(run)
    return run


@pytest.fixture(scope="module")
def anomalies(tmp_path_factory):
    run = write_anomaly_run(tiny_anomaly_settings(tmp_path_factory.mktemp("exported_anomalies")))
    evaluate_efficientad(run)
    return run


def test_the_card_says_what_the_run_measured(trained, anomalies):
    card, measured, head = card_of(trained), trained.metrics, trained.model.evidence
    assert (card.strategy, card.run, card.image_size, card.input_size) == ("S8", "tiny/s8/seed42", (64, 64), (64, 64))
    assert card.threshold == measured["threshold"] and list(card.calibration) == list(measured["calibration"])
    assert card.evidence.cells == head.cells and card.evidence.offset == tuple(head.offset.tolist())
    val = trained.predictions.query("split == 'val'")
    assert (
        len(card.validation["defective"]) == val["label"].sum()
        and len(card.validation["normal"]) == (1 - val["label"]).sum()
    )
    assert Card.read(card.model_dump_json(), trained.folder) == card
    other = card_of(anomalies)
    assert other.novelty_threshold == anomalies.metrics["novelty_threshold"] and other.origin == anomalies.teacher
    with pytest.raises(ExportError, match=r"x: no model that gainmtl export wrote: it holds no card"):
        Card.read("", "x")
    with pytest.raises(ExportError, match="x: no model that gainmtl export wrote: Field required"):
        Card.read("{}", "x")


def test_the_evidence_of_a_card_gives_the_margin_of_the_head(trained):
    maps = torch.randn(3, 1, 4, 4)
    margins = [card_of(trained).evidence.margin(one.numpy()) for one in maps[:, 0]]
    assert margins == pytest.approx(trained.model.evidence.margin(maps).tolist(), abs=1e-5)


@pytest.mark.parametrize("kind", ["onnx", "openvino", "torch"])
def test_an_export_says_what_the_run_says_for_any_batch(trained, kind, tmp_path):
    suffix = {"onnx": ".onnx", "openvino": "", "torch": ".pt2"}[kind]
    path, found = export_run(trained, tmp_path / f"m{suffix}", kind=kind)
    assert found.pictures == 4 and found.changed == 0 and found.largest < 1e-4
    assert [one.name for one in tmp_path.iterdir()] == [path.name]  # nothing half-made beside it
    judge, own = open_judge(path, trust=True, threads=1), open_judge(trained.folder)
    assert judge.card == card_of(trained)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    for count in (1, 3):
        for told, expected in zip(judge.outputs(pixels[:count]), own.outputs(pixels[:count]), strict=True):
            assert np.asarray(told, np.float32) == pytest.approx(expected, abs=1e-4)
    picture = write_picture(tmp_path / "a.png", size=(100, 80))
    said, as_run = (next(iter(Predictor(one)([picture]))) for one in (judge, own))
    assert said.probability == pytest.approx(as_run.probability, abs=1e-4)
    assert (said.verdict, said.boxes, said.model) == (as_run.verdict, as_run.boxes, as_run.model)
    with pytest.raises(DataError, match="tile_size is 32x32, but the exported network takes 64x64"):
        Predictor(judge, tile_size=(32, 32))
    large = next(iter(Predictor(judge, tile_size=(64, 64))([write_picture(tmp_path / "b.png", size=(200, 130))])))
    assert large.error == "" and large.share.shape == (200, 130)


def test_efficientad_is_exported_too_and_judges_in_tiles(anomalies, tmp_path):
    path, found = export_run(anomalies, tmp_path / "m.onnx")
    assert found.changed == 0 and found.largest < 1e-4
    picture = write_picture(tmp_path / "a.png", size=(64, 64))
    said, own = (next(iter(Predictor(place)([picture]))) for place in (path, anomalies.folder))
    assert said.score == pytest.approx(own.score, rel=1e-3) and said.verdict == own.verdict
    tiled = next(
        iter(Predictor(anomalies.folder, tile_size=(64, 64), tile_overlap=0.5)([np.zeros((64, 160, 3), np.uint8)]))
    )
    assert tiled.share.shape == (64, 160) and tiled.error == ""


def test_smaller_precisions_report_their_loss_and_are_refused_beyond_what_is_allowed(trained, tmp_path, monkeypatch):
    path, found = export_run(trained, tmp_path / "m", kind="openvino", precision="int8", largest_change=1.0)
    assert open_judge(path).card.precision == "int8" and 0 < found.mean <= found.largest
    before = (path / "model.xml").read_bytes()
    monkeypatch.setattr(module, "_agreement", lambda *_: module.Agreement(4, 1, 0.3, 0.1, 1.0, 0.8))
    monkeypatch.setattr(module, "_quantised", lambda model, _: model)
    told = "not written: on validation 1 of 4 verdicts differ from the run's, probabilities by up to 0.3; allowed are"
    with pytest.raises(ExportError, match=rf"m: {told} 1.0% of the verdicts$"):
        export_run(trained, path, kind="openvino", precision="int8")
    with pytest.raises(ExportError, match=rf"m.pt2: {told} 0.0% of the verdicts and 0.0001 of a probability"):
        export_run(trained, tmp_path / "m.pt2", kind="torch")
    full = Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))  # without the file's name
    monkeypatch.setattr(module, "write_export", full)
    with pytest.raises(FileError, match=r"m: the disk is full \(.* MB free\); make room"):
        export_run(trained, path, kind="openvino")
    assert (path / "model.xml").read_bytes() == before and [one.name for one in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_half_precision_takes_half_the_room_and_says_nearly_the_same(anomalies, kind, tmp_path):
    place = tmp_path / {"onnx": "m.onnx", "openvino": "m"}[kind]
    path, found = export_run(anomalies, place, kind=kind, precision="float16", largest_change=1.0)
    assert open_judge(path).card.precision == "float16" and 0 < found.largest < 0.01
    weights = path if kind == "onnx" else path / "model.bin"
    assert weights.stat().st_size < 0.6 * (anomalies.folder / "model.safetensors").stat().st_size


def test_a_run_trained_in_half_precision_is_exported_beside_itself_in_single(tmp_path):
    run = write_anomaly_run(tiny_anomaly_settings(tmp_path, precision="bf16"))
    evaluate_efficientad(run)
    _, found = export_run(run, tmp_path / "m.pt2", kind="torch")
    assert found.changed == 0 and found.largest < 1e-4
    assert open_judge(run).precision == "bf16"


def test_probabilities_that_are_no_numbers_do_not_agree(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_agreement", lambda *_: module.Agreement(4, 0, np.nan, np.nan, 1.0, np.nan))
    monkeypatch.setattr(module, "write_export", Mock())
    monkeypatch.setattr(module, "open_judge", Mock())
    for precision in ("float32", "float16"):
        with pytest.raises(ExportError, match=r"not written: on validation 0 of 4 .* by up to nan"):
            export_run(trained, tmp_path / "m.onnx", precision=precision)


def test_an_export_takes_the_place_of_an_earlier_one_alone(trained, tmp_path, monkeypatch):
    begun = Mock()
    monkeypatch.setattr(module, "EagerJudge", begun)
    (tmp_path / "models" / "x.onnx").mkdir(parents=True)
    (tmp_path / "models" / "model.xml").write_text("")
    (tmp_path / "file").write_text("")
    for name, kind, told in (
        ("models", "openvino", "holds x.onnx, and openvino writes a folder of its own, with model.bin and model.xml"),
        ("models/x.onnx", "onnx", "a folder, where onnx writes a file; remove it, or choose another place"),
        ("file", "openvino", "a file, where openvino writes a folder; remove it"),
    ):
        with pytest.raises(ExportError, match=f"{name}: {told}"):
            export_run(trained, tmp_path / name, kind=kind)
    with pytest.raises(ExportError, match=r"; choose one that is not there yet, such as .*openvino"):
        export_run(trained, trained.folder, kind="openvino")
    assert not begun.called and (trained.folder / "model.safetensors").is_file()


def test_a_linked_folder_of_an_earlier_export_keeps_its_link(trained, tmp_path, monkeypatch):
    def write(_, __, path, ___):
        path.mkdir()
        for name in module.OPENVINO:
            (path / name).write_text("new")

    monkeypatch.setattr(module, "_agreement", lambda *_: module.Agreement(4, 0, 0.0, 0.0, 1.0, 1.0))
    monkeypatch.setattr(module, "write_export", write)
    monkeypatch.setattr(module, "open_judge", Mock())
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1" / "model.xml").write_text("old")
    (tmp_path / "now").symlink_to(tmp_path / "v1")
    export_run(trained, tmp_path / "now", kind="openvino")
    assert (tmp_path / "now").is_symlink() and sorted(one.name for one in tmp_path.iterdir()) == ["now", "v1"]
    assert {one.name: one.read_text() for one in (tmp_path / "v1").iterdir()} == dict.fromkeys(module.OPENVINO, "new")


def batches(count, size=(64, 64), defect=None):
    """Of one picture each, every other one with its number in the pixels of a defect at `defect`."""
    for number in range(count):
        image, mask = torch.zeros(1, 3, *size), torch.zeros(1, 1, *size)
        if number % 2 and defect:
            image[..., *defect], mask[..., *defect] = number / 255, 1
        yield Batch(image, torch.tensor([number % 2]), mask, torch.tensor([bool(defect)]), torch.tensor([number]))


def test_int8_takes_its_ranges_from_some_of_the_tiles_and_from_the_defects(trained, monkeypatch):
    wide = {"precision": "int8", "image_size": (64, 256), "input_size": (64, 64)}
    card, defect = card_of(trained).model_copy(update=wide), (slice(0, 8), slice(200, 208))
    found = module._samples(batches(40, (64, 256), defect), card)
    assert found.shape[1:] == (64, 64, 3) and 40 <= len(found) <= 60
    assert {*range(1, 40, 2)} <= {*found.max((1, 2, 3)).tolist()} and len(found) > 40  # of every defect
    monkeypatch.setattr(module, "SAMPLES", 10)
    few = [module._samples(batches(40, (64, 256), defect), card) for _ in range(2)]
    assert len(few[0]) == 10 and np.array_equal(*few) and few[0].max() > 20  # not of the first pictures alone


def test_what_comparing_holds_does_not_grow_with_the_pictures(trained):
    answer = [np.array([True]), np.array([0.5]), np.zeros(1), np.zeros((1, 4, 4)), np.zeros((1, 64, 64))]
    judge, peaks = Mock(card=card_of(trained), outputs=lambda _: answer), []
    for count in (4, 40):
        loader = Mock(__iter__=lambda _, count=count: batches(count), __len__=lambda _, count=count: count)
        tracemalloc.start()
        assert module._agreement(judge, judge, loader).pictures == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 2 * peaks[0]


def test_what_cannot_be_exported_or_opened_says_why(trained, tmp_path, monkeypatch):
    with pytest.raises(ExportError, match="format torch is of float32, got int8"):
        export_run(trained, kind="torch", precision="int8")
    with pytest.raises(ExportError, match=r"m.bin: a file of format onnx ends in .onnx"):
        export_run(trained, tmp_path / "m.bin")
    (tmp_path / "x.onnx").write_bytes(b"nothing")
    (tmp_path / "ov").mkdir()
    (tmp_path / "ov" / "model.xml").write_text("nothing")
    (tmp_path / "x.pt2").write_bytes(b"nothing")
    for name, message in (
        ("x.onnx", "x.onnx: no ONNX model that can be read"),
        ("ov", "ov: no OpenVINO model that can be read"),
        ("x.pt2", "x.pt2: no exported program that can be read"),
        ("y.onnx", "y.onnx: no such file"),
    ):
        with pytest.raises(ExportError, match=message):
            open_judge(tmp_path / name, trust=True)
    with pytest.raises(ExportError, match="an exported model chooses its device by itself; leave device 'cuda' out"):
        open_judge(tmp_path / "x.onnx", device="cuda")
    with pytest.raises(RunError, match="no run here"):
        open_judge(tmp_path)
    unevaluated = Run(tmp_path / "r")
    with pytest.raises(RunError, match="first: gainmtl evaluate"):
        card_of(unevaluated)
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(ExportError, match=r"onnxruntime is missing; pip install .* --editable '.\[export\]'"):
        open_judge(tmp_path / "x.onnx")


class Runs:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_a_file_from_elsewhere_never_runs_code(trained, tmp_path):
    ran = tmp_path / "ran"
    with zipfile.ZipFile(tmp_path / "evil.pt2", "w") as archive:
        archive.writestr("version", "8.0")
        for name in ("serialized_exported_program.json", "serialized_state_dict.pt", "serialized_constants.pt"):
            archive.writestr(name, pickle.dumps(Runs(str(ran))))
    with pytest.raises(ExportError, match=r"evil.pt2: PyTorch reads this format in a way that can run code"):
        open_judge(tmp_path / "evil.pt2")
    assert not ran.exists()


def test_the_line_model_puts_an_anomaly_map_around_one_half_by_its_scale(anomalies):
    card = card_of(anomalies).model_copy(update={"map_scale": (1.0, 3.0), "calibration": (1.0, 0.0), "threshold": 0.5})
    found = LineModel(anomalies.model, card)
    pixels = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    with torch.no_grad():
        verdict, probability, score, maps, located = found(pixels)
        own = anomalies.model(pixels.permute(0, 3, 1, 2).float() / 255)
    assert torch.equal(score, own.score) and torch.equal(maps, own.cells[:, 0])
    assert torch.equal(verdict, probability >= 0.5) and torch.allclose(probability, torch.sigmoid(own.score))
    assert torch.allclose(located, (0.25 + 0.25 * own.anomaly_map[:, 0]).clamp(0, 1))  # 1 is 0.5, 3 is 1
    assert not found.model.training


def test_the_command_exports_and_prints_the_agreement(trained, tmp_path):
    path = trained.folder / "exports/torch-float32.pt2"
    printed = done("export", trained.folder, "--format", "torch")
    assert "verdicts that differ" in printed and path.is_file()
    picture = write_picture(tmp_path / "a.png", size=(64, 64))
    assert "1 judged" in done("predict", path, picture, "--output", tmp_path / "v.csv", "--trust")
    assert "give --trust for a file of your own" in refused("predict", path, picture, "--output", tmp_path / "v.csv")
    assert "ends in .onnx" in refused("export", trained.folder, "--output", tmp_path / "m")
    assert json.loads(card_of(trained).model_dump_json())["system"] == "GAIN-MTL"
