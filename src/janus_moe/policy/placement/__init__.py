"""Which expert instance holds which experts.

value   `Placement`: immutable, validated, with an epoch
sizing  how many instances and replicas are possible and affordable
search  finding a placement for a layer's activation statistics, or without any
"""

from janus_moe.policy.placement.search import activation_probability, initial_placement
from janus_moe.policy.placement.sizing import auto_redundancy, validate_shape
from janus_moe.policy.placement.value import Placement

__all__ = [
    "Placement",
    "activation_probability",
    "auto_redundancy",
    "initial_placement",
    "validate_shape",
]
