"""What a cost model needs to know of an exchange: its critical path, counted from its messages.

How long anything takes is not known here; `planner.latency` says that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from janus_moe.planner.latency.links import ExchangeCounts
from janus_moe.transport.exchange_plans.building import ExchangePlan
from janus_moe.transport.exchange_plans.program import Direction, RowBytes, RowMessage, header_bytes
from janus_moe.transport.exchange_plans.topology import Topology


def priced_counts(
    exchange: ExchangePlan, row_bytes: RowBytes
) -> tuple[ExchangeCounts, ExchangeCounts]:
    """(dispatch, combine) of one exchange, of any plan and gating."""
    topology = exchange.batch.topology
    return (
        direction_counts(topology, exchange.dispatches, "dispatch", row_bytes),
        direction_counts(topology, exchange.replies, "reply", row_bytes),
    )


def direction_counts(
    topology: Topology, messages: Iterable[RowMessage], direction: Direction, row_bytes: RowBytes
) -> ExchangeCounts:
    """Counts of one direction.

    Hops: stages that have messages between nodes, and stages that have only messages within nodes.
    Within nodes and for the number of messages the endpoints are instances. Between nodes, bytes
    of all instances of a node share its link: the endpoint is the node. Totals are of messages
    between nodes.
    """
    header = header_bytes(direction, topology.num_expert_instances)
    per_row = row_bytes.dispatch if direction == "dispatch" else row_bytes.reply
    stages: dict[int, bool] = {}
    same_host_messages: Counter[tuple[str, int]] = Counter()
    same_host_bytes: Counter[tuple[str, int]] = Counter()
    remote_messages: Counter[tuple[str, int]] = Counter()
    remote_bytes: Counter[tuple[str, int]] = Counter()
    total_messages = total_bytes = 0
    for message in messages:
        size = header + per_row * message.num_rows
        source, target = message.source, message.target
        nodes = topology.nodes[source], topology.nodes[target]
        is_remote = nodes[0] != nodes[1]
        stages[message.stage] = stages.get(message.stage, False) or is_remote
        ends = (("out", source), ("in", target))
        (remote_messages if is_remote else same_host_messages).update(ends)
        links = (("out", nodes[0]), ("in", nodes[1])) if is_remote else ends
        for end in links:
            (remote_bytes if is_remote else same_host_bytes)[end] += size
        if is_remote:  # what host peers read in each other's memory costs the kernel nothing
            total_messages += 1
            total_bytes += size
    remote_hops = sum(stages.values())
    return ExchangeCounts(
        intra_hops=len(stages) - remote_hops,
        intra_messages=max(same_host_messages.values(), default=0),
        intra_bytes=max(same_host_bytes.values(), default=0),
        inter_hops=remote_hops,
        inter_messages=max(remote_messages.values(), default=0),
        inter_bytes=max(remote_bytes.values(), default=0),
        total_messages=total_messages,
        total_bytes=total_bytes,
    )
