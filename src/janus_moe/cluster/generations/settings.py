"""Limits and deadlines of changes; the one owner of their defaults."""

from __future__ import annotations

import msgspec

from janus_moe.spec import Pool


class GenerationSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator may set of changes, and deadlines with defaults.

    max_attention: most attention instances of a generation.
    max_expert: most expert instances of a generation.
    standby_attention: attention instances that are held ready in no generation.
    standby_experts: expert instances that are held ready in no generation.
    max_restarts: lost instances that are started again within an hour.
    recovery_timeout_s: how long a fault may last before requests are refused, seconds.
    retry_after_s: what refused clients are told to wait, seconds.
    start_timeout_s: from the start of an instance until it is ready, seconds.
    rebalancing_timeout_s: for a rebalance under way to end before a planned change, seconds.
    open_timeout_s: for all members to open a generation, which includes loading experts, seconds.
    commit_timeout_s: for all members to finish their step and serve a generation, seconds.
    stop_timeout_s: what an instance gets to leave by itself before it is killed, seconds.
    fence_timeout_s: after which a kill that was not confirmed is repeated, seconds.
    link_grace_s: how long a broken link waits for the death that may explain it, seconds.
    """

    max_attention: int
    max_expert: int
    standby_attention: int = 0
    standby_experts: int = 0
    max_restarts: int = 10
    recovery_timeout_s: float = 30.0
    retry_after_s: float = 5.0
    start_timeout_s: float = 1800.0
    rebalancing_timeout_s: float = 60.0
    open_timeout_s: float = 60.0
    commit_timeout_s: float = 30.0
    stop_timeout_s: float = 3.0
    fence_timeout_s: float = 5.0
    link_grace_s: float = 0.2

    def limit(self, pool: Pool) -> int:
        """Most instances of a pool in one generation."""
        return self.max_attention if pool == "attention" else self.max_expert

    def standby(self, pool: Pool) -> int:
        """Instances of a pool that are held ready."""
        return self.standby_attention if pool == "attention" else self.standby_experts
