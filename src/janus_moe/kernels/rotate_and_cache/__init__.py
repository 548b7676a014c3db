"""From a layer's projections to queries and cache rows: head norms, rotation, storing."""

from janus_moe.kernels.rotate_and_cache.dispatch import rotate_and_cache
from janus_moe.kernels.rotate_and_cache.reference import rotate_, rotate_and_cache_reference

__all__ = ["rotate_", "rotate_and_cache", "rotate_and_cache_reference"]
