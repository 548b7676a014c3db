"""The exchange of activations between the pools: one contract, several backends."""

from janus_moe.transport.base import (
    AttentionPort,
    Combined,
    Exchange,
    ExpertPort,
    ReplyMetadata,
    Ticket,
    WaitRule,
    Work,
    spin_budget_us,
)
from janus_moe.transport.host_memory.region import ShmAddress, ShmLayout, ShmRegion
from janus_moe.transport.lockstep.reply_metadata import read_metadata
from janus_moe.transport.loopback import LoopbackExchange
from janus_moe.transport.network.exchange import ExchangeLayout, GlooExchange

__all__ = [
    "AttentionPort",
    "Combined",
    "Exchange",
    "ExchangeLayout",
    "ExpertPort",
    "GlooExchange",
    "LoopbackExchange",
    "ReplyMetadata",
    "ShmAddress",
    "ShmLayout",
    "ShmRegion",
    "Ticket",
    "WaitRule",
    "Work",
    "read_metadata",
    "spin_budget_us",
]
