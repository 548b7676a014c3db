"""The token-aware rule in plain Python; `token_aware_fast` gives the same answers (==)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from janus_moe.policy.activation.layout import LayerLayout
from janus_moe.policy.activation.reference import schedule_reference

Shares = dict[tuple[int, int], int]
"""(expert, instance) -> tokens, where not zero."""


def share_reference(
    expert_ids: NDArray[np.int32],
    layout: LayerLayout,
    expert_cost: int,
    token_cost: int,
    max_moves: int,
) -> Shares:
    hosts = [[host for host in row if host >= 0] for row in layout.hosts.tolist()]
    chosen = schedule_reference("exact", expert_ids, layout).instance_of_expert.tolist()
    counts = np.bincount(expert_ids[expert_ids >= 0], minlength=len(hosts)).tolist()
    shares = {(e, chosen[e]): counts[e] for e in range(len(hosts)) if counts[e]}

    def costs(shares: Shares) -> list[int]:
        total = [0] * layout.num_instances
        for (_, instance), tokens in shares.items():
            total[instance] += expert_cost + token_cost * tokens
        return total

    def best_of(candidates: list[tuple[Shares, set[int]]], source: int) -> Shares | None:
        """The first with the smallest cost among instances it touches, if below the source's."""
        peaks = [max(costs(after)[i] for i in touched) for after, touched in candidates]
        if not peaks or min(peaks) >= costs(shares)[source]:
            return None
        return candidates[peaks.index(min(peaks))][0]

    def moved(shares: Shares, expert: int, source: int, target: int) -> Shares:
        after = {key: tokens for key, tokens in shares.items() if key != (expert, source)}
        return after | {(expert, target): shares[expert, source]}

    for _ in range(max_moves):
        source = int(np.argmax(costs(shares)))
        candidates = []
        for expert in sorted(e for e, instance in shares if instance == source):
            for host in (h for h in hosts[expert] if h != source):
                once = moved(shares, expert, source, host)
                candidates.append((once, {source, host}))
                for other in sorted(e for e, instance in shares if instance == host):
                    for last in (h for h in hosts[other] if h not in (source, host)):
                        twice = moved(once, other, host, last)
                        candidates.append((twice, {source, host, last}))
        better = best_of(candidates, source)
        if better is None:
            break
        shares = better

    for _ in range(max_moves if token_cost else 0):
        cost = costs(shares)
        source = int(np.argmax(cost))
        candidates = []
        for expert in sorted(e for e, instance in shares if instance == source):
            for host in (h for h in hosts[expert] if h != source):
                held = shares.get((expert, host), 0)
                reading = 0 if held else expert_cost
                tokens = (cost[source] - cost[host] - reading) // (2 * token_cost)
                tokens = min(tokens, shares[expert, source] - 1)
                if tokens > 0:
                    split = {(expert, source): shares[expert, source] - tokens}
                    candidates.append(
                        (shares | split | {(expert, host): held + tokens}, {source, host})
                    )
        better = best_of(candidates, source)
        if better is None:
            break
        shares = better
    return shares
