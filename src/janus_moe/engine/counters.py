"""Totals of what the workers reported, and the snapshot made of them.

Knows nothing of single requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from janus_moe.engine.load import ObservedLoad
from janus_moe.engine.snapshot import EngineSnapshot, Timing
from janus_moe.messages import StepDone
from janus_moe.spec import PoolShape


@dataclass(slots=True)
class EngineCounters:
    """Totals since the start.

    activated: [expert instances] distinct activated experts, summed over `layer_passes` passes
    through an MoE layer; max_activated: the same for the busiest instance of each pass.
    """

    shape: PoolShape
    activated: list[int]
    prompt_tokens: int = 0
    generation_tokens: int = 0
    num_steps: int = 0
    dispatch_seconds: float = 0.0
    combine_seconds: float = 0.0
    scheduler_seconds: float = 0.0
    layer_passes: int = 0
    max_activated: int = 0
    placement_epoch: int = 0
    exchange_plan: str = ""
    exchange_steps: dict[str, int] = field(default_factory=dict)

    @classmethod
    def zero(cls, shape: PoolShape) -> EngineCounters:
        return cls(shape=shape, activated=[0] * shape.expert)

    def add(self, done: StepDone) -> None:
        """Counts one step of one attention instance."""
        self.num_steps += done.step_seconds > 0
        self.dispatch_seconds += done.dispatch_seconds
        self.combine_seconds += done.combine_seconds
        self.scheduler_seconds += done.scheduler_seconds
        self.generation_tokens += sum(len(new.token_ids) for new in done.outputs)
        self.placement_epoch = max(self.placement_epoch, done.epoch)
        if done.exchange_plan and done.instance.number == 0:
            self.exchange_plan = done.exchange_plan
            steps = self.exchange_steps.get(done.exchange_plan, 0)
            self.exchange_steps[done.exchange_plan] = steps + 1
        if done.activity is not None:
            self.layer_passes += done.activity.layers
            self.max_activated += done.activity.max_activated
            for index, count in enumerate(done.activity.activated):
                self.activated[index] += count

    def snapshot(self, loads: Sequence[ObservedLoad], num_waiting: int) -> EngineSnapshot:
        """The engine's state as metrics and logs show it."""
        passes = max(1, self.layer_passes)
        total = sum(self.activated)
        return EngineSnapshot(
            running=sum(load.num_running for load in loads),
            waiting=num_waiting,
            kv_usage=sum(load.kv_usage for load in loads) / len(loads),
            prompt_tokens=self.prompt_tokens,
            generation_tokens=self.generation_tokens,
            preemptions=sum(load.num_preemptions for load in loads),
            pool_sizes={"attention": self.shape.attention, "expert": self.shape.expert},
            activated_experts=tuple(count / passes for count in self.activated),
            max_activated_experts=self.max_activated / passes,
            layer_passes=self.layer_passes,
            expert_load_imbalance=self.max_activated * self.shape.expert / total if total else 0.0,
            dispatch=Timing(count=self.num_steps, total_s=self.dispatch_seconds),
            combine=Timing(count=self.num_steps, total_s=self.combine_seconds),
            scheduler=Timing(count=self.num_steps, total_s=self.scheduler_seconds),
            placement_epoch=self.placement_epoch,
            exchange_plan=self.exchange_plan,
            exchange_steps=dict(self.exchange_steps),
        )
