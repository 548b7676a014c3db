"""The scheduling kernel on a GPU: equal to the reference, captured in a graph, never waiting."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import numpy as np
import pytest
import torch
from tests.kernels.test_activation_schedule import (
    assert_equals_reference,
    needs_triton,
    random_ids,
    random_tables,
)

from janus_moe.kernels.activation_schedule import (
    ActivationScheduleKernel,
    DevicePolicy,
    PolicyActivationSchedule,
    ScheduleTensors,
    activation_schedule,
)

pytestmark = [
    needs_triton,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
SHAPES = ((1, 1), (31, 3), (60, 8), (128, 8), (256, 16), (512, 64), (1024, 64))
TOKENS = (0, 1, 3, 16, 64, 128, 129, 1024, 4096)  # top 8: up to 128 in one launch


def assert_same(answer: ScheduleTensors, expected: ScheduleTensors) -> None:
    for name, one, other in zip(answer._fields, answer, expected, strict=True):
        assert torch.equal(one.cpu(), other), name


@pytest.mark.parametrize(("num_experts", "num_instances"), SHAPES)
def test_kernel_vs_reference(num_experts: int, num_instances: int) -> None:
    rng = np.random.default_rng(num_experts)
    for policy in get_args(DevicePolicy):
        for _ in range(4):
            tables = random_tables(rng, num_experts, num_instances)
            made = activation_schedule(tables, policy, "cuda")
            assert isinstance(made, ActivationScheduleKernel)
            compiled = PolicyActivationSchedule(tables, policy)
            small = random_ids(rng, num_experts, 16, 4).cuda()
            assert_equals_reference(made, tables, policy, small, 0)
            for tokens in TOKENS:
                for _ in range(5):
                    ids = random_ids(rng, num_experts, tokens, 8)
                    instance = int(rng.integers(num_instances))
                    expected = compiled.schedule(ids, instance)
                    assert_same(made.schedule(ids.cuda(), instance), expected)


def test_the_same_ids_give_the_same_answer_every_time() -> None:
    rng = np.random.default_rng(1)
    made = ActivationScheduleKernel(random_tables(rng, 256, 16), "exact", "cuda")
    for tokens in (64, 1024):
        ids = random_ids(rng, 256, tokens, 8).cuda()
        first = [tensor.clone() for tensor in made.schedule(ids, 3)]
        for _ in range(200):
            again = made.schedule(ids, 3)
            assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


@pytest.mark.parametrize("tokens", [1, 64, 1024])
def test_a_captured_graph_follows_its_ids(tokens: int) -> None:
    rng = np.random.default_rng(2)
    tables = random_tables(rng, 256, 16)
    made = ActivationScheduleKernel(tables, "exact", "cuda")
    compiled = PolicyActivationSchedule(tables, "exact")
    made.warm_up()
    ids = random_ids(rng, 256, tokens, 8).cuda()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        answer = made.schedule(ids, 5)
    for _ in range(50):
        new_ids = random_ids(rng, 256, tokens, 8)
        ids.copy_(new_ids)
        graph.replay()
        assert_same(answer, compiled.schedule(new_ids, 5))


@pytest.fixture
def waiting_is_an_error() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.usefixtures("waiting_is_an_error")
def test_scheduling_never_waits_for_the_device() -> None:
    rng = np.random.default_rng(3)
    made = ActivationScheduleKernel(random_tables(rng, 128, 8), "exact", "cuda")
    batches = [random_ids(rng, 128, tokens, 8).cuda() for tokens in TOKENS]
    made.warm_up()
    torch.cuda.set_sync_debug_mode("error")
    for ids in batches:
        made.schedule(ids, 1)


def test_ids_out_of_range_are_told_and_ignored() -> None:
    rng = np.random.default_rng(4)
    tables = random_tables(rng, 100, 8)
    made = ActivationScheduleKernel(tables, "exact", "cuda")
    for tokens in (16, 1024):
        ids = random_ids(rng, 100, tokens, 8)
        wrong = ids.clone()
        wrong[ids == 7] = 100
        ids[ids == 7] = -1
        expected = PolicyActivationSchedule(tables, "exact").schedule(ids, 0)
        expected.invalid[0] = 1
        assert_same(made.schedule(wrong.cuda(), 0), expected)
        expected.invalid[0] = 0
        assert_same(made.schedule(ids.cuda(), 0), expected)
