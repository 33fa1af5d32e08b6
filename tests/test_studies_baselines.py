"""What the literature would do: its pictures and losses by hand, and its methods as rows of a plan on tiny data."""

import math
import sys

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file
from scipy.special import expit
from tiny import tiny_settings
from torch import Tensor, nn

from gainmtl_lib import runs
from gainmtl_lib.backbone import ModelError, get_backbone
from gainmtl_lib.dataset import Batch, build_data
from gainmtl_lib.evaluation import evaluate
from gainmtl_lib.findings import DataError
from gainmtl_lib.model import GainOutput
from gainmtl_lib.runs import RunError, load_run
from gainmtl_lib.settings import SettingsError
from gainmtl_lib.studies import ablation, baselines
from gainmtl_lib.studies.plans import load_plan, run_study
from gainmtl_lib.train import fit


def batch_of(*rows: tuple[int, list[tuple[int, int]]]) -> Batch:
    """Random pictures of 6 x 8 pixels, each with a label and the places (y, x) of its mask."""
    images = torch.rand(len(rows), 3, 6, 8, generator=torch.Generator().manual_seed(3))
    masks = torch.zeros(len(rows), 1, 6, 8)
    for mask, (_, places) in zip(masks, rows):
        for y, x in places:
            mask[0, y, x] = 1
    labels, has_mask = torch.tensor([label for label, _ in rows]), masks.flatten(1).any(1)
    return Batch(images, labels, masks, has_mask, torch.arange(len(rows)))


class Linear(nn.Module):
    """A model whose margin's gradient by the picture is `weights`, (3, 6, 8), and whose batch norm would mix pictures."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights, self.norm = nn.Parameter(weights), nn.BatchNorm2d(3, eps=0.0)

    def forward(self, images: Tensor) -> GainOutput:
        margin = (self.norm(images) * self.weights).sum((1, 2, 3))
        return says(torch.stack([-margin, margin], dim=1) / 2)


def says(logits: Tensor) -> GainOutput:
    cam = torch.zeros(len(logits), 1, 2, 2)
    return GainOutput(logits=logits, cam=cam, cls_logits=logits, cls_cam=cam)


SCRATCH = [(1, 2), (2, 3), (3, 4)]  # a diagonal: its box is rows 1 to 3, columns 2 to 4


# --- Pictures


def test_the_box_around_a_mask_spans_all_its_pieces_and_is_none_without_one():
    box = baselines.around(batch_of((1, [(1, 2), (4, 6)]), (0, [])).masks)
    expected = torch.zeros(6, 8, dtype=torch.bool)
    expected[1:5, 2:7] = True
    assert torch.equal(box[0, 0], expected) and not box[1].any()


def test_a_filled_defect_is_normal_and_nothing_outside_its_box_changes():
    batch = batch_of((1, SCRATCH), (0, []), (1, []))
    shown = baselines.counterfactual_fill(batch)
    assert len(shown.images) == 5 and shown.labels.tolist() == [1, 0, 1, 0, 1]  # the defect filled, and elsewhere
    assert all(torch.equal(now[:3], then) for now, then in zip(shown, batch))
    filled, box = shown.images[3], baselines.around(batch.masks)[0, 0]
    assert torch.equal(filled[:, ~box], batch.images[0][:, ~box])
    assert (filled[:, box] != batch.images[0][:, box]).all() and not shown.has_mask[3] and not shown.masks[3].any()
    assert shown.index.tolist() == [0, 1, 2, 0, 0]


def test_a_defect_before_the_background_of_a_normal_picture_keeps_its_own_pixels():
    batch = batch_of((0, []), (1, SCRATCH))
    shown, mask = baselines.counterfactual_fill(batch), batch.masks[1, 0] > 0
    assert torch.equal(shown.images[3][:, mask], batch.images[1][:, mask])
    assert torch.equal(shown.images[3][:, ~mask], batch.images[0][:, ~mask])
    assert shown.labels[3] == 1 and shown.has_mask[3] and torch.equal(shown.masks[3], batch.masks[1])


def test_without_a_normal_picture_there_is_no_background_and_without_a_mask_nothing_to_fill():
    alone = batch_of((1, SCRATCH))
    assert baselines.counterfactual_fill(alone).labels.tolist() == [1, 0]
    bare = batch_of((1, []), (0, []))
    assert baselines.counterfactual_fill(bare) is bare and baselines.outside_noise(bare) is bare


def test_fills_are_noise_the_mean_outside_and_the_largest_strip_repeated():
    image = torch.arange(24.0).view(1, 4, 6).repeat(3, 1, 1)
    box = torch.zeros(1, 4, 6, dtype=torch.bool)
    box[0, 1, 4] = True  # beside it: 1 row above, 2 below (12 pixels), 4 columns to the left (16), 1 to the right
    row = [0, 1, 2, 3, 0, 1]
    expected = torch.tensor([[6 * y + x for x in row] for y in range(4)]).float()
    assert torch.equal(baselines.tiles(image, box)[0], expected)
    assert not baselines.tiles(image, torch.ones_like(box)).any()
    mean = (sum(range(24)) - 10) / 23
    assert torch.allclose(baselines.mean_colour(image, box), torch.full((3, 4, 6), mean))
    torch.manual_seed(0)
    drawn = baselines.noise(torch.zeros(3, 64, 64), box)
    assert drawn.min() >= 0 and drawn.max() <= 1 and drawn.std() > 0.05


def test_noise_lies_outside_the_mask_and_a_normal_picture_keeps_a_defects_shape_clean(monkeypatch):
    batch, monkey = batch_of((1, SCRATCH), (0, []), (1, [])), monkeypatch
    monkey.setattr(baselines, "NOISY", 1.0)
    shown, mask = baselines.outside_noise(batch), batch.masks[0, 0] > 0
    for place in (0, 1):
        assert torch.equal(shown.images[place][:, mask], batch.images[place][:, mask])
        assert (shown.images[place][:, ~mask] != batch.images[place][:, ~mask]).float().mean() > 0.9
    assert torch.equal(shown.images[2], batch.images[2])  # where its core is, nobody knows
    assert torch.equal(shown.labels, batch.labels) and torch.equal(shown.masks, batch.masks)
    monkey.setattr(baselines, "NOISY", 0.0)
    assert torch.equal(baselines.outside_noise(batch).images, batch.images)


def test_half_of_either_class_are_noisy():
    batch = batch_of(*[(1, SCRATCH), (0, [])] * 200)
    torch.manual_seed(0)
    changed = (baselines.outside_noise(batch).images != batch.images).flatten(1).any(1)
    assert all(0.4 < changed[batch.labels == label].float().mean() < 0.6 for label in (0, 1))


# --- Losses


def test_the_gradient_is_penalised_outside_the_mask_only():
    batch = batch_of((1, SCRATCH), (0, []), (1, []))
    weights = torch.zeros(3, 6, 8)
    weights[:, 2, 3] = 5.0  # within the scratch
    assert baselines.input_gradient_penalty(Linear(weights), batch) == 0
    weights[0, 0, 0] = 12.0
    model = Linear(weights)
    penalty = baselines.input_gradient_penalty(model, batch)
    assert penalty.item() == pytest.approx(144 / (3 * 6 * 8))  # of the one annotated defect
    penalty.backward()
    assert model.weights.grad is not None and model.weights.grad[0, 0, 0] > 0
    assert model.weights.grad.count_nonzero() == 1 and model.norm.training and not model.norm.running_mean.any()
    assert baselines.input_gradient_penalty(model, batch_of((0, []), (1, []))) == 0


def test_group_weights_move_to_the_worse_group_by_the_exponentiated_step():
    loss = baselines.GroupDROLoss(torch.tensor([0, 1, 0, 1]))
    batch = batch_of((0, []), (0, []), (1, []), (0, []))  # groups 0, 1, 2, 1
    probability = torch.tensor([0.5, 0.9, 0.2, 0.1])  # of the label
    margin = torch.logit(probability) * torch.tensor([-1.0, -1.0, 1.0, -1.0])
    terms = loss(says(torch.stack([-margin, margin], 1) / 2), batch, {})
    means = [math.log(2), -(math.log(0.9) + math.log(0.1)) / 2, -math.log(0.2), 0.0]
    raised = [0.25 * math.exp(0.01 * mean) for mean in means]
    expected = [value / sum(raised) for value in raised]
    assert loss.weights.tolist() == pytest.approx(expected) and int(loss.weights.argmax()) == 2
    assert terms["total"].item() == pytest.approx(sum(q * mean for q, mean in zip(expected, means)), rel=1e-5)
    kept = loss.weights.clone()
    mean = -float(probability.log().mean())
    assert loss.eval()(says(torch.stack([-margin, margin], 1) / 2), batch, {})["total"].item() == pytest.approx(mean)
    assert torch.equal(loss.weights, kept) and "weights" in loss.state_dict()  # a resumed run goes on with them


def test_every_group_is_drawn_equally_often_and_a_row_that_comes_again_is_augmented_anew():
    groups = np.array([0] * 90 + [1] * 6 + [3] * 4)
    sampler = baselines.GroupSampler(range(100), groups, seed=0, epochs=5)
    counts = np.zeros(4)
    for epoch in range(40):
        sampler.set_epoch(epoch)
        keys = list(sampler)
        assert len(keys) == len(set(keys)) == 100 and all(shown % 5 == epoch % 5 for shown, _ in keys)
        counts += np.bincount(groups[[row for _, row in keys]], minlength=4)
    assert counts / counts.sum() == pytest.approx([1 / 3, 1 / 3, 0, 1 / 3], abs=0.03)
    assert [*sampler] == keys


def test_a_balanced_regression_follows_the_feature_that_the_groups_do_not_tell():
    rng = np.random.default_rng(0)
    labels, edited = np.repeat([0, 1], 200), rng.integers(2, size=400)
    # The first column is the label; the second goes with it where nothing is edited, and against it elsewhere.
    cue = np.where(edited == 0, labels, 1 - labels)
    features = np.stack([3.0 * labels, 10.0 * cue, np.ones(400)], 1) + rng.normal(0, 0.2, (400, 3)) * [1, 1, 0]
    weight, bias = baselines.balanced_regression(features, labels, edited, np.arange(400), seed=0)
    assert weight[0] > 0 and abs(weight[1] * 10) < 0.1 * weight[0] * 3 and weight[2] == 0
    assert ((features @ weight + bias > 0) == labels).all()
    with pytest.raises(DataError, match="half of the pictures lacks normal or defective ones, edited or as they are"):
        baselines.balanced_regression(features, labels, labels, np.arange(400), seed=0)


# --- A method as a row of a plan

ROWS = {
    "S1": {"strategy": "S1"},
    "noise": {"strategy": "S1", "method": "outside_noise"},
    "last layer": {"strategy": "S1", "method": "last_layer_retraining", "image_counterfactual": 0.5},
    "U-Net": {"strategy": "S1", "method": "unet"},
}


def tiny_plan(folder, rows, **changed):
    settings = tiny_settings(folder, "S1", num_epochs=1, **changed).plain()
    left_out = {"strategy", "variant", "seed", "experiment"} | {n for n in settings if n.startswith("lambda_")}
    values = {name: value for name, value in settings.items() if name not in left_out | {"image_counterfactual"}}
    plan = {"experiment": "tiny", "seeds": [0], "parameters": values, "rows": rows, "steps": []}
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan, sort_keys=False), encoding="utf-8")
    return load_plan(folder / "plan.yaml")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    plan = tiny_plan(tmp_path_factory.mktemp("baselines"), ROWS, use_tensorboard=False)
    return plan, run_study(plan.cells())


def test_methods_are_trained_stored_evaluated_and_stand_in_the_tables(made):
    plan, study = made
    assert study.state == "4 of 4 runs" and [cell.row for cell in study.runs] == list(ROWS)
    assert [cell.run.manifest["method"] for cell in study.runs] == [
        "", "outside_noise", "last_layer_retraining", "unet",
    ]  # fmt: skip
    assert [cell.run.folder.parent.name for cell in study.runs] == ["s1", "s1-noise", "s1-last-layer", "s1-u-net"]
    report = ablation.plan_report(plan, study.runs)
    assert report.sections["rows: test"].index.tolist() == list(ROWS)
    assert report.sections["rows: test_shift"].index.tolist() == list(ROWS)
    scores = report.tables["rows"].set_index(["row", "split", "metric"])["mean"]
    assert all(0 <= scores[(row, split, "auroc")] <= 1 for row in ROWS for split in ("test", "test_shift"))
    assert scores[("U-Net", "test", "grid_iou")] == 1  # its map is as fine as the picture


def test_equal_runs_are_reused_and_a_folder_of_another_method_is_refused(made):
    plan, study = made
    before = [(cell.run.folder / "model.safetensors").stat().st_mtime_ns for cell in study.runs]
    assert run_study(plan.cells()).state == "4 of 4 runs"
    assert [(cell.run.folder / "model.safetensors").stat().st_mtime_ns for cell in study.runs] == before
    folder = study.runs[1].run.folder.parents[3]
    other = tiny_plan(folder, {"noise": {"strategy": "S1", "method": "counterfactual_fill"}}, use_tensorboard=False)
    for only_report in (True, False):
        state = run_study(other.cells(), only_report=only_report).state
        assert "other settings (stored and planned): method: 'outside_noise' and 'counterfactual_fill'" in state
    with pytest.raises(RunError, match="holds a run of method 'outside_noise', asked for is ''; name the variant"):
        fit(study.runs[1].settings)


def test_the_last_layer_alone_is_retrained(made):
    base, other = (load_file(made[1].runs[place].run.folder / "model.safetensors") for place in (0, 2))
    assert {name for name in base if not torch.equal(base[name], other[name])} == {
        "cls_head.out.weight", "cls_head.out.bias",
    }  # fmt: skip
    assert made[1].runs[2].run.manifest["retrained"] == "s1"
    assert torch.equal(other["cls_head.out.weight"][0], -other["cls_head.out.weight"][1])


def test_the_u_net_decides_by_the_maximum_of_its_map(made):
    run = load_run(made[1].runs[3].run.folder)
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        said = run.model(images)
    margin = said.logits[:, 1] - said.logits[:, 0]
    assert said.cam.shape == (2, 1, 64, 64) and torch.allclose(margin, said.cam.flatten(1).amax(1), atol=1e-5)
    assert torch.equal(said.localization_map, said.cam.sigmoid())
    table, cams = run.predictions, run.maps["cam"]
    peaks = torch.from_numpy(np.array(cams)).float().flatten(1).amax(1).sigmoid().numpy()
    assert expit(table["margin"].to_numpy()) == pytest.approx(peaks, abs=2e-3)
    best, _ = runs.load_checkpoint_model(run.folder / "checkpoints" / "best.ckpt")
    assert isinstance(best, baselines.UNet) and table.loc[table["label"] == 1, "loc_iou"].notna().all()


def test_the_u_nets_encoder_is_the_backbone_with_its_weights_and_frozen_levels(tmp_path):
    settings = tiny_settings(tmp_path, "S1", backbone_arch="lite0", freeze_backbone_stages=1)
    torch.manual_seed(0)
    model = baselines.UNet(settings, pretrained=False)
    torch.manual_seed(0)
    source = get_backbone("lite0", False, (1, 2, 3, 4), frozen_stages=1)
    images = torch.rand(2, 3, 64, 64)
    levels, own = source.eval()(images)[:-1], model.eval().backbone(images)[2:]
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(levels, own, strict=True))
    frozen = {name for name, parameter in model.backbone.model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, parameter in source.net.named_parameters() if not parameter.requires_grad} != set()
    model.train()
    modes = dict(model.backbone.model.named_modules())
    assert not modes["bn1"].training and modes["blocks.6.0.bn1"].training and model.backbone.depthwise
    loss = baselines.PixelLoss()(model(images), Batch(images, *parts_with_a_defect()), {})
    loss["total"].backward()
    assert model.network.segmentation_head[0].weight.grad.abs().sum() > 0


def parts_with_a_defect():
    masks = torch.zeros(2, 1, 64, 64)
    masks[0, :, :8, :8] = 1
    return torch.tensor([1, 0]), masks, torch.tensor([True, False]), torch.arange(2)


def test_the_oracle_and_the_penalty_train_an_epoch_each(tmp_path, monkeypatch):
    rows = {
        "DRO": {"strategy": "S1", "method": "group_dro"},
        "gradient": {"strategy": "S1", "method": "counterfactual_fill_gradient"},
    }
    penalties, penalty = [], baselines.input_gradient_penalty

    def noted(*given):
        penalties.append(penalty(*given))
        return penalties[-1]

    monkeypatch.setattr(baselines, "input_gradient_penalty", noted)
    cells = tiny_plan(tmp_path, rows, use_tensorboard=False, num_samples=20).cells()
    assert run_study(cells).state == "2 of 2 runs"
    assert len(penalties) == 2 and all(value.requires_grad and value > 0 for value in penalties)  # 12 pictures by 8
    stored = runs.read_checkpoint(cells[0].run.folder / "checkpoints" / "last.ckpt")["state_dict"]["loss.weights"]
    assert stored.sum().item() == pytest.approx(1) and stored.unique().numel() > 1
    assert runs.load_checkpoint_model(cells[0].run.folder / "checkpoints" / "last.ckpt")[0].strategy == "S1"
    data = baselines.CueBalancedData(cells[0].settings)
    table = pd.read_csv(cells[0].settings.data_root / "samples.csv").set_index("image")["has_shortcut"]
    names = [path.split("/data/")[1] for path in data.samples["image"]]
    assert data.cues.tolist() == table[names].tolist() and 0 < data.cues.sum() < len(names)


# --- Bad input


@pytest.mark.parametrize(("row", "said"), [
    ({"method": "outside_nois"}, "row 'X': unknown method 'outside_nois'; did you mean 'outside_noise'?; methods: count"),
    ({"method": 3}, "row 'X': unknown method 3; methods: counterfactual_fill,"),
    ({"method": "unet", "strategy": "S5"}, "row 'X': method 'unet' takes the place of S1, got strategy 'S5'"),
    ({"method": "group_dro", "devices": 2}, "method 'group_dro' trains on one device; leave devices and num_nodes out"),
    ({"method": "unet", "tile_size": 64}, "row 'X': method 'unet' reads pictures as a whole; leave tile_size out"),
    ({"method": "last_layer_retraining"},
     "method 'last_layer_retraining' needs pictures of both kinds, edited and not: image_counterfactual between 0 and 1, got 0"),
    ({"method": "last_layer_retraining", "image_counterfactual": 1.0}, "between 0 and 1, got 1"),
    ({"method": "group_dro", "crop_size": 32}, "which pictures show the cue, not which crops of them; leave crop_size out"),
])  # fmt: skip
def test_a_method_that_does_not_fit_is_refused_before_anything_is_trained(tmp_path, row, said):
    with pytest.raises(SettingsError) as error:
        tiny_plan(tmp_path, {"X": {"strategy": "S1"} | row})
    assert said in str(error.value) and str(error.value).startswith(f"{tmp_path / 'plan.yaml'}: ")


def test_a_method_is_a_row_of_its_own_and_comes_from_rows_alone(tmp_path):
    with pytest.raises(SettingsError, match="row 'S1' has the method 'unet'; name it otherwise than the strategy"):
        tiny_plan(tmp_path, {"S1": {"strategy": "S1", "method": "unet"}})
    tiny_plan(tmp_path, {"S1": {"strategy": "S1"}})
    with pytest.raises(SettingsError, match="parameters: method comes from the plan itself; leave it out"):
        load_plan(tmp_path / "plan.yaml", method="unet")


def test_an_unknown_cue_and_a_missing_package_name_what_to_do(tmp_path, generic, monkeypatch):
    settings = tiny_settings(tmp_path, "S1", data_root=generic, dataset_type="generic", variant="dro")
    with pytest.raises(
        DataError, match=r"samples\.csv: does not tell which pictures show a cue.*; plant one: gainmtl data"
    ):
        baselines.fit_method(settings, "group_dro")
    assert not (settings.run_dir / "settings.yaml").exists()
    build_data(settings).setup()
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(ModelError, match="missing; pip install segmentation-models-pytorch"):
        baselines.fit_method(settings, "unet")


def test_the_plan_of_the_baselines_has_every_method():
    plan = load_plan("baselines")
    assert {cell.method for cell in plan.cells()} == {"", *baselines.METHODS}
    assert {cell.settings.backbone_arch for cell in plan.cells()} == {"lite0"}


def test_a_finished_method_is_evaluated_by_its_folder(made):
    run = load_run(made[1].runs[3].run.folder)
    table, metrics = evaluate(run)
    assert metrics["threshold"] == run.metrics["threshold"] and len(table) == len(run.predictions)
