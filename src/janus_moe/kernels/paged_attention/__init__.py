"""Attention over a paged key/value cache, decode and prefill in one call."""

from janus_moe.kernels.paged_attention.batch import AttentionBatch
from janus_moe.kernels.paged_attention.dispatch import paged_attention
from janus_moe.kernels.paged_attention.reference import paged_attention_reference
from janus_moe.kernels.paged_attention.write import write_kv

__all__ = ["AttentionBatch", "paged_attention", "paged_attention_reference", "write_kv"]
