"""Which worker process hosts which instances, and what each of them is told.

Loopback: one worker with everything. shm: one worker per instance, the region shared by all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from janus_moe.control.bootstrap import Bootstrap
from janus_moe.control.resolve import RunPlan
from janus_moe.messages import Setup
from janus_moe.spec import InstanceId
from janus_moe.transport import ShmLayout, ShmRegion


@dataclass(frozen=True, slots=True)
class WorkerLayout:
    """One worker process: its name, its instances and its compute threads."""

    name: str
    instances: tuple[InstanceId, ...]
    num_threads: int

    @property
    def environment(self) -> dict[str, str]:
        """Environment of the process. A thread that spins for long starves the other pool, and
        one that sleeps at once wakes late for the next kernel: so they spin for some 20 us."""
        threads = str(self.num_threads)
        return {
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "NUMBA_NUM_THREADS": threads,
            "OMP_WAIT_POLICY": "passive",
            "GOMP_SPINCOUNT": "1000",
            "TOKENIZERS_PARALLELISM": "false",
        }

    def bootstrap(self, endpoint: str, region: ShmRegion | None) -> Bootstrap:
        """What the process needs on its command line; the launcher fills in the lifeline."""
        return Bootstrap(
            name=self.name,
            endpoint=endpoint,
            lifeline_fd=-1,
            shm=None if region is None else region.address,
        )


def worker_layouts(plan: RunPlan) -> Sequence[WorkerLayout]:
    """The worker processes of a run, attention instances first."""
    shape = plan.config.shape
    attention = [InstanceId(pool="attention", index=i) for i in range(shape.attention)]
    experts = [InstanceId(pool="expert", index=i) for i in range(shape.expert)]
    if plan.config.transport == "loopback":
        threads = max(plan.attention_threads, plan.expert_threads)
        return [WorkerLayout("janus", (*attention, *experts), threads)]
    return [
        *(WorkerLayout(str(i), (i,), plan.attention_threads) for i in attention),
        *(WorkerLayout(str(i), (i,), plan.expert_threads) for i in experts),
    ]


def create_region(plan: RunPlan) -> ShmRegion | None:
    """Shared memory for the exchange of a run, when it needs any."""
    if plan.config.transport == "loopback":
        return None
    return ShmRegion.create(
        ShmLayout(
            shape=plan.config.shape,
            max_tokens=plan.config.max_num_batched_tokens,
            hidden_size=plan.spec.hidden_size,
            dtype=plan.spec.dtype,
            epoch=plan.placement.epoch,
        )
    )


def setup_message(plan: RunPlan, layout: WorkerLayout) -> Setup:
    """What a worker needs to build its instances."""
    return Setup(
        instances=layout.instances,
        spec=plan.spec,
        config=plan.config,
        checkpoint=str(plan.folder),
        num_kv_blocks=plan.num_kv_blocks,
        num_threads=layout.num_threads,
        num_cores=plan.num_cores,
        epoch=plan.placement.epoch,
        slots=plan.placement.slots,
        spare_slots=plan.spare_slots,
    )
