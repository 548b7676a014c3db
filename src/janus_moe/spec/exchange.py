"""Names of transports, and of what an exchange between the pools can consist of.

This module does not know the plans themselves, which are in `transport.exchange_plans`, nor how
bytes travel.
"""

from __future__ import annotations

from typing import Literal, get_args

TransportName = Literal["loopback", "shm", "gloo"]
"""loopback  all instances in one process, tensors handed on by reference
shm       one process for each instance, all on one host, one shared region
gloo      one process for each instance, on any hosts: TCP, and shared memory within a host
"""
ONE_PROCESS: frozenset[str] = frozenset({"loopback"})
"""Transports whose instances all live in one process, so that the pools never compute at once."""

ExchangePlanName = Literal["1pc", "2pc-direct", "2pc-relay", "2pc-sharded"]
"""Which messages an exchange between the pools consists of; docs/transport.md has the plans."""
EXCHANGE_PLANS: tuple[ExchangePlanName, ...] = get_args(ExchangePlanName)
NODE_MESSAGE_PLANS: frozenset[str] = frozenset({"2pc-direct", "2pc-relay"})
"""Plans in which one message may hold the rows of all attention instances of a node."""
