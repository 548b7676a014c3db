"""The exchange among processes of any hosts: one instance per process, rows by exchange plans.

What is known of hosts is in the layout's membership: instances of one host are host peers. Peers
find each other through a `Rendezvous`; addresses and secrets are not known here.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from janus_moe.errors import ConfigError, ExchangeClosed, ExchangeError
from janus_moe.planner.latency.links import tcp_links
from janus_moe.policy.exchange_choice import ChoiceRule
from janus_moe.spec import NODE_MESSAGE_PLANS, InstanceId
from janus_moe.transport.base import CONNECT_TIMEOUT_S, ExchangeLayout, WaitRule, global_rank
from janus_moe.transport.host_memory.connecting import connect_host_peers
from janus_moe.transport.host_memory.host_peers import HostPeers, NoHostPeers
from janus_moe.transport.lockstep.batches import BatchSequence
from janus_moe.transport.lockstep.steps import StepSequence
from janus_moe.transport.network.channel import Channel
from janus_moe.transport.network.endpoint import Endpoint
from janus_moe.transport.network.executor import Executor, Record
from janus_moe.transport.network.gloo import GlooChannel
from janus_moe.transport.network.message_buffers import RowFormat
from janus_moe.transport.network.plan_selection import FixedPlan, PlanChooser, PlanSource
from janus_moe.transport.network.ports import NetworkAttention, NetworkExpert
from janus_moe.transport.network.rendezvous import Rendezvous

GUESSING = ChoiceRule(reach=4.0)
"""Where links were not measured, more plans are tried."""


class NetworkExchange:
    """One instance's end of an exchange over a channel; an `Exchange`.

    host_peers: instances of this host whose memory it shares; None means that there are none.
    source: says which exchange plan the next step has; that of attention rank 0 counts.
    """

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
        self.source = _plan_source(layout, instance)
        membership, peers = layout.membership, host_peers or NoHostPeers()
        executor = Executor(
            global_rank(membership, instance),
            membership.instances,
            channel,
            _row_format(layout),
            record=record,
            host_peers=peers,
        )
        self._endpoint = Endpoint(instance, layout, channel, peers, executor)
        self._expert_port: NetworkExpert | None = None

    def attention_port(self, rank: int, rule: WaitRule) -> NetworkAttention:
        layout, endpoint = self.layout, self._endpoint
        member = self._own(layout.membership.attention[rank])
        steps = StepSequence(member, endpoint.control_block(), endpoint.wiring, rule)
        result = torch.empty(layout.max_tokens, layout.hidden_size, dtype=layout.sum_dtype)
        port = NetworkAttention(steps, endpoint, self.source, result, layout.torch_dtype)
        endpoint.start(rule)
        return port

    def expert_port(self, rank: int, rule: WaitRule) -> NetworkExpert:
        layout, endpoint = self.layout, self._endpoint
        member = self._own(layout.membership.expert[rank])
        batches = BatchSequence(member, endpoint.control_block(), endpoint.wiring, rule)
        rows = layout.shape.attention * layout.max_tokens
        batch = torch.empty(rows, layout.hidden_size, dtype=layout.torch_dtype)
        self._expert_port = NetworkExpert(batches, endpoint, batch, layout.sum_dtype)
        endpoint.start(rule)
        return self._expert_port

    def record_to(self, record: Record | None) -> None:
        """Tells `record` of every message from now on."""
        self._endpoint.executor.record = record

    def shutdown(self) -> None:
        """Ends every wait of every instance that can be told, with ExchangeClosed."""
        self._endpoint.fail(ExchangeClosed("the exchange was shut down"))

    def close(self) -> None:
        """Leaves the exchange and ends all its threads; its port must not be in use any more."""
        if self._expert_port is not None:
            self._expert_port.close()
        self._endpoint.close()

    def _own(self, member: InstanceId) -> InstanceId:
        if member != self.instance:
            raise ConfigError(f"this is the exchange's end of {self.instance}, not of {member}")
        return member


def open_network(
    layout: ExchangeLayout,
    instance: InstanceId,
    rendezvous: Rendezvous,
    bind_host: str,
    record: Record | None = None,
    timeout_s: float = CONNECT_TIMEOUT_S,
) -> NetworkExchange:
    """Opens one instance's end over gloo, and within a host through memory that instances share.

    Blocks until all members do the same; raises ExchangeError after `timeout_s`.

    bind_host: address of this host that gloo listens on; the other hosts must reach it.
    """
    rank, topology = global_rank(layout.membership, instance), layout.topology
    channel = GlooChannel(rank, topology.num_ranks, rendezvous, bind_host, timeout_s)
    host_peers: HostPeers | NoHostPeers = NoHostPeers()
    if layout.within_nodes == "memory":
        same_host = topology.host_peers(rank)
        try:
            host_peers = connect_host_peers(
                rank, same_host, topology.num_ranks, rendezvous, timeout_s
            )
        except ExchangeError:
            channel.abort()
            raise
    return NetworkExchange(layout, instance, channel, record, host_peers)


def _row_format(layout: ExchangeLayout) -> RowFormat:
    rows, topology = layout.max_tokens, layout.topology
    if layout.plan == "auto" or layout.plan in NODE_MESSAGE_PLANS:
        rows *= max(len(topology.attention_on(node)) for node in topology.source_nodes)
    return RowFormat(
        rows, layout.hidden_size, layout.shape.expert, layout.torch_dtype, layout.sum_dtype
    )


def _plan_source(layout: ExchangeLayout, instance: InstanceId) -> PlanSource:
    if layout.plan != "auto":
        return FixedPlan(layout.plan)
    if instance != layout.membership.attention[0]:
        return FixedPlan("1pc")  # no instance reads it
    links, rule = tcp_links(), GUESSING
    if layout.links:
        links, rule = replace(links, **layout.links), ChoiceRule()  # type: ignore[arg-type]
    return PlanChooser(layout.topology, layout.row_bytes, links, rule)
