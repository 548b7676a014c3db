"""Large batches, where tokens cost too: smallest maximum of a * activated + b * tokens.

NP-hard in general. The rule: the exact assignment of activated experts; then moves of one expert,
or of two in a chain, off the costliest instance while they help; then sharing an expert's tokens
between two of its holders where the second reading pays. With few tokens per expert nothing pays
and the answer is the exact assignment, so the mode is safe at any batch size.

It does not know what an expert or a token costs: a latency model does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from janus_moe.errors import ConfigError
from janus_moe.policy.activation import token_aware_fast
from janus_moe.policy.activation.layout import LayerLayout
from janus_moe.policy.activation.scheduler import (
    Scheduler,
    as_ids,
    as_labels,
)

MAX_MOVES = 64
"""Of each kind; more gained nothing measurable at 4,096 tokens on 16 instances."""


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """What the busiest instance takes: expert_ns per activated expert + token_ns per its tokens.

    Whole nanoseconds, so that all instances compute the same. Rough sizes: expert_ns is the
    weights of one expert over the memory bandwidth, token_ns its floating-point operations per
    token over the arithmetic throughput.
    """

    expert_ns: int
    token_ns: int

    def __post_init__(self) -> None:
        for name, value in (("expert_ns", self.expert_ns), ("token_ns", self.token_ns)):
            if not 0 <= value < 2**31:
                raise ConfigError(f"{name} must be whole nanoseconds from 0 to 2^31-1, got {value}")


class TokenAwareRewrite(NamedTuple):
    """labels, activated: as in `Rewrite`. tokens: [instances] int64, (token, k) pairs there."""

    labels: NDArray[np.int32]
    activated: NDArray[np.int32]
    tokens: NDArray[np.int64]

    def cost_ns(self, cost: LayerCost) -> int:
        """Of the costliest instance."""
        return int(
            (cost.expert_ns * self.activated.astype(np.int64) + cost.token_ns * self.tokens).max()
        )


class TokenAwareScheduler:
    """One layer's scheduler for batches in which tokens cost; buffers as in `Scheduler`."""

    def __init__(
        self, layout: LayerLayout, cost: LayerCost, *, labels: ArrayLike | None = None
    ) -> None:
        self.layout = layout
        self.cost = cost
        self._exact = Scheduler(layout)
        self._labels = as_labels(labels, layout)
        self._shares = np.empty(layout.holders.shape, np.int64)
        self._activated = np.empty(layout.num_instances, np.int32)
        self._tokens = np.empty(layout.num_instances, np.int64)

    def rewrite(self, expert_ids: NDArray[np.int32]) -> TokenAwareRewrite:
        """expert_ids: [tokens, top_k] int32 logical ids, -1 = padding.

        Tokens of a shared expert go to its holders in order of appearance, so equal batches get
        equal answers, and reordered ones equal counts.
        """
        expert_ids = as_ids(expert_ids)
        assignment = self._exact.schedule(expert_ids)
        labels = np.empty_like(expert_ids)
        token_aware_fast.share_tokens(
            expert_ids,
            self.layout.holders,
            assignment.instance_of_expert,
            self.cost.expert_ns,
            self.cost.token_ns,
            MAX_MOVES,
            self._shares,
            self._activated,
            self._tokens,
        )
        token_aware_fast.hand_out(expert_ids, self._shares, self._labels, labels)
        return TokenAwareRewrite(labels, self._activated, self._tokens)
