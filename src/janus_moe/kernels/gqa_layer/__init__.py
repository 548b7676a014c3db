"""The attention half of a layer with grouped-query attention.

It goes from residual stream to residual stream.
"""

from janus_moe.kernels.gqa_layer.dispatch import gqa_layer
from janus_moe.kernels.gqa_layer.reference import gqa_layer_reference
from janus_moe.kernels.gqa_layer.tensors import GqaTensors

__all__ = ["GqaTensors", "gqa_layer", "gqa_layer_reference"]
