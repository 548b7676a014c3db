"""Claims about a membership: ids are permanent, ranks are positions, pools are never empty."""

from __future__ import annotations

import pytest

from janus_moe.errors import ConfigError
from janus_moe.spec import InstanceId, Membership, PoolShape


def attention(*numbers: int) -> tuple[InstanceId, ...]:
    return tuple(InstanceId(pool="attention", number=number) for number in numbers)


def expert(*numbers: int) -> tuple[InstanceId, ...]:
    return tuple(InstanceId(pool="expert", number=number) for number in numbers)


def membership(
    attention_ids: tuple[InstanceId, ...], expert_ids: tuple[InstanceId, ...]
) -> Membership:
    return Membership(
        generation=1,
        attention=attention_ids,
        expert=expert_ids,
        attention_hosts=tuple(range(len(attention_ids))),
        expert_hosts=tuple(10 + rank for rank in range(len(expert_ids))),
    )


def test_a_rank_is_a_position_and_not_the_number_of_an_id() -> None:
    members = membership(attention(7), expert(2, 9, 4))
    assert [members.rank(instance) for instance in expert(2, 9, 4)] == [0, 1, 2]
    assert members.rank(*attention(7)) == 0
    assert members.host_of(*expert(4)) == 12
    assert members.shape == PoolShape(attention=1, expert=3)
    assert [str(instance) for instance in members.instances] == [
        *("attention 7", "expert 2", "expert 9", "expert 4")
    ]


def test_an_instance_that_is_no_member_has_no_rank() -> None:
    members = membership(attention(7), expert(2))
    for stranger in (*attention(2), *expert(7)):
        with pytest.raises(ValueError, match="is no member of generation 1"):
            members.rank(stranger)


def test_the_first_membership_counts_from_zero() -> None:
    members = Membership.first(PoolShape(attention=2, expert=1))
    assert members.instances == (*attention(0, 1), *expert(0))
    assert (members.generation, members.placement_epoch) == (0, 0)


@pytest.mark.parametrize(
    ("attention_ids", "expert_ids", "message"),
    [
        (attention(), expert(0), "attention"),
        (attention(0), expert(), "expert"),
        (attention(1, 1), expert(0), "attention 1, attention 1"),
        (expert(1), expert(0), "not a pool of attention instances: expert 1"),
    ],
)
def test_what_is_no_membership_is_refused(
    attention_ids: tuple[InstanceId, ...], expert_ids: tuple[InstanceId, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        membership(attention_ids, expert_ids)


def test_every_member_has_a_host() -> None:
    with pytest.raises(ConfigError, match="1 expert instances on 2 hosts"):
        Membership(
            generation=0,
            attention=attention(0),
            expert=expert(0),
            attention_hosts=(0,),
            expert_hosts=(0, 1),
        )
