"""The routed experts of one instance: gather, two projections, weighted sum."""

from janus_moe.kernels.grouped_experts.dispatch import grouped_experts
from janus_moe.kernels.grouped_experts.reference import grouped_experts_reference

__all__ = ["grouped_experts", "grouped_experts_reference"]
