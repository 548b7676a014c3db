"""The plans: which rows travel together, through whom, and where they enter a node.

A group is a set of rows that one attention instance, its leader, sends to the experts and whose
sums it gets back. The plans differ in three answers only (paper section 3):

            groups                                 entry of another node    path over other nodes
1pc         each attention instance's rows         none: every expert       -
2pc-direct  each node's rows, at its leader        the node's leader        straight from the leader
2pc-relay   as 2pc-direct                          the node's leader        a chain of nodes
2pc-sharded each node's rows in one even shard     shard i enters at        straight from the leader
            per attention instance                 instance i of the node

The leader of a whole node is its attention instance of the lowest rank that has rows; idle ones
lead nothing. Experts on the leader's own node always get rows from it directly.

2pc-relay: the chain begins at one designated node, which rotates with the source node, and goes
around the other expert nodes in ascending order. If the source node hosts experts itself, it is
its own designated node: the chain begins at the next one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from janus_moe.errors import ConfigError
from janus_moe.spec import EXCHANGE_PLANS, ExchangePlanName
from janus_moe.transport.exchange_plans.demand import ExchangeBatch
from janus_moe.transport.exchange_plans.rows import RowRanges


@dataclass(frozen=True)
class NodeEntry:
    """Where a group's rows enter an expert node.

    ingress_instance: expert instance that spreads them there; None means that each instance of the
        node gets its own message.
    """

    node: int
    ingress_instance: int | None


@dataclass(frozen=True)
class Group:
    """Rows that travel together.

    leader: attention instance that sends them and gets their sums.
    node: of the leader.
    spans: the rows.
    members: [(attention instance, its rows)], ascending.
    entries: the expert nodes other than the leader's, in the order of the chain if there is one.
    chained: each entry's ingress instance passes rows on to the next one.
    collected_at_ingress: the first ingress instance adds up the nodes' sums, not the leader.
    """

    leader: int
    node: int
    spans: RowRanges
    members: tuple[tuple[int, RowRanges], ...]
    entries: tuple[NodeEntry, ...]
    chained: bool = False
    collected_at_ingress: bool = False


def make_groups(plan: ExchangePlanName, batch: ExchangeBatch) -> tuple[Group, ...]:
    """The groups of a batch, by source node and leader."""
    if plan not in EXCHANGE_PLANS:
        raise ConfigError(f"no exchange plan {plan!r}; there are {', '.join(EXCHANGE_PLANS)}")
    groups: list[Group] = []
    for order, node in enumerate(batch.topology.source_nodes):
        active = batch.active_on(node)
        if active:
            groups += _BY_PLAN[plan](batch, node, order, active)
    return tuple(groups)


def _one_phase(
    batch: ExchangeBatch, node: int, order: int, active: tuple[int, ...]
) -> Iterator[Group]:
    entries = tuple(NodeEntry(other, None) for other in _others(batch, node))
    for leader in active:
        spans = batch.owned[leader]
        yield Group(leader, node, spans, ((leader, spans),), entries)


def _direct(
    batch: ExchangeBatch, node: int, order: int, active: tuple[int, ...]
) -> Iterator[Group]:
    leaders = batch.topology.experts_by_node
    entries = tuple(NodeEntry(other, leaders[other][0]) for other in _others(batch, node))
    yield _whole_node(batch, node, active, entries)


def _relay(batch: ExchangeBatch, node: int, order: int, active: tuple[int, ...]) -> Iterator[Group]:
    experts = batch.topology.experts_by_node
    others = _others(batch, node)
    after = sum(other < node for other in others)  # the ring goes on after the source's own node
    first = after if node in experts else order % len(others)
    chain = others[first:] + others[:first]
    entries = tuple(NodeEntry(other, experts[other][0]) for other in chain)
    group = _whole_node(batch, node, active, entries)
    yield replace(group, chained=True, collected_at_ingress=node not in experts)


def _sharded(
    batch: ExchangeBatch, node: int, order: int, active: tuple[int, ...]
) -> Iterator[Group]:
    rows = batch.owned_by(active)
    total, num_shards = len(rows), len(active)
    experts = batch.topology.experts_by_node
    for shard, leader in enumerate(active):
        spans = rows.part(total * shard // num_shards, total * (shard + 1) // num_shards)
        if not len(spans):
            continue
        entries = tuple(
            NodeEntry(other, experts[other][shard % len(experts[other])])
            for other in _others(batch, node)
        )
        yield Group(leader, node, spans, _members(batch, active, spans), entries)


_BY_PLAN = {"1pc": _one_phase, "2pc-direct": _direct, "2pc-relay": _relay, "2pc-sharded": _sharded}


def _whole_node(
    batch: ExchangeBatch, node: int, active: tuple[int, ...], entries: tuple[NodeEntry, ...]
) -> Group:
    spans = batch.owned_by(active)
    return Group(active[0], node, spans, _members(batch, active, spans), entries)


def _members(
    batch: ExchangeBatch, active: tuple[int, ...], spans: RowRanges
) -> tuple[tuple[int, RowRanges], ...]:
    parts = ((index, batch.owned[index].within(spans)) for index in active)
    return tuple((index, part) for index, part in parts if len(part))


def _others(batch: ExchangeBatch, node: int) -> tuple[int, ...]:
    """Expert nodes other than `node`, ascending."""
    return tuple(other for other in batch.topology.experts_by_node if other != node)
