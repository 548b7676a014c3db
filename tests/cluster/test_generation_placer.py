"""Claims about what a new instance builds itself for before it is a member."""

from __future__ import annotations

import pytest

from janus_moe.cluster.generation_placer import AdaptingPlacer, pools_to_join
from janus_moe.cluster.generations import Generation
from janus_moe.policy.placement import Placement
from janus_moe.spec import InstanceId, Membership, Pool, PoolShape

SERVING = Generation(
    Membership.first(PoolShape(attention=1, expert=2)),
    Placement(epoch=0, num_experts=3, slots=(((0, 1), (2,)), ((1,), (0, 2)))),
)
PLACER = AdaptingPlacer(num_slots=3, redundant_experts=0)


def new(pool: Pool, number: int) -> InstanceId:
    return InstanceId(pool=pool, number=number)


def test_a_new_expert_instance_builds_its_share_of_the_pools_that_come() -> None:
    membership, slots = pools_to_join(PLACER, SERVING, (), new("expert", 7))
    assert membership.expert == (*SERVING.membership.expert, new("expert", 7))
    for layer in slots:
        assert sorted(expert for experts in layer for expert in experts) == [0, 1, 2]
        assert len(layer[2]) == 1


@pytest.mark.parametrize("pool", ["attention", "expert"])
def test_an_instance_beyond_what_can_be_placed_builds_what_another_holds(pool: Pool) -> None:
    """Three experts cannot be shared by five instances; one may still stand by."""
    starting = [new("expert", number) for number in range(2, 5)]
    membership, slots = pools_to_join(PLACER, SERVING, starting, new(pool, 9))
    assert new(pool, 9) in membership.instances
    assert all(len(layer) == len(membership.expert) for layer in slots)
    if pool == "expert":
        rank = membership.rank(new(pool, 9))
        assert all(layer[rank] == layer[0] for layer in slots)
