import numpy as np
import pytest

from gainmtl_lib.figures import resized_mask


def drawn(*boxes):
    mask = np.zeros((64, 64), bool)
    for rows, columns in boxes:
        mask[rows, columns] = True
    return mask


SCRATCH = (slice(17, 18), slice(4, 60))  # a quarter of a cell once four pixels make one
STAIN = (slice(40, 56), slice(40, 56))


@pytest.mark.parametrize("boxes", [[SCRATCH], [SCRATCH, STAIN]])
def test_a_thin_region_survives_shrinking_whatever_stands_beside_it(boxes):
    small = resized_mask(drawn(*boxes), (16, 16))
    assert small is not None
    np.testing.assert_array_equal(small[4], np.arange(16) % 15 > 0)
    assert small[10:14, 10:14].all() == (STAIN in boxes)
    assert small.sum() == 14 + 16 * (STAIN in boxes)


def test_an_edge_that_covers_less_than_half_a_pixel_is_cut():
    small = resized_mask(drawn((slice(16, 33), slice(16, 32))), (16, 16))
    assert small is not None and small.sum() == 16


def test_no_defect_has_no_outline():
    assert resized_mask(drawn(), (16, 16)) is None and resized_mask(None, (16, 16)) is None
