"""Compute kernels: one folder per operation, a reference beside the fast versions.

Each folder's `dispatch` decides which implementation runs. Kernels know tensors only: nothing
about models, pools or transports.
"""

from janus_moe.kernels.grouped_experts import grouped_experts
from janus_moe.kernels.linear import linear
from janus_moe.kernels.paged_attention import AttentionBatch, paged_attention, write_kv

__all__ = ["AttentionBatch", "grouped_experts", "linear", "paged_attention", "write_kv"]
