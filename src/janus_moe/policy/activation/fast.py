"""The activation scheduler, compiled: the same answers as `reference`, in microseconds.

One file on purpose: numba's cache notices a changed file only through the function it compiles,
so a helper elsewhere could go stale inside it. Compiled at the first call, cached on disk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba

# What `run` returns.
INVALID_ID = -1
NOT_PROVED = 0
OPTIMAL = 1

# Rows of the two work arrays.
NUM_EXPERT_ROWS = 3  # activated flag; movable experts, ascending; next expert on its instance
NUM_INSTANCE_ROWS = 4  # first expert; arrival's expert; arrival's instance; queue


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    compiled: Callable[..., Any] = numba.njit(nogil=True, cache=True)(function)
    return compiled


@_compiled
def _path_to_lighter(source, num_movable, hosts, instance_of, load, by_expert, by_instance):  # type: ignore[no-untyped-def]
    """Target of a shortest path from `source` to an instance with two fewer; -1 if none."""
    movable, following = by_expert[1], by_expert[2]
    first, arrival_expert, arrival_from, queue = by_instance
    first[:] = -1
    arrival_from[:] = -1
    for index in range(num_movable - 1, -1, -1):  # lists per instance, experts ascending
        expert = movable[index]
        instance = instance_of[expert]
        following[expert] = first[instance]
        first[instance] = expert
    arrival_from[source] = source
    queue[0] = source
    head, tail = 0, 1
    while head < tail:
        instance = queue[head]
        head += 1
        expert = first[instance]
        while expert >= 0:
            for replica in range(hosts.shape[1]):
                host = hosts[expert, replica]
                if host < 0:
                    break
                if arrival_from[host] >= 0:
                    continue
                arrival_expert[host] = expert
                arrival_from[host] = instance
                if load[host] <= load[source] - 2:
                    return host
                queue[tail] = host
                tail += 1
            expert = following[expert]
    return -1


@_compiled
def run(expert_ids, hosts, repairs, instance_of, load, by_expert, by_instance):  # type: ignore[no-untyped-def]
    """Fill `instance_of` and `load`; returns INVALID_ID, NOT_PROVED or OPTIMAL.

    expert_ids: [tokens, top_k] int32, -1 = padding. hosts: [experts, max_replicas] int32.
    repairs: 0 stops after the greedy assignment (`aebs`), 1 repairs until optimal (`exact`).
    instance_of: [experts] int32 out. load: [instances] int32 out.
    by_expert: [NUM_EXPERT_ROWS, experts] int32 and by_instance: [NUM_INSTANCE_ROWS, instances]
    int32, work space.
    """
    num_experts, max_replicas = hosts.shape
    num_instances = load.shape[0]
    active, movable = by_expert[0], by_expert[1]
    active[:] = 0
    instance_of[:] = -1
    load[:] = 0
    for token in range(expert_ids.shape[0]):
        for choice in range(expert_ids.shape[1]):
            expert = expert_ids[token, choice]
            if expert >= 0:
                if expert >= num_experts:
                    return INVALID_ID
                active[expert] = 1
            elif expert < -1:
                return INVALID_ID

    num_active, num_movable, bound = 0, 0, 0
    for expert in range(num_experts):
        if active[expert] == 0:
            continue
        num_active += 1
        if max_replicas == 1 or hosts[expert, 1] < 0:
            host = hosts[expert, 0]
            instance_of[expert] = host
            load[host] += 1
            bound = max(bound, load[host])
        else:
            movable[num_movable] = expert
            num_movable += 1
    bound = max(bound, (num_active + num_instances - 1) // num_instances)

    for index in range(num_movable):
        expert = movable[index]
        best = hosts[expert, 0]
        for replica in range(1, max_replicas):
            host = hosts[expert, replica]
            if host < 0:
                break
            if load[host] < load[best]:
                best = host
        instance_of[expert] = best
        load[best] += 1

    while True:
        source = 0
        for instance in range(1, num_instances):
            if load[instance] > load[source]:
                source = instance
        if load[source] == bound:
            return OPTIMAL
        if repairs == 0:
            return NOT_PROVED
        target = _path_to_lighter(
            source, num_movable, hosts, instance_of, load, by_expert, by_instance
        )
        if target < 0:
            return OPTIMAL
        load[source] -= 1
        load[target] += 1
        while target != source:
            instance_of[by_instance[1, target]] = target
            target = by_instance[2, target]
