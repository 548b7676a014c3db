"""Claims about capacity: lost instances come back within the budget, and standbys are kept."""

from __future__ import annotations

import pytest
from tests.cluster.generations.obedient import Obedient, attention, expert

from janus_moe.cluster.generations import actions as do
from janus_moe.cluster.generations import events as on
from janus_moe.cluster.generations.restarts import RestartBudget, backoff_s


def test_a_lost_instance_is_started_again_and_taken_in_by_a_planned_change() -> None:
    service = Obedient(2, 2)
    service.die(expert(0))
    assert service.asked(do.StartInstance) == [do.StartInstance(expert(2))]
    assert service.status.expert == (expert(1), expert(2))
    assert [(r.kind, r.before, r.after) for r in service.reports()] == [
        ("fault", "2A2E", "2A1E"),
        ("restore", "2A1E", "2A2E"),
    ]
    assert not service.status.degraded and service.status.restarts_left == 9


def test_beyond_the_budget_the_service_goes_on_degraded_and_says_so() -> None:
    service = Obedient(1, 3, max_restarts=1)
    service.die(expert(0))
    service.die(expert(1))
    assert service.status.expert == (expert(2), expert(3))
    assert service.status.phase == "serving"
    assert service.status.degraded == (
        "2 of 3 expert instances; 1 restarts within the hour are used up (--max-restarts)"
    )
    service.fire("restart")
    assert service.now_s == pytest.approx(3600.0)
    later = service.status
    assert later.expert == (expert(2), expert(3), expert(4)) and not later.degraded


def test_instances_that_keep_failing_are_started_ever_more_slowly() -> None:
    service = Obedient(1, 2)
    service.unanswered = {do.StartInstance}
    service.die(expert(0))
    waits = []
    for number in (2, 3, 4, 5):
        assert service.asked(do.StartInstance)[-1] == do.StartInstance(expert(number))
        service.die(expert(number))
        before_s = service.now_s
        service.fire("restart")
        waits.append(service.now_s - before_s)
    assert waits == [1.0, 2.0, 4.0, 8.0]


def test_standbys_are_started_at_first_and_are_no_members() -> None:
    service = Obedient(1, 1, standby_attention=1, standby_experts=2, max_restarts=0)
    assert service.status.standby == (attention(1), expert(1), expert(2))
    assert service.status.attention == (attention(0),)
    assert not service.asked(do.OpenAtMembers)


def test_a_standby_that_was_taken_in_is_replaced_within_the_budget() -> None:
    service = Obedient(1, 2, standby_experts=1, max_restarts=1)
    service.die(expert(0))
    assert service.status.expert == (expert(1), expert(2))
    assert service.status.standby == (expert(3),)
    assert service.status.restarts_left == 0
    service.die(expert(1))
    assert service.status.expert == (expert(2), expert(3)) and not service.status.standby


def test_growth_takes_standbys_and_their_replacements_cost_no_restart() -> None:
    service = Obedient(1, 1, standby_experts=1, max_restarts=0)
    service.scale(1, 2)
    assert service.status.expert == (expert(0), expert(1))
    assert service.status.standby == (expert(2),)


def test_a_lost_standby_disturbs_nobody() -> None:
    service = Obedient(1, 1, standby_experts=1)
    service.hang(expert(1))
    assert service.asked(do.FenceInstance) == [do.FenceInstance(expert(1))]
    assert not service.asked(do.OpenAtMembers) and service.status.standby == (expert(2),)


def test_an_instance_that_does_not_leave_is_killed() -> None:
    service = Obedient(1, 2, stop_timeout_s=3.0)
    service.unanswered = {do.StopInstance}
    service.scale(1, 1)
    assert service.reports()[0].outcome == "completed"
    service.fire("stop expert 1")
    assert service.asked(do.FenceInstance) == [do.FenceInstance(expert(1))]
    assert len(service.reports()) == 1 and not service.status.degraded


def test_a_restoration_that_fails_is_tried_again_ever_more_slowly() -> None:
    service = Obedient(1, 2)
    service.silent = {expert(1)}
    service.unanswered = {do.OpenAtMembers}
    service.die(expert(0))
    for instance in (attention(0), expert(1)):
        service.tell(on.MemberOpened(instance, 1))
    service.tell(on.MemberCommitted(expert(1), 1))
    waits = []
    for generation in (2, 3, 4):
        assert service.status.kind == "restore"
        service.tell(on.MemberRefused(expert(1), generation, "busy"))
        before_s = service.now_s
        service.fire("retry")
        waits.append(service.now_s - before_s)
    assert waits == [1.0, 2.0, 4.0]
    assert service.status.expert == (expert(1),) and not service.asked(do.FenceInstance)


def test_pauses_double_up_to_a_minute() -> None:
    assert [backoff_s(n) for n in (0, 1, 2, 3, 7, 8, 10_000)] == [0, 1, 2, 4, 64, 64, 64]


def test_restarts_count_within_the_last_hour_only() -> None:
    budget = RestartBudget(2)
    for now_s in (0.0, 100.0):
        budget.lose("expert", now_s, before_ready=False)
        assert budget.due_s("expert", 1, now_s) <= now_s
        budget.start("expert", 1, now_s)
    budget.lose("expert", 200.0, before_ready=False)
    assert budget.left(200.0) == 0
    assert budget.due_s("expert", 1, 200.0) == 3600.0
    assert budget.left(3600.0) == 1 and budget.left(3700.0) == 2


def test_what_was_never_lost_is_started_whatever_the_budget() -> None:
    budget = RestartBudget(0)
    assert budget.due_s("expert", 1, 5.0) == 5.0
    budget.lose("expert", 5.0, before_ready=False)
    assert budget.due_s("expert", 2, 5.0) == 5.0
    budget.start("expert", 2, 5.0)
    assert budget.due_s("expert", 1, 5.0) == float("inf")
