"""a_max for searches: close to the real scheduler, monotone, and corrected by routing."""

from __future__ import annotations

import numpy as np
import pytest

from janus_moe.errors import ConfigError
from janus_moe.planner.search.activation import (
    BATCH_SIZES,
    CachedActivation,
    MaxActivatedGrid,
    PopularityActivation,
    lognormal,
    uniform,
)
from janus_moe.planner.search.sampled import SampledActivation
from janus_moe.policy.estimate import monte_carlo
from janus_moe.policy.placement import place_experts
from janus_moe.policy.synthetic import SyntheticRouter
from janus_moe.spec import ReplicaPolicy

EXPERTS, TOP_K = 64, 4


def column(batch: int) -> int:
    return BATCH_SIZES.index(batch)


@pytest.mark.parametrize("policy", ["exact", "random", "token-split"])
@pytest.mark.parametrize(("instances", "slots"), [(4, 16), (4, 20), (8, 10), (16, 6)])
def test_uniform_routing_agrees_with_the_scheduler(
    policy: ReplicaPolicy, instances: int, slots: int
) -> None:
    table = uniform(EXPERTS, TOP_K).table(np.array([instances]), np.array([slots]), policy)[0]
    router = SyntheticRouter("uniform", EXPERTS, TOP_K)
    placement = place_experts("janus", np.ones((1, EXPERTS)), [slots] * instances)
    for batch in (8, 32, 128):
        measured = monte_carlo(router.batch, placement.layer_layout(0), batch, policy, 48)
        # `random` draws by a hash of the activated set: where all are active it is one draw
        slack = 0.9 if policy == "random" else 0.4
        assert table[column(batch)] == pytest.approx(measured, rel=0.12, abs=slack)


def test_more_tokens_activate_more_and_more_instances_less() -> None:
    instances = np.arange(4, 33)
    slots = np.ceil(EXPERTS * 1.25 / instances).astype(np.int64)
    for policy in ("exact", "random", "token-split"):
        table = uniform(EXPERTS, TOP_K).table(instances, slots, policy)
        assert (np.diff(table, axis=1) >= -1e-6).all()
        assert (table <= slots[:, None]).all()
        assert (table >= 1 - 1e-9).all()
    exact = uniform(EXPERTS, TOP_K).table(instances, slots, "exact")
    assert (exact <= table + 1e-6).all(), "token-split is never better"


def test_skewed_routing_activates_fewer_experts() -> None:
    pools = np.array([8]), np.array([10])
    even, skewed = uniform(EXPERTS, TOP_K), lognormal(EXPERTS, TOP_K, 1.5)
    assert skewed.chance.sum() == pytest.approx(TOP_K, rel=1e-6)
    here = skewed.table(*pools, "exact")[0, column(64)]
    assert here < even.table(*pools, "exact")[0, column(64)]
    np.testing.assert_allclose(lognormal(EXPERTS, TOP_K, 0).chance, even.chance, rtol=1e-6)


def test_between_sizes_the_logarithm_is_interpolated() -> None:
    values = np.arange(len(BATCH_SIZES), dtype=np.float64)[None]
    found = MaxActivatedGrid(values).at(np.zeros(4, np.int64), np.array([0.5, 1.0, 8.0, 2.0**1.5]))
    np.testing.assert_allclose(found, [0, 0, 3, 1.5])
    assert (
        MaxActivatedGrid(values).at(np.zeros(1, np.int64), np.array([1e9]))[0]
        == len(BATCH_SIZES) - 1
    )


def test_samples_correct_the_approximation_at_every_pool_size() -> None:
    router, rng = SyntheticRouter("topics", EXPERTS, TOP_K, seed=3), np.random.default_rng(2)
    ids = router.batch(2048, rng)
    counts = np.bincount(ids.ravel(), minlength=EXPERTS)[None]
    sampled = SampledActivation("topics", [router.batch], counts, 2048, num_samples=16)
    instances = np.array([4, 6, 8, 12])
    slots = np.ceil(EXPERTS * 1.25 / instances).astype(np.int64)
    table = sampled.table(instances, slots, "exact")
    placed = place_experts("janus", 1 - (1 - counts / 2048) ** 64, [int(slots[1])] * 6)
    measured = monte_carlo(router.batch, placed.layer_layout(0), 64, "exact", 64)
    assert table[1, column(64)] == pytest.approx(measured, rel=0.1)


def test_tables_are_made_once_where_they_are_remembered() -> None:
    calls = []

    class Counting(PopularityActivation):
        def table(self, *arguments):  # type: ignore[no-untyped-def]
            calls.append(arguments)
            return super().table(*arguments)

    source = CachedActivation(Counting("counting", np.full(8, 0.25)))
    for _ in range(3):
        source.table(np.array([2]), np.array([4]), "exact")
    assert len(calls) == 1 and source.num_experts == 8


@pytest.mark.parametrize("chance", [[1.5], [-0.1], []])
def test_chances_must_be_chances(chance: list[float]) -> None:
    with pytest.raises(ConfigError, match="0 to 1"):
        PopularityActivation("wrong", np.array(chance))
