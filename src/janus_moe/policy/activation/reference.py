"""The activation scheduler's semantics in plain Python; `fast` gives the same answers (==).

`aebs` is Algorithm 1 of Janus (arXiv 2512.13525), with the order and ties it leaves open fixed.
`exact` repairs its answer until it is provably optimal. Choosing one replica per activated expert
so that the largest count per instance is smallest is a unit-job restricted assignment, hence
polynomial: shifting one expert along a path to an instance with at least two fewer is always
possible unless the answer is optimal.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from janus_moe.policy.activation.layout import Assignment, LayerLayout, Policy

Hosts = list[list[int]]


def schedule_reference(
    policy: Policy, expert_ids: NDArray[np.int32], layout: LayerLayout
) -> Assignment:
    """expert_ids: [tokens, top_k] int32 logical ids, -1 = padding."""
    hosts = [[host for host in row if host >= 0] for row in layout.hosts.tolist()]
    active = sorted(set(expert_ids.ravel().tolist()) - {-1})
    instance_of: dict[int, int] = {}
    load = [0] * layout.num_instances

    singles = [expert for expert in active if len(hosts[expert]) == 1]
    for expert in singles:
        _place(expert, hosts[expert][0], instance_of, load)
    bound = max(-(-len(active) // layout.num_instances), max(load))
    movable = [expert for expert in active if len(hosts[expert]) > 1]
    for expert in movable:
        _place(expert, min(hosts[expert], key=lambda i: (load[i], i)), instance_of, load)

    optimal = max(load) == bound
    while policy == "exact" and not optimal:
        source = load.index(max(load))
        path = _path_to_lighter(source, movable, hosts, instance_of, load)
        optimal = path is None
        for expert, target in path or ():
            load[instance_of[expert]] -= 1
            _place(expert, target, instance_of, load)
        optimal = optimal or max(load) == bound

    answer = np.full(layout.num_experts, -1, np.int32)
    for expert, instance in instance_of.items():
        answer[expert] = instance
    return Assignment(answer, np.array(load, np.int32), optimal)


def _place(expert: int, instance: int, instance_of: dict[int, int], load: list[int]) -> None:
    instance_of[expert] = instance
    load[instance] += 1


def _path_to_lighter(
    source: int, movable: Iterable[int], hosts: Hosts, instance_of: dict[int, int], load: list[int]
) -> list[tuple[int, int]] | None:
    """Moves (expert, new instance) that lighten `source` by one; None when there are none.

    Breadth first over "an expert assigned to u also lives on v", experts ascending, then hosts
    ascending, to the first instance with at least two fewer experts than `source`. If none is
    reached, the reached instances hold, on average, more than load[source] - 1 activated experts
    that live nowhere else: whatever the assignment, one of them has load[source].
    """
    arrival: dict[int, tuple[int, int]] = {source: (-1, -1)}  # instance -> (expert, from)
    queue = [source]
    for instance in queue:
        for expert in movable:
            if instance_of[expert] != instance:
                continue
            for host in hosts[expert]:
                if host in arrival:
                    continue
                arrival[host] = (expert, instance)
                if load[host] <= load[source] - 2:
                    return _trace(host, arrival)
                queue.append(host)
    return None


def _trace(target: int, arrival: dict[int, tuple[int, int]]) -> list[tuple[int, int]]:
    moves = []
    while arrival[target][0] >= 0:
        expert, previous = arrival[target]
        moves.append((expert, target))
        target = previous
    return moves
