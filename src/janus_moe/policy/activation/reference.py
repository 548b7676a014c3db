"""The activation scheduler's semantics in plain Python; `fast` gives the same answers (==).

`aebs` is Algorithm 1 of Janus (arXiv 2512.13525), with the order and ties it leaves open fixed.
`exact` repairs its answer until it is provably optimal. Choosing one replica per activated expert
so that the largest count per instance is smallest is a unit-job restricted assignment, hence
polynomial: shifting one expert along a path to an instance with at least two fewer is always
possible unless the answer is optimal.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
from numpy.typing import NDArray

from janus_moe.policy.activation.layout import Assignment, LayerLayout, Rewrite
from janus_moe.policy.splitmix64 import finalize
from janus_moe.spec import ExpertPolicy

Holders = list[list[int]]
MASK = 2**64 - 1


def schedule_reference(
    policy: ExpertPolicy, expert_ids: NDArray[np.int32], layout: LayerLayout, seed: int = 0
) -> Assignment:
    """expert_ids: [tokens, top_k] int32 logical ids, -1 = padding."""
    holders = _holders(layout)
    active = sorted(set(expert_ids.ravel().tolist()) - {-1})
    instance_of: dict[int, int] = {}
    load = [0] * layout.num_instances
    singles = [expert for expert in active if len(holders[expert]) == 1]
    movable = [expert for expert in active if len(holders[expert]) > 1]
    bound = lower_bound(active, holders, layout.num_instances)

    if policy == "random":
        seed = _mix(seed + sum(_mix(expert + 1) for expert in active))
        for expert in active:
            chosen = holders[expert][_mix(seed + expert) % len(holders[expert])]
            _place(expert, chosen, instance_of, load)
    else:
        for expert in active if policy == "metro" else singles + movable:
            _place(expert, min(holders[expert], key=lambda i: (load[i], i)), instance_of, load)

    optimal = max(load) == bound
    while policy == "exact" and not optimal:
        source = load.index(max(load))
        path = _path_to_lighter(source, movable, holders, instance_of, load)
        optimal = path is None
        for expert, target in path or ():
            load[instance_of[expert]] -= 1
            _place(expert, target, instance_of, load)
        optimal = optimal or max(load) == bound

    answer = np.full(layout.num_experts, -1, np.int32)
    for expert, instance in instance_of.items():
        answer[expert] = instance
    return Assignment(answer, np.array(load, np.int32), optimal)


def split_reference(expert_ids: NDArray[np.int32], layout: LayerLayout) -> Rewrite:
    """`token-split`: the (token, k) at flat position p uses replica p modulo the replicas."""
    holders = _holders(layout)
    instances = np.full(expert_ids.size, -1, np.int32)
    used: set[tuple[int, int]] = set()
    for position, expert in enumerate(expert_ids.ravel().tolist()):
        if expert >= 0:
            instance = holders[expert][position % len(holders[expert])]
            instances[position] = instance
            used.add((expert, instance))
    load = np.bincount([i for _, i in used], minlength=layout.num_instances).astype(np.int32)
    bound = lower_bound({expert for expert, _ in used}, holders, layout.num_instances)
    return Rewrite(instances.reshape(expert_ids.shape), load, bool(load.max() == bound))


def rewrite_reference(expert_ids: NDArray[np.int32], assignment: Assignment) -> NDArray[np.int32]:
    """[tokens, top_k] int32: the instance of every (token, k), -1 for padding."""
    table = np.append(assignment.instance_of_expert, -1)  # [-1] is padding's
    return np.asarray(table[expert_ids], np.int32)


def lower_bound(active: Collection[int], holders: Holders, num_instances: int) -> int:
    """No assignment has a smaller maximum: an even split, and experts that live in one place."""
    singles = [holders[expert][0] for expert in active if len(holders[expert]) == 1]
    return max(-(-len(active) // num_instances), *map(singles.count, range(num_instances)))


def _holders(layout: LayerLayout) -> Holders:
    return [[holder for holder in row if holder >= 0] for row in layout.holders.tolist()]


def _mix(value: int) -> int:
    return int(finalize(np.uint64(value & MASK)))


def _place(expert: int, instance: int, instance_of: dict[int, int], load: list[int]) -> None:
    instance_of[expert] = instance
    load[instance] += 1


def _path_to_lighter(
    source: int,
    movable: Iterable[int],
    holders: Holders,
    instance_of: dict[int, int],
    load: list[int],
) -> list[tuple[int, int]] | None:
    """Moves (expert, new instance) that lighten `source` by one; None when there are none.

    Breadth first over "an expert assigned to u also lives on v", experts ascending, then holders
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
            for holder in holders[expert]:
                if holder in arrival:
                    continue
                arrival[holder] = (expert, instance)
                if load[holder] <= load[source] - 2:
                    return _trace(holder, arrival)
                queue.append(holder)
    return None


def _trace(target: int, arrival: dict[int, tuple[int, int]]) -> list[tuple[int, int]]:
    moves = []
    while arrival[target][0] >= 0:
        expert, previous = arrival[target]
        moves.append((expert, target))
        target = previous
    return moves
