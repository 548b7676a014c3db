"""Seconds of an exchange from its plan's own messages, stage by stage.

Every GPU has its own link inside the node and its own link between nodes, as on the paper's
testbed. A stage lasts as long as its busiest endpoint: latency, messages and bytes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from janus_moe.planner.latency import LinkModel
from janus_moe.planner.latency.links import METADATA_BYTES
from janus_moe.spec import ExchangePlanName, ModelSpec
from janus_moe.transport.exchange_plans import (
    EveryRow,
    ExchangePlan,
    RoutedRows,
    RowMessage,
    Topology,
    header_bytes,
)

ACTIVATION_BYTES, PARTIAL_BYTES = 2, 4
GPUS_PER_NODE = 8


class Exchange(NamedTuple):
    """Seconds of both directions; messages and bytes that cross nodes, both directions."""

    dispatch_s: float
    combine_s: float
    far_messages: int
    far_bytes: int

    @property
    def seconds(self) -> float:
        return self.dispatch_s + self.combine_s


def filled(num_attention: int, num_expert: int) -> Topology:
    """Attention instances, then expert instances, fill nodes in order."""
    nodes = [rank // GPUS_PER_NODE for rank in range(num_attention + num_expert)]
    return Topology(tuple(nodes[:num_attention]), tuple(nodes[num_attention:]))


def exchange(
    plan: ExchangePlanName,
    topology: Topology,
    batch: int,
    model: ModelSpec,
    links: LinkModel,
    replicas: NDArray[np.int64] | None = None,
) -> Exchange:
    """Prices one exchange of `batch` rows in even shares.

    replicas: [batch, k] int64, expert instance of each replica, for gating on the attention side;
        None means gating on the expert side.
    """
    share, rest = divmod(batch, topology.num_attention_instances)
    tokens = tuple(share + (index < rest) for index in range(topology.num_attention_instances))
    demand = EveryRow(tokens) if replicas is None else RoutedRows(tokens, replicas)
    made = ExchangePlan(plan, topology, demand)
    metadata = 0 if replicas is None else METADATA_BYTES * model.moe.router.top_k
    row_bytes = ACTIVATION_BYTES * model.hidden_size + metadata
    there = _Direction(
        topology, links, header_bytes("dispatch", topology.num_expert_instances), row_bytes
    )
    back = _Direction(
        topology,
        links,
        header_bytes("reply", topology.num_expert_instances),
        PARTIAL_BYTES * model.hidden_size,
    )
    far = [there.far(made.dispatches), back.far(made.replies)]
    return Exchange(
        there.seconds(made.dispatches),
        back.seconds(made.replies),
        sum(messages for messages, _ in far),
        sum(size for _, size in far),
    )


class _Direction(NamedTuple):
    topology: Topology
    links: LinkModel
    header: int
    row_bytes: int

    def seconds(self, messages: Iterable[RowMessage]) -> float:
        stages: dict[int, list[RowMessage]] = defaultdict(list)
        for message in messages:
            stages[message.stage].append(message)
        return sum(self._stage(stages[index]) for index in sorted(stages))

    def far(self, messages: Iterable[RowMessage]) -> tuple[int, int]:
        sizes = [self._size(message) for message in messages if self._is_far(message)]
        return len(sizes), sum(sizes)

    def _stage(self, messages: list[RowMessage]) -> float:
        """Local and remote links work at the same time."""
        links = self.links
        near = [message for message in messages if not self._is_far(message)]
        far = [message for message in messages if self._is_far(message)]
        return max(
            self._busiest(
                near, links.intra_latency_s, links.intra_message_s, links.intra_s_per_byte
            ),
            self._busiest(
                far, links.inter_latency_s, links.inter_message_s, links.inter_s_per_byte
            ),
        )

    def _busiest(
        self, messages: list[RowMessage], latency_s: float, message_s: float, byte_s: float
    ) -> float:
        load: Counter[tuple[str, int]] = Counter()
        for message in messages:
            seconds = message_s + byte_s * self._size(message)
            for end in (("out", message.source), ("in", message.target)):
                load[end] += seconds  # type: ignore[assignment]
        return latency_s + max(load.values()) if load else 0.0

    def _size(self, message: RowMessage) -> int:
        return self.header + self.row_bytes * message.num_rows

    def _is_far(self, message: RowMessage) -> bool:
        nodes = self.topology.nodes
        return nodes[message.source] != nodes[message.target]
