"""The joint search: equal to brute force, a fixed point, monotone, within memory, deterministic."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.planner.search.models import problem

from janus_moe.planner.latency.arrays import Array, Ints
from janus_moe.planner.search.answers import Deployment
from janus_moe.planner.search.coarse import CLOSE, throughput
from janus_moe.planner.search.explain import memory_parts, step_estimate
from janus_moe.planner.search.feasible import feasible_shapes, judged_at
from janus_moe.planner.search.fixed_point import fixed_point, fixed_points
from janus_moe.planner.search.grid import ShapeGrid
from janus_moe.planner.search.problem import (
    Batching,
    Concurrency,
    PoolStyle,
    Problem,
    Rate,
    Saturate,
)
from janus_moe.planner.search.reference import brute_force
from janus_moe.planner.search.search import PoolSearch, best_of_shapes
from janus_moe.planner.search.serve_settings import serve_settings

SMALL = PoolStyle(redundancies=(1.0, 1.25), exchange_plans=("1pc", "2pc-sharded"))


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
    "first token": dataclasses.replace(problem(3000.0, 40.0, 5, isl=1500), ttft_s=0.15),
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
        assert one.ttft_s == pytest.approx(other.ttft_s, rel=1e-6)


def _key(one: Deployment) -> tuple[object, ...]:
    return (one.shape, one.slots, one.exchange_plan, one.micro_batches, one.copies, one.cost)


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


def test_settings_split_steps_only_where_two_micro_batches_were_planned() -> None:
    question = problem(Concurrency(64))
    one = best(question)
    assert one is not None
    whole = dataclasses.replace(one, micro_batches=1)
    assert "micro-batch-threshold" not in serve_settings(question, whole, "m")
    halves = dataclasses.replace(one, micro_batches=2)
    threshold = serve_settings(question, halves, "m")["micro-batch-threshold"]
    assert threshold == max(2, -(-one.batch // one.num_attention))


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


STYLES = (PoolStyle(), PoolStyle(gating="agate", exchange_plans=("1pc",), micro_batches=(2, 3)))


def flat(search: PoolSearch) -> tuple[ShapeGrid, Ints, Ints]:
    """The grid, and the positions of all pairs in it."""
    grid = search.grid
    assert grid is not None
    row, column = np.indices(grid.gpus.shape).reshape(2, -1)
    return grid, row, column


@pytest.mark.parametrize("style", STYLES)
def test_a_grid_takes_the_steps_of_the_best_plan(style: PoolStyle) -> None:
    search = PoolSearch(problem(2000.0, 30.0, 24), style)
    grid, row, column = flat(search)
    batch = np.full(len(row), 900.0)
    shapes = search.shapes(grid.num_attention[row, 0], grid.num_expert[0, column])
    tpot_s = shapes.tpot_s(batch)
    for option in range(grid.num_options):
        one = grid.at(np.full(len(row), option), row, column)
        same = [
            index
            for index, slots in enumerate(shapes.slots)
            if shapes.micro_batches[index, 0] == one.micro_batches[0]
            and np.array_equal(slots, one.slots)
        ]
        assert len(same) == len(style.exchange_plans)
        with_prompts = one.tpot_s(batch)
        np.testing.assert_allclose(with_prompts, tpot_s[same].min(axis=0), rtol=1e-9)
        assert (one.step_s(batch) < with_prompts).all()


def test_an_exchange_is_a_constant_and_a_share_per_token() -> None:
    question = problem(2000.0, 30.0, 40)
    grid, row, column = flat(PoolSearch(question, PoolStyle()))
    one = grid.at(np.zeros_like(row), row, column)
    sizes = grid.num_attention[row, 0], grid.num_expert[0, column]
    for tokens in (3.0, 700.0, 9000.0):
        loads = [
            question.oracle.pools_load(tokens, 1.0, *sizes, 1.0, plan=plan)
            for plan in PoolStyle().exchange_plans
        ]
        whole = [np.asarray(load.dispatch_s) + load.combine_s for load in loads]
        assert one.fastest is not None
        split = one.fastest.seconds(np.array(tokens))
        np.testing.assert_allclose(split, np.minimum.reduce(whole), rtol=1e-9)


@pytest.mark.parametrize("style", STYLES)
def test_options_together_are_what_they_are_one_by_one(style: PoolStyle) -> None:
    question = problem(2000.0, 30.0, 24)
    search = PoolSearch(question, style)
    grid, row, column = flat(search)
    sizes = grid.num_attention[row, 0], grid.num_expert[0, column]
    shapes = search.shapes(*sizes)
    batch = np.geomspace(1, 3000, len(row)) * np.ones((len(shapes.exchange_plans), 1))
    tpot_s, seen = shapes.tpot_s(batch), 0
    for plan in style.exchange_plans:
        for micro_batches in style.micro_batches:
            alone = dataclasses.replace(
                style, exchange_plans=(plan,), micro_batches=(micro_batches,)
            )
            one = PoolSearch(question, alone).shapes(*sizes)
            same = np.array(shapes.exchange_plans) == plan
            same &= shapes.micro_batches[:, 0] == micro_batches
            np.testing.assert_allclose(one.tpot_s(batch[same]), tpot_s[same], 1e-12)
            np.testing.assert_array_equal(one.most_tokens, shapes.most_tokens[same])
            seen += int(same.sum())
    assert seen == len(shapes.exchange_plans)


@pytest.mark.parametrize("name", CASES)
def test_what_is_ruled_out_does_not_keep_up(name: str) -> None:
    """Every pair and option, evaluated, against the scan that leaves most of them out."""
    question = dataclasses.replace(CASES[name], max_gpus=40)
    grid, row, column = flat(PoolSearch(question, SMALL))
    for low, high in ((0, 12), (12, 40)):
        expected = set()
        for copies in range(1, high // grid.least + 1):
            gpus = copies * grid.gpus[row, column]
            for option in range(grid.num_options):
                one = grid.at(np.full(len(row), option), row, column)
                batch, limit = judged_at(question, np.full(len(row), copies), one.most_tokens)
                good = (low < gpus) & (gpus <= high) & (batch >= 1)
                good &= one.tpot_s(np.maximum(batch, 1.0)) <= limit
                expected |= {(r, c, copies) for r, c in zip(row[good], column[good], strict=True)}
        where, numbers = feasible_shapes(grid, low, high, question.max_copies)
        found = [(r, c, copies) for (r, c), copies in zip(where, numbers, strict=True)]
        assert len(set(found)) == len(found) and set(found) == expected
        assert sorted(numbers.tolist(), reverse=True) == numbers.tolist()


@pytest.mark.parametrize("count", [1, 5])
def test_shapes_are_dropped_only_where_others_serve_more(count: int) -> None:
    question = problem(Saturate(), 20.0, 40)
    grid, row, column = flat(PoolSearch(question, SMALL))
    where, copies = np.stack([row, column], axis=1), 40 // grid.gpus[row, column]
    where, copies = where[copies > 0], copies[copies > 0]
    everything = throughput(grid, where, copies, None)
    best = np.sort(everything)[-count]
    found = throughput(grid, where, copies, count)
    near = everything >= (1 - CLOSE) * best
    np.testing.assert_array_equal(found[near], everything[near])
    assert (found <= everything).all() and count <= near.sum() <= (found > 0).sum() < len(found) / 2
