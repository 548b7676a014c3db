"""Which worker process hosts which instances, and what each of them is told.

One worker with everything where the transport is one of `ONE_PROCESS`. Otherwise one worker for
each instance, on the host that the plan gives it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from janus_moe.cluster.deployment_plan import DeploymentPlan, Host
from janus_moe.cluster.runtime.base import WorkerSpec
from janus_moe.messages import OpenGeneration, Setup
from janus_moe.spec import ONE_PROCESS, InstanceId, Membership


@dataclass(frozen=True, slots=True)
class WorkerLayout:
    """One worker process.

    name: its name, by which control messages reach it.
    host: where it runs.
    instances: those that it hosts.
    num_threads: compute threads of each of them.
    """

    name: str
    host: Host
    instances: tuple[InstanceId, ...]
    num_threads: int

    @property
    def title(self) -> str:
        """Its name, with its host where that is another one."""
        share = self.host.share
        return self.name if share.is_local else f"{self.name} on host {share.name}"

    @property
    def spec(self) -> WorkerSpec:
        """What a runtime must know to start it."""
        return WorkerSpec(self.name, self.host.share.name, self.num_threads)


def worker_layouts(plan: DeploymentPlan) -> Sequence[WorkerLayout]:
    """The worker processes of a run, attention instances first."""
    if plan.config.transport in ONE_PROCESS:
        (host,) = plan.hosts
        threads = max(plan.threads(host, "attention"), plan.threads(host, "expert"))
        return [WorkerLayout("janus", host, host.share.instances, threads)]
    instances = plan.membership.instances
    hosts = {instance: plan.host_of(instance) for instance in instances}
    return [WorkerLayout(str(i), hosts[i], (i,), plan.threads(hosts[i], i.pool)) for i in instances]


def setup_message(plan: DeploymentPlan, layout: WorkerLayout) -> Setup:
    """What a worker of the first generation needs to build its instances."""
    return setup_for(
        plan, plan.membership, plan.placement.slots, layout.instances, layout.num_threads
    )


def setup_for(
    plan: DeploymentPlan,
    membership: Membership,
    slots: tuple[tuple[tuple[int, ...], ...], ...],
    instances: tuple[InstanceId, ...],
    num_threads: int,
) -> Setup:
    """What a worker needs to build instances of a membership.

    slots: [moe layers][expert instances] logical expert ids, by rank.
    instances: those of the worker.
    num_threads: compute threads of each of them.
    """
    return Setup(
        instances=instances,
        spec=plan.spec,
        config=plan.config,
        checkpoint=str(plan.folder),
        num_kv_blocks=plan.num_kv_blocks,
        num_threads=num_threads,
        num_cores=plan.hosts[membership.host_of(instances[0])].facts.cores,
        membership=membership,
        slots=slots,
        spare_slots=plan.spare_slots,
        links=plan.links,
    )


def open_message(plan: DeploymentPlan, layout: WorkerLayout) -> OpenGeneration:
    """What makes a worker open the first generation of a run."""
    return OpenGeneration(
        membership=plan.membership,
        slots=plan.placement.slots,
        num_threads=layout.num_threads,
    )
