"""The token-aware rule, compiled; `token_aware_reference` states it. One file: see `fast`."""

from __future__ import annotations

import numpy as np

from janus_moe.compiled import compiled


@compiled
def _list_by_instance(instance_of, first, following):  # type: ignore[no-untyped-def]
    first[:] = -1
    for expert in range(instance_of.size - 1, -1, -1):
        instance = instance_of[expert]
        if instance >= 0:
            following[expert] = first[instance]
            first[instance] = expert


@compiled
def _move_experts(holders, weight, instance_of, cost, max_moves):  # type: ignore[no-untyped-def]
    """Whole experts, single or in chains of two, off the costliest instance while it helps."""
    first = np.empty(cost.size, np.int64)
    following = np.empty(instance_of.size, np.int64)
    max_replicas = holders.shape[1]
    for _ in range(max_moves):
        source = np.argmax(cost)
        _list_by_instance(instance_of, first, following)
        best = cost[source]
        moved, to, pushed, on = -1, -1, -1, -1
        expert = first[source]
        while expert >= 0:
            left = cost[source] - weight[expert]
            for replica in range(max_replicas):
                holder = holders[expert, replica]
                if holder < 0:
                    break
                if holder == source:
                    continue
                arrived = cost[holder] + weight[expert]
                if max(left, arrived) < best:
                    best = max(left, arrived)
                    moved, to, pushed, on = expert, holder, -1, -1
                other = first[holder] if left < best else -1
                while other >= 0:
                    if max(left, arrived - weight[other]) < best:
                        for column in range(max_replicas):
                            last = holders[other, column]
                            if last < 0:
                                break
                            if last == source or last == holder:  # noqa: SIM109 - numba has one type a tuple
                                continue
                            peak = max(left, arrived - weight[other], cost[last] + weight[other])
                            if peak < best:
                                best = peak
                                moved, to, pushed, on = expert, holder, other, last
                    other = following[other]
            expert = following[expert]
        if moved < 0:
            return
        cost[source] -= weight[moved]
        cost[to] += weight[moved]
        instance_of[moved] = to
        if pushed >= 0:
            cost[to] -= weight[pushed]
            cost[on] += weight[pushed]
            instance_of[pushed] = on


@compiled
def _share_experts(holders, expert_cost, token_cost, shares, cost, max_moves):  # type: ignore[no-untyped-def]
    """Tokens of one expert to another of its holders, reading it there too, while it helps."""
    for _ in range(max_moves):
        source = np.argmax(cost)
        best = cost[source]
        shared, from_, to, moved = -1, -1, -1, 0
        for expert in range(holders.shape[0]):
            own = 0
            while own < holders.shape[1] and holders[expert, own] != source:
                own += 1
            if own == holders.shape[1] or shares[expert, own] == 0:
                continue
            for other in range(holders.shape[1]):
                holder = holders[expert, other]
                if holder < 0:
                    break
                reading = expert_cost if shares[expert, other] == 0 else 0
                tokens = (cost[source] - cost[holder] - reading) // (2 * token_cost)
                tokens = min(tokens, shares[expert, own] - 1)
                if other == own or tokens <= 0:
                    continue
                peak = max(
                    cost[source] - token_cost * tokens,
                    cost[holder] + reading + token_cost * tokens,
                )
                if peak < best:
                    best = peak
                    shared, from_, to, moved = expert, own, other, tokens
        if shared < 0:
            return
        cost[source] -= token_cost * moved
        reading = expert_cost if shares[shared, to] == 0 else 0
        cost[holders[shared, to]] += reading + token_cost * moved
        shares[shared, from_] -= moved
        shares[shared, to] += moved


@compiled
def share_tokens(  # type: ignore[no-untyped-def]
    expert_ids, holders, assigned, expert_cost, token_cost, max_moves, shares, activated, tokens
):
    """Fill shares: [experts, max_replicas] int64, tokens of each expert at each of its holders.

    assigned: [experts] int32, an assignment to start from. activated: [instances] int32 out.
    tokens: [instances] int64 out. The ids are in range: they have been assigned.
    """
    counts = np.zeros(holders.shape[0] + 1, np.int64)  # 0: padding
    ids = expert_ids.reshape(-1)
    for index in range(ids.size):
        counts[np.uint64(ids[index] + 1)] += 1
    counts = counts[1:]
    instance_of = assigned.copy()
    weight = expert_cost + token_cost * counts
    cost = np.zeros(activated.size, np.int64)
    for expert in range(holders.shape[0]):
        if instance_of[expert] >= 0:
            cost[instance_of[expert]] += weight[expert]
    _move_experts(holders, weight, instance_of, cost, max_moves)
    shares[:] = 0
    for expert in range(holders.shape[0]):
        for replica in range(holders.shape[1]):
            if holders[expert, replica] >= 0 and holders[expert, replica] == instance_of[expert]:
                shares[expert, replica] = counts[expert]
    if token_cost > 0:
        _share_experts(holders, expert_cost, token_cost, shares, cost, max_moves)
    activated[:] = 0
    tokens[:] = 0
    for expert in range(holders.shape[0]):
        for replica in range(holders.shape[1]):
            if shares[expert, replica] > 0:
                activated[holders[expert, replica]] += 1
                tokens[holders[expert, replica]] += shares[expert, replica]


@compiled
def hand_out(expert_ids, shares, labels, rewritten):  # type: ignore[no-untyped-def]
    """Label of a replica for every (token, k): each expert's first tokens to its first holder."""
    left = shares.copy()
    at = np.zeros(shares.shape[0], np.int64)
    ids, flat = expert_ids.reshape(-1), rewritten.reshape(-1)
    for index in range(ids.size):
        expert = ids[index]
        if expert < 0:
            flat[index] = -1
            continue
        while left[expert, at[expert]] == 0:
            at[expert] += 1
        left[expert, at[expert]] -= 1
        flat[index] = labels[expert, at[expert]]
