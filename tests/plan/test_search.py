"""The joint search: equal to brute force, a fixed point, monotone, within memory, deterministic."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.plan.models import problem

from janus_moe.perf.arrays import Array
from janus_moe.plan.answers import Deployment
from janus_moe.plan.explain import memory_parts, step_estimate
from janus_moe.plan.fixed_point import fixed_point, fixed_points
from janus_moe.plan.problem import Batching, Concurrency, PoolStyle, Problem, Rate
from janus_moe.plan.reference import brute_force
from janus_moe.plan.search import PoolSearch, best_of_shapes

SMALL = PoolStyle(redundancies=(1.0, 1.25), plans=("1pc", "2pc-sharded"))


def best(question: Problem, style: PoolStyle = SMALL) -> Deployment | None:
    found = PoolSearch(question, style).cheapest()
    return found[0] if found else None


CASES = {
    "low demand": problem(200.0, 30.0, 4),
    "tight": problem(2000.0, 12.0, 5),
    "memory bound": problem(4000.0, 60.0, 5, isl=30_000),
    "copies": problem(40_000.0, 20.0, 6),
    "concurrency": problem(Concurrency(100), 25.0, 5),
    "other experts": problem(2000.0, 40.0, 5, expert_system="h20"),
    "out of reach": problem(1e7, 20.0, 5),
    "fixed slots": problem(2000.0, 30.0, 5),
    "few sequences": dataclasses.replace(
        problem(3000.0, 30.0, 6), batching=Batching(max_sequences=8)
    ),
    "price": problem(2000.0, 30.0, 5, expert_system="a100_sxm", objective="price"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_search_equals_brute_force(name: str) -> None:
    style = dataclasses.replace(SMALL, slots=6) if name == "fixed slots" else SMALL
    expected = best_of_shapes(brute_force(CASES[name], style))
    found = PoolSearch(CASES[name], style).cheapest(5)
    assert [_key(d) for d in found] == [_key(d) for d in expected[:5]]
    for one, other in zip(found, expected, strict=False):
        assert one.batch == pytest.approx(other.batch, rel=1e-6)
        assert one.tpot_s == pytest.approx(other.tpot_s, rel=1e-6)
        assert one.activated == pytest.approx(other.activated, rel=1e-6)


def _key(one: Deployment) -> tuple[object, ...]:
    return (one.shape, one.slots, one.plan, one.micro_batches, one.copies, one.cost)


def test_the_batch_is_the_fixed_point_of_littles_law() -> None:
    found = PoolSearch(problem(5000.0, 30.0, 16), SMALL).cheapest(8)
    assert len(found) == 8
    for one in found:
        assert one.copies * one.batch == pytest.approx(5000.0 * one.tpot_s, rel=1e-6)
        assert one.tokens_per_s == pytest.approx(5000.0, rel=1e-6)
        assert step_estimate(problem(5000.0), one).tpot.seconds == pytest.approx(one.tpot_s)


@pytest.mark.parametrize("seed", range(5))
def test_false_position_finds_what_bisection_finds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    floor, slope, jump = rng.uniform(0.001, 0.05, 50), rng.uniform(0, 1e-4, 50), 0.03

    def tpot_s(batch: float | Array, i: int | slice = slice(None)) -> Array:
        read = jump * (1 - np.exp(-np.asarray(batch) / 40))  # as experts that get activated
        return np.asarray(floor[i] + read + slope[i] * batch)

    for rate in (5.0, 300.0, 4000.0, 1e5):
        most = rng.uniform(0.5, 5000.0, 50)
        found = fixed_points(tpot_s, rate, most)
        for i in range(50):
            one = fixed_point(lambda batch, i=i: float(tpot_s(batch, i)), rate, float(most[i]))  # type: ignore[misc]
            if one is None:
                assert np.isnan(found[i])
            else:
                assert found[i] == pytest.approx(one, rel=1e-6)


def test_a_demand_below_one_request_is_a_batch_of_one() -> None:
    one = best(problem(0.5))
    assert one is not None and one.batch == 1.0


@settings(max_examples=8, deadline=None)
@given(
    demand=st.floats(50, 40_000),
    more=st.floats(1, 5),
    tpot_ms=st.floats(8, 60),
    looser=st.floats(1, 3),
)
def test_more_demand_never_takes_fewer_gpus_and_a_looser_objective_never_more(
    demand: float, more: float, tpot_ms: float, looser: float
) -> None:
    def gpus(tokens_per_s: float, objective_ms: float) -> float:
        one = best(problem(tokens_per_s, objective_ms, 12))
        return np.inf if one is None else one.gpus

    assert gpus(demand, tpot_ms) <= gpus(demand * more, tpot_ms)
    assert gpus(demand, tpot_ms) >= gpus(demand, tpot_ms * looser)


@settings(max_examples=6, deadline=None)
@given(isl=st.floats(10, 60_000), demand=st.floats(100, 20_000))
def test_no_plan_takes_more_memory_than_there_is(isl: float, demand: float) -> None:
    question = problem(demand, 80.0, 12, isl=isl)
    for one in PoolSearch(question, SMALL).cheapest(3):
        for _, parts in memory_parts(question, one).values():
            assert parts["free"] >= -1e3
            total = sum(parts.values())
            assert total == pytest.approx(question.oracle.attention_side.device.memory_bytes)


def test_equal_questions_have_equal_answers() -> None:
    one, other = (PoolSearch(problem(3000.0), PoolStyle()).cheapest(5) for _ in range(2))
    assert one == other and one


def test_shapes_are_listed_once_and_best_first() -> None:
    found = PoolSearch(problem(3000.0, max_gpus=12), PoolStyle()).cheapest(10)
    assert len({(d.shape) for d in found}) == len(found) == 10
    assert [d.cost for d in found] == sorted(d.cost for d in found)


def test_the_price_decides_where_it_is_asked() -> None:
    """Experts on cheap devices: more GPUs, fewer dollars."""
    question = problem(1000.0, 60.0, 10, system="h100_sxm", expert_system="a100_sxm")
    paid = best(dataclasses.replace(question, objective="price"))
    counted = best(question)
    assert paid is not None and counted is not None
    sides = question.oracle.attention_side.device, question.oracle.expert_side.device
    prices = [float(side.price_per_hour or 0) for side in sides]
    cost = counted.copies * (counted.num_attention * prices[0] + counted.num_expert * prices[1])
    assert paid.cost <= cost + 1e-9


def test_the_capacity_of_gpus_is_a_full_batch_within_the_objective() -> None:
    question = problem(1.0, 20.0, 8)
    one = PoolSearch(question, SMALL).largest(8)[0]
    assert one.gpus == 8
    assert one.tpot_s <= 0.020 and one.batch <= one.most_tokens
    again = best(dataclasses.replace(question, demand=Rate(0.999 * one.tokens_per_s)))
    assert again is not None and again.gpus <= 8


def test_the_fast_grid_takes_the_steps_of_the_best_plan() -> None:
    for style in (PoolStyle(), PoolStyle(gating="agate", plans=("1pc",), micro_batches=(2, 3))):
        search = PoolSearch(problem(2000.0, 30.0, 24), style)
        grid = search.grid
        assert grid is not None
        for first in grid._one_of_each_plan:
            batch = np.full((1, 1), 900.0)
            fast = grid._step_s(first, batch, (slice(None), slice(None)))
            row, column = np.indices(fast.shape).reshape(2, -1)
            mixed = grid._tpot_s(first, batch[0], (row, column)).reshape(fast.shape)
            alike = [
                one.tpot_s(batch)
                for one in grid.options
                if one.micro_batches == first.micro_batches
                and np.array_equal(one.slots, first.slots)
            ]
            np.testing.assert_allclose(mixed, np.minimum.reduce(alike), rtol=1e-9)
            assert (fast < mixed).all()


def test_the_fast_grid_asks_the_oracle_the_same() -> None:
    """The grid takes an exchange apart into a constant and a share per token."""
    search = PoolSearch(problem(2000.0, 30.0, 40), PoolStyle())
    grid = search.grid
    assert grid is not None
    n, m = grid.shape
    for tokens in (3.0, 700.0, 9000.0):
        split = grid._exchange_s(np.full((1, 1), tokens), (slice(0, n), slice(0, m)))
        whole = []
        for pools in grid.options:
            if pools.micro_batches == 1:
                load = pools.load(tokens, 1.0)
                whole.append(np.asarray(load.dispatch_s) + load.combine_s)
        np.testing.assert_allclose(split, np.minimum.reduce(whole), rtol=1e-9)
