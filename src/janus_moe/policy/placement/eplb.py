"""EPLB, DeepSeek's expert-parallel load balancer, from its published description.

Replicas to the experts with the most tokens per copy, copies packed so that instances get equal
numbers of copies and nearly equal tokens. Hierarchical: expert groups are packed onto nodes first,
and each node then replicates and packs its own experts, so that group-limited routing stays
inside a node.

`balance` is the algorithm itself: equal slots everywhere, and an instance may get two copies of
one expert. `place_layer` keeps its two rules but obeys ours: any slots, no second copy on an
instance (it goes to the next lightest one).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from janus_moe.errors import ConfigError
from janus_moe.policy.placement.filling import Filling
from janus_moe.policy.placement.replication import proportional_replicas

_Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def balance(
    weight: Floats, num_replicas: int, num_groups: int, num_nodes: int, num_gpus: int
) -> _Ints:
    """[replicas] logical expert of each physical one, GPU by GPU, for one layer.

    weight: [experts] tokens. Global when num_groups or num_nodes is 1 or the groups do not divide
    among the nodes, else hierarchical.
    """
    check_shape(len(weight), num_replicas, num_groups, num_nodes, num_gpus)
    if num_groups % num_nodes:
        num_groups = num_nodes = 1
    experts_of_node = node_experts(weight, num_groups, num_nodes)
    per_node, gpus = num_replicas // num_nodes, num_gpus // num_nodes
    physical = []
    for experts in experts_of_node:
        local = _replicate(weight[experts], per_node)
        share = weight[experts][local] / np.bincount(local)[local]
        for packed in _pack(share, gpus):
            physical.append(experts[local[packed]])
    return np.concatenate(physical)


def place_layer(
    weight: Floats, capacity: Sequence[int], num_groups: int = 1, num_nodes: int = 1
) -> tuple[tuple[int, ...], ...]:
    """weight: [experts] tokens. capacity: [instances] slots, all used; nodes are equal runs of
    instances. Each instance's experts, ascending.
    """
    if num_nodes < 1 or len(capacity) % num_nodes or num_groups % num_nodes:
        raise ConfigError(
            f"hierarchical EPLB needs {len(capacity)} expert instances and {num_groups} expert "
            f"groups to be multiples of {num_nodes} nodes"
        )
    size = len(capacity) // num_nodes
    slots: list[tuple[int, ...]] = []
    for node, experts in enumerate(node_experts(weight, num_groups, num_nodes)):
        own = [min(c, len(experts)) for c in capacity[node * size : (node + 1) * size]]
        if sum(own) < len(experts):
            raise ConfigError(
                f"node {node} has {sum(own)} slots for the {len(experts)} experts of its groups; "
                "add slots or use fewer nodes"
            )
        copies = proportional_replicas(weight[experts], own)
        share = weight[experts] / copies
        filling = Filling(own)
        for local in np.argsort(-share, kind="stable").tolist():
            for _ in range(copies[local]):
                free = filling.free_for(local)
                if free:
                    lightest = min(free, key=lambda i: (filling.load[i], i))
                    filling.put(local, float(share[local]), lightest)
                else:
                    filling.swap_in(local, float(share[local]))
        slots += [tuple(sorted(experts[list(held)].tolist())) for held in filling.slots()]
    return tuple(slots)


def node_experts(weight: Floats, num_groups: int, num_nodes: int) -> list[_Ints]:
    """Logical experts of each node: whole groups, packed by their tokens."""
    if len(weight) % num_groups:
        raise ConfigError(f"{len(weight)} experts do not form {num_groups} equal groups")
    group_size = len(weight) // num_groups
    groups = _pack(weight.reshape(num_groups, group_size).sum(axis=1), num_nodes)
    return [(g[:, None] * group_size + np.arange(group_size)).ravel() for g in groups]


def check_shape(
    num_experts: int, num_replicas: int, num_groups: int, num_nodes: int, num_gpus: int
) -> None:
    if num_replicas < num_experts:
        raise ConfigError(f"{num_replicas} replicas cannot hold {num_experts} experts")
    if min(num_groups, num_nodes, num_gpus) < 1 or num_replicas % num_gpus or num_gpus % num_nodes:
        raise ConfigError(
            f"EPLB needs equal slots: {num_replicas} replicas must be a multiple of {num_gpus} "
            f"GPUs, and these of {num_nodes} nodes; take "
            f"{-(-num_replicas // max(num_gpus, 1)) * max(num_gpus, 1)} replicas, or another "
            "method, which has no such rule"
        )


def _replicate(weight: Floats, num_replicas: int) -> _Ints:
    """[replicas] expert of each replica: all once, then the most tokens per copy."""
    copies = np.ones(len(weight), np.int64)
    extra = []
    for _ in range(num_replicas - len(weight)):
        expert = int(np.argmax(weight / copies))
        extra.append(expert)
        copies[expert] += 1
    return np.concatenate([np.arange(len(weight)), np.array(extra, np.int64)])


def _pack(weight: Floats, num_packs: int) -> list[_Ints]:
    """Items of each pack, equally many: heaviest first, each to the lightest pack with room."""
    size = len(weight) // num_packs
    if size == 1:
        return [np.array([item]) for item in range(num_packs)]
    packs: list[list[int]] = [[] for _ in range(num_packs)]
    load = [0.0] * num_packs
    for item in np.argsort(-weight, kind="stable").tolist():
        lightest = min((p for p in range(num_packs) if len(packs[p]) < size), key=load.__getitem__)
        packs[lightest].append(item)
        load[lightest] += float(weight[item])
    return [np.array(pack, np.int64) for pack in packs]
