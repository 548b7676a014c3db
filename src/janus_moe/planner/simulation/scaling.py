"""Which deployment to have: what a policy of scaling sees and answers, and how long a change takes.

`planned` has the planners as such policies. Nothing here knows how a change is carried out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from janus_moe.errors import ConfigError
from janus_moe.planner.simulation.deployment import SimDeployment


class ObservedDemand(NamedTuple):
    """What has arrived since the last decision.

    requests_per_s: mean.
    minute_rates: of each minute that is looked back at, in order of time.
    prompt_tokens, output_tokens: means per request.
    num_present: requests in the system now.
    num_waiting: those of them for which there has been no room.
    """

    requests_per_s: float
    minute_rates: tuple[float, ...]
    prompt_tokens: float
    output_tokens: float
    num_present: int
    num_waiting: int = 0

    @property
    def output_tokens_per_s(self) -> float:
        return self.requests_per_s * self.output_tokens

    @property
    def num_running(self) -> int:
        return self.num_present - self.num_waiting

    def as_dict(self) -> dict[str, float]:
        """For reports: of the minutes only the busiest."""
        found = self._asdict()
        found["peak_requests_per_s"] = max(found.pop("minute_rates"), default=0.0)
        return found


class ScalingTarget(NamedTuple):
    """The deployment to have from now on.

    enough: whether it is expected to meet the demand.
    """

    deployment: SimDeployment
    enough: bool = True


class ScalingPolicy(Protocol):
    """name: as in reports. A policy may remember; it gets every decision in order of time."""

    @property
    def name(self) -> str: ...

    @property
    def lines(self) -> tuple[str, ...]:
        """Its whole configuration, for reports."""
        ...

    def decide(
        self, now_s: float, demand: ObservedDemand, current: SimDeployment | None
    ) -> ScalingTarget:
        """`current` at the first decision is None."""
        ...


@dataclass(frozen=True)
class StaticPolicy:
    """Always the same deployment.

    lines: what to print of it.
    """

    deployment: SimDeployment
    name: str = "static"
    lines: tuple[str, ...] = ()

    def decide(
        self, now_s: float, demand: ObservedDemand, current: SimDeployment | None
    ) -> ScalingTarget:
        return ScalingTarget(self.deployment)


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How fast instances change.

    start_s: a new process until it loads, and warm-up after.
    load_bytes_per_s: weights from storage or host memory, per instance.
    move_bytes_per_s: replicas between instances.

    The defaults are assumptions: PCIe 5 from page cache, half a 400 Gb/s link.
    """

    start_s: float = 20.0
    load_bytes_per_s: float = 10e9
    move_bytes_per_s: float = 25e9

    def __post_init__(self) -> None:
        if self.start_s < 0 or self.load_bytes_per_s <= 0 or self.move_bytes_per_s <= 0:
            raise ConfigError(f"loading needs times from 0 s and rates above 0, got {self}")

    def change_s(self, old: SimDeployment, new: SimDeployment) -> float:
        """Until `new` serves: new instances load all they hold, in parallel; instances of an expert
        pool that changes size exchange the share of replicas that changes its place."""
        load, move = 0.0, 0.0
        before, after = old.size, new.size
        same_kind = before.monolithic == after.monolithic
        same_kind = same_kind and before.attention_tp == after.attention_tp
        grows_attention = after.num_attention > before.num_attention or not same_kind
        grows_experts = after.num_expert > before.num_expert
        if grows_attention:
            load = new.attention_bytes + (new.expert_bytes if after.monolithic else 0.0)
        if grows_experts or not same_kind:
            load = max(load, new.expert_bytes)
        old_pool = before.num_gpus if before.monolithic else before.num_expert
        new_pool = after.num_gpus if after.monolithic else after.num_expert
        if same_kind and old_pool != new_pool:
            share = abs(new_pool - old_pool) / max(new_pool, old_pool)
            move = share * new.expert_bytes / self.move_bytes_per_s
        elif same_kind and new.expert_bytes > old.expert_bytes:  # more slots on the same instances
            move = (new.expert_bytes - old.expert_bytes) / self.move_bytes_per_s
        start = self.start_s + load / self.load_bytes_per_s if load else 0.0
        return max(start, move)
