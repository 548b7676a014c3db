"""How much memory the pools may take, when each host has its own.

A pool is as rich as its poorest host: with e of E expert instances on a host, the pool can have
E/e of what that host has left. What the memory is for is not known here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from janus_moe.cluster.hosts.shares import HostShare


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """What every host has left.

    shares: [hosts] which instances each runs.
    left: [hosts] bytes that nothing has been planned for; below 0 when too much has.
    """

    shares: tuple[HostShare, ...]
    left: tuple[int, ...]

    @property
    def num_attention_instances(self) -> int:
        """Attention instances of all hosts."""
        return sum(len(share.attention) for share in self.shares)

    @property
    def num_expert_instances(self) -> int:
        """Expert instances of all hosts."""
        return sum(len(share.expert) for share in self.shares)

    @property
    def poorest(self) -> tuple[HostShare, int]:
        """The host with the least left."""
        return min(zip(self.shares, self.left, strict=True), key=lambda pair: pair[1])

    def for_attention(self) -> int:
        """Bytes that all attention instances can have together, the same each."""
        return self._for_pool([len(share.attention) for share in self.shares])

    def for_experts(self) -> int:
        """Bytes that all expert instances can have together, the same each."""
        return self._for_pool([len(share.expert) for share in self.shares])

    def less_attention(self, total_bytes: int) -> MemoryBudget:
        """What is left when the attention instances together take so much, the same each."""
        return self._less(total_bytes, [len(share.attention) for share in self.shares])

    def less_experts(self, total_bytes: int) -> MemoryBudget:
        """What is left when the expert instances together take so much, the same each."""
        return self._less(total_bytes, [len(share.expert) for share in self.shares])

    def _for_pool(self, counts: Sequence[int]) -> int:
        total = sum(counts)
        hosts = zip(self.left, counts, strict=True)
        return min(left * total // count for left, count in hosts if count)

    def _less(self, total_bytes: int, counts: Sequence[int]) -> MemoryBudget:
        total = sum(counts)
        hosts = zip(self.left, counts, strict=True)
        left = tuple(left - -(-total_bytes * count // total) for left, count in hosts)
        return MemoryBudget(self.shares, left)
