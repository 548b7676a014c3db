"""From a plan's name to the programs of its instances; programs of recent batches are kept."""

from __future__ import annotations

from functools import lru_cache

from janus_moe.spec import ExchangePlanName
from janus_moe.transport.exchange_plans.compiling import dispatch_program, reply_program
from janus_moe.transport.exchange_plans.demand import EveryRow, ExchangeBatch, RowDemand
from janus_moe.transport.exchange_plans.groups import make_groups
from janus_moe.transport.exchange_plans.messages import dispatch_messages, reply_messages
from janus_moe.transport.exchange_plans.program import Program, RowMessage
from janus_moe.transport.exchange_plans.topology import Topology

_KEPT = 256


class ExchangePlan:
    """One exchange of a batch, both ways, under one plan.

    dispatches, replies: all messages of each direction, by stage. Programs are written on demand.
    """

    def __init__(self, plan: ExchangePlanName, topology: Topology, demand: RowDemand) -> None:
        self.plan = plan
        self.batch = ExchangeBatch(topology, demand)
        self._groups = make_groups(plan, self.batch)
        self.dispatches: tuple[RowMessage, ...] = dispatch_messages(self.batch, self._groups)
        self.replies: tuple[RowMessage, ...] = reply_messages(self.batch, self._groups)

    def dispatch(self, rank: int) -> Program:
        return dispatch_program(self.batch, self.dispatches, rank)

    def reply(self, rank: int) -> Program:
        return reply_program(self.batch, self._groups, self.replies, rank)


@lru_cache(_KEPT)
def egate_plan(plan: ExchangePlanName, topology: Topology, tokens: tuple[int, ...]) -> ExchangePlan:
    """The exchange with gating on the expert side.

    tokens: [attention instances] rows of each in the batch.
    """
    return ExchangePlan(plan, topology, EveryRow(tokens))


@lru_cache(_KEPT)
def egate_programs(
    plan: ExchangePlanName, topology: Topology, tokens: tuple[int, ...], rank: int
) -> tuple[Program, Program]:
    """(dispatch, reply) of one instance, with gating on the expert side."""
    exchange = egate_plan(plan, topology, tokens)
    return exchange.dispatch(rank), exchange.reply(rank)
