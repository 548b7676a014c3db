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
from janus_moe.transport.dist import DistExchange, DistLayout
from janus_moe.transport.loopback import LoopbackExchange
from janus_moe.transport.notes import read_notes
from janus_moe.transport.shm import ShmAddress, ShmLayout, ShmRegion

__all__ = [
    "AttentionPort",
    "Combined",
    "DistExchange",
    "DistLayout",
    "Exchange",
    "ExpertPort",
    "LoopbackExchange",
    "ReplyMetadata",
    "ShmAddress",
    "ShmLayout",
    "ShmRegion",
    "Ticket",
    "WaitRule",
    "Work",
    "read_notes",
    "spin_budget_us",
]
