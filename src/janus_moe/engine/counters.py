"""Totals of what the workers reported, and the snapshot made of them.

They are by the id of the instance and outlive it, so no total falls when an instance goes. Knows
nothing of single requests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from janus_moe.engine.load import ObservedLoad
from janus_moe.engine.snapshot import DurationTotal, EngineSnapshot
from janus_moe.messages import StepDone
from janus_moe.spec import InstanceId, Membership


@dataclass(slots=True)
class EngineCounters:
    """Totals since the start.

    readmissions: requests that were given to another attention instance.
    dropped_outputs: what was said of a request and was not of its admission, or did not come next.
    preemptions: by attention instance, as it last reported.
    layer_passes: passes through an MoE layer.
    max_activated: distinct activated experts of the busiest instance, summed over the passes.
    mean_activated: the same of the mean over the instances of each pass.
    activated: by expert instance, distinct activated experts, summed over the passes it took part
        in.
    passes: by expert instance, how many those are.
    placement_epoch: the latest that a step reported.
    exchange_plan: of the latest step over the network; "" for none.
    exchange_steps: steps by plan, as the attention instance of rank 0 took part in them.
    """

    prompt_tokens: int = 0
    generation_tokens: int = 0
    readmissions: int = 0
    dropped_outputs: int = 0
    preemptions: dict[InstanceId, int] = field(default_factory=dict)
    num_steps: int = 0
    dispatch_seconds: float = 0.0
    combine_seconds: float = 0.0
    scheduler_seconds: float = 0.0
    layer_passes: int = 0
    max_activated: int = 0
    mean_activated: float = 0.0
    activated: Counter[InstanceId] = field(default_factory=Counter)
    passes: Counter[InstanceId] = field(default_factory=Counter)
    placement_epoch: int = 0
    exchange_plan: str = ""
    exchange_steps: Counter[str] = field(default_factory=Counter)

    def add(self, done: StepDone, membership: Membership) -> None:
        """Counts one step of one attention instance, a member or one that has just left."""
        self.num_steps += done.step_seconds > 0
        self.dispatch_seconds += done.dispatch_seconds
        self.combine_seconds += done.combine_seconds
        self.scheduler_seconds += done.scheduler_seconds
        self.generation_tokens += sum(len(new.token_ids) for new in done.outputs)
        known = self.preemptions.get(done.instance, 0)
        self.preemptions[done.instance] = max(known, done.num_preemptions)
        self.placement_epoch = max(self.placement_epoch, done.epoch)
        if done.exchange_plan and done.instance == membership.attention[0]:
            self.exchange_plan = done.exchange_plan
            self.exchange_steps[done.exchange_plan] += 1
        if (activity := done.activity) is not None:
            self.layer_passes += activity.layers
            self.max_activated += activity.max_activated
            self.mean_activated += sum(activity.activated.values()) / len(activity.activated)
            for expert, count in activity.activated.items():
                self.activated[expert] += count
                self.passes[expert] += activity.layers

    def snapshot(
        self, membership: Membership, loads: Mapping[InstanceId, ObservedLoad], num_waiting: int
    ) -> EngineSnapshot:
        """The engine's state as metrics and logs show it.

        loads: of the attention instances that are members and not lost.
        """
        means = {e: self.activated[e] / max(1, self.passes[e]) for e in membership.expert}
        mean = self.mean_activated
        return EngineSnapshot(
            running=sum(load.num_running for load in loads.values()),
            waiting=num_waiting,
            kv_usage=sum(load.kv_usage for load in loads.values()) / max(1, len(loads)),
            prompt_tokens=self.prompt_tokens,
            generation_tokens=self.generation_tokens,
            preemptions=sum(self.preemptions.values()),
            readmissions=self.readmissions,
            dropped_outputs=self.dropped_outputs,
            pool_sizes={
                "attention": membership.shape.attention,
                "expert": membership.shape.expert,
            },
            activated_experts=means,
            max_activated_experts=self.max_activated / max(1, self.layer_passes),
            layer_passes=self.layer_passes,
            expert_load_imbalance=self.max_activated / mean if mean else 0.0,
            dispatch=DurationTotal(count=self.num_steps, total_s=self.dispatch_seconds),
            combine=DurationTotal(count=self.num_steps, total_s=self.combine_seconds),
            scheduler=DurationTotal(count=self.num_steps, total_s=self.scheduler_seconds),
            placement_epoch=self.placement_epoch,
            exchange_plan=self.exchange_plan,
            exchange_steps=dict(self.exchange_steps),
        )
