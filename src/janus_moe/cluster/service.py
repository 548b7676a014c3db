"""A complete service: an engine and the workers it runs on, from settings.

`prepare` finds everything that is wrong before anything is started; `run` lives until it is
cancelled or a worker is lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from janus_moe.cluster.control_channel import ControlChannel
from janus_moe.cluster.deployment_plan import DeploymentPlan, plan_deployment, this_host
from janus_moe.cluster.generation_control import GenerationControl, generation_settings
from janus_moe.cluster.generation_placer import AdaptingPlacer
from janus_moe.cluster.grace_periods import FAILED_GRACE_S
from janus_moe.cluster.hosts.gathering import Gathered
from janus_moe.cluster.hosts.pool import IDENTITY_PREFIX
from janus_moe.cluster.message_router import ObservableWorkers
from janus_moe.cluster.rebalancer import Rebalancer
from janus_moe.cluster.runtime.joined_hosts import JoinedHostsRuntime
from janus_moe.cluster.runtime.local import LocalRuntime
from janus_moe.cluster.supervisor import Cluster
from janus_moe.cluster.tracing import Tracer
from janus_moe.config import EngineConfig
from janus_moe.engine.admission import RequestLimits
from janus_moe.engine.engine import Engine
from janus_moe.engine.text.tokenizer import load_tokenizer
from janus_moe.errors import JanusError
from janus_moe.messages import Progress
from janus_moe.model.source import resolve_model


def ignore_progress(_: Progress) -> None:
    """Ignores what happens at the start."""


@dataclass(slots=True)
class Service:
    """A service, before, while and after it runs.

    plan: what was decided.
    engine: takes requests once it is ready.
    rebalancer: moves experts between expert instances.
    tracer: records what instances do when.
    pids: worker name -> process id, once all workers are ready.
    gathered: all hosts; None means this one alone.
    """

    plan: DeploymentPlan
    engine: Engine
    rebalancer: Rebalancer
    tracer: Tracer
    pids: dict[str, int]
    gathered: Gathered | None = None

    @classmethod
    def prepare(cls, config: EngineConfig, gathered: Gathered | None = None) -> Service:
        """Validates and decides everything; raises ConfigError or CheckpointError."""
        hosts = [this_host(config)] if gathered is None else gathered.hosts
        plan = plan_deployment(config, hosts)
        folder = plan.folder if config.tokenizer is None else resolve_model(config.tokenizer)
        limits = RequestLimits(
            max_model_len=plan.max_model_len,
            cache_tokens=plan.num_kv_blocks * plan.config.block_size,
            vocab_size=plan.spec.vocab_size,
        )
        rebalancer = Rebalancer(plan)
        engine = Engine(
            plan.config, plan.spec, load_tokenizer(folder), limits, plan.membership, rebalancer
        )
        return cls(plan, engine, rebalancer, Tracer(plan), {}, gathered)

    def _progress(self, progress: Progress, on_progress: Callable[[Progress], None]) -> None:
        self.engine.status_detail = f"{progress.instance}: {progress.stage}"
        on_progress(progress)

    async def run(
        self, ready: asyncio.Event, on_progress: Callable[[Progress], None] = ignore_progress
    ) -> None:
        """Starts the workers and serves; `ready` is set when requests may come.

        Raises ServiceError when the service has ended by itself. Leaves no process behind.
        """
        cluster = self._cluster()
        try:
            await cluster.start(lambda progress: self._progress(progress, on_progress))
            self.pids = dict(cluster.pids)
            if self._can_change:
                await self._serve_changing(cluster, ready)
            else:
                await self.serve(cluster, ready)
        except JanusError as error:
            self.engine.mark_dead(str(error))
            await cluster.close(grace_s=FAILED_GRACE_S, error=str(error))
            raise
        except BaseException:
            self.engine.mark_dead("the service was stopped")
            raise
        finally:
            await cluster.close()

    @property
    def _can_change(self) -> bool:
        """Whether every instance has a worker of its own on this host."""
        return self.gathered is None and self.plan.config.transport != "loopback"

    def _cluster(self) -> Cluster:
        plan = self.plan
        if self.gathered is None:
            channel = ControlChannel.local()
            runtime = LocalRuntime(channel.endpoint, hang_timeout_s=plan.config.hang_timeout)
            return Cluster(plan, channel, runtime)
        pool, bind_host = self.gathered.pool, self.gathered.bind_host
        hang_timeout_s = plan.config.hang_timeout
        local = LocalRuntime(pool.channel.endpoint, pool.channel.secret, bind_host, hang_timeout_s)
        hosts = JoinedHostsRuntime(pool, local, plan.config.model, plan.folder, hang_timeout_s)
        return Cluster(plan, pool.channel, hosts, {IDENTITY_PREFIX: pool.handle})

    async def serve(self, workers: ObservableWorkers, ready: asyncio.Event) -> None:
        """Serves with workers that are ready, until cancelled or one is lost."""
        self.tracer.use(workers)
        async with self.rebalancer.running(workers):
            await self.engine.run(workers, ready)

    async def _serve_changing(self, cluster: Cluster, ready: asyncio.Event) -> None:
        """The same with pools that change while they serve; workers may be lost."""
        plan = self.plan
        redundant = plan.config.redundant_experts
        assert redundant != "auto", "the plan decides it"
        control = GenerationControl(
            plan,
            self.engine,
            self.rebalancer,
            self.tracer,
            generation_settings(plan.config, plan.membership.shape),
            AdaptingPlacer(plan.spec.moe.num_experts, redundant),
        )
        self.engine.scale_controller = control
        control.begin(cluster)
        try:
            await self.serve(cluster, ready)
        finally:
            control.close()
