"""The activation scheduler, compiled: the same answers as `reference`, in microseconds.

One file on purpose: numba's cache notices a changed file only through the function it compiles,
so a helper elsewhere could go stale inside it; a published hash function does not change.
Compiled at the first call, cached on disk.
"""

from __future__ import annotations

import numpy as np

from janus_moe.compiled import compiled
from janus_moe.policy.splitmix64 import finalize

# What `run`, `run_and_rewrite` and `split_tokens` return.
INVALID_ID = -1
NOT_PROVED = 0
OPTIMAL = 1

# How `run` chooses among the replicas of an expert.
LEAST_LOADED_SINGLES_FIRST = 0  # aebs, exact
LEAST_LOADED = 1  # metro
HASHED = 2  # random

# Rows of the two work arrays, each with a column more: 0 is the padding id's (-1) in those by
# expert, and the last one that of movable experts in those by instance.
NUM_EXPERT_ROWS = 4  # activated flag; movable experts, ascending; next on its instance; label
NUM_INSTANCE_ROWS = 4  # first expert; arrival's expert; arrival's instance; queue

CHUNK = 1024
"""Ids read between two looks at whether all experts are active already."""


@compiled
def _mark_active(ids, num_experts, flags):  # type: ignore[no-untyped-def]
    """flags: [1 + experts], flag of expert e at e + 1. False when an id is out of range."""
    flags[:] = 0
    all_active = False
    for start in range(0, ids.size, CHUNK):
        chunk = ids[start : start + CHUNK]
        low = high = chunk[0]
        for expert in chunk:
            low = min(low, expert)
            high = max(high, expert)
        if low < -1 or high >= num_experts:
            return False
        if not all_active:
            for expert in chunk:
                flags[np.uint64(expert + 1)] = 1  # unsigned: no test for a negative index
            all_active = ids.size > CHUNK and flags[1:].sum() == num_experts
    return True


@compiled
def _path_to_lighter(source, num_movable, holders, instance_of, load, by_expert, by_instance):  # type: ignore[no-untyped-def]
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
            for replica in range(holders.shape[1]):
                holder = holders[expert, replica]
                if holder < 0:
                    break
                if arrival_from[holder] >= 0:
                    continue
                arrival_expert[holder] = expert
                arrival_from[holder] = instance
                if load[holder] <= load[source] - 2:
                    return holder
                queue[tail] = holder
                tail += 1
            expert = following[expert]
    return -1


@compiled
def _hashed(expert, holders, seed):  # type: ignore[no-untyped-def]
    num_replicas = 0
    while num_replicas < holders.shape[1] and holders[expert, num_replicas] >= 0:
        num_replicas += 1
    return holders[expert, np.int64(finalize(seed + np.uint64(expert)) % np.uint64(num_replicas))]


@compiled
def run(  # type: ignore[no-untyped-def]
    expert_ids, holders, single_holder, movable_experts, choice, max_repairs, seed,
    instance_of, load, by_expert, by_instance,
):  # fmt: skip
    """Fills `instance_of` and `load`; returns INVALID_ID, NOT_PROVED or OPTIMAL.

    One long function: compiled code counts references of arrays at every call.

    expert_ids: [tokens, top_k] int32, -1 = padding. holders: [experts, max_replicas] int32.
    single_holder: [experts] int32, the only holder, or `instances` where there are more.
    movable_experts: [those] int32, ascending.
    choice: LEAST_LOADED_SINGLES_FIRST, LEAST_LOADED or HASHED.
    max_repairs: augmentations allowed after the first assignment; each lightens one instance.
    seed: uint64. instance_of: [experts] int32 out. load: [instances] int32 out.
    by_expert: [NUM_EXPERT_ROWS, 1 + experts] and by_instance: [NUM_INSTANCE_ROWS, instances + 1],
    int32, work space.
    """
    num_experts, max_replicas = holders.shape
    num_instances = load.shape[0]
    flags, movable, single_load = by_expert[0], by_expert[1], by_instance[0]
    if not _mark_active(expert_ids.reshape(-1), num_experts, flags):
        return INVALID_ID

    # No branches here: which experts are active cannot be guessed, by a branch predictor neither.
    single_load[:] = 0
    num_active, num_movable = 0, 0
    for expert in range(num_experts):
        flag = flags[expert + 1]
        num_active += flag
        instance_of[expert] = flag * (single_holder[expert] + 1) - 1
    for expert in range(num_experts):
        single_load[np.uint64(single_holder[expert])] += flags[expert + 1]
    for expert in movable_experts:
        movable[num_movable] = expert
        num_movable += flags[expert + 1]
    bound = (num_active + num_instances - 1) // num_instances
    for instance in range(num_instances):
        load[instance] = single_load[instance] if choice == LEAST_LOADED_SINGLES_FIRST else 0
        bound = max(bound, single_load[instance])

    if choice != LEAST_LOADED_SINGLES_FIRST:
        num_movable = 0  # all take part in the order of ids
        for expert in range(num_experts):
            movable[num_movable] = expert
            num_movable += flags[expert + 1]
    if choice == HASHED:
        for index in range(num_movable):  # a digest of the activated set, in any order
            seed += finalize(np.uint64(movable[index] + 1))
        seed = finalize(seed)
    for index in range(num_movable):
        expert = movable[index]
        best = holders[expert, 0]
        if choice == HASHED:
            best = _hashed(expert, holders, seed)
        else:  # spelled out: a call would count references of arrays, ten times the work
            for replica in range(1, max_replicas):
                holder = holders[expert, replica]
                if holder < 0:
                    break
                if load[holder] < load[best]:
                    best = holder
        instance_of[expert] = best
        load[best] += 1

    while True:
        source = 0
        for instance in range(1, num_instances):
            if load[instance] > load[source]:
                source = instance
        if load[source] == bound:
            return OPTIMAL
        if max_repairs == 0:
            return NOT_PROVED
        max_repairs -= 1
        target = _path_to_lighter(
            source, num_movable, holders, instance_of, load, by_expert, by_instance
        )
        if target < 0:
            return OPTIMAL
        load[source] -= 1
        load[target] += 1
        while target != source:
            instance_of[by_instance[1, target]] = target
            target = by_instance[2, target]


@compiled
def run_and_rewrite(  # type: ignore[no-untyped-def]
    expert_ids, holders, single_holder, movable_experts, choice, max_repairs, seed,
    instance_of, load, by_expert, by_instance, labels, rewritten,
):  # fmt: skip
    """`run`, then the label of the chosen replica for every (token, k); -1 for padding.

    labels: [experts, max_replicas] int32, columns as in `holders`. rewritten: like expert_ids, out.
    """
    status = run(
        expert_ids, holders, single_holder, movable_experts, choice, max_repairs, seed,
        instance_of, load, by_expert, by_instance,
    )  # fmt: skip
    if status != INVALID_ID:
        label_of = by_expert[3]
        label_of[0] = -1
        for expert in range(holders.shape[0]):
            label_of[expert + 1] = labels[expert, 0]  # right for all but some movable ones
        for expert in movable_experts:
            replica = 0
            while (
                replica < holders.shape[1] - 1 and holders[expert, replica] != instance_of[expert]
            ):
                replica += 1
            label_of[expert + 1] = labels[expert, replica]
        ids, flat = expert_ids.reshape(-1), rewritten.reshape(-1)
        for index in range(ids.size):
            flat[index] = label_of[np.uint64(ids[index] + 1)]
    return status


@compiled
def split_tokens(expert_ids, holders, num_replicas, labels, load, rewritten):  # type: ignore[no-untyped-def]
    """Replica `position % replicas` for every (token, k); arrays and result as above."""
    ids, flat = expert_ids.reshape(-1), rewritten.reshape(-1)
    active = np.zeros(holders.shape[0] + 1, np.int32)
    load[:] = 0
    if not _mark_active(ids, holders.shape[0], active):
        return INVALID_ID
    used = np.zeros(holders.shape, np.bool_)
    for position in range(ids.size):
        expert = ids[position]
        if expert < 0:
            flat[position] = -1
            continue
        replica = position % num_replicas[expert]
        flat[position] = labels[expert, replica]
        if not used[expert, replica]:
            used[expert, replica] = True
            load[holders[expert, replica]] += 1
    single_load = np.zeros_like(load)
    for expert in range(holders.shape[0]):
        if active[expert + 1] != 0 and num_replicas[expert] == 1:
            single_load[holders[expert, 0]] += 1
    bound = max(single_load.max(), (active[1:].sum() + load.size - 1) // load.size)
    return OPTIMAL if load.max() == bound else NOT_PROVED
