"""Names of what an exchange between the pools can consist of.

This module does not know the plans themselves; they are in `transport.exchange_plans`.
"""

from __future__ import annotations

from typing import Literal, get_args

ExchangePlanName = Literal["1pc", "2pc-direct", "2pc-relay", "2pc-sharded"]
"""Which messages an exchange between the pools consists of; docs/transport.md has the plans."""

EXCHANGE_PLANS: tuple[ExchangePlanName, ...] = get_args(ExchangePlanName)
