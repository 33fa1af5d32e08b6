"""Do the edits of image counterfactuals tell something by themselves? Small networks that try to find out."""

from gainmtl_lib.evaluation.probes.border import border_probe
from gainmtl_lib.evaluation.probes.edited import edited_probe
from gainmtl_lib.evaluation.probes.pairs import EditPair, draw_pairs, edit_pair
from gainmtl_lib.evaluation.probes.result import ProbeResult

__all__ = ["EditPair", "ProbeResult", "border_probe", "draw_pairs", "edit_pair", "edited_probe"]
