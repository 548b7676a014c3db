"""The exchange among processes of any hosts: one instance per process, rows by exchange plans.

Everything about hosts is in the layout's nodes: instances of one node are near each other. Peers
find each other through a `Rendezvous`; addresses and secrets are not known here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import msgspec
import torch

from janus_moe.errors import ConfigError, ExchangeClosed, ExchangeError
from janus_moe.planner.latency.link_fit import COEFFICIENTS
from janus_moe.planner.latency.links import tcp_links
from janus_moe.policy.exchange_choice import ChoiceRule
from janus_moe.spec import EXCHANGE_PLANS, Dtype, ExchangePlanName, InstanceId, PoolShape, Spec
from janus_moe.torch_dtypes import TORCH_DTYPES
from janus_moe.transport.base import WaitRule
from janus_moe.transport.exchange_plans import Topology
from janus_moe.transport.exchange_plans.counts import RowBytes
from janus_moe.transport.host_memory.handshake import connect_host_peers
from janus_moe.transport.host_memory.host_peers import HostPeers, NoHostPeers
from janus_moe.transport.network.channel import Channel
from janus_moe.transport.network.endpoint import Endpoint
from janus_moe.transport.network.executor import Executor, Record
from janus_moe.transport.network.gloo import GlooChannel
from janus_moe.transport.network.message_buffers import RowFormat
from janus_moe.transport.network.plan_selection import FixedPlan, PlanChooser, PlanSource
from janus_moe.transport.network.ports import NetworkAttention, NetworkExpert
from janus_moe.transport.network.rendezvous import Rendezvous

CONNECT_TIMEOUT_S = 60.0
GUESSING = ChoiceRule(reach=4.0)
"""Where links were not measured, more plans are tried."""


class ExchangeLayout(Spec, frozen=True):
    """What all instances of an exchange must agree on.

    max_tokens: rows per attention instance and step.
    dtype: of the hidden states; sums are float32.
    attention_nodes, expert_nodes: [instances] node of each.
    plan: auto is decided step by step by attention instance 0.
    links: what a message costs, coefficients of `planner.latency.LinkModel`; {} means not measured.
    within_nodes: how messages travel between instances of a node.
    """

    shape: PoolShape
    hidden_size: int
    dtype: Dtype
    max_tokens: int
    attention_nodes: tuple[int, ...]
    expert_nodes: tuple[int, ...]
    plan: ExchangePlanName | Literal["auto"] = "auto"
    epoch: int = 0
    links: dict[str, float] = msgspec.field(default_factory=dict)
    within_nodes: Literal["memory", "gloo"] = "memory"

    def __post_init__(self) -> None:
        sizes = (len(self.attention_nodes), len(self.expert_nodes))
        if sizes != (self.shape.attention, self.shape.expert):
            raise ConfigError(
                f"nodes of {sizes[0]} attention and {sizes[1]} expert instances for {self.shape}"
            )
        if self.plan not in ("auto", *EXCHANGE_PLANS):
            raise ConfigError(
                f"no exchange plan {self.plan!r}; there are auto, {', '.join(EXCHANGE_PLANS)}"
            )
        if unknown := set(self.links) - set(COEFFICIENTS):
            raise ConfigError(f"links have {', '.join(COEFFICIENTS)}, not {', '.join(unknown)}")

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

    @property
    def row_bytes(self) -> RowBytes:
        size = self.hidden_size
        return RowBytes(dispatch=size * TORCH_DTYPES[self.dtype].itemsize, reply=4 * size)

    def rank(self, instance: InstanceId) -> int:
        first = 0 if instance.pool == "attention" else self.shape.attention
        return first + instance.number


class NetworkExchange:
    """One instance's end of an exchange over a channel; an `Exchange`."""

    def __init__(
        self,
        layout: ExchangeLayout,
        instance: InstanceId,
        channel: Channel,
        record: Record | None = None,
        host_peers: HostPeers | NoHostPeers | None = None,
    ) -> None:
        self.layout = layout
        self.instance = instance
        row_format = RowFormat(
            layout.max_message_rows,
            layout.hidden_size,
            layout.shape.expert,
            TORCH_DTYPES[layout.dtype],
        )
        rank, topology, host_peers = (
            layout.rank(instance),
            layout.topology,
            host_peers or NoHostPeers(),
        )
        executor = Executor(
            rank, topology, channel, row_format, record=record, host_peers=host_peers
        )
        self._endpoint = Endpoint(instance, topology, channel, host_peers, executor, layout.epoch)
        self._port: NetworkExpert | None = None
        self.source = _plan_source(layout, instance)

    def attention_port(self, index: int, rule: WaitRule) -> NetworkAttention:
        self._check_mine(InstanceId(pool="attention", number=index))
        layout = self.layout
        result = torch.empty(layout.max_tokens, layout.hidden_size)
        dtype = TORCH_DTYPES[layout.dtype]
        return NetworkAttention(index, self._endpoint, self.source, rule, result, dtype)

    def expert_port(self, index: int, rule: WaitRule) -> NetworkExpert:
        self._check_mine(InstanceId(pool="expert", number=index))
        layout = self.layout
        max_total = layout.shape.attention * layout.max_tokens
        batch = torch.empty(max_total, layout.hidden_size, dtype=TORCH_DTYPES[layout.dtype])
        self._port = NetworkExpert(index, self._endpoint, rule, batch)
        return self._port

    def record_to(self, record: Record | None) -> None:
        """Tells `record` of every message from now on."""
        self._endpoint.executor.record = record

    def shutdown(self) -> None:
        """Ends every wait of every instance that can be told, with ExchangeClosed."""
        self._endpoint.fail(ExchangeClosed("the exchange was shut down"))

    def close(self) -> None:
        """Leaves the exchange; its port must not be in use any more. Ends all threads of it."""
        if self._port is not None:
            self._port.close()
        self._endpoint.close()

    def _check_mine(self, instance: InstanceId) -> None:
        if instance != self.instance:
            raise ConfigError(f"this is the exchange's end of {self.instance}, not of {instance}")


def _plan_source(layout: ExchangeLayout, instance: InstanceId) -> PlanSource:
    if layout.plan != "auto":
        return FixedPlan(layout.plan)
    if instance != InstanceId(pool="attention", number=0):
        return FixedPlan("1pc")  # nobody reads it
    links, rule = tcp_links(), GUESSING
    if layout.links:
        links, rule = replace(links, **layout.links), ChoiceRule()  # type: ignore[arg-type]
    return PlanChooser(layout.topology, layout.row_bytes, links, rule)


class GlooExchange(NetworkExchange):
    """The exchange over gloo, and within a node through memory that its instances share. Making one
    blocks until all instances do.

    bind_host: address of this host that gloo listens on; the other hosts must reach it.
    """

    def __init__(
        self,
        layout: ExchangeLayout,
        instance: InstanceId,
        rendezvous: Rendezvous,
        bind_host: str,
        record: Record | None = None,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
    ) -> None:
        rank, topology = layout.rank(instance), layout.topology
        channel = GlooChannel(rank, topology.num_ranks, rendezvous, bind_host, connect_timeout_s)
        host_peers: HostPeers | NoHostPeers = NoHostPeers()
        if layout.within_nodes == "memory":
            try:
                host_peers = connect_host_peers(rank, topology, rendezvous, connect_timeout_s)
            except ExchangeError:
                channel.abort()
                raise
        super().__init__(layout, instance, channel, record, host_peers)
