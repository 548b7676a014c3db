"""How loaded each attention instance is, as seen from the engine.

Reports arrive once a step; what was sent since counts as waiting. The choice itself is
`policy.routing`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from janus_moe.messages import StepDone
from janus_moe.policy.routing import InstanceLoad, choose_instance, prefix_instance


@dataclass(slots=True)
class ObservedLoad:
    """num_requests, unstarted_tokens: what the engine sent; the rest: the last report."""

    num_requests: int = 0
    unstarted_tokens: int = 0
    num_running: int = 0
    kv_usage: float = 0.0
    num_preemptions: int = 0


class InstanceLoads:
    """Load of every attention instance; chooses one for each new request."""

    def __init__(self, num_instances: int, kv_capacity_tokens: int) -> None:
        self.observed = [ObservedLoad() for _ in range(num_instances)]
        self._capacity = kv_capacity_tokens

    def choose(self, prompt_ids: Sequence[int]) -> int:
        """The attention instance for a new request."""
        loads = [
            InstanceLoad(
                index, load.num_requests, load.unstarted_tokens, load.kv_usage, self._capacity
            )
            for index, load in enumerate(self.observed)
        ]
        return choose_instance(loads, prefix_instance(prompt_ids, range(len(loads))))

    def sent(self, index: int, prompt_tokens: int) -> None:
        """A request was sent to an instance."""
        self.observed[index].num_requests += 1
        self.observed[index].unstarted_tokens += prompt_tokens

    def started(self, index: int, prompt_tokens: int) -> None:
        """A request has its prompt in the cache, or is gone before that."""
        self.observed[index].unstarted_tokens -= prompt_tokens

    def ended(self, index: int) -> None:
        self.observed[index].num_requests -= 1

    def report(self, done: StepDone) -> None:
        """Takes over what an instance says of itself."""
        load = self.observed[done.instance.number]
        load.num_running = done.num_running
        load.kv_usage = done.kv_usage
        load.num_preemptions = done.num_preemptions
