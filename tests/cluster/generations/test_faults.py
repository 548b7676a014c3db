"""Claims about losses: what is fenced, what is opened without it, and what waits for what."""

from __future__ import annotations

import pytest
from tests.cluster.generations.obedient import Obedient, attention, expert

from janus_moe.cluster.generations import actions as do
from janus_moe.cluster.generations import events as on
from janus_moe.errors import ConflictError
from janus_moe.spec import InstanceId


def broken(first: InstanceId, second: InstanceId, generation: int = 0) -> on.LinkBroken:
    return on.LinkBroken(first, second, generation, f"{first} lost {second}")


def test_without_a_dead_instance_a_generation_is_opened_at_once_and_steps_are_dropped() -> None:
    service = Obedient(1, 2, max_restarts=0)
    service.unanswered = {do.StopRebalancing}
    assert service.die(expert(0))[0] == do.StopRebalancing(True)
    told = service.tell(on.RebalancingStopped(0))
    assert isinstance(told[0], do.OpenAtMembers)
    assert told[0].membership.instances == (attention(0), expert(1))
    assert service.placer.asked[-1][1] == "recover"
    assert service.asked(do.CommitAtMembers) == [
        do.CommitAtMembers(1, True, (attention(0), expert(1)))
    ]
    assert not service.asked(do.FenceInstance)


def test_one_that_hangs_is_killed_first_and_the_kill_repeated_until_it_is_confirmed() -> None:
    service = Obedient(1, 2, max_restarts=0, fence_timeout_s=5.0)
    service.unanswered = {do.FenceInstance}
    service.hang(expert(0))
    assert service.status.phase == "fencing"
    assert service.status.progress == "waiting for: expert 0 to be gone"
    service.fire("fence expert 0")
    assert service.asked(do.FenceInstance) == [do.FenceInstance(expert(0))] * 2
    assert "not confirmed" in service.status.last_error
    assert not service.asked(do.OpenAtMembers)
    service.tell(on.InstanceFenced(expert(0)))
    assert service.status.generation == 1


def test_several_losses_are_one_generation() -> None:
    service = Obedient(3, 3, max_restarts=0)
    service.unanswered = {do.FenceInstance}
    lost = (attention(0), expert(1), expert(2))
    for instance in lost:
        service.hang(instance)
    service.unanswered = set()
    for instance in lost:
        service.tell(on.InstanceFenced(instance))
    (opened,) = service.asked(do.OpenAtMembers)
    assert opened.membership.instances == (attention(1), attention(2), expert(0))
    (report,) = service.reports()
    assert report.reason == "attention 0 hangs; expert 1 hangs; expert 2 hangs"
    assert (report.kind, report.outcome) == ("fault", "completed")


def test_requests_of_a_lost_attention_instance_move_after_the_commit_without_it() -> None:
    service = Obedient(2, 1, max_restarts=0)
    service.unanswered = {do.CommitAtMembers}
    service.die(attention(0))
    assert not service.asked(do.ReadmitRequests)
    for instance in (attention(1), expert(0)):
        service.tell(on.MemberCommitted(instance, 1))
    assert service.actions.index(do.ReadmitRequests(attention(0))) > service.actions.index(
        service.asked(do.ServeGeneration)[0]
    )


def test_the_last_attention_instance_is_waited_for_and_requests_are_refused_meanwhile() -> None:
    service = Obedient(1, 2, recovery_timeout_s=30.0, retry_after_s=4.0)
    service.unanswered = {do.StartInstance}
    service.die(attention(0))
    assert service.status.phase == "waiting"
    assert service.status.progress == "waiting for: no attention instance is alive"
    service.fire("recovery")
    (refusal,) = service.asked(do.RefuseRequests)
    assert refusal.retry_after_s == 4.0 and "attention 0 died" in refusal.reason
    assert service.now_s == 30.0 and service.status.refuses_requests
    service.tell(on.InstanceReady(attention(1)))
    assert service.asked(do.AcceptRequests) and service.status.attention == (attention(1),)
    assert service.asked(do.ReadmitRequests) == [do.ReadmitRequests(attention(0))]


def test_experts_without_a_place_wait_for_a_new_instance() -> None:
    service = Obedient(1, 2, slots=2)
    service.unanswered = {do.StartInstance}
    service.die(expert(0))
    assert service.status.progress == "waiting for: 1 x 2 slots are too few"
    service.tell(on.InstanceReady(expert(2)))
    assert service.status.expert == (expert(1), expert(2))
    (report,) = service.reports()
    assert report.kind == "fault" and report.after == "1A2E"


def test_an_instance_that_stands_by_comes_in_after_the_survivors_have_gone_on() -> None:
    service = Obedient(1, 2, standby_experts=1, max_restarts=0)
    service.die(expert(0))
    first, second = service.asked(do.OpenAtMembers)
    assert first.membership.expert == (expert(1),)
    assert second.membership.expert == (expert(1), expert(2))
    assert [(c.abandon) for c in service.asked(do.CommitAtMembers)] == [True, False]
    assert [r.kind for r in service.reports()] == ["fault", "restore"]


def test_an_instance_that_stands_by_comes_in_at_once_when_it_is_needed() -> None:
    service = Obedient(1, 2, standby_attention=1)
    service.die(attention(0))
    (opened,) = service.asked(do.OpenAtMembers)
    assert opened.membership.attention == (attention(1),)


@pytest.mark.parametrize("phase", ["starting", "draining", "stopping rebalancing", "opening"])
def test_the_loss_of_a_member_ends_a_change_before_commit(phase: str) -> None:
    """What was opened is dropped, what was drained serves again, and recovery comes at once."""
    service = Obedient(3, 2, max_restarts=0)
    held = {
        "starting": do.StartInstance,
        "draining": do.DrainInstance,
        "stopping rebalancing": do.StopRebalancing,
        "opening": do.OpenAtMembers,
    }
    service.unanswered = {held[phase]}
    service.scale(2, 3)
    assert service.status.phase == phase
    service.unanswered = set()
    service.die(expert(0))
    scale, fault = service.reports()[:2]
    assert (scale.outcome, scale.reason) == ("failed", "expert 0 died")
    assert (fault.kind, fault.outcome) == ("fault", "completed")
    dropped = [action.generation for action in service.asked(do.DropAtMembers)]
    assert dropped == ([1] if phase == "opening" else [])
    drained = [action.instance for action in service.asked(do.DrainInstance)]
    assert [action.instance for action in service.asked(do.CancelDrain)] == drained
    assert set(service.status.attention) == {attention(0), attention(1), attention(2)}
    assert service.status.target == "3A2E"


def test_the_loss_of_a_new_instance_drops_the_change_and_disturbs_nobody() -> None:
    service = Obedient(1, 1)
    service.unanswered = {do.OpenAtMembers}
    service.scale(1, 2)
    told = service.die(expert(1))
    assert do.DropAtMembers(1, (attention(0), expert(0))) in told
    assert [r.outcome for r in service.reports()] == ["failed"]
    assert not service.asked(do.CommitAtMembers) and service.status.phase == "serving"


@pytest.mark.parametrize("lost", [attention(0), expert(0), attention(1), expert(1)])
def test_a_loss_after_commit_leads_to_the_next_generation(lost: InstanceId) -> None:
    service = Obedient(2, 2, max_restarts=0)
    service.unanswered = {do.CommitAtMembers}
    service.scale(3, 3)
    service.unanswered = set()
    service.die(lost)
    first, second = service.asked(do.CommitAtMembers)
    assert second.generation > first.generation and second.abandon
    assert set(second.members) == set(first.members) - {lost}
    assert not service.asked(do.DropAtMembers)
    assert [(r.kind, r.outcome) for r in service.reports()] == [
        ("scale", "completed"),
        ("fault", "completed"),
    ]
    assert service.status.target == "3A3E"
    assert service.asked(do.ServeGeneration)[0].retired == (0, first.generation)


@pytest.mark.parametrize("lost", [attention(1), expert(1)])
def test_the_loss_of_one_that_leaves_matters_while_others_may_wait_for_it(
    lost: InstanceId,
) -> None:
    """All steps are dropped then; the other ones that leave are killed."""
    service = Obedient(2, 2, max_restarts=0)
    service.unanswered = {do.CommitAtMembers}
    service.scale(1, 1)
    service.unanswered = set()
    service.die(lost)
    second = service.asked(do.CommitAtMembers)[1]
    assert second == do.CommitAtMembers(2, True, (attention(0), expert(0)))
    leaving = {attention(1), expert(1)}
    assert {a.instance for a in service.asked(do.FenceInstance)} == leaving - {lost}
    assert service.asked(do.ReadmitRequests) == [do.ReadmitRequests(attention(1))]


def test_the_loss_of_one_that_leaves_does_not_matter_once_the_others_have_left() -> None:
    service = Obedient(2, 1)
    service.silent = {attention(1)}
    service.scale(1, 1)
    service.fire("drain")
    service.die(attention(1))
    assert len(service.asked(do.CommitAtMembers)) == 1
    assert service.asked(do.ReadmitRequests) == [do.ReadmitRequests(attention(1))]


def test_one_that_was_about_to_leave_stays_when_it_is_needed() -> None:
    service = Obedient(1, 2, max_restarts=0)
    service.unanswered = {do.CommitAtMembers}
    service.scale(1, 1)
    service.unanswered = set()
    service.die(expert(0))
    assert service.status.expert == (expert(1),)
    assert not service.asked(do.FenceInstance)


def test_a_fault_while_lost_capacity_comes_back_costs_it_no_pause() -> None:
    service = Obedient(1, 3)
    service.unanswered = {do.StartInstance, do.OpenAtMembers}
    service.die(expert(0))
    for instance in (attention(0), expert(1), expert(2)):
        service.tell(on.MemberOpened(instance, 1))
    service.tell(on.InstanceReady(expert(3)))
    assert service.status.kind == "restore"
    service.unanswered = {do.StartInstance}
    service.die(expert(1))
    assert service.status.expert == (expert(2), expert(3))
    assert "retry" not in service.timers


def test_a_rebalance_under_way_is_dropped_for_recovery() -> None:
    service = Obedient(1, 2, max_restarts=0)
    service.unanswered = {do.StopRebalancing}
    service.scale(1, 3)
    service.die(expert(0))
    assert service.asked(do.StopRebalancing) == [
        do.StopRebalancing(False),
        do.StopRebalancing(True),
    ]
    assert service.status.progress == "waiting for: the rebalance to be dropped"
    service.tell(on.RebalancingStopped(5))
    assert service.asked(do.OpenAtMembers)[0].membership.generation == 6


def test_during_recovery_requests_for_changes_are_refused_with_the_phase() -> None:
    service = Obedient(1, 1)
    service.unanswered = {do.StartInstance}
    service.die(expert(0))
    with pytest.raises(ConflictError, match=r"\(fault\) is under way \(phase waiting\)"):
        service.scale(1, 2)
    with pytest.raises(ConflictError, match="recovery from a fault cannot be aborted"):
        service.tell(on.AbortRequested())


def test_an_operator_ends_a_recovery_that_no_restart_is_left_for() -> None:
    service = Obedient(1, 1, max_restarts=0)
    service.die(expert(0))
    assert not service.asked(do.StartInstance) and service.status.phase == "waiting"
    with pytest.raises(ConflictError, match="ask for 1A1E to start what is missing"):
        service.scale(2, 1)
    service.scale(1, 1)
    assert service.status.expert == (expert(1),)
    assert [(r.kind, r.outcome) for r in service.reports()] == [
        ("scale", "completed"),
        ("fault", "completed"),
    ]


def test_a_member_that_cannot_open_is_tried_again_and_then_replaced() -> None:
    service = Obedient(1, 3, max_restarts=0)
    service.silent = {expert(1)}
    service.die(expert(0))
    for generation in (1, 2):
        service.tell(on.MemberRefused(expert(1), generation, "out of descriptors"))
        assert service.status.phase == "waiting"
        service.fire("retry")
    service.tell(on.MemberRefused(expert(1), 3, "out of descriptors"))
    service.fire("retry")
    assert service.status.expert == (expert(2),)
    assert service.asked(do.FenceInstance) == [do.FenceInstance(expert(1))]
    assert "kept 3 generations from being opened" in service.status.last_error


def test_a_member_that_cannot_open_and_is_needed_stays_until_another_one_is_ready() -> None:
    service = Obedient(1, 2, slots=2)
    service.unanswered = {do.StartInstance}
    service.silent = {expert(1)}
    service.die(expert(0))
    service.tell(on.InstanceReady(expert(2)))
    for generation in (1, 2, 3):
        service.tell(on.MemberRefused(expert(1), generation, "no checkpoint"))
        service.fire("retry")
    assert not service.asked(do.FenceInstance)
    assert service.asked(do.StartInstance)[-1] == do.StartInstance(expert(3))
    service.tell(on.InstanceReady(expert(3)))
    service.tell(on.MemberRefused(expert(1), 4, "no checkpoint"))
    service.fire("retry")
    assert service.status.expert == (expert(2), expert(3))


def test_all_that_are_late_to_open_are_tried_again_before_one_is_blamed() -> None:
    """One that is stuck keeps all others from opening too."""
    service = Obedient(2, 2, max_restarts=0)
    service.silent = {attention(0), attention(1), expert(1)}
    service.die(expert(0))
    service.fire("open")
    assert not service.asked(do.FenceInstance)
    service.silent = set()
    service.fire("retry")
    assert service.status.generation == 2 and service.status.phase == "serving"


def test_one_that_does_not_commit_after_a_fault_is_stuck_and_goes() -> None:
    service = Obedient(2, 2, max_restarts=0)
    service.unanswered = {do.CommitAtMembers}
    service.die(expert(0))
    for instance in (attention(0), expert(1)):
        service.tell(on.MemberCommitted(instance, 1))
    service.unanswered = set()
    service.fire("commit")
    assert not service.asked(do.FenceInstance), "perhaps the engine stood still"
    service.fire("commit")
    assert service.asked(do.FenceInstance) == [do.FenceInstance(attention(1))]
    assert service.status.attention == (attention(0),)
    assert "attention 1 had not committed generation 1" in service.reports()[0].reason


def test_one_that_cannot_commit_is_lost() -> None:
    service = Obedient(2, 1, max_restarts=0)
    service.silent = {attention(1)}
    service.unanswered = {do.OpenAtMembers}
    service.scale(2, 2)
    for instance in (attention(0), attention(1), expert(0), expert(1)):
        service.tell(on.MemberOpened(instance, 1))
    service.unanswered, service.silent = set(), set()
    service.tell(on.MemberRefused(attention(1), 1, "broken"))
    assert service.status.attention == (attention(0),)


def test_a_broken_link_waits_for_the_death_that_explains_it() -> None:
    service = Obedient(2, 2, max_restarts=0)
    service.tell(broken(attention(0), expert(0)))
    service.tell(broken(attention(1), expert(0)))
    service.die(expert(0))
    assert "links" not in service.timers
    assert not service.asked(do.FenceInstance)
    assert service.status.expert == (expert(1),)


def test_for_a_broken_link_between_living_instances_the_expert_instance_goes() -> None:
    service = Obedient(2, 2, max_restarts=0)
    service.tell(broken(attention(0), expert(0)))
    service.tell(broken(expert(0), attention(0)))
    service.fire("links")
    assert service.asked(do.FenceInstance) == [do.FenceInstance(expert(0))]
    assert "attention 0 lost expert 0" in service.status.last_error


def test_a_link_that_breaks_while_a_generation_is_opened_ends_the_change() -> None:
    service = Obedient(1, 1)
    service.unanswered = {do.OpenAtMembers}
    service.scale(1, 2)
    service.tell(broken(attention(0), expert(1), 1))
    service.fire("links")
    assert service.asked(do.FenceInstance) == [do.FenceInstance(expert(1))]
    assert service.reports()[0].outcome == "failed" and len(service.reports()) == 1


def test_links_of_former_generations_and_those_cut_by_a_fault_mean_nothing() -> None:
    service = Obedient(2, 2, max_restarts=0)
    service.unanswered = {do.OpenAtMembers}
    service.die(expert(0))
    service.tell(broken(attention(0), attention(1), 0))
    assert "links" not in service.timers
    service.unanswered = set()
    for instance in (attention(0), attention(1), expert(1)):
        service.tell(on.MemberOpened(instance, 1))
    service.tell(broken(attention(0), attention(1), 0))
    assert "links" not in service.timers and service.status.generation == 1
