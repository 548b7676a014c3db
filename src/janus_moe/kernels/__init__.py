"""Compute kernels: one folder per operation, a reference beside the fast versions.

    from janus_moe.kernels.grouped_experts import grouped_experts
    from janus_moe.kernels.linear import linear
    from janus_moe.kernels.paged_attention import AttentionBatch, paged_attention, write_kv
    from janus_moe.kernels.rotate_and_cache import rotate_and_cache

Each folder's `dispatch` decides which implementation runs. Kernels know tensors only: nothing
about models, pools or transports.
"""
