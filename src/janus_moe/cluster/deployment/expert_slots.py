"""How many slots the expert instances get beyond one per expert: for replicas, and for moving.

It knows counts and bytes, not which expert gets a replica: `policy.placement` decides that.
"""

from __future__ import annotations

from janus_moe.config import EngineConfig
from janus_moe.errors import ConfigError
from janus_moe.policy.placement import auto_redundancy
from janus_moe.spec import ModelSpec

REPLICA_SHARE = 0.4
"""Share of the memory left after the weights that "auto" gives to redundant experts."""


def spare_slots(
    config: EngineConfig, spec: ModelSpec, num_instances: int, free_bytes: int
) -> tuple[int, str | None]:
    """Spare slots per layer and expert instance, where weights arrive while the others serve.

    num_instances: of the expert pool; with one there is nothing to move between.
    free_bytes: what the expert pool has left after the weights.
    """
    if num_instances == 1:
        if config.rebalance_interval:
            raise ConfigError(
                f"--rebalance-interval {config.rebalance_interval:g} needs instances to move "
                "experts between; use --expert-instances 2 or more"
            )
        return 0, None
    if config.rebalance_spare_slots != "auto":
        return min(config.rebalance_spare_slots, spec.moe.num_experts), None
    fits = num_instances * spec.slot_bytes <= int(free_bytes * REPLICA_SHARE)
    spare = 1 if fits or config.rebalance_interval else 0
    slots = "slot" if spare == 1 else "slots"
    return spare, f"{spare} spare {slots} per layer and expert instance"


def redundant_experts(
    config: EngineConfig, spec: ModelSpec, num_instances: int, free_bytes: int
) -> tuple[int, str | None]:
    """Additional replicas per layer.

    num_instances: of the expert pool.
    free_bytes: what the expert pool has left after weights and spare slots.
    """
    if config.redundant_experts != "auto":
        return config.redundant_experts, None
    redundant = auto_redundancy(
        free_bytes=int(free_bytes * REPLICA_SHARE),
        expert_bytes_all_layers=spec.slot_bytes,
        num_experts=spec.moe.num_experts,
        num_instances=num_instances,
    )
    return redundant, f"{redundant} redundant experts per layer"
