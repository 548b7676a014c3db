"""`janus profile`: what it plans, what its processes time, and how it fails."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from tests.checkpoints import make_checkpoint

from janus_moe.config import EngineConfig
from janus_moe.errors import ConfigError, WorkerDied
from janus_moe.profiling.plan import ProfilePlan, TimingTask, doubling, plan_profile
from janus_moe.profiling.pools import timed_pool
from janus_moe.profiling.worker import AttentionBench, ExpertBench, seconds_of


def plan(folder: Path, **changes: int) -> ProfilePlan:
    config = EngineConfig(model=str(folder), threads=1, kv_cache_memory_bytes=2**22)
    return plan_profile(config, budget_s=0.0, **changes)


def test_every_number_of_instances_up_to_the_largest_gets_its_tables(tmp_path: Path) -> None:
    made = plan(make_checkpoint(tmp_path / "model", "qwen3_moe"), max_batch=6, max_instances=3)
    assert list(made.attention_jobs) == list(made.expert_jobs) == [1, 2, 3]
    assert [job.index for job in made.expert_jobs[3]] == [0, 1, 2]
    assert made.tokens == (1, 2, 4, 6)
    shapes = [(run.config.transport, str(run.config.shape)) for run in made.live]
    assert shapes == [("loopback", "1A1E"), ("shm", "1A1E"), ("shm", "1A3E"), ("shm", "3A3E")]


def test_doubling_ends_with_the_largest() -> None:
    assert doubling(1) == (1,)
    assert doubling(8) == (1, 2, 4, 8)
    assert doubling(9) == (1, 2, 4, 8, 9)


def test_a_batch_that_gives_no_table_is_refused(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", "qwen3_moe")
    with pytest.raises(ConfigError, match="--max-batch must be 2 or more, got 1"):
        plan(folder, max_batch=1)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3"])
def test_all_operations_of_a_model_can_be_timed(tmp_path: Path, family: str) -> None:
    made = plan(make_checkpoint(tmp_path / "model", family), max_instances=2)
    attention = AttentionBench(made.attention_jobs[1][0])
    experts = ExpertBench(made.expert_jobs[2][1])
    cells = [TimingTask("attention", (3, 20), 0.0), TimingTask("head", (3,), 0.0)]
    if made.spec.moe.shared_intermediate_size:
        cells += [TimingTask("shared", (3,), 0.0), TimingTask("dense", (3,), 0.0)]
    for cell in cells:
        assert 0 < seconds_of(attention, cell, "cpu") < 1
    for cell in (TimingTask("gate", (5,), 0.0), TimingTask("experts", (4, 2), 0.0)):
        assert 0 < seconds_of(experts, cell, "cpu") < 1


async def test_a_process_that_cannot_load_is_named(tmp_path: Path) -> None:
    made = plan(make_checkpoint(tmp_path / "model", "qwen3_moe"))
    missing = msgspec.structs.replace(made.expert_jobs[1][0], checkpoint=str(tmp_path / "gone"))
    with pytest.raises(WorkerDied, match=r"times the expert side, pid \d+, ended with status 1"):
        async with timed_pool([missing]):
            pass
