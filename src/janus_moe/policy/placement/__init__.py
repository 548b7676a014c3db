"""Which expert instance holds which experts.

value         `Placement`: immutable, validated, with an epoch
sizing        how many instances and replicas are possible and affordable
methods       `place_experts`: placements by name, for any statistics and any slots
search        the method `janus`; `initial_placement` is its form for equal slots
coactivation  the method `coactivation`
eplb          the method `eplb`, and EPLB's own algorithm
replication   how many replicas each expert gets
filling       instances while they are being filled
adaptation    `adapt_placement`: a placement for other instances, with few experts to load
homes         which instance keeps which expert when there is less room
reserve       slots for losses and for other sizes of the pool, and whether memory has them
transfers     what each instance loads, and from where, when other instances follow
migration     `migration_steps`: from one placement to another while every expert is served
formats       EPLB's tensors and call, SGLang's file
"""

from janus_moe.policy.placement.adaptation import NoPlacement, Purpose, adapt_placement
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
from janus_moe.policy.placement.reserve import PoolNeed, Reserve, pool_needs, reserve_for_losses
from janus_moe.policy.placement.search import activation_probability, initial_placement
from janus_moe.policy.placement.sizing import auto_redundancy, even_capacity, validate_shape
from janus_moe.policy.placement.transfers import Transfer, slots_meanwhile, transfers
from janus_moe.policy.placement.value import Placement

__all__ = [
    "EplbTensors",
    "NoPlacement",
    "Placement",
    "PlacementMethod",
    "PoolNeed",
    "Purpose",
    "Reserve",
    "Transfer",
    "activation_probability",
    "adapt_placement",
    "auto_redundancy",
    "even_capacity",
    "from_eplb",
    "initial_placement",
    "migration_steps",
    "place_experts",
    "pool_needs",
    "read_sglang",
    "rebalance_experts",
    "reserve_for_losses",
    "slots_meanwhile",
    "to_eplb",
    "transfers",
    "validate_shape",
    "write_sglang",
]
