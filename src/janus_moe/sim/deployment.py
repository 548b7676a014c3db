"""What a pool of GPUs can do: its steps, its KV cache, and the bytes each instance must load.

Built from the oracle. Knows no workload and no policy of scaling.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from janus_moe.errors import ConfigError
from janus_moe.perf import Oracle
from janus_moe.policy.activation import Policy
from janus_moe.policy.estimate import AmaxTable, Sampler
from janus_moe.policy.placement import PlacementMethod, even_capacity, place_experts
from janus_moe.sim.state import Limits
from janus_moe.sim.step_table import (
    AttentionSide,
    PoolSize,
    StepTable,
    busiest_step_seconds,
    tabulate,
    tabulate_attention,
)

MEMORY_SHARE = 0.9
"""Of a GPU's memory for weights and KV; the rest is for activations, graphs and the allocator."""

AMAX_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024)
AMAX_SAMPLES = 8

PoolAmax = Callable[[int, int, float], float]
"""(expert instances, slots per layer of all of them, tokens) -> a_max."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Deployment:
    """kv_blocks: per attention instance. attention_bytes, expert_bytes: weights that a new instance
    of either pool loads; a monolithic instance loads both.
    """

    name: str
    size: PoolSize
    table: StepTable
    limits: Limits
    kv_blocks: int
    attention_bytes: float
    expert_bytes: float

    def __post_init__(self) -> None:
        limits = self.limits
        if not 1 <= limits.max_num_seqs <= limits.max_num_batched_tokens:
            raise ConfigError(
                f"the simulator needs max_num_seqs from 1 to max_num_batched_tokens, got "
                f"{limits.max_num_seqs} and {limits.max_num_batched_tokens}"
            )
        if self.size.num_attention < 1 or self.kv_blocks < 1:
            raise ConfigError(
                f"{self.name}: {self.size.num_attention} attention instances with "
                f"{self.kv_blocks} KV blocks each serve nobody"
            )

    @property
    def num_gpus(self) -> int:
        return self.size.num_gpus

    def step_s(
        self, batch: float, context: float, prompt: float = 0.0, output: float = 1.0
    ) -> float:
        """A step of `batch` sequences, spread evenly, of `context` positions each.

        prompt, output: tokens of the requests that come and go meanwhile, a prompt for every
        `output` tokens produced. Prompts do not spread evenly: one is on one instance, and the
        others wait for it.
        """
        instances = self.size.num_attention
        each, arriving = batch / instances, batch / output
        busiest = prompt * max(min(arriving, 1.0), arriving / instances)
        chunk = min(busiest, self.limits.max_num_batched_tokens - min(each, 1.0))
        kv = each * context + chunk * max(1.0, self.table.pair_cost * chunk / 2)
        seconds = busiest_step_seconds(
            self.table, each + chunk, kv, each, batch + arriving * prompt
        )
        return float(seconds)

    def capacity(self, slo_s: float, prompt: float, output: float) -> float:
        """Most output tokens per second whose steps keep to `slo_s`, by Little's law; 0 if none.

        prompt, output: mean tokens of a request.
        """
        limits, context = self.limits, prompt + output / 2
        fits = self.kv_blocks * limits.block_size / (prompt + output)
        most = min(limits.max_num_seqs, fits) * self.size.num_attention
        best = 0.0
        for batch in np.geomspace(1.0, max(most, 1.0), 48):
            seconds = self.step_s(batch, context, prompt, output)
            if seconds <= slo_s:
                best = max(best, batch / seconds)
        return best


class Deployments:
    """Deployments of one model on given devices, by size.

    slots_per_expert: of pools, at least 1; fewer where memory does not allow as many.
    """

    def __init__(
        self, oracle: Oracle, a_max: PoolAmax, limits: Limits, slots_per_expert: float = 1.25
    ) -> None:
        if not slots_per_expert >= 1:
            raise ConfigError(f"every expert needs a slot or more, got {slots_per_expert}")
        self.oracle, self._a_max, self._limits = oracle, a_max, limits
        self._slots_per_expert = slots_per_expert
        self._sides: dict[int, AttentionSide] = {}

    def of(self, size: PoolSize) -> Deployment | None:
        """None if weights do not fit or leave no room for KV."""
        oracle, model, limits = self.oracle, self.oracle.model, self._limits
        instances = size.num_attention if size.monolithic else size.num_expert
        slots = self._slots(size, instances)
        if slots is None:
            return None
        attention_bytes = model.attention_side_bytes()
        expert_bytes = slots * model.expert_bytes() * model.num_moe_layers + model.router_bytes()
        room = MEMORY_SHARE * oracle.attention_side.device.memory_bytes - attention_bytes
        room -= expert_bytes if size.monolithic else 0.0
        kv_bytes = model.kv_bytes_per_token_layer(oracle.kv_format) * model.num_layers
        kv_blocks = int(room / (kv_bytes * limits.block_size))
        if kv_blocks < 1:
            return None
        table = tabulate(
            oracle,
            size,
            lambda tokens: self._a_max(instances, slots * instances, tokens),
            self._attention_side(kv_blocks),
            slots=slots,
        )
        return Deployment(
            name=str(size),
            size=size,
            table=table,
            limits=limits,
            kv_blocks=kv_blocks,
            attention_bytes=attention_bytes,
            expert_bytes=expert_bytes,
        )

    def _slots(self, size: PoolSize, instances: int) -> int | None:
        """Per layer and expert instance; None if the experts do not fit."""
        model = self.oracle.model
        if instances > model.num_experts:
            return None
        memory = MEMORY_SHARE * self.oracle.expert_side.device.memory_bytes - model.router_bytes()
        possible = int(memory / (model.expert_bytes() * model.num_moe_layers))
        least = -(-model.num_experts // instances)
        wanted = least
        if not size.monolithic:
            wanted = -(-round(model.num_experts * self._slots_per_expert) // instances)
        slots = min(wanted, possible, model.num_experts)
        return slots if slots >= least else None

    def _attention_side(self, kv_blocks: int) -> AttentionSide:
        if kv_blocks not in self._sides:
            limits = self._limits
            self._sides[kv_blocks] = tabulate_attention(
                self.oracle, limits.max_num_batched_tokens, kv_blocks * limits.block_size
            )
        return self._sides[kv_blocks]


class SampledAmax:
    """a_max of one layer's router by sampling batches through the real scheduler, as needed."""

    def __init__(
        self,
        sample: Sampler,
        num_experts: int,
        policy: Policy = "exact",
        method: PlacementMethod = "janus",
        seed: int = 0,
    ) -> None:
        self._sample, self._num_experts = sample, num_experts
        self._policy, self._method, self._seed = policy, method, seed
        self._tables: dict[tuple[int, int], AmaxTable] = {}

    def __call__(self, instances: int, slots: int, tokens: float) -> float:
        key = instances, slots
        if key not in self._tables:
            self._tables[key] = self._table(instances, slots)
        return self._tables[key].a_max(instances, tokens)

    def _table(self, instances: int, slots: int) -> AmaxTable:
        redundant = min(slots, instances * self._num_experts) - self._num_experts
        capacity = even_capacity(self._num_experts, instances, redundant)
        seen = np.zeros(self._num_experts)
        rng = np.random.default_rng(self._seed)
        for ids in (self._sample(64, rng) for _ in range(32)):
            if self._method == "eplb":  # it weighs tokens, the others the chance of being active
                seen += np.bincount(ids.ravel(), minlength=self._num_experts)
            else:
                seen[np.unique(ids)] += 1 / 32
        placement = place_experts(self._method, seen[None, :], capacity)
        return AmaxTable.sampled(
            self._sample,
            {instances: placement.layer_layout(0)},
            AMAX_BATCHES,
            self._policy,
            AMAX_SAMPLES,
            self._seed,
        )
