"""The exchange among processes of any hosts: one instance per process, rows by exchange plans.

Everything about hosts is in the layout's nodes: instances of one node are near each other. Peers
find each other through a `Rendezvous`; addresses and secrets are not known here.
"""

from __future__ import annotations

import torch

from janus_moe.errors import ConfigError, ExchangeClosed
from janus_moe.spec import Dtype, InstanceId, PoolShape, Spec
from janus_moe.transport.base import WaitRule
from janus_moe.transport.channel import Channel
from janus_moe.transport.dist_ports import DistAttention, DistExpert
from janus_moe.transport.executor import Executor, Record
from janus_moe.transport.gloo import GlooChannel
from janus_moe.transport.message_buffers import RowFormat
from janus_moe.transport.plans import PLAN_NAMES, PlanName, Topology
from janus_moe.transport.rendezvous import Rendezvous
from janus_moe.transport.seat import Seat

CONNECT_TIMEOUT_S = 60.0
_DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class DistLayout(Spec, frozen=True):
    """What all instances of an exchange must agree on.

    max_tokens: rows per attention instance and step. dtype: of the hidden states; sums are
    float32. attention_nodes, expert_nodes: [instances] node of each.
    """

    shape: PoolShape
    hidden_size: int
    dtype: Dtype
    max_tokens: int
    attention_nodes: tuple[int, ...]
    expert_nodes: tuple[int, ...]
    plan: PlanName = "2pc-direct"
    epoch: int = 0

    def __post_init__(self) -> None:
        sizes = (len(self.attention_nodes), len(self.expert_nodes))
        if sizes != (self.shape.attention, self.shape.expert):
            raise ConfigError(
                f"nodes of {sizes[0]} attention and {sizes[1]} expert instances for {self.shape}"
            )
        if self.plan not in PLAN_NAMES:
            raise ConfigError(f"no exchange plan {self.plan!r}; there are {', '.join(PLAN_NAMES)}")

    @property
    def topology(self) -> Topology:
        return Topology(self.attention_nodes, self.expert_nodes)

    @property
    def max_message_rows(self) -> int:
        """Rows of the largest message: of one instance, or of all instances of a node."""
        if self.plan in ("1pc", "2pc-sharded"):
            return self.max_tokens
        topology = self.topology
        largest = max(len(topology.attention_on(node)) for node in topology.source_nodes)
        return largest * self.max_tokens

    def rank(self, instance: InstanceId) -> int:
        first = 0 if instance.pool == "attention" else self.shape.attention
        return first + instance.index


class ChannelExchange:
    """One instance's end of an exchange over a channel; an `Exchange`."""

    def __init__(
        self,
        layout: DistLayout,
        instance: InstanceId,
        channel: Channel,
        record: Record | None = None,
    ) -> None:
        self.layout = layout
        self.instance = instance
        row_format = RowFormat(
            layout.max_message_rows,
            layout.hidden_size,
            layout.shape.expert,
            _DTYPES[layout.dtype],
        )
        rank, topology = layout.rank(instance), layout.topology
        executor = Executor(rank, topology, channel, row_format, record=record)
        self._seat = Seat(instance, topology, channel, executor, layout.epoch)
        self._port: DistExpert | None = None

    def attention_port(self, index: int, rule: WaitRule) -> DistAttention:
        self._check_mine(InstanceId(pool="attention", index=index))
        layout = self.layout
        result = torch.empty(layout.max_tokens, layout.hidden_size)
        dtype = _DTYPES[layout.dtype]
        return DistAttention(index, self._seat, layout.plan, rule, result, dtype)

    def expert_port(self, index: int, rule: WaitRule) -> DistExpert:
        self._check_mine(InstanceId(pool="expert", index=index))
        layout = self.layout
        max_total = layout.shape.attention * layout.max_tokens
        batch = torch.empty(max_total, layout.hidden_size, dtype=_DTYPES[layout.dtype])
        self._port = DistExpert(index, self._seat, layout.plan, rule, batch)
        return self._port

    def record_to(self, record: Record | None) -> None:
        """Tells `record` of every message from now on."""
        self._seat.executor.record = record

    def shutdown(self) -> None:
        """Ends every wait of every instance that can be told, with ExchangeClosed."""
        self._seat.fail(ExchangeClosed("the exchange was shut down"))

    def close(self) -> None:
        """Leaves the exchange; its port must not be in use any more. Ends all threads of it."""
        if self._port is not None:
            self._port.close()
        self._seat.close()

    def _check_mine(self, instance: InstanceId) -> None:
        if instance != self.instance:
            raise ConfigError(f"this is the exchange's end of {self.instance}, not of {instance}")


class DistExchange(ChannelExchange):
    """The exchange over gloo. Making one blocks until all instances do.

    bind_host: address of this host that gloo listens on; the other hosts must reach it.
    """

    def __init__(
        self,
        layout: DistLayout,
        instance: InstanceId,
        rendezvous: Rendezvous,
        bind_host: str,
        record: Record | None = None,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
    ) -> None:
        ranks = layout.shape.attention + layout.shape.expert
        channel = GlooChannel(
            layout.rank(instance), ranks, rendezvous, bind_host, connect_timeout_s
        )
        super().__init__(layout, instance, channel, record)
