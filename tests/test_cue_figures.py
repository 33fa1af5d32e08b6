import numpy as np

from gainmtl_lib.synthetic.cues import CUE_KINDS
from gainmtl_lib.synthetic.data import cues_figure


def shown(axis):
    return axis.images[0].get_array()


def test_every_cue_is_shown_without_and_with_it():
    axes = np.array(cues_figure().axes).reshape(2, len(CUE_KINDS))
    assert [axis.get_title() for axis in axes[0]] == list(CUE_KINDS)
    assert [axis.get_ylabel() for axis in axes[:, 0]] == ["without the cue", "with the cue"]
    for above, below in axes.T:
        assert (shown(above) != shown(below)).any()


def test_a_mark_changes_a_corner_only():
    above, below = cues_figure(["mark"]).axes
    changed = (shown(above) != shown(below)).any(axis=2)
    assert 0 < changed.mean() < 0.05
