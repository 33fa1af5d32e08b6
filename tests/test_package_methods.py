import logging

import numpy as np
import pytest
import torch
from narrow_models import built, images
from pytorch_grad_cam import EigenCAM, ScoreCAM

from gainmtl_lib.studies import faithfulness as package_methods
from gainmtl_lib.studies.faithfulness import (
    DecidingLogits,
    RawEigenCAM,
    RawScoreCAM,
    compute_cam,
    deciding_features,
    deciding_head,
)


def normalised(model):
    return (images() - model.mean) / model.std


@pytest.mark.parametrize("strategy", ["S1", "S3", "S6"])
def test_the_wrapped_model_decides_as_the_model(strategy):
    model = built(strategy)
    torch.testing.assert_close(DecidingLogits(model).eval()(normalised(model)), model(images()).logits)


@pytest.mark.parametrize("strategy", ["S1", "S3"])
def test_features_are_what_the_deciding_head_classifies(strategy):
    model = built(strategy)
    features = deciding_features(model, images())
    assert features.shape == (2, 8, 4, 4)
    torch.testing.assert_close(deciding_head(model)(features), model(images()).logits)
    part = model.projection if strategy == "S1" else model.attention.adapter
    seen = []
    handle = part.register_forward_hook(lambda *given: seen.append(given[2]))
    model(images())
    handle.remove()
    torch.testing.assert_close(seen[0], features)


def margin(logits):
    return logits[1] - logits[0]


def test_score_cam_weighs_as_the_package_does_in_smaller_batches(caplog, monkeypatch):
    model = built("S3")
    decision = DecidingLogits(model).eval()
    features = deciding_features(model, images()).detach().numpy()
    arguments = (normalised(model), decision.tap, [margin] * 2, features, None)
    cam = RawScoreCAM(decision, [decision.tap])
    expected = ScoreCAM.get_cam_weights(cam, *arguments)
    cam.batch_size = 3
    monkeypatch.setattr(package_methods, "SECONDS_BETWEEN_LOG_LINES", 0.0)
    with caplog.at_level(logging.INFO):
        weights = cam.get_cam_weights(*arguments)
    np.testing.assert_allclose(weights, expected, rtol=1e-4)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)
    assert caplog.messages[-1] == "Score-CAM: picture 2 of 2, channel 6"
    expected_map = np.maximum((weights[:, :, None, None] * features).sum(1), 0)
    np.testing.assert_allclose(compute_cam(model, images(), "score_cam")[:, 0].numpy(), expected_map, rtol=1e-4)


def test_eigen_cam_is_the_packages_up_to_the_sign_which_is_fixed():
    decision = DecidingLogits(built("S1"))
    rng = np.random.default_rng(0)
    features = rng.random((3, 6, 5, 7), dtype=np.float32)
    features[0, :, 2, 3] += 5  # one cell stands out: up, whatever the solver's sign
    features[1, :, 2, 3] -= 5
    maps = RawEigenCAM(decision, [decision.tap]).get_cam_image(None, None, None, features, None, False)
    package = EigenCAM(decision, [decision.tap]).get_cam_image(None, None, None, features, None, False)
    for ours, theirs in zip(maps, package):
        sign = np.sign((ours * theirs).sum())
        np.testing.assert_allclose(ours, sign * theirs, atol=1e-4)
        assert ours.max() >= -ours.min()
    assert maps[0].argmax() == maps[1].argmax() == 2 * 7 + 3


def test_eigen_cam_of_features_without_variation_is_flat():
    decision = DecidingLogits(built("S1"))
    maps = RawEigenCAM(decision, [decision.tap]).get_cam_image(
        None, None, None, np.ones((1, 4, 3, 3), np.float32), None, False
    )
    assert not maps.any()
