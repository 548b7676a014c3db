"""The token-aware rule in plain Python; `token_aware_fast` gives the same answers (==)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from janus_moe.policy.activation.layout import LayerLayout
from janus_moe.policy.activation.reference import Holders, schedule_reference

Shares = dict[tuple[int, int], int]
"""(expert, instance) -> tokens, where not zero."""
Way = tuple[Shares, set[int]]
"""What the shares would be, and the instances that it touches."""


@dataclass(frozen=True)
class _Prices:
    """What a sharing of tokens costs.

    num_instances: of the pool.
    expert: cost of an expert that an instance reads.
    token: cost of a token that it computes.
    """

    num_instances: int
    expert: int
    token: int

    def of(self, shares: Shares) -> list[int]:
        """[instances] cost of each."""
        total = [0] * self.num_instances
        for (_, instance), tokens in shares.items():
            total[instance] += self.expert + self.token * tokens
        return total


def share_reference(
    expert_ids: NDArray[np.int32],
    layout: LayerLayout,
    expert_cost: int,
    token_cost: int,
    max_moves: int,
) -> Shares:
    """The exact assignment, then moves while they help, then sharing while it helps."""
    holders = [[holder for holder in row if holder >= 0] for row in layout.holders.tolist()]
    chosen = schedule_reference("exact", expert_ids, layout).instance_of_expert.tolist()
    counts = np.bincount(expert_ids[expert_ids >= 0], minlength=len(holders)).tolist()
    shares = {(e, chosen[e]): counts[e] for e in range(len(holders)) if counts[e]}
    prices = _Prices(layout.num_instances, expert_cost, token_cost)
    for ways in (_moves, _splits) if token_cost else (_moves,):
        for _ in range(max_moves):
            cost = prices.of(shares)
            source = int(np.argmax(cost))
            better = _best(ways(shares, holders, source, prices), cost[source], prices)
            if better is None:
                break
            shares = better
    return shares


def _best(ways: Sequence[Way], cost: int, prices: _Prices) -> Shares | None:
    """The first way with the smallest cost among the instances that it touches, if below `cost`."""
    peaks = [max(prices.of(after)[i] for i in touched) for after, touched in ways]
    if not peaks or min(peaks) >= cost:
        return None
    return ways[peaks.index(min(peaks))][0]


def _moves(shares: Shares, holders: Holders, source: int, prices: _Prices) -> list[Way]:
    """One expert off `source`, alone or in a chain with one of the instance that takes it."""
    ways: list[Way] = []
    for expert in _experts_at(source, shares):
        for holder in (h for h in holders[expert] if h != source):
            once = _moved(shares, expert, source, holder)
            ways.append((once, {source, holder}))
            for other in _experts_at(holder, shares):
                for last in (h for h in holders[other] if h not in (source, holder)):
                    ways.append((_moved(once, other, holder, last), {source, holder, last}))
    return ways


def _splits(shares: Shares, holders: Holders, source: int, prices: _Prices) -> list[Way]:
    """Tokens of one expert of `source` to another of its holders, until both cost the same."""
    ways: list[Way] = []
    cost = prices.of(shares)
    for expert in _experts_at(source, shares):
        for holder in (h for h in holders[expert] if h != source):
            held = shares.get((expert, holder), 0)
            reading = 0 if held else prices.expert
            tokens = (cost[source] - cost[holder] - reading) // (2 * prices.token)
            tokens = min(tokens, shares[expert, source] - 1)
            if tokens > 0:
                split = {(expert, source): shares[expert, source] - tokens}
                after = shares | split | {(expert, holder): held + tokens}
                ways.append((after, {source, holder}))
    return ways


def _experts_at(instance: int, shares: Shares) -> list[int]:
    return sorted(expert for expert, where in shares if where == instance)


def _moved(shares: Shares, expert: int, source: int, target: int) -> Shares:
    after = {key: tokens for key, tokens in shares.items() if key != (expert, source)}
    return after | {(expert, target): shares[expert, source]}
