"""Input that no edit can be made of."""

import pickle

import numpy as np
import pytest
from drawn_edits import MASKS, SIZE, noisy, plain, rng

from gainmtl_lib.edits.heal import EditError, heal
from gainmtl_lib.edits.paste import paste


@pytest.mark.parametrize("method", ["bleach", "copy"])
def test_unknown_methods(method):
    with pytest.raises(EditError, match=f"wrong input: method must be one of telea, .*, got '{method}'"):
        heal(noisy(), MASKS["inside"], method=method, rng=rng())
    with pytest.raises(EditError, match="method must be one of copy, clone, clone_mixed, relief, got 'telea'"):
        paste(noisy(), noisy(), MASKS["inside"], method="telea", rng=rng())


@pytest.mark.parametrize(
    ("image", "mask", "message"),
    [
        (plain()[..., 0], MASKS["inside"], r"image must be RGB uint8 \(H, W, 3\), got uint8 \(64, 64\)"),
        (
            plain().astype(np.float32),
            MASKS["inside"],
            r"image must be RGB uint8 \(H, W, 3\), got float32 \(64, 64, 3\)",
        ),
        (plain(), MASKS["inside"][:32], r"mask must be bool \(64, 64\) as its picture, got bool \(32, 64\)"),
        (
            plain(),
            MASKS["inside"].astype(np.uint8),
            r"mask must be bool \(64, 64\) as its picture, got uint8 \(64, 64\)",
        ),
        (plain(), np.zeros(SIZE, np.bool_), "empty mask: mask has no defect pixel; expected at least one"),
    ],
)
def test_unusable_pictures_and_masks(image, mask, message):
    with pytest.raises(EditError, match=message):
        heal(image, mask, method="telea", rng=rng())


def test_unusable_donors_and_normals_are_named():
    with pytest.raises(EditError, match="donor_image must be RGB"):
        paste(plain(), plain()[..., 0], MASKS["inside"], method="copy", rng=rng())
    with pytest.raises(EditError, match="donor_mask has no defect pixel"):
        paste(plain(), plain(), np.zeros(SIZE, np.bool_), method="copy", rng=rng())
    with pytest.raises(EditError, match="image must be RGB"):
        paste(plain()[..., 0], plain(), MASKS["inside"], method="copy", rng=rng())
    with pytest.raises(EditError, match="normal must be RGB"):
        heal(plain(), MASKS["inside"], method="patch_normal", rng=rng(), normal=plain()[..., 0])


def test_errors_travel_between_processes():
    error = pickle.loads(pickle.dumps(EditError("too faint", "nothing: left")))
    assert (error.reason, str(error)) == ("too faint", "too faint: nothing: left")
