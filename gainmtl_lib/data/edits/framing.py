"""Edits of letterboxed pictures: made on the picture itself, which the bars beside it are no part of."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gainmtl_lib.data.edits.edit import Edit


def framed(edit: Edit, size: tuple[int, int], place: tuple[slice, slice]) -> Edit:
    """The edit of a part as one of the whole input, its bars in the mean colour of the edited part.

    That is how a picture is letterboxed (`transforms.resize_image`). Bars in the colour of the picture before would
    differ from its mean by what the edit took or brought, and so tell the edits that change the label.

    Args:
        edit: of the part (h, w).
        size: of the input (H, W).
        place: rows and columns of the part.
    """
    if edit.mask.shape == size:
        return edit
    whole, mask, region = np.empty((*size, 3), np.uint8), np.zeros(size, np.bool_), np.zeros(size, np.bool_)
    whole[:] = np.rint(edit.image.mean(axis=(0, 1))).astype(np.uint8)
    whole[place], mask[place], region[place] = edit.image, edit.mask, edit.region
    return replace(edit, image=whole, mask=mask, region=region)
