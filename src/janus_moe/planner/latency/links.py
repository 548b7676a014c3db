"""What an exchange between the pools costs: hops, messages and bytes over two kinds of links.

An exchange is here what one layer pass sends: rows there and partial sums back. `ExchangeCounts`
says what happens on the busiest link; code that knows a plan exactly fills it in. `exchange_counts`
has closed forms for instances that fill nodes in order, for searches over shapes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from janus_moe.errors import ConfigError
from janus_moe.planner.latency.arrays import Array, Numbers
from janus_moe.planner.latency.coefficients import LinkLaw
from janus_moe.planner.latency.devices import DeviceProfile
from janus_moe.planner.latency.estimate import Confidence, weakest
from janus_moe.spec import ExchangePlanName

Gating = Literal["egate", "agate"]

LINK_EFFICIENCY = 0.8
MESSAGE_S = 1e-6
"""Time a sender spends on each message beyond its bytes; an RDMA work request or a put."""
METADATA_BYTES = 8
"""Of each routed row under AGate: an expert id and a weight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeCounts:
    """One direction of one exchange on its critical path; numbers or arrays that broadcast.

    *_hops: transfers that wait for one another.
    *_messages, *_bytes: on the busiest endpoint, whichever of sending and receiving is more.
    total_*: between nodes, of all endpoints together.
    """

    intra_hops: Numbers = 0.0
    intra_messages: Numbers = 0.0
    intra_bytes: Numbers = 0.0
    inter_hops: Numbers = 0.0
    inter_messages: Numbers = 0.0
    inter_bytes: Numbers = 0.0
    total_messages: Numbers = 0.0
    total_bytes: Numbers = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkModel:
    """Latency of a hop, time of a message and of a byte, inside a node and between nodes.

    shared_*: what any message or byte between nodes costs on processors that all instances share; 0
        where every instance has its own.
    inter_burst_bytes: what a limited link lets pass at once after a pause, in each direction of an
        exchange (the bucket of a token bucket filter).
    """

    intra_latency_s: float
    intra_message_s: float
    intra_s_per_byte: float
    inter_latency_s: float
    inter_message_s: float
    inter_s_per_byte: float
    gpus_per_node: int
    shared_message_s: float = 0.0
    shared_s_per_byte: float = 0.0
    inter_burst_bytes: float = 0.0
    intra_confidence: Confidence = "roofline"
    inter_confidence: Confidence = "roofline"

    @classmethod
    def of(
        cls, attention: DeviceProfile, expert: DeviceProfile, measured: LinkLaw | None = None
    ) -> LinkModel:
        """Links between two kinds of devices: the slower end counts.

        measured: of links inside a node, which two kinds of devices do not share.
        """
        ends = (attention, expert)
        mixed = attention.name != expert.name  # other devices are in other nodes
        inter = 1 / (LINK_EFFICIENCY * min(end.inter_bytes_per_s for end in ends))
        intra = 1 / (LINK_EFFICIENCY * min(end.intra_bytes_per_s for end in ends))
        near = measured or LinkLaw(
            latency_s=max(end.intra_latency_s for end in ends),
            message_s=MESSAGE_S,
            s_per_byte=intra,
        )
        return cls(
            intra_latency_s=near.latency_s,
            intra_message_s=near.message_s,
            intra_s_per_byte=near.s_per_byte,
            inter_latency_s=max(end.inter_latency_s for end in ends),
            inter_message_s=MESSAGE_S,
            inter_s_per_byte=inter,
            gpus_per_node=1 if mixed else attention.gpus_per_node,
            intra_confidence="roofline" if measured is None else "interpolated",
        )

    @classmethod
    def of_one_host(cls, law: LinkLaw, device: DeviceProfile) -> LinkModel:
        """All instances on one machine, whose exchange was measured."""
        return replace(cls.of(device, device, law), gpus_per_node=2**30)

    def seconds(self, counts: ExchangeCounts) -> Array:
        """Of one direction; arrays in the counts give an array."""
        return np.asarray(
            np.multiply(counts.intra_hops, self.intra_latency_s)
            + np.multiply(counts.intra_messages, self.intra_message_s)
            + np.multiply(counts.intra_bytes, self.intra_s_per_byte)
            + np.multiply(counts.inter_hops, self.inter_latency_s)
            + np.multiply(counts.inter_messages, self.inter_message_s)
            + np.multiply(self.metered_bytes(counts), self.inter_s_per_byte)
            + np.multiply(counts.total_messages, self.shared_message_s)
            + np.multiply(counts.total_bytes, self.shared_s_per_byte),
            np.float64,
        )

    def metered_bytes(self, counts: ExchangeCounts) -> Array:
        """Bytes between nodes that have to wait for the link's rate."""
        return np.maximum(np.asarray(counts.inter_bytes, np.float64) - self.inter_burst_bytes, 0.0)

    def confidence(self, *counts: ExchangeCounts) -> Confidence:
        """Of exchanges with these counts."""
        far = any(np.any(np.asarray(count.inter_hops) > 0) for count in counts)
        return weakest((self.intra_confidence, self.inter_confidence if far else "measured"))


def tcp_links() -> LinkModel:
    """Hosts with 10 Gb/s and TCP, where nothing was measured: what a thread takes to wake up, and
    what the kernel takes for a message and a byte. Inside a host, instances read each other's
    memory: what it takes to copy rows."""
    return LinkModel(
        intra_latency_s=40e-6,
        intra_message_s=10e-6,
        intra_s_per_byte=0.1e-9,
        inter_latency_s=100e-6,
        inter_message_s=15e-6,
        inter_s_per_byte=1e-9,
        gpus_per_node=1,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLayout:
    """Attention instances, then expert instances, fill nodes of `gpus_per_node` in order.

    The numbers may be arrays that broadcast.
    """

    num_attention: Numbers
    num_expert: Numbers
    gpus_per_node: int

    def __post_init__(self) -> None:
        if self.gpus_per_node < 1:
            raise ConfigError(f"gpus_per_node must be 1 or more, got {self.gpus_per_node}")
        for name in ("num_attention", "num_expert"):
            if not np.all(np.asarray(getattr(self, name)) >= 1):
                raise ConfigError(f"{name} must be 1 or more, got {getattr(self, name)}")


def exchange_counts(
    layout: NodeLayout,
    tokens: Numbers,
    hidden_size: int,
    top_k: int,
    *,
    plan: ExchangePlanName = "2pc-sharded",
    gating: Gating = "egate",
    activation_bytes: int = 2,
) -> tuple[ExchangeCounts, ExchangeCounts]:
    """(dispatch, combine) of `tokens` in all, spread evenly over the attention instances.

    EGate: every expert instance gets every row. AGate: an instance gets the rows that are routed
    to it, of uniform routing. The way back mirrors the way there, with partial sums in float32,
    or in float64 where several instances answer rows of float32.
    """
    if plan not in _COUNTS:
        raise ConfigError(f"no exchange plan {plan!r} has a price; {', '.join(_COUNTS)} have one")
    n_a = np.asarray(layout.num_attention, np.float64)
    n_e = np.asarray(layout.num_expert, np.float64)
    rows = np.asarray(tokens, np.float64)
    if gating == "agate":
        there, extra = share_reached(n_e, top_k), METADATA_BYTES * top_k
    else:
        there, extra = np.ones_like(n_e), 0
    counts = _COUNTS[plan]
    dispatch = counts(layout, n_a, n_e, rows * there, hidden_size * activation_bytes + extra, plan)
    back = np.where((activation_bytes == 4) & (n_e > 1), 8, 4)
    combine = counts(layout, n_a, n_e, rows * there, hidden_size * back, plan)
    return dispatch, combine


def share_reached(instances: Numbers, top_k: int) -> Array:
    """Share of the rows that have an expert on one given instance, of uniform routing."""
    return np.asarray(1 - (1 - 1 / np.asarray(instances, np.float64)) ** top_k)


def all_to_all_counts(
    num_devices: Numbers,
    gpus_per_node: int,
    tokens: Numbers,
    hidden_size: int,
    top_k: int,
    *,
    activation_bytes: int = 2,
) -> ExchangeCounts:
    """One direction of expert parallelism: every device sends each of its rows once to every
    other device that one of its k experts is on, of uniform routing."""
    n = np.asarray(num_devices, np.float64)
    peers = np.minimum(n, gpus_per_node) - 1
    far = n - 1 - peers
    each = np.asarray(tokens, np.float64) / n * share_reached(n, top_k)
    row_bytes = hidden_size * activation_bytes + METADATA_BYTES * top_k
    return ExchangeCounts(
        intra_hops=np.minimum(peers, 1),
        intra_messages=peers,
        intra_bytes=each * row_bytes * peers,
        inter_hops=np.minimum(far, 1),
        inter_messages=far,
        inter_bytes=each * row_bytes * far,
    )


def all_reduce_counts(
    num_devices: Numbers,
    gpus_per_node: int,
    tokens: Numbers,
    hidden_size: int,
    *,
    activation_bytes: int = 2,
) -> ExchangeCounts:
    """A sum over devices that all have `tokens` rows: every device adds up its share of the rows
    and hands it out to all, one after the other."""
    n = np.asarray(num_devices, np.float64)
    peers = np.minimum(n, gpus_per_node) - 1
    far = n - 1 - peers
    part = np.asarray(tokens, np.float64) / n * (hidden_size * activation_bytes)
    return ExchangeCounts(
        intra_hops=2 * np.minimum(peers, 1),
        intra_messages=2 * peers,
        intra_bytes=2 * part * peers,
        inter_hops=2 * np.minimum(far, 1),
        inter_messages=2 * far,
        inter_bytes=2 * part * far,
    )


def _one_phase(
    layout: NodeLayout,
    n_a: Array,
    n_e: Array,
    rows: Array,
    row_bytes: Numbers,
    plan: ExchangePlanName,
) -> ExchangeCounts:
    """Every attention instance to every expert instance; both ends of the busiest link."""
    g = layout.gpus_per_node
    own_experts = np.clip(g - n_a, 0, n_e)  # on the first node, beside the first attention instance
    far_experts = n_e - own_experts
    nodes = np.ceil((n_a + n_e) / g)
    last_node = (nodes - 1) * g
    near_attention = np.clip(n_a - last_node, 0, n_a)  # beside the last expert instance
    far_attention = n_a - near_attention
    each = rows / n_a * row_bytes
    return ExchangeCounts(
        intra_hops=(own_experts > 0) * 1.0,
        intra_messages=np.maximum(own_experts, near_attention),
        intra_bytes=each * np.maximum(own_experts, near_attention),
        inter_hops=(far_experts > 0) * 1.0,
        inter_messages=np.maximum(far_experts, far_attention),
        inter_bytes=each * np.maximum(far_experts, far_attention),
    )


def _two_phase(
    layout: NodeLayout,
    n_a: Array,
    n_e: Array,
    rows: Array,
    row_bytes: Numbers,
    plan: ExchangePlanName,
) -> ExchangeCounts:
    """Gather in the source node, between nodes, hand out in the destination node, one after
    another; equal to counting the messages of `transport.exchange_plans` where nodes are full."""
    g = layout.gpus_per_node
    one_node = n_a + n_e <= g
    here = np.minimum(n_a, g)  # attention instances of the first node
    experts = np.minimum(n_e, g)  # of an expert node
    sources = np.ceil(n_a / g)
    targets = np.where(one_node, 0, np.ceil(n_e / g))
    aggregate = rows * here / n_a * row_bytes  # of one source node
    everything = rows * row_bytes
    if plan == "2pc-sharded":
        width = np.minimum(here, experts)  # links that share the work
        gather, between = np.zeros_like(rows * n_a), aggregate * targets / width
        received = everything / width
        hand_out = everything * (1 - 1 / width)  # an all-gather of the shards
        messages = np.maximum(targets, sources)
        hops = 1.0 + (width > 1)
    elif plan == "2pc-direct":
        gather, between = aggregate * (1 - 1 / here), aggregate * targets
        received, hand_out = everything, everything * (experts - 1)
        messages = np.maximum(targets, sources)
        hops = 2.0 + (here > 1)
    else:  # relay: one message out, then around the ring of expert nodes
        gather, between = aggregate * (1 - 1 / here), aggregate
        received = everything
        hand_out = everything * (experts - 1)
        messages = np.maximum(1.0, sources)
        hops = 2.0 + (here > 1)
    ring = np.maximum(targets - 1, 0) if plan == "2pc-relay" else 0.0
    local = everything / n_a * np.maximum(n_a, n_e)
    if plan != "2pc-sharded":  # through one instance even on one node
        local = everything * (1 - 1 / n_a) + everything * n_e
    return ExchangeCounts(
        intra_hops=np.where(one_node, 1.0, hops),
        intra_messages=np.where(one_node, np.maximum(n_a, n_e), here - 1 + experts - 1),
        intra_bytes=np.where(one_node, local, gather + hand_out),
        inter_hops=np.where(one_node, 0.0, 1.0 + ring),
        inter_messages=np.where(one_node, 0.0, messages + ring),
        inter_bytes=np.where(one_node, 0.0, np.maximum(between, received)),
    )


_COUNTS = {
    "1pc": _one_phase,
    "2pc-direct": _two_phase,
    "2pc-relay": _two_phase,
    "2pc-sharded": _two_phase,
}
"""Every plan that has a price; `_two_phase` knows how its three differ."""
