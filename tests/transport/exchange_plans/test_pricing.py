"""What cost models are told of an exchange, on examples that one can count by hand."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.transport.exchange_plans.interpreter import topologies
from tests.transport.exchange_plans.message_counts import closed_form

from janus_moe.planner.latency.links import ExchangeCounts
from janus_moe.spec import EXCHANGE_PLANS, ExchangePlanName
from janus_moe.transport.exchange_plans import Topology, egate_plan, header_bytes
from janus_moe.transport.exchange_plans.pricing import priced_counts
from janus_moe.transport.exchange_plans.program import RowBytes

TWO_BY_TWO = Topology((0, 0), (1, 1))
ROW = RowBytes(dispatch=100, reply=200)


def dispatch(plan: ExchangePlanName) -> ExchangeCounts:
    return priced_counts(egate_plan(plan, TWO_BY_TWO, (8, 8)), ROW)[0]


def test_one_phase_is_one_hop_of_all_pairs() -> None:
    header = header_bytes("dispatch", 2)
    assert dispatch("1pc") == ExchangeCounts(
        inter_hops=1,
        inter_messages=2,
        inter_bytes=4 * (header + 800),
        total_messages=4,
        total_bytes=4 * (header + 800),
    )


def test_two_phases_gather_send_once_and_spread() -> None:
    header = header_bytes("dispatch", 2)
    assert dispatch("2pc-direct") == ExchangeCounts(
        intra_hops=2,
        intra_messages=1,
        intra_bytes=header + 1600,
        inter_hops=1,
        inter_messages=1,
        inter_bytes=header + 1600,
        total_messages=1,
        total_bytes=header + 1600,
    )


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(EXCHANGE_PLANS))
def test_totals_and_busiest_links_are_those_of_the_closed_forms(
    data: st.DataObject, plan: ExchangePlanName
) -> None:
    topology = data.draw(topologies())
    tokens = data.draw(st.tuples(*[st.integers(0, 64)] * topology.num_attention_instances))
    priced = priced_counts(egate_plan(plan, topology, tokens), ROW)
    for found, counts in zip(priced, closed_form(plan, topology, tokens, ROW), strict=True):
        assert found.total_messages == counts.inter_messages
        assert found.total_bytes == counts.inter_bytes
        assert found.inter_bytes == max(counts.busiest_egress, counts.busiest_ingress)
