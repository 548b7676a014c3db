"""All messages of one direction of an exchange, in the order of their stages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from janus_moe.transport.exchange_plans.demand import ExchangeBatch
from janus_moe.transport.exchange_plans.groups import Group, NodeEntry
from janus_moe.transport.exchange_plans.program import RowMessage, StageName
from janus_moe.transport.exchange_plans.rows import RowSet

UnnumberedMessage = tuple[int, StageName, int, int, RowSet, tuple[int, ...]]


def dispatch_messages(batch: ExchangeBatch, groups: tuple[Group, ...]) -> tuple[RowMessage, ...]:
    """From attention instances to every expert instance that needs rows."""
    return _numbered(_dispatch(batch, group) for group in groups)


def reply_messages(batch: ExchangeBatch, groups: tuple[Group, ...]) -> tuple[RowMessage, ...]:
    """From expert instances back to the owners of the rows, sums being added up on the way."""
    return _numbered(_reply(batch, group) for group in groups)


def local_experts(batch: ExchangeBatch, group: Group) -> tuple[int, ...]:
    """Expert instances on the leader's node."""
    return batch.topology.experts_by_node.get(group.node, ())


def _dispatch(batch: ExchangeBatch, group: Group) -> Iterator[UnnumberedMessage]:
    topology, demand = batch.topology, batch.demand
    every_expert = range(topology.num_expert_instances)
    for member, spans in group.members:
        if member != group.leader:
            yield 1, "gather", member, group.leader, demand.rows(spans, every_expert), ()

    def to(stage: int, name: StageName, source: int, expert: int) -> UnnumberedMessage:
        rows = demand.rows(group.spans, (expert,))
        return stage, name, source, topology.expert_rank(expert), rows, ()

    for expert in local_experts(batch, group):
        yield to(2, "send", group.leader, expert)
    source, stage = group.leader, 2
    for place, entry in enumerate(group.entries):
        experts = topology.experts_by_node[entry.node]
        if entry.ingress_instance is None:
            for expert in experts:
                yield to(2, "send", group.leader, expert)
            continue
        ingress_instance = topology.expert_rank(entry.ingress_instance)
        served = _served_by(batch, group, place) if group.chained else experts
        yield (
            stage,
            "relay" if place and group.chained else "send",
            source,
            ingress_instance,
            (demand.rows(group.spans, served)),
            (),
        )
        for expert in experts:
            if expert != entry.ingress_instance:
                yield to(stage + 1, "spread", ingress_instance, expert)
        if group.chained:
            source, stage = ingress_instance, stage + 1


def _served_by(batch: ExchangeBatch, group: Group, place: int) -> tuple[int, ...]:
    """Expert instances on the entry's node and on those that follow in the chain."""
    nodes = (entry.node for entry in group.entries[place:])
    return tuple(expert for node in nodes for expert in batch.topology.experts_by_node[node])


def _reply(batch: ExchangeBatch, group: Group) -> Iterator[UnnumberedMessage]:
    topology, demand = batch.topology, batch.demand

    def sums(experts: tuple[int, ...]) -> tuple[RowSet, tuple[int, ...]]:
        """Rows for which these experts have sums, and who of them has any."""
        who = tuple(e for e in experts if len(demand.rows(group.spans, (e,))))
        return demand.rows(group.spans, experts), who

    for expert in local_experts(batch, group):
        yield 1, "reduce", topology.expert_rank(expert), group.leader, *sums((expert,))
    collector = collector_of(batch, group)
    for entry in group.entries:
        experts = topology.experts_by_node[entry.node]
        target = _reduced_at(batch, group, entry)
        for expert in experts:
            if topology.expert_rank(expert) != target:
                yield 1, "reduce", topology.expert_rank(expert), target, *sums((expert,))
        if target != group.leader and target != collector:
            yield 2, "collect", target, collector, *sums(experts)
    every_expert = tuple(range(topology.num_expert_instances))
    if collector != group.leader:
        yield 3, "collect", collector, group.leader, *sums(every_expert)
    for member, spans in group.members:
        if member != group.leader:
            who = sums(every_expert)[1]
            yield 4, "scatter", group.leader, member, demand.rows(spans, every_expert), who


def collector_of(batch: ExchangeBatch, group: Group) -> int:
    """Rank that adds up the sums of all nodes."""
    if not group.collected_at_ingress:
        return group.leader
    ingress_instance = group.entries[0].ingress_instance
    assert ingress_instance is not None
    return batch.topology.expert_rank(ingress_instance)


def _reduced_at(batch: ExchangeBatch, group: Group, entry: NodeEntry) -> int:
    """Rank that adds up the sums of the entry's node."""
    return (
        group.leader
        if entry.ingress_instance is None
        else batch.topology.expert_rank(entry.ingress_instance)
    )


def _numbered(by_group: Iterable[Iterable[UnnumberedMessage]]) -> tuple[RowMessage, ...]:
    """Sorted by stage, without empty messages, each with its group and lane."""
    of_groups = [
        (unnumbered, group) for group, of_group in enumerate(by_group) for unnumbered in of_group
    ]
    lanes: dict[tuple[int, int], int] = {}
    messages = []
    for unnumbered, group in sorted(of_groups, key=lambda pair: pair[0][0]):
        stage, name, source, target, rows, experts = unnumbered
        if not len(rows):
            continue
        lane = lanes.get((source, target), 0)
        lanes[source, target] = lane + 1
        messages.append(RowMessage(stage, name, source, target, rows, lane, group, experts))
    return tuple(messages)
