"""All messages of one direction of an exchange, in the order of their stages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from janus_moe.transport.exchange_plans.demand import Batch
from janus_moe.transport.exchange_plans.groups import Entry, Group
from janus_moe.transport.exchange_plans.program import Message, StageName
from janus_moe.transport.exchange_plans.rows import RowSet

Draft = tuple[int, StageName, int, int, RowSet, tuple[int, ...]]


def dispatch_messages(batch: Batch, groups: tuple[Group, ...]) -> tuple[Message, ...]:
    """From attention instances to every expert instance that needs rows."""
    return _numbered(_dispatch(batch, group) for group in groups)


def reply_messages(batch: Batch, groups: tuple[Group, ...]) -> tuple[Message, ...]:
    """From expert instances back to the owners of the rows, sums being added up on the way."""
    return _numbered(_reply(batch, group) for group in groups)


def local_experts(batch: Batch, group: Group) -> tuple[int, ...]:
    """Expert instances on the root's node."""
    return batch.topology.experts_by_node.get(group.node, ())


def _dispatch(batch: Batch, group: Group) -> Iterator[Draft]:
    topology, demand = batch.topology, batch.demand
    everybody = range(topology.num_experts)
    for member, spans in group.members:
        if member != group.root:
            yield 1, "gather", member, group.root, demand.rows(spans, everybody), ()

    def to(stage: int, name: StageName, source: int, expert: int) -> Draft:
        rows = demand.rows(group.spans, (expert,))
        return stage, name, source, topology.expert_rank(expert), rows, ()

    for expert in local_experts(batch, group):
        yield to(2, "send", group.root, expert)
    source, stage = group.root, 2
    for place, entry in enumerate(group.entries):
        experts = topology.experts_by_node[entry.node]
        if entry.head is None:
            for expert in experts:
                yield to(2, "send", group.root, expert)
            continue
        head = topology.expert_rank(entry.head)
        served = _served_by(batch, group, place) if group.chained else experts
        yield (
            stage,
            "relay" if place and group.chained else "send",
            source,
            head,
            (demand.rows(group.spans, served)),
            (),
        )
        for expert in experts:
            if expert != entry.head:
                yield to(stage + 1, "spread", head, expert)
        if group.chained:
            source, stage = head, stage + 1


def _served_by(batch: Batch, group: Group, place: int) -> tuple[int, ...]:
    """Expert instances on the entry's node and on those that follow in the chain."""
    nodes = (entry.node for entry in group.entries[place:])
    return tuple(expert for node in nodes for expert in batch.topology.experts_by_node[node])


def _reply(batch: Batch, group: Group) -> Iterator[Draft]:
    topology, demand = batch.topology, batch.demand

    def sums(experts: tuple[int, ...]) -> tuple[RowSet, tuple[int, ...]]:
        """Rows for which these experts have sums, and who of them has any."""
        who = tuple(e for e in experts if len(demand.rows(group.spans, (e,))))
        return demand.rows(group.spans, experts), who

    for expert in local_experts(batch, group):
        yield 1, "reduce", topology.expert_rank(expert), group.root, *sums((expert,))
    collector = collector_of(batch, group)
    for entry in group.entries:
        experts = topology.experts_by_node[entry.node]
        target = _reduced_at(batch, group, entry)
        for expert in experts:
            if topology.expert_rank(expert) != target:
                yield 1, "reduce", topology.expert_rank(expert), target, *sums((expert,))
        if target != group.root and target != collector:
            yield 2, "collect", target, collector, *sums(experts)
    everybody = tuple(range(topology.num_experts))
    if collector != group.root:
        yield 3, "collect", collector, group.root, *sums(everybody)
    for member, spans in group.members:
        if member != group.root:
            who = sums(everybody)[1]
            yield 4, "scatter", group.root, member, demand.rows(spans, everybody), who


def collector_of(batch: Batch, group: Group) -> int:
    """Rank that adds up the sums of all nodes."""
    if not group.collected_at_head:
        return group.root
    head = group.entries[0].head
    assert head is not None
    return batch.topology.expert_rank(head)


def _reduced_at(batch: Batch, group: Group, entry: Entry) -> int:
    """Rank that adds up the sums of the entry's node."""
    return group.root if entry.head is None else batch.topology.expert_rank(entry.head)


def _numbered(drafts: Iterable[Iterable[Draft]]) -> tuple[Message, ...]:
    """Sorted by stage, without empty messages, each with its group and lane."""
    of_groups = [(draft, group) for group, of_group in enumerate(drafts) for draft in of_group]
    lanes: dict[tuple[int, int], int] = {}
    messages = []
    for draft, group in sorted(of_groups, key=lambda pair: pair[0][0]):
        stage, name, source, target, rows, experts = draft
        if not len(rows):
            continue
        lane = lanes.get((source, target), 0)
        lanes[source, target] = lane + 1
        messages.append(Message(stage, name, source, target, rows, lane, group, experts))
    return tuple(messages)
