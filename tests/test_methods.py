import pytest
import torch
from looks_at_corner import Pictures
from narrow_models import NARROW, built, images

from gainmtl_lib.backbone import ModelError
from gainmtl_lib.metrics import cam_iou, energy_inside, grid_iou, point_game
from gainmtl_lib.model import GAINMTLModel
from gainmtl_lib.studies.faithfulness import CAM_METHODS, compute_cam, method_scores


@pytest.mark.parametrize("strategy,map_stride", [("S1", 16), ("S2", 8), ("S3", 16), ("S6", 16)])
@pytest.mark.parametrize("method", CAM_METHODS)
def test_every_method_gives_raw_maps_on_the_grid(strategy, map_stride, method):
    maps = compute_cam(built(strategy, map_stride), images(), method)
    assert maps.shape == (2, 1, 64 // map_stride, 64 // map_stride)
    assert maps.dtype == torch.float32 and maps.isfinite().all() and not maps.requires_grad


def test_conv_head_itself_is_explained_at_stride_32():
    narrow = NARROW | {"head_channels": 4}
    model = GAINMTLModel(**narrow, strategy="S1", map_stride=32).eval()
    for method in ("ours", "hires_cam", "layer_cam"):
        assert compute_cam(model, images(1), method).shape == (1, 1, 2, 2)


@pytest.mark.parametrize("strategy", ["S1", "S3", "S6"])
def test_hires_cam_is_our_map_by_the_number_of_cells_and_grad_cam_its_positive_part(strategy):
    # The head averages first, so the margin's gradient in each cell is the exact map's weight over h * w.
    model = built(strategy)
    ours = compute_cam(model, images(), "ours") / 16
    assert ours.min() < 0 < ours.max()
    torch.testing.assert_close(compute_cam(model, images(), "hires_cam"), ours)
    torch.testing.assert_close(compute_cam(model, images(), "grad_cam"), ours.relu())
    torch.testing.assert_close(compute_cam(model, images(), "ours"), model(images()).cam)


@pytest.mark.parametrize("method", [name for name in CAM_METHODS if name != "score_cam"])
def test_a_picture_has_its_map_whatever_the_batch_and_memory_format(method):
    model, three = built("S3"), images(3)
    together = compute_cam(model, three, method)
    torch.testing.assert_close(compute_cam(model, three[1:2], method), together[1:2], atol=1e-5, rtol=1e-4)
    last = three.to(memory_format=torch.channels_last)
    torch.testing.assert_close(compute_cam(model, last, method), together, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("method", CAM_METHODS)
def test_the_model_is_left_as_it_was(method):
    torch.manual_seed(0)
    model = GAINMTLModel(**NARROW, strategy="S3", map_stride=16, freeze_backbone_stages=1).train()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    held = model.attention.attended_cls_head.out.weight
    held.grad = torch.ones_like(held)
    compute_cam(model, images(1), method)
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == flags and not all(flags)
    assert torch.equal(held.grad, torch.ones_like(held))
    assert all(parameter.grad is None for parameter in model.parameters() if parameter is not held)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_frozen_weights_and_inference_mode_do_not_matter():
    expected = compute_cam(built("S3"), images(), "layer_cam")
    torch.manual_seed(0)
    model = GAINMTLModel(**NARROW, strategy="S3", map_stride=16).requires_grad_(False)
    with torch.inference_mode():
        frozen = compute_cam(model, images().clone(), "layer_cam")
    torch.testing.assert_close(frozen, expected)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_single_precision_under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps = compute_cam(built("S1"), images(), "hires_cam")
    torch.testing.assert_close(maps, compute_cam(built("S1"), images(), "hires_cam"))


def test_hooks_are_gone_after_an_error():
    model = built("S1")
    with pytest.raises(RuntimeError):
        compute_cam(model, torch.rand(1, 5, 64, 64), "grad_cam")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_attention_beside_the_methods():
    model = built("S3")
    torch.testing.assert_close(compute_cam(model, images(), "attention"), model(images()).effective_attention)


def test_unknown_methods_and_missing_attention_are_named():
    known = "ours, grad_cam, layer_cam, hires_cam, eigen_cam, score_cam"
    with pytest.raises(ModelError, match=f"method must be one of {known} or attention, got 'gradcam'"):
        compute_cam(built("S1"), images(), "gradcam")
    with pytest.raises(ModelError, match=f"strategy S1 has no attention, which begins with S3; there are {known}"):
        compute_cam(built("S1"), images(), "attention")


def test_scores_are_those_of_the_metrics_on_the_same_pictures():
    data, model = Pictures(3, size=64), built("S3")
    table = method_scores(model, data, [2, 0, 1], ("ours", "layer_cam"), batch_size=2)
    assert table["method"].tolist() == ["ours"] * 3 + ["layer_cam"] * 3
    assert table["row"].tolist() == [2, 0, 1] * 2
    batch = data.batch([2, 0, 1])
    for method, rows in table.groupby("method"):
        maps = compute_cam(model, batch.images, method)
        for name, score in {"cam_iou": cam_iou, "point_game": point_game, "energy_inside": energy_inside}.items():
            assert rows[name].tolist() == pytest.approx(score(maps, batch.masks).tolist(), abs=1e-4)
        assert rows["grid_iou"].tolist() == pytest.approx(grid_iou(batch.masks, (4, 4)).tolist())


def test_without_masks_there_are_rows_and_no_scores():
    data = Pictures(1, size=64)
    data.dataset.__getitems__ = lambda rows: data.batch(rows)._replace(
        has_mask=torch.zeros(len(rows), dtype=torch.bool)
    )
    table = method_scores(built("S1"), data, [0], ["ours"])
    assert len(table) == 1 and table[["cam_iou", "point_game", "energy_inside", "grid_iou"]].isna().all(axis=None)


def test_what_cannot_be_scored_is_named_before_the_work():
    with pytest.raises(ValueError, match="rows is empty"):
        method_scores(built("S1"), Pictures(1, size=64), [])
    with pytest.raises(ModelError, match="got 'nothing'"):
        method_scores(built("S1"), Pictures(1, size=64), [0], ["score_cam", "nothing"])
