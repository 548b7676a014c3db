"""Messages and bytes of an exchange: counted from its messages, and in closed form.

The closed forms hold for gating on the expert side and are printed in docs/transport.md. They know
the sizes of nodes and how many rows each has; they build no message. With gating on the attention
side the counts depend on the routing: `count` the messages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate, pairwise

from janus_moe.spec import ExchangePlanName
from janus_moe.transport.exchange_plans.program import Direction, RowBytes, RowMessage, header_bytes
from janus_moe.transport.exchange_plans.topology import Topology


@dataclass(frozen=True, slots=True)
class MessageCounts:
    """Messages and bytes, headers included, of one direction.

    inter, intra: between and within nodes.
    busiest_egress: bytes that the busiest node sends to others.
    busiest_ingress: bytes that the busiest node gets from others.
    """

    inter_messages: int
    inter_bytes: int
    intra_messages: int
    intra_bytes: int
    busiest_egress: int
    busiest_ingress: int

    @property
    def messages(self) -> int:
        return self.inter_messages + self.intra_messages

    @property
    def bytes(self) -> int:
        return self.inter_bytes + self.intra_bytes


class _Tally:
    """Messages and rows within nodes, and between nodes by sending and by receiving node."""

    def __init__(self) -> None:
        self.intra_messages = self.intra_rows = 0
        self.sent: Counter[int] = Counter()
        self.sent_rows: Counter[int] = Counter()
        self.received: Counter[int] = Counter()
        self.received_rows: Counter[int] = Counter()

    def within(self, messages: int, rows: int) -> None:
        self.intra_messages += messages
        self.intra_rows += rows

    def send(self, node: int, messages: int, rows: int) -> None:
        self.sent[node] += messages
        self.sent_rows[node] += rows

    def receive(self, node: int, messages: int, rows: int) -> None:
        self.received[node] += messages
        self.received_rows[node] += rows

    def mirrored(self) -> _Tally:
        """The same messages the other way around."""
        other = _Tally()
        other.within(self.intra_messages, self.intra_rows)
        other.sent, other.sent_rows = self.received, self.received_rows
        other.received, other.received_rows = self.sent, self.sent_rows
        return other

    def counts(self, header: int, per_row: int) -> MessageCounts:
        def size(messages: int, rows: int) -> int:
            return header * messages + per_row * rows

        egress = (size(self.sent[node], self.sent_rows[node]) for node in self.sent)
        ingress = (size(self.received[node], self.received_rows[node]) for node in self.received)
        return MessageCounts(
            inter_messages=self.sent.total(),
            inter_bytes=size(self.sent.total(), self.sent_rows.total()),
            intra_messages=self.intra_messages,
            intra_bytes=size(self.intra_messages, self.intra_rows),
            busiest_egress=max(egress, default=0),
            busiest_ingress=max(ingress, default=0),
        )


def count(
    topology: Topology, messages: Iterable[RowMessage], direction: Direction, row_bytes: RowBytes
) -> MessageCounts:
    """Counts the messages of one direction, as `ExchangePlan` lists them."""
    tally = _Tally()
    for message in messages:
        source, target = topology.nodes[message.source], topology.nodes[message.target]
        if source == target:
            tally.within(1, message.num_rows)
        else:
            tally.send(source, 1, message.num_rows)
            tally.receive(target, 1, message.num_rows)
    header = header_bytes(direction, topology.num_expert_instances)
    return tally.counts(header, getattr(row_bytes, direction))


def closed_form(
    plan: ExchangePlanName, topology: Topology, tokens: tuple[int, ...], row_bytes: RowBytes
) -> tuple[MessageCounts, MessageCounts]:
    """(dispatch, reply) with gating on the expert side; tokens: [attention instances]."""
    facts = _Facts(topology, tokens)
    dispatch, reply = _FORMS[plan](facts)
    n = topology.num_expert_instances
    return (
        dispatch.counts(header_bytes("dispatch", n), row_bytes.dispatch),
        reply.counts(header_bytes("reply", n), row_bytes.reply),
    )


class _Facts:
    """n: expert instances. experts: node -> e_d. For each source node with rows, s:

    active[s]: a_s instances with rows; rows[s]: R_s; first[s]: rows of the first of them;
    others[s]: D_s expert nodes other than s; local[s]: expert instances on s.
    """

    def __init__(self, topology: Topology, tokens: tuple[int, ...]) -> None:
        self.n = topology.num_expert_instances
        self.experts = {d: len(ids) for d, ids in topology.experts_by_node.items()}
        self.tokens_on: dict[int, list[int]] = {}
        for node, count in sorted(zip(topology.attention_nodes, tokens, strict=True), key=_node):
            if count:
                self.tokens_on.setdefault(node, []).append(count)
        self.order = {node: order for order, node in enumerate(topology.source_nodes)}
        self.active = {s: len(counts) for s, counts in self.tokens_on.items()}
        self.rows = {s: sum(counts) for s, counts in self.tokens_on.items()}
        self.first = {s: counts[0] for s, counts in self.tokens_on.items()}
        self.local = {s: self.experts.get(s, 0) for s in self.rows}
        self.others = {s: len(self.experts) - (s in self.experts) for s in self.rows}

    def designated(self, s: int) -> int | None:
        """Where the rows of node s go first in 2pc-relay; None: it is s itself, or nowhere."""
        nodes = list(self.experts)
        return None if s in self.experts else nodes[self.order[s] % len(nodes)]

    def last(self, s: int) -> int | None:
        """End of the chain of node s: the one before the designated node, or before s."""
        if not self.others[s]:
            return None
        nodes = list(self.experts)
        start = self.designated(s)
        return nodes[nodes.index(s if start is None else start) - 1]


def _node(pair: tuple[int, int]) -> int:
    return pair[0]


def _one_phase(facts: _Facts) -> tuple[_Tally, _Tally]:
    tally = _Tally()
    for s, rows in facts.rows.items():
        active, local = facts.active[s], facts.local[s]
        tally.within(active * local, rows * local)
        tally.send(s, active * (facts.n - local), rows * (facts.n - local))
        for d, experts in facts.experts.items():
            if d != s:
                tally.receive(d, active * experts, rows * experts)
    return tally, tally.mirrored()


def _direct(facts: _Facts) -> tuple[_Tally, _Tally]:
    tally = _Tally()
    for s, rows in facts.rows.items():
        _within(facts, s, tally)
        tally.send(s, facts.others[s], rows * facts.others[s])
        for d in facts.experts:
            if d != s:
                tally.receive(d, 1, rows)
    return tally, tally.mirrored()


def _within(facts: _Facts, s: int, tally: _Tally) -> None:
    """Gathering on the source node, and spreading on every expert node."""
    rows, spread = facts.rows[s], facts.n - facts.others[s]
    tally.within(facts.active[s] - 1 + spread, rows - facts.first[s] + rows * spread)


def _relay(facts: _Facts) -> tuple[_Tally, _Tally]:
    dispatch, reply = _Tally(), _Tally()
    for s, rows in facts.rows.items():
        _within(facts, s, dispatch)
        _within(facts, s, reply)
        others, collector = facts.others[s], facts.designated(s)
        if others:
            dispatch.send(s, 1, rows)
        for d in facts.experts:
            if d != s:
                dispatch.receive(d, 1, rows)
                reply.send(d, 1, rows)
                if d != facts.last(s):
                    dispatch.send(d, 1, rows)
        if collector is None:
            reply.receive(s, others, rows * others)
        else:
            reply.receive(s, 1, rows)
            reply.receive(collector, others - 1, rows * (others - 1))
    return dispatch, reply


def _sharded(facts: _Facts) -> tuple[_Tally, _Tally]:
    tally = _Tally()
    for s, rows in facts.rows.items():
        shards, others = min(facts.active[s], rows), facts.others[s]
        spread = facts.n - others
        messages, moved = _shifted(facts.tokens_on[s])
        tally.within(messages + shards * spread, moved + rows * spread)
        tally.send(s, shards * others, rows * others)
        for d in facts.experts:
            if d != s:
                tally.receive(d, shards, rows)
    return tally, tally.mirrored()


def _shifted(tokens: list[int]) -> tuple[int, int]:
    """(messages, rows) between instances of one node that make even shards of `tokens`.

    Two partitions of the same rows have as many common cells as distinct ends; a cell stays
    where it is if owner and shard are the same instance's.
    """
    total, count = sum(tokens), len(tokens)
    ends = list(accumulate(tokens))
    cuts = [total * (i + 1) // count for i in range(count)]
    kept = [
        min(owned[1], shard[1]) - max(owned[0], shard[0])
        for owned, shard in zip(pairwise([0, *ends]), pairwise([0, *cuts]), strict=True)
    ]
    stay = [rows for rows in kept if rows > 0]
    return len({*ends, *cuts} - {0}) - len(stay), total - sum(stay)


_FORMS: dict[ExchangePlanName, Callable[[_Facts], tuple[_Tally, _Tally]]] = {
    "1pc": _one_phase,
    "2pc-direct": _direct,
    "2pc-relay": _relay,
    "2pc-sharded": _sharded,
}
