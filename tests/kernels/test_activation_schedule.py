"""The activation schedule on tensors: what runs where, the CPU's answers, and what is refused.

The kernel's own answers are in `test_activation_schedule_interpreted` (Triton's interpreter) and
`test_activation_schedule_cuda` (a GPU). Here it is compiled for GPUs, which needs none.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from janus_moe.errors import ConfigError
from janus_moe.kernels import activation_schedule as package
from janus_moe.kernels.activation_schedule import (
    ActivationSchedule,
    ActivationScheduleKernel,
    DevicePolicy,
    PolicyActivationSchedule,
    ReplicaTables,
    activation_schedule,
)
from janus_moe.policy.activation.reference import schedule_reference
from janus_moe.policy.placement import initial_placement, to_eplb

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)


def random_tables(rng: np.random.Generator, num_experts: int, num_instances: int) -> ReplicaTables:
    """One to three replicas of everything in any order of slots, some instances favoured."""
    slots: list[list[int]] = [[] for _ in range(num_instances)]
    favour = rng.random(num_instances) ** 3 + 1e-3
    for expert in range(num_experts):
        replicas = int(rng.integers(1, min(3, num_instances) + 1))
        holders = rng.choice(num_instances, replicas, replace=False, p=favour / favour.sum())
        for holder in holders.tolist():
            slots[holder].insert(int(rng.integers(len(slots[holder]) + 1)), expert)
    return ReplicaTables.from_slots(slots, num_experts)


def random_ids(rng: np.random.Generator, num_experts: int, tokens: int, top_k: int) -> torch.Tensor:
    ids = rng.integers(-1, num_experts, (tokens, top_k))
    return torch.from_numpy(np.minimum(ids, rng.integers(0, num_experts, ids.shape))).int()


def assert_equals_reference(
    schedule: ActivationSchedule,
    tables: ReplicaTables,
    policy: DevicePolicy,
    ids: torch.Tensor,
    instance: int,
) -> None:
    """With ==, from the policy's definition in plain Python and from the list of slots."""
    answer = [tensor.cpu() for tensor in schedule.schedule(ids, instance)]
    instance_of, activated, optimal, invalid, slot_ids, replica_ids = answer
    expected = schedule_reference(policy, ids.cpu().numpy(), tables.layout)
    assert instance_of.tolist() == expected.instance_of_expert.tolist()
    assert activated.tolist() == expected.activated.tolist()
    assert optimal.tolist() == [int(expected.optimal)]
    assert invalid.tolist() == [0]
    chosen = [
        [(e, expected.instance_of_expert[e]) if e >= 0 else None for e in row]
        for row in ids.tolist()
    ]
    slot, first = tables.slot_of, tables.first_replica
    own = [[slot[c] if c and c[1] == instance else -1 for c in row] for row in chosen]
    replicas = [[first[c[1]] + slot[c] if c else -1 for c in row] for row in chosen]
    shape = tuple(ids.shape)
    assert np.array_equal(slot_ids, np.array(own, np.int32).reshape(shape))
    assert np.array_equal(replica_ids, np.array(replicas, np.int32).reshape(shape))
    assert {t.dtype for t in answer} == {torch.int32}


@pytest.mark.parametrize("policy", ["exact", "aebs"])
def test_cpu_vs_reference(policy: DevicePolicy) -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        experts, instances = int(rng.integers(1, 40)), int(rng.integers(1, 9))
        tables = random_tables(rng, experts, instances)
        ids = random_ids(rng, experts, int(rng.integers(0, 20)), int(rng.integers(1, 5)))
        schedule = activation_schedule(tables, policy, "cpu")
        assert isinstance(schedule, PolicyActivationSchedule)
        instance = int(rng.integers(instances))
        assert_equals_reference(schedule, tables, policy, ids, instance)


def test_replica_ids_are_eplbs_physical_ids() -> None:
    placement = initial_placement(1, 24, 4, 8)
    tables = ReplicaTables.from_slots(placement.slots[0], 24)
    physical_to_logical = to_eplb(placement).phy2log[0]
    ids = random_ids(np.random.default_rng(0), 24, 50, 4)
    replica_ids = activation_schedule(tables, "exact", "cpu").schedule(ids, 0).replica_ids
    assert np.array_equal(physical_to_logical[replica_ids[ids >= 0]], ids[ids >= 0])


def test_arguments_outside_the_contract_are_refused() -> None:
    schedule = activation_schedule(ReplicaTables.from_slots([[0, 1], [1]], 2), "exact", "cpu")
    ids = torch.zeros(3, 2, dtype=torch.int32)
    for wrong in (ids.long(), ids[0], ids.T):
        with pytest.raises(ValueError, match="contiguous int32"):
            schedule.schedule(wrong, 0)
    with pytest.raises(ValueError, match="instance_index 2 is no instance"):
        schedule.schedule(ids, 2)
    with pytest.raises(ValueError, match="on meta"):
        schedule.schedule(ids.to("meta"), 0)
    with pytest.raises(ValueError, match="expert id 2 of token 1"):
        schedule.schedule(torch.tensor([[0], [2]], dtype=torch.int32), 0)


def test_the_kernel_names_its_limits() -> None:
    one: Any = ReplicaTables.from_slots([[0]], 1)
    metro: Any = "metro"
    with pytest.raises(ConfigError, match="exact or aebs; got 'metro'"):
        ActivationScheduleKernel(one, metro, "cuda")
    with pytest.raises(ConfigError, match="at most 1024 experts on 64 instances; got 1 on 65"):
        ActivationScheduleKernel(ReplicaTables.from_slots([[0]] * 65, 1), "exact", "cuda")
    with pytest.raises(ConfigError, match="not on meta"):
        activation_schedule(one, "exact", "meta")


def test_without_triton_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("programs", "assignment"):
        monkeypatch.delattr(package, name, raising=False)
        monkeypatch.delitem(sys.modules, f"{package.__name__}.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(ConfigError, match=r"pip install 'janus-moe\[gpu\]'"):
        activation_schedule(ReplicaTables.from_slots([[0]], 1), "exact", "cuda")


@needs_triton
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize(
    ("capability", "words", "lanes", "warps"), [(80, 8, 16, 1), (90, 32, 64, 4)]
)
def test_every_program_compiles_for_a_gpu(
    capability: int, words: int, lanes: int, warps: int, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compiler: Any = importlib.import_module("triton.compiler")
    backends: Any = importlib.import_module("triton.backends.compiler")
    assignment: Any = importlib.import_module(f"{package.__name__}.assignment")
    programs: Any = importlib.import_module(f"{package.__name__}.programs")
    constants = {"WORDS": words, "LANES": lanes, "REPAIR": True, "BLOCK": 256}
    for name in ("mark", "solve", "rewrite", "mark_solve_rewrite"):
        program = getattr(programs, name)
        given = {key: value for key, value in constants.items() if key in program.arg_names}
        types = {key: "i32" if key in assignment.SIZES else "*i32" for key in program.arg_names}
        types |= dict.fromkeys(given, "constexpr")
        compiled = compiler.compile(
            compiler.ASTSource(program, types, given),
            target=backends.GPUTarget("cuda", capability, 32),
            options={"num_warps": warps},
        )
        assert len(compiled.asm["cubin"]) > 0
