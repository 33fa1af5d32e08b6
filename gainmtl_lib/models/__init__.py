"""The network: backbone, heads and the model that joins them."""

from gainmtl_lib.models.backbone import Backbone, get_backbone
from gainmtl_lib.models.cam import class_activation_map
from gainmtl_lib.models.counterfactual import control_masks
from gainmtl_lib.models.gain_mtl import GAINMTLModel
from gainmtl_lib.models.weights import ModelError

__all__ = ["Backbone", "GAINMTLModel", "ModelError", "class_activation_map", "control_masks", "get_backbone"]
