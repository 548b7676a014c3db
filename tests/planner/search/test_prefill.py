"""Prompts among decode steps: they take time, in proportion, and nothing where there are none."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.planner.search.models import problem

from janus_moe.errors import ConfigError
from janus_moe.planner.latency.arrays import Array
from janus_moe.planner.latency.step import StepLoad
from janus_moe.planner.search import prefill
from janus_moe.planner.search.answers import Deployment
from janus_moe.planner.search.baselines import CONFIGS, BaselinePlanner
from janus_moe.planner.search.explain import step_estimate
from janus_moe.planner.search.prefill import MOST_BUSY, MixedStep
from janus_moe.planner.search.problem import Batching, PoolStyle, Problem, Saturate
from janus_moe.planner.search.recommend import recommend
from janus_moe.planner.search.search import PoolSearch

STYLE = PoolStyle(redundancies=(1.0,), exchange_plans=("1pc",), micro_batches=(1,))


def best(question: Problem) -> Deployment | None:
    found = PoolSearch(question, STYLE).cheapest()
    return found[0] if found else None


def tpot_s(question: Problem, batch: float, instances: int = 2, experts: int = 3) -> float:
    """Of a shape that fits."""
    pools = PoolSearch(question, STYLE).shapes(np.array([instances]), np.array([experts]))
    return float(pools.tpot_s(np.array([batch]))[0, 0])


@pytest.mark.parametrize("name", CONFIGS)
def test_without_prompts_the_answer_is_that_of_decoding_alone(name: str) -> None:
    question = problem(3000.0, 40.0, 32, isl=0)
    alone = dataclasses.replace(question, prefill="excluded")
    assert BaselinePlanner.of(name, question).decide(3000.0) == BaselinePlanner.of(
        name, alone
    ).decide(3000.0)


@settings(max_examples=25, deadline=None)
@given(
    isl=st.floats(1, 4000),
    longer=st.floats(1, 4),
    batch=st.floats(1, 400),
    more=st.floats(1, 3),
    instances=st.integers(1, 6),
)
def test_longer_prompts_and_larger_batches_never_make_tokens_faster(
    isl: float, longer: float, batch: float, more: float, instances: int
) -> None:
    short, long = (problem(isl=length) for length in (isl, isl * longer))
    assert tpot_s(short, batch, instances) <= tpot_s(long, batch, instances) * (1 + 1e-9)
    assert tpot_s(short, batch, instances) <= tpot_s(short, batch * more, instances) * (1 + 1e-9)
    decode = dataclasses.replace(short, prefill="excluded")
    assert tpot_s(decode, batch, instances) <= tpot_s(short, batch, instances)


@settings(max_examples=8, deadline=None)
@given(isl=st.floats(1, 3000), longer=st.floats(1, 5), demand=st.floats(100, 5000))
def test_longer_prompts_never_take_fewer_gpus(isl: float, longer: float, demand: float) -> None:
    short, long = (best(problem(demand, 60.0, 16, isl=length)) for length in (isl, isl * longer))
    if long is not None:
        assert short is not None and short.gpus <= long.gpus


def test_prompts_cost_gpus() -> None:
    """Ten times as many prompt tokens as output at a high rate."""
    question = problem(3000.0, 60.0, 32, isl=2560)
    with_prompts, without = best(question), best(dataclasses.replace(question, prefill="excluded"))
    assert with_prompts is not None and without is not None
    assert with_prompts.gpus > without.gpus


def test_the_mean_step_is_that_of_instances_that_have_chunks_by_chance() -> None:
    """Drawn: each of three instances has a chunk in a step or not."""
    question = problem(isl=500, osl=200)
    instances, batch = 3, 120.0
    decode_s, per_row, per_token = 0.01, 1e-6, 2e-5

    def step_s(step: MixedStep) -> Array:
        return np.asarray(decode_s + per_row * (step.rows - batch) + per_token * 500)

    times = prefill.step_times(question, batch, instances, np.asarray(decode_s), step_s)
    found = float(times.tpot)
    rng, busy = np.random.default_rng(1), batch / 200 / instances
    chunks = (rng.random((200_000, instances)) < busy).sum(axis=1)
    drawn = decode_s + np.where(chunks > 0, per_row * 500 * chunks + per_token * 500, 0.0)
    assert found == pytest.approx(drawn.mean(), rel=0.01)


def test_a_chunk_is_on_one_instance_and_the_experts_get_all_rows() -> None:
    question = problem(isl=1000)
    oracle = question.oracle
    load = oracle.pools_load(64.0, question.context, 4, 3, 8.0)
    more = dataclasses.replace(load, attention_tokens=1016.0, context=700.0, logits=16.0)
    assert isinstance(more, StepLoad)
    layer = oracle.step(more).layer
    expected = float(oracle.attention_layer_s(1016.0, 700.0)) + oracle.overheads.attention_layer_s
    assert layer["attention"].seconds == pytest.approx(expected)
    assert layer["experts"].seconds == oracle.step(load).layer["experts"].seconds


def test_no_plan_lets_prompts_fill_every_step() -> None:
    for chunk in (256, 2048):
        question = dataclasses.replace(
            problem(2000.0, 200.0, 16, isl=2000, osl=100),
            batching=Batching(max_prompt_tokens=chunk),
        )
        one = best(question)
        assert one is not None
        chunks_per_step = one.batch / 100 * 2000 / min(chunk, 2000) / one.num_attention
        assert chunks_per_step <= MOST_BUSY * (1 + 1e-9)


def test_prompts_are_a_part_of_the_step_that_is_explained() -> None:
    plan = recommend(problem(3000.0, 60.0, 24))
    one = plan.pools[0]
    parts = step_estimate(plan.problem, one).whole
    assert 0 < parts["prompts of others"].seconds < one.tpot_s
    assert sum(part.seconds for part in parts.values()) == pytest.approx(one.tpot_s)


def test_a_ttft_objective_takes_more_gpus_and_is_met() -> None:
    question = problem(3000.0, 60.0, 32, isl=1500)
    style = PoolStyle()
    free = PoolSearch(question, style).cheapest()[0]
    tight = dataclasses.replace(question, ttft_s=0.6 * free.ttft_s)
    found = PoolSearch(tight, style).cheapest(3)
    assert found and found[0].gpus > free.gpus
    assert all(one.ttft_s <= 0.6 * free.ttft_s for one in found)
    most = dataclasses.replace(tight, demand=Saturate(), max_gpus=8)
    full = PoolSearch(most, style).largest(8)[0]
    loose = PoolSearch(dataclasses.replace(most, ttft_s=None), style).largest(8)[0]
    assert full.ttft_s <= 0.6 * free.ttft_s * (1 + 1e-6)
    assert full.tokens_per_s < loose.tokens_per_s and loose.ttft_s > full.ttft_s


@settings(max_examples=20, deadline=None)
@given(isl=st.floats(1, 4000), longer=st.floats(1, 3), batch=st.floats(1, 300))
def test_longer_prompts_and_larger_batches_never_start_sooner(
    isl: float, longer: float, batch: float
) -> None:
    def ttft_s(length: float, sequences: float) -> float:
        shapes = PoolSearch(problem(isl=length), STYLE).shapes(np.array([2]), np.array([3]))
        return float(shapes.times(np.array([sequences])).ttft[0, 0])

    assert ttft_s(isl, batch) <= ttft_s(isl * longer, batch) * (1 + 1e-9)
    assert ttft_s(isl, batch) <= ttft_s(isl, batch * longer) * (1 + 1e-9)


def test_a_first_token_that_is_too_early_is_refused_with_what_there_is() -> None:
    plan = recommend(dataclasses.replace(problem(500.0, 60.0, 12), ttft_s=1e-3))
    assert plan.infeasible is not None and plan.infeasible.nearest is not None
    assert "a first token within 1 ms" in plan.infeasible.reason
    with pytest.raises(ConfigError, match="other devices compute the prompts"):
        dataclasses.replace(problem(prefill="excluded"), ttft_s=0.1)


def test_prompts_without_end_are_refused_with_numbers() -> None:
    plan = recommend(problem(10.0, 500.0, 4, isl=100_000, osl=2))
    assert plan.infeasible is not None and "prompts of 100000 tokens" in plan.infeasible.reason
