"""Every plan brings every expert instance its rows and every owner the plain sum, bit for bit."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.transport.exchange_plans.interpreter import WIDTH, Array, demands, run, topologies

from janus_moe.errors import ConfigError
from janus_moe.spec import EXCHANGE_PLANS, ExchangePlanName
from janus_moe.transport import exchange_plans as plans_package
from janus_moe.transport.exchange_plans import (
    EveryRow,
    ExchangePlan,
    RoutedRows,
    RowDemand,
    Topology,
    egate_programs,
    header_bytes,
)

plans = pytest.mark.parametrize("plan", EXCHANGE_PLANS)


def values(num_rows: int, seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal((num_rows, WIDTH)).astype(np.float32)


def needed(demand: RowDemand, expert: int) -> list[int]:
    """Global rows that an expert instance needs, ascending."""
    if isinstance(demand, RoutedRows):
        return [row for row, hosts in enumerate(demand.replicas.tolist()) if expert in hosts]
    return list(range(sum(demand.tokens)))


def plain_sum(topology: Topology, demand: RowDemand, partials: list[Array]) -> Array:
    """[rows, WIDTH]: ascending instances within a node, then ascending nodes, row by row."""
    total = np.zeros((sum(demand.tokens), WIDTH), np.float32)
    places = [{row: i for i, row in enumerate(needed(demand, e))} for e in range(len(partials))]
    for row in range(len(total)):
        nodes = []
        for experts in topology.experts_by_node.values():
            mine = [partials[e][places[e][row]] for e in experts if row in places[e]]
            if mine:
                nodes.append(add_up(mine))
        if nodes:
            total[row] = add_up(nodes)
    return total


def add_up(terms: list[Array]) -> Array:
    total = terms[0].copy()
    for term in terms[1:]:
        total += term
    return total


@plans
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_experts_see_their_rows_and_owners_get_the_plain_sum(
    plan: ExchangePlanName, data: st.DataObject
) -> None:
    topology = data.draw(topologies())
    check_an_exchange(plan, topology, data.draw(demands(topology, max_tokens=40)))


@plans
def test_sums_of_an_owner_whose_rows_are_in_two_shards(plan: ExchangePlanName) -> None:
    check_an_exchange(plan, Topology((1, 1), (0, 1, 1)), EveryRow((1, 3)))


def check_an_exchange(plan: ExchangePlanName, topology: Topology, demand: RowDemand) -> None:
    exchange = ExchangePlan(plan, topology, demand)
    ranks = range(topology.num_ranks)
    hidden = values(sum(demand.tokens), 1)
    inputs = np.split(hidden, np.cumsum(demand.tokens)[:-1])
    wanted = [needed(demand, expert) for expert in range(topology.num_expert_instances)]
    local: list[dict[str, Array]] = [{"input": rows} for rows in inputs]
    local += [{"batch": np.full((len(rows), WIDTH), np.nan, np.float32)} for rows in wanted]
    memory = run([exchange.dispatch(rank) for rank in ranks], local)
    for expert, rows in enumerate(wanted):
        assert np.array_equal(memory[topology.expert_rank(expert)]["batch"], hidden[rows])

    partials = [values(len(rows), 10 + expert) for expert, rows in enumerate(wanted)]
    local = [{"result": np.full((n, WIDTH), np.nan, np.float32)} for n in demand.tokens]
    local += [{"partial": partial} for partial in partials]
    memory = run([exchange.reply(rank) for rank in ranks], local)
    results = np.concatenate(
        [memory[rank]["result"] for rank in range(topology.num_attention_instances)]
    )
    assert np.array_equal(results, plain_sum(topology, demand, partials))
    for expert, partial in enumerate(partials):
        assert memory[topology.expert_rank(expert)]["partial"] is partial
        assert np.array_equal(partial, values(len(partial), 10 + expert)), "a sum was overwritten"


@plans
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_idle_instances_have_nothing_to_do_and_replies_carry_all_notes(
    plan: ExchangePlanName, data: st.DataObject
) -> None:
    topology = data.draw(topologies())
    tokens = data.draw(st.tuples(*[st.integers(0, 9)] * topology.num_attention_instances))
    for rank in range(topology.num_ranks):
        dispatch, reply = egate_programs(plan, topology, tokens, rank)
        if rank >= topology.num_attention_instances:
            assert bool(dispatch.stages) == any(tokens)
            continue
        assert bool(dispatch.stages) == bool(reply.stages) == bool(tokens[rank])
        if tokens[rank]:
            seen = {e for stage in reply.stages for m in stage.receives for e in m.experts}
            assert seen == set(range(topology.num_expert_instances))


@plans
def test_every_row_crosses_each_link_between_nodes_once(plan: ExchangePlanName) -> None:
    """Two nodes of two attention instances each, three of two experts each."""
    topology = Topology((0, 0, 1, 1), (2, 2, 3, 3, 4, 4))
    exchange = ExchangePlan(plan, topology, EveryRow((5, 3, 2, 4)))
    crossing = [
        (topology.nodes[m.source], topology.nodes[m.target], len(m.rows))
        for m in exchange.dispatches
        if topology.nodes[m.source] != topology.nodes[m.target]
    ]
    if plan == "1pc":
        assert len(crossing) == 4 * 6
    elif plan == "2pc-direct":
        assert sorted(crossing) == [(s, d, (8, 6)[s]) for s in (0, 1) for d in (2, 3, 4)]
    elif plan == "2pc-relay":  # 0 -> 2 -> 3 -> 4 and 1 -> 3 -> 4 -> 2
        hops = [(0, 2, 8), (2, 3, 8), (3, 4, 8), (1, 3, 6), (3, 4, 6), (4, 2, 6)]
        assert sorted(crossing) == sorted(hops)
    else:
        assert sorted(crossing) == sorted(
            (s, d, (4, 3)[s]) for s in (0, 1) for d in (2, 3, 4) for _ in range(2)
        )


@pytest.mark.parametrize(
    ("attention", "experts", "message"),
    [((), (0,), "at least one attention"), ((0,), (), "at least one expert"), ((0,), (-1,), "-1")],
)
def test_a_topology_checks_itself(
    attention: tuple[int, ...], experts: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Topology(attention, experts)


def test_what_does_not_fit_the_topology_is_refused_with_the_numbers() -> None:
    topology = Topology((0, 0), (1,))
    with pytest.raises(ConfigError, match=r"\(3,\) for 2 attention"):
        ExchangePlan("1pc", topology, EveryRow((3,)))
    with pytest.raises(ConfigError, match=r"'3pc'.*2pc-relay"):
        ExchangePlan("3pc", topology, EveryRow((3, 3)))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"\(4, 1\) for 6 rows"):
        RoutedRows((3, 3), np.zeros((4, 1), np.int64))


def test_headers_are_aligned_and_hold_the_notes_of_all_experts() -> None:
    assert header_bytes("dispatch", 3) == 64
    for num_expert_instances in range(1, 40):
        size = header_bytes("reply", num_expert_instances)
        assert size % 64 == 0 and size >= 8 * (8 + 3 * num_expert_instances)


def test_plans_are_pure() -> None:
    names = set()
    for path in Path(plans_package.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.split(".")[0])
    known = {"__future__", "collections", "dataclasses", "functools", "itertools", "typing"}
    assert names <= known | {"numpy", "janus_moe"}
