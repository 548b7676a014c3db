"""The closed forms in docs/transport.md equal what the programs send; no program sends more."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.transport.exchange_plans.interpreter import demands, topologies
from tests.transport.exchange_plans.message_counts import closed_form, count

from janus_moe.spec import EXCHANGE_PLANS, NODE_MESSAGE_PLANS, ExchangePlanName
from janus_moe.transport.exchange_plans import EveryRow, ExchangePlan, RowDemand, Topology
from janus_moe.transport.exchange_plans.program import RowBytes

plans = pytest.mark.parametrize("plan", EXCHANGE_PLANS)


@plans
@settings(max_examples=150, deadline=None)
@given(data=st.data(), hidden=st.integers(1, 99))
def test_closed_forms_equal_the_counted_messages(
    plan: ExchangePlanName, data: st.DataObject, hidden: int
) -> None:
    topology = data.draw(topologies())
    tokens = data.draw(
        st.tuples(*[st.one_of(st.just(0), st.integers(0, 512))] * topology.num_attention_instances)
    )
    row_bytes = RowBytes(dispatch=2 * hidden, reply=4 * hidden)
    exchange = ExchangePlan(plan, topology, EveryRow(tokens))
    dispatch, reply = closed_form(plan, topology, tokens, row_bytes)
    assert count(topology, exchange.dispatches, "dispatch", row_bytes) == dispatch
    assert count(topology, exchange.replies, "reply", row_bytes) == reply


@plans
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_programs_send_and_receive_exactly_the_listed_messages(
    plan: ExchangePlanName, data: st.DataObject
) -> None:
    topology = data.draw(topologies())
    demand: RowDemand = data.draw(demands(topology, max_tokens=60))
    exchange = ExchangePlan(plan, topology, demand)
    for messages, program in (
        (exchange.dispatches, exchange.dispatch),
        (exchange.replies, exchange.reply),
    ):
        stages = [stage for rank in range(topology.num_ranks) for stage in program(rank).stages]
        sent = Counter(id(send.message) for stage in stages for send in stage.sends)
        received = Counter(id(message) for stage in stages for message in stage.receives)
        assert sent == received == Counter(map(id, messages))
        assert all(message.num_rows and message.source != message.target for message in messages)


@plans
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_only_plans_that_gather_a_node_need_buffers_for_a_node(
    plan: ExchangePlanName, data: st.DataObject
) -> None:
    topology = data.draw(topologies())
    tokens = data.draw(st.tuples(*[st.integers(0, 64)] * topology.num_attention_instances))
    exchange = ExchangePlan(plan, topology, EveryRow(tokens))
    most = max((m.num_rows for m in (*exchange.dispatches, *exchange.replies)), default=0)
    on_a_node = max(
        sum(tokens[index] for index in topology.attention_on(node))
        for node in topology.source_nodes
    )
    assert most <= (on_a_node if plan in NODE_MESSAGE_PLANS else max(tokens))


def test_an_example_in_numbers() -> None:
    """2 attention nodes of 2 instances, 2 expert nodes of 2, 8 rows each, as in the docs."""
    topology = Topology((0, 0, 1, 1), (2, 2, 3, 3))
    row_bytes = RowBytes(dispatch=100, reply=200)
    figures = {
        plan: closed_form(plan, topology, (8, 8, 8, 8), row_bytes)[0] for plan in EXCHANGE_PLANS
    }
    inter = {plan: (c.inter_messages, c.inter_bytes) for plan, c in figures.items()}
    assert inter == {
        "1pc": (16, 16 * 864),
        "2pc-direct": (4, 4 * 1664),
        "2pc-relay": (4, 4 * 1664),
        "2pc-sharded": (8, 8 * 864),
    }
    assert figures["2pc-direct"].busiest_egress == 2 * 1664
    assert figures["2pc-relay"].busiest_egress == 1664
