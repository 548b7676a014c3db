"""Estimates of a_max: exact where it can be computed by hand, near Monte Carlo elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

from janus_moe.errors import ConfigError
from janus_moe.policy.activation import LayerLayout
from janus_moe.policy.estimate import MaxActivatedTable, closed_form, monte_carlo, paper_bound
from janus_moe.policy.placement import initial_placement
from janus_moe.policy.synthetic import SyntheticKind, SyntheticRouter


def measured(router: SyntheticRouter, batch_size: int, samples: int = 200) -> np.ndarray:
    rng = np.random.default_rng(9)
    active = np.zeros(router.num_experts)
    for _ in range(samples):
        active[np.unique(router.batch(batch_size, rng))] += 1
    return active / samples


def test_closed_form_of_cases_known_by_hand() -> None:
    alone = LayerLayout(np.array([[0], [0], [0]]), 1)
    assert closed_form(alone, [0.5, 0.25, 1.0]) == pytest.approx(1.75)
    apart = LayerLayout(np.array([[0], [1]]), 2)
    assert closed_form(apart, [0.5, 0.5]) == pytest.approx(0.75)
    assert closed_form(alone, [0.0, 0.0, 0.0]) == 0
    both = LayerLayout(np.array([[0, 1], [0, 1]]), 2)
    assert closed_form(both, [0.5, 0.5]) == pytest.approx(0.75)
    assert closed_form(both, [1.0, 1.0]) == pytest.approx(1.0)


@pytest.mark.parametrize("kind", ["uniform", "topics"])
@pytest.mark.parametrize(("instances", "redundant"), [(8, 0), (16, 0), (8, 40), (16, 64)])
def test_closed_form_is_near_monte_carlo(
    kind: SyntheticKind, instances: int, redundant: int
) -> None:
    router = SyntheticRouter(kind, 160, 6)
    for batch_size in (16, 64):
        probability = measured(router, batch_size)
        layout = initial_placement(1, 160, instances, redundant, [probability]).layer_layout(0)
        sampled = monte_carlo(router.batch, layout, batch_size, num_samples=100)
        assert closed_form(layout, probability) == pytest.approx(sampled, rel=0.06)
        assert paper_bound(layout, probability) >= sampled


def test_the_papers_bound_is_capped_by_the_slots() -> None:
    layout = initial_placement(1, 32, 4).layer_layout(0)
    assert paper_bound(layout, np.ones(32)) == 9
    assert paper_bound(layout, np.full(32, 0.01)) == 2


def test_monte_carlo_repeats_itself_and_follows_the_policy() -> None:
    router = SyntheticRouter("bursty", 64, 4)
    layout = initial_placement(1, 64, 8, 16).layer_layout(0)
    exact = monte_carlo(router.batch, layout, 32)
    assert exact == monte_carlo(router.batch, layout, 32)
    assert exact < monte_carlo(router.batch, layout, 32, "token-split")


def test_the_table_interpolates_and_holds_at_its_ends() -> None:
    router = SyntheticRouter("uniform", 64, 4)
    layouts = {n: initial_placement(1, 64, n, 16).layer_layout(0) for n in (4, 8)}
    table = MaxActivatedTable.sampled(router.batch, layouts, [64, 1, 16], num_samples=20)
    assert table.batch_sizes == (1, 16, 64)
    assert 1 <= table.max_activated(4, 1) == table.max_activated(4, 0.5) < 2.5
    assert table.max_activated(4, 64) == table.values[4][2] == table.max_activated(4, 1000)
    assert table.max_activated(4, 32) == pytest.approx(
        (table.max_activated(4, 16) + table.max_activated(4, 64)) / 2
    )
    assert table.max_activated(4, 64) > table.max_activated(8, 64)


def test_bad_questions_are_refused() -> None:
    layout = initial_placement(1, 4, 2).layer_layout(0)
    table = MaxActivatedTable(batch_sizes=(1,), values={2: (1.0,)})
    with pytest.raises(ConfigError, match=r"no a_max for 3 .* has \[2\]"):
        table.max_activated(3, 1)
    with pytest.raises(ConfigError, match="more than 0 tokens, got 0"):
        table.max_activated(2, 0)
    with pytest.raises(ConfigError, match=r"4 numbers from 0 to 1, got shape \(3,\)"):
        closed_form(layout, [0.1] * 3)
    with pytest.raises(ConfigError, match="1 or more"):
        MaxActivatedTable.sampled(lambda b, rng: np.zeros((b, 1), np.int32), {}, [0])
