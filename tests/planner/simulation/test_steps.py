"""Claims about the simulation of steps: the compiled pool, the policy code, and arithmetic."""

from __future__ import annotations

import numpy as np
import pytest

from janus_moe.planner.simulation import state
from janus_moe.planner.simulation.generators import Lengths, generate
from janus_moe.planner.simulation.pools import AttentionPool, CompiledPool
from janus_moe.planner.simulation.reference import PolicyPool
from janus_moe.planner.simulation.state import BatchLimits
from janus_moe.planner.simulation.step_table import StepTable
from janus_moe.planner.simulation.workload import PrefixBlocks, RequestTrace

FOREVER = 1e12


def linear_table(
    fixed_s: float = 0.0, per_token_s: float = 0.0, per_kv_s: float = 0.0, expert_s: float = 0.0
) -> StepTable:
    """One layer: fixed + per_token * b + per_kv * c of the slowest instance, + expert * B."""
    grid = np.array([0.0, 1e6])
    flat = np.zeros(2)
    attention = fixed_s + per_token_s * grid[:, None] + per_kv_s * grid[None, :]
    return StepTable(
        tokens=grid,
        kv=grid,
        attention=attention,
        shared=flat,
        dense=flat,
        head=flat,
        batch=grid,
        experts=expert_s * grid,
        exchange=flat,
        num_moe_layers=1.0,
        num_dense_layers=0.0,
        micro_batches=1.0,
        monolithic=False,
        step_s=0.0,
        token_s=0.0,
        pair_cost=0.25,
    )


def requests(*rows: tuple[float, int, int]) -> RequestTrace:
    """(arrival, prompt, output) each."""
    arrival, prompt, output = zip(*rows, strict=True)
    return RequestTrace.of("test", np.array(arrival), np.array(prompt), np.array(output))


def play(pool: AttentionPool, table: StepTable, instances: int, kv_blocks: int) -> AttentionPool:
    for instance in range(instances):
        pool.activate(instance, kv_blocks)
    assert pool.run(FOREVER, table)
    return pool


@pytest.mark.parametrize("kind", [CompiledPool, PolicyPool])
def test_a_case_computed_by_hand(kind: type[CompiledPool] | type[PolicyPool]) -> None:
    # 10 s per step and 1 s per token. A step of 4 tokens takes 14 s, one of 1 token 11 s.
    workload = requests((0.0, 4, 3), (5.0, 2, 1))
    pool = play(kind(workload, BatchLimits(16, 8, 64), 1, 900.0, 9), linear_table(10.0, 1.0), 1, 8)
    # 0..14: prompt of A. 14..27: A's second token with prompt of B (1 + 2). 27..38: A's third.
    assert pool.requests["first_s"].tolist() == pytest.approx([14.0, 27.0])
    assert pool.requests["finish_s"].tolist() == pytest.approx([38.0, 27.0])
    log = [[0, 14, 4, 1, 0], [14, 13, 3, 2, 0], [27, 11, 1, 1, 0]]
    assert pool.log == pytest.approx(np.array(log))
    assert pool.interval[0].tolist() == pytest.approx([38.0, 3.0, 4.0, 14 + 26 + 11, 6.0])


@pytest.mark.parametrize("kind", [CompiledPool, PolicyPool])
def test_instances_that_wait_for_each_other_have_equal_batches(
    kind: type[CompiledPool] | type[PolicyPool],
) -> None:
    """A step takes as long as its busiest instance's tokens: at most 1.25 times the mean."""
    fixed, per_token, instances = 20e-3, 1e-4, 6
    workload = generate("poisson", 100.0, 15.0, 1, Lengths(mean=4), Lengths(mean=64))
    pool = play(
        kind(workload, BatchLimits(16, 256, 256), instances, 900.0, 400),
        linear_table(fixed, per_token),
        instances,
        2000,
    )
    steps = pool.log[100:]
    busiest = (steps[:, state.SECONDS] - fixed) / per_token
    assert busiest.sum() < 1.25 * steps[:, state.TOKENS].sum() / instances


@pytest.mark.parametrize("kind", [CompiledPool, PolicyPool])
def test_prompts_are_chunked_and_kv_positions_are_read(
    kind: type[CompiledPool] | type[PolicyPool],
) -> None:
    # Budget 4: a prompt of 6 takes two steps. Decoding reads start + 1 positions; a chunk of n from
    # s reads max(s + n, pairs / 4).
    workload = requests((0.0, 6, 3))
    pool = play(kind(workload, BatchLimits(4, 4, 4), 1, 900.0, 9), linear_table(0, 0, 1.0), 1, 8)
    assert pool.log[:, state.SECONDS].tolist() == pytest.approx([4.0, 6.0, 7.0, 8.0])


def test_the_slowest_instance_and_all_tokens_set_the_pace() -> None:
    # Two instances: prompts of 8 and 2 tokens. Attention 1 s per token, experts 0.5 s per token.
    workload = requests((0.0, 8, 1), (0.0, 2, 1))
    limits = BatchLimits(16, 8, 64)
    pool = play(CompiledPool(workload, limits, 2, 900.0, 9), linear_table(0, 1.0, 0, 0.5), 2, 8)
    assert sorted(pool.requests["instance"].tolist()) == [0, 1]
    assert pool.log[:, state.SECONDS].tolist() == pytest.approx([8 * 1.0 + 10 * 0.5])


CASES = {
    # instances, blocks each, limits, cv of prompts and outputs, rate
    "roomy": (3, 400, BatchLimits(16, 32, 256), 1.0, 30.0),
    "few blocks: preemption": (2, 24, BatchLimits(4, 16, 32), 1.0, 30.0),
    "few sequences: a queue": (2, 100, BatchLimits(8, 3, 16), 0.6, 30.0),
    "tiny budget: chunks": (1, 90, BatchLimits(4, 4, 4), 1.0, 10.0),
    "idle between requests": (4, 50, BatchLimits(16, 8, 64), 1.0, 0.5),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", [0, 1])
def test_compiled_steps_equal_those_of_the_policy_code(name: str, seed: int) -> None:
    instances, blocks, limits, cv, rate = CASES[name]
    prompts, outputs = Lengths(mean=20, cv=cv), Lengths(mean=12, cv=cv)
    workload = generate("gamma", rate, 150 / rate, seed, prompts, outputs, cv=2.0)
    table = linear_table(3e-3, 2e-4, 1e-5, 1e-4)
    fast = play(CompiledPool(workload, limits, instances, 1.0, 10_000), table, instances, blocks)
    exact = play(PolicyPool(workload, limits, instances, 1.0, 10_000), table, instances, blocks)
    assert fast.num_preemptions == exact.num_preemptions
    assert (fast.num_preemptions > 0) == ("preemption" in name)
    for field in ("instance", "first_s", "finish_s"):
        assert np.array_equal(fast.requests[field], exact.requests[field], equal_nan=True), field
    assert np.array_equal(fast.log, exact.log)
    if fast.num_preemptions == 0:  # else prompts are computed more than once
        assert np.allclose(fast.interval, exact.interval)


def test_pausing_changes_nothing() -> None:
    workload = generate("poisson", 30.0, 10.0, 5)
    whole = play(
        CompiledPool(workload, BatchLimits(16, 32, 256), 2, 1.0), linear_table(1e-3), 2, 400
    )
    parts = CompiledPool(workload, BatchLimits(16, 32, 256), 2, 1.0)
    for instance in range(2):
        parts.activate(instance, 400)
    for until in np.arange(0.0, 10.0, 0.1):
        assert not parts.run(until, linear_table(1e-3))
    assert parts.run(FOREVER, linear_table(1e-3))
    assert np.array_equal(whole.requests, parts.requests)


def test_every_request_finishes_once_and_nothing_is_left() -> None:
    workload = generate("poisson", 100.0, 20.0, 2, outputs=Lengths(mean=30, cv=1.0))
    pool = play(CompiledPool(workload, BatchLimits(4, 64, 128), 2, 5.0), linear_table(2e-3), 2, 110)
    assert pool.num_preemptions > 0
    done = pool.requests
    assert (done["arrival_s"] < done["first_s"]).all() and (
        done["first_s"] <= done["finish_s"]
    ).all()
    assert pool.interval[:, state.OUTPUT].sum() == workload.output_tokens.sum()
    for field in ("used", "running", "waiting", "decoding", "kv", "unstarted"):
        assert not pool.instances[field].any(), field


def test_littles_law() -> None:
    # Steps of 20 ms whatever they hold: a request of 50 tokens stays 1 s and, on average, waits
    # half a step. So rate * time = requests in the pool.
    workload = generate("poisson", 200.0, 200.0, 3, outputs=Lengths(mean=50))
    pool = play(
        CompiledPool(workload, BatchLimits(16, 4096, 8192), 1, 50.0), linear_table(0.02), 1, 9999
    )
    served_s = (pool.requests["finish_s"] - pool.requests["arrival_s"]).mean()
    assert served_s == pytest.approx(1.0 + 0.01, rel=0.01)
    middle = pool.interval[1:3]
    running = middle[:, state.CONCURRENCY_S].sum() / middle[:, state.BUSY_S].sum()
    arriving = ((workload.arrival_s >= 50) & (workload.arrival_s < 150)).sum() / 100
    assert running == pytest.approx(arriving * 1.0, rel=0.02)


def test_what_can_never_fit_is_rejected_and_the_rest_served() -> None:
    workload = requests((0.0, 100, 5), (0.0, 10, 5), (1.0, 10, 200))
    for kind in (CompiledPool, PolicyPool):
        pool = play(kind(workload, BatchLimits(4, 8, 64), 1, 900.0), linear_table(1.0), 1, 8)
        assert pool.requests["instance"].tolist() == [state.REJECTED, 0, state.REJECTED]
        assert np.isnan(pool.requests["finish_s"]).tolist() == [True, False, True]


@pytest.mark.parametrize("kind", [CompiledPool, PolicyPool])
def test_a_draining_instance_finishes_and_takes_nothing_new(
    kind: type[CompiledPool] | type[PolicyPool],
) -> None:
    workload = requests((0.0, 4, 10), (0.0, 4, 10), *((5.0 + i, 4, 2) for i in range(4)))
    pool = kind(workload, BatchLimits(4, 8, 64), 2, 900.0)
    pool.activate(0, 50)
    pool.activate(1, 50)
    assert not pool.run(5.0, linear_table(1.0))
    pool.drain(1, 5.0)
    assert pool.instances["status"].tolist() == [state.ACTIVE, state.DRAINING]
    assert pool.run(FOREVER, linear_table(1.0))
    assert pool.requests["instance"].tolist() == [0, 1, 0, 0, 0, 0]
    assert pool.instances["status"][1] == state.ABSENT
    assert pool.instances["drained_s"][1] == pool.requests["finish_s"][1]


def test_known_prefixes_save_time() -> None:
    arrival = np.arange(0.0, 10.0, 0.5)
    ids = np.tile(np.arange(4), 20)
    prefix = PrefixBlocks(hashes=ids, offsets=np.arange(21) * 4, block_tokens=32)
    same = np.full(20, 128)
    table, limits = linear_table(1e-3, 1e-3), BatchLimits(16, 8, 256)
    cold = RequestTrace.of("cold", arrival, same, np.full(20, 3))
    warm = RequestTrace.of("warm", arrival, same, np.full(20, 3), prefix)
    times = [
        play(PolicyPool(workload, limits, 2, 900.0), table, 2, 100).requests["first_s"] - arrival
        for workload in (cold, warm)
    ]
    assert times[1][0] == times[0][0]
    assert times[1][-1] < 0.3 * times[0][-1]
