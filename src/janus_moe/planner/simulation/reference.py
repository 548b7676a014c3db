"""The same pool with the engine's own policy code: batcher, block manager, choice of an instance.

Exact and slow: about a million tokens per minute. It is what `steps` must agree with, and it alone
reuses prefixes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from janus_moe.planner.simulation import state
from janus_moe.planner.simulation.state import BatchLimits
from janus_moe.planner.simulation.step_table import StepTable, step_seconds
from janus_moe.planner.simulation.workload import RequestTrace
from janus_moe.policy.batching import Batcher, Sequence, StepPlan
from janus_moe.policy.paging import BlockManager
from janus_moe.policy.routing import InstanceLoad, choose_instance, prefix_instance


class PolicyPool:
    """One batcher per instance. Prefixes are reused if the workload knows them."""

    def __init__(
        self,
        workload: RequestTrace,
        limits: BatchLimits,
        max_instances: int,
        interval_s: float,
        log_steps: int = 0,
    ) -> None:
        self._workload, self._limits = workload, limits
        self.requests = state.new_requests(workload)
        arrays = state.new_pool(workload, max_instances, limits.block_size, interval_s, log_steps)
        self.instances, self.interval, self._log = arrays.instances, arrays.interval, arrays.log
        self._interval_s = interval_s
        self._blocks: list[BlockManager | None] = [None] * max_instances
        self._batchers: list[Batcher | None] = [None] * max_instances
        self._next_arrival = 0
        self.now_s, self.num_steps, self._past_preemptions = 0.0, 0, 0

    @property
    def num_preemptions(self) -> int:
        return self._past_preemptions + sum(b.num_preemptions for b in self._batchers if b)

    @property
    def log(self) -> NDArray[np.float64]:
        return self._log[: self.num_steps]

    def activate(self, instance: int, kv_blocks: int) -> None:
        if self.instances["status"][instance] == state.ABSENT:
            old = self._batchers[instance]
            self._past_preemptions += old.num_preemptions if old else 0
            caching = self._workload.prefix is not None
            blocks = BlockManager(kv_blocks, self._limits.block_size, enable_prefix_caching=caching)
            self._blocks[instance] = blocks
            self._batchers[instance] = Batcher(
                blocks, self._limits.max_num_seqs, self._limits.max_num_batched_tokens
            )
        self.instances["status"][instance] = state.ACTIVE

    def drain(self, instance: int, now_s: float) -> None:
        batcher = self._batchers[instance]
        busy = batcher is not None and batcher.has_work
        self.instances["status"][instance] = state.DRAINING if busy else state.ABSENT
        self.instances["drained_s"][instance] = now_s

    def run(self, until_s: float, table: StepTable) -> bool:
        arrivals = self._workload.arrival_s
        while True:
            if not any(b.has_work for b in self._batchers if b):
                if self._next_arrival == len(arrivals):
                    return True
                self.now_s = max(self.now_s, float(arrivals[self._next_arrival]))
            if self.now_s >= until_s:
                return False
            while self._next_arrival < len(arrivals) and arrivals[self._next_arrival] <= self.now_s:
                self._route(self._next_arrival)
                self._next_arrival += 1
            self._step(table)

    def _route(self, request: int) -> None:
        workload, tokens = self._workload, self._prompt(request)
        longest = len(tokens) + int(workload.output_tokens[request]) - 1
        loads = []
        for i, (batcher, blocks) in enumerate(zip(self._batchers, self._blocks, strict=True)):
            here = self.instances[i]
            if batcher is None or blocks is None or here["status"] != state.ACTIVE:
                continue
            if batcher.fits(longest):
                number = batcher.num_running + batcher.num_waiting
                capacity = blocks.num_blocks * blocks.block_size
                loads.append(
                    InstanceLoad(i, number, int(here["unstarted"]), blocks.usage, capacity)
                )
        if not loads:
            self.requests["instance"][request] = state.REJECTED
            return
        preferred = None
        if workload.prefix is not None:
            preferred = prefix_instance(tokens, [load.instance for load in loads])
        chosen = choose_instance(loads, preferred)
        self.requests["instance"][request] = chosen
        self.instances["unstarted"][chosen] += len(tokens)
        batcher = self._batchers[chosen]
        assert batcher is not None
        batcher.add(Sequence(str(request), tokens, len(tokens)))
        self._count(chosen, batcher)

    def _prompt(self, request: int) -> list[int]:
        """Ids, equal where prompts are known to be; without prefixes they are not looked at."""
        length, prefix = int(self._workload.prompt_tokens[request]), self._workload.prefix
        if prefix is None:
            return [0] * length
        size, ids = prefix.block_tokens, list[int]()
        for block in prefix.of(request).tolist():
            ids.extend(range(block * size, (block + 1) * size))
        ids.extend([-1 - request] * (length - len(ids)))
        return ids[:length]

    def _step(self, table: StepTable) -> None:
        plans = [(i, b, b.plan()) for i, b in enumerate(self._batchers) if b]
        for i, _, plan in plans:
            self._announce(i, plan, table.pair_cost)
        seconds = float(step_seconds(table, self.instances))
        if seconds > 0:
            self._record(plans, seconds)
        self.now_s += seconds
        for i, batcher, plan in plans:
            self._commit(i, batcher, plan)

    def _announce(self, instance: int, plan: StepPlan, pair_cost: float) -> None:
        kv = 0.0
        for index, (_, start, length, _) in enumerate(plan.scheduled):
            pairs = length * (start + 0.5 * (length + 1))
            kv += start + 1 if index < plan.num_decodes else max(start + length, pair_cost * pairs)
        here = self.instances[instance]
        here["planned_tokens"], here["planned_kv"] = plan.num_tokens, kv
        here["planned_samples"] = sum(entry.samples for entry in plan.scheduled)

    def _record(self, plans: list[tuple[int, Batcher, StepPlan]], seconds: float) -> None:
        running = sum(batcher.num_running for _, batcher, _ in plans)
        waiting = sum(batcher.num_waiting for _, batcher, _ in plans)
        tokens = sum(plan.num_tokens for _, _, plan in plans)
        samples = sum(entry.samples for _, _, plan in plans for entry in plan.scheduled)
        started = sum(
            entry.num_tokens
            for _, _, plan in plans
            for entry in plan.scheduled
            if entry.start + entry.num_tokens <= entry.sequence.prompt_len
        )
        row = min(int(self.now_s / self._interval_s), len(self.interval) - 1)
        self.interval[row] += (seconds, 1, samples, seconds * running, started)
        if self.num_steps < len(self._log):
            self._log[self.num_steps] = (self.now_s, seconds, tokens, running, waiting)
        self.num_steps += 1

    def _commit(self, instance: int, batcher: Batcher, plan: StepPlan) -> None:
        here = self.instances[instance]
        sampled = [e.sequence for e in plan.scheduled if e.samples]
        batcher.commit(plan, {s.request_id: -1 - int(s.request_id) for s in sampled})
        for sequence in sampled:
            request = self.requests[int(sequence.request_id)]
            if np.isnan(request["first_s"]):
                request["first_s"] = self.now_s
                here["unstarted"] -= sequence.prompt_len
            if len(sequence.token_ids) == sequence.prompt_len + request["output"]:
                request["finish_s"] = self.now_s
                batcher.finish(sequence.request_id)
        self._count(instance, batcher)
        if here["status"] == state.DRAINING and not batcher.has_work:
            here["status"], here["drained_s"] = state.ABSENT, self.now_s

    def _count(self, instance: int, batcher: Batcher) -> None:
        here = self.instances[instance]
        here["running"], here["waiting"] = batcher.num_running, batcher.num_waiting
