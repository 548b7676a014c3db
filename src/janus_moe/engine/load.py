"""How loaded each attention instance is, as seen from the engine.

Reports arrive once a step; what was sent since counts as waiting. The choice itself is
`policy.routing`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from janus_moe.messages import StepDone
from janus_moe.policy.routing import InstanceLoad, choose_instance, prefix_instance
from janus_moe.spec import InstanceId


@dataclass(slots=True)
class ObservedLoad:
    """The load of one attention instance.

    num_requests: sent there and not ended.
    unstarted_tokens: prompt tokens of those whose prompt is not in the cache.
    num_running: requests in a batch, by the last report.
    kv_usage: used share of its KV blocks, 0 to 1, by the last report.
    """

    num_requests: int = 0
    unstarted_tokens: int = 0
    num_running: int = 0
    kv_usage: float = 0.0


class InstanceLoads:
    """Load of every attention instance by id; chooses one for each new request.

    members: the attention instances.
    kv_capacity_tokens: tokens that the KV cache of each holds.

    What is said of other instances, such as one that has just left, is ignored.
    """

    def __init__(self, members: Iterable[InstanceId], kv_capacity_tokens: int) -> None:
        self.observed = {instance: ObservedLoad() for instance in members}
        self._capacity = kv_capacity_tokens
        self._closed: set[InstanceId] = set()

    def use_members(self, members: Iterable[InstanceId]) -> None:
        """Other instances from now on; those that stay keep their loads, and closed ones do."""
        observed = self.observed
        self.observed = {one: observed.get(one) or ObservedLoad() for one in members}
        self._closed.intersection_update(self.observed)

    def remove(self, instance: InstanceId) -> None:
        """An instance is lost."""
        self.observed.pop(instance, None)
        self._closed.discard(instance)

    def close(self, instance: InstanceId) -> None:
        """An instance gets no more requests, but keeps those that it has."""
        if instance in self.observed:
            self._closed.add(instance)

    def open(self, instance: InstanceId) -> None:
        """An instance gets requests again."""
        self._closed.discard(instance)

    def num_requests(self, instance: InstanceId) -> int:
        """How many requests an instance has."""
        load = self.observed.get(instance)
        return 0 if load is None else load.num_requests

    def choose(self, prompt_ids: Sequence[int]) -> InstanceId | None:
        """The attention instance for a request; None while no instance takes any."""
        ids = {one.number: one for one in self.observed if one not in self._closed}
        if not ids:
            return None
        loads = [
            InstanceLoad(
                instance.number,
                load.num_requests,
                load.unstarted_tokens,
                load.kv_usage,
                self._capacity,
            )
            for instance, load in self.observed.items()
            if instance not in self._closed
        ]
        return ids[choose_instance(loads, prefix_instance(prompt_ids, list(ids)))]

    def sent(self, instance: InstanceId, prompt_tokens: int) -> None:
        """A request was sent to an instance."""
        if (load := self.observed.get(instance)) is not None:
            load.num_requests += 1
            load.unstarted_tokens += prompt_tokens

    def started(self, instance: InstanceId, prompt_tokens: int) -> None:
        """A request has its prompt in the cache, or is gone before that."""
        if (load := self.observed.get(instance)) is not None:
            load.unstarted_tokens -= prompt_tokens

    def ended(self, instance: InstanceId) -> None:
        """A request is gone."""
        if (load := self.observed.get(instance)) is not None:
            load.num_requests -= 1

    def report(self, done: StepDone) -> None:
        """Takes over what an instance says of itself."""
        if (load := self.observed.get(done.instance)) is not None:
            load.num_running = done.num_running
            load.kv_usage = done.kv_usage
