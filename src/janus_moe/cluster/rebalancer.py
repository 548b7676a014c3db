"""Moves experts between the instances of a running service, on demand or on a schedule.

A rebalance is a sequence of epochs. For each, all expert instances load what it adds beside what
they serve; once all have reported, the attention instances are told to announce their next steps
with it; once all have said that no step with an earlier one is under way or will come, the next one
is prepared. So nothing waits for a step, and an idle service switches as well. If an instance fails
to load, all forget that epoch, and the one before serves on. What to move is decided in `policy`;
requests notice nothing of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace

import numpy as np

from janus_moe.cluster.deployment_plan import DeploymentPlan
from janus_moe.cluster.message_router import ObservableWorkers
from janus_moe.engine.engine import Workers
from janus_moe.engine.placement_controller import RebalanceStatus
from janus_moe.errors import (
    ConfigError,
    ConflictError,
    JanusError,
    RequestError,
    ServiceError,
    WorkerFailed,
)
from janus_moe.messages import (
    DropEpoch,
    EpochFailed,
    EpochPrepared,
    ExpertLoad,
    FromWorker,
    PrepareEpoch,
    StepDone,
    ToInstance,
    UseEpoch,
)
from janus_moe.policy.placement import Placement, migration_steps
from janus_moe.policy.rebalancing import ObservedRouting, Proposal, propose, requested
from janus_moe.spec import InstanceId, Membership

logger = logging.getLogger(__name__)

Slots = Sequence[Sequence[Sequence[int]]]


class Rebalancer:
    """The expert pool of one service; an `engine.PlacementController`. One asyncio loop uses it."""

    def __init__(self, plan: DeploymentPlan) -> None:
        self.placement = plan.placement
        self.load: ExpertLoad | None = None
        self.status = RebalanceStatus()
        self._capacity = [len(experts) for experts in plan.placement.slots[0]]
        self._spare = plan.spare_slots
        self._stopped = False
        self._config = plan.config
        self._membership = plan.membership
        self._last_epoch = plan.placement.epoch  # ever handed out, also to epochs given up
        self._workers: Workers | None = None
        self._task: asyncio.Task[None] | None = None
        self._preparing = plan.placement.epoch
        self._prepared: set[InstanceId] = set()
        self._failure: EpochFailed | None = None
        self._used = dict.fromkeys(plan.membership.attention, plan.placement.epoch)
        self._news = asyncio.Event()
        self._changed = asyncio.Event()  # routing has

    @contextlib.asynccontextmanager
    async def running(self, workers: ObservableWorkers) -> AsyncIterator[None]:
        """Works in the meantime, and takes note of what the workers say."""
        self._workers = workers
        workers.on_message.append(self._observe)
        schedule = asyncio.create_task(self._follow_schedule())
        try:
            yield
        finally:
            workers.on_message.remove(self._observe)
            self._workers = None
            tasks = [schedule, *([self._task] if self._task else [])]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def rebalance(self, slots: Slots | None = None) -> RebalanceStatus:
        """See `engine.PlacementController`."""
        if slots is None:
            return await self._start(lambda: self._propose().target)
        try:
            return await self._start(lambda: requested(slots, self.placement, self._capacity))
        except ConfigError as error:
            raise RequestError(str(error), "placement") from None

    async def stop(self, *, at_once: bool) -> int:
        """Refuses rebalances until `allow`; returns once none is under way.

        at_once: drops the one under way; else it may end.

        Returns the largest number that was ever given to an epoch.
        """
        self._stopped = True
        if self._task is not None:
            if at_once:
                self._task.cancel()
            await asyncio.wait({self._task})
        if self.status.state != "idle":
            dropped = "the pools change" if at_once else self.status.error
            self.status = replace(self.status, state="idle", error=dropped)
        return self._last_epoch

    def allow(self, last_number: int) -> None:
        """Takes rebalances again, with epochs above this number."""
        self._stopped = False
        self._last_epoch = max(self._last_epoch, last_number)

    def use_generation(self, membership: Membership, placement: Placement) -> None:
        """Moves experts among other instances from now on; none is being moved."""
        self.placement = placement
        self._membership = membership
        self._capacity = [len(experts) for experts in placement.slots[0]]
        self._last_epoch = max(self._last_epoch, placement.epoch)
        self._used = dict.fromkeys(membership.attention, placement.epoch)

    def _propose(self) -> Proposal:
        if self.load is None:
            raise ConflictError("there are no statistics yet: no step has been reported")
        observed = ObservedRouting(
            num_batches=np.array(self.load.num_batches),
            num_tokens=np.array(self.load.num_tokens),
            tokens=np.array(self.load.tokens),
        )
        policy = self._config.activation_policy
        judged = "exact" if policy == "token-aware" else policy  # which it starts from
        return propose(self.placement, self._capacity, observed, judged)

    async def _start(self, choose: Callable[[], Placement]) -> RebalanceStatus:
        """Plans in a thread and starts the task that carries the plan out."""
        if self._workers is None:
            raise ConflictError("the service is not running")
        if self._stopped:
            raise ConflictError("experts cannot move while the pools change; see GET /scale")
        if self._spare == 0:
            raise ConflictError(
                "experts cannot move: there are 0 spare slots (--rebalance-spare-slots) or 1 "
                "expert instance"
            )
        if self.status.state != "idle":
            raise ConflictError(
                f"a rebalance to epoch {self.status.target_epoch} is under way "
                f"({self.status.state}, step {self.status.step} of {self.status.num_steps})"
            )
        if late := self._not_using(self.placement.epoch):
            raise ConflictError(
                f"{late} may still compute with an epoch before {self.placement.epoch}; wait for it"
            )
        first_epoch, before = self._last_epoch + 1, self.placement
        self.status = RebalanceStatus(state="planning", target_epoch=first_epoch)
        steps: Sequence[Placement] = ()
        try:
            steps = await asyncio.to_thread(
                lambda: migration_steps(before, choose(), self._spare, first_epoch)
            )
            if self._stopped or self.placement is not before:
                steps = ()
                raise ConflictError("the pools have changed meanwhile; ask again")
        finally:
            self.status = RebalanceStatus(
                state="loading" if steps else "idle",
                target_epoch=steps[-1].epoch if steps else self.placement.epoch,
                num_steps=len(steps),
            )
        if steps:
            self._last_epoch = steps[-1].epoch
            self._task = asyncio.create_task(self._migrate(steps))
        return self.status

    async def _migrate(self, steps: Sequence[Placement]) -> None:
        """Takes all steps, or those before the first that fails."""
        logger.info("moving experts: epochs %d to %d", steps[0].epoch, steps[-1].epoch)
        error = None
        try:
            for number, placement in enumerate(steps, start=1):
                self.status = replace(self.status, state="loading", step=number)
                await self._prepare(placement)
                self.status = replace(self.status, state="switching")
                await self._use(placement)
        except JanusError as failure:
            error = str(failure)
            logger.warning("epoch %d serves on: %s", self.placement.epoch, error)
        # A last resort: nothing awaits this task, and a bug here must not stop the service.
        except Exception:
            error = "internal error"
            logger.exception("epoch %d serves on", self.placement.epoch)
        self.status = replace(self.status, state="idle", error=error)

    async def _prepare(self, placement: Placement) -> None:
        """Returns once every expert instance can serve with `placement`; else none keeps it."""
        epoch, instances = placement.epoch, self._membership.expert
        self._preparing, self._prepared, self._failure = epoch, set(), None
        try:
            for instance in instances:
                self._send(PrepareEpoch(instance=instance, epoch=epoch, placement=placement.slots))
            async with asyncio.timeout(self._config.startup_timeout):
                while len(self._prepared) < len(instances) and self._failure is None:
                    await self._next_news()
            if self._failure is not None:
                failed = self._failure
                raise WorkerFailed(
                    f"{failed.instance} could not prepare epoch {epoch}: {failed.error}"
                )
        except BaseException as error:
            with contextlib.suppress(ServiceError):
                for instance in instances:
                    self._send(DropEpoch(instance=instance, epoch=epoch))
            if isinstance(error, TimeoutError):
                late = ", ".join(str(i) for i in instances if i not in self._prepared)
                raise WorkerFailed(
                    f"{late} did not prepare epoch {epoch} within "
                    f"{self._config.startup_timeout:.0f} s (--startup-timeout)"
                ) from None
            raise

    async def _use(self, placement: Placement) -> None:
        """Returns once no step with an earlier placement is under way or will come."""
        epoch, timeout_s = placement.epoch, self._config.startup_timeout
        for instance in self._membership.attention:
            self._send(UseEpoch(instance=instance, epoch=epoch))
        self.placement = placement  # steps come with it from now on, even if not all of them
        try:
            async with asyncio.timeout(timeout_s):
                while self._not_using(epoch):
                    await self._next_news()
        except TimeoutError:
            raise WorkerFailed(
                f"{self._not_using(epoch)} did not take epoch {epoch} within {timeout_s:.0f} s "
                "(--startup-timeout)"
            ) from None

    def _not_using(self, epoch: int) -> str:
        """The attention instances that may still compute with an earlier one; "" for none."""
        return ", ".join(str(i) for i, used in self._used.items() if used < epoch)

    def _send(self, message: ToInstance) -> None:
        if self._workers is None:
            raise ServiceError("the service was stopped")
        self._workers.send(message)

    async def _next_news(self) -> None:
        self._news.clear()
        await self._news.wait()

    def _observe(self, message: FromWorker) -> None:
        match message:
            case ExpertLoad():
                self.load = message
                if message.changed:
                    self._changed.set()
                return
            case StepDone(instance=instance, epoch=epoch) if epoch > self._used.get(
                instance, epoch
            ):
                self._used[instance] = epoch
            case EpochPrepared(instance=instance, epoch=epoch) if epoch == self._preparing:
                self._prepared.add(instance)
            case EpochFailed(epoch=epoch) if epoch == self._preparing:
                self._failure = message
            case _:
                return
        self._news.set()

    async def _follow_schedule(self) -> None:
        """Looks for a better placement every so often, whenever there are new statistics, and as
        soon as routing has changed."""
        interval_s, seen = self._config.rebalance_interval, None
        while interval_s:
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), interval_s)
            if self.status.state != "idle" or self.load is seen:
                continue
            seen = self.load
            with contextlib.suppress(ConflictError, ConfigError):
                await self._start(self._worthwhile)

    def _worthwhile(self) -> Placement:
        """The proposed placement, or the present one if the gain is too small."""
        proposal = self._propose()
        return proposal.target if proposal.worthwhile else self.placement
