"""Exchange plans: which rows go where, in which messages, as pure index arithmetic.

Without torch, without sockets: executors carry the programs out, cost models count their messages.
"""

from janus_moe.transport.exchange_plans.building import ExchangePlan, egate_plan, egate_programs
from janus_moe.transport.exchange_plans.demand import EveryRow, RoutedRows, RowDemand
from janus_moe.transport.exchange_plans.program import Program, RowMessage, header_bytes
from janus_moe.transport.exchange_plans.topology import Topology

__all__ = [
    "EveryRow",
    "ExchangePlan",
    "Program",
    "RoutedRows",
    "RowDemand",
    "RowMessage",
    "Topology",
    "egate_plan",
    "egate_programs",
    "header_bytes",
]
