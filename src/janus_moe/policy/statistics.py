"""What routing did lately: per layer tokens, activations and co-activations of experts.

A window of a few buckets slides over the recorded batches: the oldest bucket is dropped as a whole
when a new one starts, so a reading covers between (buckets - 1) and (buckets) / buckets of the
window. Counting is compiled; benchmarks/scheduling.py says what it costs.

It does not know who reads it, nor of time: batches are the only clock.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from janus_moe.compiled import compiled
from janus_moe.errors import ConfigError
from janus_moe.policy.change import buckets_to_keep
from janus_moe.policy.placement import activation_probability

_Int64s = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class RoutingStatistics:
    """One reading; arrays are its own.

    num_batches, num_tokens: [layers], what was counted; padding is not.
    tokens: [layers, experts], tokens routed to each expert.
    active_batches: [layers, experts], batches in which the expert was activated.
    coactivation: [layers, experts, experts], sampled tokens that used both; symmetric, zero
        diagonal; empty where it is not recorded.
    """

    num_batches: _Int64s
    num_tokens: _Int64s
    tokens: _Int64s
    active_batches: _Int64s
    coactivation: _Int64s

    def active_share(self) -> NDArray[np.float64]:
        """[layers, experts], how often an expert was active, at the batch sizes that occurred."""
        return self.active_batches / np.maximum(self.num_batches, 1)[:, None]

    def probability(self, batch_size: int) -> NDArray[np.float64]:
        """[layers, experts], P(active) in batches of another size, from the token counts."""
        return activation_probability(self.tokens, self.num_tokens, batch_size)


class RoutingWindow:
    """Counts what it is shown, and forgets what is older than the window.

    window_batches: batches of one layer that a full window covers, at most.
    buckets: in how many steps it slides; memory grows with it.
    coactivation_stride: pairs are counted of every so-manieth token; 0: not at all, and no memory
        for them (they take buckets x layers x experts^2 x 4 bytes).

    Not for two threads at once; give each its own.
    """

    def __init__(
        self,
        num_layers: int,
        num_experts: int,
        window_batches: int = 1024,
        buckets: int = 4,
        coactivation_stride: int = 4,
    ) -> None:
        if min(num_layers, num_experts, buckets) < 1 or window_batches < buckets:
            raise ConfigError(
                f"a window needs a layer, an expert, a bucket and a batch per bucket; got "
                f"{num_layers} layers, {num_experts} experts, {buckets} buckets, {window_batches} "
                "batches"
            )
        if coactivation_stride < 0:
            raise ConfigError(f"coactivation_stride must be 0 or more, got {coactivation_stride}")
        self.num_experts = num_experts
        self._bucket_batches = window_batches // buckets
        self._stride = coactivation_stride
        pairs = num_experts if coactivation_stride else 0
        self._bucket = np.zeros(num_layers, np.int64)  # the one being filled
        self._totals = np.zeros((num_layers, buckets, 2), np.int64)  # batches, tokens
        self._experts = np.zeros((num_layers, buckets, 2, num_experts), np.int64)
        self._pairs = np.zeros((num_layers, buckets, pairs, pairs), np.uint32)
        self._counts = np.zeros(num_experts, np.int64)

    def record(self, layer: int, expert_ids: NDArray[np.int32]) -> None:
        """expert_ids: [tokens, top_k] int32 of one batch, -1 = padding; an empty batch is none.

        A token's padding is all or nothing: the first id tells.
        """
        bucket = int(self._bucket[layer])
        if self._totals[layer, bucket, 0] >= self._bucket_batches:
            bucket = (bucket + 1) % self._totals.shape[1]
            self._bucket[layer] = bucket
            for array in (self._totals, self._experts, self._pairs):
                array[layer, bucket] = 0
        good = _count(
            expert_ids,
            self._stride,
            self._counts,
            self._totals[layer, bucket],
            self._experts[layer, bucket],
            self._pairs[layer, bucket],
        )
        if not good:
            raise ValueError(
                f"expert ids of layer {layer} must run from 0 to {self.num_experts - 1}, -1 is "
                f"padding; got {expert_ids.min()} to {expert_ids.max()}"
            )

    def forget_change(self) -> bool:
        """Drops what came before routing changed (policy/change.py); False if it did not. Costs
        about as much as `read`."""
        num_buckets = self._totals.shape[1]
        ages = (self._bucket[:, None] - np.arange(num_buckets)) % num_buckets  # newest first
        layers = np.arange(len(ages))[:, None]
        tokens = self._experts[layers, ages, 0].transpose(1, 0, 2)
        batches = self._totals[layers, ages, 0].min(axis=0)
        keep = buckets_to_keep(tokens, batches)
        for array in (self._totals, self._experts, self._pairs):
            array[layers, ages[:, keep:]] = 0
        return keep < num_buckets

    def read(self) -> RoutingStatistics:
        """Costs as much as the memory it sums; ask every few seconds, not every step."""
        totals = self._totals.sum(axis=1)
        experts = self._experts.sum(axis=1)
        upper = self._pairs.sum(axis=1, dtype=np.int64)
        return RoutingStatistics(
            num_batches=totals[:, 0],
            num_tokens=totals[:, 1],
            tokens=experts[:, 0],
            active_batches=experts[:, 1],
            coactivation=upper + upper.transpose(0, 2, 1),
        )


@compiled
def _count(expert_ids, stride, counts, totals, experts, pairs):  # type: ignore[no-untyped-def]
    """Add one batch to a bucket, all or nothing. False: an id is out of range."""
    counts[:] = 0
    num_tokens = 0
    for token in range(expert_ids.shape[0]):
        for choice in range(expert_ids.shape[1]):
            expert = expert_ids[token, choice]
            if expert < -1 or expert >= counts.size:
                return False
            if expert >= 0:
                counts[expert] += 1
        num_tokens += expert_ids.shape[1] > 0 and expert_ids[token, 0] >= 0
    if num_tokens == 0:
        return True
    totals[0] += 1
    totals[1] += num_tokens
    for expert in range(counts.size):
        experts[0, expert] += counts[expert]
        experts[1, expert] += counts[expert] > 0
    if stride > 0:
        for token in range(0, expert_ids.shape[0], stride):
            for choice in range(expert_ids.shape[1]):
                one = expert_ids[token, choice]
                for later in range(choice + 1, expert_ids.shape[1]):
                    other = expert_ids[token, later]
                    if one >= 0 and other >= 0:
                        pairs[one, other] += 1  # either triangle; `read` folds them
    return True
