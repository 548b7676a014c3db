"""Carries out what the generation machine decides about one service whose workers are here.

Events in, actions out: messages of workers and ends of processes go to `GenerationMachine`, and
each action that it asks for is done by the cluster, the engine or the rebalancer. Nothing is
decided here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import msgspec

from janus_moe.cluster.deployment.thread_counts import computing_with, threads_each
from janus_moe.cluster.deployment_plan import DeploymentPlan
from janus_moe.cluster.generation_placer import pools_to_join
from janus_moe.cluster.generations import (
    Generation,
    GenerationMachine,
    GenerationSettings,
    Placer,
)
from janus_moe.cluster.generations import actions as act
from janus_moe.cluster.generations.events import (
    AbortRequested,
    Event,
    InstanceDied,
    InstanceDrained,
    RebalancingStopped,
    ScaleRequested,
    TimerFired,
)
from janus_moe.cluster.rebalancer import Rebalancer
from janus_moe.cluster.supervisor import Cluster
from janus_moe.cluster.tracing import Tracer
from janus_moe.cluster.worker_layout import setup_for
from janus_moe.config import EngineConfig
from janus_moe.engine.engine import Engine
from janus_moe.errors import ConflictError
from janus_moe.messages import CommitGeneration, DropGeneration, OpenGeneration, Setup, Stop
from janus_moe.policy.placement import Placement
from janus_moe.spec import InstanceId, Membership, Pool, PoolShape

logger = logging.getLogger(__name__)


class GenerationControl:
    """An `engine.ScaleController`. One asyncio loop uses it.

    plan: what the service started with.
    settings: limits and deadlines of changes.
    placer: decides where experts go.
    """

    def __init__(
        self,
        plan: DeploymentPlan,
        engine: Engine,
        rebalancer: Rebalancer,
        tracer: Tracer,
        settings: GenerationSettings,
        placer: Placer,
    ) -> None:
        self._plan = plan
        self._engine = engine
        self._rebalancer = rebalancer
        self._tracer = tracer
        self._settings = settings
        self._placer = placer
        self._serving = Generation(plan.membership, plan.placement)
        self._cluster: Cluster | None = None
        self._machine: GenerationMachine | None = None
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, cluster: Cluster) -> None:
        """Decides from now on about a service that serves its first generation."""
        self._cluster = cluster
        self._machine = GenerationMachine(
            self._serving, self._settings, self._placer, self._now_s()
        )
        cluster.tell(self.handle)
        self._carry_out(self._machine.begin())

    def close(self) -> None:
        """Decides nothing any more; the cluster ends the workers."""
        self._machine = None
        for timer in self._timers.values():
            timer.cancel()
        for task in self._tasks:
            task.cancel()

    def scale(self, attention: int | None, expert: int | None, drain_timeout_s: float) -> None:
        """See `engine.ScaleController`."""
        target = self._running.state.target
        self.handle(
            ScaleRequested(
                target.attention if attention is None else attention,
                target.expert if expert is None else expert,
                drain_timeout_s,
            )
        )

    def abort(self) -> None:
        """See `engine.ScaleController`."""
        _ = self._running
        self.handle(AbortRequested())

    def status(self) -> dict[str, Any]:
        """See `engine.ScaleController`."""
        fields: dict[str, Any] = msgspec.to_builtins(self._running.status(self._now_s()))
        return fields

    def handle(self, event: Event) -> None:
        """Takes what happened to instances, and does what follows from it."""
        if isinstance(event, InstanceDied) and event.instance.pool == "attention":
            self._engine.drain_instance(event.instance)
        if self._machine is not None:
            self._carry_out(self._machine.handle(event, self._now_s()))

    @property
    def _running(self) -> GenerationMachine:
        if self._machine is None:
            raise ConflictError("the pools of this service cannot change: it is not running")
        return self._machine

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time()

    def _carry_out(self, actions: Sequence[act.Action]) -> None:
        for action in actions:
            logger.debug("%s", action)
            self._do(action)

    def _do(self, action: act.Action) -> None:
        cluster, engine = self._cluster, self._engine
        assert cluster is not None
        match action:
            case act.StartInstance(instance):
                cluster.start_instance(instance, self._setup(instance))
            case act.StopInstance(instance):
                cluster.order(instance, Stop())
            case act.FenceInstance(instance):
                if instance.pool == "attention":
                    engine.drain_instance(instance)
                cluster.kill_instance(instance)
            case act.DrainInstance(instance):
                self._spawn(self._drain(instance))
            case act.CancelDrain(instance):
                engine.resume_instance(instance)
            case act.OpenAtMembers(membership, placement):
                self._open(membership, placement)
            case act.CommitAtMembers(generation, abandon, members):
                order = CommitGeneration(generation=generation, abandon=abandon)
                for member in members:
                    cluster.order(member, order)
            case act.DropAtMembers(generation, members):
                for member in members:
                    cluster.order(member, DropGeneration(generation=generation))
                cluster.forget_generation(generation)
            case act.ServeGeneration():
                self._serve(action)
            case act.ReadmitRequests(instance):
                engine.readmit(instance)
            case _:
                self._do_beside(action)

    def _do_beside(self, action: act.Action) -> None:
        """What concerns no instance."""
        engine = self._engine
        match action:
            case act.StopRebalancing(at_once):
                self._spawn(self._stop_rebalancing(at_once))
            case act.AllowRebalancing(last_number):
                self._rebalancer.allow(last_number)
            case act.RefuseRequests(reason, retry_after_s):
                engine.refuse(reason, retry_after_s)
                engine.fail_all(reason, retry_after_s)
            case act.AcceptRequests():
                engine.accept()
            case act.SetTimer(name, seconds):
                self._set_timer(name, seconds)
            case act.CancelTimer(name):
                if (timer := self._timers.pop(name, None)) is not None:
                    timer.cancel()
            case act.ReportChange(record):
                logger.log(
                    logging.WARNING if record.reason else logging.INFO,
                    "%s of the pools from %s to %s %s after %.2f s%s",
                    record.kind,
                    record.before,
                    record.after,
                    record.outcome,
                    record.seconds,
                    f": {record.reason}" if record.reason else "",
                )

    def _open(self, membership: Membership, placement: Placement) -> None:
        assert self._cluster is not None and self._machine is not None
        is_fault = self._machine.status(self._now_s()).kind == "fault"
        for member in membership.instances:
            order = OpenGeneration(
                membership=membership,
                slots=placement.slots,
                num_threads=self._threads(member.pool, membership),
                is_urgent=is_fault,
            )
            self._cluster.order(member, order)

    def _serve(self, action: act.ServeGeneration) -> None:
        assert self._cluster is not None
        self._serving = Generation(action.membership, action.placement)
        self._rebalancer.use_generation(action.membership, action.placement)
        self._tracer.use_membership(action.membership)
        self._engine.use_membership(action.membership)
        for generation in action.retired:
            for member in action.membership.instances:
                self._cluster.order(member, DropGeneration(generation=generation))
            self._cluster.forget_generation(generation)

    def _setup(self, instance: InstanceId) -> Setup:
        """What a new instance builds itself by: the pools that it is to be in, as they look now."""
        assert self._machine is not None
        starting = self._machine.status(self._now_s()).starting
        membership, slots = pools_to_join(self._placer, self._serving, starting, instance)
        threads = self._threads(instance.pool, membership)
        return setup_for(self._plan, membership, slots, (instance,), threads)

    def _threads(self, pool: Pool, membership: Membership) -> int:
        """Compute threads of each instance of a pool on this host."""
        config = self._plan.config
        counts: dict[Pool, int] = {
            "attention": len(membership.attention),
            "expert": len(membership.expert),
        }
        computing = computing_with(pool, counts, config.transport, config.num_micro_batches)
        return threads_each(self._plan.hosts[0].facts.cores, computing, config.threads)

    async def _drain(self, instance: InstanceId) -> None:
        await self._engine.drain_instance(instance).wait()
        self.handle(InstanceDrained(instance))

    async def _stop_rebalancing(self, at_once: bool) -> None:
        last_epoch = await self._rebalancer.stop(at_once=at_once)
        self.handle(RebalancingStopped(last_epoch, self._rebalancer.placement))

    def _set_timer(self, name: str, seconds: float) -> None:
        if (timer := self._timers.pop(name, None)) is not None:
            timer.cancel()

        def fire() -> None:
            self._timers.pop(name, None)
            self.handle(TimerFired(name))

        self._timers[name] = asyncio.get_running_loop().call_later(seconds, fire)

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def generation_settings(config: EngineConfig, at_start: PoolShape) -> GenerationSettings:
    """Limits and deadlines of changes, by the settings of the service and its first pools."""
    return GenerationSettings(
        max_attention=config.max_attention_instances or 2 * at_start.attention,
        max_expert=config.max_expert_instances or 2 * at_start.expert,
        standby_attention=config.standby_attention,
        standby_experts=config.standby_experts,
        max_restarts=config.max_restarts,
        recovery_timeout_s=config.recovery_timeout,
        start_timeout_s=config.startup_timeout,
    )
