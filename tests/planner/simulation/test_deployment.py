"""Claims about deployments: tables against the oracle, memory, styles, sizes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from janus_moe.planner.latency import Oracle
from janus_moe.planner.latency.links import Gating
from janus_moe.planner.simulation.deployment import Deployments, DeploymentStyle
from janus_moe.planner.simulation.max_activated import SampledMaxActivated
from janus_moe.planner.simulation.policies import parse_size
from janus_moe.planner.simulation.state import BatchLimits
from janus_moe.planner.simulation.step_table import (
    PoolSize,
    busiest_step_seconds,
    tabulate,
    tabulate_attention,
)
from janus_moe.policy.activation import LayerLayout
from janus_moe.policy.estimate import monte_carlo
from janus_moe.policy.synthetic import SyntheticRouter

LIMITS = BatchLimits(16, 512, 1024)


def half_of_all(instances: int, slots: int, tokens: float, policy: str = "exact") -> float:
    """A rough a_max: rises with tokens, never above an even share of all experts."""
    return min(160 / instances, 1.0 + 0.5 * tokens)


@pytest.fixture(scope="module")
def deployments() -> Deployments:
    return Deployments(Oracle.build("deepseek-v2", "h100_sxm"), half_of_all, LIMITS)


@pytest.mark.parametrize(
    "size", [PoolSize(1, 6), PoolSize(3, 8), PoolSize(8, 0), PoolSize(2, 0, 4)]
)
@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("token_s", [0.0, 7e-6])
@pytest.mark.parametrize("gating", ["egate", "agate"])
def test_tables_give_the_oracles_step(
    size: PoolSize, micro_batches: int, token_s: float, gating: Gating
) -> None:
    oracle = Oracle.build("deepseek-v2", "h100_sxm")
    overheads = replace(oracle.overheads, attention_token_s=token_s)
    oracle = replace(oracle, overheads=overheads)
    instances = size.num_expert or size.num_gpus
    side = tabulate_attention(oracle, 1024, 400_000, size.attention_tp)

    def max_activated(tokens: float) -> float:
        return half_of_all(instances, 0, tokens)

    table = tabulate(oracle, size, max_activated, side, micro_batches, None, "1pc", gating)
    for batch in (2.0, 16.0, 150.0, 700.0):
        for context in (30.0, 500.0, 1500.0):
            rows = batch * size.num_attention
            activated = max_activated(rows / micro_batches)
            if size.monolithic:
                load = oracle.monolithic_load(
                    rows,
                    context,
                    size.num_gpus,
                    activated,
                    micro_batches=micro_batches,
                    attention_tp=size.attention_tp,
                )
            else:
                load = oracle.pools_load(
                    rows,
                    context,
                    *size[:2],
                    activated,
                    plan="1pc",
                    gating=gating,
                    micro_batches=micro_batches,
                )
            seconds = busiest_step_seconds(table, batch, batch * context, batch, rows)
            assert seconds == pytest.approx(float(oracle.step_s(load)), rel=0.01)


def test_what_does_not_fit_is_none_and_pools_keep_kv_that_monoliths_do_not(
    deployments: Deployments,
) -> None:
    assert deployments.of(PoolSize(1, 5)) is None  # 445 GB of experts on 5 x 72 GiB
    assert deployments.of(PoolSize(8, 0)) is None  # and every GPU holds all of attention
    shared = deployments.of(PoolSize(1, 0, 8))  # each an eighth of it
    assert shared is not None and shared.num_gpus == 8 and shared.name == "EP8TP8"
    pool, whole = deployments.of(PoolSize(1, 8)), deployments.of(PoolSize(16, 0))
    assert pool is not None and whole is not None
    assert pool.kv_blocks > 2 * whole.kv_blocks
    assert pool.expert_bytes > whole.expert_bytes  # redundant experts


def test_a_style_changes_steps_and_what_is_loaded(deployments: Deployments) -> None:
    size = PoolSize(2, 8)
    plain, wide = (
        deployments.of(size, DeploymentStyle(slots=20)),
        deployments.of(size, DeploymentStyle(slots=25)),
    )
    gated = deployments.of(size, DeploymentStyle(slots=20, gating="agate", exchange_plan="1pc"))
    assert plain is not None and wide is not None and gated is not None
    assert wide.expert_bytes > plain.expert_bytes == gated.expert_bytes
    assert not np.array_equal(plain.table.exchange, gated.table.exchange)
    assert plain.same_as(plain) and not plain.same_as(gated) and not plain.same_as(wide)
    assert deployments.of(size, DeploymentStyle(slots=20)) is plain
    assert (
        deployments.of(size, DeploymentStyle(slots=19)) is None
    )  # 160 experts need 20 on each of 8


def test_sampled_a_max_is_what_the_scheduler_does_without_replicas() -> None:
    router = SyntheticRouter("uniform", 32, 4, seed=1)
    sampled = SampledMaxActivated(router.batch, 32, seed=3)
    holders = [[e % 4] for e in range(32)]
    layout = LayerLayout(np.array(holders, np.int32), 4)
    for tokens in (1, 8, 64):
        assert sampled(4, 32, tokens) == pytest.approx(
            monte_carlo(router.batch, layout, tokens, num_samples=64), rel=0.25
        )
    assert sampled(4, 48, 8) <= sampled(4, 32, 8)


def test_sizes_are_read_and_written() -> None:
    for text in ("1A6E", "12A34E", "EP16"):
        assert str(parse_size(text)) == text
