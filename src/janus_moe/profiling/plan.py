"""What to measure: sizes, numbers of instances, and shapes of live runs. Measures nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from janus_moe.cluster.deployment_plan import plan_deployment, this_host
from janus_moe.config import EngineConfig
from janus_moe.errors import ConfigError
from janus_moe.spec import ModelSpec, Pool, PoolShape

ProfiledOperation = Literal["attention", "head", "dense", "shared", "gate", "experts"]

CONTEXTS = (16, 256, 1024)
TOKENS_PER_EXPERT = (1, 2, 4, 8, 16)
COLD_BYTES = 256 * 2**20
"""Expert weights to take turns with, so that no cache holds them."""


class Job(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One instance to measure.

    policy: how replicas are chosen.
    num_threads: its compute threads.
    index: which it is of `num_instances` that compute at the same time.
    """

    pool: Pool
    spec: ModelSpec
    checkpoint: str
    device: str
    block_size: int
    policy: str
    num_threads: int
    index: int
    num_instances: int


class TimingTask(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One thing to time.

    sizes: attention (tokens, context); experts (activated, tokens of each); else (tokens,).
    budget_s: how long to repeat it.
    """

    operation: ProfiledOperation
    sizes: tuple[int, ...]
    budget_s: float


@dataclass(frozen=True, kw_only=True)
class LiveRun:
    """A service to start, and the batches to decode with it."""

    config: EngineConfig
    batches: tuple[int, ...]

    @property
    def shape(self) -> PoolShape:
        """The pools that the service will be started with."""
        return self.config.shape


@dataclass(frozen=True, kw_only=True)
class ProfilePlan:
    """Everything that is measured for one profile.

    attention_jobs, expert_jobs: number of instances -> what each of them is told.
    tokens, contexts: sizes to time.
    live: services to start.
    budget_s: seconds to repeat each timing.
    """

    config: EngineConfig
    spec: ModelSpec
    attention_jobs: dict[int, tuple[Job, ...]]
    expert_jobs: dict[int, tuple[Job, ...]]
    tokens: tuple[int, ...]
    contexts: tuple[int, ...]
    live: tuple[LiveRun, ...]
    budget_s: float

    def activated(self, num_instances: int) -> tuple[int, ...]:
        """Numbers of activated experts to time on one of so many expert instances."""
        slots = -(-self.spec.moe.num_experts // num_instances)
        return doubling(max(slots, 2))


def plan_profile(
    config: EngineConfig, *, max_batch: int = 64, max_instances: int = 2, budget_s: float = 0.12
) -> ProfilePlan:
    """Raises ConfigError or CheckpointError for a model that cannot be served here.

    max_batch: largest batch of one attention instance. max_instances: of one pool on this machine.
    """
    if max_batch < 2:
        raise ConfigError(f"--max-batch must be 2 or more, got {max_batch}")
    if max_instances < 1:
        raise ConfigError(f"--max-instances must be 1 or more, got {max_instances}")
    host = this_host(config)
    run = plan_deployment(config, [host])
    on_gpu = config.device == "cuda"
    counts = (1,) if on_gpu else doubling(max_instances)
    counts = tuple(count for count in counts if count <= run.spec.moe.num_experts)

    def jobs(pool: Pool, count: int) -> tuple[Job, ...]:
        threads = config.threads or max(1, host.facts.cores // count)
        return tuple(
            Job(
                pool=pool,
                spec=run.spec,
                checkpoint=str(run.folder),
                device=config.device,
                block_size=config.block_size,
                policy=config.activation_policy,
                num_threads=threads,
                index=index,
                num_instances=count,
            )
            for index in range(count)
        )

    limit = run.max_model_len
    contexts = [context for context in CONTEXTS if context <= limit]
    if len(contexts) < 2:
        contexts = [1, max(limit, 2)]
    return ProfilePlan(
        config=config,
        spec=run.spec,
        attention_jobs={count: jobs("attention", count) for count in counts},
        expert_jobs={count: jobs("expert", count) for count in counts},
        tokens=doubling(max_batch),
        contexts=tuple(contexts),
        live=_live_runs(config, run.spec, counts, max_batch),
        budget_s=budget_s,
    )


def doubling(largest: int) -> tuple[int, ...]:
    """1, 2, 4, ... and `largest`."""
    sizes = [1]
    while 2 * sizes[-1] <= largest:
        sizes.append(2 * sizes[-1])
    return tuple(sizes) if sizes[-1] == largest else (*sizes, largest)


def _live_runs(
    config: EngineConfig, spec: ModelSpec, counts: Sequence[int], max_batch: int
) -> tuple[LiveRun, ...]:
    most = max(counts)
    shapes = [("loopback", 1, 1)]
    if config.device == "cpu":
        shapes += [("shm", 1, 1), ("shm", 1, most), ("shm", most, most)]
    runs = []
    for transport, attention, expert in dict.fromkeys(shapes):
        changed = {
            "transport": transport,
            "attention_instances": attention,
            "expert_instances": expert,
        }
        each = (max(2, max_batch // 8), max(2, max_batch // 2), max_batch)
        batches = {max(2, attention), *(size * attention for size in each)}
        runs.append(
            LiveRun(
                config=msgspec.structs.replace(config, **changed), batches=tuple(sorted(batches))
            )
        )
    return tuple(runs)
