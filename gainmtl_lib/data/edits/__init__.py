"""Edits of pictures with their labels: defects taken away or added, and the same operations that change no label."""

from gainmtl_lib.data.edits.controls import heal_beside, heal_spot, paste_clean, repaste
from gainmtl_lib.data.edits.edit import Edit, EditError
from gainmtl_lib.data.edits.healing import HEAL_METHODS, NEEDS_NORMAL, heal
from gainmtl_lib.data.edits.pasting import PASTE_METHODS, paste
from gainmtl_lib.data.edits.placing import moved_mask

__all__ = [
    "HEAL_METHODS",
    "NEEDS_NORMAL",
    "PASTE_METHODS",
    "Edit",
    "EditError",
    "heal",
    "heal_beside",
    "heal_spot",
    "moved_mask",
    "paste",
    "paste_clean",
    "repaste",
]
