"""Claims about what is proposed: it suits the load, and is called worthwhile only when it is."""

from __future__ import annotations

import numpy as np
import pytest

from janus_moe.errors import ConfigError, ConflictError
from janus_moe.policy.placement import Placement, initial_placement
from janus_moe.policy.rebalancing import ObservedRouting, expected_busiest, propose, requested


def observed(hot: list[int], num_experts: int = 16, num_layers: int = 2) -> ObservedRouting:
    """Batches of 8 tokens, two experts each, nearly always hot ones."""
    share = np.full(num_experts, 0.02)
    share[hot] = 0.3
    tokens = np.tile(np.rint(8000 * share).astype(np.int64), (num_layers, 1))
    return ObservedRouting(
        num_batches=np.full(num_layers, 1000),
        num_tokens=np.full(num_layers, 8000),
        tokens=tokens,
    )


def test_hot_experts_of_one_instance_are_spread() -> None:
    current = Placement(
        epoch=3, num_experts=16, slots=(((0, 1, 2, 3, 4, 5, 6, 7), tuple(range(8, 16))),) * 2
    )
    proposal = propose(current, [8, 8], observed([0, 1, 2, 3]), "exact")
    assert proposal.target.epoch == 4
    for left, right in proposal.target.slots:
        assert len(left) == len(right) == 8
        assert len({0, 1, 2, 3} & set(left)) == 2
    assert proposal.busiest_then < 0.8 * proposal.busiest_now and proposal.worthwhile


def test_a_good_placement_is_left_alone() -> None:
    statistics = observed([0, 1, 2, 3])
    good = initial_placement(2, 16, 2, 0, statistics.probability())
    proposal = propose(good, [8, 8], statistics, "exact")
    assert not proposal.worthwhile


def test_the_estimate_counts_activated_experts() -> None:
    placement = Placement(epoch=0, num_experts=3, slots=(((0, 1), (2,)),))
    assert expected_busiest(placement, np.array([[1.0, 1.0, 1.0]]), "exact") == 2
    assert expected_busiest(placement, np.array([[0.0, 1.0, 1.0]]), "exact") == 1
    assert expected_busiest(placement, np.array([[0.0, 0.0, 0.0]]), "exact") == 0


def test_without_tokens_nothing_is_proposed() -> None:
    current = initial_placement(2, 16, 2)
    nothing = ObservedRouting(
        num_batches=np.zeros(2, np.int64),
        num_tokens=np.zeros(2, np.int64),
        tokens=np.zeros((2, 16), np.int64),
    )
    with pytest.raises(ConflictError, match="0 tokens seen in MoE layer 0"):
        propose(current, [8, 8], nothing, "exact")


def test_requests_are_checked_against_the_running_service() -> None:
    current = initial_placement(1, 4, 2)
    assert requested([[[3, 2], [0, 1]]], current, [2, 2]).slots == (((3, 2), (0, 1)),)
    for slots, complaint in (
        ([[[3, 2], [0, 1]]] * 2, "of 2 layers on 2 expert instances, .* has 1 on 2"),
        ([[[0, 1], [2], [3]]], "of 1 layers on 3 expert instances, .* has 1 on 2"),
        ([[[0, 1, 2], [3]]], "layer 0 has 3 experts on instance 0, which has 2 slots"),
        ([[[0, 1], [2]]], "1 of 4 experts of layer 0 have no slot"),
        ([], "at least one layer"),
    ):
        with pytest.raises(ConfigError, match=complaint):
            requested(slots, current, [2, 2])
