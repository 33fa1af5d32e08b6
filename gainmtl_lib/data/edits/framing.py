"""Edits of letterboxed pictures: made on the picture itself, which the bars beside it are no part of."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gainmtl_lib.data.edits.edit import Edit, Picture


def framed(edit: Edit, image: Picture, place: tuple[slice, slice]) -> Edit:
    """The edit of `image[place]` as one of the whole image; outside the place nothing changes.

    Args:
        edit: of the part (h, w).
        image: before the edit, RGB uint8 (H, W, 3); stays as it is.
        place: rows and columns of the part.
    """
    if edit.mask.shape == image.shape[:2]:
        return edit
    whole, mask, region = image.copy(), *np.zeros((2, *image.shape[:2]), dtype=np.bool_)
    whole[place], mask[place], region[place] = edit.image, edit.mask, edit.region
    return replace(edit, image=whole, mask=mask, region=region)
