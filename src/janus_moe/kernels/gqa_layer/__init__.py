"""The attention half of a layer with grouped-query attention, from residual stream to residual
stream."""

from janus_moe.kernels.gqa_layer.dispatch import gqa_layer
from janus_moe.kernels.gqa_layer.reference import gqa_layer_reference
from janus_moe.kernels.gqa_layer.weights import GqaLayerWeights

__all__ = ["GqaLayerWeights", "gqa_layer", "gqa_layer_reference"]
