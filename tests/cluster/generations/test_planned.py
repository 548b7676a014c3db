"""Claims about planned changes: what they do when, and that before commit nothing is lost."""

from __future__ import annotations

import pytest
from tests.cluster.generations.obedient import Obedient, attention, expert

from janus_moe.cluster.generations import actions as do
from janus_moe.cluster.generations import events as on
from janus_moe.errors import ConflictError, RequestError


def test_growth_starts_opens_and_commits() -> None:
    service = Obedient(1, 1)
    service.scale(2, 3)
    assert service.asked(do.StartInstance) == [
        do.StartInstance(i) for i in (attention(1), expert(1), expert(2))
    ]
    (opened,) = service.asked(do.OpenAtMembers)
    assert opened.membership.attention == (attention(0), attention(1))
    assert opened.membership.expert == (expert(0), expert(1), expert(2))
    (committed,) = service.asked(do.CommitAtMembers)
    assert committed == do.CommitAtMembers(1, False, opened.membership.instances)
    (report,) = service.reports()
    assert (report.kind, report.outcome, report.before, report.after) == (
        ("scale", "completed", "1A1E", "2A3E")
    )
    assert service.status.phase == "serving" and not service.status.degraded


@pytest.mark.parametrize("late", [attention(0), expert(0), expert(1)])
def test_commit_is_not_sent_before_every_member_has_opened(late: object) -> None:
    service = Obedient(1, 1)
    service.unanswered = {do.OpenAtMembers}
    service.scale(1, 2)
    members = (attention(0), expert(0), expert(1))
    for instance in members:
        if instance != late:
            service.tell(on.MemberOpened(instance, 1))
    assert not service.asked(do.CommitAtMembers)
    assert service.status.progress == f"2 of 3 opened generation 1; waiting for {late}"
    service.tell(on.MemberOpened(next(i for i in members if i == late), 1))
    assert service.asked(do.CommitAtMembers)


def test_the_youngest_leave_after_draining_and_stop_once_all_have_committed() -> None:
    service = Obedient(3, 3)
    service.silent = {expert(0)}
    service.tell(on.ScaleRequested(1, 2, 7.0))
    assert service.asked(do.DrainInstance) == [
        do.DrainInstance(attention(2), 7.0),
        do.DrainInstance(attention(1), 7.0),
    ]
    service.tell(on.MemberOpened(expert(0), 1))
    (committed,) = service.asked(do.CommitAtMembers)
    assert committed.members[-3:] == (attention(2), attention(1), expert(2))
    assert not service.asked(do.StopInstance)
    service.tell(on.MemberCommitted(expert(0), 1))
    stopped = {action.instance for action in service.asked(do.StopInstance)}
    assert stopped == {attention(1), attention(2), expert(2)}
    readmitted = [action.instance for action in service.asked(do.ReadmitRequests)]
    assert readmitted == [attention(2), attention(1)]


def test_requests_that_take_longer_than_the_drain_timeout_move() -> None:
    service = Obedient(2, 1)
    service.unanswered = {do.DrainInstance}
    service.scale(1, 1, drain_timeout_s=5.0)
    assert service.status.progress == "waiting for the requests of attention 1"
    assert not service.asked(do.OpenAtMembers)
    service.fire("drain")
    assert service.now_s == 5.0
    assert service.asked(do.ReadmitRequests) == [do.ReadmitRequests(attention(1))]
    assert service.reports()[0].outcome == "completed"


def test_an_instance_is_replaced_by_another_one() -> None:
    service = Obedient(2, 2)
    service.tell(on.ReplaceRequested(expert(0), 1.0))
    assert service.status.expert == (expert(1), expert(2))
    assert service.asked(do.StopInstance) == [do.StopInstance(expert(0))]


def test_the_only_attention_instance_is_replaced_without_refusing_it_requests() -> None:
    service = Obedient(1, 1)
    service.tell(on.ReplaceRequested(attention(0), 1.0))
    assert not service.asked(do.DrainInstance)
    assert service.status.attention == (attention(1),)
    assert service.asked(do.ReadmitRequests) == [do.ReadmitRequests(attention(0))]


def test_a_number_is_larger_than_those_of_epochs() -> None:
    service = Obedient(1, 1)
    service.last_epoch = 41
    service.scale(1, 2)
    (opened,) = service.asked(do.OpenAtMembers)
    assert opened.membership.generation == opened.placement.epoch == 42
    assert service.asked(do.AllowRebalancing) == [do.AllowRebalancing(42)]


def test_numbers_of_generations_that_were_dropped_are_not_used_again() -> None:
    service = Obedient(1, 1)
    service.silent = {expert(0)}
    service.scale(1, 2)
    service.tell(on.AbortRequested())
    service.silent = set()
    service.scale(1, 2)
    assert [o.membership.generation for o in service.asked(do.OpenAtMembers)] == [1, 2]
    assert service.asked(do.ServeGeneration)[-1].retired == (0,)


def test_a_rebalance_may_finish_then_it_is_dropped_then_the_change_fails() -> None:
    service = Obedient(1, 1)
    service.unanswered = {do.StopRebalancing}
    service.scale(1, 2)
    assert service.asked(do.StopRebalancing) == [do.StopRebalancing(False)]
    service.fire("rebalancing")
    assert service.asked(do.StopRebalancing)[1:] == [do.StopRebalancing(True)]
    service.fire("rebalancing")
    assert service.reports()[0].outcome == "failed"
    assert "rebalance" in service.reports()[0].reason
    assert not service.asked(do.OpenAtMembers)
    assert service.asked(do.AllowRebalancing)


def test_an_instance_that_does_not_get_ready_fails_the_change_and_is_killed() -> None:
    service = Obedient(1, 1, start_timeout_s=9.0)
    service.silent = {expert(1)}
    service.scale(1, 2)
    assert service.status.progress == "waiting for expert 1 to be ready"
    service.fire("start expert 1")
    assert service.reports()[0].reason == "expert 1 was not ready within 9 s"
    assert service.asked(do.FenceInstance) == [do.FenceInstance(expert(1))]
    assert service.status.target == "1A1E" and service.status.generation == 0


@pytest.mark.parametrize("late", [expert(0), expert(1)])
def test_a_member_that_does_not_open_fails_the_change_and_is_named(late: object) -> None:
    """A new one is killed besides; one that serves goes on."""
    service = Obedient(1, 1)
    service.silent = {i for i in (expert(0), expert(1)) if i == late}
    service.unanswered = {do.StartInstance}
    service.scale(1, 2)
    service.tell(on.InstanceReady(expert(1)))
    service.fire("open")
    assert service.reports()[0].reason == f"{late} had not opened generation 1 within 60 s"
    fenced = {action.instance for action in service.asked(do.FenceInstance)}
    assert fenced == service.silent - {expert(0)}
    assert service.status.expert == (expert(0),) and service.status.phase == "serving"
    assert service.asked(do.DropAtMembers)[0].generation == 1


def test_a_refusal_drops_the_generation_and_the_next_change_works() -> None:
    service = Obedient(1, 2)
    service.unanswered = {do.OpenAtMembers}
    service.scale(1, 3)
    service.tell(on.MemberRefused(expert(1), 1, "no memory"))
    assert service.reports()[0].reason == "expert 1 in generation 1: no memory"
    assert service.status.last_error == "expert 1 in generation 1: no memory"
    assert service.asked(do.StopInstance) == [do.StopInstance(expert(2))]
    service.unanswered = set()
    service.scale(1, 3)
    assert service.status.expert == (expert(0), expert(1), expert(3))


def test_a_commit_that_takes_too_long_is_made_by_dropping_all_steps() -> None:
    service = Obedient(2, 1)
    service.silent = {attention(0)}
    service.unanswered = {do.OpenAtMembers}
    service.scale(2, 2)
    for instance in (attention(0), attention(1), expert(0), expert(1)):
        service.tell(on.MemberOpened(instance, 1))
    service.silent, service.unanswered = set(), set()
    service.fire("commit")
    first, second = service.asked(do.CommitAtMembers)
    assert (first.abandon, second.abandon) == (False, True)
    assert first.members == second.members
    assert not service.asked(do.FenceInstance)
    assert [r.outcome for r in service.reports()] == ["completed", "completed"]
    assert service.reports()[0].reason == "attention 0 had not committed generation 1 within 30 s"


def test_one_that_leaves_and_is_late_is_killed_and_its_requests_do_not_wait_for_that() -> None:
    service = Obedient(2, 1)
    service.silent = {attention(1)}
    service.scale(1, 1)
    service.fire("drain")
    assert service.status.phase == "committing"
    service.unanswered = {do.FenceInstance}
    told = service.fire("commit")
    assert do.FenceInstance(attention(1)) in told and do.ReadmitRequests(attention(1)) in told
    assert service.reports()[0].outcome == "completed"
    assert len(service.asked(do.CommitAtMembers)) == 1


@pytest.mark.parametrize("phase", ["starting", "draining", "stopping rebalancing", "opening"])
def test_a_change_can_be_aborted_in_every_phase_before_commit(phase: str) -> None:
    service = Obedient(3, 1)
    held = {
        "starting": do.StartInstance,
        "draining": do.DrainInstance,
        "stopping rebalancing": do.StopRebalancing,
        "opening": do.OpenAtMembers,
    }
    service.unanswered = {held[phase]}
    service.scale(1, 2)
    assert service.status.phase == phase
    told = service.tell(on.AbortRequested())
    assert service.status.phase == "serving" and service.status.target == "3A1E"
    assert service.reports()[0].outcome == "aborted"
    drained = {action.instance for action in service.asked(do.DrainInstance)}
    assert {a.instance for a in told if isinstance(a, do.CancelDrain)} == drained
    assert service.asked(do.StopInstance) == [do.StopInstance(expert(1))]
    assert not service.asked(do.CommitAtMembers)
    service.unanswered = set()
    service.scale(2, 1)
    assert service.status.attention == (attention(0), attention(1))


def test_after_commit_there_is_no_way_back_and_the_refusal_says_so() -> None:
    service = Obedient(1, 1)
    service.unanswered = {do.CommitAtMembers}
    service.scale(1, 2)
    with pytest.raises(ConflictError, match="phase committing"):
        service.tell(on.AbortRequested())
    with pytest.raises(ConflictError, match=r"\(scale\) is under way \(phase committing\)"):
        service.scale(1, 1)


def test_without_a_change_there_is_nothing_to_abort() -> None:
    with pytest.raises(ConflictError, match="no change under way"):
        Obedient(1, 1).tell(on.AbortRequested())


@pytest.mark.parametrize(
    ("sizes", "field"), [((0, 1), "attention_instances"), ((1, 5), "expert_instances")]
)
def test_sizes_out_of_bounds_are_refused_with_the_bounds(
    sizes: tuple[int, int], field: str
) -> None:
    service = Obedient(1, 1)
    with pytest.raises(RequestError, match="between 1 and 4") as refusal:
        service.scale(*sizes)
    assert refusal.value.param == field
    assert not service.actions


def test_a_replacement_of_one_that_is_no_member_is_refused() -> None:
    with pytest.raises(RequestError, match="attention 0, expert 0"):
        Obedient(1, 1).tell(on.ReplaceRequested(expert(7), 1.0))


def test_impossible_sizes_are_refused_before_anything_is_started() -> None:
    service = Obedient(1, 2, slots=2)
    with pytest.raises(ConflictError, match="3A1E is impossible: 1 x 2 slots are too few"):
        service.scale(3, 1)
    assert not service.actions


def test_the_sizes_that_are_there_need_no_generation() -> None:
    service = Obedient(2, 2)
    service.scale(2, 2)
    assert service.reports()[0].outcome == "completed"
    assert not service.asked(do.OpenAtMembers)


def test_a_degraded_service_can_be_told_to_stay_as_small_as_it_is() -> None:
    service = Obedient(1, 2, max_restarts=0)
    service.die(expert(1))
    assert service.status.degraded
    service.scale(1, 1)
    assert not service.status.degraded and service.status.target == "1A1E"
    assert len(service.asked(do.OpenAtMembers)) == 1


def test_a_late_word_about_a_dropped_generation_changes_nothing() -> None:
    service = Obedient(1, 1)
    service.unanswered = {do.OpenAtMembers}
    service.scale(1, 2)
    service.tell(on.AbortRequested())
    before = service.status
    for event in (
        on.MemberOpened(expert(0), 1),
        on.MemberRefused(expert(0), 1, "late"),
        on.MemberCommitted(expert(0), 1),
        on.TimerFired("open"),
        on.InstanceReady(expert(9)),
        on.InstanceDied(expert(9), "unknown"),
    ):
        assert not service.tell(event)
    assert service.status == before
