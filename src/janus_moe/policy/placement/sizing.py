"""How many expert instances and replicas are possible, and how many are affordable."""

from __future__ import annotations

from collections.abc import Sequence

from janus_moe.errors import ConfigError


def validate_shape(num_experts: int, num_instances: int, redundant_experts: int) -> None:
    """Refuse an expert pool that no placement can fill; the message says the largest possible."""
    if num_instances < 1:
        raise ConfigError(f"--expert-instances must be at least 1, got {num_instances}")
    if num_instances > num_experts:
        raise ConfigError(
            f"--expert-instances {num_instances} but the model has only {num_experts} experts per "
            f"layer; use at most {num_experts}"
        )
    largest = (num_instances - 1) * num_experts
    if not 0 <= redundant_experts <= largest:
        raise ConfigError(
            f"--redundant-experts {redundant_experts} must be from 0 to {largest}: each of "
            f"{num_experts} experts has at most one replica on each of {num_instances} expert "
            "instances"
        )


def auto_redundancy(
    free_bytes: int, expert_bytes_all_layers: int, num_experts: int, num_instances: int
) -> int:
    """How many extra replicas per layer `redundant_experts = "auto"` stands for.

    free_bytes: memory of the whole expert pool left after one copy of everything.
    expert_bytes_all_layers: one expert of every MoE layer.

    At most a quarter of the experts: measurements in docs/scheduling show that 1.25 slots per
    expert bring the busiest instance within a few percent of an even split.
    """
    affordable = max(free_bytes, 0) // max(expert_bytes_all_layers, 1)
    return min(affordable, num_experts // 4, (num_instances - 1) * num_experts)


def even_capacity(num_experts: int, num_instances: int, redundant_experts: int) -> list[int]:
    """[instances] slots for one layer, differing by at most one."""
    validate_shape(num_experts, num_instances, redundant_experts)
    base, larger = divmod(num_experts + redundant_experts, num_instances)
    return [base + (instance < larger) for instance in range(num_instances)]


def usable_capacity(num_experts: int, capacity: Sequence[int]) -> list[int]:
    """[instances] slots that one layer can use: a second copy on one instance is of no use."""
    if not capacity or min(capacity) < 1:
        raise ConfigError(f"every expert instance needs a slot or more; got {list(capacity)}")
    usable = [min(slots, num_experts) for slots in capacity]
    if sum(usable) < num_experts:
        raise ConfigError(
            f"{len(usable)} expert instances have {sum(usable)} slots per layer for {num_experts} "
            f"experts ({list(capacity)}); add {num_experts - sum(usable)} slots or more"
        )
    return usable
