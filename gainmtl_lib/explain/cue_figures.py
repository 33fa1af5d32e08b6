"""What the cues of the shortcut study look like."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from gainmtl_lib.data.cues import CUE_KINDS, Cue
from gainmtl_lib.data.synthetic import draw_surface
from gainmtl_lib.explain.plots import OUTLINE

SIDE = 128


def cues_figure(cues: Sequence[Cue] = CUE_KINDS, *, seed: int = 0, index: int = 3) -> Figure:
    """One synthetic part with a defect, its defect outlined, without each cue and with it.

    Args:
        cues: one column each.
        seed: of the part.
        index: which part of that seed.
    """
    figure = Figure(figsize=(2.1 * len(cues), 4.4), layout="constrained")
    axes = figure.subplots(2, len(cues), squeeze=False)
    for column, cue in enumerate(cues):
        for row, carries in enumerate((False, True)):
            drawn = draw_surface(
                seed, index, image_size=(SIDE, SIDE), defective=True, has_shortcut=carries, shortcut=cue
            )
            axis = axes[row, column]
            axis.imshow(drawn.image)
            axis.contour(drawn.mask, levels=[0.5], colors=OUTLINE, linewidths=1)
            axis.set(xticks=[], yticks=[])
        axes[0, column].set_title(cue)
    for row, name in enumerate(("without the cue", "with the cue")):
        axes[row, 0].set_ylabel(name)
    return figure
