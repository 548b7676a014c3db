"""The token-aware mode: compiled equals reference, never worse than counting experts alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from janus_moe.errors import ConfigError
from janus_moe.policy.activation import (
    LayerCost,
    LayerLayout,
    Scheduler,
    TokenAwareScheduler,
)
from janus_moe.policy.activation.token_aware import MAX_MOVES
from janus_moe.policy.activation.token_aware_reference import share_reference
from janus_moe.policy.placement import initial_placement


def counted(ids: NDArray[np.int32], labels: NDArray[np.int32]) -> dict[tuple[int, int], int]:
    pairs = zip(ids.ravel().tolist(), labels.ravel().tolist(), strict=True)
    counts: dict[tuple[int, int], int] = {}
    for expert, instance in pairs:
        assert (expert < 0) == (instance < 0)
        if expert >= 0:
            counts[expert, instance] = counts.get((expert, instance), 0) + 1
    return counts


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_vs_reference(seed: int) -> None:
    rng = np.random.default_rng(seed)
    experts, instances = int(rng.integers(1, 12)), int(rng.integers(1, 6))
    holders = np.full((experts, min(3, instances)), -1, np.int32)
    for row in holders:
        size = int(rng.integers(1, len(row) + 1))
        row[:size] = np.sort(rng.choice(instances, size, replace=False))
    layout = LayerLayout(holders, instances)
    ids = np.minimum(rng.zipf(1.5, (int(rng.integers(0, 40)), 2)) - 2, experts - 1)
    ids = ids.astype(np.int32)
    cost = LayerCost(expert_ns=int(rng.integers(0, 50)), token_ns=int(rng.integers(0, 20)))
    answer = TokenAwareScheduler(layout, cost).rewrite(ids)
    shares = counted(ids, answer.labels)
    assert shares == share_reference(ids, layout, cost.expert_ns, cost.token_ns, MAX_MOVES)
    assert all(instance in holders[expert] for expert, instance in shares)
    for instance in range(instances):
        here = [tokens for (_, i), tokens in shares.items() if i == instance]
        assert (answer.activated[instance], answer.tokens[instance]) == (len(here), sum(here))
    shuffled = TokenAwareScheduler(layout, cost).rewrite(rng.permutation(ids))
    assert shuffled.activated.tolist() == answer.activated.tolist()
    assert shuffled.tokens.tolist() == answer.tokens.tolist()


def test_a_hot_expert_is_shared_where_that_pays() -> None:
    layout = LayerLayout(np.array([[0, 1], [0, 1]]), 2)
    ids = np.array([[0]] * 100 + [[1]], np.int32)
    cheap, dear = (LayerCost(expert_ns=ns, token_ns=1) for ns in (10, 200))
    shared = TokenAwareScheduler(layout, cheap).rewrite(ids)
    assert shared.tokens.tolist() == [56, 45] and shared.activated.tolist() == [1, 2]
    assert shared.cost_ns(cheap) == 66
    whole = TokenAwareScheduler(layout, dear).rewrite(ids)
    assert whole.tokens.tolist() == [100, 1] and whole.activated.tolist() == [1, 1]


@pytest.mark.parametrize(("tokens", "gain"), [(64, 0.999), (4096, 1.04)])
def test_no_worse_than_counting_experts_and_better_at_large_batches(
    tokens: int, gain: float
) -> None:
    rng = np.random.default_rng(0)
    popularity = rng.normal(0, 1.5, 256)
    layout = initial_placement(1, 256, 16, 64).layer_layout(0)
    cost = LayerCost(expert_ns=10_000, token_ns=150)
    ratios = []
    for _ in range(5):
        noise = rng.gumbel(size=(tokens, 256))
        ids = np.argsort(-(popularity + noise), axis=1)[:, :8].astype(np.int32)
        exact = counted(ids, Scheduler(layout).rewrite(ids).labels)
        by_instance = [0] * 16
        for (_, instance), count in exact.items():
            by_instance[instance] += cost.expert_ns + cost.token_ns * count
        ratios.append(
            max(by_instance) / TokenAwareScheduler(layout, cost).rewrite(ids).cost_ns(cost)
        )
    assert min(ratios) >= 1 - 1e-9 and np.mean(ratios) > gain


def test_bad_costs_and_ids_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"token_ns must be whole nanoseconds .* got -1"):
        LayerCost(expert_ns=1, token_ns=-1)
    layout = LayerLayout(np.array([[0]]), 1)
    scheduler = TokenAwareScheduler(layout, LayerCost(expert_ns=1, token_ns=1))
    with pytest.raises(ValueError, match="expert id 1 of token 0 is out of range"):
        scheduler.rewrite(np.array([[1]], np.int32))
