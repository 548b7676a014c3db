"""Claims about what is loaded when other instances follow, from where, and what is held then."""

from __future__ import annotations

from tests.policy.test_adaptation import ids

from janus_moe.policy.placement import (
    Placement,
    Transfer,
    initial_placement,
    slots_meanwhile,
    transfers,
)

OLD = Placement(epoch=0, num_experts=4, slots=(((0, 1), (1, 2), (3,)), ((0, 1), (2,), (3,))))
NEW = Placement(epoch=1, num_experts=4, slots=(((0, 3), (1, 2)), ((0, 1), (2, 3))))


def test_only_what_is_lacking_is_loaded_from_those_that_live_or_else_from_the_checkpoint() -> None:
    zero, one, two, nine = ids(0, 1, 2, 9)
    found = transfers(OLD, (zero, one, two), NEW, (zero, nine), alive={zero, one})
    assert found == [
        Transfer(0, 3, zero, None),  # only 2 had it, which is gone
        Transfer(0, 1, nine, zero),
        Transfer(0, 2, nine, one),
        Transfer(1, 2, nine, one),
        Transfer(1, 3, nine, None),
    ]
    assert transfers(OLD, (zero, one, two), OLD, (zero, one, two), ids(0, 1, 2)) == []


def test_instances_that_hold_the_same_are_asked_in_turn() -> None:
    everywhere = Placement(epoch=0, num_experts=6, slots=((tuple(range(6)),) * 3,))
    more = Placement(epoch=1, num_experts=6, slots=((tuple(range(6)),) * 4,))
    found = transfers(everywhere, ids(0, 1, 2), more, ids(0, 1, 2, 3), ids(0, 1, 2))
    assert [transfer.source for transfer in found] == [*ids(0, 1, 2)] * 2


def test_while_one_follows_the_other_an_instance_holds_both() -> None:
    held = slots_meanwhile(OLD, ids(0, 1, 2), NEW, ids(0, 9))
    assert held == dict(zip(ids(0, 1, 2, 9), (5, 3, 2, 4), strict=True))
    four, two = initial_placement(3, 12, 4), initial_placement(3, 12, 2)
    assert max(slots_meanwhile(four, ids(0, 1, 2, 3), two, ids(0, 1)).values()) <= 3 * 9
