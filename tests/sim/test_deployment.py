"""Claims about deployments: tables against the oracle, memory, capacity, names of policies."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from janus_moe.errors import ConfigError
from janus_moe.perf import Oracle
from janus_moe.policy.activation import LayerLayout
from janus_moe.policy.estimate import monte_carlo
from janus_moe.policy.synthetic import SyntheticRouter
from janus_moe.sim.deployment import Deployments, SampledAmax
from janus_moe.sim.policies import named_policy, parse_size
from janus_moe.sim.scaling import Demand, FewestGpus
from janus_moe.sim.state import Limits
from janus_moe.sim.step_table import (
    PoolSize,
    busiest_step_seconds,
    tabulate,
    tabulate_attention,
)

LIMITS = Limits(16, 512, 1024)


def half_of_all(instances: int, slots: int, tokens: float) -> float:
    """A rough a_max: rises with tokens, never above an even share of all experts."""
    return min(160 / instances, 1.0 + 0.5 * tokens)


@pytest.fixture(scope="module")
def deployments() -> Deployments:
    return Deployments(Oracle.build("deepseek-v2", "h100_sxm"), half_of_all, LIMITS)


@pytest.mark.parametrize("size", [PoolSize(1, 6), PoolSize(3, 8), PoolSize(8, 0)])
@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("token_s", [0.0, 7e-6])
def test_tables_give_the_oracles_step(size: PoolSize, micro_batches: int, token_s: float) -> None:
    oracle = Oracle.build("deepseek-v2", "h100_sxm")
    overheads = replace(oracle.overheads, attention_token_s=token_s)
    oracle = replace(oracle, overheads=overheads)
    instances = size.num_expert or size.num_attention
    side = tabulate_attention(oracle, 1024, 400_000)

    def a_max(tokens: float) -> float:
        return half_of_all(instances, 0, tokens)

    table = tabulate(oracle, size, a_max, side, micro_batches)
    for batch in (2.0, 17.0, 150.0, 700.0):
        for context in (30.0, 500.0, 1500.0):
            rows = batch * size.num_attention
            activated = a_max(rows / micro_batches)
            if size.monolithic:
                load = oracle.monolithic_load(
                    rows, context, size.num_attention, activated, micro_batches=micro_batches
                )
            else:
                load = oracle.pools_load(
                    rows, context, *size, activated, micro_batches=micro_batches
                )
            seconds = busiest_step_seconds(table, batch, batch * context, batch, rows)
            assert seconds == pytest.approx(float(oracle.step_s(load)), rel=0.01)


def test_what_does_not_fit_is_none_and_pools_keep_kv_that_monoliths_do_not(
    deployments: Deployments,
) -> None:
    assert deployments.of(PoolSize(1, 5)) is None  # 445 GB of experts on 5 x 72 GiB
    assert deployments.of(PoolSize(8, 0)) is None  # and every GPU holds all of attention
    pool, whole = deployments.of(PoolSize(1, 8)), deployments.of(PoolSize(16, 0))
    assert pool is not None and whole is not None
    assert pool.kv_blocks > 2 * whole.kv_blocks
    assert pool.expert_bytes > whole.expert_bytes  # redundant experts


def test_capacity_keeps_to_the_objective_and_grows_with_it(deployments: Deployments) -> None:
    one = deployments.of(PoolSize(2, 8))
    assert one is not None
    found = [one.capacity(slo, 16, 256) for slo in (0.001, 0.03, 0.05, 0.2)]
    assert found[0] == 0.0
    assert found == sorted(found)
    # Little's law: that many tokens per second keep capacity * step sequences in the pool.
    batch = found[1] * 0.03
    assert one.step_s(batch * 0.95, 144, 16, 256) <= 0.03 * 1.02


def test_the_fewest_gpus_of_all_that_suffice_are_chosen(deployments: Deployments) -> None:
    sizes = [PoolSize(a, e) for a in (1, 2, 4) for e in (6, 8, 12)]
    candidates = [found for size in sizes if (found := deployments.of(size)) is not None]
    policy = FewestGpus(candidates=candidates, tpot_slo_s=0.05, headroom=1.0)
    chosen = []
    for rate in (0.0, 10.0, 40.0, 1e9):
        demand = Demand(rate, rate, 16.0, 256.0, 0)
        answer = policy.decide(0.0, demand, None)
        chosen.append(answer.num_gpus)
        enough = [c for c in candidates if c.capacity(0.05, 17, 270) >= rate * 256]
        if enough:
            assert answer.num_gpus == min(c.num_gpus for c in enough)
    assert chosen == sorted(chosen) and chosen[0] < chosen[-1]


def test_sampled_a_max_is_what_the_scheduler_does_without_replicas() -> None:
    router = SyntheticRouter("uniform", 32, 4, seed=1)
    sampled = SampledAmax(router.batch, 32, seed=3)
    hosts = [[e % 4] for e in range(32)]
    layout = LayerLayout(np.array(hosts, np.int32), 4)
    for tokens in (1, 8, 64):
        assert sampled(4, 32, tokens) == pytest.approx(
            monte_carlo(router.batch, layout, tokens, num_samples=64), rel=0.25
        )
    assert sampled(4, 48, 8) <= sampled(4, 32, 8)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("static:2X", "a size is written 2A6E or EP16"),
        ("static:1A2E", "does not fit.*use more instances"),
        ("fastest", "no policy 'fastest'; known are"),
        ("monolithic", "fits on no deployment of up to 4"),
    ],
)
def test_policies_that_cannot_be_are_refused(
    deployments: Deployments, name: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        named_policy(name, deployments, max_gpus=4, tpot_slo_s=0.1, headroom=1.3)


def test_sizes_are_read_and_written() -> None:
    for text in ("1A6E", "12A34E", "EP16"):
        assert str(parse_size(text)) == text
