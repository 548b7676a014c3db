"""Claims about who computes at once on a host, and how many threads an instance gets."""

from __future__ import annotations

from janus_moe.cluster.deployment.thread_counts import (
    InstanceCounts,
    computing_with,
    most_computing,
    threads_each,
)

COUNTS: InstanceCounts = {"attention": 2, "expert": 3}


def test_the_pools_take_turns_unless_there_are_micro_batches() -> None:
    assert computing_with("attention", COUNTS, "shm", 1) == 2
    assert computing_with("expert", COUNTS, "gloo", 1) == 3
    assert most_computing(COUNTS, "shm", 1) == 3
    assert computing_with("attention", COUNTS, "shm", 2) == most_computing(COUNTS, "shm", 2) == 5


def test_in_loopback_the_experts_run_one_by_one() -> None:
    assert computing_with("attention", COUNTS, "loopback", 1) == 2
    assert computing_with("expert", COUNTS, "loopback", 1) == 1
    assert most_computing(COUNTS, "loopback", 1) == 2


def test_a_host_may_have_instances_of_one_pool_only() -> None:
    attention_only: InstanceCounts = {"attention": 2, "expert": 0}
    assert most_computing(attention_only, "gloo", 1) == most_computing(attention_only, "gloo", 2)
    assert most_computing({"attention": 0, "expert": 3}, "gloo", 1) == 3


def test_the_cores_are_divided_evenly_and_each_gets_one() -> None:
    assert [threads_each(8, computing, 0) for computing in (0, 1, 3, 9)] == [8, 8, 2, 1]
    assert threads_each(8, 4, wanted=5) == 5
