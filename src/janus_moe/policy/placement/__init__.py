"""Which expert instance holds which experts.

value         `Placement`: immutable, validated, with an epoch
sizing        how many instances and replicas are possible and affordable
methods       `place_experts`: placements by name, for any statistics and any slots
search        the method `janus`; `initial_placement` is its form for equal slots
coactivation  the method `coactivation`
eplb          the method `eplb`, and EPLB's own algorithm
replication   how many replicas each expert gets
filling       instances while they are being filled
migration     `migration_steps`: from one placement to another while every expert is served
formats       EPLB's tensors and call, SGLang's file
"""

from janus_moe.policy.placement.formats import (
    EplbTensors,
    from_eplb,
    read_sglang,
    rebalance_experts,
    to_eplb,
    write_sglang,
)
from janus_moe.policy.placement.methods import PlacementMethod, place_experts
from janus_moe.policy.placement.migration import migration_steps
from janus_moe.policy.placement.search import activation_probability, initial_placement
from janus_moe.policy.placement.sizing import auto_redundancy, even_capacity, validate_shape
from janus_moe.policy.placement.value import Placement

__all__ = [
    "EplbTensors",
    "Placement",
    "PlacementMethod",
    "activation_probability",
    "auto_redundancy",
    "even_capacity",
    "from_eplb",
    "initial_placement",
    "migration_steps",
    "place_experts",
    "read_sglang",
    "rebalance_experts",
    "to_eplb",
    "validate_shape",
    "write_sglang",
]
